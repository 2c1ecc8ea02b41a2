"""Run requests on a project over several training seeds, and write the table and the report.

Each seed trains its own original and two models retrained without the forgotten data, then every method unlearns, and
all are measured side by side. The project needs a [recipe], or a named data set, which brings one.

    python examples/compare.py examples/fashion_mnist/expunge.toml --request class=3 --request random=0.05 --seeds 5
"""

from __future__ import annotations

import argparse
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console

from expunge.errors import ExpungeError
from expunge.files import atomic, check_free
from expunge.methods import load
from expunge.project import Project
from expunge.report import write
from expunge.report.tables import markdown, terminal
from expunge.runtime import Runtime
from expunge.scores import pooled
from expunge.summary import document, save_document, section
from expunge.trial import Request, describe, trial


def work(job):
    file, data_dir, request, methods, seed = job
    torch.set_num_threads(1)
    problem = Project.open(file, data_dir).problem()
    made = {name: load(name)() for name in methods}
    return job, trial(problem, request, made, runtime=Runtime(progress=False), seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path, help="project file")
    parser.add_argument("--request", action="append", required=True, help="class=3, random=0.05, subclass:column=x ...")
    parser.add_argument("--method", action="append", help="default: finetune, ssd, lfssd")
    parser.add_argument("--data-dir", type=Path, help="folder of data sets; default the variable EXPUNGE_DATA")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("comparison"))
    args = parser.parse_args()
    check_free(args.output, overwrite=False)
    requests = [Request.parse(text) for text in args.request]
    methods = args.method or ["finetune", "ssd", "lfssd"]
    cells = [(args.project, args.data_dir, r, methods, seed) for r in requests for seed in range(args.seeds)]
    begun, runs = time.perf_counter(), {}
    with get_context("spawn").Pool(args.workers) as pool:
        for (_, _, request, _, seed), scores in pool.imap_unordered(work, cells):
            runs[request, seed] = scores
            minutes = (time.perf_counter() - begun) / 60
            print(f"{len(runs)} of {len(cells)}: {request}, seed {seed}, after {minutes:.1f} min", file=sys.stderr)
    problem = Project.open(args.project, args.data_dir).problem()
    sections = []
    for request in requests:
        text, counts = describe(request, problem)
        found = pooled([runs[request, seed] for seed in range(args.seeds)])
        sections.append(section(found, name=str(request), text=text, counts=counts))
    lead = f"{args.seeds} seeds, each with its own original and two retrained models."
    words = ["python", "examples/compare.py", *sys.argv[1:]]
    page = document(sections, title=f"Comparison on {problem.name}", lead=lead, command=" ".join(words))
    with atomic(args.output) as room:
        room.mkdir()
        save_document(room / "audit.json", page)
        write(room / "report.html", page)
        (room / "tables.md").write_text("\n\n".join(markdown(s) for s in sections) + "\n", encoding="utf-8")
    for part in sections:
        Console(width=120).print(terminal(part))
    print(f"{(time.perf_counter() - begun) / 60:.1f} min. Report: {args.output / 'report.html'}")


if __name__ == "__main__":
    try:
        main()
    except ExpungeError as error:
        sys.exit(str(error))
