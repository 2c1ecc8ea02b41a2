"""Windows of images: a regular grid of them, their centres, crops, what a network makes of them, and pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.data import Batch, Data
from expunge.errors import UserError
from expunge.passes import Passes
from expunge.runtime import Runtime
from expunge.seeds import seed as named_seed
from expunge.sources import Inputs
from expunge.task import Task
from expunge.tensors import eval_mode

SHARES = (0.5, 0.35, 0.25)  # of the shorter side: how large windows are
LEAST = 3  # pixels of the smallest window
BLANK = 0.1  # of an image's deviation: a window with less shows nothing
SAMPLED = 64  # images whose mean colour covers windows, and whose range of values is shown
SHOWN = 64  # pixels at least of the shorter side of a picture


@dataclass(frozen=True)
class Grid:
    """Square windows of one size at regular places of an image: the first in the upper left corner, all inside.

    >>> grid = Grid(224, 224, 64, 16)
    >>> grid.rows, grid.cols, grid.centres()[12].tolist()
    (11, 11, [48.0, 48.0])

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        size: of a window's side, pixels.
        stride: from one window to the next, pixels.

    Raises:
        UserError: a window larger than the image, or a size or stride below 1.
    """

    height: int
    width: int
    size: int
    stride: int

    def __post_init__(self) -> None:
        if self.size < 1 or self.stride < 1 or self.size > min(self.height, self.width):
            got = f"windows of {self.size} with a stride of {self.stride}"
            raise UserError(f"windows that fit on images of {self.height}×{self.width}", got, "choose others")

    @property
    def rows(self) -> int:
        """Windows from top to bottom."""
        return (self.height - self.size) // self.stride + 1

    @property
    def cols(self) -> int:
        """Windows from left to right."""
        return (self.width - self.size) // self.stride + 1

    def __len__(self) -> int:
        return self.rows * self.cols

    def corners(self) -> Tensor:
        """Return the first row and column of every window, (n, 2) int64, row by row."""
        y, x = torch.meshgrid(torch.arange(self.rows), torch.arange(self.cols), indexing="ij")
        return self.stride * torch.stack([y, x], dim=-1).reshape(-1, 2)

    def centres(self) -> Tensor:
        """Return where every window has its centre, (n, 2) as (y, x): y = stride·row + size/2 and x alike."""
        return self.corners() + self.size / 2


def off_centre(points: Tensor, height: int, width: int) -> Tensor:
    """Return how far points (..., 2), as (y, x), lie from an image's middle, as a share of half its diagonal."""
    middle = torch.tensor([height / 2, width / 2], dtype=torch.float64)
    return (points.double() - middle).norm(dim=-1) / middle.norm()  # type: ignore[no-any-return]


def corners_at(points: Tensor, size: int, height: int, width: int) -> Tensor:
    """Return the first row and column of windows of one size around points, moved into the image where they stick out.

    Args:
        points: (..., 2), as (y, x).
        size: of a window's side, pixels, no more than the image's.
        height: of the image.
        width: of the image.

    Returns:
        (..., 2), int64.
    """
    most = torch.tensor([height - size, width - size], device=points.device)
    return torch.minimum((points - size / 2).round().long().clamp_min(0), most)


def crops(images: Tensor, corners: Tensor, size: int) -> Tensor:
    """Return a window of each image, (B, C, size, size).

    Args:
        images: (B, C, H, W).
        corners: (B, 2) first row and column, int64, of windows inside the images.
        size: of a window's side, pixels.
    """
    along = torch.arange(size, device=images.device)
    rows, cols = corners[:, :1] + along, corners[:, 1:] + along
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    return images[sample, :, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


def unfolded(images: Tensor, grid: Grid) -> Tensor:
    """Return every window of a grid of every image, (B, n, C, size, size), in the order of `Grid.corners`."""
    pieces = F.unfold(images, grid.size, stride=grid.stride)
    found = pieces.reshape(len(images), images.shape[1], grid.size, grid.size, len(grid))
    return found.permute(0, 4, 1, 2, 3)


def images_of(inputs: Inputs, why: str) -> Tensor:
    """Return the images (B, C, H, W) of real numbers among a batch's inputs.

    Args:
        inputs: a tensor, or a dict with one such tensor.
        why: what they are for, said where there are none.

    Raises:
        UserError: no tensor of images, or several.
    """
    parts: Sequence[Tensor] = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
    found = [p for p in parts if p.dim() == 4 and p.is_floating_point()]
    if len(found) != 1:
        got = ", ".join(f"{p.dtype} of shape {tuple(p.shape[1:])}" for p in parts)
        raise UserError(f"images (C, H, W) of real numbers for {why}", got, "pass data of images")
    return found[0]


def with_images(batch: Batch, images: Tensor) -> Batch:
    """Return a batch with other images in the place of its own, for as many samples; labels are left out."""
    inputs: Inputs = images
    if isinstance(batch.inputs, dict):
        rest = {k: v for k, v in batch.inputs.items() if not (v.dim() == 4 and v.is_floating_point())}
        if rest:
            raise UserError("samples that are an image alone", f"{', '.join(rest)} beside it", "leave those out")
        inputs = {k: images for k in batch.inputs}
    return replace(batch, inputs=inputs, target=None, weight=None, index=torch.arange(len(images)))


@dataclass(frozen=True, eq=False)
class Windows:
    """Some windows of a set of images, and what a network makes of them.

    Args:
        embeddings: (n, d), each window resized to the size of an image, at the tap.
        sample: (n,) int64, position of the image in its data.
        place: (n, 3) int64: first row, first column, side in pixels.
    """

    embeddings: Tensor
    sample: Tensor
    place: Tensor

    def __len__(self) -> int:
        return len(self.sample)


def sizes_for(height: int, width: int) -> list[int]:
    """Return the sides of windows that images of this size are looked at with, largest first, pixels."""
    side = min(height, width)
    return sorted({max(min(LEAST, side), round(share * side)) for share in SHARES}, reverse=True)


def drawn(height: int, width: int, count: int, generator: torch.Generator) -> Tensor:
    """Return some windows of several sizes, with strides of a quarter of their side, drawn without repetition.

    Args:
        height: of an image, pixels.
        width: of an image.
        count: how many, all of them where there are no more.
        generator: of the draw; each size is as likely.

    Returns:
        (count, 3) int64: first row, first column, side.
    """
    every, chances = list[Tensor](), list[Tensor]()
    for size in sizes_for(height, width):
        corners = Grid(height, width, size, max(1, size // 4)).corners()
        every.append(torch.cat([corners, torch.full((len(corners), 1), size)], dim=1))
        chances.append(torch.full((len(corners),), 1 / len(corners)))
    places = torch.cat(every)
    return places[torch.multinomial(torch.cat(chances), min(count, len(places)), generator=generator)]


def represented(
    model: nn.Module, task: Task, data: Data, tap: str, *, count: int, runtime: Runtime, seed: int = 0
) -> Windows:
    """Cut windows out of images, and run a network on each of them, resized to the size of the image.

    Which windows are cut depends on the seed and the sample's id, not on the batches or on other samples. Windows of
    hardly any contrast, a deviation below a tenth of their image's, are left out: an empty background is no concept.

    Args:
        model: the network; run in eval mode.
        task: how to run it.
        data: images.
        tap: where the representation is read, see `pooled`.
        count: windows of each image.
        runtime: device, batch size: as many windows are run at once.
        seed: of the draw.

    Returns:
        The windows, image by image.

    Raises:
        UserError: no images.
    """
    ids = data.ids

    def work(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        batch = batch.to(runtime.torch_device)
        images = images_of(batch.inputs, "windows of them")
        height, width = images.shape[-2:]
        places = [
            drawn(height, width, count, torch.Generator().manual_seed(named_seed("windows", seed, ids[i])))
            for i in batch.index.tolist()
        ]
        sample = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor([len(p) for p in places]))
        place = torch.cat(places)
        found, plain = torch.empty(0), torch.zeros(len(place), dtype=torch.bool)
        contrast = images.flatten(1).std(dim=1, correction=0)
        for size in place[:, 2].unique().tolist():
            at = torch.nonzero(place[:, 2] == size).flatten()
            cut = crops(images[sample[at]], place[at, :2].to(images.device), size)
            plain[at] = (cut.flatten(1).std(dim=1, correction=0) < BLANK * contrast[sample[at]]).cpu()
            full = F.interpolate(cut, size=(height, width), mode="bilinear", align_corners=False, antialias=False)
            rows = torch.cat([_read(model, task, batch, part, tap) for part in full.split(max(1, runtime.batch_size))])
            found = rows.new_empty(len(place), rows.shape[1]) if not len(found) else found
            found[at] = rows
        return found[~plain], batch.index.cpu()[sample[~plain]], place[~plain]

    with eval_mode(model), torch.no_grad(), runtime.autocast():
        parts = list(Passes(replace(runtime, batch_size=max(1, runtime.batch_size // max(1, count)))).over(data, work))
    embeddings, sample, place = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Windows(embeddings, sample, place)


def _read(model: nn.Module, task: Task, batch: Batch, images: Tensor, tap: str) -> Tensor:
    return pooled(task.forward(model, with_images(batch, images), [tap])[1][tap]).float().cpu()


def pooled(tapped: Tensor) -> Tensor:
    """Return one vector a sample, (B, d): the mean over positions (B, T, d), or over the places of (B, d, ...)."""
    if tapped.dim() == 3:
        return tapped.mean(dim=1)
    return tapped if tapped.dim() == 2 else tapped.flatten(2).mean(dim=2)


def few(data: Data, count: int = SAMPLED) -> Batch:
    """Return some samples, spread evenly over the data."""
    return data.read(np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).astype(np.int64)))


def cropped(image: Tensor, place: Sequence[int]) -> Tensor:
    """Return one window (C, size, size) of an image (C, H, W), its place being first row, first column and side."""
    top, left, size = (int(n) for n in place)
    return image[:, top : top + size, left : left + size]


@dataclass(frozen=True, eq=False)
class Shades:
    """How the values of images are shown as colours: each channel's range in some images becomes 0 to 255.

    Networks are given images shifted and scaled by channel, which this undoes as far as can be told from the images.

    Args:
        low: (C,) shown as 0.
        high: (C,) shown as 255.
    """

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, images: Tensor) -> Shades:
        """Return the shades of images (B, C, H, W)."""
        return cls(images.amin(dim=(0, 2, 3)).cpu(), images.amax(dim=(0, 2, 3)).cpu())

    def png(self, image: Tensor) -> str:
        """Return an image (C, H, W) as a PNG in base64: its first three channels in colour, or the first in grey.

        Small images are enlarged by a whole factor, pixel for pixel.
        """
        span = (self.high - self.low).clamp_min(1e-12)[:, None, None]
        levels = ((image.detach().cpu() - self.low[:, None, None]) / span).clamp(0, 1).mul(255).round()
        plain = levels.to(torch.uint8).numpy()
        pixels = np.moveaxis(plain[:3], 0, -1) if len(plain) >= 3 else plain[0]
        factor = max(1, -(-SHOWN // min(pixels.shape[:2])))
        return _encoded(np.repeat(np.repeat(pixels, factor, axis=0), factor, axis=1))


def heat_png(heat: Tensor) -> str:
    """Return a map (H, W) as a PNG in base64: its lowest value is black, its highest white."""
    low, high = heat.min(), heat.max()
    return Shades(low[None], high[None]).png(heat[None])


def _encoded(pixels: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")
