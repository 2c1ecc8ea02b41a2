"""A tokeniser that learns nothing, so that nothing of a forgotten text can stay in a vocabulary."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.errors import UserError

PADDING, START, WORDS = 0, 1, 2  # WORDS: the first index of a word


@dataclass(frozen=True)
class HashedWords:
    """Lower-cased words, each the index 2 + blake2b(word) mod (vocabulary − 2), after a start token.

    The second text of a pair stands behind the first and its padding, from position L on, after its own start token.

    Args:
        length: tokens L kept of each text, the start token included.
        vocabulary: indices in all: 0 is padding, 1 the start token; words may share an index.

    Raises:
        UserError: room for no word.
    """

    length: int
    vocabulary: int

    def __post_init__(self) -> None:
        if self.length < 2 or self.vocabulary < WORDS + 1:
            got = f"length {self.length}, vocabulary {self.vocabulary}"
            raise UserError("a length of 2 or more and a vocabulary of 3 or more", got, "raise them")

    def __call__(self, texts: list[str], seconds: list[str] | None = None) -> dict[str, Tensor]:
        """Return ``input_ids`` and ``attention_mask``, each (N, L) int64.

        Args:
            texts: N texts, or the first ones of N pairs.
            seconds: the second ones; then the tensors are (N, 2L), and ``token_type_ids`` are 0 and 1 by text.
        """
        if seconds is not None:
            parts = [self(texts), self(seconds)]
            pair = {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
            which = torch.arange(2).repeat_interleave(self.length).expand(len(texts), -1)
            return {**pair, "token_type_ids": which.contiguous()}
        found: dict[str, int] = {}
        ids = torch.full((len(texts), self.length), PADDING, dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            words = re.findall(r"\w+", text.lower())[: self.length - 1]
            for word in words:
                if word not in found:
                    found[word] = self._index(word)
            row[: len(words) + 1] = torch.tensor([START, *(found[w] for w in words)])
        return {"input_ids": ids, "attention_mask": (ids != PADDING).long()}

    def _index(self, word: str) -> int:
        hashed = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return WORDS + int.from_bytes(hashed, "big") % (self.vocabulary - WORDS)


def hashed_words(length: int, vocabulary: int) -> Callable[..., dict[str, Tensor]]:
    """Return a tokeniser that needs no training: hashed lower-cased words.

    Args:
        length: tokens L kept of each text, the start token included.
        vocabulary: indices in all, as the network's embedding has rows.

    Returns:
        A picklable function from N texts to ``input_ids`` and ``attention_mask``, each (N, L), or from the first and
        second texts of N pairs to these and ``token_type_ids``, each (N, 2L).

    >>> hashed_words(4, 1000)(["One, one!"])["attention_mask"].tolist()
    [[1, 1, 1, 0]]
    """
    return HashedWords(length, vocabulary)
