"""RMIA: numbers by hand, the comparison of all pairs, and a scale chosen on a reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from expunge import stats
from expunge.errors import UserError
from expunge.shadows import draw, rmia, tuned
from expunge.shadows.pool import Floats

TARGET = np.array([0.9, 0.4])
Z = np.array([0.7, 0.2, 0.5, 0.6])
Z_REFERENCES = np.array([[0.6, 0.7, 0.65, 0.7], [0.3, 0.4, 0.2, 0.3], [0.4, 0.6, 0.5, 0.5], [0.9, 0.8, 0.7, 0.6]]).T
SEEN = np.array([[False, False], [False, False], [True, True], [True, True]])
REFERENCES = np.array([[0.5, 0.45], [0.3, 0.2], [0.97, 0.9], [0.95, 0.99]])  # what saw a sample has no say


def test_published_numbers() -> None:
    assert rmia(TARGET, REFERENCES, SEEN, Z, Z_REFERENCES).tolist() == [1.0, 0.25]


def test_the_k_largest_rule_gives_another_number() -> None:
    largest = np.sort(Z_REFERENCES, axis=0)[-2:]  # half of the references, as for a sample that the others saw
    assert rmia(TARGET, REFERENCES[:2], SEEN[:2], Z, largest).tolist() == [1.0, 0.75]


def slow(x: Floats, refs: Floats, seen: Any, z: Floats, z_refs: Floats, a: float, gamma: float) -> Floats:
    def ratio(t: float, out: Floats) -> float:
        return t / (((1 + a) * out.mean() + (1 - a)) / 2)

    beside = [ratio(z[j], z_refs[:, j]) for j in range(len(z))]
    own = [ratio(x[i], refs[~seen[:, i], i]) for i in range(len(x))]
    return np.array([np.mean([r / other > gamma for other in beside]) for r in own])


@pytest.mark.parametrize(("a", "gamma"), [(0.3, 1.0), (0.0, 1.0), (1.0, 1.5), (0.7, 0.6)])
def test_sorting_agrees_with_all_pairs(a: float, gamma: float) -> None:
    rng = np.random.default_rng(0)
    x, z = rng.random(40), rng.random(70)
    refs, z_refs = rng.uniform(0.05, 1, (5, 40)), rng.uniform(0.05, 1, (5, 70))
    seen = rng.random((5, 40)) < 0.5
    seen[0] = False
    found = rmia(x, refs, seen, z, z_refs, a=a, gamma=gamma)
    assert found == pytest.approx(slow(x, refs, seen, z, z_refs, a, gamma))
    rows, columns = rng.permutation(5), rng.permutation(40)
    mixed = rmia(
        x[columns], refs[rows][:, columns], seen[rows][:, columns], z[::-1], z_refs[rows][:, ::-1], a=a, gamma=gamma
    )
    assert mixed == pytest.approx(found[columns])


def test_ties_do_not_exceed() -> None:
    same = np.full((1, 2), 0.5)
    assert rmia([0.5, 0.6], same, np.zeros((1, 2), bool), [0.5, 0.5], same).tolist() == [0.0, 1.0]


def test_probabilities_of_0_give_finite_scores() -> None:
    zeros = np.zeros((1, 2))
    found = rmia([0.0, 0.5], zeros, np.zeros((1, 2), bool), [0.0, 0.1], zeros, a=1.0)
    assert found.tolist() == [0.0, 1.0]


def shadows(seed: int, weight: float) -> tuple[Floats, Any, Floats]:
    """Return probabilities and training masks of 5 references, and probabilities of a population."""
    rng = np.random.default_rng(seed)
    seen = draw([f"s{i}" for i in range(600)], 5, seed)
    hard, z_hard = rng.normal(0, 2, 600), rng.normal(0, 2, 400)
    own = hard + weight * seen + rng.normal(0, 0.4, (5, 600))
    other = z_hard + rng.normal(0, 0.4, (5, 400))
    return 1 / (1 + np.exp(-own)), seen, 1 / (1 + np.exp(-other))


def test_members_are_found_from_four_references_and_a_never_trained_target_gives_nothing_away() -> None:
    p, seen, z = shadows(0, 1.0)
    usable = ~seen[1:].all(axis=0)
    scores = rmia(p[0, usable], p[1:, usable], seen[1:, usable], z[0], z[1:])
    member = seen[0, usable]
    plain = stats.auc(p[0, usable][member], p[0, usable][~member])
    found = stats.auc(scores[member], scores[~member])
    assert found.low > max(plain.high, 0.7)
    blank, _, none = shadows(0, 0.0)
    scores = rmia(blank[0, usable], p[1:, usable], seen[1:, usable], none[0], z[1:])
    found = stats.auc(scores[member], scores[~member])
    assert found.low < 0.5 < found.high


def test_scale_is_that_of_the_best_attack_on_a_reference() -> None:
    p, seen, z = shadows(1, 1.0)
    left = [0, 1, 3, 4]
    seen[np.ix_(left, [3, 8])] = True  # no reference is left for these two
    found = tuned(p, seen, z, victim=2)
    assert {v.n for v in found.auc.values()} == {598}
    usable = ~seen[left].all(axis=0)
    member = seen[2, usable]
    assert sorted(found.auc) == pytest.approx([i / 10 for i in range(11)])
    for a, value in found.auc.items():
        scores = slow(p[2, usable], p[left][:, usable], seen[left][:, usable], z[2], z[left], a, 1.0)
        assert value.x == pytest.approx(stats.auc(scores[member], scores[~member]).x)
    assert found.auc[found.a].x == max(v.x for v in found.auc.values()) > min(v.x for v in found.auc.values())


def test_of_equal_scales_the_usual_one_is_taken() -> None:
    p = np.array([[0.9, 0.9, 0.1, 0.1], [0.5, 0.5, 0.5, 0.5]])
    seen = np.array([[True, True, False, False], [False] * 4])
    found = tuned(p, seen, np.array([[0.4, 0.5], [0.5, 0.5]]))
    assert {v.x for v in found.auc.values()} == {1.0}
    assert found.a == 0.3


BAD: list[tuple[dict[str, Any], str]] = [
    ({"seen": np.ones((4, 2), bool)}, "reference for each sample that was not trained on it, got 2 samples that all 4"),
    ({"seen": np.zeros((4, 2))}, "bool mask of shape"),
    ({"target_probability": [-0.1, 0.5]}, "probabilities in .0, 1., got -0.1 to 0.5"),
    ({"references": REFERENCES * 2}, "give exp"),
    ({"target_probability": [0.5]}, r"probabilities of the target of shape \(2,\)"),
    ({"population_target": [0.5]}, r"probabilities of the population of shape \(4,\)"),
    ({"population_references": Z_REFERENCES[:3]}, "as many references .* got 4 and 3"),
    ({"a": 1.2}, "got a = 1.2, gamma = 1"),
    ({"gamma": 0.0}, "gamma above 0"),
]


@pytest.mark.parametrize(("change", "match"), BAD)
def test_what_is_refused(change: dict[str, Any], match: str) -> None:
    right: dict[str, Any] = {
        "target_probability": TARGET,
        "references": REFERENCES,
        "seen": SEEN,
        "population_target": Z,
        "population_references": Z_REFERENCES,
    }
    with pytest.raises(UserError, match=match):
        rmia(**(right | change))


def test_what_tuning_refuses() -> None:
    p, seen, z = shadows(2, 1.0)
    with pytest.raises(UserError, match="row of at least 2 references to attack, got row 5 of 5"):
        tuned(p, seen, z, victim=5)
    with pytest.raises(UserError, match="got row 0 of 1"):
        tuned(p[:1], seen[:1], z[:1])
    with pytest.raises(UserError, match="got 5 and 4"):
        tuned(p, seen, z[:4])
    with pytest.raises(UserError, match="saw and did not see, got 0 and"):
        tuned(p, seen & (np.arange(5) > 0)[:, None], z)
