"""Concept activation vectors: the direction of a representation in which examples of a concept lie."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import SVC
from torch import Tensor

from expunge.concepts.tcav import by_chance, directional, sign_count
from expunge.errors import NotFinite, UserError
from expunge.seeds import seed as named_seed

log = logging.getLogger(__name__)
Rows = NDArray[np.float64]
TOLERANCE = 1e-3  # of margins; the solver's single-precision cache may let it turn in circles below that
ROUNDS = 100_000  # of the solver, which otherwise has no end
FLOOR = 0.01  # of the root mean square deviation: a dimension that hardly varies is not blown up to unit variance


@dataclass(frozen=True, eq=False)
class Concept:
    """Something that is seen in some samples: representations with and without it, or a vector given from elsewhere.

    Args:
        name: what it is called.
        positives: (p, d), representations of examples.
        negatives: (q, d), representations without it; a larger pool makes the redraws more telling.
        vector: (d,), instead of examples; used as it is.
        intercept: b beside the vector.
        facts: what else is known of it, JSON.

    Raises:
        UserError: neither examples nor a vector, both, or shapes that do not fit.
        NotFinite: a representation or the vector is NaN or infinite.
    """

    name: str
    positives: Tensor | None = None
    negatives: Tensor | None = None
    vector: Tensor | None = None
    intercept: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        what = f"concept {self.name}"
        if (self.positives is None) == (self.vector is None):
            got = "neither" if self.vector is None else "both"
            raise UserError(f"examples of {what} or its vector", got, "give one of them")
        for rows in (self.positives, self.negatives):
            if rows is not None and rows.dim() != 2:
                raise UserError(f"representations (n, d) of {what}", f"shape {tuple(rows.shape)}", "pool them first")
            _finite(rows, what)
        if self.positives is not None and self.negatives is not None:
            a, b = self.positives.shape[1], self.negatives.shape[1]
            if a != b:
                raise UserError(f"negatives of {a} numbers for {what}", str(b), "take both from one layer")
        if self.vector is not None:
            _finite(self.vector, what)
            if self.vector.dim() != 1 or not bool(self.vector.any()):
                got = f"shape {tuple(self.vector.shape)}" if self.vector.dim() != 1 else "zeros"
                raise UserError(f"a vector (d,) of {what} that is not 0", got, "give its direction")


def _finite(values: Tensor | None, what: str) -> None:
    if values is not None and not bool(torch.isfinite(values).all()):
        raise NotFinite(f"finite numbers for {what}", "NaN or infinity", "look at its representations")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How vectors are fitted, and which are kept.

    Args:
        grid: penalties C of the support vector machine, the best on validation examples is taken.
        draws: further fits against other negatives.
        least: examples that a concept needs.
        most: examples of either side that enter one fit.
        accuracy: on validation examples, at least.
        cosine: mean over pairs of draws, at least.
        level: of the test that sign counts differ from those between random sets, over all tests together.
    """

    grid: tuple[float, ...] = (1e-3, 1e-2, 0.1, 1.0, 10.0)
    draws: int = 20
    least: int = 50
    most: int = 100
    accuracy: float = 0.7
    cosine: float = 0.5
    level: float = 0.05

    def __post_init__(self) -> None:
        if not self.grid or min(self.grid) <= 0 or not all(math.isfinite(c) for c in self.grid):
            raise UserError("penalties above 0", str(self.grid), "choose others")
        if self.draws < 2 or self.least < 4 or self.most < 2:
            got = f"{self.draws}, {self.least} and {self.most}"
            raise UserError("2 draws, 4 examples and 2 in a fit, or more", got, "raise them")


@dataclass(frozen=True, eq=False)
class Cav:
    """The vector of a concept with what speaks for it.

    Args:
        name: of the concept.
        vector: c, (d,), float64, in units of the raw representation.
        intercept: b: c·f + b is above 0 where the concept is.
        accuracy: on validation examples, the mean of both sides; None for a given vector.
        cosine: mean over pairs of draws; None for a given vector.
        p: of the test against random sets, corrected for the number of tests; None where there were no gradients.
        penalty: C of the fit.
        examples: positives that there were.
        dropped: why it should not be used, None where nothing speaks against it.
        facts: of the concept.
    """

    name: str
    vector: Tensor
    intercept: float
    accuracy: float | None = None
    cosine: float | None = None
    p: float | None = None
    penalty: float | None = None
    examples: int = 0
    dropped: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return what a reader wants to know of it, JSON."""
        own = {n: getattr(self, n) for n in ("name", "accuracy", "cosine", "p", "penalty", "examples", "dropped")}
        return {**self.facts, **own}


def hyperplane(
    positives: Tensor, negatives: Tensor, penalty: float, *, standardise: bool = True
) -> tuple[Tensor, float]:
    """Return vector and intercept of a linear support vector machine between two sets.

    It is fitted to standardised representations, and mapped back: c/std and b − c·(mean/std).

    Args:
        positives: (p, d).
        negatives: (q, d).
        penalty: C; large is a hard margin.
        standardise: False fits the raw representations.

    Returns:
        c (d,), float64, and b; c is 0 where the sets are the same.
    """
    found = _fit(_rows(positives), _rows(negatives), penalty, standardise)
    return torch.from_numpy(found[0]), found[1]


def _rows(tensor: Tensor) -> Rows:
    return np.asarray(tensor.detach().cpu().double().numpy())


def _fit(positives: Rows, negatives: Rows, penalty: float, standardise: bool = True) -> tuple[Rows, float]:
    x = np.concatenate([positives, negatives])
    y = np.repeat([1, 0], [len(positives), len(negatives)])
    middle, width = np.zeros(x.shape[1]), np.ones(x.shape[1])
    if standardise:
        middle, width = x.mean(axis=0), x.std(axis=0)
        typical = math.sqrt(float((width**2).mean()))
        width = np.maximum(width, FLOOR * typical if typical else 1.0)
    at = (x - middle) / width
    machine = SVC(kernel="precomputed", C=penalty, tol=TOLERANCE, shrinking=False, cache_size=16, max_iter=ROUNDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine.fit(at @ at.T, y)
    if machine.fit_status_:
        log.warning("a support vector machine with C = %g did not converge in %d rounds", penalty, ROUNDS)
    c = machine.dual_coef_[0] @ at[machine.support_] / width
    return c, float(machine.intercept_[0] - c @ middle)


def right(vector: Rows, intercept: float, positives: Rows, negatives: Rows) -> float:
    """Return the mean of the shares of positives above and of negatives not above the hyperplane."""
    above, below = positives @ vector + intercept > 0, negatives @ vector + intercept <= 0
    return (float(above.mean()) + float(below.mean())) / 2


def mean_cosine(vectors: Rows) -> float:
    """Return the mean cosine over pairs of vectors (n, d), two or more; of a vector that is 0 it is 0."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.where(norms > 0, norms, 1.0)
    n, total = len(vectors), units.sum(axis=0)
    return float((total @ total - (units**2).sum()) / (n * (n - 1)))


def fit_cav(
    concept: Concept,
    *,
    rules: Rules | None = None,
    gradients: Sequence[Tensor] = (),
    tests: int = 1,
    seed: int = 0,
) -> Cav:
    """Fit the vector of a concept, and say whether it is to be kept.

    Half of the examples of either side fit it, the other half choose C and give the accuracy. The same positives are
    then fitted against other draws of negatives: their mean cosine tells whether the vector is the concept's or the
    negatives'. With gradients, the share of samples whose logit rises along the vector is compared, over the draws,
    with that along vectors between two random sets of negatives: Welch's two-sided t-test, Bonferroni's correction;
    one class that it matters to is enough. As the positives stay the same, draws of a set of nothing are alike too, and
    may pass both rules: the accuracy, of examples that entered no fit, is what stops it. It is that of the best C on
    the same examples, and so a little high.

    Args:
        concept: examples and negatives, or a given vector, which is used as it is.
        rules: of fit and keeping.
        gradients: of a class's logit at samples of the class, (n, d) for each class that is asked about.
        tests: concepts that are tested together.
        seed: of halves and draws, with the concept's name.

    Returns:
        The vector with its facts; ``dropped`` says why it should not be used.

    Raises:
        UserError: too few examples or negatives, or gradients of another length.

    Reference: Interpretability beyond feature attribution: quantitative testing with concept activation vectors,
    Kim et al., 2018, https://arxiv.org/abs/1711.11279; post-hoc concept bottleneck models, Yuksekgonul, Wang, Zou,
    2023, https://arxiv.org/abs/2205.15480
    """
    rules = rules or Rules()
    if concept.vector is not None:
        return Cav(concept.name, concept.vector.detach().cpu().double(), concept.intercept, facts=concept.facts)
    positives, negatives = _examples(concept, rules)
    for g in gradients:
        if g.dim() != 2 or g.shape[1] != positives.shape[1]:
            want = f"gradients (n, {positives.shape[1]}), as concept {concept.name}"
            raise UserError(want, f"shape {tuple(g.shape)}", "take both from one layer")
    rng = np.random.default_rng(named_seed("cav", concept.name, seed))
    own, own_kept = _halves(positives, rules.most, rng)
    pool, kept = _halves(negatives, None, rng)
    others, others_kept = _some(pool, len(own), rng), _some(kept, len(own_kept), rng)
    tried = [(c, _fit(own, others, c)) for c in rules.grid]
    shares = [right(*found, own_kept, others_kept) for _, found in tried]
    best = max(range(len(tried)), key=lambda i: (shares[i], -rules.grid[i]))
    penalty, (vector, intercept) = tried[best]
    size = max(1, min(len(own), len(pool) // 2))
    again = np.stack([_fit(own, _some(pool, size, rng), penalty)[0] for _ in range(rules.draws)])
    cosine = mean_cosine(again)
    p = None
    if gradients:
        chance = np.stack([_between(pool, size, penalty, rng) for _ in range(rules.draws)])
        raw = [by_chance(_counts(g, again), _counts(g, chance)) for g in gradients]
        p = min(1.0, min(raw) * len(raw) * tests)
    why = _why_not(rules, shares[best], cosine, p) if vector.any() else "its examples cannot be told from others"
    return Cav(
        concept.name, torch.from_numpy(vector), intercept, shares[best], cosine, p, penalty, len(positives), why,
        concept.facts,
    )  # fmt: skip


def _examples(concept: Concept, rules: Rules) -> tuple[Rows, Rows]:
    assert concept.positives is not None
    for rows, what in ((concept.positives, "examples"), (concept.negatives, "negatives")):
        n = 0 if rows is None else len(rows)
        if n < rules.least:
            remedy = f"give more {what}, or the concept's vector"
            raise UserError(f"{rules.least} {what} of concept {concept.name} or more", str(n), remedy)
    assert concept.negatives is not None
    return _rows(concept.positives), _rows(concept.negatives)


def _halves(rows: Rows, most: int | None, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Return two halves of rows in random order, of no more than ``most`` each."""
    order, middle = rng.permutation(len(rows)), len(rows) // 2
    return rows[order[:middle][:most]], rows[order[middle:][:most]]


def _some(rows: Rows, count: int, rng: np.random.Generator) -> Rows:
    return rows[rng.permutation(len(rows))[:count]]


def _between(pool: Rows, size: int, penalty: float, rng: np.random.Generator) -> Rows:
    """Return the vector between two random sets without common members."""
    order = rng.permutation(len(pool))
    return _fit(pool[order[:size]], pool[order[size : 2 * size]], penalty)[0]


def _counts(gradients: Tensor, vectors: Rows) -> Rows:
    """Return the sign count along each vector that is not 0; one that is 0 counts as chance, 1/2."""
    rows = torch.from_numpy(vectors)
    safe = rows.where(rows.any(dim=1, keepdim=True), torch.ones_like(rows))
    found = sign_count(directional(gradients.detach().cpu().double(), safe)).numpy()
    return np.where(vectors.any(axis=1), found, 0.5)


def _why_not(rules: Rules, accuracy: float, cosine: float, p: float | None) -> str | None:
    if accuracy < rules.accuracy:
        return f"its examples do not separate: accuracy {accuracy:.2f}, {rules.accuracy:g} is needed"
    if cosine < rules.cosine:
        return f"its vector depends on the negatives: mean cosine {cosine:.2f}, {rules.cosine:g} is needed"
    if p is not None and p > rules.level:
        return f"no class's logit follows it more than random vectors: p = {p:.2g}, {rules.level:g} is needed"
    return None
