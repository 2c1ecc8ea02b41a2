"""Concepts of texts: topics that a factorisation finds in their words, and lists of words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from sklearn.decomposition import NMF
from sklearn.feature_extraction.text import TfidfTransformer
from torch import Tensor

from expunge.concepts.cav import Concept
from expunge.concepts.words import ids_of
from expunge.data import Batch, Data
from expunge.errors import UserError, listing
from expunge.seeds import seed as named_seed

SHARE = 0.1  # of the documents: those with the most of a topic are its examples
SHOWN = 10  # tokens that a topic is told by
ROUNDS = 400  # of the factorisation at most


@dataclass(frozen=True, eq=False)
class Documents:
    """Texts as token ids.

    Args:
        ids: (N, T).
        words: (N, T) bool, where words are: no padding, and no token that stands in every text.
    """

    ids: Tensor
    words: Tensor

    def __len__(self) -> int:
        return len(self.ids)


def documents(*sets: Data) -> list[Documents]:
    """Return the texts of some sets; what stands in every text of all of them is no word, such as a start token.

    Padding is told by ``attention_mask`` alone.

    Args:
        sets: with token ids as inputs.

    Raises:
        Misfit: other inputs.
    """
    read = [(ids_of(b), real_of(b)) for b in (data.read(range(len(data))) for data in sets)]
    every: set[int] | None = None
    for ids, real in read:
        for row, mask in zip(ids, real, strict=True):
            own = set(row[mask].tolist())
            every = own if every is None else every & own
    common = torch.tensor(sorted(every or ()), dtype=torch.long)
    alone = sum(map(len, sets)) == 1  # of a single text every word stands in every text
    return [Documents(ids, real if alone else real & ~torch.isin(ids, common)) for ids, real in read]


def real_of(batch: Batch) -> Tensor:
    """Return where tokens are that are no padding, (B, T) bool."""
    ids = ids_of(batch)
    mask = batch.inputs.get("attention_mask") if isinstance(batch.inputs, dict) else None
    return torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()


def topics(texts: Documents, f: Tensor, *, count: int = 20, least: int = 50, seed: int = 0) -> list[Concept]:
    """Return topics of texts as concepts.

    X ≈ W·H with X (N, V) the tf-idf of the texts' tokens, W (N, k) and H (k, V) not negative. The examples of a topic
    are the tenth of the texts with the most of it, or as many as it needs where that is more, as far as they have any;
    the others are its negatives. Facts of a concept are ``tokens``, the ten tokens that weigh most in it.

    Args:
        texts: N of them.
        f: (N, d), their representations.
        count: topics k; 20 to 50 are usual.
        least: examples below which a topic is left out.
        seed: of the factorisation.

    Raises:
        UserError: fewer texts than topics, texts without words, or no topic with enough examples.

    References:
        Daniel D. Lee, H. Sebastian Seung, "Learning the parts of objects by non-negative matrix factorization", 1999,
        https://doi.org/10.1038/44565.
    """
    if len(f) != len(texts):
        raise UserError(f"representations of {len(texts)} texts", f"{len(f)}", "give one a text")
    if not 1 <= least <= len(texts) // 2:
        got = f"{least} of {len(texts)}"
        raise UserError("examples of a topic in at most half of the texts", got, "give more texts, or ask for fewer")
    counts, vocabulary = _counts(texts)
    most = min(counts.shape)
    if not 2 <= count <= most:
        got = f"{count} topics of {counts.shape[0]} texts with {counts.shape[1]} words"
        raise UserError(f"2 to {most} topics", got, "ask for fewer, or give more texts")
    random = named_seed("topics", seed) % 2**32
    model = NMF(count, init="nndsvda", random_state=random, max_iter=ROUNDS, tol=1e-3)
    shares = model.fit_transform(TfidfTransformer().fit_transform(counts))
    found, much = [], max(least, round(SHARE * len(texts)))
    for j in range(count):
        order = np.argsort(-shares[:, j], kind="stable")[:much]
        own = torch.zeros(len(texts), dtype=torch.bool)
        own[torch.from_numpy(order[shares[order, j] > 0])] = True
        if int(own.sum()) >= least:
            top = np.argsort(-model.components_[j], kind="stable")[:SHOWN]
            found.append(Concept(f"topic_{j}", f[own], f[~own], facts={"tokens": vocabulary[top].tolist()}))
    if not found:
        got = f"none among {count} topics of {len(texts)} texts"
        raise UserError(f"a topic with {least} texts or more", got, "give more texts, or ask for fewer examples")
    return found


def holding(texts: Documents, tokens: Sequence[int]) -> Tensor:
    """Return which texts hold one of some tokens as a word, (N,) bool.

    Args:
        texts: N of them.
        tokens: token ids.
    """
    return (torch.isin(texts.ids, torch.tensor(list(tokens), dtype=torch.long)) & texts.words).any(dim=1)


def listed(texts: Documents, f: Tensor, words: Mapping[str, Sequence[int]]) -> list[Concept]:
    """Return lists of tokens as concepts: texts that hold one of them, against those that hold none.

    Args:
        texts: N of them.
        f: (N, d), their representations.
        words: token ids by name.

    Raises:
        UserError: a list without tokens, or one whose tokens stand in no text, or in every one.
    """
    found = []
    for name, tokens in words.items():
        own = holding(texts, tokens)
        if not 0 < int(own.sum()) < len(texts):
            got = f"{int(own.sum())} of {len(texts)} for {listing(tokens) or 'no token'}"
            raise UserError(f"some texts with a word of {name}, and some without", got, "list other words")
        found.append(Concept(name, f[own], f[~own], facts={"tokens": list(tokens)}))
    return found


def _counts(texts: Documents) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Return how often each word stands in each text, (N, V), and the token ids of the V words.

    Raises:
        UserError: there are none.
    """
    row, column = np.nonzero(texts.words.numpy())
    if not len(row):
        raise UserError("texts with words", "none", "give texts that differ")
    vocabulary, at = np.unique(texts.ids.numpy()[row, column], return_inverse=True)
    ones = np.ones(len(row))
    return sparse.csr_matrix((ones, (row, at)), shape=(len(texts), len(vocabulary))), vocabulary
