import pickle
import re
from dataclasses import replace

import pytest
import torch
from sklearn import datasets

from expunge import tensors, zoo
from expunge.errors import UserError
from expunge.evidence import collect
from expunge.runtime import Runtime
from expunge.scenario import forget_range
from expunge.task import Regression
from expunge.train import fit, fresh
from expunge.zoo import embedded, networks


@pytest.mark.parametrize(
    ("name", "n", "network", "first"),
    [
        ("digits", 1797, "convnet", [701, 398]),
        ("diabetes", 442, "mlp", [61, 6]),
        ("digits_value", 1797, "convnet4", [276, 966]),
    ],
)
def test_splits_are_disjoint_complete_and_always_the_same(name, n, network, first):
    found, again = zoo.load(name), zoo.load(name)
    parts = [found.train, found.holdout, found.test]
    assert sorted(i for p in parts for i in p.ids) == sorted(f"{name}/{i}" for i in range(n))
    cuts = [round(share * n) for share in ((0.6, 0.8) if name == "digits_value" else (0.65, 0.75))]
    assert [len(p) for p in parts] == [cuts[0], cuts[1] - cuts[0], n - cuts[1]]
    assert [p.name for p in parts] == ["train", "holdout", "test"]
    assert [p.ids for p in parts] == [again.train.ids, again.holdout.ids, again.test.ids]
    assert found.network == network
    assert found.train.ids[:2] == [f"{name}/{i}" for i in first]  # another order would change every published number


def test_an_id_is_the_row_of_the_published_table():
    table = datasets.load_digits()
    data = zoo.load("digits").train
    batch = data.read(range(50))
    rows = [int(i.partition("/")[2]) for i in data.ids[:50]]
    assert torch.equal(batch.inputs[:, 0], torch.tensor(table.images[rows] / 16, dtype=torch.float32))
    assert batch.target.tolist() == table.target[rows].tolist()
    assert float(batch.inputs.min()) == 0
    assert float(batch.inputs.max()) == 1


def test_superclasses_cover_the_digits():
    data = zoo.load("digits").test
    found = {int(d): c for d, c in zip(data.targets(), data.column("superclass"), strict=True)}
    assert found == {0: "round", 1: "straight", 2: "mixed", 3: "mixed", 4: "straight"} | {
        5: "mixed",
        6: "round",
        7: "straight",
        8: "round",
        9: "round",
    }


def test_diabetes_is_standardised():
    found = zoo.load("diabetes")
    parts = [found.train, found.holdout, found.test]
    x = torch.cat([p.read(range(len(p))).inputs for p in parts])
    y = torch.cat([p.targets() for p in parts])
    assert y.shape == (442, 1)
    assert float(y.mean()) == pytest.approx(0, abs=1e-5)
    assert float(y.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert x.std(dim=0, correction=0).tolist() == pytest.approx([1] * 10, abs=1e-5)


def test_digits_as_values_are_the_digits():
    found, plain = zoo.load("digits_value"), zoo.load("digits")
    by_row = {}
    for part in (plain.train, plain.holdout, plain.test):
        by_row |= {i.partition("/")[2]: (x, int(y), c) for i, x, y, c in read(part)}
    for part in (found.train, found.holdout, found.test):
        assert part.targets().shape == (len(part), 1)
        for i, x, y, c in read(part):
            image, digit, group = by_row[i.partition("/")[2]]
            assert torch.equal(x, image)
            assert (float(y), c) == (digit, group)
    assert (found.task, found.classes) == (Regression(error="absolute"), ())
    assert (found.recipe.epochs, found.recipe.batch_size, found.recipe.lr) == (30, 32, 0.01)
    assert (found.recipe.optimizer, found.recipe.weight_decay) == ("adamw", 0)
    assert zoo.recipe("digits_value", "resnet18") == found.recipe  # no rate for classes
    few = forget_range(found.train, 0, 3)
    assert set(found.train.subset(few.forget).targets().flatten().tolist()) == {0, 1, 2}


def read(part):
    batch = part.read(range(len(part)))
    return list(zip(part.ids, batch.inputs, batch.target, part.column("superclass"), strict=True))


def test_digits_as_values_are_learned_in_a_few_epochs():
    found = zoo.load("digits_value")
    torch.manual_seed(0)
    run = Runtime(progress=False)
    recipe = replace(found.recipe, epochs=6, milestones=(4,))
    model = fit(found.new_model(), found.task, found.train, recipe, runtime=run)
    seen = collect(model, found.task, found.test, runtime=run)
    assert float(seen.loss.mean()) < 0.7  # the best constant is 2.5 away


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("digits", "convnet"),
        ("digits", "mlp"),
        ("digits", "convnet4"),
        ("diabetes", "mlp"),
        ("digits_value", "convnet4"),
    ],
)
def test_networks_fit_their_data_and_come_from_the_random_state(name, network):
    found = zoo.load(name, network)
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(found.new_model())
    digests = [tensors.weights_digest(m) for m in made]
    assert digests[0] == digests[1] != digests[2]
    batch = found.test.read(range(3))
    outputs, _ = found.task.forward(made[0], batch)
    found.task.check(outputs, batch.target)
    assert outputs.shape == (3, 10 if name == "digits" else 1)
    fresh(made[0])  # every weight can be drawn anew
    own = ["linear_forecast", "lstm_forecast", "tabular", "text_pair"]
    others = ["convnet", "convnet4", "lenet", "mlp", "resnet18", "text", "vit"]
    assert networks.names() == sorted([*own, *others, *networks.PRETRAINED])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("digit",), "a known data set, got 'digit': did you mean 'digits'"),
        (("digits", "convent"), "a known network, got 'convent': did you mean 'convnet'"),
        (("diabetes", "convnet"), "inputs of 3 dimensions for convnet, got shape (10,): take another network: mlp"),
    ],
)
def test_unknown_names(names, said):
    with pytest.raises(UserError, match=re.escape(said)):
        zoo.load(*names)


def test_the_digits_are_learned_in_a_few_epochs():
    found = zoo.load("digits")
    torch.manual_seed(0)
    run = Runtime(progress=False)
    model = fit(found.new_model(), found.task, found.train, replace(found.recipe, epochs=3), runtime=run)
    seen = collect(model, found.task, found.test, runtime=run)
    assert float((seen.prediction == seen.target).double().mean()) > 0.95


def test_mislabelled_flips_a_share_and_nothing_else():
    data = zoo.load("digits").train
    noisy, flipped = embedded.mislabelled(data, 0.05, classes=10, seed=1)
    assert noisy.ids == data.ids
    wrong = [i for i, a, b in zip(data.ids, data.targets(), noisy.targets(), strict=True) if a != b]
    assert wrong == flipped
    assert len(flipped) == round(0.05 * len(data))
    assert noisy.column("clean").tolist() == data.targets().tolist()
    assert noisy.column("superclass").tolist() == data.column("superclass").tolist()
    assert torch.equal(noisy.read(range(9)).inputs, data.read(range(9)).inputs)
    assert 0 <= int(noisy.targets().min()) <= int(noisy.targets().max()) <= 9
    assert embedded.mislabelled(data, 0.05, classes=10, seed=1)[1] == flipped
    assert embedded.mislabelled(data, 0.05, classes=10, seed=2)[1] != flipped


class Counting:
    """A source that keeps the size of the largest batch of transformed inputs."""

    def __init__(self, source):
        self.source, self.largest = source, 0

    def __len__(self):
        return len(self.source)

    def read(self, positions, raw):
        inputs, target = self.source.read(positions, raw)
        self.largest = max(self.largest, 0 if raw else len(positions))
        return inputs, target


def test_mislabelled_reads_inputs_where_they_were():
    whole = zoo.load("digits").train
    part = whole.subset(whole.ids[10:110])
    part = replace(part, source=Counting(part.source), all_weights=torch.arange(float(len(whole))))
    noisy, flipped = embedded.mislabelled(part, 0.1, classes=10)
    assert part.source.largest == 0  # targets alone
    assert noisy.ids == part.ids
    assert torch.equal(noisy.read([5, 2]).inputs, part.read([5, 2]).inputs)
    assert noisy.read([5, 2]).weight.tolist() == [15, 12]
    kept = noisy.without(flipped)
    assert kept.targets().tolist() == part.without(flipped).targets().tolist()
    assert (noisy.subset(flipped).targets() != part.subset(flipped).targets()).all()
    raw = [d.fingerprints(b"", labelled=False)[1].tolist() for d in (part, noisy)]
    assert raw[0] == raw[1]  # the same content under the same ids
    again = pickle.loads(pickle.dumps(noisy.subset(flipped)))
    assert torch.equal(again.targets(), noisy.subset(flipped).targets())


def test_a_limit_takes_a_part_of_the_embedded_sets():
    whole, part = zoo.load("digits"), zoo.load("digits", limit=200)
    assert (len(part.train), len(part.holdout), len(part.test)) == (200, 25, 100)
    assert torch.bincount(part.train.targets()).tolist() == [20] * 10
    assert set(part.train.ids) < set(whole.train.ids)
    assert zoo.load("digits", limit=200, seed=1).train.ids != part.train.ids
    assert zoo.load("digits", limit=5000).train.ids == whole.train.ids
    assert len(zoo.load("diabetes", limit=100).train) == 100
    with pytest.raises(UserError, match="a limit of at least 10 samples, one a class, got 9: raise it"):
        zoo.load("digits", limit=9)


@pytest.mark.parametrize(
    ("name", "limit"), [("digits", None), ("digits", 123), ("digits", 5000), ("diabetes", 50), ("digits_value", 90)]
)
def test_what_is_known_of_an_embedded_set_is_so(name, limit):
    train, known = zoo.load(name, limit=limit).train, zoo.known(name, limit=limit)
    assert known.size == len(train)
    assert known.shape == tuple(train.read([0]).inputs.shape[1:])
    assert known.counts == (tuple(torch.bincount(train.targets()).tolist()) if name == "digits" else ())
    assert known.columns == {k: tuple(sorted({str(v) for v in values})) for k, values in train.columns.items()}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("digit",), "a known data set, got 'digit': did you mean 'digits'"),
        (("diabetes", "convnet"), "inputs of 3 dimensions for convnet, got shape (10,): take another network: mlp"),
        (("cifar100", None, 99), "a limit of at least 100 samples, one a class, got 99: raise it"),
    ],
)
def test_what_does_not_fit_is_told_before_data_is_opened(asked, said):
    with pytest.raises(UserError, match=re.escape(said)):
        zoo.known(*asked)
