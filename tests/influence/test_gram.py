"""Products of per-sample gradients in factors, tiles and blocks, beside all gradients in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, QUIET
from expunge.data import Data
from expunge.errors import UserError
from expunge.fisher.kernels import Dense, Outer, Patches, Rows
from expunge.influence import OfModel, Space, gram
from expunge.influence.gram import products, rows_of
from expunge.runtime import Runtime
from expunge.task import Classification

D = torch.float64
NAMES = [name for name in CASES if name != "embedding_by_frequency"]


def scales(space: Space) -> Tensor:
    """Return a damping that differs from parameter to parameter."""
    return space.filled({name: 1.0 + i for i, name in enumerate(space.params)})


@pytest.mark.parametrize("name", NAMES)
def test_products_of_gradients_are_those_of_the_whole_matrix(name: str):
    """Of eight samples in batches of three; in the little room parameters go apart and samples in blocks of a few."""
    case = CASES[name]
    model, data = case.make()
    space = Space(model)
    whole = rows_of(model, case.task, data, QUIET)
    d = scales(space)
    for room in (None, 2000):
        rows = OfModel(space, case.task, data, QUIET, room=room)
        torch.testing.assert_close(rows.gram(d), whole.gram(d), rtol=1e-7, atol=1e-10)
    a, v = torch.randn(len(data), dtype=D), torch.randn(space.size, dtype=D)
    torch.testing.assert_close(rows.combine(a), whole.combine(a), rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(rows.apply(v), whole.apply(v), rtol=1e-7, atol=1e-10)


def test_a_part_of_the_parameters_has_the_products_of_that_part():
    case = CASES["residual"]
    model, data = case.make()
    names = ["a.weight", "head.bias"]
    rows = OfModel(Space(model, names), case.task, data, QUIET)
    whole = rows_of(model, case.task, data, QUIET, names)
    ones = torch.ones(rows.size, dtype=D)
    assert rows.size == whole.size == 19
    torch.testing.assert_close(rows.gram(ones), whole.gram(ones))


def test_no_more_room_is_taken_than_given(monkeypatch: pytest.MonkeyPatch):
    """What is held of all samples and the largest tile stay within the room, for parameters that fit in it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten())
    model = nn.Sequential(model, nn.Linear(8 * 36, 10)).eval()
    data = Data.from_arrays(torch.randn(60, 3, 6, 6), torch.arange(60) % 10)
    held, tiles = [0], [0]
    work, formed = gram._Gram._held, gram._formed

    def watched(self, names, order):
        found = work(self, names, order)
        held[0] = max(held[0], sum(gram._bytes(g) for _, some in found for g in some.values()))
        return found

    def noted(gradient, at):
        found = formed(gradient, at)
        tiles[0] = max(tiles[0], found.numel() * found.element_size() * 60 // len(found))
        return found

    monkeypatch.setattr(gram._Gram, "_held", watched)
    monkeypatch.setattr(gram, "_formed", noted)
    room, space = 200_000, Space(model)
    rows = OfModel(space, Classification(), data, Runtime(batch_size=16, progress=False), room=room)
    whole = rows_of(model, Classification(), data, QUIET)
    ones = torch.ones(rows.size, dtype=D)
    torch.testing.assert_close(rows.gram(ones), whole.gram(ones), rtol=1e-4, atol=1e-4)
    assert 0 < held[0] + tiles[0] <= room < 4 * space.size * 60


def factored(kind: str, n: int) -> Dense | Outer | Patches | Rows:
    if kind == "dense":
        return Dense(torch.randn(n, 3, 2, dtype=D))
    if kind == "scalar":
        return Dense(torch.randn(n, dtype=D))
    if kind in ("outer", "outer, positions"):
        t = 1 if kind == "outer" else 4
        return Outer(torch.randn(n, t, 5, dtype=D), torch.randn(n, t, 3, dtype=D))
    return Rows(torch.randint(7, (n, 4)), torch.randn(n, 4, 3, dtype=D), 7, padding=2)


@pytest.mark.parametrize("kind", ["dense", "scalar", "outer", "outer, positions", "rows"])
@pytest.mark.parametrize("tile", [1, 300, 10**6])
def test_products_in_tiles_are_those_of_the_gradients_themselves(kind: str, tile: int):
    left, right = [factored(kind, 3), factored(kind, 2)], [factored(kind, 4)]
    a, b = (torch.cat([g.each(slice(0, len(g))).reshape(len(g), -1) for g in some]) for some in (left, right))
    torch.testing.assert_close(products(left, right, tile), a @ b.T)
    torch.testing.assert_close(products(left, None, tile), a @ a.T)


def test_batches_that_took_another_way_are_matched_by_whole_gradients():
    table = factored("rows", 3)
    whole = Dense(torch.randn(2, 7, 3, dtype=D))
    a = torch.cat([table.each(slice(0, 3)), whole.values]).flatten(1)
    torch.testing.assert_close(products([table, whole], None, 10**6), a @ a.T)


def test_a_damping_that_varies_within_a_parameter_is_refused():
    case = CASES["linear"]
    model, data = case.make()
    space = Space(model)
    rows = OfModel(space, case.task, data, QUIET)
    with pytest.raises(UserError, match="one damping for all weights of a parameter, got several in 0.weight"):
        rows.gram(torch.arange(1.0, space.size + 1, dtype=D))
