"""The settings of a Gaussian around the weights: how it is learned before any request, and how a request is held by it.

They stand here once, for the anchors that have them and for the method that shows them as its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from expunge.anchors._rules import settling
from expunge.errors import UserError
from expunge.method import Search, See, option
from expunge.part import Checks

Importance = Literal["bgd", "fisher_model", "fisher_emp", "uniform"]
Stored = Literal["float32", "uint8"]
Rule = Literal["proximal", "explicit", "adam"]


@dataclass(frozen=True, kw_only=True)
class Learning(Checks):
    """How σ is learned while the training data is at hand."""

    importance: Importance = option(
        "bgd",
        unit="-",
        text="what σ is: bgd learned by Bayesian gradient descent; fisher_model, fisher_emp 1/σ² = 1/σ0² + n_eff·F of "
        "the model's own or the true labels; uniform one σ for all",
    )
    scale: float | Literal["own", "bgd"] = option(
        "own", unit="1", text="geometric mean that σ is rescaled to: a number, or bgd for that of a bgd run besides"
    )
    sigma0: float = option(0.02, symbol="σ0", unit="1", text="σ before any sample")
    sigma_min: float = option(1e-6, symbol="σ_min", unit="1", text="σ goes no lower")
    sigma_max: float | None = option(None, symbol="σ_max", unit="1", text="σ goes no higher; unset, 3·σ0")
    pairs: int = option(2, symbol="K/2", unit="pairs", text="of draws ±ε a batch while σ is learned")
    antithetic: bool = option(True, unit="-", text="whether draws come as ±ε; else 2·pairs of them stand alone")
    epochs: int = option(3, unit="passes over the training set", text="at least, while σ is learned")
    most_epochs: int = option(30, unit="passes over the training set", text="at most, where the estimates disagree")
    agreement: float | None = option(
        0.8, unit="1", text="rank correlation of two independent estimates of σ that ends it; null: epochs alone do"
    )
    learn_batch: int = option(128, symbol="B", unit="samples", text="a step while σ is learned")
    mean_rate: float = option(0.0, symbol="η_μ", unit="1", text="rate at which the weights follow; 0 leaves them")
    stored: Stored = option("float32", unit="-", text="how ln σ is kept: float32, or uint8 on a grid of 1e-6 to 1")

    def check_learning(self) -> None:
        """Refuse what is out of range.

        Raises:
            UserError: names the field.
        """
        self.one_of("importance", *get_args(Importance))
        self.one_of("stored", *get_args(Stored))
        self.flag("antithetic")
        self.positive("sigma0", "sigma_min", "sigma_max")
        self.positive("mean_rate", zero=True)
        for name in ("pairs", "epochs", "most_epochs", "learn_batch"):
            self.count(name, 1)
        if self.agreement is not None:
            self.inside("agreement", 0, 1)
        if self.scale not in ("own", "bgd"):
            self.positive("scale")
        if self.most_epochs < self.epochs:
            want = f"{self.name}.most_epochs of {self.epochs} or more, the epochs there are at least"
            raise UserError(want, str(self.most_epochs), "raise it, or lower epochs")
        if not self.sigma_min < self.sigma0 < self.highest:
            want = f"{self.name}.sigma0 between sigma_min ({self.sigma_min:g}) and sigma_max ({self.highest:g})"
            raise UserError(want, f"{self.sigma0:g}", "set it in between")
        if self.stored == "uint8" and not (self.sigma_min >= 1e-6 and self.highest <= 1):
            want = (
                f"{self.name}.sigma_min of 1e-6 or more and sigma_max of 1 or less with stored 'uint8', the grid's ends"
            )
            raise UserError(want, f"{self.sigma_min:g} and {self.highest:g}", "set them so, or stored to float32")
        if self.mean_rate and self.importance != "bgd":
            want = f"{self.name}.mean_rate of 0 with importance {self.importance!r}, which moves no weights"
            raise UserError(want, f"{self.mean_rate:g}", "set it to 0, or importance to 'bgd'")
        bgd = "bgd" in (self.importance, self.scale)
        if bgd and self.agreement is not None and self.antithetic and self.pairs < 2:
            want = f"{self.name}.pairs of 2 or more, an estimate of σ from each half"
            raise UserError(want, str(self.pairs), "raise it, or set agreement to null")

    @property
    def highest(self) -> float:
        """σ_max."""
        return 3 * self.sigma0 if self.sigma_max is None else self.sigma_max

    @property
    def sight(self) -> See:
        """How much of the training set is seen: labels, unless σ is the Fisher information of the model's own."""
        return See.INPUTS if self.importance == "fisher_model" and self.scale != "bgd" else See.LABELLED

    def learning(self) -> dict[str, Any]:
        """Return the settings that decide what is learned."""
        return {name: getattr(self, name) for name in Learning.__dataclass_fields__}


@dataclass(frozen=True, kw_only=True)
class Forgetting(Checks):
    """How a request is held near what was learned."""

    lam: float = option(
        0.9,
        symbol="λ_n",
        unit="1",
        text="weight of KL/n_eff against the objective's 1 − λ_n, in (0, 1)",
        search=Search(0.3, 0.99),
    )
    literal: float | None = option(
        None, symbol="λ", unit="1", text="weight of the KL itself against 1 − λ, in (0, 1), instead of λ_n"
    )
    rate: float | None = option(
        None,
        symbol="η",
        unit="1",
        text="of a step; unset, 500/n_eff and 0.1 at most; of adam that for μ, unset 1e-4",
        search=Search(1e-3, 0.1, log=True),
    )
    draws: int = option(1, symbol="K/2", unit="pairs", text="of draws ±ε a step")
    rule: Rule = option(
        "proximal", unit="-", text="how a step is taken: proximal in closed form, explicit, or adam on μ and ln σ"
    )
    sigma: Literal["learned", "frozen"] = option(
        "learned", unit="-", text="whether σ goes on being learned while forgetting, or stays"
    )
    sampling: bool = option(
        True,
        unit="-",
        text="whether weights are drawn; else the objective is taken at the mean and the penalty is EWC's",
    )
    lean: bool = option(False, unit="-", text="hold a frozen σ in 8 bits: less memory; asks for sigma frozen")
    deflate: bool = option(
        False, unit="-", text="take the forget set's share, n·F_f, out of 1/σ² first; asks for its labels"
    )

    @property
    def planned(self) -> int | None:
        """Three time constants of the pull to p; None where they depend on the samples behind σ."""
        if self.literal is not None:
            return None
        if self.rule == "adam" or self.rate is None:
            return None
        return settling(self.rate, self.lam)

    def check_forgetting(self) -> None:
        """Refuse what is out of range.

        Raises:
            UserError: names the field.
        """
        self.inside("lam", 0, 1)
        self.inside("literal", 0, 1)
        self.positive("rate")
        self.count("draws", 1)
        self.one_of("rule", *get_args(Rule))
        self.one_of("sigma", "learned", "frozen")
        for name in ("sampling", "lean", "deflate"):
            self.flag(name)
        if self.lean and self.sigma != "frozen":
            raise UserError(f"{self.name}.sigma 'frozen' beside lean", repr(self.sigma), "set sigma to frozen")
        if not self.sampling and self.sigma != "frozen":
            want = f"{self.name}.sigma 'frozen' where nothing is drawn"
            raise UserError(want, repr(self.sigma), "set sigma to frozen, or sampling to true")
        if not self.sampling and self.draws != 1:
            want = f"{self.name}.draws left alone where nothing is drawn"
            raise UserError(want, repr(self.draws), "leave it out, or set sampling to true")
