"""Images from bytes and files to tensors: whole ones in memory as bytes, floats by the batch."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import psutil
import pyarrow as pa
import torch
from PIL import ExifTags, ImageOps, UnidentifiedImageError
from PIL import Image as Pillow
from torch import Tensor
from torch.nn import functional as F

from expunge.errors import CorruptArtefact, UserError

_MODES = {1: "L", 3: "RGB"}
_ROOM = 2**32  # bytes that whole images may take where a size to resize to is given


@dataclass(frozen=True, kw_only=True)
class Image:
    """How images become tensors; a picklable transform of uint8 batches.

    Args:
        size: (height, width) in pixels to resize to, bilinearly and after normalisation; None keeps the size.
        mean: by channel, of pixels in [0, 1]; empty scales to [0, 1] only.
        std: by channel, of pixels in [0, 1].
        channels: 1 (grey) or 3 (RGB) to convert to; None takes what the first image has.

    Raises:
        UserError: a field is out of its range.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channels: int | None = None

    def __post_init__(self) -> None:
        if self.channels not in (None, 1, 3):
            raise UserError("1 or 3 image channels", str(self.channels), "choose one of them")
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            got = f"mean {list(self.mean)}, std {list(self.std)}"
            raise UserError("a mean and a std above 0 for each channel", got, "give both, or neither")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise UserError("an image size (height, width)", str(self.size), "give two numbers of pixels")

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return uint8 images (B, C, H, W) as float32: scaled to [0, 1], normalised, resized."""
        x = pixels.float() / 255
        if self.mean:
            shape = (1, -1, 1, 1)
            x = (x - torch.tensor(self.mean).reshape(shape)) / torch.tensor(self.std).reshape(shape)
        if self.size is not None and tuple(x.shape[2:]) != tuple(self.size):
            x = F.interpolate(x, size=tuple(self.size), mode="bilinear", align_corners=False, antialias=True)
        return x


def decoded(column: pa.ChunkedArray, image: Image, name: str) -> Tensor:
    """Return a column of encoded images as uint8 (N, C, H, W).

    Images of several sizes, or too many to keep whole (4 GiB, as the first one tells), are resized to ``image.size``
    here; others of one size are left to the batch, so that they are resized after normalisation.

    Args:
        column: of bytes, or of structs with ``bytes`` and ``path``.
        image: how they become tensors.
        name: of the column, for messages.

    Raises:
        UserError: several sizes without ``image.size``, other channels than ``image`` says, or too little memory.
        CorruptArtefact: something that is no image.
    """
    found: Tensor | None = None
    uneven = False
    for row, picture in enumerate(_pictures(column, name)):
        pixels = _pixels(picture, image, found, row, name)
        if found is None:
            uneven = image.size is not None and len(column) * pixels.numel() > _ROOM
            height, width = image.size if uneven and image.size is not None else pixels.shape[1:]
            found = _room(len(column), pixels.shape[0], height, width, name)
        if pixels.shape != found.shape[1:] and not uneven:
            found, uneven = _even(found, row, pixels, image, name), True
        found[row] = _resized(pixels, image) if uneven else pixels
    assert found is not None  # an empty table is refused before
    if image.mean and len(image.mean) != found.shape[1]:
        got = f"{len(image.mean)} for images of {found.shape[1]}"
        raise UserError("a mean and a std for each channel", got, "give as many, or set channels")
    return found


def _pictures(column: pa.ChunkedArray, name: str) -> Iterator[Pillow.Image]:
    row = 0
    for chunk in column.chunks:
        if pa.types.is_struct(chunk.type):
            names, parts = [f.name for f in chunk.type], chunk.flatten()
            content, paths = parts[names.index("bytes")], parts[names.index("path")]
        else:
            content, paths = chunk, [None] * len(chunk)
        for value, path in zip(content, paths, strict=True):
            yield _picture(value.as_py(), None if path is None else path.as_py(), row, name)
            row += 1


def _picture(content: bytes | None, path: str | None, row: int, name: str) -> Pillow.Image:
    if content is None and path is None:
        raise UserError(f"an image in every row of '{name}'", f"none in row {row}", "fill it in or drop that row")
    where = path if content is None else f"row {row} of '{name}'"
    try:
        picture = Pillow.open(str(path) if content is None else io.BytesIO(content))
        if picture.getexif().get(ExifTags.Base.Orientation) is not None:
            return ImageOps.exif_transpose(picture)
        picture.load()
        return picture
    except FileNotFoundError as error:
        raise UserError(f"an image file {where}", "nothing there", "check the path") from error
    except (UnidentifiedImageError, Pillow.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        got = "something else" if isinstance(error, UnidentifiedImageError) else str(error)
        raise CorruptArtefact(f"an image in {where}", got, "restore or remove it") from error


def _pixels(picture: Pillow.Image, image: Image, before: Tensor | None, row: int, name: str) -> Tensor:
    if picture.mode.startswith(("I", "F")):
        got = f"mode {picture.mode} in row {row}"
        raise UserError(f"images of 8 bits a channel in '{name}'", got, "convert them first")
    own = 1 if picture.mode in ("1", "L", "LA") else 3
    channels = image.channels or (own if before is None else before.shape[1])
    if channels != own and image.channels is None:
        got = f"{own} in row {row} after {channels}"
        raise UserError(f"images of one number of channels in '{name}'", got, "set channels to 1 or 3 for images")
    array = np.array(picture if picture.mode == _MODES[channels] else picture.convert(_MODES[channels]))
    return torch.from_numpy(array.reshape(*array.shape[:2], channels)).permute(2, 0, 1)


def _resized(pixels: Tensor, image: Image) -> Tensor:
    assert image.size is not None
    height, width = image.size
    if tuple(pixels.shape[1:]) == (height, width):
        return pixels
    planes = [
        Pillow.fromarray(p.contiguous().numpy()).resize((width, height), Pillow.Resampling.BILINEAR) for p in pixels
    ]
    return torch.from_numpy(np.stack([np.array(p) for p in planes]))


def _even(found: Tensor, rows: int, other: Tensor, image: Image, name: str) -> Tensor:
    """Return room for images of one size, the first rows resized."""
    if image.size is None:
        sizes = " and ".join(f"{h}×{w}" for h, w in (found.shape[2:], other.shape[1:]))
        raise UserError(f"images of one size in '{name}'", f"{sizes} (row {rows})", "set the image size to resize to")
    out = _room(len(found), found.shape[1], *image.size, name)
    for row in range(rows):
        out[row] = _resized(found[row], image)
    return out


def _room(rows: int, channels: int, height: int, width: int, name: str) -> Tensor:
    """Return room for images, refused before the machine runs out of it."""
    need, free = rows * channels * height * width, int(psutil.virtual_memory().available)
    if need > free:
        want = f"memory for {rows:,} images of {height}×{width} in '{name}' ({need / 2**30:.1f} GiB)"
        raise UserError(want, f"{free / 2**30:.1f} GiB", "set a smaller image size to resize to, or take fewer rows")
    return torch.empty((rows, channels, height, width), dtype=torch.uint8)


def holds_images(kind: pa.DataType) -> bool:
    """Return whether a column can only hold encoded images, by how it is stored."""
    if pa.types.is_struct(kind):
        return {"bytes", "path"} == {f.name for f in kind}
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
