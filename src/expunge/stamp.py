"""The driver's own part of a state: which weights it belongs to, and keyed hashes of every prepared sample."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge import __version__, tensors
from expunge.data import Data, id_hashes
from expunge.errors import Incompatible, MissingNeed, UserError, listing
from expunge.method import Method, See, State

_OWN = "expunge"
_IDS, _CONTENT, _FORGOTTEN = "samples/id", "samples/content", "samples/forgotten"

Table = dict[str, Tensor]


def blank(method: Method) -> dict[str, Any]:
    """Return the stamp of a state that knows no samples."""
    return {"method": method.name, "requests": 0, "forgotten": 0}


def table(method: Method, train: Data) -> tuple[dict[str, Any], Table]:
    """Return the stamp and the table of the training samples: two keyed hashes each, and a forgotten flag."""
    key = secrets.token_bytes(16)
    labelled = See.LABELLED in (method.prepares.train, method.unlearns.forget)
    ids, content = train.fingerprints(key, labelled)
    found = {
        _IDS: torch.from_numpy(ids),
        _CONTENT: torch.from_numpy(content),
        _FORGOTTEN: torch.zeros(len(ids), dtype=torch.uint8),
    }
    return {**blank(method), "key": key.hex(), "labelled": labelled, "samples": len(ids)}, found


def check_weights(method: Method, model: nn.Module, state: State) -> None:
    """Refuse a state of another method, network or weights.

    Raises:
        Incompatible: says which.
    """
    own = state.meta.get(_OWN)
    if not isinstance(own, Mapping):
        raise Incompatible("a state made by prepare or unlearn", "one without their stamp", "run prepare again")
    if own["method"] != method.name:
        raise Incompatible(f"a state of {method.name}", f"one of {own['method']}", f"prepare {method.name}")
    if own["shapes"] != tensors.shapes_digest(model):
        raise Incompatible("a state of this network", "one with other tensor names or shapes", "pass its own model")
    if own["weights"] != tensors.weights_digest(model):
        remedy = "pass the model that came with the state, or prepare anew"
        raise Incompatible("the weights the state belongs to", f"others than {own['weights'][:12]}", remedy)


def check(
    method: Method, model: nn.Module, state: State | None, ids: Sequence[str], forget: Data | None, retain: Data | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Hold a request to the state: its weights, ids, their content, and what was forgotten before.

    Args:
        method: the method asked for.
        model: the weights the request starts from.
        state: from `prepare` or the request before, or None.
        ids: ids to forget.
        forget: their samples, where given.
        retain: samples that stay, where given.

    Returns:
        The next state's stamp and table, the request's samples marked as forgotten and their content hash erased.

    Raises:
        MissingNeed: the method prepares and there is no state.
        Incompatible: the state belongs to other weights, another network or method.
        UserError: an id is unknown or already forgotten, content differs, or nothing would be left.
    """
    if state is None:
        if method.prepares.required():
            remedy = f"run prepare({method.name}, ..., train=) while the training data is at hand"
            raise MissingNeed(f"the state that {method.name} prepared", "none", remedy)
        return _remembered(blank(method), State(), ids, retain)
    check_weights(method, model, state)
    meta = dict(state.meta[_OWN])
    if "samples" not in meta:
        return _remembered(meta, state, ids, retain)
    key = bytes.fromhex(meta["key"])
    known, content = state.tensors[_IDS].numpy(), state.tensors[_CONTENT].numpy().copy()
    flags = state.tensors[_FORGOTTEN].numpy().copy()
    hashes = id_hashes(key, ids)
    at = _places(known, hashes)
    _refuse(ids, known[at] != hashes, "ids of the prepared training data", "unknown", "take ids that were trained on")
    _refuse(ids, flags[at] == 1, "ids that are still to be forgotten", "already forgotten", "leave them out")
    if forget is not None and forget.shows_inputs and (forget.labelled or not meta["labelled"]):
        _, now = forget.fingerprints(key, meta["labelled"])
        remedy = "pass the samples as they were trained on, untransformed and not augmented"
        _refuse(ids, content[at] != now, "the content that was prepared under each id", "other content under", remedy)
    if retain is not None:
        stays = id_hashes(key, retain.ids)
        remedy = "pass retain=train.without(forget ids) of the data that was prepared"
        _refuse(retain.ids, ~np.isin(stays, known), "retain data of the prepared training data", "unknown", remedy)
        gone = np.isin(stays, known[flags == 1])
        _refuse(retain.ids, gone, "retain data without forgotten samples", "already forgotten", "leave them out")
    flags[at], content[at] = 1, 0
    if bool(flags.all()):
        got = f"all {len(flags)} training samples to forget"
        raise UserError("something to retain", got, "keep some, or train a new model without them")
    table = {_IDS: state.tensors[_IDS], _CONTENT: torch.from_numpy(content), _FORGOTTEN: torch.from_numpy(flags)}
    return meta, table


def forgotten(state: State, ids: Sequence[str]) -> np.ndarray | None:
    """Return which of the ids a state marks as forgotten, (N,) booleans; None where it keeps no such marks."""
    own = state.meta.get(_OWN)
    if not isinstance(own, Mapping) or "key" not in own or _IDS not in state.tensors:
        return None
    gone = state.tensors[_IDS].numpy()[state.tensors[_FORGOTTEN].numpy() == 1]
    return np.isin(id_hashes(bytes.fromhex(own["key"]), ids), gone)


def prepared(state: State, ids: Sequence[str]) -> np.ndarray | None:
    """Return which of the ids a state knows as trained on and not forgotten, (N,) booleans.

    None where it was not prepared on training data, and so cannot tell.
    """
    own = state.meta.get(_OWN)
    if not isinstance(own, Mapping) or "samples" not in own:
        return None
    stays = state.tensors[_IDS].numpy()[state.tensors[_FORGOTTEN].numpy() == 0]
    return np.isin(id_hashes(bytes.fromhex(own["key"]), ids), stays)


def staying(state: State) -> int | None:
    """Return how many samples a state knows as trained on and not forgotten; None where it cannot tell."""
    own = state.meta.get(_OWN)
    if not isinstance(own, Mapping) or "samples" not in own:
        return None
    return int((state.tensors[_FORGOTTEN].numpy() == 0).sum())


def unchanged(state: State, data: Data) -> bool | None:
    """Return whether a state knows every sample, with the content that it was prepared on and not as forgotten.

    None where it was not prepared on training data, and so cannot tell. Labels count as content where the method
    prepares on them or reads those of forgotten samples.
    """
    own = state.meta.get(_OWN)
    if not isinstance(own, Mapping) or "samples" not in own:
        return None
    known, content = state.tensors[_IDS].numpy(), state.tensors[_CONTENT].numpy()
    ids, now = data.fingerprints(bytes.fromhex(own["key"]), own["labelled"])
    at = _places(known, ids)
    stays = state.tensors[_FORGOTTEN].numpy()[at] == 0
    return bool(((known[at] == ids) & (content[at] == now) & stays).all())


def key(meta: Mapping[str, Any]) -> bytes | None:
    """Return the key of a state's hashes of ids, from its meta; None where it knows no samples."""
    own = meta.get(_OWN)
    return bytes.fromhex(own["key"]) if isinstance(own, Mapping) and "samples" in own else None


def erased(
    meta: Mapping[str, Any], values: Mapping[str, Tensor], hashes: Sequence[int]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a state's meta and tensors with one more request in the stamp: samples forgotten, their content erased.

    Args:
        meta: of the state.
        values: its tensors.
        hashes: of the ids, under the stamp's `key`; samples marked already stay marked.
    """
    if key(meta) is None:
        return dict(meta), dict(values)
    hit = np.isin(values[_IDS].numpy(), np.asarray(hashes, dtype=np.int64))
    flags, content = values[_FORGOTTEN].numpy().copy(), values[_CONTENT].numpy().copy()
    flags[hit], content[hit] = 1, 0
    own = {**meta[_OWN], "requests": meta[_OWN]["requests"] + 1, "forgotten": int(flags.sum())}
    changed = {_CONTENT: torch.from_numpy(content), _FORGOTTEN: torch.from_numpy(flags)}
    return {**meta, _OWN: own}, {**values, **changed}


def again(state: State, model: nn.Module) -> State:
    """Return a state with the digests of the network that it belongs to now.

    Raises:
        Incompatible: it has no stamp.
    """
    own = state.meta.get(_OWN)
    if not isinstance(own, Mapping):
        raise Incompatible("a state made by prepare or unlearn", "one without their stamp", "run prepare again")
    table = {name: t for name, t in state.tensors.items() if name.startswith("samples/")}
    return stamped(bare(state), model, own, table)


def _remembered(
    meta: dict[str, Any], state: State, ids: Sequence[str], retain: Data | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the table of a state that was not prepared: it knows the forgotten alone, and refuses them twice."""
    meta = {**meta, "key": meta.get("key") or secrets.token_bytes(16).hex(), "labelled": False}
    key = bytes.fromhex(meta["key"])
    known = state.tensors[_IDS].numpy() if _IDS in state.tensors else np.empty(0, dtype=np.int64)
    hashes = id_hashes(key, ids)
    _refuse(ids, np.isin(hashes, known), "ids that are still to be forgotten", "already forgotten", "leave them out")
    if retain is not None and len(known):
        gone = np.isin(id_hashes(key, retain.ids), known)
        _refuse(retain.ids, gone, "retain data without forgotten samples", "already forgotten", "leave them out")
    every = torch.from_numpy(np.concatenate([known, hashes]))
    return meta, {_IDS: every, _CONTENT: torch.zeros_like(every), _FORGOTTEN: torch.ones(len(every), dtype=torch.uint8)}


def _places(known: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Return where each hash stands among the known ones, (N,); some place, where it does not."""
    order = np.argsort(known)
    return order[np.clip(np.searchsorted(known, hashes, sorter=order), 0, len(known) - 1)]


def _refuse(ids: Sequence[str], bad: Any, expected: str, got: str, remedy: str) -> None:
    if bad.any():
        raise UserError(expected, f"{got} {listing([i for i, b in zip(ids, bad, strict=True) if b])}", remedy)


def stamped(state: State, model: nn.Module, meta: Mapping[str, Any], table: Mapping[str, Tensor]) -> State:
    """Return a method's state with its stamp: digests of the weights it belongs to, and the table of samples.

    Raises:
        NotFinite: a state tensor holds NaN or infinity.
    """
    own = {
        **meta,
        "weights": tensors.weights_digest(model),
        "shapes": tensors.shapes_digest(model),
        "version": __version__,
    }
    tensors.check_finite({k: state.tensors[k] for k in state.tensors}, "state tensors", "check data and weights")
    return State({**{k: state.tensors[k] for k in state.tensors}, **table}, {**state.meta, _OWN: own})


def bare(state: State | None) -> State:
    """Return the method's part of a state, the tensors still unread."""
    if state is None:
        return State()
    return State(_Without(state.tensors), {k: v for k, v in state.meta.items() if k != _OWN})


class _Without(Mapping[str, Tensor]):
    """A state's tensors without the driver's table."""

    def __init__(self, inner: Mapping[str, Tensor]) -> None:
        self._inner = inner
        self._names = [n for n in inner if not n.startswith("samples/")]

    def __getitem__(self, name: str) -> Tensor:
        return self._inner[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
