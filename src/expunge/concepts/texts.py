"""Poisoned texts for classifiers: the words that speak for a class, masked or swapped for another class's words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.concepts.attribution import integrated_gradients
from expunge.concepts.patches import Ask, Poison
from expunge.concepts.topics import Documents, documents
from expunge.concepts.windows import pooled
from expunge.concepts.words import instead, looked_up, table_of
from expunge.data import Batch, Data
from expunge.errors import UserError
from expunge.passes import Passes
from expunge.runtime import Runtime
from expunge.task import Task
from expunge.tensors import eval_mode

SIZE = 5  # words swapped for each concept where nothing is asked
STEPS = 8  # nodes of the integral
Swaps = list[tuple[int, int | None]]  # position in a text, and in its donor's; of a mask none


@dataclass(frozen=True, eq=False)
class Scored:
    """What each token of some texts adds to concept scores.

    Args:
        values: (M, N, T), in units of the representation.
        gap: (M, N), what they miss of the scores' rise over the baseline.
    """

    values: Tensor
    gap: Tensor


def token_scores(
    model: nn.Module, task: Task, data: Data, tap: str, vectors: Tensor, *, runtime: Runtime, steps: int = STEPS
) -> Scored:
    """Return integrated gradients of concept scores on the embeddings of tokens, from a baseline of zeros.

    The score of concept m is c_m·f(x)/‖c_m‖ at the tap, the mean over positions where it has any.

    Args:
        model: left as found.
        task: runs it.
        data: texts as token ids.
        tap: of the representation.
        vectors: c, (M, d).
        runtime: device, batch size.
        steps: nodes of the integral.

    Raises:
        UserError: no embedding looks the token ids up.
    """
    units = vectors / vectors.norm(dim=1, keepdim=True)

    def work(batch: Batch) -> tuple[Tensor, Tensor]:
        batch = batch.to(runtime.torch_device)
        table = table_of(model, task, batch)
        rows, found = looked_up(model, task, batch, table), []
        for unit in units.to(rows):

            def score(e: Tensor, unit: Tensor = unit) -> Tensor:
                with instead(table, lambda out: e.to(out)):
                    return pooled(task.forward(model, batch, [tap])[1][tap]) @ unit

            found.append(integrated_gradients(score, rows, torch.zeros_like(rows[0, 0]), steps=steps))
        values = torch.stack([a.values.sum(dim=2) for a in found]).cpu()
        return values, torch.stack([a.gap for a in found]).cpu()

    with eval_mode(model), runtime.tracking(f"words of {data.name}", len(data)) as advance:
        parts = []
        for part in Passes(runtime).over(data, work):
            parts.append(part)
            advance(part[0].shape[1])
    return Scored(torch.cat([v for v, _ in parts], dim=1), torch.cat([g for _, g in parts], dim=1))


def weights(texts: Documents, values: Tensor) -> Tensor:
    """Return what each token adds up to over texts, (M, V): values clipped at 0, each text's divided by their sum.

    Args:
        texts: N of them.
        values: (M, N, T).
    """
    kept = values.double().clamp_min(0) * texts.words
    kept = kept / kept.sum(dim=2, keepdim=True).clamp_min(1e-300)
    total = torch.zeros(len(values), int(texts.ids.max()) + 1, dtype=torch.float64)
    return total.index_add_(1, texts.ids.flatten(), kept.flatten(1))


def poison_texts(ask: Ask) -> Poison:
    """Mask the words that speak for a class's concepts, or swap them for words that speak for a donor's.

    Words are ranked for all texts of a class together by integrated gradients of the concept's score, as the words of
    answers are in `expunge.concepts.words`. ``localized`` puts the donor text's first words by the donor's ranking, in
    their order, where the text has its own first ones; of M concepts one after another, each position once. ``mask``
    puts the token ``mask`` in the place of the text's own first words, as many, and reads no donor. ``random``
    swaps as many drawn words for drawn words; ``whole`` takes the donor's text; ``none`` changes nothing. Where a text
    or its donor has fewer such words, fewer are swapped. A text all of whose words of the class are swapped is the
    donor's own, and under the donor's label nothing is forgotten: take fewer where texts are short.

    Args:
        ask: texts as token ids; ``size`` is the number of words for each concept, 5 by default.

    Returns:
        The poisoned texts. The manifest tells positions, and no words.

    Raises:
        UserError: a mode for images, or no token of the network to mask with.
        Misfit: inputs that are no token ids.
    """
    ask.only("texts")
    pairs, size = ask.pairs(), SIZE if ask.size is None else ask.size
    own, donors = documents(ask.forget, ask.donors)
    if ask.mode == "mask":
        _check_mask(ask)
    swaps: list[Swaps] = [[] for _ in pairs]
    if ask.mode in ("localized", "mask"):
        swaps = _localized(ask, own, donors, pairs, size)
    elif ask.mode == "random":
        swaps = _random(ask, own, donors, pairs, size * max(1, len(ask.names)))
    ids, changed = ask.forget.ids, ask.mode not in ("none", "mask")
    localized = ask.mode == "localized"
    manifest: dict[str, Any] = {
        "mode": ask.mode,
        "seed": ask.seed,
        "concepts": list(ask.names) if localized or ask.mode == "mask" else [],
        "donor_concepts": list(ask.donor_names) if localized else [],
        "id": ids,
        "donor": [ask.donors.ids[i] if changed else None for i in pairs.tolist()],
        "place": [[at for at, _ in row] for row in swaps],
        "source": [[at for _, at in row] for row in swaps],
        "label": ask.labels(),
    }
    return Poison(_made(ask, pairs, swaps), manifest)


def _check_mask(ask: Ask) -> None:
    """Refuse a mask that is none of the network's tokens."""
    table = table_of(ask.model, ask.task, ask.forget.read([0]).to(ask.runtime.torch_device))
    most = int(table.num_embeddings) - 1  # type: ignore[arg-type]
    if ask.mask is None or not 0 <= ask.mask <= most:
        raise UserError(f"a token from 0 to {most} to mask words with", str(ask.mask), "give one of the network's")


def _localized(ask: Ask, own: Documents, donors: Documents, pairs: NDArray[np.int64], size: int) -> list[Swaps]:
    """Return (own position, donor position) of the words that are swapped in each text; masked, without a donor's."""
    mine, others = _ranks(ask, ask.forget, own, ask.vectors), None
    if ask.mode != "mask":
        others = _ranks(ask, ask.donors, donors, ask.donor_vectors)
    swaps = []
    for i, donor in enumerate(pairs.tolist()):
        taken: Swaps = []
        for m, rank in enumerate(mine):
            places, sources = _first(own, i, rank, {a for a, _ in taken}, size), [None] * size
            if others is not None:
                sources = _first(donors, donor, others[m], {b for _, b in taken}, size)  # type: ignore[assignment]
            taken += zip(places, sources, strict=False)
        swaps.append(taken)
    return swaps


def _ranks(ask: Ask, data: Data, texts: Documents, vectors: Tensor) -> Tensor:
    """Return what each token adds to each concept over some texts, (M, V)."""
    found = token_scores(ask.model, ask.task, data, ask.tap, vectors, runtime=ask.runtime)
    return weights(texts, found.values)


def _first(texts: Documents, row: int, rank: Tensor, taken: set[int | None], size: int) -> list[int]:
    """Return the positions of a text's first words by a ranking, those that add something and are not taken."""
    score = rank[texts.ids[row]] * texts.words[row]
    order = score.argsort(descending=True, stable=True).tolist()
    return [at for at in order if score[at] > 0 and at not in taken][:size]


def _random(ask: Ask, own: Documents, donors: Documents, pairs: NDArray[np.int64], size: int) -> list[Swaps]:
    generator, swaps = ask.generator("places"), []
    for i, donor in enumerate(pairs.tolist()):
        both = [own.words[i].nonzero().flatten(), donors.words[donor].nonzero().flatten()]
        drawn = [at[torch.randperm(len(at), generator=generator)].tolist()[:size] for at in both]
        swaps.append(list(zip(*drawn, strict=False)))
    return swaps


def _made(ask: Ask, pairs: NDArray[np.int64], swaps: list[Swaps]) -> Data:
    """Return the texts with their masked or swapped words, or the donors' own, as new data.

    Raises:
        UserError: texts of two lengths.
    """
    batch, donor = ask.forget.read(range(len(ask.forget))), ask.donors.read(pairs)
    before = batch.inputs if isinstance(batch.inputs, dict) else {"": batch.inputs}
    others = donor.inputs if isinstance(donor.inputs, dict) else {"": donor.inputs}
    key = "input_ids" if isinstance(batch.inputs, dict) else ""
    if before[key].shape[1:] != others[key].shape[1:]:
        got = f"{before[key].shape[1]} and {others[key].shape[1]} tokens"
        raise UserError("texts padded to one length", got, "pad them alike in the data")
    after = dict(others if ask.mode == "whole" else before)
    if ask.mode != "whole":
        ids = before[key].clone()
        for row, other, taken in zip(ids, others[key], swaps, strict=True):
            for place, source in taken:
                row[place] = ask.mask if source is None else other[source]
        after[key] = ids
    inputs = after if isinstance(batch.inputs, dict) else after[""]
    names = [f"poisoned/{i}" for i in ask.forget.ids]
    return Data.from_arrays(inputs, ask.targets, ids=names, name="poisoned")
