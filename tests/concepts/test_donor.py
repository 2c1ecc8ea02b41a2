"""The donor class: C7, what is fallen back on, what is refused."""

from __future__ import annotations

import pytest
import torch

from expunge.concepts.donor import confusion, pick, ranked, shared, shows
from expunge.errors import NotFinite, UserError

A = torch.tensor([[2, 0.9, 0.1, 0], [0.3, 1.8, 0.2, 0], [1.5, 0.1, 2.2, 0.4], [0, 1.1, 0.3, 2.5]])
NAMES = ("a", "b", "c", "d")


def test_both_rules_by_hand():
    assert [confusion(A, k) for k in range(4)] == [(1, 1), (0, 0), (0, 0), (1, 1)]
    assert [shared(A, k) for k in range(4)] == [(2, 0), (3, 1), (3, 2), (2, 3)]


@pytest.mark.parametrize("k", range(4))
def test_a_pick_holds_the_concepts_of_both_classes(k):
    found = pick(A, k)
    assert (found.donor, found.via, found.rule, found.fell_back) == (*confusion(A, k), "confusion", False)
    assert found.donor != k
    assert found.concepts == ranked(A, k, 3)
    assert found.donor_concepts[0] == found.via  # the donor's own strongest
    assert pick(A, k, rule="shared").donor == shared(A, k)[0]


def test_the_strongest_come_first_and_only_those_that_add():
    values = torch.tensor([[1.0, 3, -5, 0, 3], [1, 1, 1, 1, 1]])
    assert ranked(values, 0) == (1, 4, 0)
    assert ranked(values, 0, 1) == (1,)


def test_without_a_confused_concept_the_shared_rule_is_used_and_said():
    values = torch.tensor([[2.0, 0, 0], [0.5, 1, 0], [0.1, 0, 1]])
    found = pick(values, 0)
    assert (found.donor, found.rule, found.fell_back) == (1, "shared", True)
    words = found.note(("fur", "wings", "wheels"))
    assert words == "class 1 donates to class 0, by the rule shared, via concept fur, as the rule confusion found none"


def test_the_shared_rule_goes_down_the_concepts_of_the_class():
    values = torch.tensor([[2.0, 1, 0, 0], [0, 0, 0, 3], [0, 0.5, 1, 0]])  # the first adds to class 0 alone
    found = pick(values, 0)
    assert (found.donor, found.via, found.rule, found.fell_back) == (2, 1, "shared", True)
    assert found.concepts == (0, 1)
    assert found.note(NAMES).endswith(
        "via concept b, as the rule confusion found none; stronger ones add to no other class"
    )
    assert pick(values, 0, rule="shared").fell_back is False
    assert pick(values, 0, present=torch.ones(3, 4)).donor == 2  # what is shared comes first


def test_a_class_that_shares_nothing_gets_the_class_that_shows_most_of_its_concepts():
    values = torch.tensor([[2.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    present = torch.tensor([[9.0, 1, 0, 0], [-1, 2, 3, 0], [-2, 0.5, 0, 3], [5, 5, 5, 5]])
    assert shows(values, present, 0) == (1, 1)  # nobody shows the first, and to class 3 no concept adds
    found = pick(values, 0, present=present)
    assert (found.donor, found.via, found.rule, found.fell_back) == (1, 1, "present", True)
    words = "class 1 donates to class 0, as of all others its samples show concept b most: no concept of class 0 adds"
    assert found.note(NAMES) == f"{words} to another class"
    with pytest.raises(UserError, match="none that shares a concept with it"):
        pick(values, 0, present=-present.abs())
    with pytest.raises(UserError, match=r"presence of concepts of the shape .*, got \(3, 4\) beside \(4, 4\)"):
        pick(values, 0, present=present[:3])


def test_one_concept_of_both_classes_is_said():
    found = pick(torch.tensor([[2.0, 1.0], [3.0, 0.5]]), 0)
    assert found.note(("fur", "ears")).endswith(
        "; the first concept of both is fur, so patches show it in place of itself"
    )


def test_only_the_first_concepts_are_gone_through():
    values = torch.tensor([[3.0, 2, 1], [2, 0, 9], [0, 4, 8]])  # the third is class 1's own
    assert confusion(values, 0) == (1, 2)
    assert confusion(values, 0, top=2) is None


def test_a_donor_can_be_given():
    found = pick(A, 0, donor=3)
    assert (found.donor, found.rule, found.via) == (3, "given", None)
    assert found.donor_concepts == (3, 1, 2)
    assert found.note(NAMES) == "class 3 donates to class 0, as given"


def test_a_class_that_was_forgotten_before_never_donates():
    values = A.clone()
    values[1] = 0
    assert all(pick(values, k).donor != 1 for k in (0, 2, 3))
    with pytest.raises(UserError, match="a concept that adds to the logit of class 1, got none"):
        pick(values, 1)
    with pytest.raises(UserError, match="a concept that adds to the logit of class 1, which donates, got none"):
        pick(values, 0, donor=1)


def test_a_donor_that_is_the_class_or_undefined_is_refused():
    with pytest.raises(UserError, match="a donor other than class 2, got class 2 itself: name another class"):
        pick(A, 2, donor=2)
    with pytest.raises(UserError, match="donates to class 0, got none that shares a concept with it: name the donor"):
        pick(torch.tensor([[1.0, 0], [0, 1]]), 0)
    with pytest.raises(UserError, match="a donor from 0 to 3, got 4"):
        pick(A, 0, donor=4)


def test_bad_settings_and_numbers_are_refused():
    with pytest.raises(UserError, match="a class from 0 to 3, got 7"):
        pick(A, 7)
    with pytest.raises(UserError, match="a rule among confusion, shared, got 'top'"):
        pick(A, 0, rule="top")
    with pytest.raises(UserError, match="one concept or more, got 0"):
        pick(A, 0, most=0)
    with pytest.raises(UserError, match="two classes or more"):
        pick(A[:1], 0)
    with pytest.raises(NotFinite, match="finite attributions"):
        pick(A / 0, 0)


def test_whole_numbers_will_do():
    assert pick((10 * A).long(), 0).donor == 1
