import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from expunge import files, tensors
from expunge.errors import CorruptArtefact, Incompatible, NotFinite, UserError

FORMS = ["a.safetensors", "folder"]
META = {"name": "ssd", "n": [1, 2]}


def sample():
    return {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, -2], dtype=torch.int8), "c": torch.tensor(0.5)}


def read_all(path):
    found, meta = tensors.load(path)
    return dict(found), meta


@pytest.fixture(params=FORMS)
def saved(request, tmp_path):
    path = tmp_path / request.param
    tensors.save(path, sample(), META)
    return path


def test_tensors_and_meta_come_back(saved):
    found, meta = tensors.load(saved)
    assert meta == META
    assert len(found) == 3
    assert list(found) == ["a", "b", "c"]
    for name, want in sample().items():
        assert found[name].dtype == want.dtype
        assert torch.equal(found[name], want)
    with pytest.raises(KeyError):
        found["d"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]
)
def test_every_dtype_comes_back_bit_by_bit(tmp_path, form, dtype):
    want = torch.tensor([[0.0, 1.0, 3.0]]).to(dtype)
    tensors.save(tmp_path / form, {"x": want, "empty": want[:0]}, {})
    found, _ = tensors.load(tmp_path / form)
    assert found["x"].dtype == dtype
    assert torch.equal(found["x"], want)
    assert found["empty"].shape == (0, 3)


@pytest.mark.parametrize("form", FORMS)
def test_tied_strided_and_channels_last_tensors_come_back(tmp_path, form):
    base = torch.arange(48.0).reshape(2, 3, 2, 4)
    given = {
        "tied": base,
        "tied_too": base,
        "part": base[1],
        "transposed": base.transpose(0, 3),
        "channels_last": base.to(memory_format=torch.channels_last),
        "expanded": torch.ones(1, 3).expand(4, 3),
        "leaf": nn.Parameter(base[0]),
    }
    tensors.save(tmp_path / form, given, {})
    found, _ = tensors.load(tmp_path / form)
    for name, want in given.items():
        assert torch.equal(found[name], want), name
        assert found[name].is_contiguous()
    if form == "folder":  # equal content is kept once
        assert len(list((tmp_path / form).glob("*.safetensors"))) == 5


def test_no_overwrite_unless_asked(saved):
    with pytest.raises(UserError, match="free to write"):
        tensors.save(saved, {"x": torch.ones(1)}, {})
    assert list(tensors.load(saved)[0]) == ["a", "b", "c"]
    tensors.save(saved, {"x": torch.ones(1)}, {"new": True}, overwrite=True)
    found, meta = read_all(saved)
    assert list(found) == ["x"]
    assert meta == {"new": True}
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_meta_that_json_cannot_hold_writes_nothing(tmp_path):
    for form in FORMS:
        with pytest.raises(NotFinite):
            tensors.save(tmp_path / form, sample(), {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_every_flipped_byte_of_a_file_is_found_out(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors.save(path, sample(), META)
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    assert len(whole) - 8 - header == 4 * 6 + 2 + 4  # so that length, header with metadata, and data are all visited
    for at in range(len(whole)):
        for bit in (3, at % 8):
            bad = bytearray(whole)
            bad[at] ^= 1 << bit
            path.write_bytes(bad)
            with pytest.raises(CorruptArtefact, match=r"^Expected an intact file .*a\.safetensors, got "):
                read_all(path)


def test_every_truncation_of_a_file_is_found_out(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors.save(path, sample(), META)
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 5), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptArtefact, match=r"a\.safetensors"):
            read_all(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CorruptArtefact, match=r"a\.safetensors"):
        read_all(path)


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "swap"])
def test_a_harmed_part_of_a_folder_is_named(tmp_path, harm):
    path = tmp_path / "folder"
    tensors.save(path, sample(), META)
    part = path / f"{tensors.tensor_digest(sample()['a'])}.safetensors"
    whole = part.read_bytes()
    if harm == "remove":
        part.unlink()
    elif harm == "swap":
        part.write_bytes((path / f"{tensors.tensor_digest(sample()['b'])}.safetensors").read_bytes())
    else:
        part.write_bytes(whole[:-1] if harm == "truncate" else whole[:-1] + bytes([whole[-1] ^ 1]))
    found, _ = tensors.load(path)
    with pytest.raises(CorruptArtefact, match=part.name):
        found["a"]
    assert torch.equal(found["b"], sample()["b"])  # the others still read


def test_every_flipped_byte_of_a_manifest_is_found_out(tmp_path):
    path = tmp_path / "folder"
    tensors.save(path, sample(), META)
    manifest = path / "manifest.json"
    whole = manifest.read_bytes()
    for at in range(len(whole)):
        for bit in (3, at % 8):
            bad = bytearray(whole)
            bad[at] ^= 1 << bit
            manifest.write_bytes(bad)
            with pytest.raises(CorruptArtefact, match="folder"):
                read_all(path)


@pytest.mark.parametrize("text", [None, "", "[]", "3", "null", "{}", '{"digest": 1}'])
def test_a_folder_that_is_not_ours(tmp_path, text):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CorruptArtefact, match="intact file"):
        tensors.load(tmp_path)


def test_a_path_with_nothing_there(tmp_path):
    with pytest.raises(UserError, match="nothing there: check the path"):
        tensors.load(tmp_path / "a")


def test_a_newer_format_asks_for_an_update(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "FORMAT", 2)
    tensors.save(tmp_path / "a", sample(), {})
    monkeypatch.setattr(tensors, "FORMAT", 1)
    with pytest.raises(Incompatible, match="format 1 or older in .*, got 2: update expunge"):
        tensors.load(tmp_path / "a")


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_is_one_sentence_and_leaves_the_old(tmp_path, form):
    path = tmp_path / form
    tensors.save(path, {"x": torch.ones(3)}, {})
    code = f"""
        import pathlib, resource, torch
        from expunge import errors, tensors
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            tensors.save(pathlib.Path({str(path)!r}), {{"x": torch.zeros(5000)}}, {{}}, overwrite=True)
        except errors.UserError as error:
            print(error)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"Expected to write {path}, got ")
    assert "File too large" in run.stdout
    assert torch.equal(tensors.load(path)[0]["x"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == [form]


def network(seed=0, width=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def test_weights_come_back_bit_by_bit(tmp_path):
    path, model, other = tmp_path / "w.safetensors", network(0), network(1)
    model(torch.randn(8, 3))  # moves the running statistics
    tensors.save_weights(path, model, {"epoch": 3})
    meta = tensors.load_weights(path, other)
    assert meta == {"epoch": 3, "weights": tensors.weights_digest(model)}
    assert tensors.weights_digest(other) == tensors.weights_digest(model)


def test_tied_weights_stay_tied(tmp_path):
    path, (model, other) = tmp_path / "w.safetensors", (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in "ab")
    for net in (model, other):
        net[1].weight = net[0].weight
    tensors.save_weights(path, model, {})
    tensors.load_weights(path, other)
    assert other[0].weight is other[1].weight
    assert torch.equal(other[0].weight, model[0].weight)
    assert list(tensors.parameters(other)) == ["0.weight", "0.bias", "1.bias"]


def test_weights_of_another_network_are_refused_and_nothing_moves(tmp_path):
    path, other = tmp_path / "w.safetensors", network(1, width=5)
    tensors.save_weights(path, network(), {})
    before = tensors.weights_digest(other)
    match = r"shaped differently: 0\.weight \(.*\) for \(.*\), .* and 2 more: name the network"
    with pytest.raises(Incompatible, match=match):
        tensors.load_weights(path, other)
    tensors.save_weights(path, nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), {}, overwrite=True)
    longer = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    with pytest.raises(Incompatible, match=r"missing: 2\.weight, 2\.bias; unknown: 1\.bias, 1\.weight"):
        tensors.load_weights(path, longer)
    assert tensors.weights_digest(other) == before


def test_digests_tell_values_names_and_shapes_apart():
    model = network()
    shape, weights = tensors.shapes_digest(model), tensors.weights_digest(model)
    assert tensors.weights_digest(network()) == weights
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nextafter(model[0].weight[0, 0], torch.tensor(9.0))
    assert tensors.weights_digest(model) != weights
    assert tensors.shapes_digest(model) == shape
    assert tensors.weights_digest(network().double()) != weights
    assert tensors.shapes_digest(network(width=5)) != shape
    buffers = network()
    buffers[1].running_mean[0] = 1
    assert tensors.weights_digest(buffers) != weights


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (torch.zeros(1), torch.tensor(0.0)),
    ],
)
def test_tensor_digests_tell_shape_dtype_and_bits_apart(a, b):
    assert tensors.tensor_digest(a) != tensors.tensor_digest(b)
    assert tensors.tensor_digest(a) == tensors.tensor_digest(a.clone())


def test_a_tensor_digest_is_of_values_not_of_memory_order():
    x = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert tensors.tensor_digest(x) == tensors.tensor_digest(x.to(memory_format=torch.channels_last))
    assert tensors.tensor_digest(x) == files.digest("torch.float32(1, 2, 3, 4)", x.numpy().tobytes())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_check_finite_names_the_tensors(bad):
    named = {"a": torch.ones(3), "b": torch.tensor([1.0, bad]), "n": torch.tensor([1])}
    with pytest.raises(NotFinite, match="^Expected finite weights, got NaN or infinity in b: train again.$"):
        tensors.check_finite(named, "weights", "train again")
    tensors.check_finite({"a": torch.ones(3), "n": torch.tensor([1])}, "weights", "train again")


def test_changed_counts_scalars_by_tensor():
    before, after = network(), network()
    with torch.no_grad():
        after[0].weight[0, :2] += 1
        after[2].bias[1] += 1
    found = tensors.changed(before, after)
    assert found.count == 3
    assert {k: v for k, v in found.tensors.items() if v[0]} == {"0.weight": (2, 12), "2.bias": (1, 2)}
    assert found.share == 3 / tensors.total(before.parameters()) == 3 / 34
    assert tensors.changed(before, before).share == 0
    assert tensors.changed(before, network(width=5)) is None
    assert tensors.changed(before, nn.Linear(3, 4)) is None


def test_isolated_rng_leaves_all_three_generators_as_found():
    def draw():
        return [float(torch.rand(1)), float(np.random.rand()), random.random()]

    def inside(seed, fail=False):
        with tensors.isolated_rng(seed):
            return draw() if not fail else 1 / 0

    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    want = draw()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    first = inside(2**62 + 3)
    with pytest.raises(ZeroDivisionError):
        inside(5, fail=True)
    assert draw() == want
    assert inside(2**62 + 3) == first
    assert all(a != b for a, b in zip(first, inside(4), strict=True))


def test_eval_mode_puts_each_module_back():
    model = network()
    model[1].eval()

    def inside():
        with tensors.eval_mode(model):
            assert not any(m.training for m in model.modules())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        inside()
    assert [m.training for m in model.modules()] == [True, True, False, True]


def test_parameters_are_the_trainable_ones():
    model = network()
    model[0].bias.requires_grad_(False)
    assert list(tensors.parameters(model)) == ["0.weight", "1.weight", "1.bias", "2.weight", "2.bias"]
