"""Canaries: training samples whose truth is known, because they were planted under a random label or kept out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expunge.data import Data, id_hashes, relabelled
from expunge.errors import CorruptArtefact, Incompatible, NotFinite, UserError, listing
from expunge.files import check_free, digest, read_document, there, write_document
from expunge.seeds import seed as named_seed
from expunge.sources import Relabelled

KIND, SCHEMA, FILE = "expunge.canaries", 1, "canaries.json"
WHY = "canaries"  # what relabelled data says of itself
Label = int | float


@dataclass(frozen=True)
class Canaries:
    """Which samples were planted under which random label, and which were kept out of training: a manifest.

    The two are drawn alike and labelled alike, and so exchangeable: no attack on a model that has forgotten the planted
    ones tells them from the unseen ones better than by chance. That can be tested without a retrained model.

    Args:
        seed: of the draw.
        planted: random labels by id, of the samples that are trained on under them.
        unseen: random labels by id, of the samples that are kept out of training.
        source: SHA-256 of the ids and labels that they were drawn from, in any order.

    Raises:
        UserError: a sample is both planted and unseen.
    """

    seed: int
    planted: Mapping[str, Label]
    unseen: Mapping[str, Label]
    source: str

    def __post_init__(self) -> None:
        both = sorted(set(self.planted) & set(self.unseen))
        if both:
            raise UserError("canaries planted or unseen", f"{listing(both)} as both", "draw them with plant")
        object.__setattr__(self, "planted", dict(sorted(self.planted.items())))
        object.__setattr__(self, "unseen", dict(sorted(self.unseen.items())))

    def save(self, path: str | Path) -> None:
        """Write the manifest, whole or not at all; where the very same is there already, it is left alone.

        Raises:
            UserError: another manifest is there, or the folder cannot be written.
        """
        path = Path(path)
        if there(path) is None:
            check_free(path, overwrite=False)
            write_document(path, KIND, SCHEMA, {**self._body(), "digest": self.digest()})
        elif Canaries.load(path) != self:
            remedy = "choose another folder, or move that file away"
            raise UserError(f"a place for these canaries, {path}", "the canaries of another training", remedy)

    @classmethod
    def load(cls, path: str | Path) -> Canaries:
        """Read what `save` wrote.

        Returns:
            The manifest.

        Raises:
            CorruptArtefact: it was altered.
            Incompatible: another kind of document, or one of a newer version.
            UserError: no such file.
        """
        found = read_document(Path(path), KIND, SCHEMA)
        body: dict[str, Any] = {key: found.get(key) for key in ("seed", "planted", "unseen", "source")}
        try:
            whole = found.get("digest") == digest(body)
        except NotFinite:
            whole = False
        if not whole:
            raise CorruptArtefact(f"whole canaries in {path}", "other values than were written", "restore the file")
        return cls(**body)

    def digest(self) -> str:
        """Return the SHA-256 of the manifest."""
        return digest(self._body())

    def _body(self) -> dict[str, Any]:
        return {"seed": self.seed, "source": self.source, "planted": self.planted, "unseen": self.unseen}

    def applied(self, data: Data) -> Data:
        """Return the data that was trained on: planted samples under their random labels, unseen ones left out.

        Args:
            data: the full training data, as `plant` was given it, in any order.

        Returns:
            The data as `plant` returned it, in the order of this data.

        Raises:
            UserError: canaries are planted in it already, or samples are missing.
            Incompatible: it holds other samples or labels than the canaries were drawn from.
        """
        return self._planted(data, self._targets(data))

    def samples(self, data: Data) -> tuple[Data, Data]:
        """Return the planted and the unseen samples, each under its random label, in the order of their ids.

        Args:
            data: the full training data, as `plant` was given it, in any order.

        Returns:
            Planted, unseen.

        Raises:
            UserError: as `applied`.
        """
        both = _changed(data, self._targets(data), {**self.planted, **self.unseen})
        planted, unseen = both.subset(self.planted), both.subset(self.unseen)
        return replace(planted, name="planted canaries"), replace(unseen, name="unseen canaries")

    def left(self, data: Data) -> tuple[Data, Canaries]:
        """Return the data that was trained on, and the canaries in it, where samples were deleted since.

        Drawing anew would not do: what is gone would change who is drawn, and under which label.

        Args:
            data: what is left of the full training data.

        Returns:
            The data as trained on, and the manifest of the canaries that are there, bound to what is left.

        Raises:
            UserError: canaries are planted in it already.
        """
        targets, here = _targets(data), set(data.ids)
        planted, unseen = (
            {key: label for key, label in of.items() if key in here} for of in (self.planted, self.unseen)
        )
        rest = Canaries(self.seed, planted, unseen, _source(data, targets))
        return rest._planted(data, targets), rest

    def as_trained(self, data: Data) -> Data:
        """Return some samples of the full data, those that were planted under the label they were trained on."""
        if not data.labelled or not set(data.ids) & set(self.planted):
            return data
        return _changed(data, _targets(data), self.planted)

    def _targets(self, data: Data) -> Tensor:
        """Return the targets of the full data, held to what the canaries were drawn from."""
        targets, here = _targets(data), set(data.ids)
        missing = [i for i in (*self.planted, *self.unseen) if i not in here]
        if missing:
            remedy = "pass the whole training data, before anything was planted or deleted"
            got = f"none called {listing(missing)}"
            raise UserError(f"the data that the canaries were drawn from, in {data.name}", got, remedy)
        if _source(data, targets) != self.source:
            remedy = "pass the training data as it was when they were planted"
            raise Incompatible(f"the data that the canaries were drawn from, in {data.name}", "other samples", remedy)
        return targets

    def _planted(self, data: Data, targets: Tensor) -> Data:
        return _changed(data, targets, self.planted).without(self.unseen)


def plant(data: Data, n: int, *, seed: int = 0) -> tuple[Data, Canaries]:
    """Plant canaries: of 2n samples give n a random label, and keep the other n, labelled alike, out of training.

    The 2n are the first in a hash order of ids, so that the draw depends on the seed, ids and labels and not on the
    order of the data. A class label becomes one of the other classes in the data, each as likely; a real target the
    one of another of the 2n, by a random cycle through them.

    Args:
        data: training data, labelled with class indices (N,) or one real target a sample.
        n: samples to plant; as many again are kept out.
        seed: of the draw.

    Returns:
        The data to train on, and the manifest, which alone tells what the canaries are.

    Raises:
        UserError: too many for the data, targets that cannot be drawn anew, or canaries planted already.

    >>> full = Data.from_arrays(torch.zeros(40, 2), [0, 1, 2, 3] * 10)
    >>> train, canaries = plant(full, 5)
    >>> len(train), len(canaries.planted), len(canaries.unseen)
    (35, 5, 5)
    """
    if not isinstance(n, Integral) or isinstance(n, bool) or n < 1:
        raise UserError("1 canary or more", repr(n), "give a whole number")
    n, seed, targets = int(n), int(seed), _targets(data)
    if 4 * n > len(data):
        remedy = "plant fewer, or train on more: as many again are kept out, and both are at most half of the data"
        raise UserError(f"at most {len(data) // 4} canaries in {len(data)} samples of {data.name}", str(n), remedy)
    known = sorted(set(targets.reshape(-1).tolist()))
    if len(known) < 2:
        what = "targets that differ" if targets.is_floating_point() else "two classes or more"
        raise UserError(f"{what} to draw labels of canaries from", f"only {known[0]}", "plant none in this data")
    ids = data.ids
    drawn = _order("who", seed, ids)[: 2 * n]
    own = dict(zip(ids, targets.reshape(-1).tolist(), strict=True))
    labels = _cycled(own, drawn, seed) if targets.is_floating_point() else _other(own, drawn, known, seed)
    planted, unseen = ({i: labels[i] for i in part} for part in (drawn[:n], drawn[n:]))
    canaries = Canaries(seed, planted, unseen, _source(data, targets))
    return canaries._planted(data, targets), canaries


def _keyed(what: str, seed: int, ids: list[str]) -> list[int]:
    """Return a number an id that looks random and depends on nothing else but the seed."""
    key = named_seed("canaries", what, seed).to_bytes(8, "big")
    return [int(number) for number in id_hashes(key, ids)]


def _order(what: str, seed: int, ids: list[str]) -> list[str]:
    return [i for _, i in sorted(zip(_keyed(what, seed, ids), ids, strict=True))]


def _other(own: Mapping[str, Label], drawn: list[str], known: list[Label], seed: int) -> dict[str, Label]:
    at = {label: place for place, label in enumerate(known)}
    steps = [1 + number % (len(known) - 1) for number in _keyed("label", seed, drawn)]
    return {i: known[(at[own[i]] + step) % len(known)] for i, step in zip(drawn, steps, strict=True)}


def _cycled(own: Mapping[str, Label], drawn: list[str], seed: int) -> dict[str, Label]:
    order = _order("label", seed, drawn)
    return {i: own[other] for i, other in zip(order, [*order[1:], order[0]], strict=True)}


def _targets(data: Data) -> Tensor:
    """Return the targets of data that canaries may be planted in."""
    source = data.source
    while isinstance(source, Relabelled):
        if source.why == WHY:
            remedy = "pass the data as it was before, or train with Recipe(canaries=0)"
            raise UserError(f"data without canaries in {data.name}", "canaries planted already", remedy)
        source = source.source
    if not data.labelled:
        raise UserError(f"labels in {data.name}, for canaries", "none", "give targets when building the data")
    targets = data.targets()
    real = targets.is_floating_point()
    index = targets.dim() == 1 and targets.dtype != torch.bool and not targets.is_complex()
    if (targets.numel() != len(targets)) if real else not index:
        got = f"{targets.dtype} of shape {tuple(targets.shape)}"
        raise UserError("class indices, or one real target a sample, for canaries", got, "plant none in this data")
    if not real and int(targets.min()) < 0:
        raise UserError("class indices of 0 or more, for canaries", f"{int(targets.min())}", "encode them as 0..K-1")
    if real and not bool(torch.isfinite(targets.float()).all()):
        raise UserError("finite targets, for canaries", "NaN or infinity", "drop or repair those samples")
    return targets


def _source(data: Data, targets: Tensor) -> str:
    """Return the digest of ids and labels; the width of numbers is no content."""
    plain = targets.float() if targets.is_floating_point() else targets
    return digest(sorted(zip(data.ids, plain.reshape(-1).tolist(), strict=True)))


def _changed(data: Data, targets: Tensor, labels: Mapping[str, Label]) -> Data:
    """Return the data with the labels of some ids, of those that are there, put in place of their own."""
    made = targets.clone()
    for row, key in enumerate(data.ids):
        if key in labels:
            made[row] = labels[key]
    return relabelled(data, made, why=WHY)
