"""What the record of a request says in words: what became of it, and what none of its numbers can show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from expunge.qualify.power import auc_samples
from expunge.qualify.verdict import INSUFFICIENT
from expunge.report import format as fmt
from expunge.stats import clopper_pearson

WIDTH = 0.05  # of an attack's AUC, to either side, that says something
Z = 1.96  # standard deviations to each end of a 95 % interval of a normal distribution
NATURES = {
    "approximate edit": "approximate",
    "exact": "exact",
    "output suppression": "output suppression",
    "nothing removed": "nothing removed",
}
LEVELS = {
    "E0": "no number that is served was computed from the samples",
    "E1": "training again without the samples, with the same seeds, gives the same bits",
}
SAYS = {
    "approximate": "The method is approximate: it changes the weights so that, as far as was measured, the model "
    "behaves as if it had not learned the samples. Nothing proves that no trace of them is left in the weights.",
    "exact": "The method is exact: the weights that are served were trained without the samples. That holds for the "
    "training data that was recorded by its digest; a copy of a sample under another id would still be in it.",
    "output suppression": "The method is an output suppression: the weights still hold the samples' influence, and who "
    "has the weights can read it. Only the outputs were changed.",
    "nothing removed": "The method removes nothing; it is a control.",
}
COPIES = (
    "Only the models and files under the service's workspace are covered: copies of the data, backups, logs, and "
    "weights that were handed out before are not."
)
TWINS = "Samples that say the same of a person under other ids, and near copies of a sample, are not covered."
SEED = "The intervals are over samples: they leave out what another run of training or of the method would change."
BOTH = (
    "Who holds the weights from before and after can compare them and learn about the samples from the difference; the "
    "older weights should be kept no longer than a rollback needs."
)
NO_QUALIFICATION = (
    "There is no qualification: how often this method fails on this model was not measured by simulated requests."
)


def nature(named: Any, level: Any = None) -> str | None:
    """Return what a method does to the trace of samples, in plain words.

    Args:
        named: the method's nature as recorded.
        level: ``E0`` or ``E1`` of a method that is exact at a level.

    Returns:
        ``approximate``, ``exact``, ``exact at level E0`` ...; None where nothing was recorded.

    >>> nature("approximate edit"), nature("exact", "E1"), nature(None)
    ('approximate', 'exact at level E1', None)
    """
    if named is None:
        return None
    word = NATURES.get(str(named), str(named))
    return f"{word} at level {level}" if word == "exact" and level else word


def explained(word: str | None, method: str | None = None) -> str:
    """Return a sentence on a nature, a nature that was not recorded included.

    Args:
        word: as `nature` returns it.
        method: the method's name, None where it is not known.

    Returns:
        The sentence.
    """
    return _explained(word).replace("The method", method or "The method", 1)


def _explained(word: str | None) -> str:
    if word is None:
        return "What the method does to the trace of the samples is not recorded; take it for approximate."
    kind, _, level = word.partition(" at level ")
    said = SAYS.get(kind, f"The method is said to be: {word}. Take it for approximate.")
    return f"{said} Level {level}: {LEVELS[level]}." if level in LEVELS else said


def outcome(told: Mapping[str, Any], served: Mapping[str, Any] | None) -> str:
    """Return in a sentence what became of a request on one model.

    Args:
        told: the model's part of the account.
        served: the attempt whose result was put to use last, None where there was none.
    """
    step, done = told["step"], told["done"]
    if step == "absent" and not done:
        return "No sample of the request was in this model's training data: nothing was to be done."
    if step == "rolled_back" and not done:
        return "What was done was rolled back: the model served is again one that learned the samples."
    if not done:
        waits = {"failed": "The last attempt failed; the old model is still served.",
                 "scheduled": "It waits for the next retraining; the model served learned the samples."}  # fmt: skip
        return waits.get(step, "Work on it has begun and is not finished; the old model is still served.")
    said = "exact" if "retrain" in done else (served or {}).get("nature") or "of a nature that was not recorded"
    what = "The model was trained anew without the samples" if "retrain" in done else "The model was edited"
    more = " The last further attempt failed." if step == "failed" else ""
    return f"{what} ({said}), verified, and is served.{more}"


def could_show(n: Any) -> dict[str, Any]:
    """Return what an audit of so many forgotten samples could show at best.

    If none of n samples were recognised, the share of such samples that could still be is below the upper end of the
    exact 95 % interval of 0 in n; an attack's AUC, of n forgotten and any number of unseen samples, is known to
    ± 1.96·√(1/(12 n)) at best where it is 1/2.

    Args:
        n: forgotten samples, None where that was not recorded.

    Returns:
        ``n``, ``share``, ``auc`` and the sentence ``text``.

    References:
        C. J. Clopper, E. S. Pearson, "The use of confidence or fiducial limits illustrated in the case of the
        binomial", 1934, https://doi.org/10.1093/biomet/26.4.404. H. B. Mann, D. R. Whitney, "On a test of whether one
        of two random variables is stochastically larger than the other", 1947,
        https://doi.org/10.1214/aoms/1177730491.
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        return {"n": None, "share": None, "auc": None, "text": "How many samples the request had is not recorded."}
    share, auc = clopper_pearson(0, n).high, min(0.5, Z * math.sqrt(1 / (12 * n)))
    text = (
        f"{fmt.count(n, 'sample')} can show little or much, never all: had an attack recognised none of them, up to "
        f"{fmt.digits(share, '1')}% of such samples could still be recognisable (95%), and the AUC of an attack is "
        f"known to ±{fmt.digits(auc, '1')} points at best."
    )
    return {"n": n, "share": share, "auc": auc, "text": text}


def sentences(record: Mapping[str, Any]) -> list[str]:
    """Return the limits of a record: what it does not show, for the methods and numbers that are in it."""
    models = record["models"].values()
    served = [a for m in models for a in m["attempts"] if a["result"] in ("deployed", "replaced")]
    said = [explained(a["nature"], (a["method"] or {}).get("name")) for a in served]
    said += [str(c) for a in served for c in _listed(a["caveats"])]
    said += [text for a in served if (text := _stale(a))]
    if served:
        said.append(SEED)
        if any(m["undo"] for m in record["account"]["models"].values()):
            said.append(BOTH)
    said += [alone(a["samples"]) for a in served if a["nature"] == "approximate" and not _covered(a)]
    said += [COPIES, TWINS]
    return list(dict.fromkeys([*said, *_qualified(record)]))


def _qualified(record: Mapping[str, Any]) -> list[str]:
    """Return what a qualification says of each model's edits, and where there is none; models by name if several."""
    given, said = dict(record["qualification"] or {}), list[str]()
    served = {
        name: [a for a in m["attempts"] if a["result"] in ("deployed", "replaced") and a["how"] != "retrain"]
        for name, m in record["models"].items()
    }
    edits = {name: attempts for name, attempts in served.items() if attempts}
    for name, attempts in edits.items():
        lead = f"{name}: " if len(edits) > 1 else ""
        said += [lead + text for a in attempts for text in _told(a.get("qualification") or given)]
    return said or _told(given)


def _told(found: Mapping[str, Any]) -> list[str]:
    return [text for text in (str(found.get("text") or NO_QUALIFICATION), str(found.get("officer") or "")) if text]


def alone(n: Any) -> str:
    """Return the verdict on one edit by itself, without a qualification: its samples and models are too few.

    Args:
        n: forgotten samples, None where that was not recorded.
    """
    have = fmt.count(n, "forgotten sample") if isinstance(n, int) else "an unknown number of forgotten samples"
    return (
        f"Verdict on this edit by itself: {INSUFFICIENT}. It has {have}, where an attack's AUC takes "
        f"{auc_samples(WIDTH)} to be known to ±{WIDTH:g}, and one original with one edited model shows nothing of how "
        "much such models differ."
    )


def _covered(attempt: Mapping[str, Any]) -> bool:
    return bool((attempt.get("qualification") or {}).get("covers"))


def _stale(attempt: Mapping[str, Any]) -> str | None:
    """Return that the state of an edit belongs to older weights, where requests were fulfilled since it was made."""
    requests = (attempt["so_far"] or {}).get("stale")
    if attempt["how"] != "edit" or not isinstance(requests, int) or requests < 2:
        return None
    return (
        f"The state that the edit worked with was prepared {fmt.count(requests, 'request')} ago, this one counted: it "
        "belongs to weights that were edited since, and is an approximation for these."
    )


def _listed(found: Any) -> list[Any]:
    return list(found) if isinstance(found, list | tuple) else [found] if found else []
