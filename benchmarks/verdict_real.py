"""How often the verdict errs on real models: retrained ones of other seeds and batch sizes, edits with known faults.

On a pool of `benchmarks/verdict.py` (the same --store), with edits made up from models whose truth is known:

- `retrained, other seed`: the models that stand for retrained, from a third seed: nothing is wrong with them;
- `retrained, batch size B`: trained on the same samples with other batches: nothing is wrong with them either;
- `5 % of requests skipped`: retrained models, of which one in twenty is the untouched original;
- `5 % of samples skipped`: retrained models whose answers on one in twenty forgotten samples are the original's;
- `no_op`, and of classes `head_mask`.

Each is judged twice: with models of other seeds as the only ones that are as good as retrained, and with those of the
other batch size as good as they. The rows of a verdict are thirds of the pairs of models; here pairs are put in random
orders, and the verdict is given for each. The orders share models, so the counts spread more than independent ones
would; no interval is printed.

    python benchmarks/verdict_real.py --data digits --models 64 --store verdict-digits --request class=3 --orders 100
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge import zoo
from expunge.bench.stages import Setting
from expunge.qualify.asked import Asked
from expunge.qualify.judge import Smallest, judge
from expunge.qualify.simulate import Pool, simulate
from expunge.qualify.trials import Said, Trials
from expunge.qualify.verdict import Control

NOT_SIMULATED = Smallest(rank=0.0, kernel=0.0, calls=0.0, share=0.0)  # power stands in other tables
VALUES = ("distinguishable", "indistinguishable within margin", "insufficient evidence")


def main() -> None:
    """Print a table for each request: of how many orders each verdict was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--network", default="convnet")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--models", type=int, default=64)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--request", action="append", required=True)
    parser.add_argument("--batch-size", type=int, default=32, help="of the other retrained models")
    parser.add_argument("--orders", type=int, default=100)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    chosen = parser.parse_args()
    entry: dict[str, Any] = {"name": chosen.data} | ({} if chosen.limit is None else {"limit": chosen.limit})
    recipe = zoo.recipe(chosen.data, chosen.network).to_json()
    setting = Setting(chosen.store.resolve(), data_dir=chosen.data_dir)
    pool = Pool(entry, chosen.network, recipe, setting, chosen.models, workers=chosen.workers)
    pool.check()
    pool.train_all()
    for text in chosen.request:
        trials, rows, masked = _rows(pool, Asked.parse(text), chosen.batch_size)
        print(f"\n### {text}, {chosen.orders} orders of {chosen.models // 2} pairs\n")
        head = [f"{value}, {held}" for held in ("seeds", "seeds or batch size") for value in VALUES]
        print("| edit | " + " | ".join(head) + f" |\n|{'---|' * (1 + len(head))}")
        for name, said in rows.items():
            batch = rows[f"retrained, batch size {chosen.batch_size}"]
            found = [_counts(trials, said, masked, each, chosen.orders) for each in (None, batch)]
            cells = [str(counts[value]) for counts in found for value in VALUES]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def _rows(pool: Pool, asked: Asked, size: int) -> tuple[Trials, Mapping[str, Said], Said | None]:
    """Return the requests, and what each kind of edit says."""
    found = simulate(pool, asked, {"name": "no_op"})
    trials, requests = found.trials[0], pool.drawing.requests(asked)
    other = replace(pool, recipe={**pool.recipe, "batch_size": size})
    again = [pool.cell(t, request).task("answered", 1, 2) for t, request in enumerate(requests)]
    batches = [other.cell(t, request).task("answered", 1, 1) for t, request in enumerate(requests)]
    pool.done([*again, *batches])
    kept = trials.unlearned.kept
    third, batch = pool.said(again, kept), pool.said(batches, kept)
    rng = np.random.default_rng(0)
    one_in_twenty = rng.random(trials.forget.shape) < 0.05
    rows = {
        "retrained, other seed": third,
        f"retrained, batch size {size}": batch,
        "5 % of requests skipped": _mixed(third, trials.original, np.arange(len(trials)) % 20 == 0),
        "5 % of samples skipped": _patched(third, trials.original, trials.forget & one_in_twenty),
        "no_op": trials.original,
    }
    return trials, rows | ({} if found.masked is None else {"head_mask": found.masked}), found.masked


def _mixed(models: Said, others: Said, rows: NDArray[np.bool_]) -> Said:
    """Return models with some rows of others in their place."""
    index = np.where(rows, len(models) + np.arange(len(models)), np.arange(len(models)))
    both = {name: np.concatenate([getattr(models, name), getattr(others, name)]) for name in vars(models)}
    return Said(**both | {"kept": np.concatenate([models.kept, models.kept])}).rows(index)


def _patched(models: Said, others: Said, where: NDArray[np.bool_]) -> Said:
    """Return models with the answers of others on some training samples."""
    right = np.where(where, others.right, models.right)
    return replace(models, train=np.where(where, others.train, models.train), right=right)


def _counts(trials: Trials, said: Said, masked: Said | None, batch: Said | None, orders: int) -> Counter[str]:
    found = Counter[str]()
    for seed in range(orders):
        pairs = np.random.default_rng(seed).permutation(len(trials) // 2)
        rows = np.stack([2 * pairs, 2 * pairs + 1], axis=1).ravel()
        own = trials.instead(said).rows(rows)
        controls: dict[Control, Said] = {"no_op": own.original, "retrained": own.retrained}
        declined: dict[Control, str] = {}
        if masked is None:
            declined["head_mask"] = "these requests are of no class"
        else:
            controls["head_mask"] = masked.rows(rows)
        also = {} if batch is None else {"another batch size": batch.rows(rows)}
        given: dict[str, Any] = {"declined": declined, "smallest": NOT_SIMULATED, "legitimate": also, "seed": seed}
        found[judge(own, controls, **given).verdict.value] += 1
    return found


if __name__ == "__main__":
    main()
