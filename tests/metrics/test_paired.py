"""Differences to retrained sample by sample: by hand, on either side, and with what both trainings share taken out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy import stats as distributions
from torch import Tensor

from expunge.data import Data
from expunge.evaluate import evaluate
from expunge.evidence import Outputs
from expunge.metric import Unavailable
from expunge.metrics import load
from expunge.metrics.paired import Paired
from expunge.scenario import forget_ids
from expunge.task import Classification, Regression
from expunge.train import Recipe, fit, fresh
from pairs import audit, noise, said, taken
from worlds import QUIET, images, network


def confident(*p: float) -> Outputs:
    both = torch.tensor([[x, 1 - x] for x in p], dtype=torch.float64)
    return said(both.log(), torch.zeros(len(p), dtype=torch.long))


OWN = {"forget": confident(0.9, 0.8, 0.6), "test": confident(0.7, 0.4)}
OTHER = {"forget": confident(0.5, 0.9, 0.3), "test": confident(0.6, 0.6)}


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_numbers_by_hand() -> None:
    found = Paired()(audit(OWN, OTHER))
    gaps = [0.4, 0.1, 0.3]
    shifts = [logit(0.9) - logit(0.5), logit(0.8) - logit(0.9), logit(0.6) - logit(0.3)]
    unseen = [logit(0.7) - logit(0.6), logit(0.4) - logit(0.6)]
    for name, values in (("paired/gap", gaps), ("paired/shift", shifts)):
        mean, error = sum(values) / 3, distributions.sem(values)
        low, high = distributions.t.interval(0.95, 2, mean, error)
        value = found[name]
        least = 0.0 if name == "paired/gap" else -math.inf  # an interval holds possible values only
        assert (value.x, value.low, value.high, value.n) == pytest.approx((mean, max(low, least), high, 3))
    excess = found["paired/excess"]
    assert excess.x == pytest.approx(sum(shifts) / 3 - sum(unseen) / 2)
    half = [
        distributions.t.ppf(0.975, len(v) - 1) * distributions.sem(v) for v in (shifts, unseen)
    ]  # the two sets are independent: squares add up
    assert excess.high - excess.x == pytest.approx(math.hypot(*half))
    assert (excess.n, excess.unit, found["paired/gap"].unit) == (5, "nats", "1")
    assert found["paired/distance"] == Unavailable("it is a distance of regression")


def test_a_difference_between_the_trainings_alone_drops_out_of_the_excess() -> None:
    labels = torch.arange(400) % 4
    surer = 2.0 * torch.eye(4)[labels]

    def model(seed: int, everywhere: float, forget: float) -> dict[str, Outputs]:
        logits = noise(400, 4, seed=99)
        return {
            "forget": said(logits + 0.2 * noise(400, 4, seed=seed) + (everywhere + forget) * surer, labels),
            "test": said(logits + 0.2 * noise(400, 4, seed=seed + 1) + everywhere * surer, labels),
        }

    retrained = model(0, 0.0, 0.0)
    longer, leaky, over = (
        Paired()(audit(model(s, a, b), retrained)) for s, a, b in ((10, 0.5, 0.0), (20, 0.0, 0.5), (30, 0.0, -0.5))
    )
    assert longer["paired/shift"].low > 0.8
    assert longer["paired/excess"].low < 0 < longer["paired/excess"].high
    assert leaky["paired/shift"].low > 0.8
    assert leaky["paired/excess"].low > 0.8
    assert over["paired/shift"].high < -0.8  # two-sided: forgotten beyond what retraining does
    assert over["paired/excess"].high < -0.8
    assert over["paired/gap"].x > 0


def test_one_extreme_sample_does_not_make_the_mean() -> None:
    masked = {k: said(o.outputs - torch.tensor([1e6, 0.0]), o.target) for k, o in OWN.items()}
    assert Paired()(audit(masked, OTHER))["paired/shift"].x == pytest.approx(
        sum(-20 - logit(p) for p in (0.5, 0.9, 0.3)) / 3
    )
    assert Paired(clip=5)(audit(masked, OTHER))["paired/shift"].x > -8


def test_the_forgotten_kind_is_compared_with_its_own_unseen_samples() -> None:
    like = {"test_forget": confident(0.9, 0.9, 0.8)}
    own, other = OWN | like, OTHER | {"test_forget": confident(0.5, 0.6, 0.7)}
    found, whole = Paired()(audit(own, other)), Paired()(audit(OWN, OTHER))
    assert found["paired/shift"] == whole["paired/shift"]
    assert found["paired/excess"].n == 6
    assert found["paired/excess"].x < whole["paired/excess"].x
    none = {"test_forget": own["test_forget"].take(torch.tensor([], dtype=torch.long))}
    gone = Paired()(audit(OWN | none, OTHER | none))
    assert gone["paired/excess"] == Unavailable("no unseen sample of the forgotten kind")
    assert gone["paired/shift"] == whole["paired/shift"]


def test_order_does_not_matter_and_the_model_itself_is_at_zero() -> None:
    found, order = Paired()(audit(OWN, OTHER)), torch.tensor([1, 0])
    mixed = Paired()(
        audit(
            {"forget": OWN["forget"].take(torch.tensor([2, 0, 1])), **taken({"test": OWN["test"]}, order)},
            {"forget": OTHER["forget"].take(torch.tensor([2, 0, 1])), **taken({"test": OTHER["test"]}, order)},
        )
    )
    for name in ("paired/gap", "paired/shift", "paired/excess"):
        assert mixed[name].x == pytest.approx(found[name].x)
    itself = Paired()(audit(OWN, OWN))
    assert [itself[f"paired/{k}"].x for k in ("gap", "shift", "excess")] == [0, 0, 0]
    back = Paired()(audit(OTHER, OWN))
    assert back["paired/shift"].x == pytest.approx(-found["paired/shift"].x)
    assert back["paired/gap"].x == pytest.approx(found["paired/gap"].x)


def real(target: Tensor, outputs: Tensor) -> Outputs:
    return Outputs(outputs, outputs, target, (outputs - target).square().mean(dim=1))


def test_regression_by_hand() -> None:
    target = torch.zeros(3, 2, dtype=torch.float64)
    own = {"forget": real(target, torch.tensor([[1.0, 1.0], [0.0, 2.0], [0.0, 0.0]], dtype=torch.float64))}
    other = {"forget": real(target, torch.tensor([[2.0, 0.0], [0.0, 0.0], [3.0, 3.0]], dtype=torch.float64))}
    found = Paired()(audit(own, other, task=Regression()))
    assert found["paired/distance"].x == pytest.approx((1.0 + 1.0 + 3.0) / 3)
    assert found["paired/distance"].unit == "target units"
    assert found["paired/shift"].x == pytest.approx(((2 - 1) + (0 - 2) + (9 - 0)) / 3)
    assert found["paired/shift"].unit == "loss"
    assert found["paired/gap"] == Unavailable("the task has no classes")
    assert found["paired/excess"] == Unavailable("there are no samples in test")
    worse = {"forget": real(target, torch.full((3, 2), 1e200, dtype=torch.float64))}
    assert Paired()(audit(own, worse, task=Regression()))["paired/shift"] == Unavailable(
        "a loss of retrained is infinite or not a number"
    )


def test_what_is_undefined_says_why() -> None:
    def every(**changes: Any) -> set[Any]:
        return set(Paired()(audit(**({"model": OWN, "retrained": OTHER} | changes))).values())

    assert every(retrained=None) == {Unavailable("there is no retrained model to compare with")}
    assert every(model={"test": OWN["test"]}) == {Unavailable("there are no samples in forget")}
    assert every(model=OWN | {"forget": said(OWN["forget"].outputs)}) == {Unavailable("forget has no labels")}
    assert every(flaws={"retrained": "it holds NaN"}) == {Unavailable("retrained: it holds NaN")}
    wide = {k: said(noise(len(o), 3), o.target) for k, o in OTHER.items()}
    assert every(retrained=wide) == {Unavailable("retrained has other outputs: (3,) instead of (2,) a sample")}
    one = Paired()(audit({"forget": confident(0.9)}, {"forget": confident(0.5)}))
    assert (one["paired/gap"].low, one["paired/gap"].high) == (-math.inf, math.inf)
    assert one["paired/excess"] == Unavailable("there are no samples in test")
    assert load("paired") is Paired
    assert {n.target for n in Paired().numbers.values()} == {0.0}


def test_memorised_samples_stand_apart_from_retrained_and_a_second_retrained_does_not() -> None:
    """Random labels can only be learned by heart: no_op knows them, two retrained models alike do not."""
    x, y = images(60, 0)
    wrong = [f"train/{i}" for i in range(15)]
    train = Data.from_arrays(x, torch.where(torch.arange(60) < 15, (y + 1) % 3, y), name="train")
    test = Data.from_arrays(*images(120, 2), name="test")
    recipe, task, quiet = Recipe(epochs=12, batch_size=20, lr=0.1), Classification(), replace(QUIET, batch_size=100)
    retain = train.without(wrong)

    def trained(data: Data, seed: int) -> Any:
        return fit(fresh(network(), new_model=network, seed=seed), task, data, recipe, runtime=quiet, seed=seed)

    models = {"original": trained(train, 0), "retrained": [trained(retain, 1), trained(retain, 2)]}
    scores = evaluate(
        models,
        task,
        train=train,
        test=test,
        scenario=forget_ids(train, wrong),
        metrics=["paired", "membership"],
        attacks=["paired"],
        runtime=quiet,
    )
    # Named before retrained, the original is compared with it all the same.
    assert scores["original"]["paired/gap"] == scores["no_op"]["paired/gap"]
    assert scores["retrained"]["paired/gap"] == Unavailable("it is the reference itself")
    for name in ("paired/gap", "paired/shift", "paired/excess"):
        assert scores["no_op"][name].low > 0
        assert scores["no_op"][name].x > 3 * scores.floor[name].x
        assert scores.gaps["no_op"][name].x == scores["no_op"][name].x
    auc = "membership/paired/auc"
    assert scores["no_op"][auc].low > 0.6
    second = scores["retrained (other seed)"][auc]
    assert second.low < 0.5 < second.high
