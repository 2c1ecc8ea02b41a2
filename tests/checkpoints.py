"""Tiny transformers checkpoints on disk, with tokenizer or image processor, and tables that go with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import torch

from projects import parquet

WORDS = ("good", "fine", "great", "bad", "poor", "awful", "the", "a", "film", "book", "was", "is")
FEELINGS = ("bad", "good")


def sentences(n: int, seed: int = 0) -> dict[str, Any]:
    """Return columns of n texts with a feeling, a writer and an id."""
    draw = np.random.default_rng(seed)
    label = np.arange(n) % 2
    texts = [
        f"the {draw.choice(['film', 'book'])} was {draw.choice(WORDS[:3] if y else WORDS[3:6])} "
        + " ".join(draw.choice(WORDS[6:], draw.integers(1, 4)))
        for y in label
    ]
    writer = [f"writer {i % 4}" for i in range(n)]
    return {
        "text": texts,
        "label": [FEELINGS[y] for y in label],
        "writer": writer,
        "id": [f"{seed}-{i}" for i in range(n)],
    }


def bert(folder: Path, *, head: bool = True) -> None:
    """Write a BERT of two layers with a tokenizer of `WORDS`; without its head, the backbone of the same weights."""
    import transformers

    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        id2label=dict(enumerate(FEELINGS)),
        label2id={name: at for at, name in enumerate(FEELINGS)},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(config)
    (model if head else model.bert).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def vit(folder: Path) -> None:
    """Write a ViT for 16×16 images with its image processor."""
    import transformers

    folder.mkdir(parents=True)
    config = transformers.ViTConfig(
        image_size=16,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.ViTForImageClassification(config).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    transformers.ViTImageProcessor(size=size, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]).save_pretrained(
        folder
    )


def texts(folder: Path) -> None:
    """Write train.parquet and test.parquet of `sentences`."""
    parquet(folder / "train.parquet", sentences(40))
    parquet(folder / "test.parquet", sentences(20, seed=1))


def photos(folder: Path) -> None:
    """Write train.parquet and test.parquet of images of several sizes, in the layout of the Hub."""
    draw = np.random.default_rng(0)
    for name, n in (("train", 24), ("test", 12)):
        from PIL import Image

        sizes = [(16, 20), (24, 16)]
        images = [Image.fromarray(draw.integers(0, 255, (*sizes[i % 2], 3)).astype(np.uint8)) for i in range(n)]
        table = datasets.Dataset.from_dict(
            {"image": images, "label": [i % 3 for i in range(n)], "owner": [f"p{i % 4}" for i in range(n)]},
            features=datasets.Features(
                {
                    "image": datasets.Image(),
                    "label": datasets.ClassLabel(names=["x", "y", "z"]),
                    "owner": datasets.Value("string"),
                }
            ),
        )
        table.to_parquet(folder / f"{name}.parquet")
    assert pq.read_schema(folder / "train.parquet").names == ["image", "label", "owner"]
