"""A pass that was interrupted goes on where it was, and gives what an uninterrupted one gives, bit for bit."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cases import blobs, deep
from expunge.data import Batch, Data
from expunge.errors import UserError
from expunge.fisher import Diagonal, diagonal, diagonals
from expunge.runtime import Progress, Runtime
from expunge.task import Classification

ROWS = 23
GROUPS = {"a": [f"train/{i}" for i in (3, 4, 20)], "b": [f"train/{i}" for i in (4, 11)]}


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expunge.fisher.WINDOW", 4)  # batches of 2: windows of two batches


SEEN: list[int] = []
LEFT = [0]


class Stops(Classification):
    """Stops a pass at its n-th forward pass, and counts the samples seen."""

    def forward(self, model: nn.Module, batch: Batch, taps: Any = ()) -> Any:
        LEFT[0] -= 1
        if LEFT[0] < 0:
            raise KeyboardInterrupt
        SEEN.extend(batch.index.tolist())
        return super().forward(model, batch, taps)


def passed(folder: Path | None, stop: int | None = None, engine: Any = "auto", data: Data | None = None) -> Any:
    """Return the diagonals, or None where the pass was stopped, and how many samples were seen."""
    LEFT[0] = 10**6 if stop is None else stop
    SEEN.clear()
    runtime = Runtime(batch_size=2, workdir=folder, checkpoint_every=0, progress=False)
    try:
        return diagonals(
            deep(torch.float32).eval(),
            Stops(),
            data or blobs(ROWS, dtype=torch.float32),
            groups=GROUPS,
            engine=engine,
            runtime=runtime,
        ), len(SEEN)
    except KeyboardInterrupt:
        return None, len(SEEN)


def same(one: dict[str, Diagonal], other: dict[str, Diagonal]) -> bool:
    return all(
        torch.equal(value, other[name].sums[key]) for name, d in one.items() for key, value in d.sums.items()
    ) and {n: d.count for n, d in one.items()} == {n: d.count for n, d in other.items()}


@pytest.mark.parametrize("engine", ["auto", "batched", "reference"])
def test_stopped_at_any_point_it_gives_the_same_bits(tmp_path: Path, engine: Any):
    whole, seen = passed(None, engine=engine)
    stopped = 0
    for stop in range(1, 60, 1 if engine == "auto" else 5):
        folder = tmp_path / str(stop)
        first, _ = passed(folder, stop, engine)
        stopped += first is None
        kept = list(folder.glob("importance-*")) if folder.exists() else []
        again, after = passed(folder, engine=engine)
        assert same(again, whole)
        assert after < seen if kept else after == seen
        assert not list(folder.glob("importance-*")) if folder.exists() else True
    assert stopped > 5


def test_stopped_again_and_again_it_arrives(tmp_path: Path):
    whole, _ = passed(None)
    for _ in range(40):
        found, _ = passed(tmp_path, 13)  # eight for the trial and a window or two
        if found is not None:
            break
    assert found is not None
    assert same(found, whole)


def test_what_belongs_to_other_work_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    passed(tmp_path, 16)
    (kept,) = tmp_path.glob("importance-*")
    other = blobs(ROWS, dtype=torch.float32, seed=1)
    with caplog.at_level(logging.WARNING):
        found, _ = passed(tmp_path, data=other)
    assert "other content under the ids of train" in caplog.text
    assert same(found, passed(None, data=other)[0])
    passed(tmp_path, 16)
    assert kept.exists()
    runtime = Runtime(batch_size=2, workdir=tmp_path, checkpoint_every=0, progress=False)
    with torch.no_grad():
        model = deep(torch.float32).eval()
        model[1].bias += 1
    diagonal(model, Classification(), blobs(ROWS, dtype=torch.float32), runtime=runtime)
    diagonal(deep(torch.float32).eval(), Classification(), blobs(ROWS, dtype=torch.float32), runtime=runtime)
    assert kept.exists()  # other weights, and no groups: neither took nor removed it


class Scaled(nn.Sequential):
    """Has a number that weights do not tell."""

    scale = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.scale * x)


@pytest.mark.parametrize("what", ["attribute", "hook", "transform"])
def test_what_the_file_name_does_not_tell_is_seen_in_values(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    def run(changed: bool, stop: int = 10**6) -> Any:
        model = Scaled(*deep(torch.float32)).eval()
        model.scale = 3.0 if changed and what == "attribute" else 1.0
        if changed and what == "hook":
            model.register_forward_hook(lambda module, args, out: 2 * out)
        given = blobs(ROWS, dtype=torch.float32)
        shown = (lambda x: 2 * x) if changed and what == "transform" else (lambda x: x)
        data = Data.from_arrays(given.source.x, given.source.y, transform=shown)
        LEFT[0] = stop
        runtime = Runtime(batch_size=2, workdir=tmp_path, checkpoint_every=0, progress=False)
        return diagonal(model, Stops(), data, runtime=runtime)

    with pytest.raises(KeyboardInterrupt):
        run(changed=False, stop=16)
    assert list(tmp_path.glob("importance-*"))
    with caplog.at_level(logging.WARNING):
        found = run(changed=True)
    assert "the model gives other values on train than in" in caplog.text
    assert not list(tmp_path.glob("importance-*"))
    fresh = run(changed=True)
    assert all(torch.equal(found.sums[n], v) for n, v in fresh.sums.items())


@pytest.mark.parametrize("left", [0, 100, -1])
def test_a_file_cut_short_is_begun_anew(left: int, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    whole, _ = passed(None)
    passed(tmp_path, 16)
    (kept,) = tmp_path.glob("importance-*")
    kept.write_bytes(kept.read_bytes()[:left])
    with caplog.at_level(logging.WARNING):
        found, _ = passed(tmp_path)
    assert "cannot be read" in caplog.text
    assert same(found, whole)


def test_a_short_pass_writes_nothing(tmp_path: Path):
    runtime = Runtime(batch_size=2, workdir=tmp_path / "work", progress=False)
    diagonal(deep().eval(), Classification(), blobs(ROWS), runtime=runtime)
    assert not (tmp_path / "work").exists()


def test_the_bar_goes_on_where_it_was(tmp_path: Path):
    passed(tmp_path, 14)
    heard: list[Progress] = []
    LEFT[0] = 10**6
    runtime = Runtime(batch_size=2, workdir=tmp_path, checkpoint_every=0, progress=heard.append)
    data = blobs(ROWS, dtype=torch.float32)
    diagonals(deep(torch.float32).eval(), Stops(), data, groups=GROUPS, runtime=runtime)
    assert heard[0].done > 2
    assert heard[-1].done == heard[-1].total == ROWS


class Hungry(nn.Sequential):
    """Has memory for two samples at once, and fails on the way back, when sums have begun."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self[0](x)
        if len(x) > 2 and hidden.requires_grad:
            hidden.register_hook(self.fail)
        return self[2](self[1](hidden))

    @staticmethod
    def fail(grad: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate too much")


def test_memory_that_ends_on_the_way_back_leaves_no_trace_in_sums(caplog: pytest.LogCaptureFixture):
    def model(cls: type[nn.Sequential]) -> nn.Module:
        torch.manual_seed(0)
        return cls(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()

    data = blobs(ROWS)
    with caplog.at_level(logging.WARNING):
        found = diagonal(model(Hungry), Classification(), data, runtime=Runtime(batch_size=4, progress=False))
    assert "going on with 2" in caplog.text
    want = diagonal(model(nn.Sequential), Classification(), data, engine="reference")
    for name, value in want.values.items():
        torch.testing.assert_close(found.values[name], value, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("every", [-1, float("nan"), "60"])
def test_seconds_between_writes_are_checked(every: Any):
    with pytest.raises(UserError, match="checkpoint_every of 0 seconds or more"):
        Runtime(checkpoint_every=every)


def test_killed_in_the_middle_it_goes_on(tmp_path: Path):
    """As a machine that loses power: no exception is handled, nothing is tidied up."""
    code = textwrap.dedent(
        f"""
        import sys, torch
        sys.path[:0] = {[str(Path(__file__).parents[1])]!r}
        torch.set_num_threads(1)
        from cases import blobs, deep
        import expunge.fisher
        from expunge.runtime import Runtime
        from expunge.task import Classification

        expunge.fisher.WINDOW = 4
        def tell(p):
            print(p.done, flush=True)
            if p.done < 20 and sys.argv[1] == "slow":
                sys.stdin.readline()
        runtime = Runtime(batch_size=2, workdir={str(tmp_path)!r}, checkpoint_every=0, progress=tell)
        data = blobs({ROWS}, dtype=torch.float32)
        found = expunge.fisher.diagonal(deep(torch.float32).eval(), Classification(), data, runtime=runtime)
        print(found.sums["1.weight"].tolist())
        """
    )
    run = [sys.executable, "-c", code]
    with subprocess.Popen([*run, "slow"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(5):
            process.stdout.readline()
            process.stdin.write("\n")
            process.stdin.flush()
        process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    assert len(list(tmp_path.glob("importance-*"))) == 1
    after = subprocess.run([*run, "quick"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert int(after[0]) > 2
    fresh = diagonal(
        deep(torch.float32).eval(),
        Classification(),
        blobs(ROWS, dtype=torch.float32),
        runtime=Runtime(batch_size=2, progress=False),
    )
    assert after[-1] == str(fresh.sums["1.weight"].tolist())
