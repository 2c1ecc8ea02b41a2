"""One request on one seed, start to end: train, retrain twice, unlearn by every method, measure side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from expunge import tensors
from expunge.data import Data
from expunge.draws import Request
from expunge.errors import listing
from expunge.evaluate import evaluate
from expunge.kinds import ANY
from expunge.method import Method
from expunge.methods import load
from expunge.originals import check_planted, original
from expunge.runtime import Runtime
from expunge.scores import Scores
from expunge.steps import Step, step
from expunge.unlearn import Unlearned, prepare, unlearn
from expunge.zoo import Problem

__all__ = ["APART", "Request", "describe", "original", "trial"]

APART = 1000  # between the seeds of retrained models; the first starts from the original's own initialisation


def trial(
    problem: Problem,
    request: Request,
    methods: Mapping[str, Method],
    *,
    trained: nn.Module | None = None,
    retrained: int = 2,
    runtime: Runtime | None = None,
    seed: int = 0,
) -> Scores:
    """Run one request on one seed; of several requests handled one after another, measure after the last.

    Args:
        problem: data, network and recipe.
        request: who is forgotten.
        methods: by the name they get in tables.
        trained: the original, where it is at hand; it must be of this seed and of the request's training data.
        retrained: models retrained without the forget set; the second gives the floor.
        runtime: device, batch size, progress.
        seed: of training, of the draw, and of everything random.

    Returns:
        The scores of the original, the controls, the retrained models and every method; methods that decline are
        named with their reason in ``declined``.
    """
    check_planted(problem)
    train = request.training(problem, seed)
    first = original(problem, train, runtime=runtime, seed=seed) if trained is None else trained
    drawn: dict[str, Any] = {"original": first, "runtime": runtime} if request.needs_original else {}
    _, scenario = request.draw(problem, seed, **drawn)
    parts = [scenario.forget] if request.steps == 1 else request.parts(problem, seed, **drawn)
    steps = [step(scenario, parts, number) for number in range(1, len(parts) + 1)]
    common: dict[str, Any] = {"recipe": problem.recipe, "new_model": problem.new_model, "runtime": runtime}
    common |= {"holdout": problem.holdout}

    def run(method: Method, at: int, each: Sequence[Step]) -> Unlearned:
        return handled(method, first, problem, train, each, seed=at, **common)

    models: dict[str, Any] = {"original": first}
    whole = [Step(scenario, scenario)]
    models["retrained"] = [run(load("retrain")(), seed + APART * k, whole) for k in range(retrained)]
    declined: dict[str, str] = {}
    for name, method in methods.items():
        reasons = (method.declines(problem.task, one.own, first) for one in steps)
        if reason := next(filter(None, reasons), None):
            declined[name] = reason
        else:
            models[name] = run(method, seed, steps)
    rest: dict[str, Any] = {"train": train, "test": problem.test, "triggered": request.triggered(problem)}
    scores = evaluate(models, problem.task, scenario=scenario, seed=seed, **common, **rest)
    return replace(scores, declined={**scores.declined, **declined})


def handled(
    method: Method, model: nn.Module, problem: Problem, train: Data, steps: Sequence[Step], *, seed: int, **given: Any
) -> Unlearned:
    """Prepare once and handle requests one after another, each from the weights and state that the last one left.

    Args:
        method: the method.
        model: the original.
        problem: for its task.
        train: the training data.
        steps: the requests.
        seed: of everything random.
        given: further arguments of `expunge.unlearn.prepare` and `unlearn`: holdout, recipe, new_model, runtime.

    Returns:
        The result after the last request: seconds of all of them, peak memory of the largest, and what changed since
        the original.

    Raises:
        Declined: the method does not apply.
    """
    ready = prepare(method, model, problem.task, train=train, scenario=steps[0].own, seed=seed, **given)
    now, state = ready.model, ready.state
    found: list[Unlearned] = []
    for one in steps:
        sets: dict[str, Any] = {"forget": train.subset(one.own.forget), "retain": train.without(one.union.forget)}
        done = unlearn(method, now, problem.task, **sets, state=state, scenario=one.own, seed=seed, **given)
        now, state = done.model, done.state
        found.append(done)
    if len(found) == 1:
        return found[0]
    return replace(
        found[-1],
        seconds=sum(f.seconds for f in found),
        total_seconds=sum(f.total_seconds for f in found),
        peak_memory=max(f.peak_memory for f in found),
        changed=tensors.changed(ready.model, now),
    )


def describe(request: Request, problem: Problem) -> tuple[str, dict[str, int]]:
    """Return a sentence on the request and the sizes of its sets, as the first seed draws them.

    Raises:
        UserError: nothing in the data matches, or more samples than there are.
    """
    like = Request("random", request.value) if request.needs_original else request  # as many, and no network needed
    _, scenario = like.draw(problem, 0)
    counts = {n: len(getattr(scenario, n)) for n in ("train", "forget", "retain", "holdout", "test")}
    return _sentence(request, problem), counts


def _sentence(request: Request, problem: Problem) -> str:
    def named(label: int) -> str:
        return problem.classes[label] if 0 <= label < len(problem.classes) else str(label)

    value, k = request.value, request.steps
    some = "All training samples" if request.fraction == 1 else f"A random {100 * request.fraction:g} % of the samples"
    if request.kind == "class":
        return f"{some} of the class {named(value)} are to be forgotten."
    if request.kind == "classes":
        return f"{some} of each of the classes {listing(map(named, value), len(value))} are to be forgotten."
    if request.kind == "ids":
        return f"{len(value)} named training sample{' is' if len(value) == 1 else 's are'} to be forgotten."
    if isinstance(value, tuple):
        return (
            f"The classes {listing(map(named, value), k)} are to be forgotten one after another, measured after each."
        )
    texts = {
        "subclass": f"{some} of {value} ({request.column}) are to be forgotten; the label is coarser.",
        "subject": f"All training samples of {'one person, drawn for each seed,' if value == ANY else value} are to "
        "be forgotten.",
        "range": f"All training samples whose {request.column or 'target'} lies in {value}, the upper end not "
        "included, are to be forgotten.",
        "dates": f"All training windows with an hour of {value} in them are to be forgotten.",
        "random": "A random part of the training samples is to be forgotten; each seed draws its own.",
        "hardest": "The training samples that the original knows by heart the most are to be forgotten.",
        "mislabelled": "A part of the labels was flipped before training; those samples are to be forgotten. The "
        "original repeats the wrong labels, a retrained model does not.",
        "poison": "A part of the training samples was given a trigger patch and the label "
        f"{named(request.target)}; those samples are to be forgotten. The original answers "
        f"{named(request.target)} wherever it sees the patch, a retrained model does not.",
        "noised": "A part of the training samples was given Gaussian noise; those samples are to be forgotten. The "
        "original's loss falls along the noise, that of a retrained model along none of it.",
        "single": f"{k} requests to forget one random sample each are handled one after another.",
        "sequential": f"{k} requests to forget random samples are handled one after another, measured after each.",
    }
    return texts[request.kind]
