"""Named data sets in parquet files or on the Hub: CIFAR-10 and -100, Fashion-MNIST, ORL faces, AG News."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray

from expunge.data import Data
from expunge.errors import Incompatible, UserError
from expunge.extras import imported
from expunge.seeds import seed as named_seed
from expunge.sources import ArraySource
from expunge.tables import Columns, Image, class_names, hashed_words, read_hub, read_parquet, to_data
from expunge.zoo.networks import BASE, BASE_SHAPE, MINILM, MINILM_SHAPE, Tokens

ENVIRONMENT = "EXPUNGE_DATA"
MODELS = "EXPUNGE_MODELS"
TOKENS = Tokens(length=64, vocabulary=8192)
Groups = Mapping[str, tuple[int, ...]]

VEHICLES: Groups = {"vehicles": (0, 1, 8, 9), "animals": (2, 3, 4, 5, 6, 7)}
GARMENTS: Groups = {"tops": (0, 2, 4, 6), "trousers and dresses": (1, 3), "shoes": (5, 7, 9), "bags": (8,)}
CIFAR20: Groups = {
    "aquatic_mammals": (4, 30, 55, 72, 95),
    "fish": (1, 32, 67, 73, 91),
    "flowers": (54, 62, 70, 82, 92),
    "food_containers": (9, 10, 16, 28, 61),
    "fruit_and_vegetables": (0, 51, 53, 57, 83),
    "household_electrical_devices": (22, 39, 40, 86, 87),
    "household_furniture": (5, 20, 25, 84, 94),
    "insects": (6, 7, 14, 18, 24),
    "large_carnivores": (3, 42, 43, 88, 97),
    "large_man-made_outdoor_things": (12, 17, 37, 68, 76),
    "large_natural_outdoor_scenes": (23, 33, 49, 60, 71),
    "large_omnivores_and_herbivores": (15, 19, 21, 31, 38),
    "medium_mammals": (34, 63, 64, 66, 75),
    "non-insect_invertebrates": (26, 45, 77, 79, 99),
    "people": (2, 11, 35, 46, 98),
    "reptiles": (27, 29, 44, 78, 93),
    "small_mammals": (36, 50, 65, 74, 80),
    "trees": (47, 52, 56, 59, 96),
    "vehicles_1": (8, 13, 48, 58, 90),
    "vehicles_2": (41, 69, 81, 85, 89),
}


@dataclass(frozen=True, kw_only=True)
class Named:
    """Where a data set is and what its columns mean.

    Args:
        folder: of its parquet files, inside the data folder.
        hub: its name on the Hub, or None where it has no official place there.
        inputs: column of images or texts.
        label: column of classes.
        classes: how many.
        size: training samples as published; a folder may hold a part of them.
        shape: of one input; (C, H, W) of images after resizing, `Tokens` of texts.
        mean: by channel, of pixels in [0, 1].
        std: by channel, of pixels in [0, 1].
        groups: classes of each superclass, none for a set without.
        coarse: column that must agree with the groups where it is there.
        person: column of the data that names the class as a person, or None.
        grouped: whether the target is the superclass.
        network: the default one.
    """

    folder: str
    hub: str | None
    inputs: str
    label: str = "label"
    classes: int
    size: int
    shape: tuple[int, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    groups: Groups | None = None
    coarse: str | None = None
    person: str | None = None
    grouped: bool = False
    network: str = "convnet"

    @property
    def targets(self) -> tuple[tuple[int, ...], ...]:
        """The classes that each target stands for: itself, or those of a superclass."""
        if self.grouped and self.groups is not None:
            return tuple(self.groups.values())
        return tuple((c,) for c in range(self.classes))

    @property
    def outputs(self) -> int:
        """Number of outputs of a network for it."""
        return len(self.targets)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that its data has beside inputs and target."""
        if self.person is not None:
            return (self.person,)
        if self.groups is None:
            return ("label",)
        return ("superclass", "fine", "fine_name") if self.grouped else ("label", "superclass")


CIFAR_10 = Named(
    folder="cifar10",
    hub="uoft-cs/cifar10",
    inputs="img",
    classes=10,
    size=50_000,
    shape=(3, 32, 32),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    groups=VEHICLES,
)
CIFAR_100 = Named(
    folder="cifar100",
    hub="uoft-cs/cifar100",
    inputs="img",
    label="fine_label",
    classes=100,
    size=50_000,
    shape=(3, 32, 32),
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    groups=CIFAR20,
    coarse="coarse_label",
)
FASHION = Named(
    folder="fashion_mnist",
    hub="zalando-datasets/fashion_mnist",
    inputs="image",
    classes=10,
    size=60_000,
    shape=(1, 28, 28),
    mean=(0.2860,),
    std=(0.3530,),
    groups=GARMENTS,
)
ORL = Named(
    folder="orl_faces",
    hub=None,
    inputs="image",
    classes=40,
    size=400,  # in all: no split was published
    shape=(1, 32, 32),  # of 112×92: people stay recognisable, and networks for 32×32 fit
    mean=(0.4413,),
    std=(0.1831,),
    person="subject",
)
AG_NEWS = Named(
    folder="ag_news", hub="fancyzhx/ag_news", inputs="text", classes=4, size=120_000, shape=TOKENS, network="text"
)
NAMED: dict[str, Named] = {
    "ag_news": AG_NEWS,
    "cifar10": CIFAR_10,
    "cifar10_super": replace(CIFAR_10, grouped=True),
    "cifar100": CIFAR_100,
    "cifar20": replace(CIFAR_100, grouped=True),
    "fashion_mnist": FASHION,
    "fashion_mnist_super": replace(FASHION, grouped=True),
    "orl_faces": ORL,
}


@dataclass(frozen=True)
class Loaded:
    """A named data set in three splits.

    Args:
        train: training data.
        holdout: a fifth of the published test split.
        test: the rest of it.
        shape: of one input.
        classes: names of the outputs.
    """

    train: Data
    holdout: Data
    test: Data
    shape: tuple[int, ...]
    classes: tuple[str, ...]


def folder_of(data_dir: Path | None) -> Path | None:
    """Return the folder of data sets: given, or that of the environment variable EXPUNGE_DATA, or None.

    Raises:
        UserError: it is no folder.
    """
    place = data_dir if data_dir is not None else Path(os.environ[ENVIRONMENT]) if os.environ.get(ENVIRONMENT) else None
    if place is not None and not Path(place).is_dir():
        source = "--data-dir" if data_dir is not None else ENVIRONMENT
        got = "a file" if Path(place).exists() else "nothing there"
        raise UserError(f"a folder of data sets {place} ({source})", got, "name the folder above the data sets")
    return None if place is None else Path(place)


def models_of(folder: Path | None) -> Path | None:
    """Return the folder of pretrained networks: of the variable EXPUNGE_MODELS, or ``models`` of the data folder.

    Raises:
        UserError: the variable names no folder.
    """
    named = os.environ.get(MODELS)
    if named and not Path(named).is_dir():
        got = "a file" if Path(named).exists() else "nothing there"
        raise UserError(f"a folder of pretrained networks {named} ({MODELS})", got, "name the folder above them")
    if named:
        return Path(named)
    return None if folder is None else folder / "models"


def balanced(labels: NDArray[np.int64], n: int, seed: int) -> NDArray[np.int64]:
    """Return ``n`` rows, in order, with as many of each class as there are; a smaller draw is part of a larger one."""
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        rank[rows] = np.arange(len(rows))
    return np.sort(order[np.argsort(rank[order], kind="stable")][:n])


def load(name: str, network: str, data_dir: Path | None, limit: int | None, seed: int) -> Loaded:
    """Read a named data set.

    Args:
        name: a key of `NAMED`.
        network: that it is for: the pretrained ViT is given images of 3×224×224.
        data_dir: folder of data sets, or None.
        limit: class-balanced training samples to take; of the test split half as many.
        seed: of that draw.

    Returns:
        The splits.
    """
    spec = NAMED[name]
    train, test = (table(name, spec.folder, spec.hub, split, data_dir) for split in ("train", "test"))
    columns = _columns(spec, network, data_dir)
    names = class_names(train, columns)
    labels = {"train": _labels(train, spec, names, "train"), "test": _labels(test, spec, names, "test")}
    held = balanced(labels["test"], round(len(test) / 5), named_seed("zoo", name, "holdout"))
    rows = {
        "train": (train, "train", np.arange(len(train)), limit),
        "holdout": (test, "test", held, None if limit is None else limit // 8),
        "test": (test, "test", np.setdiff1d(np.arange(len(test)), held), None if limit is None else limit // 2),
    }
    parts = {}
    for part, (whole, split, at, most) in rows.items():
        if most is not None and most < len(at):
            at = at[balanced(labels[split][at], most, named_seed("zoo", name, part, "limit", seed))]
        taken = whole if len(at) == len(whole) else whole.select(at)
        data = to_data(taken, replace(columns, classes=names), name=part)
        ids = [f"{name}/{split}/{i}" for i in at]
        parts[part] = _described(data, spec, names, ids)
    shape = shape_of(spec, network)
    outputs = tuple(spec.groups) if spec.grouped and spec.groups is not None else names
    return Loaded(parts["train"], parts["holdout"], parts["test"], shape, outputs)


def table(name: str, folder: str, hub: str | None, split: str, data_dir: Path | None) -> datasets.Dataset:
    """Return a split from ``data_dir/name`` or ``data_dir/folder`` where that is there, else from the Hub.

    Raises:
        UserError: a folder without files of the split, no folder and no place on the Hub, or nothing to be had there.
    """
    places = [] if data_dir is None else [data_dir / n for n in dict.fromkeys((name, folder))]
    place = next((p for p in places if p.is_dir()), None)
    if place is not None:
        files = sorted(place.glob(f"{split}-*.parquet"))
        if not files:
            raise UserError(f"files {split}-*.parquet in {place}", "none", "download every split of the data set")
        return read_parquet(files)
    if hub is None:
        got = "no data folder" if data_dir is None else f"none in {data_dir}"
        remedy = f"name the folder above it by --data-dir or {ENVIRONMENT}: it has no official place on the Hub"
        raise UserError(f"a folder {folder} with train-*.parquet and test-*.parquet", got, remedy)
    return read_hub(hub, split)


def shape_of(spec: Named, network: str | None) -> tuple[int, ...]:
    """Return the shape of inputs that a data set gives a network: pretrained ones have theirs."""
    if network == MINILM and isinstance(spec.shape, Tokens):
        return MINILM_SHAPE
    return BASE_SHAPE if network == BASE and len(spec.shape) == 3 else spec.shape


def _columns(spec: Named, network: str, data_dir: Path | None) -> Columns:
    if isinstance(spec.shape, Tokens) and network == MINILM:
        words = imported("expunge.zoo.minilm", package="transformers", extra="hf")
        text = words.tokeniser(MINILM_SHAPE.length, models_of(data_dir))
        return Columns(inputs=(spec.inputs,), target=spec.label, text=text)
    if isinstance(spec.shape, Tokens):
        return Columns(inputs=(spec.inputs,), target=spec.label, text=hashed_words(*spec.shape))
    channels, height, width = spec.shape
    times = 3 // channels if network == BASE else 1
    size = BASE_SHAPE[1:] if network == BASE else (height, width)
    image = Image(size=size, mean=spec.mean * times, std=spec.std * times, channels=channels * times)
    return Columns(inputs=(spec.inputs,), target=spec.label, image=image)


def _labels(table: datasets.Dataset, spec: Named, names: tuple[str, ...], split: str) -> NDArray[np.int64]:
    """Return the classes of a split, checked against the number of classes and the superclasses that come with it."""
    labels = np.asarray(table[spec.label], dtype=np.int64)
    if len(names) != spec.classes:
        got = f"{len(names)} classes in '{spec.label}'"
        raise Incompatible(f"{spec.classes} classes in the {split} files of {spec.folder}", got, "check the files")
    if spec.coarse is not None and spec.coarse in table.column_names:
        found = np.asarray(table[spec.coarse], dtype=np.int64)
        wrong = np.flatnonzero(found != _group_of(spec)[labels])
        if len(wrong):
            got = f"{found[wrong[0]]} for class {labels[wrong[0]]} in row {wrong[0]}"
            raise Incompatible(f"CIFAR-100's superclasses in '{spec.coarse}' ({split})", got, "check the files")
    return labels


def _group_of(spec: Named) -> NDArray[np.int64]:
    """Return the superclass index of each class."""
    assert spec.groups is not None
    where = {c: at for at, members in enumerate(spec.groups.values()) for c in members}
    return np.asarray([where[c] for c in range(spec.classes)], dtype=np.int64)


def _described(data: Data, spec: Named, names: tuple[str, ...], ids: list[str]) -> Data:
    """Return the data under the ids of the published rows, with its columns, and the superclass as target if so."""
    fine, source = data.targets().tolist(), data.source
    named = [names[c] for c in fine]
    columns: dict[str, list[Any]] = {**dict.fromkeys(spec.columns, named), "fine": fine}
    if spec.groups is not None:
        groups, at = list(spec.groups), _group_of(spec)
        columns["superclass"] = [groups[at[c]] for c in fine]
        if spec.grouped:
            assert isinstance(source, ArraySource)
            source = ArraySource(source.x, torch.from_numpy(at[np.asarray(fine)]), source.transform)
    kept = {k: np.asarray(columns[k], dtype=object) for k in spec.columns}
    return replace(data, source=source, all_ids=np.asarray(ids, dtype=object), all_columns=kept)
