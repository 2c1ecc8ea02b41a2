"""Prune first, then unlearn: what is pruned is 0 before and after every request of every method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from benches import fill
from cases import blobs, deep
from expunge import methods
from expunge.bench.grid import load as load_grid
from expunge.bench.store import Store
from expunge.data import Data
from expunge.errors import Declined, ExpungeError, Incompatible, MissingNeed, UserError
from expunge.masks import Masks
from expunge.method import Method, MethodFault, Needs, Reference, See, Session, State
from expunge.methods import _pruning, build, load
from expunge.recipe import Recipe
from expunge.runtime import Runtime
from expunge.scenario import forget_ids
from expunge.seeds import seed as named_seed
from expunge.task import Classification
from expunge.tensors import parameters, weights_digest
from expunge.train import fit, fresh
from expunge.unlearn import Prepared, Unlearned, prepare, unlearn
from worlds import QUIET, World, world

PRUNED, FINETUNE, RETRAIN = load("pruned"), load("finetune"), load("retrain")
IDLE = load("no_op")()
CONV = "0.weight"


@pytest.fixture(scope="module")
def w() -> World:
    return world()


def ready(method: Method, w: World, **more: Any) -> Prepared:
    given = {"train": w.train, "holdout": w.holdout, "recipe": w.recipe, "new_model": w.new_model, "runtime": QUIET}
    return prepare(method, w.model, w.task, **{**given, "scenario": w.scenario, "seed": 1, **more})


def ask(method: Method, w: World, at: Prepared, **more: Any) -> Unlearned:
    given = {"forget": w.forget, "retain": w.retain, "holdout": w.holdout, "recipe": w.recipe, "state": at.state}
    given |= {"new_model": w.new_model, "runtime": QUIET, "scenario": w.scenario, "seed": 1}
    return unlearn(method, at.model, w.task, **{**given, **more})


def masks_of(state: State) -> Masks:
    return Masks({k.removeprefix("mask/"): state.tensors[k] for k in state.tensors if k.startswith("mask/")})


def pruned(**fields: Any) -> Method:
    return PRUNED(**{"method": IDLE, "sparsity": 0.5} | fields)


def same(a: nn.Module, b: nn.Module) -> bool:
    return weights_digest(a) == weights_digest(b)


# The sparse network.


def test_one_shot_keeps_the_largest_weights_and_trains_on_by_the_recipe(w: World):
    at = ready(pruned(sparsity=0.75), w)
    masks, size = masks_of(at.state), parameters(w.model)[CONV].detach().abs()
    assert list(masks.kept) == [CONV]
    assert int(masks.kept[CONV].sum()) == 9
    assert float(size[masks.kept[CONV]].min()) >= float(size[~masks.kept[CONV]].max())
    start = fresh(w.model, new_model=w.new_model, seed=0)
    start.load_state_dict(w.model.state_dict())
    masks.prune(start)
    slow = fit(start, w.task, w.train, w.recipe, runtime=QUIET, seed=named_seed("pruned", 1, 1), masks=masks)
    assert same(at.model, slow)
    assert masks.strays(at.model) == 0
    assert not torch.equal(parameters(at.model)["4.weight"], parameters(w.model)["4.weight"])


def test_rewinding_goes_back_on_the_originals_own_path(w: World):
    """The world's original was trained with this seed, so the sparse network starts from its weights after an epoch."""
    recipe = replace(w.recipe, schedule="constant")
    at = ready(pruned(rewind=1), w, recipe=recipe)
    masks = masks_of(at.state)
    early = fit(fresh(w.model, new_model=w.new_model, seed=1), w.task, w.train, replace(recipe, epochs=1), seed=1)
    masks.prune(early)
    rest = replace(recipe, epochs=w.recipe.epochs - 1)
    slow = fit(early, w.task, w.train, rest, runtime=QUIET, seed=named_seed("pruned", 1, 2), masks=masks)
    assert same(at.model, slow)
    assert torch.equal(masks.kept[CONV], masks_of(ready(pruned(), w).state).kept[CONV])


def test_rewinding_to_the_start_trains_the_untrained_network(w: World):
    at = ready(pruned(rewind=0), w)
    masks, start = masks_of(at.state), fresh(w.model, new_model=w.new_model, seed=1)
    masks.prune(start)
    slow = fit(start, w.task, w.train, w.recipe, runtime=QUIET, seed=named_seed("pruned", 1, 1), masks=masks)
    assert same(at.model, slow)


def test_rewinding_behind_the_recipes_end_is_said(w: World):
    at = ready(pruned(rewind=9), w)
    assert at.note == "The recipe has 4 epochs: weights went back to epoch 3, not 9."
    assert at.log["trained_epochs"] == 4
    assert same(at.model, ready(pruned(rewind=3), w).model)
    assert ready(pruned(rewind=3), w).note == ""


def test_iterative_pruning_prunes_what_it_trained(w: World):
    """Two rounds by hand: a fifth of 36 weights, then down to 36 %, each by the size of the weights trained last."""
    at = ready(pruned(by="imp", sparsity=0.36), w)
    now, kept = w.model, None
    for number, gone in ((1, 7), (2, 13)):
        score = parameters(now)[CONV].detach().abs().flatten().clone()
        if kept is not None:
            score[~kept.flatten()] = -1
        kept = torch.ones(36, dtype=torch.bool)
        kept[torch.argsort(score, stable=True)[:gone]] = False
        kept = kept.reshape(4, 1, 3, 3)
        start = fit(now, w.task, w.train, replace(w.recipe, epochs=0))
        Masks({CONV: kept}).prune(start)
        seed = named_seed("pruned", 1, number)
        now = fit(start, w.task, w.train, w.recipe, runtime=QUIET, seed=seed, masks=Masks({CONV: kept}))
    assert kept is not None
    assert torch.equal(masks_of(at.state).kept[CONV], kept)
    assert same(at.model, now)
    assert at.log["trained_epochs"] == 8


def test_synflow_and_random_draw_their_masks_without_the_weights(w: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_pruning, "ITERATIONS", 10)
    other = fit(w.model, w.task, w.train, replace(w.recipe, epochs=1), seed=9)
    for by in ("synflow", "random"):
        one, two = (prepare(pruned(by=by), m, w.task, train=w.train, recipe=w.recipe, new_model=w.new_model,
                            runtime=QUIET, seed=1) for m in (w.model, other))  # fmt: skip
        assert torch.equal(masks_of(one.state).kept[CONV], masks_of(two.state).kept[CONV])
        assert masks_of(one.state).density == 0.5
        third = ready(pruned(by=by), w, seed=2)
        assert not torch.equal(masks_of(one.state).kept[CONV], masks_of(third.state).kept[CONV])
    assert same(*(ready(pruned(by="synflow"), replace(w, model=m)).model for m in (w.model, other)))


def test_synflow_feeds_ones_and_so_needs_inputs_of_one_tensor():
    model = deep()
    for x, got in (
        (torch.zeros(4, 4, dtype=torch.int64), r"torch\.int64"),
        ({"x": torch.zeros(4, 4)}, "several by name"),
    ):
        given: dict[str, Any] = {"train": Data.from_arrays(x, [0, 1, 0, 1]), "recipe": Recipe(epochs=1)}
        want = rf"inputs of one floating-point tensor for synflow, got {got}: take another pruner"
        with pytest.raises(UserError, match=want):
            prepare(pruned(by="synflow"), model, Classification(), runtime=QUIET, **given)


def test_at_sparsity_0_the_method_is_the_inner_one(w: World):
    for inner in (FINETUNE(epochs=1), load("ssd")(alpha=1.5)):
        own, plain = ready(pruned(method=inner, sparsity=0), w), ready(inner, w)
        assert same(own.model, w.model)
        assert own.note == "Nothing is pruned at sparsity 0, and nothing was trained."
        assert own.log["trained_epochs"] == 0
        assert same(ask(pruned(method=inner, sparsity=0), w, own).model, ask(inner, w, plain).model)


def test_what_is_recorded(w: World):
    at = ready(pruned(sparsity=0.75), w)
    told = {"density": 0.25, "densities": {CONV: 0.25}, "kept": 9, "prunable": 36}
    assert at.log["pruned"] == told
    assert at.log["trained_epochs"] == 4
    assert at.state.meta["density"] == 0.25
    assert ask(pruned(sparsity=0.75), w, at).log["pruned"] == told


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_scope_decides_each_layers_share(scope: str):
    data, model = blobs(), deep()
    model = fit(model, Classification(), data, Recipe(epochs=1, lr=0.1))
    given: dict[str, Any] = {"train": data, "recipe": Recipe(epochs=1), "runtime": QUIET}
    at = prepare(pruned(scope=scope), model, Classification(), **given)
    told = at.log["pruned"]
    assert list(told["densities"]) == ["0.0.0.weight", "0.2.weight"]
    assert (set(told["densities"].values()) == {0.5}) is (scope == "layer")
    assert told["density"] == 0.5


# Requests.


@pytest.mark.parametrize("name", [n for n in methods.names(controls=True) if n != "pruned"])
def test_every_method_leaves_the_pruned_weights_at_0(name: str, w: World):
    """Two requests in a row; a method that moves them is put right and told of."""
    inner = build({"name": name, **methods.load(name).example})
    method = pruned(method=inner)
    if method.declines(w.task, w.scenario, w.model):
        with pytest.raises(Declined):
            ready(method, w)
        return
    at = ready(method, w)
    masks = masks_of(at.state)
    first = ask(method, w, at)
    assert masks.strays(first.model) == 0
    assert "were set back to 0" not in first.note
    ids = w.retain.ids[:3]
    scenario = forget_ids(w.retain, ids)
    if method.declines(w.task, scenario, first.model):
        return
    more = {"forget": w.retain.subset(ids), "retain": w.retain.without(ids), "scenario": scenario}
    second = ask(method, w, Prepared(first.model, first.state, 0.0), **more)
    assert masks.strays(second.model) == 0
    assert torch.equal(masks_of(second.state).kept[CONV], masks.kept[CONV])


def test_retraining_is_the_sparse_network_retrained(w: World):
    method = pruned(method=RETRAIN())
    at = ready(method, w)
    done = ask(method, w, at)
    masks, start = masks_of(at.state), fresh(w.model, new_model=w.new_model, seed=1)
    masks.prune(start)
    assert same(done.model, fit(start, w.task, w.retain, w.recipe, runtime=QUIET, seed=1, masks=masks))
    assert done.note == (
        "The mask was found with the forgotten samples in the training data: under it retraining is not exact."
    )
    blind = pruned(method=RETRAIN(), by="synflow")
    assert ask(blind, w, ready(blind, w)).note == ""


def test_the_inner_state_is_kept_and_goes_to_disk(w: World, tmp_path: Path):
    method = pruned(method=load("ssd")(alpha=1.5))
    at = ready(method, w)
    plain = prepare(load("ssd")(alpha=1.5), at.model, w.task, train=w.train, runtime=QUIET, seed=1)
    for name in plain.state.tensors:
        if name.startswith("importance/"):
            assert torch.equal(plain.state.tensors[name], at.state.tensors[f"inner/{name}"])
    at.state.save(tmp_path / "state")
    from_disk = replace(at, state=State.load(tmp_path / "state"))
    one, two = ask(method, w, at), ask(method, w, from_disk)
    assert same(one.model, two.model)
    assert same(one.model, ask(load("ssd")(alpha=1.5), w, plain).model)
    assert one.state.meta["inner"]["stale"] == 1


@dataclass(frozen=True, kw_only=True)
class Rough(Method):
    """Adds one to every weight, whatever the mask says, or breaks another rule."""

    name: ClassVar[str] = "rough"
    reference: ClassVar[Reference] = Reference("None", "Nobody", 2026, "https://pypi.org/project/expunge/")
    unlearns = Needs(forget=See.IDS)
    edits: bool = False
    widens: bool = False

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        if self.widens:
            return nn.Sequential(nn.Conv2d(1, 5, 3)), state
        with torch.no_grad():
            for p in (session.original if self.edits else session.model).parameters():
                p += 1
        return session.model, state


def test_weights_that_a_method_moved_are_set_back_and_said(w: World):
    method = pruned(method=Rough())
    at = ready(method, w)
    done = ask(method, w, at)
    masks = masks_of(at.state)
    assert masks.strays(done.model) == 0
    assert done.note == "rough moved 18 of the pruned weights; they were set back to 0."
    kept = masks.kept[CONV]
    assert torch.equal(parameters(done.model)[CONV][kept], parameters(at.model)[CONV][kept] + 1)
    assert torch.equal(parameters(done.model)["1.weight"], parameters(at.model)["1.weight"] + 1)


def test_an_inner_methods_faults_are_found(w: World):
    for inner, error, why in (
        (Rough(edits=True), MethodFault, "Method rough edited the original model in unlearn"),
        (Rough(widens=True), Incompatible, rf"{CONV} of shape \(4, 1, 3, 3\), which the mask is for"),
    ):
        method = pruned(method=inner)
        at = ready(method, w)
        with pytest.raises(ExpungeError, match=why) as found:
            ask(method, w, at)
        assert type(found.value) is error


def test_a_state_of_other_settings_or_weights_is_refused(w: World):
    at = ready(pruned(), w)
    for other, want, got in (
        (pruned(sparsity=0.6), r"sparsity=0\.6", r"sparsity=0\.5"),
        (pruned(by="random"), "by='random'", "by='omp'"),
        (pruned(method=load("ssd")()), "method={'name': 'ssd'", "method=None"),
    ):
        with pytest.raises(Incompatible, match=rf"a state of pruned with {want}.*, got one with {got}"):
            ask(other, w, at)
    mask = at.state.tensors[f"mask/{CONV}"]
    for bad, why in ((~mask, "pruned weights that are 0, got 18 others"), (mask[:2], "which the mask is for")):
        state = State({**at.state.tensors, f"mask/{CONV}": bad}, at.state.meta)
        with pytest.raises(Incompatible, match=why):
            ask(pruned(), w, replace(at, state=state))
    with pytest.raises(Incompatible, match="got no mask in the state"):
        ask(pruned(), w, replace(at, state=at.state.drop([f"mask/{CONV}"])))
    with pytest.raises(Incompatible, match="the weights the state belongs to"):
        unlearn(pruned(), w.model, w.task, forget=w.forget, state=at.state, runtime=QUIET)
    with pytest.raises(MissingNeed, match="the state that pruned prepared, got none: run prepare"):
        unlearn(pruned(), at.model, w.task, forget=w.forget, runtime=QUIET)


def test_methods_that_prepare_nothing_share_a_sparse_network(w: World):
    at = ready(pruned(), w)
    own = pruned(method=FINETUNE(epochs=1, lr=0.3))
    assert same(ready(own, w).model, at.model)
    assert same(ask(own, w, at).model, ask(own, w, ready(own, w)).model)


# What is needed, and what is declined.


def test_needs_follow_the_settings_and_the_inner_method():
    plain, anew = pruned(), pruned(rewind=2)
    assert plain.prepares == Needs(
        train=See.LABELLED, holdout=See.LABELLED, recipe=True, optional=frozenset({"holdout"})
    )
    assert anew.prepares.fresh
    assert pruned(by="synflow").prepares.fresh
    assert plain.unlearns == Needs()
    assert pruned(method=RETRAIN()).unlearns == RETRAIN().unlearns
    assert pruned(method=load("ssd")()).unlearns == load("ssd")().unlearns


def test_passes_count_every_training():
    recipe = Recipe(epochs=10)
    for fields, epochs in (
        ({}, 10), ({"rewind": 3}, 10), ({"rewind": 99}, 10), ({"by": "synflow"}, 10), ({"sparsity": 0}, 0),
        ({"by": "imp", "sparsity": 0.95}, 140), ({"by": "imp", "sparsity": 0.95, "rewind": 3}, 3 + 14 * 7),
    ):  # fmt: skip
        assert pruned(**fields).passes("prepare", recipe).get("train", 0) == epochs
    late = replace(recipe, patience=2)
    assert pruned(rewind=3).passes("prepare", late) == {"train": 10.0, "holdout": 7.0}
    assert pruned(method=load("ssd")()).passes("prepare", recipe)["train"] == 11
    assert pruned(method=FINETUNE(epochs=2)).passes("unlearn", recipe) == {"retain": 2.0}
    assert pruned().passes("prepare", None) == {}


def test_early_stopping_uses_holdout_as_the_originals_training_does(w: World):
    recipe = replace(w.recipe, patience=1, epochs=20)
    at = ready(pruned(), w, recipe=recipe)
    assert masks_of(at.state).strays(at.model) == 0
    with pytest.raises(UserError, match=r"holdout data for Recipe\.patience"):
        ready(pruned(), w, recipe=recipe, holdout=None)


def test_reasons_to_decline():
    case = forget_ids(blobs(), blobs().ids[:2])
    for method, model, why in (
        (pruned(method=load("head_mask")()), deep(), "head_mask is served by more than its weights, which a mask does"),
        (pruned(method=pruned()), deep(), "the network would be pruned twice"),
        (pruned(layers="conv"), deep(), "it prunes 2-d convolutions, and this network trains none: set layers to w"),
        (pruned(), nn.Linear(4, 2), "it prunes convolutions and linear layers but the last, and this network trains"),
        (pruned(method=Choosy()), deep(), "it is choosy"),
    ):
        assert str(method.declines(Classification(), case, model)).startswith(why)
    assert pruned().declines(Classification(), case, deep()) is None
    assert pruned().declines(Classification(), case, nn.Identity()) is None


@dataclass(frozen=True, kw_only=True)
class Choosy(Rough):
    """Declines everything."""

    name: ClassVar[str] = "choosy"

    def declines(self, task: Any, scenario: Any, model: nn.Module) -> str | None:
        return "it is choosy"


def test_a_layer_that_would_keep_nothing_is_refused(w: World):
    for by in ("omp", "imp", "random", "synflow"):
        with pytest.raises(UserError, match=rf"a weight kept in every layer that is pruned, got none in {CONV}"):
            ready(pruned(by=by, sparsity=0.99), w)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"sparsity": 1.0}, r"pruned\.sparsity of 0 or more and below 1, got 1\.0: write 0\.95 for 95 %"),
        ({"sparsity": -0.1}, r"pruned\.sparsity"),
        ({"sparsity": 95}, r"pruned\.sparsity"),
        ({"sparsity": float("nan")}, r"pruned\.sparsity"),
        ({"sparsity": True}, r"pruned\.sparsity"),
        ({"by": "size"}, r"pruned\.by among omp, imp, synflow, random, got 'size': choose one of them"),
        ({"scope": "all"}, r"pruned\.scope among global, layer"),
        ({"layers": "linear"}, r"pruned\.layers among auto, conv, weights"),
        ({"rewind": -1}, r"pruned\.rewind of 0 epochs or more, got -1"),
        ({"rewind": 1.5}, r"pruned\.rewind of 0 epochs or more"),
        ({"rewind": 1, "by": "synflow"}, r"no pruned\.rewind with synflow, got 1: leave it unset"),
        ({"method": None}, r"pruned\.method to name a method, got None: write method = \{name = 'finetune'\}"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], why: str):
    with pytest.raises(UserError, match=why):
        pruned(**fields)


def test_it_is_built_from_plain_values_by_name_or_with_fields():
    whole = build({"name": "pruned", "method": {"name": "finetune", "lr": 0.3}, "sparsity": 0.9})
    assert whole == PRUNED(method=FINETUNE(lr=0.3), sparsity=0.9)
    assert build(whole.settings()) == whole
    assert build({"name": "pruned", "method": "retrain"}) == PRUNED(method=RETRAIN())
    with pytest.raises(UserError, match=r"a method as pruned\.method, got 3: write its name"):
        build({"name": "pruned", "method": 3})
    with pytest.raises(UserError, match="a known method, got 'fintune': did you mean 'finetune'"):
        build({"name": "pruned", "method": "fintune"})


# Interrupted, and in the benchmark.


def test_trainings_that_are_done_are_not_repeated(w: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    runtime = Runtime(progress=False, batch_size=7, device="cpu", workdir=tmp_path)
    method = pruned(by="imp", sparsity=0.48, rewind=1)
    whole = ready(method, w)
    module, done = methods.pruned, [0]

    def failing(*given: Any, **named: Any) -> nn.Module:
        if done[0] == 3:
            raise RuntimeError("power cut")
        done[0] += 1
        return fit(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(module, "fit", failing)
        with pytest.raises(RuntimeError, match="power cut"):
            ready(method, w, runtime=runtime)
        assert len(list(tmp_path.iterdir())) == 3
        done[0] = 2  # one more may run: the fourth, last one
        assert same(ready(method, w, runtime=runtime).model, whole.model)
    assert list(tmp_path.iterdir()) == []


def test_trainings_from_another_start_or_in_another_precision_are_not_taken_up(w: World, tmp_path: Path):
    runtime = Runtime(progress=False, batch_size=7, device="cpu", workdir=tmp_path)
    method, module, calls = pruned(by="imp", sparsity=0.48, rewind=0), methods.pruned, [0]

    def failing(*given: Any, **named: Any) -> nn.Module:
        calls[0] += 1
        if calls[0] == 2:
            raise RuntimeError("power cut")
        return fit(*given, **named)

    def other() -> nn.Module:
        made = w.new_model()
        with torch.no_grad():
            made[0].weight.mul_(0.5)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fit", failing)
        with pytest.raises(RuntimeError, match="power cut"):
            ready(method, w, runtime=runtime)
    assert len(list(tmp_path.iterdir())) == 1
    for more in ({"new_model": other}, {"runtime": replace(runtime, precision="bf16")}):
        alone = replace(more.get("runtime", runtime), workdir=None)
        found, want = (ready(method, w, **{"runtime": runtime, **more, **r}) for r in ({}, {"runtime": alone}))
        assert same(found.model, want.model)


GRID = """
seeds = 1
metrics = ["accuracy", "loss"]
scenarios = ["class=3"]
[data.digits]
limit = 100
[networks.convnet]
recipe = {epochs = 2, batch_size = 50}
[methods."sparse finetune"]
name = "pruned"
sparsity = 0.8
method = {name = "finetune", epochs = 1}
[methods."sparse retrain"]
name = "pruned"
sparsity = 0.8
method = "retrain"
[methods."sparse ssd"]
name = "pruned"
sparsity = 0.8
method = {name = "ssd", alpha = 3}
[methods."sparser finetune"]
name = "pruned"
sparsity = 0.9
method = {name = "finetune", epochs = 1}
"""


def test_a_grid_runs_it_and_sparse_networks_are_made_once(tmp_path: Path):
    (tmp_path / "grid.toml").write_text(GRID)
    grid = load_grid(tmp_path / "grid.toml")
    summary = fill(grid, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert not summary.failed, [store.failure(task) for task in summary.failed]
    cells = {str(c.method["method"]["name"]) + str(c.method["sparsity"]): c for c in grid.cells() if c.method}
    prepared = {name: cell.task("prepared").key for name, cell in cells.items()}
    assert prepared["finetune0.8"] == prepared["retrain0.8"]
    assert len(set(prepared.values())) == 3
    assert len(list((tmp_path / "store" / "prepared").iterdir())) == 3
    for cell in cells.values():
        state = State.load(store.folder(cell.task("unlearned", 1)) / "state.safetensors")
        assert masks_of(state).density == pytest.approx(1 - cell.method["sparsity"], abs=1e-3)
    inner = {"name": "ssd", "importance": "exact", "batch": 64, "order": "label"}
    assert cells["ssd0.8"].task("prepared").spec["method"]["method"] == inner
