"""Forgetting held by what the training data said of each weight, without the data that stays."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from expunge import objectives
from expunge.anchors import Anchor
from expunge.anchors._settings import Forgetting, Learning
from expunge.anchors.kl_gaussian import KLGaussian
from expunge.method import Reference, option
from expunge.methods._compose import Composing
from expunge.objectives import Objective
from expunge.references import ZENO_2018


@dataclass(frozen=True, kw_only=True)
class _Gaussian(KLGaussian):
    """The Gaussian, whose messages name the method's fields."""

    name: ClassVar[str] = "distruction"


@dataclass(frozen=True, kw_only=True)
class DiStruction(Composing, Learning, Forgetting):
    """Lower an objective U on the forget set while a Gaussian over the weights stays near what training left.

    F(q) = (1 − λ_n)·E_{θ~q} U + λ_n·KL(q ‖ p)/n_eff, q = N(μ_q, σ_q²) beginning at p = N(θ_o, σ_p²). `prepare` learns
    σ_p by Bayesian gradient descent while the training data is there: ln σ ← ln σ − asinh(½·σ·e), e = E[(∂L/∂θ)·ε] at
    θ_o ± σ·ε; 1/σ_p² ≈ 1/σ0² + n_eff·(curvature of the loss). The weights are left as they are. On a request no retain
    data is read: a weight that the training data pinned down, σ_p small, is held, the others may move. The step is the
    closed form of KL(q' ‖ q)/η + w·U + λ_n·KL(q' ‖ p) for each weight. What comes out is the model at μ_q, and q is the
    p of the next request.

    The paper prints the gradient of the KL by μ with the other sign, and the rule of σ with the square inside the
    expectation and the linear term inside the root: both are corrected here. It gives no λ, step size, number of draws
    or σ0; those are ours.

    ``objective`` is any of `expunge objectives`; entropy, the default, is for whole classes, and leaves samples less
    certain than unseen ones: for samples at large take tau_hinge or bad_teacher. Sizes of objectives differ: tune
    ``lam`` for each.

    Needs the labelled training set once, and then the forget set alone. What it keeps, σ_p and the original's weights,
    comes of all the training data, the forgotten samples included: the promise is no raw data, not no derived data.
    ``deflate`` takes the forgotten samples' share out.

    Passes: to prepare, 2·``pairs`` over the training set an epoch, ``epochs`` to ``most_epochs`` of them; to unlearn,
    2·``draws`` over the forget set a step where it has one batch.
    """

    distributed: ClassVar[bool] = True
    reference: ClassVar[Reference] = ZENO_2018
    example: ClassVar[dict[str, Any]] = {"epochs": 1, "agreement": None, "steps": 20}

    objective: Objective = option("entropy", unit="objective", text="what is lowered: a name, or {name, fields}")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_learning()
        self.check_forgetting()
        object.__setattr__(self, "objective", objectives.build(self.objective))
        _ = self.pair  # what its parts refuse together is refused here

    @property
    def pair(self) -> tuple[Objective, Anchor]:
        """The objective, and the Gaussian with this method's settings."""
        own = {f.name: getattr(self, f.name) for part in (Learning, Forgetting) for f in fields(part)}
        return self.objective, _Gaussian(**own)


METHOD = DiStruction
