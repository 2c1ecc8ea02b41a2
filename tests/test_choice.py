"""Which methods remain with what one has, and what the others lack."""

from __future__ import annotations

import pytest

from expunge import choice, methods
from expunge.choice import choices, had
from expunge.errors import UserError
from expunge.method import See
from expunge.methods import load


def by_name(*have: str, task: str | None = None, kind: str | None = None) -> dict[str, choice.Choice]:
    return {c.name: c for c in choices(had(have), task=task, kind=kind)}


def test_a_state_stands_for_what_prepare_needs() -> None:
    found = by_name("forget", "train-state", task="classification")
    assert found["ssd"].usable
    assert found["lfssd"].usable
    assert found["finetune"].missing == ("retain with labels",)
    assert by_name("forget")["ssd"].missing == ("train with labels (or train-state)",)
    assert by_name("train")["ssd"].missing == ("forget with labels",)


def test_sight_counts() -> None:
    found = by_name("forget-inputs", "train-inputs")
    assert found["lfssd"].usable
    assert found["ssd"].missing == ("labels of train (or train-state)", "labels of forget")
    assert had(["forget-inputs", "forget"])["forget"] == See.LABELLED


def test_those_that_remain_come_first_the_cheapest_first() -> None:
    found = choices(had(["train", "forget", "retain", "holdout", "recipe"]))
    usable = [c for c in found if c.usable]
    assert found[: len(usable)] == usable
    assert [c.cost for c in usable] == sorted(c.cost for c in usable)
    assert [c.name for c in found if c.name not in methods.names()] == []
    assert len(found) == len(methods.names())


def test_costs_are_epochs_over_the_retain_set() -> None:
    found = by_name("train", "forget", "retain", "recipe")
    assert found["finetune"].cost == load("finetune")().epochs
    assert found["finetune"].passes == f"{load('finetune')().epochs} × retain"
    assert found["ssd"].passes == "1 × forget"
    assert found["ssd"].prepares == "1 × train"
    assert found["ssd"].cost == pytest.approx(0.05 / 0.95)
    assert found["retrain"].passes == "recipe × retain"


def test_a_pass_is_as_dear_as_what_is_run_on_each_sample() -> None:
    found = by_name("train", "forget", "retain", "recipe", task="classification")
    assert found["jit"].passes == "1 × forget"
    assert found["jit"].cost == pytest.approx((load("jit")().samples + 1) * 0.05 / 0.95)
    assert found["fisher_forgetting"].passes == "1 × retain"
    assert found["fisher_forgetting"].cost == pytest.approx((1 + 2 * 10) / 3)  # forward once, backward once a class
    order = sorted(("fisher_forgetting", "jit", "finetune", "ssd", "retrain"), key=lambda name: found[name].cost)
    assert order == ["ssd", "jit", "finetune", "fisher_forgetting", "retrain"]  # as measured, docs/results/costs.md
    official = load("jit")(compat="official", norm="moving", samples=6, epochs=2)
    assert official.work("unlearn", None, 10) == {"forget": 2 * 3.0}  # 7 runs forward and one backward, two of those
    best = load("jit")(keep_best=True, samples=6, epochs=2)
    assert best.work("unlearn", None, 10) == {"forget": 2 * 7.0, "holdout": 2.0}


def test_a_composition_costs_what_its_method_does_and_its_own_passes() -> None:
    salun, alone = methods.build({"name": "salun", "method": "jit"}), load("jit")()
    assert salun.passes("unlearn", None) == {"forget": 2.0}
    assert salun.work("unlearn", None, 10) == {"forget": 1 + alone.samples + 1}
    assert choice.cost(methods.build({"name": "pruned", "method": "jit"})) == choice.cost(alone)


def test_nothing_is_said_without_ground(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "it is for nothing"
    monkeypatch.setattr(load("ssd"), "declines", lambda self, task, scenario, model: reason)
    assert by_name("forget", "train")["ssd"].declined == reason
    assert not by_name("forget", "train")["ssd"].usable
    some = lambda self, task, scenario, model: reason if scenario.kind != "class" else None  # noqa: E731
    monkeypatch.setattr(load("ssd"), "declines", some)
    assert by_name("forget", "train")["ssd"].usable
    assert by_name("forget", "train", kind="class")["ssd"].usable
    assert by_name("forget", "train", kind="random")["ssd"].declined == reason


def test_unknown_words_are_refused() -> None:
    with pytest.raises(UserError, match="a word for what you have, got 'retian': did you mean 'retain'"):
        had(["retian"])
    with pytest.raises(UserError, match="a task, got 'class'"):
        choices(had([]), task="class")
    with pytest.raises(UserError, match="a kind of request, got 'clas'"):
        choices(had([]), kind="clas")
