"""Gradient sums and curvature-vector products over data: nothing of the size p×p, nothing random, no augmentation.

All are sums over samples of a term of each, times its weight, so they depend on batch size by rounding alone. Vectors
are float64 and have one entry for each of the p chosen scalars; backward passes run in the weights' own dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.data import Batch, Data
from expunge.errors import NotFinite, UserError, listing, suggest
from expunge.fisher.checks import check_model, chosen, plain
from expunge.fisher.quantities import unfused
from expunge.fisher.uses import watching
from expunge.passes import Passes
from expunge.runtime import Runtime
from expunge.task import Task
from expunge.tensors import parameters
from expunge.train import outputs_and_losses

Kind = Literal["hessian", "gauss_newton", "fisher"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Advance = Callable[[int], None]


class Space:
    """Some of a network's trainable parameters as one vector θ of p scalars, float64.

    Args:
        model: on its device; in eval mode where anything is computed with it.
        names: of the parameters; all trainable ones by default. A tied parameter stands there once.

    Raises:
        UserError: an unknown or frozen name, weights of less than float32, or gradients that depend on the batch.
    """

    def __init__(self, model: nn.Module, names: Sequence[str] | None = None) -> None:
        self.model, self.params = model, chosen(model, names)
        narrow = [name for name, p in self.params.items() if p.dtype not in (torch.float32, torch.float64)]
        if narrow:
            got = f"{self.params[narrow[0]].dtype} in {listing(narrow)}"
            raise UserError("weights of float32 or float64, for curvature", got, "call float() on the model")
        odd = [n for n, m in model.named_modules() if getattr(m, "scale_grad_by_freq", False)]
        if odd:
            got = f"some scaled by frequencies in a batch, of {listing(odd)}"
            raise UserError("gradients that are sums over samples", got, "set scale_grad_by_freq=False there")
        self.device = next(iter(self.params.values())).device
        self.slices, self.size = dict[str, slice](), 0
        for name, p in self.params.items():
            self.slices[name] = slice(self.size, self.size + p.numel())
            self.size += p.numel()

    def zeros(self) -> Tensor:
        """Return a vector of zeros, (p,)."""
        return torch.zeros(self.size, dtype=torch.float64, device=self.device)

    def filled(self, values: Mapping[str, Tensor | float]) -> Tensor:
        """Return the vector with these values where their parameters stand, and 0 elsewhere."""
        found = self.zeros()
        for name, value in values.items():
            at = self.slices[name]
            found[at] = value.detach().reshape(-1).to(found) if isinstance(value, Tensor) else value
        return found

    def weights(self) -> Tensor:
        """Return θ, (p,)."""
        return self.filled(self.params)

    def parts(self, vector: Tensor) -> list[Tensor]:
        """Return a vector's entries in the parameters' shapes and dtypes."""
        return [vector[at].view(self.params[n].shape).to(self.params[n].dtype) for n, at in self.slices.items()]

    def add_to(self, total: Tensor, grads: Sequence[Tensor | None], scale: float = 1.0) -> None:
        """Add tensors in the parameters' order to a vector, in place; None stands for zeros."""
        for at, grad in zip(self.slices.values(), grads, strict=True):
            if grad is not None:
                total[at].add_(plain(grad).reshape(-1), alpha=scale)

    def put(self, vector: Tensor) -> None:
        """Set θ to a vector, in place, each weight rounded once; no other weight is touched."""
        with torch.no_grad():
            for name, at in self.slices.items():
                self.params[name].copy_(vector[at].view(self.params[name].shape))

    @contextmanager
    def alone(self) -> Iterator[list[nn.Parameter]]:
        """Freeze all other parameters in the block, and let everything in it be differentiated twice.

        Fused attention and fused recurrent layers have no second derivative: their plain forms run.

        Yields:
            The parameters, in order.
        """
        own = {id(p) for p in self.params.values()}
        others = [p for p in self.model.parameters() if p.requires_grad and id(p) not in own]
        recurrent = any(isinstance(m, nn.RNNBase) for m in self.model.modules())
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(unfused())
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if recurrent:
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            try:
                for p in others:
                    p.requires_grad_(False)
                yield list(self.params.values())
            finally:
                for p in others:
                    p.requires_grad_(True)


def named(model: nn.Module, layers: str | Sequence[str], task: Task, batch: Batch) -> list[str]:
    """Return the names of the trainable parameters of some layers.

    Args:
        model: in eval mode.
        layers: ``all``; ``last``, the layer with trainable weights that is called last; or names of modules, each
            with all that is in it.
        task: how to run it, for ``last``.
        batch: some samples, for ``last``.

    Raises:
        UserError: an unknown layer, or one without trainable weights; lists those that have some.
    """
    known = parameters(model)
    if layers == "all":
        return list(known)
    if layers == "last":
        layers = [_last(model, task, batch)]
    wanted = [layers] if isinstance(layers, str) else list(layers)
    owners = dict.fromkeys(name.rpartition(".")[0] for name in known)
    every = [name for name, m in model.named_modules() if any(p.requires_grad for p in m.parameters())]
    for layer in wanted:
        if layer not in every or not layer:
            tail = suggest(layer, [n for n in owners if n]) if layer else "name a layer"
            have = listing([n for n in owners if n], 12) or "none, all weights being the model's own"
            raise UserError(f"'all', 'last' or layers with trainable weights, of {have}", repr(layer), tail)
    found = [n for n in known if any(n.startswith(f"{layer}.") for layer in wanted)]
    if not found:  # their weights are tied to those of an earlier layer, under whose name they stand
        remedy = "name the layer that they are tied to"
        raise UserError("layers with weights of their own", f"tied ones in {listing(wanted)}", remedy)
    return found


def _last(model: nn.Module, task: Task, batch: Batch) -> str:
    """Return the name of the module with trainable parameters of its own that a forward pass calls last."""
    names: dict[int, str] = {id(m): name for name, m in model.named_modules()}
    own = {id(m) for m in model.modules() if any(p.requires_grad for p in m.parameters(recurse=False))}
    with torch.no_grad(), watching(model) as seen:
        task.forward(model, batch)
    called = [key for key in seen.rows if key in own]
    if not called or not names[called[-1]]:
        raise UserError("a last layer with trainable weights", "none that is called", "name layers, or take all")
    return names[called[-1]]


def weighted(model: nn.Module, task: Task, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return outputs (B, ...) and losses (B,), each times its sample's weight.

    Raises:
        UserError: there are no targets, or they do not fit.
    """
    if batch.target is None:
        raise UserError("labelled samples", "none with labels", "give targets when building the data")
    outputs, losses = outputs_and_losses(model, task, batch)
    return outputs, losses if batch.weight is None else losses * batch.weight.to(losses)


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
        runtime: device and batch size.
        by: factors b_i, (N,); ones by default.
        passes: to share what is known of memory.
        advance: called with the samples of each batch.

    Raises:
        UserError: no labels, train mode, or memory too short for one sample.
        NotFinite: the sum is NaN or infinite.
    """
    check_model(space.model)
    total = space.zeros()

    def work(batch: Batch) -> tuple[int, Sequence[Tensor | None]]:
        batch = batch.to(space.device)
        losses = weighted(space.model, task, batch)[1]
        if by is not None:
            losses = losses * by[batch.index].to(losses)
        if not losses.requires_grad:
            return len(batch), [None] * len(params)
        return len(batch), torch.autograd.grad(losses.sum(), params, allow_unused=True)

    with space.alone() as params:
        for count, grads in (passes or Passes(runtime)).over(data, work):
            space.add_to(total, grads)
            advance(count)
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
        losses = self.task.loss(at, batch.target)
        losses = losses if batch.weight is None else losses * batch.weight.to(losses)
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
