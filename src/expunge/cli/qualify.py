"""``expunge qualify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli._app import app
from expunge.cli._show import emit, options, progress

FAILED = 3  # exit code: qualified, but the method was found distinguishable
INTERRUPTED = 130


@app.command()
def qualify(
    context: typer.Context,
    method: Annotated[str | None, typer.Option("--method", "-m", help="See expunge methods; default ssd.")] = None,
    data: Annotated[str | None, typer.Option(help="A named data set instead of a project file: digits ...")] = None,
    original: Annotated[
        Path | None,
        typer.Option(
            help="Folder of prepare whose model the record is for; default [requests] start, else the weights."
        ),
    ] = None,
    request: Annotated[
        list[str] | None,
        typer.Option(
            "--request",
            "-r",
            help="Kind and size of requests, repeatable: random=10, random=0.05, random=10,times=8, hardest=10, "
            "near-duplicates=10, class=3, subject:who=s3. Default: a choice of those that fit.",
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE of the recipe, repeatable: a model retrained so is as good, as batch_size=48."),
    ] = None,
    models: Annotated[int, typer.Option(min=8, help="Models of the pool; 30 for a verdict, 64 for a sharp one.")] = 64,
    store: Annotated[
        Path, typer.Option("--store", "-s", help="Folder of the pool; shared by methods, and resumed.")
    ] = Path("expunge-pool"),
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, help="Processes on this machine.")] = 1,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("expunge-qualified"),
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE, repeatable: a method's field, or runtime.batch_size=64."),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Dry run: what would be trained and asked, how long.")] = False,
    seed: Annotated[int, typer.Option(help="Of halves, training and requests.")] = 0,
) -> None:
    """Measure how often a method fails on this model, by many simulated requests, so that single ones can rest on it.

    One request of ten samples proves nothing by itself. So a pool of models is trained on random halves of the data
    by the project's recipe, each is asked to forget, and what comes out is compared, sample by sample, with models that
    never saw the samples. The [bold]qualification.json[/bold] it writes says for each kind and size of request: a bound
    on the gap to retraining that nine in ten requests meet, how often the method fails, what it costs in accuracy, how
    many requests in a row it stands, a verdict ([bold]indistinguishable within margin[/bold],
    [bold]distinguishable[/bold] or [bold]insufficient evidence[/bold]), and what it cannot exclude. Name the file in
    the project file, and [bold]expunge requests process[/bold] cites it until model, data or method change.

    The pool is the cost; it is trained once for all methods and kinds. Interrupted, the same command goes on.
    With [bold]--vary[/bold] models retrained by a recipe changed so count as retrained too: a method passes that comes
    as near to either. Exit code 3: the method was found distinguishable for a kind of request.

    Raises:
        Exit: with 3 where the method was found distinguishable, 130 where it was interrupted.
        UserError: no recipe, an unknown request, too few models, or the store of another pool.
    """
    from expunge.cli import _jobs
    from expunge.cli._settings import settings as read
    from expunge.qualify.study import qualify as run

    chosen = options(context)
    fields, runs = read(settings)
    place = _jobs.project(chosen, data, None, None)
    made = place.method(method, fields)
    asked = _asked(request, place)
    pool = _pool(chosen, place, runs, store, models, seed, workers, _varied(vary, place))
    weights = _weights(place, original, chosen)
    if plan:
        body, lines = _planned(pool, asked, made)
        emit(chosen, body, *lines)
        return
    replace = _jobs.free(chosen, output)
    _jobs.apart(output, store)
    with progress("starting") as shown:
        try:
            body = run(_told(pool, shown), made, asked, told=lambda text: shown(0, None, text))
        except KeyboardInterrupt:
            typer.echo("Interrupted: the same command goes on where it was.", err=True)
            raise typer.Exit(INTERRUPTED) from None
    _finish(chosen, {**body, "model": weights, **_data(place)}, output, replace)


def _asked(texts: list[str] | None, place: Any) -> list[Any]:
    """Return what is asked of the pool: as named, or what fits the project."""
    from expunge.qualify.asked import Asked
    from expunge.qualify.study import defaults

    return [Asked.parse(text) for text in texts] if texts else defaults(place.problem())


def _varied(words: list[str] | None, place: Any) -> dict[str, dict[str, Any]]:
    """Return changes of the recipe by name.

    Raises:
        UserError: the recipe has no such field, or not with that value, or it is the recipe's own.
    """
    from expunge.errors import UserError, suggest
    from expunge.methods import parse
    from expunge.recipe import Recipe, fields_of

    recipe, found = place.problem().recipe, {}
    own = {} if recipe is None else recipe.to_json()
    for word in words or ():
        changes = parse([word])
        if odd := [key for key in changes if key not in own]:
            raise UserError("a field of the recipe in --vary", repr(odd[0]), suggest(odd[0], own))
        Recipe(**fields_of({**own, **changes}))
        if all(own.get(key) == value for key, value in changes.items()):
            raise UserError(
                "another recipe in --vary", f"{word}, which it is", "leave it out: other seeds always count"
            )
        found[", ".join(f"{key} {value}" for key, value in changes.items())] = changes
    return found


def _pool(
    chosen: Any,
    place: Any,
    runs: dict[str, Any],
    store: Path,
    models: int,
    seed: int,
    workers: int,
    variants: dict[str, dict[str, Any]],
) -> Any:
    """Return the pool of a project.

    Raises:
        UserError: the project says not how its network is trained, or has no network before training.
    """
    from expunge.bench import problems
    from expunge.bench.stages import Setting
    from expunge.errors import UserError
    from expunge.qualify.simulate import Pool

    runtime = place.runtime(chosen.device, runs)
    problem = place.problem()
    if problem.recipe is None:
        raise UserError("a [recipe], to train the pool's models by", "none", "add one to the project file")
    if problem.new_model is None:
        raise UserError("a network before training", "none", "name [model] base in the project file")
    projects: dict[str, Path] = {}
    if place.file is None:
        entry = {"name": place.config.data.name} | _limit(place)
    else:
        entry = problems.named(place.file, place)
        projects[entry["digest"]] = place.file.resolve()
    data_dir = None if chosen.data_dir is None else chosen.data_dir.resolve()
    kept = {n: getattr(runtime, n) for n in ("batch_size", "precision", "memory")}
    setting = Setting(store.resolve(), projects, data_dir, chosen.device, **kept)
    return Pool(entry, problem.network, problem.recipe.to_json(), setting, models, seed, workers, variants=variants)


def _limit(place: Any) -> dict[str, int]:
    limit = place.config.data.limit
    return {} if limit is None else {"limit": limit}


def _weights(place: Any, original: Path | None, chosen: Any) -> str | None:
    """Return the digest of the model that the record is for; None where there is none yet."""
    from expunge.cli import _jobs
    from expunge.tensors import weights_digest

    start = place.folder / place.config.requests.start
    if original is None and place.file is not None and start.is_dir():
        original = start
    if original is not None:
        return weights_digest(_jobs.opened(original, chosen).model())
    return None if place.trains else weights_digest(place.trained(place.runtime(chosen.device, {}), 0))


def _data(place: Any) -> dict[str, Any]:
    from expunge.qualify.record import data_digest

    return {"data": data_digest(place.train)}


def _told(pool: Any, shown: Any) -> Any:
    """Return the pool, with its progress on the bar."""
    from dataclasses import replace

    def told(task: Any, outcome: str, over: int, of: int) -> None:
        name = f" {task.cell.method['name']}" if task.cell.method else ""
        shown(over, of, f"{task.stage}{name}{'' if outcome == 'done' else f' {outcome}'}")

    return replace(pool, told=told)


def _planned(pool: Any, asked: list[Any], method: Any) -> tuple[dict[str, Any], list[str]]:
    """Return what would be done: models to train and to ask, and how long by what such tasks took in the store."""
    from expunge.bench.store import Store
    from expunge.files import there

    t = pool.models
    room = Store(pool.setting.store)
    known = there(pool.setting.store) is not None
    missing = sum(room.status(pool.answered(k).needs[0]) != "done" for k in range(t)) if known else t
    steps, half = sum(each.times for each in asked), int(pool.seen[0].sum())
    again = sum(each.against(_size(each, half), half) == "retrained" for each in asked)
    many = 1 + len(pool.variants)
    body = {"models": t, "to_train": missing + t * (many - 1), "edits": t * steps, "to_retrain": t * again * many}
    lines = [
        f"A pool of {t} models on {half:,} of {len(pool.train):,} samples each, {body['to_train']} to train.",
        f"{method.settings()['name']}: {t * steps} edits for {', '.join(map(str, asked))}; "
        f"{body['to_retrain']} models retrained without the samples.",
    ]
    seconds = {stage: room.mean_seconds(stage) if known else None for stage in ("trained", "unlearned")}
    if all(s is not None for s in seconds.values()):
        train, edit = (float(s) for s in seconds.values() if s is not None)
        body["seconds"] = (body["to_train"] + body["to_retrain"]) * train + t * steps * edit
        lines.append(f"About {body['seconds'] / 60:.1f} minutes of one process, by what was done in this store.")
    else:
        lines.append("How long that takes is known once a model is trained, and asked to forget, in this store.")
    return body, lines


def _size(asked: Any, half: int) -> int:
    """Return how many samples of a half a request is about, as far as that is known before it is drawn."""
    return int(asked.value) if isinstance(asked.value, int) and not asked.fixed else half


def _finish(chosen: Any, body: dict[str, Any], output: Path, replace: bool) -> None:
    """Write record and report, and print the table; end with exit code 3 where the method fails."""
    from expunge.cli import _jobs
    from expunge.files import atomic, check_free
    from expunge.qualify.record import Qualification
    from expunge.qualify.study import unsimulated
    from expunge.report import qualifypage

    check_free(output, replace)
    record = Qualification(body)
    with atomic(output) as room:
        room.mkdir()
        record.save(room / "qualification.json")
        (room / "report.html").write_text(qualifypage.render(body, command=_jobs.command()), encoding="utf-8")
    said = [f"{kind['words']}: {kind['verdict']['value']}." for kind in body["kinds"]] + unsimulated(body["declined"])
    where = f"Record: {output / 'qualification.json'}, report: {output / 'report.html'}"
    emit(chosen, body, *qualifypage.terminal(body), *said, where)
    if any(kind["verdict"]["value"] == "distinguishable" for kind in body["kinds"]):
        raise typer.Exit(FAILED)
