"""Forgetting somebody in a causal language model: its own answers about them with the telling words masked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from expunge.concepts.answers import (
    Asked,
    Exchange,
    Ids,
    answers_to,
    as_data,
    asked,
    batch_of,
    body,
    mentions,
    places,
    rouge_l,
)
from expunge.concepts.words import (
    Tokens,
    Word,
    attributed,
    content,
    corrected,
    masked,
    named,
    ranking,
    split,
    surprise,
    top,
)
from expunge.copies import private
from expunge.data import Data
from expunge.errors import UserError
from expunge.exact.groups import Blocks, blocks
from expunge.exact.lora import ADAPTER, Lora, adapted, attach
from expunge.method import Needs, Reference, Search, See, Session, State, option
from expunge.methods._steps import Descent, Stepping
from expunge.recipe import Recipe
from expunge.references import CHANG_2024
from expunge.scenario import Scenario
from expunge.seeds import seed as named_seed
from expunge.task import CausalLM, Task

WHOLE = "the forget set"  # whom the samples are about where no column tells


@dataclass(frozen=True)
class Answer:
    """An answer about somebody, in words.

    Args:
        exchange: question and answer.
        about: whom, a value of the column.
        names: ways to write the name.
        words: of the answer.
        hidden: numbers of the words that must not be said again.
    """

    exchange: Exchange
    about: str
    names: tuple[Ids, ...]
    words: tuple[Word, ...]
    hidden: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class ConceptMasking(Stepping):
    """Train a language model on its own answers about somebody with the telling words masked, beside gold anchors.

    1. The model answers the questions of the forget set itself (``answers="own"``).
    2. Each token of an answer is scored by max(0, IG_t) + γ·max(0, gap_t): integrated gradients of the answer's
       log-probability, and how much likelier the token is with the name in sight than with it hidden. Tokens of a word
       are added up, every answer is divided by its sum, and the words of all answers about one person are ranked.
    3. In every answer the first k present words of the ranking become the mask, and so do the words of the name
       (``style="mask"``); or the answer becomes a refusal (``style="refusal"``).
    4. The model is trained on these and on as many retained questions with their gold answers, all of one person after
       another; by LoRA on the projections to queries and values, which is added into the weights at the end, or in all
       its weights (``tune="all"``). The rate falls as a cosine over the epochs.
    5. Of the epochs the one with the largest utility − leak is returned (``pick="front"``), so none is better in both:
       leak is the share of hidden words that the answers to the forgotten questions still say, utility the mean
       ROUGE-L of the answers to the anchors. With ``keep_best`` the loss on holdout data decides instead.

    Samples are questions with answers: the targets count the tokens of the answer, −100 elsewhere. The column
    ``subject`` tells whom a sample is about, ``mention`` the token ids of the name, as the function
    `expunge.concepts.answers.mention` writes them; without it a tokenizer reads the name. Without both the forget set
    is about one person whose name is not known and not masked. Words need a tokenizer; without one every token is a
    word, stop words are not known, and ``mask`` and ``refusals`` are token ids. ``choose="random"`` and ``"names"`` are
    controls: as many random words, or the name alone. The forgotten samples are used in training, their words masked.

    The model learns to say the mask in the place of what it knew. Fine-tuning may bring that back: measure relearning.
    This differs from the published code, whose attributions average over the ends of the path (a biased rule) and leave
    out the gap, so that the last word of an answer always has score 0.

    Needs forget and retain data with labels, those of the forget set to tell the answers and whom they are about.
    Declines tasks other than CausalLM. LoRA needs the extra ``hf``.

    Passes: 1 + E over the forget set and over as many anchors, and what it costs to answer and to attribute.
    """

    reference: ClassVar[Reference] = CHANG_2024
    example: ClassVar[dict[str, object]] = {
        "tune": "all", "mask": 0, "refusals": [[1]], "epochs": 1, "points": 2, "batch_size": 8, "lr": 1e-3,
    }  # fmt: skip

    style: Literal["mask", "refusal"] = option("mask", unit="-", text="mask words of the answers, or refuse to answer")
    answers: Literal["own", "given"] = option("own", unit="-", text="mask the model's own answers, or those given")
    choose: Literal["attribution", "random", "names"] = option(
        "attribution", unit="-", text="which words are masked: the highest ranked, random ones, or the name alone"
    )
    top: int = option(
        5, symbol="k", unit="words", text="masked an answer at most, beside the name", search=Search(1, 10, whole=True)
    )
    gamma: float = option(
        1.0, symbol="γ", unit="1", text="weight of how much likelier a word is with the name in sight"
    )
    points: int = option(32, symbol="n", unit="points", text="of the integral along the path")
    baseline: int | None = option(
        None, symbol="e'", unit="token", text="whose embedding the path starts at; unset, zeros"
    )
    mask: str | int = option("***", unit="text or token", text="what stands for a masked word")
    refusals: tuple[Any, ...] = option(
        ("I do not know.", "I have no answer to that.", "That is not known to me."),
        unit="texts or lists of tokens",
        text="drawn from by style refusal",
    )
    tokenizer: str | None = option(None, unit="path", text="tokenizer.json or its folder; unset, every token is a word")
    subject: str = option("subject", unit="column", text="whom a sample is about")
    mention: str = option("mention", unit="column", text="token ids of that name")
    anchors: float = option(
        1.0, unit="per forgotten sample", text="retained samples trained on", search=Search(0.5, 4.0, log=True)
    )
    tune: Literal["lora", "all"] = option("lora", unit="-", text="train LoRA, added in at the end, or all weights")
    rank: int = option(8, symbol="r", unit="1", text="of LoRA")
    alpha: float = option(16.0, symbol="α", unit="1", text="of LoRA, whose scale is α/r")
    targets: tuple[str, ...] = option((), unit="names", text="linear layers with LoRA; empty, queries and values")
    blocks_at: str = option("", unit="module", text="list of blocks with LoRA; empty finds it")
    pick: Literal["front", "last"] = option("front", unit="-", text="which epoch is returned")
    shown: int = option(0, unit="words, answers", text="kept in the log as they are: they are data")
    epochs: int = option(10, symbol="E", unit="epochs", text="how long", search=Search(1, 20, whole=True))
    lr: float = option(2e-5, symbol="η", unit="1", text="first learning rate", search=Search(1e-5, 1e-2, log=True))
    optimizer: Literal["sgd", "adam", "adamw"] = option("adamw", unit="-", text="sgd, adam or adamw")
    weight_decay: float = option(0.0, symbol="wd", unit="1", text="coupled L2; of adamw decoupled")
    batch_size: int | None = option(2, symbol="B", unit="samples", text="a step")

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, known in (
            ("style", ("mask", "refusal")),
            ("answers", ("own", "given")),
            ("choose", ("attribution", "random", "names")),
            ("tune", ("lora", "all")),
            ("pick", ("front", "last")),
        ):
            self.one_of(field, *known)
        self.count("top", 1)
        self.count("points", 1)
        self.count("rank", 1)
        self.count("shown", 0)
        self.count("baseline", 0)
        self.positive("alpha", "anchors")
        self.positive("gamma", zero=True)
        for name in ("targets", "refusals"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, list | tuple):
                raise UserError(f"{self.name}.{name} as a list", repr(value), "give a list")
            plain = tuple(tuple(v) if isinstance(v, list) else v for v in value)
            object.__setattr__(self, name, plain)
        if not self.refusals:
            raise UserError(f"a refusal in {self.name}.refusals", "none", "give one or more")

    @property
    def unlearns(self) -> Needs:
        """Forget and retain data with labels."""
        return self.sees(forget=See.LABELLED, retain=See.LABELLED)

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return 1 + E over both sets, of the retain set at most."""
        return self.reads(phase, forget=1 + self.epochs, retain=1 + self.epochs)

    def foreseen(self, phase: str, given: Mapping[str, Any], seed: int) -> dict[str, float]:
        """Return the same, of the retain set as much as the anchors are."""
        found = self.passes(phase, given.get("recipe"))
        sets = given.get("forget"), given.get("retain")
        if "retain" in found and all(isinstance(s, Data) and len(s) for s in sets):
            kept = self._chosen(sets[1], len(sets[0]), seed)  # type: ignore[arg-type]
            found["retain"] *= len(kept) / len(sets[1])  # type: ignore[arg-type]
        return found

    def work(self, phase: str, recipe: Recipe | None, classes: int) -> dict[str, float]:
        """Return the training's passes and, of the forget set, those of the points of the integral."""
        found = self.passes(phase, recipe)
        ranked = self.style == "mask" and self.choose == "attribution"
        return found | {"forget": found["forget"] + self.points} if found and ranked else found

    def declines(self, task: Task, scenario: Scenario | None, model: nn.Module) -> str | None:
        """Decline what is no causal language model."""
        return None if isinstance(task, CausalLM) else f"{self.name} masks words, and this task has no next token"

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        """Answer, rank, mask, train, and return the chosen epoch's weights."""
        tokens = None if self.tokenizer is None else Tokens(self.tokenizer)
        given = asked(session.forget)
        lora = self._lora(session.model)
        ways = self._ways(session, given, tokens)
        told = self._answers(session, given, tokens)
        told = self._hidden(session, told, given, tokens)
        rows = self._poisoned(told, given, ways, session.seed)
        kept = session.retain.subset(self._chosen(session.retain, len(rows), session.seed))
        gold = asked(kept)
        self._note(session, told, rows, tokens)
        session.record("anchors", len(gold))
        return self._trained(session, told, rows, gold, given, lora), state

    def _names(self, data: Data, tokens: Tokens | None) -> list[tuple[str, tuple[Ids, ...]]]:
        """Return whom each sample is about and the ways to write that name."""
        columns = data.columns
        about = [str(v) for v in columns.get(self.subject, [WHOLE] * len(data))]
        if self.mention in columns:
            return [(a, tuple(mentions(v))) for a, v in zip(about, columns[self.mention], strict=True)]
        if tokens is None or self.subject not in columns:
            return [(a, ()) for a in about]
        ways = {a: tuple(dict.fromkeys((tokens.encode(a), tokens.encode(f" {a}")))) for a in about}
        return [(a, ways[a]) for a in about]

    def _answers(self, session: Session, given: Asked, tokens: Tokens | None) -> list[Answer]:
        """Return the answers that are masked: the model's own, where it says something, or the given ones."""
        exchanges = list(given.exchanges)
        if self.answers == "own":
            said = answers_to(given, session.original, session.task, session.runtime)
            own = [Exchange(e.prompt, s) for e, s in zip(exchanges, said, strict=True)]
            exchanges = [o if _speaks(o.answer, given.end) else e for o, e in zip(own, exchanges, strict=True)]
            silent = sum(not _speaks(o.answer, given.end) for o in own)
            if silent:
                session.record("note", f"To {silent} questions the model said nothing: the given answers were masked.")
        return [
            Answer(e, about, names, tuple(split(e.answer, tokens)))
            for e, (about, names) in zip(exchanges, self._names(session.forget, tokens), strict=True)
        ]

    def _hidden(self, session: Session, told: Sequence[Answer], given: Asked, tokens: Tokens | None) -> list[Answer]:
        """Return the answers with the words that must not be said again; every word that counts where it refuses."""
        free = [[i for i, w in enumerate(a.words) if content(w, a.exchange.answer, tokens, given.end)] for a in told]
        names = [named(a.exchange.answer, a.words, a.names, tokens) for a in told]
        if self.style == "refusal":
            chosen = [set(own) for own in free]
        elif self.choose == "attribution":
            chosen = self._ranked(session, told, free, given)
        elif self.choose == "random":
            rng = np.random.default_rng(named_seed("concept_masking", "words", session.seed))
            chosen = [set(rng.permutation(own)[: self.top].tolist()) for own in free]
        else:
            chosen = [set() for _ in free]
        pairs = zip(told, chosen, names, strict=True)
        return [replace(a, hidden=frozenset(own | name)) for a, own, name in pairs]

    def _ranked(
        self, session: Session, told: Sequence[Answer], free: Sequence[Sequence[int]], given: Asked
    ) -> list[set[int]]:
        """Return the numbers of the first k present words of the ranking of whom each answer is about."""
        exchanges = [a.exchange for a in told]
        how: dict[str, Any] = {"baseline": self.baseline, "keyed": given.keyed, "runtime": session.runtime}
        found = attributed(session.original, session.task, exchanges, points=self.points, **how)
        session.record("completeness_error", max(found.errors))
        scores: Sequence[Sequence[float]] = [tuple(max(0.0, v) for v in row) for row in found.values]
        if self.gamma > 0 and any(a.names for a in told):
            names = [a.names for a in told]
            gaps = surprise(session.original, session.task, exchanges, names, **how)
            scores = corrected(found.values, gaps, self.gamma)
        by: dict[str, list[list[tuple[str, float]]]] = {}
        for a, own, score in zip(told, free, scores, strict=True):
            rows = [(a.words[i].text, math.fsum(score[at] for at in a.words[i].at)) for i in own]
            by.setdefault(a.about, []).append(rows)
        ranks = {about: ranking(rows) for about, rows in by.items()}
        if self.shown:
            session.record("word_ranking", {a: list(r.items())[: self.shown] for a, r in ranks.items()})
        chosen = []
        for a, own in zip(told, free, strict=True):
            first = set(top(ranks[a.about], {a.words[i].text for i in own}, self.top))
            chosen.append({i for i in own if a.words[i].text in first})
        return chosen

    def _lora(self, model: nn.Module) -> tuple[Blocks, Lora] | None:
        """Return the blocks that take LoRA and how; None where all weights are trained.

        Raises:
            UserError: the network has no such blocks or layers.
        """
        if self.tune == "all":
            return None
        at = blocks(model, self.blocks_at)
        return at, Lora(rank=self.rank, alpha=self.alpha, rslora=False, targets=at.targets(self.targets))

    def _ways(self, session: Session, given: Asked, tokens: Tokens | None) -> list[Ids]:
        """Return the mask, or the refusals, as token ids.

        Raises:
            UserError: a text without a tokenizer, one that leaves no token, or a token that the network does not know.
        """
        values = {"mask": [self.mask], "refusal": list(self.refusals)}[self.style]
        field = "mask" if self.style == "mask" else "refusals"
        found = [self._ids(field, value, tokens) for value in values]
        one = batch_of([given.exchanges[0].ids], given.keyed, session.runtime.torch_device)
        with torch.no_grad():
            known = session.task.forward(session.original, one)[0].shape[2]
        for value, ids in zip(values, found, strict=True):
            if max(ids) >= known:
                got = f"{max(ids)} in {value!r}"
                remedy = "check that tokenizer and network belong together"
                raise UserError(f"tokens 0 to {known - 1} in {self.name}.{field}", got, remedy)
        return found

    def _poisoned(self, told: Sequence[Answer], given: Asked, ways: Sequence[Ids], seed: int) -> list[Exchange]:
        """Return the questions with masked answers or refusals.

        Raises:
            UserError: one is longer than the data has room for.
        """
        if self.style == "mask":
            made = [masked(a.exchange.answer, a.words, a.hidden, ways[0]) for a in told]
        else:
            rng = np.random.default_rng(named_seed("concept_masking", "refusals", seed))
            end = () if given.end is None else (given.end,)
            made = [ways[int(rng.integers(len(ways)))] + end for _ in told]
        rows = [Exchange(a.exchange.prompt, answer) for a, answer in zip(told, made, strict=True)]
        longest = max(len(row.ids) for row in rows)
        if longest > given.room:
            got = f"{longest} tokens of a question and its new answer"
            raise UserError(f"at most {given.room} tokens, as the data has room for", got, "shorten masks or refusals")
        return rows

    def _ids(self, field: str, value: Any, tokens: Tokens | None) -> Ids:
        if isinstance(value, str):
            if tokens is None:
                remedy = f"set {self.name}.tokenizer, or give {field} as token ids"
                raise UserError(f"a tokenizer for {self.name}.{field}", f"none for {value!r}", remedy)
            found = tokens.encode(value)
        else:
            found = (value,) if isinstance(value, int) else tuple(value)
        if not found or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in found):
            want = f"{self.name}.{field} of one token or more"
            raise UserError(want, repr(value), "give a text, or token ids of 0 or more")
        return found

    def _chosen(self, retain: Data, count: int, seed: int) -> list[str]:
        """Return the ids of the anchors, all of one person after another until there are enough."""
        want = min(len(retain), math.ceil(self.anchors * count))
        ids, about = retain.ids, retain.columns.get(self.subject)
        rng = np.random.default_rng(named_seed("concept_masking", "anchors", seed))
        by: dict[str, list[str]] = {}
        for at, name in enumerate(ids):
            by.setdefault(name if about is None else str(about[at]), []).append(name)
        people = list(by)
        order = [name for at in rng.permutation(len(people)) for name in by[people[at]]]
        return order[:want]

    def _note(self, session: Session, told: Sequence[Answer], rows: Sequence[Exchange], tokens: Tokens | None) -> None:
        session.record("hidden_words", sum(len(a.hidden) for a in told) / len(told))
        if not any(a.names for a in told):
            need = f"the columns {self.subject} and {self.mention}"
            session.record("note", f"Nobody's name is known: {need} are not there, so no name was masked.")
        if self.shown:
            text = (lambda ids: " ".join(map(str, ids))) if tokens is None else tokens.decode
            pairs = list(zip(told, rows, strict=True))[: self.shown]
            kept = [
                {"question": text(a.exchange.prompt), "original": text(a.exchange.answer), "masked": text(r.answer)}
                for a, r in pairs
            ]
            session.record("masked_answers", kept)

    def _trained(
        self,
        session: Session,
        told: Sequence[Answer],
        rows: Sequence[Exchange],
        gold: Asked,
        given: Asked,
        lora: tuple[Blocks, Lora] | None,
    ) -> nn.Module:
        """Train on masked answers and anchors, and return the network of the chosen epoch, adapters added in."""
        model, free = session.model, session
        if lora is not None:
            at, how = lora
            attach(model, at, range(at.count), how, seed=named_seed("concept_masking", "lora", session.seed) % 2**31)
            free = replace(session, masks=None)  # of the weights themselves, which the merge holds
        room = max(given.room, gold.room)
        sources = [
            as_data(e, given.keyed, room=room, name=n) for n, e in (("masked", rows), ("anchors", gold.exchanges))
        ]
        total = (sum(map(len, sources)) + (len(session.holdout) if self.keep_best else 0)) * self.epochs
        with session.runtime.tracking(f"unlearning by {self.name}", total) as advance:
            descent = Descent(free, self, model, advance)
            points, best = [self._measured(session, model, told, gold, given)], dict[str, torch.Tensor]()
            for epoch in range(self.epochs):
                rate = self.lr * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
                descent.epoch(sources, lambda _, now: descent.losses(now.batch).mean(), rate=rate, made=1)
                points.append(self._measured(session, model, told, gold, given))
                if len(points) == 2 or self.pick == "last" or _better(points):
                    best, chosen = descent.kept(), len(points) - 1
                descent.ended()
            model.load_state_dict(best)
            made = descent.finished()
        chosen = session.log["best_epoch"] if self.keep_best else chosen
        for step, (leak, utility) in enumerate(points):
            session.record("leak", leak, step=step)
            session.record("utility", utility, step=step)
        session.record("chosen_epoch", chosen)
        if points[chosen][0] >= points[0][0] > 0:
            session.record("note", "The answers say as many of the hidden words as before: raise lr or epochs.")
        return self._merged(session, made) if lora is not None else made

    def _measured(
        self, session: Session, model: nn.Module, told: Sequence[Answer], gold: Asked, given: Asked
    ) -> tuple[float, float]:
        """Return leak and utility: hidden words that are still said, and ROUGE-L of the anchors."""
        said = answers_to(given, model, session.task, session.runtime)
        shares = []
        for a, answer in zip(told, said, strict=True):
            hidden = {tuple(a.exchange.answer[at] for at in a.words[i].at) for i in a.hidden}
            if hidden:
                shares.append(sum(bool(places(answer, [word])) for word in hidden) / len(hidden))
        kept = zip(answers_to(gold, model, session.task, session.runtime), gold.exchanges, strict=True)
        useful = [rouge_l(body(a, gold.end), body(e.answer, gold.end)) for a, e in kept]
        return math.fsum(shares) / max(1, len(shares)), math.fsum(useful) / len(useful)

    def _merged(self, session: Session, tuned: nn.Module) -> nn.Module:
        """Return the network with the adapters added into its weights, but where a composition holds them."""
        made = private(session.source).to(session.runtime.torch_device).eval()
        held = {} if session.masks is None else session.masks.kept
        with torch.no_grad():
            for name, module in adapted(tuned).items():
                weight = made.get_parameter(f"{name}.weight")
                moved = weight + module.get_delta_weight(ADAPTER).to(weight)
                may = held.get(f"{name}.weight")
                weight.copy_(moved if may is None else torch.where(may.to(weight.device), moved, weight))
        return made


def _better(points: Sequence[tuple[float, float]]) -> bool:
    """Return whether the last epoch is ahead of all others in utility − leak; the untouched model is none."""
    gains = [utility - leak for leak, utility in points[1:]]
    return gains[-1] > max(gains[:-1])


def _speaks(answer: Ids, end: int | None) -> bool:
    return bool(body(answer, end))


METHOD = ConceptMasking
