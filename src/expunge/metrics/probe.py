"""A linear probe below the output: is the forgotten class still laid out in the features?"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from expunge import stats
from expunge.evidence import Outputs
from expunge.metric import Audit, Found, Goal, Metric, Unavailable, Value
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
    needs: ClassVar[frozenset[str]] = frozenset({"features"})

    shots: int = 1
    draws: int = 20

    def __call__(self, audit: Audit) -> Found:
        """Return ``probe/one_shot``, or ``probe/<shots>_shot``."""
        name = f"probe/{'one' if self.shots == 1 else self.shots}_shot"
        reason, parts = self._parts(audit)
        if reason:
            return {name: Unavailable(reason)}
        features, labels, unseen = parts
        classes, counts = np.unique(labels, return_counts=True)
        if len(classes) < 2:
            return {name: Unavailable("there is one class only")}
        if counts.min() < self.shots:
            return {name: Unavailable(f"{self.shots} shots of every class are needed, one has {counts.min()}")}
        recalls = [self._draw(features, labels, unseen, classes, audit, draw) for draw in range(self.draws)]
        return {name: Value.of(stats.mean_t(recalls))}

    def _parts(self, audit: Audit) -> tuple[str, tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]]:
        """Return training features and labels, and unseen features of the forgotten class; or why there are none."""
        empty = (np.empty((0, 0)), np.empty(0, np.int64), np.empty((0, 0)))
        if audit.scenario.kind != "class":
            return f"it probes a class, and the forget set is of kind '{audit.scenario.kind}'", empty
        found = [audit.outputs(split) for split in ("forget", "retain", "test_forget")]
        if audit.tap is None or any(o is None or audit.tap not in o.features for o in found):
            return "no features were collected: the network has no linear head to tap", empty
        forget, retain, unseen = (o for o in found if o is not None)
        if len(unseen) == 0 or forget.target is None or retain.target is None:
            return "there are no unseen samples of the forgotten class, or no labels", empty
        features = np.concatenate([_flat(forget, audit.tap), _flat(retain, audit.tap)])
        labels = torch.cat([forget.target, retain.target]).numpy()
        return "", (features, labels, _flat(unseen, audit.tap))

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
