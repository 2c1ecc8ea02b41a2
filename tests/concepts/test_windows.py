"""Windows of images: C9, crops beside loops, what is run through the network, pictures."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from expunge.concepts.windows import (
    Grid,
    Shades,
    corners_at,
    cropped,
    crops,
    drawn,
    heat_png,
    images_of,
    off_centre,
    pooled,
    represented,
    sizes_for,
    unfolded,
)
from expunge.data import Data
from expunge.errors import UserError
from expunge.runtime import Runtime
from expunge.task import Classification

D = torch.float64


def quiet(size: int) -> Runtime:
    return Runtime(batch_size=size, progress=False, device="cpu")


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)
    ).double()


def test_windows_of_a_large_image_by_hand():
    grid = Grid(224, 224, 64, 16)
    assert (grid.rows, grid.cols, len(grid)) == (11, 11, 121)
    centres = grid.centres().reshape(11, 11, 2)
    for r, q in [(0, 0), (3, 7), (10, 10)]:
        assert centres[r, q].tolist() == [16 * r + 32, 16 * q + 32]  # y, x
    assert float(off_centre(torch.tensor([32.0, 32.0]), 224, 224)) == pytest.approx(0.71428571, abs=1e-8)
    (top, left) = corners_at(torch.tensor([[112.0, 112.0]]), 64, 224, 224)[0].tolist()
    assert (top, top + 63, left, left + 63) == (80, 143, 80, 143)


def test_windows_stay_inside_an_image_that_is_not_square():
    grid = Grid(7, 10, 3, 2)
    assert (grid.rows, grid.cols) == (3, 4)
    assert int(grid.corners()[:, 0].max()) + 3 <= 7
    assert int(grid.corners()[:, 1].max()) + 3 <= 10
    points = torch.tensor([[0.0, 0.0], [7.0, 10.0], [3.5, 5.5]])
    assert corners_at(points, 3, 7, 10).tolist() == [[0, 0], [4, 7], [2, 4]]


@pytest.mark.parametrize(("size", "stride"), [(9, 1), (0, 1), (3, 0)])
def test_windows_that_do_not_fit_are_refused(size: int, stride: int):
    with pytest.raises(UserError, match=r"Expected windows that fit on images of 8×12, got windows of"):
        Grid(8, 12, size, stride)


def test_crops_and_unfolded_windows_are_those_of_a_loop():
    torch.manual_seed(0)
    images = torch.randn(5, 2, 7, 9, dtype=D)
    corners = torch.tensor([[0, 0], [4, 6], [1, 2], [3, 0], [2, 5]])
    found = crops(images, corners, 3)
    for i, (top, left) in enumerate(corners.tolist()):
        assert torch.equal(found[i], images[i, :, top : top + 3, left : left + 3])
    grid = Grid(7, 9, 3, 2)
    every = unfolded(images, grid)
    assert every.shape == (5, len(grid), 2, 3, 3)
    for n, (top, left) in enumerate(grid.corners().tolist()):
        assert torch.equal(every[:, n], images[:, :, top : top + 3, left : left + 3])


def test_sizes_fit_the_image():
    assert sizes_for(224, 224) == [112, 78, 56]
    assert sizes_for(32, 32) == [16, 11, 8]
    assert sizes_for(8, 8) == [4, 3]
    assert sizes_for(2, 9) == [2]


def test_drawn_windows_are_different_and_of_every_size():
    places = drawn(32, 32, 60, torch.Generator().manual_seed(0))
    assert places.shape == (60, 3)
    assert len({tuple(p) for p in places.tolist()}) == 60
    counts = [int((places[:, 2] == size).sum()) for size in (16, 11, 8)]
    assert min(counts) >= 8
    assert bool((places[:, :2] + places[:, 2:] <= 32).all())
    assert len(drawn(2, 2, 60, torch.Generator())) == 1


def test_windows_are_represented_as_by_a_loop_whatever_the_batches():
    torch.manual_seed(1)
    model = network()
    data = Data.from_arrays(torch.randn(7, 2, 8, 10, dtype=D), torch.zeros(7).long())
    found = represented(model, Classification(), data, "4:input", count=5, runtime=quiet(6), seed=4)
    assert len(found) == 35
    assert found.sample.tolist() == [i for i in range(7) for _ in range(5)]
    for row in (0, 11, 34):
        window = cropped(data.read([int(found.sample[row])]).inputs[0], found.place[row].tolist())
        full = F.interpolate(window[None], size=(8, 10), mode="bilinear", align_corners=False)
        want = model[:4](full)[0]
        torch.testing.assert_close(found.embeddings[row].double(), want, rtol=1e-6, atol=1e-6)
    for size in (1, 100):
        other = represented(model, Classification(), data, "4:input", count=5, runtime=quiet(size), seed=4)
        torch.testing.assert_close(other.embeddings, found.embeddings)
        assert torch.equal(other.place, found.place)
    part = represented(model, Classification(), data.subset(["train/3"]), "4:input", count=5, runtime=quiet(9), seed=4)
    assert torch.equal(part.place, found.place[15:20])
    again = represented(model, Classification(), data, "4:input", count=5, runtime=quiet(9), seed=5)
    assert not torch.equal(again.place, found.place)


def test_windows_of_an_empty_background_are_left_out():
    x = torch.zeros(3, 2, 8, 10, dtype=D)
    x[:2, :, :, 7:] = torch.randn(2, 2, 8, 3, generator=torch.Generator().manual_seed(1), dtype=D)
    data = Data.from_arrays(x, torch.zeros(3).long())
    found = represented(network(), Classification(), data, "4:input", count=40, runtime=quiet(6), seed=4)
    right = found.place[:, 1] + found.place[:, 2]
    assert bool((right[found.sample < 2] > 7).all())
    assert 0 < int((found.sample == 0).sum()) < int((found.sample == 2).sum())  # an even image keeps all of its own


def test_images_are_found_among_inputs_or_refused():
    images = torch.zeros(2, 1, 4, 4)
    assert images_of({"pixel_values": images}, "patches") is images
    for wrong in (torch.zeros(2, 4), torch.zeros(2, 1, 4, 4).long(), {"a": images, "b": images}):
        with pytest.raises(UserError, match=r"Expected images \(C, H, W\) of real numbers for patches, got torch"):
            images_of(wrong, "patches")


def test_one_vector_a_sample_is_the_mean_over_positions_or_places():
    torch.manual_seed(0)
    flat, sequence, places = torch.randn(2, 5), torch.randn(2, 3, 5), torch.randn(2, 5, 3, 4)
    assert pooled(flat) is flat
    torch.testing.assert_close(pooled(sequence), sequence.mean(1))
    torch.testing.assert_close(pooled(places), places.mean((2, 3)))


def pixels(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_pictures_have_the_colours_of_the_image_enlarged_pixel_for_pixel():
    images = torch.stack([torch.full((3, 4, 6), -2.0), torch.full((3, 4, 6), 3.0)])
    images[0, 1, 2, 5] = 0.5
    shades = Shades.of(images)
    made = pixels(shades.png(images[0]))
    assert made.shape == (64, 96, 3)
    assert made[40, 90].tolist() == [0, 128, 0]
    assert made[0, 0].tolist() == [0, 0, 0]
    assert pixels(shades.png(images[1])).min() == 255
    assert pixels(Shades.of(images[:, :1]).png(images[0, :1])).shape == (64, 96)
    heat = pixels(heat_png(torch.tensor([[0.0, 1.0], [2.0, 4.0]])))
    assert [heat[0, 0], heat[0, 63], heat[63, 0], heat[63, 63]] == [0, 64, 128, 255]


def test_a_constant_image_makes_a_picture():
    images = torch.full((2, 1, 4, 4), 7.0)
    assert pixels(Shades.of(images).png(images[0])).max() == 0
