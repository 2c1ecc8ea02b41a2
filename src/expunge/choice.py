"""Which methods remain with what one has, what they cost, and what the others lack: told from the classes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from torch import nn

from expunge import methods
from expunge.errors import UserError, suggest
from expunge.method import SETS, Method, Needs, See
from expunge.scenario import Kind, Scenario
from expunge.task import Binary, CausalLM, Classification, MultiLabel, Quantile, Regression, Task
from expunge.train import Recipe

STATE = "train-state"  # what prepare left while the training data was there
SIGHTS = {"": See.LABELLED, "-inputs": See.INPUTS, "-ids": See.IDS}
TASKS: Mapping[str, Task] = {
    "classification": Classification(),
    "binary": Binary(),
    "multilabel": MultiLabel(),
    "regression": Regression(),
    "quantile": Quantile(),
    "causal_lm": CausalLM(),
}
ALWAYS = {"fresh": 1, "scenario": 1}  # a network can be built anew, and who asks knows what is to be forgotten
SHARE = 0.05  # of the training data that a request takes, where costs are compared
CLASSES, EPOCHS = 10, 10  # of the task and of the recipe, where costs are compared


@dataclass(frozen=True)
class Choice:
    """A method beside what one has.

    Args:
        name: of the method.
        summary: one line.
        missing: needs that are not met, in words; empty where it can be used.
        declined: why it does not apply to the task and kind of request; empty where it does.
        passes: over each set to unlearn, in words.
        prepares: the same to prepare, once.
        cost: of unlearning, in epochs of training on the retain data; see `cost`.
        source: authors and year.
    """

    name: str
    summary: str
    missing: tuple[str, ...]
    declined: str
    passes: str
    prepares: str
    cost: float
    source: str

    @property
    def usable(self) -> bool:
        """Whether nothing stands in its way."""
        return not self.missing and not self.declined


def had(names: Sequence[str]) -> dict[str, int]:
    """Return the sight of each set, and what else there is, from words such as ``retain`` and ``forget-inputs``.

    Args:
        names: a set (``train``, ``forget``, ``retain``, ``holdout``) with its labels, with ``-inputs`` without them,
            with ``-ids`` its ids alone; ``recipe``; ``train-state``, what `prepare` left.

    Returns:
        By name how much is seen, ids of the forget set always.

    Raises:
        UserError: an unknown word.
    """
    words = {f"{name}{ending}": (name, int(sight)) for name in SETS for ending, sight in SIGHTS.items()}
    words |= {"recipe": ("recipe", 1), STATE: (STATE, 1)}
    found = {"forget": int(See.IDS), **ALWAYS}
    for word in names:
        if word not in words:
            raise UserError("a word for what you have", repr(word), suggest(word, words))
        name, sight = words[word]
        found[name] = max(found.get(name, 0), sight)
    return found


def lacking(needs: Needs, have: Mapping[str, int]) -> list[str]:
    """Return the names of needs that are not met.

    Args:
        needs: of one phase.
        have: by name how much is seen; 0 or no entry for what is not there.

    Returns:
        The names, in the order in which needs are declared.
    """
    return [name for name in needs.required() if have.get(name, 0) < int(getattr(needs, name))]


def example(name: str) -> Method:
    """Return a method with its defaults, and the fields of its example where it has none."""
    cls = methods.load(name)
    try:
        return cls()
    except UserError:
        return methods.build({"name": name, **cls.example})


def choices(have: Mapping[str, int], *, task: str | None = None, kind: str | None = None) -> list[Choice]:
    """Return every method beside what one has: those that can be used first, the cheapest first.

    Args:
        have: from `had`.
        task: a name of `TASKS`; None for any.
        kind: of request, as ``class``; None for any.

    Returns:
        The choices; the others after them, those that lack least first.

    Raises:
        UserError: an unknown task or kind.
    """
    if task is not None and task not in TASKS:
        raise UserError("a task", repr(task), suggest(task, TASKS))
    if kind is not None and kind not in get_args(Kind):
        raise UserError("a kind of request", repr(kind), suggest(kind, get_args(Kind)))
    found = [_choice(example(name), have, task, kind) for name in methods.names()]
    return sorted(found, key=lambda c: (not c.usable, bool(c.declined), len(c.missing), c.cost, c.name))


def _choice(method: Method, have: Mapping[str, int], task: str | None, kind: str | None) -> Choice:
    return Choice(
        name=method.name,
        summary=summary(method),
        missing=tuple(_missing(method, have)),
        declined=_declined(method, task, kind),
        passes=passes(method, "unlearn"),
        prepares=passes(method, "prepare"),
        cost=cost(method),
        source=source(method),
    )


def cost(method: Method) -> float:
    """Return what a method costs to unlearn by its own account, in epochs of training on the retain data.

    The passes that it makes, each as dear as what it runs on a sample; of 10 classes, 5 % of the training data to
    forget, holdout a tenth of the rest, and a recipe of 10 epochs. What it does beside its passes does not count.
    """
    sizes = {"forget": SHARE / (1 - SHARE), "retain": 1.0, "train": 1 / (1 - SHARE), "holdout": 0.1}
    found = method.work("unlearn", Recipe(epochs=EPOCHS), CLASSES)
    return sum(times * sizes[name] for name, times in found.items())


def summary(method: Method) -> str:
    """Return the first line of a method's description."""
    return (type(method).__doc__ or "").strip().splitlines()[0]


def source(method: Method) -> str:
    """Return the first author and the year of a method's paper."""
    first, *others = method.reference.authors.split(" and ")
    return f"{first.split()[-1]}{' et al.' if others else ''} {method.reference.year}"


def passes(method: Method, phase: str) -> str:
    """Return how often a phase reads each set, in words.

    Args:
        method: with its settings.
        phase: ``prepare`` or ``unlearn``.

    Returns:
        Such as ``5 × retain``; ``recipe × retain`` where the recipe's epochs decide.
    """
    one, two = (_reads(method, phase, epochs) for epochs in (EPOCHS, 2 * EPOCHS))
    parts = []
    for name in sorted(one.keys() | two.keys()):
        a, b = one.get(name, 0.0), two.get(name, 0.0)
        text = f"{a:g}" if a == b else "recipe" if a == EPOCHS else f"{a / EPOCHS:g} recipe"
        parts += [f"{text} × {name}"] if a or b else []
    return " + ".join(parts) or "-"


def _reads(method: Method, phase: str, epochs: int) -> dict[str, float]:
    return method.passes(phase, Recipe(epochs=epochs))


def _missing(method: Method, have: Mapping[str, int]) -> list[str]:
    """Return the needs that are not met in words; what prepare needs is met by the state that it left."""
    said = []
    if STATE not in have:
        said += [_word(method.prepares, name, have) + f" (or {STATE})" for name in lacking(method.prepares, have)]
    return said + [_word(method.unlearns, name, have) for name in lacking(method.unlearns, have)]


def _word(needs: Needs, name: str, have: Mapping[str, int]) -> str:
    """Return what is missing of a need: all of it, or its labels."""
    wanted = getattr(needs, name)
    if name not in SETS:
        return name
    if have.get(name, 0) == See.INPUTS and wanted == See.LABELLED:
        return f"labels of {name}"
    return name + {See.IDS: " ids", See.INPUTS: " inputs", See.LABELLED: " with labels"}[wanted]


def _declined(method: Method, task: str | None, kind: str | None) -> str:
    """Return why a method declines what is asked for, of any task and kind that may be meant the first reason."""
    tasks = [TASKS[task]] if task else list(TASKS.values())
    kinds: list[Kind] = [k for k in get_args(Kind) if kind in (None, k)]
    reasons = [
        method.declines(t, Scenario(train=("a", "b"), forget=("a",), kind=k, target=0), nn.Identity())
        for t in tasks
        for k in kinds
    ]
    return "" if any(not reason for reason in reasons) else str(reasons[0])
