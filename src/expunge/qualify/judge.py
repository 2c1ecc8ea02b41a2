"""From simulated requests to findings, controls and one verdict on a method; no torch.

Requests come in pairs, whose models were trained on complementary halves. Every third pair is in question: its
unlearned models, or those of a control in their place. The retrained models of the second third are what they are
compared with; pairs of the last third give the margins. So no retrained model stands on two sides of a test, and a
second retrained model can be put through all of them as a control.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from expunge.errors import UserError, suggest
from expunge.qualify.equivalence import margin_from_floor, tost
from expunge.qualify.finding import REPLICATES, Finding, least_rows, of_equivalence, of_rank, of_relative
from expunge.qualify.kernels import relabellings
from expunge.qualify.nearer import Side, relative
from expunge.qualify.planted import distance_shift, kernel_shift
from expunge.qualify.power import smallest_difference
from expunge.qualify.rank import least, rank_distance
from expunge.qualify.strong import Index, told
from expunge.qualify.tolerance import least_pairs
from expunge.qualify.trials import PARTS, Floats, Said, Trials, summary
from expunge.qualify.verdict import INSUFFICIENT, Control, Verdict, decide, words
from expunge.stats import clopper_pearson

LEAST = 6  # models; two in each third
QUANTILE = 0.5  # of the differences of retrained pairs that a margin bounds
STEP = 1e-3  # nats; a difference below it is rounding
FAR = 2.0  # |z| from which a sample counts in the tail
CUT = 10.0  # |z| beyond which it counts no more
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # of a request's samples, tried for what the tail shows
PLACES = {"forget": "forgotten", "retain": "retained", "test": "test"}


@dataclass(frozen=True, eq=False)
class Thirds:
    """Which rows of T requests are in question, compared with, and read for margins.

    Args:
        asked: in question, pairs 0, 3, 6, …
        beside: whose retrained models these are compared with, pairs 1, 4, 7, …
        margin: whose retrained models give margins, pairs 2, 5, 8, …
    """

    asked: Index
    beside: Index
    margin: Index

    @property
    def others(self) -> Index:
        """Rows of all retrained models that are not in question."""
        return np.concatenate([self.beside, self.margin])

    @property
    def pairs(self) -> Index:
        """First rows of the pairs that give margins."""
        first: Index = self.margin[(self.margin % 2 == 0) & np.isin(self.margin + 1, self.margin)]
        return first


def thirds(models: int) -> Thirds:
    """Return the rows of each third.

    >>> [rows.tolist() for rows in vars(thirds(8)).values()]
    [[0, 1, 6, 7], [2, 3], [4, 5]]

    Raises:
        UserError: fewer than two rows in some third.
    """
    if models < LEAST:
        raise UserError(f"at least {LEAST} models, two in each third", str(models), f"train {LEAST - models} more")
    rows = np.arange(models)
    asked, beside, margin = (rows[rows // 2 % 3 == third] for third in range(3))
    if len(margin) < 2:  # an odd number of models
        raise UserError("models in pairs of complementary halves", str(models), "train one more")
    return Thirds(asked, beside, margin)


def least_models(level: float = 0.05) -> int:
    """Return the fewest models on which a verdict other than insufficient evidence can rest.

    >>> least_models(0.05), least_models(0.01)
    (30, 150)

    Raises:
        UserError: a level outside (0, 0.5).
    """
    enough, models = least(level), 2 * LEAST
    while True:
        t = thirds(models)
        replicates = min(len(t.asked), len(t.beside))
        if replicates >= REPLICATES and len(t.others) >= enough and len(t.pairs) >= least_pairs(QUANTILE):
            return models
        models += 2


@dataclass(frozen=True, kw_only=True)
class Smallest:
    """The smallest effects that the tests without a formula for it show with the power; infinite for none.

    Args:
        rank: shift of one model, in root mean square distances of a retrained model from their mean.
        kernel: the same of all models in question.
        calls: share of forgotten samples called right by the pooled attack.
        share: of a request's samples, left as they were.
    """

    rank: float
    kernel: float
    calls: float
    share: float


@dataclass(frozen=True, eq=False)
class Judged:
    """A verdict with all findings that it rests on.

    Args:
        verdict: in value and words.
        findings: of the method.
        controls: findings of each control, by the same tests.
    """

    verdict: Verdict
    findings: tuple[Finding, ...]
    controls: Mapping[str, tuple[Finding, ...]]

    def to_json(self) -> dict[str, Any]:
        """Return plain values: ``verdict`` and ``controls``."""
        v = self.verdict
        plain = {name: getattr(v, name) for name in ("value", "text", "n", "k", "level", "chance")}
        verdict = plain | {
            "officer": words(v, "officer"),
            "reasons": list(v.reasons),
            "declined": dict(v.declined),
            "findings": [_plain(f) for f in self.findings],
        }
        return {"verdict": verdict, "controls": {name: [_plain(f) for f in own] for name, own in self.controls.items()}}


def _plain(finding: Finding) -> dict[str, Any]:
    """Return a finding as plain values; an effect that is infinite is None."""
    values = vars(finding).items()
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values}


@dataclass(frozen=True, eq=False)
class _Group:
    """What the tests read of one model per request: numbers by name (T,), vectors (T, D), z of forgotten samples."""

    numbers: Mapping[str, Floats]
    vectors: Floats
    z: Floats


def _group(trials: Trials, said: Said) -> _Group:
    gaps = trials.gaps(said)
    numbers = {"score of forgotten samples": gaps.mean("forget")}
    if gaps.accuracy:
        numbers |= {f"accuracy on {PLACES[part]} samples": gaps.accuracy[part] for part in PARTS}
    else:
        numbers |= {f"score of {PLACES[part]} samples": gaps.mean(part) for part in PARTS[1:]}
    return _Group(numbers, summary(gaps), gaps.z["forget"][:, trials.forget.any(axis=0)])


@dataclass(frozen=True, eq=False)
class _Tests:
    """The tests that method and controls are put through alike."""

    rows: Thirds
    retrained: _Group
    original: _Group
    margins: Mapping[str, tuple[float, str]]
    smallest: Smallest
    unit: str
    level: float
    power: float
    permutations: int
    seed: int

    def findings(self, group: _Group) -> tuple[Finding, ...]:
        """Return one finding of each test."""
        a, b = self.rows.asked, self.rows.beside
        found = [
            of_equivalence(
                tost(group.numbers[name][a], self.retrained.numbers[name][b], margin, level=self.level, paired=False,
                     name=name),
                power=self.power, unit=self.unit if name.startswith("score") else "", why=why,
            )
            for name, (margin, why) in self.margins.items()
        ]  # fmt: skip
        return (*found, self._rank(group), *self._relatives(group), self._told(group), self._tail(group))

    def _rank(self, group: _Group) -> Finding:
        others = self.retrained.vectors[self.rows.others]
        result = rank_distance(group.vectors[self.rows.asked[0]], others, standardise=True, level=self.level)
        unit = "root mean square distances of a retrained model from their mean"
        return of_rank(result, power=self.power, smallest=self.smallest.rank, unit=unit)

    def _relatives(self, group: _Group) -> list[Finding]:
        """Return farther and nearer; scaled by the reference, which no relabelling moves, so that levels hold."""
        reference = self.retrained.vectors[self.rows.beside]
        sd = reference.std(axis=0)
        used = sd > 0
        scale = sd[used] if used.any() else 1.0

        def against(other: Floats, side: Side, paired: bool) -> Finding:
            x, y, r = (v[:, used] / scale for v in (group.vectors[self.rows.asked], other, reference))
            result = relative(
                x, y, r, side=side, paired=paired, permutations=self.permutations, seed=self.seed
            )  # fmt: skip
            return of_relative(result, smallest=self.smallest.kernel, level=self.level)

        return [
            against(self.retrained.vectors[self.rows.margin], "farther", False),
            against(self.original.vectors[self.rows.asked], "nearer", True),
        ]

    def _told(self, group: _Group) -> Finding:
        a, b = self.rows.asked, self.rows.beside
        found = told(group.z[a], self.retrained.z[b], permutations=self.permutations, seed=self.seed)
        return self._attack("told from retrained, sample by sample", found.p, found.floor, self.smallest.calls,
                            "of the samples called right, where a guess has 0.5")  # fmt: skip

    def _tail(self, group: _Group) -> Finding:
        far = np.concatenate([farness(group.z[self.rows.asked]), farness(self.retrained.z[self.rows.others])])
        p, floor = _more(far[None], len(self.rows.asked), self.permutations, self.seed)
        return self._attack("samples far out", float(p[0]), floor, self.smallest.share,
                            "of a request's samples left as they were")  # fmt: skip

    def _attack(self, name: str, p: float, floor: float, smallest: float, unit: str) -> Finding:
        n = min(len(self.rows.asked), len(self.rows.beside))
        return Finding(name=name, kind="attack", p=p, floor=floor, n=n, needed=least_rows(self.level),
                       smallest=smallest, unit=unit)  # fmt: skip


def judge(
    trials: Trials,
    controls: Mapping[Control, Said],
    *,
    declined: Mapping[Control, str] | None = None,
    margins: Mapping[str, float] | None = None,
    level: float = 0.05,
    power: float = 0.95,
    permutations: int = 999,
    seed: int = 0,
    smallest: Smallest | None = None,
    legitimate: Mapping[str, Said] | None = None,
) -> Judged:
    """Return the verdict on a method for one kind of request.

    Numbers (mean score of forgotten samples; accuracies, or scores of tasks without classes) are held against margins
    by two one-sided tests, unpaired. The vectors of `trials.summary` are ranked, and compared by a kernel with other
    retrained models and with the originals. Two attacks on the scores of forgotten samples ask what means hide: `told`
    whether samples are told apart one by one, and the tail whether more of them are far out, |z| − 2 where |z| is
    between 2 and 10, averaged over the samples of a row, than in all retrained rows, by permutation of rows.

    All of it takes rows for independent. Partners were trained on complementary halves, and are not quite.

    Where models retrained otherwise, as with another batch size, are as good as the retrained ones, all tests are made
    against each kind: a test rejects with the largest of its p, for a model of either kind is none to be rejected, and
    a number is within its margin of one of m kinds with m times the smallest p (at most 1).

    Args:
        trials: T requests.
        controls: models in the place of the unlearned, by control; rows are the requests of ``trials``.
        declined: as in `verdict.decide`.
        margins: by name of the number; those not given are read off pairs of retrained models.
        level: chance of a false verdict, each way.
        power: of the smallest effects.
        permutations: of each permutation test.
        seed: of permutations and simulated effects.
        smallest: the smallest effects, where an earlier call has them; they do not depend on the unlearned models.
        legitimate: other retrained models by what differs, rows as the requests of ``trials``.

    Returns:
        Verdict and findings. Below `least_models` the verdict is insufficient evidence whatever was found.

    Raises:
        UserError: fewer than 6 models, margins of unknown numbers, models without retained samples, or what
            `verdict.decide` refuses.
    """
    rows = thirds(len(trials))
    retrained, original = _group(trials, trials.retrained), _group(trials, trials.original)
    columns = np.isfinite(retrained.vectors).all(axis=0)
    known = {id(trials.retrained): retrained, id(trials.original): original}

    def group(said: Said, what: str) -> _Group:
        found = known.get(id(said)) or _group(trials, said)
        found = replace(found, vectors=found.vectors[:, columns])
        empty = int((~np.isfinite(found.vectors).all(axis=1)).sum())
        if empty:
            got = f"none in {empty} of {len(trials)} rows"
            raise UserError(f"samples of every part under {what}", got, "say what each model is to remember")
        return found

    retrained, original = group(trials.retrained, "retrained models"), group(trials.original, "originals")
    unit = "nats" if trials.reference.right is not None else "loss"
    kinds = {"": retrained} | {name: group(said, f"models of {name}") for name, said in (legitimate or {}).items()}
    tests = [
        _Tests(
            rows,
            own,
            original,
            _margins(trials, own, rows, margins or {}),
            smallest or _smallest(rows, own, original, level, power, permutations, seed),
            unit,
            level,
            power,
            permutations,
            seed,
        )
        for own in kinds.values()
    ]

    def findings_of(asked: _Group) -> tuple[Finding, ...]:
        return tuple(map(_either, zip(*(each.findings(asked) for each in tests), strict=True)))

    findings = findings_of(group(trials.unlearned, "unlearned models"))
    found = {name: findings_of(group(said, f"control {name}")) for name, said in controls.items()}
    verdict = decide(findings, found, declined=declined or {}, level=level, power=power)
    return Judged(_enough(verdict, rows, len(trials)), findings, {str(name): own for name, own in found.items()})


def _either(found: Sequence[Finding]) -> Finding:
    """Return the finding of one test against several kinds of retrained models, of which any may be met."""
    if len(found) == 1:
        return found[0]
    most, least_p = max(f.p for f in found), min(f.p for f in found)
    best = min(found, key=lambda f: 1.0 if f.within is None else f.within)
    needed = [f.needed for f in found]
    return replace(
        best,
        p=min(1.0, len(found) * least_p) if best.kind == "nearer" else most,
        within=None if best.within is None else min(1.0, len(found) * best.within),
        floor=max(f.floor for f in found),
        smallest=max(f.smallest for f in found),
        n=min(f.n for f in found),
        k=min(f.k for f in found),
        needed=None if None in needed else max(n for n in needed if n is not None),
    )


def _enough(verdict: Verdict, rows: Thirds, models: int) -> Verdict:
    """Return the verdict, or insufficient evidence where there are too few models for any other."""
    least_of_all = least_models()
    if models >= least_of_all:
        return verdict
    needed = least_models(verdict.level)
    reason = (
        f"{models} models are too few for a verdict, {needed} are needed, {needed - models} more: there are "
        f"{min(len(rows.asked), len(rows.beside))} in question and to compare with of {REPLICATES}, "
        f"{len(rows.pairs)} pairs for margins of {least_pairs(QUANTILE)}, and {len(rows.others)} retrained models to "
        f"rank among of {least(verdict.level)}."
    )
    short = replace(verdict, value=INSUFFICIENT, reasons=(reason,))
    return replace(short, text=words(short))


def margins_of(trials: Trials, given: Mapping[str, float] | None = None) -> dict[str, tuple[float, str]]:
    """Return the margin of each number with its reason: as given, or read off pairs of retrained models.

    Args:
        trials: the requests; of them, the retrained models of the last third.
        given: margins by name of the number.

    Raises:
        UserError: a margin of an unknown number, or fewer than 6 models.
    """
    return _margins(trials, _group(trials, trials.retrained), thirds(len(trials)), given or {})


def _margins(
    trials: Trials, retrained: _Group, rows: Thirds, given: Mapping[str, float]
) -> dict[str, tuple[float, str]]:
    names = [name for name, values in retrained.numbers.items() if np.isfinite(values).all()]
    if unknown := [name for name in given if name not in names]:
        raise UserError("margins of numbers that are tested", repr(unknown[0]), suggest(unknown[0], names))
    return {
        name: (given[name], "as given") if name in given else _floor(trials, name, retrained.numbers[name], rows)
        for name in names
    }


def _floor(trials: Trials, name: str, values: Floats, rows: Thirds) -> tuple[float, str]:
    """Return the margin that pairs of retrained models give, or where these agree the smallest step of the number."""
    apart = np.abs(values[rows.pairs] - values[rows.pairs + 1])
    bounded = len(apart) >= least_pairs(QUANTILE)
    try:
        if bounded:
            margin = margin_from_floor(apart, quantile=QUANTILE)
            return margin.delta, margin.reason.rstrip(".")
    except UserError:
        if apart.size and not np.isfinite(apart).all():
            raise
    if not bounded and float(apart.max()) > 0:
        return float(apart.max()), f"the largest difference of {len(apart)} retrained pairs, too few for a bound"
    if name.startswith("score"):
        return STEP, "retrained pairs do not differ: what rounding may do"
    part = next(part for part, place in PLACES.items() if f" {place} " in name)
    kept = {"forget": trials.forget, "retain": trials.retrained.kept & ~trials.forget}
    n = int(kept[part].sum(axis=1).min()) if part in kept else trials.reference.test.shape[1]
    return 1 / max(n, 1), f"retrained pairs do not differ: one sample of {n}"


def farness(z: Floats) -> Floats:
    """Return by row the mean over samples of |z| − 2, at least 0 and at most 8, (R, N) to (R,)."""
    return np.asarray(np.nanmean(np.clip(np.abs(z), FAR, CUT) - FAR, axis=1), dtype=np.float64)


def _more(values: Floats, first: int, permutations: int, seed: int) -> tuple[Floats, float]:
    """Return permutation p-values that the first columns have the larger mean, of (trials, rows), and the floor."""
    n = values.shape[1]
    labels, _ = relabellings(first, n - first, most=permutations, seed=seed)
    total = values @ labels.T.astype(np.float64)
    slack = 1e-12 * np.abs(values).sum(axis=1)
    above = total >= (values[:, :first].sum(axis=1) - slack)[:, None]
    return (1 + above.sum(axis=1)) / (1 + len(labels)), 1 / (1 + len(labels))


def _smallest(
    rows: Thirds, retrained: _Group, original: _Group, level: float, power: float, permutations: int, seed: int
) -> Smallest:
    """Return the smallest effects; seen with the power in simulations from retrained models, and from the originals."""
    trials = max(100, math.ceil(math.log(0.05) / math.log(power)))
    others = retrained.vectors[rows.others]
    sd = others.std(axis=0)
    z = others[:, sd > 0] / sd[sd > 0]
    sizes = len(rows.asked), len(rows.margin), len(rows.beside)
    some = min(permutations, 199)
    one = distance_shift(z, len(others), power=power, level=level, trials=2 * trials, seed=seed)
    all_of_them = kernel_shift(z, sizes, power=power, level=level, trials=trials, permutations=some, seed=seed)
    apart = told(retrained.z[rows.margin], retrained.z[rows.beside], permutations=1, seed=seed)
    sides = apart.rows[: apart.sizes[0]], apart.rows[apart.sizes[0] :]
    spread = math.sqrt(sum(float(x.var(ddof=1)) for x in sides) / 2)
    n = min(len(rows.asked), len(rows.beside))
    calls = 0.5 + smallest_difference(n, spread, power=power, level=level, paired=False) / 2
    return Smallest(
        rank=one.smallest,
        kernel=all_of_them.smallest,
        calls=calls,
        share=_skipped(rows, retrained.z, original.z, level, power, trials, some, seed),
    )


def _skipped(
    rows: Thirds, retrained: Floats, original: Floats, level: float, power: float, trials: int, some: int, seed: int
) -> float:
    """Return the smallest share of samples, put as the originals have them into retrained rows, that the tail shows."""
    rng, n, t = np.random.default_rng(seed), len(rows.asked), len(retrained)
    at, column = np.nonzero(np.isfinite(retrained))
    before, after = (np.clip(np.abs(z[at, column]), FAR, CUT) - FAR for z in (original, retrained))
    count = np.bincount(at, minlength=t)
    base = np.bincount(at, after, minlength=t)

    def found(part: float) -> int:
        values = np.empty((trials, t))
        for trial in range(trials):
            order = rng.permutation(t)
            left = np.bincount(at, (before - after) * (rng.random(at.size) < part), minlength=t)
            left[order[n:]] = 0
            values[trial] = ((base + left) / count)[order]
        return int((_more(values, n, some, seed)[0] <= level).sum())

    return _last(found, trials, power)


def _last(found: Callable[[float], int], trials: int, power: float) -> float:
    """Return the smallest of the shares that, like all larger ones, is found with the power."""
    smallest = math.inf
    for part in reversed(SHARES):
        if clopper_pearson(found(part), trials, 0.9).low < power:
            break
        smallest = part
    return smallest
