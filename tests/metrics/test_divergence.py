"""Jensen-Shannon divergence: the numbers of the specification, its laws, and extremes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats as distributions
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn

from expunge import signals
from expunge.errors import UserError
from expunge.metric import Unavailable
from expunge.metrics.divergence import Divergence, js, js_compat
from expunge.task import Regression
from pairs import THREE, audit, noise, said, taken

P = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], dtype=torch.float64)
Q = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.2, 0.3, 0.5]], dtype=torch.float64)
JS = [0.0748064, 0.1402278]


def test_known_answers() -> None:
    assert js(P.log(), Q.log()).tolist() == pytest.approx(JS, abs=1e-7)
    assert js(P.log(), Q.log(), "bits").tolist() == pytest.approx([x / math.log(2) for x in JS], abs=2e-7)
    assert 1 - float(js_compat(P.log(), Q.log()).mean()) == pytest.approx(0.9598146, abs=1e-7)


def test_it_is_the_mean_over_samples_with_a_t_interval() -> None:
    found = Divergence()(audit({"forget": said(P.log())}, {"forget": said(Q.log())}))
    value = found["divergence/js/forget"]
    assert value.x == pytest.approx(sum(JS) / 2, abs=1e-7)
    assert (value.n, value.unit) == (2, "nats")
    half = distributions.t.ppf(0.975, 1) * (JS[1] - JS[0]) / 2  # the deviation of two is their difference over √2
    assert value.low == 0.0  # which the interval is cut to
    assert value.high == pytest.approx(sum(JS) / 2 + half, abs=1e-6)
    assert found["divergence/js/test_forget"] == Unavailable("there are no samples in test_forget")
    bits = Divergence(base="bits")(audit({"forget": said(P.log())}, {"forget": said(Q.log())}))
    assert bits["divergence/js/forget"].x == pytest.approx(sum(JS) / 2 / math.log(2), abs=1e-7)
    assert bits["divergence/js/forget"].unit == "bits"


def test_the_published_variant_has_another_name() -> None:
    given = audit({"forget": said(P.log())}, {"forget": said(Q.log())})
    compat = Divergence(compat=True)(given)
    assert compat["divergence/js_compat/forget"].x == pytest.approx(1 - 0.9598146, abs=1e-7)
    assert not compat.keys() & Divergence()(given).keys()


def published(p: Tensor, q: Tensor) -> float:
    """Return what the released function returns, written with its own calls."""
    m = (p + q) / 2
    return float(0.5 * nn.functional.kl_div(p.log(), m) + 0.5 * nn.functional.kl_div(q.log(), m))


@pytest.mark.filterwarnings("ignore:reduction")
@pytest.mark.parametrize("seed", range(3))
def test_against_slow_references(seed: int) -> None:
    a, b = noise(50, 7, seed=seed) * 4, noise(50, 7, seed=seed + 10) * 4
    p, q = a.softmax(dim=1), b.softmax(dim=1)
    slow = [jensenshannon(x, y) ** 2 for x, y in zip(p.numpy(), q.numpy(), strict=True)]
    np.testing.assert_allclose(js(a, b), slow, rtol=1e-10)
    assert float(js_compat(a, b).mean()) == pytest.approx(published(p, q), rel=1e-10)


def test_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = noise(30, 5), noise(30, 5, seed=1)
    assert torch.equal(js(a, b), js(b, a))
    assert js(a, a.clone()).tolist() == [0.0] * 30
    torch.testing.assert_close(js(a + 7, b - 3), js(a, b))  # a shift of all logits changes nothing
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    assert torch.equal(js(a[order], b[order]), js(a, b)[order])
    model, retrained = dict.fromkeys(THREE, said(a)), dict.fromkeys(THREE, said(b))
    name = "divergence/js/test"
    there, here = (Divergence()(audit(*pair))[name].x for pair in ((model, retrained), (retrained, model)))
    assert there == here
    moved = Divergence()(audit(taken(model, order), taken(retrained, order)))[name]
    assert moved.x == pytest.approx(there, rel=1e-12)
    whole = js(a, b), js_compat(a, b)
    monkeypatch.setattr(signals, "BLOCK", 20)
    assert torch.equal(js(a, b), whole[0])
    assert torch.equal(js_compat(a, b), whole[1])


def test_small_differences_are_not_lost() -> None:
    """JS of (½ + e, ½ − e) against (½, ½) is e²/2 to first order; differences of logarithms lose it below 1e-8."""
    for e in (1e-4, 1e-7, 1e-10):
        p = torch.tensor([[0.5 + e, 0.5 - e]], dtype=torch.float64).log()
        assert float(js(p, torch.zeros(1, 2))) == pytest.approx(e * e / 2, rel=1e-4)


def test_probabilities_of_zero_are_no_special_case() -> None:
    sure = torch.tensor([[0.0, 1e4, 0.0, 0.0], [0.0, 0.0, 1e4, 0.0], [0.0, 1e4, 0.0, 0.0]])
    other = torch.tensor([[1e4, 0.0, 0.0, 0.0], [0.0, 0.0, 1e4, 0.0], [0.0, 0.0, 0.0, 0.0]])
    found = js(sure, other)
    assert found[0] == math.log(2)
    assert found[1] == 0.0
    assert 0 < found[2] < math.log(2)
    assert js(sure, other, "bits")[0] == 1.0
    assert bool(js_compat(sure, other).isfinite().all())
    three = said(sure[:1].repeat(3, 1)), said(other[:1].repeat(3, 1))
    assert Divergence()(audit({"test": three[0]}, {"test": three[1]}))["divergence/js/test"].x == math.log(2)


def test_why_there_is_no_number() -> None:
    own, other = {"test": said(noise(4, 3))}, {"test": said(noise(4, 5))}
    found = Divergence()(audit(own, other))["divergence/js/test"]
    assert found == Unavailable("retrained has other outputs: (5,) instead of (3,) a sample")
    assert set(Divergence()(audit(own)).values()) == {Unavailable("there is no retrained model to compare with")}
    assert set(Divergence()(audit(own, own, task=Regression())).values()) == {Unavailable("the task has no classes")}
    flawed = audit(own, own, flaws={"retrained": "its outputs are probabilities"})
    assert set(Divergence()(flawed).values()) == {Unavailable("retrained: its outputs are probabilities")}
    one = Divergence()(audit({"test": said(noise(1, 3))}, {"test": said(noise(1, 3, seed=1))}))["divergence/js/test"]
    assert (one.low, one.high, one.n) == (-math.inf, math.inf, 1)
    with pytest.raises(UserError, match="Expected base to be one of nats, bits, got 'bit': did you mean 'bits'"):
        Divergence(base="bit")  # type: ignore[arg-type]
