"""Linear probes below the output: what of the forgotten is still laid out in the features?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from expunge import stats
from expunge.attacks import _roc
from expunge.evidence import Outputs
from expunge.metric import Audit, Found, Goal, Metric, Number, Unavailable, Value, missing
from expunge.seeds import seed as named_seed

Features = NDArray[np.float64]
Labels = NDArray[np.int64]
FOLDS = 5
STRENGTH = 0.01  # inverse penalty of the membership probe on standardised features


@dataclass(frozen=True, kw_only=True)
class Probe(Metric):
    """Linear probes on the features, fitted afresh; the network's own head, where an edit may hide, is not asked.

    ``probe/one_shot``, of a forgotten class: its recall by a logistic regression fitted with few labelled training
    samples. For each of several draws it is fitted on ``shots`` samples of every class, the forgotten one included,
    and its recall on unseen samples of the forgotten class is taken; the mean over draws. Its interval holds the error
    of the draws (t) and of the few unseen samples (Wilson's), added in squares on either side, and is rather too wide.
    A network that has learned the class lays it out so that one example finds the others; one that never saw it does
    less so. Many shots tell little: even random features then suffice on easy data. The series ``probe/shots`` shows
    it by shots; there the probe is the ridge regression of `ridge`, in closed form and so quick at any size.

    ``probe/label``, of every other forget set with classes: the share of forget samples whose own label, as it was
    trained, is read out by a ridge regression that was fitted on retained samples only, ``label_shots`` of every
    class; each sample's mean over draws, then the mean over at most ``limit`` samples with Wilson's interval. A
    mislabelled sample whose wrong label can still be read out was memorised. Forget samples of a class that no retained
    sample has are left out.

    ``probe/membership``, of any task: the AUC with which a logistic regression on standardised features tells forget
    samples from unseen ones of the forgotten kind, by 5-fold cross-validation, at most ``limit`` samples a side;
    DeLong's interval, which does not know that the folds depend on each other and so covers less than stated. By chance
    it is 0.5 or slightly less, since the folds that a sample is held out of lack it on its side.

    Goal of all: retrained's value.

    Args:
        shots: labelled samples a class, of the first.
        draws: how often they are drawn.
        curve: shots of the series.
        label_shots: retained samples a class, of the second; of a smaller class all.
        limit: samples of a set that the second and third ask about at most, a seeded draw.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "features"})
    undefined: ClassVar[tuple[str, ...]] = (
        "it probes a class, and the forget set is of kind",
        "of a forgotten class there are no labels to read out",
        "there are no unseen samples of the forgotten class",
        "there is one class only",
        "shots of every class are needed",
        "no forget sample is of a class that is retained",
        f"{FOLDS} folds need",
        *_roc.UNDEFINED,
    )

    shots: int = 1
    draws: int = 20
    curve: tuple[int, ...] = (1, 2, 5, 10)
    label_shots: int = 5
    limit: int = 1000

    @property
    def name(self) -> str:
        """The name of its first number, ``probe/one_shot`` or ``probe/<shots>_shot``."""
        return f"probe/{'one' if self.shots == 1 else self.shots}_shot"

    @property
    def numbers(self) -> dict[str, Number]:
        """``probe/one_shot`` or ``probe/<shots>_shot``, ``probe/label`` and ``probe/membership``."""
        shots = "one" if self.shots == 1 else str(self.shots)
        return {
            self.name: self.number(f"{shots}-shot linear probe: recall of the class"),
            "probe/label": self.number("linear probe: labels of the forget set"),
            "probe/membership": self.number("linear probe: forget set against unseen, AUC"),
        }

    def measure(self, audit: Audit) -> Found:
        """Fit the probes that the kind of forget set allows."""
        return {
            self.name: self._class(audit),
            "probe/label": self._label(audit),
            "probe/membership": self._membership(audit),
        }

    def _class(self, audit: Audit) -> Value | Unavailable:
        """Return the mean recall of the forgotten class over draws, and keep it by shots."""
        reason = missing(self.needs | {"retain", "labels", "classes"}, audit)
        if reason is None and audit.scenario.kind != "class":
            reason = f"it probes a class, and the forget set is of kind '{audit.scenario.kind}'"
        unseen = audit.outputs("test_forget")
        if reason is None and (unseen is None or len(unseen) == 0):
            reason = "there are no unseen samples of the forgotten class"
        if reason is not None or unseen is None:
            return Unavailable(str(reason))
        parts = [audit.said("forget"), audit.said("retain")]
        labels = np.concatenate([_labels(o) for o in parts])
        classes, counts = np.unique(labels, return_counts=True)
        if len(classes) < 2:
            return Unavailable("there is one class only")
        order = np.concatenate([_order(audit, "forget"), len(parts[0]) + _order(audit, "retain")])
        rows = [order[labels[order] == c] for c in classes]
        tap, there = str(audit.tap), _flat(unseen, str(audit.tap))
        for shots in self.curve:
            found: Value | Unavailable = _few(shots, counts)
            if counts.min() >= shots:
                drawn = self._draws(rows, shots, "probe/shots", audit.seed, shots)
                fitted = (ridge(_pick(parts, tap, at), labels[at], there) for at in drawn)
                found = _recall(np.stack([g == audit.scenario.target for g in fitted]))
            audit.record("probe/shots", shots, found)
        if counts.min() < self.shots:
            return _few(self.shots, counts)
        drawn = self._draws(rows, self.shots, "probe", audit.seed)
        guesses = (_logistic(_pick(parts, tap, at), labels[at], there) for at in drawn)
        return _recall(np.stack([g == audit.scenario.target for g in guesses]))

    def _draws(self, rows: Sequence[Labels], shots: int, *names: object) -> Iterator[Labels]:
        """Yield positions of as many samples of every class, drawn anew each time."""
        for draw in range(self.draws):
            generator = np.random.default_rng(named_seed(*names, draw))
            yield np.concatenate([generator.choice(r, min(shots, len(r)), replace=False) for r in rows])

    def _label(self, audit: Audit) -> Value | Unavailable:
        """Return the share of forget samples whose label is read out, and its gap to retrained by sample."""
        reason = missing(self.needs | {"retain", "labels", "classes"}, audit)
        if reason is None and audit.scenario.kind == "class":
            reason = "of a forgotten class there are no labels to read out: no retained sample has them"
        if reason is not None:
            return Unavailable(reason)
        own = self._read_out(audit, "model")
        if isinstance(own, Unavailable):
            return own
        if missing(frozenset({"forget", "retain", "labels", "retrained"}), audit) is None and _tapped(audit):
            other = self._read_out(audit, "retrained")
            if not isinstance(other, Unavailable):
                audit.kept.gaps["probe/label"] = Value.of(stats.paired(own, other))
        return _shares(own)

    def _read_out(self, audit: Audit, role: str) -> Features | Unavailable:
        """Return the share of draws in which each forget sample's label is read out of a role's features."""
        forget, retain = audit.said("forget", role), audit.said("retain", role)
        tap = next(iter(forget.features)) if role == "retrained" else str(audit.tap)
        own, labels, order = _labels(forget), _labels(retain), _order(audit, "retain")
        classes = np.unique(labels)
        if len(classes) < 2:
            return Unavailable("there is one class only")
        at = self._some(audit, "forget", np.isin(own, classes))
        if len(at) == 0:
            return Unavailable("no forget sample is of a class that is retained")
        rows = [order[labels[order] == c] for c in classes]
        there = _pick([forget], tap, at)
        read = np.zeros(len(at))
        for drawn in self._draws(rows, self.label_shots, "probe/label", audit.seed):
            read += ridge(_pick([retain], tap, drawn), labels[drawn], there) == own[at]
        return read / self.draws

    def _membership(self, audit: Audit) -> Value | Unavailable:
        """Return the AUC of out-of-fold scores of forget samples against unseen ones."""
        like = "test" if audit.outputs("test_forget") is None else "test_forget"
        reason = missing(self.needs | {like}, audit)
        if reason is not None:
            return Unavailable(reason)
        sides = [_pick([audit.said(s)], str(audit.tap), self._some(audit, s)) for s in ("forget", like)]
        n, m = (len(side) for side in sides)
        if min(n, m) < FOLDS:
            return Unavailable(f"{FOLDS} folds need {FOLDS} samples on each side, there are {n}, {m}")
        x, y = np.concatenate(sides), np.concatenate([np.ones(n, int), np.zeros(m, int)])
        folds = np.empty(n + m, int)
        for label, size in ((1, n), (0, m)):
            generator = np.random.default_rng(named_seed("probe/folds", audit.seed, label))
            folds[y == label] = generator.permutation(size) % FOLDS
        scores = np.empty(n + m)
        for fold in range(FOLDS):
            scores[folds == fold] = _odds(x[folds != fold], y[folds != fold], x[folds == fold])
        return _roc.auc(scores[:n], scores[n:])

    def _some(self, audit: Audit, split: str, which: NDArray[np.bool_] | None = None) -> Labels:
        """Return positions of at most ``limit`` of the samples, or of those that are marked, drawn by the seed."""
        order = _order(audit, split)
        order = order if which is None else order[which[order]]
        if len(order) <= self.limit:
            return order
        generator = np.random.default_rng(named_seed("probe/some", audit.seed, split))
        return order[np.sort(generator.choice(len(order), self.limit, replace=False))]


def ridge(x: Features, labels: Labels, there: Features) -> Labels:
    """Return the classes a ridge regression on one-hot labels gives, in closed form.

    With X the centred rows and Y the centred one-hot labels, ŷ(z) = (z − x̄)ᵀ Xᵀ (X Xᵀ + λI)⁻¹ Y + ȳ, the class of
    the largest entry. λ is the mean squared length of the centred rows: such strong shrinkage looks at where classes
    lie rather than at the few samples' accidents.

    Args:
        x: features of the samples to fit, (n, F).
        labels: their classes, (n,).
        there: features of the samples to classify, (m, F).

    Returns:
        Classes (m,).
    """
    classes, which = np.unique(labels, return_inverse=True)
    y = np.eye(len(classes))[which]
    middle, share = x.mean(axis=0), y.mean(axis=0)
    rows, y = x - middle, y - share
    strength = float(np.square(rows).sum()) / len(rows) or 1.0  # equal features: nothing to shrink
    if len(rows) > rows.shape[1]:  # the same weights from the smaller of two systems
        weights = np.linalg.solve(rows.T @ rows + strength * np.eye(rows.shape[1]), rows.T @ y)
    else:
        weights = rows.T @ np.linalg.solve(rows @ rows.T + strength * np.eye(len(rows)), y)
    found: Labels = classes[((there - middle) @ weights + share).argmax(axis=1)]
    return found


def _logistic(x: Features, labels: Labels, there: Features) -> Labels:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a few samples in many dimensions separate anyway
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # one shot of each is a few
        found: Labels = LogisticRegression(max_iter=200).fit(x, labels).predict(there)
    return found


def _odds(x: Features, y: Labels, there: Features) -> Features:
    """Return log odds by a logistic regression on features standardised as the fitted ones are."""
    middle, spread = x.mean(axis=0), x.std(axis=0)
    spread = np.where(spread > 1e-12 * np.abs(x).max(initial=1.0), spread, np.inf)  # one that never varies says nothing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=200).fit((x - middle) / spread, y)
    found: Features = probe.decision_function((there - middle) / spread)
    return found


def _few(shots: int, counts: Labels) -> Unavailable:
    return Unavailable(f"{shots} shots of every class are needed, one has {counts.min()}")


def _recall(found: NDArray[np.bool_]) -> Value:
    """Return the share of unseen samples that are found (draws, N), with the error of the draws and of the samples."""
    drawn, asked = stats.mean_t(found.mean(axis=1)), _shares(found.mean(axis=0))
    low = drawn.x - math.hypot(drawn.x - drawn.low, drawn.x - asked.low)
    high = drawn.x + math.hypot(drawn.high - drawn.x, asked.high - drawn.x)
    return Value(drawn.x, max(0.0, low), min(1.0, high), asked.n)


def _shares(found: Features) -> Value:
    """Return the mean of each sample's share of draws (N,); Wilson's interval, from the counts around their sum."""
    total, n = float(found.sum()), len(found)
    few, many = math.floor(total + 1e-9), math.ceil(total - 1e-9)
    return Value(total / n, stats.wilson(few, n).low, stats.wilson(many, n).high, n)


def _labels(outputs: Outputs) -> Labels:
    assert outputs.target is not None
    found: Labels = outputs.target.numpy()
    return found


def _tapped(audit: Audit) -> bool:
    return all(audit.said(split, "retrained").features for split in ("forget", "retain"))


def _order(audit: Audit, split: str) -> Labels:
    """Return the samples in the order of their ids, so that no draw depends on how they are sorted; else as given.

    It is the same for all models, which then are probed with the same samples.
    """
    data, n = audit.data.get(split), len(audit.said(split))
    if data is None or len(data) != n:
        return np.arange(n)
    found: Labels = np.argsort(np.asarray(data.ids, dtype=str), kind="stable")
    return found


def _pick(parts: Sequence[Outputs], tap: str, at: Labels) -> Features:
    """Return the features (n, F) of some samples of the parts one after the other; the rest is left as it is."""
    starts = np.cumsum([0, *(len(o) for o in parts)])
    found: Features | None = None
    for part, start, stop in zip(parts, starts[:-1], starts[1:], strict=True):
        here = np.flatnonzero((at >= start) & (at < stop))
        rows = part.features[tap][torch.from_numpy(at[here] - start)].flatten(1).double().numpy()
        found = np.empty((len(at), rows.shape[1])) if found is None else found
        found[here] = rows
    assert found is not None
    return found


def _flat(outputs: Outputs, tap: str) -> Features:
    flat: Features = outputs.features[tap].flatten(1).double().numpy()
    return flat


METRIC = Probe
