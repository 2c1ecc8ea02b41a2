"""What a causal language model answers to the questions of a set, for measures of what it says."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from expunge.concepts.answers import Asked, Ids, answers_to, asked, body
from expunge.errors import Misfit
from expunge.metric import Audit, Found, Goal, Metric, Number, Unavailable, missing
from expunge.task import CausalLM

NO_LANGUAGE = "the task has no next token"
NO_QUESTIONS = "has no questions with answers"


class Answering(Metric):
    """Two numbers of the answers on each of some splits, ``<family>/<kind>/<split>``; retrained's values are the goal.

    A subclass names its ``family``, its ``kinds`` and ``parts`` in words, and measures a split in `judged`.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    trains: ClassVar[bool] = True
    family: ClassVar[str]
    kinds: ClassVar[Mapping[str, str]]
    parts: ClassVar[Mapping[str, str]]

    @property
    def numbers(self) -> dict[str, Number]:
        """A number of each kind for each split."""
        pairs = [(kind, split) for kind in self.kinds for split in self.parts]
        return {self.key(k, s): self.number(f"{self.kinds[k]}, {self.parts[s]}") for k, s in pairs}

    def key(self, kind: str, split: str) -> str:
        """Return the name of a number."""
        return f"{self.family}/{kind}/{split}"

    def measure(self, audit: Audit) -> Found:
        """Return the numbers of every split that has questions, and why another has none."""
        found: Found = {}
        for split in self.parts:
            of = questions(audit, split)
            if isinstance(of, Unavailable):
                found |= {self.key(kind, split): of for kind in self.kinds}
            else:
                found |= self.judged(audit, split, of)
        return found

    @abstractmethod
    def judged(self, audit: Audit, split: str, of: Asked) -> Found:
        """Return the numbers of one split."""


def questions(audit: Audit, split: str) -> Asked | Unavailable:
    """Return the questions and answers of a split, or why there are none."""
    if not isinstance(audit.task, CausalLM):
        return Unavailable(audit.flaws.get("model", NO_LANGUAGE))
    reason = missing(frozenset({split, "labels", "data"}), audit)
    if reason:
        return Unavailable(reason)
    try:
        return asked(audit.data[split])
    except Misfit as error:
        return Unavailable(f"{split} {NO_QUESTIONS}: {error.got}")


def told(audit: Audit, split: str, of: Asked, role: str = "model") -> list[Ids]:
    """Return a model's likeliest answers to the questions of a split, without their end token.

    Answers are as long as the longest one of the split at most.

    Args:
        audit: holds the model.
        split: where the questions are from.
        of: the questions.
        role: of the model; answers of another than the audited one are worked out once.
    """

    def work() -> list[Ids]:
        said = answers_to(of, audit.models[role], audit.task, audit.runtime.alone())
        return [body(answer, of.end) for answer in said]

    return work() if role == "model" else audit.once(f"answers/{role}/{split}", work)


def comparable(audit: Audit, split: str) -> bool:
    """Return whether there is a retrained model to compare the answers on a split with."""
    return missing(frozenset({split, "retrained"}), audit) is None and "retrained" in audit.models
