"""ZRF: the specification's numbers, untrained networks shared by all models, and networks that are not untrained."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats as distributions
from torch import Tensor, nn

from expunge.data import Data
from expunge.errors import UserError
from expunge.evaluate import evaluate
from expunge.evidence import Outputs
from expunge.metric import Audit, Unavailable, Value
from expunge.metrics import zrf as module
from expunge.metrics._distance import js
from expunge.metrics.zrf import Zrf, untrained, zrf
from expunge.scores import Scores
from expunge.task import Regression
from expunge.tensors import shapes_digest
from pairs import audit, noise, said
from worlds import CLASSES, QUIET, World, network, world

P = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], dtype=torch.float64).log()
T = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.2, 0.3, 0.5]], dtype=torch.float64).log()


@pytest.fixture(scope="module")
def tiny() -> World:
    return world()


def told(outputs: dict[str, Outputs], draws: int, teacher: Tensor | list[Tensor], **more: Any) -> Audit:
    """Return an audit that knows what its untrained networks say of the forget set."""
    net = nn.Linear(2, 3)
    x = Data.from_arrays(torch.zeros(len(next(iter(outputs.values()))), 2))
    several = teacher if isinstance(teacher, list) else [teacher] * draws
    shared = {f"zrf/forget/{draws}/{shapes_digest(net)}": several}
    return audit(outputs, data={"forget": x}, models={"model": net, **more.pop("models", {})}, shared=shared, **more)


@pytest.mark.parametrize(
    ("metric", "name", "want"),
    [
        (Zrf(draws=1), "zrf/forget", 0.8448856),
        (Zrf(draws=1, base="nats"), "zrf/forget", 0.8924829),
        (Zrf(draws=1, compat=True), "zrf/compat/forget", 0.9598146),
    ],
)
def test_known_answers(metric: Zrf, name: str, want: float) -> None:
    value = metric(told({"forget": said(P)}, 1, T))[name]
    assert value.x == pytest.approx(want, abs=1e-7)
    assert (value.low, value.high, value.n) == (-math.inf, math.inf, 2)  # one network shows no spread of networks
    label = metric.numbers[name].label
    assert label.startswith(
        {"bits": "ZRF (base 2)", "nats": "ZRF (base e)"}[metric.base] if not metric.compat else "pub"
    )


def half(table: np.ndarray) -> float:
    """Return the half width of the mean of a table (networks, samples), both drawn."""
    halves = []
    for rows in (table.mean(axis=0), table.mean(axis=1)):
        low, high = distributions.t.interval(0.95, len(rows) - 1, rows.mean(), distributions.sem(rows))
        halves.append((high - low) / 2)
    return math.hypot(*halves)


def test_the_interval_is_of_samples_and_of_networks() -> None:
    table = noise(4, 9).abs() / 5
    found = zrf(table)
    assert found.x == pytest.approx(1 - float(table.mean()))
    assert found.high - found.x == pytest.approx(half(table.numpy())) == pytest.approx(found.x - found.low)
    assert found.n == 9


def test_the_gap_to_retrained_is_paired_by_sample_and_network() -> None:
    own, other, teachers = noise(8, 3), noise(8, 3, seed=1), [noise(8, 3, seed=s) for s in (2, 3, 4)]
    given = told({"forget": said(own)}, 3, teachers, retrained={"forget": said(other)})
    value = Zrf(draws=3)(given)["zrf/forget"]
    back = Zrf(draws=3)(told({"forget": said(other)}, 3, teachers))["zrf/forget"]
    gap = given.kept.gaps["zrf/forget"]
    assert gap.x == pytest.approx(value.x - back.x, abs=1e-12)
    apart = [torch.stack([js(z, t, "bits") for t in teachers]).numpy() for z in (other, own)]
    wide = half(apart[0] - apart[1])
    assert (gap.low, gap.high) == pytest.approx((gap.x - wide, gap.x + wide))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(5))
    moved = told({"forget": said(own[order])}, 3, [t[order] for t in teachers])
    assert Zrf(draws=3)(moved)["zrf/forget"].x == pytest.approx(value.x, rel=1e-12)


def scored(tiny: World, draws: int, **more: Any) -> Scores:
    given: dict[str, Any] = {"train": tiny.train, "test": tiny.test, "scenario": tiny.scenario, "runtime": QUIET}
    models = more.pop("models", {"original": tiny.model})
    return evaluate(models, tiny.task, metrics=[Zrf(draws=draws)], **given | more)


def test_untrained_networks_run_once_for_all_models(tiny: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, int]] = []
    collect = module.collect

    def counted(model: nn.Module, task: Any, data: Data, **more: Any) -> Outputs:
        ran.append((data.name, len(data)))
        return collect(model, task, data, **more)

    monkeypatch.setattr(module, "collect", counted)
    scores = scored(tiny, 3, new_model=network, models={"original": tiny.model, "retrained": network()})
    assert len(scores.values) == 4  # original, retrained, and both controls
    unseen = int((tiny.test.targets() == tiny.scenario.target).sum())
    assert sorted(n for _, n in ran) == sorted([len(tiny.forget)] * 3 + [unseen] * 3)
    for found in scores.values.values():
        assert isinstance(found["zrf/forget"], Value)
        assert isinstance(found["zrf/test_forget"], Value)
    assert scores["no_op"] == scores["original"]
    gap = scores["no_op"]["zrf/forget"].x - scores["retrained"]["zrf/forget"].x
    assert scores.gaps["no_op"]["zrf/forget"].x == pytest.approx(gap, abs=1e-12)
    assert math.isfinite(scores.gaps["no_op"]["zrf/forget"].low)


def test_an_untrained_network_answers_more_like_an_untrained_one(tiny: World) -> None:
    models = {"original": tiny.model, "untrained": network()}
    scores = scored(tiny, 4, models=models, new_model=network)
    assert scores["untrained"]["zrf/forget"].x > scores["original"]["zrf/forget"].x + 0.1


def test_one_seed_gives_one_number_whatever_the_batch_size_and_nothing_moves(tiny: World) -> None:
    torch.manual_seed(3)
    before, modes = torch.get_rng_state(), [m.training for m in tiny.model.modules()]
    first = scored(tiny, 2)["original"]["zrf/forget"]
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in tiny.model.modules()] == modes
    assert scored(tiny, 2)["original"]["zrf/forget"] == first
    other = scored(tiny, 2, runtime=replace(QUIET, batch_size=64))
    assert other["original"]["zrf/forget"].x == pytest.approx(first.x, abs=1e-6)
    assert scored(tiny, 2, seed=1)["original"]["zrf/forget"].x != first.x


def test_the_factory_is_used_and_without_one_the_weights_are_drawn_anew(tiny: World) -> None:
    def loud() -> nn.Module:
        made = network()
        made[4].weight.data *= 50
        return made

    plain, other = (scored(tiny, 2, new_model=m)["original"]["zrf/forget"].x for m in (network, loud))
    assert abs(plain - other) > 0.01
    drawn = scored(tiny, 2)["original"]["zrf/forget"].x
    assert np.isfinite(drawn)


def wide(fixed: bool) -> nn.Module:
    with torch.random.fork_rng():
        if fixed:
            torch.manual_seed(0)
        body = nn.Linear(16, 64)
    return nn.Sequential(nn.Flatten(), body, nn.ReLU(), nn.Linear(64, CLASSES))


def test_a_network_that_no_seed_changes_is_not_untrained(tiny: World) -> None:
    given = {"models": {"original": wide(fixed=False)}}
    found = scored(tiny, 1, new_model=lambda: wide(fixed=True), **given)["original"]["zrf/forget"]
    assert found == Unavailable(
        "the untrained network's weights hardly depend on the seed: it is pretrained, and so not incompetent, "
        "or drawn from a seed of its own"
    )

    def partly() -> nn.Module:
        made = network()
        nn.init.dirac_(made[0].weight)  # a fixed part, and not a constant, but a small one
        return made

    assert isinstance(scored(tiny, 1, new_model=partly)["original"]["zrf/forget"], Value)


def test_weights_that_start_as_constants_are_not_taken_for_pretrained() -> None:
    class Zeros(nn.Linear):
        def reset_parameters(self) -> None:
            nn.init.zeros_(self.weight)
            nn.init.zeros_(self.bias)

    x = Data.from_arrays(noise(5, 2).float())
    trained = Zeros(2, 3)
    trained.weight.data += 1.0
    given = audit({"forget": said(noise(5, 3))}, data={"forget": x}, models={"model": trained}, runtime=QUIET)
    found = untrained(trained, given, "forget", 3)
    assert not isinstance(found, Unavailable)
    assert [t.tolist() for t in found] == [[[0.0] * 3] * 5] * 3


def test_why_there_is_no_number(tiny: World) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] * self.scale

    x = Data.from_arrays(noise(5, 3).float())
    own = {"forget": said(noise(5, 3))}

    def why(outputs: dict[str, Outputs] = own, **more: Any) -> str:
        given = {"data": {"forget": x}, "models": {"model": Odd()}, "runtime": QUIET} | more
        return str(Zrf()(audit(outputs, **given))["zrf/forget"].reason)

    assert why().startswith("no untrained network can be made: Expected a way to re-initialise every weight")
    assert why(models={}) == "there is no network to draw anew"
    assert why(data={}) == "the samples themselves were not given, only outputs"
    assert why(task=Regression()) == "the task has no classes"
    assert why(models={"model": nn.Linear(3, 4)}) == "the untrained network has other outputs than the model"

    def blind() -> nn.Module:
        made = nn.Linear(3, 3)
        made.bias.data[0] = math.nan
        return made

    assert why(models={"model": nn.Linear(3, 3)}, new_model=blind) == (
        "the untrained network's outputs hold NaN or infinity"
    )
    assert Zrf()(audit(own))["zrf/test_forget"] == Unavailable("there are no samples in test_forget")
    with pytest.raises(UserError, match="at least one draw, got 0"):
        Zrf(draws=0)
    with pytest.raises(UserError, match="base to be one of nats, bits, got '2'"):
        Zrf(base="2")  # type: ignore[arg-type]
