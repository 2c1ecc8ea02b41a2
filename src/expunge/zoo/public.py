"""A small ViT that was trained on public data first, read from the checkpoint that `save` wrote; loaded when asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from torch import nn

from expunge.errors import Incompatible, UserError, listing
from expunge.zoo.networks import PUBLIC
from expunge.zoo.transformer import headed, plain, quiet

LAYERS, WIDTH = 6, 64


def blank(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Return the ViT before it saw any data: 6 layers, width 64, 4 heads, 16 patches of a quarter of each side.

    Args:
        shape: (C, H, W) of one image.
        outputs: classes.

    Returns:
        A ``ViTForImageClassification`` of about 0.2 million parameters.

    Raises:
        UserError: the image does not fall into patches.
    """
    channels, height, width = shape
    if height % 4 or width % 4:
        got = f"{height}×{width}"
        raise UserError(f"image sides in multiples of 4 for {PUBLIC}", got, "resize the images")
    config = transformers.ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=2 * WIDTH,
        image_size=(height, width),
        patch_size=(height // 4, width // 4),
        num_channels=channels,
        **plain(outputs),
    )
    return transformers.ViTForImageClassification(config)


def folder_of(shape: tuple[int, ...], models: Path) -> Path:
    """Return where the checkpoint for images of a shape lies among the models: ``vit-public-1x28x28``."""
    return models / f"vit-public-{'x'.join(map(str, shape))}"


def save(model: Any, shape: tuple[int, ...], models: Path) -> Path:
    """Write a network of `blank`, trained on public data, where `vit_public` finds it.

    Args:
        model: the trained network; its head is written too, and never used.
        shape: (C, H, W) of one image.
        models: folder of pretrained networks.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: there is one already: what was computed from it would no longer be so.
    """
    folder = folder_of(shape, models)
    if folder.exists():
        raise UserError(f"no checkpoint in {folder}", "one", "remove it, or write into another folder of models")
    with quiet():
        model.save_pretrained(folder)
    return folder


def vit_public(shape: tuple[int, ...], outputs: int, models: Path | None) -> nn.Module:
    """Return the ViT trained on public data, with a head of K outputs drawn anew from torch's random state.

    Args:
        shape: (C, H, W) of one image.
        outputs: classes.
        models: folder of pretrained networks, or None.

    Returns:
        A ``ViTForImageClassification`` in train mode.

    Raises:
        UserError: there is no checkpoint for the shape, or it cannot be read.
        Incompatible: tensors are missing in it, or it is for other images.
    """
    folder = None if models is None else folder_of(shape, models)
    if folder is None or not folder.is_dir():
        want = f"the public network {folder or 'in a folder of models'}"
        remedy = "write it by benchmarks/s3t_public.py, and name the folder above it by EXPUNGE_MODELS"
        raise UserError(want, "none there", remedy)
    try:
        with quiet():
            read: Any = transformers.ViTForImageClassification.from_pretrained
            found, told = read(
                folder,
                num_labels=outputs,
                ignore_mismatched_sizes=True,
                attn_implementation="eager",
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # the library fails in a hundred ways
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"the public network {folder}", lines[0].rstrip(".: "), "write it anew") from error
    sides = found.config.image_size
    size = (found.config.num_channels, *((sides, sides) if isinstance(sides, int) else sides))
    if size != tuple(shape):
        raise Incompatible(f"a network for images of shape {tuple(shape)} in {folder}", f"{size}", "write it anew")
    missing = sorted(k for k in map(str, told["missing_keys"]) if not k.startswith("classifier."))
    if missing:
        raise Incompatible(f"all weights of the public network in {folder}", f"{listing(missing)} missing", "write it")
    return headed(found, outputs)
