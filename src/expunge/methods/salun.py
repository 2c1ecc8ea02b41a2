"""Saliency unlearning: any method that edits weights, let loose on those alone that the forget set's loss leans on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from expunge.data import Batch, Data
from expunge.errors import NotFinite, UserError, listing
from expunge.masks import Held, Masks
from expunge.method import Method, Nature, Needs, Reference, Search, See, Session, State, option
from expunge.methods._composed import Composed
from expunge.methods._relabel import RandomLabelling
from expunge.passes import Passes
from expunge.recipe import Recipe
from expunge.references import GOLATKAR_2020
from expunge.runtime import Runtime
from expunge.scenario import Scenario
from expunge.task import Task
from expunge.tensors import parameters
from expunge.train import outputs_and_losses

Compat = Literal["paper", "official"]


def saliency(model: nn.Module, task: Task, data: Data, runtime: Runtime) -> dict[str, Tensor]:
    """Return S = |Σ_i ∂ℓ_i/∂θ|, the size of the gradient of the summed loss, by trainable parameter.

    The sum is signed and over samples, the absolute value comes last, so S is n times the size of the mean gradient
    and does not depend on the batches. Each loss counts with its sample's weight.

    Args:
        model: in eval mode, on the runtime's device; no gradient is left on it.
        task: per-sample loss.
        data: n labelled samples, read once.
        runtime: batch size, precision, progress.

    Returns:
        By name a tensor of the parameter's shape, in float32 or wider.

    Raises:
        NotFinite: a gradient is NaN or infinite.
    """
    weights = parameters(model)
    total = {n: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for n, p in weights.items()}

    def work(batch: Batch) -> tuple[int, tuple[Tensor | None, ...]]:
        batch = batch.to(runtime.torch_device)
        with torch.enable_grad(), runtime.autocast():
            _, losses = outputs_and_losses(model, task, batch)
            loss = (losses if batch.weight is None else losses * batch.weight.to(losses)).sum()
        return len(batch), torch.autograd.grad(loss, list(weights.values()), allow_unused=True)

    with runtime.tracking(f"saliency on {data.name}", len(data)) as advance:
        for count, gradients in Passes(runtime).over(data, work):
            for name, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    total[name] += gradient
            advance(count)
    bad = [name for name, value in total.items() if not bool(torch.isfinite(value).all())]
    if bad:
        got = f"NaN or infinity in {listing(bad)}"
        raise NotFinite(f"a finite gradient of the loss on {data.name}", got, "check the weights and that data")
    return {name: value.abs_() for name, value in total.items()}


def salient(scores: Mapping[str, Tensor], density: float, free: Masks | None = None) -> Masks:
    """Return the masks under which the ⌊ρP⌋ highest scores of all parameters together may move; first come, of equals.

    Args:
        scores: by parameter.
        density: ρ, of the P scalars that ``free`` lets move.
        free: masks there are already, or None.

    Returns:
        The masks, False wherever those of ``free`` are.
    """
    held = {} if free is None else free.kept
    may = torch.cat(
        [
            (held[n].to(s.device) if n in held else torch.ones_like(s, dtype=torch.bool)).flatten()
            for n, s in scores.items()
        ]
    )
    at = may.nonzero().squeeze(1)
    flat = torch.cat([s.flatten() for s in scores.values()])
    count = math.floor(density * len(at) + 1e-9)  # 0.29 of 100 is 29, whatever the floating point says
    order = torch.sort(flat[at], descending=True, stable=True).indices[:count]
    kept = torch.zeros_like(may)
    kept[at[order]] = True
    parts = kept.split([s.numel() for s in scores.values()])
    return Masks({n: part.reshape(s.shape) for (n, s), part in zip(scores.items(), parts, strict=True)})


@dataclass(frozen=True, eq=False)
class GradientMasks(Masks):
    """Masks that zero gradients and hold nothing: weight decay and momentum still move what is masked.

    Args:
        kept: as of `Masks`.
        strict: masks of a composition around it, which do hold.
    """

    firm: ClassVar[bool] = False
    strict: Masks | None = None

    def both(self, other: Masks | None) -> Masks:
        """Return masks of gradients that zero those of both, and hold what either holds."""
        if other is None:
            return self
        held = other.strict if isinstance(other, GradientMasks) else other
        return replace(self, kept=self._common(other), strict=self.strict if held is None else held.both(self.strict))

    def hold(self, model: nn.Module) -> Held:
        """Return what zeroes the gradients, and holds what ``strict`` masks."""
        firm = Masks({}) if self.strict is None else self.strict
        return _Loose(super().hold(model).parts, firm.hold(model))


@dataclass(frozen=True, eq=False)
class _Loose(Held):
    """Masked scalars whose gradients are zero and which nothing puts back, but for those held firmly."""

    firm: Held

    def put_back(self) -> None:
        self.firm.put_back()

    def after(self, optimizer: torch.optim.Optimizer) -> None:
        self.firm.after(optimizer)


@dataclass(frozen=True, kw_only=True)
class _RandomLabel(RandomLabelling):
    """What runs where no method is named; a method's file cannot import another's."""

    name: ClassVar[str] = "random_label"
    reference: ClassVar[Reference] = GOLATKAR_2020

    lr: float = option(0.013, symbol="η", unit="1", text="learning rate")


@dataclass(frozen=True, kw_only=True)
class SalUn(Composed):
    """Run a method on the share ρ of the weights on which the loss on the forget set leans most; hold the others.

    m = 1 where S_j = |Σ_i ∂ℓ(f(x_i), y_i)/∂θ_j| over the forget set, in eval mode at the original weights, is among the
    ⌊ρP⌋ highest of all P trainable parameters together, biases and BatchNorm's included; θ_u = m ⊙ U(θ_o) +
    (1 − m) ⊙ θ_o. The signed sum comes first, the absolute value last. Of equal scores the first parameters win.

    ``method`` is any method that edits weights: {"name": "random_label", "lr": 0.02}. Unset, it is random relabelling
    with the published settings, lr 0.013 and 10 epochs. The mask holds values, not gradients: masked weights end
    bit-identical to the original's, under weight decay and momentum too. A method that moves them all the same has them
    set back, and a note says so. BatchNorm statistics are no parameters: they move as the method lets them.

    ``compat="official"`` follows the code that the published numbers come from: only gradients are masked, so weight
    decay shrinks what is held, to 0.892 of its size in 1770 steps at the published settings, and where no method is
    named labels may be drawn true. That code's sum is over means of batches, which counts samples of a smaller last
    batch more; this one's never does.

    Needs the forget set with labels, and what the method needs. Declines what the method declines, methods that train
    anew, which start from other weights than the mask holds, and those served by more than their weights.

    Passes: one over the forget set, and the method's.
    """

    prepared_by: ClassVar[frozenset[str] | None] = frozenset({"method"})
    reference: ClassVar[Reference] = Reference(
        "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image Classification and "
        "Generation",
        "Chongyu Fan and Jiancheng Liu and Yihua Zhang and Eric Wong and Dennis Wei and Sijia Liu",
        2024,
        "https://arxiv.org/abs/2310.12508",
        "ICLR",
    )
    example: ClassVar[dict[str, Any]] = {"method": {"name": "random_label", "epochs": 1}}

    method: Method | None = option(
        None, unit="method", text="what runs under the mask: its name and fields; unset, random_label at lr 0.013"
    )
    density: float = option(
        0.5, symbol="ρ", unit="1", text="share of the weights that may move", search=Search(0.1, 0.9)
    )
    compat: Compat = option(
        "paper", unit="-", text="paper: masked weights do not move; official: their gradients alone are zero"
    )

    def __post_init__(self) -> None:
        self.names_method(optional=True)
        self.one_of("compat", *get_args(Compat))
        rho = self.density
        if isinstance(rho, bool) or not isinstance(rho, int | float) or not 0 < rho <= 1:
            raise UserError("salun.density above 0 and not above 1", repr(rho), "write 0.5 for half of the weights")

    @property
    def inner(self) -> Method:
        """The method that runs under the mask."""
        return _RandomLabel(compat=self.compat) if self.method is None else self.method

    @property
    def prepares(self) -> Needs:
        """What the inner method reads to prepare."""
        return self.inner.prepares

    @property
    def unlearns(self) -> Needs:
        """The forget set with labels, and what the inner method reads."""
        return self.inner.unlearns | Needs(forget=See.LABELLED)

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return the inner method's passes, and one more over the forget set."""
        found = dict(self.inner.passes(phase, recipe))
        return found | {"forget": found.get("forget", 0.0) + 1.0} if phase == "unlearn" else found

    def declines(self, task: Task, scenario: Scenario | None, model: nn.Module) -> str | None:
        """Decline what the inner method declines, what trains anew, and what is served by more than weights."""
        last = self.inner
        while isinstance(below := getattr(last, "method", None), Method):  # a composition runs another method
            last = below
        if last.nature == Nature.EXACT:
            return f"{last.name} trains anew, and the mask holds weights of the original"
        return self.served_by_more() or self.inner.declines(task, scenario, model)

    def prepare(self, session: Session) -> tuple[nn.Module, State]:
        """Prepare the inner method."""
        return self.run(session.nested(self.inner))

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        """Find the mask in one pass over the forget set, and run the inner method under it."""
        masks = self._masks(session)
        hold = GradientMasks(masks.kept) if self.compat == "official" else masks
        session.record("method", self.inner.settings())
        model, inner = self.run(session.nested(self.inner, masks=hold), state)
        self._held(session, model, masks)
        return model, inner

    def _masks(self, session: Session) -> Masks:
        """Return what may move, and record how much of it; those of a composition around it stay masked."""
        scores = saliency(session.model, session.task, session.forget, session.runtime)
        masks = salient(scores, self.density, session.masks)
        count = sum(int(mask.sum()) for mask in masks.kept.values())
        if count == 0:
            got = f"none of {masks.size} at density {self.density:g}"
            raise UserError("one weight or more that may move", got, "raise salun.density")
        flat = sum(int((mask & (scores[name] == 0)).sum()) for name, mask in masks.kept.items())
        session.record("density", masks.density)
        session.record("may_move", count)
        session.record("least_saliency", min(float(scores[n][m].min()) for n, m in masks.kept.items() if bool(m.any())))
        if flat:
            text = f"The loss on the forget set has no gradient at {flat} of the {count} weights that may move"
            session.record("note", f"{text}: they are the first in order of those without.")
        return masks

    def _held(self, session: Session, model: nn.Module, masks: Masks) -> None:
        """Set masked weights back to the original's, or tell how many have moved where only gradients are masked.

        Raises:
            Incompatible: the inner method returned another network.
        """
        masks.check(model)
        now, start = dict(model.named_parameters()), dict(session.source.named_parameters())
        held = Held({n: (now[n], m.to(now[n].device), start[n].detach().to(now[n])) for n, m in masks.kept.items()})
        moved = held.moved()
        if self.compat == "official":
            session.record("leaked", moved)
            return
        held.put_back()
        if moved:
            text = f"{self.inner.name} moved {moved} of the masked weights; they were set back to the original's."
            session.record("note", text)


METHOD = SalUn
