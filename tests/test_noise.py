"""Noise on training inputs: who carries it, that it is what it says, and what is left as it was."""

from __future__ import annotations

import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from expunge import canaries
from expunge.data import Data, relabelled
from expunge.draws import Request
from expunge.errors import UserError
from expunge.evaluate import evaluate
from expunge.noise import Noise, Noisy, Planted, planted
from expunge.poison import Backdoor
from expunge.scenario import forget_ids
from expunge.task import Classification


def samples(n: int = 40, real: bool = True, **more: Any) -> Data:
    x = torch.randn(n, 3, 8, generator=torch.Generator().manual_seed(0))
    return Data.from_arrays(x if real else x.long(), torch.arange(n) % 4, columns={"row": list(range(n))}, **more)


def inputs(data: Data) -> Tensor:
    found = data.read(range(len(data))).inputs
    assert isinstance(found, Tensor)
    return found


def test_some_samples_carry_noise_and_nothing_else_changes() -> None:
    data = samples()
    made, ids = Noise(deviation=0.5, seed=3).plant(data, 0.2)
    assert len(ids) == 8
    assert made.ids == data.ids
    assert torch.equal(made.targets(), data.targets())
    assert made.columns["row"].tolist() == list(range(40))
    chosen = torch.tensor([i in ids for i in data.ids])
    assert torch.equal(inputs(made)[~chosen], inputs(data)[~chosen])
    assert bool((inputs(made)[chosen] != inputs(data)[chosen]).all())
    assert torch.equal(inputs(data), inputs(samples()))


def test_the_noise_is_gaussian_of_the_stated_deviation_and_differs_by_sample() -> None:
    data = samples(400)
    made, ids = Noise(deviation=0.5).plant(data, 0.5)
    drawn = inputs(made.subset(ids)) - inputs(data.subset(ids))
    assert float(drawn.mean()) == pytest.approx(0, abs=5 * 0.5 / drawn.numel() ** 0.5)
    assert float(drawn.std()) == pytest.approx(0.5, rel=5 / (2 * drawn.numel()) ** 0.5)
    assert float(drawn.pow(4).mean() / drawn.pow(2).mean() ** 2) == pytest.approx(3, abs=0.4)
    likeness = np.corrcoef(drawn.flatten(1).numpy()) - np.eye(len(ids))
    assert np.abs(likeness).max() < 0.95  # none stands twice


def test_a_samples_noise_is_decided_by_its_id_and_the_seed() -> None:
    data = samples()
    made, ids = Noise(deviation=1, seed=1).plant(data, 0.3)
    back = made.subset(ids[::-1])
    assert torch.equal(inputs(back).flip(0), inputs(made.subset(ids)))
    assert torch.equal(inputs(made), inputs(made))
    moved, others = Noise(deviation=1, seed=1).plant(data.subset(data.ids[::-1]), 0.3)
    both = sorted({*ids} & {*others})
    assert both
    assert torch.equal(inputs(moved.subset(both)), inputs(made.subset(both)))
    again, same = Noise(deviation=1, seed=1).plant(data, 0.3)
    other, rest = Noise(deviation=1, seed=2).plant(data, 0.3)
    assert same == ids
    assert torch.equal(inputs(again), inputs(made))
    assert rest != ids
    both = sorted({*ids} & {*rest})
    assert both
    assert not torch.equal(inputs(other.subset(both)), inputs(made.subset(both)))


def test_without_it_the_data_is_what_it_was() -> None:
    data = samples()
    made, ids = Noise(deviation=2).plant(data, 0.2)
    found = known(made)
    assert found.ids == ids
    assert found.deviation == 2
    assert torch.equal(inputs(found.clean), inputs(data))
    part = made.subset([ids[1], *[i for i in data.ids if i not in ids][:3], ids[0]])
    assert known(part).ids == [ids[1], ids[0]]
    assert known(made.without(ids)).ids == []
    assert planted(data) is None


def known(data: Data) -> Planted:
    found = planted(data)
    assert found is not None
    return found


def test_it_is_found_under_other_labels_and_patches() -> None:
    data = Data.from_arrays(torch.rand(30, 1, 4, 4), torch.arange(30) % 3)
    noisy, ids = Noise(deviation=1).plant(data.subset(data.ids[::-1]), 0.3)
    again = relabelled(noisy.subset(noisy.ids[3:25]), (noisy.targets()[3:25] + 1) % 3)
    door = Backdoor.on(noisy, target=1).plant(noisy, 0.2)[0]
    marked, _ = canaries.plant(noisy, 4, seed=0)
    for made in (again, door, marked):
        found = known(made)
        assert found.ids == [i for i in made.ids if i in ids]
        assert torch.equal(found.clean.targets(), made.targets())
        with pytest.raises(UserError, match="noise on it already"):
            Noise(deviation=1).plant(made, 0.1)
    assert torch.equal(inputs(known(again).clean), inputs(data.subset(again.ids)))
    assert torch.equal(inputs(known(marked).clean), inputs(data.subset(marked.ids)))


def test_noise_on_a_part_of_the_data_leaves_the_rest_of_its_source_alone() -> None:
    data = samples()
    half = data.subset(data.ids[::-2])
    made, ids = Noise(deviation=1).plant(half, 0.5)
    assert set(ids) <= set(half.ids)
    assert isinstance(made.source, Noisy)
    assert int(made.source.flags.sum()) == len(ids) == 10


def test_by_default_it_is_as_large_as_the_inputs_vary_whatever_their_order() -> None:
    data = samples()
    found = Noise.on(data)
    assert found.deviation == pytest.approx(float(inputs(data).double().std(correction=0)))
    assert Noise.on(data.subset(data.ids[::-1])).deviation == pytest.approx(found.deviation)
    assert Noise.on(data, deviation=0.25, seed=4) == Noise(deviation=0.25, seed=4)


def test_of_several_inputs_the_one_of_real_numbers_gets_it() -> None:
    x = {"values": torch.randn(20, 3), "kinds": torch.arange(20)}
    data = Data.from_arrays(x, torch.arange(20) % 2)
    made, ids = Noise.on(data).plant(data, 0.5)
    before, after = (d.subset(ids).read(range(10)).inputs for d in (data, made))
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert torch.equal(before["kinds"], after["kinds"])
    assert bool((before["values"] != after["values"]).all())


def test_a_deviation_is_kept_as_a_plain_number() -> None:
    for given in (np.float32(0.5), 0.5, Fraction(1, 2), torch.tensor(0.5).item()):
        assert type(Noise(deviation=given).deviation) is float  # type: ignore[arg-type]
        assert Request("noised", 0.1, deviation=given).to_json()["deviation"] == 0.5  # type: ignore[arg-type]
    assert Noise(deviation=2).deviation == 2.0


def test_test_data_that_was_trained_on_is_told_from_the_inputs_without_noise() -> None:
    data = samples()
    noisy, ids = Noise(deviation=1).plant(data, 0.2)
    leak, case = data.subset(data.ids[:9]), forget_ids(noisy, ids)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(24, 4))
    with pytest.raises(UserError, match="test data outside the training set"):
        evaluate({"original": model}, Classification(), train=noisy, test=leak, scenario=case, metrics=["loss"])


def test_an_input_may_be_called_noise() -> None:
    x, y = {"noise": torch.arange(12), "x": torch.rand(12, 2)}, [0] * 12
    one, other = (Noise(deviation=1).plant(Data.from_arrays({**x, "noise": x["noise"] + k}, y), 0.5)[0] for k in (0, 1))
    assert not (one.contents() == other.contents()).any()


def test_its_content_tells_noisy_data_from_other_data() -> None:
    data = samples()

    def print_of(found: Data) -> list[int]:
        return found.fingerprints(b"", labelled=True)[1].tolist()

    made = [Noise(deviation=d, seed=s).plant(data, 0.2)[0] for d, s in ((1.0, 0), (1.0, 1), (0.5, 0))]
    prints = [print_of(each) for each in made]
    assert all(a != b for i, a in enumerate(prints) for b in prints[:i])
    assert print_of(Noise(deviation=1.0).plant(data, 0.2)[0]) == prints[0]
    copy = pickle.loads(pickle.dumps(made[0]))
    assert torch.equal(inputs(copy), inputs(made[0]))


def test_labels_are_read_without_inputs_where_the_source_can() -> None:
    x, y = torch.randn(12, 3), torch.arange(12) % 3
    flipped = relabelled(Data.from_arrays(x, y), (y + 1) % 3)
    made, _ = Noise(deviation=1).plant(flipped, 0.5)
    assert torch.equal(made.targets(), (y + 1) % 3)
    assert torch.equal(Noise(deviation=1).plant(Data.from_arrays(x, y), 0.5)[0].targets(), y)


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (lambda: Noise(deviation=0), r"a deviation of the noise above 0, got 0: give it in the inputs' unit"),
        (lambda: Noise(deviation=float("nan")), "a deviation of the noise above 0, got nan"),
        (lambda: Noise(deviation=True), "a deviation of the noise above 0, got True"),
        (lambda: Noise(deviation=10**400), "a deviation of the noise above 0, got 1000000"),
        (lambda: Noise(deviation="much"), "a deviation of the noise above 0, got 'much'"),  # type: ignore[arg-type]
        (lambda: Noise(deviation=1).plant(samples(), 0), r"a share of samples to put noise on in \(0, 1\), got 0"),
        (lambda: Noise(deviation=1).plant(samples(), 1), r"a share of samples to put noise on in \(0, 1\), got 1"),
        (
            lambda: Noise(deviation=1).plant(Noise(deviation=1).plant(samples(), 0.1)[0], 0.1),
            "train without noise, got noise on it already: plant once, with a larger share",
        ),
        (
            lambda: Noise.on(samples(real=False)),
            r"one input of real numbers in train to put noise on, got torch.int64 of shape \(3, 8\): take another kind",
        ),
        (lambda: Noise(deviation=1).plant(samples(real=False), 0.1), "one input of real numbers in train"),
        (
            lambda: Noise.on(Data.from_arrays({"a": torch.zeros(4, 1), "b": torch.zeros(4, 2)}, [0, 1, 0, 1])),
            r"one input of real numbers in train to put noise on, got .*shape \(1,\).*shape \(2,\)",
        ),
        (
            lambda: Noise(deviation=1e-12).plant(samples(), 0.1),
            "noise of deviation 1e-12 on train, got a deviation of .* once it is added to torch.float32 inputs",
        ),
        (
            lambda: Noise(deviation=1.0).plant(Data.from_arrays(1e9 + torch.rand(9, 8), [0] * 9), 0.5),
            "to torch.float32",
        ),
        (lambda: Noise.on(samples().subset([])), "samples to put noise on, got none in train"),
        (lambda: Noise(deviation=1).plant(samples().subset([]), 0.1), "samples to put noise on, got none in train"),
        (
            lambda: Noise.on(Data.from_arrays(torch.ones(4, 2), [0, 1, 0, 1])),
            "inputs of train that differ from each other, got all of them equal: give the noise's deviation",
        ),
        (
            lambda: Noise.on(Data.from_arrays(torch.tensor([[1.0], [float("inf")]]), [0, 1])),
            "inputs of train that differ from each other, got some that are not finite",
        ),
    ],
    ids=[
        "zero",
        "nan",
        "truth",
        "huge",
        "text",
        "none",
        "all",
        "twice",
        "integers",
        "planted-integers",
        "two",
        "small",
        "large",
        "empty",
        "nothing",
        "equal",
        "infinite",
    ],
)
def test_what_cannot_be_done_says_so(work: Any, error: str) -> None:
    with pytest.raises(UserError, match=error):
        work()
