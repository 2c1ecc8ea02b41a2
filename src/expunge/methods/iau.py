"""Influence approximation unlearning: to forget a sample is to learn its negative, by one step of its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.copies import check_trainable
from expunge.data import Batch, Data
from expunge.errors import NotFinite
from expunge.method import Needs, Reference, Search, See, Session, State, option
from expunge.methods._fields import Checked
from expunge.methods._gradients import SummedGradient
from expunge.recipe import Recipe
from expunge.references import LIU_2025
from expunge.tensors import parameters
from expunge.train import outputs_and_losses

EPSILON = 1e-8  # of Adam
PART, LEAST = 40, 16  # one in so many retained samples, and no fewer than these, show what the step did
NOISE = 1e-5  # share of a loss that rounding may be
ROSE = 2.0  # times the loss before: worth a note


@dataclass(frozen=True, kw_only=True)
class IAU(Checked):
    """Step up the loss on the forget set and down that on the retain set, once, by the gradients of whole sets.

    With S_f and S_r the gradients of the summed losses on forget and retain set, each times its sample's weight, in
    eval mode at the weights there are: θ_u = θ* + η·(S_f − S_r). It stands for the influence step θ* + H⁻¹S_f, with ηI
    in the place of H⁻¹; taking S_r off as well, the ``correction``, helps where the original stopped short of an
    optimum. At an optimum S_r = −S_f and sums give θ* + 2η·S_f, the same step twice as long.

    ``reduction="sum"`` is the equation; ``mean`` takes means, ḡ_f − ḡ_r, which weighs forgetting n_r/n_f times as
    much beside repair. ``update="sgd"`` is the equation; ``adam_sign`` is the first step of Adam, θ − η·g/(|g| + 1e-8)
    with g = ḡ_r − ḡ_f element by element: a step of η on every weight, whatever the gradient's size or the sets'.

    The default is the published code's one step: ``adam_sign``, ``mean``, lr 1e-3. One rate then serves losses and
    sets of any size. A ``sgd`` step needs η tuned to the curvature, and far smaller with sums than with means, in the
    ratio 1/n: above one over the curvature of the loss it overshoots. ``lr_bound`` in the log is that one, from the
    curvature of the retain loss along the step taken, so the largest curvature may allow less; a note says so where it
    is exceeded, or where the loss on retained samples (one in 40, 16 at least) more than doubled.

    Needs forget and retain set with labels; without ``correction`` the forget set alone. Any task with a loss.
    BatchNorm statistics stay, and weights that masks hold. The paper also restricts the gradient in the original's
    training: ``gradient_norm`` in the recipe, which is then the retrained model's too.

    Passes: ``steps`` over either set, each sample run forward and backward once.
    """

    distributed: ClassVar[bool] = True
    prepared_by: ClassVar[frozenset[str] | None] = frozenset()  # nothing is prepared but the record of ids
    reference: ClassVar[Reference] = LIU_2025
    example: ClassVar[dict[str, object]] = {}

    lr: float = option(
        1e-3,
        symbol="η",
        unit="1",
        text="length of the step; of adam_sign per weight",
        search=Search(1e-5, 1e-2, log=True),
    )
    update: Literal["sgd", "adam_sign"] = option(
        "adam_sign", unit="-", text="adam_sign: the first step of Adam, as published code; sgd: the gradient itself"
    )
    reduction: Literal["sum", "mean"] = option(
        "mean", unit="-", text="whether the gradients of the two sets are sums over samples or means"
    )
    correction: bool = option(True, unit="-", text="step down the retain loss as well; without it retain is not read")
    steps: int = option(1, unit="steps", text="repeated, both gradients taken anew each time")

    def __post_init__(self) -> None:
        self.positive("lr")
        self.one_of("update", "sgd", "adam_sign")
        self.one_of("reduction", "sum", "mean")
        self.flag("correction")
        self.count("steps", 1)

    @property
    def unlearns(self) -> Needs:
        """The forget set with labels, and with ``correction`` the retain set too."""
        return Needs(forget=See.LABELLED, retain=See.LABELLED if self.correction else See.NONE)

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return a pass over each set a step."""
        if phase != "unlearn":
            return {}
        return {name: float(self.steps) for name in ("forget", "retain")[: 1 + self.correction]}

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        """Take the steps, and report how long they were and what they did to retained samples."""
        model = session.model
        check_trainable(model)
        start = {name: p.detach().clone() for name, p in parameters(model).items()}
        sets = [session.forget, *([session.retain] if self.correction else [])]
        watched = _Watched(session, model)
        total = self.steps * sum(map(len, sets))
        with session.runtime.tracking("unlearning by iau", total) as advance:
            for step in range(self.steps):
                self._step(session, model, watched if step == 0 else None, step, advance)
        self._report(session, model, start, watched)
        return model, state

    def _step(
        self,
        session: Session,
        model: nn.Module,
        watched: _Watched | None,
        step: int,
        advance: Callable[[int], None],
    ) -> None:
        """Edit the weights in place by one step of both gradients."""
        up = self._gradient(session, model, session.forget, "forget", step, advance, None)
        down = {name: torch.zeros_like(g) for name, g in up.items()}
        if self.correction:
            down = self._gradient(session, model, session.retain, "retain", step, advance, watched)
            norms = _norm(up) * _norm(down)
            if norms > 0:
                product = sum(float((up[name] * g).sum()) for name, g in down.items())
                session.record("alignment", product / norms, step=step + 1)
        kept = {} if session.masks is None else session.masks.kept
        with torch.no_grad():
            for name, p in parameters(model).items():
                g = down[name] - up[name]
                if name in kept:
                    g.masked_fill_(~kept[name].to(g.device), 0)
                if self.update == "adam_sign":
                    g = g / (g.abs() + EPSILON)
                p.copy_(p.double() - self.lr * g)

    def _gradient(
        self,
        session: Session,
        model: nn.Module,
        data: Data,
        name: str,
        step: int,
        advance: Callable[[int], None],
        watched: _Watched | None,
    ) -> dict[str, Tensor]:
        """Return S or ḡ of a set, and record its norm and the mean loss; watched samples come first and are kept."""
        found = SummedGradient(model, session.task, session.runtime)
        rest = np.arange(len(data))
        if watched is not None:
            few = watched.positions(len(data))
            found.add(data, few, advance=advance, seen=watched.keep)
            rest = np.setdiff1d(rest, few)
        found.add(data, rest, advance=advance)
        values = found.close(data.name)
        if self.reduction == "mean":
            values = {key: value / len(data) for key, value in values.items()}
        session.record(f"{name}_gradient", _norm(values), step=step + 1)
        session.record(f"{name}_loss", found.loss / len(data), step=step + 1)
        return values

    def _report(self, session: Session, model: nn.Module, start: dict[str, Tensor], watched: _Watched) -> None:
        """Record the length of the way, and what it did to the watched samples."""
        weights = parameters(model)
        moved = {name: p.detach().double() - start[name].double() for name, p in weights.items()}
        length, size = _norm(moved), _norm(start)
        session.record("step_norm", length)
        if size > 0:
            session.record("relative_step", length / size)
        if length == 0:
            text = "No weight moved: the gradients cancel or are 0, rounding swallows the step, or masks hold all."
            session.record("note", text)
        if not self.correction or length == 0:
            return
        before, after = watched.before(), self._after(watched)
        session.record("watched", watched.count())
        session.record("retain_loss_before", before)
        session.record("retain_loss_after", after)
        if after > ROSE * before and after - before > NOISE:
            text = f"The mean loss on {watched.count()} retained samples rose from {before:.3g} to {after:.3g}"
            session.record("note", f"{text}: lower iau.lr (now {self.lr:g}) if that is not meant.")
        curvature = watched.curvature(start, before, after, length)
        if curvature is None:
            return
        session.record("curvature", curvature)
        if self.update == "sgd" and self.steps == 1:
            bound = 1 / (curvature * (1 if self.reduction == "mean" else len(session.retain)))
            session.record("lr_bound", bound)
            if self.lr > bound:
                text = "one over the curvature of the retain loss along the step, so that it overshoots"
                session.record("note", f"iau.lr {self.lr:g} is above {bound:.3g}, {text}.")

    def _after(self, watched: _Watched) -> float:
        found = watched.loss()
        if not math.isfinite(found):
            want, remedy = "a finite loss on retain after iau", f"lower iau.lr (now {self.lr:g})"
            raise NotFinite(want, str(found), remedy)
        return found


class _Watched:
    """A part of the retain set that the first pass reads first, kept to be run again after the step.

    Args:
        session: task and runtime.
        model: that is edited.
    """

    def __init__(self, session: Session, model: nn.Module) -> None:
        self.session, self.model = session, model
        self._batches: list[Batch] = []
        self._sums = [0.0, 0.0]  # losses before the step, samples

    def positions(self, size: int) -> NDArray[np.int64]:
        """Return every 40th of so many positions, 16 at least if there are as many."""
        count = min(size, max(LEAST, size // PART))
        return np.linspace(0, size - 1, count).round().astype(np.int64)

    def keep(self, batch: Batch, losses: Tensor) -> None:
        """Keep a batch, and add the losses it has before the step."""
        self._batches.append(batch)
        self._sums[0] += _summed(batch, losses)
        self._sums[1] += len(batch)

    def count(self) -> int:
        """Return how many samples there are, of all processes."""
        return round(self._all()[1])

    def before(self) -> float:
        """Return their mean loss before the step."""
        losses, count = self._all()
        return losses / count

    def _all(self) -> list[float]:
        return [float(t) for t in self.session.runtime.sum([torch.tensor(s, dtype=torch.float64) for s in self._sums])]

    def loss(self) -> float:
        """Return their mean loss at the weights there are."""
        total, runtime = torch.zeros((), dtype=torch.float64), self.session.runtime
        with runtime.agreed(), torch.no_grad(), runtime.autocast():
            for batch in self._batches:
                _, losses = outputs_and_losses(self.model, self.session.task, batch.to(runtime.torch_device))
                total += _summed(batch, losses)
        return float(runtime.sum([total])[0]) / self._all()[1]

    def curvature(self, start: dict[str, Tensor], before: float, after: float, length: float) -> float | None:
        """Return δᵀHδ/‖δ‖² of their mean loss, by the second difference over a step δ there and one back.

        Args:
            start: the weights before the step.
            before: their mean loss there.
            after: at the weights there are.
            length: ‖δ‖.

        Returns:
            The curvature; None where it is not above what rounding may be.
        """
        weights = parameters(self.model)
        there = {name: p.detach().clone() for name, p in weights.items()}
        with torch.no_grad():
            for name, p in weights.items():
                p.copy_(2 * start[name] - there[name])
            back = self.loss()
            for name, p in weights.items():
                p.copy_(there[name])
        second = after + back - 2 * before
        noise = NOISE * max(abs(before), abs(after), abs(back))
        return second / length**2 if math.isfinite(second) and second > noise else None


def _summed(batch: Batch, losses: Tensor) -> float:
    """Return the sum of the losses of samples (B,), each times its weight."""
    each = losses.detach().double().cpu()
    return float((each if batch.weight is None else each * batch.weight.double().cpu()).sum())


def _norm(values: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(v.double().square().sum()) for v in values.values()))


METHOD = IAU
