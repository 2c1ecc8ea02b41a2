"""SISA: a request leaves what training without its samples would have given, to the bit, and nothing of theirs."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from expunge.data import Data, id_hashes
from expunge.errors import CorruptArtefact, Declined, Incompatible, MissingNeed, UserError
from expunge.exact.book import samples_digest
from expunge.exact.ensemble import Ensemble
from expunge.method import State
from expunge.methods import build, load, sisa
from expunge.plan import plan
from expunge.recipe import Recipe
from expunge.runtime import Runtime
from expunge.task import Classification, Regression
from expunge.tensors import weights_digest
from expunge.train import fresh
from expunge.unlearn import prepare, serve, unlearn

TASK = Classification()
QUIET = Runtime(progress=False, device="cpu", batch_size=16)
RECIPE = Recipe(epochs=2, lr=0.05, batch_size=7)
SISA = load("sisa")(shards=2, slices=3, stage_epochs=1)
IDS = [f"train/{i}" for i in range(48)]


def network():
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))


def data(**columns):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 3, generator=generator)
    return Data.from_arrays(x, (x[:, 0] > 0).long(), columns=columns)


TRAIN = data()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return network().eval()


def made(model, train=TRAIN, method=SISA, **other):
    return prepare(method, model, TASK, train=train, **{"recipe": RECIPE, "runtime": QUIET, **other})


@pytest.fixture(scope="module")
def ready(model):
    return made(model)


def forget(now, ids, retain=True, *, method=SISA, **other):
    """Forget some samples, with all that stay then as retain data where asked for."""
    record = book(now.state)
    stay = [i for i, request in zip(IDS, record.gone[record.rows(IDS)], strict=True) if not request and i not in ids]
    rest = TRAIN.subset(stay) if retain is True else retain
    given = {"retain": rest, "recipe": RECIPE} if retain else {}
    return unlearn(method, now.model, TASK, forget=list(ids), state=now.state, **{"runtime": QUIET, **given, **other})


def book(state):
    return SISA.book(state)


def of(state, shard, slices):
    """Return the ids in some slices of a shard."""
    record = book(state)
    stay = [i for i, request in zip(IDS, record.gone[record.rows(IDS)], strict=True) if not request]
    return [i for i, s, p in zip(stay, *record.place(stay), strict=True) if s == shard and p in slices]


def stages(state):
    return {name: state.tensors[name] for name in state.tensors if name.startswith("stage/")}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@given(st.lists(st.lists(st.sampled_from(IDS), min_size=1, max_size=4), min_size=1, max_size=3))
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_requests_leave_what_training_without_their_samples_gives(model, ready, requests):
    now, gone = ready, []
    for request in requests:
        ids = [i for i in dict.fromkeys(request) if i not in gone]
        if ids:
            now = forget(now, ids)
            gone += ids
    left = book(ready.state).at[~np.isin(book(ready.state).id, id_hashes(book(ready.state).key, gone))]
    assume(len(np.unique(left)) == 6)
    without = made(model, TRAIN.without(gone))
    assert weights_digest(now.model) == weights_digest(without.model)
    assert same(stages(now.state), stages(without.state))
    record = book(now.state)
    record.check()
    assert not (record.closure(record.plan()) & (record.gone > 0)).any()


def test_without_retain_data_the_stage_before_answers_as_it_was(model, ready):
    gone = of(ready.state, 1, [1])[:1]
    done = forget(ready, gone, retain=False)
    assert book(done.state).plan() == (((0, 1, 2), 3), ((0, 1, 2), 1))
    kept = {k.removeprefix("stage/1/0/"): v for k, v in stages(ready.state).items() if k.startswith("stage/1/0/")}
    state = done.model.members["1"].state_dict()
    assert all(torch.equal(state[k], v) for k, v in kept.items())
    assert weights_digest(done.model.members["0"]) == weights_digest(ready.model.members["0"])
    assert done.log["samples_processed"] == 0
    assert "Stages that are served, of 3, by shard: 3, 1." in done.note
    without = made(model, TRAIN.without(gone))
    assert all(torch.equal(stages(without.state)[f"stage/1/0/{k}"], v) for k, v in kept.items())
    x = TRAIN.read(range(48)).inputs
    assert not torch.equal(ready.model(x), without.model(x)), "the sample decides the full depth"
    one = book(without.state).stages["1/0-1"].tensors
    assert one != book(ready.state).stages["1/0-1"].tensors


def test_what_was_lost_is_trained_anew_once_retain_data_is_there(model, ready):
    first, second = of(ready.state, 1, [1])[0], of(ready.state, 0, [2])[0]
    now = forget(ready, [first], retain=False)
    now = forget(now, [second])
    without = made(model, TRAIN.without([first, second]))
    assert weights_digest(now.model) == weights_digest(without.model)
    assert sorted(now.log["retrained"]) == ["0/0-1-2", "1/0-1", "1/0-1-2"]


def test_requests_commute_and_none_is_taken_twice(ready):
    ids = [of(ready.state, s, [j])[0] for s, j in ((0, 2), (1, 1), (0, 1))]
    method = replace(SISA, retrain=False)
    found = set()
    for order in (ids, ids[::-1]):
        now = ready
        for one in order:
            now = forget(now, [one], method=method)
        found.add(weights_digest(now.model))
    found.add(weights_digest(forget(ready, ids, method=method).model))
    assert len(found) == 1
    with pytest.raises(UserError, match="ids that are still to be forgotten, got already forgotten"):
        forget(now, ids[:1], method=method)
    with pytest.raises(UserError, match="ids of the prepared training data, got unknown x"):
        forget(now, ["x"], method=method, retain=False)


def test_a_request_leaves_the_other_shards_bytes_as_they_were(ready):
    done = forget(ready, of(ready.state, 0, [0])[:2])
    before, after = (
        {k: v for k, v in stages(s).items() if k.startswith("stage/1/")} for s in (ready.state, done.state)
    )
    assert same(before, after)
    assert all(book(ready.state).stages[n] == book(done.state).stages[n] for n in ("1/0", "1/0-1", "1/0-1-2"))


def test_the_samples_that_training_reads_are_those_of_the_manifest(model, monkeypatch):
    seen = []

    def logged(start, task, part, recipe, **rest):
        watched = part.watched()
        found = fit(start, task, watched, recipe, **rest)
        seen.append(sorted(set(watched.ids) - set(watched.unread)))
        assert part.ids == sorted(part.ids)
        return found

    fit = sisa.fit
    monkeypatch.setattr(sisa, "fit", logged)
    now = made(model)
    gone = of(now.state, 0, [1])[:1]
    now = forget(now, gone)
    record = book(now.state)
    lines = [line for line in record.manifest if line["entry"] in ("trained", "retrained")]
    assert [line["samples"] for line in lines] == [samples_digest(id_hashes(record.key, ids)) for ids in seen]
    assert [line["n"] for line in lines] == [len(ids) for ids in seen]
    assert [line["entry"] for line in lines] == ["trained"] * 6 + ["retrained"] * 2
    assert all(gone[0] not in ids for ids in seen[6:])


def test_a_planted_sample_is_in_no_stage_that_is_kept(model, tmp_path):
    now = made(model)
    canary = of(now.state, 1, [0])[0]
    done = forget(now, [canary], retain=False)
    assert list(done.model.members) == ["0"]
    assert "Shard 1 has no clean stage left and is out of the ensemble." in done.note
    done.state.save(tmp_path / "state")
    kept = {k.split("/")[1] for k in State.load(tmp_path / "state").tensors if k.startswith("stage/")}
    assert kept == {"0"}
    record, row = book(done.state), book(done.state).rows([canary])
    assert record.content[row] == 0
    assert not record.closure(record.plan())[row]
    assert [s.status for s in record.stages.values() if s.shard == 1] == ["purged"] * 3


def test_what_batchnorm_counted_goes_back_with_the_stage(ready):
    gone = of(ready.state, 0, [1])[:1]
    done = forget(ready, gone, retain=False)
    assert done.model.members["0"][1].num_batches_tracked < ready.model.members["0"][1].num_batches_tracked
    names = {k.split("/", 3)[3] for k in stages(ready.state)}
    assert names == set(network().state_dict()), "weights and buffers alone: no optimiser outlives its stage"


def test_early_stopping_and_masks_are_refused(model):
    with pytest.raises(UserError, match="a recipe without early stopping for sisa, got patience=2"):
        made(model, recipe=replace(RECIPE, patience=2), holdout=TRAIN.subset(IDS[:0]))
    salun = build({"name": "salun", "method": {"name": "sisa"}})
    with pytest.raises(Declined, match="sisa trains anew"):
        unlearn(salun, model, TASK, forget=TRAIN.subset(IDS[:2]), retain=TRAIN.without(IDS[:2]), recipe=RECIPE)


def test_a_dead_shard_or_all_of_them_ask_for_retain_data_and_recipe(ready, model):
    strict = replace(SISA, failure="first", retrain=False)
    now = made(model, method=strict)
    gone = of(now.state, 0, [0])[:1]
    with pytest.raises(MissingNeed, match="retain and recipe for sisa, because shard 0 has no clean stage left"):
        forget(now, gone, method=strict, retain=False)
    done = forget(now, gone, method=strict)
    assert weights_digest(done.model) == weights_digest(made(model, TRAIN.without(gone), strict).model)
    assert done.log["retrained"] == ["0/0", "0/0-1", "0/0-1-2"]
    lax = replace(SISA, retrain=False)
    first = forget(ready, gone, method=lax)
    assert first.log["retrained"] == []
    other = of(ready.state, 1, [0])[:1]
    with pytest.raises(
        MissingNeed, match="because no shard has a clean stage left, got none: pass retain= and recipe="
    ):
        forget(first, other, method=lax, retain=False)
    both = forget(first, other, method=lax)
    assert weights_digest(both.model) == weights_digest(made(model, TRAIN.without([*gone, *other]), lax).model)


def test_retain_data_and_recipe_are_held_to_what_was_prepared(ready):
    gone = of(ready.state, 0, [1])[:1]
    rest = TRAIN.without(gone)
    short = rest.without(of(ready.state, 0, [2])[:2])
    with pytest.raises(UserError, match="retain data with all .* samples that stay in shard 0, got 2 fewer"):
        forget(ready, gone, short)
    forget(ready, gone, rest.without(of(ready.state, 1, [2])[:2]))
    x, y = TRAIN.read(range(48)).inputs.clone(), TRAIN.targets()
    x[IDS.index(of(ready.state, 0, [2])[0])] += 1
    other = Data.from_arrays(x, y).without(gone)
    with pytest.raises(UserError, match="other content under train/"):
        forget(ready, gone, other)
    with pytest.raises(Incompatible, match="the recipe that sisa was prepared with, got another"):
        forget(ready, gone, rest, recipe=replace(RECIPE, lr=0.1))
    with pytest.raises(Incompatible, match="a state of sisa with slices=2, got one with slices=3"):
        forget(ready, gone, method=replace(SISA, slices=2))


def test_other_weights_of_the_samples_are_other_content(model):
    x, y = TRAIN.read(range(48)).inputs, TRAIN.targets()
    heavy = Data.from_arrays(x, y, weight=[2.0] * 48)
    now = made(model, heavy)
    gone = of(now.state, 0, [1])[:1]
    with pytest.raises(UserError, match=r"got other content under train/.*: pass .* with their weights"):
        forget(now, gone, TRAIN.without(gone))
    done = forget(now, gone, heavy.without(gone))
    assert weights_digest(done.model) == weights_digest(made(model, heavy.without(gone)).model)


def test_a_shard_with_a_single_sample_cannot_train_batchnorm_and_does_not_answer(ready):
    one = of(ready.state, 0, [1])[0]
    rest = of(ready.state, 1, [0, 1, 2])
    done = forget(ready, [i for i in IDS if i != one and i not in rest])
    assert list(done.model.members) == ["1"]
    assert {s.steps for s in book(done.state).stages.values() if s.shard == 0} == {0}
    assert book(done.state).dead() == []
    with pytest.raises(UserError, match="a shard with something left to serve, got none: prepare anew, on more"):
        forget(ready, [i for i in IDS if i not in (one, rest[0])])


def test_another_task_is_refused_since_shards_would_answer_in_another_way(ready):
    with pytest.raises(Incompatible, match="the task that sisa was prepared with, got another"):
        unlearn(SISA, ready.model, Regression(), forget=IDS[:1], state=ready.state, runtime=QUIET)


class Remembering(Classification):
    """A task that keeps what it saw, which the next shard would learn from."""

    def loss(self, outputs, target):
        object.__setattr__(self, "seen", getattr(self, "seen", 0) + len(target))
        return super().loss(outputs, target)


def test_a_task_that_carries_values_from_stage_to_stage_is_refused(model):
    with pytest.raises(UserError, match="a task that keeps nothing of what it sees, got one that training changed"):
        prepare(SISA, model, Remembering(), train=TRAIN, recipe=RECIPE, runtime=QUIET)


@pytest.mark.parametrize("at", [1, 4, 6])
def test_a_kill_during_training_resumes_to_the_same_bits(model, ready, tmp_path, monkeypatch, at):
    calls, fit = [], sisa.fit

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return fit(*args, **kwargs)

    monkeypatch.setattr(sisa, "fit", dying)
    there = replace(QUIET, workdir=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        made(model, runtime=there)
    again = made(model, runtime=there)
    assert weights_digest(again.model) == weights_digest(ready.model)
    assert book(again.state).manifest == book(ready.state).manifest
    assert len(calls) == 6 + 1
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_or_foreign_checkpoint_is_not_taken(model, ready, tmp_path, monkeypatch):
    fit, there = sisa.fit, replace(QUIET, workdir=tmp_path)
    calls = []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return fit(*args, **kwargs)

    monkeypatch.setattr(sisa, "fit", dying)
    with pytest.raises(KeyboardInterrupt):
        made(model, runtime=there)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    body = bytearray(files[0].read_bytes())
    body[-3] ^= 1
    files[0].write_bytes(bytes(body))
    again = made(model, runtime=there)
    assert weights_digest(again.model) == weights_digest(ready.model)
    assert len(calls) == 4 + 4
    calls.clear()
    monkeypatch.setattr(sisa, "fit", dying)
    with pytest.raises(KeyboardInterrupt):
        made(model, runtime=there)
    other = replace(RECIPE, lr=0.1)
    assert weights_digest(made(model, runtime=there, recipe=other).model) == weights_digest(
        made(model, recipe=other).model
    )


def test_a_state_on_disk_serves_and_goes_on(ready, tmp_path):
    gone = of(ready.state, 0, [2])[:1]
    done = forget(ready, gone)
    done.state.save(tmp_path / "s.safetensors")
    state = State.load(tmp_path / "s.safetensors")
    stored = SISA.served_from(done.model)
    assert not isinstance(stored, Ensemble)
    served = serve(SISA, stored, state)
    assert weights_digest(served) == weights_digest(done.model)
    more = of(done.state, 1, [0])[:1]
    again = unlearn(SISA, served, TASK, forget=more, state=state, runtime=QUIET)
    assert weights_digest(again.model) == weights_digest(forget(done, more, retain=False).model)
    with torch.no_grad():
        stored[0].weight += 1
    with pytest.raises(Incompatible, match="the weights the state belongs to"):
        serve(SISA, stored, state)


def test_a_state_whose_stages_are_others_is_found_out(ready):
    state = ready.state
    some = next(k for k in state.tensors if k.startswith("stage/0/0-1/"))
    wrong = State({**state.tensors, some: state.tensors[some] + 1}, state.meta)
    with pytest.raises(CorruptArtefact, match="the tensors of stage 0/0-1, got others than were trained"):
        SISA.serve(network(), replace(wrong, tensors={k: v for k, v in wrong.tensors.items() if True}))
    less = state.drop([k for k in state.tensors if k.startswith("stage/1/0-1-2/")])
    with pytest.raises(CorruptArtefact, match="tensors of every live stage and no other, got others under 1/0-1-2"):
        SISA.serve(network(), less)
    with pytest.raises(Incompatible, match="a state that sisa prepared, got one without a record"):
        SISA.serve(network(), State())


def test_copies_under_other_ids_are_told(model):
    x, y = TRAIN.read(range(48)).inputs.clone(), TRAIN.targets()
    x[1:8] = x[0]
    twins = Data.from_arrays(x, y)
    now = made(model, twins)
    assert now.log["copies"] == 8
    assert "8 samples have an exact copy in another slice" in now.note
    done = unlearn(SISA, now.model, TASK, forget=["train/0"], state=now.state, runtime=QUIET)
    assert "7 exact copies of these samples stay under other ids" in done.note


def test_all_samples_of_a_slice_and_of_a_shard_can_go(model, ready):
    slice_ = of(ready.state, 0, [0])
    now = forget(ready, slice_)
    assert book(now.state).stages["0/0"].n == 0
    assert book(now.state).plan() == (((0, 1, 2), 3),) * 2
    rest = of(now.state, 0, [1, 2])
    now = forget(now, rest)
    assert list(now.model.members) == ["1"]
    assert not book(now.state).failed


def test_a_slice_of_one_sample_is_no_trouble_to_batchnorm(model, ready):
    one, *rest = of(ready.state, 1, [0])
    now = forget(ready, rest)
    assert book(now.state).stages["1/0"].n == 1
    assert weights_digest(now.model) == weights_digest(made(model, TRAIN.without(rest)).model)
    with torch.no_grad():
        assert torch.isfinite(now.model(TRAIN.read(range(48)).inputs)).all()
    assert one in TRAIN.ids


def test_samples_of_one_owner_go_together(model):
    train = data(subject=[f"s{i % 24}" for i in range(48)])
    method = replace(SISA, owner="subject")
    now = prepare(method, model, TASK, train=train, recipe=RECIPE, runtime=QUIET)
    record = book(now.state)
    shards, parts = record.place(["train/3", "train/27"])
    assert shards[0] == shards[1]
    assert parts[0] == parts[1]
    done = unlearn(method, now.model, TASK, forget=["train/3", "train/27"], state=now.state, runtime=QUIET)
    assert done.log["revoked"]


def test_a_stage_gets_the_recipe_at_its_own_length(model):
    recipe = Recipe(epochs=20, warmup=4, schedule="multistep", milestones=(10, 15))
    short = load("sisa")(slices=4).recipe(recipe)
    assert (short.epochs, short.warmup, short.milestones) == (8, pytest.approx(1.6), pytest.approx((4, 6)))
    assert load("sisa")(slices=9).epochs(Recipe(epochs=1)) == 1
    assert load("sisa")(stage_epochs=3).epochs(recipe) == 3


def test_votes_need_classes_and_fields_are_checked():
    assert "no classes to vote for" in load("sisa")(aggregate="votes").declines(Regression(), None, network())
    for bad in ({"shards": 0}, {"slices": 1.5}, {"aggregate": "best"}, {"failure": "never"}, {"retrain": "yes"}):
        with pytest.raises(UserError, match=rf"sisa\.{next(iter(bad))}"):
            load("sisa")(**bad)
    with pytest.raises(UserError, match=r"sisa\.owner as the name of a column, got 3"):
        load("sisa")(owner=3)


def test_too_many_slices_say_what_to_lower(model):
    with pytest.raises(UserError, match="a sample in every slice, got none in .* of 48 samples in 8 × 8: lower shards"):
        made(model, method=load("sisa")(shards=8, slices=8))


def test_a_dry_run_of_both_phases_is_not_refused(model, ready):
    found = plan(SISA, "prepare", model, TASK, given={"train": TRAIN, "recipe": RECIPE}, runtime=QUIET)
    assert found.problem == ""
    assert found.passes == {"train": 2.0}
    gone = IDS[:1]
    sets = {"forget": TRAIN.subset(gone), "retain": TRAIN.without(gone), "state": ready.state, "recipe": RECIPE}
    found = plan(SISA, "unlearn", ready.model, TASK, given=sets, runtime=QUIET)
    assert found.problem == ""
    assert found.seconds > 0


def test_a_factory_gives_the_network_before_training(model):
    now = made(model, new_model=partial(nn.Sequential, *network()))
    assert set(now.model.members) == {"0", "1"}
    assert all(p.requires_grad for p in now.model.members["0"].parameters())
    assert not any(p.requires_grad for p in now.model.base.parameters())


def test_the_network_before_training_of_an_ensemble_is_its_base(ready):
    found = fresh(ready.model)
    assert weights_digest(found) == weights_digest(ready.model.base)
    assert found is not ready.model.base
    assert found.training
    assert all(p.requires_grad for p in found.parameters())
    built = fresh(ready.model, new_model=network, seed=3)
    assert weights_digest(built) != weights_digest(ready.model.base)
    assert weights_digest(fresh(ready.model, new_model=lambda: ready.model.base)) == weights_digest(ready.model.base)
    with pytest.raises(UserError, match="to build the same network"):
        fresh(ready.model, new_model=lambda: nn.Linear(3, 2))
