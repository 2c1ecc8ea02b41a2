"""A network's trainable weights as one vector, so that elementwise rules are a few calls, whatever the layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from expunge.errors import UserError
from expunge.masks import Masks
from expunge.seeds import seed as named_seed
from expunge.tensors import parameters

ALIGNED = 16  # scalars: every parameter begins at a multiple, as vector instructions like it
PIECE = {"cpu": 1 << 16, "cuda": 1 << 24}  # scalars worked on at once: a few of them fit into a core's cache


class Flat:
    """The trainable parameters of a private copy, moved into one vector, and their gradients in another.

    The parameters become views of ``weights`` and their ``grad`` views of ``grads``, so a rule on the vectors is a rule
    on the network, and backward passes add to ``grads``. A tied parameter stands there once. A network of less than
    float32 is worked on in float32, and so are its inputs. Between two parameters there may be a few scalars that
    belong to none; their gradients are zero. ``moving`` is the number of weights that may move.

    Args:
        model: a private copy on its device; edited in place until `released`.
        masks: which weights may move; the others are neither moved nor disturbed.

    Raises:
        UserError: no trainable parameters, or on more than one device, or of more than one dtype.
    """

    def __init__(self, model: nn.Module, masks: Masks | None = None) -> None:
        self.model = model
        self._dtypes = {n: t.dtype for n, t in [*model.named_parameters(), *model.named_buffers()]}
        self._hooks = [model.register_forward_pre_hook(_widened, with_kwargs=True)] if self._narrow else []
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.data = _wide(tensor.data)
        self.params = parameters(model)
        places = {p.device for p in self.params.values()}
        if len(places) != 1:
            got = "none" if not places else f"some on {len(places)} devices"
            raise UserError("trainable weights on one device", got, "unfreeze some, or place the model on one device")
        kinds = {p.dtype for p in self.params.values()}
        if len(kinds) != 1:
            remedy = "call float() or double() on the model"
            raise UserError("trainable weights of one dtype", "some of float32 and some of float64", remedy)
        self.dtype = kinds.pop()
        self.device = places.pop()
        self.piece = PIECE.get(self.device.type, PIECE["cuda"])
        self.slices, end = dict[str, slice](), 0
        for name, p in self.params.items():
            self.slices[name] = slice(end, end + p.numel())
            end += -(-p.numel() // ALIGNED) * ALIGNED
        self.length, self.count = end, sum(p.numel() for p in self.params.values())
        self.weights, self.grads = self.vector(), self.vector()
        self._strides = {n: p.stride() for n, p in self.params.items()}
        self._move()
        self.free = self._free(masks)
        self.moving = self.count if self.free is None else len(self.scalars(self.free))

    @property
    def _narrow(self) -> bool:
        """Whether the network has parameters or buffers of less than float32."""
        return any(dtype.is_floating_point and dtype.itemsize < 4 for dtype in self._dtypes.values())

    def vector(self, value: float = 0.0) -> Tensor:
        """Return a new vector of one value, (length,)."""
        return torch.full((self.length,), value, dtype=self.dtype, device=self.device)

    def _move(self) -> None:
        for name, p in self.params.items():
            place = self.weights[self.slices[name]].view(p.shape)
            place.copy_(p.detach())
            p.data = place
            p.grad = self.grads[self.slices[name]].view(p.shape)

    def _free(self, masks: Masks | None) -> Tensor | None:
        """Return where the weights may move, (length,) bool, or None for everywhere."""
        if masks is None:
            return None
        masks.check(self.model)
        free = torch.ones(self.length, dtype=torch.bool, device=self.device)
        for name, place in self.slices.items():
            if name in masks.kept:
                free[place] = masks.kept[name].to(self.device).flatten()
        return free

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """Return views of a vector in the parameters' shapes, by name."""
        return {name: vector[place].view(self.params[name].shape) for name, place in self.slices.items()}

    def scalars(self, vector: Tensor, most: int | None = None) -> Tensor:
        """Return a vector's entries for the weights that may move, one after another.

        Args:
            vector: (length,).
            most: where there are more weights than this, every k-th of each parameter, k without a common divisor with
                the sizes of kernels and layers that are usual.
        """
        step = 1 if most is None else -(-self.count // most)
        while step > 1 and math.gcd(step, 2 * 3 * 5 * 7) > 1:
            step += 1
        kept = [vector[place][::step] for place in self.slices.values()]
        found = torch.cat(kept)
        if self.free is None:
            return found
        return found[torch.cat([self.free[place][::step] for place in self.slices.values()])]

    def filled(self, values: Mapping[str, Tensor], rest: float) -> Tensor:
        """Return a vector with a tensor's values where its parameter stands, and ``rest`` elsewhere."""
        found = self.vector(rest)
        for name, view in self.named(found).items():
            view.copy_(values[name])
        return found

    def pieces(self, *vectors: Tensor | None, noise: int | None = None) -> Iterator[tuple[Any, ...]]:
        """Yield parts of vectors side by side, small enough that what is computed on them stays in the cache.

        Args:
            vectors: each (length,); None stands for itself.
            noise: where given, each part begins with standard normal numbers, the same for the same seed.
        """
        draw = None if noise is None else torch.Generator(self.device).manual_seed(noise)
        buffer = (
            None if noise is None else torch.empty(min(self.piece, self.length), dtype=self.dtype, device=self.device)
        )
        for start in range(0, self.length, self.piece):
            at = slice(start, min(start + self.piece, self.length))
            parts = tuple(v if v is None else v[at] for v in vectors)
            if buffer is None:
                yield parts
            else:
                yield (buffer[: at.stop - at.start].normal_(generator=draw), *parts)

    def gradient(self, loss: Callable[[], Tensor]) -> Tensor:
        """Add the gradient of a scalar to ``grads``; return the scalar, detached. Without gradient nothing is added."""
        with torch.enable_grad():
            value = loss()
            if value.requires_grad:
                value.backward()
        return value.detach()

    def released(self) -> nn.Module:
        """Return the model with parameters of its own again, of the dtypes they had, and without gradients."""
        for hook in self._hooks:
            hook.remove()
        for name, p in self.params.items():
            own = torch.empty_strided(p.shape, self._strides[name], dtype=self._dtypes[name], device=self.device)
            p.grad = None
            p.data = own.copy_(p.detach())
        for name, tensor in [*self.model.named_parameters(), *self.model.named_buffers()]:
            if tensor.dtype != self._dtypes[name]:
                tensor.data = tensor.data.to(self._dtypes[name])
        return self.model


def noise_seed(seed: int, *at: int | str) -> int:
    """Return the seed of one draw of noise, from a request's seed and where in it the draw is made."""
    return named_seed("noise", seed, *at)


def _wide(value: Any) -> Any:
    """Return a tensor of less than float32 as float32, and anything else as it is."""
    narrow = isinstance(value, Tensor) and value.is_floating_point() and value.dtype.itemsize < 4
    return value.float() if narrow else value


def _widened(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(_wide(value) for value in args), {name: _wide(value) for name, value in named.items()}


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Run a block in float32 as such: without autocast, without TF32 on CUDA, without bf16 in a CPU's products."""
    backends: Any = torch.backends
    places = [backends.cuda.matmul, *(getattr(backends.cudnn, n, None) for n in ("conv", "rnn"))]
    places += [getattr(backends.mkldnn, n, None) for n in ("matmul", "conv", "rnn")]
    kept = [(place, place.fp32_precision) for place in places if hasattr(place, "fp32_precision")]  # torch 2.9 on
    try:
        before = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("highest")
        backends.cudnn.allow_tf32 = False
    except RuntimeError:  # the newer switches were set, of which the older ones cannot tell
        before = None
        for place, _ in kept:
            place.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if before is not None:
            torch.set_float32_matmul_precision(before[0])
            backends.cudnn.allow_tf32 = before[1]
        for place, value in kept:
            place.fp32_precision = value
