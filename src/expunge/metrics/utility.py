"""How well a language model answers questions: overlap with the gold answers, and answers that equal them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from expunge import stats
from expunge.concepts.answers import Asked, body, rouge_l
from expunge.metric import Audit, Found, Value
from expunge.metrics._answers import NO_LANGUAGE, NO_QUESTIONS, Answering, comparable, told
from expunge.metrics._distance import within


@dataclass(frozen=True, kw_only=True)
class Utility(Answering):
    """ROUGE-L and exactness of a language model's likeliest answers to the questions of each set.

    ``utility/rouge/<split>`` is the mean over samples of the F1 of the longest common subsequence of tokens of answer
    and gold answer, `expunge.concepts.answers.rouge_l`; ``utility/exact/<split>`` the share of answers that equal it.
    The end token does not count. On the forget set they tell how much of the gold answers is still said, on retain and
    test_retain what the network is still good for. Word order and template alone give a network that knows nothing a
    ROUGE-L well above 0, so retrained's value is the goal.

    Student's interval of ROUGE-L, Wilson's of exactness; gaps to retrained are paired by sample.
    """

    wants: ClassVar[frozenset[str]] = frozenset(
        {"forget", "retain", "test", "test_forget", "test_retain", "labels", "data"}
    )
    undefined: ClassVar[tuple[str, ...]] = (NO_LANGUAGE, NO_QUESTIONS)
    family: ClassVar[str] = "utility"
    kinds: ClassVar[Mapping[str, str]] = {
        "rouge": "ROUGE-L of the answers",
        "exact": "answers that equal the gold ones",
    }
    parts: ClassVar[Mapping[str, str]] = {
        "forget": "forget set",
        "retain": "retain set",
        "test": "test set",
        "test_forget": "test, forgotten kind",
        "test_retain": "test, the rest",
    }

    def judged(self, audit: Audit, split: str, of: Asked) -> Found:
        """Return both numbers of one split."""
        rouge, exact = self.key("rouge", split), self.key("exact", split)
        gold = [body(e.answer, of.end) for e in of.exchanges]

        def overlap(role: str) -> np.ndarray:
            said = told(audit, split, of, role)
            return np.array([rouge_l(a, g) for a, g in zip(said, gold, strict=True)])

        own = overlap("model")
        right = own == 1.0
        if comparable(audit, split):
            other = overlap("retrained")
            audit.kept.gaps[rouge] = Value.of(within(stats.mean_t(own - other), (-1.0, 1.0)))
            audit.kept.gaps[exact] = Value.of(stats.paired_proportions(right, other == 1.0))
        return {
            rouge: Value.of(within(stats.mean_t(own), self.range)),
            exact: Value.of(stats.wilson(int(right.sum()), len(right))),
        }


METRIC = Utility
