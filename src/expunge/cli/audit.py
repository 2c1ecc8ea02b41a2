"""``expunge audit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli._app import app
from expunge.cli._show import emit, options

EXTRA = 2  # retrained models trained here: the reference, and the floor


@app.command()
def audit(
    context: typer.Context,
    unlearned: Annotated[Path, typer.Option(help="Folder of forget.")] = Path("expunge-forgotten"),
    original: Annotated[Path, typer.Option(help="Folder that the request started from.")] = Path("expunge-work"),
    retrained: Annotated[
        list[Path] | None, typer.Option(help="Folder of forget -m retrain; repeatable. Without one, two are trained.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("expunge-audit"),
    show_samples: Annotated[bool, typer.Option("--show-samples", help="Show forgotten images in the report.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, repeatable: runtime.batch_size=64 ...")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Dry run: what would be trained and measured, and how long.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
) -> None:
    """Measure an unlearned model beside the original, the controls and models truly retrained.

    Writes [bold]audit.json[/bold] and [bold]report.html[/bold] and prints the table.

    Raises:
        Incompatible: the folders do not belong together.
        UserError: a setting that is not the runtime's.
    """
    from expunge.cli import _jobs, _request
    from expunge.cli._samples import images
    from expunge.errors import Incompatible, UserError
    from expunge.evaluate import evaluate
    from expunge.files import atomic, check_free
    from expunge.report import render
    from expunge.report.tables import terminal
    from expunge.summary import document, save_document, section

    chosen = options(context)
    fields, runs = _request.settings(settings)
    if fields:
        raise UserError("settings of the runtime, runtime.KEY=VALUE", ", ".join(fields), "give the method's to forget")
    replace = False if plan else _jobs.free(chosen, output)
    _jobs.apart(output, unlearned, original, *(retrained or []))
    after, before = _jobs.Folder.open(unlearned, chosen), _jobs.Folder.open(original, chosen)
    scenario, place = after.scenario, after.project
    if after.record["before"] != before.record["weights"]:
        raise Incompatible(f"the folder that {unlearned} started from", str(original), "name it with --original")
    runtime = place.runtime(chosen.device, runs)
    train = place.train.subset(scenario.train)
    model = before.model()
    references = [_reference(_jobs.Folder.open(path, chosen), scenario, after, model) for path in retrained or []]
    if plan:
        _plan(context, place, model, train, scenario, len(retrained or []), runtime, output, seed)
    for extra in range(0 if references else EXTRA):
        references.append(_retrained(place, model, train, scenario, runtime, seed + 1000 + extra))
    made = after.method
    scores = evaluate(
        {"original": model, "retrained": references, made.name: after.unlearned(model)},
        place.task,
        train=train,
        test=place.test,
        holdout=place.holdout,
        scenario=scenario,
        recipe=place.recipe,
        new_model=place.new_model,
        runtime=runtime,
        seed=seed,
    )
    if not runtime.main:
        return
    shown = images(train.subset(scenario.forget)) if show_samples else []
    names, counts = place.class_names, _request.counts(scenario)
    title, text = _request.title(scenario, names), _request.text(scenario, names)
    part = section(scores, name=title, text=text, counts=counts, samples=shown)
    lead = "One request on one model: intervals are over samples, not over training seeds."
    page = document([part], title=f"Audit of {made.name} on {place.name}", lead=lead, command=_jobs.command())
    check_free(output, replace)
    with atomic(output) as room:
        room.mkdir()
        (room / "report.html").write_text(render(page), encoding="utf-8")
        save_document(room / "audit.json", page)
    emit(chosen, page, terminal(part), f"Report: {output / 'report.html'}")


def _reference(folder: Any, scenario: Any, after: Any, model: Any) -> Any:
    """Return a retrained model read from its folder, held to the request."""
    from expunge.errors import Incompatible

    same = folder.scenario.digest() == scenario.digest() and folder.project.like(after.project) is None
    if folder.record["method"]["name"] != "retrain" or not same:
        want = "a folder of forget -m retrain for the same request, on the same training set"
        raise Incompatible(want, str(folder.path), "name another folder")
    return folder.unlearned(model)


def _given(place: Any, train: Any, scenario: Any) -> dict[str, Any]:
    return {
        "forget": train.subset(scenario.forget),
        "retain": train.without(scenario.forget),
        "holdout": place.holdout,
        "recipe": place.recipe,
        "new_model": place.new_model,
    }


def _retrained(place: Any, model: Any, train: Any, scenario: Any, runtime: Any, seed: int) -> Any:
    from expunge.errors import UserError
    from expunge.methods import load
    from expunge.unlearn import unlearn

    if place.recipe is None:
        remedy = "add one to the project file, or name folders of retrained models with --retrained"
        raise UserError("a [recipe], to retrain without the forgotten samples", "none", remedy)
    return unlearn(load("retrain")(), model, place.task, **_given(place, train, scenario), runtime=runtime, seed=seed)


def _plan(
    context: typer.Context,
    place: Any,
    model: Any,
    train: Any,
    scenario: Any,
    given: int,
    runtime: Any,
    output: Path,
    seed: int,
) -> None:
    from dataclasses import replace

    from expunge.cli._plan import show
    from expunge.methods import load
    from expunge.plan import Plan, plan

    rows = [{"file": str(output / name), "bytes": None} for name in ("audit.json", "report.html")]
    if given:
        found, trained = Plan({}, {}, None), 0
    else:
        values = _given(place, train, scenario)
        found, trained = (
            plan(load("retrain")(), "unlearn", model, place.task, given=values, runtime=runtime, seed=seed),
            EXTRA,
        )
        passes = {k: v * EXTRA for k, v in found.passes.items()}
        found = replace(found, passes=passes, seconds=None if found.seconds is None else found.seconds * EXTRA)
    ids = {"retrained": f"{given} given, {trained} to train", "forgotten": f"{len(scenario.forget)} samples"}
    show(context.obj, f"audit on {place.name}", found, ids, rows)
