import re

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from expunge.data import Data, id_hashes
from expunge.errors import UserError

KEY = b"key"
IDS = ["a", "b", "c", "d", "e"]


def arrays(**options):
    x = torch.arange(10.0, dtype=torch.float64).reshape(5, 2)
    return Data.from_arrays(x, torch.tensor([0, 1, 2, 0, 1]), **{"ids": IDS, **options})


class Listed:
    """A map-style dataset that is neither torch's nor a list."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def table(**columns):
    base = {"pixel_values": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "labels": [2, 0, 1], "key": [7, 8, 9]}
    return datasets.Dataset.from_dict({**base, "who": ["ann", "bo", "ann"], **columns})


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        (None, ["t/0", "t/1"]),
        ([3, 4], ["3", "4"]),
        (np.array([3, 4]), ["3", "4"]),
        (torch.tensor([3, 4]), ["3", "4"]),
        (iter("xy"), ["x", "y"]),
        ([1.5, None], ["1.5", "None"]),
    ],
)
def test_ids_are_kept_as_text(ids, kept):
    data = Data.from_arrays(torch.zeros(2, 1), ids=ids, name="t")
    assert data.ids == kept
    assert all(type(i) is str for i in data.ids)


@pytest.mark.parametrize("wanted", [[4, 3], np.array([4, 3]), torch.tensor([4, 3]), ["4", "3"]])
def test_ids_are_asked_for_in_any_of_their_forms(wanted):
    data = Data.from_arrays(torch.zeros(3, 1), ids=torch.tensor([3, 4, 5]))
    assert data.subset(wanted).ids == ["4", "3"]
    assert data.without(wanted).ids == ["5"]


def test_subset_keeps_the_order_asked_for_and_without_the_datas():
    data = arrays()
    some = data.subset(["d", "b"])
    assert some.ids == ["d", "b"]
    assert some.targets().tolist() == [0, 1]
    assert some.read([0, 1]).inputs.tolist() == [[6, 7], [2, 3]]
    assert data.without(["d", "b"]).ids == ["a", "c", "e"]
    assert some.subset(["b"]).read([0]).inputs.tolist() == [[2, 3]]
    assert data.subset(["e", "b", "a"]).without(["b"]).ids == ["e", "a"]
    assert len(data) == 5  # unchanged


@pytest.mark.parametrize("call", ["subset", "without"])
@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (["a", "z"], "Expected ids of train, got unknown z: take ids from data.ids."),
        (range(9), "got unknown 0, 1, 2, 3, 4 and 4 more"),
        (["a", "b", "a"], "Expected unique ids, got a more than once: name each sample once."),
    ],
)
def test_wrong_ids_are_named(call, ids, said):
    with pytest.raises(UserError, match=re.escape(said)):
        getattr(arrays(), call)(ids)


def test_an_id_that_was_left_out_is_unknown():
    with pytest.raises(UserError, match="unknown b"):
        arrays().without(["b"]).subset(["b"])


@given(st.permutations(IDS), st.integers(0, 5))
def test_subset_and_without_partition_the_data(order, cut):
    data, chosen = arrays(), order[:cut]
    part, rest = data.subset(chosen), data.without(chosen)
    assert part.ids == chosen
    assert rest.ids == [i for i in IDS if i not in chosen]
    rows = {i: data.read([n]).inputs.tolist() for n, i in enumerate(IDS)}
    assert {i: d.read([n]).inputs.tolist() for d in (part, rest) for n, i in enumerate(d.ids)} == rows
    whole = dict(zip(IDS, *[data.fingerprints(KEY, labelled=True)[1].tolist()], strict=True))
    assert dict(zip(part.ids, part.fingerprints(KEY, labelled=True)[1].tolist(), strict=True)).items() <= whole.items()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ids": ["a"]}, "Expected 5 ids for 5 samples, got 1"),
        ({"ids": ["a", "a", "b", "b", "c"]}, "unique ids of train, got a, b more than once"),
        ({"columns": {"who": [1]}}, "5 values in every column, got another number in who"),
        ({"weight": [1.0]}, r"weights of shape \(5,\), got \(1,\)"),
    ],
)
def test_lengths_must_agree(options, said):
    with pytest.raises(UserError, match=said):
        arrays(**options)


def test_inputs_and_targets_must_agree():
    with pytest.raises(UserError, match=r"one length, got lengths \[3, 2\]"):
        Data.from_arrays(torch.zeros(3, 1), [0, 1])
    with pytest.raises(UserError, match="one length"):
        Data.from_arrays({"a": torch.zeros(3), "b": torch.zeros(2)})
    with pytest.raises(UserError, match="numbers as targets, got values of type str"):
        Data.from_arrays(torch.zeros(2, 1), ["cat", "dog"])
    with pytest.raises(UserError, match="numbers as inputs 'text', got values of type str"):
        Data.from_arrays({"text": ["cat", "dog"]}, [0, 1])


@pytest.mark.parametrize("x", [np.ones((2, 3)), [[1, 1, 1], [1, 1, 1]], torch.ones(2, 3)])
def test_arrays_lists_and_tensors_are_alike(x):
    batch = Data.from_arrays(x, np.array([0, 1])).read([1])
    assert batch.inputs.tolist() == [[1, 1, 1]]
    assert batch.target.tolist() == [1]


def test_dict_inputs():
    data = Data.from_arrays({"a": torch.arange(3), "b": torch.ones(3, 2)}, [0, 1, 2])
    batch = data.subset(["train/2", "train/0"]).read([0, 1])
    assert batch.inputs["a"].tolist() == [2, 0]
    assert batch.inputs["b"].shape == (2, 2)
    assert batch.to("cpu").inputs["a"].tolist() == [2, 0]


@pytest.mark.parametrize(("size", "sizes"), [(2, [2, 2, 1]), (5, [5]), (9, [5]), (1, [1] * 5)])
def test_batches_cover_every_sample_once_the_last_unequal(size, sizes):
    found = list(arrays().batches(size))
    assert [len(b) for b in found] == sizes
    assert torch.cat([b.index for b in found]).tolist() == [0, 1, 2, 3, 4]
    assert torch.cat([b.target for b in found]).tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("order", [[4, 0, 2], torch.tensor([4, 0, 2]), np.array([4, 0, 2])])
def test_batches_follow_an_order_and_index_points_into_the_data(order):
    data = arrays().without(["b"])
    found = list(data.batches(2, [3, 0, 2]))
    assert [b.index.tolist() for b in found] == [[3, 0], [2]]
    assert [b.inputs[:, 0].tolist() for b in found] == [[8, 0], [6]]
    assert torch.cat([b.index for b in arrays().batches(2, order)]).tolist() == [4, 0, 2]


def test_a_transform_runs_on_batches_and_not_on_fingerprints():
    plain, doubled = arrays(), arrays(transform=lambda x: 2 * x)
    assert doubled.read([1]).inputs.tolist() == [[4, 6]]
    same = [d.fingerprints(KEY, labelled=True)[1] for d in (plain, doubled)]
    assert np.array_equal(*same)


def test_weights_follow_their_samples():
    data = arrays(weight=[1, 2, 3, 4, 5])
    assert data.subset(["d", "a"]).read([0, 1]).weight.tolist() == [4, 1]
    assert arrays().read([0]).weight is None


def test_columns_follow_their_samples():
    data = arrays(columns={"who": ["x", "y", "x", "z", "z"]})
    assert data.subset(["e", "b"]).column("who").tolist() == ["z", "y"]
    with pytest.raises(UserError, match="a column 'age' in train, got who: name one that exists"):
        data.column("age")
    with pytest.raises(UserError, match="got no columns"):
        arrays().column("age")


def test_watching_proves_which_samples_were_read():
    data = arrays()
    watched = data.watched()
    part = watched.subset(["d", "b"])
    assert watched.unread == IDS
    part.read([0])
    assert watched.unread == ["a", "b", "c", "e"]  # the record is shared with the whole
    assert part.unread == ["b"]
    list(watched.without(["b"]).batches(2))
    assert watched.unread == ["b"]
    assert watched.watched().unread == IDS  # a fresh record
    assert data.unread == IDS  # not watched: nothing is known


def test_what_needs_no_inputs_reads_none():
    watched = arrays(columns={"who": IDS}).watched()
    watched.targets(), watched.column("who"), watched.fingerprints(KEY, labelled=True), watched.labelled
    assert watched.unread == IDS


def test_unlabelled_data_shows_inputs_alone():
    data = arrays(columns={"who": IDS}, weight=torch.ones(5)).unlabelled()
    batch = data.subset(["b"]).read([0])
    assert batch.inputs.tolist() == [[2, 3]]
    assert batch.target is None
    assert batch.weight is None
    assert data.columns == {}
    assert not data.labelled
    with pytest.raises(UserError, match="labels in train, got none shown: declare LABELLED"):
        data.targets()


def test_ids_only_show_nothing_else():
    data = arrays().only_ids()
    assert data.without(["a"]).ids == IDS[1:]
    assert not data.labelled
    with pytest.raises(UserError, match="data with inputs in train, got ids only: declare INPUTS or LABELLED"):
        data.read([0])
    with pytest.raises(UserError, match="ids only"):
        next(data.batches(2))


def test_data_without_targets():
    data = Data.from_arrays(torch.zeros(2, 1))
    assert not data.labelled
    assert data.read([0]).target is None
    with pytest.raises(UserError, match="labels in train, got none: give targets when building the data"):
        data.targets()
    assert arrays().labelled
    assert not arrays().subset([]).labelled


def content(data, labelled=True, key=KEY):
    return data.fingerprints(key, labelled)[1].tolist()


def test_fingerprints_are_keyed_and_the_same_for_the_same():
    ids, whole = arrays().fingerprints(KEY, labelled=True)
    assert ids.tolist() == id_hashes(KEY, IDS).tolist()
    assert content(arrays()) == whole.tolist()
    assert len({*ids.tolist(), *whole.tolist()}) == 10
    other = arrays().fingerprints(b"other", labelled=True)
    assert not set(other[0].tolist()) & set(ids.tolist())
    assert not set(other[1].tolist()) & set(whole.tolist())


def test_fingerprints_feel_one_bit_of_one_sample():
    x = arrays().read(range(5)).inputs
    x[2, 1] = torch.nextafter(x[2, 1], torch.tensor(99.0, dtype=torch.float64))
    changed = Data.from_arrays(x, torch.tensor([0, 1, 2, 0, 1]), ids=IDS)
    assert [a == b for a, b in zip(content(arrays()), content(changed), strict=True)] == [True, True, False, True, True]


def test_fingerprints_feel_labels_only_when_labelled():
    other = Data.from_arrays(arrays().read(range(5)).inputs, torch.tensor([0, 1, 2, 0, 2]), ids=IDS)
    same = [a == b for a, b in zip(content(arrays()), content(other), strict=True)]
    assert same == [True, True, True, True, False]
    assert content(arrays(), labelled=False) == content(other, labelled=False)
    assert content(arrays(), labelled=False) == content(arrays().unlabelled(), labelled=False)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 4),
        torch.zeros(2, 4, dtype=torch.int32),
        torch.zeros(2, 2, 2, dtype=torch.float64),
        torch.zeros(2, 5),
        {"x": torch.zeros(2, 2), "z": torch.zeros(2, 2)},
        {"y": torch.zeros(2, 4)},
    ],
)
def test_fingerprints_tell_dtype_shape_and_names_apart(x):
    reference = content(Data.from_arrays(torch.zeros(2, 4, dtype=torch.float64), [0, 0]))
    assert not set(content(Data.from_arrays(x, [0, 0]))) & set(reference)


def test_fingerprints_keep_ids_names_and_values_apart():
    a = Data.from_arrays({"xy": torch.zeros(1)}, ids=["a"])
    b = Data.from_arrays({"y": torch.zeros(1)}, ids=["ax"])
    assert content(a) != content(b)


def test_fingerprints_do_not_depend_on_order_subset_or_chunks():
    x = torch.arange(600.0).reshape(300, 2)
    data = Data.from_arrays(x, torch.arange(300))
    whole = dict(zip(data.ids, content(data), strict=True))
    order = [f"train/{i}" for i in range(299, -1, -7)]
    assert content(data.subset(order)) == [whole[i] for i in order]
    strided = Data.from_arrays(torch.stack([x, x], dim=2)[:, :, 0], torch.arange(300))
    assert content(strided) == list(whole.values())


def test_the_same_content_under_another_id_is_another_fingerprint():
    assert not set(content(arrays())) & set(content(arrays(ids=["v", "w", "x", "y", "z"])))


@pytest.mark.parametrize(
    "dataset",
    [
        TensorDataset(torch.arange(6.0).reshape(3, 2), torch.tensor([1, 0, 1])),
        Listed([(np.array([0.0, 1.0]), 1), [torch.tensor([2.0, 3.0]), torch.tensor(0)], ([4.0, 5.0], 1)]),
    ],
)
def test_from_torch_pairs(dataset):
    data = Data.from_torch(dataset, ids=["a", "b", "c"], columns={"who": [1, 2, 3]}, weight=[1, 2, 3])
    batch = data.subset(["c", "a"]).read([0, 1])
    assert batch.inputs.tolist() == [[4, 5], [0, 1]]
    assert batch.target.tolist() == [1, 1]
    assert batch.weight.tolist() == [3, 1]
    assert data.targets().tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("key", "target"), [("labels", None), ("label", None), ("target", None), ("grade", "grade"), ("absent", None)]
)
def test_from_torch_dicts(key, target):
    dataset = Listed([{"a": torch.tensor([1.0]), key: 0}, {"a": torch.tensor([2.0]), key: 1}])
    batch = Data.from_torch(dataset, target=target).read([1, 0])
    assert batch.inputs["a"].tolist() == [[2], [1]]
    if key == "absent":
        assert batch.target is None
        assert batch.inputs["absent"].tolist() == [1, 0]
    else:
        assert batch.target.tolist() == [1, 0]
        assert list(batch.inputs) == ["a"]


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([(1, 2, 3)], r"yields \(x, y\) or a dict, got tuple of 3"),
        ([torch.zeros(2)], "got Tensor"),
        ([(torch.zeros(2), 0), (torch.zeros(3), 0)], "samples of one shape, got .*: pad or resize"),
        ([("text", 0)], "numbers as inputs, got values of type str"),
    ],
)
def test_from_torch_refuses_what_it_cannot_stack(items, said):
    data = Data.from_torch(Listed(items))
    with pytest.raises(UserError, match=said):
        data.read(range(len(items)))


def test_from_torch_names_a_target_that_is_not_there():
    data = Data.from_torch(Listed([{"a": 1.0, "label": 0}]), target="labels")
    with pytest.raises(UserError, match="a key 'labels' in every sample, got a, label"):
        data.read([0])


def test_from_torch_refuses_a_stream():
    with pytest.raises(UserError, match=r"map-style dataset with len\(\) and \[i\], got list_iterator"):
        Data.from_torch(iter([1]))


def test_from_hf():
    data = Data.from_hf(table(), id_column="key", columns=["who"])
    assert data.ids == ["7", "8", "9"]
    batch = data.subset(["9", "7"]).read([0, 1])
    assert batch.inputs["pixel_values"].tolist() == [[5, 6], [1, 2]]
    assert batch.target.tolist() == [1, 2]
    assert data.subset(["9", "8"]).column("who").tolist() == ["ann", "bo"]
    assert not Data.from_hf(table(), target=None).labelled


def test_from_hf_with_several_inputs_and_default_ids():
    data = Data.from_hf(table(mask=[[1, 0], [1, 1], [0, 1]]), inputs=["pixel_values", "mask"], name="hub")
    assert data.ids == ["hub/0", "hub/1", "hub/2"]
    assert data.read([2]).inputs["mask"].tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"inputs": ["image"]}, "columns among pixel_values, labels, key, who, got image"),
        ({"target": "y"}, "got y: name columns that exist"),
        ({"id_column": "uid"}, "got uid"),
        ({"columns": ["age", "who"]}, "got age"),
        ({"id_column": "who"}, "unique ids of train, got ann more than once"),
    ],
)
def test_from_hf_names_unknown_columns(options, said):
    with pytest.raises(UserError, match=said):
        Data.from_hf(table(), **options)


def test_labels_of_a_table_are_read_without_its_inputs():
    data = Data.from_hf(table(pixel_values=[[1.0], [2.0, 3.0], [4.0]]))  # rows that no batch could hold
    assert data.labelled
    assert torch.equal(data.targets(), torch.tensor(table()["labels"]))
    with pytest.raises(UserError, match="numbers in the column 'labels', got str: encode classes"):
        Data.from_hf(table(labels=["a", "b", "a"])).targets()


def test_from_hf_refuses_ragged_rows():
    data = Data.from_hf(table(pixel_values=[[1.0], [2.0, 3.0], [4.0]]))
    with pytest.raises(UserError, match=r"rows of several shapes in pixel_values: pad them to one length"):
        data.read([0, 1])


def test_contents_are_of_inputs_alone():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
    found = Data.from_arrays(x, [0, 1, 1]).contents()
    assert found[0] == found[2] != found[1]
    assert found.dtype == np.int64
    plain = Data.from_arrays(x, ids=["p", "q", "r"], transform=lambda v: v * torch.rand(1))
    assert plain.contents().tolist() == found.tolist()
    assert plain.unlabelled().contents().tolist() == found.tolist()
    assert plain.subset(["r", "q"]).contents().tolist() == found[[2, 1]].tolist()
    assert plain.contents(KEY).tolist() != found.tolist()
    assert Data.from_arrays(x[:0]).contents().tolist() == []


@pytest.mark.parametrize(
    "other",
    [
        torch.tensor([[1.0, 2.0000002]]),
        torch.tensor([[2.0, 1.0]]),
        torch.tensor([[1.0, 2.0]], dtype=torch.float64),
        torch.tensor([[1, 2]]),
        torch.tensor([[[1.0, 2.0]]]),
        torch.tensor([[1.0, 2.0, 0.0]]),
        {"x": torch.tensor([[1.0, 2.0]]), "y": torch.tensor([[1.0]])},
        {"z": torch.tensor([[1.0, 2.0]])},
    ],
)
def test_contents_feel_values_order_types_shapes_and_names(other):
    same = Data.from_arrays({"x": torch.tensor([[1.0, 2.0]])}).contents()
    assert Data.from_arrays(torch.tensor([[1.0, 2.0]])).contents() == same
    assert Data.from_arrays(other).contents() != same


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.uint8, torch.complex64])
def test_contents_of_any_type_over_several_blocks_of_reading(dtype):
    x = (torch.arange(600) % 2).reshape(600, 1).to(dtype)
    found = Data.from_arrays(x).contents()
    assert len(found) == 600
    assert set(found.tolist()) == {found[0], found[1]}
    assert len(set(found[::2].tolist())) == 1


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        ([1.0, -1.0, 1.0], "finite weights of 0 or more, got -1 for train/1: correct them"),
        ([1.0, 1.0, float("nan")], "finite weights of 0 or more, got nan for train/2"),
        ([float("inf"), 1.0, float("inf")], "got inf for train/0, train/2"),
        ([0.0, 0.0, 0.0], "a weight above 0, got 0 for every sample"),
        ([1.0, 1.0], r"weights of shape \(3,\), got \(2,\)"),
        (["a", "b", "c"], "a number as the weight of each sample"),
    ],
)
def test_weights_that_would_train_the_wrong_way_are_refused(weight, said):
    with pytest.raises(UserError, match=said):
        Data.from_arrays(torch.zeros(3, 1), [0, 1, 0], weight=weight)
    assert Data.from_arrays(torch.zeros(3, 1), weight=[0, 2, 0]).read([1]).weight.tolist() == [2.0]
