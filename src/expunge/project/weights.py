"""Trained weights from files of other programs: safetensors and state dicts, read without running code."""

from __future__ import annotations

import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from expunge.errors import CorruptArtefact, Incompatible, UserError, listing
from expunge.files import there
from expunge.tensors import fill_weights

log = logging.getLogger(__name__)

NESTED = ("state_dict", "model_state_dict", "model", "module", "network", "net", "weights")
WRAPPED = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # may stand anywhere in a name
STALE = ("optim", "ema", "momentum", "scaler", "callbacks")


@dataclass(frozen=True)
class Weights:
    """What a file of weights holds.

    Args:
        tensors: by name, as in the file.
        others: names of what stands beside them: optimiser states, averages, counters.
    """

    tensors: Mapping[str, Tensor]
    others: tuple[str, ...] = ()

    @property
    def stale(self) -> list[str]:
        """Names of states beside the weights that an edit makes invalid and that still carry training data."""
        return [n for n in self.others if any(word in n.lower() for word in STALE)]


def read(path: Path) -> Weights:
    """Read a safetensors file or a state dict (``torch.save``, ``weights_only=True``), on the CPU.

    A state dict may stand alone or under the usual keys of a training checkpoint (``state_dict``, ``model``, ...).

    Returns:
        The tensors by name, and the names of what else the file holds.

    Raises:
        UserError: no such file, or nothing in it that is a state dict.
        CorruptArtefact: truncated, or no file of weights at all.
    """
    found = there(path)
    if found != "a file":
        raise UserError(f"a file of weights {path}", found or "nothing there", "check the path in [model] weights")
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise UserError(f"a readable file {path}", error.strerror or str(error), "check its permissions") from error
    if head[8:9] == b"{" and path.suffix not in (".pt", ".pth", ".ckpt"):
        try:
            return Weights(safetensors.torch.load_file(path))
        except (safetensors.SafetensorError, OSError) as error:
            raise CorruptArtefact(f"an intact safetensors file {path}", str(error), "copy it anew") from error
    if path.suffix == ".safetensors":
        got = "an empty file" if not head else "other bytes"
        raise CorruptArtefact(f"an intact safetensors file {path}", got, "copy it anew")
    return _state_dict(path)


def _state_dict(path: Path) -> Weights:
    remedy = "save model.state_dict() with safetensors.torch.save_file, and name that file"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on other archives is given below in a sentence
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the bytes lead the reader to
        named = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and named:
            got = f"one that needs code to be read ({named[1][:80]})"
            raise UserError(f"a state_dict of tensors alone in {path}", got, remedy) from error
        raise CorruptArtefact(f"a state_dict in {path}", _looks(path), remedy) from error
    if not isinstance(found, Mapping):
        raise UserError(f"a state_dict in {path}", type(found).__name__, remedy)
    return _chosen(path, found, remedy)


def _looks(path: Path) -> str:
    """Return what a file is that torch cannot read as a state dict."""
    with path.open("rb") as file:
        head = file.read(2)
    if not head:
        return "an empty file"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            scripted = any("/code/" in name for name in archive.namelist())
        return "a TorchScript archive" if scripted else "an archive of other content"
    if head == b"PK":
        return "a file cut short"
    return "a pickle that torch.save did not write" if head[:1] == b"\x80" else "bytes that are none"


def _chosen(path: Path, found: Mapping[str, Any], remedy: str) -> Weights:
    if _tensors(found):
        return Weights(dict(found))
    inner = [k for k in NESTED if isinstance(found.get(k), Mapping) and _tensors(found[k])]
    if not inner:
        raise UserError(f"a state_dict in {path}", f"a mapping of {listing(found)}", remedy)
    return Weights(dict(found[inner[0]]), tuple(str(k) for k in found if k != inner[0]))


def _tensors(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def fill(path: Path, model: nn.Module, weights: Weights) -> None:
    """Copy weights into a network, in place; what wrappers put before the names is taken off.

    Known are ``module.`` (DDP), the attribute a Lightning module keeps its network under (``model.`` or any other),
    and what ``torch.compile``, FSDP and activation checkpointing insert.

    Raises:
        Incompatible: tensors are missing, unknown, or of another shape or type; the first five of each are listed.
    """
    values = dict(weights.tensors)
    own = list(model.state_dict())
    if "n_averaged" in values and "n_averaged" not in own:  # torch.optim.swa_utils.AveragedModel
        log.warning("the weights are an average kept by AveragedModel; its counter n_averaged is left out")
        values.pop("n_averaged")
    plain = {_unwrapped(name): tensor for name, tensor in values.items()}
    if len(plain) == len(values) and not any(w in n for n in own for w in WRAPPED):
        values = plain
    prefix = _prefix(values, own)
    if prefix:
        log.info("the weights' names begin with '%s': taken off", prefix)
        values = {name.removeprefix(prefix): tensor for name, tensor in values.items()}
    kinds = {str(t.dtype) for n, t in values.items() if t.is_floating_point()}
    mine = {str(p.dtype) for p in model.parameters() if p.is_floating_point()}
    if kinds and mine and not kinds <= mine:
        log.warning("the weights are %s, the network %s: they are converted", listing(kinds), listing(mine))
    _check_kinds(path, values, model.state_dict())
    fill_weights(path, model, values)


def _check_kinds(path: Path, values: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse what copying would alter or cannot copy: whole or complex numbers for real ones, sparse tensors."""
    odd = [
        f"{name} ({'sparse' if t.layout != torch.strided else t.dtype})"
        for name, t in values.items()
        if t.layout != torch.strided
        or t.is_quantized
        or t.is_meta
        or (
            name in own
            and (t.is_floating_point(), t.is_complex()) != (own[name].is_floating_point(), own[name].is_complex())
        )
    ]
    if odd:
        remedy = "save the tensors as the network holds them, dense and of its types"
        raise Incompatible(f"weights of the network's types in {path}", listing(odd), remedy)


def _unwrapped(name: str) -> str:
    for word in WRAPPED:
        name = name.replace(word, "")
    return name


def _prefix(values: Iterable[str], own: list[str]) -> str:
    """Return what stands before every one of the network's names in the file, if it is the same everywhere."""
    names = set(values)
    if not own or names & set(own):
        return ""
    found = [name.removesuffix(own[0]) for name in names if name.endswith(f".{own[0]}")]
    fits = [p for p in found if all(n.startswith(p) for n in names)]
    return min(fits, key=len) if fits else ""
