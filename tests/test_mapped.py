"""Maps of features: the axes are the original's, a retrained network is laid onto them, ids stay out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from expunge import mapped, stats
from expunge.evidence import Outputs
from expunge.scores import Scores, pooled
from expunge.summary import section
from pairs import TAP, audit, noise, said


def outputs(features: torch.Tensor) -> Outputs:
    return said(noise(len(features), 3), torch.zeros(len(features), dtype=torch.long), features)


def sides(features: torch.Tensor, forget: int = 8) -> dict[str, Outputs]:
    """Return outputs of the forget set, the first samples, and of the retain set, the rest."""
    return {"forget": outputs(features[:forget]), "retain": outputs(features[forget:])}


def kept(model: torch.Tensor, original: torch.Tensor, *, anew: bool = False, **more: object) -> dict[str, np.ndarray]:
    given = audit(sides(model), None, sides(original), **more)
    mapped.keep(given, anew=anew)
    return {name.removeprefix("map/"): values for name, values in given.kept.samples.items()}


def test_axes_are_those_of_the_largest_spread_and_their_shares_add_up() -> None:
    x = noise(400, 5).numpy() * np.array([1, 6, 0.5, 3, 0.1]) + 7
    middle, across, shares = stats.principal_axes(x)
    assert middle == pytest.approx(x.mean(axis=0))
    assert np.abs(across).argmax(axis=0).tolist() == [1, 3]
    assert across.T @ across == pytest.approx(np.eye(2))
    spread = x.var(axis=0)
    assert shares == pytest.approx(np.sort(spread)[::-1][:2] / spread.sum(), rel=0.05)
    assert np.array_equal(stats.principal_axes(x)[1], across)


@pytest.mark.parametrize("features", [np.ones((6, 3)), np.arange(6.0)[:, None], np.zeros((1, 4))], ids=len)
def test_features_without_two_directions_have_axes_of_nothing(features: np.ndarray) -> None:
    _, across, shares = stats.principal_axes(features)
    assert across.shape == (features.shape[1], 2)
    assert shares[1] == 0
    assert not across[:, 1].any()


def test_an_edited_model_is_drawn_on_the_axes_of_the_original() -> None:
    first = noise(60, 6)
    moved = first.clone()
    moved[:8] += 5.0
    before, after = kept(first, first), kept(moved, first)
    assert after["retain"] == pytest.approx(before["retain"])
    _, across, shares = stats.principal_axes(first[8:].numpy())
    assert after["forget"] - before["forget"] == pytest.approx(np.tile(np.full(6, 5.0) @ across, (8, 1)))
    assert after["explained"] == pytest.approx(shares)
    assert after["own"].tolist() == [0.0]


@pytest.mark.parametrize("seed", range(3))
def test_a_network_trained_anew_lies_as_the_original_where_its_features_are_turned_and_scaled(seed: int) -> None:
    first = noise(60, 6, seed=seed) * torch.tensor([5.0, 3.0, 1.0, 1.0, 1.0, 1.0])
    turn = torch.linalg.qr(noise(9, 9, seed=seed + 7))[0][:6]
    again = 0.3 * first @ turn + 2.0
    before, after = kept(first, first), kept(again, first, anew=True)
    for split in ("forget", "retain"):
        assert after[split] == pytest.approx(before[split], abs=1e-9)
    assert after["own"].tolist() == [1.0]


def test_laying_points_onto_others_undoes_a_mirroring() -> None:
    points = noise(30, 2).numpy() * np.array([1.0, 2.0])
    other = 4 * points @ np.array([[0.6, 0.8], [0.8, -0.6]]) + np.array([3.0, -1.0])
    middle, turn, scale, there = mapped.turned(points, other)
    assert scale * ((points - middle) @ turn) + there == pytest.approx(other)
    assert np.linalg.det(turn) == pytest.approx(-1)


def test_of_many_samples_a_seeded_draw_is_kept_the_same_for_every_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "SETS", {"forget": 3, "retain": 20})
    first = noise(60, 4)
    one, two = kept(first, first), kept(first, first)
    assert one["count"].tolist() == [3, 20]
    assert np.array_equal(one["retain"], two["retain"])
    assert not np.array_equal(one["retain"], kept(first, first, seed=5)["retain"])


def test_nothing_is_kept_of_what_has_no_place() -> None:
    first = noise(60, 4)
    assert kept(noise(60, 7), first) == {}  # another width, and not trained anew
    assert kept(first, first, flaws={"model": "its outputs hold NaN or infinity"}) == {}
    broken = first.clone()
    broken[0, 0] = torch.inf
    assert kept(broken, first) == {}
    bare = audit(sides(first))
    mapped.keep(bare)
    assert bare.kept.samples == {}
    assert TAP in sides(first)["forget"].features


def scores(**maps: dict[str, np.ndarray]) -> Scores:
    case = audit({"forget": outputs(noise(3, 2))}).scenario
    none: dict = {name: {} for name in maps}
    samples = {m: {f"map/{k}": v for k, v in found.items()} for m, found in maps.items()}
    return Scores(none, none, none, {}, {}, {}, {}, none, {}, samples, case.asked)


def test_of_several_seeds_the_first_is_drawn_and_other_axes_are_left_out() -> None:
    one, two = noise(60, 4), noise(60, 4, seed=1)
    a, b = (scores(original=kept(x, x), retrained=kept(x.flip(1), x, anew=True)) for x in (one, two))
    both = mapped.gathered(pooled([a, b]), ["original", "retrained"])
    assert both == mapped.gathered(a, ["original", "retrained"])
    assert both is not None
    assert both["own"] == ["retrained"]
    assert {m: {s: len(p) for s, p in found.items()} for m, found in both["models"].items()} == {
        "original": {"forget": 8, "retain": 52},
        "retrained": {"forget": 8, "retain": 52},
    }
    other = scores(original=kept(one, one), late=kept(two, two))
    assert list(mapped.gathered(other, ["original", "late"])["models"]) == ["original"]  # type: ignore[index]
    assert mapped.gathered(scores(original={}), ["original"]) is None
    part = section(a, name="n", text="t", counts={})
    assert part["maps"] == both
