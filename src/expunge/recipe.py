"""How a network is trained: a frozen recipe, checked when it is written down."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from numbers import Integral, Real
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from expunge.data import Batch
from expunge.errors import UserError


class Penalty(Protocol):
    """A term added to the mean loss of a batch; a frozen dataclass, so that its settings name it."""

    def __call__(self, model: nn.Module, batch: Batch, outputs: Tensor, losses: Tensor) -> Tensor:
        """Return a scalar."""
        ...


@runtime_checkable
class Scheduled(Protocol):
    """A penalty whose strength depends on the epoch: it is asked for the one that holds there."""

    def at_epoch(self, epoch: int) -> Penalty:
        """Return the penalty of an epoch, counted from 0."""
        ...


@runtime_checkable
class Proximal(Protocol):
    """A penalty that acts on the weights after each step; what it adds to the loss is 0."""

    def shrink(self, model: nn.Module, rate: float) -> None:
        """Edit the weights in place, after a step at this learning rate."""
        ...


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained.

    Args:
        epochs: passes over the data.
        batch_size: samples a step; a last batch of one joins the one before it.
        lr: learning rate after warm-up.
        optimizer: ``sgd`` or ``adamw``.
        momentum: of SGD.
        weight_decay: coupled L2 for SGD, decoupled for AdamW.
        schedule: ``constant``, ``cosine`` (to 0), ``linear`` (to 0) or ``multistep``.
        milestones: epochs after which ``multistep`` multiplies the rate by gamma.
        gamma: factor of ``multistep``.
        warmup: epochs of linear warm-up, stepwise; may be a fraction.
        crop: pixels of zero padding for random crops of images (B, C, H, W); 0 for none.
        flip: mirror images left to right with probability one half.
        clip: largest gradient norm, or None.
        patience: epochs without a lower mean loss on holdout before training stops and the best epoch's weights
            are restored; None trains all epochs.
        penalties: terms added to the mean loss; they may be `Scheduled` by epoch, or `Proximal`.
        canaries: samples that `expunge.train.fit` plants in the data under random labels; see `expunge.canaries`.

    Raises:
        UserError: a field is of another type, or out of its range, or a penalty's schedule ends before the last epoch.
    """

    epochs: int = 10
    batch_size: int = 64
    lr: float = 0.1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["constant", "cosine", "linear", "multistep"] = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.2
    warmup: float = 0.0
    crop: int = 0
    flip: bool = False
    clip: float | None = None
    patience: int | None = None
    penalties: tuple[Penalty, ...] = field(default=())
    canaries: int = 0

    def __post_init__(self) -> None:
        self._check_types()
        positive = {"batch_size": self.batch_size, "lr": self.lr, "gamma": self.gamma}
        positive |= {k: v for k, v in {"clip": self.clip, "patience": self.patience}.items() if v is not None}
        not_negative = {"epochs": self.epochs, "momentum": self.momentum, "weight_decay": self.weight_decay}
        not_negative |= {"warmup": self.warmup, "crop": self.crop, "canaries": self.canaries}
        for name, value in {**positive, **not_negative}.items():
            if not math.isfinite(value) or value < 0 or (name in positive and value == 0):
                least = "above 0" if name in positive else "of 0 or more"
                raise UserError(f"Recipe.{name} {least}", str(value), "give a number in that range")
        if self.optimizer not in ("sgd", "adamw"):
            raise UserError("Recipe.optimizer 'sgd' or 'adamw'", repr(self.optimizer), "choose one of them")
        if self.schedule not in ("constant", "cosine", "linear", "multistep"):
            raise UserError("Recipe.schedule constant, cosine, linear or multistep", repr(self.schedule), "choose one")
        self.terms(max(0, self.epochs - 1))  # a schedule that ends too early says so before the first epoch

    def _check_types(self) -> None:
        whole_numbers = {n: getattr(self, n) for n in ("epochs", "batch_size", "crop", "patience", "canaries")}
        numbers = {n: getattr(self, n) for n in ("lr", "momentum", "weight_decay", "gamma", "warmup", "clip")}
        for name, value in {**whole_numbers, **numbers}.items():
            kind, words = (Integral, "a whole number") if name in whole_numbers else (Real, "a number")
            if value is None and name in ("patience", "clip"):
                continue
            if not isinstance(value, kind) or isinstance(value, bool):
                raise UserError(f"Recipe.{name} as {words}", repr(value), "write it without quotes, as in lr=0.1")
        if not isinstance(self.flip, bool):
            raise UserError("Recipe.flip as True or False", repr(self.flip), "choose one of them")
        steps, terms = self.milestones, self.penalties
        if not isinstance(steps, list | tuple) or not all(isinstance(m, Real) for m in steps):
            raise UserError("Recipe.milestones as a tuple of epochs", repr(steps), "write for example (60, 120)")
        if not isinstance(terms, list | tuple) or not all(callable(p) for p in terms):
            remedy = "write (penalty,), each a callable of model, batch, outputs and losses"
            raise UserError("Recipe.penalties as a tuple of penalties", repr(terms), remedy)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values; a penalty as its class name with its settings."""
        body = asdict(self) | {"penalties": [repr(p) for p in self.penalties]}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in body.items()}

    def again(self) -> Recipe:
        """Return the recipe of any further training on the same data: its canaries are planted already."""
        return replace(self, canaries=0)

    def terms(self, epoch: int) -> tuple[Penalty, ...]:
        """Return the penalties of an epoch, counted from 0."""
        return tuple(p.at_epoch(epoch) if isinstance(p, Scheduled) else p for p in self.penalties)

    def rate(self, epoch: float) -> float:
        """Return the learning rate at a point of training measured in epochs."""
        if epoch < self.warmup:
            return self.lr * epoch / self.warmup
        done = (epoch - self.warmup) / max(1e-12, self.epochs - self.warmup)
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * min(1.0, done))) / 2
        if self.schedule == "linear":
            return self.lr * max(0.0, 1 - done)
        passed = sum(epoch >= m for m in self.milestones) if self.schedule == "multistep" else 0
        return self.lr * self.gamma**passed
