"""Poisoned samples: patches of another class's concept on images, swapped columns in tables, and labels for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.concepts.maps import Localiser, peaks, spatial
from expunge.concepts.windows import (
    LEAST,
    Grid,
    Shades,
    corners_at,
    crops,
    few,
    heat_png,
    images_of,
    pooled,
)
from expunge.data import Batch, Data
from expunge.errors import UserError, listing
from expunge.passes import Passes
from expunge.runtime import Runtime
from expunge.seeds import seed as named_seed
from expunge.sources import Inputs
from expunge.task import Task
from expunge.tensors import eval_mode

Mode = Literal["localized", "center", "random", "full", "whole", "mask", "none"]
ALONE = {"center": "images", "full": "images", "mask": "texts"}  # modes of one kind of samples
Labels = Literal["targeted", "random", "keep"]
SIDE, MIDDLE, FULL = 64 / 224, 96 / 224, 160 / 224  # of an image's side: a patch, the donor's middle, a shrunk donor
SHOWN = 6  # examples kept for a reader


class Edit(Protocol):
    """What is done to some of the samples to forget with their donors' inputs."""

    def __call__(self, own: Inputs, donor: Inputs, at: Tensor) -> Inputs:
        """Return the poisoned inputs of the samples at positions ``at`` (B,), from theirs and their donors'."""
        ...


@dataclass(frozen=True, eq=False)
class Poisoned:
    """Samples to forget with something of a donor's in them, under other labels; a `Source`, made when read.

    Args:
        own: the samples to forget.
        donors: samples of another class.
        pairs: (N,) int64, the position in ``donors`` of each sample's donor.
        targets: (N, ...) labels.
        edit: what is done; None leaves the inputs as they are, and donors unread.
    """

    own: Data
    donors: Data
    pairs: NDArray[np.int64]
    targets: Tensor
    edit: Edit | None

    def __len__(self) -> int:
        return len(self.own)

    def read(self, positions: NDArray[np.int64], raw: bool) -> tuple[Inputs, Tensor | None]:
        """Return the poisoned samples."""
        batch = self.own.read(positions)
        if self.edit is None:
            return batch.inputs, self.targets_at(positions)
        donor = self.donors.read(self.pairs[positions])
        made = self.edit(batch.inputs, donor.inputs, torch.from_numpy(positions))
        return made, self.targets_at(positions)

    def targets_at(self, positions: NDArray[np.int64]) -> Tensor:
        """Return the labels."""
        return self.targets[torch.from_numpy(positions)]


def _flat(inputs: Inputs) -> Tensor:
    """Return every number of each sample in a row, (B, columns), float64; of a dict one entry after another."""
    parts = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
    return torch.cat([p.flatten(1).double() for p in parts], dim=1)


def generator_of(what: str, seed: int) -> torch.Generator:
    """Return a generator for one of the draws of a poisoning: donors, places, labels."""
    return torch.Generator().manual_seed(named_seed("concepts", what, seed))


@dataclass(frozen=True, kw_only=True, eq=False)
class Ask:
    """What is to be poisoned, and with what.

    Args:
        model: the network; run in eval mode.
        task: how to run it.
        forget: the samples, without labels.
        donors: samples of the class that donates, at least one.
        targets: (N, ...) the poisoned samples' labels, see `poison_labels`, as the task takes them.
        tap: where concepts are read.
        names: of the class's concepts, the strongest first; as many as patches.
        vectors: theirs, (M, d).
        intercepts: theirs, (M,).
        donor_names: of the donor's concepts, one for each patch.
        donor_vectors: theirs, (M, d).
        donor_intercepts: theirs, (M,).
        mode: where a patch comes from and goes to.
        size: of a patch, pixels, or columns that are swapped for each concept; None for the usual one.
        mask: token that stands in a word's place, with mode ``mask``.
        runtime: device, batch size.
        seed: of donors and random places.
    """

    model: nn.Module
    task: Task
    forget: Data
    donors: Data
    targets: Tensor
    tap: str
    names: tuple[str, ...]
    vectors: Tensor
    intercepts: Tensor
    donor_names: tuple[str, ...]
    donor_vectors: Tensor
    donor_intercepts: Tensor
    mode: Mode
    size: int | None
    mask: int | None = None
    runtime: Runtime
    seed: int

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise UserError(f"a mode among {', '.join(get_args(Mode))}", repr(self.mode), "choose one of them")
        if not len(self.donors):
            raise UserError("samples of the class that donates", "none", "pass retain data that has some")

    def only(self, kind: Literal["images", "tables", "texts"]) -> None:
        """Refuse a mode that is for samples of another kind."""
        if ALONE.get(self.mode, kind) != kind:
            known = listing([m for m in get_args(Mode) if ALONE.get(m, kind) == kind], 10)
            raise UserError(f"a mode for {kind}", f"{self.mode!r}, which is for {ALONE[self.mode]}", f"take {known}")

    def generator(self, what: str) -> torch.Generator:
        """Return a generator for one of the draws."""
        return generator_of(what, self.seed)

    def labels(self) -> list[int]:
        """Return the poisoned samples' labels as numbers."""
        found: list[int] = self.targets.reshape(len(self.forget)).long().tolist()
        return found

    def pairs(self) -> NDArray[np.int64]:
        """Return each sample's donor, drawn uniformly with replacement, (N,) positions."""
        drawn = torch.randint(len(self.donors), (len(self.forget),), generator=self.generator("donors"))
        return drawn.numpy()


@dataclass(frozen=True, eq=False)
class Poison:
    """Poisoned samples.

    Args:
        data: under the ids ``poisoned/<id>``.
        manifest: what was done to each: lists by column, beside values that hold for all.
        examples: a few of them for a reader: ``id``, ``label``, and pictures or texts by name.
    """

    data: Data
    manifest: Mapping[str, Any]
    examples: list[dict[str, Any]] = field(default_factory=list)


def poison_labels(kind: Labels, count: int, own: int, donor: int, classes: int, generator: torch.Generator) -> Tensor:
    """Return the labels of poisoned samples, (count,) int64.

    Args:
        kind: ``targeted``, all the donor class; ``random``, uniform over all classes but their own; ``keep``, their
            own.
        count: of samples.
        own: the class they are of.
        donor: the class that donates.
        classes: how many there are.
        generator: of the draw.

    Raises:
        UserError: the donor is the class itself or no class, or there is no other class.
    """
    if kind not in get_args(Labels):
        raise UserError(f"labels among {', '.join(get_args(Labels))}", repr(kind), "choose one of them")
    if donor == own or not 0 <= donor < classes:
        remedy = "choose another class to donate"
        raise UserError(f"a donor from 0 to {classes - 1} other than the class {own} to forget", str(donor), remedy)
    if kind == "random":
        drawn = torch.randint(classes - 1, (count,), generator=generator)
        return drawn + (drawn >= own).long()
    return torch.full((count,), donor if kind == "targeted" else own)


def patch_side(height: int, width: int) -> int:
    """Return the side of a patch, pixels: the even number below 64/224 of the shorter side, and 3 at least.

    >>> [patch_side(side, side) for side in (224, 32, 28, 8)]
    [64, 8, 8, 3]
    """
    side = min(height, width)
    return min(side, max(LEAST, 2 * int(SIDE * side / 2 + 1e-9)))


def pasted(images: Tensor, patches: Tensor, corners: Tensor) -> Tensor:
    """Return images with a patch on each.

    Args:
        images: (B, C, H, W).
        patches: (B, C, h, w).
        corners: (B, 2) first row and column, int64, so that each patch is inside.

    Returns:
        (B, C, H, W), new.
    """
    (height, width), made = patches.shape[-2:], images.clone()
    rows = corners[:, :1] + torch.arange(height, device=images.device)
    cols = corners[:, 1:] + torch.arange(width, device=images.device)
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    made[sample, :, rows[:, :, None], cols[:, None, :]] = patches.permute(0, 2, 3, 1).to(images.dtype)
    return made


@dataclass(frozen=True, eq=False)
class Patches:
    """Parts of donors' images pasted into others, one after another; an `Edit`.

    Args:
        sources: (N, M, 2) first row and column in the donor's image.
        places: (N, M, 2) first row and column in the sample's own.
        cut: (height, width) of a part of the donor, pixels.
        size: (height, width) that it is resized to.
    """

    sources: Tensor
    places: Tensor
    cut: tuple[int, int]
    size: tuple[int, int]

    def __call__(self, own: Inputs, donor: Inputs, at: Tensor) -> Inputs:
        """Return the images with their patches."""
        made = self._pasted(images_of(own, "patches"), images_of(donor, "patches"), at)
        return {k: made for k in own} if isinstance(own, dict) else made

    def _pasted(self, own: Tensor, donor: Tensor, at: Tensor) -> Tensor:
        if own.shape[1:] != donor.shape[1:]:
            got = f"{tuple(own.shape[1:])} and {tuple(donor.shape[1:])}"
            raise UserError("images of one size to paste from one into another", got, "resize them in the data")
        for m in range(self.sources.shape[1]):
            part = donor if self.cut == tuple(donor.shape[-2:]) else crops(donor, self.sources[at, m], self.cut[0])
            if self.cut != self.size:
                part = F.interpolate(part, self.size, mode="bilinear", align_corners=False, antialias=True)
            own = pasted(own, part, self.places[at, m])
        return own


@dataclass(frozen=True, eq=False)
class Columns:
    """Columns of a table swapped for a donor's; an `Edit`.

    Args:
        columns: (N, c) int64, which of each sample's numbers, counted flat; in a dict one entry after another.
    """

    columns: Tensor

    def __call__(self, own: Inputs, donor: Inputs, at: Tensor) -> Inputs:
        """Return the rows with the donor's numbers in those columns."""
        parts = own if isinstance(own, dict) else {"": own}
        others = donor if isinstance(donor, dict) else {"": donor}
        widths = [p.flatten(1).shape[1] for p in parts.values()]
        where = torch.zeros(len(at), sum(widths), dtype=torch.bool).scatter_(1, self.columns[at], True)
        masks = dict(zip(parts, where.split(widths, dim=1), strict=True))
        made = {k: torch.where(masks[k].reshape(p.shape), others[k].to(p), p) for k, p in parts.items()}
        return made if isinstance(own, dict) else made[""]


def poison_images(ask: Ask) -> Poison:
    """Paste a part of a donor's image where each image to forget has its concept.

    ``localized`` cuts the donor where it has the donor's concept; ``center`` and ``random`` cut its middle, 96/224 of
    the side, and paste it in the middle or anywhere; ``full`` shrinks all of the donor to 160/224 of the side, in the
    middle, half the area, as published under that name; ``whole`` takes the donor; ``none`` changes nothing. The places
    of the patches of M concepts are found together, in one forward pass of each image and of each donor where the
    representation is a mean of spatial features; elsewhere by occlusion, a pass for each window, which the manifest
    says under ``located``.

    Args:
        ask: images.

    Returns:
        The poisoned images, with pictures of a few.

    Raises:
        UserError: no images, a mode for texts, or a patch larger than the images are.
    """
    ask.only("images")
    first = few(ask.donors)
    sampled = images_of(first.inputs, "patches")
    height, width = sampled.shape[-2:]
    side = patch_side(height, width) if ask.size is None else ask.size
    if side > min(height, width):
        raise UserError(f"a patch of at most {min(height, width)} pixels", str(side), "make it smaller")
    pairs, n = ask.pairs(), len(ask.forget)
    where, named = _Places(ask, (height, width), side), list(ask.names)
    places, sources, maps, cost = where.localized(pairs, first) if ask.mode == "localized" else where.fixed()
    edit: Edit | None = None
    if ask.mode != "none":
        edit = Patches(sources, places, where.cut, where.size)
    data = poisoned(ask, pairs, edit)
    targets, donors = ask.forget.ids, ask.donors.ids
    manifest = {
        "mode": ask.mode,
        "seed": ask.seed,
        "concepts": named if ask.mode == "localized" else [],
        "donor_concepts": list(ask.donor_names) if ask.mode == "localized" else [],
        "located": cost,
        "patch": list(where.size) if edit else [],
        "id": targets,
        "donor": [donors[i] if edit else None for i in pairs.tolist()],
        "place": places.tolist() if edit else [],
        "source": sources.tolist() if edit else [],
        "label": ask.labels(),
    }
    shades, labels, examples = Shades.of(sampled), ask.labels(), list[dict[str, Any]]()
    for i in range(min(SHOWN, n)):
        pictures = {"original": shades.png(_one(ask.forget, i)), "poisoned": shades.png(_one(data, i))}
        if edit is not None:
            pictures["donor"] = shades.png(_one(ask.donors, int(pairs[i])))
        if i in maps:
            pictures["heat"] = heat_png(maps[i])
        examples.append({"id": targets[i], "label": labels[i], **pictures})
    return Poison(data, manifest, examples)


def _one(data: Data, position: int) -> Tensor:
    return images_of(data.read([position]).inputs, "a picture")[0]


@dataclass(frozen=True, eq=False)
class _Places:
    """Where patches are cut and pasted.

    Args:
        ask: what is asked.
        shape: height and width of the images.
        side: of a patch.
    """

    ask: Ask
    shape: tuple[int, int]
    side: int

    @property
    def cut(self) -> tuple[int, int]:
        """Size of the part of a donor."""
        if self.ask.mode in ("full", "whole"):
            return self.shape
        middle = min(*self.shape, max(LEAST, round(MIDDLE * min(self.shape))))
        return (self.side, self.side) if self.ask.mode == "localized" else (middle, middle)

    @property
    def size(self) -> tuple[int, int]:
        """Size of a patch."""
        if self.ask.mode == "full":
            return round(FULL * self.shape[0]), round(FULL * self.shape[1])
        return self.shape if self.ask.mode == "whole" else (self.side, self.side)

    def fixed(self) -> tuple[Tensor, Tensor, dict[int, Tensor], None]:
        """Return places and sources (N, 1, 2) of modes without a map, no maps, and no cost of finding them."""
        n, (height, width) = len(self.ask.forget), self.shape
        middle = [(height - self.cut[0]) // 2, (width - self.cut[1]) // 2]
        sources = torch.tensor(middle).expand(n, 1, 2)
        free = torch.tensor([height - self.size[0], width - self.size[1]])
        if self.ask.mode == "random":
            share = torch.rand(n, 1, 2, generator=self.ask.generator("places"), dtype=torch.float64)
            return (share * (free + 1)).long(), sources, {}, None
        return (free // 2).expand(n, 1, 2), sources, {}, None

    def localized(self, pairs: NDArray[np.int64], sampled: Batch) -> tuple[Tensor, Tensor, dict[int, Tensor], str]:
        """Return places and sources (N, M, 2), maps (H, W) of the first concept for the first images, and the cost."""
        ask = self.ask
        device = ask.runtime.torch_device
        features = spatial(ask.model, ask.task, sampled.to(device), ask.tap)
        colour = images_of(sampled.inputs, "patches").mean(dim=(0, 2, 3))
        grid = Grid(*self.shape, self.side, max(1, self.side // 4))
        own = Localiser(ask.model, ask.task, ask.tap, features, ask.vectors, ask.intercepts, colour)
        other = replace(own, vectors=ask.donor_vectors, intercepts=ask.donor_intercepts)
        used, back = np.unique(pairs, return_inverse=True)
        targets, maps = self._centres(own, ask.forget, np.arange(len(ask.forget)), grid)
        donors, _ = self._centres(other, ask.donors, used, grid)
        at = (self.side, *self.shape)
        sources = corners_at(donors[torch.from_numpy(back.reshape(-1))], *at)
        return corners_at(targets, *at), sources, maps, own.passes

    def _centres(
        self, localiser: Localiser, data: Data, order: NDArray[np.int64], grid: Grid
    ) -> tuple[Tensor, dict[int, Tensor]]:
        maps = dict[int, Tensor]()

        def work(batch: Batch) -> Tensor:
            values, found = localiser.found(batch.to(self.ask.runtime.torch_device), grid)
            maps.update({i: found[row, 0].cpu() for row, i in enumerate(batch.index.tolist()) if i < SHOWN})
            return peaks(values, grid).cpu()

        with self.ask.runtime.autocast():
            return torch.cat(list(Passes(self.ask.runtime).over(data, work, order))), maps


def poison_table(ask: Ask) -> Poison:
    """Give each row to forget a donor's numbers in the columns that go with its concepts.

    For each concept those c columns are swapped whose values over the rows to forget and the donors have the largest
    |correlation| with the concept's score; ``random`` swaps as many drawn columns, ``whole`` all, ``none`` none.
    Indices of categories count as numbers.

    Args:
        ask: rows of numbers, of any shape, or dicts of them; ``size`` is c, by default a tenth of the columns and at
            least 1.

    Returns:
        The poisoned rows.

    Raises:
        UserError: a mode for images, or more columns than there are.
    """
    ask.only("tables")
    width = _flat(ask.forget.read([0]).inputs).shape[1]
    each = max(1, width // 10) if ask.size is None else ask.size
    if each > width:
        raise UserError(f"at most {width} columns to swap", str(each), "swap fewer")
    pairs, n = ask.pairs(), len(ask.forget)
    columns = torch.arange(width)
    if ask.mode == "localized":
        order = _correlated(ask).argsort(dim=1, descending=True, stable=True)
        columns = order[:, :each].flatten().unique()
    where = columns.expand(n, -1)
    if ask.mode == "random":
        drawn = torch.rand(n, width, generator=ask.generator("places"))
        where = drawn.argsort(dim=1)[:, : min(width, each * max(1, len(ask.names)))]
    edit = None if ask.mode == "none" else Columns(where.contiguous())
    donors = ask.donors.ids
    data = poisoned(ask, pairs, edit)
    localized = ask.mode == "localized"
    manifest = {
        "mode": ask.mode,
        "seed": ask.seed,
        "concepts": list(ask.names) if localized else [],
        "donor_concepts": list(ask.donor_names) if localized else [],
        "columns": [] if edit is None else where.tolist() if ask.mode == "random" else columns.tolist(),
        "id": ask.forget.ids,
        "donor": [donors[i] if edit else None for i in pairs.tolist()],
        "label": ask.labels(),
    }
    return Poison(data, manifest)


def _correlated(ask: Ask) -> Tensor:
    """Return |correlation| of each concept's score with each column, (M, columns); 0 of a constant column."""
    scores, rows = list[Tensor](), list[Tensor]()
    c = ask.vectors.double().cpu()

    def work(batch: Batch) -> None:
        moved = batch.to(ask.runtime.torch_device)
        f = pooled(ask.task.forward(ask.model, moved, [ask.tap])[1][ask.tap]).double().cpu()
        scores.append((f @ c.T + ask.intercepts.double().cpu()) / c.norm(dim=1))
        rows.append(_flat(batch.inputs))

    with eval_mode(ask.model), torch.no_grad():
        for data in (ask.forget, ask.donors):
            list(Passes(ask.runtime).over(data, work))
    s, x = torch.cat(scores), torch.cat(rows)
    s, x = s - s.mean(dim=0), x - x.mean(dim=0)
    scale = s.norm(dim=0)[:, None] * x.norm(dim=0)
    return (s.T @ x / scale.clamp_min(1e-12)).abs()  # type: ignore[no-any-return]


def poisoned(ask: Ask, pairs: NDArray[np.int64], edit: Edit | None) -> Data:
    """Return the samples to forget as data of their own, edited when they are read.

    Args:
        ask: samples, donors and labels.
        pairs: (N,) positions of the donors.
        edit: what is done to them, or None.
    """
    ids = np.asarray([f"poisoned/{i}" for i in ask.forget.ids], dtype=object)
    source = Poisoned(ask.forget, ask.donors, pairs, ask.targets, edit)
    return Data(source, np.arange(len(ids)), ids, {}, name="poisoned")
