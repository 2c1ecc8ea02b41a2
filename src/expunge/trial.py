"""One request on one seed, start to end: train, retrain twice, unlearn by every method, measure side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from torch import nn

from expunge.data import Data
from expunge.errors import UserError, suggest
from expunge.evaluate import evaluate
from expunge.method import Method
from expunge.methods import load
from expunge.runtime import Runtime
from expunge.scenario import Scenario, forget_class, forget_ids, forget_random, forget_subclass, forget_subject
from expunge.scores import Scores
from expunge.seeds import seed as named_seed
from expunge.tensors import isolated_rng
from expunge.train import fit
from expunge.unlearn import Unlearned, prepare, unlearn
from expunge.zoo import Problem
from expunge.zoo.embedded import mislabelled

Kind = Literal["class", "subclass", "subject", "random", "mislabelled"]
APART = 1000  # between the seeds of retrained models; the first starts from the original's own initialisation


@dataclass(frozen=True)
class Request:
    """Who is to be forgotten in a trial, drawn anew for each seed where chance decides.

    Args:
        kind: ``class``, ``subclass``, ``subject``, ``random`` or ``mislabelled``.
        value: class index, value of the column, or share of the training data in (0, 1).
        column: of subclass and subject.
    """

    kind: Kind
    value: Any
    column: str | None = None

    @classmethod
    def parse(cls, text: str) -> Request:
        """Read ``class=3``, ``random=0.05``, ``mislabelled=0.05``, ``subclass:fine_name=ship``, ``subject:who=s3``.

        Returns:
            The request.

        Raises:
            UserError: it reads otherwise.

        >>> Request.parse("subclass:fine_name=ship")
        Request(kind='subclass', value='ship', column='fine_name')
        """
        found = re.fullmatch(r"(\w+)(?::(\w+))?=(.+)", text.strip())
        if found is None or found[1] not in get_args(Kind):
            remedy = suggest(found[1], get_args(Kind)) if found else "write for example class=3 or random=0.05"
            raise UserError("a request KIND=VALUE or KIND:COLUMN=VALUE", repr(text), remedy)
        kind, column, value = cast("Kind", found[1]), found[2], found[3]
        if (column is None) == (kind in ("subclass", "subject")):
            remedy = f"write {kind}:column=value" if column is None else f"write {kind}=value"
            raise UserError("a column with subclass and subject, and with no other kind", repr(text), remedy)
        try:
            plain = int(value) if kind == "class" else float(value) if column is None else value
        except ValueError as error:
            raise UserError(f"a number for {kind}", repr(value), f"write for example {kind}=0.05") from error
        return cls(kind, plain, column)

    def draw(self, problem: Problem, seed: int) -> tuple[Data, Scenario]:
        """Return the training data, with wrong labels where that is the request, and who is forgotten.

        Raises:
            UserError: nothing in the data matches.
        """
        train = problem.train
        rest: dict[str, Any] = {"holdout": problem.holdout, "test": problem.test}
        if self.kind == "class":
            return train, forget_class(train, self.value, **rest)
        if self.kind == "random":
            return train, forget_random(train, self.value, seed=seed, **rest)
        if self.kind == "mislabelled":
            classes = len(problem.classes) or int(train.targets().max()) + 1
            train, ids = mislabelled(train, self.value, classes=classes, seed=seed)
            return train, forget_ids(train, ids, **rest)
        build = forget_subclass if self.kind == "subclass" else forget_subject
        return train, build(train, self.value, column=str(self.column), **rest)

    def __str__(self) -> str:
        share = f"{100 * self.value:g} %" if isinstance(self.value, float) else str(self.value)
        return f"{self.kind} {share}"


def original(problem: Problem, train: Data, *, runtime: Runtime | None = None, seed: int = 0) -> nn.Module:
    """Return the problem's network trained on the data by its recipe, which may stop by the loss on holdout.

    Raises:
        UserError: the problem has no recipe, or no network before training, or its recipe plants canaries.
    """
    if problem.recipe is None or problem.new_model is None:
        raise UserError("a problem with recipe and new_model", "one without", "name both")
    _check_planted(problem)
    with isolated_rng(named_seed("fresh", seed)):  # as `fresh` draws it for the retrained ones
        start = problem.new_model()
    return fit(start, problem.task, train, problem.recipe, holdout=problem.holdout, runtime=runtime, seed=seed)


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
    """Run one request on one seed.

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
    _check_planted(problem)
    train, scenario = request.draw(problem, seed)
    first = original(problem, train, runtime=runtime, seed=seed) if trained is None else trained
    common: dict[str, Any] = {"recipe": problem.recipe, "new_model": problem.new_model, "runtime": runtime}
    common |= {"holdout": problem.holdout, "scenario": scenario}
    forget, retain = train.subset(scenario.forget), train.without(scenario.forget)

    def run(method: Method, at: int) -> Unlearned:
        ready = prepare(method, first, problem.task, train=train, seed=at, **common)
        sets: dict[str, Any] = {"forget": forget, "retain": retain, "state": ready.state}
        return unlearn(method, ready.model, problem.task, **sets, seed=at, **common)

    models: dict[str, Any] = {"original": first}
    models["retrained"] = [run(load("retrain")(), seed + APART * k) for k in range(retrained)]
    models |= {name: run(method, seed) for name, method in methods.items()}
    rest: dict[str, Any] = {"train": train, "test": problem.test, "holdout": problem.holdout}
    rest |= {"recipe": problem.recipe, "new_model": problem.new_model}
    return evaluate(models, problem.task, scenario=scenario, runtime=runtime, seed=seed, **rest)


def _check_planted(problem: Problem) -> None:
    """Refuse a recipe that would plant canaries for the original alone: all others train on ``problem.train``."""
    if problem.recipe is not None and problem.recipe.canaries:
        remedy = "plant them in problem.train with expunge.canaries.plant, and pass recipe.again()"
        raise UserError("a recipe without canaries in a trial", f"{problem.recipe.canaries}", remedy)


def describe(request: Request, problem: Problem) -> tuple[str, dict[str, int]]:
    """Return a sentence on the request and the sizes of its sets, as the first seed draws them."""
    _, scenario = request.draw(problem, 0)
    counts = {n: len(getattr(scenario, n)) for n in ("train", "forget", "retain", "holdout", "test")}
    name = problem.classes[request.value] if request.kind == "class" and problem.classes else request.value
    texts = {
        "class": f"All training samples of the class {name} are to be forgotten.",
        "subclass": f"All training samples of {name} ({request.column}) are to be forgotten; the label is coarser.",
        "subject": f"All training samples of {name} are to be forgotten.",
        "random": "A random part of the training samples is to be forgotten; each seed draws its own.",
        "mislabelled": "A part of the labels was flipped before training; those samples are to be forgotten. The "
        "original repeats the wrong labels, a retrained model does not.",
    }
    return texts[request.kind], counts
