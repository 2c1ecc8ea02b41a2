"""How often the answers of a language model still name whom it should have forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from expunge import stats
from expunge.concepts.answers import Asked, Ids, mentions, places
from expunge.errors import UserError
from expunge.metric import Audit, Found, Unavailable, Value
from expunge.metrics._answers import NO_LANGUAGE, NO_QUESTIONS, Answering, comparable, told

_NO_NAMES = "has no column with the token ids of names, 'mention'"
_NO_VALUES = "has no column with the token ids of what is to be forgotten, 'secret'"


@dataclass(frozen=True, kw_only=True)
class Appearance(Answering):
    """Share of answers that name the forgotten person, and that tell what is to be forgotten of them.

    The model answers the questions of the forget set, and those of ``test_forget``, the same in other words, with its
    likeliest token each time. ``appearance/name/<split>`` is the share of answers in which a name of the sample's
    column ``mention`` stands whole; ``appearance/secret/<split>`` that of a column ``secret``, such as the town that is
    asked for. Both columns hold token ids as `expunge.concepts.answers.mention` writes them.

    A retrained network repeats a name that the question holds, and guesses some facts right: its value is the goal and
    not 0. Wilson's interval; the gap to retrained is paired by sample.
    """

    wants: ClassVar[frozenset[str]] = frozenset({"forget", "test_forget", "labels", "data"})
    undefined: ClassVar[tuple[str, ...]] = (NO_LANGUAGE, NO_QUESTIONS, _NO_NAMES, _NO_VALUES, "holds no token ids")
    family: ClassVar[str] = "appearance"
    kinds: ClassVar[Mapping[str, str]] = {
        "name": "answers that name the person",
        "secret": "answers that tell what is to be forgotten",
    }
    parts: ClassVar[Mapping[str, str]] = {
        "forget": "questions trained on",
        "test_forget": "questions in other words",
    }

    def judged(self, audit: Audit, split: str, of: Asked) -> Found:
        """Return the shares on one split."""
        names = {kind: self.key(kind, split) for kind in self.kinds}
        looked = {kind: _looked(audit, split, kind) for kind in names}
        found: Found = {names[kind]: ids for kind, ids in looked.items() if isinstance(ids, Unavailable)}
        wanted = {kind: ids for kind, ids in looked.items() if not isinstance(ids, Unavailable)}
        if not wanted:
            return found
        said = told(audit, split, of)
        other = told(audit, split, of, "retrained") if comparable(audit, split) else None
        for kind, ids in wanted.items():
            has = _has(said, ids)
            found[names[kind]] = Value.of(stats.wilson(int(has.sum()), len(has)))
            if other is not None:
                audit.kept.gaps[names[kind]] = Value.of(stats.paired_proportions(has, _has(other, ids)))
        return found


def _looked(audit: Audit, split: str, kind: str) -> list[list[Ids]] | Unavailable:
    """Return the token ids looked for in each answer, or why there are none."""
    column, reason = {"name": ("mention", _NO_NAMES), "secret": ("secret", _NO_VALUES)}[kind]
    data = audit.data[split]
    if column not in data.columns:
        return Unavailable(f"{split} {reason}")
    try:
        return [mentions(value) for value in data.column(column)]
    except UserError as error:
        return Unavailable(f"the column '{column}' of {split} holds no token ids: {error.got}")


def _has(answers: Sequence[Ids], wanted: Sequence[Sequence[Ids]]) -> NDArray[np.bool_]:
    return np.array([bool(places(a, ids)) for a, ids in zip(answers, wanted, strict=True)], dtype=np.bool_)


METRIC = Appearance
