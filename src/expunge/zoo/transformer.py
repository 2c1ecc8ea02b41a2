"""Networks of transformers: a small ViT, the pretrained ViT-Base, small BERTs for texts and pairs; loaded when asked.

Attention is eager and dropout off: per-sample gradients need plain operations, and one seed one result.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from expunge.errors import UserError

HUB = "google/vit-base-patch16-224"


def vit(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Return a ViT of 4 layers, width 128 and 4 heads on patches of 4 (of 2 on images below 16 pixels).

    Args:
        shape: (C, H, W) of one image.
        outputs: classes.

    Returns:
        A ``ViTForImageClassification`` of about 0.55 million parameters.

    Raises:
        UserError: the image does not fall into patches.
    """
    channels, height, width = shape
    patch = 4 if min(height, width) >= 16 else 2
    if height % patch or width % patch:
        got = f"{height}×{width}"
        raise UserError(f"image sides in multiples of {patch} for vit", got, "resize the images")
    config = transformers.ViTConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        image_size=(height, width),
        patch_size=patch,
        num_channels=channels,
        **plain(outputs),
    )
    return transformers.ViTForImageClassification(config)


def plain(outputs: int) -> dict[str, Any]:
    """Return what the small networks' configurations share."""
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return {"num_labels": outputs, "attn_implementation": "eager", **off}


def vit_base(shape: tuple[int, ...], outputs: int, models: Path | None) -> nn.Module:
    """Return the pretrained ViT-Base with a head of K outputs drawn anew from torch's random state.

    Args:
        shape: (3, 224, 224).
        outputs: classes.
        models: folder that holds the checkpoint as ``vit-base-patch16-224``; where it does not, the Hub is asked.

    Returns:
        A ``ViTForImageClassification`` of 86 million parameters.

    Raises:
        UserError: the checkpoint cannot be had.

    References:
        A. Dosovitskiy et al., "An image is worth 16x16 words", 2021, https://arxiv.org/abs/2010.11929.
    """
    local = None if models is None else models / HUB.partition("/")[2]
    place = HUB if local is None or not local.is_dir() else str(local)
    try:
        with quiet():
            found = transformers.ViTForImageClassification.from_pretrained(
                place, num_labels=outputs, ignore_mismatched_sizes=True, attn_implementation="eager"
            )
    except Exception as error:  # the library, the Hub and its cache fail in a hundred ways
        lines = str(error).strip().splitlines() or [type(error).__name__]
        folder = "models/vit-base-patch16-224"
        remedy = f"go online, or put the checkpoint in {folder} of the folder named by --data-dir or EXPUNGE_DATA"
        raise UserError(f"the pretrained network {place}", lines[0].rstrip(".: "), remedy) from error
    return headed(found, outputs)


def headed(model: Any, outputs: int) -> nn.Module:
    """Return a pretrained ViT in train mode under a head of K outputs drawn anew: its own may have K outputs too."""
    head = nn.Linear(model.config.hidden_size, outputs)
    nn.init.trunc_normal_(head.weight, std=model.config.initializer_range)
    nn.init.zeros_(head.bias)
    model.classifier = head
    return model.train()  # type: ignore[no-any-return]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the library's bar and its remark that the head is new."""
    logger, show = logging.getLogger("transformers"), transformers.utils.logging.is_progress_bar_enabled()
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        transformers.utils.logging.disable_progress_bar()
        yield
    finally:
        logger.setLevel(level)
        if show:
            transformers.utils.logging.enable_progress_bar()


def text(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Return a BERT of 2 layers, width 64 and 4 heads.

    Args:
        shape: (length, vocabulary) of the texts.
        outputs: classes, or targets.

    Returns:
        A ``BertForSequenceClassification``; 0.6 million parameters with 8,192 indices.
    """
    return _bert(shape[0], shape[1], 1, outputs)


def text_pair(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Return the BERT of `text` for pairs of texts, which it reads one after the other, told apart by their type.

    Args:
        shape: (length, vocabulary) of each text.
        outputs: targets, or classes.

    Returns:
        A ``BertForSequenceClassification``; 0.6 million parameters with 8,192 indices.

    References:
        J. Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", 2019,
        https://arxiv.org/abs/1810.04805.
    """
    return _bert(2 * shape[0], shape[1], 2, outputs)


def _bert(length: int, vocabulary: int, types: int, outputs: int) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=vocabulary,
        max_position_embeddings=length,
        type_vocab_size=types,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        **plain(outputs),
    )
    return transformers.BertForSequenceClassification(config)
