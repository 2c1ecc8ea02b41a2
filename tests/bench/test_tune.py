"""Tuning: what is made small, that the test set is never read, and searches that are killed and go on."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expunge import methods, zoo
from expunge.bench import grid, ground, objectives, spaces, stages, study, tuning
from expunge.bench.cell import Cell
from expunge.bench.ground import Ground
from expunge.bench.runner import one_by_one
from expunge.bench.stages import Setting
from expunge.bench.store import Store
from expunge.bench.tune import Progress, tune
from expunge.bench.tuning import Tuning
from expunge.data import Data
from expunge.draws import Request
from expunge.errors import CorruptArtefact, Declined, Incompatible, MissingExtra, MissingNeed, UserError
from expunge.evaluate import evaluate
from expunge.method import Search
from expunge.methods.ssd import SSD
from expunge.report import tunepage
from expunge.steps import Step
from expunge.trial import handled, original

RECIPE = replace(zoo.recipe("digits", "mlp"), epochs=4).to_json()
SEEDS = (100, 101)
MANY = 6  # trials


def asked(method: str = "ssd", request: str = "class=3", ranges: tuple[str, ...] = (), **given: Any) -> Tuning:
    """Return a small tuning: digits, 400 of them, a network of two layers trained for four epochs."""
    fixed = given.pop("fixed", {})
    requests = [Request.parse(text).to_json() for text in request.split(";")]
    data = {"name": "digits", "limit": 400}
    cells = [Cell(data=data, network="mlp", recipe=RECIPE, request=body, seed=0) for body in requests]
    where = spaces.space(method, fixed, ranges)
    return Tuning(method=method, fixed=fixed, space=where, cells=cells, **{"seeds": SEEDS, **given})


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Return a setting whose store all tests of the module fill."""
    return Setting(tmp_path_factory.mktemp("tune") / "store", device="cpu")


@pytest.fixture(scope="module")
def found(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the document of some trials of SSD."""
    return tune(asked(), setting=setting, study=tmp_path_factory.mktemp("study") / "study.db", trials=MANY)


def trials(document: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Return what is the same wherever and whenever a search is done."""
    return [(t["number"], t["chosen"], t["state"], t["value"], t["values"]) for t in document["history"]]


def test_the_chosen_setting_is_the_best_of_the_trials_and_the_default_is_the_first(found: dict[str, Any]) -> None:
    history = found["history"]
    whole = [t["value"] for t in history if t["state"] == "complete"]
    assert [t["number"] for t in history] == list(range(MANY))
    assert history[0]["chosen"] == {}
    assert history[0]["state"] == "complete"
    assert found["default_value"] == history[0]["value"] >= found["value"] == min(whole)
    best = history[found["best"]]
    assert best["value"] == found["value"] == pytest.approx(np.mean(best["values"]))
    assert found["method"] == SSD(**best["chosen"]).settings()
    assert found["chosen"] == {n: found["method"][n] for n in ("alpha", "dampening")}
    assert found["default"] == SSD().settings()
    for trial in history[1:]:
        assert 0.1 <= trial["chosen"]["alpha"] <= 100
        assert 0.1 <= trial["chosen"]["dampening"] <= 5
    assert len({t["chosen"]["alpha"] for t in history[1:]}) == MANY - 1
    counts = found["budget"]
    assert counts["complete"] == len(whole)
    assert counts["complete"] + counts["pruned"] + counts["refused"] == found["trials"] == MANY
    assert counts["edits"] == sum(len(t["values"]) for t in history)


def test_the_value_is_the_mean_gap_to_retrained_in_floors_measured_on_holdout(found: dict[str, Any]) -> None:
    """The value of the default settings, worked out again without the benchmark's stages."""
    problem = zoo.load("digits", "mlp", limit=400)
    problem = replace(problem, recipe=replace(zoo.recipe("digits", "mlp"), epochs=4), test=None)
    runs = []
    for seed in SEEDS:
        with one_by_one():
            case = Request("class", 3).draw(problem, seed)[1]
            first = original(problem, problem.train, seed=seed)
            given = {"recipe": problem.recipe, "new_model": problem.new_model, "holdout": problem.holdout}
            steps = [Step(case, case)]
            again = [
                handled(methods.load("retrain")(), first, problem, problem.train, steps, seed=s, **given)
                for s in (seed, seed + 1000)
            ]
            own = handled(SSD(), first, problem, problem.train, steps, seed=seed, **given)
            models = {"original": first, "retrained": again, "own": own}
            seen = replace(case, holdout=(), test=case.holdout)
            metrics = ["accuracy", "loss", "membership"]
            runs.append(evaluate(models, problem.task, train=problem.train, test=problem.holdout, scenario=seen,
                                 metrics=metrics, attacks=["loss", "entropy_lr"], seed=seed))  # fmt: skip
    sets = ("forget", "retain", "test_forget", "test_retain")
    names = [f"{family}/{part}" for family in ("accuracy", "loss") for part in sets]
    lengths = {}
    for name in [*names, "membership/loss/auc", "membership/entropy_lr"]:
        values, floors = [run["retrained"][name] for run in runs], [run.floor[name].x for run in runs]
        share = values[0].unit == "1"
        least = max(0.01, 1 / values[0].n) if share else max(0.01, 0.05 * np.mean([v.x for v in values]))
        gaps = [abs(run["own"][name].x - run["retrained"][name].x) for run in runs]
        lengths[name.replace("/test", "/holdout")] = np.mean(gaps) / max(np.mean(floors), least)
    assert found["history"][0]["lengths"] == [pytest.approx(lengths)]
    assert found["default_value"] == pytest.approx(np.mean(list(lengths.values())))


def test_controls_stand_beside_and_doing_nothing_is_far(found: dict[str, Any]) -> None:
    values = found["compared"]["values"]
    assert set(values) == {"no_op", "head_mask", "retrained (other seed)"}
    assert values["retrained (other seed)"] <= 1
    assert values["no_op"] > 2 * found["value"]
    assert found["compared"]["lengths"]["no_op"][0]["accuracy/forget"] > 10


def test_one_seed_of_the_search_gives_the_same_trials_and_another_others(
    found: dict[str, Any], setting: Setting, tmp_path: Path
) -> None:
    again = tune(asked(), setting=setting, study=tmp_path / "again.db", trials=5)
    other = tune(asked(seed=1), setting=setting, study=tmp_path / "other.db", trials=3)
    assert trials(again) == trials(found)[:5]
    assert trials(other)[0] == trials(found)[0]
    assert trials(other)[1][1] != trials(found)[1][1]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from expunge.bench.ground import Ground
from expunge.bench.stages import Setting
from expunge.bench.tune import tune
from bench_tune import asked

real, calls = Ground.tried, []

def tried(self, *given):
    calls.append(1)
    if len(calls) == 6:  # in the middle of the third trial
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *given)

Ground.tried = tried
tune(asked(), setting=Setting(Path({store!r}), device="cpu"), study=Path({study!r}), trials=6)
"""


def test_a_search_that_was_killed_goes_on_with_the_trials_it_would_have_made(
    found: dict[str, Any], setting: Setting, tmp_path: Path
) -> None:
    path = tmp_path / "study.db"
    (tmp_path / "bench_tune.py").write_text(Path(__file__).read_text())
    code = KILLED.format(tests=str(tmp_path), store=str(setting.store), study=str(path))
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert dead.returncode == -9, dead.stderr
    told: list[Progress] = []
    document = tune(asked(), setting=setting, study=path, trials=MANY, told=told.append)
    tried = [step.done for step in told if step.what.startswith("trial ")]
    assert tried == list(range(2, MANY))  # two were finished, and the third was cut off
    assert trials(document) == trials(found)


def test_a_finished_search_is_read_and_a_longer_one_goes_on(
    found: dict[str, Any], setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "study.db"
    short = tune(asked(), setting=setting, study=path, trials=3)
    with monkeypatch.context() as patch:
        patch.setattr(Ground, "tried", lambda *_: pytest.fail("a finished search tries nothing"))
        patch.setattr(ground, "laid", lambda *_: pytest.fail("a finished search measures nothing"))
        assert tune(asked(), setting=setting, study=path, trials=3) == short
        fewer = tune(asked(), setting=setting, study=path, trials=2)
        assert trials(fewer) == trials(short)[:2]
    assert trials(tune(asked(), setting=setting, study=path, trials=5)) == trials(found)[:5]


def test_a_study_of_other_settings_is_refused_unless_nothing_was_tried(setting: Setting, tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    with pytest.raises(UserError, match="Expected a sample of class 12"):
        tune(asked(request="class=12"), setting=setting, study=path, trials=2)
    tune(asked(), setting=setting, study=path, trials=1)
    with pytest.raises(Incompatible, match=r"seeds=\[100\] in .*, got one with seeds=\[100, 101\]: choose another"):
        tune(asked(seeds=[100]), setting=setting, study=path, trials=2)
    with pytest.raises(Incompatible, match=r"'high': 9.0.*got one with.*'high': 100"):
        tune(asked(ranges=("alpha=1:9",)), setting=setting, study=path, trials=2)
    assert tune(asked("lfssd"), setting=setting, study=path, trials=1)["method"]["name"] == "lfssd"  # beside it


def test_two_at_once_and_files_that_are_no_study_are_refused(tmp_path: Path) -> None:
    space = {"alpha": Search(0.1, 1.0)}
    with (
        study.opened(tmp_path / "one.db", "ssd", {}, space, {}, 0),
        pytest.raises(UserError, match="a study that nobody else works on"),
        study.opened(tmp_path / "one.db", "ssd", {}, space, {}, 0),
    ):
        pass
    with study.opened(tmp_path / "one.db", "ssd", {}, space, {}, 0) as room:
        assert room.finished() == []
    (tmp_path / "text.db").write_text("no database at all, but text that is long enough for a header of SQLite" * 3)
    with (
        pytest.raises(CorruptArtefact, match="file is not a database"),
        study.opened(tmp_path / "text.db", "ssd", {}, space, {}, 0),
    ):
        pass


def test_a_missing_package_is_told_with_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with (
        pytest.raises(MissingExtra, match=r"pip install 'expunge\[tune\]'"),
        study.opened(tmp_path / "x.db", "ssd", {}, {}, {}, 0),
    ):
        pass


class Unreadable(torch.utils.data.Dataset[Any]):
    """Samples that must not be read."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("the test set was read")


@pytest.fixture
def fresh() -> Iterator[None]:
    """Forget what stages keep in memory, before and after."""
    kept = (stages._PROBLEMS, stages._CHANGED, stages._MODELS, stages._DRAWN, stages._PRINTS, stages._REFERENCES)
    for each in kept:
        each.found.clear()
    yield
    for each in kept:
        each.found.clear()


@pytest.mark.parametrize("request_text", ["class=3", "mislabelled=0.1", "hardest=20"])
def test_the_test_set_is_never_read(
    request_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    real = zoo.load
    blind = Data.from_torch(Unreadable(), ids=[f"secret/{i}" for i in range(40)], name="test")
    monkeypatch.setattr(zoo, "load", lambda *a, **k: replace(real(*a, **k), test=blind))
    sees = Setting(tmp_path / "store", device="cpu")
    small = asked(request=request_text, seeds=[100])
    document = tune(small, setting=sees, study=tmp_path / "study.db", trials=2)
    assert document["value"] >= 0
    cell = replace(small.seeded[0][0], measures={"metrics": ["accuracy"], "attacks": [], "retrained": 2})
    store = Store.open(sees.store)
    assert stages.perform(cell.results()[0], sees) == "failed"  # the benchmark itself does read it
    assert "the test set was read" in (store.failure(cell.results()[0]) or {})["message"]


def test_no_method_is_told_who_is_in_the_test_set(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    aim = objectives.load("unseen")
    for text in ("class=3", "sequential=5,times=2"):
        small = asked(request=text)
        ground.fill(ground.needed(small.seeded[0][0], aim), Store.open(setting.store), setting, None)
        laid = ground.laid(small.seeded[0][0], Store(setting.store), setting, aim)
        assert laid.problem.test is None
        assert [(one.own.test, one.union.test) for one in laid.steps] == [((), ())] * len(laid.steps)
        assert laid.steps[0].own.holdout


def test_trials_share_what_they_can_and_leave_no_weights(tmp_path: Path) -> None:
    where = Setting(tmp_path / "store", device="cpu")
    for method in ("ssd", "finetune"):
        tune(asked(method), setting=where, study=tmp_path / "study.db", trials=3)
    folders = sorted(p.parents[1].name for p in where.store.glob("*/*/done.json"))
    assert folders == ["drawn"] * 2 + ["prepared"] * 4 + ["retrained"] * 4 + ["trained"] * 2


def test_a_field_that_decides_the_preparation_is_prepared_anew_in_each_trial(setting: Setting, tmp_path: Path) -> None:
    ranges = ("batch=8,400", "alpha=5:6")
    made = asked(fixed={"importance": "batch_mean", "dampening": 1.0}, ranges=ranges, seeds=[100])
    assert not made.shares
    document = tune(made, setting=setting, study=tmp_path / "study.db", trials=4)
    assert {t["chosen"].get("batch") for t in document["history"][1:]} <= {8, 400}
    assert document["fixed"] == {"importance": "batch_mean", "dampening": 1.0}
    assert "dampening" not in document["chosen"]
    assert document["method"]["importance"] == "batch_mean"


def test_settings_that_do_not_work_are_told_and_never_chosen(setting: Setting, tmp_path: Path) -> None:
    made = asked("finetune", fixed={"epochs": 1}, ranges=("lr=1e20:1e25:log",))
    document = tune(made, setting=setting, study=tmp_path / "study.db", trials=3)
    first, *rest = document["history"]
    assert first["state"] == "complete"
    assert [(t["state"], t["value"]) for t in rest] == [("refused", None)] * 2
    assert "Expected a finite training loss" in rest[0]["why"]
    assert document["best"] == 0
    assert document["chosen"] == {"lr": 0.02}
    broken = asked("finetune", fixed={"epochs": 1, "lr": 1e20}, ranges=("momentum=0.8:0.9",))
    with pytest.raises(UserError, match=r"a setting that works, got none of 2 \(Expected a finite training loss"):
        tune(broken, setting=setting, study=tmp_path / "broken.db", trials=2)


def test_errors_that_no_setting_causes_end_the_search(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*_: Any) -> Any:
        raise MissingNeed("something", "none", "give it")

    monkeypatch.setattr(Ground, "tried", lacking)
    with pytest.raises(MissingNeed, match="Expected something"):
        tune(asked(), setting=setting, study=tmp_path / "study.db", trials=2)
    monkeypatch.undo()
    monkeypatch.setattr(SSD, "declines", lambda *_: "it is Sunday")
    declined = asked(fixed={"importance": "batch_mean"})
    with pytest.raises(Declined, match=r"one that ssd declines \(it is Sunday\)"):
        tune(declined, setting=setting, study=tmp_path / "declined.db", trials=2)


def test_methods_warn_of_nothing_that_nobody_asked_for(
    setting: Setting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        tune(asked(ranges=("alpha=90:100",)), setting=setting, study=tmp_path / "study.db", trials=2)
    assert [r for r in caplog.records if r.name.startswith("expunge.methods")] == []
    assert logging.getLogger("expunge.methods").level == logging.NOTSET


def test_several_requests_count_alike(setting: Setting, tmp_path: Path) -> None:
    both = tune(asked(request="class=3;random=0.1"), setting=setting, study=tmp_path / "both.db", trials=1)
    apart = [
        tune(asked(request=text), setting=setting, study=tmp_path / f"{text}.db", trials=1)["value"]
        for text in ("class=3", "random=0.1")
    ]
    assert both["value"] == pytest.approx(np.mean(apart))
    assert [len(lengths) for lengths in both["history"][0]["lengths"]] == [10, 8]
    assert both["budget"]["edits"] == 4


def test_requests_that_follow_each_other_are_measured_after_the_last(setting: Setting, tmp_path: Path) -> None:
    made = asked(request="sequential:class=3+5", seeds=[100])
    document = tune(made, setting=setting, study=tmp_path / "study.db", trials=1)
    lengths = document["compared"]["lengths"]["no_op"][0]
    assert lengths["accuracy/holdout_forget"] > 1
    aim = objectives.load("retrained")
    laid = ground.laid(made.seeded[0][0], Store(setting.store), setting, aim)
    assert len(laid.steps) == 2
    method = SSD(alpha=2.0)
    scores = laid.tried(method, laid.prepared(method))
    labels = set(laid.train.subset(laid.steps[-1].union.forget).targets().tolist())
    assert labels == {3, 5}
    assert scores["tried"]["accuracy/forget"].n == len(laid.steps[-1].union.forget)


# What is made small.


def test_the_proxy_is_what_it_says_and_needs_no_retrained_model(tmp_path: Path) -> None:
    where = Setting(tmp_path / "store", device="cpu")
    made = asked(request="random=0.1", objective="unseen", seeds=[100])
    document = tune(made, setting=where, study=tmp_path / "study.db", trials=2)
    assert not (where.store / "retrained").exists()
    laid = ground.laid(made.seeded[0][0], Store(where.store), where, made.aim)
    scores = laid.tried(SSD(), laid.prepared(SSD()))
    own, before = scores["tried"], scores["original"]
    auc = abs(2 * own["membership/loss/auc"].x - 1)
    lost = [max(0.0, before[n].x - own[n].x) for n in ("accuracy/retain", "accuracy/test")]
    assert document["default_value"] == pytest.approx((auc + sum(lost)) / 3)
    assert set(document["history"][0]["lengths"][0]) == {"membership/loss/auc", "accuracy/retain", "accuracy/holdout"}
    assert all(0 <= v <= 1 for v in document["history"][0]["lengths"][0].values())
    broken = SSD(alpha=0.1, dampening=0.1)
    assert (
        np.mean(list(made.aim.lengths(laid.tried(broken, laid.prepared(broken)), "tried", laid_scales(laid)).values()))
        > (document["default_value"])
    )


def laid_scales(laid: Ground) -> dict[str, float]:
    assert laid.known is not None
    return objectives.load("unseen").scales([laid.known])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("class=3", "the untouched original treats unseen samples of that kind"),
        ("subclass:superclass=round", "the untouched original"),
        ("subject:who=*", "the untouched original"),
        ("sequential:class=3+5", "the untouched original"),
        ("mislabelled=0.1", "a model retrained without changed samples"),
        ("poison=0.1", "a model retrained without changed samples"),
    ],
)
def test_the_proxy_refuses_what_it_cannot_judge(text: str, why: str) -> None:
    with pytest.raises(UserError, match=f"'unseen' can judge, got .*{why}.*take the objective 'retrained'"):
        asked(request=text, objective="unseen")
    assert asked(request=text).objective == "retrained"


@pytest.mark.parametrize("text", ["random=0.1", "hardest=20", "single=3", "sequential=5,times=2"])
def test_the_proxy_takes_parts_of_the_training_data(text: str) -> None:
    assert asked(request=text, objective="unseen").aim.name == "unseen"


def test_tuning_without_classes_goes_by_losses(setting: Setting, tmp_path: Path) -> None:
    recipe = replace(zoo.recipe("diabetes", "mlp"), epochs=3).to_json()
    request = Request.parse("random=0.1").to_json()
    cell = Cell(data={"name": "diabetes"}, network="mlp", recipe=recipe, request=request, seed=0)
    for aim, sets in (("retrained", ("forget", "retain", "holdout")), ("unseen", ("retain", "holdout"))):
        made = Tuning(
            method="finetune", fixed={}, space={"lr": Search(1e-3, 1e-2)}, cells=[cell], seeds=[100], objective=aim
        )
        document = tune(made, setting=setting, study=tmp_path / f"{aim}.db", trials=2)
        assert set(document["history"][0]["lengths"][0]) == {"membership/loss/auc", *(f"loss/{s}" for s in sets)}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"objective": "retraind"}, "did you mean 'retrained'"),
        ({"seeds": []}, "at least one seed"),
        ({"seeds": [1, 1]}, "each seed once"),
    ],
)
def test_what_cannot_be_tuned_is_refused(given: dict[str, Any], wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        asked(**given)


# Where fields are searched.


def test_fields_declare_where_they_are_searched() -> None:
    assert spaces.space("ssd", {}) == {"alpha": Search(0.1, 100.0, log=True), "dampening": Search(0.1, 5.0, log=True)}
    assert spaces.space("lfssd", {}) == spaces.space("ssd", {})
    assert spaces.space("finetune", {}) == {"epochs": Search(1, 10, whole=True), "lr": Search(1e-4, 1e-1, log=True)}
    assert list(spaces.space("ssd", {"alpha": 3})) == ["dampening"]


def test_fields_of_the_method_that_a_composition_runs_are_searched_like_its_own() -> None:
    inner = {name: one for name, one in spaces.space("random_label", {}).items() if name != "lr"}
    found = spaces.space("salun", {"method": {"name": "random_label", "lr": 0.02}})
    assert found == {**{f"method.{name}": one for name, one in inner.items()}, "density": Search(0.1, 0.9)}
    assert list(spaces.space("pruned", {"method": "finetune"})) == ["method.epochs", "method.lr", "sparsity"]
    deep = {"method": {"name": "salun", "method": "finetune", "density": 0.5}, "sparsity": 0.9}
    assert list(spaces.space("pruned", deep)) == ["method.method.epochs", "method.method.lr"]
    ranges = ["method.lr=0.1:0.2", "method.momentum=0:0.9"]
    asked_for = spaces.space("pruned", {"method": {"name": "finetune"}}, ranges)
    assert asked_for["method.lr"] == Search(0.1, 0.2, log=True)
    assert asked_for["method.momentum"] == Search(0.0, 0.9)
    assert list(spaces.space("salun", {})) == ["density"]  # no method is named, and its own default has none


@pytest.mark.parametrize(
    ("fixed", "text", "wanted"),
    [
        ({}, "method.lr=0.1:1", "a field of salun, got 'method.lr': name the method that it runs first, as in --set"),
        (
            {"method": "salun"},
            "method.method.lr=0.1:1",
            "the method that it runs first, as in --set method.method.name=",
        ),
        ({}, "density.lr=0.1:1", "a field of salun, got 'density.lr': did you mean 'density'"),
        ({"method": "finetune"}, "method.lrr=0.1:1", "a field of salun, got 'method.lrr': did you mean 'method.lr'"),
        ({"method": {"name": "finetune", "lr": 1}}, "method.lr=0.1:1", "method.lr either fixed or searched, got both"),
        ({"method": "finetune"}, "method=ssd,finetune", "method either fixed or searched, got both"),
        ({"method": "finetune"}, "method.lr=0:1:linear", "finetune.lr above 0"),
    ],
)
def test_ranges_of_a_composition_are_held_to_the_method_it_runs(fixed: dict[str, Any], text: str, wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        spaces.space("salun", fixed, [text])


def test_a_composition_is_tuned_with_the_method_it_runs(setting: Setting, tmp_path: Path) -> None:
    fixed = {"method": {"name": "random_label", "epochs": 2}}
    made = asked("salun", fixed=fixed, seeds=[100])
    assert made.shares  # what is prepared depends on none of them
    document = tune(made, setting=setting, study=tmp_path / "study.db", trials=3)
    names = list(document["space"])
    assert {"method.lr", "density"} <= set(names)
    assert not any(name.startswith("method.epochs") for name in names)
    assert document["default"]["method"]["epochs"] == document["method"]["method"]["epochs"] == 2
    assert document["space"]["method.lr"]["symbol"] == "η"
    tried = [trial["chosen"] for trial in document["history"][1:]]
    assert all(set(one) == set(names) for one in tried)
    assert len({one["method.lr"] for one in tried}) == 2
    best = document["history"][document["best"]]["chosen"]
    again = methods.build({"name": "salun", **spaces.merged(fixed, best)})
    assert document["method"] == again.settings()
    assert document["chosen"]["method.lr"] == again.method.lr
    page = tunepage.render([document], created="now", command="")
    assert "method.lr" in page


def test_what_a_composition_prepares_is_shared_unless_a_searched_field_decides_it() -> None:
    given = {"method": {"name": "finetune", "epochs": 1}}
    assert asked("pruned", fixed={**given, "sparsity": 0.5}).shares
    assert not asked("pruned", fixed=given).shares
    inside = {"method": {"name": "ssd", "importance": "batch_mean"}}
    assert asked("salun", fixed=inside).shares
    assert not asked("salun", fixed=inside, ranges=("method.batch=8,400",)).shares


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("alpha=1:9", Search(1.0, 9.0, log=True)),
        ("alpha=1:9:linear", Search(1.0, 9.0)),
        ("epochs=2:4", Search(2.0, 4.0, whole=True)),
        ("momentum=0:0.9", Search(0.0, 0.9)),
        ("weight_decay=1e-5:1e-2:log", Search(1e-5, 1e-2, log=True)),
        ("batch_size=16:64", Search(16.0, 64.0, whole=True)),
        ("unseen=zero,skip", Search(choices=("zero", "skip"))),
        ("alpha=auto,5", Search(choices=("auto", 5))),
    ],
)
def test_a_range_takes_the_place_of_what_a_field_declares(text: str, found: Search) -> None:
    name = text.partition("=")[0]
    method = "ssd" if name in ("alpha", "unseen") else "finetune"
    assert spaces.space(method, {}, [text])[name] == found


@pytest.mark.parametrize(
    ("method", "ranges", "wanted"),
    [
        ("ssd", ["alpah=1:2"], "did you mean 'alpha'"),
        ("ssd", ["alpha"], "ranges FIELD=LOW:HIGH or FIELD=A,B,C, each field once"),
        ("ssd", ["alpha=1:2", "alpha=1:3"], "each field once"),
        ("ssd", ["alpha=2:1"], "finite LOW < HIGH, both above 0"),
        ("ssd", ["alpha=0:1"], "both above 0"),
        ("ssd", ["alpha=-1:1:linear"], "ssd.alpha of 0 or more"),
        ("ssd", ["alpha=a:b"], "numbers LOW:HIGH"),
        ("ssd", ["alpha=1:2:lin"], "'log' or 'linear'"),
        ("ssd", ["alpha=5"], "two choices or more"),
        ("ssd", ["alpha=5,5"], "two choices or more"),
        ("ssd", ["unseen=zero,keep"], "fits ssd.unseen"),
        ("finetune", ["epochs=1:2.5"], "whole numbers"),
        ("finetune", ["epochs=0:3"], "finetune.epochs of 1 or more"),
        ("ssd", ["dampening=1:2"], "dampening either fixed or searched"),
        ("retrain", [], "retrain, which declares none: take another method"),
        ("head_mask", [], "head_mask, which declares none: name one with --range"),
        ("sdd", [], "did you mean 'ssd'"),
    ],
)
def test_ranges_that_are_none_are_refused(method: str, ranges: list[str], wanted: str) -> None:
    fixed = {"dampening": 1.0} if ranges == ["dampening=1:2"] else {}
    with pytest.raises(UserError, match=wanted):
        spaces.space(method, fixed, ranges)


def test_nothing_left_to_search_is_told() -> None:
    with pytest.raises(UserError, match="ssd, whose are all fixed"):
        spaces.space("ssd", {"alpha": 1, "dampening": 1})


# Trials.


def test_a_trial_worse_than_the_median_is_given_up_but_never_the_default(tmp_path: Path) -> None:
    space, values = {"x": Search(0.0, 1.0)}, [9.0, 1.0, 1.0, 1.0, 1.0]
    with study.opened(tmp_path / "study.db", "any", {}, space, {"x": "auto"}, 0) as room:
        for value in values:
            running = room.ask()
            assert (running.chosen == {}) == (running.number == 0)
            assert not running.hopeless(value, 0)
            running.finish({"values": [value]}, value)
        worse, better = room.ask(), None
        assert worse.hopeless(2.0, 0)
        worse.finish({"values": [2.0]}, None)
        better = room.ask()
        assert not better.hopeless(0.5, 0)
        better.finish({"values": [0.5]}, 0.5)
        states = [(t.state, t.value) for t in room.finished()]
    assert states == [("complete", v) for v in values] + [("pruned", 2.0), ("complete", 0.5)]


def test_later_trials_gather_where_values_are_small(tmp_path: Path) -> None:
    space = {"x": Search(0.01, 100.0, log=True), "y": Search(0.0, 1.0)}
    with study.opened(tmp_path / "study.db", "any", {}, space, {"x": 1.0, "y": 5.0}, 3) as room:
        for _ in range(40):
            running = room.ask()
            x = running.chosen["x"]
            running.finish({}, abs(np.log10(x) + 1) + 0.01)
        found = room.finished()
        weight = room.importance()
    assert found[0].chosen == {"x": 1.0}  # the default, where it is inside; 5 is outside the range of y
    off = [abs(np.log10(t.chosen["x"]) + 1) for t in found]
    assert np.median(off[-15:]) < 0.5 * np.median(off[1:11])
    assert weight["x"] > 2 * weight["y"]


def test_whole_numbers_and_choices_are_drawn_as_such(tmp_path: Path) -> None:
    space = {"epochs": Search(1, 3, whole=True), "how": Search(choices=("zero", "skip"))}
    with study.opened(tmp_path / "study.db", "any", {}, space, {"epochs": 2, "how": "skip"}, 0) as room:
        for _ in range(12):
            running = room.ask()
            running.finish({}, 1.0)
        drawn = [t.chosen for t in room.finished()]
    assert drawn[0] == {"epochs": 2, "how": "skip"}
    assert {d["epochs"] for d in drawn} == {1, 2, 3}
    assert {d["how"] for d in drawn} == {"zero", "skip"}
    assert all(isinstance(d["epochs"], int) for d in drawn)


# The document.


def test_a_grid_takes_the_chosen_settings_from_the_file(found: dict[str, Any], tmp_path: Path) -> None:
    tuning.save(tmp_path / "ssd.json", found)
    (tmp_path / "grid.toml").write_text(
        'data = ["digits"]\nscenarios = ["class=3"]\n[methods.ssd]\ntuned = "ssd.json"\n'
        '[methods.other]\nname = "ssd"\nalpha = 2.5\n'
    )
    asked_for = grid.load(tmp_path / "grid.toml")
    assert asked_for.methods["ssd"] == found["method"]
    assert asked_for.tuned["ssd"]["seeds"] == list(SEEDS)
    assert not set(asked_for.seeds) & set(SEEDS)


def test_requests_on_a_named_data_set() -> None:
    one, two = tuning.cells("digits", None, ["class=3", "random=0.05", "class=3"])
    assert (one.network, one.recipe) == ("convnet", zoo.recipe("digits", "convnet").to_json())
    assert [c.asked for c in (one, two)] == [Request("class", 3), Request("random", 0.05)]
    with pytest.raises(UserError, match="did you mean 'digits'"):
        tuning.cells("digit", None, ["class=3"])
    with pytest.raises(UserError, match="did you mean 'mlp'"):
        tuning.cells("digits", "mpl", ["class=3"])
    with pytest.raises(UserError, match="a request KIND=VALUE"):
        tuning.cells("digits", "mlp", ["3"])


def test_a_problem_without_holdout_cannot_be_tuned_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    real = zoo.load
    monkeypatch.setattr(zoo, "load", lambda *a, **k: replace(real(*a, **k), holdout=None))
    with pytest.raises(UserError, match="a holdout set of digits to tune on"):
        tune(asked(seeds=[100]), setting=Setting(tmp_path / "store"), study=tmp_path / "study.db", trials=1)
