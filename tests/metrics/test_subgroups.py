"""Who paid: groups by hand, the simultaneous interval by simulation, and a model that pays with one group."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats as distributions
from torch import Tensor, nn

from expunge import stats
from expunge.data import Data
from expunge.evaluate import evaluate
from expunge.evidence import Outputs
from expunge.metric import Audit, Unavailable, Value
from expunge.metrics import load
from expunge.metrics.subgroups import Subgroups
from expunge.scenario import Scenario, forget_class
from expunge.task import Classification, Regression
from worlds import QUIET, World, world

WORST, SPREAD = "subgroups/worst_change", "subgroups/spread"


def answers(right: list[bool] | np.ndarray, labels: list[int]) -> Outputs:
    """Return outputs of three classes that are right where told."""
    target = torch.tensor(labels)
    said = torch.where(torch.as_tensor(right, dtype=torch.bool), target, (target + 1) % 3)
    logits = 4.0 * nn.functional.one_hot(said, 3).double()
    return Outputs(logits, said, target, nn.functional.cross_entropy(logits, target, reduction="none"))


def audit(
    model: list[bool] | np.ndarray,
    original: list[bool] | np.ndarray | None,
    labels: list[int],
    columns: dict[str, list[Any]] | None = None,
    split: str = "test",
    **more: Any,
) -> Audit:
    evidence = {("model", split): answers(model, labels)}
    if original is not None:
        evidence["original", split] = answers(original, labels)
    data = Data.from_arrays(torch.zeros(len(labels), 2), labels, columns=columns)
    scenario = Scenario(train=("a", "b"), forget=("a",))
    given = {"evidence": evidence, "task": Classification(), "models": {}, "scenario": scenario}
    return Audit(**(given | {"data": {split: data}} | more))


def first(right: int, n: int) -> list[bool]:
    return [i < right for i in range(n)]


BEFORE = [*first(18, 20), *first(9, 10), *first(30, 30)]
AFTER = [*first(12, 20), *first(9, 10), *first(27, 30)]
LABELS = [0] * 20 + [1] * 10 + [2] * 30
PLACES = ["north"] * 45 + ["south"] * 15


def test_groups_by_hand() -> None:
    given = audit(AFTER, BEFORE, LABELS, {"place": PLACES})
    found = load("subgroups")()(given)
    series = given.kept.series
    assert {k: list(v) for k, v in series.items()} == {
        "subgroups/label": [0, 1, 2],
        "subgroups/label/accuracy": [0, 1, 2],
        "subgroups/place": ["north", "south"],
        "subgroups/place/accuracy": ["north", "south"],
    }
    changes = {at: v.x for name in ("label", "place") for at, v in series[f"subgroups/{name}"].items()}
    assert changes == pytest.approx({0: -0.3, 1: 0.0, 2: -0.1, "north": -6 / 45, "south": -0.2})
    shares = {at: v.x for name in ("label", "place") for at, v in series[f"subgroups/{name}/accuracy"].items()}
    assert shares == pytest.approx({0: 0.6, 1: 0.9, 2: 0.9, "north": 36 / 45, "south": 0.8})
    one = series["subgroups/label"][0]
    want = stats.paired_proportions(AFTER[:20], BEFORE[:20])
    assert (one.low, one.high, one.n) == (want.low, want.high, 20)
    wide = distributions.norm.ppf(1 - 0.025 / 5)  # five groups
    p, q = 1 / 22, 7 / 22
    half = wide * math.sqrt((p + q - (p - q) ** 2) / 22)
    assert found[WORST].x == pytest.approx(-0.3)
    assert found[WORST].low == pytest.approx(p - q - half)
    # The upper end is that of "north", where more samples say that somebody paid.
    north = stats.paired_proportions(AFTER[:45], BEFORE[:45], level=0.99)
    assert found[WORST].high == pytest.approx(min(north.high, p - q + half))
    assert found[WORST].n == 20
    assert found[SPREAD].x == pytest.approx(0.3)
    low, high = stats.wilson(12, 20, 0.99), stats.wilson(27, 30, 0.99)
    assert found[SPREAD].low == pytest.approx(max(0.0, high.low - low.high))
    assert found[SPREAD].high == pytest.approx(max(high.high, stats.wilson(9, 10, 0.99).high) - low.low)


def slow(right: list[bool], before: list[bool], columns: dict[str, list[Any]]) -> tuple[float, float]:
    """Return worst change and spread by counting one sample at a time."""
    changes, shares = [], []
    for values in columns.values():
        for value in dict.fromkeys(values):
            a = b = n = 0
            for i, v in enumerate(values):
                if v == value:
                    a, b, n = a + right[i], b + before[i], n + 1
            if n >= 10:
                changes.append((a - b) / n)
                shares.append(a / n)
    return min(changes), max(shares) - min(shares)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_slow_count_in_any_order(seed: int) -> None:
    random = np.random.default_rng(seed)
    n = 200
    labels = random.integers(0, 3, n).tolist()
    columns: dict[str, list[Any]] = {
        "city": [f"c{v}" for v in random.integers(0, 12, n)],
        "age": random.integers(0, 5, n).tolist(),
    }
    after, before = (random.random(n) < 0.7).tolist(), (random.random(n) < 0.9).tolist()
    whole = load("subgroups")()(audit(after, before, labels, columns))
    assert (whole[WORST].x, whole[SPREAD].x) == pytest.approx(slow(after, before, {"label": labels, **columns}))
    order = random.permutation(n)

    def mixed(values: list[Any]) -> list[Any]:
        return [values[i] for i in order]

    again = audit(mixed(after), mixed(before), mixed(labels), {k: mixed(v) for k, v in columns.items()})
    assert load("subgroups")()(again) == whole


def test_small_groups_and_odd_columns_say_why_or_stay_out() -> None:
    n = 60
    labels = [0] * 31 + [1] * 20 + [2] * 9
    columns: dict[str, list[Any]] = {
        "id": [f"p{i}" for i in range(n)],
        "constant": ["x"] * n,
        "many": [i % 51 for i in range(n)],
        "half": [np.int64(i % 2) for i in range(n)],
        "holes": [None if i % 3 else float("nan") for i in range(n)],
        "label": [f"l{v}" for v in labels],
        "flag": [i % 2 == 0 for i in range(n)],
        "few": ["rare" if i < 3 else "common" for i in range(n)],
    }
    given = audit([True] * n, [True] * n, labels, columns)
    found = load("subgroups")()(given)
    names = {name.removeprefix("subgroups/") for name in given.kept.series if not name.endswith("/accuracy")}
    assert names == {"label", "half", "holes", "label (column)", "flag", "few"}
    series = given.kept.series
    assert series["subgroups/label"][2] == series["subgroups/label/accuracy"][2]
    assert series["subgroups/label"][2] == Unavailable("fewer than 10 samples: 9")
    assert series["subgroups/few"]["rare"] == Unavailable("fewer than 10 samples: 3")
    assert set(series["subgroups/holes"]) == {"None", "nan"}
    assert set(series["subgroups/flag"]) == {"True", "False"}
    assert [type(at) for at in series["subgroups/half"]] == [int, int]
    assert found[WORST].x == 0
    assert found[WORST].low < 0 < found[WORST].high  # one observation of nothing is no proof of nothing


def test_without_a_number_there_is_a_reason() -> None:
    found = load("subgroups")()(audit(AFTER, None, LABELS))
    assert found[WORST] == Unavailable("there is no original model to compare with")
    assert isinstance(found[SPREAD], Value)
    nine = load("subgroups")()(audit([True] * 9, [True] * 9, [0] * 9))
    assert set(nine.values()) == {Unavailable("no group has 10 samples")}
    one = load("subgroups")()(audit([True] * 12, [True] * 12, [0] * 12))
    assert one[SPREAD] == Unavailable("needs two groups of 10 samples, there is one")
    assert one[WORST].x == 0
    bare = audit(AFTER, BEFORE, LABELS)
    none = Audit(evidence={}, models={}, task=bare.task, scenario=bare.scenario)
    assert set(load("subgroups")()(none).values()) == {Unavailable("there are no samples in test")}
    other = load("subgroups")()(audit(AFTER, BEFORE, LABELS, task=Regression()))
    assert set(other.values()) == {Unavailable("the task has no classes")}
    flawed = load("subgroups")()(audit(AFTER, BEFORE, LABELS, flaws={"original": "it holds NaN"}))
    assert flawed[WORST] == Unavailable("original: it holds NaN")


def test_samples_of_the_forgotten_kind_are_left_out() -> None:
    whole = audit(AFTER, BEFORE, LABELS)
    rows = torch.arange(20, 60)
    own, before = whole.said("test").take(rows), whole.said("test", "original").take(rows)
    parts = {("model", "test_retain"): own, ("original", "test_retain"): before}
    data = {"test_retain": Data.from_arrays(torch.zeros(40, 2), LABELS[20:])}
    given = audit(AFTER, BEFORE, LABELS, evidence={**whole.evidence, **parts}, data=data)
    found = load("subgroups")()(given)
    assert list(given.kept.series["subgroups/label"]) == [1, 2]
    assert found[WORST].x == pytest.approx(-0.1)
    none = own.take(torch.arange(0))
    nobody = audit(AFTER, BEFORE, LABELS, evidence={**whole.evidence, ("model", "test_retain"): none})
    assert load("subgroups")()(nobody)[SPREAD] == Unavailable("every test sample is of the forgotten kind")
    kept = {**whole.evidence, ("model", "test_retain"): none, ("model", "retain"): own, ("original", "retain"): before}
    assert load("subgroups")()(audit(AFTER, BEFORE, LABELS, evidence=kept))[WORST].x == pytest.approx(-0.1)


@pytest.mark.parametrize("harm", [0.0, 0.3])
def test_the_interval_covers_the_worst_of_many_groups(harm: float) -> None:
    """Twelve groups of 40: by the ordinary interval of the worst one the truth is missed in more than 5 of 100."""
    random = np.random.default_rng(7)
    places = [f"g{i % 12}" for i in range(480)]
    harmed = np.asarray([p == "g3" for p in places])
    missed = ordinary = 0
    for _ in range(300):
        before, after = random.random(480) < 0.7, random.random(480) < 0.7
        after &= ~(harmed & (random.random(480) < harm))
        given = audit(after, before, [0] * 480, {"place": places})
        value = Subgroups()(given)[WORST]
        truth = -0.7 * harm
        missed += not value.low <= truth <= value.high
        group = min(given.kept.series["subgroups/place"].values(), key=lambda v: v.x)
        ordinary += not group.low <= truth <= group.high
    assert missed <= 0.05 * 300
    if harm == 0:
        assert ordinary > 0.15 * 300


@pytest.fixture(scope="module")
def tiny() -> World:
    return world()


class Marked(nn.Module):
    """A network that does not see the first pixel, or whose answer it turns round where it holds a mark."""

    def __init__(self, inner: nn.Module, turns: bool) -> None:
        super().__init__()
        self.inner, self.turns = inner, turns

    def forward(self, x: Tensor) -> Tensor:
        mark = x[:, 0, 0, 0] > 90
        x = x.clone()
        x[:, 0, 0, 0] = 0.0
        found: Tensor = self.inner(x)
        return torch.where(mark[:, None] & self.turns, -found, found)


def test_the_group_that_pays_is_named_through_evaluate(tiny: World) -> None:
    batch = tiny.test.read(range(len(tiny.test)))
    x = batch.inputs.clone()
    x[::4, 0, 0, 0] = 99.0
    columns = {"ward": ["east" if i % 4 == 0 else "west" for i in range(len(x))], "row": list(range(len(x)))}
    test = Data.from_arrays(x, batch.target, columns=columns, name="test")
    models = {"original": Marked(tiny.model, False), "edited": Marked(tiny.model, True)}
    case = forget_class(tiny.train, 1)
    given = {"train": tiny.train, "test": test, "scenario": case, "metrics": ["subgroups"], "runtime": QUIET}
    scores = evaluate(models, tiny.task, **given)
    changes = scores.series["edited"]["subgroups/ward"]
    assert changes["east"].x < -0.5
    assert changes["west"].x == 0
    assert "subgroups/row" not in scores.series["edited"]
    assert set(scores.series["edited"]["subgroups/label"]) == {0, 2}
    assert scores["edited"][WORST].x == pytest.approx(changes["east"].x)
    assert scores["edited"][WORST].high < -0.2
    assert scores["no_op"][WORST].x == scores["original"][WORST].x == 0
    assert scores.gaps["edited"] == {}  # nothing retrained
