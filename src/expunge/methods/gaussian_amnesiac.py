"""Training on with targets drawn from what all targets look like, in the place of those to be forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from expunge.data import Data
from expunge.errors import Misfit, UserError
from expunge.method import Needs, Reference, Search, See, Session, State, option
from expunge.methods._steps import Descent, Stepped, Taken, only_reals
from expunge.references import TARUN_2023
from expunge.scenario import Scenario
from expunge.task import Task, sample_losses
from expunge.task._base import check_real
from expunge.train import Recipe


@dataclass(frozen=True)
class Moments:
    """What targets look like.

    Args:
        mean: μ, in a target's shape, float64.
        deviation: σ, with N − 1 in the denominator, in a target's shape, float64.
        count: N, how many there were.
    """

    mean: Tensor
    deviation: Tensor
    count: int

    @classmethod
    def of(cls, data: Data) -> Moments:
        """Return the moments of the targets of some samples; each coordinate of a vector or a series has its own.

        Raises:
            UserError: fewer than two samples, or targets that are no finite real numbers.
        """
        targets = data.targets()
        check_real(tuple(targets.shape), targets)
        if len(targets) < 2:
            raise UserError(f"two targets or more in {data.name}", str(len(targets)), "pass all training data")
        wide = targets.double()
        return cls(wide.mean(dim=0), wide.std(dim=0, correction=1), len(targets))

    def drawn(self, samples: int) -> Tensor:
        """Return targets from N(μ, σ²), one a sample, (samples, ...) float64, from torch's generator; none is cut."""
        noise = torch.randn(samples, *self.mean.shape, dtype=torch.float64)
        return self.mean + self.deviation * noise

    def state(self) -> State:
        """Return them as a method's state."""
        return State({"mean": self.mean, "deviation": self.deviation}, {"count": self.count})

    @classmethod
    def read(cls, state: State) -> Moments:
        """Return what `state` wrote."""
        return cls(state.tensors["mean"], state.tensors["deviation"], int(state.meta["count"]))


@dataclass(frozen=True, kw_only=True)
class GaussianAmnesiac(Stepped):
    """Give each forget sample one target drawn from N(μ, σ²), and train on with them among the retain data.

    μ and σ (with N − 1) are those of all training targets, the forget set's among them, taken while the training data
    is at hand. A target is drawn once, by the seed, is the same in every epoch, and is not clipped. Of vectors and
    series each coordinate has its own μ and σ, and a draw of its own.

    To prepare it reads the training set with labels, to unlearn the forget set's inputs and the retain set with labels.
    For real targets: declines tasks without them. Sample weights multiply the retain loss; μ and σ are without them.
    BatchNorm statistics move.

    The next state has μ and σ of the retain set, where that is all that stays; else the forgotten targets' share
    cannot be taken out, for they are not seen again, and a note says so.

    Passes: one over the training set to prepare, its targets alone where these can be read by themselves; E over the
    forget set and E over the retain set; with ``keep_best`` E over holdout.

    Defaults are the published ones: E of 1 for faces and 5 for texts; small networks hardly forget in one.
    """

    reference: ClassVar[Reference] = TARUN_2023
    example: ClassVar[dict[str, object]] = {"epochs": 1}

    epochs: int = option(5, symbol="E", unit="passes over both sets", text="how long", search=Search(1, 10, whole=True))
    lr: float = option(1e-3, symbol="η", unit="1", text="learning rate", search=Search(1e-4, 1e-2, log=True))
    optimizer: Literal["sgd", "adam", "adamw"] = option("adam", unit="-", text="sgd, adam or adamw")
    weight_decay: float = option(0.0, symbol="wd", unit="1", text="coupled L2; of adamw decoupled")

    @property
    def prepares(self) -> Needs:
        """The training set with labels."""
        return Needs(train=See.LABELLED)

    @property
    def unlearns(self) -> Needs:
        """Inputs to forget, labelled samples to keep; the recipe where there is one."""
        return self.sees(forget=See.INPUTS, retain=See.LABELLED)

    def declines(self, task: Task, scenario: Scenario | None, model: nn.Module) -> str | None:
        """Decline tasks whose targets are no real numbers."""
        return only_reals(task, "it draws targets from a normal distribution")

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return the pass to prepare, and the epochs over both sets."""
        return {"train": 1.0} if phase == "prepare" else self.reads(phase, forget=self.epochs, retain=self.epochs)

    def prepare(self, session: Session) -> tuple[nn.Module, State]:
        """Take mean and deviation of all training targets."""
        return session.model, Moments.of(session.train).state()

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        """Train on with drawn targets; leave the moments of what stays."""
        model, _ = super().unlearn(session, state)
        return model, self._left(session, Moments.read(state)).state()

    def descend(self, session: Session, descent: Descent) -> None:
        """Draw the targets of the forget set, and train on with them among the retain data."""
        draws = Moments.read(descent.state).drawn(len(session.forget)).to(session.runtime.torch_device)

        def loss(model: nn.Module, now: Taken) -> Tensor:
            outputs = descent.outputs(now.batch)
            return descent.weighted(sample_losses(session.task, outputs, relabelled(now, draws)), now.batch).mean()

        for _ in range(self.epochs):
            descent.epoch([session.forget, session.retain], loss)
            descent.ended()

    def _left(self, session: Session, moments: Moments) -> Moments:
        """Return the moments for the next request: those of the retain set where it is all that stays."""
        stays = len(session.retain)
        if stays >= 2 and stays + len(session.forget) == moments.count:
            return Moments.of(session.retain)
        text = "Mean and deviation of the targets, which the next request draws from, still carry the share of the"
        session.record(
            "note", f"{text} samples forgotten here: pass all retain data, or prepare again, to be rid of it."
        )
        return moments


def relabelled(now: Taken, draws: Tensor) -> Tensor:
    """Return the targets of a step's samples, (B, ...): drawn ones of source 0, the forget set, the rest's their own.

    Args:
        now: inputs of source 0, and labelled samples of source 1.
        draws: of every sample of source 0, (n_f, ...).

    Raises:
        Misfit: as many numbers a sample were prepared as the rest has not.
    """
    forget, retain = now.parts.get(0), now.parts.get(1)
    found = [] if forget is None else [draws[forget.index.to(draws.device)]]
    if retain is not None:
        assert retain.target is not None
        shape = retain.target.shape[1:]
        if draws[0].numel() != shape.numel():
            got = f"{tuple(shape)} in retain and {tuple(draws.shape[1:])} when it was prepared"
            raise Misfit("targets of one shape", got, "prepare anew, or pass the data that was prepared")
        found = [*(own.reshape(-1, *shape) for own in found), retain.target]  # (B,) and (B, 1) are one
    return torch.cat(found)


METHOD = GaussianAmnesiac
