"""The route ``edit``: one batch of requests unlearned from the version that is served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from expunge import folders
from expunge.data import Data
from expunge.errors import UserError
from expunge.folders import Folder
from expunge.method import Method, State
from expunge.service import facts, targets
from expunge.service.made import Made
from expunge.service.qualified import cite
from expunge.service.site import Site
from expunge.service.targets import Target
from expunge.tensors import weights_digest
from expunge.unlearn import unlearn


def edit(site: Site, folder: Folder, batch: Sequence[Target]) -> Made:
    """Unlearn the samples of all requests of a batch together, by the project's method.

    Args:
        site: the model.
        folder: the version that is served.
        batch: requests with samples at hand.

    Returns:
        The new version.

    Raises:
        UserError: the method cannot do it as it stands.
    """
    place = folder.project
    left = site.holding(folder).left
    case = targets.scenario(batch, place, left)
    forget, rest = left.subset(case.forget), left.without(case.forget)
    model = folder.model()
    place.check(model, forget)
    method, state, renewed = _ready(site, folder, model, left)
    done = unlearn(
        method,
        model,
        place.task,
        forget=forget,
        retain=rest,
        holdout=place.holdout,
        scenario=case,
        state=state,
        recipe=place.recipe,
        new_model=place.new_model,
        runtime=site.working(),
        seed=site.seed,
    )
    before, past = folder.record["weights"], site.counters(folder)
    first = past["first"] or before
    told = cite(site, folder, method.settings(), batch, len(forget), first)
    counters = past | {
        "first": first,
        "qualified": told["digest"] if told is not None and not told["expired"] else None,
        "edits": past["edits"] + 1,
        "requests": past["requests"] + len(batch),
        "samples": past["samples"] + len(forget),
        "stale": len(batch) + (0 if renewed else past["stale"]),
    }
    record = folders.outcome(done, place, site.seed, None)
    record |= {"before": before, "stale": folder.record.get("stale", []), "forgotten": [], "service": counters}
    body: dict[str, Any] = {
        **facts.cited(method),
        **{key: record[key] for key in ("before", "seed", "seconds", "total_seconds", "peak_memory", "changed")},
        "after": record["weights"],
        "batch_samples": len(forget),
        "data": facts.data(rest, site.ledger.keys.secret),
        "so_far": {key: counters[key] for key in ("requests", "samples", "stale")},
        **({"prepared": renewed} if renewed else {}),
    }
    if told is not None:
        body["qualification"] = told
    idle = ""
    if folders.idle(done):
        remedy = "take other settings of the method, or the route retrain"
        idle = f"{method.name} changed nothing for {len(forget)} of {len(left)} samples: {remedy}."
    gone_classes = targets.classes(batch, place)
    return Made(place, model, done, done.state, method.name, record, body, left, case, idle, gone_classes)


def _ready(site: Site, folder: Folder, model: nn.Module, left: Data) -> tuple[Method, State, dict[str, Any]]:
    """Return the project's method with its state, prepared anew where that is due, and what is to be said of that."""
    place, prepared = folder.project, folder.record["method"]["name"]
    same = place.config.method.get("name") == prepared
    method = place.method(prepared, folder.settings()) if same else place.method()
    every, stale = site.policy.refresh_every, site.counters(folder)["stale"]
    if same and not (every and stale >= every and method.prepares.required()):
        return method, folder.state, {}
    ready = site.prepare(method, model, place, left)
    if weights_digest(ready.model) != weights_digest(model):
        remedy = f"go on with {prepared}, or take the route retrain"
        raise UserError("a method whose preparation leaves the weights as they are", method.name, remedy)
    why = (
        f"{stale} request{'' if stale == 1 else 's'} since the last time"
        if same
        else f"the state was one of {prepared}"
    )
    return method, ready.state, {"why": why, "samples": len(left), "seconds": ready.seconds}
