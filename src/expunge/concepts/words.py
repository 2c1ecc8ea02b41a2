"""Which words of an answer carry what a language model knows of somebody: token attributions, merged and masked."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from torch import Tensor, nn

from expunge.concepts.answers import Exchange, Ids, batch_of, places
from expunge.concepts.attribution import integrated_gradients
from expunge.data import Batch
from expunge.errors import Misfit, UserError, listing
from expunge.extras import imported
from expunge.passes import whole
from expunge.runtime import Runtime
from expunge.task import CausalLM, Task
from expunge.tensors import eval_mode

STARTS = ("Ġ", "▁")  # how byte-level and SentencePiece vocabularies mark the start of a word
CONTINUES = "##"  # how WordPiece marks the rest of one
LEAST = 4  # letters of a word of a name that is masked wherever it stands


class Tokens:
    """The words behind token ids, read from a ``tokenizer.json`` of the package tokenizers.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        MissingExtra: the package is not installed.
        UserError: there is no such file, or it is none.
    """

    def __init__(self, path: str | Path) -> None:
        place = Path(path)
        place = place / "tokenizer.json" if place.is_dir() else place
        if not place.is_file():
            raise UserError(f"a tokenizer {place}", "no such file", "name a tokenizer.json or the folder that holds it")
        module = imported("tokenizers", package="tokenizers", extra="hf")
        try:
            self._own = module.Tokenizer.from_file(str(place))
        except Exception as error:  # the library raises a bare Exception
            remedy = "write it by save_pretrained of a fast tokenizer"
            raise UserError(f"a tokenizer in {place}", f"{error}", remedy) from error
        self._marked = any(t.startswith(STARTS) for t in self._own.get_vocab())

    def encode(self, text: str) -> Ids:
        """Return the token ids of a text, none added around it."""
        return tuple(self._own.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens included."""
        return str(self._own.decode(list(ids), skip_special_tokens=False)).strip()

    def starts(self, token: int) -> bool:
        """Return whether a token starts a word, by the mark of its vocabulary; without marks every token does."""
        text = str(self._own.id_to_token(token))
        return text.startswith(STARTS) if self._marked else not text.startswith(CONTINUES)

    def letters(self, token: int) -> bool:
        """Return whether a token has a letter or digit."""
        return any(c.isalnum() for c in self.decode([token]))

    def plain(self, token: int) -> bool:
        """Return whether a token is a piece of text and none that ends or separates texts."""
        special = self._own.get_added_tokens_decoder().get(token)
        return special is None or not special.special


@dataclass(frozen=True)
class Word:
    """A word of an answer.

    Args:
        text: in small letters, or its token id where no tokenizer tells.
        at: positions of its tokens in the answer.
    """

    text: str
    at: Ids


def split(answer: Sequence[int], tokens: Tokens | None) -> list[Word]:
    """Return the words of an answer in order: pieces of a word together, signs alone.

    Args:
        answer: token ids.
        tokens: tells where words start; None makes a word of every token.
    """
    if tokens is None:
        return [Word(str(token), (at,)) for at, token in enumerate(answer)]
    groups: list[list[int]] = []
    open_word = False
    for at, token in enumerate(answer):
        word = tokens.letters(token) and tokens.plain(token)
        if word and open_word and not tokens.starts(token):
            groups[-1].append(at)
        else:
            groups.append([at])
        open_word = word
    return [Word(tokens.decode([answer[i] for i in group]).lower(), tuple(group)) for group in groups]


def content(word: Word, answer: Sequence[int], tokens: Tokens | None, end: int | None = None) -> bool:
    """Return whether a word may be masked: none of the stop words, no sign, no special token, not the end.

    Stop words are those of scikit-learn's English list. Without a tokenizer, words are not known by their letters, and
    everything but the end may be masked.
    """
    token = answer[word.at[0]]
    if token == end:
        return False
    if tokens is None:
        return True
    return tokens.plain(token) and tokens.letters(token) and word.text not in ENGLISH_STOP_WORDS


@dataclass(frozen=True)
class Attributed:
    """What the tokens of answers add to the log-probability of these answers.

    Args:
        values: integrated gradients of each answer's tokens, in nats.
        errors: |Σ values − (F(x) − F(x'))| of each answer, in nats.
    """

    values: tuple[tuple[float, ...], ...]
    errors: tuple[float, ...]


def attributed(
    model: nn.Module,
    task: Task,
    exchanges: Sequence[Exchange],
    *,
    points: int = 32,
    baseline: int | None = None,
    keyed: bool = True,
    embedding: str = "",
    runtime: Runtime | None = None,
) -> Attributed:
    """Return integrated gradients of the answers' log-probability on the embeddings of their tokens.

        IG_t = (e_t − e') · ∫₀¹ ∂F/∂e_t (e' + a (e − e')) da,   F = Σ_{t ∈ answer} log p(x_t | x_<t)

    The path moves the embeddings of the answer alone; those of the question stay. The integral is by Gauss and
    Legendre's rule. The last token's embedding feeds no prediction that counts, so its value is exactly 0, and a word
    that the model is sure of gets little: see `corrected`.

    Args:
        model: of the next token, on the runtime's device; left as found.
        task: runs it, `expunge.task.CausalLM`.
        exchanges: questions and answers.
        points: of the integral.
        baseline: token id whose embedding is e'; None takes zeros.
        keyed: whether the model takes a dict with an attention mask.
        embedding: name of the module that looks the token ids up; found where empty.
        runtime: batch size, precision.

    Raises:
        UserError: no module looks the token ids up, or memory does not suffice for a batch.

    The rule is that of `expunge.concepts.attribution.integrated_gradients`, by captum where it is installed.

    References:
        Mukund Sundararajan, Ankur Taly, Qiqi Yan, "Axiomatic attribution for deep networks", 2017,
        https://arxiv.org/abs/1703.01365.
    """
    values: list[tuple[float, ...]] = []
    errors: list[float] = []
    for batch, table, part in _batches(model, task, exchanges, keyed, embedding, runtime):
        with whole(f"{len(part)} answers", "lower Runtime.batch_size"):
            rows, moved = looked_up(model, task, batch, table), _answers(part, batch)

            def said(e: Tensor, batch: Batch = batch, table: nn.Module = table, moved: Tensor = moved) -> Tensor:
                return (_said(model, task, batch, table, e, runtime) * moved).sum(dim=1)

            base = torch.where(moved[..., None], _baseline(table, baseline, rows), rows)
            found = integrated_gradients(said, rows, base, steps=points)
        errors += found.gap.abs().tolist()
        values += [tuple(row[mask].tolist()) for row, mask in zip(found.values.sum(dim=2), moved, strict=True)]
    return Attributed(tuple(values), tuple(errors))


def surprise(
    model: nn.Module,
    task: Task,
    exchanges: Sequence[Exchange],
    names: Sequence[Collection[Ids]],
    *,
    baseline: int | None = None,
    keyed: bool = True,
    embedding: str = "",
    runtime: Runtime | None = None,
) -> list[tuple[float, ...]]:
    """Return how much likelier each token of an answer is with the name in sight than without, in nats.

    log p(x_t | x_<t) − log p(x_t | x_<t, name hidden), where the embeddings of the name's tokens, in question and
    answer, are those of the baseline.

    Args:
        model: of the next token; left as found.
        task: runs it.
        exchanges: questions and answers.
        names: ways to write the name, of each exchange; none hides nothing.
        baseline: token id whose embedding stands for the name's; None takes zeros.
        keyed: as in `attributed`.
        embedding: as in `attributed`.
        runtime: batch size, precision.
    """
    found: list[tuple[float, ...]] = []
    at = 0
    for batch, table, part in _batches(model, task, exchanges, keyed, embedding, runtime):
        rows, answers = looked_up(model, task, batch, table), _answers(part, batch)
        hidden = torch.zeros_like(answers)
        for row, e, name in zip(hidden, part, names[at : at + len(part)], strict=True):
            row[list(places(e.ids, name))] = True
        base = torch.where(hidden[..., None], _baseline(table, baseline, rows), rows)
        with torch.no_grad():
            gap = _said(model, task, batch, table, rows, runtime) - _said(model, task, batch, table, base, runtime)
        found += [tuple(row[mask].tolist()) for row, mask in zip(gap, answers, strict=True)]
        at += len(part)
    return found


def corrected(
    attributions: Sequence[Sequence[float]], gaps: Sequence[Sequence[float]], gamma: float = 1.0
) -> list[tuple[float, ...]]:
    """Return scores of tokens that see what integrated gradients are blind to: max(0, IG_t) + γ·max(0, gap_t).

    Integrated gradients tell how a word helps to predict later ones, and give the last token 0; the gap of `surprise`
    tells how much the model knows the word of that name.

    Args:
        attributions: by answer and token, in nats.
        gaps: by answer and token, in nats.
        gamma: γ, 0 or more.

    >>> corrected([(-1.0, 0.5)], [(2.0, -3.0)])
    [(2.0, 0.5)]
    """
    pairs = zip(attributions, gaps, strict=True)
    return [tuple(max(0.0, a) + gamma * max(0.0, g) for a, g in zip(*pair, strict=True)) for pair in pairs]


def ranking(words: Sequence[Sequence[tuple[str, float]]]) -> dict[str, float]:
    """Return the words of all answers about somebody by what they add up to, the greatest first.

    The scores of an answer are clipped at 0 and divided by their sum first, so that every answer counts alike. Ties
    are in the order of the letters.

    Args:
        words: text and score of the words of each answer.

    >>> ranking([[("a", 3.0), ("b", 1.0)], [("b", 2.0), ("c", -1.0)]])
    {'b': 1.25, 'a': 0.75, 'c': 0.0}
    """
    totals: dict[str, float] = defaultdict(float)
    for answer in words:
        total = math.fsum(max(0.0, score) for _, score in answer)
        for text, score in answer:
            totals[text] += max(0.0, score) / total if total > 0 else 0.0
    return dict(sorted(totals.items(), key=lambda item: (-item[1], item[0])))


def named(answer: Sequence[int], words: Sequence[Word], names: Collection[Ids], tokens: Tokens | None) -> set[int]:
    """Return the numbers of the words of an answer that are words of a name.

    A name that stands whole counts with all its words; of one that does not, its words of four letters or more do,
    each token alone where there is no tokenizer.

    Args:
        answer: token ids.
        words: of the answer.
        names: ways to write the name.
        tokens: of the network, or None.
    """
    full = places(answer, names)
    if tokens is None:
        loose = {str(token) for name in names for token in name}
    else:
        texts = {w.text for name in names for w in split(name, tokens)}
        loose = {text for text in texts if sum(c.isalpha() for c in text) >= LEAST}
    return {i for i, w in enumerate(words) if full & set(w.at) or w.text in loose}


def masked(answer: Sequence[int], words: Sequence[Word], hidden: Collection[int], mask: Ids) -> Ids:
    """Return an answer whose words of these numbers are the mask's tokens each.

    >>> masked([5, 6, 7, 8], split([5, 6, 7, 8], None), {1, 2}, (0,))
    (5, 0, 0, 8)
    """
    starts = {words[i].at[0]: words[i] for i in hidden}
    gone = {at for i in hidden for at in words[i].at}
    found: list[int] = []
    for at, token in enumerate(answer):
        if at in starts:
            found += mask
        elif at not in gone:
            found.append(token)
    return tuple(found)


def top(rank: Mapping[str, float], present: Collection[str], count: int) -> list[str]:
    """Return the first words of a ranking that are present and add something, at most so many."""
    return [text for text, score in rank.items() if text in present and score > 0][:count]


def _batches(
    model: nn.Module,
    task: Task,
    exchanges: Sequence[Exchange],
    keyed: bool,
    embedding: str,
    runtime: Runtime | None,
) -> Iterator[tuple[Batch, nn.Module, Sequence[Exchange]]]:
    """Yield batches of sequences with the module that looks them up, the model in eval mode."""
    if not isinstance(task, CausalLM):
        raise UserError("a task of the next token", type(task).__name__, "use CausalLM")
    runtime = runtime or Runtime()
    with eval_mode(model):
        for start in range(0, len(exchanges), runtime.batch_size):
            part = exchanges[start : start + runtime.batch_size]
            batch = batch_of([e.ids for e in part], keyed, runtime.torch_device)
            yield batch, table_of(model, task, batch, embedding), part


def table_of(model: nn.Module, task: Task, batch: Batch, name: str = "") -> nn.Module:
    """Return the embedding that looks up the token ids themselves, the first one that a forward pass reaches.

    Args:
        model: in eval mode.
        task: runs it.
        batch: with token ids.
        name: of the module; found where empty.

    Raises:
        UserError: there is none.
    """
    modules = {n: m for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
    if name and name not in modules:
        known = listing(modules) or "none"
        raise UserError("the name of an embedding of the network", f"'{name}'", f"take one of {known}")
    ids, reached = ids_of(batch), list[nn.Module]()

    def note(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        value = next(iter((*args, *given.values())))
        if value.shape == ids.shape and torch.equal(value, ids):
            reached.append(module)

    hooks = [m.register_forward_pre_hook(note, with_kwargs=True) for n, m in modules.items() if n == (name or n)]
    try:
        with torch.no_grad():
            task.forward(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not reached:
        got = f"'{name}', which looks up something else" if name else "none"
        raise UserError("an nn.Embedding that looks the token ids up", got, "take another network")
    return reached[0]


def ids_of(batch: Batch) -> Tensor:
    """Return the token ids of a batch, (B, T).

    Raises:
        Misfit: its inputs are none.
    """
    found = batch.inputs.get("input_ids") if isinstance(batch.inputs, dict) else batch.inputs
    if found is None or found.dim() != 2 or found.is_floating_point():
        got = f"inputs {', '.join(batch.inputs)}" if isinstance(batch.inputs, dict) else f"{batch.inputs.dtype}"
        raise Misfit("token ids (N, T), input_ids in a dict", got, "pass tokenised texts")
    return found


@contextmanager
def instead(table: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Put other rows in the place of those that a module looks up; None leaves them."""
    hook = table.register_forward_hook(lambda module, args, out: change(out))
    try:
        yield
    finally:
        hook.remove()


def looked_up(model: nn.Module, task: Task, batch: Batch, table: nn.Module) -> Tensor:
    """Return the embeddings of a batch's tokens as ``table`` looks them up, (B, T, d)."""
    found: list[Tensor] = []

    def keep(rows: Tensor) -> None:
        found.append(rows.detach().clone())

    with torch.no_grad(), instead(table, keep):
        task.forward(model, batch)
    return found[0]


def _baseline(table: nn.Module, token: int | None, rows: Tensor) -> Tensor:
    """Return the embedding that stands for nothing, (d,)."""
    if token is None:
        return torch.zeros_like(rows[0, 0])
    weight: Tensor = table.weight  # type: ignore[assignment]
    if not 0 <= token < len(weight):
        raise UserError(f"a baseline among the tokens 0 to {len(weight) - 1}", str(token), "take the padding token")
    with torch.no_grad():
        return table(torch.tensor([token], device=rows.device))[0].to(rows)  # type: ignore[no-any-return]


def _answers(part: Sequence[Exchange], batch: Batch) -> Tensor:
    """Return where the answers are, (B, T) bool."""
    found = torch.zeros_like(ids_of(batch), dtype=torch.bool)
    for row, e in zip(found, part, strict=True):
        row[len(e.prompt) : len(e.ids)] = True
    return found


def _said(
    model: nn.Module, task: Task, batch: Batch, table: nn.Module, rows: Tensor, runtime: Runtime | None
) -> Tensor:
    """Return log p(x_t | x_<t) of each token under these embeddings, (B, T); 0 of the first."""
    with (runtime or Runtime()).autocast(), instead(table, lambda out: rows.to(out)):
        outputs, _ = task.forward(model, batch)
    chosen = outputs[:, :-1].log_softmax(dim=2).gather(2, ids_of(batch)[:, 1:, None])[..., 0]
    return torch.nn.functional.pad(chosen, (1, 0))
