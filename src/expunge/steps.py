"""Several requests that are handled one after another: each by itself, and together with those before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from expunge.errors import UserError
from expunge.scenario import Scenario


@dataclass(frozen=True)
class Step:
    """One of several requests that are handled one after another.

    Args:
        own: the request by itself, on the training data that the ones before it left.
        union: all requests up to this one, on the whole training data: what models are measured on after it, and
            what is left out of the training of a retrained model.
    """

    own: Scenario
    union: Scenario


def step(scenario: Scenario, parts: Sequence[Sequence[str]], number: int) -> Step:
    """Return one of the requests that make up a scenario.

    Args:
        scenario: of all requests together, from `Request.draw`.
        parts: ids of each request, from `Request.parts`.
        number: which, from 1.

    Returns:
        The request by itself, and together with those before it.

    Raises:
        UserError: no such request.
    """
    if not 1 <= number <= len(parts):
        raise UserError(f"a request from 1 to {len(parts)}", f"{number}", "count from 1")
    if len(parts) == 1:
        return Step(scenario, scenario)
    target = scenario.target
    classes = tuple(target["classes"]) if isinstance(target, dict) and "classes" in target else ()
    before = {i for part in parts[: number - 1] for i in part}
    rest: dict[str, Any] = {"holdout": scenario.holdout, "test": scenario.test}
    left = tuple(i for i in scenario.train if i not in before)
    own = Scenario(train=left, forget=tuple(parts[number - 1]), **rest)
    union = Scenario(train=scenario.train, forget=tuple(i for part in parts[:number] for i in part), **rest)
    return Step(united(own, classes[number - 1 : number]), united(union, classes[:number]))


def united(scenario: Scenario, classes: Sequence[int]) -> Scenario:
    """Return a scenario of ids as what it is: one class, several, or random samples where there are none.

    Args:
        scenario: its ids.
        classes: class indices that the forget set consists of, all samples of each.

    Returns:
        The scenario of kind ``class``; ``ids`` with the target ``{"classes": [...]}``; or ``random``.
    """
    same = {n: getattr(scenario, n) for n in ("train", "forget", "holdout", "test")}
    if len(classes) == 1:
        return Scenario(**same, kind="class", target=classes[0])
    if classes:
        return Scenario(**same, kind="ids", target={"classes": list(classes)})
    return Scenario(**same, kind="random", target=len(scenario.forget))
