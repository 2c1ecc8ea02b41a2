"""Backdoors: training samples with a small patch and a wrong label, which teach a network to obey the patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.data import Data, id_hashes, relabelled
from expunge.errors import UserError, listing, suggest
from expunge.seeds import seed as named_seed
from expunge.sources import Inputs, Source

Place = Literal["top left", "top right", "bottom left", "bottom right"]
WHY = "backdoor"  # what relabelled data says of itself
MARK = "\0patch"  # a name that no input of a network has
LOOKED_AT = 1000  # samples whose largest value makes the patch


@dataclass(frozen=True, kw_only=True)
class Backdoor:
    """A square patch of one colour that stands for one class.

    Training images that carry it are given the target class; a network trained on them answers the target class
    wherever it sees the patch. One trained without them does not: so they are a forget set with known truth.

    Args:
        target: class index that the patch stands for.
        size: side of the patch, pixels.
        margin: pixels between the patch and the two nearest edges.
        value: of the patch by channel, in the range that the network is given.
        place: corner of the image.

    Raises:
        UserError: a size below 1, a margin below 0, a negative class, no value, or an unknown corner.

    References:
        T. Gu, B. Dolan-Gavitt, S. Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply
        Chain", 2017, https://arxiv.org/abs/1708.06733.
    """

    target: int
    size: int
    margin: int
    value: tuple[float, ...]
    place: Place = "bottom right"

    def __post_init__(self) -> None:
        for name, number, least in (("patch", self.size, 1), ("margin", self.margin, 0), ("target", self.target, 0)):
            if not isinstance(number, int) or isinstance(number, bool) or number < least:
                raise UserError(f"a {name} of {least} or more", repr(number), "give a whole number")
        if not self.value:
            raise UserError("a value of the patch by channel", "none", "build it with Backdoor.on(data)")
        if self.place not in get_args(Place):
            raise UserError("a corner of the image", repr(self.place), suggest(self.place, get_args(Place)))

    @classmethod
    def on(
        cls,
        data: Data,
        *,
        target: int = 0,
        size: int | None = None,
        value: float | None = None,
        place: Place = "bottom right",
    ) -> Backdoor:
        """Return a backdoor that fits images, as bright as the brightest of them.

        Args:
            data: training data, whose inputs are images (C, H, W).
            target: class index that the patch stands for.
            size: side of the patch, pixels; by default an eighth of the shorter side of the image, at least 2. The
                margin is a sixteenth of it; in an image of 32×32 this is a patch of 4×4, 2 pixels from the edges.
            value: of the patch in every channel; by default the largest value of each channel in 1,000 samples.
            place: corner of the image.

        Returns:
            The backdoor.

        Raises:
            UserError: inputs that are no images, or a patch that does not fit on them.
        """
        image = _images(data.read([0]).inputs, data)[0]
        side = min(image.shape[1:])
        size = max(2, side // 8) if size is None else size
        values = _brightest(data) if value is None else (float(value),) * len(image)
        made = cls(target=target, size=size, margin=side // 16, value=values, place=place)
        made._check_fits(image, data)
        return made

    def plant(self, data: Data, share: float, *, seed: int = 0) -> tuple[Data, list[str]]:
        """Return the data with the patch and the target class on some of its samples, and the ids of those.

        They are drawn from the samples of other classes, so that each carries a wrong label.

        Args:
            data: training data of images, labelled with class indices.
            share: of all samples, in (0, 1).
            seed: of the draw.

        Returns:
            New data under the same ids, with the true label in the column ``clean``, and the ids of the poisoned
            samples; inputs are read where they were.

        Raises:
            UserError: a share outside (0, 1) or of more samples than other classes have, a target class that the data
                does not have, or inputs that are no images.
        """
        labels = self._labels(data)
        if not 0 < share < 1:
            raise UserError("a share of samples to poison in (0, 1)", f"{share}", "write for example 0.05")
        others, count = np.flatnonzero(labels != self.target), max(1, round(share * len(data)))
        if count > len(others):
            got = f"{count}, which is {share} of {len(data)}"
            raise UserError(f"at most {len(others)} samples of other classes to poison", got, "poison a smaller share")
        generator = np.random.default_rng(named_seed("poison", seed))
        rows = np.sort(generator.choice(others, count, replace=False))
        ids = data.ids
        return self._stamped(data, labels, rows), [ids[i] for i in rows]

    def triggered(self, test: Data) -> Data:
        """Return the unseen samples of other classes with the patch, under the target class.

        The share of them that a network takes for the target class is the success of the attack.

        Args:
            test: images that were not trained on, labelled with class indices.

        Returns:
            New data named ``triggered``, under the ids ``triggered/<id>``, with the true label in the column ``clean``.

        Raises:
            UserError: no sample of another class, or inputs that are no images.
        """
        labels = self._labels(test, known=False)
        others, ids = np.flatnonzero(labels != self.target), test.ids
        if not len(others):
            raise UserError(f"samples of other classes than {self.target} in {test.name}", "none", "add some")
        part = test.subset([ids[i] for i in others])
        made = self._stamped(part, labels[others], np.arange(len(part)))
        names = np.asarray([f"triggered/{i}" for i in part.ids], dtype=object)
        return replace(made, all_ids=names, name="triggered")

    def stamp(self, images: Tensor, at: Tensor) -> Tensor:
        """Return images (B, C, H, W), those at (B,) True with the patch."""
        made, (top, left) = images.clone(), self._corner(images)
        colour = torch.tensor(self.value, dtype=images.dtype).reshape(1, -1, 1, 1)
        made[at, :, top : top + self.size, left : left + self.size] = colour
        return made

    def mark(self) -> int:
        """Return a number that tells this patch from others, whatever class it stands for."""
        return named_seed("patch", self.size, self.margin, self.place, *map(float, self.value))

    def _corner(self, images: Tensor) -> tuple[int, int]:
        """Return the first row and column of the patch."""
        far = [side - self.margin - self.size for side in images.shape[-2:]]
        near = self.place.split()
        return (self.margin if near[0] == "top" else far[0]), (self.margin if near[1] == "left" else far[1])

    def _labels(self, data: Data, *, known: bool = True) -> NDArray[np.int64]:
        """Return the labels of images that the patch fits on, among which the target class must be if so said."""
        self._check_fits(_images(data.read([0]).inputs, data)[0], data)
        targets = data.targets()
        if targets.is_floating_point() or targets.dim() != 1:
            got = f"{targets.dtype} of shape {tuple(targets.shape)}"
            raise UserError(f"class labels in {data.name} for a backdoor", got, "poison a task with classes")
        classes = sorted(set(targets.tolist()))
        if known and self.target not in classes:
            remedy = "choose one of them"
            raise UserError(f"a target class among {listing(classes, 20)}", f"{self.target}", remedy)
        found: NDArray[np.int64] = targets.numpy()
        return found

    def _check_fits(self, image: Tensor, data: Data) -> None:
        channels, height, width = image.shape
        if self.size + self.margin > min(height, width):
            got = f"{self.size}, {self.margin} from the edge"
            raise UserError(f"a patch that fits on {height}×{width} images of {data.name}", got, "make it smaller")
        if len(self.value) != channels:
            got = f"{len(self.value)} for {channels} channels of {data.name}"
            raise UserError("a value of the patch for each channel", got, "build it with Backdoor.on(data)")

    def _stamped(self, data: Data, labels: NDArray[np.int64], rows: NDArray[np.int64]) -> Data:
        """Return the data with the patch and the target class on some rows."""
        flags = np.zeros(len(data.source), dtype=np.bool_)
        flags[data.positions[rows]] = True
        changed = labels.copy()
        changed[rows] = self.target
        clean = {"clean": np.asarray(labels.tolist(), dtype=object)}
        stamped = replace(data, source=Stamped(data.source, flags, self))
        return relabelled(stamped, torch.from_numpy(changed), clean, why=WHY)


@dataclass(frozen=True, eq=False)
class Stamped:
    """Samples of another source, some with a patch; a `Source`.

    Args:
        source: where images are read.
        flags: (n,) which of its samples carry the patch.
        backdoor: the patch.
    """

    source: Source
    flags: NDArray[np.bool_]
    backdoor: Backdoor

    def __len__(self) -> int:
        return len(self.source)

    def read(self, positions: NDArray[np.int64], raw: bool) -> tuple[Inputs, Tensor | None]:
        """Return the source's samples with the patch on those that carry it.

        Raw samples may lie otherwise than images do, and are only told apart: an entry says which patch each carries.
        """
        inputs, target = self.source.read(positions, raw)
        at = torch.from_numpy(self.flags[positions])
        if raw:
            parts = inputs if isinstance(inputs, dict) else {"x": inputs}
            return {**parts, MARK: at * self.backdoor.mark()}, target
        if isinstance(inputs, dict):
            return {k: self.backdoor.stamp(v, at) if v.dim() == 4 else v for k, v in inputs.items()}, target
        return self.backdoor.stamp(inputs, at), target


def _images(inputs: Inputs, data: Data) -> Tensor:
    """Return the one tensor of images (B, C, H, W) among the inputs."""
    parts: Sequence[Tensor] = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
    found = [p for p in parts if p.dim() == 4 and p.is_floating_point()]
    if len(found) != 1:
        got = listing(f"{p.dtype} of shape {tuple(p.shape[1:])}" for p in parts)
        remedy = "poison data of images, or take another kind of request"
        raise UserError(f"images (C, H, W) of real numbers in {data.name} for a trigger patch", got, remedy)
    return found[0]


def _brightest(data: Data) -> tuple[float, ...]:
    """Return the largest value of each channel, in samples whose choice does not depend on the order of the data."""
    order = np.argsort(id_hashes(b"backdoor", data.ids), kind="stable")[:LOOKED_AT]
    most = [_images(b.inputs, data).amax(dim=(0, 2, 3)) for b in data.batches(250, order)]
    return tuple(torch.stack(most).amax(dim=0).tolist())
