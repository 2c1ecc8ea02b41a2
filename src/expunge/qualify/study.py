"""A qualification: simulated requests of all kinds and sizes by one method, and what they say of it, as one record."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from expunge.bench.store import versions
from expunge.errors import Declined, UserError
from expunge.method import Method
from expunge.qualify.asked import COUNTED, WORDS, Asked
from expunge.qualify.judge import Judged, judge
from expunge.qualify.simulate import Pool, Simulated, simulate
from expunge.qualify.sizes import in_row, size_of
from expunge.qualify.strong import strong
from expunge.qualify.trials import Said, Trials
from expunge.qualify.verdict import Control
from expunge.task import Classes
from expunge.zoo import Problem

DEFAULTS = ("random=1", "random=10,times=4", "random=0.05", "hardest=10", "near-duplicates=10")
FITS = 8  # the share of all samples that a request of the defaults takes at most, as one in so many
SHARE, CONFIDENCE = 0.9, 0.95


def qualify(
    pool: Pool,
    method: Method,
    asked: Sequence[Asked],
    *,
    share: float = SHARE,
    confidence: float = CONFIDENCE,
    margins: Mapping[str, float] | None = None,
    told: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Return what simulated requests say of a method on a model: bounds, failures, utility, verdicts, attacks.

    Args:
        pool: trained here as far as it is not; what an earlier call left in its store is used again.
        method: the method.
        asked: kinds and sizes; several sizes of a kind stand together, with one verdict on the largest.
        share: of requests that each bound holds for.
        confidence: of the bounds.
        margins: of the verdict, by number; those not given are read off pairs of retrained models.
        told: called with what is done next.

    Returns:
        The body of a qualification record, without what names the model it is for; see
        `expunge.qualify.record.Qualification`.

    Raises:
        Declined: the method applies to none of the requests; those it declines beside others are named in the record.
        UserError: no request, one twice, or one that cannot be drawn.
        Incompatible: the store holds another pool.
        ExpungeError: a model cannot be trained, or a task failed.

    References:
        The amortised attack on simulated requests: J. Hayes, I. Shumailov, E. Triantafillou, A. Khalifa, N. Papernot,
        "Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of Privacy", 2024,
        https://arxiv.org/abs/2403.01218.
    """
    names = [str(each) for each in asked]
    if not asked or len(set(names)) != len(names):
        raise UserError("requests to qualify for, each once", ", ".join(names) or "none", "name each once")
    say = told or (lambda text: None)
    pool.check()
    say(f"training {pool.models} models on halves of the data")
    pool.train_all()
    by_kind = defaultdict[str, list[Simulated]](list)
    declined = list[dict[str, str]]()
    for each in asked:
        say(f"{method.settings()['name']}: {each}")
        try:
            found = simulate(pool, each, method.settings())
        except Declined as error:
            declined.append({"kind": each.kind, "words": _words(each, each.kind != "subject"), "why": error.got})
            if len(declined) == len(asked):
                raise
        else:
            by_kind[_title(each)].append(found)
    begun = time.perf_counter()
    kinds = [kind_of(found, share, confidence, margins or {}, pool.seed) for found in by_kind.values()]
    every = [one for found in by_kind.values() for one in found]
    models = [pool.answered(t) for t in range(pool.models)]
    trained = pool.seconds("trained", models)
    return {
        "made": datetime.now(UTC).replace(microsecond=0).isoformat(),
        **{key: value for key, value in versions().items() if key != "python"},
        "project": pool.problem.name,
        "network": pool.network,
        "task": type(pool.problem.task).__name__.lower(),
        "samples": len(pool.train),
        "recipe": dict(pool.recipe),
        "method": method.settings(),
        "pool": {
            "models": pool.models,
            "samples": int(pool.seen[0].sum()),
            "seed": pool.seed,
            "seconds": trained,
            "models_per_minute": 60 * pool.models / trained if trained else None,
        },
        "confidence": confidence,
        "share": share,
        "unit": "nats" if isinstance(pool.problem.task, Classes) else "loss",
        "kinds": kinds,
        "declined": declined,
        "excludes": excluded(pool, every, share, confidence) + unsimulated(declined),
        "cost": {
            "pool": trained + pool.seconds("answered", models),
            "retrained": sum(one.cost["retrained"] for one in every),
            "requests": sum(one.cost["requests"] for one in every),
            "analysis": time.perf_counter() - begun,
            "retrain": trained / pool.models,
        },
    }


def defaults(problem: Problem) -> list[Asked]:
    """Return requests that fit a problem: those of `DEFAULTS` that are not too large for it, and its first class.

    Args:
        problem: with training data.
    """
    found, train = [Asked.parse(text) for text in DEFAULTS], problem.train
    few = [a for a in found if a.fixed or a.times * a.value * FITS <= len(train)]
    inputs = train.read(range(1)).inputs
    apart = isinstance(problem.task, Classes) and not isinstance(inputs, dict) and inputs.is_floating_point()
    fitting = [a for a in few if a.kind != "near-duplicates" or apart]
    return fitting + ([Asked("class", min(train.targets().tolist()))] if isinstance(problem.task, Classes) else [])


def _title(asked: Asked) -> str:
    """Return what sizes of one kind have in common."""
    return f"{asked.kind} {asked.column or ''} {'' if asked.kind in COUNTED else asked.value}"


def kind_of(
    found: Sequence[Simulated], share: float, confidence: float, margins: Mapping[str, float], seed: int
) -> dict[str, Any]:
    """Return what is known of one kind of request: its sizes, requests in a row, and the verdict on the largest.

    Args:
        found: its sizes.
        share: of requests that each bound holds for.
        confidence: of the bounds.
        margins: of the verdict, by number.
        seed: of what is drawn in tests.

    Returns:
        An entry of ``kinds`` of the record.
    """
    ordered = sorted(found, key=lambda one: _size(one.trials[0]))
    largest, row = ordered[-1], next((one for one in ordered if len(one.steps) > 1), None)
    asked = largest.asked
    sizes = [
        size_of(one.trials[0], share=share, confidence=confidence).to_json() | {"seconds": one.seconds}
        for one in ordered
    ]
    return {
        "kind": asked.kind,
        "target": {"value": asked.value} if asked.kind == "class" else None,  # a person is not named in a record
        "words": _words(asked, asked.kind in ("class", "subclass")),
        "against": largest.against,
        "variants": sorted(largest.legitimate),
        "sizes": sizes,
        "in_row": None if row is None else in_row(row.trials, row.steps, confidence=confidence).to_json(),
        **judged(largest, margins, level=1 - confidence, seed=seed).to_json(),
        "attacks": _nameless(strong(largest.trials[0], seed=seed).to_json()),
    }


def _nameless(attacks: dict[str, Any]) -> dict[str, Any]:
    """Return what attacks found without the ids of samples: a record outlives them."""
    worst = [{k: v for k, v in each.items() if k != "id"} for each in attacks.get("worst") or ()]
    return attacks | {"worst": worst}


def judged(
    found: Simulated, margins: Mapping[str, float] | None = None, *, level: float = 0.05, seed: int = 0
) -> Judged:
    """Return the verdict on a method for one kind of request, controls included.

    Args:
        found: the simulated requests; of several in a row those after the first.
        margins: by number; those not given are read off pairs of retrained models.
        level: chance of a false verdict, each way.
        seed: of what is drawn in tests.
    """
    trials = found.trials[0]
    controls: dict[Control, Said] = {"no_op": trials.original, "retrained": trials.retrained}
    declined: dict[Control, str] = {}
    if found.masked is None:
        declined["head_mask"] = found.unmasked
    else:
        controls["head_mask"] = found.masked
    given: dict[str, Any] = {"declined": declined, "margins": margins or {}, "legitimate": found.legitimate}
    return judge(trials, controls, **given, level=level, seed=seed)


def _size(trials: Trials) -> float:
    return float(np.median(trials.forget.sum(axis=1)))


def unsimulated(declined: Sequence[Mapping[str, str]]) -> list[str]:
    """Return what requests were not simulated, and why, in sentences."""
    return [f"{each['words']} were not simulated: the method declines them ({each['why']})." for each in declined]


def _words(asked: Asked, named: bool) -> str:
    return WORDS[asked.kind] + (f" ({asked})" if named else "")


def excluded(pool: Pool, found: Sequence[Simulated], share: float, confidence: float) -> list[str]:
    """Return what the record cannot exclude, in sentences."""
    half, n = int(pool.seen[0].sum()), len(pool.train)
    longest = max((one.steps[-1] for one in found), default=1)
    return [
        f"The models asked to forget were trained on {half:,} of {n:,} samples: on all of them each sample weighs "
        "less, and the method may do better or worse.",
        f"A bound holds for {share:.0%} of requests of its kind and size with {confidence:.0%} confidence: a single "
        "request may lie beyond it.",
        "The gap is a mean over the samples of a request: single samples of it may stand out, in either direction.",
        "Only outputs on the samples as they are were looked at: traces in weights and hidden layers, and what "
        "questions put otherwise would bring back, are not covered.",
        f"No more than {longest} request{'' if longest == 1 else 's'} in a row {'was' if longest == 1 else 'were'} "
        "simulated on one model.",
        "Requests of other kinds, larger ones, and samples that somebody chose to do harm were not simulated.",
        *(
            f"Models retrained with {name} counted as retrained too: what lies as near to these was not found."
            for name in pool.variants
        ),
    ]
