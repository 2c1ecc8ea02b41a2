"""What ``expunge requests list`` asks the ledger for: the open requests by their index, and no table as a whole."""

from __future__ import annotations

import sqlite3
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from expunge.ledger import Ledger, Request, book
from shell import Run

DAY = date(2025, 3, 1)


def test_the_list_of_open_requests_reads_an_index_and_no_table(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger.open(tmp_path / "r", create=True) as ledger:
        ledger.receive_all(Request(f"r{n:04}", "ids", (str(n),), received=DAY, due=DAY) for n in range(1200))
        for n in range(0, 1200, 100):
            ledger.record(f"r{n:04}", "refused", {"reason": "no"})
    asked: list[str] = []
    connect = book.connect

    def telling(*given: Any) -> sqlite3.Connection:
        db = connect(*given)
        db.set_trace_callback(asked.append)
        return db

    monkeypatch.setattr(book, "connect", telling)
    code, out, err = run("requests", "list", "--workspace", "r")
    assert code == 0, err
    assert "1,188 open requests: 1,188 received." in out
    reads = [statement for statement in asked if statement.startswith("SELECT")]
    with sqlite3.connect(tmp_path / "r" / "ledger.sqlite3") as db:
        plans = [row[-1] for statement in reads for row in db.execute(f"EXPLAIN QUERY PLAN {statement}")]
    assert sum("SEARCH latest USING INDEX latest_open" in plan for plan in plans) == 3  # pages of 500
    assert [plan for plan in plans if "SCAN" in plan and plan != "SCAN meta"] == []
