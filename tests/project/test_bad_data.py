"""Samples that cannot be used: each one sentence, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from projects import KINDS, SOURCE, Copy, parquet, pictures, rows
from shell import refused

OWN = {f"data.{key}": None for key in ("test", "inputs", "target", "id", "subject")} | {"data.train": "shop:data"}
FOLDER = OWN | {"data.train": "pics"}
DATASET = (
    SOURCE
    + """

class Set:
    def __len__(self):
        return 40

    def __getitem__(self, i):
        return {item}


def data():
    return Set()
"""
)
ROWS = rows(60)


@pytest.mark.parametrize(
    ("item", "text"),
    [
        ("(torch.ones(3), i % 3, i)", "a dataset that yields (x, y) or a dict, got tuple of 3: wrap the dataset"),
        ("torch.ones(3)", "a dataset that yields (x, y) or a dict, got Tensor"),
        ("(torch.ones(3), 'cat')", "numbers as targets, got values of type str: encode them as numbers first"),
        ("(torch.ones(3), 1.0)", "class indices as integers of shape (B,), got torch.float32"),
        ("(torch.ones(3), torch.eye(3)[i % 3])", "class indices as integers of shape (B,), got torch.float32"),
        ("(torch.ones(3), i % 5)", "classes 0 to 2, got class 4: check the labels and the model's last layer"),
        ("(torch.ones(3), -1)", "classes 0 to 2, got class -1"),
        ("(torch.ones(3), None)", "train data with labels for ssd, got none"),
        ("(torch.ones(3), None if i > 37 else 1)", "a label in every sample, or in none, got none in 38, 39"),
        ("1 / 0", "sample 0 of the dataset Set, got ZeroDivisionError: division by zero: mend its __getitem__"),
        ("(object(), 1)", "numbers as inputs, got values of type object"),
        ("(torch.ones(3 + i % 2), 1)", "samples of one shape, got"),
        ("(torch.ones(4), 1)", "the network to run on inputs (4,) of train, got RuntimeError: mat1 and mat2"),
        ("{'z': torch.ones(3), 'label': 1}", "inputs ('z',) of train, got TypeError: Small.forward() got an"),
        ("{'xz'[i % 2]: torch.ones(3), 'label': 1}", "the same keys in every sample, got x in one and z in another"),
    ],
)
def test_a_dataset_of_ones_own(item: str, text: str, fresh: Copy) -> None:
    place = fresh(OWN)
    (place / "shop.py").write_text(DATASET.replace("{item}", item))
    assert text in refused(place, "prepare")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("return 3", "samples from 'shop:data', got int: return a Data, a map-style dataset of (x, y), or"),
        ("return None", "samples from 'shop:data', got NoneType"),
        ("return []", "samples from 'shop:data', got none: return some"),
        ("return iter([])", "samples from 'shop:data', got list_iterator"),
        ("return torch.utils.data.DataLoader([(torch.ones(3), 0)])", "samples from 'shop:data', got DataLoader"),
        ("return torch.ones(3).cuda()", "let it build on the CPU"),
        ("import datasets; return datasets.DatasetDict()", "got a DatasetDict of : return one split"),
        (
            "import datasets; return datasets.Dataset.from_dict({'a': [1.0]})",
            "none, with columns a: set inputs = [...]",
        ),
    ],
)
def test_functions_that_return_no_samples(body: str, text: str, fresh: Copy) -> None:
    place = fresh(OWN)
    (place / "shop.py").write_text(f"{SOURCE}\n\ndef data():\n    {body}\n")
    assert text in refused(place, "prepare")


def test_columns_that_a_function_does_not_bring(fresh: Copy) -> None:
    place = fresh(OWN | {"data.subject": "owner"})
    (place / "shop.py").write_text(DATASET.replace("{item}", "(torch.ones(3), 1)"))
    text = "data with subject from 'shop:data', got Set, which carries none: return expunge.data.Data with ids="
    assert text in refused(place, "prepare")
    body = "    from expunge.data import Data\n    return Data.from_arrays(torch.ones(9, 3), [0, 1, 2] * 3)\n"
    (place / "shop.py").write_text(f"{SOURCE}\n\ndef data():\n{body}")
    text = "the columns that [data] names in 'shop:data', got none called 'owner': pass them to it as columns="
    assert text in refused(place, "prepare")


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"kind": np.arange(60) % 3 + 0.0}, "classes as integers or names, got double in 'kind': convert them"),
        ({"kind": np.arange(60) % 5}, "classes 0 to 2, got class 4: check the labels"),
        ({"kind": [f"k{i % 5}" for i in range(60)]}, "for each of the network's 3 outputs, got 5 names: k0, k1, k2"),
        ({"kind": [KINDS[i % 2] for i in range(60)]}, "a class name for each of the network's 3 outputs, got 2 names"),
        ({"kind": [None, *ROWS["kind"][1:]]}, "a value in every row of the column 'kind', got none in row 0"),
        ({"kind": [-1] * 60}, "classes of 0 or more in 'kind', got class -1"),
        ({"key": [7, 7, *range(58)]}, "unique ids of train, got 7 more than once"),
        ({"key": [i + 0.5 for i in range(60)]}, "ids that are whole numbers or texts, got double in 'key'"),
        ({"key": [None, *range(59)]}, "a value in every row of the column 'key', got none in row 0"),
        (
            {"age": [float("nan")] * 60},
            "a value in every row of the column 'age', got none in rows 0, 1, 2, 3, 4 and 55",
        ),
        ({"age": [float("inf"), *[1.0] * 59]}, "finite numbers in 'age', got others in row 0"),
        ({"age": ["old"] * 60}, "lists of numbers as inputs, got a number in 'height'"),
    ],
)
def test_a_table_with_other_values(columns: dict[str, Any], text: str, fresh: Copy) -> None:
    place = fresh()
    parquet(place / "train.parquet", ROWS | columns)
    assert text in refused(place, "prepare")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"data.inputs": ["height", "weihgt", "age"]},
            "[data] inputs names in train, got none called 'weihgt': did you",
        ),
        ({"data.target": "kid"}, "the column that [data] target names in train, got none called 'kid': did you mean"),
        ({"data.id": "ky"}, "the column that [data] id names in train, got none called 'ky': did you mean 'key'"),
        ({"data.subject": "ownr"}, "the column that [data] subject names in train, got none called 'ownr': did you"),
        (
            {"data.subclass": "breed"},
            "[data] subclass names in train, got none called 'breed': choose from age, height",
        ),
        ({"data.columns": ["date"]}, "the column that [data] columns names in train, got none called 'date'"),
        ({"data.inputs": None}, "[data] inputs, the columns that the network is given, got none, with columns height"),
        ({"data.target": None}, "train data with labels for ssd, got none"),
        ({"data.inputs": ["height", "kind", "age"]}, "inputs without the target, got 'kind' as both"),
        ({"data.inputs": ["height", "age"]}, "the network to run on inputs (2,) of train"),
        ({"data.inputs": ["owner"]}, "a way to turn the texts of 'owner' into numbers, got none: set a tokeniser"),
        ({"data.classes": ["cat", "dgo", "bird"]}, "known classes in 'kind', got 'dog': did you mean 'dgo'"),
        ({"data.classes": [*KINDS, "eel"]}, "for each of the network's 3 outputs, got 4 names: bird, cat, dog, eel"),
        ({"task.kind": "regression"}, "numbers as targets in 'kind', got string"),
        ({"task.kind": "regression", "data.target": "key"}, "targets of the outputs' shape, got (2, 1) for outputs"),
        ({"data.train": "nothing-*.parquet"}, "nothing-*.parquet, got none: check [data] train"),
        ({"data.train": "/nothing-*.parquet"}, "files that match /nothing-*.parquet, got none"),
        ({"data.train": "**x/*.parquet"}, "a pattern of files, got '**x/*.parquet' (Invalid pattern"),
        ({"data.train": "empty"}, "one folder of images a class in"),
        ({"data.train": "nowhere.parquet"}, "nowhere.parquet, got nothing there: check the path"),
        ({"data.train": "shop.py"}, "parquet, CSV, a folder of images or a function in [data] train, got"),
        ({"data.train": "nomodule:data"}, "to import nomodule for 'nomodule:data'"),
        ({"data.train": None}, "training data in the project, got none: set train"),
        ({"data.test": "nowhere.parquet"}, "nowhere.parquet, got nothing there: check the path"),
        (
            {"data.test": "train.parquet"},
            "ids of test that are its own, got 100, 101, 102, 103, 104 and 55 more in train",
        ),
        ({"data.format": "csv"}, "an intact CSV file"),
        ({"data.format": "images"}, "a folder of images"),
        ({"data.format": "python"}, "'package.module:function', got 'train.parquet'"),
        ({"data.name": "digits"}, "[data] name alone, or files, got name and train, test, inputs, target, id"),
    ],
)
def test_a_project_file_that_names_other_data(changes: dict[str, Any], text: str, fresh: Copy) -> None:
    place = fresh(changes)
    (place / "empty").mkdir()
    assert text in refused(place, "prepare")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:400])


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda p: p.write_bytes(b"PAR1" + b"\7" * 300 + b"PAR1"), "an intact parquet file"),
        (lambda p: p.write_bytes(b""), "Parquet file size is 0 bytes: restore it from a copy"),
        (_cut, "Parquet magic bytes not found"),
        (lambda p: parquet(p, {k: v[:0] for k, v in ROWS.items()}), "samples in train, got an empty table"),
    ],
)
def test_a_corrupt_or_empty_table(damage: Callable[[Path], Any], text: str, fresh: Copy) -> None:
    place = fresh()
    damage(place / "train.parquet")
    assert text in refused(place, "prepare")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "Empty CSV file"),
        (b"height,weight,age,kind,owner,key\n", "an empty table"),
        (b"height,weight,age,kind,owner,key\n1,2\n", "Expected 6 columns, got 2"),
        (b"\xff\x00\xfe,b\n1,2\n", "codec can't decode byte 0xff"),
        (b"height;weight;age;kind;owner;key\n1;2;3;cat;ann;5\n", "[data] inputs names in train, got none called"),
    ],
)
def test_a_csv_file_that_is_none(content: bytes, text: str, fresh: Copy) -> None:
    place = fresh({"data.train": "train.csv"})
    (place / "train.csv").write_bytes(content)
    assert text in refused(place, "prepare")


def test_a_test_table_with_a_class_that_train_does_not_know(fresh: Copy) -> None:
    place = fresh()
    parquet(place / "test.parquet", rows(30, first=900) | {"kind": ["fish"] * 30})
    assert "known classes in 'kind', got 'fish': choose from bird, cat, dog" in refused(place, "prepare")


def _sizes(folder: Path) -> None:
    pictures(folder)
    pictures(folder, n=2, size=5)


def _text(folder: Path) -> None:
    pictures(folder)
    (folder / "cat" / "notes.png").write_text("no picture")


def _loose(folder: Path) -> None:
    pictures(folder)
    (folder / "labels.csv").write_text("a,b")


@pytest.mark.parametrize(
    ("make", "image", "text"),
    [
        (_sizes, "", "images of one size in 'image', got 5×5 and 8×8 (row 1): set the image size to resize to"),
        (_text, "", "notes.png, got something else: restore or remove it"),
        (_loose, "", "one folder of images a class in"),
        (pictures, "", "the network to run on inputs (3, 8, 8) of train"),
        (pictures, "mean = [0.5, 0.5]\nstd = [1.0, 1.0]", "a mean and a std for each channel, got 2 for images of 3"),
        (pictures, "mean = [0.5, 0.5, 0.5]", "a mean and a std above 0 for each channel, got mean"),
        (pictures, "mean = [nan, 0.5, 0.5]", "data.image.mean in line 18 of expunge.toml to be right, got nan"),
        (pictures, "size = [999999, 8]", "got 999999 (should be less than or equal to 16384)"),
    ],
)
def test_images_that_do_not_go_together(make: Callable[[Path], Any], image: str, text: str, fresh: Copy) -> None:
    place = fresh(FOLDER)
    make(place / "pics")
    file = place / "expunge.toml"
    file.write_text(f"{file.read_text()}\n[data.image]\n{image}\n")
    assert text in refused(place, "prepare")
