"""Requests of a qualification: how they are written, who is drawn, and where a model stands for a retrained one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from expunge.data import Data
from expunge.errors import UserError
from expunge.qualify.asked import Asked, Drawing
from expunge.shadows import draw
from expunge.trial import Request

N = 80


def data(n: int = N, *, seed: int = 0, **changes: Any) -> Data:
    rng = np.random.default_rng(seed)
    given: dict[str, Any] = {"x": rng.normal(size=(n, 3)).astype(np.float32), "y": np.arange(n) % 4} | changes
    return Data.from_arrays(given.pop("x"), given.pop("y"), **given)


def drawing(models: int = 8, *, train: Data | None = None, scores: Any = None, seed: int = 0) -> Drawing:
    train = data() if train is None else train
    seen = draw(train.ids, models, seed)
    return Drawing(train, seen, np.zeros(seen.shape) if scores is None else scores, seed)


def drawn(found: Drawing, text: str) -> list[list[int]]:
    """Return the columns of each request."""
    places = {name: at for at, name in enumerate(found.train.ids)}
    requests = found.requests(Asked.parse(text))
    assert all(r.kind == "ids" for r in requests)
    return [[places[i] for i in r.value] for r in requests]


@pytest.mark.parametrize(
    ("text", "kind", "value", "column", "times", "shown", "fixed"),
    [
        ("random=10", "random", 10, None, 1, "random 10", False),
        ("random=1500", "random", 1500, None, 1, "random 1,500", False),
        ("random=0.05", "random", 0.05, None, 1, "random 5 %", True),
        ("random=10,times=8", "random", 10, None, 8, "random 10 × 8", False),
        (" random = 10 , times = 2 ", "random", 10, None, 2, "random 10 × 2", False),
        ("hardest=7", "hardest", 7, None, 1, "hardest 7", False),
        ("hardest=0.1", "hardest", 0.1, None, 1, "hardest 10 %", True),
        ("near-duplicates=5", "near-duplicates", 5, None, 1, "near-duplicates 5", False),
        ("near-duplicates=0.25", "near-duplicates", 0.25, None, 1, "near-duplicates 25 %", True),
        ("class=3", "class", 3, None, 1, "class 3", True),
        ("subclass:fine=ship", "subclass", "ship", "fine", 1, "subclass ship", True),
        ("subject:who=s3", "subject", "s3", "who", 1, "subject s3", True),
    ],
)
def test_what_is_read(text: str, kind: Any, value: Any, column: Any, times: int, shown: str, fixed: bool) -> None:
    found = Asked.parse(text)
    assert found == Asked(kind, value, column, times)
    assert type(found.value) is type(value)
    assert type(found.times) is int
    assert (str(found), found.fixed) == (shown, fixed)


@pytest.mark.parametrize(
    ("text", "size", "against"),
    [
        ("random=10", 10, "pool"),
        ("random=10", 11, "retrained"),  # more than 2 % of the half: a smaller training set than the pool's
        ("random=0.01", 5, "pool"),
        ("random=0.05", 25, "retrained"),
        ("hardest=7", 7, "pool"),
        ("hardest=7", 70, "retrained"),
        ("hardest=0.01", 5, "retrained"),  # chosen by what the pool says
        ("near-duplicates=5", 5, "retrained"),
        ("class=3", 1, "retrained"),
        ("subject:who=s3", 1, "retrained"),
    ],
)
def test_what_stands_for_retrained_models(text: str, size: int, against: str) -> None:
    assert Asked.parse(text).against(size, 500) == against


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "a request KIND=VALUE, got ''.*write for example random=10"),
        ("=3", "a request KIND=VALUE, got '=3'"),
        ("randem=3", "a request KIND=VALUE, got 'randem=3': .*random"),
        ("mislabelled=0.1", "a request KIND=VALUE, got 'mislabelled=0.1'"),
        ("random", "a request KIND=VALUE, got 'random'"),
        ("random=", "a request KIND=VALUE, got 'random='"),
        ("random=many", "a number of samples, or a share, got 'random=many'"),
        ("random=0", "a number or a share below 0.5 of random samples, got 0"),
        ("random=-4", "a share below 0.5 of random samples, got -4"),
        ("random=0.5", "a share below 0.5 of random samples, got 0.5"),
        ("hardest=1.5", "a share below 0.5 of hardest samples, got 1.5"),
        ("near-duplicates=nan", "a share below 0.5 of near-duplicates samples, got nan"),
        ("random=10,size=3", "a request KIND=VALUE, got 'random=10,size=3'"),
        ("random=10,times=0", "random samples for requests in a row"),
        ("random=10,times=-2", "random samples for requests in a row"),
        ("random=10,times=2,times=3", "a number of samples, or a share, got 'random=10,times=2,times=3'"),
        ("random=0.1,times=2", r"a number of random samples for requests in a row, got random 10 % × 2"),
        ("hardest=3,times=2", "a number of random samples for requests in a row, got hardest 3 × 2"),
        ("near-duplicates=3,times=2", "random samples for requests in a row, got near-duplicates 3 × 2"),
        ("class=3,fraction=0.5", "all samples of the class, got 'class=3,fraction=0.5': leave out fraction"),
        ("class=ship", "a number for class, got 'ship'"),
        ("class=1.5", "a class index, got 1.5"),
        ("subject=s3", "a column with subclass and subject"),
        ("subject:who=*", "one subject that every model is asked to forget, got any: name one"),
        ("subclass:fine=*", "one subclass .* got any"),
        ("class:fine=3", "a column with subclass and subject|a class index"),
        # an option or column that is not taken in silence
        ("random=10,times=2.5", "times|a number"),
        ("random:who=5", "KIND=VALUE|column"),
        ("random=10,", "KIND=VALUE"),
    ],
)
def test_what_is_not_read(text: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        Asked.parse(text)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (("ids", ("a",)), "a kind of request to qualify for, got 'ids'"),
        (("random", True), "a number or a share below 0.5 of random samples, got True"),
        (("random", "3"), "got '3'"),
        (("random", 3, "who"), "of random samples"),
        (("class", 3, None, 4), "requests in a row, got class 3"),
        (("subject", "*", "who"), "one subject"),
    ],
)
def test_what_is_not_asked(given: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        Asked(*given)


def test_random_samples_are_of_each_half_and_differ_by_model() -> None:
    found = drawing(8)
    rows = drawn(found, "random=6")
    for t, row in enumerate(rows):
        assert row == sorted(set(row))
        assert len(row) == 6
        assert found.seen[t, row].all()
    assert len({tuple(row) for row in rows}) == 8
    assert drawn(found, "random=6") == rows
    assert drawn(drawing(8, seed=1), "random=6") != rows


def test_random_samples_cover_a_half_evenly() -> None:
    found = drawing(200)
    taken = np.zeros(N)
    for row in drawn(found, "random=10"):
        taken[row] += 1
    assert taken.sum() == 2000
    assert np.abs(taken - 25).max() < 25 * 0.8  # of 100 models that hold it a quarter takes each
    assert taken.std() < 2 * np.sqrt(25 * 0.75)


@pytest.mark.parametrize("text", ["random=6", "random=0.2", "near-duplicates=2", "near-duplicates=0.3"])
def test_a_larger_pool_starts_with_the_same_requests(text: str) -> None:
    assert drawn(drawing(12), text)[:8] == drawn(drawing(8), text)


def test_of_the_hardest_it_does_not_for_more_models_tell_another_order() -> None:
    scores = np.random.default_rng(0).normal(size=(12, N))
    few, many = drawing(8, scores=scores[:8]), drawing(12, scores=scores)
    assert drawn(few, "hardest=5") != drawn(many, "hardest=5")[:8]


@pytest.mark.parametrize("text", ["random=0.2", "hardest=0.2", "near-duplicates=0.3"])
def test_a_share_is_one_part_of_which_each_half_forgets_what_it_holds(text: str) -> None:
    found = drawing(8, scores=np.random.default_rng(1).normal(size=(8, N)))
    rows = drawn(found, text)
    part = sorted({x for row in rows for x in row})
    assert len(part) <= round(float(text.partition("=")[2]) * N)
    if text.startswith("near"):  # of two twins that a half holds one stays
        return
    assert len(part) == 16
    for t, row in enumerate(rows):
        assert row == [x for x in part if found.seen[t, x]]


def test_a_share_is_the_same_whatever_the_order_of_models_and_another_of_another_seed() -> None:
    parts = [{x for row in drawn(drawing(8, seed=seed), "random=0.2") for x in row} for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]


def test_a_share_that_some_half_holds_nothing_of_is_refused() -> None:
    with pytest.raises(UserError, match="samples of the part in every half, got a half without any: .*larger share"):
        drawing(8).requests(Asked.parse("random=0.01"))


def memory(found: Drawing, t: int | None, x: int) -> float:
    """Return how much higher the score is of models trained on a sample, with loops."""
    inside, outside = list[float](), list[float]()
    for r in range(len(found.seen)):
        if t is None or r not in (t, t ^ 1):
            (inside if found.seen[r, x] else outside).append(found.scores[r, x])
    return float(np.mean(inside) - np.mean(outside)) if inside and outside else -np.inf


def test_the_hardest_are_those_by_the_other_models() -> None:
    found = drawing(8, scores=np.random.default_rng(2).normal(size=(8, N)))
    for t, row in enumerate(drawn(found, "hardest=5")):
        held = [x for x in range(N) if found.seen[t, x]]
        assert row == sorted(sorted(held, key=lambda x: -memory(found, t, x))[:5])
    part = sorted(range(N), key=lambda x: -memory(found, None, x))[:16]
    for t, row in enumerate(drawn(found, "hardest=0.2")):
        assert row == sorted(x for x in part if found.seen[t, x])


def test_planted_hard_samples_are_found_and_a_models_own_score_has_no_say() -> None:
    seen = draw(data().ids, 16, 0)
    hard = np.arange(N) % 5 == 0
    scores = np.random.default_rng(0).normal(size=seen.shape) * 0.1 + 5.0 * (seen & hard)
    rows = drawn(drawing(16, scores=scores), "hardest=4")
    assert all(hard[row].all() for row in rows)
    other = scores.copy()
    other[[6, 7]] = np.random.default_rng(9).normal(size=(2, N)) * 100
    changed = drawn(drawing(16, scores=other), "hardest=4")
    assert changed[6] == rows[6]
    assert changed[7] == rows[7]
    assert changed != rows


def test_requests_in_a_row_and_of_a_class_are_the_same_for_every_model() -> None:
    found = drawing(8)
    assert found.requests(Asked.parse("random=2,times=3")) == [Request("sequential", 2, times=3)] * 8
    assert found.requests(Asked.parse("class=3")) == [Request("class", 3)] * 8
    who = Request("subject", "s3", "who")
    assert found.requests(Asked.parse("subject:who=s3")) == [who] * 8


def twins(pairs: int = 12, n: int = N, gap: float = 0.01) -> tuple[Data, np.ndarray]:
    """Return samples far apart, of which the first come in pairs, closer with their number; and whose twin is whose."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(n, 6)) * 50
    partner = np.arange(n)
    for k in range(pairs):
        x[2 * k + 1] = x[2 * k] + gap * (k + 1)
        partner[[2 * k, 2 * k + 1]] = 2 * k + 1, 2 * k
    y = np.arange(n) // 2 % 3
    return Data.from_arrays(x.astype(np.float32), y, name="train"), partner


@pytest.mark.parametrize("text", ["near-duplicates=2", "near-duplicates=0.45"])
def test_of_two_twins_one_is_forgotten_and_the_other_stays(text: str) -> None:
    train, partner = twins(pairs=18)
    found = drawing(8, train=train)
    for t, row in enumerate(drawn(found, text)):
        both = [k for k in range(18) if found.seen[t, [2 * k, 2 * k + 1]].all()]
        most = 2 if text.endswith("=2") else 18
        assert [x // 2 for x in row if x < 36] == both[:most]  # the closest first, whichever half holds both
        assert row[0] < 36
        for x in row:
            assert found.seen[t, x]
            twin = partner[x] if x < 36 else found._nearest[1][x]  # of others whoever is nearest
            assert found.seen[t, twin]
            assert twin not in row


def test_the_nearest_is_of_the_same_label() -> None:
    train, _ = twins()
    labels = train.targets().numpy()
    labels[1] = (labels[0] + 1) % 3  # a close neighbour of another label is no twin
    inputs = train.read(range(N)).inputs
    assert isinstance(inputs, torch.Tensor)
    x = inputs.numpy()
    found = drawing(8, train=Data.from_arrays(x, labels))
    distance, twin = found._nearest
    for at in range(N):
        others = [o for o in range(N) if o != at and labels[o] == labels[at]]
        away = [np.linalg.norm(x[at].astype(float) - x[o]) for o in others]
        assert distance[at] == pytest.approx(min(away), abs=1e-5)
        assert twin[at] == others[int(np.argmin(away))]
    assert twin[0] != 1


def test_where_models_stand_for_a_retrained_one_by_hand() -> None:
    train, partner = twins()
    found = drawing(8, train=train)
    asked = Asked.parse("near-duplicates=2")
    kept = found.seen.copy()
    for t, row in enumerate(drawn(found, "near-duplicates=2")):
        kept[t, row] = False
    stands = found.stands(asked, kept)
    assert stands is not None
    for r in range(8):
        for x in range(24):
            assert stands[r, x] == (not kept[r, x] and kept[r, partner[x]])
    assert found.stands(Asked.parse("random=3"), kept) is None
    assert found.stands(Asked.parse("class=3"), kept) is None


def test_samples_that_are_the_same_to_the_bit_are_twins_of_each_other_and_never_of_themselves() -> None:
    x = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
    x[1], x[11:14], x[30:60] = x[0], x[10], x[30]  # two, four and thirty the same
    train = Data.from_arrays(x, np.zeros(N, dtype=np.int64))
    found = drawing(8, train=train)
    distance, twin = found._nearest
    assert (twin != np.arange(N)).all()
    assert (twin[0], twin[1]) == (1, 0)
    assert set(twin[10:14]) <= set(range(10, 14))
    assert set(twin[30:60]) <= set(range(30, 60))
    assert distance[[0, 1, 10, 13, 30, 59]] == pytest.approx(0, abs=1e-6)
    for t, row in enumerate(drawn(found, "near-duplicates=4")):
        assert not set(row) & {int(twin[x]) for x in row}
        assert found.seen[t, twin[row]].all()


def test_in_a_row_of_equal_distances_no_twin_of_a_forgotten_sample_is_forgotten() -> None:
    found = drawing(8)
    twin = (np.arange(N) + 1) % N  # each one's twin is the next: of three in a row the middle one is a twin and has one
    vars(found)["_nearest"] = (np.ones(N), twin)
    for t, row in enumerate(drawn(found, "near-duplicates=0.4")):
        held = [x for x in range(32) if found.seen[t, x] and found.seen[t, x + 1]]
        gone: list[int] = []
        for x in held:
            gone += [x] if x - 1 not in gone else []
        assert row == gone
        assert not {x + 1 for x in row} & set(row)


def test_a_label_of_one_sample_has_no_twin() -> None:
    train = data(y=np.where(np.arange(N) == 5, 9, 0))
    found = drawing(8, train=train)
    assert found._nearest[0][5] == np.inf
    assert all(5 not in row for row in drawn(found, "near-duplicates=0.4"))


def test_near_duplicates_need_a_distance_and_classes() -> None:
    x = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
    asked = Asked.parse("near-duplicates=2")
    for inputs in ({"a": x, "b": x}, np.arange(N * 3).reshape(N, 3)):
        train = Data.from_arrays(inputs, np.zeros(N, dtype=np.int64))
        with pytest.raises(UserError, match="one floating-point tensor for near-duplicates, got inputs without a dist"):
            drawing(8, train=train).requests(asked)
    for labels in (np.arange(N) / 7, np.eye(N, dtype=np.int64)):
        with pytest.raises(UserError, match="class labels for near-duplicates, got other targets"):
            drawing(8, train=Data.from_arrays(x, labels)).requests(asked)


@pytest.mark.parametrize("value", [19, 20])
def test_more_twins_than_a_half_holds_are_refused_with_the_number(value: int) -> None:
    train, _ = twins()
    with pytest.raises(
        UserError, match=rf"{value} samples with a twin of the same label in every half, got \d+ in one"
    ):
        drawing(8, train=train).requests(Asked("near-duplicates", value))


def test_a_share_without_twins_in_some_half_says_so_in_words() -> None:
    train, _ = twins()
    with pytest.raises(UserError, match="every half, got 0 in one.*larger share") as error:
        drawing(8, train=train).requests(Asked("near-duplicates", 0.01))
    assert "0.01 samples" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("random=21", "at most 20 samples, half of what each model .*, got random 21, 21 samples: qualify for smaller"),
        ("hardest=40", "at most 20 samples.* got hardest 40, 40 samples"),
        ("near-duplicates=21", "at most 20 samples.* got near-duplicates 21, 21 samples"),
        ("random=3,times=7", "at most 20 samples.* got random 3 × 7, 21 samples"),
    ],
)
def test_too_large_requests_are_refused_with_the_number(text: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        drawing(8).requests(Asked.parse(text))


@pytest.mark.parametrize("text", ["random=20", "random=0.49", "hardest=20", "random=5,times=4"])
def test_the_largest_requests_are_drawn(text: str) -> None:
    assert len(drawing(8).requests(Asked.parse(text))) == 8
