"""Dry runs of whole calls: what lies beyond the probe is checked, times are of the right order, nothing moves."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from expunge.data import Data
from expunge.methods import load
from expunge.plan import plan
from expunge.runtime import Runtime
from expunge.scenario import forget_class, forget_ids
from expunge.task import Classification
from expunge.tensors import weights_digest
from expunge.train import Recipe
from expunge.unlearn import prepare, unlearn
from worlds import QUIET

TASK = Classification()
N = 400


def samples(n: int = N) -> Data:
    generator = torch.Generator().manual_seed(0)
    return Data.from_arrays(torch.randn(n, 4, generator=generator), torch.arange(n) % 3)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).eval()


def request(data: Data, n: int = 200) -> dict[str, Any]:
    return {"forget": data.subset(data.ids[:n]), "retain": data.without(data.ids[:n])}


@pytest.mark.parametrize(
    ("n", "epochs", "sample", "batch", "jitter"),
    [
        (9_000, 1, 1e-5, 3e-3, 0),
        (9_000, 3, 1e-2, 0, 0),
        (40, 60, 1e-3, 1e-4, 0),
        (2, 50, 1e-2, 0, 0),
        (12, 50, 1e-2, 0, 6),
    ],
    ids=["small steps", "slow samples", "a small set", "two samples", "jitter"],
)
def test_the_estimate_is_of_the_right_order(
    monkeypatch: pytest.MonkeyPatch, n: int, epochs: int, sample: float, batch: float, jitter: float
) -> None:
    clock, calls = [0.0], [0]

    def took(reads: int, passes: int) -> float:
        return 0.02 + passes * (sample * reads + batch * -(-reads // 64))

    def call(*_: Any, retain: Data, recipe: Recipe, **__: Any) -> None:
        calls[0] += 1
        clock[0] += took(len(retain), recipe.epochs) + jitter * 0.1 / calls[0]

    monkeypatch.setattr("expunge.plan.unlearn", call)
    monkeypatch.setattr("expunge.plan.time.perf_counter", lambda: clock[0])
    given = {**request(samples(n + 1), 1), "recipe": Recipe(epochs=epochs)}
    runtime = Runtime(progress=False, batch_size=64)
    found = plan(load("retrain")(), "unlearn", network(), TASK, given=given, runtime=runtime)
    assert found.seconds is not None
    assert 0.5 < found.seconds / took(n, epochs) < 4
    assert clock[0] < 8


def test_a_scenario_needs_no_forget_set_to_prepare_and_fits_bare_ids() -> None:
    data, model = samples(), network()
    given: dict[str, Any] = {"train": data, "scenario": forget_ids(data, data.ids[:9])}
    found = plan(load("ssd")(), "prepare", model, TASK, given=given, runtime=QUIET)
    assert (found.problem, found.reads) == ("", N)
    case = forget_class(data, 1)
    given = {"forget": list(case.forget), "scenario": case}
    assert plan(load("head_mask")(), "unlearn", model, TASK, given=given, runtime=QUIET).problem == ""


def test_what_lies_beyond_the_probe_is_checked_too() -> None:
    data, model, ssd = samples(), network(), load("ssd")(alpha=1.5)
    state = prepare(ssd, model, TASK, train=data, runtime=QUIET).state
    x = torch.cat([data.read([i]).inputs for i in range(200)])  # type: ignore[arg-type]
    other = Data.from_arrays(x, torch.arange(200) % 3, ids=[*data.ids[:199], "nobody"])
    both = {**request(data), "retain": data.without(data.ids[:199])}
    requests = {
        "unknown nobody": {"forget": other},
        "train/199 in both": both,
        "all 400 training samples": {"forget": data},
        f"others \\({data.ids[200]}": {**request(data), "scenario": forget_ids(data, data.ids[:201])},
    }
    for said, asked in requests.items():
        found = plan(ssd, "unlearn", model, TASK, given={**asked, "state": state}, runtime=QUIET)
        assert found.seconds is None
        with pytest.raises(Exception, match=said) as refused:
            unlearn(ssd, model, TASK, **asked, state=state, runtime=QUIET)
        assert found.problem == str(refused.value)


def test_a_rate_that_only_a_warm_up_survives_is_no_problem() -> None:
    recipe = Recipe(epochs=3, lr=1e30, warmup=3, weight_decay=0)
    given = {**request(samples()), "recipe": recipe}
    found = plan(load("retrain")(), "unlearn", network(), TASK, given=given, runtime=QUIET)
    assert found.problem == ""


def test_nothing_of_the_callers_moves() -> None:
    data, model, ssd = samples(), network(), load("ssd")()
    ready = prepare(ssd, model, TASK, train=data, runtime=QUIET)
    before, python, torchs = weights_digest(model), random.getstate(), torch.get_rng_state()
    numpys = np.random.get_state(legacy=False)
    table = ready.state.tensors["samples/forgotten"].clone()
    plan(ssd, "unlearn", model, TASK, given={**request(data), "state": ready.state}, runtime=QUIET)
    plan(load("retrain")(), "unlearn", model, TASK, given={**request(data), "recipe": Recipe()}, runtime=QUIET)
    assert weights_digest(model) == before
    assert random.getstate() == python
    assert str(np.random.get_state(legacy=False)) == str(numpys)
    assert torch.equal(torch.get_rng_state(), torchs)
    assert torch.equal(ready.state.tensors["samples/forgotten"], table)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
