"""Gradient sums and curvature-vector products over data: nothing of the size p×p, nothing random, no augmentation.

All are sums over samples of a term of each, times its weight, so they depend on batch size by rounding alone. Vectors
are float64 and have one entry for each of the p chosen scalars; backward passes run in the weights' own dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.data import Batch, Data
from expunge.errors import NotFinite, UserError, suggest
from expunge.fisher.checks import check_model, plain
from expunge.influence.space import Space
from expunge.passes import Passes
from expunge.runtime import Runtime
from expunge.task import Task
from expunge.train import outputs_and_losses

Kind = Literal["hessian", "gauss_newton", "fisher"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Advance = Callable[[int], None]


def labelled(model: nn.Module, task: Task, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return outputs (B, ...) and losses (B,).

    Raises:
        UserError: there are no targets, or they do not fit.
    """
    if batch.target is None:
        raise UserError("labelled samples", "none with labels", "give targets when building the data")
    return outputs_and_losses(model, task, batch)


def weighted(model: nn.Module, task: Task, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return outputs (B, ...) and losses (B,), each times its sample's weight.

    Raises:
        UserError: there are no targets, or they do not fit.
    """
    outputs, losses = labelled(model, task, batch)
    return outputs, _times(losses, batch.weight)


def _times(losses: Tensor, *factors: Tensor | None) -> Tensor:
    """Return losses (B,) times the factors that there are."""
    for factor in factors:
        losses = losses if factor is None else losses * factor.to(losses)
    return losses


def gradients(
    model: nn.Module,
    task: Task,
    data: Data,
    runtime: Runtime,
    params: Sequence[nn.Parameter],
    *,
    order: NDArray[np.int64] | None = None,
    by: Tensor | None = None,
    passes: Passes | None = None,
) -> Iterator[tuple[Batch, Tensor, list[Tensor | None]]]:
    """Yield Σ_i b_i·w_i·∇ℓ_i over each batch: the one loop behind all sums of gradients.

    Args:
        model: in eval mode, on its device.
        task: per-sample loss.
        data: labelled samples, with their weights w_i.
        runtime: batch size and precision of the forward pass.
        params: whose gradients.
        order: positions in the data; all by default.
        by: factors b_i, (N,); ones by default.
        passes: to share what is known of memory.

    Yields:
        The batch as it was read, the losses ℓ_i of its samples (B,), and a dense tensor for each parameter, in its
        dtype, or None for zeros.
    """
    device = params[0].device

    def work(batch: Batch) -> tuple[Batch, Tensor, list[Tensor | None]]:
        here = batch.to(device)
        with torch.enable_grad(), runtime.autocast():
            losses = labelled(model, task, here)[1]
            total = _times(losses, here.weight, None if by is None else by[batch.index]).sum()
        if not total.requires_grad:
            return batch, losses, [None] * len(params)
        found = torch.autograd.grad(total, params, allow_unused=True)
        return batch, losses.detach(), [None if g is None else plain(g) for g in found]

    yield from (passes or Passes(runtime)).over(data, work, order)


def gradient(
    space: Space,
    task: Task,
    data: Data,
    runtime: Runtime,
    *,
    by: Tensor | None = None,
    passes: Passes | None = None,
    advance: Advance = lambda n: None,
) -> Tensor:
    """Return Σ_i b_i·w_i·∇ℓ_i over the samples, (p,).

    Args:
        space: the model, in eval mode, and its parameters.
        task: per-sample loss.
        data: labelled samples, with their weights w_i.
        runtime: device and batch size; always in full precision.
        by: factors b_i, (N,); ones by default.
        passes: to share what is known of memory.
        advance: called with the samples of each batch.

    Raises:
        UserError: no labels, train mode, or memory too short for one sample.
        NotFinite: the sum is NaN or infinite.
    """
    check_model(space.model)
    total, runtime = space.zeros(), replace(runtime, precision="full")
    with space.alone() as params:
        for batch, _, grads in gradients(space.model, task, data, runtime, params, by=by, passes=passes):
            space.add_to(total, grads)
            advance(len(batch))
    check_vector(total, f"gradients over {data.name}")
    return total


def directional(
    space: Space, task: Task, data: Data, runtime: Runtime, vector: Tensor, *, advance: Advance = lambda n: None
) -> Tensor:
    """Return w_i·∇ℓ_i·v for each sample, (N,) float64: all of them from one pass, no gradient of a sample being formed.

    Args:
        space: the model, in eval mode, and its parameters.
        task: per-sample loss.
        data: labelled samples.
        runtime: device and batch size.
        vector: v, (p,).
        advance: called with the samples of each batch.
    """
    check_model(space.model)
    parts, found = space.parts(vector), list[Tensor]()

    def work(batch: Batch) -> Tensor:
        losses = weighted(space.model, task, batch.to(space.device))[1]
        return _along(losses, params, parts, keep=False).double()

    with space.alone() as params:
        for values in Passes(runtime).over(data, work):
            found.append(values)
            advance(len(values))
    return torch.cat(found)


def _along(values: Tensor, params: Sequence[Tensor], parts: Sequence[Tensor], *, keep: bool) -> Tensor:
    """Return Jv, the derivative of values along a direction, by differentiating Jᵀu by u; ``keep`` their graph."""
    if not values.requires_grad:
        return torch.zeros_like(values)
    u = torch.zeros_like(values, requires_grad=True)
    back = torch.autograd.grad(values, params, u, create_graph=True, allow_unused=True)
    dot = _dot(back, parts)
    if dot is None:
        return torch.zeros_like(values)
    return torch.autograd.grad(dot, u, retain_graph=keep)[0]


def _dot(tensors: Sequence[Tensor | None], parts: Sequence[Tensor]) -> Tensor | None:
    """Return Σ ⟨t, v⟩ over the tensors that anything can be differentiated through; None where there is none."""
    terms = [(plain(t) * v).sum() for t, v in zip(tensors, parts, strict=True) if t is not None and t.requires_grad]
    return torch.stack(terms).sum() if terms else None


def check_vector(vector: Tensor, what: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        NotFinite: says of what.
    """
    if not bool(torch.isfinite(vector).all()):
        raise NotFinite(f"finite {what}", "NaN or infinity", "check data and weights")


class Operator(Protocol):
    """A symmetric matrix C that is known by its products."""

    @property
    def size(self) -> int:
        """The number p of scalars."""

    def products(self, columns: Tensor) -> Tensor:
        """Return C·v of each row v of (k, p), as rows."""
        ...


class Matrix:
    """A symmetric matrix in memory.

    Args:
        values: C, (p, p).
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @property
    def size(self) -> int:
        """The number p of scalars."""
        return len(self.values)

    def products(self, columns: Tensor) -> Tensor:
        """Return C·v of each row."""
        return columns @ self.values


class Curvature:
    """C = s·Σ_i w_i·C_i over the samples, known by its products with vectors.

    ``hessian``: C_i = ∇²ℓ_i. ``gauss_newton``: C_i = J_iᵀ·(∂²ℓ_i/∂f²)·J_i, J_i = ∂f/∂θ of the outputs f, which is
    the Hessian without the network's own curvature: equal to it where f is linear in θ, and never indefinite where the
    loss is convex in f. ``fisher``: w_i·C_i = g_i·g_iᵀ, g_i = w_i·∇ℓ_i, the empirical Fisher information.

    Args:
        space: the model, in eval mode, and its parameters.
        task: per-sample loss.
        sets: labelled samples, all together.
        runtime: device and batch size.
        kind: which of the three.
        scale: s; 1 / (number of samples) gives the mean.
        free: (p,) bool, where given the only weights that may move: rows and columns of the others are 0.
        advance: called with the samples of each batch.
    """

    def __init__(
        self,
        space: Space,
        task: Task,
        sets: Sequence[Data],
        runtime: Runtime,
        *,
        kind: Kind = "hessian",
        scale: float = 1.0,
        free: Tensor | None = None,
        advance: Advance = lambda n: None,
    ) -> None:
        if kind not in KINDS:
            raise UserError("a known curvature", repr(kind), suggest(kind, KINDS))
        check_model(space.model)
        self.space, self.task, self.sets, self.runtime = space, task, sets, runtime
        self.kind, self.scale, self.free, self.advance = kind, scale, free, advance
        self._passes, self._curved = Passes(runtime), False

    @property
    def size(self) -> int:
        """The number p of scalars."""
        return self.space.size

    @property
    def count(self) -> int:
        """Samples."""
        return sum(map(len, self.sets))

    def products(self, columns: Tensor) -> Tensor:
        """Return C·v of each row v of (k, p), from one pass over the samples."""
        return self._over(columns, [np.arange(len(data)) for data in self.sets], self.scale)

    def estimate(self, vector: Tensor, at: NDArray[np.int64]) -> Tensor:
        """Return C·v as some of the samples have it, their sum scaled up to all.

        Args:
            vector: v, (p,).
            at: positions of the samples, counted over all sets.
        """
        starts = np.cumsum([0, *map(len, self.sets)])
        orders = [at[(at >= a) & (at < b)] - a for a, b in zip(starts[:-1], starts[1:], strict=True)]
        return self._over(vector[None], orders, self.scale * self.count / len(at))[0]

    def _over(self, columns: Tensor, orders: Sequence[NDArray[np.int64]], scale: float) -> Tensor:
        if self.free is not None:
            columns = columns * self.free
        split = [self.space.parts(column) for column in columns]
        total = torch.zeros_like(columns, dtype=torch.float64)
        one = {"hessian": self._hessian, "gauss_newton": self._gauss_newton, "fisher": self._fisher}[self.kind]

        def work(batch: Batch) -> tuple[int, list[Sequence[Tensor | None]]]:
            return len(batch), one(batch.to(self.space.device), params, split)

        with self.space.alone() as params:
            for data, order in zip(self.sets, orders, strict=True):
                for count, found in self._passes.over(data, work, order):
                    for row, grads in zip(total, found, strict=True):
                        self.space.add_to(row, grads, scale)
                    self.advance(count)
        check_vector(total, f"products with the {self.kind} curvature")
        return total if self.free is None else total * self.free

    def _hessian(
        self, batch: Batch, params: Sequence[Tensor], split: Sequence[Sequence[Tensor]]
    ) -> list[Sequence[Tensor | None]]:
        losses = weighted(self.space.model, self.task, batch)[1]
        nothing: Sequence[Tensor | None] = [None] * len(params)
        if not losses.requires_grad:
            return [nothing] * len(split)
        grads = torch.autograd.grad(losses.sum(), params, create_graph=True, allow_unused=True)
        found = []
        for parts in split:
            dot = _dot(grads, parts)
            more = parts is not split[-1]
            found.append(
                nothing if dot is None else torch.autograd.grad(dot, params, retain_graph=more, allow_unused=True)
            )
        return found

    def _gauss_newton(
        self, batch: Batch, params: Sequence[Tensor], split: Sequence[Sequence[Tensor]]
    ) -> list[Sequence[Tensor | None]]:
        outputs, _ = self.task.forward(self.space.model, batch)
        at = outputs.detach().requires_grad_()
        assert batch.target is not None
        losses = _times(self.task.loss(at, batch.target), batch.weight)
        (slope,) = torch.autograd.grad(losses.sum(), at, create_graph=True)
        if not self._curved:
            self._check_curved(at, batch.target)

        def curved(along: Tensor) -> Tensor:
            return torch.autograd.grad(slope, at, along, retain_graph=True)[0]

        return self._between(outputs, params, split, curved)

    def _check_curved(self, outputs: Tensor, target: Tensor) -> None:
        """Refuse a loss that is linear in the outputs, looked at where no loss of ours is flat: at outputs of 0."""
        at = torch.zeros_like(outputs[:1]).requires_grad_()
        (slope,) = torch.autograd.grad(self.task.loss(at, target[:1]).sum(), at, create_graph=True)
        along = torch.arange(1.0, at.numel() + 1, device=at.device).to(at).cos().reshape(at.shape)
        found = torch.autograd.grad(slope, at, along)[0] if slope.requires_grad else torch.zeros_like(at)
        if not bool(found.any()):
            want = f"a loss that is curved in the outputs, for Gauss-Newton products of {type(self.task).__name__}"
            raise UserError(want, "one that is linear in them", "take the curvature 'fisher', or a squared error")
        self._curved = True

    def _fisher(
        self, batch: Batch, params: Sequence[Tensor], split: Sequence[Sequence[Tensor]]
    ) -> list[Sequence[Tensor | None]]:
        return self._between(weighted(self.space.model, self.task, batch)[1], params, split, lambda along: along)

    def _between(
        self,
        values: Tensor,
        params: Sequence[Tensor],
        split: Sequence[Sequence[Tensor]],
        inner: Callable[[Tensor], Tensor],
    ) -> list[Sequence[Tensor | None]]:
        """Return Jᵀ·inner(J·v), J the derivative of values by the parameters."""
        nothing: Sequence[Tensor | None] = [None] * len(params)
        found: list[Sequence[Tensor | None]] = []
        for parts in split:
            if not values.requires_grad:
                found.append(nothing)
                continue
            along = inner(_along(values, params, parts, keep=True))
            more = parts is not split[-1]
            found.append(torch.autograd.grad(values, params, along, retain_graph=more, allow_unused=True))
        return found
