"""``expunge prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli._app import app
from expunge.cli._show import emit, options


@app.command()
def prepare(
    context: typer.Context,
    method: Annotated[str | None, typer.Option("--method", "-m", help="See expunge methods; default ssd.")] = None,
    data: Annotated[str | None, typer.Option(help="A named data set instead of a project file: digits ...")] = None,
    network: Annotated[str | None, typer.Option(help="With --data: a named network; default its own.")] = None,
    weights: Annotated[Path | None, typer.Option(help="With --data: trained weights; else it is trained.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("expunge-work"),
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE, repeatable: a method's field, or runtime.batch_size=64."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Dry run: say what would be read, written, and how long.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
) -> None:
    """Do a method's one-off pass over the training data; afterwards the data may be thrown away.

    Model and data come from the project file (see [bold]expunge init[/bold]) or from [bold]--data[/bold]. Writes a
    folder with [bold]model.safetensors[/bold], [bold]state.safetensors[/bold] and [bold]record.json[/bold], which
    [bold]expunge forget --start[/bold] reads, and [bold]canaries.json[/bold] where the project plants some; a
    transformers checkpoint keeps its tokenizer and processor. Interrupted or killed, the same command goes on where it
    was, from a hidden folder beside the output (or [bold]workdir[/bold] in [runtime]) that is written every minute and
    removed at the end.

    Raises:
        UserError: the network is to be trained, and nobody said how; or the data holds deleted samples.
    """
    from dataclasses import replace as changed
    from shutil import rmtree

    from expunge import folders
    from expunge.cli import _jobs
    from expunge.cli._settings import settings as read_settings
    from expunge.errors import UserError
    from expunge.tensors import weights_digest
    from expunge.unlearn import prepare as run

    chosen = options(context)
    fields, runs = read_settings(settings)
    place = _jobs.project(chosen, data, network, weights)
    made = place.method(method, fields)
    runtime = place.runtime(chosen.device, runs)
    replace = False if plan else _jobs.free(chosen, output)
    partial = output.with_name(f".{output.name}.partial") if runtime.workdir is None and not plan else None
    if partial is not None:
        runtime = changed(runtime, workdir=partial)
    train, trained = place.train, place.trains
    _jobs.refuse_deleted(place)
    model = place.blank() if trained else place.trained(runtime, seed)
    place.check_splits(model)
    if trained and place.recipe is None:
        raise UserError("a [recipe] to train by", "none", "add one, or name trained weights in [model]")
    if trained and not plan:
        model = place.trained(runtime, seed)
    given: dict[str, Any] = {
        "train": train,
        "holdout": place.holdout,
        "recipe": place.recipe,
        "new_model": place.new_model,
    }
    if plan:
        _plan(context, made, model, place, given, runtime, output, seed)
    ready = run(made, model, place.task, **given, runtime=runtime, seed=seed)
    record = folders.record("prepare", place, seed, made.settings()) | {
        "weights": weights_digest(ready.model),
        "seconds": ready.seconds,
        "note": ready.note,
        "trained_here": trained,
        "stale": place.network.stale,
        "test_accuracy": folders.accuracy(ready.model, place, runtime),
    }
    if not runtime.main:
        return
    folders.write(output, place, ready.model, ready.state, record, {}, replace)
    if partial is not None:
        rmtree(partial, ignore_errors=True)
    lines = [f"Prepared {made.name} on {len(train)} samples in {ready.seconds:.3g} s: {output}", ready.note]
    if place.canaries is not None:
        n, kept = len(place.canaries.planted), len(place.canaries.unseen)
        lines.append(f"Canaries: {n} of them under random labels, {kept} further samples kept out of training.")
    if record["test_accuracy"] is not None:  # a wrong order of classes or a wrong normalisation shows here
        lines.append(f"The network is right on {100 * record['test_accuracy']:.1f} % of the test data.")
    if place.zoo is None and place.classes and not place.config.data.classes:
        names = ", ".join(f"{at} {name}" for at, name in enumerate(place.classes[:10]))
        more = f" and {len(place.classes) - 10} more" if len(place.classes) > 10 else ""
        lines.append(f"Outputs taken for classes: {names}{more}. If that is not their order, set classes in [data].")
    emit(options(context), record, *(line for line in lines if line))


def _plan(
    context: typer.Context,
    method: Any,
    model: Any,
    place: Any,
    given: dict[str, Any],
    runtime: Any,
    output: Path,
    seed: int,
) -> None:
    from expunge.cli._plan import files, show, state_bytes
    from expunge.method import Method
    from expunge.plan import plan

    found = plan(method, "prepare", model, place.task, given=given, runtime=runtime, seed=seed)
    size = None  # of weights that are kept in the state
    if type(method).served_from is Method.served_from:
        size = state_bytes(model, len(given["train"]), sums=method.prepares.required() != [])
    rows = files(output, model, size, ["record.json", *(["canaries.json"] if place.planted else [])])
    ids = {"ids": f"{len(given['train']):,} training samples"}
    if place.trains:
        ids["training"] = "the network is trained first, by the recipe; that time is not in the plan"
    show(options(context), f"prepare {method.name} on {place.name}", found, ids, rows)
