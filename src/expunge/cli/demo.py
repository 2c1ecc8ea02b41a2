"""``expunge demo``: the whole job on data that scikit-learn carries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli._app import app
from expunge.cli._show import emit, options

METHODS = ("finetune", "ssd", "lfssd")


@app.command()
def demo(
    context: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("expunge-demo"),
    seeds: Annotated[int, typer.Option(min=1, max=50, help="Training seeds; few rank nothing.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Processes that train side by side.")] = 2,
) -> None:
    """Train, prepare, forget, retrain, audit, report: the whole job on 1,797 handwritten digits, in a minute.

    Three requests: one class, a random 5 %, and 5 % mislabelled samples. Each seed has its own original and two
    retrained models. Prints a table a request and writes [bold]report.html[/bold].
    """
    from functools import partial
    from multiprocessing import get_context

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from expunge import zoo
    from expunge.files import atomic, check_free
    from expunge.report import write
    from expunge.report.tables import terminal
    from expunge.scores import document, save_document

    check_free(output, overwrite=True)
    problem = zoo.load("digits")
    requests = ("class 3", "random 5 %", "mislabelled 5 %")
    jobs = [(request, seed) for request in requests for seed in range(seeds)]
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not Console(stderr=True).is_terminal,
    )
    runs: dict[tuple[str, int], Any] = {}
    with bar, get_context("spawn").Pool(workers, _quiet) as pool:  # leaving the block ends the workers at once
        task = bar.add_task("training, forgetting, retraining", total=len(jobs))
        work = partial(_world, device=options(context).device)
        for job, scores in pool.imap_unordered(work, jobs):
            runs[job] = scores
            bar.advance(task)
    found = {request: [runs[request, seed] for seed in range(seeds)] for request in requests}
    sections = [_section(problem, request, several) for request, several in found.items()]
    few = "; so few rank nothing" if seeds < 10 else ""
    lead = (
        "For each of three requests and each seed, an original and two retrained networks were trained on handwritten "
        f"digits, and every method was measured beside them. {seeds} seed{'s' if seeds > 1 else ''}{few}."
    )
    page = document(sections, title="expunge demo: forgetting handwritten digits", lead=lead, command="expunge demo")
    with atomic(output) as room:
        room.mkdir()
        save_document(room / "audit.json", page)
        write(room / "report.html", page)
    hints = (
        "What to look at: no_op must be far from retrained wherever forgetting shows (mislabelled: it repeats the "
        "wrong labels); head_mask passes class accuracy and is exposed by the one-shot probe on the features; a method "
        "can be no closer to retrained than a second retrained model is: the floor.",
        f"Report: {(output / 'report.html').resolve()}",
    )
    emit(options(context), page, *(terminal(s) for s in sections), *hints)


def _request(problem: Any, request: str, seed: int) -> tuple[Any, Any]:
    """Return the training data and the scenario of one of the three requests."""
    from expunge.scenario import forget_class, forget_ids, forget_random
    from expunge.zoo.embedded import mislabelled

    rest = {"holdout": problem.holdout, "test": problem.test}
    if request.startswith("class"):
        return problem.train, forget_class(problem.train, 3, **rest)
    if request.startswith("random"):
        return problem.train, forget_random(problem.train, 0.05, seed=seed, **rest)
    train, ids = mislabelled(problem.train, 0.05, classes=10, seed=seed)
    return train, forget_ids(train, ids, **rest)


def _quiet() -> None:
    """Leave Ctrl-C to the main process, which ends the workers."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _world(job: tuple[str, int], device: str) -> tuple[tuple[str, int], Any]:
    """Train an original and two retrained models, unlearn by every method, and measure them side by side."""
    import torch

    from expunge import zoo
    from expunge.evaluate import evaluate
    from expunge.methods import load
    from expunge.runtime import Runtime
    from expunge.train import fit, fresh
    from expunge.unlearn import prepare, unlearn

    torch.set_num_threads(1)
    request, seed = job
    problem, runtime = zoo.load("digits"), Runtime(device=device, progress=False)
    train, scenario = _request(problem, request, seed)
    start = fresh(problem.new_model(), new_model=problem.new_model, seed=seed)
    original = fit(start, problem.task, train, problem.recipe, runtime=runtime, seed=seed)
    common: dict[str, Any] = {"recipe": problem.recipe, "new_model": problem.new_model, "runtime": runtime}
    forget, retain = train.subset(scenario.forget), train.without(scenario.forget)

    def run(name: str, seed: int) -> Any:
        method = load(name)()
        ready = prepare(method, original, problem.task, train=train, seed=seed, **common)
        return unlearn(
            method, ready.model, problem.task, forget=forget, retain=retain, state=ready.state, seed=seed, **common
        )

    models: dict[str, Any] = {"original": original, "retrained": [run("retrain", seed + 1000 * k) for k in range(2)]}
    models |= {name: run(name, seed) for name in METHODS}
    rest: dict[str, Any] = {"train": train, "test": problem.test, "holdout": problem.holdout}
    return job, evaluate(models, problem.task, scenario=scenario, runtime=runtime, seed=seed, **rest)


def _section(problem: Any, request: str, runs: list[Any]) -> dict[str, Any]:
    from expunge.cli._samples import images
    from expunge.scores import pooled, section

    train, scenario = _request(problem, request, 0)
    texts = {
        "class 3": "All training images of the digit 3 are to be forgotten.",
        "random 5 %": "A random twentieth of the training images is to be forgotten; each seed draws its own.",
        "mislabelled 5 %": "A twentieth of the labels was flipped before training; those samples are to be forgotten. "
        "The original repeats the wrong labels, a retrained model does not.",
    }
    counts = {n: len(getattr(scenario, n)) for n in ("train", "forget", "retain", "holdout", "test")}
    column = "clean" if request.startswith("mislabelled") else None
    shown = images(train.subset(scenario.forget), column=column)
    return section(pooled(runs), name=request, text=texts[request], counts=counts, samples=shown)
