"""SSD: the dampening kernel by hand-checked numbers, the bound on ratios, and requests end to end."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import CASES, blobs, deep
from expunge.data import Data
from expunge.errors import Incompatible, MissingNeed, NotFinite, UserError
from expunge.fisher import Diagonal, diagonal
from expunge.masks import Masks
from expunge.method import Session, State
from expunge.methods import build, load
from expunge.methods._dampen import SHARE, TOP, Count, dampen, ratio_above
from expunge.runtime import Runtime
from expunge.task import Classification, Regression
from expunge.tensors import weights_digest
from expunge.train import Recipe, fit
from expunge.unlearn import Unlearned, prepare, unlearn

SSD = load("ssd")
TASK = Classification()
QUIET = Runtime(batch_size=7, progress=False)
PARITY = [[1.0, 1], [1, -1], [2, 0], [0, 2]]
AXES = [[1.0, 0], [1, 0], [2, 0], [0, 2]]


def t(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def two_class(second: float, x: list[list[float]]) -> tuple[nn.Module, Data]:
    """Return logits = Wx with equal rows (1, second), so p = (½, ½), and four samples; the last is to be forgotten."""
    model = nn.Linear(2, 2, bias=False).double()
    model.weight.data = t([1.0, second], [1.0, second])
    return model.eval(), Data.from_arrays(t(*x), torch.tensor([0, 1, 0, 1]), ids=["x1", "x2", "x3", "x4"])


def request(method: Any, model: nn.Module, data: Data, ids: list[str], **given: Any) -> Unlearned:
    ready = prepare(method, model, TASK, train=data, runtime=QUIET)
    return unlearn(method, model, TASK, forget=data.subset(ids), state=ready.state, runtime=QUIET, **given)


def trained(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Data]:
    data = blobs(60, dtype=dtype)
    return fit(deep(dtype), TASK, data, Recipe(epochs=8, lr=0.05), runtime=QUIET), data


@pytest.mark.parametrize("sign", [1, -1])
def test_four_samples_by_hand(sign: int):
    model, data = two_class(2.0 * sign, PARITY)
    done = request(SSD(alpha=2.0), model, data, ["x4"])
    torch.testing.assert_close(done.model.weight.data, t([1, 0.75 * sign], [1, 0.75 * sign]))
    assert (done.log["selected"], done.log["changed"], done.log["zeroed"], done.log["unseen"]) == (0.5, 0.5, 0, 0)
    assert dict(done.changed.tensors) == {"weight": (2, 4)}


@pytest.mark.parametrize(
    ("alpha", "second"), [(3.999, 0.5), (4.0, 2.0), (1.0, 0.5), (4.001, 2.0)], ids=["below", "tie", "low", "above"]
)
def test_no_ratio_exceeds_the_bound(alpha: float, second: float):
    """The ratio is n/n_f = 4 exactly where only the forgotten sample has a gradient; a tie is not selected."""
    model, data = two_class(2.0, AXES)
    done = request(SSD(alpha=alpha), model, data, ["x4"])
    torch.testing.assert_close(done.model.weight.data, t([1, second], [1, second]))


def test_alpha_at_the_bound_warns_with_the_numbers(caplog: pytest.LogCaptureFixture):
    model, data = two_class(2.0, AXES)
    done = request(SSD(alpha=10), model, data, ["x4"])
    for text in (caplog.text, done.note):
        assert "α = 10 selects nothing: with 1 of 4 samples to forget no importance ratio exceeds n/n_f = 4" in text
    assert done.changed.count == 0
    assert weights_digest(done.model) == weights_digest(model)
    below = request(SSD(alpha=2), model, data, ["x4"])
    assert "selects nothing" not in below.note


def test_an_alpha_above_every_ratio_says_what_the_largest_is():
    """Sample x1 is half of each weight's importance: every ratio is at most 2, and α = 3 is below the bound of 4."""
    model, data = two_class(2.0, [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    done = request(SSD(alpha=3), model, data, ["x1"])
    assert done.changed.count == 0
    assert "No weight had an importance ratio above α = 3" in done.note
    assert "The largest ratio is 2: take a smaller α" in done.note
    assert request(SSD(alpha=1.99), model, data, ["x1"]).changed.count > 0


TABLE_D, TABLE_F, TABLE_THETA = t(1, 1, 1, 1, 0, 1), t(0.4, 0.6, 2, 10, 3, 0), t(1, -1, 2, -2, 5, 7)


@pytest.mark.parametrize(
    ("alpha", "dampening", "theta", "count"),
    [
        (0.5, 1, (1, -1, 1, -0.2, 0, 7), Count(6, 4, 3, 1, 1)),
        (1, 1, (1, -1, 1, -0.2, 0, 7), Count(6, 3, 3, 1, 1)),
        (10, 1, (1, -1, 2, -2, 0, 7), Count(6, 1, 1, 1, 1)),
        (0.5, 4, (1, -1, 2, -0.8, 0, 7), Count(6, 4, 2, 1, 1)),
        (0.5, 0, (1, 0, 0, 0, 0, 7), Count(6, 4, 4, 4, 1)),
        (0, 1, (1, -1, 1, -0.2, 0, 7), Count(6, 5, 3, 1, 1)),
        (0, 0, (0, 0, 0, 0, 0, 7), Count(6, 5, 5, 5, 1)),
    ],
)
def test_kernel_table(alpha: float, dampening: float, theta: tuple[float, ...], count: Count):
    new, counts = dampen(TABLE_THETA, TABLE_F, TABLE_D, alpha, dampening)
    torch.testing.assert_close(new, t(*theta))
    assert counts == count


def test_unseen_weights_are_zeroed_or_skipped_and_counted():
    for policy, expected, count in (("zero", 0.0, Count(1, 1, 1, 1, 1)), ("skip", 5.0, Count(1, 0, 0, 0, 1))):
        new, counts = dampen(t(5.0), t(3.0), t(0.0), 1e9, 1.0, policy)
        assert (float(new), counts) == (expected, count)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("reference", [0.0, 1.0])
def test_no_importance_on_the_forget_set_is_never_selected(alpha: float, reference: float):
    new, counts = dampen(t(5.0, -5.0), t(0.0, 0.0), t(reference, reference), alpha, 1.0)
    assert new.tolist() == [5.0, -5.0]
    assert counts == Count(2, 0, 0, 0, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_kernel_refuses_importances_that_are_not_finite(bad: float, which: int):
    importances = [t(1.0, 1.0), t(1.0, 1.0)]
    importances[which][1] = bad
    with pytest.raises(NotFinite, match="finite importances"):
        dampen(t(1.0, 1.0), *importances, 1.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_only_the_product_is_cast_to_half_precision(dtype: torch.dtype):
    """β = 1e-9/3e-9 is exact to float32 though both importances underflow in float16."""
    theta = torch.tensor([1.5, -3.0, 2.0], dtype=dtype)
    forget, reference = t(3e-9, 3e-9, 1e-9), t(1e-9, 1e-9, 1e-9)
    new, count = dampen(theta, forget, reference, 2.0, 1.0)
    assert new.dtype == dtype
    assert torch.equal(new, torch.tensor([0.5, -1.0, 2.0], dtype=dtype))
    assert count.changed == 2
    single, _ = dampen(theta, forget.float(), reference.float(), 2.0, 1.0)
    assert torch.equal(single, new)


def test_ratio_map_between_the_two_references():
    """α on I_D is α′ = α(1−φ)/(1−αφ) on I_r; with φ = 0.05, α = 10 gives 19, and no ratio reaches 20."""
    generator = torch.Generator().manual_seed(0)
    forget = torch.rand(10_000, generator=generator, dtype=torch.float64)
    left = forget * 10 ** (4 * torch.rand(10_000, generator=generator, dtype=torch.float64) - 3)
    whole = 0.05 * forget + 0.95 * left
    selected = forget > 10 * whole
    assert torch.equal(selected, forget > 19 * left)
    assert 0 < int(selected.sum()) < 10_000
    assert float((forget / whole).max()) < 20
    assert dampen(torch.ones_like(forget), forget, whole, 10, 1.0)[1].selected == int(selected.sum())
    a_tenth = 0.1 * forget + 0.9 * left
    assert dampen(torch.ones_like(forget), forget, a_tenth, 10, 1.0)[1].selected == 0


def test_retain_importance_is_a_difference_of_sums():
    whole, gone = Diagonal({"w": t(1.5, 1.5)}, 4, "loss", "x"), Diagonal({"w": t(0, 1)}, 1, "loss", "x")
    torch.testing.assert_close(whole.subtract(gone).values["w"], t(0.5, 1 / 6))


@settings(max_examples=40, deadline=None)
@given(
    x=st.lists(st.tuples(*[st.floats(-3, 3, width=32)] * 2), min_size=3, max_size=8),
    share=st.integers(1, 6),
    of=st.sampled_from(["loss", "output_norm"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_ratio_of_importances_never_exceeds_the_bound(x, share, of, dtype):
    n, n_f = len(x), min(share, len(x) - 1)
    torch.manual_seed(n)
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).to(dtype).eval()
    data = Data.from_arrays(torch.tensor(x, dtype=dtype), torch.arange(n) % 2)
    whole = diagonal(model, TASK, data, of=of).values
    forget = diagonal(model, TASK, data.subset(data.ids[:n_f]), of=of).values
    slack = 1 + (1e-5 if dtype == torch.float32 else 1e-12)
    for name in whole:
        assert bool((forget[name] <= whole[name] * (n / n_f) * slack + 1e-30).all())


@pytest.mark.parametrize("n_f", [1, 2, 3, 7])
def test_alpha_at_the_bound_selects_nothing_whatever_the_rounding(n_f: int):
    """Weights that only forgotten samples move have the ratio n/n_f up to rounding, on either side."""
    torch.manual_seed(0)
    n = 23
    x = torch.zeros(n, 12)
    x[:n_f, :8], x[n_f:, 8:] = torch.randn(n_f, 8), torch.randn(n - n_f, 4)
    data = Data.from_arrays(x, torch.arange(n) % 3)
    model = nn.Linear(12, 3).eval()
    done = request(SSD(alpha=n / n_f), model, data, data.ids[:n_f])
    assert done.changed.count == 0
    just_below = request(SSD(alpha=0.999 * n / n_f), model, data, data.ids[:n_f])
    assert just_below.changed.tensors["weight"][0] == 8 * 3


def test_tied_weight_is_dampened_once():
    model, data = CASES["tied"].make()
    ids = data.ids[:2]
    done = request(SSD(alpha=1.0), model, data, ids)
    assert done.model.head.weight is done.model.embedding.weight
    forget = diagonal(model, TASK, data.subset(ids), engine="reference").values["embedding.weight"]
    whole = diagonal(model, TASK, data, engine="reference").values["embedding.weight"]
    beta = torch.where(forget > whole, whole / forget, torch.ones_like(whole))
    assert float(beta.min()) < 0.9
    torch.testing.assert_close(done.model.head.weight.data, beta * model.head.weight.data)
    assert sorted(done.changed.tensors) == ["embedding.weight", "head.bias"]


def test_frozen_parameters_stay_as_they_are():
    model, data = trained()
    model[0][0][0].requires_grad_(False)
    done = request(SSD(alpha=0.5), model, data, data.ids[:6])
    assert [k for k, (c, _) in done.changed.tensors.items() if c == 0] == ["0.0.0.weight", "0.0.0.bias"]
    assert not done.model[0][0][0].weight.requires_grad
    assert done.model[1].weight.requires_grad
    assert not any("0.0.0" in k for k in done.state.tensors)


def test_batchnorm_buffers_and_modes_stay_and_affine_weights_are_dampened():
    model, data = trained()
    model.train()
    model[0][0][1].eval()
    done = request(SSD(alpha=0.5), model, data, data.ids[:6])
    for (name, a), (_, b) in zip(model.named_buffers(), done.model.named_buffers(), strict=True):
        assert torch.equal(a, b), name
    assert done.changed.tensors["0.0.1.weight"][0] > 0
    assert [m.training for m in done.model.modules()] == [m.training for m in model.modules()]


def test_edit_equals_the_formula_on_every_parameter():
    model, data = trained()
    ids = data.ids[::7]
    done = request(SSD(alpha=1.3, dampening=0.7), model, data, ids)
    forget = diagonal(model, TASK, data.subset(ids), engine="reference").values
    whole = diagonal(model, TASK, data, engine="reference").values
    for name, theta in model.named_parameters():
        beta = torch.where(forget[name] > 1.3 * whole[name], (0.7 * whole[name] / forget[name]).clamp(max=1), 1.0)
        torch.testing.assert_close(dict(done.model.named_parameters())[name].data, beta * theta.data)
    assert 0 < done.changed.share < 1
    assert done.log["changed"] == pytest.approx(done.changed.share)


@pytest.mark.parametrize("n_f", [2, 6, 20, 30])
def test_auto_alpha_is_a_share_of_the_bound_unless_that_selects_too_many(n_f: int):
    model, data = trained()
    auto = request(SSD(), model, data, data.ids[:n_f])
    floor = SHARE * 60 / n_f
    plain = request(SSD(alpha=floor), model, data, data.ids[:n_f])
    assert auto.log["selected"] <= TOP
    if plain.log["selected"] <= TOP:
        assert auto.log["alpha"] == pytest.approx(floor)
    else:
        assert auto.log["alpha"] > floor
        assert request(SSD(alpha=0.999 * auto.log["alpha"]), model, data, data.ids[:n_f]).log["selected"] > TOP
    number = request(SSD(alpha=auto.log["alpha"]), model, data, data.ids[:n_f])
    assert weights_digest(number.model) == weights_digest(auto.model)


@settings(max_examples=50, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=40), share=st.floats(0, 0.99)
)
def test_ratio_above_selects_at_most_the_share_and_no_less_than_it_could(pairs, share):
    forget = Diagonal({"a": t(*[f for f, _ in pairs[:5]]), "b": t(*[f for f, _ in pairs[5:]])}, 2, "loss", "x")
    whole = Diagonal({"a": t(*[d for _, d in pairs[:5]]), "b": t(*[d for _, d in pairs[5:]])}, 6, "loss", "x")
    alpha = ratio_above(forget, whole, share)
    ratios = sorted((3 * f / d if d else 0.0) for f, d in pairs)
    selected = sum(r > alpha for r in ratios)
    assert selected <= share * len(pairs)
    below = [r for r in ratios if r < alpha]
    if below:  # the next ratio down would have selected more than the share
        assert sum(r >= below[-1] for r in ratios) > share * len(pairs)


def test_ratio_above_under_masks_is_that_of_the_weights_that_may_move():
    generator = torch.Generator().manual_seed(0)
    sums = [{n: torch.rand(7, 5, generator=generator) for n in ("a", "b", "c")} for _ in range(2)]
    free = {n: torch.rand(7, 5, generator=generator) < 0.3 for n in ("a", "b")}
    rest = [{n: s[n][free[n]] if n in free else s[n] for n in s} for s in sums]
    whole, left = ([Diagonal(s, n, "loss", "x") for s, n in zip(each, (2, 6), strict=True)] for each in (sums, rest))
    for share in (0.0, 0.04, 0.5):
        assert ratio_above(*whole, share, free) == ratio_above(*left, share)
        assert ratio_above(*whole, share, {}) == ratio_above(*whole, share)
    assert ratio_above(*whole, 0.0, {n: torch.zeros(7, 5) > 0 for n in "abc"}) == 0


@pytest.mark.parametrize("importance", ["exact", "batch_mean"])
def test_auto_on_a_pruned_network_selects_its_share_of_the_weights_that_are_left(importance: str):
    torch.manual_seed(0)
    data, model = blobs(60), nn.Sequential(nn.Linear(4, 400), nn.Tanh(), nn.Linear(400, 3)).double()
    model, size, pruned = fit(model, TASK, data, Recipe(epochs=2, lr=0.05), runtime=QUIET), 3203, 1520
    method = build({"name": "pruned", "sparsity": 0.95, "method": {"name": "ssd", "importance": importance}})
    ready = prepare(method, model, TASK, train=data, recipe=Recipe(epochs=2, lr=0.05), runtime=QUIET)
    done = unlearn(method, ready.model, TASK, forget=data.subset(data.ids[:30]), state=ready.state, runtime=QUIET)
    assert ready.log["pruned"]["prunable"] - ready.log["pruned"]["kept"] == pruned
    assert round(done.log["selected"] * size) == int(TOP * (size - pruned)) < int(TOP * size)


def test_the_largest_ratio_that_is_told_is_of_weights_that_may_move():
    """The second column, which only the forgotten sample moves, has the ratio 4, and is masked; the first has 1."""
    model, data = two_class(2.0, [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 2.0]])
    method = SSD(alpha=2.0)
    state = prepare(method, model, TASK, train=data, runtime=QUIET).state
    session = Session(
        task=TASK, runtime=QUIET, seed=0, method="ssd", phase="unlearn", needs=method.unlearns, source=model,
        given={"forget": data.subset(["x4"])}, masks=Masks({"weight": torch.tensor([[True, False]] * 2)}),
    )  # fmt: skip
    method.unlearn(session, State(state.tensors, state.meta))
    assert "The largest ratio is 1: take a smaller α" in session.log["note"][0]


def test_callers_model_is_left_bit_identical_and_the_result_repeats():
    model, data = trained()
    before = (weights_digest(model), [p.grad for p in model.parameters()], torch.get_rng_state().tolist())
    first, second = (request(SSD(alpha=1.0), model, data, data.ids[:6]) for _ in range(2))
    assert before == (weights_digest(model), [p.grad for p in model.parameters()], torch.get_rng_state().tolist())
    assert weights_digest(first.model) == weights_digest(second.model) != weights_digest(model)


@pytest.mark.parametrize("name", ["state.safetensors", "state"])
def test_state_through_disk_gives_identical_weights(name: str, tmp_path):
    model, data = trained()
    ready = prepare(SSD(alpha=1.0), model, TASK, train=data)
    ready.state.save(tmp_path / name)
    forget = data.subset(data.ids[:6])
    here, back = (
        unlearn(SSD(alpha=1.0), model, TASK, forget=forget, state=s) for s in (ready.state, State.load(tmp_path / name))
    )
    assert weights_digest(here.model) == weights_digest(back.model) != weights_digest(model)
    assert all(torch.equal(here.state.tensors[k], back.state.tensors[k]) for k in here.state.tensors)


def test_next_state_equals_one_prepared_without_the_forgotten():
    model, data = trained()
    ids = data.ids[3:12]
    done = request(SSD(alpha=1.0), model, data, ids)
    without = prepare(SSD(alpha=1.0), model, TASK, train=data.without(ids), runtime=QUIET).state
    names = [k for k in without.tensors if k.startswith("importance/")]
    assert len(names) == len(list(model.parameters()))
    for name in names:
        torch.testing.assert_close(done.state.tensors[name], without.tensors[name], rtol=1e-6, atol=1e-12)
    assert (done.state.meta["count"], done.state.meta["of"]) == (51, "loss")
    assert done.state.tensors["samples/forgotten"].tolist() == [int(i in ids) for i in data.ids]
    content = done.state.tensors["samples/content"]
    assert [int(v) for v in content != 0] == [int(i not in ids) for i in data.ids]


def test_second_request_says_that_the_importance_is_old():
    model, data = trained()
    first = request(SSD(alpha=1.0), model, data, data.ids[:6])
    assert "ago" not in first.note
    again = {"forget": data.subset(data.ids[6:9]), "state": first.state}
    second = unlearn(SSD(alpha=1.0), first.model, TASK, **again)
    assert "taken 1 request(s) ago, before the weights were edited" in second.note
    assert second.state.meta["count"] == 51
    assert int(second.state.tensors["samples/forgotten"].sum()) == 9
    with pytest.raises(UserError, match="already forgotten train/0"):
        unlearn(SSD(alpha=1.0), first.model, TASK, forget=data.subset(["train/0"]), state=first.state)


def test_a_stale_importance_makes_no_claim_about_the_bound():
    """The bound holds at one set of weights; after an edit a ratio may exceed n/n_f and is then selected."""
    model, data = two_class(2.0, AXES)
    ready = prepare(SSD(alpha=1.0), model, TASK, train=data)
    first = unlearn(SSD(alpha=1.0), model, TASK, forget=data.subset(["x4"]), state=ready.state)
    second = unlearn(SSD(alpha=5.0), first.model, TASK, forget=data.subset(["x1"]), state=first.state)
    assert "selects nothing" not in second.note
    assert "taken 1 request(s) ago" in second.note


def test_refresh_needs_retain_data_and_renews_the_state():
    model, data = trained()
    method = SSD(alpha=1.0, refresh=True)
    ready = prepare(method, model, TASK, train=data, runtime=QUIET)
    ids = data.ids[:6]
    with pytest.raises(MissingNeed, match=r"retain for ssd to unlearn, got none: pass retain="):
        unlearn(method, model, TASK, forget=data.subset(ids), state=ready.state)
    given = {"forget": data.subset(ids), "retain": data.without(ids), "state": ready.state}
    done = unlearn(method, model, TASK, **given, runtime=QUIET)
    plain = request(SSD(alpha=1.0), model, data, ids)
    assert weights_digest(done.model) == weights_digest(plain.model)
    fresh = diagonal(done.model.eval(), TASK, data.without(ids), engine="reference")
    for name, sums in fresh.sums.items():
        torch.testing.assert_close(done.state.tensors[f"importance/{name}"], sums, rtol=1e-6, atol=1e-12)
    assert done.state.meta["count"] == 54
    third = unlearn(
        method, done.model, TASK, forget=data.subset(data.ids[6:8]), retain=data.without(data.ids[:8]), state=done.state
    )
    assert "ago" not in third.note


def test_selected_but_not_shrunk_is_not_called_below_alpha():
    """With λ above every ratio weights are selected and kept: the note must not blame α."""
    model, data = trained()
    done = request(SSD(alpha=1.0, dampening=1000.0), model, data, data.ids[:6])
    assert done.log["selected"] > 0
    assert done.changed.count == 0
    assert "above α" not in done.note
    assert "above λ = 1000" in done.note


def test_regression_and_half_precision_models_can_forget():
    model, data = CASES["linear_regression"].make()
    ready = prepare(SSD(alpha=1.0), model, Regression(), train=data)
    done = unlearn(SSD(alpha=1.0), model, Regression(), forget=data.subset(data.ids[:2]), state=ready.state)
    assert done.changed.count > 0
    half, small = trained(torch.float32)[0].bfloat16(), blobs(60, dtype=torch.bfloat16)
    done = request(SSD(alpha=1.0), half, small, small.ids[:6])
    assert done.changed.count > 0
    assert all(p.dtype == torch.bfloat16 for p in done.model.parameters())


def mean(size: int = 2, order: str = "data", **fields: Any) -> Any:
    return SSD(alpha=2.0, importance="batch_mean", batch=size, order=order, **fields)


@pytest.mark.parametrize(
    ("ids", "method", "row", "second"),
    [
        (["x1", "x2", "x3", "x4"], mean(2), (0.125, 0.25), 0.5),
        (["x1", "x3", "x2", "x4"], mean(2), (0.3125, 0.0625), 0.125),
        (["x1", "x2", "x3", "x4"], mean(4), (0.0625, 0.0), 0.0),
        (["x1", "x2", "x3", "x4"], mean(2, "label"), (0.3125, 0.0625), 0.125),
        (["x4", "x3", "x2", "x1"], mean(2, "label"), (0.3125, 0.0625), 0.125),
        (["x4", "x3", "x2", "x1"], mean(1), (0.375, 0.375), 0.75),
    ],
    ids=["by twos", "another order", "one batch", "sorted", "sorted from another order", "single samples"],
)
def test_means_over_batches_give_three_answers_from_one_data_set(
    ids: list[str], method: Any, row: tuple[float, float], second: float
):
    """Ratios of 4, 16 (above n/n_f = 4) and infinity; single samples give 8/3, as the exact importance does."""
    model, data = two_class(2.0, PARITY)
    data = data.subset(ids)
    state = prepare(method, model, TASK, train=data, runtime=QUIET).state
    torch.testing.assert_close(state.tensors["importance/weight"] / state.meta["count"], t(row, row))
    done = unlearn(method, model, TASK, forget=data.subset(["x4"]), state=state, runtime=QUIET)
    torch.testing.assert_close(done.model.weight.data, t([1, second], [1, second]))


def test_means_over_batches_do_not_depend_on_the_runtimes_batches():
    model, data = trained()
    alone = [prepare(mean(16), model, TASK, train=data, runtime=Runtime(batch_size=n, progress=False)) for n in (5, 60)]
    assert alone[0].state.meta == {**alone[1].state.meta, "expunge": alone[0].state.meta["expunge"]}
    for name in (n for n in alone[0].state.tensors if n.startswith("importance/")):
        assert torch.equal(alone[0].state.tensors[name], alone[1].state.tensors[name])
    other = prepare(mean(15), model, TASK, train=data, runtime=QUIET).state
    assert not torch.equal(other.tensors["importance/1.bias"], alone[0].state.tensors["importance/1.bias"])


def test_means_over_batches_claim_no_bound(caplog: pytest.LogCaptureFixture):
    """A ratio of 16 is selected by α = 10, which selects nothing with the exact importance: n/n_f is 4."""
    model, data = two_class(2.0, PARITY)
    given = {"importance": "batch_mean", "batch": 2}
    done = request(SSD(alpha=10, **given), model, data, ["x4"])
    torch.testing.assert_close(done.model.weight.data, t([1, 0.125], [1, 0.125]))
    above = request(SSD(alpha=17, **given), model, data, ["x4"])
    assert above.changed.count == 0
    assert "above α = 17: nothing was changed. The largest ratio is 16: take a smaller α" in above.note
    assert "n/n_f" not in done.note + above.note + caplog.text


def test_auto_alpha_of_means_over_batches_is_the_share_of_weights_alone():
    model, data = trained()
    auto = request(SSD(importance="batch_mean", batch=8), model, data, data.ids[:6])
    assert 0 < auto.log["selected"] <= TOP
    more = request(SSD(importance="batch_mean", batch=8, alpha=0.999 * auto.log["alpha"]), model, data, data.ids[:6])
    assert more.log["selected"] > TOP


def test_means_over_batches_keep_the_forgotten_and_say_so_unless_refreshed():
    model, data = trained()
    ids, more = data.ids[:6], data.ids[6:9]
    done = request(mean(8), model, data, ids)
    assert "still holds the forgotten samples' share, which does not come out of means over batches" in done.note
    assert (done.state.meta["held"], done.state.meta["stale"]) == (6, 1)
    again = unlearn(mean(8), done.model, TASK, forget=data.subset(more), state=done.state, runtime=QUIET)
    assert (again.state.meta["held"], again.state.meta["stale"]) == (9, 2)
    given = {"retain": data.without(ids), "runtime": QUIET}
    method = mean(8, refresh=True)
    state = prepare(method, model, TASK, train=data, runtime=QUIET).state
    clean = unlearn(method, model, TASK, forget=data.subset(ids), state=state, **given)
    assert weights_digest(clean.model) == weights_digest(done.model)
    assert "still holds" not in clean.note
    anew = prepare(method, clean.model, TASK, train=data.without(ids), runtime=QUIET).state
    assert (clean.state.meta["held"], clean.state.meta["stale"], clean.state.meta["count"]) == (0, 0, 7)
    for name in (n for n in anew.tensors if n.startswith("importance/")):
        assert torch.equal(clean.state.tensors[name], anew.tensors[name])
    with pytest.raises(UserError, match="something to retain"):
        unlearn(mean(8), model, TASK, forget=data, state=state, runtime=QUIET)


def test_states_of_other_means_are_refused():
    model, data = trained()
    state = prepare(mean(8), model, TASK, train=data, runtime=QUIET).state
    forget = data.subset(data.ids[:6])
    for method, match in (
        (SSD(alpha=2.0), "with the importance of 'loss', got one of 'batch_mean'"),
        (mean(16), "prepared with batch=16, got one with batch=8: prepare ssd anew, or ask with batch=8"),
        (mean(8, "label"), "prepared with order='label', got one with order='data'"),
    ):
        with pytest.raises(Incompatible, match=match):
            unlearn(method, model, TASK, forget=forget, state=state, runtime=QUIET)


def test_real_targets_cannot_be_sorted_by_class():
    model, data = CASES["linear_regression"].make()
    with pytest.raises(UserError, match=r"one class label a sample to sort by, got .*: set ssd\.order to 'data'"):
        prepare(mean(2, "label"), model, Regression(), train=data, runtime=QUIET)
    assert prepare(mean(2), model, Regression(), train=data, runtime=QUIET).state.meta["of"] == "batch_mean"


@pytest.mark.parametrize("name", ["ssd", "lfssd"])
def test_only_what_prepared_by_names_changes_what_prepare_leaves(name: str):
    """The fields named decide the state; the others may be tried on one that is there."""
    model, data = trained()
    base = {"alpha": 2.0, "importance": "batch_mean", "batch": 8, "order": "label"}
    other = {
        "alpha": 3.0, "dampening": 0.5, "unseen": "skip", "refresh": True,
        "importance": "exact", "batch": 16, "order": "data",
    }  # fmt: skip
    cls = load(name)
    assert {f.name for f in dataclasses.fields(cls)} == other.keys()

    def left(**fields: Any) -> tuple[Any, ...]:
        state = prepare(cls(**base | fields), model, TASK, train=data, runtime=QUIET).state
        meta = {k: v for k, v in state.meta.items() if k != "expunge"}
        return meta, {k: v.tolist() for k, v in state.tensors.items() if k.startswith("importance/")}

    changes = {field for field, value in other.items() if left(**{field: value}) != left()}
    assert changes == cls.prepared_by


def test_state_of_something_else_is_refused():
    model, data = trained()
    state = prepare(SSD(), model, TASK, train=data).state
    forget = data.subset(data.ids[:6])
    with pytest.raises(Incompatible, match="a state of lfssd, got one of ssd"):
        unlearn(load("lfssd")(), model, TASK, forget=forget, state=state)
    with pytest.raises(MissingNeed, match="the state that ssd prepared"):
        unlearn(SSD(), model, TASK, forget=forget)
    spoiled = State(
        {k: v.clone().fill_(math.nan) if k == "importance/1.bias" else v for k, v in state.tensors.items()}, state.meta
    )
    with pytest.raises(NotFinite, match=r"stored importances, got NaN or infinity in 1\.bias"):
        unlearn(SSD(), model, TASK, forget=forget, state=spoiled)
    other = Data.from_arrays(forget.read(range(6)).inputs + 1, forget.targets(), ids=forget.ids)
    with pytest.raises(UserError, match="other content under train/0"):
        unlearn(SSD(), model, TASK, forget=other, state=state)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"alpha": -1}, "ssd.alpha of 0 or more"),
        ({"alpha": math.nan}, "ssd.alpha of 0 or more"),
        ({"alpha": "much"}, "ssd.alpha"),
        ({"dampening": -0.1}, "ssd.dampening of 0 or more"),
        ({"unseen": "keep"}, "ssd.unseen"),
        ({"importance": "true"}, "ssd.importance"),
        ({"order": "random"}, "ssd.order"),
        ({"batch": 0}, "ssd.batch of 1 or more samples, got 0"),
        ({"batch": 1.5}, "ssd.batch"),
        ({"aplha": 1}, "did you mean 'alpha'"),
    ],
)
def test_bad_settings_are_refused_in_words(config: dict[str, Any], match: str):
    with pytest.raises(UserError, match=match):
        build({"name": "ssd", **config})


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"importance": "true"}, "ssd.importance 'exact' or 'batch_mean', got 'true'"),
        ({"order": "random"}, "ssd.order 'label' or 'data', got 'random'"),
        ({"batch": True}, "ssd.batch of 1 or more samples, got True"),
        ({"batch": "64"}, "ssd.batch of 1 or more samples, got '64': give a whole number"),
        ({"alpha": "2"}, "ssd.alpha of 0 or more, or 'auto', got '2': give a finite number"),
        ({"alpha": True}, "ssd.alpha of 0 or more, or 'auto', got True"),
        ({"dampening": "1"}, "ssd.dampening of 0 or more, got '1': give a finite number"),
        ({"refresh": "no"}, "ssd.refresh True or False, got 'no'"),
        ({"refresh": 0}, "ssd.refresh True or False, got 0"),
    ],
)
def test_bad_settings_are_refused_by_the_class_too(fields: dict[str, Any], match: str):
    with pytest.raises(UserError, match=match):
        SSD(**fields)


@pytest.mark.parametrize("name", ["ssd", "lfssd"])
@pytest.mark.parametrize("value", [None, math.nan, [1.0], b"auto"], ids=str)
def test_no_field_takes_what_is_neither_a_number_nor_one_of_its_words(name: str, value: Any):
    for field in (f.name for f in dataclasses.fields(SSD)):
        with pytest.raises(UserError, match=rf"Expected {name}\.{field} .*, got "):
            load(name)(**{field: value})


def test_the_ends_of_the_ranges_are_taken():
    found = SSD(alpha=0, dampening=0, batch=1, unseen="skip", refresh=True, importance="batch_mean", order="data")
    assert build(found.settings()) == found
    assert SSD().alpha == "auto"
