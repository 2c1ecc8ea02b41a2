"""Tiny networks of transformers with random weights, and samples for them."""

from __future__ import annotations

import torch
import transformers
from torch import nn

from expunge.data import Data
from expunge.runtime import Runtime
from expunge.task import CausalLM, Classification, Task

QUIET = Runtime(progress=False, batch_size=7, device="cpu")
SIZE = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
WORDS = {"vocab_size": 11, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def vit(count: int = 6) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        **SIZE, num_hidden_layers=count, image_size=8, patch_size=4, num_channels=1, num_labels=3
    )
    return transformers.ViTForImageClassification(config).eval()


def bert(count: int = 6) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZE, **WORDS, num_hidden_layers=count, num_labels=3)
    return transformers.BertForSequenceClassification(config).eval()


def gpt2(count: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=count, n_head=2, **WORDS)).eval()


def images(n: int = 13, **more: object) -> Data:
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(n) % 3
    return Data.from_arrays(torch.randn(n, 1, 8, 8, generator=generator) + y[:, None, None, None] - 1, y, **more)


def tokens(n: int) -> torch.Tensor:
    return torch.randint(3, 11, (n, 6), generator=torch.Generator().manual_seed(3))


def texts(n: int = 13) -> Data:
    ids = tokens(n)
    return Data.from_arrays({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.arange(n) % 3)


def sequences(n: int = 13) -> Data:
    ids = tokens(n)
    return Data.from_arrays({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids)


TASKS: dict[str, Task] = {"vit": Classification(), "bert": Classification(), "gpt2": CausalLM()}
NETWORKS = {"vit": (vit, images), "bert": (bert, texts), "gpt2": (gpt2, sequences)}


def outputs(model: nn.Module, data: Data, task: Task | None = None) -> torch.Tensor:
    with torch.no_grad():
        return (task or Classification()).forward(model, data.read(range(len(data))))[0]
