"""The control that does nothing does exactly that."""

from __future__ import annotations

import torch

from cases import CASES, blobs, deep
from expunge.methods import load, names
from expunge.task import Classification
from expunge.tensors import weights_digest
from expunge.unlearn import unlearn


def test_weights_are_bit_identical_in_another_module():
    for model in (deep(), CASES["tied"].make()[0], deep(torch.bfloat16)):
        done = unlearn(load("no_op")(), model, Classification(), forget=["train/0"])
        assert done.model is not model
        assert weights_digest(done.model) == weights_digest(model)
        assert done.changed.count == 0
        assert done.changed.share == 0
        assert done.note == "A control: nothing was changed."
        owned = {p.data_ptr() for p in model.parameters()}
        assert owned.isdisjoint(p.data_ptr() for p in done.model.parameters())
        with torch.no_grad():
            next(done.model.parameters()).add_(1)
        assert weights_digest(done.model) != weights_digest(model)


def test_is_a_control_and_reads_no_sample():
    data = blobs(4).watched()
    unlearn(load("no_op")(), deep(), Classification(), forget=data)
    assert data.unread == data.ids
    assert "no_op" not in names()
    assert "no_op" in names(controls=True)
