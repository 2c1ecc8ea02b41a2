"""A Gaussian around the weights, learned while the training data was there: what mattered to it is held, without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from expunge.anchors._base import Anchor, Known, Lowered
from expunge.anchors._gaussian import GaussianHold
from expunge.anchors._learn import passes, prepared
from expunge.anchors._posterior import remembered
from expunge.anchors._settings import Forgetting, Learning
from expunge.errors import UserError
from expunge.method import Needs, Reference, See, Session, State
from expunge.recipe import Recipe
from expunge.references import ZENO_2018


@dataclass(frozen=True, kw_only=True)
class KLGaussian(Learning, Forgetting, Anchor):
    """Lower (1−λ_n)·E_q[U] + λ_n·KL(q‖p)/n_eff, p = N(θ_o, σ_p²) learned beforehand, q = N(μ, σ²) starting at p.

    KL(q‖p) = Σ ½·((μ_p − μ)²/σ_p² + σ²/σ_p² − 1 + ln(σ_p²/σ²)), a sum over all trainable weights: one that the
    training loss hardly depends on has a wide σ_p and may go far. Nothing of the training data is read in a request.
    The weights returned are μ; q becomes the next request's p, for the first p would draw back what was forgotten.

    A step draws pairs θ = μ ± σ·ε and takes the gradients of U there; ``rule`` says how q moves by them: ``proximal``
    minimises KL(q'‖q)/η + w·U + λ_n·KL(q'‖p), w = (1−λ_n)·n_eff, in closed form for each weight; ``explicit`` is a step
    of Bayesian gradient descent on the same sum; ``adam`` is there to compare with, its ``rate`` that of μ, 1e-4 where
    unset, and that of ln σ a hundred times as high. σ stays between σ_p/10 and 3·σ_p. ``sampling=False`` takes U at μ
    alone: that is elastic weight consolidation. η is halved where KL rises tenfold in a step. KL/n_eff predicts by how
    much the mean training loss rises, in order rather than in size.

    DiStruction (2024) forgets so; its paper prints the gradient of the KL by μ with the other sign, and the rule for σ
    with the square inside the expectation and the linear term inside the root; here they are corrected. It gives no λ,
    rate, draws or σ0: the defaults are ours.

    Needs the training data once, to prepare, with labels unless σ is the Fisher information of the model's own;
    held-out data is optional there, and its loss is written down for objectives that rise to it. A request needs what
    the objective needs, and labels where ``deflate`` asks for them. Memory, in float32: 28 bytes a weight, 20 with σ
    frozen, 17 with ``lean``. In eval mode: BatchNorm's statistics stay, and dropout is off.

    References:
        Chen Zeno, Itay Golan, Elad Hoffer, Daniel Soudry, "Task Agnostic Continual Learning Using Online Variational
        Bayes", 2018, https://arxiv.org/abs/1803.10123.
    """

    reference: ClassVar[Reference] = ZENO_2018

    def __post_init__(self) -> None:
        self.check_learning()
        self.check_forgetting()
        if self.deflate and self.scale != "own":
            want = f"{self.name}.scale 'own' beside deflate: a σ that was rescaled no longer counts samples"
            raise UserError(want, repr(self.scale), "set it so, or deflate to false")

    @property
    def prepares(self) -> Needs:
        """Training data, and held-out data where there is some."""
        return Needs(train=self.sight, holdout=See.LABELLED, optional=frozenset({"holdout"}))

    @property
    def unlearns(self) -> Needs:
        """Labels of the forget set where its share is taken out of σ."""
        return Needs(forget=See.LABELLED if self.deflate else See.NONE)

    def prepare(self, session: Session) -> tuple[nn.Module, State]:
        """Learn σ."""
        return prepared(self, session)

    def preparation(self) -> dict[str, object]:
        """Return the settings of σ."""
        return self.learning()

    def passes(self, phase: str, recipe: Recipe | None, steps: int | None) -> dict[str, float]:
        """Return the training passes that σ takes at most, and the draws of a step."""
        if phase == "prepare":
            return {"train": passes(self)}
        return {"forget": 2.0 * self.draws if self.sampling else 1.0}

    def known(self, state: State) -> Known:
        """Return the loss and accuracy on held-out data that were written down."""
        return remembered(state)

    def hold(self, session: Session, state: State, lowered: Lowered, steps: int | None) -> GaussianHold:
        """Return steps near what was learned."""
        return GaussianHold(session, state, lowered, self, steps, name=self.name, stored=self.stored)


ANCHOR = KLGaussian
