"""How often are verdicts on simulated requests wrong, where the truth is known?

Scores of N samples under T models are drawn, not trained: easiness of the sample + ``memory`` where the model was
trained on it + what shifts all samples of one model + noise. Half of the samples are seen by a model, its partner sees
the others; a fixed tenth of all samples is to be forgotten. Four methods of known truth, each with controls no_op and
retrained through the same tests:

- *retrained*: what a model remembers of its samples is gone without a trace. Any "distinguishable" is wrong.
- *at the margin*: the scores of all forgotten samples are off by exactly the margin that the trial's own pairs of
  retrained models give. Any "indistinguishable" is wrong.
- *no_op*: nothing was done. The same.
- *skipped*: nothing was done with 5 % of the samples, all others are as retrained. The same.

Printed are counts, the rate with Clopper and Pearson's 95 % interval, and of verdicts that must not come whether so
many trials certify that their chance is at most 5 % (`expunge.qualify.certified`: at most 16 of 500). "Insufficient
evidence" is never wrong, and is counted too. The controls decide that verdict alike in all four. Rates of tests that
reject before correction stand below, and of two one-sided tests that pass.

    python benchmarks/verdict_rates.py
    python benchmarks/verdict_rates.py --trials 20 --models 32 --samples 200
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from expunge.qualify import certified, rejections
from expunge.qualify.judge import Judged, Smallest, judge, margins_of
from expunge.qualify.trials import Said, Trials
from expunge.qualify.verdict import DISTINGUISHABLE, INDISTINGUISHABLE, INSUFFICIENT, Value
from expunge.seeds import seed as named_seed
from expunge.shadows import draw
from expunge.stats import clopper_pearson

LEVEL = 0.05
SKIPPED = 0.05
SCORE = "score of forgotten samples"
NONE = Smallest(rank=0.0, kernel=0.0, calls=0.0, share=0.0)  # no verdict depends on them, and they take time
WHY = {"head_mask": "it masks one class"}
WORLDS: dict[str, Value] = {  # what must not come
    "retrained": DISTINGUISHABLE,
    "at the margin": INDISTINGUISHABLE,
    "no_op": INDISTINGUISHABLE,
    "skipped": INDISTINGUISHABLE,
}


def said(train: np.ndarray, test: np.ndarray, kept: np.ndarray) -> Said:
    """Return scores with the predictions that follow from their sign."""
    return Said(train, test, kept, train > 0, test > 0)


def world(models: int, samples: int, unseen: int, memory: float, own: float, seed: int) -> Trials:
    """Return requests whose unlearned models are as if retrained.

    Args:
        models: T.
        samples: N.
        unseen: test samples.
        memory: what training on a sample adds to its score, in deviations of the noise.
        own: deviation of what shifts all samples of one model.
        seed: of everything.
    """
    rng = np.random.default_rng(named_seed("verdict rates", seed))
    ids = tuple(f"train/{i}" for i in range(samples))
    seen = draw(ids, models, seed)
    easy, easy_test = rng.normal(1.0, 2.0, samples), rng.normal(1.0, 2.0, unseen)
    shift = own * rng.normal(size=(models, 1))
    train = easy + memory * seen + shift + rng.normal(size=(models, samples))
    pool = said(train, easy_test + shift + rng.normal(size=(models, unseen)), seen)
    forget = seen & (np.arange(samples) < samples // 10)
    after = said(train - memory * forget, pool.test, seen & ~forget)
    return Trials(ids, forget, pool, after, pool.rows(np.arange(models) ^ 1), pool)


def shifted(trials: Trials, by: float | np.ndarray) -> Trials:
    """Return the trials with other scores of forgotten samples."""
    u = trials.unlearned
    return replace(trials, unlearned=said(u.train + by * trials.forget, u.test, u.kept))


def planted(trials: Trials, memory: float, seed: int) -> dict[str, Trials]:
    """Return the four methods on the same pool."""
    rng = np.random.default_rng(named_seed("verdict rates, planted", seed))
    left = rng.random(trials.forget.shape) < SKIPPED
    return {
        "retrained": trials,
        "at the margin": shifted(trials, margins_of(trials)[SCORE][0]),
        "no_op": trials.instead(trials.original),
        "skipped": shifted(trials, memory * left),
    }


def verdict(trials: Trials, seed: int) -> Judged:
    """Return the verdict with both controls."""
    controls: Any = {"no_op": trials.original, "retrained": trials.retrained}
    declined: Any = WHY
    return judge(trials, controls, declined=declined, level=LEVEL, smallest=NONE, seed=seed)


def share(count: int, trials: int) -> str:
    """Return a count with its rate and interval."""
    i = clopper_pearson(count, trials)
    return f"{count} ({i.x:.1%}, {i.low:.1%} to {i.high:.1%})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a markdown table."""
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(row) + " |")
    print()


def rates(models: int, trials: int, make: Callable[[int], Trials], memory: float, first: int) -> None:
    """Run all trials of one number of models, and print what came out."""
    values = {name: Counter[str]() for name in WORLDS}
    rejected = {name: Counter[str]() for name in WORLDS}
    alone = {name: Counter[str]() for name in WORLDS}
    wrong, begun = Counter[str](), time.perf_counter()
    for seed in range(first, first + trials):
        for name, each in planted(make(seed), memory, seed).items():
            found = verdict(each, seed)
            values[name][found.verdict.value] += 1
            rejected[name].update(list(rejections(found.findings, LEVEL)))
            for f in found.findings:
                p = f.p if f.within is None else f.within
                alone[name][f.name] += int(p <= LEVEL)
            if name == "retrained":
                wrong["no_op missed"] += int(not rejections(found.controls["no_op"], LEVEL))
                wrong["retrained found distinguishable"] += int(bool(rejections(found.controls["retrained"], LEVEL)))
    took = (time.perf_counter() - begun) / (trials * len(WORLDS))
    print(f"T = {models}, {trials} trials of each method, {took:.2f} s a verdict\n")
    rows = []
    for name, never in WORLDS.items():
        count = values[name][never]
        sure = "yes" if certified(count, trials, LEVEL) else "no"
        counts = [share(values[name][v], trials) for v in (DISTINGUISHABLE, INDISTINGUISHABLE, INSUFFICIENT)]
        rows.append([name, *counts, never, f"{count} of {trials}", sure])
    head = [
        "method",
        "distinguishable",
        "indistinguishable",
        "insufficient",
        "must not come",
        "came",
        "≤ 5 % certified",
    ]
    table(head, rows)
    names = list(alone["retrained"])
    table(
        ["test: p ≤ 5 % alone / rejects after correction", *WORLDS],
        [[test, *(f"{alone[w][test]} / {rejected[w][test]}" for w in WORLDS)] for test in names],
    )
    print("Controls that came out wrong: " + ", ".join(f"{name} {count}" for name, count in wrong.items()) + ".\n")


def main() -> None:
    """Parse arguments, and print a table for each number of models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--models", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--unseen", type=int, default=200)
    parser.add_argument("--memory", type=float, default=3.0, help="in deviations of a score's noise")
    parser.add_argument("--own", type=float, default=0.2, help="deviation of a model's shift of all samples")
    parser.add_argument("--seed", type=int, default=0, help="of the first trial")
    given = parser.parse_args()
    for models in given.models:

        def make(seed: int, models: int = models) -> Trials:
            return world(models, given.samples, given.unseen, given.memory, given.own, seed)

        rates(models, given.trials, make, given.memory, given.seed)


if __name__ == "__main__":
    main()
