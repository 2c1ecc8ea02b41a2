"""``expunge tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli._app import app
from expunge.cli._show import emit, options, progress

STUDIES = "studies.db"
INTERRUPTED = 130  # exit code


@app.command()
def tune(
    context: typer.Context,
    methods: Annotated[list[str], typer.Argument(metavar="METHOD...", help="Methods; each gets the same budget.")],
    data: Annotated[str | None, typer.Option(help="A named data set to tune on: digits ...")] = None,
    network: Annotated[str | None, typer.Option(help="With --data: a named network; default its own.")] = None,
    request: Annotated[
        list[str] | None, typer.Option(help="With --data, repeatable: class=3, random=0.05 ... as in a grid file.")
    ] = None,
    grid: Annotated[
        Path | None, typer.Option(help="Grid file, instead: its data sets, networks and requests, not its seeds.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Settings to try, the default one included.")] = 50,
    seeds: Annotated[int, typer.Option(min=1, help="Training seeds, from 100 on or behind the grid's.")] = 3,
    objective: Annotated[str, typer.Option(help="retrained, or unseen: needs no retrained model.")] = "retrained",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="FIELD=VALUE, repeatable: fixed, not searched; or runtime.batch_size=64."),
    ] = None,
    ranges: Annotated[
        list[str] | None,
        typer.Option("--range", help="FIELD=LOW:HIGH[:log] or FIELD=A,B, repeatable; default what the field declares."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of trials, chosen settings and report.")
    ] = Path("expunge-tuned"),
    store: Annotated[
        Path, typer.Option("--store", "-s", help="Folder of trained models, shared with expunge bench.")
    ] = Path("expunge-bench"),
    seed: Annotated[int, typer.Option(help="Seed of the search.")] = 0,
) -> None:
    """Search a method's fields for the setting closest to retrained, without the test set.

    Optuna's TPE proposes settings from the ranges that the fields declare; the first trial is the default settings.
    Settings are judged on the forget, retain and holdout set of training seeds of their own. Writes
    [bold]METHOD.json[/bold], which a grid file reads as [bold]tuned = "METHOD.json"[/bold], and
    [bold]report.html[/bold]. Interrupted or killed, the same command goes on where it was; with more
    [bold]--trials[/bold] it goes further. With several methods a field is named METHOD.FIELD.

    Raises:
        Exit: with 130 where it was interrupted.
        UserError: an unknown name, nothing to search, a request that cannot be judged, or a folder of something else.
    """
    from expunge.bench import tuning
    from expunge.bench.tune import tune as run

    chosen = options(context)
    setting, asked = _asked(
        chosen, methods, data, network, request, grid, seeds, objective, settings, ranges, store, seed
    )
    _check_output(output)
    found = {}
    with progress("starting") as shown:
        for each in asked:

            def told(step: Any, method: str = each.method) -> None:
                shown(step.done, step.total, _now(method, step))

            try:
                document = run(each, setting=setting, study=output / STUDIES, trials=trials, told=told)
            except KeyboardInterrupt:
                typer.echo("Interrupted: the same command goes on where it was.", err=True)
                raise typer.Exit(INTERRUPTED) from None
            tuning.save(output / f"{each.method}.json", document)
            found[each.method] = document
    report = _report(output, list(found.values()))
    emit(chosen, {"methods": found, "report": str(report)}, *_lines(output, found, report))


def _asked(
    chosen: Any,
    names: list[str],
    data: str | None,
    network: str | None,
    requests: list[str] | None,
    grid: Path | None,
    seeds: int,
    objective: str,
    settings: list[str] | None,
    ranges: list[str] | None,
    store: Path,
    seed: int,
) -> tuple[Any, list[Any]]:
    """Return where work is done, and what is tuned: one of each method."""
    from expunge.bench import grid as grids
    from expunge.bench import spaces, tuning
    from expunge.bench.stages import Setting
    from expunge.cli import _jobs
    from expunge.cli._settings import settings as read
    from expunge.errors import UserError

    fields, runs = read(settings)
    named = list(dict.fromkeys(names))
    fixed, spans = _by_method(named, fields), _ranges(named, ranges or [])
    own: dict[str, Any] = {"data_dir": None if chosen.data_dir is None else chosen.data_dir.resolve()}
    first = tuning.FIRST
    if grid is not None:
        if data is not None or network is not None or requests:
            remedy = "leave out --grid, or the others: a grid names data sets, networks and requests"
            raise UserError("either --grid, or --data with --request", "both", remedy)
        file = grids.load(grid)
        cells = list(file.places.values())
        own |= file.file.runtime.model_dump() | {"projects": {k: p.resolve() for k, p in file.projects.items()}}
        _jobs.refuse_deleted_of(file.projects.values(), chosen)
        first = max(first, *(s + 1 for s in file.seeds))
    else:
        if data is None or not requests:
            missing = " and ".join(n for n, v in (("--data", data), ("--request", requests)) if not v)
            remedy = "write for example --data digits --request class=3, or name a grid file with --grid"
            raise UserError("a data set and a request to tune on", f"no {missing}", remedy)
        cells = tuning.cells(data, network, requests)
    asked = [
        tuning.Tuning(
            method=name,
            fixed=fixed[name],
            space=spaces.space(name, fixed[name], spans[name]),
            cells=cells,
            seeds=range(first, first + seeds),
            objective=objective,
            seed=seed,
        )
        for name in named
    ]
    return Setting(store.resolve(), device=chosen.device, **own | _runtime(runs)), asked


def _runtime(runs: dict[str, Any]) -> dict[str, Any]:
    """Return settings of the runtime, held to their names and types."""
    from expunge.errors import UserError, suggest
    from expunge.runtime import Runtime

    known = ("batch_size", "precision", "memory")
    odd = [name for name in runs if name not in known]
    if odd:
        raise UserError("a setting of the runtime", f"runtime.{odd[0]}", suggest(odd[0], known))
    Runtime(**runs)
    return runs


def _by_method(names: list[str], fields: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the fixed fields of each method: those under its name, and where it stands alone the others."""
    from expunge.errors import UserError

    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in fields.items():
        if key in names and isinstance(value, dict):
            found[key] |= value
        elif len(names) == 1:
            found[names[0]][key] = value
        else:
            raise UserError("fields as METHOD.FIELD with several methods", key, f"write for example {names[0]}.{key}")
    return found


def _ranges(names: list[str], texts: list[str]) -> dict[str, list[str]]:
    from expunge.errors import UserError

    found: dict[str, list[str]] = {name: [] for name in names}
    for text in texts:
        method, dot, rest = text.partition(".")
        if dot and method in names:
            found[method].append(rest)
        elif len(names) == 1:
            found[names[0]].append(text)
        else:
            raise UserError("ranges as METHOD.FIELD=... with several methods", text, f"write {names[0]}.{text}")
    return found


def _check_output(output: Path) -> None:
    """Refuse a folder of something else before anything is computed."""
    from expunge.errors import UserError
    from expunge.files import there

    found = there(output)
    if found == "a file" or (found and any(output.iterdir()) and not (output / STUDIES).is_file()):
        got = "a file" if found == "a file" else "another folder, not empty"
        raise UserError(f"a folder of expunge tune, or a free path, at {output}", got, "choose another --output")


def _now(method: str, step: Any) -> str:
    """Return what a progress bar says of a step of tuning."""
    best = "" if step.best is None else f", smallest value {step.best:.3g}"
    return f"{method}: {step.what}{best}"


def _report(output: Path, documents: list[Any]) -> Path:
    from datetime import UTC, datetime

    from expunge.cli import _jobs
    from expunge.files import write_text
    from expunge.report import tunepage

    now = datetime.now(UTC).replace(microsecond=0).isoformat()
    write_text(output / "report.html", tunepage.render(documents, created=now, command=_jobs.command()))
    return output / "report.html"


def _lines(output: Path, found: dict[str, Any], report: Path) -> list[Any]:
    from rich.table import Table

    from expunge.report.tunecharts import default_of
    from expunge.report.tunepage import sentence, shown

    table = Table("method", "field", "default", "chosen", "value", "default's", "trials", "given up", title="Tuned")
    for name, body in found.items():
        budget = body["budget"]
        for at, field in enumerate(body["chosen"]):
            own = (name, shown(body["value"]), shown(body["default_value"]), str(body["trials"]), str(budget["pruned"]))
            head, *rest = own if at == 0 else ("",) * len(own)
            table.add_row(head, field, shown(default_of(body, field)), shown(body["chosen"][field]), *rest)
    first = next(iter(found))
    return [
        table,
        *(sentence(body) for body in found.values()),
        "The smallest of many values is too good by chance: measure it on other seeds, and on other data.",
        f'In a grid file: [methods.{first}] tuned = "{output / first}.json"',
        f"Report: {report}",
    ]
