"""What a ledger of 100,000 requests costs: adding one, beside the disk; listing the open ones, beside their index.

1. Adding: requests are received one at a time, each acknowledged when the disk has it; between them, rows of as many
   bytes are inserted into a plain table of a file as large, in the same mode (WAL, ``synchronous=FULL``). Blocks of the
   two take turns. The ratio of their times is the cost of a ledger over the disk's own. Target: at most 2.
2. Listing: `open_requests` with 100 open of all, beside reading the index of the open ones alone, and beside reading
   the statuses of all requests. The query plan is printed: it names the index, and no scan of the table.

    python benchmarks/ledger.py
    python benchmarks/ledger.py --requests 10000 --adds 500 --folder FOLDER
"""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path

import numpy as np

from expunge.ledger import Entry, Ledger, Request
from expunge.ledger.book import OPEN
from expunge.ledger.database import LEDGER, connect, file_system

DAY = date(2025, 1, 1)
BLOCK = 25  # adds of one kind before the other has its turn


def requests(first: int, count: int) -> Iterator[Request]:
    for n in range(first, first + count):
        due = DAY + timedelta(days=30 + n % 300)
        yield Request(f"request-{n:07d}", "ids", (f"train/{n}", f"train/{n + 1}"), received=DAY, due=due)


def stored(db: sqlite3.Connection) -> int:
    """Return the bytes of one request in the ledger: its event, its status, its sealed payload."""
    event = db.execute("SELECT * FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    status = db.execute("SELECT * FROM latest WHERE request = ?", [event[1]]).fetchone()
    payload = db.execute("SELECT * FROM payloads ORDER BY key DESC LIMIT 1").fetchone()
    return sum(len(v) if isinstance(v, str | bytes) else 8 for v in (*event, *status, *payload))


def plain(path: Path, size: int, count: int) -> sqlite3.Connection:
    """Return a file with a table of ``count`` rows of ``size`` bytes, in the ledger's mode."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE plain (id INTEGER PRIMARY KEY, body BLOB NOT NULL)")
    db.execute("BEGIN")
    db.executemany("INSERT INTO plain (body) VALUES (?)", ([os.urandom(size)] for _ in range(count)))
    db.execute("COMMIT")
    return db


def timed(work: Callable[[], object], times: int = 1) -> float:
    """Return the seconds of one call, the median of several."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return float(np.median(found))


def adding(ledger: Ledger, folder: Path, count: int, adds: int) -> None:
    with closing(connect(folder / LEDGER)) as db:
        size = stored(db)
    own: list[float] = []
    other: list[float] = []
    with closing(plain(folder / "plain.sqlite3", size, count)) as table:
        for start in range(0, adds, BLOCK):
            own += [timed(lambda r=r: ledger.receive(r)) for r in requests(count + start, BLOCK)]
            for _ in range(BLOCK):
                row = [os.urandom(size)]
                other.append(timed(lambda row=row: table.execute("INSERT INTO plain (body) VALUES (?)", row)))
    print(f"{len(own)} added to {count:,}, {size} bytes each")
    for name, found in (("ledger", own), ("plain insert", other)):
        middle, late = np.median(found) * 1000, np.quantile(found, 0.99) * 1000
        print(f"  {name}: {len(found) / sum(found):.0f}/s, median {middle:.2f} ms, 99 % {late:.2f} ms")
    print(f"  ratio of all time {sum(own) / sum(other):.2f}, of medians {np.median(own) / np.median(other):.2f}")


def listing(ledger: Ledger, folder: Path) -> None:
    with closing(connect(folder / LEDGER)) as db:
        index = "SELECT due, request FROM latest WHERE open = 1 ORDER BY due, request"
        alone = timed(lambda: db.execute(index).fetchall(), 21)
        rows = timed(lambda: db.execute(OPEN, ["", ""]).fetchall(), 21)
        whole = timed(lambda: db.execute("SELECT status FROM latest").fetchall(), 3)
        plan = [row[-1] for row in db.execute(f"EXPLAIN QUERY PLAN {OPEN}", ["", ""])]
    found = len(list(ledger.open_requests()))
    own = timed(lambda: list(ledger.open_requests()), 21)
    print(f"{found} open requests listed")
    print(f"  the index alone {alone * 1000:.2f} ms; with the rows it names {rows * 1000:.2f} ms")
    print(f"  open_requests {own * 1000:.2f} ms, {own / alone:.1f} times the index alone")
    print(f"  every status read {whole * 1000:.0f} ms, {whole / own:.0f} times open_requests")
    print(f"  plan: {'; '.join(plan)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--open", type=int, default=100)
    parser.add_argument("--adds", type=int, default=2000)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default the system's temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {file_system(folder)}")
        with Ledger.open(folder, create=True, actor="benchmark") as ledger:
            seconds = timed(lambda: ledger.receive_all(requests(0, args.requests)))
            print(f"{args.requests:,} received at once in {seconds:.1f} s")
            adding(ledger, folder, args.requests, args.adds)
            ids = (s.request for s in list(ledger.all())[args.open :])
            ledger.record_all([Entry(i, "refused", {"reason": "benchmark"}) for i in ids])
            listing(ledger, folder)
            seconds = timed(lambda: print(f"check: {len(ledger.check())} problems"))
            print(f"  {ledger.head().seq:,} events checked in {seconds:.1f} s")


if __name__ == "__main__":
    main()
