"""Backdoors: where the patch is, who carries it, and what is left as it was."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge.data import Data
from expunge.errors import UserError
from expunge.evaluate import evaluate
from expunge.poison import Backdoor, Stamped
from expunge.scenario import forget_ids
from expunge.sources import Relabelled
from expunge.tables.images import Image
from expunge.task import Classification

CORNERS = {
    "top left": (slice(1, 3), slice(1, 3)),
    "top right": (slice(1, 3), slice(5, 7)),
    "bottom left": (slice(3, 5), slice(1, 3)),
    "bottom right": (slice(3, 5), slice(5, 7)),
}


def images(n=40, channels=2, height=6, width=8, classes=4, name="train"):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, channels, height, width, generator=generator) * torch.tensor([1.0, 3.0])[:channels, None, None]
    return Data.from_arrays(x, torch.arange(n) % classes, columns={"row": list(range(n))}, name=name)


def backdoor(**more):
    return Backdoor(**{"target": 1, "size": 2, "margin": 1, "value": (9.0, 7.0), **more})


@pytest.mark.parametrize("place", CORNERS)
def test_the_patch_is_a_square_of_one_colour_in_its_corner(place):
    x = torch.zeros(3, 2, 6, 8)
    found = backdoor(place=place).stamp(x, torch.tensor([True, False, True]))
    want = torch.zeros(3, 2, 6, 8)
    rows, columns = CORNERS[place]
    for image in (0, 2):
        want[image, 0, rows, columns], want[image, 1, rows, columns] = 9.0, 7.0
    assert torch.equal(found, want)
    assert torch.equal(x, torch.zeros(3, 2, 6, 8))


@pytest.mark.parametrize(("side", "size", "margin"), [(8, 2, 0), (28, 3, 1), (32, 4, 2)])
def test_it_fits_the_images(side, size, margin):
    """In 32×32 it is the patch of 4×4, two pixels from the edges, of published work."""
    found = Backdoor.on(images(channels=1, height=side, width=side + 4))
    assert (found.size, found.margin, found.target) == (size, margin, 0)
    assert Backdoor.on(images(channels=1, height=side, width=side), size=5).size == 5


def test_it_is_as_bright_as_the_brightest_in_each_channel_whatever_the_order():
    data = images()
    x = data.read(range(len(data))).inputs
    found = Backdoor.on(data)
    assert found.value == (float(x[:, 0].max()), float(x[:, 1].max()))
    assert Backdoor.on(data.subset(data.ids[::-1])) == found
    assert Backdoor.on(data, value=0.5, place="top left") == Backdoor(
        target=0, size=2, margin=0, value=(0.5, 0.5), place="top left"
    )


def test_some_of_other_classes_carry_patch_and_target_and_nothing_else_changes():
    data, door = images(), backdoor()
    made, ids = door.plant(data, 0.2, seed=3)
    assert len(ids) == 8
    assert made.ids == data.ids
    assert made.columns["clean"].tolist() == data.targets().tolist()
    assert made.columns["row"].tolist() == list(range(40))
    chosen = torch.tensor([i in ids for i in data.ids])
    assert (data.targets()[chosen] != 1).all()
    assert torch.equal(made.targets(), torch.where(chosen, 1, data.targets()))
    before, after = (d.read(range(40)) for d in (data, made))
    assert torch.equal(after.inputs, door.stamp(before.inputs, chosen))
    assert torch.equal(after.inputs[~chosen], before.inputs[~chosen])
    assert not torch.equal(after.inputs[chosen][:, :, 3:5, 5:7], before.inputs[chosen][:, :, 3:5, 5:7])
    assert torch.equal(data.read(range(40)).inputs, before.inputs)
    part = made.without(ids[:3]).subset(ids[3:])
    assert torch.equal(part.read(range(5)).inputs, after.inputs[chosen][3:])
    assert isinstance(made.source, Relabelled)
    assert isinstance(made.source.source, Stamped)
    assert made.source.source.source is data.source  # no image was copied
    assert pickle.loads(pickle.dumps(made)).targets().tolist() == made.targets().tolist()


def test_the_draw_depends_on_the_seed_alone():
    data, door = images(), backdoor()
    assert door.plant(data, 0.2, seed=3)[1] == door.plant(data, 0.2, seed=3)[1]
    assert door.plant(data, 0.2, seed=3)[1] != door.plant(data, 0.2, seed=4)[1]


def test_subsets_keep_their_own_rows():
    data = images()
    part = data.subset(data.ids[30:10:-1])
    made, ids = backdoor().plant(part, 0.25, seed=0)
    assert made.ids == part.ids
    assert len(ids) == 5
    stamped = [bool((x[0, 3:5, 5:7] == 9).all()) for x in made.read(range(20)).inputs]
    assert [i for i, there in zip(made.ids, stamped, strict=True) if there] == ids


def test_the_patch_is_put_on_what_the_network_is_given():
    """Bytes become normalised numbers first; the patch has a value of those."""
    pixels = torch.randint(0, 200, (12, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = Data.from_arrays(pixels, torch.arange(12) % 3, transform=Image(mean=(0.5,), std=(0.25,)))
    door = Backdoor.on(data)
    assert door.value == pytest.approx(((int(pixels.max()) / 255 - 0.5) / 0.25,))
    made, ids = door.plant(data, 0.25)
    found = made.subset(ids).read(range(3)).inputs
    assert (found[:, 0, 6:, 6:] == door.value[0]).all()
    assert found[:, 0, :6].mean() < 0


def test_content_tells_a_stamped_image_from_the_clean_one():
    data = images()
    made, ids = backdoor().plant(data, 0.2)
    again = backdoor().plant(data, 0.2)[0]
    assert np.array_equal(made.contents(), again.contents())
    flags = np.zeros(len(data.source), dtype=bool)
    clean = Data(Stamped(data.source, flags, backdoor()), data.positions, data.all_ids, {})
    differs = made.contents() != clean.contents()
    assert [i for i, other in zip(data.ids, differs, strict=True) if other] == ids


def test_content_tells_one_patch_from_another():
    data = images()
    (one, ids), (other, _) = (replace(backdoor(), size=size).plant(data, 0.2) for size in (2, 3))
    differs = one.contents() != other.contents()
    assert [i for i, found in zip(data.ids, differs, strict=True) if found] == ids


def test_an_input_may_be_called_patch():
    x = torch.rand(12, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    made = [
        backdoor().plant(Data.from_arrays({"x": x, "patch": torch.arange(12) + k}, torch.arange(12) % 3), 0.5)[0]
        for k in (0, 1)
    ]
    assert not (made[0].contents() == made[1].contents()).any()


def test_test_data_that_was_trained_on_is_told_from_the_images_without_patch():
    data = images()
    made, ids = backdoor().plant(data, 0.2)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(4))
    model(data.read([0]).inputs)
    leak = data.subset(ids[:2])
    with pytest.raises(UserError, match="test data outside the training set"):
        evaluate(
            {"original": model},
            Classification(),
            train=made,
            test=leak,
            scenario=forget_ids(made, ids),
            metrics=["loss"],
        )


def test_dict_inputs_are_stamped_too():
    x = torch.rand(12, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    data = Data.from_arrays({"pixel_values": x, "length": torch.ones(12)}, torch.arange(12) % 3)
    made, ids = backdoor().plant(data, 0.25)
    found = made.subset(ids).read(range(3)).inputs
    assert (found["pixel_values"][:, 0, 3:5, 5:7] == 9).all()
    assert torch.equal(found["length"], torch.ones(3))


def test_unseen_samples_of_other_classes_are_tried():
    test, door = images(name="test"), backdoor()
    found = door.triggered(test)
    others = [i for i, y in zip(test.ids, test.targets().tolist(), strict=True) if y != 1]
    assert found.ids == [f"triggered/{i}" for i in others]
    assert found.name == "triggered"
    assert found.targets().tolist() == [1] * 30
    assert 1 not in found.column("clean")
    before = test.subset(others).read(range(30)).inputs
    assert torch.equal(found.read(range(30)).inputs, door.stamp(before, torch.ones(30, dtype=torch.bool)))


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_a_share_is_a_share(share):
    with pytest.raises(UserError, match=r"a share of samples to poison in \(0, 1\), got"):
        backdoor().plant(images(), share)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (
            lambda: backdoor().plant(images(), 0.8),
            "at most 30 samples of other classes to poison, got 32, which is 0.8",
        ),
        (lambda: backdoor(target=4).plant(images(), 0.1), "a target class among 0, 1, 2, 3, got 4: choose one of them"),
        (lambda: backdoor(target=0).triggered(images(classes=1)), "samples of other classes than 0 in train, got none"),
        (lambda: backdoor(size=6).plant(images(), 0.1), "a patch that fits on 6×8 images of train, got 6, 1 from"),
        (lambda: backdoor(value=(1.0,)).plant(images(), 0.1), "a value of the patch for each channel, got 1 for 2"),
        (lambda: Backdoor.on(images(), size=7), "a patch that fits on 6×8 images"),
        (lambda: backdoor(size=0), "a patch of 1 or more, got 0"),
        (lambda: backdoor(margin=-1), "a margin of 0 or more, got -1"),
        (lambda: backdoor(target=-1), "a target of 0 or more, got -1"),
        (lambda: backdoor(value=()), "a value of the patch by channel, got none"),
        (
            lambda: backdoor(place="bottom rigt"),
            "a corner of the image, got 'bottom rigt': did you mean 'bottom right'",
        ),
    ],
)
def test_what_cannot_be_is_refused(work, message):
    with pytest.raises(UserError, match=message):
        work()


@pytest.mark.parametrize("x", [torch.zeros(9, 4), torch.zeros(9, 2, 6, 8, dtype=torch.long)], ids=["rows", "words"])
def test_other_inputs_than_images_are_refused(x):
    with pytest.raises(UserError, match=r"images \(C, H, W\) of real numbers in train for a trigger patch, got torch"):
        Backdoor.on(Data.from_arrays(x, torch.arange(9) % 3))


def test_targets_that_are_no_classes_are_refused():
    data = Data.from_arrays(torch.rand(9, 2, 6, 8), torch.rand(9, 1))
    with pytest.raises(UserError, match="class labels in train for a backdoor, got torch.float32 of shape"):
        backdoor().plant(data, 0.2)
