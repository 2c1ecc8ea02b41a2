"""The bank of concepts: C2, negatives, what is dropped, what a state keeps."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from torch import Tensor

from expunge.concepts.bank import Bank, _against
from expunge.concepts.cav import Cav, Concept, Rules
from expunge.errors import Incompatible, NotFinite, UserError
from expunge.method import State

D = torch.float64
FEW = Rules(least=10, draws=4)


def rows(n: int, along: int | None = None, seed: int = 0, d: int = 5) -> Tensor:
    found = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=D)
    if along is not None:
        found[:, along] += 5
    return found


def two() -> Bank:
    return Bank(("a", "b"), torch.tensor([[3.0, 4], [0, 2]], dtype=D), torch.tensor([5.0, 0], dtype=D), ({}, {"n": 1}))


def test_scores_are_geometric_margins_by_hand():
    bank = Bank(("a",), torch.tensor([[3.0, 4]], dtype=D), torch.tensor([5.0], dtype=D), ({},))
    f = torch.tensor([[1.0, 2], [-1, 0]], dtype=D)
    assert bank.scores(f).flatten().tolist() == pytest.approx([3.2, 0.4])
    without = Bank(("a",), bank.vectors, torch.zeros(1, dtype=D), ({},)).scores(f) / 5  # the paper's form
    assert without.flatten().tolist() == pytest.approx([0.44, -0.12])
    assert bank.scores(f.float()).dtype == torch.float32


def test_scores_are_those_of_a_loop():
    bank, f = two(), rows(7, d=2)
    for i in range(7):
        for j in range(2):
            c, b = bank.vectors[j], bank.intercepts[j]
            assert bank.scores(f)[i, j] == pytest.approx(float((c @ f[i] + b) / c.norm()))
    assert torch.allclose(bank.units.norm(dim=1), torch.ones(2, dtype=D))


def test_a_state_keeps_a_bank(tmp_path):
    bank = Bank(("a", "b"), two().vectors, two().intercepts, two().facts, ({"name": "c", "dropped": "why"},))
    State(bank.tensors(), {"bank": bank.meta()}).save(tmp_path / "s.safetensors")
    state = State.load(tmp_path / "s.safetensors")
    again = Bank.read(state.tensors, state.meta["bank"])
    assert torch.equal(again.vectors, bank.vectors)
    assert torch.equal(again.intercepts, bank.intercepts)
    assert (again.names, again.facts, again.dropped) == (bank.names, bank.facts, bank.dropped)
    json.dumps(bank.meta())


def test_a_state_without_a_bank_is_refused():
    with pytest.raises(Incompatible, match="a bank of concepts in the state, got none: prepare anew"):
        Bank.read({}, {})


def test_concepts_are_taken_by_position():
    bank = two().take([1])
    assert (bank.names, bank.facts, bank.vectors.tolist()) == (("b",), ({"n": 1},), [[0, 2]])


def test_concepts_without_negatives_are_told_from_the_others_and_from_random_samples():
    concepts = [Concept("x", rows(40, 0, 1)), Concept("y", rows(40, 1, 2))]
    bank = Bank.fit(concepts, random=rows(200, seed=3), rules=FEW)
    assert bank.names == ("x", "y")
    assert [int(v.argmax()) for v in bank.vectors] == [0, 1]
    s = bank.scores(torch.cat([rows(20, 0, 4), rows(20, 1, 5), rows(20, seed=6)]))
    assert (s[:20, 0] > 0).double().mean() > 0.8
    assert (s[20:, 0] < 0).double().mean() > 0.8
    assert bank.facts[0]["accuracy"] > 0.8
    json.dumps(bank.meta())


def test_as_many_random_rows_as_others_are_negatives():
    concepts, random = [Concept("x", rows(40, 0, 1)), Concept("y", rows(30, 1, 2))], rows(200, seed=3)
    found = _against(concepts[0], concepts, random, 0).negatives
    assert found is not None
    assert torch.equal(found[:30], concepts[1].positives)
    assert len(found) == 60
    assert all((row == random).all(dim=1).sum() == 1 for row in found[30:])
    assert len(torch.unique(found, dim=0)) == 60
    alone = _against(concepts[0], concepts[:1], random, 0).negatives
    assert alone is not None
    assert len(alone) == 200


def test_negatives_of_its_own_are_used_alone():
    own = rows(60, 1, 7)
    bank = Bank.fit([Concept("x", rows(40, 0, 1), own), Concept("y", rows(40, 2, 2))], random=rows(90), rules=FEW)
    want = Bank.fit([Concept("x", rows(40, 0, 1), own)], rules=FEW)
    assert torch.equal(bank.vectors[0], want.vectors[0])


def test_the_same_seed_gives_the_same_bank_and_order_changes_no_concept_with_negatives():
    a, b = Concept("x", rows(40, 0, 1), rows(80, seed=8)), Concept("y", rows(40, 1, 2), rows(80, seed=9))
    one, two = Bank.fit([a, b], rules=FEW), Bank.fit([b, a], rules=FEW)
    assert torch.equal(one.vectors, two.vectors.flip(0))


def test_concepts_that_do_not_separate_are_dropped_and_said(caplog):
    concepts = [Concept("x", rows(40, 0, 1)), Concept("noise", rows(300, seed=2)), Concept("v", vector=torch.ones(5))]
    with caplog.at_level(logging.INFO):
        bank = Bank.fit(concepts, random=rows(600, seed=3), rules=Rules(least=10, draws=4, accuracy=0.8))
    assert bank.names == ("x", "v")
    assert [d["name"] for d in bank.dropped] == ["noise"]
    assert "do not separate" in bank.dropped[0]["dropped"]
    assert "concept noise is dropped: its examples do not separate" in caplog.text
    assert bank.vectors[1].tolist() == [1] * 5
    assert bank.facts[1]["accuracy"] is None


def test_a_test_counts_every_fitted_concept():
    g = [torch.eye(5, dtype=D)[:1].repeat(30, 1)]
    alone = Bank.fit([Concept("x", rows(40, 0, 1), rows(400, seed=8))], gradients=g, rules=Rules(least=10))
    given = Concept("v", vector=torch.ones(5))
    two = [Concept("x", rows(40, 0, 1), rows(400, seed=8)), Concept("y", rows(40, 0, 2), rows(400, seed=9)), given]
    both = Bank.fit(two, gradients=g, rules=Rules(least=10))
    assert both.facts[0]["p"] == pytest.approx(2 * alone.facts[0]["p"])


def test_a_bank_without_any_concept_left_is_refused_with_the_reasons():
    with pytest.raises(UserError, match=r"a concept that can be used, got noise: its examples do not separate: .*give"):
        Bank.fit([Concept("noise", rows(300, seed=2), rows(300, seed=3))], rules=FEW)
    with pytest.raises(UserError, match="a concept that can be used, got none"):
        Bank.fit([])


def test_a_concept_with_nothing_to_be_told_from_is_refused():
    with pytest.raises(UserError, match="something to tell concept x from, got nothing"):
        Bank.fit([Concept("x", rows(40))])
    with pytest.raises(UserError, match=r"representations \(n, 5\), as of concept x, got shape \(9, 4\)"):
        Bank.fit([Concept("x", rows(60))], random=rows(9, d=4))


def test_vectors_that_do_not_fit_together_are_refused():
    with pytest.raises(UserError, match="concepts of one layer, got vectors of 2 and 3"):
        Bank.of([Cav("a", torch.ones(2), 0.0), Cav("b", torch.ones(3), 0.0)])
    with pytest.raises(UserError, match="concepts of different names, got a more than once"):
        Bank.of([Cav("a", torch.ones(2), 0.0), Cav("a", torch.ones(2), 0.0)])
    with pytest.raises(UserError, match=r"2 vectors \(m, d\) and intercepts \(m,\)"):
        Bank(("a", "b"), torch.ones(1, 2), torch.ones(2), ({}, {}))
    with pytest.raises(UserError, match="that are not 0, got zeros for b"):
        Bank(("a", "b"), torch.eye(2) * torch.tensor([[1.0], [0]]), torch.ones(2), ({}, {}))
    with pytest.raises(NotFinite, match="concept bank"):
        Bank(("a",), torch.ones(1, 2) / 0, torch.ones(1), ({},))
    with pytest.raises(UserError, match=r"representations \(N, 2\), as the bank's, got shape \(3, 4\)"):
        two().scores(torch.zeros(3, 4))
