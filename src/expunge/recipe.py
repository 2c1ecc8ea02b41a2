"""How a network is trained: a frozen recipe, checked when it is written down."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from expunge.data import Batch
from expunge.errors import UserError
from expunge.penalties import GradientNorm


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


@runtime_checkable
class Joint(Protocol):
    """A penalty of a batch's gradient: no mean over samples, so processes that share a batch exchange their parts."""

    def around(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return the context that forward and backward passes run in."""
        ...

    def part(self, model: nn.Module, batch: Batch, losses: Tensor) -> list[Tensor]:
        """Return the gradient of the mean loss of one process's samples, by trainable parameter, with its graph."""
        ...

    def joined(self, part: Sequence[Tensor], total: Sequence[Tensor]) -> Tensor:
        """Return a scalar whose gradients, the processes' weighted by their samples, sum to that of the penalty."""
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
        penalties: terms added to the mean loss; they may be `Scheduled` by epoch, `Proximal`, or `Joint`. Files spell
            `expunge.penalties.GradientNorm` as ``gradient_norm``; see `fields_of`.
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
        if sum(isinstance(p, GradientNorm) for p in terms) > 1:
            raise UserError("one GradientNorm in Recipe.penalties", "several", "add their alphas up")

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values that `fields_of` reads; other penalties as class names with their settings.

        ``gradient_norm`` is there where the penalty is.
        """
        norm = next((p for p in self.penalties if isinstance(p, GradientNorm)), None)
        body = asdict(self) | {"penalties": [repr(p) for p in self.penalties if p is not norm]}
        body |= {} if norm is None else {NORM: asdict(norm)}
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


NORM = "gradient_norm"
KEYS = (*(f.name for f in fields(Recipe) if f.name != "penalties"), NORM)
"""What the table of a recipe in a file may hold."""


def fields_of(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `Recipe` that plain values mean: lists as tuples, ``gradient_norm`` as its penalty.

    Args:
        table: of a file, or what `Recipe.to_json` gives; ``gradient_norm`` is α, or a table with ``alpha`` and
            ``form``, and 0 is none.

    Returns:
        Keywords of `Recipe`, for those fields that the table has.

    Raises:
        UserError: ``gradient_norm`` is none of these.

    >>> fields_of({"epochs": 3, "gradient_norm": 0.005})
    {'epochs': 3, 'penalties': (GradientNorm(alpha=0.005, form='global'),)}
    """
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    if NORM in plain:
        norm = GradientNorm.of(plain.pop(NORM), f"Recipe.{NORM}")
        plain["penalties"] = (*plain.get("penalties", ()), *(() if norm is None else (norm,)))
    return plain
