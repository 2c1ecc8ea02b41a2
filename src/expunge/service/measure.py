"""What fulfilling requests did to a model: numbers before and after, held to the policy's bounds."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from expunge import bounds, folders, summary
from expunge.bounds import Bound
from expunge.data import Data
from expunge.evaluate import Model, evaluate
from expunge.metric import Metric, Value
from expunge.project import Project
from expunge.runtime import Runtime
from expunge.scenario import Scenario, forget_ids
from expunge.scores import REFERENCE, Scores
from expunge.task import Classes

# Families with numbers on samples that stay, and on test.
UNTOUCHED = (
    "accuracy",
    "coverage",
    "decisions",
    "error",
    "flips",
    "loss",
    "segments",
    "stability",
    "subgroups",
)
_STAYS = re.compile(r"((subgroups|segments)/.*|decisions/flipped/.*|.*/(retain|test|holdout))")
ABSENT = "No sample that was forgotten is at hand any more"


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Args:
        body: for the event, nothing personal.
        missed: a sentence for each bound that was missed.
    """

    body: dict[str, Any]
    missed: tuple[str, ...]


def families(place: Project) -> list[Metric]:
    """Return the metrics to run: those that do not train, and those that a bound of the policy names.

    Raises:
        UserError: a bound names no number.
    """
    every = place.metrics()
    known = {number: held for metric in every for number, held in metric.numbers.items()}
    named = {Bound.parse(text, known).name for text in place.config.policy.bounds}
    return [m for m in every if not m.trains or named & m.numbers.keys()]


def measure(
    place: Project,
    before: nn.Module,
    after: Model,
    name: str,
    *,
    train: Data,
    scenario: Scenario | None,
    runtime: Runtime,
    seed: int,
    secret: Collection[str] = (),
    classes: Collection[int] = (),
) -> Measured:
    """Measure a model before and after, and hold what came out to the policy.

    A bound on a gap is held where there is a retrained model: it then is the model before, an edited one, that is
    compared with it.

    Args:
        place: model, data and policy.
        before: the network that is served.
        after: the network that shall be.
        name: the method's, or ``retrained``.
        train: training data with the samples to forget, without those forgotten before.
        scenario: who is forgotten, None where none of them is at hand.
        runtime: device, batch size.
        seed: of everything random.
        secret: texts of the requests, which must not stand in the body.
        classes: that are forgotten as a whole, on which test accuracy is to fall.

    Returns:
        Numbers, groups, outcomes of bounds.
    """
    chosen = families(place)
    if scenario is None:  # any sample that stays serves to ask for the other numbers
        chosen = [m for m in chosen if type(m).__module__.rpartition(".")[2] in UNTOUCHED]
        case = forget_ids(train, train.ids[:1], holdout=place.holdout, test=place.test)
    else:
        case = scenario
    scores = evaluate(
        {"original": before, name: after},
        place.task,
        train=train,
        test=place.test,
        holdout=place.holdout,
        scenario=case,
        recipe=place.recipe,
        new_model=place.new_model,
        metrics=list(chosen),
        runtime=runtime,
        seed=seed,
    )
    if scenario is None:
        scores = _staying(scores)
    body: dict[str, Any] = {"metrics": _numbers(scores, name), "groups": _groups(scores, name, place, secret, classes)}
    if name == REFERENCE:
        gaps = summary.numbers(scores)["gaps"].get("original", {})
        body["gaps"] = {k: v for k, v in gaps.items() if v.get("x") is not None}
    body["unmeasured"] = sum(not isinstance(v, Value) for v in scores[name].values())
    if scenario is None:
        body["limits"] = f"{ABSENT}: only numbers on the others are measured."
    if name in scores.flaws:
        body["flaw"] = f"Nothing is said of the new model: {scores.flaws[name]}."
    held, missed = _bounds(place, scores, name, here=scenario is not None)
    drop, fallen = _drop(place, scores, name, before, after, runtime, classes)
    unsaid = [body["flaw"]] if "flaw" in body and "original" not in scores.flaws else []
    return Measured(body | drop | {"bounds": held}, (*unsaid, *fallen, *missed))


def _staying(scores: Scores) -> Scores:
    """Return the numbers that a sample which stays, taken for the forgotten one, has no share in; their gaps too."""
    values = {m: {k: v for k, v in found.items() if _STAYS.fullmatch(k)} for m, found in scores.values.items()}
    gaps = {m: {k: v for k, v in found.items() if _STAYS.fullmatch(k)} for m, found in scores.gaps.items()}
    return replace(scores, values=values, gaps=gaps)


def _numbers(scores: Scores, name: str) -> dict[str, Any]:
    found = summary.numbers(scores)["values"]
    rows = {"before": found["original"], "after": found[name]}
    return {at: {k: v for k, v in row.items() if "x" in v} for at, row in rows.items()}


def _groups(
    scores: Scores, name: str, place: Project, secret: Collection[str], classes: Collection[int]
) -> dict[str, Any]:
    """Return accuracy and its change by group, except by subject and of groups that a request names.

    Where a class is forgotten there are none by class: the one that fell to nothing would say which.
    """
    found: dict[str, Any] = {}
    subject, hidden = place.config.data.subject or "subject", set(secret)
    for key, places in scores.series.get(name, {}).items():
        family, column, *rest = key.split("/")
        if family != "subgroups" or column == subject or (column == "label" and classes):
            continue
        what = "accuracy" if rest == ["accuracy"] else "change"
        for at, value in places.items():
            if isinstance(value, Value) and (column == "label" or str(at) not in hidden):
                row = found.setdefault(column, {}).setdefault(str(at), {})
                row[what] = [value.x, value.low, value.high, value.n]
    return found


def _bounds(place: Project, scores: Scores, name: str, here: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """Hold the policy's bounds; return each with its outcome, and the sentences of those that were missed."""
    rows, missed = [], []
    for text in place.config.policy.bounds:
        bound = Bound.parse(text)
        compared = name == REFERENCE
        if bound.gap and not compared:
            rows.append({"bound": str(bound), "held": False, "text": "Not held: there is no retrained model."})
            continue
        (outcome,) = bounds.checked([bound], scores, "original" if bound.gap else name)
        if not here and compared and outcome.value is None:
            rows.append({"bound": str(bound), "held": False, "text": f"Not held: {ABSENT.lower()}."})
            continue
        about = {"of": "the model before"} if bound.gap else {}
        rows.append({**outcome.to_json(), "held": True, **about})
        if not outcome.met and not bound.gap:
            missed.append(outcome.sentence())
    return rows, missed


def _drop(
    place: Project,
    scores: Scores,
    name: str,
    before: nn.Module,
    after: Model,
    runtime: Runtime,
    classes: Collection[int],
) -> tuple[dict[str, Any], list[str]]:
    """Return test accuracy before and after, and a sentence where it fell further than the policy allows.

    The fall is that on the classes that stay, where one is forgotten.
    """
    old, now = (getattr(scores[model].get("accuracy/test"), "x", None) for model in ("original", name))
    body: dict[str, Any] = {"test_accuracy": {"before": old, "after": now}}
    bound = place.config.policy.accuracy_drop
    if classes:
        new = after if isinstance(after, nn.Module) else after.model
        old, now = (folders.accuracy(m, place, runtime, classes) for m in (before, new))
    drop = None if old is None or now is None else old - now
    body["fall"] = drop
    if bound is None:
        return body, []
    body["accuracy_drop"] = {"drop": drop, "bound": bound, "met": drop is not None and drop <= bound}
    if drop is None:
        labelled = "name labelled test data in [data] test"
        why = labelled if isinstance(place.task, Classes) else "the task has no classes"
        return body, [f"accuracy_drop of at most {bound:g} could not be measured: {why}."]
    if drop <= bound:
        return body, []
    return body, [f"{folders.tested(classes).capitalize()} fell by {drop:.4g}, more than accuracy_drop = {bound:g}."]


def worst_class(body: Mapping[str, Any]) -> float | None:
    """Return the accuracy of the worst class after the edit, from a ``verified`` event; None where it has none."""
    found = [row["accuracy"][0] for row in body.get("groups", {}).get("label", {}).values() if "accuracy" in row]
    return min(found, default=None)
