"""The drivers: every bad request is refused in one sentence before anything is touched."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.data import Data
from expunge.errors import CorruptArtefact, Declined, Incompatible, MissingNeed, NotFinite, UserError
from expunge.method import State
from expunge.methods import build, load
from expunge.scenario import forget_ids
from expunge.task import Regression
from expunge.tensors import weights_digest
from expunge.unlearn import Prepared, prepare, serve, unlearn
from worlds import QUIET, World, images, world


@pytest.fixture(scope="module")
def tiny() -> World:
    return world()


@pytest.fixture(scope="module")
def ready(tiny: World) -> Prepared:
    return prepare(load("ssd")(alpha=1.5), tiny.model, tiny.task, train=tiny.train, runtime=QUIET)


def ask(tiny: World, ready: Prepared, **more: Any) -> Any:
    given = {"method": load("ssd")(alpha=1.5), "model": ready.model, "task": tiny.task, "forget": tiny.forget}
    given |= {"state": ready.state, "runtime": QUIET}
    given |= more
    return unlearn(given.pop("method"), given.pop("model"), given.pop("task"), **given)


def with_meta(state: State, **own: object) -> State:
    return State(state.tensors, {**state.meta, **own})


def data_like(w: World, change: str) -> Data:
    """Return the forget set with one sample's content or label changed, under the same ids."""
    batch = w.forget.read(range(len(w.forget)))
    x, y = batch.inputs.clone(), batch.target.clone()
    if change == "content":
        x[2] += 1e-3
    if change == "label":
        y[2] = (y[2] + 1) % 3
    if change == "nan":
        x[2] = torch.nan
    return Data.from_arrays(x, y, ids=w.forget.ids, name="forget")


def test_a_request_leaves_the_model_bit_identical_and_changes_the_new_one(tiny: World, ready: Prepared) -> None:
    before = weights_digest(ready.model)
    done = ask(tiny, ready)
    assert weights_digest(ready.model) == before
    assert weights_digest(done.model) != before
    assert done.changed.count == sum(
        int((a != b).sum()) for a, b in zip(ready.model.parameters(), done.model.parameters(), strict=True)
    )
    assert 0 < done.seconds <= done.total_seconds
    assert done.method == load("ssd")(alpha=1.5).settings()
    assert done.method.items() >= {"name": "ssd", "alpha": 1.5, "dampening": 1.0, "unseen": "zero"}.items()


def test_the_state_forgets_too(tiny: World, ready: Prepared) -> None:
    done = ask(tiny, ready)
    anew = prepare(load("ssd")(), tiny.model, tiny.task, train=tiny.retain, runtime=QUIET)
    for name in (k for k in anew.state.tensors if k.startswith("importance/")):
        want, got = anew.state.tensors[name], done.state.tensors[name]
        assert torch.allclose(got, want, rtol=1e-6, atol=1e-6 * float(want.abs().max()))
    assert done.state.meta["count"] == len(tiny.retain)
    flags, content = done.state.tensors["samples/forgotten"], done.state.tensors["samples/content"]
    gone = torch.tensor([i in set(tiny.scenario.forget) for i in tiny.train.ids])
    assert torch.equal(flags.bool(), gone)
    assert bool((content[gone] == 0).all())
    assert torch.equal(content[~gone], ready.state.tensors["samples/content"][~gone])


def test_ids_and_content_are_kept_as_keyed_hashes_only(tiny: World, tmp_path: Path) -> None:
    data = Data.from_arrays(*images(20, 0), ids=[f"patient-{i:04d}" for i in range(20)])
    states = [prepare(load("ssd")(), tiny.model, tiny.task, train=data, runtime=QUIET).state for _ in range(2)]
    for name in ("samples/id", "samples/content"):
        assert not set(states[0].tensors[name].tolist()) & set(states[1].tensors[name].tolist())
    states[0].save(tmp_path / "s.safetensors")
    assert b"patient-" not in (tmp_path / "s.safetensors").read_bytes()


CASES: list[tuple[str, type[Exception], str]] = [
    ("unknown id", UserError, "ids of the prepared training data, got unknown train/99: take ids that were trained on"),
    ("id twice", UserError, "unique ids, got train/0 more than once"),
    ("ids twice", UserError, "unique forget ids, got train/0 more than once"),
    ("empty", UserError, "at least one sample to forget, got an empty forget set"),
    ("everything", UserError, "something to retain, got all 39 training samples to forget"),
    ("no state", MissingNeed, r"the state that ssd prepared, got none: run prepare\(ssd"),
    ("ids only", MissingNeed, "forget for ssd to unlearn, got none: pass forget="),
    ("no labels", MissingNeed, "forget data with labels for ssd, got none"),
    (
        "retain overlaps",
        UserError,
        "retain data without the forgotten samples, got .* in both: pass retain=train.without",
    ),
    ("holdout overlaps", UserError, r"forget ids outside holdout, got train/\d+ in both: pass the holdout that"),
    ("other weights", Incompatible, "the weights the state belongs to, got others"),
    ("other network", Incompatible, "a state of this network, got one with other tensor names or shapes"),
    ("other method", Incompatible, "a state of ssd, got one of lfssd: prepare ssd"),
    ("other estimator", Incompatible, "a state with the importance of 'loss', got one of 'output_norm'"),
    ("other names", Incompatible, "importances of this model's trainable parameters, got another set"),
    ("no stamp", Incompatible, "a state made by prepare or unlearn, got one without their stamp"),
    ("other content", UserError, r"the content that was prepared under each id, got other content under train/\d+"),
    ("other label", UserError, r"the content that was prepared under each id, got other content under train/\d+"),
    ("nan weights", NotFinite, "finite weights, got NaN or infinity in 4.weight: restore the model"),
    ("nan loss", NotFinite, "finite per-sample gradients, got NaN or infinity in 0.weight"),
    ("nan importance", NotFinite, "finite stored importances, got NaN or infinity in 4.bias: prepare anew"),
    ("class for method", UserError, "an instance of a method, got the class SSD"),
    ("no module", UserError, "a torch.nn.Module, got function"),
    ("no task", UserError, r"a task, got str: pass Classification\(\)"),
    ("one id as text", UserError, "a list of ids, got 'train/0': write"),
    ("prepared for state", UserError, "a State, got Prepared: pass ready.state"),
    ("dataset for retain", UserError, "retain as Data, got list: build it"),
    ("unknown retain", UserError, "retain data of the prepared training data, got unknown other/0"),
    ("other scenario", UserError, "the scenario's forget ids, got others"),
]


@pytest.mark.parametrize(("case", "error", "text"), CASES, ids=[c[0] for c in CASES])
def test_a_bad_request_is_refused_and_nothing_touched(
    case: str, error: type[Exception], text: str, tiny: World, ready: Prepared
) -> None:
    w, state = tiny, ready.state
    weights = {k: v.clone() for k, v in w.model.state_dict().items()}
    own = dict(state.meta["expunge"])
    x, y = images(3, 7)
    broken = {k: state.tensors[k].clone() for k in state.tensors}
    broken["importance/4.bias"][0] = torch.nan
    other = world("random", n=21)
    bad = world()
    with torch.no_grad():
        bad.model[4].weight[0, 0] = torch.nan
    wide = torch.nn.Sequential(*list(world().model)[:4], torch.nn.Linear(64, 4)).eval()
    lfssd = prepare(load("lfssd")(), w.model, w.task, train=w.train, runtime=QUIET).state
    unstamped = {**lfssd.meta, "expunge": {**lfssd.meta["expunge"], "method": "ssd"}}
    fewer = {k: v for k, v in broken.items() if k != "importance/4.bias"}
    change = {
        "unknown id": lambda: {"forget": Data.from_arrays(x, y, ids=["train/99", "train/1", "train/2"])},
        "id twice": lambda: {"forget": w.train.subset(["train/0", "train/0"])},
        "ids twice": lambda: {"forget": ["train/0", "train/0"]},
        "empty": lambda: {"forget": w.train.subset([])},
        "everything": lambda: {"forget": w.train},
        "no state": lambda: {"state": None},
        "ids only": lambda: {"forget": list(w.scenario.forget)},
        "no labels": lambda: {"forget": w.forget.unlabelled()},
        "retain overlaps": lambda: {"retain": w.train},
        "holdout overlaps": lambda: {"holdout": w.forget.subset(w.forget.ids[:1])},
        "other weights": lambda: {"model": other.model},
        "other network": lambda: {"model": wide},
        "other method": lambda: {"state": lfssd},
        "other estimator": lambda: {"state": State(lfssd.tensors, unstamped)},
        "other names": lambda: {"state": State(fewer, state.meta)},
        "no stamp": lambda: {"state": State(state.tensors, {k: v for k, v in state.meta.items() if k != "expunge"})},
        "other content": lambda: {"forget": data_like(w, "content")},
        "other label": lambda: {"forget": data_like(w, "label")},
        "nan weights": lambda: {"model": bad.model, "state": None},
        "nan loss": lambda: {
            "forget": data_like(w, "nan"),
            "state": with_meta(state, expunge={k: v for k, v in own.items() if k not in ("key", "samples")}),
        },
        "nan importance": lambda: {"state": State(broken, state.meta)},
        "class for method": lambda: {"method": load("ssd")},
        "no module": lambda: {"model": lambda x: x},
        "no task": lambda: {"task": "classification"},
        "one id as text": lambda: {"forget": "train/0"},
        "prepared for state": lambda: {"state": ready},
        "dataset for retain": lambda: {"retain": [1, 2]},
        "unknown retain": lambda: {"retain": Data.from_arrays(x, y, name="other")},
        "other scenario": lambda: {"scenario": forget_ids(w.train, ["train/0"])},
    }[case]
    with pytest.raises(error, match=text) as raised:
        ask(w, ready, **change())
    assert len(str(raised.value).splitlines()) == 1
    assert all(torch.equal(v, weights[k]) for k, v in w.model.state_dict().items())


def test_the_methods_that_would_do_are_named(tiny: World) -> None:
    with pytest.raises(MissingNeed, match=r"retain and recipe for retrain .* pass retain= and recipe="):
        unlearn(load("retrain")(), tiny.model, tiny.task, forget=tiny.forget)
    with pytest.raises(MissingNeed, match="recipe for retrain .* or use .*finetune.*, which would do without"):
        unlearn(load("retrain")(), tiny.model, tiny.task, forget=tiny.forget.ids, retain=tiny.retain)
    with pytest.raises(MissingNeed, match="retain for scrub .* or use gradient_ascent or jit, which would do without"):
        unlearn(load("scrub")(), tiny.model, tiny.task, forget=tiny.forget)
    bare = tiny.forget.unlabelled()
    with pytest.raises(
        MissingNeed, match="forget data with labels for amnesiac, got none: .* or use bad_teacher or jit or finetune"
    ):
        unlearn(load("amnesiac")(), tiny.model, tiny.task, forget=bare, retain=tiny.retain)


def test_who_declines_names_the_methods_that_apply() -> None:
    w = world("random")
    given = {"forget": w.forget, "retain": w.retain, "scenario": w.scenario}
    with pytest.raises(Declined, match="unsir applies to, got one it declines: .*; take another method, such as ") as e:
        unlearn(load("unsir")(), w.model, w.task, **given)
    assert "or unsir" not in str(e.value)
    assert "head_mask" not in str(e.value)
    with pytest.raises(Declined, match="such as gradient_ascent or jit"):
        unlearn(load("unsir")(), w.model, w.task, **{**given, "retain": None})


def test_without_labels_the_label_free_method_is_named(tiny: World) -> None:
    with pytest.raises(MissingNeed, match="train data with labels for ssd, got none: .* or use lfssd or .* do without"):
        prepare(load("ssd")(), tiny.model, tiny.task, train=tiny.train.unlabelled(), runtime=QUIET)


@pytest.mark.parametrize("part", ["header", "metadata", "data", "end"])
def test_a_damaged_state_is_refused(part: str, ready: Prepared, tiny: World, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    ready.state.save(path)
    raw = bytearray(path.read_bytes())
    if part == "end":
        raw = raw[:-10]
    else:
        at = {"header": 3, "metadata": raw.index(b"importance"), "data": len(raw) - 4}[part]
        raw[at] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CorruptArtefact, match=re.escape(str(path))):
        ask(tiny, ready, state=State.load(path))


def test_an_existing_file_is_kept_without_overwrite(ready: Prepared, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.write_text("precious")
    with pytest.raises(UserError, match="a path that is free to write, .*state.safetensors, got an existing file"):
        ready.state.save(path)
    assert path.read_text() == "precious"
    ready.state.save(path, overwrite=True)
    assert len(State.load(path).tensors) == len(ready.state.tensors)


def test_a_state_that_knows_no_samples_still_works(tiny: World) -> None:
    done = unlearn(load("finetune")(epochs=1), tiny.model, tiny.task, forget=tiny.forget, retain=tiny.retain)
    assert int(done.state.tensors["samples/forgotten"].sum()) == len(tiny.forget)
    more = {"retain": tiny.retain, "state": done.state}
    with pytest.raises(UserError, match="still to be forgotten, got already forgotten train/"):
        unlearn(load("finetune")(epochs=1), done.model, tiny.task, forget=tiny.forget, **more)
    some = tiny.retain.ids[:2]
    request = {"forget": some, "retain": tiny.train.without(some), "state": done.state}
    with pytest.raises(UserError, match="retain data without forgotten samples, got already forgotten train/"):
        unlearn(load("finetune")(epochs=1), done.model, tiny.task, **request)
    again = unlearn(
        load("finetune")(epochs=1),
        done.model,
        tiny.task,
        forget=tiny.retain.ids[:2],
        retain=tiny.retain.without(tiny.retain.ids[:2]),
        state=done.state,
    )
    assert again.state.meta["expunge"]["requests"] == 2


def test_serve_refuses_a_state_of_other_weights(tiny: World, ready: Prepared) -> None:
    assert serve(load("ssd")(), ready.model, ready.state) is ready.model
    with pytest.raises(Incompatible, match="the weights the state belongs to"):
        serve(load("ssd")(), world("random", n=21).model, ready.state)


def test_declining_names_the_reason(tiny: World) -> None:
    with pytest.raises(Declined, match="head_mask applies to, got one it declines: .* no classes"):
        ask(tiny, Prepared(tiny.model, State(), 0.0), method=load("head_mask")(), task=Regression(), state=None)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"name": "sdd"}, "a known method, got 'sdd': did you mean 'ssd'"),
        ({"name": "ssd", "alhpa": 1}, "a field of ssd, got 'alhpa': did you mean 'alpha'"),
        ({"name": "ssd", "alpha": "much"}, r"a value that fits ssd.alpha, got 'much' .*see expunge methods ssd"),
        ({"name": "ssd", "alpha": -1}, "ssd.alpha of 0 or more, or 'auto', got -1"),
        ({"name": "no_op", "alpha": 1}, "a field of no_op, got 'alpha': it has none"),
        ({"alpha": 1}, "a mapping with the method's name under 'name'"),
    ],
)
def test_unknown_methods_and_fields_are_refused_with_a_suggestion(config: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        build(config)


def test_label_free_content_ignores_labels(tiny: World) -> None:
    method = replace(load("lfssd")(), alpha=1.2)
    ready = prepare(method, tiny.model, tiny.task, train=tiny.train, runtime=QUIET)
    ask(tiny, ready, method=method, forget=data_like(tiny, "label"))
    with pytest.raises(UserError, match="other content under"):
        ask(tiny, ready, method=method, forget=data_like(tiny, "content"))
