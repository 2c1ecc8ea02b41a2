"""Which slice a sample belongs to: its owner decides, nobody else has a say."""

import numpy as np
import pytest
import torch

from expunge.data import Data
from expunge.errors import UserError
from expunge.exact.assign import assigned, astray, key, taught, twins


def data(n=60, **columns):
    return Data.from_arrays(torch.arange(float(n))[:, None], torch.zeros(n).long(), columns=columns)


def test_deletions_and_the_order_of_samples_move_nobody():
    every = data()
    at = dict(zip(every.ids, assigned(every, 2, 3, 0), strict=True))
    rest = every.without(every.ids[::7])
    assert all(at[i] == p for i, p in zip(rest.ids, assigned(rest, 2, 3, 0), strict=True))
    back = every.subset(every.ids[::-1])
    assert assigned(back, 2, 3, 0).tolist() == assigned(every, 2, 3, 0)[::-1].tolist()


def test_another_seed_deals_the_samples_anew_and_slices_are_about_equal():
    every = data(6000)
    at = assigned(every, 2, 3, 0)
    assert np.bincount(at).min() > 900
    assert (at != assigned(every, 2, 3, 1)).mean() > 0.7
    assert key(0, "slice") != key(0, "id")


def test_all_samples_of_one_owner_share_a_slice():
    every = data(subject=[f"s{i % 20}" for i in range(60)])
    at = assigned(every, 2, 2, 0, owner="subject")
    assert (at[:20] == at[20:40]).all()
    assert (at[:20] == at[40:]).all()


def test_a_band_is_the_slice():
    every = data(subject=[f"s{i}" for i in range(60)], likely=[i % 4 for i in range(60)])
    at = assigned(every, 2, 4, 0, owner="subject", band="likely")
    assert (at % 4 == np.arange(60) % 4).all()
    assert len(np.unique(at)) == 8


def test_an_owner_with_two_bands_is_refused():
    every = data(subject=["a"] * 60, likely=[i % 2 for i in range(60)])
    with pytest.raises(UserError, match="one value of 'likely' for each owner, got several of a"):
        assigned(every, 1, 2, 0, owner="subject", band="likely")


@pytest.mark.parametrize(
    ("value", "remedy"),
    [("often", "say for each"), (2, "raise slices"), (0.5, "raise slices"), (float("inf"), "say for each")],
)
def test_a_band_that_is_no_slice_is_refused(value, remedy):
    with pytest.raises(UserError, match=rf"whole numbers from 0 to 1 in column 'likely', got .*{remedy}"):
        assigned(data(likely=[value] * 60), 1, 2, 0, band="likely")


class Missing:
    """As the NA of tables: equal to nothing, and neither true nor false."""

    def __eq__(self, other):
        return self

    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")

    __hash__ = None


@pytest.mark.parametrize("nobody", [None, "", float("nan"), Missing()])
def test_an_owner_that_is_nobody_is_refused(nobody):
    with pytest.raises(UserError, match="an owner of each sample in column 'who', got none for train/0"):
        assigned(data(who=[nobody, *map(str, range(59))]), 1, 2, 0, owner="who")


def test_what_a_sample_teaches_is_its_weight_too():
    x, y = torch.arange(3.0)[:, None], torch.zeros(3).long()
    plain, ones = Data.from_arrays(x, y), Data.from_arrays(x, y, weight=[1, 1, 1])
    weighed = Data.from_arrays(x, y, weight=[1, 2, 0.5])
    assert taught(plain, b"k").tolist() == taught(ones, b"k").tolist()
    assert (taught(plain, b"k") == taught(weighed, b"k")).tolist() == [True, False, False]
    part = weighed.subset(["train/2", "train/0"])
    assert taught(part, b"k").tolist() == taught(weighed, b"k")[[2, 0]].tolist()


def test_a_missing_owner_or_column_is_refused():
    with pytest.raises(UserError, match="an owner of each sample in column 'who', got none for train/3"):
        assigned(data(who=["a", "b", "c", None] + ["d"] * 56), 1, 2, 0, owner="who")
    with pytest.raises(UserError, match="a column 'who' in train"):
        assigned(data(), 1, 2, 0, owner="who")


def test_an_empty_slice_is_refused_and_says_what_to_lower():
    with pytest.raises(UserError, match=r"a sample in every slice, got none in .* of 4 samples in 3 × 4: lower shards"):
        assigned(data(4), 3, 4, 0)
    every = data(subject=["a", "b"] * 30)
    with pytest.raises(UserError, match="of 2 of subject in 2 × 2"):
        assigned(every, 2, 2, 0, owner="subject")


def test_copies_in_other_slices_are_counted():
    x = torch.zeros(6, 2)
    x[3:] = torch.arange(6.0).reshape(3, 2)
    twin = twins(Data.from_arrays(x).contents())
    assert len(set(twin[:3])) == 1
    assert twin[:3].min() >= 0
    assert twin[3] == -1 or (x[3] == 0).all()
    assert astray(twin, np.array([0, 0, 0, 1, 1, 1])) == 0
    assert astray(twin, np.array([0, 0, 1, 1, 1, 1])) == 3
    assert astray(np.full(4, -1, np.int32), np.arange(4)) == 0
