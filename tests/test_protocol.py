"""Six skeletons against the protocol: what no shipped method needs yet must hold as well."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from expunge.data import Data
from expunge.errors import Declined, MissingNeed, UndeclaredNeed, UserError
from expunge.method import Method, MethodFault, Needs, See, Session, State
from expunge.methods import load
from expunge.runtime import Runtime
from expunge.tensors import weights_digest
from expunge.unlearn import prepare, serve, unlearn
from skeletons import REFERENCE, ClassOnly, Ensemble, FreshTeacher, Mean, Pruned, Representations, Slices
from worlds import QUIET, World, network, world


@pytest.fixture(scope="module")
def tiny() -> World:
    return world("random")


def test_an_exact_method_forgets_by_ids_and_asks_for_data_when_slices_run_out(tiny: World) -> None:
    method = Slices()
    given = {"recipe": tiny.recipe, "new_model": tiny.new_model, "runtime": QUIET}
    ready = prepare(method, tiny.model, tiny.task, train=tiny.train, **given)
    assert weights_digest(ready.model) != weights_digest(tiny.model)
    late = ready.state.meta["slices"][1][0]
    done = unlearn(method, ready.model, tiny.task, forget=[late], state=ready.state, new_model=tiny.new_model)
    assert done.state.meta["depth"] == 1
    assert not any(k.startswith("depth1/") for k in done.state.tensors)
    early = ready.state.meta["slices"][0][0]
    request = {"forget": [early], "state": done.state, "new_model": tiny.new_model}
    with pytest.raises(
        MissingNeed, match=r"retain and recipe for slices, because no slice .* pass retain= and recipe="
    ):
        unlearn(method, done.model, tiny.task, **request)
    retain = tiny.train.without([early, late])
    again = unlearn(method, done.model, tiny.task, retain=retain, recipe=tiny.recipe, **request)
    assert again.log["retrained"] is True


def test_retain_data_that_holds_a_sample_forgotten_earlier_is_refused(tiny: World) -> None:
    method = Slices()
    given = {"recipe": tiny.recipe, "new_model": tiny.new_model, "runtime": QUIET}
    ready = prepare(method, tiny.model, tiny.task, train=tiny.train, **given)
    late, early = ready.state.meta["slices"][1][0], ready.state.meta["slices"][0][0]
    done = unlearn(method, ready.model, tiny.task, forget=[late], state=ready.state, new_model=tiny.new_model)
    with pytest.raises(UserError, match=f"retain data without forgotten samples, got already forgotten {late}"):
        unlearn(
            method, done.model, tiny.task, forget=[early], state=done.state, retain=tiny.train.without([early]), **given
        )


def test_a_label_free_method_gets_taps_a_teacher_and_no_labels(tiny: World) -> None:
    method = Representations(tap="0")
    bare = Data.from_arrays(tiny.train.read(range(len(tiny.train))).inputs, ids=tiny.train.ids)
    ready = prepare(method, tiny.model, tiny.task, train=bare, runtime=QUIET)
    given = {"forget": bare.subset(tiny.scenario.forget), "retain": bare.without(tiny.scenario.forget)}
    done = unlearn(method, ready.model, tiny.task, state=ready.state, runtime=QUIET, **given)
    assert len(done.log["loss"]) == 2
    assert done.log["loss"][1][0] == 1
    labelled = {"forget": tiny.forget, "retain": tiny.retain}
    assert weights_digest(done.model) == weights_digest(
        unlearn(method, ready.model, tiny.task, state=ready.state, runtime=QUIET, **labelled).model
    )


def test_a_fresh_network_comes_from_the_factory_or_by_reinitialising(tiny: World) -> None:
    given = {"forget": tiny.forget, "retain": tiny.retain, "recipe": tiny.recipe, "runtime": QUIET}
    done = unlearn(FreshTeacher(), tiny.model, tiny.task, new_model=tiny.new_model, **given)
    again = unlearn(FreshTeacher(), tiny.model, tiny.task, **given)
    assert done.changed is not None
    assert again.changed is not None
    assert done.changed.share > 0.9

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.scale = network(), nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) * self.scale

    with pytest.raises(UserError, match="no reset_parameters for scale: pass new_model"):
        unlearn(FreshTeacher(), Bare().eval(), tiny.task, **given)


def test_a_class_method_declines_random_subsets_with_its_reason(tiny: World) -> None:
    with pytest.raises(Declined, match="removes a class, not a set of kind 'random'"):
        unlearn(ClassOnly(), tiny.model, tiny.task, forget=tiny.scenario.forget, scenario=tiny.scenario)
    case = world("class")
    done = unlearn(ClassOnly(), case.model, case.task, forget=case.scenario.forget, scenario=case.scenario)
    assert bool((done.model[4].weight[1] == 0).all())
    with pytest.raises(MissingNeed, match="scenario for class_only"):
        unlearn(ClassOnly(), case.model, case.task, forget=case.scenario.forget)


@pytest.mark.parametrize("inner", ["ssd", "finetune"])
def test_a_composition_runs_an_inner_method_on_its_own_network(inner: str, tiny: World) -> None:
    method = Pruned(method=load(inner)(), sparsity=0.5)
    assert method.unlearns == load(inner)().unlearns
    ready = prepare(method, tiny.model, tiny.task, train=tiny.train, runtime=QUIET)
    zero = ready.model[4].weight == 0
    assert 0.4 < float(zero.float().mean()) < 0.6
    given = {"forget": tiny.forget, "retain": tiny.retain, "state": ready.state, "runtime": QUIET}
    done = unlearn(method, ready.model, tiny.task, **given)
    assert bool((done.model[4].weight[zero] == 0).all())
    assert any(k.startswith("mask/") for k in done.state.tensors)


def test_an_ensemble_comes_back_from_disk_by_serve(tiny: World, tmp_path: Path) -> None:
    method = Ensemble()
    given = {"recipe": tiny.recipe, "new_model": tiny.new_model, "runtime": QUIET}
    ready = prepare(method, tiny.model, tiny.task, train=tiny.train, **given)
    assert isinstance(ready.model, Mean)
    done = unlearn(method, ready.model, tiny.task, forget=[ready.state.meta["halves"][0][0]], state=ready.state)
    done.state.save(tmp_path / "state")
    served = serve(method, network().eval(), State.load(tmp_path / "state"))
    x = tiny.test.read(range(5)).inputs
    assert torch.equal(served(x), done.model(x))
    again = unlearn(method, served, tiny.task, forget=[ready.state.meta["halves"][0][1]], state=done.state)
    assert again.state.meta["live"] == [1]


@dataclass(frozen=True, kw_only=True)
class Faulty(Method):
    """Breaks one rule, chosen by a field."""

    name: ClassVar[str] = "faulty"
    reference = REFERENCE
    fault: str = ""

    unlearns = Needs(forget=See.LABELLED)

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        batch = session.forget.read(range(len(session.forget) - (self.fault == "skips")))
        assert batch.target is not None
        if self.fault == "reads retain":
            session.retain.read([0])
        if self.fault == "new model":
            session.new_model()
        if self.fault == "edits original":
            with torch.no_grad():
                session.original[4].bias.add_(1)
        if self.fault == "returns none":
            return None  # type: ignore[return-value]
        if self.fault == "nan":
            with torch.no_grad():
                session.model[4].bias.fill_(torch.nan)
        if self.fault == "nan state":
            return session.model, State({"a": torch.tensor([torch.inf])})
        return session.model, state


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        ("skips", MethodFault, "never read 1 of 5 samples to forget"),
        ("reads retain", UndeclaredNeed, r"read session.retain in unlearn .* add retain to its `unlearns` needs"),
        ("new model", UndeclaredNeed, "session.new_model"),
        ("edits original", MethodFault, "edited or returned the original"),
        ("returns none", MethodFault, "returned NoneType, not"),
        ("nan", UserError, "finite weights after faulty, got NaN or infinity in 4.bias"),
        ("nan state", UserError, "finite state tensors, got NaN or infinity in a"),
    ],
)
def test_a_faulty_method_is_caught(fault: str, error: type[Exception], text: str, tiny: World) -> None:
    before = weights_digest(tiny.model)
    with pytest.raises(error, match=text):
        unlearn(Faulty(fault=fault), tiny.model, tiny.task, forget=tiny.forget, retain=tiny.retain)
    assert weights_digest(tiny.model) == before


def test_records_notes_and_checkpoints_reach_the_caller(tiny: World, tmp_path: Path) -> None:
    paths = []

    @dataclass(frozen=True, kw_only=True)
    class Talks(Faulty):
        name: ClassVar[str] = "talks"

        def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
            session.forget.read(range(len(session.forget)))
            session.record("tau", torch.tensor(0.5))
            session.record("loss", 1.0, step=0)
            session.record("loss", 0.5, step=1)
            session.record("note", "Mind this.")
            session.record("note", "Mind this.")
            paths.append(session.checkpoint("half"))
            return session.model, state

    runtime = replace(QUIET, workdir=tmp_path)
    done = unlearn(Talks(), tiny.model, tiny.task, forget=tiny.forget, runtime=runtime)
    assert done.log == {"tau": 0.5, "loss": [[0, 1.0], [1, 0.5]]}
    assert done.note == "Mind this."
    unlearn(Talks(), tiny.model, tiny.task, forget=tiny.forget, runtime=runtime, seed=1)
    unlearn(Talks(), tiny.model, tiny.task, forget=tiny.forget, runtime=runtime)
    unlearn(Talks(), tiny.model, tiny.task, forget=tiny.forget, runtime=Runtime(progress=False))
    assert paths[0] == paths[2] != paths[1]
    assert paths[0].parent == tmp_path
    assert paths[3] is None


def test_an_optional_need_that_is_not_given_reads_as_none(tiny: World) -> None:
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Asks(Faulty):
        name: ClassVar[str] = "asks"
        unlearns = Needs(holdout=See.LABELLED, recipe=True, optional=frozenset({"holdout", "recipe"}))

        def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
            seen.append((session.holdout, session.recipe))
            return session.model, state

    unlearn(Asks(), tiny.model, tiny.task, forget=tiny.scenario.forget)
    assert seen == [(None, None)]


class Bare:
    """A task with the four members of the protocol and no more."""

    def forward(self, model, batch, taps=()):
        return model(batch.inputs), {}

    def loss(self, outputs, target):
        return nn.functional.cross_entropy(outputs, target, reduction="none")

    def predictions(self, outputs):
        return outputs.argmax(dim=1)

    def sample_target(self, outputs, generator):
        return outputs.argmax(dim=1)


def test_a_task_of_four_members_is_enough(tiny: World) -> None:
    ready = prepare(load("ssd")(), tiny.model, Bare(), train=tiny.train, runtime=QUIET)
    done = unlearn(load("ssd")(), ready.model, Bare(), forget=tiny.forget, state=ready.state, runtime=QUIET)
    same = prepare(load("ssd")(), tiny.model, tiny.task, train=tiny.train, runtime=QUIET)
    keys = [k for k in same.state.tensors if k.startswith("importance/")]
    assert all(torch.equal(ready.state.tensors[k], same.state.tensors[k]) for k in keys)
    assert done.changed is not None
