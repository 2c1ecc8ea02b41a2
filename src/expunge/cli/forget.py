"""``expunge forget``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli._app import app
from expunge.cli._show import emit, options

MISSED = 3  # exit code: done, but nothing was changed, or a bound of the policy was missed
MANIFEST = "manifest.csv"  # beside the report, where a method poisoned samples


@app.command()
def forget(
    context: typer.Context,
    start: Annotated[Path, typer.Option(help="Folder of prepare, or of the request before.")] = Path("expunge-work"),
    method: Annotated[str | None, typer.Option("--method", "-m", help="Default: the one that was prepared.")] = None,
    ids: Annotated[Path | None, typer.Option(help="Text file, one sample id a line.")] = None,
    label: Annotated[
        str | None,
        typer.Option(
            "--class", help="Forget a class, by number or name; of real targets, or dates of a series, LOW..HIGH."
        ),
    ] = None,
    subclass: Annotated[str | None, typer.Option(help="Forget one value of the subclass column.")] = None,
    subject: Annotated[str | None, typer.Option(help="Forget everything of one person or customer.")] = None,
    amount: Annotated[int | None, typer.Option("--random", help="Forget N samples drawn at random.")] = None,
    samples: Annotated[
        str | None, typer.Option(help="File of the samples themselves, where the training data is gone.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("expunge-forgotten"),
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE, repeatable: a method's field, or runtime.batch_size=64."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Dry run: ids matched, needs missing, passes, time, files.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
) -> None:
    """Fulfil one request: new weights, the state for the next request, a record and a report.

    Nothing at [bold]--start[/bold] is changed. Name who is to be forgotten by exactly one of [bold]--ids[/bold],
    [bold]--class[/bold], [bold]--subclass[/bold], [bold]--subject[/bold], [bold]--random[/bold] and
    [bold]--samples[/bold]. Exit code 3: done, but no parameter was changed, or accuracy
    fell by more than the project's policy allows.

    Raises:
        Exit: with 3 where nothing was changed, or a bound of the policy was missed.
    """
    from expunge import folders, selection
    from expunge.cli import _jobs
    from expunge.cli._settings import settings as read
    from expunge.unlearn import unlearn

    chosen = options(context)
    fields, runs = read(settings)
    who = selection.Who(ids=ids, label=label, subclass=subclass, subject=subject, amount=amount, samples=samples)
    who.check()
    replace = False if plan else _jobs.free(chosen, output)
    folder = _jobs.opened(start, chosen)
    _jobs.apart(output, start)
    place = folder.project
    prepared = dict(folder.record["method"])
    if method is None or method == prepared["name"]:
        made = place.method(prepared["name"], folder.settings() | fields)
    else:
        made = place.method(method, fields)
    runtime = place.runtime(chosen.device, runs)
    request = selection.resolve(who, place, sorted(folder.record.get("forgotten", [])), seed, lenient=plan)
    selection.check_share(place, request, _trained(folder, request))
    model = folder.model()
    given: dict[str, Any] = request.given() | {
        "holdout": place.holdout,
        "state": folder.state if made.name == prepared["name"] else None,
        "recipe": place.recipe,
        "new_model": place.new_model,
    }
    if request.train is not None:
        _jobs.refuse_deleted(place, request.train.without(request.forget.ids))
    if len(request.forget):
        place.check(model, request.forget)
    if plan:
        _plan(context, made, model, place, request, given, runtime, output, seed)
    done = unlearn(made, model, place.task, **given, runtime=runtime, seed=seed)
    record = folders.outcome(done, place, seed, request.scenario) | {
        "before": folder.record["weights"],
        "stale": folder.record.get("stale", []),
    }
    gone_before, same = folder.record.get("forgotten", []), made.name == prepared["name"]
    record["forgotten"] = sorted({*gone_before, *([] if folders.idle(done) else request.forget.ids)})
    if request.train is not None:
        known = folder.state.meta.get("expunge", {}).get("samples")
        record["not_at_hand"] = None if known is None else max(0, known - len(gone_before) - len(request.train))
    extra, missed = _measured(model, done, made, place, request, runtime, seed, record)
    if not runtime.main:
        return
    # Weights left as they were keep their state: ids of which nothing was forgotten can be asked for again.
    state = folder.state if folders.idle(done) and same and not made.control else done.state
    folders.write(output, place, done.model, state, record, extra, replace)
    emit(chosen, record, *_lines(request, made, done, record, output), *([missed] if missed else []))
    if missed or folders.idle(done):
        raise typer.Exit(MISSED)


def _trained(folder: Any, request: Any) -> int | None:
    """Return the number of training samples not yet forgotten, from the state where the data is gone."""
    if request.train is not None:
        return len(request.train)
    known = folder.state.meta.get("expunge", {}).get("samples")
    return None if known is None else known - len(folder.record.get("forgotten", []))


def _measured(
    model: Any,
    done: Any,
    method: Any,
    place: Any,
    request: Any,
    runtime: Any,
    seed: int,
    record: dict[str, Any],
) -> tuple[dict[str, str], str]:
    """Measure before and after; return the report's file, if any, and the sentence on a missed bound of the policy."""
    from expunge import folders, selection
    from expunge.cli import _jobs
    from expunge.evaluate import evaluate
    from expunge.report import concepts, render
    from expunge.report.recorded import series
    from expunge.summary import document, section

    if request.scenario is None:
        before, after = (folders.accuracy(m, place, runtime) for m in (model, done.model))
        record["test_accuracy"] = {"before": before, "after": after}
        record |= _tested(place, model, done.model, runtime)
        return {}, _missed(place, record, record["test_accuracy"], None)
    scores = evaluate(
        {"original": model, method.name: done},
        place.task,
        train=request.train,
        test=place.test,
        holdout=place.holdout,
        scenario=request.scenario,
        metrics=[metric for metric in place.metrics() if not metric.trains],  # a request is not an audit
        runtime=runtime,
        seed=seed,
    )
    case = request.scenario
    part = section(
        scores,
        name=selection.title(case, place.class_names),
        text=selection.text(case, place.class_names),
        counts=selection.counts(case),
        classes=place.class_names,
    )
    part["traces"] = {method.name: series(done.log)}
    told, rows = concepts.gathered(done.log), concepts.manifest(done.log)
    part |= {"concepts": {} if told is None else {method.name: told}, "manifest": MANIFEST if rows else ""}
    lead = "What one request changed. There is no retrained model here to compare with: run expunge audit."
    if folders.idle(done):
        lead = f"{_nothing(request, method)} {done.note}"
    page = document([part], title=f"{method.name} on {place.name}", lead=lead, command=_jobs.command())
    pairs = {
        part: {
            at: getattr(scores[name].get(f"accuracy/{part}"), "x", None)
            for at, name in (("before", "original"), ("after", method.name))
        }
        for part in ("forget", "test", "test_retain")
    }
    if None not in pairs["forget"].values():  # an edit that forgot nobody shows here
        record["forget_accuracy"] = pairs["forget"]
    record["test_accuracy"] = pairs["test"]
    record |= _errors(place, scores, method.name)
    kept = pairs["test_retain" if case.kind == "class" else "test"]
    files = {"report.html": render(page)} | ({MANIFEST: rows} if rows else {})
    return files, _missed(place, record, kept, case)


def _measure(task: Any) -> tuple[str, str] | None:
    """Return the number that tells how well a task without classes is done, and its name in words; None of classes."""
    from expunge.task import Classes, Quantile, Regression

    if isinstance(task, Classes):
        return None
    real = isinstance(task, Regression | Quantile)
    return ("error/mae", "mean absolute error") if real else ("loss", "mean loss")


def _errors(place: Any, scores: Any, name: str) -> dict[str, Any]:
    """Return errors before and after for the record, with what always saying the same gives; nothing of classes."""
    measure = _measure(place.task)
    if measure is None:
        return {}
    number, words = measure
    rows = (("before", "original", number), ("after", name, number), ("constant", name, f"{number}_constant"))
    found = {
        part: {at: getattr(scores[who].get(f"{key}/{part}"), "x", None) for at, who, key in rows}
        for part in ("test", "forget")
    }
    known = {part: {at: x for at, x in row.items() if x is not None} for part, row in found.items()}
    return {"errors": {"measure": words, **{part: row for part, row in known.items() if {"before", "after"} <= {*row}}}}


def _tested(place: Any, before: Any, after: Any, runtime: Any) -> dict[str, Any]:
    """Return the same on the test data alone, where the training data is not at hand and nothing is evaluated."""
    from expunge.evidence import collect

    measure = _measure(place.task)
    if measure is None or place.test is None:
        return {}
    row = {}
    for at, model in (("before", before), ("after", after)):
        said = collect(model, place.task, place.test, runtime=runtime)
        if said.target is None or said.loss is None:
            return {}
        away = said.prediction.double().flatten() - said.target.double().flatten()
        row[at] = float((said.loss if measure[0] == "loss" else away.abs()).mean())
    return {"errors": {"measure": measure[1], "test": row}}


def _missed(place: Any, record: dict[str, Any], kept: dict[str, float | None], case: Any) -> str:
    """Hold the fall of test accuracy to the policy, note that in the record, and return the sentence on a miss."""
    from expunge.folders import tested

    bound = place.config.policy.accuracy_drop
    if bound is None:
        return ""
    before, after = kept["before"], kept["after"]
    drop = None if before is None or after is None else before - after
    record["policy"] = {"accuracy_drop": drop, "bound": bound, "met": drop is not None and drop <= bound}
    if drop is None:
        why = "name test data in [data] test" if place.test is None else "the task has no classes, or test no labels"
        return f"Policy: accuracy_drop of at most {bound:g} could not be measured: {why}."
    if drop <= bound:
        return ""
    what = tested([case.target] if case is not None and case.kind == "class" else [])
    return f"Policy missed: {what} fell by {drop:.4g}, more than accuracy_drop = {bound:g}."


def _nothing(request: Any, method: Any) -> str:
    of = f" of {len(request.train)}" if request.train is not None else ""
    return f"Nothing was forgotten: {method.name} changed no parameter for the {len(request.forget)}{of} samples."


def _lines(request: Any, method: Any, done: Any, record: dict[str, Any], output: Path) -> list[str]:
    from expunge import folders

    share = "another network" if done.changed is None else f"{100 * done.changed.share:.2f} % of the parameters changed"
    of = f" of {len(request.train)}" if request.train is not None else ""
    lines = [f"Edited for {len(request.forget)}{of} samples by {method.name} in {done.seconds:.3g} s: {share}."]
    if folders.idle(done):
        lines = [_nothing(request, method)]
        lines.append("They are not marked as forgotten: ask again with another setting or method.")
    lines += [done.note] if done.note else []
    test = record["test_accuracy"]
    if test["before"] is not None and test["after"] is not None:
        lines.append(
            f"Right on {100 * test['before']:.1f} % of the test data before, {100 * test['after']:.1f} % after."
        )
    if record.get("forget_accuracy"):
        own = record["forget_accuracy"]
        lines.append(f"On the forgotten samples: {100 * own['before']:.1f} % before, {100 * own['after']:.1f} % after.")
    lines += _off(record.get("errors", {}))
    if record.get("not_at_hand"):
        lines.append(
            f"{record['not_at_hand']} of the prepared samples are not in the training data any more: no request that "
            "is looked up there finds them. Were they this request's, pass them with --samples."
        )
    stale = f" The checkpoint held {', '.join(record['stale'])}." if record["stale"] else ""
    lines.append(record["advice"] + stale)
    what = "Weights, state, record and report" if request.scenario is not None else "Weights, state and record"
    lines.append(f"{what}: {output}")
    if request.scenario is None:
        lines.append("No report: it needs the training data, which --samples leaves unread.")
    return lines


def _off(errors: dict[str, Any]) -> list[str]:
    """Return sentences on errors before and after, of a task without classes."""
    lines = []
    for part, where in (("test", "the test data"), ("forget", "the forgotten samples")):
        if part in errors:
            row = errors[part]
            same = f" (always saying the same: {row['constant']:.4g})" if "constant" in row else ""
            what = str(errors["measure"]).capitalize()
            lines.append(f"{what} on {where}: {row['before']:.4g} before, {row['after']:.4g} after{same}.")
    return lines


def _plan(
    context: typer.Context,
    method: Any,
    model: Any,
    place: Any,
    request: Any,
    given: dict[str, Any],
    runtime: Any,
    output: Path,
    seed: int,
) -> None:
    from expunge.cli._plan import files, show
    from expunge.plan import Plan, plan

    if request.problem:
        found = Plan({}, {}, None, request.problem)
    else:
        found = plan(method, "unlearn", model, place.task, given=given, runtime=runtime, seed=seed)
    state = given["state"]
    size = 0 if state is None else sum(t.numel() * t.element_size() for t in (state.tensors[n] for n in state.tensors))
    more = [*(["canaries.json"] if place.planted else []), *(["report.html"] if request.scenario is not None else [])]
    rows = files(output, method.served_from(model), size, ["record.json", *more])
    ids = {
        "ids matched": f"{request.matched} of {request.asked}",
        **({"problem": request.problem} if request.problem else {}),
    }
    show(options(context), f"forget {request.asked} samples of {place.name} by {method.name}", found, ids, rows)
