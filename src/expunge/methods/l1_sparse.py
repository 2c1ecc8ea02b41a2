"""Sparsity-aware unlearning: training on with the retain set while the L1 norm of all weights is pulled down."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from expunge.data import Batch
from expunge.errors import UserError, suggest
from expunge.masks import Masks
from expunge.method import Reference, Search, Session, State, option
from expunge.methods._retain import TrainingOn
from expunge.references import JIA_2023
from expunge.tensors import parameters

Schedule = Literal["constant", "decay", "growth"]


def l1_norm(model: nn.Module) -> Tensor:
    """Return ‖θ‖₁ over all trainable parameters, biases and BatchNorm's included; summed in float32 or wider.

    A pruned weight is zero here, and adds nothing. The gradient is the sign, 0 at 0.
    """
    sizes = [p.abs() for p in parameters(model).values()]
    return torch.stack([s.sum(dtype=torch.promote_types(s.dtype, torch.float32)) for s in sizes]).sum()


@dataclass(frozen=True)
class L1:
    """The penalty γ_t·‖θ‖₁, lowered by its subgradient: weights come near zero, and chatter about it.

    Args:
        gamma: γ.
        shares: γ_t / γ of each epoch, as many as there are epochs or more; empty for γ throughout.
    """

    gamma: float
    shares: tuple[float, ...] = ()

    def at_epoch(self, epoch: int) -> L1:
        """Return the penalty of an epoch.

        Raises:
            UserError: the schedule ends before that epoch.
        """
        if not self.shares:
            return self
        if epoch >= len(self.shares):
            got = f"epoch {epoch + 1} of training"
            raise UserError(
                f"{len(self.shares)} epochs or fewer under this L1 schedule", got, "give each epoch a share"
            )
        return replace(self, gamma=self.gamma * self.shares[epoch], shares=())

    def __call__(self, model: nn.Module, batch: Batch, outputs: Tensor, losses: Tensor) -> Tensor:
        """Return γ‖θ‖₁."""
        return self.gamma * l1_norm(model)


@dataclass(frozen=True)
class SoftThreshold(L1):
    """The same penalty by its proximal step, after each step on the loss: θ ← sign(θ)·max(|θ| − η·γ_t, 0)."""

    def __call__(self, model: nn.Module, batch: Batch, outputs: Tensor, losses: Tensor) -> Tensor:
        """Return 0: what it does, it does after the step."""
        return losses.new_zeros(())

    def shrink(self, model: nn.Module, rate: float) -> None:
        """Pull every weight towards zero by η·γ, and no further than zero."""
        with torch.no_grad():
            for p in parameters(model).values():
                p.copy_(nn.functional.softshrink(p, rate * self.gamma))


@dataclass(frozen=True, kw_only=True)
class L1Sparse(TrainingOn):
    """Minimise the loss on the retain set plus γ_t·‖θ‖₁ for some epochs from the original weights, by SGD.

    γ_t in epoch t = 0..E−1, with E' = E − ``free_epochs``: ``constant`` γ, ``decay`` γ·(1 − t/E'), ``growth`` γ·t/E';
    0 from epoch E' on. ‖θ‖₁ sums all trainable parameters, BatchNorm's and biases too. Nothing is cut off: the record
    says what share of the weights is below ``threshold``, and the norm, before and after. ``proximal`` takes the soft
    threshold η·γ_t after each step instead of the subgradient, and so leaves exact zeros; it does not pass through
    momentum.

    What γ does depends on rate, momentum, epochs and the number of batches, so it is found and not set: L1 alone moves
    a weight by ``displacement`` mean absolute weights in all, which is Σ_t γ_t·η·steps/(1−μ), without 1/(1−μ) where
    proximal. ``gamma`` sets γ itself: at η = 0.01, μ = 0.9 and 10 epochs of 159 steps (45,000 - 4,500 images in batches
    of 256), a decaying γ of 5e-4 moves such a weight by 0.0437, one of 1e-4 by 0.0087. The default was chosen on
    scikit-learn's digits with the package's convolutional network: at 2 a class is forgotten, at 10 others suffer.

    Reads the retain set once an epoch, the forget set not at all. Under masks, pruned weights stay zero.
    """

    reference: ClassVar[Reference] = JIA_2023
    example: ClassVar[dict[str, object]] = {"epochs": 1}

    epochs: int = option(10, symbol="E", unit="passes over the retain set", text="how long to train on")
    lr: float = option(0.01, symbol="η", unit="1", text="constant learning rate", search=Search(1e-3, 1e-1, log=True))
    displacement: float = option(
        2.0,
        unit="mean absolute weights",
        text="how far L1 alone moves a weight in all; γ follows from it",
        search=Search(0.1, 10.0, log=True),
    )
    gamma: float | None = option(None, symbol="γ", unit="1", text="strength itself, instead of displacement")
    schedule: Schedule = option("decay", symbol="γ_t", unit="-", text="of the strength: constant, decay or growth")
    free_epochs: int = option(0, symbol="E_no-l1", unit="epochs", text="at the end, without L1")
    proximal: bool = option(False, unit="-", text="soft threshold after each step, instead of the subgradient")
    threshold: float = option(1e-3, unit="weight", text="below it a weight counts as zero in the record")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.count("free_epochs", 0)
        self.positive("displacement", "threshold")
        self.positive("gamma", zero=True)
        if self.schedule not in get_args(Schedule):
            known = get_args(Schedule)
            raise UserError(
                f"{self.name}.schedule {', '.join(known)}", repr(self.schedule), suggest(self.schedule, known)
            )
        least = {"constant": 1, "decay": 1, "growth": 2}[self.schedule]
        if not 0 <= self.free_epochs <= self.epochs - least:
            want = f"{self.name}.free_epochs from 0 to {self.epochs - least}, so that {least} or more of {self.epochs}"
            raise UserError(f"{want} epochs have L1", repr(self.free_epochs), "lower it, or give more epochs")
        if self.momentum >= 1:
            raise UserError(f"{self.name}.momentum below 1", repr(self.momentum), "write for example 0.9")

    @property
    def forces(self) -> tuple[str, ...]:
        """The setting that γ comes from."""
        return ("displacement",) if self.gamma is None else ("gamma",)

    @property
    def shares(self) -> tuple[float, ...]:
        """γ_t / γ of each epoch."""
        ramp = self.epochs - self.free_epochs
        forms = {"constant": lambda t: 1.0, "decay": lambda t: 1 - t / ramp, "growth": lambda t: t / ramp}
        return tuple(forms[self.schedule](t) if t < ramp else 0.0 for t in range(self.epochs))

    def strength(self, model: nn.Module, steps: int, masks: Masks | None = None) -> float:
        """Return γ: as set, or so that L1 alone moves a weight by ``displacement`` mean absolute weights.

        Args:
            model: before the first step.
            steps: an epoch.
            masks: which weights may move; the mean is over those.
        """
        if self.gamma is not None:
            return self.gamma
        return self.displacement * _mean_size(model, masks) / self.reach(steps)

    def reach(self, steps: int) -> float:
        """Return how far L1 alone moves a weight in all for γ = 1, at this number of steps an epoch."""
        return self.lr * steps * sum(self.shares) / (1.0 if self.proximal else 1 - self.momentum)

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        """Fit on with the penalty; γ follows from the displacement where it is not set."""
        steps = self.steps(session)
        gamma = self.strength(session.model, steps, session.masks)
        penalty = (SoftThreshold if self.proximal else L1)(gamma, self.shares)
        recipe = self.further(session.recipe, penalty)
        session.record("gamma", gamma)
        session.record("displacement", gamma * self.reach(steps))
        self._measured(session, "before", session.model)
        model = self.trained(session, recipe)
        self._measured(session, "after", model)
        return model, state

    def _measured(self, session: Session, when: str, model: nn.Module) -> None:
        """Record the norm, and the share of trainable weights below the threshold."""
        weights = parameters(model).values()
        small = sum(int((p.abs() < self.threshold).sum()) for p in weights)
        session.record(f"l1_{when}", float(l1_norm(model).detach()))
        session.record(f"small_{when}", small / sum(p.numel() for p in weights))


def _mean_size(model: nn.Module, masks: Masks | None) -> float:
    """Return the mean absolute value of the trainable weights that may move."""
    kept = {} if masks is None else masks.kept
    sizes = {name: p.detach().abs().float() for name, p in parameters(model).items()}
    free = [s[kept[name].to(s.device)] if name in kept else s.flatten() for name, s in sizes.items()]
    return float(torch.cat(free).mean()) if any(map(len, free)) else 0.0


METHOD = L1Sparse
