import datetime
import decimal
import io
import json
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from torch.nn import functional as F

from expunge import tables
from expunge.errors import CorruptArtefact, UserError
from expunge.runtime import peak_memory
from expunge.tables import Columns, Image, class_names, hashed_words, to_data

SHARED = Path(os.environ.get("EXPUNGE_DATA") or Path(__file__).parents[2] / "shared" / "data")


def png(array, kind="PNG"):
    out = io.BytesIO()
    Pillow.fromarray(np.asarray(array, dtype=np.uint8)).save(out, kind)
    return out.getvalue()


def pixels(n, height=4, width=5, channels=3, seed=0):
    shape = (n, height, width, channels) if channels == 3 else (n, height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pictures(arrays, labels=None, names=("cat", "dog"), **more):
    """Return a table with Image and ClassLabel features, as they come from the Hub."""
    labels = [i % len(names) for i in range(len(arrays))] if labels is None else labels
    kinds = {"img": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
    rows = {"img": [{"bytes": png(a), "path": None} for a in arrays], "label": labels}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).add_column("n", list(range(len(arrays))))


def table(**columns):
    return tables.read.wrapped(pa.table(columns), "a table")


IMG = Columns(inputs=("img",), target="label")
ROWS = Columns(inputs=("x",), target="y")


# Images.


def test_images_stay_bytes_and_become_floats_by_the_batch():
    arrays = pixels(7)
    data = to_data(pictures(arrays), IMG, name="some")
    assert data.source.x.dtype == torch.uint8
    assert data.source.x.shape == (7, 3, 4, 5)
    batch = data.read([6, 2])
    assert torch.equal(batch.inputs, torch.tensor(arrays[[6, 2]]).permute(0, 3, 1, 2).float() / 255)
    assert batch.target.tolist() == [0, 0]
    assert batch.target.dtype == torch.int64
    assert data.ids == [f"some/{i}" for i in range(7)]
    assert data.column("label").tolist() == ["cat", "dog"] * 3 + ["cat"]


def test_images_are_normalised_then_resized():
    arrays = pixels(3)
    image = Image(size=(8, 9), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    found = to_data(pictures(arrays), replace(IMG, image=image)).read([0, 1, 2]).inputs
    x = torch.tensor(arrays).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor(image.mean).view(1, 3, 1, 1)) / torch.tensor(image.std).view(1, 3, 1, 1)
    assert torch.allclose(found, F.interpolate(x, size=(8, 9), mode="bilinear"), atol=1e-6)


def test_a_transform_treats_samples_one_by_one():
    data = to_data(pictures(pixels(5)), replace(IMG, image=Image(size=(2, 3), mean=(0.5,) * 3, std=(0.2,) * 3)))
    whole = data.read(range(5)).inputs
    assert torch.allclose(whole, torch.cat([data.read([i]).inputs for i in range(5)]), atol=1e-6)


@pytest.mark.parametrize(("own", "channels", "expected"), [(3, 1, 1), (1, 3, 3), (1, None, 1), (3, None, 3)])
def test_channels(own, channels, expected):
    arrays = pixels(2, channels=own)
    found = to_data(pictures(arrays), replace(IMG, image=Image(channels=channels))).source.x
    assert found.shape == (2, expected, 4, 5)
    if own == 1:
        assert torch.equal(found, torch.tensor(arrays).unsqueeze(1).expand(-1, expected, -1, -1))


def test_images_of_several_sizes_are_resized_to_one_or_refused():
    arrays = [pixels(1)[0], pixels(1, 6, 7)[0], pixels(1)[0]]
    with pytest.raises(UserError, match=r"images of one size in 'img', got 4×5 and 6×7 \(row 1\): set the image size"):
        to_data(pictures(arrays), IMG)
    found = to_data(pictures(arrays), replace(IMG, image=Image(size=(4, 5)))).source.x
    assert torch.equal(found[0], torch.tensor(arrays[0]).permute(2, 0, 1))
    small = np.array(Pillow.fromarray(arrays[1]).resize((5, 4), Pillow.Resampling.BILINEAR))
    assert torch.equal(found[1], torch.tensor(small).permute(2, 0, 1))


def test_bytes_without_a_feature_are_images_too():
    arrays = pixels(2)
    raw = [png(a) for a in arrays]
    plain = table(img=raw, label=[0, 1])
    struct = table(img=pa.array([{"bytes": b, "path": None} for b in raw]), label=[0, 1])
    for found in (plain, struct):
        assert torch.equal(to_data(found, IMG).source.x, torch.tensor(arrays).permute(0, 3, 1, 2))


def test_kinds_of_columns():
    found = table(img=[png(pixels(1)[0])], t=["a"], n=[1])
    assert [tables.is_image(found, c) for c in ("img", "t", "n")] == [True, False, False]
    assert [tables.is_text(found, c) for c in ("img", "t", "n")] == [False, True, False]
    assert tables.is_image(pictures(pixels(1)), "img")


def test_orientation_is_undone():
    array = pixels(1)[0]
    exif, out = Pillow.Exif(), io.BytesIO()
    exif[0x0112] = 3  # turned by 180°
    Pillow.fromarray(array).save(out, "PNG", exif=exif)
    found = to_data(table(img=[out.getvalue()], label=[0]), IMG).source.x[0]
    assert torch.equal(found, torch.tensor(array[::-1, ::-1].copy()).permute(2, 0, 1))


def deep(value=np.uint16):
    out = io.BytesIO()
    Pillow.fromarray(np.full((4, 5), 700, dtype=value)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("cells", "image", "said"),
    [
        ([b"\x89PNG\r\n\x1a\nnothing"], Image(), "an image in row 0 of 'img'"),
        ([png(pixels(1)[0]), b"no image"], Image(), "an image in row 1 of 'img', got something else: restore or"),
        ([png(pixels(1)[0])[:60]], Image(), "an image in row 0 of 'img', got"),
        ([png(pixels(1)[0]), None], Image(), "an image in every row of 'img', got none in row 1: fill it in"),
        (
            [png(pixels(1)[0]), png(pixels(1, channels=1)[0])],
            Image(),
            "one number of channels in 'img', got 1 in row 1",
        ),
        ([deep()], Image(), "images of 8 bits a channel in 'img', got mode I;16 in row 0: convert them first"),
        (
            [png(pixels(1)[0])],
            Image(mean=(0.5,), std=(0.5,)),
            "a mean and a std for each channel, got 1 for images of 3",
        ),
    ],
)
def test_what_is_no_image(cells, image, said):
    with pytest.raises(UserError, match=re.escape(said)):
        to_data(table(img=pa.array(cells, type=pa.binary())), Columns(inputs=("img",), image=image))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"channels": 4}, "1 or 3 image channels, got 4"),
        ({"mean": (0.5,)}, r"a mean and a std above 0 for each channel, got mean \[0.5\], std \[\]"),
        ({"mean": (0.5,), "std": (0.0,)}, "a std above 0"),
        ({"size": (0, 3)}, r"an image size \(height, width\), got \(0, 3\)"),
    ],
)
def test_image_settings_are_checked(fields, said):
    with pytest.raises(UserError, match=said):
        Image(**fields)


def test_memory_of_images_is_that_of_their_bytes():
    arrays = pixels(4000, 32, 32)
    found = pictures(arrays)
    with peak_memory("cpu") as peak:
        data = to_data(found, IMG)
    assert data.source.x.nbytes == 4000 * 3072
    assert peak[0] < 3 * 4000 * 3072  # as floats they alone would be four times their bytes


# Texts.


def test_hashed_words_are_hashes_of_lower_case_words():
    words = hashed_words(5, 100)
    found = words(["The cat, the CAT!", "", "a b c d e f g", "ÄPFEL äpfel"])
    ids, mask = found["input_ids"], found["attention_mask"]
    assert ids.shape == mask.shape == (4, 5)
    assert ids.dtype == mask.dtype == torch.int64
    assert ids[:, 0].tolist() == [1] * 4
    assert ids[0, 1] == ids[0, 3]
    assert ids[0, 2] == ids[0, 4]
    assert ids[0, 1] != ids[0, 2]
    assert ids[3, 1] == ids[3, 2]
    assert mask.sum(dim=1).tolist() == [5, 1, 5, 3]
    assert torch.equal(mask, (ids != 0).long())
    assert hashed_words(4, 8192)(["model"])["input_ids"].tolist() == [[1, 2472, 0, 0]]  # the same on every machine


@given(st.lists(st.text(max_size=40), min_size=1, max_size=5), st.integers(2, 9), st.integers(3, 50))
def test_hashed_words_stay_in_the_vocabulary_and_forget_other_texts(texts, length, vocabulary):
    words = hashed_words(length, vocabulary)
    found = words(texts)["input_ids"]
    assert found.shape == (len(texts), length)
    assert 0 <= int(found.min()) <= int(found.max()) < vocabulary
    assert torch.equal(found, torch.cat([words([t])["input_ids"] for t in texts]))


def test_the_words_of_a_pair_stand_one_text_after_the_other():
    words = hashed_words(4, 100)
    found = words(["a b", "c"], ["d", "e f g h i"])
    assert {k: tuple(v.shape) for k, v in found.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), (2, 8)
    )
    for at, texts in ((slice(0, 4), ["a b", "c"]), (slice(4, 8), ["d", "e f g h i"])):
        alone = words(texts)
        assert all(torch.equal(found[k][:, at], v) for k, v in alone.items())
    assert found["token_type_ids"].tolist() == [[0] * 4 + [1] * 4] * 2
    data = to_data(
        table(x=["a b", "c"], z=["d", "e"], y=["no", "yes"]), replace(ROWS, inputs=("x", "z"), text=hashed_words(4, 50))
    )
    assert data.read([0, 1]).inputs["input_ids"].shape == (2, 8)


@pytest.mark.parametrize(("length", "vocabulary"), [(1, 100), (8, 2)])
def test_hashed_words_want_room(length, vocabulary):
    with pytest.raises(UserError, match=f"length {length}, vocabulary {vocabulary}: raise them"):
        hashed_words(length, vocabulary)


def test_a_text_column_becomes_a_dict():
    data = to_data(table(x=["a b", "c"], y=["no", "yes"]), replace(ROWS, text=hashed_words(4, 50)))
    assert set(data.read([0]).inputs) == {"input_ids", "attention_mask"}
    assert data.targets().tolist() == [0, 1]
    assert data.column("y").tolist() == ["no", "yes"]


def one_row(values):
    return {"input_ids": torch.zeros(1, 3)}


def nothing(values):
    return {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "a way to turn the texts of 'x' into numbers, got none: set a tokeniser"),
        (one_row, "tensors of 2 rows from Columns.text, got input_ids (1, 3)"),
        (nothing, "tensors of 2 rows from Columns.text, got nothing"),
    ],
)
def test_a_tokeniser_is_asked_for_and_checked(text, said):
    with pytest.raises(UserError, match=re.escape(said)):
        to_data(table(x=["a", "b"], y=[0, 1]), replace(ROWS, text=text))


# Numbers and lists.


def test_numbers_are_stacked_in_the_order_given():
    rows = table(a=[1, 2], b=[0.5, -1.5], c=[True, False], d=[decimal.Decimal("1.25"), decimal.Decimal("2.50")])
    found = to_data(rows, Columns(inputs=("b", "c", "a", "d"))).read([0, 1])
    assert found.inputs.tolist() == [[0.5, 1, 1, 1.25], [-1.5, 0, 2, 2.5]]
    assert found.inputs.dtype == torch.float32
    assert found.target is None


def test_lists_become_tensors():
    rows = table(ids=[[1, 2, 3], [4, 5, 6]], mask=[[1, 1, 0], [1, 1, 1]], grid=[[[0.5], [1.5]], [[2.5], [3.5]]])
    both = to_data(rows, Columns(inputs=("ids", "mask"))).read([1]).inputs
    assert {k: v.tolist() for k, v in both.items()} == {"ids": [[4, 5, 6]], "mask": [[1, 1, 1]]}
    assert both["ids"].dtype == torch.int64
    one = to_data(rows, Columns(inputs=("grid",))).read([0, 1]).inputs
    assert one.shape == (2, 2, 1)
    assert one.dtype == torch.float32
    assert one.flatten().tolist() == [0.5, 1.5, 2.5, 3.5]


def test_arrays_of_the_datasets_library():
    features = datasets.Features({"x": datasets.Array2D(shape=(2, 2), dtype="float32")})
    rows = datasets.Dataset.from_dict({"x": [[[1, 2], [3, 4]]] * 3}, features=features)
    assert to_data(rows, Columns(inputs=("x",))).read([2]).inputs.tolist() == [[[1, 2], [3, 4]]]


def test_a_shuffled_table_is_read_in_its_order():
    rows = pictures(pixels(6)).select([4, 0, 3])
    data = to_data(rows, replace(IMG, id="n"))
    assert data.ids == ["4", "0", "3"]
    assert torch.equal(data.source.x, torch.tensor(pixels(6)[[4, 0, 3]]).permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("columns", "inputs", "said"),
    [
        ({"x": [1.0, None], "y": [0, 1]}, ("x",), "a value in every row of the column 'x', got none in row 1: fill"),
        ({"x": [1.0, float("nan"), float("nan")], "y": [0] * 3}, ("x",), "column 'x', got none in rows 1, 2"),
        ({"x": [1.0, float("inf")], "y": [0, 1]}, ("x",), "finite numbers in 'x', got others in row 1"),
        ({"x": [1, 2], "t": ["a", "b"], "y": [0, 1]}, ("x", "t"), "got a number in 'x', a text in 't': encode texts"),
        ({"x": ["1", "2"], "t": ["a", "b"], "y": [0, 1]}, ("x", "t"), "texts of 'x', 't' into numbers, got none"),
        (dict.fromkeys("xtz", ["a", "b"]) | {"y": [0, 1]}, ("x", "t", "z"), "one image, one text or two, numbers"),
        ({"x": [[1], [1, 2]], "y": [0, 1]}, ("x",), "lists of one length in 'x', got lengths 1, 2: pad or cut"),
        ({"x": [["a"], ["b"]], "y": [0, 1]}, ("x",), "lists of numbers in 'x', got lists of string"),
        ({"x": [[1], [None]], "y": [0, 1]}, ("x",), "lists of numbers in 'x', got missing values in them"),
        ({"x": [datetime.date(2024, 1, 2)] * 2, "y": [0, 1]}, ("x",), "images, texts or numbers in 'x', got date32"),
        ({"x": [1, 2], "y": [0, 1]}, ("y",), "inputs without the target, got 'y' as both"),
        ({"x": [1, 2], "y": [0, 1]}, (), "at least one input column, got none: choose from x, y"),
        ({"xy": [1, 2], "y": [0, 1]}, ("xz",), "a column of train, got 'xz': did you mean 'xy'"),
        (
            {"x": pa.array([], pa.int64()), "y": pa.array([], pa.int64())},
            ("x",),
            "samples in train, got an empty table",
        ),
    ],
)
def test_inputs_that_cannot_be_used(columns, inputs, said):
    with pytest.raises(UserError, match=re.escape(said)):
        to_data(table(**columns), replace(ROWS, inputs=inputs))


# Targets, ids, columns.


def test_names_of_classes_are_settled_on_the_training_table():
    train, test = table(x=[1, 2, 3], y=["b", "c", "a"]), table(x=[1, 2], y=["c", "b"])
    names = class_names(train, ROWS)
    assert names == ("a", "b", "c")
    assert to_data(train, ROWS).targets().tolist() == [1, 2, 0]
    assert to_data(test, replace(ROWS, classes=names)).targets().tolist() == [2, 1]
    assert class_names(test, replace(ROWS, classes=names)) == names


def test_declared_classes_in_another_order_are_looked_up_by_name():
    train, test = pictures(pixels(4), names=("cat", "dog", "eel")), pictures(pixels(4), names=("dog", "cat"))
    columns = replace(IMG, classes=class_names(train, IMG))
    assert columns.classes == ("cat", "dog", "eel")
    assert to_data(test, columns).targets().tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(("y", "names"), [([0, 2, 1], ("0", "1", "2")), ([True, False, True], ("0", "1"))])
def test_numbers_are_class_indices(y, names):
    rows = table(x=[1, 2, 3], y=y)
    data = to_data(rows, ROWS)
    assert data.targets().tolist() == [int(v) for v in y]
    assert data.targets().dtype == torch.int64
    assert data.columns == {}
    assert class_names(rows, ROWS) == names


@pytest.mark.parametrize(
    ("y", "classes", "said"),
    [
        (
            [1.5, 2.0],
            (),
            "classes as integers or names, got double in 'y': convert them to integers (3.0 to 3), or set",
        ),
        ([1.0, 3.0], (), "classes as integers or names, got double in 'y': convert them to integers (3.0 to 3)"),
        ([0, -1], (), "classes of 0 or more in 'y', got class -1 in row 1"),
        ([0, 2], ("a", "b"), "classes 0 to 1 in 'y', got class 2 in row 1"),
        ([0, None], (), "a value in every row of the column 'y', got none in row 1"),
        (["a", None], (), "a value in every row of the column 'y', got none in row 1"),
        (["cat", "dgo"], ("cat", "dog"), "known classes in 'y', got 'dgo': did you mean 'dog'"),
        ([[1], [2]], (), "classes as integers or names, got list"),
    ],
)
def test_class_targets_that_cannot_be_used(y, classes, said):
    with pytest.raises(UserError, match=re.escape(said)):
        to_data(table(x=[1, 2], y=y), replace(ROWS, classes=classes))


def test_unlabelled_samples_of_a_labelled_table_are_refused():
    with pytest.raises(UserError, match="classes 0 to 1 in 'label', got class -1 in row 2"):
        to_data(pictures(pixels(3), labels=[0, 1, -1]), IMG)


def test_real_targets():
    assert to_data(table(x=[1, 2], y=[3, 4]), replace(ROWS, real=True)).targets().tolist() == [[3.0], [4.0]]
    several = to_data(table(x=[1, 2], y=[[1, 2], [3, 4]]), replace(ROWS, real=True)).targets()
    assert several.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert several.dtype == torch.float32
    with pytest.raises(UserError, match="numbers as targets in 'y', got string: set the task to classification"):
        to_data(table(x=[1, 2], y=["a", "b"]), replace(ROWS, real=True))
    with pytest.raises(UserError, match="numbers as targets in 'label', got names of classes"):
        to_data(pictures(pixels(2)), replace(IMG, real=True))
    with pytest.raises(UserError, match="a column of classes, got real targets"):
        class_names(table(x=[1], y=[2]), replace(ROWS, real=True))
    with pytest.raises(UserError, match="a column of classes, got no target"):
        class_names(table(x=[1], y=[2]), replace(ROWS, target=None))


@given(st.lists(st.tuples(st.text(max_size=8), st.sampled_from("abc")), min_size=1, unique_by=lambda r: r[0]))
def test_ids_and_labels_go_round(rows):
    ids, labels = [i for i, _ in rows], [y for _, y in rows]
    data = to_data(table(x=list(range(len(rows))), y=labels, key=ids), replace(ROWS, id="key"))
    assert data.ids == ids
    names = sorted(set(labels))
    assert [names[t] for t in data.targets()] == labels
    assert data.subset(ids[-1:]).read([0]).inputs.tolist() == [[len(rows) - 1]]


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (["a", "a"], "unique ids of train, got a more than once"),
        ([1, 1], "unique ids of train, got 1 more than once"),
        (["a", None], "a value in every row of the column 'key', got none in row 1"),
        ([1.0, 2.0], "ids that are whole numbers or texts, got double in 'key': name another column"),
    ],
)
def test_ids_that_cannot_be_used(ids, said):
    with pytest.raises(UserError, match=re.escape(said)):
        to_data(table(x=[1, 2], y=[0, 1], key=ids), replace(ROWS, id="key"))


def test_kept_columns_are_plain_values():
    at = datetime.datetime(2024, 3, 1, 12, 30)
    columns = {"who": ["ann", None], "day": [at.date(), None], "at": [at, at], "vip": [True, False]}
    columns |= {"age": [3.5, float("nan")], "price": [decimal.Decimal("1.10")] * 2}
    data = to_data(table(x=[1, 2], y=[0, 1], **columns), replace(ROWS, keep=tuple(columns)))
    found = {k: v.tolist() for k, v in data.columns.items()}
    assert found == {
        "who": ["ann", None],
        "day": ["2024-03-01", None],
        "at": ["2024-03-01T12:30:00"] * 2,
        "vip": [True, False],
        "age": [3.5, None],
        "price": ["1.10"] * 2,
    }
    json.dumps(found, allow_nan=False)
    assert to_data(pictures(pixels(3)), Columns(inputs=("img",), keep=("label",))).column("label")[1] == "dog"
    with pytest.raises(UserError, match="one number, text or date a row in 'x', got list"):
        to_data(table(x=[[1], [2]], y=[0, 1]), replace(ROWS, keep=("x",)))


@pytest.mark.parametrize(
    ("feature", "values", "said"),
    [
        ({"_type": "Image"}, [1.0, 2.0], "classes as integers or names, got double in 'y'"),
        ({"_type": "ClassLabel", "names": ["a"]}, [1.0, 2.0], "classes as integers or names, got double in 'y'"),
        ({"_type": "ClassLabel", "names": ["a"]}, [0, 1], "classes 0 to 0 in 'y', got class 1 in row 1"),
    ],
)
def test_a_schema_that_lies_about_its_columns(feature, values, said):
    rows = pa.table({"x": [1, 2], "y": values})
    meta = {"info": {"features": {"x": {"dtype": "int64", "_type": "Value"}, "y": feature}}}
    found = tables.read.wrapped(rows.replace_schema_metadata({"huggingface": json.dumps(meta)}), "a table")
    with pytest.raises(UserError, match=re.escape(said)):
        to_data(found, ROWS)
    if values == [0, 1]:
        with pytest.raises(UserError, match=re.escape(said)):
            to_data(found, Columns(inputs=("x",), keep=("y",)))


def test_sources_can_be_sent_to_other_processes():
    for data in (
        to_data(pictures(pixels(3)), replace(IMG, image=Image(size=(2, 2)))),
        to_data(table(x=["a", "b"], y=[0, 1]), replace(ROWS, text=hashed_words(3, 9))),
    ):
        again = pickle.loads(pickle.dumps(data))
        first, second = (d.read([1]).inputs for d in (data, again))
        assert str(first) == str(second)
    assert pickle.loads(pickle.dumps(hashed_words(3, 9))) == hashed_words(3, 9)


# Files.


def test_parquet_files_are_one_table_with_its_features(tmp_path):
    whole = pictures(pixels(5))
    for name, part in (("a.parquet", whole.select(range(2))), ("b.parquet", whole.select(range(2, 5)))):
        part.to_parquet(tmp_path / name)
    for paths in ([tmp_path / "a.parquet", tmp_path / "b.parquet"], [tmp_path]):
        found = tables.read_parquet(paths)
        assert isinstance(found.features["img"], datasets.Image)
        assert found.features["label"].names == ["cat", "dog"]
        assert to_data(found, replace(IMG, id="n")).ids == ["0", "1", "2", "3", "4"]
        assert found.cache_files == []


def test_categories_of_pandas_are_texts(tmp_path):
    pq.write_table(pa.table({"x": [1, 2], "y": pa.array(["b", "a"]).dictionary_encode()}), tmp_path / "a.parquet")
    assert to_data(tables.read_parquet([tmp_path / "a.parquet"]), ROWS).targets().tolist() == [1, 0]


def broken_schema(path):
    meta = {"info": {"features": {"x": {"_type": "Nonsense"}}}}
    pq.write_table(pa.table({"x": [1]}).replace_schema_metadata({"huggingface": json.dumps(meta)}), path)


def bad_json(path):
    pq.write_table(pa.table({"x": [1]}).replace_schema_metadata({"huggingface": "{"}), path)


def cut(path):
    pq.write_table(pa.table({"x": list(range(1000))}), path)
    path.write_bytes(path.read_bytes()[:-100])


def twice(path):
    pq.write_table(pa.table([[1], [2]], names=["x", "x"]), path)


@pytest.mark.parametrize(
    ("write", "kind", "said"),
    [
        (lambda p: None, UserError, "a file {path}, got nothing there: check the path"),
        (lambda p: p.write_text("id,x\n1,2\n"), CorruptArtefact, "an intact parquet file {path}, got"),
        (lambda p: p.write_bytes(b""), CorruptArtefact, "an intact parquet file {path}, got"),
        (cut, CorruptArtefact, "an intact parquet file {path}, got"),
        (Path.mkdir, UserError, ".parquet files in {path}, got none there: name the folder or file that holds them"),
        (broken_schema, CorruptArtefact, "a schema that fits its columns in {path}, got"),
        (bad_json, CorruptArtefact, "a schema that fits its columns in {path}, got"),
        (twice, UserError, "columns of different names in {path}, got x more than once"),
    ],
)
def test_parquet_that_cannot_be_read(tmp_path, write, kind, said):
    path = tmp_path / "a.parquet"
    write(path)
    with pytest.raises(kind, match=re.escape(said.format(path=path))):
        tables.read_parquet([path])


def test_files_of_different_columns_are_refused(tmp_path):
    for name, columns in {"a": {"x": [1]}, "b": {"z": [1]}, "c": {"x": ["1"]}}.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    for other, column in (("b", "z"), ("c", "x")):
        said = f"the columns of {tmp_path}/a.parquet in every file, got others in {tmp_path}/{other}.parquet ({column})"
        with pytest.raises(UserError, match=re.escape(said)):
            tables.read_parquet([tmp_path / "a.parquet", tmp_path / f"{other}.parquet"])
    with pytest.raises(UserError, match=r"at least one \.parquet file, got none"):
        tables.read_parquet([])


def test_csv_columns_are_typed_by_all_their_cells(tmp_path):
    (tmp_path / "a.csv").write_text(
        "\ufeffid,code,n,r,flag,day,text,phone,big,empty,note\n"
        '1,007,5,1.5,true,2024-01-02,"a, ""b""\nc",+491,12345678901234567890,,NA\n'
        "2,010,NA,-2e-1,FALSE,2024-01-03,,+492,12345678901234567891,,Null\n",
        encoding="utf-8",
    )
    (tmp_path / "b.csv").write_text("id,code,n,r,flag,day,text,phone,big,empty,note\n3,x,7,,True,d,e,f,1,,NA\n")
    found = tables.read_csv([tmp_path / "a.csv", tmp_path / "b.csv"])
    kinds = {k: v.dtype for k, v in found.features.items()}
    assert kinds == {
        **dict.fromkeys(("code", "day", "text", "phone", "big", "empty", "note"), "string"),
        **{"id": "int64", "n": "int64", "r": "float64", "flag": "bool"},
    }
    assert found["code"][:] == ["007", "010", "x"]
    assert found["n"][:] == [5, None, 7]
    assert found["r"][:] == [1.5, -0.2, None]
    assert found["flag"][:] == [True, False, True]
    assert found["text"][:] == ['a, "b"\nc', None, "e"]
    assert found["big"][0] == "12345678901234567890"
    assert found["note"][:] == ["NA", "Null", "NA"]  # among texts they are words
    assert found["empty"][:] == [None] * 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a,b\n1,2\n3\n", "an intact CSV file {path}, got CSV parse error: Expected 2 columns, got 1"),
        (b"a,b\n1,2\n3,4,5\n", "an intact CSV file {path}, got CSV parse error: Expected 2 columns, got 3"),
        (b"", "an intact CSV file {path}, got Empty CSV file"),
        (b"a,b\n\xff\xfe,2\n", "an intact CSV file {path}, got"),
        (b"\xff\xfea,b\n", "an intact CSV file {path}, got"),
        (b"a,a\n1,2\n", "columns of different names in {path}, got a more than once"),
    ],
)
def test_csv_that_cannot_be_read(tmp_path, content, said):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(said.format(path=path))):
        tables.read_csv([path])


def test_a_csv_of_a_header_alone_has_no_samples(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n")
    with pytest.raises(UserError, match="samples in train, got an empty table"):
        to_data(tables.read_csv([tmp_path / "a.csv"]), ROWS)


@given(
    st.lists(
        st.tuples(
            st.integers(-(2**62), 2**62),
            st.text(st.characters(codec="utf-8", exclude_characters="\r\n\x00"), min_size=1),
        ),
        min_size=1,
    )
)
def test_csv_goes_round(rows):
    import csv
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_NONNUMERIC).writerows([("n", "t"), *((n, "_" + t) for n, t in rows)])
        found = tables.read_csv([path])
    assert found["n"][:] == [n for n, _ in rows]
    assert found["t"][:] == ["_" + t for _, t in rows]


def image_folder(root, classes):
    arrays = {}
    for name, files in classes.items():
        (root / name).mkdir(parents=True)
        for seed, file in enumerate(files):
            arrays[f"{name}/{file}"] = pixels(1, seed=seed)[0]
            (root / name / file).write_bytes(png(arrays[f"{name}/{file}"]))
    return arrays


def test_a_folder_of_images(tmp_path):
    arrays = image_folder(tmp_path, {"dog": ["b.png", "a.PNG"], "cat": ["c.png"]})
    (tmp_path / "dog" / ".DS_Store").write_text("x")
    (tmp_path / "Thumbs.db").write_text("x")
    found = tables.read_images(tmp_path)
    assert found.features["label"].names == ["cat", "dog"]
    assert found["file"][:] == ["cat/c.png", "dog/a.PNG", "dog/b.png"]
    data = to_data(found, Columns(inputs=("image",), target="label", id="file"))
    assert data.ids == found["file"][:]
    assert data.targets().tolist() == [0, 1, 1]
    for at, name in enumerate(data.ids):
        assert torch.equal(data.source.x[at], torch.tensor(arrays[name]).permute(2, 0, 1))


def no_folder(root):
    root.rmdir()


def a_file(root):
    root.rmdir()
    root.write_text("x")


def loose(root):
    image_folder(root, {"cat": ["a.png"]})
    (root / "b.png").write_bytes(b"x")


def foreign(root):
    image_folder(root, {"cat": ["a.png"]})
    (root / "cat" / "notes.txt").write_text("x")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (no_folder, "a folder of images {root}, got nothing there: check the path"),
        (a_file, "a folder of images {root}, got a file: check the path"),
        (lambda root: None, "one folder of images a class in {root}, got none: put each image in its class's folder"),
        (loose, "one folder of images a class in {root}, got the file b.png"),
        (lambda root: image_folder(root, {"cat": ["a.png"], "dog": []}), "images in {root}/dog, got none: add some"),
        (foreign, "only images in {root}/cat, got notes.txt: move that file elsewhere"),
    ],
)
def test_a_folder_that_cannot_be_used(tmp_path, make, said):
    root = tmp_path / "images"
    root.mkdir()
    make(root)
    with pytest.raises(UserError, match=re.escape(said.format(root=root))):
        tables.read_images(root)


def test_a_file_that_is_no_image_is_named(tmp_path):
    image_folder(tmp_path, {"cat": ["a.png"]})
    (tmp_path / "cat" / "b.png").write_text("not an image")
    with pytest.raises(CorruptArtefact, match=re.escape(f"an image in {tmp_path}/cat/b.png, got something else")):
        to_data(tables.read_images(tmp_path), Columns(inputs=("image",), target="label"))


def test_the_hub_and_what_is_said_without_it(monkeypatch):
    asked = []

    def stored(name, config, split):
        asked.append((name, config, split))
        return pictures(pixels(2))

    monkeypatch.setattr(datasets, "load_dataset", stored)
    assert len(tables.read_hub("some/name", "train", "small")) == 2
    assert asked == [("some/name", "small", "train")]

    def unreachable(name, config, split):
        raise ConnectionError("Couldn't reach 'some/name' on the Hub (LocalEntryNotFoundError)\nmore")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    said = "the data set some/name (train) from the Hugging Face Hub, got Couldn't reach 'some/name' on the Hub"
    with pytest.raises(UserError, match=re.escape(said)) as found:
        tables.read_hub("some/name", "train")
    assert "--data-dir or EXPUNGE_DATA" in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.skipif(
    not (SHARED / "ett" / "ETTh1.csv").is_file(), reason="no ETTh1.csv in EXPUNGE_DATA or ../shared/data"
)
def test_a_real_csv():
    found = tables.read_csv([SHARED / "ett" / "ETTh1.csv"])
    data = to_data(found, Columns(inputs=("HUFL", "HULL"), target="OT", id="date", real=True))
    assert len(data) == 17420
    assert data.ids[0] == "2016-07-01 00:00:00"
    assert data.read([0]).inputs[0].tolist() == pytest.approx([5.827, 2.009], abs=1e-6)
    assert float(data.targets()[0]) == pytest.approx(30.531, abs=1e-5)


def test_whole_numbers_beyond_a_floats_digits_are_rounded_and_classes_beyond_int64_refused():
    long = [2**53 + 1, 2**63 + 2**40]
    data = to_data(table(a=pa.array(long, type=pa.uint64())), Columns(inputs=("a",)))
    assert data.read([0, 1]).inputs.tolist() == [[float(np.float32(v))] for v in long]
    classes = table(a=[1.0, 2.0], y=pa.array([1, 2**63 + 1], type=pa.uint64()))
    with pytest.raises(UserError, match="classes of 0 or more in 'y'"):
        to_data(classes, Columns(inputs=("a",), target="y"))


@pytest.mark.parametrize("rest", [4, 40])
def test_too_many_images_to_keep_whole_are_resized_as_they_are_read(monkeypatch, rest):
    rows = [png(pixels(1, 40, 40)[0]), *(png(pixels(1, rest, rest, seed=i)[0]) for i in range(1, 4))]
    made = table(img=pa.array(rows, type=pa.binary()))
    columns = Columns(inputs=("img",), image=Image(size=(4, 4)))
    whole = to_data(made, columns).read(range(4)).inputs
    monkeypatch.setattr(tables.images, "_ROOM", 1000)
    data = to_data(made, columns)
    assert data.source.x.shape == (4, 3, 4, 4)
    assert torch.allclose(data.read(range(4)).inputs, whole, atol=1.01 / 255)


def test_images_that_memory_cannot_hold_are_refused():
    rows = [png(pixels(1, 3000, 4000)[0], "JPEG"), *[b""] * 200_000]
    with pytest.raises(UserError, match=r"memory for 200,001 images of 3000×4000 in 'img' .*set a smaller image size"):
        to_data(table(img=pa.array(rows, type=pa.binary())), Columns(inputs=("img",)))


def test_pictures_in_hidden_folders_are_no_samples(tmp_path):
    for place in ("cat/a.png", "cat/.ipynb_checkpoints/a-checkpoint.png", "dog/in/b.png", "dog/.c.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(png(pixels(1)[0]))
    assert list(tables.read_images(tmp_path)["file"]) == ["cat/a.png", "dog/in/b.png"]


LABELS = Columns(inputs=("x",), target="y", labels=True)


@pytest.mark.parametrize("y", [[0, 1, 1], [0.0, 1.0, 1.0], [False, True, True]])
def test_labels_of_zero_and_one_are_whole_numbers(y):
    found = to_data(table(x=[1.0, 2.0, 3.0], y=y), LABELS).targets()
    assert found.dtype == torch.int64
    assert found.tolist() == [0, 1, 1]


def test_labels_may_be_the_names_of_two_classes():
    data = to_data(table(x=[1.0, 2.0], y=["yes", "no"]), LABELS)
    assert data.targets().tolist() == [1, 0]
    assert data.column("y").tolist() == ["yes", "no"]
    assert to_data(pictures(pixels(2)), replace(IMG, labels=True)).targets().tolist() == [0, 1]


def test_several_labels_stand_in_a_list_or_side_by_side():
    rows = table(x=[1.0, 2.0], a=[0, 1], b=[1.0, 0.0], both=[[0, 1], [1, 0]])
    for target in ("both", ("a", "b")):
        found = to_data(rows, replace(LABELS, target=target)).targets()
        assert found.dtype == torch.int64
        assert found.tolist() == [[0, 1], [1, 0]]
    assert to_data(rows, replace(LABELS, target=("b",))).targets().tolist() == [[1], [0]]


def test_several_real_targets_stand_side_by_side():
    rows = table(x=[1.0, 2.0], a=[0.5, 1.5], b=[[1.0, 2.0], [3.0, 4.0]])
    found = to_data(rows, Columns(inputs=("x",), target=("a", "b"), real=True)).targets()
    assert found.tolist() == [[0.5, 1.0, 2.0], [1.5, 3.0, 4.0]]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (LABELS, "labels 0 or 1 in 'y', got others in row 1, 2: correct or drop those rows"),
        (replace(LABELS, target=("y", "t")), "labels 0 or 1 in 'y'"),
        (replace(LABELS, target=("t",)), "labels 0 or 1 in 't', got string: encode them as 0 and 1 first"),
        (replace(LABELS, target=("y", "gone")), "a column of train, got 'gone'"),
        (replace(LABELS, target=("y", "x")), "inputs without the target, got 'x' as both"),
        (Columns(inputs=("x",), target=("y", "t")), "one column of classes, got 'y', 't': set kind in"),
    ],
)
def test_labels_that_cannot_be_used(columns, said):
    rows = table(x=[1.0, 2.0, 3.0], y=[0, 2, 3], t=["a", "b", "c"])
    with pytest.raises(UserError, match=re.escape(said)):
        to_data(rows, columns)


def test_several_labels_have_no_names_of_classes():
    with pytest.raises(UserError, match="a column of classes, got several: name one as target"):
        class_names(table(x=[1.0], a=[0], b=[1]), replace(LABELS, target=("a", "b")))
