"""ASSD: the percentile by hand-checked numbers, ties and infinite ratios, and requests end to end."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cases import CASES, blobs, deep
from expunge.data import Data
from expunge.errors import Incompatible, MissingNeed, UserError
from expunge.fisher import Diagonal, diagonal
from expunge.masks import Masks
from expunge.method import Method, See, Session, State
from expunge.methods import build, load
from expunge.methods._dampen import dampen
from expunge.methods.assd import percentile, ratios, threshold
from expunge.runtime import Runtime
from expunge.task import Classification, Regression
from expunge.tensors import weights_digest
from expunge.train import Recipe, fit
from expunge.unlearn import Unlearned, prepare, unlearn

ASSD, SSD = load("assd"), load("ssd")
TASK = Classification()
QUIET = Runtime(batch_size=7, progress=False)


def t(*values: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def diagonals(values: Tensor, reference: Tensor, n_f: int = 5, n: int = 100) -> tuple[Diagonal, Diagonal]:
    """Return diagonals with these means over samples."""
    return Diagonal({"w": values * n_f}, n_f, "loss", "x"), Diagonal({"w": reference * n}, n, "loss", "x")


def request(method: Any, model: nn.Module, data: Data, ids: list[str], **given: Any) -> Unlearned:
    ready = prepare(method, model, TASK, train=data, runtime=QUIET)
    return unlearn(method, model, TASK, forget=data.subset(ids), state=ready.state, runtime=QUIET, **given)


def trained(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Data]:
    data = blobs(60, dtype=dtype)
    return fit(deep(dtype), TASK, data, Recipe(epochs=8, lr=0.05), runtime=QUIET), data


@pytest.mark.parametrize(
    ("phi", "share"), [(10, 2.3979), (5, 1.791759469), (1, 0.6931), (0.25, 0.2231), (0.166, 0.1536)]
)
def test_the_share_selected_follows_from_how_much_is_forgotten(phi: float, share: float):
    assert percentile(int(1000 * phi), 100_000) == pytest.approx(100 - share, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_two_hundred_ratios_by_hand(dtype: torch.dtype):
    """Ratios 1 to 200 and a twentieth to forget: α = 196.434398656, four selected, and the last is divided by 200."""
    values = torch.arange(1, 201, dtype=dtype)
    forget, whole = diagonals(values, torch.ones_like(values))
    q = percentile(forget.count, whole.count)
    assert q == pytest.approx(98.208240531, abs=1e-9)
    alpha = threshold(ratios(forget, whole), q, torch.finfo(dtype).eps)
    assert alpha == pytest.approx(196.434398656, rel=1e-6 if dtype == torch.float32 else 1e-9)
    new, count = dampen(torch.ones_like(values), values, torch.ones_like(values), alpha, 1.0)
    assert (count.selected, count.changed) == (4, 4)
    assert float(new[-1]) == pytest.approx(0.005)
    assert new.ne(1).nonzero().flatten().tolist() == [196, 197, 198, 199]


def test_ratios_without_a_value_do_not_count_but_infinite_ones_are_selected():
    values, whole = torch.arange(1.0, 203.0), torch.ones(202)
    values[200:], whole[200:] = t(3.0, 0.0), t(0.0, 0.0)
    forget, reference = diagonals(values.double(), whole.double())
    alpha = threshold(ratios(forget, reference), percentile(5, 100), 1e-16)
    assert alpha == pytest.approx(196.434398656)
    new, count = dampen(torch.ones(202), values, whole, alpha, 1.0)
    assert (count.selected, count.zeroed, count.unseen) == (5, 1, 1)
    assert new[200:].tolist() == [0.0, 1.0]
    assert dampen(torch.ones(202), values, whole, alpha, 1.0, "skip")[1].selected == 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_tie_at_the_percentile_is_not_selected_whatever_the_rounding(dtype: torch.dtype):
    """Many weights of one ratio around the percentile, at scales where I_f/I_D and α·I_D round to either side."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.rand(4000, generator=generator, dtype=dtype) + 0.1
    ratio = torch.where(torch.arange(4000) < 10, 9.0, 3.7).to(dtype)
    ratio[2000:] = 0.3
    values = whole * ratio
    forget, reference = diagonals(values, whole)
    alpha = threshold(ratios(forget, reference), percentile(5, 100), torch.finfo(dtype).eps)
    assert alpha == pytest.approx(3.7, rel=1e-5)
    found, told = (one.sums["w"] / one.count for one in (forget, reference))
    assert dampen(torch.ones_like(found), found, told, alpha, 1.0)[1].selected == 10


def test_the_percentile_is_of_all_tensors_together_and_of_more_weights_than_torch_takes():
    many = np.arange(2**24 + 1, dtype=np.float64)
    assert threshold(many, 99.0, 0.0) == pytest.approx(0.99 * 2**24, rel=1e-12)
    sums = {"a": t(1, 2, 3), "b": t(30, 20)}
    found = ratios(
        Diagonal(sums, 1, "loss", "x"), Diagonal({n: torch.ones_like(v) for n, v in sums.items()}, 1, "loss", "x")
    )
    assert threshold(found, 50.0, 0.0) == 3.0
    assert threshold(np.array([]), 50.0, 0.0) == 0.0


@pytest.mark.parametrize("n_f", [1, 2, 6, 7, 8, 20])
def test_edit_equals_the_formula_on_every_parameter(n_f: int):
    model, data = trained()
    ids = data.ids[:: 60 // n_f][:n_f]
    done = request(ASSD(), model, data, ids)
    forget = diagonal(model, TASK, data.subset(ids), engine="reference").values
    whole = diagonal(model, TASK, data, engine="reference").values
    each = torch.cat([(forget[n] / whole[n]).flatten() for n in whole])
    q = 100 - math.log(1 + 100 * n_f / 60)
    alpha = float(torch.quantile(each[each.isfinite()], q / 100))
    assert done.log["percentile"] == pytest.approx(q)
    assert done.log["alpha"] == pytest.approx(min(alpha, 60 / n_f), rel=1e-4)
    alpha = done.log["alpha"]
    for name, theta in model.named_parameters():
        beta = torch.where(forget[name] > alpha * whole[name], (whole[name] / forget[name]).clamp(max=1), 1.0)
        torch.testing.assert_close(dict(done.model.named_parameters())[name].data, beta * theta.data)
    assert done.changed.count > 0
    same = request(SSD(alpha=alpha), model, data, ids)
    assert weights_digest(same.model) == weights_digest(done.model)


def test_the_share_selected_is_the_one_set():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 60), nn.Tanh(), nn.Linear(60, 3)).double()
    data = blobs(60)
    model = fit(model, TASK, data, Recipe(epochs=3, lr=0.05), runtime=QUIET)
    for n_f in (2, 6, 20):
        done = request(ASSD(), model, data, data.ids[:n_f])
        assert done.log["selected"] == pytest.approx(math.log(1 + 100 * n_f / 60) / 100, abs=2 / 480)
        assert not done.note


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_weights_that_only_the_forget_set_moves_are_all_dampened(dtype: torch.dtype):
    """Two thirds of the weights stand at the bound n/n_f, up to rounding on either side: no part of them is picked."""
    torch.manual_seed(0)
    x = torch.zeros(23, 12, dtype=dtype)
    x[:3, :8], x[3:, 8:] = torch.randn(3, 8, dtype=dtype), torch.randn(20, 4, dtype=dtype)
    data = Data.from_arrays(x, torch.arange(23) % 3)
    model = nn.Linear(12, 3, bias=False).to(dtype).eval()
    done = request(ASSD(), model, data, data.ids[:3])
    assert done.changed.tensors["weight"] == (24, 36)
    assert "of the weights matter for the forget set alone: all of them were dampened" in done.note
    torch.testing.assert_close(done.model.weight.data[:, :8], model.weight.data[:, :8] * 3 / 23)
    assert torch.equal(done.model.weight.data[:, 8:], model.weight.data[:, 8:])


def test_the_retain_set_for_reference_selects_the_same_weights():
    """As published: I_f/I_r grows with I_f/I_D, so the order is the same; only β differs."""
    model, data = trained()
    ids = data.ids[:6]
    forget = diagonal(model, TASK, data.subset(ids))
    q, selected = percentile(6, 60), []
    for reference in (diagonal(model, TASK, data), diagonal(model, TASK, data.without(ids))):
        alpha = threshold(ratios(forget, reference), q, 1e-15)
        selected.append({n: (v > alpha * reference.values[n]).tolist() for n, v in forget.values.items()})
    assert selected[0] == selected[1]
    assert selected[0]["0.0.0.weight"] != torch.zeros(8, 4).bool().tolist()


def test_nothing_to_tell_apart_changes_nothing_and_says_so():
    """The forgotten samples repeat the others: every ratio is 1, and a tie is not selected."""
    torch.manual_seed(0)
    x = torch.randn(5, 4, dtype=torch.float64)
    data = Data.from_arrays(x.repeat(2, 1), torch.arange(5).repeat(2) % 3)
    done = request(ASSD(), CASES["linear"].make()[0], data, data.ids[:5])
    assert done.changed.count == 0
    assert "No weight had an importance ratio above the percentile, α = 1, which is also the largest" in done.note


def masked(model: nn.Module, data: Data, ids: list[str], method: Method, masks: Masks) -> tuple[nn.Module, Session]:
    """Run a request as a composition does that holds weights by masks."""
    state = prepare(method, model, TASK, train=data, runtime=QUIET).state
    given = {"forget": data.subset(ids)}
    session = Session(
        task=TASK, runtime=QUIET, seed=0, method=method.name, phase="unlearn", needs=method.unlearns,
        source=model, given=given, masks=masks,
    )  # fmt: skip
    return method.unlearn(session, State(state.tensors, state.meta))[0], session


@pytest.mark.parametrize("method", [ASSD(), SSD(alpha=1.0)], ids=["assd", "ssd"])
def test_masked_weights_stay_and_count_neither_in_the_percentile_nor_as_selected(method: Method):
    model, data = trained()
    generator = torch.Generator().manual_seed(1)
    kept = {n: torch.rand(p.shape, generator=generator) < 0.5 for n, p in model.named_parameters() if n != "1.bias"}
    free, ids = request(method, model, data, data.ids[:6]), data.ids[:6]
    edited, session = masked(model, data, ids, method, Masks(kept))
    moved = 0
    for name, p in edited.named_parameters():
        before, mask = dict(model.named_parameters())[name], kept.get(name)
        if mask is not None:
            assert torch.equal(p[~mask], before[~mask]), name
        moved += int((p != before).sum())
    assert moved == round(session.log["changed"] * sum(p.numel() for p in model.parameters())) > 0
    if method.name == "assd":
        forget, whole = (diagonal(model, TASK, d).values for d in (data.subset(ids), data))
        each = torch.cat([(forget[n] / whole[n])[kept.get(n, torch.ones_like(whole[n]) > 0)] for n in whole])
        want = float(torch.quantile(each[each.isfinite()], percentile(6, 60) / 100))
        assert session.log["alpha"] == pytest.approx(min(want, 10), rel=1e-4)
    else:
        assert session.log["selected"] < free.log["selected"]
    with pytest.raises(Incompatible, match="which the mask is for"):
        masked(model, data, ids, method, Masks({"other": torch.ones(2) > 0}))


def test_state_is_that_of_ssd_and_the_next_one_holds_no_forgotten_sample():
    model, data = trained()
    ids = data.ids[3:12]
    own, other = (prepare(m(), model, TASK, train=data, runtime=QUIET).state for m in (ASSD, SSD))
    names = [n for n in own.tensors if n.startswith("importance/")]
    assert names
    assert all(torch.equal(own.tensors[n], other.tensors[n]) for n in names)
    done = unlearn(ASSD(), model, TASK, forget=data.subset(ids), state=own, runtime=QUIET)
    without = prepare(ASSD(), model, TASK, train=data.without(ids), runtime=QUIET).state
    for name in names:
        torch.testing.assert_close(done.state.tensors[name], without.tensors[name], rtol=1e-6, atol=1e-12)
    assert done.state.meta["count"] == 51
    second = unlearn(ASSD(), done.model, TASK, forget=data.subset(data.ids[:2]), state=done.state, runtime=QUIET)
    assert second.log["percentile"] == pytest.approx(percentile(2, 51))
    assert "taken 1 request(s) ago" in second.note
    with pytest.raises(Incompatible, match="a state of assd, got one of ssd"):
        unlearn(ASSD(), model, TASK, forget=data.subset(ids), state=other)


def test_refresh_renews_the_state_from_retain_data():
    model, data = trained()
    ids, method = data.ids[:6], ASSD(refresh=True)
    assert (ASSD().unlearns.retain, method.unlearns.retain) == (See.NONE, See.LABELLED)
    state = prepare(method, model, TASK, train=data, runtime=QUIET).state
    with pytest.raises(MissingNeed, match="retain for assd"):
        unlearn(method, model, TASK, forget=data.subset(ids), state=state)
    done = unlearn(method, model, TASK, forget=data.subset(ids), retain=data.without(ids), state=state, runtime=QUIET)
    fresh = diagonal(done.model.eval(), TASK, data.without(ids), engine="reference")
    for name, sums in fresh.sums.items():
        torch.testing.assert_close(done.state.tensors[f"importance/{name}"], sums, rtol=1e-6, atol=1e-12)


def test_batch_size_does_not_matter_and_buffers_and_frozen_weights_stay():
    model, data = trained()
    model[1].bias.requires_grad_(False)
    found = []
    for size in (1, 60):
        runtime = Runtime(batch_size=size, progress=False)
        state = prepare(ASSD(), model, TASK, train=data, runtime=runtime).state
        found.append(unlearn(ASSD(), model, TASK, forget=data.subset(data.ids[:6]), state=state, runtime=runtime))
    for (name, a), b in zip(found[0].model.state_dict().items(), found[1].model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    assert torch.equal(found[0].model[1].bias, model[1].bias)
    assert found[0].log["frozen"] == ["1.bias"]
    for (name, a), b in zip(model.named_buffers(), found[0].model.buffers(), strict=True):
        assert torch.equal(a, b), name


def test_regression_can_forget():
    model, data = CASES["linear_regression"].make()
    state = prepare(ASSD(), model, Regression(), train=data).state
    done = unlearn(ASSD(), model, Regression(), forget=data.subset(data.ids[:2]), state=state)
    assert done.changed.count > 0


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"unseen": "keep"}, "assd.unseen"),
        ({"alpha": 3}, "a field of assd, got 'alpha'"),
        ({"dampening": 1}, "a field of assd"),
        ({"importance": "exact"}, "a field of assd"),
    ],
)
def test_there_is_nothing_to_tune(config: dict[str, Any], match: str):
    with pytest.raises(UserError, match=match):
        build({"name": "assd", **config})
    with pytest.raises(UserError, match=r"assd\.unseen 'zero' or 'skip', got 'keep'"):
        ASSD(unseen="keep")
    for value in ("yes", 1, None):
        with pytest.raises(UserError, match=rf"assd\.refresh True or False, got {value!r}"):
            ASSD(refresh=value)
