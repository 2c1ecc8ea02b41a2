"""Half the classes as public data, the other half as private, and the network that starts from the public half."""

import pickle
import re

import numpy as np
import pytest
import torch

from expunge import tensors, zoo
from expunge.errors import Incompatible, UserError
from expunge.tensors import isolated_rng
from expunge.train import fresh
from expunge.zoo import public
from expunge.zoo.networks import PUBLIC
from zoo.test_named import stored

DIGITS = (1, 8, 8)


@pytest.fixture
def models(tmp_path):
    with isolated_rng(0):
        model = public.blank(DIGITS, 5)
    public.save(model, DIGITS, tmp_path)
    return tmp_path


def test_the_halves_of_the_digits_are_the_digits():
    whole, low, high = (zoo.load(name) for name in ("digits", "digits_public", "digits_private"))
    for part in ("train", "holdout", "test"):
        all_, first, second = (getattr(p, part) for p in (whole, low, high))
        assert sorted([*first.ids, *second.ids]) == sorted(all_.ids)
        for data, shift in ((first, 0), (second, 5)):
            same = all_.subset(data.ids)
            rows = range(len(data))
            assert torch.equal(data.targets() + shift, same.targets())
            assert torch.equal(data.read(rows).inputs, same.read(rows).inputs)
            assert torch.equal(data.read(rows).target, data.targets())
            assert data.column("label").tolist() == [str(int(t) + shift) for t in data.targets()]
    assert (low.classes, high.classes) == (tuple("01234"), tuple("56789"))
    assert high.new_model()(high.train.read([0]).inputs).logits.shape == (1, 5)


@pytest.mark.parametrize("name", ["digits_private", "fashion_mnist_public"])
def test_what_is_known_before_a_file_is_opened(tmp_path, name):
    stored(tmp_path, "fashion_mnist", 30)
    for limit in (None, 60):
        known, found = zoo.known(name, limit=limit), zoo.load(name, data_dir=tmp_path, limit=limit)
        counts = np.bincount(found.train.targets().numpy(), minlength=5)
        assert found.train.targets().max() == 4
        assert tuple(known.columns) == tuple(found.train.columns) == ("label",)
        if limit or name == "digits_private":
            assert (known.size, known.counts) == (len(found.train), tuple(counts.tolist()))
        else:
            assert (known.size, known.counts) == (30_000, (6_000,) * 5)
        assert known.shape == tuple(found.train.read([0]).inputs.shape[1:])


def test_a_limit_is_balanced_and_a_part_of_a_larger_one(tmp_path):
    stored(tmp_path, "fashion_mnist", 20)
    small, large = (zoo.load("fashion_mnist_private", data_dir=tmp_path, limit=n) for n in (40, 50))
    assert (len(small.train), len(small.holdout), len(small.test)) == (40, 5, 20)
    assert np.bincount(small.train.targets().numpy()).tolist() == [8] * 5
    assert set(small.train.ids) < set(large.train.ids)
    rows = [int(i.rpartition("/")[2]) % 10 for i in small.train.ids]
    assert sorted(set(rows)) == [5, 6, 7, 8, 9]
    assert not set(small.train.ids) & set(zoo.load("fashion_mnist_public", data_dir=tmp_path).train.ids)
    with pytest.raises(UserError, match="a limit of at least 8 samples"):
        zoo.load("digits_private", limit=5)


def test_the_network_starts_from_the_public_one(models, monkeypatch):
    monkeypatch.setenv("EXPUNGE_MODELS", str(models))
    found = zoo.load("digits_private", PUBLIC)
    build = pickle.loads(pickle.dumps(found.new_model))
    with isolated_rng(0):
        want = public.blank(DIGITS, 5)
    with isolated_rng(3):
        made = build()
    got = made.state_dict()
    same = {k: torch.equal(v, got[k]) for k, v in want.state_dict().items()}
    assert {k for k, equal in same.items() if not equal} == {"classifier.weight"}  # biases are 0 in both
    assert made.training
    other = fresh(made, new_model=build, seed=1)
    assert tensors.weights_digest(other) != tensors.weights_digest(made)
    assert found.task.forward(made, found.train.read(range(3)))[0].shape == (3, 5)
    assert (found.recipe.epochs, found.recipe.optimizer) == (10, "adamw")


def test_images_of_any_sides_in_fours_are_16_patches():
    for shape, patch in (((1, 28, 28), 7), ((3, 32, 32), 8), (DIGITS, 2)):
        model = public.blank(shape, 3)
        assert tuple(model.config.patch_size) == (patch, patch)
        assert model(torch.zeros(2, *shape)).logits.shape == (2, 3)
        assert model.config.num_hidden_layers == 6
    with pytest.raises(UserError, match="image sides in multiples of 4 for vit_public, got 30×28"):
        public.blank((1, 30, 28), 3)


def test_a_checkpoint_is_never_written_over(models):
    with pytest.raises(UserError, match=re.escape(f"no checkpoint in {models}/vit-public-1x8x8, got one")):
        public.save(public.blank(DIGITS, 5), DIGITS, models)


def test_what_is_said_where_no_public_network_is(models):
    said = f"the public network {models}/vit-public-1x12x12, got none there: write it by benchmarks/s3t_public.py"
    with pytest.raises(UserError, match=re.escape(said)):
        public.vit_public((1, 12, 12), 5, models)
    with pytest.raises(UserError, match="the public network in a folder of models, got none there"):
        public.vit_public(DIGITS, 5, None)
    folder = models / "vit-public-1x8x8"
    folder.rename(models / "vit-public-1x12x12")
    with pytest.raises(Incompatible, match=r"a network for images of shape \(1, 12, 12\) in .*, got \(1, 8, 8\)"):
        public.vit_public((1, 12, 12), 5, models)
    (models / "vit-public-1x12x12").rename(folder)
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match=re.escape(f"the public network {folder}, got")) as error:
        public.vit_public(DIGITS, 5, models)
    assert "\n" not in str(error.value)


def test_weights_that_are_missing_are_not_drawn(models):
    model = public.blank(DIGITS, 5)
    part = {k: v.clone() for k, v in model.state_dict().items() if "layers.3" not in k and "layer.3" not in k}
    model.save_pretrained(models / "vit-public-1x8x8", state_dict=part)
    with pytest.raises(Incompatible, match=r"all weights of the public network in .*layers\.3.* missing"):
        public.vit_public(DIGITS, 5, models)
