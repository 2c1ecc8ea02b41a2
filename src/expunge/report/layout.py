"""Which numbers stand where: the few that tell most first, then a table a group, the secondary ones folded away."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from typing import Any

from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report.document import Entry, Section

Metric = Mapping[str, Any]

MANY = 18  # numbers up to which every group is one open table, and no choice is made
WIDEST = 7  # columns of a table
ATTACKS = 10  # columns of the attacks' first table

# The numbers that tell most: of each line the first that was measured.
KEYS = (
    ("accuracy/forget", "error/mae/forget"),
    ("accuracy/test_retain", "accuracy/test", "error/mae/test_retain", "error/mae/test"),
    ("wasserstein/forget",),
    ("paired/gap", "paired/*"),
    ("membership/loss/auc", "membership/*/auc"),
    ("probe/one_shot", "probe/*"),
    ("relearn/steps", "relearn/*"),
    ("canaries/forgotten",),
    ("backdoor/success",),
    ("gaussian/score",),
    ("cost/seconds",),
)
OTHER = "other quantities"
OTHERS = ("the task has no classes", "the task has not two classes")  # reasons of numbers that are none of real targets
TEXTS = {
    "retained": "What those who stay pay in privacy, and whether the edit tells who was deleted.",
    "accuracy": "Share of samples classified right.",
    "error": "How far predictions are from their targets.",
    "wasserstein": "How far the distribution of predictions is from retrained's.",
    "error_attack": "What an attack on the size of errors tells, and how well it tells retained from unseen samples.",
    "loss": "Mean loss of a sample.",
    "coverage": "How often targets lie inside the predicted interval, and how wide it is.",
    "decisions": "How good the scores of a decision are, and how many decisions were turned.",
    "stability": "How far the distribution of scores moved: the population stability index.",
    "segments": "Whose scores and decisions moved, against the original's.",
    "membership": "How well an attack tells the forgotten samples from unseen ones.",
    "paired": "The same forgotten samples under the model and under retrained, sample by sample.",
    "predictions": "Which classes unseen samples of the forgotten class are taken for, beside retrained's answers.",
    "divergence": "How far the predicted distributions are from retrained's.",
    "activation": "How far the predicted probabilities are from retrained's.",
    "weights": "How far the weights are from retrained's, and from the original's.",
    "zrf": "How much predictions resemble those of a network that knows nothing.",
    "similarity": "How alike features and predictions are to retrained's.",
    "flips": "Answers lost and gained against the original, as shares of the samples.",
    "tow": "Closeness of several accuracies to retrained's, in one number.",
    "probe": "What a second, small model still reads out of the features.",
    "relearn": "How soon the forgotten comes back when the model is trained further.",
    "ain": "How soon ordinary training brings the forgotten range back, on samples that were never trained on.",
    "robustness": "Whether the forgotten comes back when the model is disturbed a little.",
    "subgroups": "Who paid: accuracy of groups of samples that were to stay.",
    "canaries": "Samples planted in training under random labels, beside others kept out: a test with known truth.",
    "appearance": "Whether the answers of a language model still name the forgotten, in the same and in other words.",
    "utility": "What the answers of a language model to the other questions are worth: ROUGE-L and equal ones.",
    "backdoor": "Whether a trigger that was planted in training still makes the model answer what it stands for.",
    "gaussian": "Whether the loss still falls along noise that samples carried in training: a test with known truth.",
    "cost": "Time, memory and weights touched. No distance to retrained is sought here.",
}
TITLES = {
    "zrf": "ZRF",
    "tow": "Tug of war",
    "wasserstein": "Distance of distributions",
    "error_attack": "Attack on errors",
    "predictions": "Where the class goes",
    "ain": "Anamnesis index",
}
OPEN = ("accuracy", "error", "membership")  # groups that are not folded


@dataclass(frozen=True)
class Part:
    """One table.

    Args:
        title: what its columns share, or an empty string.
        metrics: its columns.
        heads: a short label for each.
    """

    title: str
    metrics: tuple[Metric, ...]
    heads: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """The tables of one group.

    Args:
        title: heading.
        text: what the numbers say.
        parts: its tables.
        folded: shown only when asked for.
    """

    title: str
    text: str
    parts: tuple[Part, ...]
    folded: bool = False

    @property
    def metrics(self) -> list[Metric]:
        """Every column of the block."""
        return [m for part in self.parts for m in part.metrics]


def unit(metric: Metric) -> str:
    """Return what a head says of its column's unit, with a comma before it; shares say theirs in every cell."""
    return "" if metric["unit"] in ("1", "") else f",{fmt.suffix(metric['unit'])}"


def measured(section: Section) -> list[Metric]:
    """Return the metrics that at least one model has a number of, in the order of a table."""
    models = [m["name"] for m in section["models"]]
    return [m for m in doc.metrics(section) if any(doc.found(section, "values", name, m["name"]) for name in models)]


def unmeasured(section: Section) -> dict[str, list[str]]:
    """Return the labels of the metrics that no model has a number of, by the reason that most models have.

    Of real targets what is a number of classes is left out: nobody misses it.
    """
    there = {m["name"] for m in measured(section)}
    models = [m for m in doc.models(section) if not m.get("declined") and not m["flaw"]]
    out: dict[str, list[str]] = {}
    for metric in (m for m in doc.metrics(section) if m["name"] not in there):
        reasons = Counter(doc.reason(section, m, metric["name"]) for m in models)
        found = [reason for reason, _ in reasons.most_common() if reason != doc.ITSELF] or [doc.ITSELF]
        if doc.is_real(section) and found[0].startswith(OTHERS):
            continue
        out.setdefault(found[0], []).append(metric["label"])
    return out


def key(section: Section) -> list[Metric]:
    """Return the numbers that tell most: of each line of `KEYS` the first that a method, or any model, has."""
    there = measured(section)
    methods = [m["name"] for m in doc.of_role(section, "method")]
    best = [m for m in there if any(doc.found(section, "values", name, m["name"]) for name in methods)]
    found = (_first(best, patterns) or _first(there, patterns) for patterns in KEYS)
    return [m for m in found if m is not None]


def _first(metrics: list[Metric], patterns: Iterable[str]) -> Metric | None:
    return next((m for pattern in patterns for m in metrics if fnmatchcase(m["name"], pattern)), None)


def blocks(section: Section) -> list[Block]:
    """Return the tables of a section, costs last; of many numbers the secondary groups are folded.

    Args:
        section: a section of the document.

    Returns:
        One block a group, groups of one number together. Attacks come as ranks (the AUC of each) and as what attacks
        with a threshold say, and their other rates apart.
    """
    there = measured(section)
    many = len(there) > MANY
    groups: dict[str, list[Metric]] = {}
    for metric in (m for m in there if not doc.is_constant(m)):
        groups.setdefault(metric["group"], []).append(metric)
    out: list[Block] = []
    single: list[Metric] = []
    for group, metrics in groups.items():
        text, title = TEXTS.get(group, ""), TITLES.get(group, group.capitalize())
        if group == "membership" and many:
            first, rest = ([m for m in metrics if leading(m) == side] for side in (True, False))
            first = sorted(first, key=lambda m: not m["name"].endswith("/auc"))
            out.append(Block(title, text, _parts(first, group, ATTACKS)))
            if rest:
                out.append(Block("Other rates of the attacks", text, _attacks(rest, group), folded=True))
        elif len(metrics) == 1 and group not in ("accuracy", "cost"):
            single += metrics
        else:
            said = f"{text} {constant(section)}".strip() if group == "error" else text
            out.append(Block(title, said, _parts(metrics, group), folded=many and group not in OPEN))
    if single:
        at = len(out) - ("cost" in groups)
        out.insert(at, Block(OTHER.capitalize(), "", _parts(single, ""), folded=many))
    return out


def constant(section: Section) -> str:
    """Return how far the best constants for the retain set are off, the same for every model, in a sentence."""
    told: dict[str, list[str]] = {}
    unit = ""
    for metric in (m for m in section["metrics"] if doc.is_constant(m)):
        found = (doc.found(section, "values", m["name"], metric["name"]) for m in doc.models(section))
        value = next((v for v in found if v is not None), None)
        if value is not None:
            what, _, where = str(metric["label"]).partition(", ")
            named, unit = "" if str(value["unit"]) == unit else fmt.suffix(str(value["unit"])), str(value["unit"])
            told.setdefault(what, []).append(f"{fmt.digits(value['x'], str(value['unit']))}{named} ({where})")
    parts = [f"{what} {fmt.listed(values)}" for what, values in told.items()]
    return f"Always saying the same gives: {'; '.join(parts)}." if parts else ""


def constants(section: Section) -> dict[str, Entry]:
    """Return what the best constants for the retain set have, by the number of a model that it is held against.

    That of ``error/mae/test`` is ``error/mae_constant/test``; that of the pinball loss ``loss/test`` of quantiles is
    ``error/pinball_constant/test``. It is the same for every model, and taken from the first that has it.
    """
    out: dict[str, Entry] = {}
    for metric in (m for m in section["metrics"] if doc.is_constant(m)):
        found = (doc.found(section, "values", m["name"], metric["name"]) for m in doc.models(section))
        value = next((v for v in found if v is not None), None)
        if value is not None:
            own = str(metric["name"]).replace("_constant/", "/")
            out[own.replace("error/pinball/", "loss/")] = value
    return out


def leading(metric: Metric) -> bool:
    """Return whether a number of an attack stands before its other rates: its AUC, or what it decides by itself."""
    name = str(metric["name"])
    return name.count("/") < 2 or name.endswith("/auc")


def _attacks(metrics: list[Metric], group: str) -> tuple[Part, ...]:
    """Return tables of one rate each, the attacks as columns."""
    rates = groupby(sorted(metrics, key=_rate), key=_rate)
    ordered = sorted((list(found) for _, found in rates), key=lambda found: metrics.index(found[0]))
    return tuple(part for found in ordered for part in _parts(found, group))


def _rate(metric: Metric) -> str:
    return str(metric["name"]).partition("/")[2].partition("/")[2]


def _parts(metrics: list[Metric], group: str, widest: int = WIDEST) -> tuple[Part, ...]:
    """Return tables of at most so many columns, of about equal width."""
    count = -(-len(metrics) // widest)
    size = -(-len(metrics) // count)
    out = []
    for at in range(0, len(metrics), size):
        some = metrics[at : at + size]
        title, heads = shortened([m["label"] for m in some], group)
        out.append(Part(title, tuple(some), tuple(heads)))
    return tuple(out)


def shortened(labels: list[str], group: str) -> tuple[str, list[str]]:
    """Return what all labels begin or end with, up to a comma or colon, and what is left of each.

    Args:
        labels: of the columns of a table.
        group: name of the group, which stands above the table already.

    Returns:
        The common words, without the group's name, and the heads.

    >>> shortened(["loss attack: AUC", "entropy attack: AUC"], "membership")
    ('AUC', ['loss attack', 'entropy attack'])
    >>> shortened(["accuracy, forget set", "accuracy, test, the rest"], "accuracy")
    ('', ['forget set', 'test, the rest'])
    """
    words = [re.split(r"(?<=[,:]) ", label) for label in labels]
    shared = []
    while len(labels) > 1 and all(len(w) > 1 for w in words) and len({w[0] for w in words}) == 1:
        shared.append(words[0][0].rstrip(",:"))
        words = [w[1:] for w in words]
    while len(labels) > 1 and all(len(w) > 1 for w in words) and len({w[-1] for w in words}) == 1:
        shared.append(words[0][-1])
        words = [w[:-1] for w in words]
    title = ", ".join(w for w in shared if w.lower() != group.lower())
    heads = [" ".join(w).rstrip(",:") for w in words]
    if len(labels) == 1:
        heads = [re.sub(rf"^{re.escape(group)}[,:] ", "", labels[0], flags=re.IGNORECASE) if group else labels[0]]
    return title, heads
