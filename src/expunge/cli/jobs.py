"""``expunge prepare``, ``forget`` and ``audit`` on the named data sets and networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli._app import app
from expunge.cli._show import emit, options

Set = Annotated[list[str] | None, typer.Option("--set", help="A method's field as KEY=VALUE; repeatable.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is at the output path.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples a forward pass outside training.")]


@app.command()
def prepare(
    context: typer.Context,
    method: Annotated[str, typer.Option("--method", "-m", help="See expunge methods.")] = "ssd",
    data: Annotated[str, typer.Option(help="A named data set: digits, diabetes.")] = "digits",
    network: Annotated[str | None, typer.Option(help="convnet or mlp; default the data set's own.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Trained weights; without them the network is trained.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("expunge-work"),
    settings: Set = None,
    seed: Seed = 0,
    batch_size: BatchSize = 256,
    overwrite: Overwrite = False,
) -> None:
    """Do a method's one-off pass over the training data; afterwards the data may be thrown away.

    Writes a folder with [bold]model.safetensors[/bold], [bold]state.safetensors[/bold] and
    [bold]record.json[/bold], which [bold]expunge forget --start[/bold] reads.
    """
    from expunge import zoo
    from expunge.cli._jobs import write
    from expunge.files import check_free
    from expunge.methods import build
    from expunge.runtime import Runtime
    from expunge.tensors import load_weights, weights_digest
    from expunge.train import fit, fresh
    from expunge.unlearn import prepare as run

    made = build({"name": method, **_fields(settings)})
    problem = zoo.load(data, network)
    runtime = Runtime(device=options(context).device, batch_size=batch_size)
    check_free(output, overwrite)
    model = problem.new_model()
    if weights is None:
        start = fresh(model, new_model=problem.new_model, seed=seed)
        model = fit(start, problem.task, problem.train, problem.recipe, runtime=runtime, seed=seed)
    else:
        load_weights(weights, model)
        model = model.eval()
    ready = run(
        made,
        model,
        problem.task,
        train=problem.train,
        holdout=problem.holdout,
        recipe=problem.recipe,
        new_model=problem.new_model,
        runtime=runtime,
        seed=seed,
    )
    record = _record("prepare", problem.name, problem.network, seed, made.settings()) | {
        "weights": weights_digest(ready.model),
        "seconds": ready.seconds,
        "note": ready.note,
        "trained_here": weights is None,
    }
    write(output, ready.model, ready.state, record, {}, overwrite)
    emit(
        options(context),
        record,
        f"Prepared {method} on {len(problem.train)} samples in {ready.seconds:.3g} s: {output}",
    )


@app.command()
def forget(
    context: typer.Context,
    start: Annotated[Path, typer.Option(help="Folder of prepare, or of the request before.")] = Path("expunge-work"),
    method: Annotated[str | None, typer.Option("--method", "-m", help="Default: the one that was prepared.")] = None,
    ids: Annotated[Path | None, typer.Option(help="Text file, one sample id a line.")] = None,
    label: Annotated[int | None, typer.Option("--class", help="Forget a whole class.")] = None,
    amount: Annotated[int | None, typer.Option("--random", help="Forget N samples drawn at random.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("expunge-forgotten"),
    settings: Set = None,
    seed: Seed = 0,
    batch_size: BatchSize = 256,
    overwrite: Overwrite = False,
) -> None:
    """Fulfil one request: new weights, the state for the next request, a record and a report.

    Nothing at [bold]--start[/bold] is changed. Name who is to be forgotten by exactly one of [bold]--ids[/bold],
    [bold]--class[/bold] and [bold]--random[/bold].
    """
    from expunge.cli._jobs import Folder, write
    from expunge.evaluate import evaluate
    from expunge.files import check_free
    from expunge.methods import build
    from expunge.report import render
    from expunge.runtime import Runtime
    from expunge.scores import document, section
    from expunge.tensors import weights_digest
    from expunge.unlearn import unlearn

    check_free(output, overwrite)
    folder = Folder.open(start)
    prepared = dict(folder.record["method"])
    chosen = {"name": method} if method and method != prepared["name"] else prepared
    made = build({**chosen, **_fields(settings)})
    _apart(output, start)
    problem, runtime = folder.problem, Runtime(device=options(context).device, batch_size=batch_size)
    gone = set(folder.record.get("forgotten", []))
    train = problem.train.without(sorted(gone))
    scenario = _scenario(train, problem, ids, label, amount, seed)
    model = folder.model(build(prepared))
    done = unlearn(
        made,
        model,
        problem.task,
        forget=train.subset(scenario.forget),
        retain=train.without(scenario.forget),
        holdout=problem.holdout,
        state=folder.state() if made.name == prepared["name"] else None,
        recipe=problem.recipe,
        new_model=problem.new_model,
        scenario=scenario,
        runtime=runtime,
        seed=seed,
    )
    record = _record("forget", problem.name, problem.network, seed, made.settings()) | {
        "weights": weights_digest(done.model),
        "before": folder.record["weights"],
        "scenario": scenario.to_json(),
        "forgotten": sorted(gone | set(scenario.forget)),
        "seconds": done.seconds,
        "total_seconds": done.total_seconds,
        "peak_memory": done.peak_memory,
        "changed": None if done.changed is None else done.changed.share,
        "note": done.note,
        "log": done.log,
    }
    scores = evaluate(
        {"original": model, made.name: done},
        problem.task,
        train=train,
        test=problem.test,
        holdout=problem.holdout,
        scenario=scenario,
        runtime=runtime,
        seed=seed,
    )
    part = section(scores, name=_title(scenario), text=_text(scenario), counts=_counts(scenario))
    lead = "What one request changed. There is no retrained model here to compare with: run expunge audit."
    page = document([part], title=f"{made.name} on {problem.name}", lead=lead, command=_command())
    write(output, done.model, done.state, record, {"report.html": render(page)}, overwrite)
    share = "another network" if done.changed is None else f"{100 * done.changed.share:.2f} % of the parameters changed"
    lines = [f"Forgot {len(scenario.forget)} of {len(train)} samples by {made.name} in {done.seconds:.3g} s: {share}."]
    lines += [done.note] if done.note else []
    emit(options(context), record, *lines, f"Weights, state, record and report: {output}")


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
    seed: Seed = 0,
    batch_size: BatchSize = 256,
    overwrite: Overwrite = False,
) -> None:
    """Measure an unlearned model beside the original, the controls and models truly retrained.

    Writes [bold]audit.json[/bold] and [bold]report.html[/bold] and prints the table.

    Raises:
        Incompatible: the folders do not belong together.
    """
    from expunge.cli._jobs import Folder
    from expunge.cli._samples import images
    from expunge.errors import Incompatible
    from expunge.evaluate import evaluate
    from expunge.files import atomic, check_free
    from expunge.methods import build, load
    from expunge.report import render
    from expunge.report.tables import terminal
    from expunge.runtime import Runtime
    from expunge.scores import document, save_document, section
    from expunge.unlearn import unlearn

    check_free(output, overwrite)
    _apart(output, unlearned, original, *(retrained or []))
    after, before = Folder.open(unlearned), Folder.open(original)
    scenario, problem = after.scenario, after.problem
    if after.record["before"] != before.record["weights"]:
        raise Incompatible(f"the folder that {unlearned} started from", str(original), "name it with --original")
    runtime = Runtime(device=options(context).device, batch_size=batch_size)
    train = problem.train.subset(scenario.train)
    model = before.model(build(before.record["method"]))
    references: list[Any] = []
    for path in retrained or []:
        folder = Folder.open(path)
        same = folder.scenario.digest() == scenario.digest() and folder.record["data"] == after.record["data"]
        if folder.record["method"]["name"] != "retrain" or not same:
            want = "a folder of forget -m retrain for the same request, on the same training set"
            raise Incompatible(want, str(path), "name another folder")
        references.append(folder.unlearned(model))
    for extra in range(0 if references else 2):
        references.append(
            unlearn(
                load("retrain")(),
                model,
                problem.task,
                forget=train.subset(scenario.forget),
                retain=train.without(scenario.forget),
                recipe=problem.recipe,
                new_model=problem.new_model,
                runtime=runtime,
                seed=seed + 1000 + extra,
            )
        )
    made = build(after.record["method"])
    scores = evaluate(
        {"original": model, "retrained": references, made.name: after.unlearned(model)},
        problem.task,
        train=train,
        test=problem.test,
        holdout=problem.holdout,
        scenario=scenario,
        recipe=problem.recipe,
        new_model=problem.new_model,
        runtime=runtime,
        seed=seed,
    )
    shown = images(train.subset(scenario.forget)) if show_samples else []
    part = section(scores, name=_title(scenario), text=_text(scenario), counts=_counts(scenario), samples=shown)
    lead = "One request on one model: intervals are over samples, not over training seeds."
    page = document([part], title=f"Audit of {made.name} on {problem.name}", lead=lead, command=_command())
    with atomic(output) as room:
        room.mkdir()
        (room / "report.html").write_text(render(page), encoding="utf-8")
        save_document(room / "audit.json", page)
    emit(options(context), page, terminal(part), f"Report: {output / 'report.html'}")


def _scenario(train: Any, problem: Any, ids: Path | None, label: int | None, amount: int | None, seed: int) -> Any:
    from expunge.errors import UserError
    from expunge.scenario import forget_class, forget_ids, forget_random

    given = [n for n, v in (("--ids", ids), ("--class", label), ("--random", amount)) if v is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise UserError("exactly one of --ids, --class and --random", got, "say who is to be forgotten")
    rest = {"holdout": problem.holdout, "test": problem.test}
    if label is not None:
        return forget_class(train, label, **rest)
    if amount is not None:
        return forget_random(train, amount, seed=seed, **rest)
    assert ids is not None
    try:
        wanted = [line.strip() for line in ids.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"a text file with one id a line at {ids}", str(error), "check the path") from error
    return forget_ids(train, wanted, **rest)


def _fields(settings: list[str] | None) -> dict[str, Any]:
    """Return the fields of ``--set``; the method itself is named by ``-m``."""
    from expunge.errors import UserError
    from expunge.methods import parse

    found = parse(settings or [])
    if "name" in found:
        raise UserError("fields of the method in --set", "name", "name the method with -m")
    return found


def _apart(output: Path, *inputs: Path) -> None:
    """Refuse an output that is, or holds, a folder that is read."""
    from expunge.errors import UserError

    for path in inputs:
        if path.resolve().is_relative_to(output.resolve()):
            raise UserError("an output apart from what is read", f"{output}", "choose another --output")


def _title(scenario: Any) -> str:
    return (
        f"class {scenario.target}" if scenario.kind == "class" else f"{len(scenario.forget)} samples ({scenario.kind})"
    )


def _text(scenario: Any) -> str:
    what = f"all samples of class {scenario.target}" if scenario.kind == "class" else "the samples named"
    return f"Forgotten: {what}, {len(scenario.forget)} of {len(scenario.train)} training samples."


def _counts(scenario: Any) -> dict[str, int]:
    return {n: len(getattr(scenario, n)) for n in ("train", "forget", "retain", "holdout", "test")}


def _record(step: str, data: str, network: str, seed: int, method: Any) -> dict[str, Any]:
    from datetime import UTC, datetime

    from expunge import __version__

    now = datetime.now(UTC).replace(microsecond=0).isoformat()
    return {
        "step": step,
        "created": now,
        "expunge": __version__,
        "data": data,
        "network": network,
        "seed": seed,
        "method": method,
    }


def _command() -> str:
    import shlex
    import sys

    return shlex.join(["expunge", *sys.argv[1:]])
