"""What is read off logits: numbers worked by hand, saturated logits, blocks of rows, what looks like probabilities."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from expunge import signals
from expunge.evidence import Outputs
from expunge.signals import by_rows, is_chance, is_probabilities
from expunge.signals import signals as read

LN = math.log


def logits(*rows: tuple[float, ...]) -> Tensor:
    """Return logits of these probabilities; one of exactly 0 gets a logit whose exponential is 0."""
    return torch.tensor([[LN(p) if p else -2000.0 for p in row] for row in rows], dtype=torch.float64)


def test_entropies_by_hand() -> None:
    found = read(logits((0.5, 0.25, 0.25, 0.0), (1.0, 0.0, 0.0, 0.0), (0.25,) * 4))
    assert found.entropy.tolist() == pytest.approx([1.0397208, 0.0, LN(4)], abs=1e-7)
    assert [getattr(found, f.name) for f in fields(found)][1:] == [None] * 4


def test_modified_entropies_by_hand() -> None:
    found = read(logits((0.7, 0.2, 0.1), (0.05, 0.9, 0.05), (0.3, 0.3, 0.4)), torch.tensor([0, 1, 0]))
    assert found.entropy.tolist() == pytest.approx([0.80181855, 0.39439769, 1.08889998], abs=1e-8)
    assert found.modified_entropy.tolist() == pytest.approx([0.16216725, 0.01566538, 1.15411370], abs=1e-8)
    assert found.confidence.tolist() == pytest.approx([0.7, 0.9, 0.3])
    assert found.correct.tolist() == [1, 1, 0]
    # The published variant takes ln p for ln(1 - p), and another sample's label.
    assert abs(found.modified_entropy - torch.tensor([0.65914857, 0.31010928, 1.57048910])).min() > 0.2


def test_margins_by_hand() -> None:
    target = torch.zeros(4, dtype=torch.long)
    found = read(
        logits(
            (0.95, 0.05),
            (
                0.95,
                0.03,
            ),
            (0.5, 0.5),
            (0.05, 0.95),
        ),
        target,
    )
    assert found.margin[[0, 2, 3]].tolist() == pytest.approx([2.9444390, 0.0, -2.9444390], abs=1e-7)
    assert read(logits((0.95, 0.03, 0.02)), target[:1]).margin.item() == pytest.approx(2.9444390, abs=1e-7)
    assert float(found.margin[1]) == pytest.approx(LN(0.95 / 0.03))  # logits, not probabilities, are given


def test_exact_zeros() -> None:
    """Of p = (1, 0, 0) under its own label nothing is left over; under another one all of it is."""
    sure = logits((1.0, 0.0, 0.0))
    own = read(sure, torch.tensor([0]))
    assert (own.entropy.item(), own.confidence.item(), own.modified_entropy.item()) == (0.0, 1.0, 0.0)
    assert own.margin.item() == pytest.approx(-LN(1e-45))
    wrong = read(sure, torch.tensor([1]))
    assert (wrong.entropy.item(), wrong.confidence.item(), wrong.correct.item()) == (0.0, 0.0, 0.0)
    assert wrong.modified_entropy.item() > 1000
    assert wrong.margin.item() == pytest.approx(-1000.0)
    assert all(bool(torch.isfinite(getattr(s, f.name)).all()) for s in (own, wrong) for f in fields(s))


@pytest.mark.parametrize("size", [1e4, 1e2, 40.0, 745.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_saturated_logits_give_finite_numbers(size: float, dtype: torch.dtype, label: int) -> None:
    rows = torch.tensor([[size, 0.0, -size], [-size, 0.0, size], [size, size, -size], [-size] * 3], dtype=dtype)
    found = read(rows, torch.full((4,), label))
    for field in fields(found):
        values = getattr(found, field.name)
        assert values.dtype == torch.float64
        assert bool(torch.isfinite(values).all()), field.name
    assert found.entropy[2].item() == pytest.approx(LN(2))
    assert found.entropy[3].item() == pytest.approx(LN(3))


def test_small_differences_survive_in_the_tail() -> None:
    """1 − p_y is summed from the other classes: at p_y = 1 − 1e-18 a difference of 1 and p_y would say 0."""
    tail = logits((1.0, 1e-18))
    found = read(tail, torch.tensor([0]))
    assert found.margin.item() == pytest.approx(-LN(1e-18), rel=1e-9)
    assert found.modified_entropy.item() == pytest.approx(1e-36, rel=1e-6)


def slow(row: Tensor, label: int) -> list[float]:
    """Return the five numbers of one sample, from the definitions."""
    p = (row - row.max()).exp()
    p = (p / p.sum()).tolist()
    left = sum(q for c, q in enumerate(p) if c != label)
    modified = -left * LN(p[label]) - sum(q * LN(1 - q) for c, q in enumerate(p) if c != label)
    best = max(range(len(p)), key=row.tolist().__getitem__)
    return [-sum(q * LN(q) for q in p), p[label], float(best == label), modified, LN(p[label]) - LN(left)]


@given(st.integers(0, 2**31), st.integers(2, 6), st.integers(1, 9), st.integers(1, 40))
def test_they_are_the_definitions_in_blocks_of_any_size(seed: int, classes: int, n: int, block: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = 3 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (n,), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signals, "BLOCK", block)
        found = read(rows, target)
        alone = read(rows)
    table = torch.stack([getattr(found, f.name) for f in fields(found)], dim=1)
    want = torch.tensor([slow(row, int(y)) for row, y in zip(rows, target, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(table, want, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(alone.entropy, found.entropy, rtol=1e-12, atol=1e-15)


def test_shifting_all_logits_changes_nothing() -> None:
    rows = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.arange(20) % 5
    one, other = read(rows, target), read(rows + 37.0, target)
    for field in fields(one):
        torch.testing.assert_close(getattr(one, field.name), getattr(other, field.name), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("n", "step"), [(0, 4), (1, 4), (4, 4), (5, 4), (9, 4), (9, 1)])
def test_rows_are_handed_over_in_blocks(n: int, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "BLOCK", 3 * step)
    sizes: list[int] = []

    def work(rows: Tensor, more: Tensor) -> Tensor:
        assert len(rows) == len(more)
        sizes.append(len(rows))
        return rows.sum(dim=1) + more

    rows, more = torch.arange(3.0 * n).reshape(n, 3), torch.arange(float(n))
    assert torch.equal(by_rows(work, rows, more), rows.sum(dim=1) + more)
    assert sum(sizes) == n
    assert max(sizes) <= step
    assert len(sizes) == max(1, math.ceil(n / step))


def test_rows_wider_than_a_block_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "BLOCK", 2)
    sizes: list[int] = []
    by_rows(lambda rows: sizes.append(len(rows)) or rows, torch.zeros(3, 5))
    assert sizes == [1, 1, 1]


def test_outputs_work_them_out_once() -> None:
    rows = logits((0.7, 0.2, 0.1))
    outputs = Outputs(rows, rows.argmax(dim=1), torch.tensor([0]))
    assert outputs.signals is outputs.signals
    assert outputs.signals.confidence.item() == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        (torch.tensor([[0.2, 0.8], [1.0, 0.0]]), True),
        (torch.tensor([[0.2, 0.8004], [1.0, 0.0]]), True),
        (torch.tensor([[0.2, 0.81], [1.0, 0.0]]), False),
        (torch.tensor([[0.2, 0.8], [2.0, -1.0]]), False),
        (torch.tensor([[0.2, 0.8], [3.0, 1.0]]), False),
        (torch.zeros(3, 2), False),
        (torch.ones(3, 1), False),  # one class: nothing to tell
        (torch.ones(3), False),
        (torch.zeros(0, 3), False),
        (torch.full((2, 2, 2), 0.5), False),
        (torch.full((5, 1000), 0.001, dtype=torch.float16), True),
        (torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).softmax(dim=1), True),
        (torch.randn(500, 7, generator=torch.Generator().manual_seed(0)).softmax(dim=1).bfloat16().double(), True),
        (torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).log_softmax(dim=1), False),
        (torch.tensor([[0.2, math.nan]]), False),
    ],
)
def test_what_looks_like_probabilities(outputs: Tensor, told: bool) -> None:
    assert is_probabilities(outputs) is told


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        ([0.9, 0.8, 0.1, 0.2], True),
        ([0.1, 0.2, 0.0, 0.05], False),  # such as they are they fit no better than after a sigmoid
        ([2.0, 1.0, -2.0, -1.0], False),
        ([0.9, 1.1, 0.1, 0.2], False),
        ([0.5, 0.5, 0.5, 0.5], False),  # an untrained network
    ],
)
def test_chances_are_told_from_logits_by_the_labels(outputs, told):
    values = torch.tensor(outputs)[:, None]
    assert is_chance(values, torch.tensor([1, 1, 0, 0])) is told
    assert is_chance(values, None) is False
    assert is_chance(values[:0], torch.zeros(0)) is False
