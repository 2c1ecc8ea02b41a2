import json

import numpy as np
import pytest
import torch

from expunge import predicted
from expunge.data import Data
from expunge.evaluate import evaluate
from expunge.evidence import Outputs
from expunge.files import canonical
from expunge.metric import Audit
from expunge.report import document as doc
from expunge.report import render
from expunge.runtime import Runtime
from expunge.scenario import Scenario, forget_range
from expunge.scores import pooled
from expunge.summary import document, section
from expunge.task import Classification, Quantile, Regression

CASE = Scenario(train=("a", "b"), forget=("a",))


def said(outputs, target, task):
    outputs = torch.as_tensor(outputs, dtype=torch.float64)
    return Outputs(outputs, task.predictions(outputs), torch.as_tensor(target, dtype=torch.float32))


def kept(task, flaws=None, **evidence):
    """What is kept of the outputs named ``role_split``."""
    found = {tuple(name.split("_")): outputs for name, outputs in evidence.items()}
    audit = Audit(evidence=found, models={}, task=task, scenario=CASE, flaws=flaws or {})
    predicted.keep(audit)
    return {name.removeprefix("real/"): values for name, values in audit.kept.samples.items()}


def test_points_are_kept_by_target_and_in_no_order_of_the_data():
    task, draw = Regression(), np.random.default_rng(0)
    y, f = draw.normal(size=17), draw.normal(size=17)
    found = kept(task, model_forget=said(f[:, None], y, task))
    order = np.argsort(y)
    assert found["forget/target"] == pytest.approx(y[order], abs=1e-6)
    assert found["forget/said"] == pytest.approx(f[order])
    assert found["forget/error"] == pytest.approx(np.sort(np.abs(f - y)), abs=1e-6)
    mixed = draw.permutation(17)
    again = kept(task, model_forget=said(f[mixed, None], y[mixed], task))
    assert all(np.array_equal(again[name], found[name]) for name in found)


def test_of_many_samples_a_bounded_number_is_kept_evenly_over_the_targets():
    task, draw = Regression(), np.random.default_rng(0)
    y = draw.exponential(size=9001)
    found = kept(task, model_test=said(2 * y[:, None], y, task))
    assert {len(found[f"test/{name}"]) for name in ("target", "said", "error")} == {predicted.POINTS}
    assert found["test/count"].tolist() == [9001]
    shares = np.linspace(0.01, 0.99, 99)
    assert np.quantile(found["test/target"], shares) == pytest.approx(np.quantile(y, shares), rel=0.01, abs=1e-3)
    assert found["test/said"] == pytest.approx(2 * found["test/target"], rel=1e-6)


def test_the_retained_samples_leave_their_errors_alone():
    task = Regression()
    found = kept(task, model_retain=said([[1.0], [2.0]], [1.5, 4.0], task))
    assert set(found) == {"retain/count", "retain/error"}
    assert found["retain/error"].tolist() == [0.5, 2.0]


def test_of_several_targets_a_sample_the_means_are_kept_and_whole_series_by_the_error_of_the_original():
    task, draw = Regression(), np.random.default_rng(0)
    y = draw.normal(size=(40, 5))
    off = draw.permutation(40)[:, None] / 10.0
    found = kept(task, model_forget=said(y + 1, y, task), original_forget=said(y + off, y, task))
    assert found["forget/target"] == pytest.approx(np.sort(y.mean(axis=1)), abs=1e-6)
    assert found["forget/error"] == pytest.approx(np.ones(40), abs=1e-6)
    places = predicted._even(40, predicted.WINDOWS)
    assert found["window/error"] == pytest.approx(places / 10, abs=1e-5)
    assert found["window/said"] == pytest.approx(found["window/target"] + 1)
    assert found["window/steps"].tolist() == [5.0] * predicted.WINDOWS
    rows = {tuple(np.float32(row)) for row in y}
    assert all(tuple(np.float32(row)) in rows for row in found["window/target"])
    assert "window/low" not in found


def test_quantiles_are_kept_as_their_middle_and_an_interval_that_does_not_cross():
    task = Quantile((0.1, 0.4, 0.9))
    outputs = torch.tensor([[[3.0, 2.0, 1.0], [0.0, 1.0, 5.0]]])
    own = said(outputs, [[2.0, 2.0]], task)
    found = kept(task, model_forget=own, retrained_forget=own)
    assert found["forget/said"].tolist() == [1.5]
    assert found["window/said"].tolist() == [[2.0, 1.0]]
    assert found["window/low"].tolist() == [[1.0, 0.0]]
    assert found["window/high"].tolist() == [[3.0, 5.0]]


def test_long_series_are_cut_and_one_target_is_no_series():
    task, long = Regression(), np.zeros((3, 500))
    found = kept(task, model_forget=said(long, long, task), original_forget=said(long, long, task))
    assert found["window/target"].shape == (3, predicted.STEPS)
    assert found["window/steps"].tolist() == [500.0] * 3
    one = said(np.zeros((3, 1)), np.zeros(3), task)
    assert not [name for name in kept(task, model_forget=one, original_forget=one) if name.startswith("window")]


def test_nothing_is_kept_of_classes_of_flawed_models_or_without_targets():
    one = said(np.zeros((3, 1)), np.zeros(3), Regression())
    assert kept(Regression(), {"model": "NaN"}, model_forget=one) == {}
    assert kept(Regression(), model_forget=Outputs(one.outputs, one.prediction)) == {}
    classes = Outputs(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.long))
    assert kept(Classification(), model_forget=classes) == {}


class Line(torch.nn.Module):
    """Says a multiple of the first input."""

    def __init__(self, slope):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(slope))

    def forward(self, x):
        return self.slope * x[:, :1]


def lines(n=60, seed=0, several=False):
    """Scores of lines of several slopes on a range of targets."""
    draw = np.random.default_rng(seed)

    def data(size, name):
        x = draw.normal(size=(size, 2)).astype(np.float32)
        return Data.from_arrays(x, x[:, 0] + 0.1 * x[:, 1], ids=[f"secret-{name}-{i}" for i in range(size)], name=name)

    train, test = data(n, "train"), data(40, "test")
    models = {"original": Line(1.0), "retrained": [Line(0.5), Line(0.6)], "mine": Line(0.9)}
    if several:
        models["mine"] = [Line(0.9), Line(0.8)]
    quiet = Runtime(progress=False, device="cpu")
    case = forget_range(train, -3, -0.5, test=test)
    return evaluate(models, Regression(), train=train, test=test, scenario=case, metrics=["wasserstein"], runtime=quiet)


def drawn(scores):
    return section(scores, name="low", text="The low ones.", counts=scores.asked.counts)


def test_an_evaluation_leaves_what_the_report_draws_without_an_id():
    scores = lines()
    part = drawn(scores)
    found = part["predictions"]
    assert doc.is_real(part)
    assert [list(g["said"]) for g in found["scatter"]["forget"]["groups"]] == [["original", "mine", "retrained"]]
    assert set(found["scatter"]) == {"forget", "test"}
    assert set(found["errors"]) == {"forget", "retain", "test"}
    assert "retrained (other seed)" in found["errors"]["test"]["models"]
    assert found["windows"] is None
    assert found["scatter"]["forget"]["of"] == part["counts"]["forget"]
    group = found["scatter"]["test"]["groups"][0]
    assert group["said"]["mine"] == pytest.approx([0.9 / 0.5 * v for v in group["said"]["retrained"]], abs=0.02)
    rest = {name: value for name, value in found.items() if name != "bytes"}
    assert found["bytes"] == len(canonical(rest))
    assert "secret" not in canonical(part)
    page = document([part], title="t", lead="l", command=None)
    again = json.loads(canonical(page))
    again["sections"][0]["counts"] = part["counts"]  # in their order
    assert render(again) == render(page)


def test_a_document_of_classes_has_no_predictions_and_keeps_the_control_that_declines(tiny_scores):
    part = drawn(tiny_scores)
    assert "predictions" not in part
    assert not doc.is_real(part)
    assert "head_mask" in [m["name"] for m in part["models"]]
    assert "head_mask" not in [m["name"] for m in drawn(lines())["models"]]


@pytest.fixture
def tiny_scores():
    train = Data.from_arrays(torch.randn(30, 2), torch.arange(30) % 3, name="train")
    test = Data.from_arrays(torch.randn(12, 2), torch.arange(12) % 3, name="test")
    case = Scenario(train=tuple(train.ids), forget=tuple(train.ids[:4]))
    quiet = Runtime(progress=False, device="cpu")
    models = {"original": torch.nn.Linear(2, 3)}
    return evaluate(
        models, Classification(), train=train, test=test, scenario=case, metrics=["accuracy"], runtime=quiet
    )


def test_replicates_have_targets_of_their_own():
    found = drawn(lines(several=True))["predictions"]["scatter"]["forget"]["groups"]
    assert [list(group["said"]) for group in found] == [["original", "retrained"], ["mine"]]
    assert len(found[1]["target"]) == 2 * len(found[0]["target"])


def test_seeds_are_pooled():
    runs = [lines(seed=seed) for seed in (0, 1)]
    found = drawn(pooled(runs))["predictions"]
    sizes = [run.asked.counts["forget"] for run in runs]
    assert found["scatter"]["forget"]["of"] == sum(sizes)
    assert len(found["scatter"]["forget"]["groups"][0]["target"]) == sum(sizes)
    assert found["scatter"]["forget"]["groups"][0]["target"] == sorted(
        found["scatter"]["forget"]["groups"][0]["target"]
    )


def test_errors_are_the_quantiles_of_all_samples():
    scores = lines()
    errors = scores.samples["mine"]["real/test/error"]
    found = drawn(scores)["predictions"]["errors"]["test"]["models"]["mine"]
    assert found == pytest.approx(np.quantile(errors, np.linspace(0, 1, 101)), rel=1e-3)


def test_numbers_are_no_finer_than_a_thousandth_of_the_targets_span():
    for scale in (1e-3, 1.0, 1e6):
        decimals = predicted._decimals([scale * np.array([0.0, 7.3])])
        step = 10.0**-decimals
        assert scale * 7.3 / 10_000 < step <= scale * 7.3 / 1000
    assert predicted._rounded(np.array([1.0, 1e30]), 2) == [1, 1e30]
    assert predicted._decimals([np.array([5.0, 5.0])]) == 3


def test_many_models_and_samples_stay_within_bounds():
    scores = lines()
    long = {
        f"real/{split}/{name}": np.random.default_rng(0).normal(size=predicted.POINTS)
        for split in predicted.SETS
        for name in ("target", "said", "error")
    }
    long |= {f"real/{split}/count": np.array([1e6]) for split in predicted.SETS}
    rows = (predicted.WINDOWS, predicted.STEPS)
    long |= {f"real/window/{name}": np.random.default_rng(0).normal(size=rows) for name in ("target", "said", "low")}
    long |= {"real/window/high": long["real/window/low"], "real/window/steps": np.full(rows[0], rows[1])}
    long |= {"real/window/error": np.ones(rows[0])}
    names = [f"m{i}" for i in range(20)]
    many = lines()
    object.__setattr__(many, "samples", dict.fromkeys(names, long))
    found = predicted.gathered(many, names)
    assert found["bytes"] < 1_000_000
    group = found["scatter"]["forget"]["groups"][0]
    assert len(group["target"]) * len(group["said"]) <= predicted.WHOLE["forget"]
    assert predicted.gathered(scores, ["nobody"]) is None
