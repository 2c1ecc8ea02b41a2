"""Pools with planted truth: scores of samples under models that saw them, and under models that did not."""

from __future__ import annotations

import numpy as np

from expunge.qualify.trials import Said, Trials
from expunge.shadows import draw


def said(train: np.ndarray, test: np.ndarray, kept: np.ndarray) -> Said:
    """Return scores with the accuracy that follows from their sign."""
    return Said(train, test, kept, train > 0, test > 0)


def trials(
    *,
    models: int = 24,
    samples: int = 200,
    unseen: int = 60,
    size: int | None = None,
    memory: float = 2.0,
    left: float = 0.0,
    skipped: float = 0.0,
    seed: int = 0,
) -> Trials:
    """Return simulated requests of a method that leaves a share of what a model remembers of its samples.

    Score of sample x under model r: easiness of x + ``memory`` where r was trained on x + noise of deviation 1.

    Args:
        models: T, even.
        samples: N.
        unseen: M.
        size: samples of each request, drawn from its half; None takes a fixed tenth of all samples.
        memory: what training on a sample adds to its score.
        left: share of that which stays after unlearning.
        skipped: share of the samples of each request on which nothing was done.
        seed: of everything.
    """
    rng = np.random.default_rng(seed)
    ids = tuple(f"train/{i}" for i in range(samples))
    seen = draw(ids, models, seed)
    easy, easy_test = rng.normal(1.0, 2.0, samples), rng.normal(1.0, 2.0, unseen)

    def scores(memory_of: np.ndarray) -> np.ndarray:
        return easy + memory_of + rng.normal(size=(models, samples))

    def tests() -> np.ndarray:
        return easy_test + rng.normal(size=(models, unseen))

    pool = said(scores(memory * seen), tests(), seen)
    forget = np.zeros_like(seen)
    if size is None:
        forget[:, : samples // 10] = seen[:, : samples // 10]
    else:
        for t in range(models):
            forget[t, rng.choice(np.flatnonzero(seen[t]), size, replace=False)] = True
    stays = np.where(rng.random(seen.shape) < skipped, 1.0, left)
    unlearned = np.where(forget, pool.train + memory * (stays - 1), pool.train)
    after = said(unlearned, pool.test, seen & ~forget)
    partners = np.arange(models) ^ 1
    return Trials(ids, forget, pool, after, pool.rows(partners), pool)
