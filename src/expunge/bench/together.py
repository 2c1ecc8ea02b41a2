"""Originals of several cells trained in one pass, where the device gains by it; the others are left to the runner."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack

from expunge.bench.cell import Task
from expunge.bench.stages import MODEL, Setting, Work
from expunge.bench.store import Store
from expunge.errors import ExpungeError, Unwritable
from expunge.originals import started
from expunge.stacked import fit_stacked
from expunge.tensors import save_weights

log = logging.getLogger(__name__)
ON_CUDA = 16  # networks in one pass by default on a GPU, which a small one alone leaves idle


def at_once(setting: Setting) -> int:
    """Return how many networks are trained in one pass by default: several on a GPU, one by one elsewhere."""
    return ON_CUDA if str(setting.runtime(None, False).torch_device).startswith("cuda") else 1


def train_together(tasks: Sequence[Task], setting: Setting, most: int) -> int:
    """Train the originals of tasks *trained* that are missing, several in one pass, see `expunge.stacked.fit_stacked`.

    Up to rounding they are those that the runner trains one by one; the same tasks are done, under the same names.
    Those that somebody else works on are passed over, and so are groups that cannot be stacked, with a warning.

    Args:
        tasks: of one network and recipe.
        setting: where.
        most: networks in one pass.

    Returns:
        How many were trained.

    Raises:
        Unwritable: the store cannot be written.
    """
    store = Store.open(setting.store)
    by_size = defaultdict[int, list[Work]](list)
    for task in tasks:
        if store.status(task) == "missing":
            work = Work(task, store, setting, setting.runtime(None, False))
            by_size[len(work.train)].append(work)
    done = 0
    for works in by_size.values():
        for at in range(0, len(works), most):
            try:
                done += _trained(works[at : at + most], store)
            except Unwritable:
                raise
            except ExpungeError as error:
                log.warning("trained one by one: %s", error)
                break
    return done


def _trained(works: Sequence[Work], store: Store) -> int:
    with ExitStack() as stack:
        mine = [work for work in works if stack.enter_context(store.claimed(work.task))]
        mine = [work for work in mine if store.status(work.task) != "done"]
        if len(mine) < 2:
            return 0
        begun = time.perf_counter()
        problem, seeds = mine[0].problem, [work.cell.seed for work in mine]
        recipe = started(problem, seeds[0])[1]
        models = fit_stacked(
            [started(problem, seed)[0] for seed in seeds],
            problem.task,
            [work.train for work in mine],
            recipe,
            seeds=seeds,
            runtime=mine[0].runtime,
        )
        seconds = (time.perf_counter() - begun) / len(mine)
        for work, model in zip(mine, models, strict=True):
            with store.writing(work.task) as (folder, body):
                save_weights(folder / MODEL, model, {})
                body |= {"seconds": seconds, "data": work.fingerprint(), "stacked": len(mine)}
        return len(mine)
