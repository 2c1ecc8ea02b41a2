"""Penalties of training that look at the gradient itself: gradient restriction."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.data import Batch
from expunge.errors import UserError, listing, suggest
from expunge.tensors import parameters

Form = Literal["global", "per_tensor"]
FLOOR = 1e-12
"""ε under the root: a norm has no derivative at 0, and √(‖g‖² + ε) has the derivative 0 there."""
_ONCE = re.compile(r"derivative for '?(?:aten::)?(\w+)|differentiate twice|double backward", re.IGNORECASE)


@dataclass(frozen=True)
class GradientNorm:
    """Gradient restriction: α·‖∇_θ L‖₂ is added to L, the mean loss of a batch, times the samples' weights.

    ``global`` is the norm of the gradient of all trainable parameters together, √(Σ_t ‖g_t‖² + ε) with ε = 1e-12;
    ``per_tensor``, the published code's, the sum of the norms of single tensors, Σ_t √(‖g_t‖² + ε), which is the larger
    one. It is lowered by differentiating the gradient: ∇(α‖g‖) = α·H·g/‖g‖ with H the Hessian of L, so a step takes
    two to three times as long. Scalars that masks hold count in the norm.

    The gradient is taken at full precision, with autocast off; attention runs by its plain kernel, and recurrent layers
    on a GPU without cuDNN, for the fused ones cannot be differentiated twice. What has no second derivative is refused
    where it is met, by name: CTC loss, `torch.nn.EmbeddingBag`, ``torch.cdist``, compiled networks and fused attention
    of other packages among them. A function of the user's own that is marked ``once_differentiable`` raises nothing in
    PyTorch and counts as a constant there. Several processes restrict the gradient of the whole batch.

    Source: J. Liu, C. Wu, D. Lian and E. Chen, "Efficient Machine Unlearning via Influence Approximation", 2025,
    https://arxiv.org/abs/2507.23257; with α = 0.005 there.

    Args:
        alpha: α, above 0, one over the parameters' unit.
        form: ``global`` or ``per_tensor``.

    Raises:
        UserError: a field is out of its range.
    """

    alpha: float = 0.005
    form: Form = "global"

    def __post_init__(self) -> None:
        _check(self.alpha, self.form, "GradientNorm.")

    @classmethod
    def of(cls, value: Any, name: str) -> GradientNorm | None:
        """Return the penalty that a plain value means: α, or a table with ``alpha`` and ``form``; None for α = 0.

        Args:
            value: of the file.
            name: what an error calls it.

        Raises:
            UserError: it means none.
        """
        known = [f.name for f in fields(cls)]
        if isinstance(value, Mapping):
            odd = [key for key in value if key not in known]
            if odd:
                raise UserError(f"{name} with {listing(known)}", repr(odd[0]), suggest(str(odd[0]), known))
            _check(value.get("alpha", cls.alpha), value.get("form", cls.form), f"{name}.")
            return cls(**value)
        if not _number(value) or value < 0:
            remedy = "give a finite number, or a table with alpha and form"
            raise UserError(f"{name} of 0 or more", repr(value), remedy)
        return cls(alpha=float(value)) if value > 0 else None

    def __call__(self, model: nn.Module, batch: Batch, outputs: Tensor, losses: Tensor) -> Tensor:
        """Return α‖∇L‖, from which gradients flow back through the gradient."""
        return self.alpha * torch.stack(self._norms(self.part(model, batch, losses))).sum()

    def part(self, model: nn.Module, batch: Batch, losses: Tensor) -> list[Tensor]:
        """Return the gradient of the mean loss of these samples, by trainable parameter, with its own graph.

        Args:
            model: that the losses come from.
            batch: gives the samples' weights.
            losses: of each sample (B,), with their graph.
        """
        weighted = losses if batch.weight is None else losses * batch.weight.to(losses)
        weights = list(parameters(model).values())
        with torch.autocast(losses.device.type, enabled=False):
            found = torch.autograd.grad(weighted.mean(), weights, create_graph=True, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(weights, found, strict=True)]

    def joined(self, part: Sequence[Tensor], total: Sequence[Tensor]) -> Tensor:
        """Return a scalar with this process's share of the gradient of α‖g‖, g that of the whole batch.

        α·⟨g_p, g/‖g‖⟩ of process p, g/‖g‖ a constant: weighted as losses are and summed, its gradient is α·H·g/‖g‖.

        Args:
            part: g_p, the gradient of the mean loss of this process's samples, with its graph.
            total: g, without one.
        """
        sizes = self._norms([g.detach() for g in total])
        sizes = sizes * len(part) if self.form == "global" else sizes
        products = [(_wide(p) * _wide(g) / size).sum() for p, g, size in zip(part, total, sizes, strict=True)]
        return self.alpha * torch.stack(products).sum()

    def _norms(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        squares = [_wide(g).square().sum() for g in gradients]
        if self.form == "global":
            squares = [torch.stack(squares).sum()]
        return [(square + FLOOR).sqrt() for square in squares]

    @contextmanager
    def around(self, model: nn.Module) -> Iterator[None]:
        """Run a block, forward or backward, by operations that can be differentiated twice.

        Raises:
            UserError: it uses one that cannot.
            RuntimeError: as the block raises it, of anything else.
        """
        with sdpa_kernel(SDPBackend.MATH), without_cudnn(model):
            try:
                yield
            except RuntimeError as error:
                found = _ONCE.search(str(error))
                if found is None:
                    raise
                want = "a network and a loss that can be differentiated twice, for GradientNorm"
                got = found[1] or str(error).splitlines()[0][:100]
                remedy = "write that operation out in plain ones, or train without the penalty (gradient_norm)"
                raise UserError(want, got, remedy) from error


@contextmanager
def without_cudnn(model: nn.Module) -> Iterator[None]:
    """Run a block without cuDNN where a network has recurrent layers on a GPU.

    cuDNN's can be differentiated neither twice nor in eval mode; convolutions are slower meanwhile.
    """
    with ExitStack() as stack:
        if any(isinstance(m, nn.RNNBase) for m in model.modules()) and any(p.is_cuda for p in model.parameters()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check(alpha: Any, form: Any, owner: str) -> None:
    """Refuse an α that is no finite number above 0, and an unknown form."""
    if not _number(alpha) or alpha <= 0:
        raise UserError(f"{owner}alpha above 0", repr(alpha), "give a finite number in that range")
    if form not in get_args(Form):
        raise UserError(f"{owner}form {' or '.join(get_args(Form))}", repr(form), "choose one of them")
