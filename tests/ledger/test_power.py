"""A loss of power below SQLite: of what was not synced any part is kept, or torn; what was said is there."""

import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from expunge.ledger import Ledger

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def power(tmp_path_factory):
    """Return the library that cuts the power, where it can be made."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler here, or no Linux")
    library = tmp_path_factory.mktemp("power") / "cut.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "cut.c", "-ldl"], check=True)
    return library


def lives(power, folder, count, seed):
    """Cut the power of so many writers; hold each one's ledger to what it said, and return how much that was."""
    run = subprocess.run(
        [sys.executable, HERE / "powered.py", folder, str(count), str(seed)],
        env={**os.environ, "LD_PRELOAD": str(power)},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert run.returncode == 0, run.stderr
    said = defaultdict(list)
    for line in run.stderr.splitlines():
        number, _, word = line.partition(" ")
        said[int(number)].append(word)
    for number in range(count):
        for file in (folder / str(number)).glob("*-shm"):
            file.unlink()  # as after a restart: it is only in memory
        with Ledger.open(folder / str(number), create=True) as ledger:
            problems, events = ledger.check(), list(ledger.events())
            there = {e.request if e.step == "received" else f"{e.request}:{e.step}" for e in events}
            assert problems == [], (number, problems)
            assert set(said[number]) <= there, (number, set(said[number]) - there)
            for status in ledger.all():
                if not status.erased:
                    assert ledger.request(status.request).values[0] == f"train/{status.request}"
    return sum(map(len, said.values()))


def test_what_was_said_before_the_power_was_cut_is_there(power, tmp_path):
    assert lives(power, tmp_path, 30, seed=0) > 100


@pytest.mark.soak
def test_what_was_said_before_the_power_was_cut_a_thousand_times_is_there(power, tmp_path):
    assert lives(power, tmp_path, 1000, seed=1000) > 5_000
