"""Audits of what cannot be measured, or only in part: never a crash, but sentences."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from expunge import metrics
from expunge.data import Data
from expunge.errors import UserError
from expunge.evaluate import evaluate
from expunge.files import canonical
from expunge.methods import load
from expunge.metric import Unavailable, Value
from expunge.report import render
from expunge.scenario import forget_ids
from expunge.scores import FLOOR, Scores, pooled
from expunge.summary import document, section
from expunge.task import Classification, Regression
from expunge.unlearn import Unlearned, unlearn
from worlds import CLASSES, QUIET, World, world

QUICK: dict[str, dict[str, Any]] = {
    "ain": {"cap": 4, "limit": 8},
    "relearn": {"cap": 4, "limit": 8, "few_steps": 1, "curve": (0, 1)},
    "robustness": {"steps": 1, "draws": 1, "limit": 8},
    "probe": {"draws": 2, "curve": (1,)},
    "zrf": {"draws": 2},
}
NAN = "its outputs on forget hold NaN or infinity"
PROBABILITIES = "its outputs are probabilities that sum to 1, where logits are expected: leave out its softmax"


@pytest.fixture(scope="module")
def tiny() -> World:
    return world()


@pytest.fixture(scope="module")
def retrained(tiny: World) -> list[Unlearned]:
    return [without(tiny, tiny.scenario.forget, seed) for seed in (1, 2)]


def without(w: World, ids: Sequence[str], seed: int = 1) -> Unlearned:
    given = {"recipe": w.recipe, "new_model": w.new_model, "runtime": QUIET, "seed": seed}
    return unlearn(load("retrain")(), w.model, w.task, forget=list(ids), retain=w.train.without(ids), **given)


def broken(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        model[4].bias[0] = math.nan
    return model


class Sometimes(nn.Module):
    """Finite weights, and outputs that are NaN for some inputs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x)
        return torch.where((x[:, 0, 0, 0] > 2)[:, None], math.nan, found)


def headed(classes: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, classes))


def measured(w: World, models: dict[str, Any], **more: Any) -> Scores:
    """Evaluate with every metric there is, pool, and make the document; all of it must go through."""
    given = {"train": w.train, "test": w.test, "holdout": w.holdout, "scenario": w.scenario}
    given |= {"recipe": w.recipe, "new_model": w.new_model, "runtime": QUIET}
    families = [metrics.load(name)(**QUICK.get(name, {})) for name in metrics.names()]
    scores = evaluate(models, more.pop("task", w.task), metrics=families, **(given | more))
    for found in scores.values.values():
        for value in found.values():
            assert math.isfinite(value.x) if isinstance(value, Value) else value.reason.strip()
    twice = pooled([scores, scores])
    for one in (scores, twice):
        part = section(one, name="a", text="b", counts={"train": len(w.train)})
        page = document([part], title="A test", lead="A lead.", command=None)
        assert json.loads(canonical(page)) == json.loads(json.dumps(page))
        assert "NaN" not in canonical(page) or any("NaN" in text for text in (*one.flaws.values(), *one.caveats))
        for caveat in one.caveats:
            assert caveat.endswith(".")
            assert "\0" not in caveat
    return scores


def reasons(scores: Scores, model: str, but: tuple[str, ...] = ("cost/",)) -> set[str]:
    """Return why a model has no numbers, costs left out; a number that is there shows by itself."""
    found = {k: v for k, v in scores[model].items() if not k.startswith(but)}
    return {v.reason if isinstance(v, Unavailable) else f"{k} = {v.x}" for k, v in found.items()}


def there(scores: Scores, model: str) -> set[str]:
    return {name for name, value in scores[model].items() if isinstance(value, Value)}


def test_all_is_well_where_nothing_is_wrong(tiny: World, retrained: list[Unlearned]) -> None:
    scores = measured(tiny, {"original": tiny.model, "retrained": retrained})
    assert scores.flaws == {}
    assert [c for c in scores.caveats if "Nothing" in c] == []
    assert {"accuracy/test", "membership/loss/auc", "divergence/js/forget"} <= there(scores, "no_op")


def test_no_test_data(tiny: World, retrained: list[Unlearned]) -> None:
    scores = measured(tiny, {"original": tiny.model, "retrained": retrained}, test=None, holdout=None)
    assert scores.flaws == {}
    assert scores["no_op"]["accuracy/test"] == Unavailable("there are no samples in test")
    assert scores["no_op"]["accuracy/test_forget"] == Unavailable("there are no samples in test_forget")
    assert scores["no_op"]["membership/loss/auc"] == Unavailable("there are no samples in test")
    names = there(scores, "no_op")
    assert {"accuracy/forget", "loss/retain", "divergence/js/forget", "subgroups/spread"} <= names
    assert not {name for name in names if "test" in name or name.startswith("membership")}


@pytest.mark.parametrize("where", ["weights", "outputs"])
def test_nan_in_one_model_leaves_the_others_measured(where: str, tiny: World, retrained: list[Unlearned]) -> None:
    bad = broken(tiny.model) if where == "weights" else Sometimes(tiny.model)
    models = {"original": tiny.model, "retrained": retrained}
    well = measured(tiny, models)
    scores = measured(tiny, {**models, "mine": bad})
    why = NAN if where == "weights" else "its outputs on test hold NaN or infinity"
    assert scores.flaws == {"mine": why}
    assert f"Nothing is said of mine: {why}." in scores.caveats
    known = {why, "it is another network than retrained", "it is another network than the original"}
    assert why in reasons(scores, "mine") <= known | {"a weight is infinite or not a number"}
    assert scores.gaps["mine"].keys() <= {"cost/changed"}
    for model in ("original", "no_op", FLOOR):
        assert there(scores, model) == there(well, model)
        assert scores[model]["loss/test"] == well[model]["loss/test"]


@pytest.mark.parametrize("first", [True, False])
def test_nan_in_one_of_several_of_a_name(first: bool, tiny: World, retrained: list[Unlearned]) -> None:
    both = [broken(tiny.model), tiny.model] if first else [tiny.model, broken(tiny.model)]
    scores = measured(tiny, {"original": tiny.model, "retrained": retrained, "mine": both})
    assert scores.flaws == {"mine": NAN}
    assert f"Nothing is said of mine: {NAN}." in scores.caveats
    assert scores["mine"]["accuracy/test"] == Unavailable(NAN)


@pytest.mark.parametrize("where", ["weights", "outputs"])
def test_nan_in_the_original(where: str, tiny: World, retrained: list[Unlearned]) -> None:
    bad = broken(tiny.model) if where == "weights" else Sometimes(tiny.model)
    scores = measured(tiny, {"original": bad, "retrained": retrained, "mine": tiny.model})
    why = scores.flaws["original"]
    assert "NaN or infinity" in why
    if where == "weights":
        reason = "the original's weights hold NaN or infinity"
        assert scores.declined == {"no_op": reason, "head_mask": reason}
    else:
        assert set(scores.flaws) == {"original", "no_op", "head_mask"}
    assert scores["mine"]["subgroups/worst_change"] == Unavailable(f"original: {why}")
    assert {"accuracy/test", "divergence/js/forget", "membership/loss/auc"} <= there(scores, "mine")


def test_nan_in_retrained(tiny: World, retrained: list[Unlearned]) -> None:
    scores = measured(tiny, {"original": tiny.model, "retrained": [broken(tiny.model), retrained[0]]})
    assert scores.flaws == {"retrained": NAN}
    assert scores["no_op"]["divergence/js/forget"] == Unavailable(f"retrained: {NAN}")
    assert isinstance(scores["no_op"]["accuracy/forget"], Value)
    assert "accuracy/forget" not in scores.gaps["no_op"]
    assert scores.floor == {}


def test_probabilities_for_logits(tiny: World, retrained: list[Unlearned]) -> None:
    soft = nn.Sequential(tiny.model, nn.Softmax(dim=1))
    one = measured(tiny, {"original": tiny.model, "retrained": retrained, "mine": soft})
    assert one.flaws == {"mine": PROBABILITIES}
    assert PROBABILITIES in reasons(one, "mine", but=("cost/", "weights/"))
    assert there(one, "mine") <= {"cost/changed"}
    every = measured(tiny, {"original": soft, "retrained": nn.Sequential(retrained[0].model, nn.Softmax(dim=1))})
    assert every.flaws == dict.fromkeys(("original", "retrained", "no_op", "head_mask"), PROBABILITIES)
    assert f"Nothing is said of original: {PROBABILITIES}." in every.caveats


def test_probabilities_are_seen_where_no_unseen_sample_is_of_the_forgotten_kind(tiny: World) -> None:
    soft = nn.Sequential(tiny.model, nn.Softmax(dim=1))
    others = [i for i, y in zip(tiny.test.ids, tiny.test.targets().tolist(), strict=True) if y != 1]
    scores = measured(tiny, {"original": tiny.model, "mine": soft}, test=tiny.test.subset(others))
    assert scores.flaws == {"mine": PROBABILITIES}


@pytest.mark.parametrize("classes", [2, 5])
def test_retrained_with_other_classes(classes: int, tiny: World) -> None:
    scores = measured(tiny, {"original": tiny.model, "retrained": headed(classes), "mine": tiny.model})
    if classes < CLASSES:
        why = "its outputs do not fit the labels (expected classes 0 to 1, got class 2)"
        assert scores.flaws == {"retrained": why}
        assert f"Nothing is said of retrained: {why}." in scores.caveats
        assert scores["mine"]["divergence/js/forget"] == Unavailable(f"retrained: {why}")
        assert "accuracy/test" not in scores.gaps["mine"]
    else:
        assert scores.flaws == {}
        why = "retrained has other outputs: (5,) instead of (3,) a sample"
        assert scores["mine"]["divergence/js/forget"] == scores["mine"]["paired/shift"] == Unavailable(why)
        assert (
            "The retrained model gives outputs of shape (5,) where the original has (3,): what compares the two sample "
            "by sample is left out."
        ) in scores.caveats
    assert {"accuracy/test", "membership/loss/auc"} <= there(scores, "mine")


def test_a_method_that_returns_other_classes(tiny: World, retrained: list[Unlearned]) -> None:
    scores = measured(tiny, {"original": tiny.model, "retrained": retrained, "mine": headed(2)})
    assert scores.flaws == {"mine": "its outputs do not fit the labels (expected classes 0 to 1, got class 2)"}
    assert there(scores, "mine") == set()
    wide = measured(tiny, {"original": tiny.model, "retrained": retrained, "mine": headed(5)})
    assert wide.flaws == {}
    assert {"accuracy/test", "loss/forget"} <= there(wide, "mine")
    other = "retrained has other outputs: (3,) instead of (5,) a sample"
    assert wide["mine"]["divergence/js/forget"] == Unavailable(other)


@pytest.mark.parametrize("which", ["reference", "floor"])
def test_retrained_for_another_request(which: str, tiny: World, retrained: list[Unlearned]) -> None:
    ids = tiny.retain.ids[:4]
    other = without(tiny, ids)
    both = [other, retrained[0]] if which == "reference" else [retrained[0], other]
    scores = measured(tiny, {"original": tiny.model, "retrained": both, "mine": tiny.model})
    name = "retrained" if which == "reference" else FLOOR
    why = "it was retrained without other samples than those of this request"
    assert scores.flaws == {name: why}
    assert f"Nothing is said of {name}: {why}." in scores.caveats
    assert why in reasons(scores, name)
    assert isinstance(scores["mine"]["accuracy/test"], Value)
    if which == "reference":
        assert scores["mine"]["divergence/js/forget"] == Unavailable(f"retrained: {why}")
        assert "accuracy/test" not in scores.gaps["mine"]
        assert scores.floor == {}
    else:
        assert "accuracy/test" in scores.gaps["mine"]
        assert "accuracy/test" not in scores.floor


def test_retrained_twice_from_one_seed_is_no_floor(tiny: World, retrained: list[Unlearned]) -> None:
    models = {"original": tiny.model, "retrained": [retrained[0], without(tiny, tiny.scenario.forget, 1)]}
    scores = measured(tiny, models)
    why = "it has the weights of retrained to the bit: a floor needs one retrained from another seed"
    assert scores.flaws == {FLOOR: why}
    assert f"Nothing is said of {FLOOR}: {why}." in scores.caveats
    assert [name for name in scores.floor if not name.startswith(("cost/", "weights/"))] == []
    scores = measured(tiny, {"original": tiny.model, "retrained": copy.deepcopy(tiny.model)})
    assert scores.flaws == {"retrained": "it has the original's weights to the bit, and so was not retrained"}
    assert "accuracy/forget" not in scores.gaps["no_op"]


def test_a_method_run_for_another_request(tiny: World, retrained: list[Unlearned]) -> None:
    def made(ids: Sequence[str]) -> Unlearned:
        retain = tiny.train.without(ids)
        return unlearn(load("finetune")(), tiny.model, tiny.task, forget=list(ids), retain=retain, recipe=tiny.recipe)

    wanted = list(tiny.scenario.forget)
    sets = {"right": wanted, "fewer": wanted[1:], "more": [*wanted, tiny.retain.ids[0]], "other": tiny.retain.ids[:4]}
    scores = measured(tiny, {"original": tiny.model, "retrained": retrained} | {n: made(i) for n, i in sets.items()})
    why = "it was made to forget other samples than those of this request"
    assert scores.flaws == dict.fromkeys(("fewer", "more", "other"), why)
    assert scores["other"]["accuracy/forget"] == Unavailable(why)
    assert isinstance(scores["right"]["accuracy/forget"], Value)


def test_too_few_samples_and_one_class_splits(tiny: World, retrained: list[Unlearned]) -> None:
    models = {"original": tiny.model, "retrained": retrained}
    labels = dict(zip(tiny.test.ids, tiny.test.targets().tolist(), strict=True))
    kinds = {
        "one": tiny.test.ids[:1],
        "of the class alone": [i for i, y in labels.items() if y == 1],
        "without the class": [i for i, y in labels.items() if y != 1],
    }
    for name, ids in kinds.items():
        scores = measured(tiny, models, test=tiny.test.subset(ids))
        assert scores.flaws == {}
        assert isinstance(scores["no_op"]["accuracy/test"], Value)
        assert isinstance(scores["no_op"]["accuracy/forget"], Value), name
    alone = measured(tiny, models, test=tiny.test.subset(kinds["without the class"]))
    assert alone["no_op"]["membership/loss/auc"] == Unavailable("no unseen sample of the forgotten kind")
    single = forget_ids(tiny.train, tiny.train.ids[:1])
    rows = measured(tiny, {"original": tiny.model, "retrained": without(tiny, single.forget)}, scenario=single)
    assert "needs 2 samples on each side" in rows["no_op"]["membership/loss/auc"].reason
    most = forget_ids(tiny.train, tiny.train.ids[1:])
    assert isinstance(measured(tiny, {"original": tiny.model}, scenario=most)["no_op"]["accuracy/retain"], Value)


def test_data_without_labels(tiny: World, retrained: list[Unlearned]) -> None:
    bare = Data.from_arrays(tiny.test.read(range(len(tiny.test))).inputs, name="test")
    models = {"original": tiny.model, "retrained": retrained}
    scores = measured(tiny, models, test=bare)
    assert scores["no_op"]["accuracy/test"] == Unavailable("test has no labels")
    assert {"divergence/js/test", "membership/entropy_lr"} <= there(scores, "no_op")
    none = Data.from_arrays(tiny.train.read(range(len(tiny.train))).inputs, ids=tiny.train.ids)
    scores = measured(tiny, {"original": tiny.model}, train=none, test=bare, holdout=None)
    assert scores["no_op"]["accuracy/forget"] == Unavailable("forget has no labels")


@pytest.mark.parametrize("what", [math.inf, math.nan])
def test_losses_that_are_not_finite(what: float, tiny: World, retrained: list[Unlearned]) -> None:
    class Odd(Classification):
        def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
            return torch.where(target == 2, what, super().loss(outputs, target))

    scores = measured(tiny, {"original": tiny.model, "retrained": retrained}, task=Odd())
    assert scores["no_op"]["loss/test"] == Unavailable("a loss on test is infinite or not a number")
    assert {"loss/forget", "divergence/js/test", "membership/entropy/auc"} <= there(scores, "no_op")
    assert section(scores, name="a", text="b", counts={})["curves"].keys() == {"entropy", "roc"}


def test_the_report_says_it(tiny: World) -> None:
    models = {"original": tiny.model, "retrained": headed(5), "mine": broken(tiny.model), "soft": headed(2)}
    parts = [measured(tiny, models, **more) for more in ({}, {"test": None, "holdout": None})]
    sections = [section(p, name=f"part {i}", text="b", counts={"train": 39}) for i, p in enumerate(parts)]
    page = render(document(sections, title="A test", lead="A lead.", command=None))
    assert f"Nothing is said of mine: {NAN}." in page
    assert "The retrained model gives outputs of shape (5,) where the original has (3,)" in page


def test_labels_that_do_not_fit_the_original_are_the_datas_fault(tiny: World) -> None:
    odd = Data.from_arrays(tiny.test.read(range(9)).inputs, torch.full((9,), 7), name="test")
    with pytest.raises(UserError, match="classes 0 to 2, got class 7: check the labels and the model's last layer"):
        measured(tiny, {"original": tiny.model}, test=odd)
    with pytest.raises(
        UserError, match="real targets, got torch.int64, targets that are classes: pass floats, or use Classification"
    ):
        measured(tiny, {"original": tiny.model}, task=Regression())
