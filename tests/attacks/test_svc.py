"""MIA efficacy by hand-checked numbers, merged points against all of them, and who is fitted on."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from sklearn.svm import SVC
from torch import Tensor

from expunge.attacks import _svm
from expunge.attacks.svc import Feature, SVCEfficacy, staying
from expunge.errors import UserError
from expunge.evidence import Outputs
from expunge.metric import Audit, Unavailable, Value
from expunge.metrics.membership import Membership
from expunge.task import Regression
from pairs import audit, noise, said, taken

MEMBERS, OTHERS = [0.99, 0.98, 0.97, 0.95, 0.999, 0.96], [0.40, 0.55, 0.62, 0.30, 0.70, 0.90]
FORGOTTEN = [0.98, 0.35, 0.60, 0.97, 0.50]


def confident(p: Any) -> Outputs:
    """Return outputs of two classes with these probabilities of the label."""
    p = torch.as_tensor(p, dtype=torch.float64)
    return said(torch.stack([p, 1 - p], dim=1).log(), torch.zeros(len(p), dtype=torch.long))


def answers(right: list[int]) -> Outputs:
    return confident([0.9 if r else 0.1 for r in right])


def unseen(attack: SVCEfficacy, retain: Outputs, test: Outputs, forget: Outputs) -> list[int]:
    """Return which forget samples the attack calls unseen."""
    fitted = attack.fit(audit({"retain": retain, "test": test, "forget": forget}))
    return (fitted.score(forget) <= 0).int().tolist()


@pytest.mark.parametrize("draw", ["random", "first"])
@pytest.mark.parametrize("bins", [None, 1000])
def test_numbers_by_hand(bins: int | None, draw: Any) -> None:
    attack = SVCEfficacy(bins=bins, draw=draw)
    retain, test, forget = (confident(p) for p in (MEMBERS, OTHERS, FORGOTTEN))
    assert unseen(attack, retain, test, forget) == [0, 1, 1, 0, 1]
    given = audit({"retain": retain, "test": test, "forget": forget})
    assert Membership(names=("svc",))(given)["membership/svc"].x == pytest.approx(0.6)
    fitted = attack.fit(given)
    grid = np.linspace(0.01, 0.999, 98_901)
    called = fitted.score(confident(grid)).numpy() > 0
    flips = np.flatnonzero(np.diff(called))
    assert len(flips) == 1  # one boundary, members above it
    assert grid[flips[0]] == pytest.approx(0.7706, abs=1e-3)
    assert called[-1]


def test_the_forgetting_rate_is_the_share_that_is_called_unseen() -> None:
    sets = {"retain": confident(MEMBERS), "test": confident(OTHERS), "forget": confident([0.35, 0.60, 0.98, 0.50])}
    fitted = SVCEfficacy().fit(audit(sets))
    assert (fitted.score(sets["forget"]) > 0).int().tolist() == [0, 0, 1, 0]
    assert Membership(names=("svc",))(audit(sets))["membership/svc"].x == 0.75


@pytest.mark.parametrize(
    ("members", "others", "released", "merged"),
    [(6, 4, 0.4, 0.4), (6, 5, 0.4, 0.4), (5, 5, 1.0, 0.0), (6, 6, 0.0, 0.0), (5, 6, 0.6, 0.6)],
)
def test_correctness_and_where_it_degenerates(members: int, others: int, released: float, merged: float) -> None:
    """1 − accuracy as long as members are the more accurate; its complement below; a constant where they are equal.

    There the machine is 0 everywhere: in the released form rounding decides, which changes with the order of the
    samples even; merged points leave it at 0, which counts as a member.
    """
    retain, test = (answers([1] * n + [0] * (6 - n)) for n in (members, others))
    forget = answers([1, 0, 1, 1, 0])
    attack = SVCEfficacy(feature="correctness")
    assert np.mean(unseen(attack, retain, test, forget)) == pytest.approx(merged)
    as_released = replace(attack, bins=None, draw="first")
    assert np.mean(unseen(as_released, retain, test, forget)) == pytest.approx(released)


@pytest.mark.parametrize("feature", ["confidence", "entropy", "modified_entropy"])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_cells_agree_with_every_point(feature: Feature, shift: float) -> None:
    labels = torch.arange(1500) % 4
    retain, test, forget = (
        said(2 * noise(1500, 4, seed=s) + (3 + d) * torch.eye(4)[labels], labels)
        for s, d in ((0, shift), (1, 0.0), (2, shift / 2))
    )
    exact, coarse, fine = (
        unseen(SVCEfficacy(feature=feature, bins=b), retain, test, forget) for b in (None, 200, 5000)
    )
    assert 0 < np.mean(exact) < 1
    assert np.mean(np.not_equal(fine, exact)) <= 0.002  # every value by itself, merged only where equal
    assert np.mean(np.not_equal(coarse, exact)) <= (0.02 if shift else 0.05)


def test_merged_points_weigh_as_their_copies() -> None:
    """Points of one value and class are one of their joint weight: the same optimum as that of all copies."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 30, 400) / 10, rng.random(400) < 0.5
    points, kinds, weight = _svm.merged(x, y, 1000)
    assert (len(points), weight.sum()) == (len(set(zip(x, y, strict=True))), 400)
    copies = {(float(p), bool(k)): w for p, k, w in zip(points[:, 0], kinds, weight, strict=True)}
    assert copies == {(v, k): ((x == v) & (y == k)).sum() for v, k in set(zip(x.tolist(), y.tolist(), strict=True))}
    grid = np.linspace(0, 3, 200)[:, None]
    a, b = (_svm.fit(x[:, None], y, bins=bins).decide(grid) for bins in (None, 1000))
    np.testing.assert_allclose(a, b, atol=5e-3)  # the solver's tolerance is 1e-3
    few, _, weight = _svm.merged(rng.normal(size=5000), rng.random(5000) < 0.5, 100)
    assert len(few) <= 200
    assert weight.sum() == 5000


def test_the_decision_is_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    for width in (1, 7):
        x, y = rng.normal(size=(300, width)), rng.random(300) < 0.5
        machine = _svm.fit(x, y, bins=5000)
        assert machine.fitted.gamma == pytest.approx(1 / width)
        np.testing.assert_allclose(machine.decide(x), machine.fitted.decision_function(x), atol=1e-9)


def test_ten_thousand_a_side_take_less_than_a_second() -> None:
    sure = torch.sigmoid(2 * noise(25_000) + 3)
    given = audit({s: confident(p) for s, p in zip(("retain", "test", "forget"), sure.split(10_000), strict=True)})
    start = time.process_time()
    SVCEfficacy().fit(given).score(given.said("forget"))
    assert time.process_time() - start < 2  # measured: 0.1 s


def three(labels: Tensor, shift: float, seed: int) -> Outputs:
    return said(noise(len(labels), 3, seed=seed) + shift * torch.eye(3)[labels], labels)


def test_the_forgotten_class_is_absent_from_both_sides(caplog: pytest.LogCaptureFixture) -> None:
    labels = torch.arange(90) % 3
    test = three(labels, 2.0, 1)
    parts = {
        "forget": three(torch.full((30,), 2), 2.0, 0),
        "retain": three(torch.arange(60) % 2, 4.0, 2),
        "test": test,
        "test_forget": test.take(torch.nonzero(labels == 2)[:, 0]),
        "test_retain": test.take(torch.nonzero(labels != 2)[:, 0]),
    }
    whole = audit(parts, kind="class", target=2)
    assert staying(whole) is parts["test_retain"]
    part = audit(parts | {"retain": test}, kind="class", target=2)
    assert staying(part) is test  # samples of the class stay in training
    assert staying(audit({k: v for k, v in parts.items() if k != "test_retain"})) is test
    with caplog.at_level(logging.INFO, "expunge"):
        SVCEfficacy().fit(whole)
    assert "fitted on 60 of 60 members and 60 of 60 others" in caplog.text
    with caplog.at_level(logging.INFO, "expunge"):
        SVCEfficacy(feature="probabilities", most=20).fit(whole)
    assert "fitted on 20 of 60 members and 20 of 60 others" in caplog.text
    none = parts | {"test_retain": test.take(torch.tensor([], dtype=torch.long))}
    found = Membership(names=("svc",))(audit(none, kind="class", target=2))["membership/svc"]
    assert found == Unavailable("needs 2 retained and 2 unseen samples of the kinds that stay, has 60 and 0")


def test_first_takes_the_first_and_random_depends_on_the_seed_alone() -> None:
    labels = torch.arange(400) % 3
    parts = {"retain": three(labels, 3.0, 0), "test": three(labels[:60], 1.0, 1), "forget": three(labels, 2.0, 2)}
    attack, forget = SVCEfficacy(draw="first"), parts["forget"]
    cut = parts | {"retain": parts["retain"].take(torch.arange(60))}
    torch.testing.assert_close(attack.fit(audit(parts)).score(forget), attack.fit(audit(cut)).score(forget))
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    mixed = parts | {"retain": parts["retain"].take(order)}
    drawn = SVCEfficacy().fit(audit(parts)).score(forget)
    torch.testing.assert_close(SVCEfficacy().fit(audit(mixed)).score(forget), drawn)
    torch.testing.assert_close(SVCEfficacy().fit(audit(parts)).score(forget.take(order)), drawn[order])
    assert not torch.equal(SVCEfficacy().fit(audit(parts, seed=1)).score(forget), drawn)


@pytest.mark.parametrize("feature", [f for f in get_args(Feature) if f != "error"])
def test_high_means_forgotten(feature: Feature) -> None:
    """Forget samples that look retained are called seen, those that look like test samples unseen."""
    labels = torch.arange(300) % 3
    retain, test = three(labels, 9.0, 0), three(labels, 0.5, 1)
    kept = np.mean(unseen(SVCEfficacy(feature=feature), retain, test, three(labels, 9.0, 2)))
    gone = np.mean(unseen(SVCEfficacy(feature=feature), retain, test, three(labels, 0.5, 3)))
    assert kept < 0.1
    assert gone > (0.4 if feature == "correctness" else 0.8)  # half of the answers are right
    assert "high = forgotten" in Membership(names=("svc",)).numbers["membership/svc"].label


def real(error: Tensor, seed: int, scale: float = 1.0) -> Outputs:
    target = scale * noise(len(error), 2, seed=seed).float()
    outputs = target.double() + scale * error[:, None] * torch.tensor([1.0, -1.0])
    return Outputs(outputs, outputs, target, (outputs - target).square().mean(dim=1))


def test_the_machine_calls_the_errors_of_the_specification_as_it_says() -> None:
    """Members' losses up to 0.3 and others' from 0.9: 0.12 and 0.5 are called member, 0.7 and 1.1 are not."""
    x = np.asarray([0.1, 0.2, 0.15, 0.3, 1.0, 1.2, 0.9, 1.5])[:, None]
    asked = np.asarray([0.12, 0.5, 0.7, 1.1])[:, None]
    for bins in (None, 1000):
        machine = _svm.fit(x, np.arange(8) < 4, bins=bins)
        assert (machine.decide(asked) > 0).tolist() == [True, True, False, False]
    plain = SVC(C=3, gamma="auto").fit(x, np.arange(8) < 4)
    assert plain.predict(asked).tolist() == [True, True, False, False]


def test_of_regression_one_half_is_fitted_on_and_the_other_decided(caplog: pytest.LogCaptureFixture) -> None:
    """Members' errors in the first and in the second half of the data differ, so that it shows which half is which."""
    parts = {
        "retain": real(torch.cat([torch.full((6,), 0.1), torch.full((5,), 5.0)]).double(), 0),
        "test": real(torch.cat([torch.full((6,), 2.0), torch.full((5,), 0.2)]).double(), 1),
        "forget": real(torch.tensor([0.1, 2.0], dtype=torch.float64), 2),
    }
    given = audit(parts, task=Regression())
    with caplog.at_level(logging.INFO, "expunge"):
        first = SVCEfficacy(draw="first").fit(given)
    assert "fitted on 6 of 11 members and 6 of 11 others" in caplog.text
    members, others = first.held
    assert (len(members), len(others)) == (5, 5)
    assert (others > 0).all()  # an error of 0.2 is like the members' that were fitted on
    assert (first.score(parts["forget"]) > 0).tolist() == [True, False]
    drawn = SVCEfficacy().fit(given)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    mixed = {k: o.take(order) if len(o) == 11 else o for k, o in parts.items()}
    again = SVCEfficacy().fit(audit(mixed, task=Regression()))
    for one, other in zip(drawn.held, again.held, strict=True):
        np.testing.assert_allclose(one, other)
    np.testing.assert_allclose(drawn.score(parts["forget"]), again.score(parts["forget"]))
    labels = torch.arange(30) % 3
    classes = {s: three(labels, 2.0, i) for i, s in enumerate(("forget", "retain", "test"))}
    assert [len(side) for side in SVCEfficacy().fit(audit(classes)).held] == [0, 0]  # every point is fitted on


def test_forget_samples_are_no_members() -> None:
    """The published attack draws members from all training data; here the forget set leaves no trace in the machine."""
    parts = {s: real(noise(40, seed=i).abs(), i) for i, s in enumerate(("forget", "retain", "test"))}
    other = parts | {"forget": real(9 + noise(40, seed=7).abs(), 7)}
    one, two = (SVCEfficacy().fit(audit(p, task=Regression())) for p in (parts, other))
    np.testing.assert_array_equal(one.score(parts["test"]), two.score(parts["test"]))


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_regression_reads_the_absolute_error_in_any_unit(scale: float) -> None:
    parts = {
        "retain": real(0.1 * noise(300, seed=0).abs(), 10, scale),
        "test": real(noise(200, seed=1).abs() + 0.3, 11, scale),
        "forget": real(torch.tensor([0.01, 0.05, 0.9, 1.5, 0.02], dtype=torch.float64), 12, scale),
    }
    found = Membership(names=("svc", "loss"))(audit(parts, task=Regression()))
    assert found["membership/svc"].x == pytest.approx(0.4)
    assert isinstance(found["membership/loss/auc"], Value)


def test_what_it_cannot_do_says_why() -> None:
    labels = torch.arange(30) % 3
    parts = {s: three(labels, 2.0, i) for i, s in enumerate(("forget", "retain", "test"))}

    class Other:
        pass

    def why(**changes: Any) -> Any:
        more = {k: changes.pop(k) for k in ("task", "flaws") if k in changes}
        given: Audit = audit(parts | changes, **more)
        return Membership(names=("svc",))(given)["membership/svc"]

    assert isinstance(why(), Value)
    assert why(task=Other()) == Unavailable("the task has neither classes nor real targets")
    assert why(retain=said(noise(9, 3))) == Unavailable("retain has no labels")
    assert why(flaws={"model": "its outputs are probabilities"}) == Unavailable("its outputs are probabilities")
    one = why(retain=parts["retain"].take(torch.tensor([0])))
    assert one == Unavailable("needs 2 retained and 2 unseen samples of the kinds that stay, has 1 and 30")
    small = {s: real(noise(3, seed=i).abs(), i) for i, s in enumerate(("forget", "retain", "test"))}
    few = Membership(names=("svc",))(audit(small, task=Regression()))["membership/svc"]
    assert few == Unavailable("needs 4 retained and 4 unseen samples of the kinds that stay, has 3 and 3")
    with pytest.raises(UserError, match="a fitted attack, got an unfitted one"):
        SVCEfficacy().score(parts["forget"])


def test_batches_of_samples_do_not_matter() -> None:
    labels = torch.arange(60) % 3
    parts = {s: three(labels, 2.0, i) for i, s in enumerate(("forget", "retain", "test"))}
    fitted, order = SVCEfficacy(feature="probabilities").fit(audit(parts)), torch.arange(60).flip(0)
    whole = fitted.score(parts["forget"])
    each = torch.cat([fitted.score(parts["forget"].take(torch.tensor([i]))) for i in range(60)])
    torch.testing.assert_close(whole, each)
    again = SVCEfficacy(feature="probabilities").fit(audit(taken(parts, order)))
    assert ((again.score(parts["forget"]) > 0) == (whole > 0)).double().mean() > 0.95
