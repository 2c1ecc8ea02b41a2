"""A network split in two at a module: the extractor below, which gives representations, and the classifier above."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.data import Batch, Data
from expunge.errors import ExpungeError, NotFinite, UserError, listing
from expunge.evidence import head_tap
from expunge.passes import Passes
from expunge.runtime import Runtime
from expunge.task import Task
from expunge.task.causal_lm import IGNORED
from expunge.tensors import eval_mode, parameters

PROBED = 2  # samples that show which weights are on which side
MASKS = ("attention_mask", "mask")  # inputs that tell a sequence's places from its padding
SHOWN = 12  # modules that would do, in a message
CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._MaxPoolNd,
    nn.GroupNorm,
)


@dataclass(frozen=True)
class Said:
    """What a model says of some samples, on the CPU.

    Args:
        e: representations (N, d), float32 or float64.
        prediction: the task's predictions (N, ...); −100 at padding.
    """

    e: Tensor
    prediction: Tensor


@dataclass(frozen=True)
class RepresentationSplit:
    """Where a network is split, and which weights are on which side.

    A representation e is one row of numbers a sample, (B, d): the tapped tensor itself where it has two dimensions; of
    a sequence (B, T, d) its mean over the places that the input ``attention_mask`` or ``mask`` shows, over all without
    one; of feature maps (B, C, ...) the mean over the places of each channel. Three dimensions are a sequence unless
    the module is a convolution, a pooling or a norm of channels.

    Args:
        tap: ``module``, whose output it is, or ``module:input``, whose first input.
        extractor: names of trainable weights below the split alone, in order.
        classifier: names of trainable weights above the split alone, in order.
        shared: names of trainable weights on both sides: tied ones, and ones that reach the outputs past the split too.
    """

    tap: str
    extractor: tuple[str, ...]
    classifier: tuple[str, ...]
    shared: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, model: nn.Module, task: Task, data: Data, runtime: Runtime, tap: str | None = None, method: str = "laf"
    ) -> RepresentationSplit:
        """Return the split at a tap; by default at the input of the last linear layer.

        Args:
            model: modes and weights are left as found.
            task: runs it.
            data: of which the first samples show which weights are on which side.
            runtime: device and precision.
            tap: ``module`` or ``module:input``.
            method: who asks, for messages.

        Raises:
            UserError: there is no such module or no linear head, nothing trainable is below, or it gives no
                representations; names modules that would do.
        """
        model = runtime.placed(model)
        probe = _Probe(model, task, data.read(range(min(PROBED, len(data)))).to(runtime.torch_device), runtime)
        found = tap or head_tap(model, task, data, runtime)
        if found is None:
            want = f"a linear head for {method} to split the network at"
            raise UserError(want, "none that sees one row a sample", probe.remedy(method))
        if found.partition(":")[0] not in dict(model.named_modules()) or found.partition(":")[2] not in ("", "input"):
            raise UserError(f"{method}.extractor among the network's modules", repr(found), probe.remedy(method))
        try:
            split = probe.split(found)
        except UserError as error:
            raise UserError(error.expected, error.got, probe.remedy(method)) from error
        if not split.extractor:
            got = f"only weights that the part above shares ({listing(split.shared)})" if split.shared else "none"
            raise UserError(f"trainable weights below {found} for {method}", got, probe.remedy(method))
        return split

    def representations(self, model: nn.Module, task: Task, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the representations (B, d) of a batch, float32 or float64, and the outputs (B, ...).

        Raises:
            UserError: the tapped tensor is no row of numbers a sample.
        """
        outputs, found = task.forward(model, batch, [self.tap])
        return pooled(found[self.tap], batch, model.get_submodule(self.tap.partition(":")[0]), self.tap), outputs

    def said(
        self,
        model: nn.Module,
        task: Task,
        data: Data,
        runtime: Runtime,
        order: Sequence[int] | NDArray[np.int64] | Tensor | None = None,
    ) -> Said:
        """Return the representations and predictions of samples, in eval mode and without gradients.

        Args:
            model: modes are left as found.
            task: runs it.
            data: the samples, with their inputs.
            runtime: device, batch size, precision.
            order: positions in the data, all by default.

        Raises:
            NotFinite: a representation is NaN or infinite.
        """

        def work(batch: Batch) -> tuple[Tensor, Tensor]:
            here = batch.to(runtime.torch_device)
            with runtime.autocast():
                e, outputs = self.representations(model, task, here)
            told = task.predictions(outputs)
            hidden = padding(here, told)
            return e.cpu(), (told if hidden is None else told.masked_fill(hidden, IGNORED)).cpu()

        with eval_mode(model), torch.no_grad():
            rows = list(Passes(runtime).over(data, work, order))
        e = torch.cat([row for row, _ in rows])
        if not bool(torch.isfinite(e).all()):
            want = f"finite representations on {data.name} at {self.tap}"
            raise NotFinite(want, "NaN or infinity", "check the weights and inputs, or lower the rates")
        return Said(e, torch.cat([told for _, told in rows]))


def pooled(value: Tensor, batch: Batch, module: nn.Module, tap: str) -> Tensor:
    """Return a tapped tensor as one row a sample, (B, d), float32 or float64; see `RepresentationSplit`.

    Raises:
        UserError: it is no floating-point tensor of one row or more a sample, or a row is a single number.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape[:1] != (len(batch),):
        shape = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        remedy = "name a module that gives real numbers for each sample"
        raise UserError(f"representations of {len(batch)} samples at {tap}", shape, remedy)
    value = value if value.dtype in (torch.float32, torch.float64) else value.float()
    if value.dim() >= 4 or (value.dim() == 3 and isinstance(module, CHANNELS_FIRST)):
        value = value.flatten(2).mean(dim=2)
    elif value.dim() == 3:
        mask = _mask(batch, value.shape[:2])
        if mask is None:
            value = value.mean(dim=1)
        else:
            shown = mask.to(value)[:, :, None]
            value = (value * shown).sum(dim=1) / shown.sum(dim=1).clamp_min(1)
    if value.dim() != 2 or value.shape[1] < 2:
        got = f"{value.shape[1] if value.dim() > 1 else 1}"
        remedy = "name a module further below"
        raise UserError(f"representations of two dimensions or more at {tap}", got, remedy)
    return value


def padding(batch: Batch, predictions: Tensor) -> Tensor | None:
    """Return which predictions of a batch are of padding, (B, T), or None where there is no such thing."""
    if predictions.dim() != 2 or predictions.is_floating_point():
        return None
    mask = _mask(batch, predictions.shape)
    return None if mask is None else mask == 0


def _mask(batch: Batch, shape: torch.Size) -> Tensor | None:
    """Return the input that tells places from padding, (B, T), where there is one of that shape."""
    given = batch.inputs if isinstance(batch.inputs, dict) else {}
    return next((given[name] for name in MASKS if name in given and given[name].shape == shape), None)


@dataclass(frozen=True)
class _Probe:
    """A network and two samples that show what depends on what."""

    model: nn.Module
    task: Task
    batch: Batch
    runtime: Runtime

    def split(self, tap: str) -> RepresentationSplit:
        """Return the split at a tap.

        Raises:
            UserError: the forward pass does not reach it, or it gives no representations.
        """
        names = parameters(self.model)
        module = self.model.get_submodule(tap.partition(":")[0])
        with eval_mode(self.model), torch.enable_grad(), self.runtime.autocast():
            _, found = self.task.forward(self.model, self.batch, [tap])
            e = pooled(found[tap], self.batch, module, tap)
            below = _reached(e, names)
            with _cut(module, at_input=tap.endswith(":input")):
                outputs, _ = self.task.forward(self.model, self.batch)
            above = _reached(outputs, names)
        both = tuple(name for name in names if name in below & above)
        if not below - above:
            return RepresentationSplit(tap, (), tuple(n for n in names if n in above - below), both)
        # a weight that these samples do not reach may be below, and does not move where it is not
        own = tuple(name for name in names if name not in above)
        return RepresentationSplit(tap, own, tuple(n for n in names if n in above - below), both)

    def remedy(self, method: str) -> str:
        """Return what to do, naming modules that would do; each is tried."""
        good = list[str]()
        for name, _ in self.model.named_modules():
            for tap in (name, f"{name}:input") if name else ():
                try:
                    split = self.split(tap)
                except (ExpungeError, RuntimeError):  # not reached, no numbers, or no place to cut
                    continue
                if split.extractor and split.classifier:
                    good.append(tap)
                    break
        if not good:
            return "no module would do: no trainable weights are on both sides of any"
        return f"set {method}.extractor to the extractor's last module, one of {listing(good[-SHOWN:], SHOWN)}"


def _reached(value: Tensor, names: dict[str, nn.Parameter]) -> set[str]:
    """Return the names of parameters that a value depends on."""
    if not value.requires_grad or not names:
        return set()
    total = value.double().sum()
    grads = torch.autograd.grad(total, list(names.values()), allow_unused=True)
    return {name for name, grad in zip(names, grads, strict=True) if grad is not None}


@contextmanager
def _cut(module: nn.Module, *, at_input: bool) -> Iterator[None]:
    """Let what comes after a module, or the module and what comes after, depend on nothing below it."""

    def alone(value: Any) -> Any:
        if isinstance(value, tuple):
            return (alone(value[0]), *value[1:])
        return value.detach().clone() if isinstance(value, Tensor) else value

    def before(_: nn.Module, args: Any, named: dict[str, Any]) -> Any:
        if args:
            return (alone(args[0]), *args[1:]), named
        first = next(iter(named))
        return args, {**named, first: alone(named[first])}

    def after(_: nn.Module, args: Any, out: Any) -> Any:
        return alone(out)

    handle = (
        module.register_forward_pre_hook(before, with_kwargs=True) if at_input else module.register_forward_hook(after)
    )
    try:
        yield
    finally:
        handle.remove()
