"""Who passes: every method of a grid file on a pool of models, judged by the verdict and by attacks on the ensemble.

For each request all models of the pool are asked to forget, by each method, and judged beside models that never saw the
samples. Rows: the mean gap of the forgotten samples' scores to retrained models (nats) with its interval over requests;
how many requests lie beyond every retrained model, beside how many untouched originals do; the accuracy of U-LiRA, over
all forgotten samples and over the worst decile of them beside chance; KLoM at the 95th percentile of forgotten samples
beside its floor; forgetting quality beside its floor; the AUC of the attack on the pair of models before and after,
beside that of a retrained model in place of the second; accuracy lost on test samples; the verdict; and the seconds of
an edit as a share of those of training anew. `no_op`, `head_mask` (of classes) and `retrain` stand among the rows.

Each row is written to the store as soon as it is there; the same command goes on.

    python benchmarks/verdict.py benchmarks/grids/digits.toml --data digits --models 64 --store verdict-digits \\
        --request class=3 --request random=0.05 --request hardest=0.05
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge import zoo
from expunge.bench import grid as grids
from expunge.bench.stages import Setting
from expunge.errors import Declined, ExpungeError
from expunge.files import digest, write_text
from expunge.methods import build
from expunge.qualify.asked import Asked
from expunge.qualify.simulate import Pool, simulate
from expunge.qualify.study import kind_of

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
    "test lost",
    "verdict",
    "edit/retraining",
)
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
    parser.add_argument("--show", action="store_true", help="print what is there, run nothing")
    chosen = parser.parse_args()
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
    found = {}
    for name, settings in methods.items():
        full = build(settings).settings()
        key = digest(str(asked), full, pool.models, pool.seed, dict(pool.recipe))[:20]
        file = chosen.store / "verdicts" / f"{key}.json"
        if not file.is_file():
            if chosen.show:
                continue
            begun = time.perf_counter()
            body = _row(pool, asked, full)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(body))
            print(f"{asked}: {name}, {time.perf_counter() - begun:.0f} s", flush=True)
        found[name] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _row(pool: Pool, asked: Asked, settings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        simulated = simulate(pool, asked, settings)
    except Declined as error:
        return {"declined": error.got}
    except ExpungeError as error:
        return {"failed": str(error)}
    begun = time.perf_counter()
    body = kind_of([simulated], 0.9, 0.95, {}, pool.seed)
    models = [pool.answered(t) for t in range(pool.models)]
    body["edit"] = simulated.seconds * pool.models / pool.seconds("trained", models)
    body["analysis"] = time.perf_counter() - begun
    body["requests"] = dict(simulated.cost)
    return body


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
        return [f"declines: {body['declined']}" if "declined" in body else f"failed: {body['failed']}"]
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
        f"{-100 * size['test']['x']:.1f}" if size.get("test") else "–",
        SHORT[body["verdict"]["value"]],
        f"{body['edit']:.3f}",
    ]


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
