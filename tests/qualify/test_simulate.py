"""Simulated requests on a tiny pool: the models behind every row, controls, stores of other pools, interruptions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from benches import FORK
from expunge import zoo
from expunge.bench import stages, workers
from expunge.bench.cell import Task
from expunge.bench.stages import MODEL, Setting
from expunge.bench.store import versions
from expunge.data import Data
from expunge.errors import Declined, Incompatible, UserError
from expunge.evidence import collect
from expunge.methods import build
from expunge.methods.head_mask import HeadMask
from expunge.originals import original
from expunge.qualify import simulate as simulations
from expunge.qualify.asked import Asked
from expunge.qualify.simulate import Pool, Simulated, simulate
from expunge.qualify.trials import PARTS, Gaps
from expunge.runtime import Runtime
from expunge.scenario import forget_ids
from expunge.shadows import draw
from expunge.steps import Step
from expunge.trial import APART, Request, handled

T = 8
RECIPE = replace(zoo.recipe("digits", "mlp"), epochs=1).to_json()
DATA: Mapping[str, Any] = {"name": "digits", "limit": 150}


def of(path: Path, **changes: Any) -> Pool:
    given: dict[str, Any] = {"data": DATA, "network": "mlp", "recipe": RECIPE, "setting": Setting(path), "models": T}
    return Pool(**(given | changes))


def ended(stages_of: list[str]) -> Callable[..., None]:
    """Return a listener that keeps the stage of each task that ended."""
    return lambda task, outcome, over, of: stages_of.append(f"{task.stage} {outcome}")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    found = of(tmp_path_factory.mktemp("pool"))
    found.check()
    found.train_all()
    return found


def ask(pool: Pool, text: str, **method: Any) -> Simulated:
    return simulate(pool, Asked.parse(text), build(method).settings())


def half(pool: Pool, t: int) -> Data:
    """Return the half of a model, by hand."""
    seen = draw(pool.train.ids, T, 0)[t]
    return pool.train.subset([i for i, s in zip(pool.train.ids, seen, strict=True) if s])


def margins(pool: Pool, model: nn.Module, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Return margin and accuracy from the logits, sample by sample."""
    said = collect(model, pool.problem.task, data, runtime=Runtime(progress=False))
    assert said.target is not None
    scores, right = [], []
    for row, label in zip(said.outputs.double().numpy(), said.target.tolist(), strict=True):
        others = np.delete(row, label)
        scores.append(row[label] - np.log(np.exp(others - others.max()).sum()) - others.max())
        right.append(int(row.argmax()) == label)
    return np.array(scores), np.array(right)


def retrained(pool: Pool, t: int, gone: list[str], seed: int) -> nn.Module:
    """Return the half's model, retrained without some samples, in one go."""
    data, problem = half(pool, t), replace(pool.problem, train=half(pool, t))
    runtime = Runtime(progress=False)
    case = forget_ids(data, gone, holdout=problem.holdout, test=problem.test)
    common: dict[str, Any] = {"recipe": problem.recipe, "new_model": problem.new_model, "runtime": runtime}
    first = original(problem, data, runtime=runtime, seed=t)
    method = build({"name": "retrain"})
    done = handled(method, first, problem, data, [Step(case, case)], seed=seed, holdout=problem.holdout, **common)
    return done.model


def ids(pool: Pool, mask: np.ndarray) -> list[str]:
    return [i for i, m in zip(pool.train.ids, mask, strict=True) if m]


def same(one: Gaps, other: Gaps) -> bool:
    pairs = [(getattr(one, n), getattr(other, n)) for n in ("gap", "z", "accuracy")]
    return all(np.array_equal(a[p], b[p], equal_nan=True) for a, b in pairs for p in PARTS)


def test_the_pool_is_of_originals_on_halves(pool: Pool) -> None:
    n = len(pool.train)
    assert (pool.seen == draw(pool.train.ids, T, 0)).all()
    assert pool.originals.kept.shape == (T, n)
    for t in (0, 5):
        model = original(replace(pool.problem, train=half(pool, t)), half(pool, t), seed=t)
        score, right = margins(pool, model, pool.train)
        assert pool.originals.train[t] == pytest.approx(score, abs=1e-4)
        assert pool.originals.right is not None
        assert (pool.originals.right[t] == right).all()
        assert pool.problem.test is not None
        assert pool.originals.test[t] == pytest.approx(margins(pool, model, pool.problem.test)[0], abs=1e-4)
    assert (pool.originals.train[0] != pool.originals.train[5]).any()


def test_random_samples_stand_against_the_pool_itself(pool: Pool) -> None:
    found = ask(pool, "random=1", name="no_op")
    (trials,) = found.trials
    assert found.steps == (1,)
    assert (trials.forget.sum(axis=1) == 1).all()
    assert not (trials.forget & ~pool.seen).any()
    assert (trials.unlearned.kept == (pool.seen & ~trials.forget)).all()
    assert trials.reference is pool.originals
    assert (trials.retrained.train == pool.originals.train[[1, 0, 3, 2, 5, 4, 7, 6]]).all()
    assert not (trials.retrained.kept & trials.forget).any()
    assert trials.stands is None
    assert found.against == "pool"
    assert found.masked is None
    assert "masks one class" in found.unmasked
    assert found.cost["retrained"] == 0


def test_no_op_leaves_the_gaps_of_the_originals(pool: Pool) -> None:
    (trials,) = ask(pool, "random=3", name="no_op").trials
    assert (trials.unlearned.train == trials.original.train).all()
    assert same(trials.unlearned_gaps, trials.gaps(trials.original))
    assert not same(trials.unlearned_gaps, trials.retrained_gaps)


def test_retrain_as_a_method_is_a_model_of_the_half_without_the_samples(pool: Pool) -> None:
    (trials,) = ask(pool, "random=3", name="retrain").trials
    for t in (1, 6):
        model = retrained(pool, t, ids(pool, trials.forget[t]), seed=t)
        score, _ = margins(pool, model, pool.train)
        assert trials.unlearned.train[t] == pytest.approx(score, abs=1e-4)
    assert (trials.unlearned.train != trials.original.train).any(axis=1).all()


def test_a_class_has_retrained_models_of_its_own_and_a_masked_control(pool: Pool) -> None:
    found = ask(pool, "class=3", name="ssd")
    (trials,) = found.trials
    threes = pool.train.targets().numpy() == 3
    assert (trials.forget == (pool.seen & threes)).all()
    assert trials.retrained is trials.reference
    assert (trials.reference.kept == (pool.seen & ~threes)).all()
    score, _ = margins(pool, retrained(pool, 2, ids(pool, trials.forget[2]), seed=2 + APART), pool.train)
    assert trials.retrained.train[2] == pytest.approx(score, abs=1e-4)
    counts = trials._counts["forget"]
    assert (counts[:, threes] == T - 2).all()  # no retrained model saw any sample of the class
    assert found.masked is not None
    assert found.unmasked == ""
    assert found.masked.right is not None
    assert pool.originals.right is not None
    assert not found.masked.right[:, threes].any()
    assert pool.originals.right[:, threes].any()  # or nothing was masked
    assert (found.masked.right >= pool.originals.right)[:, ~threes].all()
    assert (found.masked.kept == trials.unlearned.kept).all()
    again = [pool.cell(t, Request("class", 3)).task("retrained", 1, 1) for t in range(T)]
    assert found.cost["retrained"] == pytest.approx(sum(pool.store.finished(task)["seconds"] for task in again))
    assert found.cost["retrained"] > 0
    tasks = [pool.cell(t, Request("class", 3), build({"name": "ssd"}).settings()) for t in range(T)]
    edits = [pool.store.read(cell.task("unlearned", 1), "result.json")["seconds"] for cell in tasks]
    assert found.seconds == pytest.approx(np.mean(edits))


def test_the_masked_control_is_one_cell_whatever_the_method(pool: Pool) -> None:
    beside = pool.cell(0, Request("class", 3), build({"name": "ssd"}).settings()).with_method(simulations.MASK)
    alone = pool.cell(0, Request("class", 3), simulations.MASK)
    assert beside.task("answered", 1).key == alone.task("answered", 1).key
    told: list[str] = []
    ask(replace(pool, told=ended(told)), "class=3", name="ssd")
    told.clear()
    ask(replace(pool, told=ended(told)), "class=3", name="no_op")
    made = [each for each in told if each != "prepared done"]  # which other requests may share
    assert sorted(made) == ["answered done"] * T + ["unlearned done"] * T


def test_requests_in_a_row_are_nested_and_asked_at_each_doubling(pool: Pool) -> None:
    found = ask(pool, "random=3,times=3", name="no_op")
    assert found.steps == (1, 2, 3)
    sizes = [trials.forget.sum(axis=1).tolist() for trials in found.trials]
    assert sizes == [[3] * T, [6] * T, [9] * T]
    for before, after in zip(found.trials, found.trials[1:], strict=False):
        assert not (before.forget & ~after.forget).any()
    for t in (0, 3):
        parts = Request("sequential", 3, times=3).parts(replace(pool.problem, train=half(pool, t)), t)
        for step, trials in zip(found.steps, found.trials, strict=True):
            gone = {i for part in parts[:step] for i in part}
            assert set(ids(pool, trials.forget[t])) == gone
            assert set(ids(pool, trials.unlearned.kept[t])) == set(half(pool, t).ids) - gone
    assert simulations._steps(10) == (1, 2, 4, 8, 10)
    assert simulations._steps(8) == (1, 2, 4, 8)


def test_near_duplicates_stand_only_beside_models_that_hold_the_twin(pool: Pool) -> None:
    (trials,) = ask(pool, "near-duplicates=0.1", name="no_op").trials
    assert trials.retrained is trials.reference
    assert trials.stands is not None
    twin, kept = pool.drawing._nearest[1], trials.reference.kept
    assert (kept == (pool.seen & ~trials.forget)).all()
    for t, x in np.argwhere(trials.forget):
        assert kept[t, twin[x]]
        assert not kept[t, x]
    for r, x in [(0, 0), (3, 17), (7, 99)]:
        assert trials.stands[r, x] == (not kept[r, x] and kept[r, twin[x]])


def test_near_duplicates_on_too_few_models_are_refused_with_how_many_more(pool: Pool) -> None:
    with pytest.raises(UserError, match="3 or more models that never saw .* got as few as 1 .* train 4 or more"):
        ask(pool, "near-duplicates=2", name="no_op")


def test_a_method_that_declines_says_why_each_time(pool: Pool) -> None:
    for _ in range(2):
        with pytest.raises(Declined, match="it masks one class, and the forget set is of kind 'ids'"):
            ask(pool, "random=3", name="head_mask")


def test_a_mask_that_declines_leaves_the_trials_and_its_reason(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HeadMask, "declines", lambda self, task, scenario, model: "it has no head to mask")
    found = ask(pool, "class=5", name="no_op")
    assert found.masked is None
    assert found.unmasked == "it has no head to mask"
    assert len(found.trials) == 1


def test_what_fails_is_said(pool: Pool) -> None:
    with pytest.raises(UserError, match="all tasks done, got 8 of .* tasks failed, the first: .*class"):
        ask(pool, "class=12", name="no_op")
    with pytest.raises(UserError, match="at most 37 samples.*got random 40, 40 samples"):
        ask(pool, "random=40", name="no_op")


@pytest.mark.parametrize("models", [7, 9, 6, 2, 0])
def test_pools_come_in_pairs(tmp_path: Path, models: int) -> None:
    with pytest.raises(UserError, match=f"even number of models, 8 or more.* got {models}"):
        of(tmp_path, models=models)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"recipe": RECIPE | {"lr": 0.3}}, r"one of recipe lr 0.* instead of 0.3"),
        ({"seed": 1}, "one of seed 0 instead of 1"),
        ({"data": {"name": "digits", "limit": 140}}, "other samples"),
        ({"network": "other"}, "one of network 'mlp' instead of 'other'"),
        ({"precision": "bf16"}, "one of precision 'full' instead of 'bf16'"),
    ],
)
def test_the_store_of_another_pool_is_refused(pool: Pool, changes: dict[str, Any], match: str) -> None:
    if "precision" in changes:
        changes = {"setting": replace(pool.setting, precision="bf16")}
    other = of(pool.setting.store, **changes)
    if "network" in changes:
        vars(other)["problem"] = pool.problem  # no such network, the name alone differs
    with pytest.raises(Incompatible, match=match):
        other.check()
    pool.check()  # itself is still welcome
    of(pool.setting.store, models=T + 2).check()


def test_the_store_of_another_version_is_refused(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    real = versions()
    monkeypatch.setattr(simulations, "versions", lambda: real | {"python": "2.7"})
    pool.check()
    monkeypatch.setattr(simulations, "versions", lambda: real | {"torch": "0.1"})
    with pytest.raises(Incompatible, match="one of versions torch '.*' instead of '0.1'"):
        pool.check()


@pytest.mark.parametrize("part", ["train", "test"])
def test_other_samples_under_the_same_name_are_refused(pool: Pool, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    real = zoo.load

    def changed(*args: Any, **keywords: Any) -> zoo.Problem:
        problem = real(*args, **keywords)
        data = getattr(problem, part)
        return replace(problem, **{part: data.subset(list(reversed(data.ids)))})

    monkeypatch.setattr(zoo, "load", changed)
    with pytest.raises(Incompatible, match="other samples"):
        of(pool.setting.store).check()


def bits(pool: Pool, stage: str = "answered", file: str = "answers.safetensors") -> dict[str, bytes]:
    return {p.parent.name: p.read_bytes() for p in (pool.setting.store / stage).glob(f"*/{file}")}


def test_interrupted_and_resumed_it_comes_to_the_same_bits(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    broken = [("trained", 3), ("answered", 6), ("unlearned", 2), ("answered", 12)]

    def counted(name: Any, real: Any) -> Any:
        def stage(work: stages.Work) -> Any:
            if broken and broken[0] == (name, done.count(name)):
                broken.pop(0)
                raise KeyboardInterrupt
            made = real(work)
            done.append(name)
            return made

        return stage

    for name, real in list(stages._STAGES.items()):
        monkeypatch.setitem(stages._STAGES, name, counted(name, real))

    def go() -> Simulated:
        mine = of(tmp_path)
        mine.check()
        mine.train_all()
        return ask(mine, "random=1", name="no_op")

    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            go()
    found = go()
    assert broken == []
    assert (done.count("trained"), done.count("unlearned"), done.count("answered")) == (T, T, 2 * T)
    whole = ask(pool, "random=1", name="no_op")
    assert same(found.trials[0].unlearned_gaps, whole.trials[0].unlearned_gaps)
    ours, theirs = bits(of(tmp_path)), bits(pool)
    assert len(ours) == 2 * T
    assert all(theirs[key] == value for key, value in ours.items())


def test_a_larger_pool_begins_with_the_models_and_requests_of_the_smaller(pool: Pool) -> None:
    before = ask(pool, "random=1", name="no_op")
    told: list[str] = []
    more = of(pool.setting.store, models=T + 2, told=ended(told))
    more.train_all()
    assert sorted(told) == ["answered done"] * 2 + ["trained done"] * 2
    told.clear()
    after = ask(more, "random=1", name="no_op")
    assert sorted(set(told)) == ["answered done", "drawn done", "prepared done", "unlearned done"]
    assert len(told) == 8
    assert (after.trials[0].forget[:T] == before.trials[0].forget).all()
    assert (after.trials[0].unlearned.train[:T] == before.trials[0].unlearned.train).all()


def test_two_workers_come_to_the_same_bits(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_SPAWN", FORK)
    two = of(tmp_path, workers=2)
    two.train_all()
    ours, theirs = ask(two, "random=1", name="no_op"), ask(pool, "random=1", name="no_op")
    assert same(ours.trials[0].unlearned_gaps, theirs.trials[0].unlearned_gaps)
    found, want = bits(two, "trained", MODEL), bits(pool, "trained", MODEL)
    assert len(found) == T
    assert all(want[key] == value for key, value in found.items())


def test_answers_need_no_second_look_at_what_is_done(pool: Pool) -> None:
    told: list[str] = []
    ask(pool, "random=1", name="no_op")
    fresh = of(pool.setting.store, told=ended(told))
    fresh.train_all()
    ask(fresh, "random=1", name="no_op")
    assert told == []
    task: Task = fresh.answered(0)
    assert pool.store.status(task) == "done"


@pytest.mark.parametrize("text", ["random=1", "class=3"])
def test_models_retrained_by_a_varied_recipe_stand_beside(pool: Pool, text: str) -> None:
    varied = replace(pool, variants={"batch size 16": {"batch_size": 16}})
    found = ask(varied, text, name="no_op")
    assert list(found.legitimate) == ["batch size 16"]
    other, trials = found.legitimate["batch size 16"], found.trials[0]
    assert len(other) == T
    assert not (other.kept & trials.forget).any()
    assert not np.array_equal(other.train, trials.retrained.train)
    assert found.cost["retrained"] > ask(pool, text, name="no_op").cost["retrained"]  # their training is paid for too
    assert ask(pool, text, name="no_op").legitimate == {}
