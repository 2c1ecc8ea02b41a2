"""A tiny grid, filled in different ways, and what it came to without times."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from expunge.bench import grid as grids
from expunge.bench.cell import Task
from expunge.bench.grid import Grid
from expunge.bench.runner import Executor, InProcess, Summary, plan, run
from expunge.bench.stages import Setting
from expunge.bench.store import Store

FORK = get_context("fork")  # what is imported and patched here is so there; arithmetic is on one thread
TINY = """
seeds = 1
metrics = ["accuracy", "loss"]
scenarios = ["class=3"]
methods = ["finetune", "ssd"]
[data.digits]
limit = 100
[networks.mlp]
recipe = {epochs = 1, batch_size = 50}
"""
STAGES = ("trained", "drawn", "retrained", "reference", "prepared", "unlearned", "measured")


def tiny(folder: Path, **changes: str) -> Grid:
    """Return the tiny grid, lines of it replaced by name."""
    lines = [f"{k} = {changes[k]}" if (k := line.partition(" ")[0]) in changes else line for line in TINY.splitlines()]
    path = folder / "tiny.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return grids.load(path)


def results(grid: Grid) -> list[Task]:
    """Return the last tasks of a grid's cells."""
    return [task for cell in grid.cells() for task in cell.results()]


def fill(
    grid: Grid, path: Path, executor: Callable[[Setting], Executor] = InProcess, told: Any = None, **options: bool
) -> Summary:
    """Fill a grid's store."""
    store = Store.open(path)
    return run(plan(results(grid), store, **options), store, executor(Setting(path, grid.projects)), told=told)


def numbers(path: Path) -> dict[str, bytes]:
    """Return all weights and measured numbers of a store, byte for byte."""
    found = [p for stage in STAGES for p in (path / stage).glob("*/*")]
    return {str(p.relative_to(path)): p.read_bytes() for p in found if p.name in ("values.json", "model.safetensors")}


def leftovers(path: Path) -> list[str]:
    """Return what is in a store beside results."""
    hidden = [*path.rglob(".*")]
    return [str(p.relative_to(path)) for p in [*hidden, *(path / "parts").glob("*"), *(path / "claims").glob("*")]]


def forked(work: Callable[..., Any], *given: Any) -> int:
    """Run something in a copy of this process, and return how it ended: below 0 by which signal."""
    process = FORK.Process(target=work, args=given)
    process.start()
    process.join(120)
    assert process.exitcode is not None, "still running"
    return process.exitcode
