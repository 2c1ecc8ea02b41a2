"""What must hold before and after a per-sample gradient is believed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from expunge import passes
from expunge.copies import check_made
from expunge.data import Data
from expunge.errors import NotFinite, UserError, listing, suggest
from expunge.runtime import Runtime
from expunge.tensors import check_finite, parameters


def check_model(model: nn.Module) -> None:
    """Refuse train mode, where batch statistics and dropout spoil per-sample gradients, and lazy or NaN weights.

    Raises:
        UserError: names the modules, or the weights.
    """
    check_made(model)
    stateful = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    active = [n for n, m in model.named_modules() if m.training and isinstance(m, stateful)]
    if model.training or active:
        got = f"train mode, with active {listing(active)}" if active else "train mode"
        raise UserError("a model in eval mode", got, "call model.eval() first")
    check_finite(model.state_dict(), "weights", "restore the model from a good checkpoint")


def check_data(data: Data) -> None:
    """Refuse what is no `Data`, and data without samples.

    Raises:
        UserError: says which.
    """
    passes.check_data(data)
    if len(data) == 0:
        raise UserError("at least one sample", f"none in {data.name}", "pass data that is not empty")


def chosen(model: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Parameter]:
    """Return the trainable parameters asked for, all by default.

    Raises:
        UserError: a name is unknown or frozen, or nothing is trainable.
    """
    known = parameters(model)
    bent = [name for name, p in known.items() if p.is_complex() and (names is None or name in names)]
    if bent:
        raise UserError("real parameters", f"complex ones: {listing(bent)}", "name others by params=")
    if not known:
        raise UserError("a model with trainable parameters", "none", "call requires_grad_(True) on some")
    if names is None:
        return known
    if not names:
        raise UserError("at least one parameter", "an empty list", "leave params out to take all")
    for name in names:
        if name not in known:
            raise UserError("names of trainable parameters", f"unknown '{name}'", suggest(name, known))
    return {name: known[name] for name in names}


def check_flows(scalars: Sequence[Tensor]) -> None:
    """Refuse outputs that no gradient leads to.

    Raises:
        UserError: says so.
    """
    if not all(q.requires_grad for q in scalars):
        remedy = "call it outside torch.inference_mode, and let the model's forward neither detach nor use no_grad"
        raise UserError("outputs with a gradient to the parameters", "outputs without", remedy)


def check_sums(sums: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinite sums.

    Raises:
        NotFinite: names the parameters.
    """
    bad = [name for name, s in sums.items() if not bool(torch.isfinite(s).all())]
    if bad:
        raise NotFinite("finite per-sample gradients", f"NaN or infinity in {listing(bad)}", "check data and weights")


def warn_underflow(gradient: Tensor, what: str) -> None:
    """Warn when a nonzero gradient squares to zero in its dtype (below about 1e-23 in float32)."""
    if bool(((gradient != 0) & (gradient.square() == 0)).any()):
        text = f"Some nonzero gradients of {what} square to 0 in {gradient.dtype}: use a float64 model if they matter."
        warnings.warn(text, RuntimeWarning, stacklevel=2)


def check_alone(alone: Tensor, together: Tensor, again: Tensor, names: Sequence[str], runtime: Runtime) -> None:
    """Refuse a model whose outputs do not repeat, or whose output for a sample depends on the others of its batch.

    Args:
        alone: outputs of two samples, each in a batch of its own.
        together: of both in one batch.
        again: the same once more.
        names: their ids.
        runtime: for the precision.

    Raises:
        UserError: names the sample.
    """
    half = runtime.precision == "bf16" or alone.dtype in (torch.bfloat16, torch.float16)
    slack = 0.1 if half else 1e-3
    alone, together, again = (wide(t).reshape(len(t), -1) for t in (alone, together, again))

    def apart(left: Tensor, right: Tensor) -> list[int]:
        size = torch.nan_to_num(right, posinf=0, neginf=0).abs().max()
        close = torch.isclose(left, right, rtol=slack, atol=slack * float(size), equal_nan=True)
        return (~close).any(dim=1).nonzero().flatten().tolist()

    if odd := apart(again, together):
        got = f"another one for {names[odd[0]]} the second time"
        raise UserError("the same output each time in eval mode", got, "switch dropout, noise and sampling off")
    if odd := apart(alone, together):
        got = f"another output for {names[odd[0]]} alone than in company of a second sample"
        remedy = "compute each sample by itself (no batch statistics, no attention or ranking over the batch)"
        raise UserError("a model whose outputs do not depend on the other samples of a batch", got, remedy)


def sample(tensor: Tensor) -> Tensor:
    """Return about 65,536 entries at most, evenly spaced: enough to compare two engines by."""
    return tensor.reshape(-1)[:: 1 + tensor.numel() // 2**16]


def least(tensor: Tensor) -> Tensor:
    """Return each sample's smallest nonzero magnitude, (B,), 1 where there is none."""
    flat = wide(tensor).reshape(len(tensor), -1).abs()
    found = flat.masked_fill_(flat == 0, torch.inf).amin(dim=1)
    return found.masked_fill_(found.isinf(), 1)


def plain(tensor: Tensor) -> Tensor:
    """Return a dense tensor; embeddings may give sparse gradients."""
    return tensor.to_dense() if tensor.is_sparse else tensor


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 or wider: squares are never taken in half precision."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
