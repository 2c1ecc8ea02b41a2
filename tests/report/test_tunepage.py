"""The page of a tuning: what it says and shows of trials, and that it stands alone."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from expunge.report import tunecharts, tunepage


def trial(number: int, chosen: dict[str, Any], value: float | None, state: str = "complete") -> dict[str, Any]:
    values = [] if value is None else [value] * (2 if state == "complete" else 1)
    lengths = [{"accuracy/forget": value, "loss/retain": value}] if values else []
    why = "Expected a finite training loss, got nan: <lower> the rate." if state == "refused" else ""
    return {"number": number, "chosen": chosen, "value": value, "state": state, "values": values, "lengths": lengths,
            "seconds": 0.25, "why": why}  # fmt: skip


@pytest.fixture
def document() -> dict[str, Any]:
    history = [trial(0, {}, 2.0)]
    history += [trial(i, {"alpha": 0.5 * i, "how": "zero" if i % 2 else "skip", "n": i}, 3.0 / i) for i in range(1, 5)]
    history += [trial(5, {"alpha": 90.0, "how": "zero", "n": 3}, 40.0, "pruned")]
    history += [trial(6, {"alpha": 0.1, "how": "skip", "n": 9}, None, "refused")]
    lengths = {"no_op": [{"accuracy/forget": 50.0, "loss/retain": 0.0}]}
    return {
        "expunge": "0.1.0",
        "method": {"name": "ssd", "alpha": 2.0, "how": "skip", "n": 4},
        "default": {"name": "ssd", "alpha": "auto", "how": "zero", "n": 2},
        "chosen": {"alpha": 2.0, "how": "skip", "n": 4},
        "space": {
            "alpha": {"low": 0.1, "high": 100.0, "log": True, "whole": False, "symbol": "α"},
            "how": {"choices": ["zero", "skip"], "symbol": ""},
            "n": {"low": 1, "high": 9, "log": False, "whole": True, "symbol": ""},
        },
        "fixed": {"order": "<data>"},
        "on": [{"data": {"name": "digits"}, "network": "mlp", "request": {}, "text": "digits, mlp, class 3"}],
        "trials": 7,
        "seeds": [100, 101],
        "seed": 0,
        "objective": "retrained",
        "about": "Mean gap.",
        "value": 0.75,
        "default_value": 2.0,
        "best": 4,
        "budget": {"complete": 5, "pruned": 1, "refused": 1, "edits": 11, "seconds": 1.75},
        "compared": {"scales": [{"accuracy/forget": 0.01, "loss/retain": 0.2}], "lengths": lengths,
                     "values": {"no_op": 25.0}},
        "importance": {"alpha": 0.9, "n": 0.08, "how": 0.02},
        "history": history,
    }  # fmt: skip


def test_the_page_says_what_was_chosen_and_shows_every_trial(document: dict[str, Any]) -> None:
    page = tunepage.render([document], created="2025-01-02T03:04:05+00:00", command="expunge tune ssd")
    text = " ".join(re.sub(r"<[^>]+>", " ", page.partition("<main>")[2]).split())
    assert "ssd: alpha = 2, how = skip, n = 4; value 0.75, default settings 2." in text
    assert "alpha α 0.1 to 100, log scale auto 2 90%" in text
    assert "how zero, skip zero skip 2%" in text
    assert "Seeds 100, 101" in text
    assert "order = &lt;data&gt;" in text
    assert "too good by chance" in text
    assert "chosen 0.75 · default settings 2 · nothing done 25" in text
    assert "accuracy/forget 0.01 0.75 2.00 50.00" in text
    rows = page.partition("All trials")[2].count("<tr")
    assert rows == 2 + 7 - 1  # a head and the trials
    assert "given up after 1 seed" in text
    assert "got nan: &lt;lower&gt; the rate" in text
    assert "2 January 2025" in page
    assert "expunge tune ssd" in page


def test_the_page_stands_alone_and_is_the_same_each_time(document: dict[str, Any]) -> None:
    both = [document, copy.deepcopy(document)]
    page = tunepage.render(both)
    assert page == tunepage.render(both)
    assert "<script" not in page
    assert not re.search(r"""(?:src|href)=["'](?!#|data:image)""", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(set(ids)) == len(ids)


def test_a_setting_that_nothing_is_better_than_is_said_to_be_the_default(document: dict[str, Any]) -> None:
    document |= {"best": 0, "chosen": {"alpha": "auto", "how": "zero", "n": 2}, "value": 2.0}
    assert "(the default settings, which nothing tried was better than)" in tunepage.sentence(document)
    document |= {"default_value": None, "best": 4}
    assert "the default settings gave none" in tunepage.sentence(document)
    document["history"][0] |= {"value": None, "state": "refused", "lengths": [], "values": []}
    assert "default settings" in tunepage.render([document])


def test_charts_draw_each_field_and_the_two_that_matter_most(document: dict[str, Any]) -> None:
    svgs = tunecharts.slices(document, "k")
    assert ["over alpha" in svgs[0], "over how" in svgs[1], "over n" in svgs[2]] == [True] * 3
    assert "default: auto" in svgs[0]
    assert "default: zero" not in svgs[1]  # it is one of the choices: a mark among the others
    plane = tunecharts.plane(document, "p")
    assert plane is not None
    assert "value over alpha and n" in plane
    document["space"] = {"alpha": document["space"]["alpha"]}
    assert tunecharts.plane(document, "p") is None
    assert "7 trials" not in tunecharts.history(document, "h")
    assert "6 trials; smallest value 0.75" in tunecharts.history(document, "h")  # one has no value
