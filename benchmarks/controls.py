"""Which measures deserve trust? How often each tells the controls from retrained, and cries at a second retrained.

For every seed and case (one class; random and mislabelled samples of several sizes) an original and four retrained
networks are trained on handwritten digits. Each measure is then asked about the untouched original (no_op), the masked
head (head_mask, of a class), and about the further retrained models, as `expunge audit` asks. Two rules decide:

* calibrated: the gap to retrained is larger than every gap between two retrained models of the *other* seeds. By
  construction about one retrained model in as many as there are such gaps is called by accident.
* interval: what one audit alone says: the 95 % interval of the gap (paired, or of two independent estimates) leaves
  out 0; of a distance or similarity, which no second training makes 0 or 1, the interval of its difference from
  that of the second retrained model. It knows of samples only, not of seeds; its false alarms show how far that is
  from enough.

    python benchmarks/controls.py run --seeds 10 --workers 2 --output controls.jsonl
    python benchmarks/controls.py table controls.jsonl
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from expunge import stats, zoo
from expunge.metric import Value
from expunge.runtime import Runtime
from expunge.scores import FLOOR, REFERENCE, Scores
from expunge.trial import Request, trial

RETRAINED = 4  # the reference, and three to be mistaken for something else
SIZES = (10, 30, 100, 300)
CLASS = 3
ROWS = ("no_op", "head_mask")
SURE, QUIET = 0.9, 0.1  # a measure is trusted where it finds the control in this share, and cries in no more than that
NUMBER = dict[str, float | None]


def cases() -> dict[str, Request]:
    """Return the forget sets by name; sizes in samples."""
    train = len(zoo.load("digits").train)
    found = {"class": Request("class", CLASS)}
    for size in SIZES:
        found[f"random {size}"] = Request("random", size)
        found[f"mislabelled {size}"] = Request("mislabelled", size / train)
    return found


def one(job: tuple[str, int]) -> dict[str, Any]:
    """Train, audit, and return the values and gaps of one case and seed as plain numbers."""
    torch.set_num_threads(1)
    name, seed = job
    problem = zoo.load("digits")
    scores = trial(problem, cases()[name], {}, retrained=RETRAINED, runtime=Runtime(progress=False), seed=seed)
    return {"case": name, "seed": seed, "forget": scores.asked.counts["forget"], "rows": rows(scores)}


def rows(scores: Scores) -> dict[str, dict[str, NUMBER]]:
    """Return by model and number: the gap, and whether the gap's interval leaves out 0."""
    found: dict[str, dict[str, NUMBER]] = {}
    for model in (m for m in scores.values if m not in (REFERENCE, "original")):
        found[model] = {}
        for key, gap in scores.gaps[model].items():
            number = scores.numbers[key]
            far = number.target is not None and number.target in number.range
            base = scores.values[FLOOR if far else REFERENCE].get(key)
            same = far and model == FLOOR  # it is what the others are held to
            found[model][key] = {
                "gap": gap.x,
                "told": None if same else told(gap, scores.values[model][key], base, far),
            }
    found["goals"] = {k: {"family": None} for k in scores.numbers}
    return found


def told(gap: Value, own: Any, other: Any, far: bool) -> float | None:
    """Return 1 where the interval of the gap leaves out 0, 0 where it does not, None where there is no interval."""
    if far and not isinstance(other, Value):
        return None
    if (far or not math.isfinite(gap.low)) and isinstance(own, Value) and isinstance(other, Value):
        both = [stats.Interval(v.x, v.low, v.high, v.n) for v in (own, other)]
        if all(math.isfinite(i.low) for i in both):
            between = stats.difference(*both)
            gap = Value.of(between)
        elif far:
            return None
    if not math.isfinite(gap.low) or not math.isfinite(gap.high):
        return None
    return float(not gap.low <= 0 <= gap.high)


def run(seeds: int, workers: int, output: Path, only: list[str]) -> None:
    """Fill the file with one line a case and seed; lines that are there are not computed again."""
    done = {(line["case"], line["seed"]) for line in read(output)} if output.exists() else set()
    wanted = [name for name in cases() if not only or name in only]
    jobs = [(name, seed) for seed in range(seeds) for name in wanted if (name, seed) not in done]
    with get_context("spawn").Pool(workers) as pool, output.open("a", encoding="utf-8") as file:
        for at, line in enumerate(pool.imap_unordered(one, jobs), start=1):
            file.write(json.dumps(line) + "\n")
            file.flush()
            print(f"{at} of {len(jobs)}: {line['case']}, seed {line['seed']}", flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of the file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rates(lines: list[dict[str, Any]], number: str) -> dict[str, tuple[int, int, int, int]]:
    """Return by row: found and asked under the calibrated rule, found and asked under the interval rule."""
    by_seed = {line["seed"]: line["rows"] for line in lines}
    again = {
        s: [abs(r[m][number]["gap"]) for m in r if m.startswith(FLOOR) and number in r[m]] for s, r in by_seed.items()
    }
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for seed, models in by_seed.items():
        others = [gap for s, gaps in again.items() if s != seed for gap in gaps]
        for model, numbers in models.items():
            if model == "goals":
                continue
            row = "second" if model.startswith(FLOOR) else model
            counts[row]  # a row whose number is never there still has its place in the table
            if number not in numbers or not others:
                continue
            counts[row][0] += abs(numbers[number]["gap"]) > max(others)
            counts[row][1] += 1
            if numbers[number]["told"] is not None:
                counts[row][2] += int(numbers[number]["told"])
                counts[row][3] += 1
    return {row: (c[0], c[1], c[2], c[3]) for row, c in counts.items()}


def table(path: Path, rule: str) -> Iterator[str]:
    """Yield a Markdown table, a line a number and a column a case, and the numbers to be trusted in each case."""
    lines = read(path)
    names = [name for name in cases() if any(line["case"] == name for line in lines)]
    numbers = list(dict.fromkeys(k for line in lines for k in line["rows"]["goals"] if not k.startswith("cost/")))
    by_case = {name: [line for line in lines if line["case"] == name] for name in names}
    found = {(n, name): rates(by_case[name], n) for n in numbers for name in names}
    yield "| number | " + " | ".join(names) + " |"
    yield "|---|" + "---:|" * len(names)
    for number in numbers:
        cells = [cell(found[number, name], rule) for name in names]
        if any(cells):
            yield f"| `{number}` | " + " | ".join(c or "–" for c in cells) + " |"
    yield ""
    for row in ROWS:
        for name in names:
            trusted = [f"`{n}`" for n in numbers if trusts(found[n, name], row)]
            if any(row in found[n, name] for n in numbers):
                yield f"- {row}, {name}: {', '.join(trusted) or 'none'}"


def cell(found: dict[str, tuple[int, int, int, int]], rule: str) -> str:
    """Return what was found of no_op, of head_mask where it applies, and of the further retrained models."""
    parts = []
    for row in (*ROWS, "second"):
        counts = found.get(row, (0, 0, 0, 0))
        hits, asked = (counts[0], counts[1]) if rule == "calibrated" else (counts[2], counts[3])
        if row in found:
            parts.append(f"{hits}/{asked}" if asked else "–")
    return " · ".join(parts) if any(part != "–" for part in parts) else ""


def trusts(found: dict[str, tuple[int, int, int, int]], row: str) -> bool:
    """Return whether a row is found in 9 of 10 seeds with at most one false alarm in ten, by the calibrated rule."""
    hits, asked = found.get(row, (0, 0, 0, 0))[:2]
    wrong, tried = found.get("second", (0, 0, 0, 0))[:2]
    return asked > 0 and tried > 0 and hits >= SURE * asked and wrong <= QUIET * tried


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    steps = parser.add_subparsers(dest="step", required=True)
    runs = steps.add_parser("run")
    runs.add_argument("--seeds", type=int, default=10)
    runs.add_argument("--workers", type=int, default=2)
    runs.add_argument("--output", type=Path, required=True)
    runs.add_argument("--only", action="append", default=[])
    tables = steps.add_parser("table")
    tables.add_argument("path", type=Path)
    tables.add_argument("--rule", choices=("calibrated", "interval"), default="calibrated")
    given = parser.parse_args()
    if given.step == "run":
        run(given.seeds, given.workers, given.output, given.only)
    else:
        print("\n".join(table(given.path, given.rule)))


if __name__ == "__main__":
    main()
