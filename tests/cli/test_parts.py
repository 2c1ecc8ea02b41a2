"""``expunge objectives`` and ``expunge anchors``: what they list, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge import anchors, objectives
from shell import Run, refused


def listed(run: Run, *words: str) -> Any:
    code, out, err = run("--json", *words)
    assert code == 0, err
    return json.loads(out)


def test_objectives_are_listed_with_what_they_need(run: Run):
    found = listed(run, "objectives")
    assert sorted(found) == sorted(objectives.names())
    assert found["tau_hinge"]["told"] == {
        "needs": "forget with labels, a loss on held-out data",
        "tasks": "any",
        "bounded": "yes",
    }
    assert found["entropy"]["told"]["tasks"] == "with classes"  # a single logit among them
    assert "accuracy on held-out data (optional)" in found["random_label"]["told"]["needs"]
    assert found["ascent"]["told"]["bounded"] == found["scrub"]["told"]["bounded"] == "by its cap"


def test_anchors_are_listed_with_what_they_read(run: Run):
    found = listed(run, "anchors")
    assert sorted(found) == sorted(anchors.names())
    assert found["none"]["told"] == {"to prepare": "-", "to unlearn": "-"}
    assert found["retain_repair"]["told"]["to unlearn"] == "retain with labels"
    assert found["kl_gaussian"]["told"]["to prepare"].startswith("train with labels")


def test_one_is_told_with_its_fields_and_its_source(run: Run):
    fields = listed(run, "anchors", "retain_repair")["retain_repair"]["fields"]
    assert fields["lam"] == {
        "default": 0.5,
        "symbol": "λ",
        "unit": "1",
        "text": "weight of the retain set, in (0, 1); the objective has 1 − λ",
    }
    said = " ".join(run("objectives", "tau_hinge")[1].split())
    assert "Needs: forget with labels, a loss on held-out data. Tasks: any. Bounded: yes." in said
    assert "Source: none of its own." in run("anchors", "none")[1]


@pytest.mark.parametrize(("kind", "near", "name"), [("objectives", "entropie", "entropy"), ("anchors", "l2s", "l2sp")])
def test_a_name_that_is_not_known_is_refused(kind: str, near: str, name: str, tmp_path: Path):
    assert f"got '{near}': did you mean '{name}'" in refused(tmp_path, kind, near)
