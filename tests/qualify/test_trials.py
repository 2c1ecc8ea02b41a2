"""Gaps of simulated requests, sample by sample against a slow reference, in planted worlds and at their edges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from expunge.errors import UserError
from expunge.qualify import trials as module
from expunge.qualify.trials import FLOOR, LEAST, PARTS, PRIOR, Gaps, Said, Trials, summary
from qualify import worlds


def world(**changes: Any) -> Trials:
    return worlds.trials(**({"models": 12, "samples": 40, "unseen": 15, "memory": 2.0, "seed": 3} | changes))


@dataclass
class Slow:
    """Gap, z, and accuracy of one model on one part, with loops."""

    gap: np.ndarray
    z: np.ndarray
    accuracy: float


def slow(found: Trials, models: Said, t: int, part: str) -> Slow:
    """Return what one model's gaps are, from their definition."""
    r = found.reference
    others = [k for k in range(len(r.train)) if k not in (t, t ^ 1)]
    stands = ~r.kept if found.stands is None else found.stands
    score, right = (r.test, r.right_test) if part == "test" else (r.train, r.right)
    own, own_right = (models.test, models.right_test) if part == "test" else (models.train, models.right)
    assert right is not None
    assert own_right is not None

    def chosen(x: int) -> list[int]:
        if part == "test":
            return others
        return [k for k in others if (stands[k, x] if part == "forget" else r.kept[k, x])]

    squares = freedom = 0.0
    for x in range(score.shape[1]):
        values = score[chosen(x), x]
        if len(values):
            squares += ((values - values.mean()) ** 2).sum()
            freedom += len(values) - 1
    average = squares / freedom
    n = score.shape[1]
    gap, z, rights = np.full(n, np.nan), np.full(n, np.nan), []
    for x in range(n):
        if part == "forget" and not found.forget[t, x]:
            continue
        if part == "retain" and (found.forget[t, x] or not models.kept[t, x]):
            continue
        rows = chosen(x)
        c = len(rows)
        if c < LEAST:
            continue
        values = score[rows, x]
        gap[x] = own[t, x] - values.mean()
        variance = (((values - values.mean()) ** 2).sum() + PRIOR * average) / (c - 1 + PRIOR)
        z[x] = gap[x] / max(np.sqrt(variance * (1 + 1 / c)), FLOOR)
        rights.append(float(own_right[t, x]) - right[rows, x].mean())
    return Slow(gap, z, float(np.mean(rights)) if rights else float("nan"))


def check(found: Trials, models: Said) -> None:
    gaps = found.gaps(models)
    for part in PARTS:
        for t in range(len(found)):
            want = slow(found, models, t, part)
            np.testing.assert_allclose(gaps.gap[part][t], want.gap, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(gaps.z[part][t], want.z, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(gaps.accuracy[part][t], want.accuracy, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(gaps.mean(part), [np.nanmean(row) for row in gaps.gap[part]])


@pytest.mark.parametrize("changes", [{}, {"size": 5}, {"models": 8}, {"left": 0.5, "skipped": 0.3}])
def test_gaps_are_those_of_a_slow_reference(changes: dict[str, Any]) -> None:
    found = world(**changes)
    for models in (found.unlearned, found.retrained, found.original):
        check(found, models)


def test_far_from_zero_no_digits_are_lost() -> None:
    found = world()
    far = replace(found.reference, train=found.reference.train + 1e7, test=found.reference.test - 1e7)
    near, moved = found.unlearned_gaps, replace(found, reference=far)
    own = replace(found.unlearned, train=found.unlearned.train + 1e7, test=found.unlearned.test - 1e7)
    for part in PARTS:
        np.testing.assert_allclose(moved.gaps(own).z[part], near.z[part], rtol=1e-5, atol=1e-6)


def test_a_mask_of_what_stands_replaces_not_having_seen() -> None:
    plain = world(models=24)
    stands = ~plain.reference.kept & (np.random.default_rng(0).random(plain.forget.shape) < 0.7)
    found = replace(plain, stands=stands)
    check(found, found.unlearned)
    ours, theirs = found.unlearned_gaps, plain.unlearned_gaps
    assert (ours.gap["forget"] != theirs.gap["forget"])[plain.forget].any()
    for part in ("retain", "test"):
        assert np.array_equal(ours.z[part], theirs.z[part], equal_nan=True)


def test_an_odd_number_of_reference_models_leaves_the_last_without_a_partner() -> None:
    whole = world(models=14)
    rows = list(range(13))
    cut = whole.rows(rows)
    check(cut, cut.unlearned)
    last, before = cut._counts["test"][12, 0], cut._counts["test"][0, 0]
    assert (last, before) == (12, 11)


def test_more_reference_models_than_requests_all_count() -> None:
    whole = world(models=14)
    rows = list(range(9))
    cut = replace(whole.rows(rows), reference=whole.reference)
    check(cut, cut.unlearned)
    assert (cut._counts["test"] == 12).all()  # of request 8 too, whose partner is in the reference


def test_a_models_own_score_and_its_mirror_image_have_no_say() -> None:
    found = world()
    for row in (4, 5):
        train, test = found.reference.train.copy(), found.reference.test.copy()
        train[row] += 100
        test[row] -= 100
        moved = replace(found, reference=replace(found.reference, train=train, test=test))
        ours, theirs = moved.gaps(found.unlearned), found.unlearned_gaps
        for part in PARTS:
            for t in (4, 5):
                np.testing.assert_allclose(ours.gap[part][t], theirs.gap[part][t])
            assert not np.allclose(ours.gap[part][0], theirs.gap[part][0], equal_nan=True)


def test_samples_that_few_models_stand_for_are_left_out() -> None:
    found = world()
    kept = found.reference.kept.copy()
    kept[:, 20] = False
    kept[[0, 1, 2, 3], 20] = True  # of request 0 the models 2 and 3 alone
    own = replace(found.unlearned, kept=found.unlearned.kept.copy())
    own.kept[:, 20] = True
    cut = replace(found, reference=replace(found.reference, kept=kept))
    check(cut, own)
    gaps = cut.gaps(own)
    known = np.isfinite(gaps.gap["retain"][:, 20])
    assert known.tolist() == [False] * 4 + [True] * 8  # two for the first two pairs, four for the others
    assert np.isnan(gaps.z["retain"][0, 20])
    assert np.isfinite(gaps.accuracy["retain"]).all()


def test_constant_scores_have_the_least_deviation() -> None:
    found = world()
    flat = replace(found.reference, train=np.ones_like(found.reference.train), test=np.ones_like(found.reference.test))
    gaps = replace(found, reference=flat).gaps(replace(found.unlearned, train=flat.train + 2e-3, test=flat.test))
    assert gaps.z["forget"][found.forget] == pytest.approx(2.0)
    assert (gaps.z["test"] == 0).all()


def test_of_a_task_without_classes_there_is_no_accuracy() -> None:
    found = world()

    def bare(said: Said) -> Said:
        return replace(said, right=None, right_test=None)

    plain = replace(
        found,
        original=bare(found.original),
        unlearned=bare(found.unlearned),
        retrained=bare(found.retrained),
        reference=bare(found.reference),
    )
    gaps = plain.unlearned_gaps
    assert gaps.accuracy == {}
    for part in PARTS:
        assert np.array_equal(gaps.z[part], found.unlearned_gaps.z[part], equal_nan=True)
    assert summary(gaps).shape == (12, 12)
    assert plain.original.rows([2, 0]).right is None


def test_rows_are_those_asked_for_in_order() -> None:
    said = world().original
    some = said.rows([5, 2])
    assert len(some) == 2
    for name in ("train", "test", "kept", "right", "right_test"):
        assert (getattr(some, name)[0] == getattr(said, name)[5]).all()
        assert (getattr(some, name)[1] == getattr(said, name)[2]).all()


def test_instead_puts_a_control_in_the_place_of_the_unlearned() -> None:
    found = world()
    assert len(found) == 12
    control = found.instead(found.original)
    assert control.unlearned is found.original
    assert control.forget is found.forget
    for part in PARTS:
        np.testing.assert_array_equal(control.unlearned_gaps.z[part], found.gaps(found.original).z[part])
    assert found.unlearned_gaps.mean("forget").mean() + 1.5 < control.unlearned_gaps.mean("forget").mean()


def test_summary_by_hand() -> None:
    z = {
        "forget": np.array([[1.0, np.nan, -2.0, 40.0], [0.5, 0.5, np.nan, np.nan]]),
        "retain": np.array([[0.0, 1.0, 2.0, 3.0], [-30.0, 0.0, 0.0, 0.0]]),
        "test": np.array([[1.0, 2.0], [3.0, 4.0]]),
    }
    accuracy = {"forget": np.array([0.1, 0.2]), "test": np.array([0.3, 0.4])}
    found = summary(Gaps({}, z, accuracy))
    assert found.shape == (2, 14)
    assert found[0] == pytest.approx(
        [3.0, 13 / 3, -1.4, 8.2, 0.1]  # of 1, −2 and 10; quantiles at 0.2 and 1.8 of the order
        + [1.5, 1.5, 0.3, 2.7]
        + [1.5, 1.5, 1.1, 1.9, 0.3]
    )
    assert found[1] == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.2, -2.5, 2.5, -7.0, 0.0, 3.5, 3.5, 3.1, 3.9, 0.4])


def test_summary_of_trials_is_finite_and_against_numpy() -> None:
    gaps = world().unlearned_gaps
    found = summary(gaps)
    assert np.isfinite(found).all()
    for t in (0, 7):
        row: list[float] = []
        for part in PARTS:
            z = gaps.z[part][t]
            z = np.minimum(np.maximum(z[~np.isnan(z)], -10), 10)
            row += [z.mean(), np.abs(z).mean(), np.quantile(z, 0.1), np.quantile(z, 0.9), gaps.accuracy[part][t]]
        np.testing.assert_allclose(found[t], row)


@pytest.mark.filterwarnings("error")
def test_data_without_test_samples_leaves_the_part_out() -> None:
    gaps = world(unseen=0).unlearned_gaps
    found = summary(gaps)
    assert np.isfinite(found).all()
    assert found.shape == (12, 10)


def test_retrained_models_have_z_of_mean_0_and_variance_near_1() -> None:
    draws = [worlds.trials(models=24, samples=200, size=12, seed=seed).retrained_gaps for seed in range(12)]
    for part in PARTS:
        z = np.concatenate([gaps.z[part][np.isfinite(gaps.z[part])] for gaps in draws])
        assert abs(z.mean()) < 0.05, part
        assert 0.95 < z.var() < 1.2, part  # 1.1: the inverse of a variance from few models is 1 or more on average
        assert abs(np.concatenate([gaps.accuracy[part] for gaps in draws]).mean()) < 0.02


@pytest.mark.parametrize("models", [8, 24])
def test_z_keeps_its_variance_with_few_models(models: int) -> None:
    draws = [worlds.trials(models=models, samples=200, size=12, seed=seed).retrained_gaps for seed in range(12)]
    z = np.concatenate([gaps.z["forget"][np.isfinite(gaps.z["forget"])] for gaps in draws])
    assert abs(z.mean()) < 0.1
    assert 0.9 < z.var() < 1.25


def test_gaps_show_what_is_left_of_what_was_remembered() -> None:
    for left in (0.0, 0.5, 1.0):
        found = worlds.trials(models=24, samples=200, size=12, left=left, memory=2.0, seed=1)
        assert found.unlearned_gaps.mean("forget").mean() == pytest.approx(2 * left, abs=0.15)
        assert found.retrained_gaps.mean("forget").mean() == pytest.approx(0, abs=0.15)
        assert found.gaps(found.original).mean("forget").mean() == pytest.approx(2, abs=0.15)
    assert found.unlearned_gaps.mean("retain").mean() == pytest.approx(0, abs=0.05)


def narrow(said: Said) -> Said:
    """Return the same of one training and one test sample less."""
    assert said.right is not None
    assert said.right_test is not None
    return Said(said.train[:, 1:], said.test[:, 1:], said.kept[:, 1:], said.right[:, 1:], said.right_test[:, 1:])


def untested(said: Said) -> Said:
    """Return the same of one test sample less."""
    assert said.right_test is not None
    return replace(said, test=said.test[:, 1:], right_test=said.right_test[:, 1:])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            lambda s: {"train": s.train[:, 1:]},
            r"a row a model and a column a sample.* got shapes \[\(12, 39\), \(12, 40\)\]",
        ),
        (lambda s: {"kept": s.kept[1:]}, r"got shapes \[\(11, 40\), \(12, 40\)\] and \[\(12, 15\)\]"),
        (lambda s: {"right": s.right[:, 1:]}, r"got shapes \[\(12, 39\), \(12, 40\)\]"),
        (lambda s: {"right_test": s.right_test[:, 1:]}, r"and \[\(12, 14\), \(12, 15\)\]"),
        (
            lambda s: {"test": s.test[1:], "right_test": s.right_test[1:]},
            r"and \[\(11, 15\)\]: collect all on the same",
        ),
        (
            lambda s: {"train": np.where(np.arange(40) == 3, np.nan, s.train)},
            "finite scores .* got 12 rows with others",
        ),
        (lambda s: {"test": np.where(np.arange(12)[:, None] < 2, np.inf, s.test)}, "got 2 rows with others"),
    ],
)
def test_what_nobody_said(changes: Any, match: str) -> None:
    said = world().original
    with pytest.raises(UserError, match=match):
        replace(said, **changes(said))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (lambda f: {"ids": f.ids[:-1]}, "a row a request and a column a sample in every group, got .* 39 ids"),
        (lambda f: {"retrained": f.retrained.rows([0, 1, 2])}, r"got \[\(3, 40\), \(12, 40\)\]"),
        (lambda f: {"unlearned": narrow(f.unlearned)}, r"got \[\(12, 39\), \(12, 40\)\]"),
        (lambda f: {"reference": narrow(f.reference)}, r"\(12, 39\) of the reference"),
        (lambda f: {"reference": f.reference.rows([0, 1, 2, 3])}, r"\(4, 40\) of the reference: collect all"),
        (lambda f: {"forget": f.forget & (np.arange(12) > 1)[:, None]}, "samples to forget .* got none in 2 of 12"),
        (lambda f: {"stands": np.zeros_like(f.forget)}, "3 or more models that never saw .* as few as 0 .* train 6 or"),
        (lambda f: {"stands": f.forget[:, :-1]}, "a column a sample in every group"),
        (lambda f: {"reference": untested(f.reference)}, "a column a sample in every group"),
    ],
)
def test_what_are_no_trials(changes: Any, match: str) -> None:
    found = world()
    with pytest.raises(UserError, match=match):
        replace(found, **changes(found))


def test_too_few_models_says_how_many_more_and_they_do() -> None:
    six = worlds.trials(models=8, samples=20, size=2)
    rows = [0, 1, 2, 3, 4, 5]
    groups = {n: getattr(six, n).rows(rows) for n in ("original", "unlearned", "retrained", "reference")}
    with pytest.raises(UserError, match="as few as 2 .* train 2 or more further models"):
        Trials(six.ids, six.forget[rows], **groups)
    assert (six._counts["forget"][six.forget] == 3).all()


def test_the_least_number_is_what_the_messages_say() -> None:
    assert (LEAST, PRIOR, FLOOR) == (3, 4, 1e-3)
    assert module.PARTS == ("forget", "retain", "test")
