"""Up to the loss on held-out data and no further, with retain data beside it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.method import Needs, Reference, Search, See, Session, State, option
from expunge.methods._steps import Descent, Stepped, Taken
from expunge.objectives._base import Context, Level
from expunge.objectives.tau_hinge import Hinge, Reduction, TauHinge
from expunge.references import TRIPPA_2024
from expunge.task import Classes, class_count
from expunge.train import Recipe, batch_orders, outputs_and_losses

log = logging.getLogger(__name__)
SLOPE, STRONGEST = 5 / 3, 0.9  # ``alpha="auto"``: α0 = (5/3)·ρ, at most 0.9
LONGEST = 100  # epochs, where their number follows from the budget
HALF = 0.5  # share of all samples beyond which forgetting is no small edit
GAP = 0.1  # share of τ by which the forget loss may end beside it
PLANNED = 19  # retain batches for each forget batch where sizes are not known: 5 % to forget


@dataclass(frozen=True)
class Schedule:
    """How long, how strong and how fast, of given batches.

    Args:
        forget: samples of each batch of a pass over the forget set, n_f of them.
        retain: samples of each batch of a pass over the retain set, n_r of them.
        epochs: E, passes over the forget set.
        alpha: α0, weight of the hinge in the first epoch.
        lr: learning rate of the first epoch.
        final_lr: share of it that is reached after E epochs.
    """

    forget: tuple[int, ...]
    retain: tuple[int, ...]
    epochs: int
    alpha: float
    lr: float
    final_lr: float

    @property
    def restart(self) -> int:
        """Epochs after which the retain set is begun again in a new order: max(1, ⌊n_r/n_f⌋)."""
        return max(1, len(self.retain) // len(self.forget))

    def strength(self, epoch: int) -> float:
        """Return α of an epoch, counted from 0: α0·(1 − epoch/E)."""
        return self.alpha * (1 - epoch / self.epochs)

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0: from η in a line to its final share after E."""
        return self.lr * (1 - (1 - self.final_lr) * epoch / self.epochs)

    @cached_property
    def reads(self) -> int:
        """Samples of the retain set that are read in all."""
        block = self.restart * len(self.forget)
        steps = range(self.epochs * len(self.forget))
        return sum(self.retain[step % block % len(self.retain)] for step in steps)


def affordable(forget: int, retain: int, budget: float) -> int:
    """Return E = ⌊budget·n_r/(2·n_f)⌋, at least 1 and at most 100.

    Args:
        forget: n_f, batches of a pass over the forget set.
        retain: n_r, batches of a pass over the retain set.
        budget: passes over the retain set that it may cost, a step counted as two of its batches.

    >>> affordable(6, 190, 6.0), affordable(11, 329, 1.0)
    (95, 14)
    """
    return min(LONGEST, max(1, int(budget * retain / (2 * forget))))


@dataclass(frozen=True, kw_only=True)
class NablaTau(Stepped):
    """Raise the loss on the forget set to what it is on held-out data, while the loss on the retain set is lowered.

    A step is one of AdamW on a forget batch B_f and a retain batch B_r: it lowers
    α·max(0, τ − L̄_f)² + (1 − α)·L̄_r, with L̄_f and L̄_r the mean losses over the two batches and τ the mean loss
    over the holdout samples, a number taken anew every ``refresh`` epochs. The pull on the forget set fades as its
    loss nears τ, and ends there. An epoch is one pass over the forget set, the next retain batch beside each batch;
    the retain set is begun again in a new order every max(1, ⌊n_r/n_f⌋) epochs. After each of the
    E = ⌊budget·n_r/(2·n_f)⌋ epochs (1 to 100) α falls by α0/E, and the rate by (1 − ``final_lr``)·η/E.
    n_f and n_r are batches a pass; a last batch of a single sample joins its neighbour.

    Of a class request τ is max(τ, ln K), and the hinge is on each sample: a model that never saw the class has a far
    larger loss on it than on held-out samples of all classes, so ending above τ is no fault there.

    It reads every set as it stands, without augmentation, and takes its steps in eval mode, as τ is measured: BatchNorm
    statistics stay, and dropout is off; ``mode="train"`` for the other. Holdout must be data that the model never saw.
    Where τ is not above 1.05 times the forget loss there is nothing to forget: the weights stay as they are, which a
    note says, unless ``force`` is set. ``tau_gap`` = (τ − L_f)/τ is recorded at the end, both over whole sets;
    beyond ±0.1 a note says what to change. Sample weights multiply the retain loss alone, for τ is without them.

    Needs forget, retain and holdout data with labels, and the kind of request where it is given. Works for any task
    whose loss is 0 or more, in the loss's own unit.

    Passes: E over the forget set, and E + 1 more without gradients, for its loss; ⌈E/``refresh``⌉ + 1 over holdout;
    E·n_f batches of the retain set, about half of the budget where E follows from it and is not 1. What follows from
    sizes is told beforehand for 5 % to forget; where ``epochs`` is set the passes over the retain set are told as that
    many, which they are at most unless the forget set is the larger one.

    Defaults are those of the published code for images; α0 = (5/3)·ρ, ρ the share to forget, and α by epochs are its
    rules. Its code for text has a budget of 1, α0 = 0.5, a constant η of 3e-4, 128 samples a step, train mode, and
    squares before it cuts off, which is ``hinge="two_sided"``: a loss above τ is drawn back down. It has no class
    removal: max(τ, ln K) and the hinge on each sample are ours, and so are the caps, 100 epochs and α0 of 0.9. Where τ
    is far below 1, as of a small network that has learned its data, the rule's pull is weak and ends below τ.
    """

    reference: ClassVar[Reference] = TRIPPA_2024
    example: ClassVar[dict[str, object]] = {"epochs": 1}
    keep_best: ClassVar[bool] = False  # type: ignore[misc]  # of all epochs the first may well have the lowest loss
    norm: ClassVar[Literal["moving", "frozen"]] = "moving"  # type: ignore[misc]  # in train mode; ``mode`` decides

    epochs: int | None = option(  # type: ignore[assignment]
        None, symbol="E", unit="passes over the forget set", text="how long; unset, what the budget has room for"
    )
    budget: float = option(
        6.0, unit="passes over the retain set", text="that it may cost, a step counted as two of its batches"
    )
    alpha: float | Literal["auto"] = option(
        "auto",
        symbol="α0",
        unit="1",
        text=f"weight of the hinge at first, in (0, 1); auto is 5/3 of the share to forget, at most {STRONGEST}",
        search=Search(0.05, 0.98),
    )
    lr: float = option(1e-3, symbol="η", unit="1", text="learning rate at first", search=Search(1e-4, 3e-2, log=True))
    final_lr: float = option(0.1, unit="share", text="of the rate that is reached after E epochs; 1 for a constant one")
    optimizer: Literal["sgd", "adam", "adamw"] = option("adamw", unit="-", text="sgd, adam or adamw")
    weight_decay: float = option(0.01, symbol="wd", unit="1", text="decoupled; of sgd and adam coupled L2")
    batch_size: int = option(256, symbol="B", unit="samples", text="of each of the two sets a step")
    refresh: int = option(5, symbol="c", unit="epochs", text="after which τ is taken anew")
    hinge: Hinge = option("one_sided", unit="-", text="whether a loss above τ is left alone, or drawn down: two_sided")
    reduction: Reduction = option(
        "auto", unit="-", text="batch: the hinge on the batch's mean; sample: on each; auto: sample for a whole class"
    )
    mode: Literal["eval", "train"] = option(
        "eval", unit="-", text="eval freezes BatchNorm and turns dropout off; train moves its statistics, dropout on"
    )
    force: bool = option(False, unit="-", text="take the steps although there is nothing to forget")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.positive("budget")
        if self.alpha != "auto":
            self.inside("alpha", 0, 1)
        self.inside("final_lr", 0, 1, ends=True)
        self.count("refresh", 1)
        self.one_of("hinge", *get_args(Hinge))
        self.one_of("reduction", *get_args(Reduction))
        self.one_of("mode", "eval", "train")
        self.flag("force")

    @property
    def trains(self) -> bool:
        """Whether steps are taken in train mode."""
        return self.mode == "train"

    @property
    def objective(self) -> TauHinge:
        """What is lowered on the forget set."""
        return TauHinge(hinge=self.hinge, reduction=self.reduction)

    @property
    def unlearns(self) -> Needs:
        """Forget, retain and holdout data with labels; the kind of request where it is given."""
        return self.objective.needs | Needs(retain=See.LABELLED, holdout=See.LABELLED)

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return the passes over each set; those that follow from its sizes are told for 5 % to forget."""
        if phase != "unlearn":
            return {}
        many = self.epochs or affordable(1, PLANNED, self.budget)
        retain = float(self.epochs or max(1.0, self.budget / 2))
        return {"forget": 2.0 * many + 1, "retain": retain, "holdout": float(-(-many // self.refresh) + 1)}

    def schedule(self, forget: int, retain: int) -> Schedule:
        """Return how long, how strong and how fast.

        Args:
            forget: samples to forget.
            retain: samples that stay.
        """
        away, kept = (tuple(map(len, batch_orders(self.batch_size, range(samples)))) for samples in (forget, retain))
        many = self.epochs or affordable(len(away), len(kept), self.budget)
        alpha = min(STRONGEST, SLOPE * forget / (forget + retain)) if self.alpha == "auto" else self.alpha
        return Schedule(away, kept, many, alpha, self.lr, self.final_lr)

    def loss(self, forget: Tensor, retain: Tensor, *, tau: float, alpha: float, each: bool) -> Tensor:
        """Return α·U + (1 − α)·L̄_r of a step, a scalar.

        Args:
            forget: loss of each sample of the forget batch, (B_f,).
            retain: loss of each sample of the retain batch, (B_r,).
            tau: τ.
            alpha: α.
            each: whether the hinge is on each sample.
        """
        return alpha * self.objective.of(forget, tau, each=each) + (1 - alpha) * retain.mean()

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        """Take the steps, and report how many they were and how far the forget loss is from τ."""
        forget, plan = len(session.forget), self.schedule(len(session.forget), len(session.retain))
        looks = -(-plan.epochs // self.refresh) + 1
        total = (2 * plan.epochs + 1) * forget + plan.reads + looks * len(session.holdout)
        with session.runtime.tracking(f"unlearning by {self.name}", total) as advance:
            descent = Descent(session, self, session.model, advance)
            self.descend(session, descent)
        return descent.finished(), state

    def descend(self, session: Session, descent: Descent) -> None:
        """Take the epochs, unless there is nothing to forget."""
        plan = self.schedule(len(session.forget), len(session.retain))
        self._warn_of_share(len(session.forget) / (len(session.forget) + len(session.retain)), session)
        session.record("alpha0", plan.alpha)
        aim = _Aim(self.objective, session, descent)
        if aim.idle() and not self._goes_on(session, aim):
            return
        others = descent.lockstep([session.retain])
        for epoch in range(plan.epochs):
            if epoch and epoch % self.refresh == 0:
                aim.refresh()
            if epoch and epoch % plan.restart == 0:
                others = descent.lockstep([session.retain])
            self._epoch(descent, aim, others, plan.strength(epoch), plan.rate(epoch))
            descent.ended()
            aim.look()
        aim.refresh()
        self._told(session, aim, plan.alpha)

    def _epoch(
        self, descent: Descent, aim: _Aim, others: Iterator[NDArray[np.int64]], alpha: float, rate: float
    ) -> None:
        """Go once over the forget set, and record how it went."""
        session, kept, samples, active, before = descent.session, 0.0, 0, 0, descent.steps

        def loss(model: nn.Module, taken: Taken) -> Tensor:
            nonlocal kept, samples, active
            assert taken.beside is not None
            forget = outputs_and_losses(model, descent.task, taken.batch)[1]
            retain = descent.losses(taken.beside.batch)
            kept += float(retain.detach().sum())
            samples += len(retain)
            active += float(self.objective.of(forget.detach(), aim.tau, each=aim.each)) > 0
            return self.loss(forget, retain, tau=aim.tau, alpha=alpha, each=aim.each)

        descent.epoch([session.forget], loss, beside=[session.retain], others=others, rate=rate)
        found = {"alpha": alpha, "lr": rate, "retain_loss": kept / samples}
        found["hinge_active"] = active / (descent.steps - before)
        for name, value in found.items():
            session.record(name, value, step=descent.steps)

    def _warn_of_share(self, share: float, session: Session) -> None:
        if share > HALF:
            text = f"{share:.0%} of the data is to be forgotten: retraining on the rest may cost less and is exact."
            log.warning(text)
            session.record("note", text)

    def _goes_on(self, session: Session, aim: _Aim) -> bool:
        """Say that there is nothing to forget, and return whether steps are taken all the same."""
        found = (
            f"the mean loss on the samples to forget is {aim.loss:.4g}, and τ = {aim.tau:.4g} not above 1.05 times it"
        )
        why = "That is so of holdout data that the model was trained on, and of samples whose labels are wrong"
        then = "force is set, and steps were taken all the same" if self.force else f"no weight was changed. {why}"
        session.record("note", f"Nothing to forget: {found}; {then}.")
        return self.force

    def _told(self, session: Session, aim: _Aim, alpha: float) -> None:
        """Record how far the forget loss ended from τ, and note what to change where that is far."""
        if aim.tau == 0:
            session.record("note", "τ ended at 0, so there is no share of it by which the forget loss is off.")
            return
        gap = (aim.tau - aim.loss) / aim.tau
        session.record("tau_gap", gap)
        ended = f"The mean forget loss ended at {aim.loss:.4g}, {abs(gap):.0%} of τ = {aim.tau:.4g}"
        if gap > GAP:
            then = f"double {self.name}.lr (now {self.lr:g}), then raise {self.name}.alpha (now {alpha:.3g})"
            session.record("note", f"{ended} below it: {then}.")
        elif gap < -GAP and not aim.context.whole_class:
            then = f"halve {self.name}.lr (now {self.lr:g})"
            more = "" if self.hinge == "two_sided" else f", or set {self.name}.hinge to 'two_sided'"
            session.record("note", f"{ended} above it: {then}{more}.")


class _Aim:
    """τ and the loss on the forget set, both over whole sets, recorded at each look.

    Args:
        objective: the hinge.
        session: forget and holdout data.
        descent: measures.
    """

    def __init__(self, objective: TauHinge, session: Session, descent: Descent) -> None:
        self.objective, self.session, self.descent = objective, session, descent
        self.context: Context = objective.context(session)
        self.each = objective.each(self.context)
        self.classes = self._classes() if self.context.whole_class else 0
        self.refresh()
        self.look()

    def _classes(self) -> int:
        """Return K, or 0 of a task without classes."""
        if not isinstance(self.session.task, Classes):
            return 0
        batch = self.session.holdout.read([0]).to(self.session.runtime.torch_device)
        with torch.no_grad():
            return class_count(self.session.task, self.descent.outputs(batch))

    def refresh(self) -> None:
        """Take τ anew."""
        self.context = replace(self.context, tau=self.descent.measured(self.session.holdout))
        self.tau = self.objective.level(self.classes, self.context)
        self.session.record("tau", self.tau, step=self.descent.steps)

    def look(self) -> None:
        """Measure the loss on the forget set."""
        self.loss = self.descent.measured(self.session.forget)
        self.session.record("forget_loss", self.loss, step=self.descent.steps)

    def idle(self) -> bool:
        """Return whether there is nothing to forget."""
        level = Level(value=0.0, loss=self.loss, entropy=None, accuracy=None, classes=self.classes)
        return self.objective.idle(level, self.context)


METHOD = NablaTau
