"""Generated parquet folders in the Hub's layout, and the real ones where they are at hand."""

import io
import os
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from expunge import zoo
from expunge.errors import Incompatible, UserError
from expunge.runtime import peak_memory
from expunge.zoo import embedded, named
from expunge.zoo.filed import FILED
from expunge.zoo.networks import BASE

SHARED = Path(os.environ.get("EXPUNGE_DATA") or Path(__file__).parents[3] / "shared" / "data")
SIDES = {"cifar10": (32, 32, 3), "cifar100": (32, 32, 3), "fashion_mnist": (28, 28), "orl_faces": (112, 92)}
# Coarse label of every fine label of CIFAR-100, as published with the data set.
COARSE = (
    "4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10 12 14 16 9 11 5 "
    "5 19 8 8 15 13 14 17 18 10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1 9 19 2 10 0 1 16 12 9 13 15 13 "
    "16 19 2 4 6 19 5 5 8 19 18 1 2 15 6 0 17 8 14 13"
)


def picture(shape, seed):
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    out = io.BytesIO()
    Pillow.fromarray(array).save(out, "PNG")
    return {"bytes": out.getvalue(), "path": None}


def stored(root, name, each=6, coarse=COARSE, classes=None):
    """Write ``each`` samples a class to train (two files), and as many to test, in the Hub's layout."""
    spec = named.NAMED[name]
    classes = classes or spec.classes
    names = [f"{name} {c}" for c in range(classes)]
    folder = root / spec.folder
    folder.mkdir()
    labels = [c for _ in range(each) for c in range(classes)]
    for split, start in (("train", 0), ("test", 10**6)):
        if spec.network == "text":
            column, kind = [f"words of text {i} {split}" for i in range(len(labels))], datasets.Value("string")
        else:
            column = [picture(SIDES[spec.folder], start + i) for i in range(len(labels))]
            kind = datasets.Image()
        rows, kinds = {spec.inputs: column, spec.label: labels}, {spec.inputs: kind}
        kinds[spec.label] = datasets.ClassLabel(names=names)
        if spec.coarse:
            rows[spec.coarse] = [int(coarse.split()[c]) for c in labels]
            kinds[spec.coarse] = datasets.Value("int64")
        table = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
        half = len(labels) // 2 if split == "train" else 0
        for part, rows_of in enumerate(([range(half)] if half else []) + [range(half, len(labels))]):
            table.select(rows_of).to_parquet(folder / f"{split}-{part:05d}-of-00002.parquet")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    found = tmp_path_factory.mktemp("data")
    for name, each in {"cifar10": 6, "fashion_mnist": 6, "orl_faces": 3, "ag_news": 10, "cifar100": 2}.items():
        stored(found, name, each)
    return found


def test_every_named_set_is_listed():
    assert zoo.datasets() == sorted([*named.NAMED, *embedded.DATASETS, *FILED, "cards"])


@pytest.mark.parametrize("name", sorted(named.NAMED))
def test_splits_ids_and_networks(root, name):
    spec = named.NAMED[name]
    found, again = zoo.load(name, data_dir=root), zoo.load(name, data_dir=root, seed=1)
    n = len(found.train)
    assert found.train.ids == [f"{name}/train/{i}" for i in range(n)]
    assert len(found.holdout) == round(n / 5)
    assert sorted(found.holdout.ids + found.test.ids) == sorted(f"{name}/test/{i}" for i in range(n))
    assert [found.holdout.ids, found.test.ids] == [again.holdout.ids, again.test.ids]
    assert [d.name for d in (found.train, found.holdout, found.test)] == ["train", "holdout", "test"]
    assert len(found.classes) == spec.outputs == int(found.train.targets().max()) + 1
    batch = found.train.read([0, n - 1])
    outputs, _ = found.task.forward(found.new_model(), batch)
    found.task.check(outputs, batch.target)
    assert outputs.shape == (2, spec.outputs)
    assert found.network == spec.network
    shape = batch.inputs["input_ids"].shape[1:] if spec.network == "text" else batch.inputs.shape[1:]
    assert tuple(shape) == (spec.shape[:1] if spec.network == "text" else spec.shape)


@pytest.mark.parametrize("name", sorted(named.NAMED))
def test_what_is_known_before_files_are_opened_is_so(root, name):
    known, found = zoo.known(name), zoo.load(name, data_dir=root)
    assert len(known.counts) == len(found.classes)
    assert known.shape == named.NAMED[name].shape
    columns = found.train.columns
    assert list(known.columns) == list(columns)
    for column, values in known.columns.items():
        if values is not None:
            assert set(values) == {str(v) for v in columns[column]}
    counts = torch.bincount(found.train.targets())
    assert [n * len(found.train) for n in known.counts] == (counts * known.size).tolist()  # the same shares
    few = zoo.known(name, limit=200)
    assert few.size == 200
    assert sum(few.counts) == 200


def test_the_pretrained_network_is_given_other_images():
    assert zoo.known("cifar10", BASE).shape == (3, 224, 224)
    with pytest.raises(UserError, match="texts for text"):
        zoo.known("cifar10", "text")


def test_images_are_those_of_the_files(root):
    spec, data = named.NAMED["cifar10"], zoo.load("cifar10", data_dir=root).train
    pixels = np.array(Pillow.open(io.BytesIO(picture(SIDES["cifar10"], 33)["bytes"])))
    x = (pixels / 255 - spec.mean) / spec.std
    found = data.subset(["cifar10/train/33"]).read([0])
    assert torch.allclose(found.inputs[0].permute(1, 2, 0).double(), torch.tensor(x), atol=1e-5)
    assert found.target.item() == 3
    assert data.source.x.dtype == torch.uint8


def test_the_superclasses_of_cifar_100(root):
    want = [int(c) for c in COARSE.split()]
    spec = named.NAMED["cifar20"]
    assert named._group_of(spec).tolist() == want
    assert sorted(c for members in spec.groups.values() for c in members) == list(range(100))
    data = zoo.load("cifar20", data_dir=root).train
    fine = data.column("fine").tolist()
    assert data.targets().tolist() == [want[c] for c in fine]
    assert data.column("fine_name").tolist() == [f"cifar100 {c}" for c in fine]
    groups = list(spec.groups)
    assert (groups[0], groups[4], groups[14], groups[19]) == (
        "aquatic_mammals",
        "fruit_and_vegetables",
        "people",
        "vehicles_2",
    )
    # rocket in vehicles_2, mushroom in vegetables, sea in natural scenes, lamp in electrical devices, baby in people
    assert [want[c] for c in (69, 51, 71, 40, 2)] == [19, 4, 10, 5, 14]
    plain = zoo.load("cifar100", data_dir=root).train
    assert plain.targets().tolist() == fine
    assert plain.column("superclass").tolist() == [groups[want[c]] for c in fine]


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("cifar10_super", {"vehicles": [0, 1, 8, 9], "animals": [2, 3, 4, 5, 6, 7]}),
        (
            "fashion_mnist_super",
            {"tops": [0, 2, 4, 6], "trousers and dresses": [1, 3], "shoes": [5, 7, 9], "bags": [8]},
        ),
    ],
)
def test_superclasses_as_targets(root, name, groups):
    found = zoo.load(name, data_dir=root)
    assert found.classes == tuple(groups)
    for data in (found.train, found.test):
        at = {c: i for i, members in enumerate(groups.values()) for c in members}
        assert data.targets().tolist() == [at[c] for c in data.column("fine")]
        assert data.column("superclass").tolist() == [found.classes[t] for t in data.targets()]
    plain = zoo.load(named.NAMED[name].folder, data_dir=root).train
    assert plain.column("superclass").tolist() == found.train.column("superclass").tolist()
    assert plain.column("label").tolist() == found.train.column("fine_name").tolist()


def test_faces_carry_their_person(root):
    data = zoo.load("orl_faces", data_dir=root).train
    assert data.column("subject").tolist()[:3] == ["orl_faces 0", "orl_faces 1", "orl_faces 2"]
    assert data.read([0]).inputs.shape == (1, 1, 32, 32)


def test_a_limit_is_balanced_and_keeps_ids(root):
    whole, part = zoo.load("cifar10", data_dir=root), zoo.load("cifar10", data_dir=root, limit=32)
    assert (len(part.train), len(part.holdout), len(part.test)) == (32, 4, 16)
    assert sorted(torch.bincount(part.train.targets(), minlength=10).tolist()) == [3] * 8 + [4] * 2
    for small, large in ((part.train, whole.train), (part.holdout, whole.holdout), (part.test, whole.test)):
        assert set(small.ids) < set(large.ids)
        same = large.subset(small.ids)
        assert torch.equal(small.read(range(len(small))).inputs, same.read(range(len(small))).inputs)
        assert small.targets().tolist() == same.targets().tolist()
        assert small.column("label").tolist() == same.column("label").tolist()
    assert zoo.load("cifar10", data_dir=root, limit=32, seed=3).train.ids != part.train.ids
    assert set(part.train.ids) < set(zoo.load("cifar10", data_dir=root, limit=40).train.ids)
    grouped = zoo.load("cifar10_super", data_dir=root, limit=30).train
    assert np.bincount(grouped.column("fine").astype(int)).tolist() == [3] * 10
    with pytest.raises(UserError, match="a limit of at least 100 samples, one a class, got 50"):
        zoo.load("cifar100", data_dir=root, limit=50)


def test_mislabelled_keeps_bytes_in_memory(root):
    data = zoo.load("cifar10", data_dir=root).train
    noisy, flipped = embedded.mislabelled(data, 0.1, classes=10)
    assert noisy.source.source is data.source
    assert len(flipped) == 6
    assert torch.equal(noisy.read([3]).inputs, data.read([3]).inputs)


def test_the_environment_names_the_folder(root, monkeypatch):
    monkeypatch.setenv("EXPUNGE_DATA", str(root))
    assert len(zoo.load("orl_faces").train) == 120
    monkeypatch.setenv("EXPUNGE_DATA", str(root / "none"))
    said = f"a folder of data sets {root}/none (EXPUNGE_DATA), got nothing there: name the folder above the data sets"
    with pytest.raises(UserError, match=re.escape(said)):
        zoo.load("orl_faces")
    assert len(zoo.load("orl_faces", data_dir=root).train) == 120
    assert len(zoo.load("digits").train) == 1168  # needs none


def test_without_a_folder_the_hub_is_asked(root, monkeypatch, tmp_path):
    asked = []

    def hub(name, config, split):
        asked.append((name, split))
        return datasets.Dataset.from_parquet(
            [str(p) for p in (root / "cifar100").glob(f"{split}-*")], cache_dir=tmp_path
        )

    monkeypatch.delenv("EXPUNGE_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert len(zoo.load("cifar20", limit=100).train) == 100
    assert asked == [("uoft-cs/cifar100", "train"), ("uoft-cs/cifar100", "test")]
    said = "a folder orl_faces with train-*.parquet and test-*.parquet, got no data folder: name the folder above it by"
    with pytest.raises(UserError, match=re.escape(said)):
        zoo.load("orl_faces")
    with pytest.raises(UserError, match=f"got none in {tmp_path}: name the folder above it .* no official place"):
        zoo.load("orl_faces", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "hub"),
    [
        ("cifar10", "uoft-cs/cifar10"),
        ("cifar10_super", "uoft-cs/cifar10"),
        ("fashion_mnist", "zalando-datasets/fashion_mnist"),
        ("ag_news", "fancyzhx/ag_news"),
        ("cifar100", "uoft-cs/cifar100"),
    ],
)
def test_what_is_said_offline(monkeypatch, tmp_path, name, hub):
    def unreachable(*_, **__):
        raise ConnectionError(f"Couldn't reach '{hub}' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        UserError, match=rf"the data set {hub} \(train\) from the Hugging Face Hub.*--data-dir or EXPUN"
    ):
        zoo.load(name, data_dir=tmp_path)


def test_files_that_are_not_the_data_set(tmp_path):
    (tmp_path / "orl_faces").mkdir()
    with pytest.raises(UserError, match=re.escape(f"files train-*.parquet in {tmp_path}/orl_faces, got none")):
        zoo.load("orl_faces", data_dir=tmp_path)
    stored(tmp_path, "cifar10", classes=4)
    with pytest.raises(Incompatible, match="10 classes in the train files of cifar10, got 4 classes in 'label'"):
        zoo.load("cifar10", data_dir=tmp_path)
    stored(tmp_path, "cifar100", each=2, coarse=" ".join(["5", *COARSE.split()[1:]]))
    said = r"CIFAR-100's superclasses in 'coarse_label' \(train\), got 5 for class 0 in row 0: check the files"
    with pytest.raises(Incompatible, match=said):
        zoo.load("cifar20", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "network", "said"),
    [
        ("cifar11", None, "a known data set, got 'cifar11': did you mean 'cifar10"),
        ("cifar10", "resnet", "a known network, got 'resnet': did you mean 'resnet18'"),
        ("cifar10", "text", "texts for text, got shape (3, 32, 32): take another network: convnet, convnet4, lenet"),
        ("ag_news", "mlp", "numbers for mlp, got texts of 64 tokens: take another network: text"),
        ("ag_news", BASE, f"images of shape (3, 224, 224) for {BASE}, got texts of 64 tokens"),
    ],
)
def test_names_that_do_not_go_together(root, name, network, said):
    with pytest.raises(UserError, match=re.escape(said)):
        zoo.load(name, network, data_dir=root)


@pytest.mark.parametrize(
    ("name", "network", "epochs", "milestones", "optimizer"),
    [
        ("cifar10", "resnet18", 20, (8, 12, 16), "sgd"),
        ("cifar20", "resnet18", 40, (15, 30, 35), "sgd"),
        ("cifar100", "resnet18", 200, (60, 120, 160), "sgd"),
        ("cifar10", "vit", 30, (), "adamw"),
        ("cifar10", "convnet", 15, (), "sgd"),
    ],
)
def test_recipes(root, name, network, epochs, milestones, optimizer):
    recipe = zoo.load(name, network, data_dir=root, limit=100).recipe
    assert (recipe.epochs, recipe.milestones, recipe.optimizer) == (epochs, milestones, optimizer)
    if network == "resnet18":
        assert (recipe.batch_size, recipe.lr, recipe.momentum, recipe.weight_decay) == (64, 0.1, 0.9, 5e-4)
        assert (recipe.schedule, recipe.gamma, recipe.warmup, recipe.crop, recipe.flip) == (
            "multistep",
            0.2,
            1,
            4,
            True,
        )


def at_hand(name):
    found = (SHARED / name).is_dir()
    return pytest.mark.skipif(not found, reason=f"no {name} in EXPUNGE_DATA or ../shared/data")


@pytest.mark.parametrize(
    ("name", "train", "test", "first"),
    [
        pytest.param("cifar10", 50_000, 10_000, 6, marks=[at_hand("cifar10"), pytest.mark.slow]),
        pytest.param("fashion_mnist", 60_000, 10_000, 9, marks=[at_hand("fashion_mnist"), pytest.mark.slow]),
        pytest.param("orl_faces", 280, 120, 0, marks=at_hand("orl_faces")),
        pytest.param("ag_news", 6_000, 1_600, 2, marks=at_hand("ag_news")),
    ],
)
def test_the_real_ones(name, train, test, first):
    with peak_memory("cpu") as peak:
        found = zoo.load(name, data_dir=SHARED)
    assert (len(found.train), len(found.holdout) + len(found.test)) == (train, test)
    assert len(found.train) <= zoo.known(name).size
    assert len(found.train) == zoo.known(name).size or name in ("orl_faces", "ag_news")  # not as published
    assert int(found.train.targets()[0]) == first
    counts = torch.bincount(found.holdout.targets())
    assert int(counts.max() - counts.min()) <= (1 if name != "ag_news" else 10)
    if found.network != "text":
        x = found.train.read(range(min(train, 2000))).inputs
        assert x.mean().abs() < 0.1
        assert 0.9 < x.std() < 1.1
        assert peak[0] < 700 * 2**20
