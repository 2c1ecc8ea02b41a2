"""The route ``retrain``: the network trained anew on what was never to be forgotten, with proof of what it saw."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from expunge import folders, methods
from expunge.errors import UserError
from expunge.folders import Folder
from expunge.method import Nature
from expunge.runtime import peak_memory
from expunge.scenario import forget_ids
from expunge.scores import REFERENCE
from expunge.service import facts
from expunge.service.made import Made
from expunge.service.site import Site, refuse_learning_again
from expunge.service.targets import Target, classes
from expunge.tensors import weights_digest
from expunge.train import fit, fresh

NOTE = "Trained anew without the forgotten samples, then prepared anew for further edits."


def retrain(site: Site, folder: Folder, batch: Sequence[Target]) -> Made:
    """Train the network anew without the samples of these requests and without all that was forgotten before.

    Args:
        site: the model.
        folder: the version that is served.
        batch: requests, of which samples may be forgotten by an edit already, or be no longer at hand.

    Returns:
        The new version, with the state of the project's method prepared on what it was trained on.

    Raises:
        UserError: there is no recipe, or the network before training cannot be had.
    """
    place, began = folder.project, time.perf_counter()
    if place.recipe is None:
        raise UserError("a [recipe] to retrain by", "none", "add one to the project file")
    held = site.holding(folder)
    whole, gone = held.train, held.gone
    asked = {i for t in batch for i in (*t.ids, *t.past)}
    named = {i for t in batch for i in t.remembered}
    rest = whole.without([i for i in whole.ids if i in gone or i in named]).watched()
    refuse_learning_again(site.ledger, site.name, rest.ids)
    if not len(rest):
        raise UserError("training data to retrain on", "none left", "check which samples the requests name")
    model, runtime = folder.model(), site.working()
    with peak_memory(runtime.torch_device) as peak:
        method, start = place.method(), model
        if not method.prepares.fresh:  # what begins at the network before training trains in its preparation
            start = fresh(model, new_model=place.new_model, seed=site.seed)
            start = fit(start, place.task, rest, place.recipe, holdout=place.holdout, runtime=runtime, seed=site.seed)
        fitted = time.perf_counter()
        ready = site.prepare(method, start, place, rest)
    ended = time.perf_counter()
    seconds, total = (ended if method.prepares.fresh else fitted) - began, ended - began
    proof = {
        "trained": facts.data(rest, site.ledger.keys.secret) | {"read": len(rest) - len(rest.unread)},
        **facts.excluded(sorted(asked | gone | named), site.ledger.keys.secret),
    }
    counters = {"requests": 0, "samples": 0, "stale": 0, "retrained": site.now().isoformat(timespec="seconds")}
    record = folders.record("forget", place, site.seed, method.settings()) | {
        "weights": weights_digest(ready.model),
        "before": folder.record["weights"],
        "scenario": None,
        "forgotten": [],
        "seconds": seconds,
        "total_seconds": total,
        "peak_memory": peak[0],
        "note": NOTE,
        "log": {},
        "stale": [],
        "advice": folders.ADVICE,
        "service": {**counters, "seq": site.ledger.head().seq},
    }
    body: dict[str, Any] = {
        **facts.cited(methods.load("retrain")()),
        **{key: record[key] for key in ("before", "seed", "seconds", "total_seconds", "peak_memory")},
        "nature": str(Nature.EXACT),
        "recipe": place.recipe.to_json(),
        "next_method": method.settings(),
        "after": record["weights"],
        "batch_samples": len(asked),
        "data": facts.data(rest, site.ledger.keys.secret),
        "proof": proof,
        "so_far": {key: counters[key] for key in ("requests", "samples", "stale")},
    }
    here = [i for i in whole.ids if i in asked]
    seen = whole.subset([i for i in whole.ids if i in asked or i not in gone and i not in named])
    case = forget_ids(seen, here, holdout=place.holdout, test=place.test) if here else None
    gone_classes = classes(batch, place)
    return Made(place, model, ready.model, ready.state, REFERENCE, record, body, seen, case, classes=gone_classes)
