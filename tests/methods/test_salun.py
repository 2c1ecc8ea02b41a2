"""SalUn: the mask of a signed sum, values held to the bit, and what the published code lets through."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import blobs, deep
from expunge.checkpoints import Checkpoint
from expunge.data import Data
from expunge.errors import Declined, Incompatible, NotFinite, UserError
from expunge.masks import Masks
from expunge.method import Method, MethodFault, Needs, Reference, See, Session, State
from expunge.methods import build, load
from expunge.methods._steps import Descent, Stepped
from expunge.methods.salun import GradientMasks, saliency, salient
from expunge.runtime import Runtime
from expunge.task import Classification, Regression, Task
from expunge.tensors import changed, parameters, weights_digest
from expunge.train import Recipe, fit
from expunge.unlearn import Unlearned, prepare, unlearn
from worlds import world

TASK = Classification()
QUIET = Runtime(progress=False, device="cpu", batch_size=16)
SALUN = load("salun")
D = torch.float64
REFERENCE = Reference("Tests", "The expunge authors", 2026, "https://pypi.org/project/expunge/")
SHORT = {"name": "random_label", "epochs": 2, "lr": 0.05, "batch_size": 8}


class Summed(Regression):
    """A task whose loss of a sample is the sum of its outputs."""

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        return outputs.sum(dim=1)


class Scaled(nn.Module):
    """Outputs x ⊙ θ, so that the gradient of a sample's summed outputs is the sample."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(values, dtype=D))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.theta


@dataclass(frozen=True, kw_only=True)
class Slope(Stepped):
    """Steps down the sum of all weights: a gradient of 1 everywhere, or of 0."""

    name: ClassVar[str] = "slope"
    reference: ClassVar[Reference] = REFERENCE
    lr: float = 0.013
    slope: float = 1.0
    steps: int = 3

    @property
    def unlearns(self) -> Needs:
        return self.sees(forget=See.INPUTS)

    def descend(self, session: Session, descent: Descent) -> None:
        for _ in range(self.steps):
            descent.step(lambda: self.slope * sum(p.sum() for p in descent.model.parameters()), 2)  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class Rude(Method):
    """Adds to every weight, whatever masks say; its field chooses a further fault."""

    name: ClassVar[str] = "rude"
    reference: ClassVar[Reference] = REFERENCE
    unlearns = Needs(forget=See.IDS)
    fault: str = ""

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        if self.fault == "network":
            return nn.Linear(4, 3).to(D), state
        model = session.original if self.fault == "original" else session.model
        with torch.no_grad():
            for p in model.parameters():
                p += 1
        return model, state


def trained() -> nn.Module:
    return fit(deep(), TASK, blobs(), Recipe(epochs=3, lr=0.05), runtime=QUIET)


def forgotten(
    method: Method, model: nn.Module, task: Task = TASK, data: Data | None = None, **more: object
) -> Unlearned:
    data = data or blobs()
    given = {"forget": data.subset(data.ids[:9]), "retain": data.without(data.ids[:9]), "runtime": QUIET, **more}
    return unlearn(method, model, task, **given)


def mask_of(model: nn.Module, density: float = 0.5) -> Masks:
    data = blobs()
    return salient(saliency(model, TASK, data.subset(data.ids[:9]), QUIET), density)


# The mask.


def test_the_mask_by_hand() -> None:
    rows = torch.tensor([[0.3, -0.8, 0.01, 0, 0.5, -0.2], [-0.25, 0.1, 0.02, 0, -0.6, -0.2]], dtype=D)
    data = Data.from_arrays(rows, torch.zeros(2, 6, dtype=D))
    for size in (1, 2):  # a sum of absolute values of batches of one would give another mask
        runtime = Runtime(progress=False, device="cpu", batch_size=size)
        found = saliency(Scaled(*[1.0] * 6).eval(), Summed(), data, runtime)
        assert torch.allclose(found["theta"], torch.tensor([0.05, 0.7, 0.03, 0, 0.1, 0.4], dtype=D), rtol=0, atol=1e-12)
        assert salient(found, 0.5).kept["theta"].int().tolist() == [0, 1, 0, 0, 1, 1]
    assert salient({"theta": rows.abs().sum(dim=0)}, 0.5).kept["theta"].int().tolist() == [1, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("size", [1, 4, 9, 64])
def test_saliency_is_n_times_the_mean_gradient_in_eval_mode(size: int) -> None:
    model, data = trained(), blobs(9)
    before = weights_digest(model)
    found = saliency(model, TASK, data, Runtime(progress=False, device="cpu", batch_size=size))
    loss = F.cross_entropy(model(data.read(range(9)).inputs), data.targets())
    want = torch.autograd.grad(loss, list(model.parameters()))
    for value, gradient in zip(found.values(), want, strict=True):
        assert torch.allclose(value, 9 * gradient.abs(), rtol=1e-10, atol=1e-13)
    assert all(p.grad is None for p in model.parameters())
    assert weights_digest(model) == before


def test_samples_count_with_their_weights() -> None:
    data, twice = blobs(4), torch.tensor([2.0, 1, 1, 1], dtype=D)
    batch = data.read(range(4))
    weighted = Data.from_arrays(batch.inputs, batch.target, weight=twice)
    doubled = Data.from_arrays(torch.cat([batch.inputs, batch.inputs[:1]]), torch.cat([batch.target, batch.target[:1]]))
    model = trained()
    one, other = (saliency(model, TASK, d, QUIET) for d in (weighted, doubled))
    assert all(torch.allclose(one[name], other[name], rtol=1e-10, atol=1e-14) for name in one)


@pytest.mark.parametrize(("density", "count"), [(0.29, 29), (0.5, 50), (0.999, 99), (0.015, 1), (1.0, 100)])
def test_the_share_is_rounded_down(density: float, count: int) -> None:
    scores = {"a": torch.rand(10, 4), "b": torch.rand(60)}
    assert sum(int(m.sum()) for m in salient(scores, density).kept.values()) == count


def test_the_ranking_is_over_all_parameters_and_equals_go_by_order() -> None:
    scores = {"a": torch.tensor([[0.0, 3.0], [1.0, 1.0]]), "b": torch.tensor([1.0, 9.0, 1.0, 0.0])}
    found = salient(scores, 0.5).kept
    assert found["a"].int().tolist() == [[0, 1], [1, 1]]
    assert found["b"].int().tolist() == [0, 1, 0, 0]


def test_what_is_masked_already_is_not_ranked() -> None:
    scores = {"a": torch.tensor([9.0, 8.0, 1.0, 2.0]), "b": torch.tensor([3.0, 0.5])}
    free = Masks({"a": torch.tensor([False, False, True, True])})
    found = salient(scores, 0.5, free)
    assert found.kept["a"].int().tolist() == [0, 0, 0, 1]
    assert found.kept["b"].int().tolist() == [1, 0]


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    data = Data.from_arrays(torch.full((2, 2), 1e308, dtype=D), torch.zeros(2, 2, dtype=D))
    with pytest.raises(NotFinite, match=r"a finite gradient of the loss on .*, got NaN or infinity in theta"):
        saliency(Scaled(0.0, 0.0), Summed(), data, QUIET)


# What is held.


def stepped(*, slope: float = 1.0, steps: int = 3, **fields: object) -> Unlearned:
    """Return θ = (2, 2) after steps, the loss on the forget set leaning on the first weight alone."""
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=D)
    data = Data.from_arrays(rows, torch.zeros(2, 2, dtype=D))
    inner = Slope(slope=slope, steps=steps)
    given = {"forget": data.subset(data.ids[:1]), "retain": None}
    return forgotten(SALUN(method=inner, **fields), Scaled(2.0, 2.0), Summed(), data, **given)


def test_three_steps_by_hand_under_weight_decay_and_momentum() -> None:
    assert stepped().model.theta.tolist() == pytest.approx([1.92699748, 2.0], abs=1e-8)
    assert stepped().model.theta[1].item() == 2
    leaky = stepped(compat="official")
    assert leaky.model.theta.tolist() == pytest.approx([1.92699748, 1.99992707], abs=1e-8)
    assert (leaky.log["leaked"], leaky.log["may_move"]) == (1, 1)


def test_the_published_leak_over_a_whole_run() -> None:
    leaky = stepped(slope=0.0, steps=1770, compat="official").model.theta[1].item()
    assert leaky / 2 == pytest.approx(0.89178055, abs=1e-8)
    assert stepped(slope=0.0, steps=100).model.theta[1].item() == 2


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_masked_weights_end_at_the_original_to_the_bit(optimizer: str) -> None:
    model = trained()
    inner = build({**SHORT, "optimizer": optimizer, "weight_decay": 0.1})
    done = forgotten(SALUN(method=inner, density=0.3), model)
    before, after, kept = parameters(model), parameters(done.model), mask_of(model, 0.3).kept
    for name, mask in kept.items():
        assert torch.equal(after[name][~mask], before[name][~mask])
    moved, free = changed(model, done.model).count, sum(int(m.sum()) for m in kept.values())
    assert 0.9 * free < moved <= free == done.log["may_move"]
    assert done.note == ""


@pytest.mark.parametrize("inner", [SHORT, {"name": "finetune", "epochs": 2}, {"name": "gradient_ascent", "epochs": 1}])
def test_where_all_may_move_it_is_the_method_alone(inner: dict[str, object]) -> None:
    model = trained()
    alone = forgotten(build(inner), model, seed=5)
    assert weights_digest(forgotten(SALUN(method=build(inner), density=1.0), model, seed=5).model) == weights_digest(
        alone.model
    )
    half = forgotten(SALUN(method=build(inner)), model, seed=5)
    assert weights_digest(half.model) not in (weights_digest(alone.model), weights_digest(model))


def test_what_a_method_moves_all_the_same_is_set_back() -> None:
    model = trained()
    done = forgotten(SALUN(method=Rude()), model)
    kept = mask_of(model).kept
    masked = sum(int((~m).sum()) for m in kept.values())
    assert done.note == f"rude moved {masked} of the masked weights; they were set back to the original's."
    for name, p in parameters(model).items():
        assert torch.equal(parameters(done.model)[name], torch.where(kept[name], p + 1, p))
    loose = forgotten(SALUN(method=Rude(), compat="official"), model)
    assert loose.log["leaked"] == masked
    assert changed(model, loose.model).count == sum(p.numel() for p in model.parameters())


def test_methods_that_break_the_protocol_inside_are_found_out() -> None:
    with pytest.raises(Incompatible, match="which the mask is for"):
        forgotten(SALUN(method=Rude(fault="network")), trained())
    with pytest.raises(MethodFault, match="rude edited the original model in unlearn"):
        forgotten(SALUN(method=Rude(fault="original")), trained())


@pytest.mark.parametrize("compat", ["paper", "official"])
def test_masks_around_it_hold_either_way(compat: str) -> None:
    """As under pruning: the outer mask's weights are zero and stay so, where the inner one lets others leak."""
    model, generator = trained(), torch.Generator().manual_seed(1)
    outer = Masks({n: torch.rand(p.shape, generator=generator) < 0.5 for n, p in parameters(model).items()})
    outer.prune(model)
    method, data = SALUN(method=build(SHORT), compat=compat), blobs()
    sets = {"forget": data.subset(data.ids[:9]), "retain": data.without(data.ids[:9]), "recipe": None}
    session = Session(
        task=TASK, runtime=QUIET, seed=0, method="salun", phase="unlearn", needs=method.unlearns, source=model,
        given=sets, masks=outer,
    )  # fmt: skip
    found = method.unlearn(session, State())[0]
    assert outer.strays(found) == 0
    free = sum(int(m.sum()) for m in outer.kept.values())
    assert session.log["may_move"] == free // 2
    moved = changed(model, found).count
    assert free // 2 < moved <= free if compat == "official" else moved <= free // 2


def test_official_leaks_through_a_pruned_network_too() -> None:
    """Which mask is around which decides nothing: what is pruned is held, of the rest gradients alone are masked."""
    w = world()
    inner = {"name": "pruned", "sparsity": 0.5, "method": {"name": "finetune", "epochs": 1}}
    given: dict[str, Any] = {"recipe": w.recipe, "runtime": QUIET, "seed": 1, "new_model": w.new_model}
    method = SALUN(method=build(inner), compat="official")
    ready = prepare(method, w.model, w.task, train=w.train, **given)
    done = unlearn(method, ready.model, w.task, forget=w.forget, retain=w.retain, state=ready.state, **given)
    kept = {k[5:]: ready.state.tensors[k] for k in ready.state.tensors if k.startswith("mask/")}
    assert Masks(kept).strays(done.model) == 0
    assert done.log["leaked"] > 0


@pytest.mark.parametrize("first", ["a", "b"])
def test_masks_of_gradients_join_each_other_and_hold_what_either_holds(first: str) -> None:
    a, b = Masks({"w": torch.tensor([True, False])}), Masks({"w": torch.tensor([False, True])})
    one = GradientMasks({"w": torch.tensor([True, True])}).both(a)
    two = GradientMasks({"w": torch.tensor([True, True])}).both(b)
    found = one.both(two) if first == "a" else two.both(one)
    assert isinstance(found, GradientMasks)
    assert found.kept["w"].tolist() == [False, False]
    assert found.strict is not None
    assert found.strict.kept["w"].tolist() == [False, False]


def test_masks_of_gradients_and_masks_of_values_share_no_checkpoint(tmp_path: Path) -> None:
    model, data, runtime = trained(), blobs(), Runtime(progress=False, workdir=tmp_path)
    kept = mask_of(model).kept
    outer = Masks({n: ~m for n, m in kept.items()})
    each = [Masks(kept), GradientMasks(kept), GradientMasks(kept, outer), Masks(outer.kept), None]
    paths = [Checkpoint(runtime, model, TASK, data, None, Recipe(), 0, masks).path for masks in each]
    assert len(set(paths)) == 5
    assert Checkpoint(runtime, model, TASK, data, None, Recipe(), 0, Masks(copy.deepcopy(kept))).path == paths[0]


# The composition.


def test_unset_it_is_random_relabelling_with_the_published_settings() -> None:
    model = trained()
    named = build({"name": "salun", "method": {"name": "random_label", "lr": 0.013, "epochs": 10}})
    found, want = (forgotten(m, model, seed=2) for m in (SALUN(), named))
    assert weights_digest(found.model) == weights_digest(want.model)
    assert found.log["method"] == want.log["method"] == named.method.settings()
    assert SALUN().density == 0.5


def test_official_relabelling_may_draw_the_true_label() -> None:
    assert SALUN().inner.objective.exclude_true
    assert not SALUN(compat="official").inner.objective.exclude_true
    named = SALUN(compat="official", method=build(SHORT)).inner  # a method that is named keeps its own
    assert named.objective.exclude_true


def test_a_method_that_prepares_is_prepared_and_its_state_goes_on() -> None:
    model, data = trained(), blobs()
    ssd = build({"name": "ssd", "alpha": 1.2})
    method = build({"name": "salun", "method": {"name": "ssd", "alpha": 1.2}, "density": 0.2})
    alone, ready = (prepare(m, model, TASK, train=data, runtime=QUIET) for m in (ssd, method))
    own = [k for k in alone.state.tensors if not k.startswith("samples/")]
    assert own
    assert all(torch.equal(alone.state.tensors[k], ready.state.tensors[k]) for k in own)
    done = forgotten(method, ready.model, state=ready.state)
    kept = mask_of(model, 0.2).kept
    free = forgotten(ssd, alone.model, state=alone.state)
    for name, p in parameters(done.model).items():
        assert torch.equal(p[~kept[name]], parameters(model)[name][~kept[name]])
    assert 0 < changed(model, done.model).count < changed(model, free.model).count
    again = forgotten(
        method, done.model, state=done.state, forget=data.subset(data.ids[9:12]), retain=data.without(data.ids[:12])
    )
    assert again.state.meta["expunge"]["requests"] == 2
    assert method.preparation() == {"name": "salun", "method": ssd.preparation()}
    assert SALUN().preparation() == SALUN(density=0.1).preparation() == {"name": "salun", "method": None}


def test_needs_and_passes_are_the_methods_and_one_more() -> None:
    tuned, relabelled = SALUN(method=build({"name": "finetune"})), SALUN(method=build(SHORT))
    assert (tuned.unlearns.forget, tuned.unlearns.retain) == (See.LABELLED, See.LABELLED)
    assert tuned.unlearns.optional == frozenset({"recipe"})
    assert tuned.passes("unlearn", None) == {"retain": 5.0, "forget": 1.0}
    assert relabelled.passes("unlearn", None) == {"retain": 2.0, "forget": 3.0}
    ssd = SALUN(method=build({"name": "ssd"}))
    assert ssd.prepares == build({"name": "ssd"}).prepares
    assert ssd.passes("prepare", None) == build({"name": "ssd"}).passes("prepare", None)


def test_it_declines_what_a_mask_cannot_hold() -> None:
    model, w = trained(), world()
    anew, masked = SALUN(method=build({"name": "retrain"})), SALUN(method=build({"name": "head_mask"}))
    assert anew.declines(TASK, None, model) == "retrain trains anew, and the mask holds weights of the original"
    within = SALUN(method=build({"name": "pruned", "method": "retrain"}))
    assert within.declines(TASK, None, model) == anew.declines(TASK, None, model)
    assert masked.declines(TASK, w.scenario, model) == (
        "head_mask is served by more than its weights, which a mask does not reach"
    )
    assert SALUN().declines(Regression(), None, model) == build(SHORT).declines(Regression(), None, model) is not None
    assert SALUN(method=build({"name": "finetune"})).declines(Regression(), None, model) is None
    with pytest.raises(Declined, match="retrain trains anew"):
        forgotten(anew, model, recipe=Recipe(epochs=1))


def test_regression_works_where_the_method_does() -> None:
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0), dtype=D)
    data = Data.from_arrays(x, x[:, :1] + 1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).to(D).eval()
    done = forgotten(SALUN(method=build({"name": "finetune", "epochs": 1})), model, Regression(), data)
    assert 0 < changed(model, done.model).count <= 37 // 2


def test_frozen_weights_are_neither_ranked_nor_moved() -> None:
    model = trained()
    model[1].weight.requires_grad_(False)
    done = forgotten(SALUN(method=build(SHORT), density=1.0), model)
    assert done.log["may_move"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert torch.equal(done.model[1].weight, model[1].weight)


def test_weights_without_a_gradient_are_told() -> None:
    model = Scaled(1.0, 2.0, 3.0, 4.0)
    data = Data.from_arrays(torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]], dtype=D), torch.zeros(2, 4, dtype=D))
    given = {"forget": data.subset(data.ids[:1]), "retain": None}
    done = forgotten(SALUN(method=Slope(), density=0.5), model, Summed(), data, **given)
    assert "has no gradient at 1 of the 2 weights that may move" in done.note
    assert (done.model.theta != model.theta).tolist() == [True, True, False, False]


def test_a_density_that_lets_nothing_move_is_refused() -> None:
    with pytest.raises(UserError, match=r"one weight or more that may move, got none of 131 at density 0.001: raise"):
        forgotten(SALUN(density=0.001), trained())


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"density": 0.0}, "salun.density above 0 and not above 1"),
        ({"density": 1.5}, "salun.density"),
        ({"density": True}, "salun.density"),
        ({"density": float("nan")}, "salun.density"),
        ({"density": "0.5"}, "salun.density"),
        ({"compat": None}, "salun.compat paper or official, got None"),
        ({"compat": "papers"}, "salun.compat paper or official"),
        (
            {"method": "random_label"},
            r"salun.method to name a method, got 'random_label': write method = \{name = 'random_label'\}, or method",
        ),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text):
        SALUN(**fields)
