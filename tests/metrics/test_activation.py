"""Activation distance: three conventions, each with its number."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from expunge import signals
from expunge.errors import UserError
from expunge.metric import Unavailable, Value
from expunge.metrics.activation import Activation, l1, l2, rms
from pairs import THREE, audit, noise, said, taken

P = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], dtype=torch.float64).log()
Q = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.2, 0.3, 0.5]], dtype=torch.float64).log()
KNOWN = {"l1": 0.8666667, "l2": 0.5513401, "rms": 0.5597619}


@pytest.mark.parametrize("convention", list(KNOWN))
def test_known_answers(convention: str) -> None:
    metric = Activation(convention=convention)  # type: ignore[arg-type]
    found = metric(audit({"test": said(P)}, {"test": said(Q)}))
    value = found[f"activation/{convention}/test"]
    assert value.x == pytest.approx(KNOWN[convention], abs=1e-7)
    assert (value.n, value.unit) == (2, convention.upper())
    assert value.low <= value.x <= value.high
    assert found[f"activation/{convention}/forget"] == Unavailable("there are no samples in forget")


def test_pure_functions() -> None:
    assert float(l1(P, Q).mean()) == pytest.approx(KNOWN["l1"], abs=1e-7)
    assert float(l2(P, Q).mean()) == pytest.approx(KNOWN["l2"], abs=1e-7)
    assert rms(P, Q) == pytest.approx(KNOWN["rms"], abs=1e-7)
    a, b = noise(40, 6), noise(40, 6, seed=1)
    gap = (a.softmax(1) - b.softmax(1)).numpy()
    np.testing.assert_allclose(l1(a, b), np.abs(gap).sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(l2(a, b), np.linalg.norm(gap, axis=1), rtol=1e-12)


@pytest.mark.parametrize("convention", list(KNOWN))
def test_laws(convention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = Activation(convention=convention)  # type: ignore[arg-type]
    name = f"activation/{convention}/retain"
    model, retrained = dict.fromkeys(THREE, said(noise(25, 4))), dict.fromkeys(THREE, said(noise(25, 4, seed=1)))
    here = metric(audit(model, retrained))[name]
    assert metric(audit(retrained, model))[name] == here
    copy = {k: said(o.outputs.clone()) for k, o in retrained.items()}
    assert metric(audit(copy, retrained))[name] == Value(0.0, 0.0, 0.0, 25, convention.upper())
    order = torch.randperm(25, generator=torch.Generator().manual_seed(2))
    assert metric(audit(taken(model, order), taken(retrained, order)))[name].x == pytest.approx(here.x, rel=1e-12)
    monkeypatch.setattr(signals, "BLOCK", 12)
    assert metric(audit(model, retrained))[name] == here


@pytest.mark.parametrize(("convention", "most"), [("l1", 2.0), ("l2", math.sqrt(2)), ("rms", math.sqrt(2))])
def test_sure_and_different_answers_are_farthest(convention: str, most: float) -> None:
    sure, other = torch.tensor([[1e4, 0.0, 0.0]] * 7), torch.tensor([[0.0, 1e4, 0.0]] * 7)
    metric = Activation(convention=convention)  # type: ignore[arg-type]
    found = metric(audit({"test": said(sure)}, {"test": said(other)}))[f"activation/{convention}/test"]
    assert found.x == most == metric.numbers[f"activation/{convention}/test"].range[1]


def test_one_sample_has_no_interval_and_settings_are_checked() -> None:
    for convention in KNOWN:
        metric = Activation(convention=convention)  # type: ignore[arg-type]
        found = metric(audit({"test": said(P[:1])}, {"test": said(Q[:1])}))[f"activation/{convention}/test"]
        assert (found.low, found.high, found.n) == (-math.inf, math.inf, 1)
    with pytest.raises(UserError, match="convention to be one of l1, l2, rms, got 'L2'"):
        Activation(convention="L2")  # type: ignore[arg-type]
