"""What a batch means: outputs, per-sample loss, predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.data import Batch
from expunge.errors import Misfit, UserError, listing


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


@dataclass(frozen=True)
class Classification:
    """One of K classes: outputs are logits (B, K), targets class indices (B,), loss −ln softmax(f)_y in nats."""

    def forward(self, model: nn.Module, batch: Batch, taps: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits (B, K) and taps."""
        return run(model, batch, taps)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy of each sample, (B,), in nats."""
        return F.cross_entropy(outputs, target.long(), reduction="none")

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return the class of the largest logit, (B,)."""
        return outputs.argmax(dim=1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return softmax probabilities (B, K) in float64."""
        return outputs.double().softmax(dim=1)

    def sample_target(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a class from the softmax of each sample's logits, (B,)."""
        p = outputs.detach().double().softmax(dim=1).cpu()
        return torch.multinomial(p, 1, generator=generator).squeeze(1).to(outputs.device)

    def check(self, outputs: Tensor, target: Tensor) -> None:
        """Refuse outputs that are not (B, K) and targets that are not class indices in range.

        Raises:
            Misfit: says which of the two.
        """
        if outputs.dim() != 2:
            raise Misfit("logits of shape (B, K)", str(tuple(outputs.shape)), "wrap the model so that it returns them")
        if target.dim() != 1 or target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            got = f"{target.dtype} of shape {tuple(target.shape)}"
            raise Misfit("class indices as integers of shape (B,)", got, "encode classes as 0..K-1")
        low, high, k = int(target.min()), int(target.max()), outputs.shape[1]
        if low < 0 or high >= k:
            bad = low if low < 0 else high
            raise Misfit(f"classes 0 to {k - 1}", f"class {bad}", "check the labels and the model's last layer")


@dataclass(frozen=True)
class Regression:
    """Real targets: outputs (B,) or (B, T), loss the mean over T of squared or absolute errors.

    Args:
        error: ``squared`` gives (f − y)², ``absolute`` |f − y|.
    """

    error: Literal["squared", "absolute"] = "squared"

    def forward(self, model: nn.Module, batch: Batch, taps: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Return predictions (B, T) and taps; (B,) becomes (B, 1)."""
        outputs, found = run(model, batch, taps)
        return outputs.unsqueeze(1) if outputs.dim() == 1 else outputs, found

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the error of each sample, (B,), in squared or plain target units."""
        gap = outputs - target.reshape(outputs.shape).to(outputs.dtype)
        each = gap.square() if self.error == "squared" else gap.abs()
        return each.flatten(1).mean(dim=1)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return the outputs, (B, T)."""
        return outputs

    def sample_target(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Draw targets from the density whose negative logarithm is the loss times T, up to a constant.

        Squared error: a normal with mean f and variance 1/2. Absolute error: a Laplace with location f, scale 1.

        Returns:
            Targets in the outputs' shape.
        """
        noise: Tensor
        shape = outputs.shape
        if self.error == "squared":
            noise = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.5**0.5
        else:
            u = torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5
            noise = -u.sign() * torch.log1p(-2 * u.abs())
        return outputs.detach() + noise.to(outputs)

    def check(self, outputs: Tensor, target: Tensor) -> None:
        """Refuse targets that are not finite real numbers of the outputs' shape.

        Raises:
            Misfit: says what they are.
        """
        if not target.is_floating_point():
            remedy = "pass floats, or use Classification for classes"
            raise Misfit("real targets", f"{target.dtype}", remedy)
        if target.shape[:1] != outputs.shape[:1] or target.numel() != outputs.numel():
            got = f"{tuple(target.shape)} for outputs {tuple(outputs.shape)}"
            raise Misfit("targets of the outputs' shape", got, "make the two agree")
        if not bool(torch.isfinite(target).all()):
            raise Misfit("finite targets", "NaN or infinity", "drop or repair those samples")
