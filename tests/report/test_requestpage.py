"""The page of a request's record, its charts, and requests as a table for a spreadsheet."""

from __future__ import annotations

import copy
import csv
import io
from pathlib import Path
from typing import Any

import pytest

import records
from audits import HOSTILE
from expunge.report import requestcharts, requestcsv, requestpage
from expunge.service.record import record_of
from htmls import check


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with records.story(tmp_path_factory.mktemp("l") / "ledger") as ledger:
        return record_of(ledger, "req-7")


@pytest.fixture
def record(whole: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(whole)


def text(record: dict[str, Any]) -> str:
    page = requestpage.render(record)
    return str(check({"r.html": page})["r.html"].text)


def test_the_page_tells_what_was_asked_done_and_measured(record: dict[str, Any]) -> None:
    said = text(record)
    assert (
        "Asked to forget 3 sample ids, received on 31 January 2025, closed on 22 February 2025, 8 days before" in said
    )
    assert "Put on hold the identity of who asks is checked" in said
    assert "accuracy, test set 93.0% (91.0 to 95.0) 92.8% (90.8 to 94.8) −0.2 points 500" in said
    assert "loss, test set 0.200 nats (0.190 to 0.210) 0.250 nats (0.240 to 0.260) +0.050 nats" in said
    assert "right before, wrong now, test set – 3.0% (2.0 to 4.0) – 500" in said
    assert "Selective Synaptic Dampening”, AAAI, 2024, https://arxiv.org/abs/2308.07707" in said
    assert "a" * 64 in said
    assert "Why it failed Bound missed: accuracy/test >= 0.9, got 0.87." in said
    assert "accuracy, test set is held to >= 90.0%: 2.8 points left." in said
    assert "Change of accuracy in points by label" in said
    assert "accuracy, test set over the requests fulfilled: 93.0 ± 2.0% after 1, 92.8 ± 2.0% after 7" in said
    assert "destroyed: v000007" in said
    for limit in record["limits"]:
        assert " ".join(limit.split()) in said
    assert requestpage.render(record) == requestpage.render(record)


@pytest.mark.parametrize(
    ("days", "status", "overdue", "expected"),
    [
        ({"closed": "2025-03-02", "left": 0, "in_time": True}, {}, False, "on the day it was due."),
        ({"closed": "2025-03-04", "left": -2, "in_time": False}, {}, False, "2 days late."),
        ({"closed": None, "left": None, "in_time": None}, {}, True, "due on 2 March 2025, overdue."),
        ({"closed": None, "left": None, "in_time": None}, {}, False, "due on 2 March 2025, not closed yet."),
        ({"closed": None, "left": None, "in_time": None}, {"refused": "exempt"}, False, "refused: exempt."),
    ],
)
def test_the_first_sentence_says_whether_it_was_in_time(
    record: dict[str, Any], days: Any, status: Any, overdue: bool, expected: str
) -> None:
    record["account"]["days"] = days
    record["account"]["status"] |= status
    record["overdue"] = overdue
    assert requestpage.lead(record).endswith(expected)
    assert expected in text(record)


def test_many_numbers_are_folded_after_those_that_tell_most(record: dict[str, Any]) -> None:
    attempt = record["models"]["model"]["attempts"][2]
    more = [{"name": f"zrf/{i}", "label": f"number {i}", "before": None, "after": None, "gap": None} for i in range(30)]
    attempt["numbers"] = [*more, *attempt["numbers"]]
    said = text(record)
    assert "More numbers 30" in said
    assert "number 3 not recorded not recorded – " in said


def test_hostile_names_stay_text_everywhere(record: dict[str, Any]) -> None:
    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: poisoned(v) for k, v in value.items()}
        if isinstance(value, list):
            return [poisoned(v) for v in value]
        return HOSTILE if isinstance(value, str) and value not in KEPT else value

    KEPT = {"ids", "edit", "retrain", "deployed", "replaced", "failed", "1", "nats", ">=", "2025-03-02", "2025-01-31"}
    page = requestpage.render(poisoned(record))
    check({"r.html": page})
    assert "<script>" not in page
    assert "\x1b" not in page


def test_charts_are_left_out_where_there_is_nothing_to_draw() -> None:
    assert requestcharts.groups("label", [{"at": "3", "change": None}], "k") is None
    one = [{"at": 1, **records.number(0.9)}]
    assert requestcharts.decay("accuracy", one, "k") is None
    two = [*one, {"at": 2, **records.number(0.8)}]
    bound = {"sign": ">=", "number": 0.85}
    assert "bound &gt;= 85.0" in (requestcharts.decay("accuracy", two, "k", bound=bound, retrained=[2]) or "")
    rows = [{"at": str(i), "change": records.number(i / 1000)} for i in range(40)]
    told = requestcharts.groups("label", rows, "k") or ""
    assert "39 +3.9" in told  # those that changed most are drawn
    assert "points by label: 16 " in told


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r", "\n", " =", "＝"])
def test_no_cell_is_a_formula(sign: str) -> None:
    cell = f'{sign}cmd|"/c calc"!A1'
    rows = list(csv.DictReader(io.StringIO(requestcsv.table([{"request": cell, "count": -1}]), newline="")))
    assert rows[0]["request"] == f"'{cell}"
    assert rows[0]["count"] == "-1"
    assert rows[0]["due"] == ""


def test_cells_keep_quotes_commas_and_lines() -> None:
    cells = ['a"b', "a,b", "a\nb", "req-1", "ä"]
    rows = list(csv.reader(io.StringIO(requestcsv.table([{"request": c} for c in cells]), newline="")))
    assert rows[0] == list(requestcsv.COLUMNS)
    assert [row[0] for row in rows[1:]] == cells


def test_a_page_needs_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "import sys; import expunge.report.requestpage, expunge.report.requestcsv; assert 'torch' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
