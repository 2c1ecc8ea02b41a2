"""``expunge bench``: fill a grid, look at it, print its tables, write its report."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from expunge.cli._app import app
from expunge.cli._show import emit, options, progress

bench = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compare methods on a grid of data sets, networks, requests and seeds, beside truly retrained models.\n\n"
    "A grid is one file, see benchmarks/grids. [bold]run[/bold] fills it and goes on where it was interrupted; "
    "[bold]table[/bold], [bold]figure[/bold] and [bold]report[/bold] read what is there.",
)
app.add_typer(bench, name="bench")

Grid = Annotated[Path, typer.Argument(metavar="GRID", help="Grid file, such as benchmarks/grids/digits.toml.")]
Store = Annotated[Path, typer.Option("--store", "-s", help="Folder of results; several grids may share one.")]
STORE = Path("expunge-bench")
Form = Literal["rich", "markdown", "latex", "csv", "json", "html"]
SHOWN = 10  # failures that are told one by one


@bench.command()
def run(
    context: typer.Context,
    grid: Grid,
    store: Store = STORE,
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, help="Processes on this machine.")] = 1,
    where: Annotated[
        Literal["here", "ray"], typer.Option("--on", help="here, or ray: a Ray cluster (extra 'cluster').")
    ] = "here",
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster; default the one this machine belongs to, or a local one.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what failed.")] = False,
    recompute: Annotated[bool, typer.Option("--recompute", help="Compute corrupt folders anew.")] = False,
    max_cells: Annotated[int, typer.Option(min=1, help="Ask before computing more cells than this.")] = 1000,
    plan: Annotated[bool, typer.Option("--plan", help="Dry run: what is missing, and how long it takes.")] = False,
) -> None:
    """Compute what is missing of a grid; interrupted or killed, the same command goes on where it was.

    A cell is one method on one data set, network, request and seed. Cells share what they can: one trained model and
    its retrained ones serve every method, so adding a method computes only its own cells. Several runs on one store
    share the work. Exit code 1: some cells failed; [bold]expunge bench status[/bold] says why.

    Raises:
        Exit: with 1 where cells failed.
        UserError: a grid that cannot be read, more cells than may be computed without asking, or a project whose data
            holds deleted samples.
    """
    from expunge.bench import grid as grids
    from expunge.bench import runner
    from expunge.bench.store import Store as Results
    from expunge.cli import _jobs
    from expunge.files import there

    chosen = options(context)
    asked = grids.load(grid)
    _jobs.refuse_deleted_of(asked.projects.values(), chosen)
    room = Results(store) if plan and there(store) is None else Results.open(store)
    results = [task for cell in asked.cells() for task in cell.results()]
    work = runner.plan(results, room, retry=retry, recompute=recompute)
    cells = sum(task.stage in ("measured", "reference") for task in work.tasks)
    if plan:
        emit(chosen, _planned(work, room, asked), *_plan_lines(work, room, asked))
        return
    _ask(chosen, cells, max_cells, f"{grid}")
    executor = _executor(chosen, asked, room.path, workers, where, address)
    with progress("starting", len(work.tasks)) as shown:
        summary = runner.run(
            work, room, executor, told=lambda task, outcome, over, of: shown(over, of, _now(task, outcome))
        )
    body = {
        "cells": len(asked),
        "counts": dict(summary.counts),
        "failed": [task.name for task in summary.failed],
        "corrupt": [task.name for task in summary.corrupt],
        "blocked": len(summary.blocked),
        "seconds": summary.seconds,
    }
    emit(chosen, body, *_outcome(summary, asked, room, grid, store))
    if summary.failed or summary.corrupt:
        raise typer.Exit(1)


@bench.command()
def status(
    context: typer.Context,
    grid: Grid,
    store: Store = STORE,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where failed cells failed.")] = False,
) -> None:
    """Say how far a grid is: cells done, running, declined, failed, corrupt and missing, and why."""
    from rich.table import Table

    from expunge.bench import grid as grids
    from expunge.bench.collect import states
    from expunge.bench.store import Store as Results
    from expunge.files import there

    chosen = options(context)
    asked = grids.load(grid)
    room = Results(store) if there(store) is None else Results.open(store)
    found = states(asked, room)
    table = Table("data, network, request", *(m or "references" for m in ("", *asked.methods)), title=asked.title)
    for at in asked.places:
        columns = []
        for method in ("", *asked.methods):
            counts = Counter(found[at, seed, method].status for seed in asked.seeds)
            columns.append(", ".join(f"{n} {status}" for status, n in counts.items()))
        table.add_row(str(at), *columns)
    reasons = Counter((gap.status, gap.reason) for gap in found.values() if gap.reason and gap.status != "missing")
    lines = [f"{n} {status}: {reason}" for (status, reason), n in reasons.most_common(SHOWN)]
    if all(gap.status == "missing" for gap in found.values()):
        lines.append(f"Not run: start it with expunge bench run {grid} --store {store}")
    if traceback:
        lines += dict.fromkeys(gap.trace for gap in found.values() if gap.trace)
    body = {
        "title": asked.title,
        "cells": [
            {"data": at.data, "network": at.network, "request": at.scenario, "seed": seed, "method": method or None}
            | {"status": gap.status, "reason": gap.reason}
            for (at, seed, method), gap in found.items()
        ],
    }
    emit(chosen, body, table, *lines)


@bench.command()
def table(
    context: typer.Context,
    grid: Grid,
    store: Store = STORE,
    form: Annotated[Form, typer.Option("--format", "-f", help="rich, markdown, latex, csv, json or html.")] = "rich",
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="Column, repeatable: accuracy/test, membership ...")
    ] = None,
    log: Annotated[
        list[str] | None, typer.Option("--log", help="Column of what methods record, repeatable: steps, tau_gap ...")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write, instead of printing.")] = None,
) -> None:
    """Print a grid's tables: a row a model, mean and 95 % interval over seeds, gap to retrained, the floor.

    Raises:
        UserError: nothing is there yet, an unknown metric, or a log that no method has.
    """
    from expunge.bench import table as tables
    from expunge.files import write_text

    chosen = options(context)
    asked, found = _read(grid, store, details=False, logs=bool(log))
    columns: dict[str, Any] = {"metrics": metric, "logs": log or ()}
    shown = tables.render(asked, found, "json" if chosen.json else form, **columns)
    if output is not None:
        if form == "rich":
            form_of = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".json": "json", ".html": "html"}
            shown = tables.render(asked, found, form_of.get(output.suffix, "markdown"), **columns)
        _free(chosen, output)
        write_text(output, str(shown).rstrip("\n") + "\n")
        emit(chosen, {"file": str(output)}, f"Table: {output}")
    elif isinstance(shown, str):
        typer.echo(shown)
    else:
        emit(chosen, {}, *shown)


@bench.command()
def report(
    context: typer.Context,
    grid: Grid,
    store: Store = STORE,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("expunge-bench-report"),
) -> None:
    """Write the report over a whole grid: heat map of gaps to retrained, trade-offs, seeds, a page a request.

    Raises:
        UserError: nothing is there yet.
    """
    from expunge.bench import pages
    from expunge.cli import _jobs

    chosen = options(context)
    asked, found = _read(grid, store, details=True)
    replace = _jobs.free(chosen, output)
    index = pages.write(output, asked, found, command=_jobs.command(), overwrite=replace)
    emit(chosen, {"report": str(index)}, f"Report: {index}")


@bench.command()
def figure(
    context: typer.Context,
    grid: Grid,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .svg, .png or .pdf.")],
    store: Store = STORE,
    of: Annotated[Literal["trace", "frontier"], typer.Option(help="What is drawn, see above.")] = "trace",
    show: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Of a trace: names recorded, a panel for each --show; default all. Of a frontier: two numbers, across "
            "and up; default accuracy on the forget set, and on what was to stay.",
        ),
    ] = None,
    along: Annotated[
        str | None,
        typer.Option(metavar="SETTING", help="In which methods differ, as lam; default the only one there is."),
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option("--method", "-m", help="Name in the grid, or pattern as 'kl*', repeatable.")
    ] = None,
    at: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Part of a place's name, as 'class 3', repeatable.")
    ] = None,
    over: Annotated[Literal["steps", "epochs"], typer.Option(help="What a trace counts across.")] = "steps",
    scale: Annotated[
        Literal["auto", "linear", "log"], typer.Option(help="Upwards in a trace; auto: log where values span much.")
    ] = "auto",
    each: Annotated[
        bool, typer.Option("--each", help="Of a trace a line for every seed, instead of the mean.")
    ] = False,
) -> None:
    """Draw a figure over a grid's finished cells; nothing is computed, and what is missing is said.

    A [bold]trace[/bold] shows what edits recorded while they took their steps, such as losses, thresholds and
    divergences: means over seeds with their 95 % intervals. Methods that differ in one setting alone are lines of that
    setting's values. A [bold]frontier[/bold] joins methods along such a setting, what is kept over what is forgotten,
    beside the retrained model and the original.

    The KL penalty over the steps, for each λ:  expunge bench figure GRID --show kl -o kl.svg

    Retain against forget, along λ:  expunge bench figure GRID --of frontier --along lam -o frontier.svg

    Losses and τ, α below them:  expunge bench figure GRID --show forget_loss,retain_loss,tau --show alpha -o trace.svg

    Raises:
        UserError: nothing is there yet; no such method, place, recorded name, number or setting; too many panels.
    """
    from expunge.bench import figures
    from expunge.bench.shown import Wanted
    from expunge.report import standalone

    chosen = options(context)
    standalone.check(output)
    asked, found = _read(grid, store, details=False, logs=True)
    panels = [[name.strip() for name in panel.split(",") if name.strip()] for panel in show or ()]
    wanted = Wanted(of, panels, along, method or (), at or (), over, scale, each)
    made = figures.make(asked, found, wanted)
    _free(chosen, output)
    made.write(output)
    emit(chosen, {"file": str(output), "said": list(made.said)}, f"Figure: {output}", *made.said)


def _read(grid: Path, store: Path, details: bool, logs: bool = False) -> tuple[Any, Any]:
    """Return a grid and its groups, where anything of it is there."""
    from expunge.bench import collect
    from expunge.bench import grid as grids
    from expunge.bench.store import Store as Results
    from expunge.errors import UserError
    from expunge.files import there

    asked = grids.load(grid)
    if there(store) is None:
        raise UserError(f"a store of results at {store}", "nothing there", f"run expunge bench run {grid} first")
    found = collect.groups(asked, Results.open(store), details=details, logs=logs)
    if not any(group.runs for group in found):
        tried = any(gap.status != "missing" for group in found for gap in group.gaps.values())
        remedy = (
            f"expunge bench status {grid} --store {store} says why" if tried else f"run expunge bench run {grid} first"
        )
        raise UserError(f"finished cells of {grid.name} in {store}", "none", remedy)
    return asked, found


def _ask(chosen: Any, cells: int, most: int, grid: str) -> None:
    """Ask before much is computed; without somebody to answer, refuse."""
    import sys

    from expunge.errors import UserError

    if cells <= most or chosen.yes:
        return
    if sys.stdin.isatty() and not chosen.json and typer.confirm(f"{grid} needs {cells} cells. Go on?", err=True):
        return
    remedy = f"pass --max-cells {cells}, or --yes before the command; --plan says how long it takes"
    raise UserError(f"at most {most} cells to compute without asking", f"{cells}", remedy)


def _executor(chosen: Any, asked: Any, store: Path, workers: int, where: str, address: str | None) -> Any:
    from expunge.bench.runner import InProcess
    from expunge.bench.stages import Setting
    from expunge.bench.workers import Workers
    from expunge.errors import UserError

    runs = asked.file.runtime.model_dump()
    places = {mark: file.resolve() for mark, file in asked.projects.items()}
    data_dir = None if chosen.data_dir is None else chosen.data_dir.resolve()
    setting = Setting(store.resolve(), places, data_dir, chosen.device, **runs)
    if where == "ray":
        from expunge.bench.cluster import OnRay

        needs = asked.file.resources
        return OnRay(setting, cpus=needs.cpus, gpus=needs.gpus, address=address, local=workers)
    if address is not None:
        raise UserError("--address with --on ray", "one without", "add --on ray, or leave it out")
    return InProcess(setting) if workers == 1 else Workers(setting, workers)


def _now(task: Any, outcome: str) -> str:
    """Return what a progress bar says of a task that ended."""
    cell = task.cell
    name = f" {cell.method['name']}" if cell.method else ""
    said = "" if outcome == "done" else f" {outcome}"
    where = f"{cell.data.get('name', cell.data.get('project'))}, {cell.asked}, seed {cell.seed}"
    return f"{task.stage}{name}{said}: {where}"


def _free(chosen: Any, path: Path) -> None:
    from expunge.cli import _jobs

    _jobs.free(chosen, path, suffix=path.suffix)


def _planned(work: Any, store: Any, asked: Any) -> dict[str, Any]:
    """Return what is missing by stage, with the seconds that finished tasks of the same stage took on average."""
    stages = Counter(task.stage for task in work.tasks)
    seconds = {stage: store.mean_seconds(stage) for stage in stages}
    known = all(s is not None for s in seconds.values())
    return {
        "cells": len(asked),
        "missing": dict(stages),
        "failed": len(work.failed),
        "corrupt": len(work.corrupt),
        "blocked": len(work.blocked),
        "seconds": sum(n * (seconds[stage] or 0.0) for stage, n in stages.items()) if known else None,
    }


def _plan_lines(work: Any, store: Any, asked: Any) -> list[str]:
    said = _planned(work, store, asked)
    parts = [f"{n} {stage}" for stage, n in said["missing"].items()]
    lines = [f"{asked.title}: {said['cells']} cells. Missing: {', '.join(parts) or 'nothing'}."]
    if said["seconds"] is None:
        lines.append("How long that takes is known once one task of each stage is done in this store.")
    elif parts:
        minutes = said["seconds"] / 60
        lines.append(f"About {minutes:.1f} minutes of one process, by what tasks of each stage took in this store.")
    for name in ("failed", "corrupt", "blocked"):
        if said[name]:
            option = {"failed": "--retry", "corrupt": "--recompute"}.get(name, "once their needs are done")
            lines.append(f"{said[name]} {name}: {option}.")
    return lines


def _outcome(summary: Any, asked: Any, store: Any, grid: Path, path: Path) -> list[str]:
    counts = ", ".join(f"{n} {outcome}" for outcome, n in summary.counts.items()) or "nothing to do"
    lines = [f"{asked.title}: {counts}, in {summary.seconds:.0f} s. {len(asked)} cells in all."]
    for task in summary.failed[:SHOWN]:
        lines.append(f"failed: {task.name}: {(store.failure(task) or {}).get('message', '')}")
    for task in summary.corrupt[:SHOWN]:
        lines.append(f"corrupt: {task.name}: compute it anew with --recompute")
    if summary.blocked:
        lines.append(f"{len(summary.blocked)} tasks wait for these.")
    if summary.failed:
        lines.append(f"Try failed ones again with expunge bench run {grid} --store {path} --retry")
    lines.append(f"Next: expunge bench table {grid} --store {path}, expunge bench report {grid} --store {path}")
    return lines
