"""A sparse linear layer from concept scores to classes, and how far it says what the network says."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sklearn
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from expunge.concepts.attribution import ClassAttributions, Engine, class_attributions
from expunge.errors import Incompatible, Misfit, NotFinite, UserError
from expunge.seeds import seed as named_seed

log = logging.getLogger(__name__)
Rows = NDArray[np.float64]
Labels = NDArray[np.int64]
GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # inverse penalties C
SPARSE = 0.99  # α, the share of the absolute penalty
WITHIN = 0.01  # of the best accuracy: the smallest C that comes so near is taken
HELD = 0.2  # of the samples choose C
MOST = 10_000  # samples that are fitted to
LINEAR = 2  # nodes of the quadrature of a linear head, for which one is exact
ROUNDS = 500  # of the solver
FAITHFUL = 0.9  # agreement with the network below which the head does not speak for it
OLD = tuple(int(n) for n in sklearn.__version__.split(".")[:2]) < (1, 8)  # needs the penalty named, later ones warn


@dataclass(frozen=True, eq=False)
class ConceptHead:
    """Logits of classes, linear in concept scores: W (s − shift)/width + w_0, W sparse.

    Args:
        weights: W, (K, m), float64, on standardised scores; zeros for a class that was not fitted.
        bias: w_0, (K,).
        shift: (m,).
        width: (m,), above 0.
        fitted: the classes that had samples; the others are never predicted.
        penalty: C, the inverse of the penalty's strength.
        accuracy: on samples that chose C.
        best: the best accuracy there of any C.
        fidelity: agreement with the network there, None where its predictions were not given.
        converged: whether the solver came to an end.
    """

    weights: Tensor
    bias: Tensor
    shift: Tensor
    width: Tensor
    fitted: tuple[int, ...]
    penalty: float
    accuracy: float
    best: float
    fidelity: float | None
    converged: bool

    @property
    def faithful(self) -> bool:
        """Whether the head says what the network says, for nine samples of ten or more."""
        return self.fidelity is not None and self.fidelity >= FAITHFUL

    @property
    def used(self) -> int:
        """Weights that are not 0."""
        return int(self.weights.count_nonzero())

    @property
    def raw(self) -> Tensor:
        """W for scores that are not standardised, (K, m)."""
        return self.weights / self.width

    def logits(self, scores: Tensor) -> Tensor:
        """Return logits (N, K) of scores (N, m); −∞ for a class that was not fitted."""
        found = (scores - self.shift.to(scores)) / self.width.to(scores) @ self.weights.to(scores).T
        found = found + self.bias.to(scores)
        missing = torch.ones(len(self.bias), dtype=torch.bool, device=scores.device)
        missing[list(self.fitted)] = False
        return found.masked_fill(missing, -torch.inf)

    def attributions(
        self, scores: Tensor, target: Tensor, *, steps: int = LINEAR, engine: Engine = "auto"
    ) -> ClassAttributions:
        """Return A_ki of the samples' classes by integrated gradients from the mean score, see `class_attributions`.

        A class that was not fitted has no logit, and so a row of zeros.

        Args:
            scores: (N, m).
            target: (N,) class indices.
            steps: nodes of the quadrature.
            engine: see `expunge.concepts.attribution.chosen`.
        """
        known = torch.isin(target, torch.tensor(self.fitted, device=target.device))
        return class_attributions(
            self.logits,
            scores[known],
            target[known],
            len(self.bias),
            baseline=scores.mean(dim=0),
            steps=steps,
            engine=engine,
        )

    def tensors(self, prefix: str = "head.") -> dict[str, Tensor]:
        """Return what a state keeps, by name."""
        return {f"{prefix}{name}": getattr(self, name).clone() for name in ("weights", "bias", "shift", "width")}

    def meta(self) -> dict[str, Any]:
        """Return what a state keeps beside the tensors, and a reader wants to know, JSON."""
        names = ("penalty", "accuracy", "best", "fidelity", "converged")
        return {name: getattr(self, name) for name in names} | {"fitted": list(self.fitted), "used": self.used}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], prefix: str = "head.") -> ConceptHead:
        """Return the head that a state keeps.

        Raises:
            Incompatible: the state holds none.
        """
        names = ("weights", "bias", "shift", "width")
        if any(f"{prefix}{name}" not in tensors for name in names) or "fitted" not in meta:
            raise Incompatible("a head of concepts in the state", "none", "prepare anew")
        weights, bias, shift, width = (tensors[f"{prefix}{name}"] for name in names)
        return cls(
            weights,
            bias,
            shift,
            width,
            tuple(meta["fitted"]),
            meta["penalty"],
            meta["accuracy"],
            meta["best"],
            meta["fidelity"],
            meta["converged"],
        )


def fit_head(
    scores: Tensor,
    target: Tensor,
    classes: int,
    *,
    said: Tensor | None = None,
    grid: Sequence[float] = GRID,
    most: int = MOST,
    seed: int = 0,
) -> ConceptHead:
    """Fit the sparse head: log-loss with an elastic net, λ Σ (α|W_ki| + (1 − α)/2 · W_ki²), α = 0.99, λ = 1/(C n).

    Scores are standardised. A fifth of the samples chooses C: the smallest, and so the sparsest head, whose accuracy
    is within a point of the best. The same samples give the fidelity.

    Args:
        scores: s, (N, m).
        target: (N,) class indices; a class needs two samples to be fitted.
        classes: K.
        said: (N,) the network's predictions.
        grid: penalties C to choose from.
        most: samples that are fitted to at most, drawn at random.
        seed: of the draw and the solver.

    Returns:
        The head.

    Raises:
        Misfit: labels that are no classes, or labels or predictions that are not one for each row.
        NotFinite: a score is NaN or infinite.
        UserError: fewer than two classes with two samples, or a bad penalty.

    Reference: Post-hoc concept bottleneck models, Yuksekgonul, Wang, Zou, 2023, https://arxiv.org/abs/2205.15480
    """
    x, y = _checked(scores, target, classes, grid)
    if said is not None and said.shape != target.shape:
        got = f"shape {tuple(said.shape)}"
        raise Misfit(f"a prediction of the network for each of {len(target)} samples", got, "pass all of them")
    own, kept = _parts(y, most, np.random.default_rng(named_seed("concept head", seed)))
    middle, width = x[own].mean(axis=0), x[own].std(axis=0)
    width = np.where(width > 1e-12 * np.abs(x).max(initial=1e-300), width, 1.0)  # one that never varies says nothing
    at, there = (x[own] - middle) / width, (x[kept] - middle) / width
    tried: list[tuple[float, LogisticRegression, float, bool]] = []
    for c in sorted(grid):
        found, done = _solved(at, y[own], c, tried[-1][1] if tried else None, seed)
        tried.append((c, found, float((found.predict(there) == y[kept]).mean()), done))
    best = max(accuracy for *_, accuracy, _ in tried)
    penalty, found, accuracy, done = next(t for t in tried if t[2] >= best - WITHIN - 1e-12)
    if not done:
        log.warning("the concept head with C = %g did not converge in %d rounds", penalty, ROUNDS)
    fidelity = None
    if said is not None:
        fidelity = float((found.predict(there) == said.detach().cpu().numpy()[kept]).mean())
    weights, bias = _spread(found, classes)
    return ConceptHead(
        weights,
        bias,
        torch.from_numpy(middle),
        torch.from_numpy(width),
        tuple(int(k) for k in found.classes_),
        penalty,
        accuracy,
        best,
        fidelity,
        done,
    )


def _checked(scores: Tensor, target: Tensor, classes: int, grid: Sequence[float]) -> tuple[Rows, Labels]:
    if scores.dim() != 2 or target.shape != scores.shape[:1] or target.is_floating_point():
        got = f"{tuple(scores.shape)} and {target.dtype} of shape {tuple(target.shape)}"
        raise Misfit("scores (N, m) and a class for each row", got, "pass both for the same samples")
    if len(target) and not 0 <= int(target.min()) <= int(target.max()) < classes:
        got = f"{int(target.min())} to {int(target.max())}"
        raise Misfit(f"classes 0 to {classes - 1}", got, "pass the labels of this network")
    if not bool(torch.isfinite(scores).all()):
        raise NotFinite("finite concept scores", "NaN or infinity", "look at the representations")
    if not grid or min(grid) <= 0:
        raise UserError("penalties C above 0", str(tuple(grid)), "choose others")
    return np.asarray(scores.detach().cpu().double().numpy()), np.asarray(target.detach().cpu().numpy(), np.int64)


def _parts(y: Labels, most: int, rng: np.random.Generator) -> tuple[Labels, Labels]:
    """Return positions to fit to and to choose with: of every class of two samples or more some of each."""
    own, kept = list[Labels](), list[Labels]()
    for k in np.unique(y):
        at = rng.permutation(np.flatnonzero(y == k))
        if len(at) >= 2:
            n = max(1, round(HELD * len(at)))
            own.append(at[n:])
            kept.append(at[:n])
    if len(own) < 2:
        raise UserError("two samples of two classes or more for the concept head", f"{len(own)} such", "pass more data")
    share = min(1.0, most / sum(len(at) for at in own))
    return np.concatenate([at[: max(1, round(share * len(at)))] for at in own]), np.concatenate(kept)


def _solved(x: Rows, y: Labels, c: float, start: LogisticRegression | None, seed: int) -> tuple[Any, bool]:
    """Return the fit for one penalty, begun at the last one's solution, and whether it converged."""
    named: dict[str, Any] = {"penalty": "elasticnet"} if OLD else {}
    rule = LogisticRegression(
        solver="saga",
        l1_ratio=SPARSE,
        C=c,
        max_iter=ROUNDS,
        tol=1e-3,
        warm_start=True,
        random_state=seed % 2**32,
        **named,
    )
    if start is not None:
        rule.coef_, rule.intercept_, rule.classes_ = start.coef_.copy(), start.intercept_.copy(), start.classes_
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        rule.fit(x, y)
    return rule, int(np.max(rule.n_iter_)) < ROUNDS


def _spread(found: LogisticRegression, classes: int) -> tuple[Tensor, Tensor]:
    """Return weights (K, m) and bias (K,), zeros where not fitted; of two classes each half of the margin."""
    coefficients, intercepts = found.coef_, found.intercept_
    if len(found.classes_) == 2:
        coefficients, intercepts = (
            np.stack([-coefficients[0], coefficients[0]]) / 2,
            np.array([-1, 1]) * intercepts[0] / 2,
        )
    weights, bias = np.zeros((classes, coefficients.shape[1])), np.zeros(classes)
    weights[found.classes_], bias[found.classes_] = coefficients, intercepts
    return torch.from_numpy(weights), torch.from_numpy(bias)
