"""Which slice a sample belongs to: decided by a keyed hash of its owner alone, so that deletions move nobody."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from expunge.data import Data, id_hashes, id_text
from expunge.errors import UserError, listing


def key(seed: int, use: str) -> bytes:
    """Return the key of hashes for one use, from the run's seed: another seed deals the samples anew."""
    return hashlib.blake2b(f"{use}/{seed}".encode(), digest_size=16).digest()


def assigned(data: Data, shards: int, slices: int, seed: int, *, owner: str = "", band: str = "") -> NDArray[np.int32]:
    """Return the place of each sample, shard·L + slice, (N,).

    place = H(owner) mod mL, H a keyed hash; all samples of one owner share a slice. With a band, shard = H(owner) mod m
    and slice = band: samples that are as likely to be deleted stand together. No other sample has a say.

    Args:
        data: the samples.
        shards: m.
        slices: L.
        seed: of the run.
        owner: name of the column that says whose a sample is; empty where each stands for itself, by its id.
        band: name of a column of whole numbers from 0 to L − 1; empty for none.

    Raises:
        UserError: a column is not there or holds something else, samples of one owner have different bands, or a slice
            is empty.
    """
    owners = _owners(data, owner) if owner else data.ids
    hashes = id_hashes(key(seed, "slice"), owners).astype(np.uint64)
    if band:
        bands = _bands(data, band, slices, owners if owner else [])
        at = (hashes % np.uint64(shards)).astype(np.int32) * slices + bands
    else:
        at = (hashes % np.uint64(shards * slices)).astype(np.int32)
    counts = np.bincount(at, minlength=shards * slices)
    empty = [f"{place // slices}/{place % slices}" for place in np.flatnonzero(counts == 0)]
    if empty:
        whose = f"{len(set(owners))} of {owner}" if owner else f"{len(owners)} samples"
        got = f"none in {listing(empty)} (shard/slice), of {whose} in {shards} × {slices}"
        raise UserError("a sample in every slice", got, "lower shards or slices, or take another seed")
    return at.astype(np.int32)


def _owners(data: Data, column: str) -> list[str]:
    values = data.column(column)
    missing = [i for i, v in zip(data.ids, values, strict=True) if _nobody(v)]
    if missing:
        raise UserError(f"an owner of each sample in column '{column}'", f"none for {listing(missing)}", "name one")
    return [id_text(v) for v in values]


def _nobody(value: object) -> bool:
    """Return whether a value names nobody: None, an empty text, NaN, or the NA of tables, which equals not even 0."""
    if value is None or id_text(value) == "":
        return True
    try:
        return not bool(value == value)
    except (TypeError, ValueError):  # of NA, or of several numbers, neither true nor false
        return not hasattr(value, "__len__")


def _bands(data: Data, column: str, slices: int, owners: list[str]) -> NDArray[np.int32]:
    want = f"whole numbers from 0 to {slices - 1} in column '{column}'"
    found = []
    for value in data.column(column):
        try:
            whole = int(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(want, repr(value), "say for each sample which slice it belongs to") from error
        if whole != float(value) or not 0 <= whole < slices:
            raise UserError(want, repr(value), "raise slices, or write other numbers")
        found.append(whole)
    first: dict[str, int] = {}
    odd = sorted({o for o, b in zip(owners, found, strict=False) if first.setdefault(o, b) != b})
    if odd:
        raise UserError(f"one value of '{column}' for each owner", f"several of {listing(odd)}", "give them one")
    return np.asarray(found, dtype=np.int32)


def taught(data: Data, key: bytes) -> NDArray[np.int64]:
    """Return a keyed 8-byte hash of what each sample teaches, (N,): of id, content, target, and a weight other than 1.

    Args:
        data: labelled samples.
        key: at most 64 secret bytes.
    """
    found = data.fingerprints(key, labelled=True)[1]
    if data.all_weights is None:
        return found
    weights = data.all_weights[data.positions].tolist()
    weighed = id_hashes(key, [f"{content}/{weight!r}" for content, weight in zip(found, weights, strict=True)])
    return np.where(np.asarray(weights) == 1, found, weighed)


def twins(contents: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the number of the group of equal inputs that each sample belongs to, −1 where no other is equal, (N,).

    Args:
        contents: hashes of the inputs, from `Data.contents`.

    >>> twins(np.array([7, 5, 7, 6])).tolist()
    [2, -1, 2, -1]
    """
    _, group, counts = np.unique(contents, return_inverse=True, return_counts=True)
    return np.where(counts[group] > 1, group, -1).astype(np.int32)


def astray(twin: NDArray[np.int32], at: NDArray[np.int32]) -> int:
    """Return how many samples have an equal one in another slice: deleting them leaves what equals them.

    Args:
        twin: groups of equal inputs, from `twins`.
        at: places.

    >>> astray(np.array([2, -1, 2, 0, 0]), np.array([1, 1, 3, 4, 4]))
    2
    """
    groups, places = twin[twin >= 0], at[twin >= 0]
    pairs = np.unique(np.stack([groups, places]), axis=1)[0]
    several = np.flatnonzero(np.bincount(pairs) > 1) if len(pairs) else pairs
    return int(np.isin(groups, several).sum())
