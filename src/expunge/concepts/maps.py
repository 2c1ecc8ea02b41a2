"""Where in an image a concept is: maps of its score in one forward pass, or by occlusion without spatial features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.concepts.windows import Grid, images_of, pooled, with_images
from expunge.data import Batch
from expunge.errors import UserError
from expunge.task import Task
from expunge.tensors import eval_mode

NEAR = 1e-4  # of the largest entry: how closely pooled features must be the representation


@dataclass(frozen=True)
class Spatial:
    """Features (B, C, h, w) whose means over a few equal parts of the image are the representation.

    Args:
        tap: name of the module whose output they are.
        cells: parts of the image from top to bottom and from left to right, (1, 1) under global average pooling.
    """

    tap: str
    cells: tuple[int, int]


@contextmanager
def _watched(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield, by module name, the outputs (B, C, h, w) of the forward passes in the block, in the order of calls."""
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name, module in model.named_modules():

            def keep(module: nn.Module, args: object, out: object, name: str = name) -> None:
                if name and isinstance(out, Tensor) and out.dim() == 4:
                    found[name] = out

            stack.callback(module.register_forward_hook(keep).remove)
        yield found


def spatial(model: nn.Module, task: Task, batch: Batch, tap: str) -> Spatial | None:
    """Find the features that a network averages over the image to make its representation.

    Every module is tried, by the numbers: those are taken whose averages over g×g' equal parts of the image, in the
    order of channels, then rows, then columns, are the representation; the finest there are.

    Args:
        model: the network; run in eval mode.
        task: how to run it.
        batch: some images.
        tap: of the representation, (B, d).

    Returns:
        What was found; None where the representation is made otherwise, as by a layer after flattening.
    """
    with eval_mode(model), torch.no_grad(), _watched(model) as found:
        _, tapped = task.forward(model, batch, [tap])
        wanted = tapped[tap]
        if wanted.dim() != 2:
            return None
        fits = [Spatial(name, cells) for name, a in found.items() if (cells := _cells(a, wanted)) is not None]
    sizes = {name: a.shape[2] * a.shape[3] for name, a in found.items()}
    best = max(fits, key=lambda s: sizes[s.tap], default=None)
    return best if best is not None and sizes[best.tap] > 1 else None


def _cells(features: Tensor, wanted: Tensor) -> tuple[int, int] | None:
    """Return into how many parts the features are to be averaged to give the representation, or None."""
    channels, height, width = features.shape[1:]
    if len(features) != len(wanted) or wanted.shape[1] % channels:
        return None
    parts, scale = wanted.shape[1] // channels, wanted.abs().max().clamp_min(1e-12)
    for down in range(1, parts + 1):
        across = parts // down
        if parts % down or height % down or width % across:
            continue
        made = F.adaptive_avg_pool2d(features, (down, across)).flatten(1)
        if bool((made - wanted).abs().max() <= NEAR * scale):
            return down, across
    return None


def score_maps(features: Tensor, vectors: Tensor, intercepts: Tensor, cells: tuple[int, int] = (1, 1)) -> Tensor:
    """Return where each concept's score comes from: map_p = (c·A_p + b)/‖c‖, whose mean over p is the score.

    Where the representation is the means over g parts of the image, c has a part of its own for each of them, and
    map_p = (g·c_part(p)·A_p + b)/‖c‖, so that the mean is the score again.

    Args:
        features: A, (B, C, h, w).
        vectors: c, (m, C·g), in the order of channels, then parts.
        intercepts: b, (m,).
        cells: parts of the image from top to bottom and from left to right.

    Returns:
        (B, m, h, w), in units of the score (c·f + b)/‖c‖.
    """
    (channels, height, width), (down, across) = features.shape[1:], cells
    at = vectors.to(features).reshape(len(vectors), channels, down, across)
    weights = at.repeat_interleave(height // down, dim=2).repeat_interleave(width // across, dim=3)
    dots = down * across * torch.einsum("mchw,bchw->bmhw", weights, features)
    norms = vectors.to(features).norm(dim=1)
    return (dots + intercepts.to(features)[:, None, None]) / norms[:, None, None]  # type: ignore[no-any-return]


def enlarged(maps: Tensor, height: int, width: int) -> Tensor:
    """Return maps (B, m, h, w) at the size of the image, (B, m, height, width), bilinear."""
    return F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)


def window_means(maps: Tensor, grid: Grid) -> Tensor:
    """Return the mean of maps (B, m, H, W) in every window of a grid, (B, m, rows, cols)."""
    return F.avg_pool2d(maps, grid.size, stride=grid.stride)


def peaks(values: Tensor, grid: Grid) -> Tensor:
    """Return the centre of the window with the highest value, (B, m, 2) as (y, x); the first of equals.

    Args:
        values: (B, m, rows, cols), one a window.
        grid: the windows.
    """
    return grid.centres().to(values.device)[values.flatten(2).argmax(dim=2)]


@dataclass(frozen=True, eq=False)
class Localiser:
    """Finds concepts in images of one network.

    With spatial features that takes one forward pass of each image, for all concepts together. Without, windows of the
    image are covered by its data's mean colour one after another, a forward pass each, and a window counts by how much
    the score falls, s(x) − s(x covered).

    Args:
        model: the network; run in eval mode.
        task: how to run it.
        tap: of the representation, (B, d).
        features: from `spatial`, or None.
        vectors: c, (m, d).
        intercepts: b, (m,).
        colour: (C,) of the cover.
    """

    model: nn.Module
    task: Task
    tap: str
    features: Spatial | None
    vectors: Tensor
    intercepts: Tensor
    colour: Tensor

    @property
    def passes(self) -> str:
        """What a reader wants to know of the cost, in words."""
        return "one forward pass an image" if self.features else "a forward pass a window, by occlusion"

    def found(self, batch: Batch, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the value of every window and the map of each concept.

        Args:
            batch: images.
            grid: windows of them.

        Returns:
            Values (B, m, rows, cols), and maps (B, m, H, W) in which a place is worth the mean of the windows around it
            where there are no spatial features.

        Raises:
            UserError: no images, or other spatial features than expected.
        """
        with eval_mode(self.model), torch.no_grad():
            if self.features is None:
                return self._occluded(batch, grid)
            _, tapped = self.task.forward(self.model, batch, [self.features.tap])
            made = score_maps(tapped[self.features.tap], self.vectors, self.intercepts, self.features.cells)
            maps = enlarged(made, grid.height, grid.width)
            return window_means(maps, grid), maps

    def _scores(self, batch: Batch) -> Tensor:
        f = pooled(self.task.forward(self.model, batch, [self.tap])[1][self.tap])
        c = self.vectors.to(f)
        if f.shape[1] != c.shape[1]:
            got = f"vectors of {c.shape[1]}"
            raise UserError(f"concepts of {f.shape[1]} numbers, as at {self.tap}", got, "fit them on this network")
        return (f @ c.T + self.intercepts.to(f)) / c.norm(dim=1)  # type: ignore[no-any-return]

    def _occluded(self, batch: Batch, grid: Grid) -> tuple[Tensor, Tensor]:
        images = images_of(batch.inputs, "a map of concepts")
        before, drops = self._scores(batch), list[Tensor]()
        colour = self.colour.to(images)[:, None, None]
        for top, left in grid.corners().tolist():
            covered = images.clone()
            covered[:, :, top : top + grid.size, left : left + grid.size] = colour
            drops.append(before - self._scores(with_images(batch, covered)))
        values = torch.stack(drops, dim=2)
        return values.unflatten(2, (grid.rows, grid.cols)), spread(values, grid)


def spread(values: Tensor, grid: Grid) -> Tensor:
    """Return at each place of the image the mean of the windows that hold it, (B, m, H, W), 0 where there is none.

    Args:
        values: (B, m, n), one a window.
        grid: the windows.
    """
    b, m, n = values.shape
    every = values.reshape(b * m, 1, n).expand(-1, grid.size**2, -1)
    size = (grid.height, grid.width)
    total = F.fold(every.contiguous(), size, grid.size, stride=grid.stride)
    ones = F.fold(torch.ones_like(every[:1]), size, grid.size, stride=grid.stride)
    return (total / ones.clamp_min(1)).reshape(b, m, *size)
