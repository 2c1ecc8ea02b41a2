"""Several processes on one ledger, also such as are killed at any moment: what was acknowledged is there, once."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from expunge.ledger import Ledger

WRITER = Path(__file__).with_name("writer.py")


def start(*words):
    return subprocess.Popen([sys.executable, WRITER, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def held(folder, acknowledged):
    """Hold a ledger to what was acknowledged: nothing lost, nothing twice, all as it should be."""
    with Ledger.open(folder, create=True) as ledger:
        assert ledger.check() == []
        events = list(ledger.events())
        twice = [key for key, count in Counter((e.request, e.step) for e in events).items() if count > 1]
        assert twice == []
        there = {e.request if e.step == "received" else f"{e.request}:{e.step}" for e in events}
        assert set(acknowledged) <= there
        for status in ledger.all():
            if not status.erased:
                assert ledger.request(status.request).values[0] == f"train/{status.request}"
        return len(events)


def test_eight_processes_add_at_once(folder):
    running = [start("write", folder, f"w{n}", "15") for n in range(8)]
    said = []
    for process in running:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        said += out.split()
    assert len(set(said)) == len(said) == 120
    assert held(folder, said) == 120


def kills(folder, count, seed, what="kill"):
    """Kill writers, several at a time, each at a random moment; return what they acknowledged."""
    process = start(what, folder, str(count), str(seed))
    out, err = process.communicate(timeout=1800)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    return out.split()


def test_killed_writers_lose_nothing_acknowledged(folder):
    said = kills(folder, 60, seed=0)
    assert {"refused", "erased"} <= {line.rpartition(":")[2] for line in said}
    assert held(folder, said) >= len(said)


def test_writers_killed_while_they_make_the_ledger_leave_one_that_is_whole_or_none(folder):
    said = kills(folder, 24, seed=1, what="make")
    for number in range(24):
        own = [s for s in said if int(s[1:].split(".")[0]) // 2 == number]
        assert held(folder / str(number), own) >= len(own)


@pytest.mark.soak
def test_a_thousand_killed_writers_lose_nothing_acknowledged(folder):
    said = kills(folder, 1000, seed=2)
    assert held(folder, said) >= len(said) >= 1000
