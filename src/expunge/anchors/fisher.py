"""Elastic weight consolidation: a spring to each weight as it was, as strong as the Fisher information is large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import nn

from expunge.anchors._base import Anchor, Known, Lowered
from expunge.anchors._gaussian import GaussianHold
from expunge.anchors._learn import passes, prepared
from expunge.anchors._posterior import remembered
from expunge.anchors._settings import Forgetting, Learning, Stored
from expunge.method import Needs, Reference, Search, See, Session, State, option
from expunge.recipe import Recipe
from expunge.references import KIRKPATRICK_2017

Labels = Literal["fisher_model", "fisher_emp"]


class _Learning(Learning):
    """The settings that σ is learned by, named as the anchor in messages."""

    name: ClassVar[str] = "fisher"


@dataclass(frozen=True, kw_only=True)
class Fisher(Anchor):
    """Lower (1−λ_n)·U + λ_n·Σ (θ − θ_o)²/(2·n_eff·σ²) with 1/σ² = 1/σ0² + n_eff·F, F the Fisher information's diagonal.

    F is the mean over the training set of squared gradients of single samples: of ln p_y(x) over the model's own
    labels (``fisher_model``, which needs none), or of the loss of the true ones (``fisher_emp``, near 0 in a model that
    fits its training data). n_eff is ``epochs`` times the number of training samples: the more, the less the floor
    1/σ0² counts. It is the anchor kl_gaussian with that σ, nothing drawn and σ left alone; ``scale`` lays σ's geometric
    mean to a number, or to that of kl_gaussian's own σ, so that the two differ in shape alone.

    Needs the training data once, to prepare; held-out data is optional there. 16 bytes a weight in float32. In eval
    mode: BatchNorm's statistics stay, and dropout is off.
    """

    reference: ClassVar[Reference] = KIRKPATRICK_2017

    importance: Labels = option("fisher_model", unit="-", text="of the model's own labels, or fisher_emp of the true")
    sigma0: float = option(0.02, symbol="σ0", unit="1", text="σ where F is 0")
    epochs: int = option(3, symbol="n_eff/N", unit="1", text="weight of F: n_eff as a multiple of the training set")
    scale: float | Literal["own", "bgd"] = option(
        "own", unit="1", text="geometric mean that σ is rescaled to: a number, or bgd for that of a bgd run besides"
    )
    stored: Stored = option("float32", unit="-", text="how ln σ is kept: float32, or uint8 on a grid of 1e-6 to 1")
    lam: float = option(
        0.9,
        symbol="λ_n",
        unit="1",
        text="weight of the springs against the objective's 1 − λ_n, in (0, 1)",
        search=Search(0.3, 0.99),
    )
    rate: float | None = option(
        None,
        symbol="η",
        unit="1",
        text="of a step; unset, 500/n_eff and 0.1 at most",
        search=Search(1e-3, 0.1, log=True),
    )

    def __post_init__(self) -> None:
        self.one_of("importance", *get_args(Labels))
        self._learning.check_learning()
        self.inside("lam", 0, 1)
        self.positive("rate")

    @property
    def planned(self) -> int | None:
        """As of kl_gaussian."""
        return self._forgetting.planned

    @property
    def _forgetting(self) -> Forgetting:
        return Forgetting(lam=self.lam, rate=self.rate, sigma="frozen", sampling=False)

    @property
    def _learning(self) -> Learning:
        own = {name: getattr(self, name) for name in ("importance", "sigma0", "epochs", "scale", "stored")}
        return _Learning(**own, most_epochs=max(self.epochs, Learning.most_epochs))

    @property
    def prepares(self) -> Needs:
        """Training data, and held-out data where there is some."""
        return Needs(train=self._learning.sight, holdout=See.LABELLED, optional=frozenset({"holdout"}))

    def prepare(self, session: Session) -> tuple[nn.Module, State]:
        """Take the Fisher information."""
        return prepared(self._learning, session)

    def preparation(self) -> dict[str, object]:
        """Return the settings of σ."""
        return self._learning.learning()

    def passes(self, phase: str, recipe: Recipe | None, steps: int | None) -> dict[str, float]:
        """Return the training passes that σ takes, and one over a batch of the forget set a step."""
        return {"train": passes(self._learning)} if phase == "prepare" else {"forget": 1.0}

    def known(self, state: State) -> Known:
        """Return the loss and accuracy on held-out data that were written down."""
        return remembered(state)

    def hold(self, session: Session, state: State, lowered: Lowered, steps: int | None) -> GaussianHold:
        """Return steps that the springs hold back."""
        return GaussianHold(session, state, lowered, self._forgetting, steps, name=self.name, stored=self.stored)


ANCHOR = Fisher
