import io
import mmap
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from expunge import runtime
from expunge.errors import UserError
from expunge.runtime import Progress, Runtime


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"batch_size": 0}, "batch_size of 1 or more, got 0"),
        ({"memory": 0}, "memory in bytes, 1 or more, got 0"),
        ({"batch_size": "8"}, "batch_size of 1 or more, got '8': give a positive number"),
        ({"memory": "1GB"}, "memory in bytes, 1 or more, got '1GB': give a positive number or None"),
        ({"processes": 0}, "processes of 1 or more, got 0: give a positive number or None"),
        ({"device": 3.5}, "a torch device, got 3.5: try cpu, cuda or auto"),
        ({"precision": "fp8"}, "precision 'full' or 'bf16', got 'fp8'"),
        ({"device": "toaster"}, "a torch device, got 'toaster': try cpu, cuda or auto"),
        ({"device": "cpu", "processes": 2}, "2 processes, got 1: start with accelerate launch --num_processes 2"),
    ],
)
def test_bad_settings_are_refused(fields, said):
    with pytest.raises(UserError, match=re.escape(said)):
        Runtime(**fields)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_auto_is_the_cpu_and_cuda_is_refused_without_one():
    assert Runtime().torch_device == "cpu"
    with pytest.raises(UserError, match="a CUDA device, got none on this machine"):
        Runtime(device="cuda")


def test_one_process_is_what_there_is():
    assert Runtime(device="cpu", processes=1).processes == 1


def test_a_callback_hears_every_step():
    heard = []
    with Runtime(progress=heard.append).tracking("work", 5) as advance:
        advance(2)
        advance(3)
    assert heard == [Progress("work", 2, 5), Progress("work", 5, 5)]


@pytest.mark.parametrize(
    ("setting", "terminal", "drawn"), [(None, True, True), (None, False, False), (False, True, False)]
)
def test_the_bar_is_drawn_on_a_terminal_alone(monkeypatch, setting, terminal, drawn):
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    run = Runtime(progress=setting)
    with run.tracking("some work", 4) as advance:
        advance(1)
        with run.tracking("inner work", 2) as inner:  # one inside another must not fail
            inner(2)
        advance(3)
    assert ("some work" in stream.getvalue()) == drawn


def test_memory_budget():
    assert Runtime(memory=1000).budget() == 1000
    assert 2**20 < Runtime(device="cpu").budget() < 2**50


def test_progress_never_says_more_than_all():
    heard = []
    with Runtime(progress=heard.append).tracking("work", 5) as advance:
        advance(4)
        advance(4)
    assert [p.done for p in heard] == [4, 5]


def test_a_pass_is_shared_by_whole_batches(monkeypatch):
    order = np.arange(100, 111)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(Runtime, "count", property(lambda self: 3))
        monkeypatch.setattr(Runtime, "rank", property(lambda self, rank=rank: rank))
        parts.append((Runtime(batch_size=2).part(order) - 100).tolist())
        assert Runtime(batch_size=20).part(order).tolist() == (order.tolist() if rank == 0 else [])
    assert parts == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10]]


@pytest.mark.parametrize(("precision", "dtype"), [("full", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_follows_precision(precision, dtype):
    with Runtime(device="cpu", precision=precision).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def fresh_pages(size):
    """Return memory that the process did not hold: torch's own may come from what earlier tests freed and it kept."""
    return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8).fill_(1)


def test_peak_memory_sees_what_was_freed_again():
    size = 64 * 2**20
    with runtime.peak_memory("cpu") as quiet:
        pass
    with runtime.peak_memory("cpu") as found:
        block = fresh_pages(size)
        if not Path("/proc/self/clear_refs").exists():
            wait_until(lambda: found[0] > 0.8 * size)
        del block
    assert found[0] > 0.8 * size > quiet[0]


def test_peak_memory_is_sampled_where_no_mark_is_kept(monkeypatch):
    monkeypatch.setattr(runtime, "_set_back_high_water_mark", lambda: False)
    size = 64 * 2**20
    with runtime.peak_memory("cpu") as found:
        block = fresh_pages(size)
        wait_until(lambda: found[0] > 0.8 * size)
        del block
    assert found[0] > 0.8 * size


def wait_until(reached, seconds=60):
    """Wait for a condition; the assertion after it says whether it came."""
    until = time.monotonic() + seconds
    while not reached() and time.monotonic() < until:
        time.sleep(0.005)
