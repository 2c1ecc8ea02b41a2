"""``expunge audit``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli._app import app
from expunge.cli._show import emit, options

EXTRA = 2  # retrained models trained here: the reference, and the floor
MISSED = 3  # exit code: measured, but a bound was missed


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
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            help="What to run, repeatable: accuracy, membership/svc ..., see expunge measures. Default: all.",
        ),
    ] = None,
    bound: Annotated[
        list[str] | None,
        typer.Option(help="'NAME OP NUMBER', repeatable: 'accuracy/test >= 0.9', 'gap membership/loss/auc <= 0.05'."),
    ] = None,
    canaries: Annotated[
        Path | None,
        typer.Option(help="Manifest of the samples planted in training, to be held to the project's: canaries.json."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, repeatable: runtime.batch_size=64 ...")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Dry run: what would be trained and measured, and how long training takes.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
) -> None:
    """Measure an unlearned model beside the original, the controls and models truly retrained.

    Writes [bold]audit.json[/bold] and [bold]report.html[/bold] and prints the table. Exit code 3: measured, but a
    bound of [bold]--bound[/bold] or of the project's [bold]policy.bounds[/bold] was missed; every missed one is
    named, with how far off it is and what to try. Canaries must be planted before training, by
    [bold]recipe.canaries[/bold]: then the audit also knows what forgetting looks like without a retrained model.

    Raises:
        Exit: with 3 where a bound was missed.
        Incompatible: the folders do not belong together.
        UserError: a setting that is not the runtime's, an unknown metric, or a bound that cannot be read.
    """
    from expunge.bounds import checked
    from expunge.cli import _jobs
    from expunge.cli._settings import settings as read
    from expunge.errors import Incompatible, UserError
    from expunge.evaluate import evaluate

    chosen = options(context)
    fields, runs = read(settings)
    if fields:
        raise UserError("settings of the runtime, runtime.KEY=VALUE", ", ".join(fields), "give the method's to forget")
    names = _known(metric or [])
    replace = False if plan else _jobs.free(chosen, output)
    _jobs.apart(output, unlearned, original, *(retrained or []))
    after, before = _jobs.opened(unlearned, chosen), _jobs.opened(original, chosen)
    scenario, place = after.scenario, after.project
    if after.record["before"] != before.record["weights"]:
        raise Incompatible(f"the folder that {unlearned} started from", str(original), "name it with --original")
    runtime = place.runtime(chosen.device, runs)
    measures = _measures(names, place)
    bounds = _bounds(bound or [], place, measures)
    marked = _canaries(canaries, place)
    train = place.train.subset(scenario.train)
    _jobs.refuse_deleted(place, train.without(scenario.forget))
    model = before.model()
    references = [_reference(_jobs.opened(path, chosen), scenario, after, model) for path in retrained or []]
    if plan:
        _plan(context, place, model, train, scenario, len(retrained or []), measures, runtime, output, seed)
    at = range(0 if references else EXTRA)
    references += [_retrained(place, model, train, scenario, runtime, seed + 1000 + k) for k in at]
    made, done = after.method, after.unlearned(model)
    scores = evaluate(
        {"original": model, "retrained": references, made.name: done},
        place.task,
        train=train,
        test=place.test,
        holdout=place.holdout,
        scenario=scenario,
        recipe=place.recipe,
        new_model=place.new_model,
        metrics=measures,
        canaries=marked,
        runtime=runtime,
        seed=seed,
    )
    if runtime.main:
        outcomes, gone = checked(bounds, scores, made.name), train.subset(scenario.forget)
        page = _page(scores, scenario, made.name, place, gone if show_samples else None, outcomes, done.log)
        _finish(chosen, scores, page, outcomes, output, replace)


def _finish(chosen: Any, scores: Any, page: dict[str, Any], outcomes: Any, output: Path, replace: bool) -> None:
    """Write the report and print the table; end with exit code 3 where a bound was missed."""
    from expunge.report.tables import terminal

    _write(page, output, replace)
    said = [outcome.sentence() for outcome in outcomes]
    emit(chosen, page, terminal(page["sections"][0]), *scores.caveats, *said, f"Report: {output / 'report.html'}")
    if not all(outcome.met for outcome in outcomes):
        raise typer.Exit(MISSED)


def _page(
    scores: Any, case: Any, name: str, place: Any, gone: Any, outcomes: Any, log: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the report document; pictures of samples and of concepts where the forgotten samples are given."""
    from expunge import selection
    from expunge.cli import _jobs
    from expunge.cli._samples import images
    from expunge.report.concepts import gathered
    from expunge.summary import document, section

    names, told = place.class_names, gathered(log, pictures=gone is not None)
    part = section(
        scores,
        name=selection.title(case, names),
        text=selection.text(case, names),
        counts=selection.counts(case),
        samples=[] if gone is None else images(gone),
        bounds=outcomes,
        classes=names,
    )
    part["concepts"] = {} if told is None else {name: told}
    lead = "One request on one model: intervals are over samples, not over training seeds."
    tables = place.config.metrics
    changed = [f"{own}.{key} = {value}" for own, table in tables.items() for key, value in table.items()]
    lead += f" Settings of the project file: {', '.join(changed)}." if changed else ""
    return document([part], title=f"Audit of {name} on {place.name}", lead=lead, command=_jobs.command())


def _write(page: dict[str, Any], output: Path, replace: bool) -> None:
    from expunge.files import atomic, check_free
    from expunge.report import render
    from expunge.summary import save_document

    check_free(output, replace)
    with atomic(output) as room:
        room.mkdir()
        (room / "report.html").write_text(render(page), encoding="utf-8")
        save_document(room / "audit.json", page)


def _known(names: list[str]) -> list[str]:
    """Return the names, each of a family or an attack.

    Raises:
        UserError: a name that is neither.
    """
    from expunge import attacks, metrics
    from expunge.errors import UserError, suggest

    known = [*metrics.names(), *(f"membership/{name}" for name in attacks.names())]
    stray = [name for name in names if name not in known]
    if stray:
        found = f"membership/{stray[0]}"
        remedy = f"write {found}" if found in known else suggest(stray[0], known)
        raise UserError("a known metric or attack in --metric", repr(stray[0]), remedy)
    return names


def _measures(names: list[str], place: Any) -> Any:
    """Return the metrics to run, set as the project says; all where none is named."""
    from expunge import metrics
    from expunge.metrics.membership import Membership

    families = place.metrics([name for name in dict.fromkeys(names) if name in metrics.names()] if names else None)
    chosen = tuple(name.partition("/")[2] for name in dict.fromkeys(names) if "/" in name)
    if chosen and "membership" not in names:
        families.append(Membership(names=chosen))
    return families


def _bounds(given: list[str], place: Any, measures: Any) -> Any:
    from expunge import metrics
    from expunge.bounds import Bound
    from expunge.errors import UserError

    known = {name: number for family in measures for name, number in family.numbers.items()}
    texts = (*place.config.policy.bounds, *given)
    stray = next((name for text in texts if (name := Bound.parse(text).name) not in known), None)
    home = next((family for family in metrics.names() if stray in metrics.load(family)().numbers), None)
    if home is not None:
        raise UserError("a bound on a number that is measured", f"{stray!r} without its family", f"add --metric {home}")
    return [Bound.parse(text, known) for text in texts]


def _canaries(path: Path | None, place: Any) -> Any:
    """Return the planted and the never trained samples of the project, or None where it has none.

    Raises:
        Incompatible: the manifest is of other canaries than the project's training data holds.
    """
    from expunge.canaries import Canaries
    from expunge.errors import Incompatible

    if path is not None and Canaries.load(path) != place.manifest:
        got = f"{path}, of others" if place.planted else f"{path}, and a project without canaries"
        remedy = "name the canaries.json written when the network was trained, and set recipe.canaries or data.canaries"
        raise Incompatible("the manifest of the canaries that the project's training data holds", got, remedy)
    return None if place.canaries is None else place.canaries.samples(place.full_train)


def _again(measures: Any) -> list[str]:
    """Return the families that train or perturb copies of the models, beyond one pass over each set."""
    return [type(family).__module__.rpartition(".")[2] for family in measures if family.trains]


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
    measures: Any,
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
    data = [train, *(d for d in (place.test, place.holdout) if d is not None)]
    ids = {
        "retrained": f"{given} given, {trained} to train",
        "forgotten": f"{len(scenario.forget)} samples",
        "measured": f"{given + trained + 4} models at most, each on {sum(map(len, data)):,} samples once",
        "run again": ", ".join(_again(measures)) or "no model",
    }
    show(context.obj, f"audit on {place.name}", found, ids, rows, timed="to train (measuring comes on top)")
