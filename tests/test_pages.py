"""The pages on forgetting without labels and by concepts: their code runs, and their fields are the methods'."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from expunge import concepts
from expunge.methods import load

DOCS = Path(__file__).parent.parent / "docs"


def run(page: str) -> None:
    torch.manual_seed(0)
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(code, {})


def test_the_page_on_forgetting_without_labels_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run("laf.md")
    said = capsys.readouterr().out
    agreement = re.search(r"^head:input \{'retain': ([\d.]+), 'forget': ([\d.]+)\} ", said)
    assert agreement is not None
    assert float(agreement[1]) > 0.95
    assert float(agreement[2]) < 0.9  # of the forgotten samples' predictions many are others now


def test_the_page_on_concepts_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run("concepts.md")
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in said] == ["localized", "none"]
    assert all(float(line[1]) < 0.5 for line in said)


def test_fields_and_defaults_in_the_table_are_those_of_laf() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", (DOCS / "laf.md").read_text(encoding="utf-8"), re.MULTILINE)
    said = {name: value for names, values in rows for name, value in zip(*map(words, (names, values)), strict=False)}
    own = {f.name: f.default for f in fields(load("laf"))}
    assert len(said) > 10
    assert {n: v for n, v in said.items() if n not in own or shown(own[n]) != v} == {}


def words(text: str) -> list[str]:
    return [w.strip().strip("`") for w in text.split(",")]


def shown(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return "unset" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize("name", ["concept_poisoning", "concept_masking"])
def test_settings_named_in_the_page_on_concepts_are_fields(name: str) -> None:
    page = (DOCS / "concepts.md").read_text(encoding="utf-8")
    part = page.partition("## Language models")[2 if name == "concept_masking" else 0]
    named = set(re.findall(r"`(\w+)=", part))
    assert named
    assert named <= {f.name for f in fields(load(name))}


def test_the_pieces_named_in_the_page_are_there() -> None:
    page = (DOCS / "concepts.md").read_text(encoding="utf-8")
    part = page.partition("## The pieces")[2].partition("##")[0]
    names = [n for n in re.findall(r"`(\w+)`", part)]
    assert len(names) > 5
    assert [n for n in names if not hasattr(concepts, n)] == []
