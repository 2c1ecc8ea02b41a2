"""What a network's classes stand on: a bank of concepts found in labelled data, and what each adds to each class."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from expunge.concepts.attribution import network_attributions
from expunge.concepts.bank import Bank
from expunge.concepts.cav import Cav, Concept, Rules
from expunge.concepts.clusters import IMAGES, clustered
from expunge.concepts.head import MOST, fit_head
from expunge.concepts.tcav import class_gradients
from expunge.concepts.topics import documents, holding, topics
from expunge.concepts.windows import Windows, pooled, represented
from expunge.data import Data
from expunge.errors import Incompatible, UserError, listing
from expunge.evidence import Outputs, collect, head_tap
from expunge.method import Session, State
from expunge.seeds import seed as named_seed
from expunge.sources import Inputs
from expunge.task import class_count

log = logging.getLogger(__name__)
Kind = Literal["images", "rows", "tokens"]
Source = Literal["found", "words", "column", "file"]
Rank = Literal["auto", "head", "network"]
STUDIES = 4  # passes over the data at most: outputs, windows, gradients, the network's own attributions
APART = ";"  # between the concepts of one sample in a column


class Settings(Protocol):
    """What is read of the method."""

    @property
    def name(self) -> str:
        """Of the method."""

    @property
    def source(self) -> Source:
        """Where concepts come from."""

    @property
    def column(self) -> str | None:
        """That names concepts, for that source."""

    @property
    def words(self) -> tuple[tuple[Any, ...], ...]:
        """Names with token ids, for that source."""

    @property
    def bank(self) -> str | None:
        """A file of concepts, for that source."""

    @property
    def tap(self) -> str | None:
        """Where the representation is read; None for the head's input."""

    @property
    def images(self) -> int:
        """Samples of each class that concepts are looked for in."""

    @property
    def windows(self) -> int:
        """Of each such image."""

    @property
    def clusters(self) -> int:
        """Of each class."""

    @property
    def examples(self) -> int:
        """That a concept needs."""

    @property
    def redraws(self) -> int:
        """Fits against other negatives."""

    @property
    def least(self) -> float:
        """Accuracy below which a concept is dropped."""

    @property
    def level(self) -> float:
        """Of the test against chance; 1 for none."""

    @property
    def rank(self) -> Rank:
        """What ranks the concepts of a class."""


@dataclass(frozen=True, eq=False)
class Study:
    """Concepts of a network, and what its classes make of them.

    Args:
        bank: m concepts.
        attribution: A, (K, m), what each adds to each class's logit; 0 for a concept that the class has less of than
            the samples do on average, unless it has no other that adds, and for a class without samples.
        present: how much more of each concept a class has than the samples do on average, (K, m), in units of the
            score; 0 for a class without samples.
        tap: where the concepts are read.
        facts: ``fidelity`` and ``accuracy`` of the sparse head, ``ranked_by``, ``concepts``, ``dropped``.
    """

    bank: Bank
    attribution: Tensor
    present: Tensor
    tap: str
    facts: Mapping[str, Any]

    def state(self) -> State:
        """Return it as a method's state."""
        tensors = {**self.bank.tensors(), "attribution": self.attribution.clone()}
        tensors["present"] = self.present.clone()
        return State(tensors, {**self.bank.meta(), "tap": self.tap, "study": dict(self.facts)})

    @classmethod
    def read(cls, state: State) -> Study:
        """Return the study that a state keeps.

        Raises:
            Incompatible: it keeps none.
        """
        if not {"attribution", "present"} <= state.tensors.keys() or "study" not in state.meta:
            raise Incompatible("a study of concepts in the state", "none", "prepare anew with these settings")
        bank = Bank.read(state.tensors, state.meta)
        values, present = state.tensors["attribution"], state.tensors["present"]
        return cls(bank, values, present, str(state.meta["tap"]), state.meta["study"])


def kind_of(inputs: Inputs) -> Kind:
    """Return what samples are: images (C, H, W) of real numbers, tokens, or else rows of numbers.

    Tokens are ``input_ids`` in a dict, or a single tensor (B, T) of integers.
    """
    parts = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
    if any(p.dim() == 4 and p.is_floating_point() for p in parts):
        return "images"
    if isinstance(inputs, dict):
        return "tokens" if "input_ids" in inputs else "rows"
    return "rows" if inputs.is_floating_point() or inputs.dim() != 2 else "tokens"


def study(method: Settings, session: Session, model: nn.Module, data: Data) -> Study:
    """Find the concepts of a network in labelled data, and what each adds to each class.

    Args:
        method: its settings.
        session: task, runtime, seed.
        model: the network, in eval mode.
        data: labelled.

    Returns:
        The study.

    Raises:
        UserError: no representation, too few examples, or no concept that can be used.
    """
    return _Studying(method, session, model, data).done()


class _Studying:
    """One study.

    Args:
        method: its settings.
        session: task, runtime, seed.
        model: the network.
        data: labelled.
    """

    def __init__(self, method: Settings, session: Session, model: nn.Module, data: Data) -> None:
        self.method, self.model, self.data = method, model, data
        self.task, self.runtime, self.seed = session.task, session.runtime, session.seed
        self.rare: tuple[Mapping[str, Any], ...] = ()  # words of a column that are dropped before any fit
        self.tap = self._tap()
        self.target = data.targets().reshape(len(data)).long()
        self.used = self._used()
        said = collect(model, self.task, self.used, taps=[self.tap], runtime=self.runtime)
        self.labels = torch.as_tensor(said.target).reshape(len(said)).long()
        self.said, self.f = said, pooled(said.features[self.tap]).double()
        self.classes = class_count(self.task, said.outputs)
        self.looked = self._looked()

    def _tap(self) -> str:
        found = self.method.tap or head_tap(self.model, self.task, self.data, self.runtime)
        if found is None:
            known = [n for n, m in self.model.named_modules() if n and not list(m.children())]
            want = f"a linear layer whose input is the representation, for {self.method.name}"
            raise UserError(want, "none", f"set {self.method.name}.tap to one of {listing(known, 12)}")
        return found

    def _generator(self, what: str) -> np.random.Generator:
        return np.random.default_rng(named_seed("study", what, self.seed))

    def _used(self) -> Data:
        """Return the samples that scores and the head are fitted on: all, or as many as the head takes."""
        if len(self.data) <= MOST:
            return self.data
        at = np.sort(self._generator("used").choice(len(self.data), MOST, replace=False))
        return replace(self.data, positions=self.data.positions[at])

    def _looked(self) -> Data:
        """Return at most so many samples of each class, drawn at random, in which concepts are looked for."""
        rng, parts = self._generator("looked"), list[Any]()
        for k in self.labels.unique().tolist():
            at = np.flatnonzero(self.labels.numpy() == k)
            parts.append(np.sort(rng.permutation(at)[: self.method.images]))
        self.at = np.concatenate(parts)
        return replace(self.used, positions=self.used.positions[self.at])

    def done(self) -> Study:
        """Return the study."""
        bank = self._bank()
        scores = bank.scores(self.f)
        head = fit_head(scores, self.labels, self.classes, said=_predicted(self.said, len(self.f)), seed=self.seed)
        by_head = self.method.rank == "head" or (self.method.rank == "auto" and head.faithful)
        facts: dict[str, Any] = {"fidelity": head.fidelity, "accuracy": head.accuracy, "weights": head.used}
        if by_head:
            found = head.attributions(scores, self.labels)
        else:
            start = self.f.mean(dim=0).to(next(self.model.parameters()).dtype)
            found = network_attributions(
                self.model,
                self.task,
                self.looked,
                self.tap,
                bank.vectors,
                self.classes,
                baseline=start,
                runtime=self.runtime,
            )
            facts["residual"] = [] if found.residual is None else found.residual.tolist()
        facts |= {
            "ranked_by": "head" if by_head else "network",
            "completeness_gap": found.gap,
            "concepts": len(bank),
            "dropped": [{"name": f["name"], "why": f["dropped"]} for f in bank.dropped],
        }
        there = found.present
        there = there.where((there > 0).any(dim=1, keepdim=True), found.values)
        return Study(bank, there.cpu(), found.above.cpu(), self.tap, facts)

    def _bank(self) -> Bank:
        m = self.method
        if m.source == "file":
            kept = State.load(str(m.bank))
            bank = Bank.read(kept.tensors, kept.meta)
            bank.scores(self.f[:1])  # says at once where it does not fit
            return bank
        concepts = {"column": self._column, "words": self._words, "found": self._found}[m.source]()
        rules = Rules(draws=m.redraws, least=m.examples, accuracy=m.least, level=m.level)
        slopes = []
        if m.level < 1:
            found = class_gradients(self.model, self.task, self.looked, self.tap, runtime=self.runtime)
            slopes = list(found.values())
        bank = Bank.fit(concepts, random=self.f, gradients=slopes, rules=rules, seed=self.seed)
        facts = tuple({k: v for k, v in fact.items() if k != "nearest"} for fact in bank.facts)
        lost = tuple({k: v for k, v in fact.items() if k != "nearest"} for fact in bank.dropped)
        return replace(bank, facts=facts, dropped=lost + self.rare)  # positions of samples are not kept

    def _column(self) -> Sequence[Concept]:
        """Return a concept for each word of a column: the samples that have it, against those that do not."""
        name = str(self.method.column)
        column = self.used.column(name)
        words = [{w.strip() for w in str(v).split(APART) if w.strip()} if v is not None else set() for v in column]
        found = {w: torch.tensor([w in own for own in words]) for w in sorted(set().union(*words))}
        return self._told(found, f"in the column '{name}'", f"write names there, with {APART!r} between several")

    def _words(self) -> Sequence[Concept]:
        """Return a concept for each list of words: the texts that hold one of them, against those that do not.

        Raises:
            UserError: no texts.
        """
        kind = kind_of(self.used.read([0]).inputs)
        if kind != "tokens":
            raise UserError("texts, for concepts of words", f"{kind} in {self.data.name}", "take another source")
        (texts,) = documents(self.used)
        found = {str(name): holding(texts, tokens) for name, *tokens in self.method.words}
        return self._told(found, f"by {self.method.name}.words", "list words that more texts hold, or fewer")

    def _told(self, having: Mapping[str, Tensor], where: str, remedy: str) -> Sequence[Concept]:
        """Return concepts by what samples have them; those that too few have, or nearly all, are dropped.

        Raises:
            UserError: none is left.
        """
        found, rare, least = list[Concept](), list[dict[str, Any]](), self.method.examples
        for name, has in having.items():
            count = int(has.sum())
            if min(count, len(has) - count) >= least:
                found.append(Concept(name, self.f[has], self.f[~has]))
            else:
                why = f"{count} of {len(has)} samples have it: {least} with it and {least} without are needed"
                rare.append(Cav(name, torch.zeros(0), 0.0, examples=count, dropped=why).record())
                log.info("concept %s is dropped: %s", name, why)
        if not found:
            want = f"a concept of {least} samples or more {where} of {self.data.name}"
            raise UserError(want, f"{rare[0]['name']}: {rare[0]['dropped']}" if rare else "none", remedy)
        self.rare = tuple(rare)
        return found

    def _found(self) -> Sequence[Concept]:
        """Return clusters of windows of images, or of whole rows, or topics of tokens."""
        m, rows = self.method, torch.from_numpy(self.at)
        kind = kind_of(self.looked.read([0]).inputs)
        if kind == "tokens":
            (texts,), count = documents(self.looked), m.clusters * len(self.labels[rows].unique())
            return topics(texts, self.f[rows], count=count, least=m.examples, seed=self.seed)
        if kind == "images":
            found = represented(
                self.model, self.task, self.looked, self.tap, count=m.windows, runtime=self.runtime, seed=self.seed
            )
        else:
            found = Windows(self.f[rows], torch.arange(len(rows)), torch.zeros(len(rows), 3, dtype=torch.int64))
        made = clustered(
            found,
            self.labels[rows],
            count=m.clusters,
            least=m.examples,
            images=min(IMAGES, m.examples),
            seed=self.seed,
        )
        return [cluster.concept for cluster in made]


def _predicted(said: Outputs, count: int) -> Tensor:
    return said.prediction.reshape(count).long()
