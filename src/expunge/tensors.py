"""Tensors by name: digests, finite checks, what changed, safetensors files that cannot be mixed up."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from expunge.errors import CorruptArtefact, Incompatible, NotFinite, UserError, listing
from expunge.files import atomic, canonical, check_free, digest

FORMAT = 1
_KEY = "expunge"


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name; a tied parameter stands once, under its first name."""
    return {name: p for name, p in model.named_parameters(remove_duplicate=True) if p.requires_grad}


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's dtype, shape and values."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return digest(f"{tensor.dtype}{tuple(tensor.shape)}", flat.numpy().tobytes())


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of every parameter and persistent buffer with its name."""
    sha = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def shapes_digest(model: nn.Module) -> str:
    """Return the SHA-256 of the names and shapes of every parameter and persistent buffer."""
    return digest({name: list(tensor.shape) for name, tensor in model.state_dict().items()})


def check_finite(tensors: Mapping[str, Tensor], what: str, remedy: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        NotFinite: names the tensors that hold one.
    """
    bad = [name for name, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if bad:
        raise NotFinite(f"finite {what}", f"NaN or infinity in {listing(bad)}", remedy)


def check_weights(model: nn.Module, what: str, remedy: str) -> None:
    """Refuse NaN in parameters and buffers, and infinity in parameters; a buffer may hold it, as causal masks do.

    Raises:
        NotFinite: names the tensors.
    """
    check_finite(dict(model.named_parameters()), what, remedy)
    bad = [name for name, b in model.named_buffers() if b.is_floating_point() and bool(torch.isnan(b).any())]
    if bad:
        raise NotFinite(f"finite {what}", f"NaN or infinity in {listing(bad)}", remedy)


@dataclass(frozen=True)
class Changed:
    """How many parameters differ between two models of the same names.

    Args:
        tensors: by parameter name, (changed scalars, scalars).
    """

    tensors: Mapping[str, tuple[int, int]]

    @property
    def count(self) -> int:
        """Changed scalars in all."""
        return sum(c for c, _ in self.tensors.values())

    @property
    def share(self) -> float:
        """Changed scalars as a share of all, in [0, 1]."""
        return self.count / max(1, sum(n for _, n in self.tensors.values()))


def changed(before: nn.Module, after: nn.Module) -> Changed | None:
    """Compare two models parameter by parameter; None when their names or shapes differ."""
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    if old.keys() != new.keys() or any(old[k].shape != new[k].shape for k in old):
        return None
    return Changed({k: (int((old[k].cpu() != new[k].cpu()).sum()), old[k].numel()) for k in old})


@contextlib.contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed torch, numpy and `random` inside the block and put their states back afterwards."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed % 2**63)
        if torch.cuda.is_available():  # `torch.manual_seed` without it takes a thousand times as long
            torch.cuda.manual_seed_all(seed % 2**63)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous copies that share no storage, as safetensors asks (tied and channels-last tensors)."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous() if tensor.numel() else torch.empty(tensor.shape, dtype=tensor.dtype)
        shared = plain.untyped_storage().data_ptr()
        out[name] = plain.clone() if shared in seen or plain.untyped_storage().nbytes() != plain.nbytes else plain
        seen.add(shared)
    return out


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Write tensors and JSON to one safetensors file, or to a folder of content-named files with a manifest.

    A path ending in ``.safetensors`` gives the file; any other the folder. Written whole or not at all.

    Args:
        path: where to write.
        tensors: by name; tied and channels-last tensors are copied to plain ones.
        meta: JSON values kept beside the tensors.
        overwrite: replace what is there.
    """
    path = Path(path)
    check_free(path, overwrite)
    plain, meta = _storable(tensors), json.loads(canonical(dict(meta)))
    sums = {name: tensor_digest(t) for name, t in plain.items()}
    head: dict[str, Any] = {"format": FORMAT, "meta": dict(meta), "digests": sums}
    head["digest"] = digest(head)
    with atomic(path) as temporary:
        if path.suffix == ".safetensors":
            _write(temporary, plain, {_KEY: canonical(head)})
        else:
            temporary.mkdir()
            for name, tensor in plain.items():
                file = temporary / f"{sums[name]}.safetensors"
                if not file.exists():
                    _write(file, {"tensor": tensor}, None)
            (temporary / "manifest.json").write_text(canonical(head), encoding="utf-8")


def _write(file: Path, plain: dict[str, Tensor], head: dict[str, str] | None) -> None:
    try:
        safetensors.torch.save_file(plain, file, metadata=head)
    except safetensors.SafetensorError as error:  # a full disk: `atomic` makes a sentence of an OSError
        raise OSError(str(error)) from error


def _broken(path: Path, why: str) -> tuple[str, str, str]:
    return f"an intact file {path}", why, "restore it from a copy or write it again"


class LazyTensors(Mapping[str, Tensor]):
    """Tensors of a file or folder, read and checked against their digests when they are asked for."""

    def __init__(self, path: Path, digests: Mapping[str, str]) -> None:
        self._path, self._digests = path, digests

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor.

        Returns:
            The tensor, as it was written.

        Raises:
            CorruptArtefact: the bytes are not those that were written.
        """
        return self._read([name])[name]

    def whole(self) -> dict[str, Tensor]:
        """Return all tensors, a single file opened once.

        Raises:
            CorruptArtefact: the bytes are not those that were written.
        """
        return self._read(list(self._digests))

    def _read(self, names: list[str]) -> dict[str, Tensor]:
        found, wanted = dict[str, Tensor](), {name: self._digests[name] for name in names}
        single = self._path.is_file()
        parts = [(self._path, names)]
        if not single:
            parts = [(self._path / f"{want}.safetensors", [name]) for name, want in wanted.items()]
        for file, part in parts:
            try:
                with safetensors.safe_open(file, framework="pt") as handle:
                    found |= {name: handle.get_tensor(name if single else "tensor") for name in part}
            except (OSError, safetensors.SafetensorError) as error:
                raise CorruptArtefact(*_broken(file, str(error))) from error
            for name in part:
                if tensor_digest(found[name]) != wanted[name]:
                    raise CorruptArtefact(*_broken(file, f"other bytes under '{name}'"))
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._digests

    def __iter__(self) -> Iterator[str]:
        return iter(self._digests)

    def __len__(self) -> int:
        return len(self._digests)


def load(path: Path) -> tuple[LazyTensors, dict[str, Any]]:
    """Open what `save` wrote; tensors are read on access.

    Returns:
        The tensors and the JSON that was kept with them.

    Raises:
        CorruptArtefact: truncated, altered, or not written by expunge.
        Incompatible: written by a newer format.
        UserError: nothing there.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"a file or folder {path}", "nothing there", "check the path")
    try:
        if path.is_dir():
            text = (path / "manifest.json").read_text(encoding="utf-8")
        else:
            with safetensors.safe_open(path, framework="pt") as handle:
                text = (handle.metadata() or {}).get(_KEY, "")
        head = json.loads(text)
        want = head.pop("digest")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise CorruptArtefact(*_broken(path, f"{type(error).__name__}: {error}")) from error
    if digest(head) != want:
        raise CorruptArtefact(*_broken(path, "other bytes in its header"))
    if not isinstance(head.get("format"), int) or head["format"] > FORMAT:
        raise Incompatible(f"format {FORMAT} or older in {path}", repr(head.get("format")), "update expunge")
    return LazyTensors(path, head["digests"]), head["meta"]


def save_weights(path: Path, model: nn.Module, meta: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Write a model's state dict to a safetensors file."""
    save(path, model.state_dict(), dict(meta) | {"weights": weights_digest(model)}, overwrite=overwrite)


def load_weights(path: Path, model: nn.Module) -> dict[str, Any]:
    """Read weights written by `save_weights` into ``model``, in place.

    Returns:
        The JSON kept with the weights.

    Raises:
        Incompatible: names or shapes differ; the first five of each are listed.
    """
    tensors, meta = load(path)
    fill_weights(path, model, tensors.whole())
    return meta


def fill_weights(path: Path, model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy tensors into a network by name, in place; a tied tensor may stand under one of its names only.

    Raises:
        Incompatible: names or shapes differ; the first five of each are listed.
    """
    own = model.state_dict()
    ties: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for name, tensor in own.items():
        ties.setdefault((tensor.data_ptr(), tuple(tensor.shape)), []).append(name)
    given = {n for names in ties.values() if any(n in values for n in names) for n in names}
    wrong = {
        "missing": [n for n in own if n not in values and (n not in given or own[n].numel() == 0)],
        "unknown": [n for n in values if n not in own],
        "shaped differently": [
            f"{n} {tuple(values[n].shape)} for {tuple(t.shape)}"
            for n, t in own.items()
            if n in values and t.shape != values[n].shape
        ],
    }
    if any(wrong.values()):
        got = "; ".join(f"{what}: {listing(names)}" for what, names in wrong.items() if names)
        raise Incompatible(f"the weights of this network in {path}", got, "name the network they belong to")
    model.load_state_dict(dict(values), strict=False)


def total(tensors: Iterable[Tensor]) -> int:
    """Return the number of scalars in all tensors."""
    return sum(t.numel() for t in tensors)


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Put a model in eval mode inside the block and each module's own mode back afterwards."""
    modes = {name: module.training for name, module in model.named_modules()}
    try:
        yield model.eval()
    finally:
        restore_modes(model, modes)


def restore_modes(model: nn.Module, modes: Mapping[str, bool]) -> None:
    """Set the train or eval mode of each module that is named in ``modes``."""
    for name, module in model.named_modules():
        if name in modes:
            module.training = modes[name]
