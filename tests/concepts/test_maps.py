"""Maps of concepts: C8, the mean of a map is the score, occlusion beside a loop, one forward pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from expunge.concepts.maps import Localiser, Spatial, enlarged, peaks, score_maps, spatial, spread, window_means
from expunge.concepts.windows import Grid
from expunge.data import Batch
from expunge.errors import UserError
from expunge.task import Classification
from expunge.zoo.networks import ConvNet, ConvNet4, LeNet, ResNet18

D = torch.float64
TASK = Classification()


def batch(images: Tensor) -> Batch:
    return Batch(images, None, None, torch.arange(len(images)))


def images(n: int = 3, channels: int = 3, side: int = 16) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(n, channels, side, side, dtype=D)


def test_a_map_by_hand():
    features = torch.tensor([[[[1.0, 3], [0, 2]], [[2, 0], [1, 5]]]], dtype=D)
    made = score_maps(features, torch.tensor([[3.0, 4]]), torch.tensor([5.0]))
    torch.testing.assert_close(made, torch.tensor([[[[3.2, 2.8], [1.8, 6.2]]]], dtype=D))
    assert float(made.mean()) == pytest.approx(3.5)
    assert int(made.flatten().argmax()) == 3  # row 1, column 1


@pytest.mark.parametrize(
    ("build", "tap", "cells"),
    [(ResNet18, "stages", (1, 1)), (ConvNet4, "block4", (1, 1)), (ConvNet, "body", (2, 2))],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_mean_of_a_map_is_the_score_of_the_pooled_features(build: type[nn.Module], tap: str, cells: tuple):
    torch.manual_seed(0)
    model = build((3, 16, 16), 4).double().eval()
    found = spatial(model, TASK, batch(images()), "head:input")
    assert found is not None
    assert found.tap.startswith(tap)
    assert found.cells == cells
    _, tapped = TASK.forward(model, batch(images()), [found.tap, "head:input"])
    f = tapped["head:input"]
    c, b = torch.randn(5, f.shape[1], dtype=D), torch.randn(5, dtype=D)
    made = score_maps(tapped[found.tap], c, b, found.cells)
    torch.testing.assert_close(made.mean((2, 3)), (f @ c.T + b) / c.norm(dim=1))


def test_features_that_are_not_averaged_are_not_taken_for_spatial_ones():
    torch.manual_seed(0)
    lenet = LeNet((3, 16, 16), 4).double()
    assert spatial(lenet, TASK, batch(images()), "head:input") is None
    assert spatial(ConvNet4((3, 16, 16), 4).double(), TASK, batch(images()), "block4") is None
    assert not any(m._forward_hooks for m in lenet.modules())
    single = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).double()
    assert spatial(single, TASK, batch(images()), "2:input") is None  # the image itself is no module's output


def test_uneven_parts_are_no_means_of_equal_ones():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(18, 2)).double()
    found = spatial(model, TASK, batch(images()), "3:input")
    assert found == Spatial("1", (3, 3))  # 16 pixels have no three equal parts: the pooled features themselves


def test_windows_count_by_the_mean_of_the_map():
    torch.manual_seed(4)
    maps, grid = torch.randn(2, 3, 6, 8, dtype=D), Grid(6, 8, 3, 2)
    values = window_means(maps, grid)
    assert values.shape == (2, 3, grid.rows, grid.cols)
    for n, (top, left) in enumerate(grid.corners().tolist()):
        want = maps[:, :, top : top + 3, left : left + 3].mean((2, 3))
        torch.testing.assert_close(values.flatten(2)[:, :, n], want)
    best = values.flatten(2).argmax(2)
    assert torch.equal(peaks(values, grid), grid.centres()[best])


class Counted(nn.Module):
    """Counts the images it is given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.inner(x)


def test_a_bright_spot_is_found_in_one_forward_pass():
    """A network whose first channel is brightness: the concept lies where the image is bright."""
    inner = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    model = Counted(inner.double())
    with torch.no_grad():
        inner[0].weight.copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))
        inner[0].bias.zero_()
    x = torch.zeros(3, 1, 16, 16, dtype=D)
    for i, (y, z) in enumerate([(2, 3), (9, 12), (13, 1)]):
        x[i, 0, y - 1 : y + 2, z - 1 : z + 2] = 5
    features = spatial(model, TASK, batch(x), "inner.4:input")
    c = torch.tensor([[1.0, 0.0]], dtype=D)
    model.seen = 0
    localiser = Localiser(model, TASK, "inner.4:input", features, c, torch.zeros(1, dtype=D), torch.zeros(1))
    values, maps = localiser.found(batch(x), Grid(16, 16, 3, 1))
    assert model.seen == 3
    assert localiser.passes.startswith("one forward pass")
    assert maps.shape == (3, 1, 16, 16)
    assert peaks(values, Grid(16, 16, 3, 1))[:, 0].tolist() == [[2.5, 3.5], [9.5, 12.5], [13.5, 1.5]]


def test_without_spatial_features_windows_are_covered_one_after_another():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, grid = torch.randn(3, 3, 4, 4, dtype=D), Grid(4, 4, 2, 1)
    c, b, colour = torch.randn(2, 5, dtype=D), torch.randn(2, dtype=D), torch.tensor([0.5, -1.0, 2.0])
    values, maps = Localiser(model, TASK, "3:input", None, c, b, colour).found(batch(x), grid)
    for i in range(3):
        for n, (top, left) in enumerate(grid.corners().tolist()):
            covered = x[i : i + 1].clone()
            covered[0, :, top : top + 2, left : left + 2] = colour.double()[:, None, None]
            drop = ((model[:3](x[i : i + 1]) - model[:3](covered)) @ c.T / c.norm(dim=1))[0]
            torch.testing.assert_close(values[i].flatten(1)[:, n], drop)
    for y, z in [(0, 0), (1, 2), (3, 3)]:
        holds = [n for n, (t, s) in enumerate(grid.corners().tolist()) if t <= y < t + 2 and s <= z < s + 2]
        torch.testing.assert_close(maps[:, :, y, z], values.flatten(2)[:, :, holds].mean(2))


def test_places_that_no_window_holds_are_zero():
    made = spread(torch.ones(1, 1, 4, dtype=D), Grid(5, 5, 2, 2))
    assert made[0, 0, 4].tolist() == [0] * 5
    assert bool((made[0, 0, :4, :4] == 1).all())


def test_concepts_of_another_width_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.Linear(5, 2)).double()
    at = Localiser(model, TASK, "2:input", None, torch.randn(1, 4), torch.zeros(1), torch.zeros(3))
    with pytest.raises(UserError, match=r"Expected concepts of 5 numbers, as at 2:input, got vectors of 4: fit them"):
        at.found(batch(torch.randn(2, 3, 4, 4, dtype=D)), Grid(4, 4, 2, 1))


def test_maps_are_enlarged_to_the_image():
    assert enlarged(torch.ones(2, 3, 4, 5), 8, 9).shape == (2, 3, 8, 9)
