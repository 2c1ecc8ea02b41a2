"""What a causal language model answers to the questions of a set, for measures of what it says."""

from __future__ import annotations

from typing import Any

from expunge.concepts.answers import Asked, Ids, answered, asked
from expunge.errors import Misfit
from expunge.metric import Audit, Unavailable, missing
from expunge.task import CausalLM

NO_LANGUAGE = "the task has no next token"
NO_QUESTIONS = "has no questions with answers"


def questions(audit: Audit, split: str) -> Asked | Unavailable:
    """Return the questions and answers of a split, or why there are none."""
    language = isinstance(audit.task, CausalLM)
    reason = audit.flaws.get("model") or (missing(frozenset({split, "labels", "data"}), audit) if language else None)
    if reason or not language:
        return Unavailable(reason or NO_LANGUAGE)
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
        most = max(len(e.answer) for e in of.exchanges)
        prompts = [e.prompt for e in of.exchanges]
        how: dict[str, Any] = {
            "most": most,
            "room": of.room,
            "end": of.end,
            "keyed": of.keyed,
            "runtime": audit.runtime.alone(),
        }
        return [body(a, of.end) for a in answered(audit.models[role], audit.task, prompts, **how)]

    return work() if role == "model" else audit.once(f"answers/{role}/{split}", work)


def body(answer: Ids, end: int | None) -> Ids:
    """Return an answer without its end token."""
    return answer[:-1] if answer and answer[-1] == end else answer


def comparable(audit: Audit, split: str) -> bool:
    """Return whether there is a retrained model to compare the answers on a split with."""
    return missing(frozenset({split, "retrained"}), audit) is None and "retrained" in audit.models
