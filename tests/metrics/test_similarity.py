"""CKA against slow references, agreement by hand, and what neither can say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from expunge.errors import UserError
from expunge.metric import Unavailable, Value
from expunge.metrics import _cka as module
from expunge.metrics._cka import cka, hsic
from expunge.metrics.similarity import Similarity
from expunge.task import Regression
from pairs import THREE, audit, noise, said, taken


def slow_unbiased(x: Tensor, y: Tensor) -> float:
    """Return the criterion by its definition on N x N kernels: the trace formula of Song et al."""
    n = len(x)
    k, other = ((z @ z.T).numpy().copy() for z in (x, y))
    np.fill_diagonal(k, 0.0)
    np.fill_diagonal(other, 0.0)
    both = k.sum() * other.sum() / ((n - 1) * (n - 2))
    return float(np.trace(k @ other) + both - 2 / (n - 2) * (k @ other).sum())


def slow_plain(x: Tensor, y: Tensor) -> float:
    n = len(x)
    centre = np.eye(n) - 1 / n
    k, other = (centre @ (z @ z.T).numpy() @ centre for z in (x, y))
    return float((k * other).sum())


@pytest.mark.parametrize("block", [module.BLOCK, 16])
@pytest.mark.parametrize(("n", "d", "e"), [(12, 3, 5), (9, 20, 30), (40, 7, 1)])
def test_against_the_definition(n: int, d: int, e: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    x, y = noise(n, d) + 2.0, noise(n, e, seed=1)
    y[:, 0] += x[:, 0]
    assert hsic(x, y) == pytest.approx(slow_unbiased(x, y), rel=1e-9)
    assert hsic(x, y, unbiased=False) == pytest.approx(slow_plain(x, y), rel=1e-9)
    for unbiased, slow in ((True, slow_unbiased), (False, slow_plain)):
        want = slow(x, y) / math.sqrt(slow(x, x) * slow(y, y))
        assert cka(x, y, unbiased=unbiased) == pytest.approx(want, rel=1e-9)
        assert cka(x, y, unbiased=unbiased) == pytest.approx(cka(y, x, unbiased=unbiased), rel=1e-12)


def test_rotation_scale_and_shift_of_the_features_change_nothing() -> None:
    x = noise(30, 6)
    turned = 3.0 * x @ torch.linalg.qr(noise(6, 6, seed=1))[0] + 5.0
    assert cka(x, turned) == pytest.approx(1.0, abs=1e-12)
    assert cka(x, x.clone()) == 1.0
    assert cka(x, torch.cat([x, torch.zeros(30, 4)], dim=1)) == pytest.approx(1.0, abs=1e-12)


def test_the_plain_estimator_finds_likeness_where_there_is_none() -> None:
    """Unrelated features, more of them than samples: 0 on average, which the plain estimator hides."""
    pairs = [(noise(10, 50, seed=s), noise(10, 50, seed=100 + s)) for s in range(40)]
    assert abs(float(np.mean([cka(x, y) for x, y in pairs]))) < 0.05
    assert float(np.mean([cka(x, y, unbiased=False) for x, y in pairs])) > 0.7


@pytest.mark.parametrize("unbiased", [True, False])
def test_what_has_no_alignment(unbiased: bool) -> None:
    x = noise(10, 3)
    assert math.isnan(cka(x, torch.full((10, 3), 0.1), unbiased=unbiased))  # not a number binary fractions can hold
    assert math.isnan(cka(x[:1], x[:1], unbiased=unbiased))
    assert math.isnan(cka(x, x.new_zeros(10, 0), unbiased=unbiased))
    bad = x.clone()
    bad[0, 0] = math.inf
    assert math.isnan(cka(bad, x, unbiased=unbiased))
    assert math.isnan(cka(torch.eye(10), x))  # all equally far apart: nothing but the diagonal


def test_numbers_of_two_networks_with_features_of_other_widths() -> None:
    x = noise(20, 6)
    wide = torch.cat([x, noise(20, 3, seed=1)], dim=1)
    own, other = said(x[:, :3], features=x.reshape(20, 2, 3)), said(-x[:, :3], features=wide)
    given = audit(dict.fromkeys(THREE, own), dict.fromkeys(THREE, other))
    found = Similarity()(given)
    value = found["similarity/cka/test"]
    assert value.x == pytest.approx(cka(x, wide))
    assert (value.low, value.high, value.n) == (-math.inf, math.inf, 20)
    assert Similarity(estimator="plain")(given)["similarity/cka_plain/test"].x == cka(x, wide, unbiased=False)
    assert list(given.shared) == [
        f"similarity/{name}/{split}/retrained" for name in ("cka", "cka_plain") for split in THREE
    ]
    again = audit(dict.fromkeys(THREE, own), dict.fromkeys(THREE, other), shared=given.shared)
    assert Similarity()(again) == found


def test_agreement_counts_equal_predictions() -> None:
    labels = torch.tensor([0, 1, 2, 0])
    own = said(torch.nn.functional.one_hot(labels).double())
    other = said(torch.nn.functional.one_hot((labels + torch.tensor([0, 0, 0, 1])) % 3).double())
    found = Similarity()(audit(dict.fromkeys(THREE, own), dict.fromkeys(THREE, other)))["similarity/agreement/forget"]
    assert found.x == 0.75
    assert (found.low, found.high) == pytest.approx((0.30064, 0.95441), abs=1e-5)  # Wilson's interval of 3 of 4


def test_laws() -> None:
    own, other = said(noise(20, 4), features=noise(20, 6)), said(noise(20, 4, seed=1), features=noise(20, 6, seed=2))
    model, retrained = dict.fromkeys(THREE, own), dict.fromkeys(THREE, other)
    here, back = Similarity()(audit(model, retrained)), Similarity()(audit(retrained, model))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    moved = Similarity()(audit(taken(model, order), taken(retrained, order)))
    copy = dict.fromkeys(THREE, said(own.outputs.clone(), features=own.features["head:input"].clone()))
    same = Similarity()(audit(copy, model))
    for name, value in here.items():
        assert isinstance(value, Value)
        assert back[name].x == pytest.approx(value.x, rel=1e-12)
        assert moved[name].x == pytest.approx(value.x, rel=1e-9)
        assert same[name].x == 1.0


def test_why_there_is_no_number() -> None:
    bare, some = said(noise(5, 3)), said(noise(5, 3), features=noise(5, 2))

    def why(own: object, other: object, name: str = "cka", **more: object) -> str:
        return str(Similarity()(audit({"test": own}, {"test": other}, **more))[f"similarity/{name}/test"].reason)

    assert why(bare, some) == "no features were collected: the network has no linear head to tap"
    assert why(some, bare) == "retrained: no features were collected, the network has no linear head to tap"
    three = torch.arange(3)
    assert why(some.take(three), some.take(three)) == "4 samples are needed, there are 3"
    flat = said(noise(5, 3), features=torch.ones(5, 2))
    assert why(flat, some) == "the features of one side do not tell samples apart, or are not finite"
    assert why(some, said(noise(5, 4), features=noise(5, 2))) == (
        "retrained has other outputs: (4,) instead of (3,) a sample"
    )
    assert why(some, some, "agreement", task=Regression()) == "the task has no classes"
    regression = audit({"test": some}, {"test": some}, task=Regression())
    assert Similarity()(regression)["similarity/cka/test"].x == 1.0
    assert set(Similarity()(audit({"test": some})).values()) == {
        Unavailable("there is no retrained model to compare with")
    }
    with pytest.raises(UserError, match="estimator to be one of unbiased, plain, got 'biased'"):
        Similarity(estimator="biased")  # type: ignore[arg-type]
