"""Twins: what is the same is found, what was planted close is found, and independent data has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import betabinom
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from expunge import twins
from expunge.data import Data
from expunge.evaluate import evaluate
from expunge.evidence import Outputs
from expunge.methods import load
from expunge.scenario import forget_ids
from expunge.twins import near_duplicates
from expunge.unlearn import unlearn
from worlds import QUIET, World, world

DTYPES = ["float32", "float64", "float16", "bfloat16", "uint8", "int64", "bool", "complex64"]


def data(x: Any, name: str) -> Data:
    return Data.from_arrays(
        x, ids=[f"{name}{i}" for i in range(len(next(iter(x.values())) if isinstance(x, dict) else x))]
    )


def featured(features: Tensor) -> Outputs:
    n = len(features)
    return Outputs(torch.zeros(n, 2), torch.zeros(n), features={"head:input": features.float()})


def numbered(*features: Tensor) -> tuple[Data, Data, dict[str, Outputs]]:
    """Return forget and retain data, whose inputs are all different, and what a model saw in them and in test data."""
    inputs = torch.arange(sum(map(len, features[:2])))[:, None]
    parts = inputs.split([len(f) for f in features[:2]])
    seen_by = dict(zip(("forget", "retain", "test", "test_forget"), map(featured, features), strict=False))
    return data(parts[0], "f"), data(parts[1], "r"), seen_by


def draw(n: int, seed: int, width: int = 8) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) + 5.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_twins_are_found_whatever_the_type(dtype: str) -> None:
    bits = (torch.arange(12)[:, None] >> torch.arange(4)) & 1  # twelve that differ, also as booleans
    x = bits.reshape(12, 2, 2).to(getattr(torch, dtype))
    whole = data(torch.cat([x, x[2:3], x[:1]]), "s")
    found = near_duplicates(whole.subset(["s1", "s2", "s0"]), whole.subset(["s12", "s5", "s6", "s13", "s3"]), {})
    assert found.pairs == (("s2", "s12", True), ("s0", "s13", True))


def test_the_same_numbers_under_other_names_shapes_or_labels() -> None:
    tokens, mask = torch.tensor([[1, 2], [3, 4], [1, 2]]), torch.tensor([[1, 1], [1, 1], [1, 0]])
    whole = Data.from_arrays({"ids": tokens, "mask": mask}, [0, 1, 1], ids=["a", "b", "c"])
    assert near_duplicates(whole.subset(["a"]), whole.subset(["b", "c"]), {}).pairs == ()
    again = Data.from_arrays({"mask": mask[[0, 0]], "ids": tokens[[0, 1]]}, [1, 0], ids=["x", "y"])
    assert near_duplicates(whole.subset(["a"]), again, {}).pairs == (("a", "x", True),)
    flat = data(torch.arange(4).reshape(1, 4), "f")
    assert near_duplicates(flat, data(torch.arange(4).reshape(1, 2, 2), "r"), {}).pairs == ()


def test_of_several_the_first_is_named_and_transforms_do_not_hide_it() -> None:
    x = torch.tensor([[1.0], [2.0], [2.0], [2.0]])
    whole = Data.from_arrays(x, ids=list("abcd"), transform=lambda v: v + torch.rand(v.shape))
    found = near_duplicates(whole.subset(["b"]), whole.subset(["a", "c", "d"]), {})
    assert found.pairs == (("b", "c", True),)
    assert found.sentence() == (
        "1 of 1 forget samples stands in the retain set too, to the bit: b ~ c. "
        "What such twins teach the model stays, and looks like membership."
    )


def test_training_samples_among_the_unseen_are_named_whatever_their_ids() -> None:
    x = torch.arange(6.0)[:, None]
    sets = {"test": data(x[[5, 2, 0]], "t"), "holdout": data(x[[4, 4]] + 9, "h")}
    found = near_duplicates(data(x[:2], "f"), data(x[2:5], "r"), {}, sets)
    assert found.seen == {"test": (("t1", "r0"), ("t2", "f0"))}
    assert found.sentences() == [
        "2 of the test samples stand in the training data too, to the bit: t1 ~ r0, t2 ~ f0. "
        "They count as unseen, and make members look like others."
    ]
    one = near_duplicates(data(x[:2], "f"), data(x[1:5], "r"), {}, {"test": data(x[:1], "t")})
    assert one.seen["test"] == (("t0", "f0"),)
    assert one.sentences() == [one.sentence(), one.sentences()[1]]
    assert one.sentences()[1].startswith("1 of the test samples stands in")


def test_planted_near_duplicates_are_found() -> None:
    stay, own = draw(500, 10), draw(100, 11)
    own[[3, 50, 99]] = stay[[10, 20, 30]] + 0.01 * draw(3, 12) - 0.05
    own[[7, 8, 9, 10]] = stay[[40, 41, 42, 43]] + 0.02
    found = near_duplicates(*numbered(own, stay, draw(400, 13)))
    pairs = {a: b for a, b, exact in found.pairs if not exact}
    planted = {"f3": "r10", "f50": "r20", "f99": "r30", "f7": "r40", "f8": "r41", "f9": "r42", "f10": "r43"}
    assert planted.items() <= pairs.items()
    assert len(pairs) <= 10  # some by chance
    assert found.chance == pytest.approx(100 * 4 / 401)
    nearest = [a for a, _, _ in found.pairs]
    assert set(nearest[:7]) == set(planted)
    text = found.sentence()
    assert f"{len(pairs)} of 100 forget samples have a near-duplicate that stays, closer in the features" in text
    assert "than 99 % of unseen samples are to their nearest (1.0 by chance): " in text
    assert "more. What such twins teach" in text


def test_exact_and_near_ones_are_told_apart() -> None:
    stay, own = draw(300, 0), draw(60, 1)
    own[:12] = stay[:12]
    own[12:18] = stay[12:18] + 0.01
    forget, retain, seen_by = numbered(own, stay, draw(300, 2))
    same = torch.arange(360)[:, None]
    same[60:72] = same[:12]
    forget, retain = data(same[:60], "f"), data(same[60:], "r")
    found = near_duplicates(forget, retain, seen_by)
    assert [exact for *_, exact in found.pairs[:12]] == [True] * 12
    assert {(a, b) for a, b, exact in found.pairs if not exact} >= {(f"f{i}", f"r{i}") for i in range(12, 18)}
    assert found.chance == pytest.approx(48 * 3 / 301)
    assert "12 of 60 forget samples stand in the retain set too, to the bit; " in found.sentence()
    assert " have a near-duplicate there, closer" in found.sentence()


def test_exact_twins_alone_are_no_reason_to_name_chance_neighbours() -> None:
    claims = 0
    for seed in range(40):
        stay, own = draw(200, 3 * seed), draw(60, 3 * seed + 1)
        own[:20] = stay[:20]
        _, _, seen_by = numbered(own, stay, draw(200, 3 * seed + 2))
        same = torch.arange(260)[:, None]
        same[60:80] = same[:20]
        found = near_duplicates(data(same[:60], "f"), data(same[60:], "r"), seen_by)
        assert sum(exact for *_, exact in found.pairs) == 20
        claims += len(found.pairs) > 20
    assert claims <= 2


@pytest.mark.parametrize("unseen", [30, 100, 1000])
def test_independent_data_has_no_twins(unseen: int) -> None:
    """The claim is false in at most 1 of 100 draws, however few unseen samples the bar is read off."""
    claims = sum(
        bool(near_duplicates(*numbered(draw(80, 3 * s), draw(150, 3 * s + 1), draw(unseen, 3 * s + 2))).pairs)
        for s in range(200)
    )
    assert claims <= 6  # binomial of 200 trials at 0.01: 6 or fewer in 996 of 1000


@pytest.mark.parametrize("shift", [8.0, -8.0])
def test_a_kind_of_its_own_is_held_against_unseen_samples_of_that_kind(shift: float) -> None:
    """A class as a whole may lie near or far from what stays; that is not the doing of twins."""
    stay, test = draw(300, 0), draw(300, 1)
    stay[:150, 0] += 8.0  # one half of what stays is a tight cluster
    stay[:150, 1:] *= 0.2
    like = draw(120, 2)
    own = draw(60, 3)
    for part in (like, own):
        part[:, 0] += shift
        part[:, 1:] *= 0.2 if shift > 0 else 1.0
    forget, retain, seen_by = numbered(own, stay, test, like)
    assert near_duplicates(forget, retain, seen_by).pairs == ()
    if shift > 0:
        seen_by.pop("test_forget")
        assert near_duplicates(forget, retain, seen_by).pairs != ()  # what the rule is there for
    seen_by["test_forget"] = featured(like[:0])
    assert near_duplicates(forget, retain, seen_by).chance == pytest.approx(60 * 3 / 301)


def test_no_features_no_test_samples_or_nothing_left_give_exact_twins_alone() -> None:
    forget, retain, seen_by = numbered(draw(20, 0), draw(30, 1), draw(40, 2))
    for split in seen_by:
        bare = {**seen_by, split: Outputs(torch.zeros(4, 2), torch.zeros(4))}
        assert near_duplicates(forget, retain, bare).pairs == ()
    assert near_duplicates(forget, retain, {k: v for k, v in seen_by.items() if k != "test"}).chance == 0
    x = torch.arange(30)[:, None]
    all_there = near_duplicates(data(x[:20], "f"), data(x, "r"), seen_by)
    assert len(all_there.pairs) == 20
    assert all_there.chance == 0


def test_features_all_alike_are_no_twins() -> None:
    flat = torch.ones(50, 4)
    assert near_duplicates(*numbered(flat[:10], flat, flat)).pairs == ()


class Largest(TorchDispatchMode):
    """The most numbers any one tensor held."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for part in found if isinstance(found, list | tuple) else [found]:
            self.numbers = max(self.numbers, part.numel() if isinstance(part, Tensor) else 0)
        return found


def test_similarities_are_worked_on_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    stay, own = draw(300, 0), draw(200, 1)
    own[:30] = stay[:30] + 0.01
    given = numbered(own, stay, draw(250, 2))
    want = near_duplicates(*given)
    monkeypatch.setattr(twins, "BLOCK", 900)
    with Largest() as most:
        found = near_duplicates(*given)
    assert found == want
    assert most.numbers == 300 * 8  # the features; all similarities at once would be 60,000
    monkeypatch.setattr(twins, "BLOCK", 1)
    assert near_duplicates(*given) == want


def test_the_bar_is_read_off_a_part_of_many_unseen_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    stay, own = draw(100, 0), draw(50, 1)
    own[:10] = stay[:10] + 0.01
    monkeypatch.setattr(twins, "ENOUGH", 100)
    found = near_duplicates(*numbered(own, stay, draw(250, 2)))
    assert found.chance == pytest.approx(50 * 1 / (84 + 1))
    assert {(f"f{i}", f"r{i}", False) for i in range(10)} <= set(found.pairs)


def test_the_chance_is_that_of_ranks() -> None:
    """Of n + m exchangeable values, the chance that c or more of the n are above the k-th largest of the m."""
    random = np.random.default_rng(0)
    n, m, k, c = 12, 20, 1, 4
    values = random.random((20000, n + m))
    above = (values[:, :n] > np.sort(values[:, n:], axis=1)[:, [m - k]]).sum(axis=1)
    assert (above >= c).mean() == pytest.approx(betabinom.sf(c - 1, n, k, m - k + 1), abs=0.006)


@pytest.fixture(scope="module")
def tiny() -> World:
    return world("random")


def test_evaluate_tells_of_twins(tiny: World) -> None:
    batch = tiny.train.read(range(39))
    x, y = torch.cat([batch.inputs, batch.inputs[:1]]), torch.cat([batch.target, batch.target[:1]])
    train = Data.from_arrays(x, y, ids=[f"s{i}" for i in range(40)])
    scores = evaluate(
        {"original": tiny.model},
        tiny.task,
        train=train,
        scenario=forget_ids(train, ["s0", "s1"]),
        metrics=["accuracy"],
        runtime=QUIET,
    )
    said = "1 of 2 forget samples stands in the retain set too, to the bit: s0 ~ s39."
    assert [c for c in scores.caveats if c.startswith(said)] == list(scores.caveats)


def test_nearness_is_seen_by_the_retrained_model_alone(tiny: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original was trained on forget beside retain samples, which may bring them near each other."""
    seen: list[Mapping[str, Outputs]] = []
    monkeypatch.setattr(
        "expunge.evaluate.near_duplicates", lambda *args: seen.append(args[2]) or near_duplicates(*args)
    )
    given = {"train": tiny.train, "test": tiny.test, "scenario": tiny.scenario, "metrics": ["probe"], "runtime": QUIET}
    evaluate({"original": tiny.model}, tiny.task, **given)
    done = unlearn(load("retrain")(), tiny.model, tiny.task, forget=tiny.forget, retain=tiny.retain, recipe=tiny.recipe)
    evaluate({"original": tiny.model, "retrained": done}, tiny.task, **given)
    with torch.no_grad():
        broken = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        broken[1].bias.fill_(torch.nan)
    evaluate({"retrained": broken}, tiny.task, **given)
    none, features, flawed = seen
    assert none == flawed == {}
    assert features["forget"].features.keys() == {"4:input"}
