"""Who passes: every method of a grid file on a pool of models, judged by the verdict and by attacks on the ensemble.

For each request all models of the pool are asked to forget, by each method, and judged beside models that never saw the
samples. Rows: the mean gap of the forgotten samples' scores to retrained models (nats) with its interval over requests;
how many requests lie beyond every retrained model, beside how many untouched originals do; the accuracy of U-LiRA, over
all forgotten samples and over the worst decile of them beside chance; KLoM at the 95th percentile of forgotten samples
beside its floor; forgetting quality beside its floor; the AUC of the attack on the pair of models before and after,
beside that of a retrained model in place of the second; what a linear probe reads out of the features of a few of the
models, beside a retrained one's (recall of a class from one example, else the AUC of membership); accuracy lost on test
samples; the verdict. `no_op` and `retrain` stand among the rows; so do, with `--fast E`,
networks retrained in E epochs. What an edit costs is measured by `verdict_costs.py`.

A request `noised=0.05` is another one: a share of a half's samples gets Gaussian noise before training, and is to be
forgotten. Rows: the mean score of these canaries over models with its interval, the p-value of no trace of the noise
over all canaries, and accuracy lost on test samples, against the original.

Each row is written to the store as soon as it is there; the same command goes on.

    python benchmarks/verdict.py benchmarks/grids/digits.toml --data digits --models 64 --store verdict-digits \\
        --request class=3 --request random=0.05 --request hardest=0.05 --request noised=0.05 --fast 6 --fast 12
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_ndtr

from expunge import zoo
from expunge.bench import grid as grids
from expunge.bench import rows as measured
from expunge.bench.cell import Cell
from expunge.bench.stages import Setting
from expunge.errors import Declined, ExpungeError
from expunge.files import digest, write_text
from expunge.methods import build
from expunge.metric import Value
from expunge.qualify.asked import Asked
from expunge.qualify.simulate import Pool, Simulated, simulate
from expunge.qualify.study import kind_of
from expunge.scores import FLOOR, Scores
from expunge.shadows import least_mean
from expunge.stats import mean_t
from expunge.trial import Request

ROWS = {"no_op": {"name": "no_op"}, "retrain": {"name": "retrain"}}
HEAD = (
    "method",
    "gap (nats)",
    "beyond retrained (original)",
    "U-LiRA",
    "worst decile (chance)",
    "KLoM (floor)",
    "quality (floor)",
    "before/after (retrained)",
    "probe (retrained)",
    "test lost",
    "verdict",
)
NOISE_HEAD = ("method", "mean score", "p of no trace", "test lost")
PLANTED, SCORE, TEST = "noised", "gaussian/score", "accuracy/test"
SHORT = {
    "indistinguishable within margin": "indistinguishable",
    "distinguishable": "distinguishable",
    "insufficient evidence": "insufficient",
}


def main() -> None:
    """Fill what is missing and print a table a request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path, help="whose methods are run")
    parser.add_argument("--data", required=True)
    parser.add_argument("--network", help="default the first of the grid")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--models", type=int, default=64)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--request", action="append", required=True)
    parser.add_argument("--method", action="append", help="names in the grid; default all")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fast", action="append", type=int, default=[], help="epochs of a row retrained in so many")
    parser.add_argument("--probed", type=int, default=8, help="models whose features are probed")
    parser.add_argument("--noised", type=int, default=16, help="models that are trained on noise")
    parser.add_argument("--show", action="store_true", help="print what is there, run nothing")
    chosen = parser.parse_args()
    if chosen.noised < 2 or chosen.probed < 1:
        parser.error("--noised must be 2 or more, --probed 1 or more")
    asked = grids.load(chosen.grid)
    methods = {**ROWS, **{name: dict(each) for name, each in asked.methods.items()}}
    methods = {name: each for name, each in methods.items() if not chosen.method or name in (*ROWS, *chosen.method)}
    pool = _pool(chosen, chosen.network or next(iter(asked.file.networks or [zoo.network(chosen.data)])))
    pool.check()
    if not chosen.show:
        begun = time.perf_counter()
        pool.train_all()
        print(f"pool: {time.perf_counter() - begun:.0f} s in this run", flush=True)
    for text in chosen.request:
        if text.startswith(PLANTED):
            _noise(pool, Request.parse(text), methods, chosen)
            continue
        rows = _rows(pool, Asked.parse(text), methods, chosen)
        print(f"\n### {text}\n\n{_table(rows)}\n\n{_spent(rows)}\n", flush=True)
    _costs(pool)


def _pool(chosen: Any, network: str) -> Pool:
    entry: dict[str, Any] = {"name": chosen.data} | ({} if chosen.limit is None else {"limit": chosen.limit})
    recipe = zoo.recipe(chosen.data, network).to_json()
    setting = Setting(chosen.store.resolve(), data_dir=chosen.data_dir)
    return Pool(entry, network, recipe, setting, chosen.models, chosen.seed, chosen.workers)


def _rows(pool: Pool, asked: Asked, methods: Mapping[str, Mapping[str, Any]], chosen: Any) -> dict[str, dict[str, Any]]:
    """Return what is known of each method, from the store where it is there."""
    found, of = dict[str, dict[str, Any]](), str(asked)
    for name, settings in methods.items():
        full = build(settings).settings()
        body = _known(chosen, f"{of}: {name}", _key(pool, of, full), partial(_row, pool, asked, full))
        if body is not None and "kind" in body:
            key = _key(pool, of, full, "probe", chosen.probed)
            body["probe"] = _known(
                chosen, f"{of}: probe {name}", key, partial(_probe, pool, asked, full, chosen.probed)
            )
        found |= {} if body is None else {name: body}
    for epochs in chosen.fast:
        name, key = f"retrained in {epochs} epochs", _key(pool, of, {"epochs": epochs, "seed": "own"})
        body = _known(chosen, f"{of}: {name}", key, partial(_fast, pool, asked, epochs))
        found |= {} if body is None else {name: body}
    return found


def _known(chosen: Any, name: str, key: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """Return what the store holds under a key, or work it out; None where nothing is to be run."""
    file = chosen.store / "verdicts" / f"{key}.json"
    if not file.is_file():
        if chosen.show:
            return None
        begun = time.perf_counter()
        try:
            body = work()
        except Declined as error:
            body = {"declined": error.got}
        except ExpungeError as error:  # said, and tried again by the next run
            return {"failed": str(error)}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(body))
        print(f"{name}, {time.perf_counter() - begun:.0f} s", flush=True)
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _key(pool: Pool, *parts: Any) -> str:
    return digest(*parts[:2], pool.models, pool.seed, dict(pool.recipe), *parts[2:])[:20]


def _row(pool: Pool, asked: Asked, settings: Mapping[str, Any]) -> dict[str, Any]:
    return _judged(pool, simulate(pool, asked, settings))


def _judged(pool: Pool, simulated: Simulated) -> dict[str, Any]:
    begun = time.perf_counter()
    body = kind_of([simulated], 0.9, 0.95, {}, pool.seed)
    return body | {"analysis": time.perf_counter() - begun, "requests": dict(simulated.cost)}


def _fast(pool: Pool, asked: Asked, epochs: int) -> dict[str, Any]:
    """Return a row of networks retrained in fewer epochs than the original had, not from the reference's seed."""
    simulated = simulate(pool, asked, ROWS["retrain"])
    first, other = simulated.trials[0], replace(pool, recipe={**pool.recipe, "epochs": epochs})
    again = [other.cell(t, each).task("answered", 1) for t, each in enumerate(pool.drawing.requests(asked))]
    other.done(again)
    own = first.instead(other.said(again, first.unlearned.kept))
    return _judged(pool, replace(simulated, trials=(own,), steps=simulated.steps[:1]))


def _probe(pool: Pool, asked: Asked, settings: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Return what probes read out of edited and of retrained models, on average over some of the pool."""
    number = "probe/one_shot" if asked.kind == "class" else "probe/membership"
    requests = pool.drawing.requests(asked)[:count]
    found = [_scores(pool, t, request, settings, ["probe"]) for t, request in enumerate(requests)]
    own = [value.x for one, _ in found if isinstance(value := one[str(settings["name"])][number], Value)]
    again = [value.x for _, all_ in found if isinstance(value := all_[FLOOR][number], Value)]
    return {"number": number, "x": _mean(own), "retrained": _mean(again)}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _scores(
    pool: Pool, model: int, request: Request, settings: Mapping[str, Any], metrics: Sequence[str]
) -> tuple[Scores, Scores]:
    """Return what is measured of one model of the pool after an edit, and of the original and retrained ones."""
    measures = {"metrics": list(metrics), "attacks": [], "retrained": 2}
    cell: Cell = replace(pool.cell(model, request, settings), measures=measures)
    tasks = [cell.results()[-1], cell.shared.results()[-1]]
    pool.done(tasks)
    edited, others = (measured.from_json(pool.store.read(task, measured.VALUES)) for task in tasks)
    return edited, others


def _noise(pool: Pool, request: Request, methods: Mapping[str, Mapping[str, Any]], chosen: Any) -> None:
    """Print what canaries with noise say of each method."""
    lines, canaries = [f"| {' | '.join(NOISE_HEAD)} |", f"|{'---|' * len(NOISE_HEAD)}"], 0
    for name, settings in methods.items():
        full = build(settings).settings()
        key = _key(pool, str(request), full, "noise", chosen.noised)
        body = _known(chosen, f"{request}: {name}", key, partial(_noisy, pool, request, full, chosen.noised))
        if body is not None and "x" not in body:
            lines.append(f"| {name} | {_none(body)} | | |")
        elif body is not None:
            canaries = max(canaries, body["canaries"])
            score = f"{body['x']:+.3f} [{body['low']:+.3f}, {body['high']:+.3f}]"
            lines.append(f"| {name} | {score} | {body['p']:.2g} | {body['test']:+.1f} |")
    power = (
        f"; {canaries:,} canaries show a mean of {least_mean(canaries):.3f} with a power of 95 %" if canaries else ""
    )
    table = "\n".join(lines)
    print(f"\n### {request}, {chosen.noised} models{power}\n\n{table}\n", flush=True)


def _noisy(pool: Pool, request: Request, settings: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Return the mean score of noisy canaries over models, its p-value where there is no trace, and accuracy lost."""
    name, found, lost = str(settings["name"]), list[Value](), list[float]()
    for model in range(count):
        own, others = _scores(pool, model, request, settings, ["accuracy", "gaussian"])
        value, after, before = own[name][SCORE], own[name][TEST], others["original"][TEST]
        if not (isinstance(value, Value) and isinstance(after, Value) and isinstance(before, Value)):
            why = getattr(value, "reason", "its accuracy is not to be had")
            return {"failed": f"model {model} has no score of canaries: {why}"}
        found.append(value)
        lost.append(100 * (before.x - after.x))
    canaries = sum(value.n for value in found)
    z = sum(value.x * value.n for value in found) / canaries**0.5
    mean = mean_t([value.x for value in found])
    p = min(1.0, 2 * float(np.exp(log_ndtr(-abs(z)))))
    return {"x": mean.x, "low": mean.low, "high": mean.high, "p": p, "canaries": canaries, "test": _mean(lost)}


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    for name, body in rows.items():
        cells = [name, *_cells(body)]
        lines.append(f"| {' | '.join([*cells, *[''] * (len(HEAD) - len(cells))])} |")
    return "\n".join(lines)


def _spent(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what judging took, and the models retrained for the request."""
    seconds = [body["analysis"] for body in rows.values() if "kind" in body]
    retrained = max((body["requests"]["retrained"] for body in rows.values() if "kind" in body), default=0.0)
    mean = sum(seconds) / max(1, len(seconds))
    return f"judged in {mean:.1f} s a row ({max(seconds, default=0):.1f} at most); retrained in {retrained:.0f} s"


def _cells(body: Mapping[str, Any]) -> Sequence[str]:
    if "kind" not in body:
        return [_none(body)]
    size, attacks = body["sizes"][0], body["attacks"]
    klom, floor = (attacks.get(k) or {} for k in ("klom", "klom_floor"))
    return [
        f"{size['gap']['x']:+.2f} [{size['gap']['low']:+.2f}, {size['gap']['high']:+.2f}]",
        f"{size['failed']} ({size['failed_original']}) of {size['requests']}",
        _interval(attacks.get("u_lira")),
        f"{_n(attacks.get('u_lira_worst'))} ({_n(attacks.get('worst_by_chance'))})",
        f"{_n(_x(klom.get('forget')))} ({_n(_x(floor.get('forget')))})",
        f"{_n(attacks.get('quality'))} ({_n(attacks.get('quality_floor'))})",
        f"{_n(_x(attacks.get('pair')))} ({_n(_x(attacks.get('pair_retrained')))})",
        _beside(body.get("probe")),
        f"{-100 * size['test']['x']:.1f}" if size.get("test") else "–",
        SHORT[body["verdict"]["value"]],
    ]


def _beside(probe: Mapping[str, Any] | None) -> str:
    return "–" if probe is None or "x" not in probe else f"{_n(probe['x'])} ({_n(probe['retrained'])})"


def _none(body: Mapping[str, Any]) -> str:
    return f"declines: {body['declined']}" if "declined" in body else f"failed: {body['failed']}"


def _interval(found: Mapping[str, float] | None) -> str:
    return "–" if not found else f"{found['x']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _x(found: Any) -> float | None:
    if isinstance(found, Mapping):
        return found.get("x", found.get("mean"))
    return found


def _n(x: float | None) -> str:
    return "–" if x is None else f"{x:.2f}"


def _costs(pool: Pool) -> None:
    models = [pool.answered(t) for t in range(pool.models)]
    trained, answered = (pool.seconds(stage, models) for stage in ("trained", "answered"))
    print(
        f"pool of {pool.models}: training {trained:.0f} s ({trained / pool.models:.2f} each), asking {answered:.0f} s"
    )


if __name__ == "__main__":
    main()
