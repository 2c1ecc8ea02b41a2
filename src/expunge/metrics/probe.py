"""A linear probe below the output: is the forgotten class still laid out in the features?"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from expunge import stats
from expunge.evidence import Outputs
from expunge.metric import Audit, Found, Goal, Metric, Number, Value
from expunge.seeds import seed as named_seed


@dataclass(frozen=True, kw_only=True)
class Probe(Metric):
    """Recall of the forgotten class by a linear probe on the features, fitted with few labelled training samples.

    For each of several draws a logistic regression is fitted on ``shots`` samples of every class, the forgotten one
    included, and its recall on unseen samples of the forgotten class is taken; the mean over draws with a t
    interval over draws. A network that has learned the class lays it out so that one example finds the others;
    one that never saw it does less so. Many shots tell little: even random features then suffice on easy data.

    Args:
        shots: labelled samples a class.
        draws: how often they are drawn.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain", "labels", "classes", "features"})
    undefined: ClassVar[tuple[str, ...]] = (
        "it probes a class, and the forget set is of kind",
        "there are no unseen samples of the forgotten class",
        "there is one class only",
        "shots of every class are needed",
    )

    shots: int = 1
    draws: int = 20

    @property
    def name(self) -> str:
        """The name of its number, ``probe/one_shot`` or ``probe/<shots>_shot``."""
        return f"probe/{'one' if self.shots == 1 else self.shots}_shot"

    @property
    def numbers(self) -> dict[str, Number]:
        """``probe/one_shot``, or ``probe/<shots>_shot``."""
        shots = "one" if self.shots == 1 else str(self.shots)
        return {self.name: self.number(f"{shots}-shot linear probe: recall of the class")}

    def measure(self, audit: Audit) -> Found:
        """Fit the probe on every draw and return its mean recall of the forgotten class."""
        unseen = audit.outputs("test_forget")
        if audit.scenario.kind != "class":
            return self.none(f"it probes a class, and the forget set is of kind '{audit.scenario.kind}'")
        if unseen is None or len(unseen) == 0:
            return self.none("there are no unseen samples of the forgotten class")
        parts = [audit.said("forget"), audit.said("retain")]
        features = np.concatenate([_flat(o, str(audit.tap)) for o in parts])
        labels = np.concatenate([o.target.numpy() for o in parts if o.target is not None])
        classes, counts = np.unique(labels, return_counts=True)
        if len(classes) < 2:
            return self.none("there is one class only")
        if counts.min() < self.shots:
            return self.none(f"{self.shots} shots of every class are needed, one has {counts.min()}")
        there = _flat(unseen, str(audit.tap))
        recalls = [self._draw(features, labels, there, classes, audit, draw) for draw in range(self.draws)]
        return {self.name: Value.of(stats.mean_t(recalls))}

    def _draw(
        self,
        features: NDArray[np.float64],
        labels: NDArray[np.int64],
        unseen: NDArray[np.float64],
        classes: NDArray[np.int64],
        audit: Audit,
        draw: int,
    ) -> float:
        generator = np.random.default_rng(named_seed("probe", audit.seed, draw))
        rows = np.concatenate(
            [generator.choice(np.flatnonzero(labels == c), self.shots, replace=False) for c in classes]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a few samples in many dimensions separate anyway
            probe = LogisticRegression(max_iter=200).fit(features[rows], labels[rows])
        return float((probe.predict(unseen) == audit.scenario.target).mean())


def _flat(outputs: Outputs, tap: str) -> NDArray[np.float64]:
    flat: NDArray[np.float64] = outputs.features[tap].flatten(1).double().numpy()
    return flat


METRIC = Probe
