"""Generated parquet folders in the layout of the Hub's tables."""

import re

import datasets
import numpy as np
import pytest
import torch

from expunge import zoo
from expunge.data import Data
from expunge.errors import Incompatible, UserError
from expunge.runtime import Runtime
from expunge.scenario import forget_range, forget_subject
from expunge.task import Binary, Regression
from expunge.train import fit
from expunge.zoo import rows
from expunge.zoo.filed import FILED

QUIET = Runtime(progress=False)
N = 200
PAIRS = {"train": 60, "validation": 16, "test": 24}


def credit(n=N, **columns):
    """Return rows of the published columns: a default is likelier the later the last payment."""
    random = np.random.default_rng(0)
    found = {"ID": np.arange(1, n + 1)}
    for name in rows.REAL:
        late = name.startswith("PAY_") and "AMT" not in name
        found[name] = random.integers(-2, 9, n) if late else random.integers(0, 90_000, n).astype(float)
    found |= {"AGE": random.integers(21, 70, n)}
    found |= {name: random.integers(first, last + 1, n) for name, (first, last) in rows.CATEGORIES.items()}
    found[rows.DEFAULT] = (random.random(n) < 1 / (1 + np.exp(1.5 - 0.6 * found["PAY_0"]))).astype(np.int64)
    return {**found, **columns}


def stsb(n, **columns):
    words, random = [f"word{i}" for i in range(40)], np.random.default_rng(n)
    first, second = ([" ".join(random.choice(words, 5)) for _ in range(n)] for _ in "ab")
    return {"sentence1": first, "sentence2": second, "score": (np.arange(n) % 6 / 5).tolist(), **columns}


def put(root, name, split, table):
    (root / name).mkdir(exist_ok=True)
    datasets.Dataset.from_dict(table).to_parquet(root / name / f"{split}-00000-of-00001.parquet")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    found = put(tmp_path_factory.mktemp("data"), "credit", "train", credit())
    for split, n in PAIRS.items():
        put(found, "stsb", split, stsb(n))
    return found


# Clients of a credit card.


def test_the_one_split_is_cut_once_and_for_all(root):
    found, again = zoo.load("credit", data_dir=root), zoo.load("credit", data_dir=root, seed=1)
    parts = [found.train, found.holdout, found.test]
    assert [len(p) for p in parts] == [130, 20, 50]
    assert [p.name for p in parts] == ["train", "holdout", "test"]
    assert sorted(i for p in parts for i in p.ids) == sorted(f"credit/train/{i}" for i in range(N))
    assert [p.ids for p in parts] == [p.ids for p in (again.train, again.holdout, again.test)]
    assert (found.network, found.task, found.classes) == ("tabular", Binary(), ("paid", "default"))


def test_rows_are_those_of_the_file_on_the_scale_of_the_training_part(root):
    found, table = zoo.load("credit", data_dir=root), credit()
    own = np.array([int(i.rpartition("/")[2]) for i in found.train.ids])
    for part in (found.train, found.test):
        batch, at = part.read(range(len(part))), np.array([int(i.rpartition("/")[2]) for i in part.ids])
        for column, name in enumerate(rows.REAL):
            values = np.asarray(table[name], dtype=np.float64)
            want = (values[at] - values[own].mean()) / values[own].std()
            np.testing.assert_allclose(batch.inputs["real"][:, column], want, atol=1e-5)
        for column, (name, (first, _)) in enumerate(rows.CATEGORIES.items()):
            assert batch.inputs["categories"][:, column].tolist() == (table[name][at] - first).tolist()
        assert batch.target.tolist() == table[rows.DEFAULT][at].tolist()
        assert part.column("subject").tolist() == table["ID"][at].tolist()
        assert part.column("category").tolist() == table["EDUCATION"][at].tolist()
        assert part.column("age").tolist() == table["AGE"][at].tolist()


def test_a_column_that_never_changes_is_no_trouble(tmp_path):
    put(tmp_path, "credit", "train", credit(PAY_AMT6=[5.0] * N))
    inputs = zoo.load("credit", data_dir=tmp_path).train.read(range(9)).inputs
    assert inputs["real"][:, rows.REAL.index("PAY_AMT6")].tolist() == [0] * 9


def test_a_limit_keeps_scale_and_ids(root):
    whole, part = zoo.load("credit", data_dir=root), zoo.load("credit", data_dir=root, limit=64)
    assert (len(part.train), len(part.holdout), len(part.test)) == (64, 8, 32)
    assert set(part.train.ids) < set(whole.train.ids)
    same = whole.train.subset(part.train.ids)
    assert torch.equal(part.train.read(range(64)).inputs["real"], same.read(range(64)).inputs["real"])
    assert zoo.load("credit", data_dir=root, limit=64, seed=1).train.ids != part.train.ids


def test_the_network_learns_and_requests_find_people(root):
    found = zoo.load("credit", data_dir=root)
    torch.manual_seed(0)
    start = found.new_model()
    model = fit(start, found.task, found.train, found.recipe, runtime=QUIET)
    batch = found.train.read(range(len(found.train)))
    outputs = [found.task.forward(m, batch)[0].detach() for m in (start, model)]
    found.task.check(outputs[0], batch.target)
    before, after = (float(found.task.loss(out, batch.target).mean()) for out in outputs)
    assert after < before
    who = found.train.column("subject")[3]
    assert forget_subject(found.train, who, column="subject").forget == (found.train.ids[3],)
    young = forget_range(found.train, 21, 30, column="age")
    assert set(found.train.subset(young.forget).column("age")) <= set(range(21, 30))


def test_what_is_known_before_files_are_opened(root):
    known = zoo.known("credit")
    assert (known.size, sum(known.counts), known.counts[1]) == (19_500, 19_500, 4313)
    assert zoo.known("credit", limit=100).counts == (78, 22)
    train = zoo.load("credit", data_dir=root).train
    inputs = train.read([0]).inputs
    assert (known.shape.real, len(known.shape.sizes)) == (inputs["real"].shape[1], inputs["categories"].shape[1])
    assert list(known.columns) == list(train.columns)


@pytest.mark.parametrize(
    ("columns", "error", "said"),
    [
        ({"EDUCATION": [7] + [1] * (N - 1)}, Incompatible, "whole numbers from 0 to 6 in 'EDUCATION', got 7 in row 0"),
        ({"SEX": [1.5] * N}, Incompatible, "whole numbers from 1 to 2 in 'SEX', got 1.5 in row 0"),
        (
            {rows.DEFAULT: [0, 2] * (N // 2)},
            Incompatible,
            f"whole numbers from 0 to 1 in '{rows.DEFAULT}', got 2 in row 1",
        ),
        ({"LIMIT_BAL": [None] + [1.0] * (N - 1)}, UserError, "a value in every row of the column 'LIMIT_BAL'"),
    ],
)
def test_values_that_were_not_published(tmp_path, columns, error, said):
    put(tmp_path, "credit", "train", credit(**columns))
    with pytest.raises(error, match=re.escape(said)):
        zoo.load("credit", data_dir=tmp_path)


def test_a_column_that_is_not_there(tmp_path):
    table = credit()
    del table["MARRIAGE"]
    put(tmp_path, "credit", "train", table)
    with pytest.raises(UserError, match="a column of train, got 'MARRIAGE'"):
        zoo.load("credit", data_dir=tmp_path)


# Pairs of sentences.


def test_pairs_keep_their_published_splits_and_scores_are_those_of_people(root):
    found = zoo.load("stsb", data_dir=root)
    assert [len(p) for p in (found.train, found.holdout, found.test)] == [60, 16, 24]
    assert (found.holdout.ids[0], found.holdout.name) == ("stsb/validation/0", "holdout")
    assert found.train.targets().shape == (60, 1)
    assert found.train.targets()[:6, 0].tolist() == pytest.approx([0, 1, 2, 3, 4, 5])
    assert found.train.column("sentence2")[4] == stsb(60)["sentence2"][4]
    assert (found.network, found.task, found.classes) == ("text_pair", Regression(), ())
    assert len(forget_range(found.train, 0, 2).forget) == 20  # a score below 2


def test_both_sentences_reach_the_network(root):
    found = zoo.load("stsb", data_dir=root)
    batch, table = found.train.read(range(8)), stsb(60)
    length = rows.PAIR.length
    alone = rows.hashed_words(*rows.PAIR)
    for at, name in ((slice(0, length), "sentence1"), (slice(length, None), "sentence2")):
        assert torch.equal(batch.inputs["input_ids"][:, at], alone(table[name][:8])["input_ids"])
    assert batch.inputs["token_type_ids"][0].tolist() == [0] * length + [1] * length
    torch.manual_seed(0)
    outputs, _ = found.task.forward(found.new_model().eval(), batch)
    found.task.check(outputs, batch.target)
    assert outputs.shape == (8, 1)
    assert zoo.known("stsb").shape == rows.PAIR
    assert list(zoo.known("stsb").columns) == list(found.train.columns)


def test_a_pair_regressor_trains(root):
    found = zoo.load("stsb", data_dir=root, limit=32)
    assert (len(found.train), len(found.holdout), len(found.test)) == (32, 4, 16)
    torch.manual_seed(0)
    start = found.new_model().eval()
    model = fit(start, found.task, found.train, found.recipe, runtime=QUIET)
    batch = found.train.read(range(32))
    outputs = [found.task.forward(m, batch)[0].detach() for m in (start, model)]
    before, after = (float(found.task.loss(out, batch.target).mean()) for out in outputs)
    assert after < before


def test_scores_on_another_scale_are_refused(tmp_path):
    for split, n in PAIRS.items():
        put(tmp_path, "stsb", split, stsb(n, score=[3.8] * n))
    said = "numbers from 0 to 1 in 'score', got 3.8 in row 0: divide scores from 0 to 5 by 5"
    with pytest.raises(Incompatible, match=re.escape(said)):
        zoo.load("stsb", data_dir=tmp_path)


# Where they come from.


@pytest.mark.parametrize("name", ["credit", "stsb"])
def test_without_a_folder_the_hub_is_asked(monkeypatch, name):
    asked = []

    def hub(place, config, split):
        asked.append((place, split))
        return datasets.Dataset.from_dict(credit() if name == "credit" else stsb(PAIRS[split]))

    monkeypatch.delenv("EXPUNGE_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert isinstance(zoo.load(name).train, Data)
    splits = ["train"] if name == "credit" else list(PAIRS)
    assert asked == [(FILED[name].hub, split) for split in splits]
    assert zoo.hub(name) == FILED[name].hub
    assert zoo.hub("digits") is None


@pytest.mark.parametrize("name", ["credit", "stsb"])
def test_what_is_said_offline_and_of_an_empty_folder(monkeypatch, tmp_path, name):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=rf"the data set {FILED[name].hub} \(train\) from the Hugging Face Hub"):
        zoo.load(name, data_dir=tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=re.escape(f"files train-*.parquet in {tmp_path}/{name}, got none")):
        zoo.load(name, data_dir=tmp_path)
