"""The protocols of tasks, running a model with taps, and what every task checks of its targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from expunge.data import Batch
from expunge.errors import Misfit, UserError, listing

CLASSES = "use Classification, or Binary"


@runtime_checkable
class Task(Protocol):
    """How to run a model on a batch and judge its outputs; the loss is always one number a sample."""

    def forward(self, model: nn.Module, batch: Batch, taps: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Return outputs (B, ...) and the tapped activations by module name."""
        ...

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each sample, (B,)."""
        ...

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return what the model says of each sample, (B, ...)."""
        ...

    def sample_target(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Draw targets from the model's own predictive distribution."""
        ...


@runtime_checkable
class Classes(Task, Protocol):
    """A task of exclusive classes: every sample has one of K, and targets are class indices, whatever their type.

    What needs classes asks ``isinstance(task, Classes)``, and reads ``class_logits`` instead of the outputs.
    """

    def class_logits(self, outputs: Tensor) -> Tensor:
        """Return one logit a class, (B, K), whose softmax are the class probabilities."""
        ...

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the class probabilities (B, K) in float64."""
        ...


def class_logits(task: Task, outputs: Tensor, why: str = "class logits") -> Tensor:
    """Return one logit a class, (B, K).

    Args:
        task: of exclusive classes.
        outputs: as the task gives them.
        why: what they are for, said where the task has no classes.

    Raises:
        UserError: the task has no exclusive classes.
    """
    if not isinstance(task, Classes):
        raise UserError(f"a task of exclusive classes for {why}", type(task).__name__, CLASSES)
    return task.class_logits(outputs)


def class_count(task: Task, outputs: Tensor) -> int:
    """Return the number of classes K of a task's outputs, 0 where it has no exclusive classes."""
    return task.class_logits(outputs).shape[1] if isinstance(task, Classes) else 0


def check_targets(task: Task, outputs: Tensor, target: Tensor) -> None:
    """Refuse targets that do not fit the outputs, where the task has a ``check`` for it; outside of traced code."""
    check = getattr(task, "check", None)
    if callable(check):
        check(outputs, target)


def sample_losses(task: Task, outputs: Tensor, target: Tensor) -> Tensor:
    """Return the loss of each sample (B,), targets and shapes checked.

    Args:
        task: per-sample loss.
        outputs: of the samples, (B, ...).
        target: as the task takes them, (B, ...).

    Raises:
        UserError: the targets do not fit the outputs, or the loss is not one number a sample.
    """
    check_targets(task, outputs, target)
    found = task.loss(outputs, target)
    if found.shape != (len(target),):
        got = f"shape {tuple(found.shape)} for {len(target)} samples"
        raise UserError("a loss of shape (B,), one number a sample", got, "return it unreduced from Task.loss")
    return found


def output_tensor(value: Any) -> Tensor:
    """Return the output tensor (B, ...) of a model's return value.

    Raises:
        UserError: neither a tensor nor an object with ``logits``.
    """
    if isinstance(value, Tensor):
        return value
    logits = value.get("logits") if isinstance(value, Mapping) else getattr(value, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    kind = type(value).__name__
    raise UserError("a model that returns a tensor or an output with logits", kind, "wrap the model so that it does")


@contextmanager
def _tapped(model: nn.Module, taps: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    found: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        for tap in taps:
            name, _, side = tap.partition(":")
            if name not in modules or side not in ("", "input"):
                known = listing([m for m in modules if m], 12)
                raise UserError(f"a tap 'module' or 'module:input' among {known}", repr(tap), "name an existing module")

            def keep(
                module: nn.Module, args: Any, named: dict[str, Any], out: Any, tap: str = tap, side: str = side
            ) -> None:
                value = next(iter((*args, *named.values()))) if side else out
                found[tap] = value[0] if isinstance(value, tuple) else value

            stack.callback(modules[name].register_forward_hook(keep, with_kwargs=True).remove)
        yield found
        unused = [tap for tap in taps if tap not in found]
        if unused:
            raise UserError("taps that the forward pass reaches", f"{listing(unused)}, not called", "name others")


def run(model: nn.Module, batch: Batch, taps: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
    """Run a model on a batch; dict inputs become keyword arguments.

    Args:
        model: returns a tensor (B, ...), or an output with ``logits`` such as transformers' ModelOutput.
        batch: the samples.
        taps: module names whose output to return, or ``name:input`` for the module's first input.

    Returns:
        Outputs (B, ...) and the tapped activations by tap.
    """
    with _tapped(model, taps) as found:
        value = model(**batch.inputs) if isinstance(batch.inputs, dict) else model(batch.inputs)
    return output_tensor(value), found


def as_columns(outputs: Tensor) -> Tensor:
    """Return outputs (B, ...) of at least two dimensions: (B,), or the () of a batch of one squeezed, become (B, 1)."""
    return outputs.reshape(-1, 1) if outputs.dim() < 2 else outputs


def check_real(outputs: tuple[int, ...], target: Tensor) -> None:
    """Refuse targets that are not finite real numbers, one for each prediction.

    Dimensions of one number apart, (B, 1) and (B,), the two shapes must be equal: targets (B, T, C) for outputs
    (B, C, T) are as many, and would be compared with others' numbers.

    Args:
        outputs: the shape of the predictions, (B,), (B, T) or more.
        target: of the same shape.

    Raises:
        Misfit: says what they are.
    """
    if not target.is_floating_point():
        remedy = "pass floats, or use Classification for classes"
        raise Misfit("real targets", f"{target.dtype}, targets that are classes", remedy)
    own, other = ([n for n in shape[1:] if n != 1] for shape in (target.shape, outputs))
    if target.shape[:1] != outputs[:1] or own != other:
        got = f"{tuple(target.shape)} for outputs {outputs}"
        raise Misfit("targets of the outputs' shape", got, "make the two agree")
    if not bool(torch.isfinite(target).all()):
        raise Misfit("finite targets", "NaN or infinity", "drop or repair those samples")


def check_zero_one(target: Tensor) -> None:
    """Refuse targets other than 0 and 1, as integers, bools or floats.

    Raises:
        Misfit: names one that is neither.
    """
    if target.is_complex():
        raise Misfit("targets 0 or 1", f"{target.dtype}", "pass integers, bools or floats")
    wrong = target[(target != 0) & (target != 1)]
    if wrong.numel():
        found = wrong.flatten()[0].item()
        remedy = "drop or repair those samples" if found != found else "encode the two classes as 0 and 1"
        raise Misfit("targets 0 or 1", f"{found:g}", remedy)
