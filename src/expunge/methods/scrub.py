"""A student that leaves its teacher on the forget set, follows it on the retain set, and may go back to an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from expunge.data import Batch, Data
from expunge.errors import UserError, listing
from expunge.method import Needs, Reference, Search, See, Session, option
from expunge.methods._steps import Descent, Stepped, Taken, only_classes
from expunge.objectives import Context
from expunge.objectives._distances import divergence
from expunge.objectives.scrub import Scrub
from expunge.passes import Passes
from expunge.references import KURMANJI_2023
from expunge.scenario import Scenario
from expunge.task import Task, check_targets
from expunge.train import Recipe, outputs_and_losses

SILENT = 1e-7  # nats: a mean divergence below it comes of rounding or of weight decay alone


@dataclass(frozen=True, kw_only=True)
class SCRUB(Stepped):
    """Alternate epochs that raise the divergence from the original on the forget set and lower it on the retain set.

    d(x) = T²·KL(softmax(f_o/T) ‖ softmax(f/T)), the original f_o frozen and in eval mode. Each of the first
    ``max_epochs`` epochs begins with a max-epoch over the forget set, loss −d, which is the objective `scrub` without
    its cap; every epoch has a min-epoch over the retain set, loss γ·CE + α·d; all are means over the batch. The rate is
    lr · decay^(milestones before the epoch).

    At the start student and teacher agree, and there d has no gradient: without BatchNorm in training mode and dropout
    the first max-epoch moves weights by weight decay alone, which is then noted. d has no upper bound. More and smaller
    forget batches are more steps and forget harder.

    ``rewind`` is SCRUB+R: of the original (k = 0) and the weights after each epoch k it returns the first whose error
    on the forget set is closest to the last epoch's error on the holdout samples of the forget set's classes. These
    should be distributed like the forget set: where its labels are wrong they are not, and it may well go back
    to the original. The weights of all epochs are kept meanwhile, in the CPU's memory.

    Needs the forget set's inputs and the retain set with labels (inputs alone where γ is 0); with ``rewind`` also the
    forget set's labels and labelled holdout data. Declines tasks without classes. Sample weights multiply CE.

    Passes: E over the retain set, min(``max_epochs``, E) over the forget set; with ``rewind`` also E + 1 over the
    forget set and one over holdout; with ``keep_best`` E over holdout.

    Defaults are those of the published code's small experiments, which have 32 retain and 64 forget samples a step.
    Most of its others have SGD with momentum 0.9, wd = 5e-4, T of 2 or 4, α from 0.001 to 0.5, and 2 to 5 max-epochs.
    """

    reference: ClassVar[Reference] = KURMANJI_2023
    example: ClassVar[dict[str, object]] = {"epochs": 1}

    epochs: int = option(10, symbol="E", unit="passes over the retain set", text="how long")
    max_epochs: int = option(
        3,
        symbol="msteps",
        unit="passes over the forget set",
        text="how many of the first epochs begin by leaving the teacher on the forget set",
        search=Search(1, 5, whole=True),
    )
    lr: float = option(
        5e-4, symbol="η", unit="1", text="learning rate of the first epoch", search=Search(1e-5, 1e-2, log=True)
    )
    optimizer: Literal["sgd", "adam", "adamw"] = option("adam", unit="-", text="sgd, adam or adamw")
    weight_decay: float = option(0.1, symbol="wd", unit="1", text="coupled L2; of adamw decoupled")
    alpha: float = option(
        0.5, symbol="α", unit="1", text="weight of the divergence on the retain set", search=Search(1e-3, 1.0, log=True)
    )
    gamma: float = option(1.0, symbol="γ", unit="1", text="weight of the cross-entropy on the retain set")
    temperature: float = option(2.0, symbol="T", unit="1", text="by which all logits are divided in d")
    milestones: tuple[int, ...] = option((5, 8, 9), unit="epochs", text="after each of which the rate decays")
    decay: float = option(0.1, symbol="r", unit="1", text="by which the rate is then multiplied")
    forget_batch_size: int | None = option(
        None, symbol="B_f", unit="samples", text="a step of a max-epoch; unset, as many as of the retain set"
    )
    rewind: bool = option(
        False, unit="-", text="return the epoch whose error on the forget set is closest to that on like holdout data"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.positive("temperature", "decay")
        self.positive("alpha", "gamma", zero=True)
        self.count("max_epochs", 1)
        self.count("forget_batch_size", 1)
        if self.alpha == self.gamma == 0:
            remedy = "set one of them above 0, so that the retain set is learned from"
            raise UserError("scrub.alpha or scrub.gamma above 0", "both 0", remedy)
        steps = self.milestones
        if not isinstance(steps, tuple) or not all(type(m) is int and m >= 1 for m in steps):
            raise UserError("scrub.milestones as a tuple of epochs from 1", repr(steps), "write for example (5, 8, 9)")
        if self.rewind and self.keep_best:
            remedy = "set one of them, for each chooses the epoch to return"
            raise UserError("scrub.rewind or scrub.keep_best", "both", remedy)

    @property
    def unlearns(self) -> Needs:
        """Inputs to forget and labelled samples to keep; with ``rewind`` labels everywhere, of holdout too."""
        retain = See.LABELLED if self.gamma else See.INPUTS
        if self.rewind:
            return self.sees(forget=See.LABELLED, retain=retain, holdout=See.LABELLED)
        return self.sees(forget=See.INPUTS, retain=retain)

    def declines(self, task: Task, scenario: Scenario | None, model: nn.Module) -> str | None:
        """Decline tasks without classes."""
        return only_classes(task, "it compares probabilities of classes")

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return the epochs over each set, those that measure errors among them."""
        forget = min(self.max_epochs, self.epochs) + (self.epochs + 1 if self.rewind else 0)
        return self.reads(phase, forget=forget, retain=self.epochs, holdout=int(self.rewind))

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 1: lr · decay^#{milestone < epoch}."""
        return self.lr * self.decay ** sum(m < epoch for m in self.milestones)

    @property
    def objective(self) -> Scrub:
        """What a max-epoch lowers on the forget set: −mean d."""
        return Scrub(temperature=self.temperature, capped=False)

    def following(self, teacher: Tensor, student: Tensor, losses: Tensor | None) -> Tensor:
        """Return the loss of a min-epoch's batch: mean γ·CE + α·d.

        Args:
            teacher: logits (B, K); no gradient flows into them.
            student: logits (B, K).
            losses: the task's loss of each sample (B,); None where γ is 0.

        Returns:
            A scalar in nats.
        """
        near = self.alpha * divergence(teacher, student, self.temperature).mean()
        return near if losses is None else self.gamma * losses.mean() + near

    def descend(self, session: Session, descent: Descent) -> None:
        """Alternate max-epochs and min-epochs, and go back where that is asked."""
        past = _Past(session, descent) if self.rewind else None
        context = self.objective.context(session)
        for epoch in range(1, self.epochs + 1):
            rate = self.rate(epoch)
            if epoch <= self.max_epochs:
                self._leave(descent, context, rate, first=epoch == 1)
            self._follow(descent, context, rate)
            descent.ended()
            if past is not None:
                past.keep(last=epoch == self.epochs)
        if past is not None:
            past.rewind()

    def _leave(self, descent: Descent, context: Context, rate: float, first: bool) -> None:
        """Take a max-epoch, and note it where there was nothing to go up by."""
        session, objective = descent.session, self.objective

        def loss(_: nn.Module, now: Taken) -> Tensor:
            return objective.loss(descent.outputs(now.batch), now.batch, context)

        mean = descent.epoch([session.forget], loss, size=self.forget_batch_size, rate=rate, name="max_loss")
        if first and -mean < SILENT:
            why = "The first max-epoch found student and teacher in agreement, where the divergence has no gradient"
            then = "moved nothing" if self.weight_decay == 0 else "moved weights by weight decay alone"
            more = "" if min(self.max_epochs, self.epochs) > 1 else "; take two max-epochs or more, or nothing is left"
            session.record("note", f"{why}, and {then}{more}.")

    def _follow(self, descent: Descent, context: Context, rate: float) -> None:
        """Take a min-epoch."""

        def loss(_: nn.Module, now: Taken) -> Tensor:
            batch, teacher = now.batch, context.taught(now.batch)
            if batch.target is None:
                return self.following(teacher, context.logits(descent.outputs(batch)), None)
            outputs, losses = outputs_and_losses(descent.model, descent.task, batch)
            return self.following(teacher, context.logits(outputs), descent.weighted(losses, batch))

        descent.epoch([descent.session.retain], loss, rate=rate, name="min_loss")


@dataclass
class _Past:
    """Errors on the forget set from the start on, and the weights of all epochs but the last, on the CPU.

    Args:
        session: holds the forget set and holdout data, both labelled.
        descent: goes on between calls.
    """

    session: Session
    descent: Descent
    errors: list[Fraction] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.like = alike(self.session.holdout, self.session.forget)
        self._measure()

    def _measure(self) -> None:
        self.errors.append(error(self.descent, self.session.forget))
        self.session.record("forget_error", float(self.errors[-1]), step=self.descent.steps)

    def keep(self, last: bool) -> None:
        """Measure the model as it is, and keep its weights unless they are the last."""
        self._measure()
        if not last:
            state = self.descent.model.state_dict()
            self.weights.append({name: value.detach().to("cpu", copy=True) for name, value in state.items()})

    def rewind(self) -> None:
        """Set the model back to the epoch whose error is closest to that on like holdout samples."""
        reference = error(self.descent, self.like)
        at = closest(self.errors, reference)
        if at == 0:
            self.descent.model.load_state_dict(self.session.original.state_dict())
            why = "no epoch's error on the forget set is closer to that on holdout samples of its classes"
            self.session.record("note", f"Rewound to the original weights, so that nothing changed: {why}.")
        elif at < len(self.errors) - 1:
            self.descent.model.load_state_dict(self.weights[at - 1])
        self.session.record("reference_error", float(reference))
        self.session.record("reference_samples", len(self.like))
        self.session.record("rewound_to", at)


def closest(errors: Sequence[Fraction], reference: Fraction) -> int:
    """Return k = argmin |errors[k] − reference|, the first of several; exact, so that ties are ties.

    >>> closest([Fraction(e, 100) for e in (0, 4, 12, 18, 15, 14)], Fraction(13, 100))
    2
    """
    return min(range(len(errors)), key=lambda k: abs(errors[k] - reference))


def alike(holdout: Data, forget: Data) -> Data:
    """Return the holdout samples whose class occurs in the forget set; both show labels.

    Raises:
        UserError: there is none.
    """
    classes = forget.targets().unique()
    ids = [i for i, same in zip(holdout.ids, torch.isin(holdout.targets(), classes).tolist(), strict=True) if same]
    if not ids:
        want = f"holdout samples of the classes to forget ({listing(map(str, classes.tolist()))}) for scrub.rewind"
        raise UserError(want, f"none in {holdout.name}", "give holdout data with some, or set rewind=False")
    return holdout.subset(ids)


def error(descent: Descent, data: Data) -> Fraction:
    """Return the share of samples that the model in eval mode takes for another class than their label."""
    task, runtime = descent.task, descent.runtime

    def wrong(batch: Batch) -> int:
        here = batch.to(runtime.torch_device)
        assert here.target is not None
        outputs = task.forward(descent.model, here)[0]
        check_targets(task, outputs, here.target)
        descent.advance(len(batch))
        return int((task.predictions(outputs) != here.target).sum())

    descent.model.eval()
    with torch.no_grad(), runtime.autocast():
        return Fraction(sum(Passes(runtime).over(data, wrong)), len(data))


METHOD = SCRUB
