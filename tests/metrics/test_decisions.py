"""Decisions between two classes against scikit-learn and slow loops, as one logit and as two, and controls."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score
from torch import Tensor

from expunge import stats
from expunge.errors import UserError
from expunge.evidence import Outputs
from expunge.metric import Audit, Unavailable, Value
from expunge.metrics.decisions import Decisions, calibration, separation
from expunge.metrics.stability import Stability
from expunge.task import Binary, Classification, MultiLabel, Regression
from pairs import audit, noise, said

TASK = Binary()


def binary(logit: Tensor, target: Tensor) -> Outputs:
    """Return what a model of one logit a sample says, (N, 1)."""
    z = logit.double()[:, None]
    return Outputs(z, TASK.predictions(z), target.long(), TASK.loss(z, target), classes=TASK.class_logits(z))


def drawn(n: int, seed: int, shift: float = 1.0) -> Outputs:
    target = (torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.3).long()
    return binary(shift * (2 * target - 1) + noise(n, seed=seed + 100) - 0.5, target)


def number(found: dict[str, Any], name: str) -> Value:
    value = found[name]
    assert isinstance(value, Value)
    return value


def chance(outputs: Outputs) -> np.ndarray:
    found: np.ndarray = TASK.probabilities(outputs.outputs)[:, 1].numpy()
    return found


def test_area_and_separation_are_those_of_the_libraries() -> None:
    own = drawn(300, 0)
    found = Decisions()(audit({"test": own}, task=TASK))
    assert own.target is not None
    y, p = own.target.numpy(), chance(own)
    assert number(found, "decisions/auc/test").x == pytest.approx(roc_auc_score(y, p))
    assert number(found, "decisions/ks/test").x == pytest.approx(ks_2samp(p[y == 1], p[y == 0]).statistic)
    assert number(found, "decisions/rate/test") == Value.of(stats.wilson(int((p > 0.5).sum()), 300))


@pytest.mark.parametrize("flip", [1, -1])
def test_separation_by_hand(flip: int) -> None:
    """Up to 2.5 are three of four zeros and none of three ones."""
    ones, zeros = flip * np.asarray([3.0, 5.0, 6.0]), flip * np.asarray([1.0, 2.0, 2.5, 3.2])
    found = separation(ones, zeros)
    assert (found.x, found.n) == (pytest.approx(3 / 4), 7)
    above, below = ((3, 4), (0, 3)) if flip > 0 else ((3, 3), (1, 4))
    want = stats.difference(stats.wilson(*above), stats.wilson(*below))
    assert (found.low, found.high) == pytest.approx((max(0.0, want.low), min(1.0, want.high)))
    assert found.low < found.x < found.high
    same = separation(np.ones(5), np.ones(9))
    assert (same.x, same.low) == (0.0, 0.0)


def slow_calibration(p: np.ndarray, y: np.ndarray, bins: int) -> float:
    """Sort, cut into equally many, and compare means cell by cell; for scores that all differ."""
    order = np.argsort(p)
    edges = [len(p) * i // bins for i in range(bins + 1)]
    parts = [order[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    return float(sum(len(at) / len(p) * abs(p[at].mean() - y[at].mean()) for at in parts))


@pytest.mark.parametrize(("n", "bins"), [(100, 10), (203, 10), (77, 4)])
def test_the_calibration_error_is_the_slow_one(n: int, bins: int) -> None:
    own = drawn(n, n)
    assert own.target is not None
    p, y = chance(own), own.target.numpy().astype(float)
    assert calibration(p, y, bins).mean() == pytest.approx(slow_calibration(p, y, bins))
    found = Decisions(bins=bins)(audit({"test": own}, task=TASK))
    assert number(found, "decisions/calibration/test").x == pytest.approx(slow_calibration(p, y, bins))


def test_equal_scores_share_a_cell_whatever_their_order() -> None:
    """One hundred scores of 0.25 of which 30 are ones, and one hundred of 0.75 of which 80 are: 0.05 in both cells."""
    p = np.repeat([0.25, 0.75], 100)
    y = np.concatenate([np.arange(100) < 30, np.arange(100) < 80]).astype(float)
    order = np.random.default_rng(0).permutation(200)
    for at in (np.arange(200), order):
        assert calibration(p[at], y[at], 10).mean() == pytest.approx(0.05)


def test_a_calibrated_model_is_near_the_noise_and_a_sharpened_one_far_above() -> None:
    rng = np.random.default_rng(3)
    p = rng.random(4000)
    y = (rng.random(4000) < p).astype(float)
    sharp = p**3 / (p**3 + (1 - p) ** 3)
    assert calibration(p, y, 10).mean() < 0.03
    parts = calibration(sharp, y, 10)
    assert stats.mean_t(parts).low > 0.05
    inside = 0
    truth = np.abs(sharp - p).mean()  # cell by cell the two differ by one sign nearly everywhere
    for _ in range(200):
        again = (rng.random(4000) < p).astype(float)
        i = stats.mean_t(calibration(sharp, again, 10))
        inside += i.low - 0.005 <= truth <= i.high + 0.005
    assert inside >= 180


def test_flipped_decisions_are_counted_at_the_threshold() -> None:
    target = torch.tensor([0, 1, 0, 1, 1, 0, 1, 0])
    before = torch.tensor([-2.0, 2.0, 0.3, -0.1, 1.5, -3.0, 0.7, -0.2])
    now = torch.tensor([-2.0, -2.0, 0.4, 0.1, 1.4, 3.0, 1.2, -0.3])
    again = torch.tensor([-2.0, 2.0, -0.4, 0.1, 1.4, -3.0, 1.2, -0.3])
    given = audit(*({"test": binary(z, target)} for z in (now, again, before)), task=TASK)
    found = Decisions()(given)
    assert number(found, "decisions/flipped/original") == Value.of(stats.wilson(3, 8))
    assert number(found, "decisions/flipped/retrained") == Value.of(stats.wilson(3, 8))
    gap = given.kept.gaps["decisions/flipped/original"]
    assert isinstance(gap, Value)
    assert gap.x == pytest.approx((3 - 2) / 8)
    strict = Decisions(threshold=0.8)(given)  # a logit of 1.386
    assert number(strict, "decisions/flipped/original").x == pytest.approx(2 / 8)
    assert number(strict, "decisions/rate/test").x == pytest.approx(2 / 8)


@pytest.mark.parametrize("metric", [Decisions(), Stability(bins=4)])
def test_one_logit_and_two_are_the_same_model(metric: Any) -> None:
    roles = [{s: drawn(60, seed=10 * r + i) for i, s in enumerate(("forget", "test"))} for r in range(3)]
    for other in roles[1:]:  # the same samples
        for split, outputs in other.items():
            target = roles[0][split].target
            assert target is not None
            other[split] = binary(outputs.outputs[:, 0], target)

    def two(outputs: Outputs) -> Outputs:
        z = outputs.outputs
        return said(torch.cat([3 - z / 2, 3 + z / 2], dim=1), outputs.target)

    one = metric(audit(*roles, task=TASK))
    other = metric(audit(*({k: two(o) for k, o in part.items()} for part in roles), task=Classification()))
    assert all(isinstance(v, Value) for v in one.values())
    for name, value in one.items():
        assert number(other, name).x == pytest.approx(value.x), name


def test_no_op_flips_nothing_and_a_mask_of_class_one_flips_every_acceptance() -> None:
    own = drawn(200, 1)
    masked = binary(own.outputs[:, 0] - 1e4, own.target)  # type: ignore[arg-type]
    again = drawn(200, 2)
    retrained = binary(own.outputs[:, 0] + 0.3 * noise(200, seed=5), own.target)  # type: ignore[arg-type]
    second = binary(own.outputs[:, 0] + 0.3 * noise(200, seed=6), own.target)  # type: ignore[arg-type]

    def of(model: Outputs) -> dict[str, Any]:
        return Decisions()(audit({"test": model}, {"test": retrained}, {"test": own}, task=TASK))

    assert number(of(own), "decisions/flipped/original").x == 0
    accepted = float((own.outputs > 0).double().mean())
    assert number(of(masked), "decisions/flipped/original").x == pytest.approx(accepted)
    assert number(of(masked), "decisions/rate/test").x == 0
    floor = number(of(second), "decisions/flipped/retrained")
    assert 0 < floor.x < 0.2
    assert number(of(masked), "decisions/flipped/retrained").low > floor.high
    assert number(of(again), "decisions/flipped/retrained").low > floor.high


def why(metric: Any, outputs: Outputs, task: Any = TASK, **more: Any) -> set[Any]:
    given: Audit = audit({"test": outputs}, original={"test": outputs}, task=task, **more)
    return set(metric(given).values())


def test_without_a_number_there_is_a_reason() -> None:
    found = Decisions()(audit({"test": drawn(9, 0)}, task=TASK))
    assert found["decisions/calibration/test"] == Unavailable("too few samples to fill 10 bins: 9 instead of 50")
    assert found["decisions/flipped/original"] == Unavailable("there is no original model to compare with")
    ones = binary(noise(60), torch.ones(60))
    assert Decisions()(audit({"test": ones}, task=TASK))["decisions/auc/test"] == Unavailable(
        "needs 2 samples of each class, has 60 and 0"
    )
    flat = binary(torch.zeros(60), torch.arange(60) % 2)
    same = Decisions()(audit({"test": flat}, task=TASK))
    assert same["decisions/auc/test"] == Unavailable("all scores are equal")
    assert number(same, "decisions/ks/test").x == 0
    assert Unavailable("the task has not two classes") in why(Decisions(), said(noise(9, 3), torch.arange(9) % 3),
                                                              Classification())  # fmt: skip
    for task in (Regression(), MultiLabel()):
        assert why(Decisions(), Outputs(noise(9, 1), noise(9, 1)), task) == {Unavailable("the task has no classes")}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"threshold": 1.0}, r"decisions.threshold in \[0, 1\), got 1.0"),
        ({"bins": 1}, "decisions.bins of 2 or more, got 1"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        Decisions(**settings)


def test_of_one_sample_nothing_is_certain() -> None:
    found = Decisions()(audit({"test": drawn(1, 0)}, task=TASK))
    rate = number(found, "decisions/rate/test")
    assert rate.low < rate.high
    assert not math.isnan(rate.x)
