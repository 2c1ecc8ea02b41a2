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
    from expunge.summary import document, save_document

    check_free(output, overwrite=True)
    problem = zoo.load("digits")
    requests = list(_requests())
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
        "wrong labels); head_mask passes class accuracy and is exposed by the one-shot probe on the features and by "
        "relearning; a method can be no closer to retrained than a second retrained model is: the floor.",
        f"Report: {(output / 'report.html').resolve()}",
    )
    emit(options(context), page, *(terminal(s) for s in sections), *hints)


def _quiet() -> None:
    """Leave Ctrl-C to the main process, which ends the workers."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _world(job: tuple[str, int], device: str) -> tuple[tuple[str, int], Any]:
    """Run one request on one seed, in a process of its own."""
    import torch

    from expunge import zoo
    from expunge.methods import load
    from expunge.runtime import Runtime
    from expunge.trial import trial

    torch.set_num_threads(1)
    request, seed = job
    runtime = Runtime(device=device, progress=False)
    methods = {name: load(name)() for name in METHODS}
    return job, trial(zoo.load("digits"), _requests()[request], methods, runtime=runtime, seed=seed)


def _requests() -> dict[str, Any]:
    from expunge.trial import Request

    few = {"random 5 %": Request("random", 0.05), "mislabelled 5 %": Request("mislabelled", 0.05)}
    return {"class 3": Request("class", 3), **few}


def _section(problem: Any, name: str, runs: list[Any]) -> dict[str, Any]:
    from expunge.cli._samples import images
    from expunge.scores import pooled
    from expunge.summary import section
    from expunge.trial import describe

    request = _requests()[name]
    train, scenario = request.draw(problem, 0)
    text, counts = describe(request, problem)
    column = "clean" if request.kind == "mislabelled" else None
    shown = images(train.subset(scenario.forget), column=column)
    return section(pooled(runs), name=name, text=text, counts=counts, samples=shown)
