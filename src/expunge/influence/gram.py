"""Per-sample gradients G (N, p) of a network that is too large for all of them at once: Gv, Gᵀa and G·D·Gᵀ.

Gv takes one pass, Gᵀa one, and neither forms the gradient of any sample. G·D·Gᵀ is a sum over parameters, so it is
taken a few parameters at a time: their gradients are held for all samples in the factors that the layer rules of
`expunge.fisher` give (inputs and outputs' gradients of a layer, where those are smaller), and multiplied in tiles.
Parameters of which even one does not fit are taken by blocks of samples, recomputed for each pair of blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.data import Batch, Data
from expunge.errors import UserError
from expunge.fisher import batched, layers, reference
from expunge.fisher.checks import check_model
from expunge.fisher.engine import Chosen
from expunge.fisher.kernels import CHUNK, Budget, Dense, Gradient, Outer, Part, Patches, Rows, slices
from expunge.fisher.layers import Served, Unruled
from expunge.fisher.quantities import ready
from expunge.fisher.sums import Sums
from expunge.influence.products import Advance, check_vector, directional, gradient
from expunge.influence.space import Space
from expunge.passes import Passes
from expunge.runtime import Runtime
from expunge.task import Task

ROOM = 3 * 2**28  # bytes at most of held gradients and tiles; vectors and activations come to it
TILE = 2**27  # bytes at most of one tile of products


class Gradients(Protocol):
    """Gradients of N samples, known by their products."""

    @property
    def size(self) -> int:
        """The number p of scalars."""

    def __len__(self) -> int:
        """Return N."""

    def apply(self, vector: Tensor) -> Tensor:
        """Return Gv, (N,)."""
        ...

    def combine(self, by: Tensor) -> Tensor:
        """Return Gᵀa, (p,)."""
        ...

    def gram(self, by: Tensor) -> Tensor:
        """Return G·diag(d)·Gᵀ, (N, N), d of (p,)."""
        ...


class Listed:
    """Gradients in memory.

    Args:
        values: G, (N, p).
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @property
    def size(self) -> int:
        """The number p of scalars."""
        return self.values.shape[1]

    def __len__(self) -> int:
        return len(self.values)

    def apply(self, vector: Tensor) -> Tensor:
        """Return Gv."""
        return self.values @ vector

    def combine(self, by: Tensor) -> Tensor:
        """Return Gᵀa."""
        return by @ self.values

    def gram(self, by: Tensor) -> Tensor:
        """Return G·diag(d)·Gᵀ."""
        return (self.values * by) @ self.values.T


class OfModel:
    """Gradients g_i = w_i·∇ℓ_i of samples by a network's parameters.

    Args:
        space: the model, in eval mode, and its parameters.
        task: per-sample loss.
        data: labelled samples.
        runtime: device, batch size and memory; always in full precision.
        room: bytes that gradients may take at once in `gram`; by default what the runtime allows, at most 768 MiB.
        advance: called with the samples of each batch.
    """

    def __init__(
        self,
        space: Space,
        task: Task,
        data: Data,
        runtime: Runtime,
        *,
        room: int | None = None,
        advance: Advance = lambda n: None,
    ) -> None:
        check_model(space.model)
        self.space, self.task, self.data, self.advance = space, task, data, advance
        self.runtime = replace(runtime, precision="full")
        self.room = min(ROOM, runtime.budget()) if room is None else room

    @property
    def size(self) -> int:
        """The number p of scalars."""
        return self.space.size

    def __len__(self) -> int:
        return len(self.data)

    def apply(self, vector: Tensor) -> Tensor:
        """Return Gv, (N,)."""
        return directional(self.space, self.task, self.data, self.runtime, vector, advance=self.advance)

    def combine(self, by: Tensor) -> Tensor:
        """Return Gᵀa, (p,)."""
        return gradient(self.space, self.task, self.data, self.runtime, by=by, advance=self.advance)

    def gram(self, by: Tensor) -> Tensor:
        """Return G·diag(d)·Gᵀ, (N, N) float64 on the CPU, for a d that is constant over each parameter.

        Raises:
            UserError: d varies within a parameter.
        """
        scales = {name: by[at] for name, at in self.space.slices.items()}
        for name, values in scales.items():
            if bool((values != values[0]).any()):
                remedy = "take the solver cg, which any damping and any mask suits"
                raise UserError("one damping for all weights of a parameter", f"several in {name}", remedy)
        with torch.enable_grad():
            found = _Gram(self, {name: float(values[0]) for name, values in scales.items()}).total()
        check_vector(found, f"products of the gradients of {self.data.name}")
        return found


class _Held(Sums):
    """What the engine's sums are to the Fisher diagonal: takes gradients in factors, and keeps them as they are."""

    def __init__(self, params: Mapping[str, Tensor]) -> None:
        super().__init__(params)
        self.found: Found = {}

    def receive(self, name: str, gradient: Gradient, power: int, budget: Budget) -> None:
        """Keep them, in whichever form is the smaller; those of some rows of a parameter apart from the other rows'."""
        start, inner = (gradient.start, gradient.inner) if isinstance(gradient, Part) else (0, gradient)
        self.found[name, start] = _smallest(inner)


Found = dict[tuple[str, int], Gradient]  # of a batch, by parameter and the first of the rows that they are of
Pieces = list[tuple[int, Found]]  # batch by batch, with the samples of each


class _Gram:
    """Sums over parameters the products of samples' gradients.

    Args:
        of: the gradients.
        scales: d of each parameter.
    """

    def __init__(self, of: OfModel, scales: Mapping[str, float]) -> None:
        self.of, self.scales, self.passes = of, scales, Passes(of.runtime)
        space = of.space
        self.chosen = Chosen(space.model, of.task, of.data, space.params, "loss", "auto", of.runtime, 0)

    def total(self) -> Tensor:
        """Return the whole sum, (N, N)."""
        n = len(self.of.data)
        total = torch.zeros(n, n, dtype=torch.float64)
        for names, most in self._groups():
            for start in range(0, n, most):
                block = np.arange(start, min(start + most, n))
                held, at = self._held(names, block), slice(start, start + len(block))
                self._add(total, names, held, at, held, at)
                for first in range(at.stop, n, most):
                    later = np.arange(first, min(first + most, n))
                    self._add(total, names, held, at, self._held(names, later), slice(first, first + len(later)))
        return total.triu() + total.triu(1).T

    def _groups(self) -> list[tuple[set[str], int]]:
        """Return which parameters are taken together, and how many samples of them are held at once."""
        probe = self._gradients({*self.of.space.params}, self._ready(self.of.data.read(range(min(2, len(self.of))))))
        cost = dict.fromkeys(self.of.space.params, 0)
        for (name, _), g in probe.items():
            cost[name] += -(-_bytes(g) // len(g))
        room = max(1, self.of.room - min(TILE, self.of.room // 4))
        found: list[tuple[set[str], int]] = []
        names, each = set[str](), 0
        for name, bytes_each in cost.items():
            if bytes_each * len(self.of) > room:
                found.append(({name}, max(1, room // (2 * bytes_each))))
                continue
            if (each + bytes_each) * len(self.of) > room:
                found.append((names, len(self.of)))
                names, each = set(), 0
            names, each = {*names, name}, each + bytes_each
        return [*found, (names, len(self.of))] if names else found

    def _held(self, names: set[str], order: NDArray[np.int64]) -> Pieces:
        """Return the gradients of these samples, batch by batch."""
        return list(self.passes.over(self.of.data, lambda batch: self._work(names, batch), order))

    def _work(self, names: set[str], batch: Batch) -> tuple[int, Found]:
        found = self._gradients(names, self._ready(batch))
        self.of.advance(len(batch))
        return len(batch), found

    def _ready(self, batch: Batch) -> Batch:
        of = self.of
        return ready("loss", of.space.model, of.task, of.data, batch, of.runtime, 0)

    def _gradients(self, names: set[str], batch: Batch) -> Found:
        """Return each sample's gradients by some of the parameters, from the engines chosen for them."""
        c, params = self.chosen, self.of.space.params
        found, slow = Found(), {n for n in c.reference if n in names}
        ruled = c.served.known() & names
        if ruled:
            held = _Held({n: params[n] for n in ruled})
            try:
                some = _only(c.served, ruled)
                layers.accumulate(c.model, c.task, batch, "loss", c.runtime, some, held, watch=False)
                found |= held.found
            except Unruled:  # the model took another way on this batch
                slow |= ruled
        traced = {n: params[n] for n in c.batched if n in names}
        if traced:
            parts = [g for _, g in batched.rows(c.model, c.task, batch, traced, "loss", c.runtime)]
            found |= {(n, 0): Dense(torch.cat([part[n] for part in parts])) for n in traced}
        if slow:
            found |= self._slowly(slow, batch)
        return found

    def _slowly(self, names: set[str], batch: Batch) -> Found:
        c, params = self.chosen, {n: self.of.space.params[n] for n in names}
        rows = {n: p.new_zeros(len(batch), *p.shape) for n, p in params.items()}
        for row, _, grads in reference.rows(c.model, c.task, batch, params, "loss", c.runtime):
            for name, grad in grads:
                rows[name][row] = grad
        return {(name, 0): Dense(values) for name, values in rows.items()}

    def _add(self, total: Tensor, names: set[str], left: Pieces, rows: slice, right: Pieces, columns: slice) -> None:
        """Add the products of two blocks of samples' gradients by some parameters, in place."""
        tile = min(TILE, max(1, self.of.room // 4))
        for name in names:
            one, two = self._matched(name, left, right)
            for start, pieces in one.items():
                found = products(pieces, None if left is right else two[start], tile)
                total[rows, columns] += self.scales[name] * found.cpu()

    def _matched(
        self, name: str, left: Pieces, right: Pieces
    ) -> tuple[dict[int, list[Gradient]], dict[int, list[Gradient]]]:
        """Return the gradients of a parameter by the rows that they are of; of all where batches differ in it."""
        forms = {
            tuple((start, g.shape) for (n, start), g in sorted(found.items(), key=lambda item: item[0]) if n == name)
            for _, found in (*left, *right)
        }
        if len(forms) == 1:
            (form,) = forms
            one, two = ({at: [found[name, at] for _, found in some] for at, _ in form} for some in (left, right))
            return one, two
        one, two = ({0: [self._whole(name, n, found) for n, found in some]} for some in (left, right))
        return one, two

    def _whole(self, name: str, count: int, found: Found) -> Gradient:
        p = self.of.space.params[name]
        values = p.new_zeros(count, *p.shape)
        for (other, start), part in found.items():
            if other == name:
                each = part.each(slice(0, count))
                place = values[:, start : start + each.shape[1]] if p.dim() else values
                place += each
        return Dense(values)


def _only(served: Served, names: set[str]) -> Served:
    """Return what rules serve of some parameters."""
    own = {key: name for key, name in served.names.items() if name in names}
    modules = {n: m for n, m in served.modules.items() if any(id(p) in own for p in served.own(m).values())}
    return replace(served, names=own, modules=modules, bare={n: b for n, b in served.bare.items() if n in names})


def _bytes(gradient: Gradient) -> int:
    return sum(t.numel() * t.element_size() for t in _tensors(gradient))


def _tensors(gradient: Gradient) -> list[Tensor]:
    return [t for t in vars(gradient).values() if isinstance(t, Tensor)]


def _smallest(gradient: Gradient) -> Gradient:
    """Return per-sample gradients in factors where these are smaller, and else as they are."""
    kept = isinstance(gradient, Outer | Rows) or (isinstance(gradient, Patches) and gradient.groups == 1)
    size = len(gradient) * int(np.prod(gradient.shape))
    if kept and sum(t.numel() for t in _tensors(gradient)) < size:
        return gradient
    step = max(1, len(gradient) * CHUNK // max(1, 4 * size))
    return Dense(torch.cat([gradient.each(at) for at in slices(len(gradient), step)]))


def products(left: Sequence[Gradient], right: Sequence[Gradient] | None, tile: int) -> Tensor:
    """Return ⟨g_i, h_j⟩ of samples' gradients by one parameter, (N, M) float64; no more than a tile is formed at once.

    Args:
        left: of N samples, in pieces.
        right: of M samples, in pieces; None for the same ones.
        tile: bytes of gradients that are formed at once, of N + M samples.
    """
    left, right = _alike(left, right)
    others = left if right is None else right
    n, m = sum(map(len, left)), sum(map(len, others))
    first = _tensors(left[0])[-1]
    found = torch.zeros(n, m, dtype=torch.float64, device=first.device)
    if all(isinstance(g, Outer) and g.left.shape[1] == 1 for g in (*left, *others)):  # ⟨abᵀ, cdᵀ⟩ = ⟨a, c⟩·⟨b, d⟩
        return _by_sides(left, others, found)
    lead, *rest = left[0].shape or (1,)
    held = n if right is None else n + m
    for at in slices(lead, max(1, tile // (held * int(np.prod(rest)) * first.element_size()))):
        a = torch.cat([_formed(g, at) for g in left])
        b = a if right is None else torch.cat([_formed(g, at) for g in right])
        found += a @ b.T
    return found


def _by_sides(left: Sequence[Gradient], right: Sequence[Gradient], total: Tensor) -> Tensor:
    """Return the products of outer products of one vector with one, from the products of those."""
    total += 1
    for side in ("left", "right"):
        a, b = (torch.cat([getattr(g, side)[:, 0] for g in some]) for some in (left, right))
        total *= a @ b.T
    return total


def _formed(gradient: Gradient, at: slice) -> Tensor:
    """Return some leading rows of each sample's gradient, one vector a sample: (B, ...)."""
    if isinstance(gradient, Outer):
        return torch.bmm(gradient.left[:, :, at].transpose(1, 2), gradient.right).flatten(1)
    if isinstance(gradient, Patches):
        places = int(np.prod(gradient.left.shape[2:]))
        patches = int(np.prod(gradient.shape[1:])) * places * gradient.times * gradient.right.element_size()
        few = Patches(gradient.left[:, at], gradient.right, gradient.window, times=gradient.times)
        return torch.cat([few.each(some).flatten(1) for some in slices(len(few), max(1, CHUNK // patches))])
    if isinstance(gradient, Rows):
        inside = (gradient.index >= at.start) & (gradient.index < at.stop)
        index = (gradient.index - at.start).where(inside, 0)
        some = Rows(index, gradient.values * inside.unsqueeze(2), at.stop - at.start)
        return some.each(slice(0, len(some))).flatten(1)
    assert isinstance(gradient, Dense)
    return gradient.values.reshape(len(gradient), *(gradient.shape or (1,)))[:, at].flatten(1)


def _alike(
    left: Sequence[Gradient], right: Sequence[Gradient] | None
) -> tuple[Sequence[Gradient], Sequence[Gradient] | None]:
    """Return gradients of a table by those of its rows that some sample reads, counted anew; others as they are."""
    every = (*left, *(right or ()))
    tables = [g for g in every if isinstance(g, Rows)]
    if len(tables) == len(every):
        used = torch.unique(torch.cat([g.index.reshape(-1) for g in tables]))
        return [_counted(g, used) for g in left], None if right is None else [_counted(g, used) for g in right]
    if tables:  # some batches took another way, and gave whole tables
        wide = [Dense(g.each(slice(0, len(g)))) if isinstance(g, Rows) else g for g in every]
        return wide[: len(left)], None if right is None else wide[len(left) :]
    return left, right


def _counted(gradient: Gradient, used: Tensor) -> Rows:
    assert isinstance(gradient, Rows)
    values = gradient.values
    if gradient.padding is not None:
        values = values * (gradient.index != gradient.padding).unsqueeze(2)
    return Rows(torch.searchsorted(used, gradient.index), values, len(used))


def rows_of(model: nn.Module, task: Task, data: Data, runtime: Runtime, names: Sequence[str] | None = None) -> Listed:
    """Return all per-sample gradients in memory, (N, p) float64: for small heads, and to hold `OfModel` to.

    Args:
        model: in eval mode.
        task: per-sample loss.
        data: labelled samples.
        runtime: device.
        names: of the parameters; all by default.
    """
    space = Space(model, names)
    rows = [gradient(space, task, data, runtime, by=unit) for unit in torch.eye(len(data), device=space.device)]
    return Listed(torch.stack(rows))
