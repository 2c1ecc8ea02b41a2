"""What the benchmark itself costs: grid, store and tables beside the work they organise.

Three ratios, each with the target it is held to:

1. Overhead: a grid on digits (convnet, its own recipe, every method of the package) is filled in this process and its
   table written. What the library's own calls do not take (train, prepare, unlearn, evaluate) is overhead, given as a
   share of the time in training and unlearning. Target: 2 %.
2. Reading: the cells of a large grid are read into a table, beside opening, reading and parsing the same files. The
   large store is made of one real cell, whose files are copied under the keys of 10,000 others. Target: 10 times.
3. Again: `expunge bench run` of a finished grid of 1,000 cells, from the file on: nothing is computed. Target: a few
   seconds.

    python benchmarks/grid.py
    python benchmarks/grid.py --cells 1000 --seeds 1
    EXPUNGE_DATA=folder python benchmarks/grid.py --data fashion_mnist --limit 6000 --cells 0 --again 0
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import timeit
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from expunge import methods
from expunge.bench import collect, grid, rows, stages, table
from expunge.bench.cell import Task
from expunge.bench.runner import InProcess, plan, run
from expunge.bench.stages import Setting
from expunge.bench.store import DONE, Store, write_plain
from expunge.files import digest

REAL = """
seeds = {seeds}
networks = ["convnet"]
scenarios = ["class=3", "random=0.05"]
methods = [{names}]
[data.{data}]
{limit}
"""
LARGE = """
seeds = 10
data = ["digits"]
networks = ["convnet"]
scenarios = [{scenarios}]
[methods.ssd]
"""
CALLS = ("original", "prepare", "unlearn", "evaluate")  # of the library, in expunge.bench.stages
WORK = CALLS[:3]


def asked(folder: Path, name: str, text: str) -> grid.Grid:
    """Return a grid of its text."""
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return grid.load(path)


def filled(one: grid.Grid, path: Path) -> Any:
    """Fill a grid and return the summary of the run."""
    room = Store.open(path)
    results = [task for cell in one.cells() for task in cell.results()]
    return run(plan(results, room), room, InProcess(Setting(path, one.projects)))


def now() -> NDArray[np.float64]:
    """Return two clocks: the wall's and the process's own."""
    return np.array([time.perf_counter(), time.process_time()])


@contextmanager
def timed() -> Iterator[dict[str, NDArray[np.float64]]]:
    """Yield the seconds in each of the library's calls, those inside another counted with that other."""
    spent, inside = defaultdict[str, NDArray[np.float64]](lambda: np.zeros(2)), []
    usual = {name: getattr(stages, name) for name in CALLS}

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*given: Any, **more: Any) -> Any:
            start = now()
            inside.append(name)
            try:
                return call(*given, **more)
            finally:
                inside.pop()
                if not inside:
                    spent[name] += now() - start

        return timing

    for name, call in usual.items():
        setattr(stages, name, wrapped(name, call))
    try:
        yield spent
    finally:
        for name, call in usual.items():
            setattr(stages, name, call)


def overhead(folder: Path, data: str, limit: int, seeds: int) -> None:
    """Print what filling a grid and writing its table takes beyond the library's calls."""
    same = {"data": data, "limit": f"limit = {limit}" if limit else ""}
    names = ", ".join(f'"{n}"' for n in methods.names() if n != "retrain")
    warm = asked(folder, "warm", REAL.format(seeds="[99]", names='"ssd"', **same))
    filled(warm, folder / "warm")  # what is imported, opened and compiled once
    real = asked(folder, "real", REAL.format(seeds=seeds, names=names, **same))
    with timed() as spent:
        start = now()
        summary = filled(real, folder / "real")
        whole = now() - start
        start = now()
        table.render(real, collect.groups(real, Store(folder / "real")), "markdown")
        shown = now() - start
    work, beyond = np.sum([spent[n] for n in WORK], axis=0), whole - np.sum([*spent.values()], axis=0)
    tasks = summary.counts["done"]
    print(f"1. Overhead on {data}{f', {limit} samples' if limit else ''}: {len(real)} cells, {tasks} tasks.")
    for at, clock in enumerate(("clock", "processor")):
        calls = ", ".join(f"{name} {times[at]:.1f} s" for name, times in spent.items())
        print(f"   {clock}: {whole[at]:.1f} s in all; {calls}.")
        print(
            f"   Beyond these {beyond[at]:.2f} s, {1000 * beyond[at] / tasks:.0f} ms a task; table {shown[at]:.2f} s:"
        )
        print(f"   {100 * (beyond + shown)[at] / work[at]:.1f} % of training and unlearning (target 2 %).")


def copied(room: Store, task: Task, original: Task) -> None:
    """Put a finished task's files under another task's key, with the document that belongs to it."""
    source, folder = room.folder(original), room.folder(task)
    folder.mkdir(parents=True)
    body = json.loads((source / DONE).read_text(encoding="utf-8"))
    del body["digest"]
    body |= {"stage": task.stage, "key": task.key, "spec": task.spec}
    write_plain(folder / DONE, {**body, "digest": digest(body)})
    for name in body["files"]:
        if name in (rows.VALUES, rows.DETAILS, stages.SCENARIO):
            (folder / name).write_bytes((source / name).read_bytes())
        else:
            os.link(source / name, folder / name)


def large(folder: Path, cells: int) -> tuple[grid.Grid, Store]:
    """Return a grid of so many cells and its store, finished."""
    small = asked(folder, "small", LARGE.format(scenarios='"class=3"').replace("seeds = 10", "seeds = 1"))
    filled(small, folder / "large")
    known = {task.stage: task for cell in small.cells() for task in (*cell.results(), *cell.results()[0].reads)}
    places = 10
    text = LARGE.format(scenarios=", ".join(f'"class={n}"' for n in range(places)))
    text += "".join(f'[methods."ssd {n}"]\nname = "ssd"\nalpha = {n + 1}.5\n' for n in range(cells // 100 - 2))
    whole, room = asked(folder, "whole", text), Store.open(folder / "large")
    for cell in whole.cells():
        for task in cell.results():
            for one in (task, *(t for t in task.reads if t.stage == "drawn")):
                if not room.folder(one).exists():
                    copied(room, one, known[one.stage])
    return whole, room


def files(one: grid.Grid, room: Store) -> list[Path]:
    """Return the files whose content a table needs."""
    found = [room.folder(task) / name for c in one.cells() for task in c.results() for name in (DONE, rows.VALUES)]
    return [path for path in found if path.exists()]


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Return the least of several runs."""
    return min(timeit.repeat(work, number=1, repeat=repeats))


def reading(folder: Path, cells: int, repeats: int) -> None:
    """Print what reading a large store into a table takes, beside reading its files."""
    one, room = large(folder, cells)
    paths = files(one, room)
    size = sum(path.stat().st_size for path in paths)
    plainly = seconds(lambda: [path.read_bytes() for path in paths], repeats)
    parsed = seconds(lambda: [json.loads(path.read_bytes()) for path in paths], repeats)
    read = seconds(lambda: collect.groups(one, room), repeats)
    shown = seconds(lambda: table.render(one, collect.groups(one, room), "markdown"), repeats)
    print(f"2. Reading {len(one)} cells, {len(paths)} files, {size / 2**20:.0f} MiB.")
    print(f"   Read {plainly:.2f} s, read and parsed {parsed:.2f} s; collected {read:.2f} s, and shown {shown:.2f} s.")
    print(f"   {shown / parsed:.1f} times reading and parsing, {shown / plainly:.1f} times reading (target 10).")


def again(folder: Path, cells: int, repeats: int) -> None:
    """Print what a second run of a finished grid takes."""
    one, _ = large(folder, cells)
    path = folder / f"{one.name}.toml"

    def rerun() -> None:
        assert filled(grid.load(path), folder / "large").counts == {}

    took = seconds(rerun, repeats)
    print(f"3. A second run of {len(one)} finished cells: {took:.2f} s, nothing computed (target: a few seconds).")


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", default="digits", help="of the grid that is filled")
    parser.add_argument("--limit", type=int, default=0, help="so many training samples of it; 0 for all")
    parser.add_argument("--seeds", type=int, default=2, help="of the grid that is filled")
    parser.add_argument("--cells", type=int, default=10_000, help="of the store that is read, in hundreds; 0 for none")
    parser.add_argument("--again", type=int, default=1000, help="cells of the grid that is run twice; 0 for none")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    parts: list[Callable[[Path], None]] = [lambda folder: overhead(folder, given.data, given.limit, given.seeds)]
    if given.cells:
        parts.append(lambda folder: reading(folder, given.cells, given.repeats))
    if given.again:
        parts.append(lambda folder: again(folder, given.again, given.repeats))
    for part in parts:
        with tempfile.TemporaryDirectory(prefix="expunge-grid-") as folder:
            part(Path(folder))


if __name__ == "__main__":
    main()
