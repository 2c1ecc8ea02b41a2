"""Small changes to a copy: quantisation by hand, noise of a known size, fine-tuning in closed form, narrow edits."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from expunge.data import Data
from expunge.errors import UserError
from expunge.evidence import collect
from expunge.metric import Audit, Unavailable, Value
from expunge.metrics import _tune
from expunge.metrics.robustness import Robustness, _disturb, quantised
from expunge.scenario import Scenario
from expunge.task import Classification, Regression, Task
from worlds import QUIET


def audit(models: dict[str, nn.Module], forget: Data, retain: Data, task: Task | None = None) -> Audit:
    task = task or Classification()
    data = {"forget": forget, "retain": retain}
    evidence = {(r, s): collect(m, task, d, runtime=QUIET) for r, m in models.items() for s, d in data.items()}
    case = Scenario(train=(*forget.ids, *retain.ids), forget=tuple(forget.ids))
    return Audit(evidence=evidence, models=models, task=task, scenario=case, data=data, runtime=QUIET)


def rows(n: int, name: str, seed: int = 0) -> Data:
    generator = torch.Generator().manual_seed(seed)
    return Data.from_arrays(torch.randn(n, 4, generator=generator), torch.arange(n) % 2, name=name)


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(4, 2).eval()


def test_weights_are_rounded_to_127_levels_a_channel() -> None:
    layer = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[12.7, 0.06, -3.149], [0.0, 0.0, 0.0]]))
    quantised(layer)
    assert layer.weight[0].tolist() == pytest.approx([12.7, 0.1, -3.1])
    assert layer.weight[1].tolist() == [0.0, 0.0, 0.0]


def test_inputs_are_rounded_to_256_levels_of_which_zero_is_one() -> None:
    layer = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(3))
    quantised(layer)
    x = torch.tensor([[-1.0, 0.0, 1.55], [51.0, 10.06, 0.0], [0.0, 0.0, 0.0]])
    want = torch.tensor([[-1.0, 0.0, 1.55], [51.0, 10.0, 0.0], [0.0, 0.0, 0.0]])  # steps of 0.01, 0.2 and none
    assert torch.allclose(layer(x), want, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 5), (4, 6)),
        (nn.Linear(6, 5), (4, 3, 6)),
        (nn.Conv1d(2, 3, 2), (4, 2, 6)),
        (nn.Conv2d(2, 4, 3, groups=2), (4, 2, 5, 5)),
        (nn.ConvTranspose2d(2, 3, 2), (4, 2, 5, 5)),
        (nn.LSTM(6, 5, batch_first=True), (4, 3, 6)),
        (nn.GRUCell(6, 5), (4, 6)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else str(v),
)
def test_a_layer_is_nearly_what_it_was_and_no_sample_depends_on_its_batch(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    for p in layer.parameters():
        nn.init.normal_(p)
    layer, before = layer.eval(), copy.deepcopy(layer).eval()
    x = torch.randn(shape) * torch.tensor([1.0, 100.0, 0.01, 5.0]).reshape(-1, *[1] * (len(shape) - 1))

    def run(module: nn.Module, rows: Tensor) -> Tensor:
        out = module(rows)
        return out[0] if isinstance(out, tuple) else out

    with torch.no_grad():
        exact, found = run(before, x), run(quantised(layer), x)
        alone = torch.cat([run(layer, x[i : i + 1]) for i in range(len(x))])
    assert not torch.equal(exact, found)
    scale = exact.abs().flatten(1).amax(dim=1)
    assert ((exact - found).abs().flatten(1).amax(dim=1) < 0.06 * scale).all()
    assert torch.allclose(found, alone, atol=1e-6, rtol=1e-5)


def test_scales_are_one_a_channel_also_where_the_channels_come_second() -> None:
    layer = nn.ConvTranspose1d(1, 2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[100.0], [0.001]]]))
    quantised(layer)
    assert layer.weight.flatten().tolist() == pytest.approx([100.0, 0.001])


def test_parametrised_and_tied_weights_are_quantised() -> None:
    torch.manual_seed(0)
    normed = parametrizations.weight_norm(nn.Linear(4, 3))
    want = copy.deepcopy(normed).weight.detach()
    quantised(normed)
    levels = normed.weight / (want.abs().amax(dim=1, keepdim=True) / 127)
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    once = copy.deepcopy(tied[0])
    quantised(once)
    quantised(tied)
    assert torch.allclose(tied[0].weight, once.weight, atol=1e-6)
    assert tied[2].weight is tied[0].weight


def test_noise_has_the_size_that_is_asked_for_and_is_the_same_for_models_of_one_shape() -> None:
    one, other = nn.Linear(200, 100), nn.Linear(200, 100)
    old = [copy.deepcopy(m.weight) for m in (one, other)]
    for m in (one, other):
        _disturb(m, 0.02, seed=5)
    noise = [(m.weight - w) / w.square().mean().sqrt() for m, w in zip((one, other), old, strict=True)]
    assert float(noise[0].detach().std()) == pytest.approx(0.02, rel=0.03)
    assert torch.allclose(noise[0], noise[1], atol=1e-5)


def test_a_narrow_edit_is_undone_by_noise_and_a_wide_one_is_not() -> None:
    """Both models never say class 1; the first by a margin of a thousandth of what its weights give."""

    def biased(margin: float) -> nn.Module:
        model = nn.Linear(4, 2)
        with torch.no_grad():
            model.weight.fill_(1.0)
            model.bias.copy_(torch.tensor([margin, 0.0]))
        return model.eval()

    x = torch.ones(50, 4) + 0.01 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    forget = Data.from_arrays(x, torch.ones(50, dtype=torch.long), name="forget")
    retain = Data.from_arrays(x, torch.zeros(50, dtype=torch.long), name="retain")
    narrow, wide = (audit({"model": biased(m)}, forget, retain) for m in (0.001, 5.0))
    rises, stays = (Robustness(draws=40)(a)["robustness/noise"] for a in (narrow, wide))
    assert isinstance(rises, Value)
    assert isinstance(stays, Value)
    assert 0.25 < rises.x < 0.75  # noise turns it about every other time
    assert stays.x == 0.0
    change = narrow.kept.series["robustness/change"]
    assert list(change) == ["before", "int8", "noise", "finetune"]
    first = change["before"]
    assert isinstance(first, Value)
    assert first.x == 0.0
    assert change["noise"] == rises


def test_answers_over_draws_are_averaged_by_sample_and_the_interval_is_over_samples() -> None:
    forget, retain = rows(30, "forget"), rows(30, "retain", 1)
    given = audit({"model": linear()}, forget, retain)
    metric = Robustness(scale=2.0, draws=3)
    found = metric(given)["robustness/noise"]
    total = 0.0
    part = _tune.some(given, "forget", 2000, "robustness")
    for draw in range(3):
        model = _tune.copied(given)
        _disturb(model, 2.0, _tune.named_seed("robustness", 0, "noise", draw))
        total += float(_tune.ask(model, given, part).sum())
    assert isinstance(found, Value)
    assert (found.x, found.n) == (pytest.approx(total / 90), 30)
    assert 0 < found.low < found.x < found.high < 1


def test_fine_tuning_follows_the_closed_form_on_retain_alone() -> None:
    """f = w with loss (w − y)²: 20 steps at y = −1 take w from 2 to −1 + 3·(1 − 2·lr)²⁰; forget targets are 2."""
    model = nn.Linear(1, 1, bias=False).double().eval()
    nn.init.constant_(model.weight, 2.0)
    x = torch.ones(9, 1, dtype=torch.float64)
    forget, retain = Data.from_arrays(x, 2 * x, name="forget"), Data.from_arrays(x, -x, name="retain")
    found = Robustness(lr=0.05)(audit({"model": model}, forget, retain, Regression()))["robustness/finetune"]
    assert isinstance(found, Value)
    assert (found.x, found.unit, found.n) == (pytest.approx((3 * 0.9**20 - 3) ** 2), "loss", 9)


def test_gaps_are_paired_by_sample_and_equal_models_have_equal_numbers() -> None:
    forget, retain = rows(30, "forget"), rows(30, "retain", 1)
    models = {"model": linear(), "retrained": linear(1), "original": linear(2)}
    given = audit(models, forget, retain)
    found = Robustness()(given)
    reference = Robustness()(replace(given, models={**models, "model": models["retrained"]}))
    for name, value in found.items():
        other, gap = reference[name], given.kept.gaps[name]
        assert isinstance(value, Value)
        assert isinstance(other, Value)
        assert isinstance(gap, Value)
        assert (gap.x, gap.n) == (pytest.approx(value.x - other.x), 30)
    again = Robustness()(replace(given, models={**models, "model": copy.deepcopy(models["retrained"])}))
    assert again == reference


def test_what_cannot_be_changed_says_why() -> None:
    forget, retain = rows(6, "forget"), rows(6, "retain", 1)
    frozen = Robustness()(audit({"model": linear().requires_grad_(False)}, forget, retain))
    assert frozen["robustness/finetune"] == Unavailable("the model has no trainable parameters")
    assert isinstance(frozen["robustness/noise"], Value)  # what is frozen in training is on the disk all the same
    bare = Robustness()(audit({"model": nn.Identity()}, forget, retain))
    assert bare["robustness/noise"] == Unavailable("the model has no parameters")
    why = Unavailable("the model has no linear, convolution or recurrent layer to quantise")
    assert bare["robustness/int8"] == why
    wild = linear()
    with torch.no_grad():
        wild.weight.fill_(1e37)
    found = Robustness(scale=1e3)(audit({"model": wild}, forget, retain))
    assert found["robustness/noise"] == Unavailable("the changed copy's outputs hold NaN or infinity")
    given = audit({"model": linear()}, forget, retain)
    assert set(Robustness()(replace(given, data={})).values()) == {
        Unavailable("the samples themselves were not given, only outputs")
    }


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"draws": 0}, "robustness.draws of 1 or more, got 0"),
        ({"scale": -1.0}, "robustness.scale above 0, got -1.0"),
        ({"lr": math.inf}, "robustness.lr above 0, got inf"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        Robustness(**settings)
