"""Attacks with whole ensembles of simulated requests, beside plain loops."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import norm

from expunge.errors import UserError
from expunge.qualify.strong import _forgotten, _region, strong, told
from expunge.qualify.trials import Floats, Trials
from expunge.shadows import u_lira_rates
from expunge.stats import auc, clopper_pearson, mean_t
from qualify import worlds


def slow_told(unlearned: Floats, retrained: Floats) -> Floats:
    """Return each row's share called right: every sample by densities fitted without its fold of either side."""
    folds = min(len(unlearned), len(retrained)) // 2
    sides = (unlearned, retrained)
    shares = []
    for own, side in enumerate(sides):
        for i, row in enumerate(side):
            fold = i // 2 % folds
            log = []
            for other in sides:
                rest = np.concatenate([r[~np.isnan(r)] for k, r in enumerate(other) if k // 2 % folds != fold])
                log.append(norm.logpdf(row[~np.isnan(row)], rest.mean(), rest.std()))
            called = log[0] > log[1]
            shares.append(np.mean(called if own == 0 else ~called))
    return np.array(shares)


@pytest.mark.parametrize(("n", "m"), [(4, 4), (8, 6), (7, 9)])
def test_told_is_that_of_plain_loops(n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.6, 1.3, size=(n, 25)), rng.normal(size=(m, 25))
    a[rng.random(a.shape) < 0.3] = np.nan
    found = told(a, b, permutations=99)
    expected = slow_told(a, b)
    assert found.rows == pytest.approx(expected, abs=1e-12)
    assert found.sizes == (n, m)
    assert found.accuracy.x == pytest.approx((expected[:n].mean() + expected[n:].mean()) / 2)


def test_the_p_of_told_is_that_of_relabelled_rows() -> None:
    rng = np.random.default_rng(8)
    z = np.concatenate([rng.normal(0.5, 1, size=(4, 9)), rng.normal(size=(4, 9))])
    found = told(z[:4], z[4:], permutations=999)
    accuracy = []
    for rows in combinations(range(8), 4):
        shares = slow_told(z[list(rows)], z[[i for i in range(8) if i not in rows]])
        accuracy.append((shares[:4].mean() + shares[4:].mean()) / 2)
    assert found.p == pytest.approx(np.mean([x >= accuracy[0] - 1e-12 for x in accuracy]))
    assert found.floor == pytest.approx(1 / 70)


def test_the_region_is_where_the_first_density_is_higher() -> None:
    rng, x = np.random.default_rng(1), np.linspace(-12, 12, 4001)
    fits = [(0.3, 1.0, 0.3, 1.0), (1.0, 2.0, -1.0, 2.0), (-1.0, 2.0, 1.0, 2.0), (0.0, 4.0, 0.0, 1.0)]
    fits += [(a, b**2, c, d**2) for a, b, c, d in zip(*rng.normal(size=(4, 40)), strict=True)]
    for m, v, k, w in fits:
        low, high, inside = _region(
            (np.array([m]), np.array([v])), (np.array([k]), np.array([w]))
        )  # fmt: skip
        between = (x > low[0]) & (x < high[0])
        expected = norm.logpdf(x, m, math.sqrt(v)) - norm.logpdf(x, k, math.sqrt(w))
        clear = np.abs(expected) > 1e-9
        assert ((between if inside[0] else ~between) == (expected > 0))[clear].all(), (m, v, k, w)


def test_told_keeps_its_level_where_models_shift_all_their_samples() -> None:
    wrong = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        z = rng.normal(size=(16, 12)) + rng.normal(size=(16, 1))
        wrong += int(told(z[:8], z[8:], permutations=99, seed=seed).p <= 0.05)
    assert clopper_pearson(wrong, 300, 0.99).low <= 0.05


@pytest.mark.parametrize("wide", [0.4, 2.0])
def test_told_sees_a_spread_as_well_as_a_shift(wide: float) -> None:
    rng = np.random.default_rng(3)
    found = told(rng.normal(0, wide, size=(10, 40)), rng.normal(size=(10, 40)), permutations=199, seed=1)
    assert found.p == found.floor == 1 / 200
    assert found.accuracy.low > 0.55


def test_values_by_sample_are_those_of_a_loop() -> None:
    trials = worlds.trials(models=24)
    found = _forgotten(trials)
    assert list(found.columns) == list(range(20))
    assert found.unlearned.shape == found.retrained.shape == (12, 20)
    for x in range(20):
        rows = [t for t in range(24) if trials.forget[t, x]]
        others = [t for t in range(24) if not trials.reference.kept[t, x]]
        assert found.unlearned[:, x] == pytest.approx([trials.unlearned.train[t, x] for t in rows])
        assert found.retrained[:, x] == pytest.approx([trials.reference.train[t, x] for t in others])
        assert [t // 2 for t in rows] == [t // 2 for t in others]  # a row is of one pair on both sides
    rates, whole = u_lira_rates(found.unlearned, found.retrained), strong(trials)
    assert whole.u_lira == rates.overall
    assert whole.u_lira_worst == rates.worst_mean
    assert [w.id for w in whole.worst] == [trials.ids[i] for i in rates.worst]
    assert whole.worst[0].accuracy.x == rates.accuracy.max()
    assert whole.values == 12


def test_samples_named_too_seldom_are_left_out_and_counts_made_equal() -> None:
    trials = worlds.trials(models=24)
    forget = trials.forget.copy()
    forget[np.flatnonzero(forget[:, 3])[3:], 3] = False  # three requests name it
    forget[np.flatnonzero(forget[:, 5])[7:], 5] = False
    found = _forgotten(replace(trials, forget=forget))
    assert 3 not in found.columns
    assert len(found.columns) == 19
    assert found.unlearned.shape == found.retrained.shape == (7, 19)


def test_requests_that_share_few_samples_have_no_attack_by_sample_and_say_why() -> None:
    found = strong(worlds.trials(models=24, size=5))
    assert (found.u_lira, found.u_lira_worst, found.worst_by_chance, found.quality) == (None,) * 4
    assert found.worst == ()
    assert found.values == 0
    assert "fewer than 4 requests" in found.why
    assert found.klom is not None
    assert set(found.klom) == {"retain", "test"}
    assert 0.3 < found.pooled.x < 0.7


def test_what_was_left_shows_and_what_was_not_does_not() -> None:
    gone, left = (strong(worlds.trials(models=64, left=share)) for share in (0.0, 1.0))
    assert gone.u_lira is not None
    assert left.u_lira is not None
    assert gone.u_lira.low < 0.5 < gone.u_lira.high
    assert left.u_lira.low > 0.7
    assert gone.pooled.low < 0.5 < gone.pooled.high
    assert left.pooled.low > 0.7
    assert left.u_lira_worst is not None
    assert left.worst_by_chance is not None
    assert left.u_lira_worst > left.worst_by_chance + 0.15
    for found in (gone, left):
        assert found.klom is not None
        assert found.klom_floor is not None
        assert {s.size for s in (*found.klom.values(), *found.klom_floor.values())} == {16}
        assert found.quality_floor == pytest.approx(gone.quality_floor)
        for part in ("retain", "test"):  # unlearned models beside their own originals would come to far below it
            assert abs(found.klom[part].mean - found.klom_floor[part].mean) < 0.25 * found.klom_floor[part].mean
    assert left.klom is not None
    assert left.klom_floor is not None
    assert left.klom["forget"].mean > left.klom_floor["forget"].high
    assert left.quality is not None
    assert gone.quality is not None
    assert left.quality < gone.quality


def test_the_attacker_with_both_models_is_that_of_plain_loops() -> None:
    trials = worlds.trials(models=24, left=0.4)
    found = strong(trials)
    rows = []
    for t in range(24):
        drop = trials.original.train[t] - trials.unlearned.train[t]
        rows.append(auc(drop[trials.forget[t]], drop[trials.unlearned.kept[t]]).x)
    assert found.pair == mean_t(rows)
    rows = []
    for t in range(24):
        s = (t + 2) % 24
        drop = trials.original.train[t] - trials.reference.train[s]
        gone = trials.forget[t] & ~trials.reference.kept[s]
        both = trials.original.kept[t] & trials.reference.kept[s] & ~trials.forget[t]
        rows.append(auc(drop[gone], drop[both]).x)
    expected = mean_t(rows)
    assert found.pair_retrained is not None
    assert found.pair_retrained.x == pytest.approx(expected.x, abs=1e-12)
    assert found.pair_retrained.x > 0.75  # whoever has both models sees a deletion that was done right


def test_an_edit_that_changed_nothing_shows_nothing_to_who_has_both() -> None:
    found = strong(worlds.trials(models=24, left=1.0)).pair
    assert found is not None
    assert (found.x, found.low, found.high) == (0.5, 0.5, 0.5)


def against_retrained(trials: Trials, memory: float) -> Trials:
    """Return the trials with models retrained on what each original keeps."""
    rng = np.random.default_rng(5)
    kept = trials.original.kept & ~trials.forget
    easy = trials.original.train.mean(axis=0) - memory / 2
    train = easy + memory * kept + rng.normal(size=kept.shape)
    again = worlds.said(train, trials.original.test + rng.normal(size=trials.original.test.shape), kept)
    return Trials(trials.ids, trials.forget, trials.original, trials.unlearned, again, again, ~kept)


def test_models_retrained_on_the_same_half_are_set_beside_their_own_original() -> None:
    trials = against_retrained(worlds.trials(models=24), 2.0)
    rows = []
    for t in range(24):
        drop = trials.original.train[t] - trials.retrained.train[t]
        rows.append(auc(drop[trials.forget[t]], drop[trials.retrained.kept[t]]).x)
    found = strong(trials)
    assert found.pair_retrained is not None
    assert found.pair_retrained.x == pytest.approx(np.mean(rows), abs=1e-12)
    assert found.u_lira is not None
    assert found.values == 12


def test_membership_of_retained_samples_is_that_of_plain_loops() -> None:
    trials = worlds.trials(models=24)
    found = strong(trials)
    for said, value in ((trials.unlearned, found.members), (trials.retrained, found.members_retrained)):
        rows = [auc(said.train[t][said.kept[t] & ~trials.forget[t]], said.test[t]).x for t in range(24)]
        assert value is not None
        assert value.x == pytest.approx(np.mean(rows), abs=1e-12)


def test_the_record_is_plain_and_the_seed_decides() -> None:
    trials = worlds.trials(models=24)
    body = json.loads(json.dumps(strong(trials).to_json(), allow_nan=False))
    assert {"u_lira", "u_lira_worst", "worst_by_chance", "klom", "klom_floor", "quality", "quality_floor", "pair",
            "pair_retrained"} <= set(body)  # fmt: skip
    assert set(body["worst"][0]) == {"id", "accuracy"}
    assert set(body["u_lira"]) == {"x", "low", "high", "n"}
    assert set(body["klom"]["forget"]) == {"mean", "low", "high", "size"}
    assert strong(trials, seed=1).to_json() == strong(trials, seed=1).to_json()


def test_what_is_refused() -> None:
    trials = worlds.trials(models=24)
    first = [0, 1]
    small = replace(
        trials,
        forget=trials.forget[first],
        **{name: getattr(trials, name).rows(first) for name in ("original", "unlearned", "retrained")},
    )
    with pytest.raises(UserError, match="at least 4 requests, two pairs, got 2"):
        strong(small)
    with pytest.raises(UserError, match="two rows or more a side.*1 and 3 rows, 0 of them empty"):
        told(np.ones((1, 4)), np.ones((3, 4)))
    with pytest.raises(UserError, match="3 and 3 rows, 1 of them empty"):
        told(np.ones((3, 4)), np.array([[1.0], [np.nan], [2.0]]))
