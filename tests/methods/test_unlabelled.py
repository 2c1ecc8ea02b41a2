"""What forgetting without labels is made of: losses by the numbers, pairs of batches, agreement, when it stops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from expunge import stats
from expunge.methods._unlabelled import (
    Look,
    Watch,
    agreement,
    alignment_loss,
    extractor_loss,
    pairs,
    phi,
    turned,
)

D = torch.float64


def float64(*values: object) -> Tensor:
    return torch.tensor(values, dtype=D)


def test_phi_is_that_of_the_formula():
    m = float64(0, 1, 3, 160, 9).requires_grad_()
    assert phi(m).tolist()[:4] == pytest.approx([1, 1.64872127, 2.11700002, 2.70145042], abs=1e-8)
    phi(m).sum().backward()
    slopes = m.grad.tolist()
    assert [slopes[i] for i in (0, 1, 4)] == pytest.approx([1, 0.41218032, 0.02459603], abs=1e-8)
    assert slopes[3] == pytest.approx(1.0421860e-4, abs=1e-10)
    assert float(phi(float64(1e12))) <= math.e


def test_the_extractor_loss_is_that_of_the_formula():
    retain = (float64((0, 0), (1, 1)) - float64((0, 1), (1, 1))).square().sum(1)
    forget = (float64((2, 0), (0, 0)) - float64((0, 0), (1, 1))).square().sum(1)
    assert (retain.tolist(), forget.tolist()) == ([1, 0], [4, 2])
    found = {
        (p, m): float(extractor_loss(retain, forget, push=p, mean=m)) for p in (None, "phi") for m in (True, False)
    }
    assert found[None, False] == -5
    assert found[None, True] == -2.5
    assert found["phi", False] == pytest.approx(-1.52455370, abs=1e-8)
    assert found["phi", True] == pytest.approx(-0.76227685, abs=1e-8)
    assert float(extractor_loss(retain, forget, push="clamp", most=3.0)) == 0.5 - 2.5


def test_a_clamped_error_pushes_no_further():
    forget = float64(1, 5).requires_grad_()
    extractor_loss(float64(0), forget, push="clamp", most=3.0).backward()
    assert forget.grad.tolist() == [-0.5, 0]


def test_the_alignment_loss_is_that_of_the_formula():
    retain = turned(float64((1, 0), (0, 1)), float64((1, 1), (0, 2)))
    forget = turned(float64((1, 0), (1, 1), (0, -1)), float64((0, 1), (2, 2), (0, 1)))
    assert retain.tolist() == pytest.approx([0.29289322, 0], abs=1e-8)
    assert forget.tolist() == pytest.approx([1, 0, 2], abs=1e-8)
    found = [float(alignment_loss(retain, forget, tau, mean=False)) for tau in (1, 5, 20)]
    assert found == pytest.approx([-4.52231871, -2.33090965, -2.00599768], abs=1e-8)
    large = float(retain.sum() - 2 / 20 * forget.mean()) - 2 * math.log(3)
    assert large == pytest.approx(-2.00433136, abs=1e-8)
    mean = float(alignment_loss(retain, forget, 5))
    assert mean == pytest.approx(-2.33090965 / 2 + math.log(3), abs=1e-8)


def test_turning_is_torch_s_cosine_loss():
    e, teacher = torch.randn(7, 4, dtype=D), torch.randn(7, 4, dtype=D)
    want = nn.CosineEmbeddingLoss(reduction="none")(e, teacher, torch.ones(7))
    assert torch.allclose(turned(e, teacher), want, atol=1e-12)


def test_a_representation_of_zeros_has_no_direction_to_be_turned_from():
    e = float64((0, 0), (1, 2), (0, 0)).requires_grad_()
    found = turned(e, float64((0, 0), (0, 0), (1, 0)))
    assert found.tolist() == [0, 0, 1]
    found.sum().backward()
    assert bool(torch.isfinite(e.grad).all())


def test_where_nothing_moved_the_losses_are_their_constants():
    still = torch.zeros(32, dtype=D)
    full = float(alignment_loss(still, still, 20, mean=False))
    assert full == pytest.approx(-110.90354889, abs=1e-8)
    ragged = float(alignment_loss(still, still[:8], 20, mean=False))
    assert (156 * full + ragged) / 157 == pytest.approx(-110.62099, abs=1e-4)
    assert float(alignment_loss(still, still[:8], 20)) == pytest.approx(0, abs=1e-12)
    m = torch.full((32,), 130.0, dtype=D)
    whole, short = (float(extractor_loss(m, m[:n], mean=False)) for n in (32, 8))
    assert (156 * whole + short) / 157 == pytest.approx(0.41237, abs=1e-4)
    assert float(extractor_loss(m, m[:8])) == pytest.approx(0, abs=1e-12)


def test_always_member_is_right_by_the_share_of_members_alone():
    for members, want in ((5_000, 0.501203), (10_000, 0.667735), (15_000, 0.750901)):
        assert members / (members + 4_976) == pytest.approx(want, abs=1e-6)
        assert stats.auc(torch.zeros(members).numpy(), torch.zeros(4_976).numpy()).x == 0.5  # what stands in tables


def drawn(
    forget: int, retain: int, size: int, count: int, *, ragged: bool = False
) -> list[tuple[list[int], list[int]]]:
    generator = torch.Generator().manual_seed(1)
    walk = itertools.islice(pairs(forget, retain, size, generator, ragged=ragged), count)
    return [(f.tolist(), r.tolist()) for f, r in walk]


def test_pairs_are_of_one_size_and_visit_all_of_both_sides():
    found = drawn(7, 20, 4, 14)
    assert {(len(f), len(r)) for f, r in found} == {(4, 4)}
    for side, count in ((0, 7), (1, 20)):
        order = [i for pair in found for i in pair[side]]
        rounds = [sorted(order[at : at + count]) for at in range(0, len(order) - count + 1, count)]
        assert rounds == [list(range(count))] * len(rounds)
        assert len(rounds) >= 2
    assert {(len(f), len(r)) for f, r in drawn(3, 20, 4, 5)} == {(3, 4)}


def test_the_published_walk_begins_anew_at_the_shorter_side_s_end():
    found = drawn(10, 23, 4, 6, ragged=True)
    assert [(len(f), len(r)) for f, r in found] == [(4, 4), (4, 4), (2, 4)] * 2
    for epoch in (found[:3], found[3:]):
        assert sorted(i for f, _ in epoch for i in f) == list(range(10))
        assert len({i for _, r in epoch for i in r}) == 12


def test_agreement_is_the_share_of_equal_predictions():
    assert agreement(torch.tensor([1, 2, 0, 0]), torch.tensor([1, 2, 1, 0])) == 0.75
    tokens = torch.tensor([[3, 1, -100], [2, 2, 2]])
    assert agreement(torch.tensor([[3, 0, 9], [2, 2, 2]]), tokens) == 0.8  # padding does not count


def test_agreement_of_real_numbers_is_the_variance_that_is_kept():
    before = float64(0, 1, 2, 3)
    assert agreement(before, before) == 1
    assert agreement(before + 0.5, before) == pytest.approx(1 - 0.25 / 1.25)
    assert agreement(float64(2.5), float64(2.0), spread=before) == pytest.approx(0.8)
    assert agreement(before.flip(0), before) < 0


def ends(*looks: tuple[float, float, float], least: float = 0.98, budget: int = 100) -> list[str | None]:
    watch = Watch(least, budget)
    return [watch.ended(Look(10 * i, r, f, 0.0, u)) for i, (r, f, u) in enumerate(looks)]


def test_it_ends_where_retain_samples_are_no_longer_told_alike_twice():
    assert ends((1, 1, 0), (0.97, 0.9, 0.1), (0.99, 0.5, 0.2), (0.97, 0.4, 0.3), (0.96, 0.3, 0.4)) == [None] * 4 + [
        "retain"
    ]


def test_at_the_last_look_once_is_enough():
    assert ends((1, 1, 0), (0.99, 0.5, 0.2), (0.9, 0.1, 0.5), budget=20)[-1] == "retain"


def test_it_ends_where_the_forget_set_s_curves_stand_still_once_they_moved():
    still = [(1.0, 1.0, 0.0)] * 5
    assert ends(*still) == [None] * 5  # nothing has moved yet: there is nothing to stop
    moving = [(1.0, 1.0, 0.0), (1.0, 0.6, 0.3), (1.0, 0.2, 0.7)]
    flat = [(1.0, 0.2, 0.701), (1.0, 0.195, 0.704)]
    assert ends(*moving, *flat) == [None] * 4 + ["flat"]
    assert ends(*moving, *[(1.0, 0.2, 0.7 + 0.02 * i) for i in range(1, 4)]) == [None] * 6


def test_a_curve_that_creeps_away_from_zero_is_not_flat():
    creeping = [(1.0, 1.0, u) for u in (0.0, 0.009, 0.006, 0.008, 0.010, 0.013, 0.028)]
    assert ends(*creeping, budget=200) == [None] * 7
    assert ends(*creeping, *[(1.0, 1.0, 0.029)] * 5, budget=200)[-1] == "flat"


def test_a_single_look_shows_no_curve():
    assert ends((1, 1, 0), (1, 0.2, 0.7), budget=10) == [None, None]  # looks further apart than a fifth
    assert ends((1, 1, 0), (1, 0.2, 0.7), (1, 0.2, 0.7), budget=30)[-1] == "flat"
