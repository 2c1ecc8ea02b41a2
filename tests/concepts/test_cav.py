"""Concept activation vectors: C1, scales, validation, draws, significance, what is dropped and refused."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from sklearn.svm import SVC, LinearSVC
from torch import Tensor

from expunge.concepts import cav as module
from expunge.concepts.cav import Cav, Concept, Rules, fit_cav, hyperplane, mean_cosine, right
from expunge.errors import NotFinite, UserError

D = torch.float64
FEW = Rules(least=10, draws=5)


def rows(n: int, d: int = 6, shift: float = 0.0, seed: int = 0) -> Tensor:
    found = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=D)
    found[:, 0] += shift
    return found


def separate(n: int = 40, shift: float = 4.0) -> Concept:
    return Concept("stripes", rows(n, shift=shift, seed=1), rows(4 * n, seed=2))


def test_a_hard_margin_by_hand():
    positives, negatives = torch.tensor([[2.0, 2], [3, 3]]), torch.tensor([[0.0, 0], [-1, 0]])
    c, b = hyperplane(positives, negatives, 1e6, standardise=False)
    assert c.tolist() == pytest.approx([0.5, 0.5], abs=1e-3)
    assert b == pytest.approx(-1, abs=1e-3)
    assert (c / c.norm()).tolist() == pytest.approx([0.70710678, 0.70710678], abs=1e-3)
    margins = (torch.cat([positives, negatives]).double() @ c + b) / c.norm()
    assert margins.tolist() == pytest.approx([1.41421356, 2.82842712, -1.41421356, -2.12132034], abs=1e-3)


def test_a_library_that_does_not_converge_would_give_another_vector():
    x, y = np.array([[2.0, 2], [3, 3], [0, 0], [-1, 0]]), [1, 1, 0, 0]
    off = LinearSVC(C=1e6, random_state=0).fit(x, y).coef_[0]
    assert np.abs(off - 0.5).max() > 0.01


@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_the_vector_is_scikit_learns_on_standardised_rows_mapped_back(penalty):
    positives, negatives = rows(15, shift=1.0, seed=3), 3 * rows(21, seed=4) + 5
    x = torch.cat([positives, negatives]).numpy()
    y = np.repeat([1, 0], [15, 21])
    middle, width = x.mean(axis=0), x.std(axis=0)
    machine = SVC(kernel="linear", C=penalty, tol=1e-6).fit((x - middle) / width, y)
    c, b = hyperplane(positives, negatives, penalty)
    assert np.allclose(c.numpy(), machine.coef_[0] / width, atol=1e-3)
    assert np.allclose(x @ c.numpy() + b, machine.decision_function((x - middle) / width), atol=1e-3)


def test_a_solver_that_does_not_end_is_stopped_and_said(caplog, monkeypatch):
    monkeypatch.setattr(module, "ROUNDS", 3)
    with caplog.at_level(logging.WARNING):
        c, _ = hyperplane(rows(30, shift=0.1, seed=3), rows(30, seed=4), 10.0)
    assert c.any()
    assert "a support vector machine with C = 10 did not converge in 3 rounds" in caplog.text


def test_units_of_the_representation_do_not_change_what_is_separated():
    positives, negatives, scale = rows(20, shift=2.0, seed=5), rows(20, seed=6), torch.logspace(-1, 1, 6, dtype=D)
    c, b = hyperplane(positives, negatives, 0.1)
    d, e = hyperplane(positives * scale + 3, negatives * scale + 3, 0.1)
    assert torch.allclose(positives @ c + b, (positives * scale + 3) @ d + e, atol=1e-2)


def test_a_dimension_that_hardly_varies_does_not_take_the_vector_over():
    positives, negatives = rows(30, shift=2.0, seed=7), rows(30, seed=8)
    for x in (positives, negatives):
        x[:, 5] *= 1e-9
        x[:, 4] = 2.0
    c, _ = hyperplane(positives, negatives, 0.1)
    assert int(c.abs().argmax()) == 0
    assert c[4] == 0
    assert abs(c[5]) < 1e-4


def test_sets_that_are_the_same_have_no_vector():
    c, _ = hyperplane(torch.ones(4, 3), torch.ones(5, 3), 1.0)
    assert not c.any()


def test_a_concept_that_separates_is_kept_and_points_to_its_examples():
    found = fit_cav(separate(), rules=FEW)
    assert found.dropped is None
    assert found.accuracy is not None
    assert found.accuracy > 0.9
    assert found.cosine is not None
    assert found.cosine > 0.5
    assert found.p is None
    assert (found.examples, found.penalty in FEW.grid) == (40, True)
    assert int(found.vector.argmax()) == 0
    assert right(found.vector.numpy(), found.intercept, rows(500, shift=4.0).numpy(), rows(500).numpy()) > 0.9


def test_the_same_seed_gives_the_same_vector_and_the_accuracy_is_of_samples_not_fitted():
    concept = separate()
    one, two, three = (fit_cav(concept, rules=FEW, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.vector, two.vector)
    assert one.record() == two.record()
    assert not torch.equal(one.vector, three.vector)
    noise = Concept("noise", rows(30, 60, seed=9), rows(60, 60, seed=10))  # can be fitted perfectly
    assert fit_cav(noise, rules=FEW).accuracy < 0.75


def test_a_concept_that_does_not_separate_is_dropped_with_a_reason():
    found = fit_cav(Concept("noise", rows(400, 2, seed=11), rows(800, 2, seed=12)), rules=FEW)
    assert found.dropped is not None
    assert found.dropped.startswith("its examples do not separate: accuracy 0.")
    same = fit_cav(Concept("nothing", torch.ones(20, 3), torch.ones(20, 3)), rules=FEW)
    assert same.dropped == "its examples cannot be told from others"


def test_a_vector_that_depends_on_the_negatives_is_dropped():
    """Negatives on every side of the examples: which side is cut off depends on the draw."""
    rng = np.random.default_rng(0)
    around = rng.normal(size=(200, 6))
    around = 6 * around / np.linalg.norm(around, axis=1, keepdims=True)
    concept = Concept("middle", 0.1 * rows(200, seed=13), torch.from_numpy(around))
    found = fit_cav(concept, rules=Rules(least=10, most=3, accuracy=0.0))
    assert found.dropped is not None
    assert found.dropped.startswith("its vector depends on the negatives: mean cosine")


def test_a_concept_that_no_class_follows_is_dropped_and_one_that_a_class_follows_is_kept():
    concept = separate(60)
    along, across = torch.zeros(50, 6, dtype=D), torch.zeros(50, 6, dtype=D)
    along[:, 0], across[:, 0] = 1, torch.tensor([1.0, -1.0], dtype=D).repeat(25)
    kept = fit_cav(concept, rules=Rules(least=10), gradients=[along])
    assert kept.dropped is None
    assert kept.p is not None
    assert kept.p < 0.01
    lost = fit_cav(concept, rules=Rules(least=10), gradients=[across])  # half of the logits rise, as along any vector
    assert lost.dropped is not None
    assert lost.dropped.startswith("no class's logit follows it more than random vectors: p = ")
    one_of_two = fit_cav(concept, rules=Rules(least=10), gradients=[across, along], tests=3)
    assert one_of_two.dropped is None
    assert one_of_two.p == pytest.approx(6 * kept.p)


def test_random_sets_do_not_pass_for_a_concept():
    """Their fixed positives make draws alike and sign counts steady, so that it is the accuracy that stops them."""
    g = rows(60, seed=20) + 0.3
    pools = [rows(400, seed=100 + i) for i in range(10)]
    found = [fit_cav(Concept(f"nothing {i}", x[:100], x[100:]), gradients=[g], tests=10) for i, x in enumerate(pools)]
    assert all(c.dropped is not None and "do not separate" in c.dropped for c in found)
    assert any(c.p is not None and c.p < 0.05 for c in found)


def test_a_given_vector_is_used_as_it_is():
    found = fit_cav(Concept("given", vector=torch.tensor([3.0, 4.0]), intercept=0.5, facts={"from": "elsewhere"}))
    assert (found.vector.tolist(), found.intercept, found.dropped) == ([3, 4], 0.5, None)
    assert found.record() == {
        "from": "elsewhere",
        "name": "given",
        "accuracy": None,
        "cosine": None,
        "p": None,
        "penalty": None,
        "examples": 0,
        "dropped": None,
    }
    assert isinstance(found, Cav)


@pytest.mark.parametrize(("n", "m", "words"), [(49, 80, "50 examples"), (80, 49, "50 negatives")])
def test_too_few_examples_are_refused(n, m, words):
    with pytest.raises(UserError, match=f"Expected {words} of concept fur or more, got 49: give more"):
        fit_cav(Concept("fur", rows(n), rows(m)))
    with pytest.raises(UserError, match="50 negatives of concept fur or more, got 0"):
        fit_cav(Concept("fur", rows(60)))


def test_the_fewest_examples_that_rules_allow_can_be_fitted():
    rules = Rules(least=4, draws=2)
    found = fit_cav(Concept("few", rows(4, 1, 9.0), rows(4, 1, seed=1)), rules=rules, gradients=[rows(3, 1)])
    assert found.accuracy == 1.0


def test_gradients_of_another_layer_are_refused():
    with pytest.raises(UserError, match=r"gradients \(n, 6\), as concept stripes, got shape \(3, 5\)"):
        fit_cav(separate(), rules=FEW, gradients=[rows(3, 5)])


def test_concepts_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="examples of concept a or its vector, got neither"):
        Concept("a")
    with pytest.raises(UserError, match="examples of concept a or its vector, got both"):
        Concept("a", rows(3), vector=torch.ones(6))
    with pytest.raises(UserError, match=r"representations \(n, d\) of concept a, got shape \(3, 2, 2\)"):
        Concept("a", torch.zeros(3, 2, 2))
    with pytest.raises(UserError, match="negatives of 6 numbers for concept a, got 5"):
        Concept("a", rows(3), rows(3, 5))
    with pytest.raises(UserError, match="that is not 0, got zeros"):
        Concept("a", vector=torch.zeros(3))
    with pytest.raises(NotFinite, match="finite numbers for concept a"):
        Concept("a", rows(3) / 0)
    with pytest.raises(UserError, match="penalties above 0"):
        Rules(grid=(0.0,))
    with pytest.raises(UserError, match="2 draws, 4 examples and 2 in a fit, or more, got 1, 50 and 100"):
        Rules(draws=1)


def test_the_mean_cosine_is_that_of_every_pair():
    x = rows(5).numpy()
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [units[i] @ units[j] for i in range(5) for j in range(5) if i != j]
    assert mean_cosine(x) == pytest.approx(np.mean(pairs))
    assert mean_cosine(np.zeros((2, 3))) == 0
