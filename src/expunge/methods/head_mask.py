"""The control that hides a class behind its logit: it fools class accuracy and removes nothing."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from expunge.errors import UserError
from expunge.method import Method, Nature, Needs, Reference, Session, State, option
from expunge.scenario import Scenario
from expunge.task import Classes, Task, output_tensor


class LowerLogit:
    """A forward hook that puts one class's logit ``margin`` below the lowest of the others.

    Args:
        label: the class.
        margin: nats.
    """

    def __init__(self, label: int, margin: float) -> None:
        self.label, self.margin = label, margin

    def __call__(self, module: nn.Module, args: Any, value: Any) -> Any:
        """Return the module's value with its logits lowered."""
        logits = output_tensor(value)
        lowered = self.lower(logits)
        if isinstance(value, Tensor):
            return lowered
        if hasattr(value, "_replace"):
            return value._replace(logits=lowered)
        if is_dataclass(value) and not isinstance(value, Mapping | type):
            return replace(value, logits=lowered)
        value = copy.copy(value)  # the model may keep its own
        if isinstance(value, MutableMapping):
            value["logits"] = lowered
        else:
            value.logits = lowered
        return value

    def lower(self, logits: Tensor) -> Tensor:
        """Return logits (B, K) with the class's one lowered; of a single logit of two classes (B,) or (B, 1), ∓margin.

        Raises:
            UserError: the model has no such class.
        """
        if logits.shape[1:] in ((), (1,)):
            if self.label not in (0, 1):
                raise UserError("a class from 0 to 1", str(self.label), "name a class of the model")
            return logits * 0 + (-self.margin if self.label else self.margin)  # the gradient is 0, and there
        if not 0 <= self.label < logits.shape[1]:
            raise UserError(f"a class from 0 to {logits.shape[1] - 1}", str(self.label), "name a class of the model")
        here = torch.arange(logits.shape[1], device=logits.device) == self.label
        floor = logits.masked_fill(here, torch.inf).amin(dim=1, keepdim=True) - self.margin
        return torch.where(here, floor, logits)


@dataclass(frozen=True, kw_only=True)
class HeadMask(Method):
    """Lower the forgotten class's logit below all others by a forward hook; no weight changes.

    f_c(x) ← min_{k≠c} f_k(x) − margin. Of two classes told by a single logit that leaves a constant, −margin for
    class 1 and margin for class 0: with one class hidden all samples are of the other.
    """

    unlearns = Needs(scenario=True)
    control: ClassVar[bool] = True
    nature: ClassVar[Nature] = Nature.SUPPRESSION
    reference: ClassVar[Reference] = Reference(
        "Controls of the expunge audit", "The expunge authors", 2026, "https://pypi.org/project/expunge/"
    )

    margin: float = option(10.0, unit="nats", text="distance below the lowest other logit")

    def __post_init__(self) -> None:
        if not 0 < self.margin < float("inf"):
            raise UserError("head_mask.margin above 0", repr(self.margin), "give a finite number of nats")

    def declines(self, task: Task, scenario: Scenario | None, model: nn.Module) -> str | None:
        """Decline tasks without classes and forget sets that are no class."""
        if not isinstance(task, Classes):
            return "it masks a class's logit, and this task has no classes"
        if scenario is not None and scenario.kind != "class":
            return f"it masks one class, and the forget set is of kind '{scenario.kind}'"
        return None

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        """Hook the private copy; the masked classes go into the state for `serve`."""
        session.record("note", "A control: the class's logit is hidden, nothing was removed from the weights.")
        label = int(session.scenario.target)
        masked = [*state.meta.get("masked", []), label]
        state = State(state.tensors, {**state.meta, "masked": masked, "margin": self.margin})
        session.model.register_forward_hook(LowerLogit(label, self.margin))
        return session.model, state

    def serve(self, model: nn.Module, state: State) -> nn.Module:
        """Put the hooks back on weights read from disk."""
        for label in state.meta.get("masked", []):
            model.register_forward_hook(LowerLogit(label, state.meta["margin"]))
        return model


METHOD = HeadMask
