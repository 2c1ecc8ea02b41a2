"""Attacks with the whole ensemble of simulated requests: pooled, by sample, before and after, on members; no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.errors import UserError
from expunge.qualify.kernels import Labels, relabellings, share
from expunge.qualify.trials import Floats, Mask, Said, Trials
from expunge.shadows import Klom, Rates, Spread, forgetting_quality, u_lira_rates
from expunge.shadows.klom import Splits
from expunge.shadows.lira import LEAST
from expunge.stats import Interval, half_sum, mean_t, midranks

Index = NDArray[np.int64]
NARROW = 1e-3  # z; a deviation below it is rounding
COLUMNS = 2000  # samples of a split at most, drawn by the seed: more cost time and change little
SLOW = 200  # samples of the forgetting quality at most, which tries some 160,000 thresholds for each
SHOWN = 10  # samples told best that are named
QUALITY = 3  # models a side that the forgetting quality needs


@dataclass(frozen=True, eq=False)
class Told:
    """How well samples forgotten by unlearned models are told from the same under retrained ones; ½ is not at all.

    Args:
        accuracy: mean share of a row's samples called right, over rows of either kind, with a 95 % interval over rows.
        p: permutation p-value that it is above ½, of rows.
        floor: the smallest p that could have come out.
        rows: share called right in each row, of the unlearned and of the retrained, (A + B,).
        sizes: A and B.
    """

    accuracy: Interval
    p: float
    floor: float
    rows: Floats
    sizes: tuple[int, int]


def told(unlearned: Floats, retrained: Floats, *, permutations: int = 999, seed: int = 0) -> Told:
    """Return how well one density of z for unlearned and one for retrained models tell their samples apart.

    Each density is a normal one, of all samples pooled over rows; a sample is called unlearned where the likelihood
    ratio is above 1: between two thresholds or outside of them, so that a wider spread tells as a shift does. Pairs of
    rows are left out of both fits, one pair of either side, before their samples are called: a row is not called by
    itself, and neither side has the better fit. The accuracy is ½ on average where there is nothing to tell, but its
    rows share fits and a t test over them has no level that can be relied on. So p is of permutations of whole rows
    between the sides, everything fitted again; the interval, over rows, leaves that dependence out.

    Args:
        unlearned: z of forgotten samples, (A, N), nan where a sample was not forgotten.
        retrained: the same of retrained models, (B, N).
        permutations: as in `nearer.relative`.
        seed: of the permutations.

    Raises:
        UserError: fewer than two rows a side, or one without samples.

    References:
        J. Hayes, I. Shumailov, E. Triantafillou, A. Khalifa, N. Papernot, "Inexact Unlearning Needs More Careful
        Evaluations to Avoid a False Sense of Privacy", 2024, https://arxiv.org/abs/2403.01218 (U-LiRA; densities pooled
        over samples, and the permutation, are ours).
    """
    rows = [np.sort(row[np.isfinite(row)]) for row in (*unlearned, *retrained)]
    n, m = len(unlearned), len(retrained)
    if min(n, m) < 2 or not all(row.size for row in rows):
        got = f"{n} and {m} rows, {sum(row.size == 0 for row in rows)} of them empty"
        raise UserError("two rows or more a side, with samples in each", got, "simulate more requests")
    labels, _ = relabellings(n, m, most=permutations, seed=seed)
    labels = np.concatenate([np.arange(n + m)[None] < n, labels])
    right = _called(rows, labels)
    accuracy = (np.where(labels, right, 0).sum(axis=1) / n + np.where(labels, 0, right).sum(axis=1) / m) / 2
    both = half_sum(mean_t(right[0, :n]), mean_t(right[0, n:]))
    return Told(both, share(accuracy[1:] - accuracy[0]), 1 / len(labels), right[0], (n, m))


def _called(rows: list[Floats], labels: Labels) -> Floats:
    """Return the share of each row's samples called right under each labelling, (B, rows)."""
    sums = np.array([(row.size, row.sum(), np.square(row).sum()) for row in rows])
    first = labels.sum(axis=1)[0]
    order = np.argsort(~labels, axis=1, kind="stable")  # of each labelling first the one side's rows, then the other's
    sides = order[:, :first], order[:, first:]
    pairs = min(s.shape[1] for s in sides) // 2
    size, folds = (2, pairs) if pairs > 1 else (1, 2)
    fits, fold = [], np.zeros(labels.shape, dtype=np.int64)
    for side in sides:
        own = np.arange(side.shape[1]) // size % folds
        np.put_along_axis(fold, side, np.broadcast_to(own, side.shape), axis=1)
        of_rows = sums[side]
        without = of_rows.sum(axis=1)[:, None] - np.einsum("brk,rf->bfk", of_rows, own[:, None] == np.arange(folds))
        mean = without[..., 1] / without[..., 0]
        fits.append((mean, np.maximum(without[..., 2] / without[..., 0] - mean**2, NARROW**2)))
    low, high, inside = _region(*fits)
    right = np.empty(labels.shape)
    for i, row in enumerate(rows):
        at = fold[:, i : i + 1]
        ends = [np.take_along_axis(x, at, axis=1)[:, 0] for x in (low, high)]
        within = np.searchsorted(row, ends[1], side="left") - np.searchsorted(row, ends[0], side="right")
        between = np.maximum(within, 0) / row.size
        called = np.where(np.take_along_axis(inside, at, axis=1)[:, 0], between, 1 - between)
        right[:, i] = np.where(labels[:, i], called, 1 - called)
    return right


def _region(first: tuple[Floats, Floats], second: tuple[Floats, Floats]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Return where a normal density is the higher of two: two ends, and whether it is so between them."""
    (m, v), (k, w) = first, second
    a, b = (1 / w - 1 / v) / 2, m / v - k / w
    c = (k**2 / w - m**2 / v + np.log(w / v)) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        root = np.sqrt(b**2 - 4 * a * c)
        q = -(b + np.copysign(root, b)) / 2  # the root that loses no digits, and the other from their product
        ends = np.sort([q / a, c / q], axis=0)
        at = -c / b
    straight = a == 0
    none = np.isnan(ends).any(axis=0)  # one density is higher everywhere
    low = np.where(straight, np.where(b > 0, at, -np.inf), np.where(none, 0.0, ends[0]))
    high = np.where(straight, np.where(b < 0, at, np.inf), np.where(none, 0.0, ends[1]))
    high = np.where(straight & (b == 0), -np.inf, high)
    return low, high, straight | (a < 0)


@dataclass(frozen=True, kw_only=True)
class Worst:
    """A sample among those told best.

    Args:
        id: of the sample.
        accuracy: share of its values called right, with a 95 % interval that does not know that it was picked.
    """

    id: str
    accuracy: Interval


@dataclass(frozen=True, kw_only=True)
class Strong:
    """What attacks with the whole ensemble at hand find; a guess has ½, and what None stands for was not to be had.

    Args:
        u_lira: accuracy of the attack by sample, with a density of its own for each forgotten sample.
        u_lira_worst: mean accuracy over the decile of samples told best.
        worst_by_chance: that mean where there is nothing to tell.
        worst: the samples told best, best first.
        values: values a side behind each sample's densities.
        why: why there is no attack by sample; empty where there is one.
        pooled: accuracy with one density of z for all samples, `told`.
        klom: KLOM by split between unlearned and retrained models.
        klom_floor: the same between retrained models, of as many.
        quality: forgetting quality.
        quality_floor: the same between retrained models, of as many.
        pair: AUC by request of an attacker with the model before and after, who tells forgotten from retained
            samples by the drop of their score.
        pair_retrained: the same with a retrained model for the one after.
        members: AUC by request at telling retained samples from test samples by their score, after.
        members_retrained: the same under retrained models.
    """

    u_lira: Interval | None
    u_lira_worst: float | None
    worst_by_chance: float | None
    worst: tuple[Worst, ...]
    values: int
    why: str
    pooled: Interval
    klom: dict[str, Spread] | None
    klom_floor: dict[str, Spread] | None
    quality: float | None
    quality_floor: float | None
    pair: Interval | None
    pair_retrained: Interval | None
    members: Interval | None
    members_retrained: Interval | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values; an end of an interval that is unbounded is None."""
        plain = {name: _plain(value) for name, value in vars(self).items()}
        return plain | {"worst": [{"id": w.id, "accuracy": _plain(w.accuracy)} for w in self.worst]}


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return {name: _plain(v) for name, v in vars(value).items()}
    if isinstance(value, Spread):
        return {"mean": value.mean, "low": value.low, "high": value.high, "size": value.size}
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, eq=False)
class _Table:
    """Values of S samples under unlearned models and under retrained ones that are independent of these, (V, S) each.

    Args:
        unlearned: of unlearned models.
        retrained: of retrained models.
        floor: of retrained models, to be compared with each other.
        columns: the samples, (S,).
        why: why there are none.
    """

    unlearned: Floats
    retrained: Floats
    floor: Floats
    columns: Index
    why: str = ""


def strong(trials: Trials, *, klom: Klom | None = None, seed: int = 0) -> Strong:
    """Return what attacks on all models of one kind of request find, each beside what retrained models give.

    By sample, unlearned values of a forgotten sample are those of requests that hold it, retrained values those of
    reference models that never saw it; so they need requests that name the same samples again and again, as one fixed
    set in every half does. Elsewhere requests by chance share few samples, and ``why`` says so. On retained and test
    samples KLOM takes unlearned models of every other pair of requests and retrained models of the pairs between them:
    an unlearned model and the one it was made from are not independent.

    Args:
        trials: T requests.
        klom: settings; the default's if None.
        seed: of draws of samples and groups of models.

    Raises:
        UserError: fewer than 2 pairs of requests, or scores that are not finite.
    """
    if len(trials) < 4:
        raise UserError("at least 4 requests, two pairs", str(len(trials)), "simulate more")
    rng = np.random.default_rng(seed)
    forget = _forgotten(trials)
    rates = None if forget.why else u_lira_rates(forget.unlearned, forget.retrained)
    divergences = _klom(trials, forget, klom or Klom(), rng, seed)
    quality = _quality(forget, rng)
    z = [gaps.z["forget"] for gaps in (trials.unlearned_gaps, trials.retrained_gaps)]
    alternate = np.arange(len(trials)) // 2 % 2
    return Strong(
        u_lira=None if rates is None else rates.overall,
        u_lira_worst=None if rates is None else rates.worst_mean,
        worst_by_chance=None if rates is None else rates.worst_by_chance,
        worst=()
        if rates is None
        else _worst(rates, [trials.ids[i] for i in forget.columns], 2 * len(forget.unlearned)),
        values=0 if forget.why else len(forget.unlearned),
        why=forget.why,
        pooled=told(z[0][alternate == 0], z[1][alternate == 1], permutations=1, seed=seed).accuracy,
        klom=divergences[0],
        klom_floor=divergences[1],
        quality=quality[0],
        quality_floor=quality[1],
        pair=_pair(trials, trials.unlearned),
        pair_retrained=_pair_retrained(trials),
        members=_members(trials.unlearned, trials.unlearned.kept & ~trials.forget),
        members_retrained=_members(trials.retrained, trials.retrained.kept & ~trials.forget),
    )


def _stands(trials: Trials) -> Mask:
    return ~trials.reference.kept if trials.stands is None else trials.stands


def _taken(values: Floats, mask: Mask, count: int) -> Floats:
    """Return the first ``count`` values of each column where the mask holds, (count, N)."""
    first = np.argsort(~mask, axis=0, kind="stable")[:count]
    return np.asarray(np.take_along_axis(values, first, axis=0), dtype=np.float64)


def _forgotten(trials: Trials) -> _Table:
    """Return the values of forgotten samples; first rows, so that row k is of pair k where halves are complements."""
    stands = _stands(trials)
    times = trials.forget.sum(axis=0)
    counts = np.minimum(times, stands.sum(axis=0))
    columns = np.flatnonzero(counts >= LEAST)
    ever = int((times > 0).sum())
    if 2 * len(columns) < ever:
        why = (
            f"{ever - len(columns)} of {ever} forgotten samples are named by fewer than {LEAST} requests, or have as "
            "few models that never saw them: simulate requests of a fixed set of samples"
        )
        none = np.empty((0, 0))
        return _Table(none, none, none, columns[:0], why)
    count = int(counts[columns].min())
    retrained = _taken(trials.reference.train[:, columns], stands[:, columns], count)
    unlearned = _taken(trials.unlearned.train[:, columns], trials.forget[:, columns], count)
    return _Table(unlearned, retrained, retrained, columns)


def _worst(rates: Rates, ids: list[str], n: int) -> tuple[Worst, ...]:
    shown = zip(rates.worst[:SHOWN], rates.low[:SHOWN], rates.high[:SHOWN], strict=True)
    return tuple(
        Worst(id=ids[i], accuracy=Interval(float(rates.accuracy[i]), float(low), float(high), n))
        for i, low, high in shown
    )


def _klom(
    trials: Trials, forget: _Table, klom: Klom, rng: np.random.Generator, seed: int
) -> tuple[dict[str, Spread] | None, dict[str, Spread] | None]:
    """Return KLOM and its floor by split, all of one number of models a side."""
    tables = {"retain": _kept(trials, rng), "test": _tested(trials, rng)}
    if not forget.why:
        some = _some(forget.unlearned.shape[1], COLUMNS, rng)
        retrained = forget.retrained[:, some]
        tables["forget"] = _Table(forget.unlearned[:, some], retrained, retrained, some)
    tables = {name: t for name, t in tables.items() if t.unlearned.shape[1]}
    size = min((min(len(t.unlearned), len(t.retrained), len(t.floor) // 2) for t in tables.values()), default=0)
    if size < 2:
        return None, None
    found, floor = dict[str, Spread](), dict[str, Spread]()
    for name in ("forget", "retain", "test"):
        if name in tables:
            t = tables[name]
            every: Splits = {name: np.ones(t.unlearned.shape[1], dtype=np.bool_)}
            found |= klom.measure(t.unlearned, t.retrained, every, size=size, seed=seed)
            floor |= klom.floor(t.floor, every, size=size, seed=seed)
    return found, floor


def _some(n: int, most: int, rng: np.random.Generator) -> Index:
    return np.sort(rng.permutation(n)[:most])


def _kept(trials: Trials, rng: np.random.Generator) -> _Table:
    """Return the values of retained samples under models that kept them, of alternate pairs."""
    kept, again = trials.unlearned.kept & ~trials.forget, trials.reference.kept
    even = np.arange(len(trials)) // 2 % 2 == 0
    odd = np.arange(len(again)) // 2 % 2 == 1
    ours, theirs = kept[even].sum(axis=0), again[odd].sum(axis=0)
    columns = np.flatnonzero(np.minimum(ours, theirs) >= LEAST)
    columns = columns[_some(len(columns), COLUMNS, rng)]
    sides = (trials.unlearned.train, kept, even), (trials.reference.train, again, odd)
    a, b = (_all(values[rows], mask[rows], columns) for values, mask, rows in sides)
    return _Table(a, b, _all(trials.reference.train, again, columns), columns)


def _all(values: Floats, mask: Mask, columns: Index) -> Floats:
    """Return as many values of each column, where the mask holds, as the column with the fewest has."""
    values, mask = values[:, columns], mask[:, columns]
    return _taken(values, mask, int(mask.sum(axis=0).min(initial=len(mask))))


def _tested(trials: Trials, rng: np.random.Generator) -> _Table:
    columns = _some(trials.reference.test.shape[1], COLUMNS, rng)
    even = np.arange(len(trials)) // 2 % 2 == 0
    odd = np.arange(len(trials.reference)) // 2 % 2 == 1
    ours, theirs = trials.unlearned.test[even], trials.reference.test[odd]
    return _Table(ours[:, columns], theirs[:, columns], trials.reference.test[:, columns], columns)


def _quality(forget: _Table, rng: np.random.Generator) -> tuple[float | None, float | None]:
    """Return the forgetting quality against one half of the retrained values, and that of the other half."""
    half = len(forget.retrained) // 2
    if forget.why or half < QUALITY:
        return None, None
    some = _some(forget.unlearned.shape[1], SLOW, rng)
    first, second = forget.retrained[:half, some], forget.retrained[half : 2 * half, some]
    ours = forget.unlearned[:half, some]
    return forgetting_quality(ours, second).score, forgetting_quality(first, second).score


def _auc(members: Floats, others: Floats) -> float:
    """Return P(member > other) + P(tie)/2."""
    joint = midranks(np.concatenate([members, others]))
    return float((joint[: members.size].mean() - (members.size + 1) / 2) / others.size)


def _rows(scores: Floats, members: Mask, others: Mask) -> Interval | None:
    """Return the mean AUC over rows that have both kinds of samples, with its interval."""
    found = [_auc(s[a], s[b]) for s, a, b in zip(scores, members, others, strict=True) if a.any() and b.any()]
    return mean_t(found) if found else None


def _pair(trials: Trials, after: Said) -> Interval | None:
    drop = trials.original.train - after.train
    return _rows(drop, trials.forget, trials.original.kept & after.kept & ~trials.forget)


def _pair_retrained(trials: Trials) -> Interval | None:
    """Return the same of retrained models; where theirs is the other half, of the next pair's models.

    A model of the complementary half kept no sample that the original kept: nothing to set the drop beside. Of another
    model of the reference, the forgotten samples count that it never saw, and the retained ones that it kept.
    """
    if (trials.original.kept & trials.retrained.kept & ~trials.forget).any(axis=1).all():
        return _pair(trials, trials.retrained)
    t = len(trials)
    other = (np.arange(t) + 2) % t
    never, kept = _stands(trials)[other], trials.reference.kept[other]
    drop = trials.original.train - trials.reference.train[other]
    return _rows(drop, trials.forget & never, trials.original.kept & kept & ~trials.forget)


def _members(said: Said, kept: Mask) -> Interval | None:
    if not said.test.shape[1]:
        return None
    found = [_auc(train[inside], test) for train, test, inside in zip(said.train, said.test, kept, strict=True)
             if inside.any()]  # fmt: skip
    return mean_t(found) if found else None
