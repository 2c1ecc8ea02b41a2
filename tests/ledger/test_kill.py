"""Several processes on one ledger, also such as are killed at any moment: what was acknowledged is there, once."""

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from expunge.ledger import Ledger

WRITER = Path(__file__).with_name("writer.py")
WRITERS = 4


def start(folder, name, count, *steps):
    return subprocess.Popen(
        [sys.executable, WRITER, folder, name, str(count), *steps],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def held(folder, acknowledged):
    """Hold a ledger to what was acknowledged: nothing lost, nothing twice, all as it should be."""
    with Ledger.open(folder) as ledger:
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
    running = [start(folder, f"w{n}", 15) for n in range(8)]
    said = []
    for process in running:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        said += out.split()
    assert len(set(said)) == len(said) == 120
    assert held(folder, said) == 120


def kills(folder, count, seed):
    """Kill writers, several at a time, each at a random moment of its work; return what they acknowledged."""
    random, said, left = Random(seed), [], count
    while left:
        running = [
            start(folder, f"k{left - n}", 10_000, *(["steps"] if n % 2 else [])) for n in range(min(WRITERS, left))
        ]
        firsts = [process.stdout.readline() for process in running]  # each is at work
        for process in random.sample(running, len(running)):
            time.sleep(random.random() * 0.05)
            process.send_signal(signal.SIGKILL)
        for process, first in zip(running, firsts, strict=True):
            out, err = process.communicate(timeout=120)
            assert process.returncode == -signal.SIGKILL, err  # none ended by itself, on an error
            said += (first + out.rpartition("\n")[0]).split()  # a line that was cut is no acknowledgement
        left -= len(running)
        if left % 100 == 0:
            held(folder, said)
    return said


def test_killed_writers_lose_nothing_acknowledged(folder):
    said = kills(folder, 60, seed=0)
    assert len(said) >= 60
    assert held(folder, said) >= len(said)


def test_writers_killed_while_they_make_the_ledger_leave_one_that_is_whole(folder):
    random, said = Random(1), []
    for n in range(8):
        running = [start(folder / str(n), f"w{i}", 3) for i in range(2)]
        time.sleep(random.random() * 0.25)
        running[0].kill()
        out = [process.communicate(timeout=120) for process in running]
        assert out[1][1] == ""
        said = [line for o, _ in out for line in (o.rpartition("\n")[0]).split()]
        assert held(folder / str(n), said) >= 3


@pytest.mark.slow
def test_a_thousand_killed_writers_lose_nothing_acknowledged(folder):
    said = kills(folder, 1000, seed=2)
    assert held(folder, said) >= len(said) >= 1000
