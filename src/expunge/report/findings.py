"""What is said in words: how far each model is from retrained, what it is, who paid, and what to be careful about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from expunge import stats
from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report.distance import ALPHA, ERRORS, FORGOTTEN, Told, alarms, is_auc, overforgets, p_value, told
from expunge.report.document import Entry, Section

FEW_SEEDS = 10
RESOLVED = 0.05  # half of an AUC's interval beyond which a reader is told
ONE_CLASS = "predictions/one_class"
GATHERED, APART = 0.9, 0.2  # share of a class in one other class that is told, where retrained has so much less
POISONING, PATCHES, NOT_PATCHED = "concept_poisoning", "mode", "none"  # the method whose patches need a baseline
ENOUGH = 260  # samples that an AUC takes to be known so well

# What a sentence tells, one metric of each line, the first that has a gap.
TOLD = (
    ((FORGOTTEN, "on the forgotten samples"), ("error/mae/forget", "in the error on the forgotten samples")),
    (
        ("accuracy/test", "on the test set"),
        ("accuracy/test_retain", "on the test set without the forgotten class"),
        ("error/mae/test", "in the error on the test set"),
    ),
    (("accuracy/retain", "on the retained samples"),),
    (("wasserstein/forget", "between the distributions of predictions on the forget set"),),
    (("membership/loss/auc", "in the AUC of the loss attack"),),
    (("probe/one_shot", "in what a one-shot probe of the features finds"),),
)
# What it tells where nothing is compared: of the first that was measured.
ALONE = {
    "accuracy": {FORGOTTEN: "on the forgotten samples", "accuracy/test": "on the test set"},
    "mean absolute error": {"error/mae/forget": "on the forgotten samples", "error/mae/test": "on the test set"},
}
NATURES = {
    "approximate edit": "approximate edit",
    "exact": "exact: trained without the forgotten samples",
    "output suppression": "suppresses outputs; the weights still hold the samples",
    "nothing removed": "nothing was removed",
}
LONG_NATURES = {
    "approximate edit": "An approximate edit: the trace looks smaller in the weights; nothing proves that it is gone.",
    "exact": "Exact: the forgotten samples had no part in training these weights.",
    "output suppression": "It suppresses outputs: the weights still hold the samples, and who has them can read them.",
    "nothing removed": "Nothing was removed.",
}


@dataclass(frozen=True)
class Sentence:
    """What is said about one model, or about the section where ``model`` is empty.

    Args:
        model: name of the model, or an empty string.
        role: role of the model, or ``section``.
        text: what is said, to be read after the name and a colon.
        nature: what the method does to the trace, in a few words, or an empty string.
    """

    model: str
    role: str
    text: str
    nature: str = ""

    def __str__(self) -> str:
        name = f"{self.model} ({self.nature})" if self.nature else self.model
        return f"{name}: {self.text}" if self.model else self.text


def sentences(section: Section) -> list[Sentence]:
    """Return how far two retrained models differ, a sentence for each method and control, and on seeds where few.

    Args:
        section: a section of the document.

    Returns:
        Facts, methods first: how far each model is from retrained, after how far two retrained models are from
        each other. Nothing is ranked.
    """
    said = [(m, _sentence(section, m)) for m in doc.of_role(section, "method")]
    said += [(m, _control(section, m)) for m in doc.of_role(section, "control")]
    found = [Sentence(m["name"], m["role"], text, nature(m)) for m, text in said]
    found = [Sentence("", "section", text) for text in _floors(section)] + found
    if text := unranked(section["seeds"]):
        found.append(Sentence("", "section", text))
    return found


def unranked(seeds: int) -> str:
    """Return that so few seeds rank nothing, or an empty string where they are enough."""
    if seeds >= FEW_SEEDS:
        return ""
    ranks = "ranks" if seeds == 1 else "rank"
    return f"{fmt.count(seeds, 'seed')} {ranks} nothing: read the rows as measurements, not as an order."


def nature(model: Mapping[str, Any]) -> str:
    """Return what a method does to the forgotten samples' trace, in a few words."""
    return NATURES.get(model["nature"], str(model["nature"]))


def _sentence(section: Section, model: Mapping[str, Any]) -> str:
    silent = _silent(model)
    if silent:
        return silent
    lines = list(_told(section, model["name"]))
    if not lines and not doc.of_role(section, "retrained"):
        return _alone(section, model["name"])
    if not lines:
        return f"no distance to retrained could be measured ({doc.reason(section, model, FORGOTTEN).rstrip('.')})."
    parts = _distances([(doc.found(section, "gaps", model["name"], m) or {}, where) for m, where in lines])
    name = model["name"]
    more = (_tally(section, model), over(section, name), gathers(section, name), paid(section, name))
    return " ".join([f"{fmt.listed(parts)}.", *filter(None, more)])


def _tally(section: Section, model: Mapping[str, Any]) -> str:
    """Return on how many quantities a method is far from retrained, and where most: few of them stand in a sentence."""
    found = told(section, model)
    if model["role"] != "method" or not found.measured or not doc.of_role(section, "retrained"):
        return ""
    every = fmt.count(found.measured, "quantity", "quantities")
    if not found.beyond:
        return f"On none of {every} is it farther from retrained than the yardstick."
    return f"On {found.beyond} of {every} it is farther from retrained than the yardstick, most in {farthest(found)}."


def _silent(model: Mapping[str, Any]) -> str:
    """Return why nothing is said of a model, or an empty string."""
    if model.get("declined"):
        return f"declined this task: {str(model['declined']).rstrip('.')}."
    return f"nothing can be said of it: {str(model['flaw']).rstrip('.')}." if model["flaw"] else ""


def _alone(section: Section, model: str) -> str:
    """Return a sentence for a section without a retrained model: what changed, and that nothing is compared."""
    there = "there is no retrained model here to compare with"
    for what, metrics in ALONE.items():
        parts = []
        for metric, where in metrics.items():
            now, before = (doc.found(section, "values", name, metric) for name in (model, "original"))
            if now is not None:
                parts.append(f"{fmt.value(now)} {where}" + (f" (original {fmt.value(before)})" if before else ""))
        if parts:
            return f"{what} {fmt.listed(parts)}; {there}."
    return f"no {'error' if doc.is_real(section) else 'accuracy'} was measured; {there}."


def _told(section: Section, model: str) -> Iterator[tuple[str, str]]:
    """Yield the metrics a sentence tells: the known ones, else the first three that have a gap."""
    gaps = {m["name"]: m for m in doc.metrics(section) if doc.found(section, "gaps", model, m["name"])}
    chosen = [next((line for line in lines if line[0] in gaps), None) for lines in TOLD]
    if any(chosen):
        yield from (line for line in chosen if line)
        return
    rest = [(name, f"in {m['label']}") for name, m in gaps.items() if m["group"] != "cost"]
    yield from rest[:3]


def _distances(found: list[tuple[Entry, str]], after: str = " from retrained") -> list[str]:
    """Return sizes of differences with where they are; the unit is named where it changes."""
    parts: list[str] = []
    unit = ""
    for gap, where in found:
        same, unit = str(gap["unit"]) == unit, str(gap["unit"])
        named = "" if same else fmt.suffix(unit, gap=True) + (after if not parts else "")
        parts.append(f"{fmt.distance(gap)}{named} {where}")
    return parts


def _floors(section: Section) -> list[str]:
    """Return how far two retrained models differ in what the sentences tell; nothing without a sentence."""
    names = [m["name"] for m in doc.of_role(section, "method") if not _silent(m)]
    lines = dict(line for name in names for line in _told(section, name))
    there = [(floor, where) for metric, where in lines.items() if (floor := doc.floor(section, metric)) is not None]
    if there:
        return [f"Two retrained models differ by {fmt.listed(_distances(there, after=''))}."]
    return ["How far two retrained models differ was not measured."] if lines else []


def over(section: Section, model: str) -> str:
    """Return what is to be said where a model forgets more than retraining does, or an empty string."""
    said = []
    if overforgets(section, model):
        said.append("it gets fewer of the forgotten samples right than a model that never saw them")
    if any(overforgets(section, model, metric) for metric in ERRORS):
        said.append("it is farther off on the forgotten samples than a model that never saw them")
    attacks = [m for m in doc.metrics(section) if is_auc(m["name"]) and overforgets(section, model, m["name"])]
    if attacks:
        values = {m["label"]: v for m in attacks if (v := doc.found(section, "values", model, m["name"])) is not None}
        least = min(values, key=lambda label: values[label]["x"])
        more = f", and {fmt.count(len(values) - 1, 'other attack')}" if len(values) > 1 else ""
        shown = f"{least} {fmt.value(values[least])}{more}"
        said.append(f"the forgotten samples look less like members than unseen ones ({shown})")
    return (
        f"This is over-forgetting: {', and '.join(said)}, a distance like any other and itself a trace." if said else ""
    )


def gathers(section: Section, model: str) -> str:
    """Return what is to be said where a forgotten class goes to one other class far more than under retrained."""
    goal = next((m["name"] for m in doc.of_role(section, "retrained")), "")
    own, other = (doc.found(section, "values", name, ONE_CLASS) for name in (model, goal))
    if own is None or other is None or own["x"] < GATHERED or own["x"] - other["x"] < APART:
        return ""
    return (
        f"Of the forgotten class's unseen samples {fmt.value(own)} go to one other class, under retrained "
        f"{fmt.value(other)}: who asks for that class sees that it was trained away."
    )


def paid(section: Section, model: str) -> str:
    """Return which group of samples that were to stay lost most; empty where no loss has an interval without 0."""
    names = [
        n for n in (section.get("series") or {}).get(model, {}) if n.count("/") == 1 and n.startswith("subgroups/")
    ]
    groups = [(name, point) for name in names for point in doc.series(section, name).get(model, ())]
    bounded = [(name, point) for name, point in groups if fmt.half(point) is not None]
    lost = [(name, point) for name, point in bounded if point["high"] < 0]
    if not lost:
        return ""
    name, point = min(lost, key=lambda pair: pair[1]["x"])
    ends = " to ".join(fmt.gap({"x": point[end], "unit": point["unit"]}) for end in ("low", "high"))
    step = fmt.resolution(str(point["unit"]))
    chances = [p_value(p["x"], p["low"], p["high"], int(p["n"]), step) for _, p in bounded]
    sure = stats.holm(chances)[bounded.index((name, point))] <= ALPHA
    again = _same(section, name, point)
    text = (
        f"Who paid most: {group(name, point['at'])}, {fmt.gap(point)}{fmt.suffix(point['unit'], gap=True)} of accuracy"
    )
    text += f" ({ends}{again}), of {fmt.count(len(bounded), 'group')} looked at"
    return f"{text}." if sure else f"{text}; of so many, one may look so by chance."


def group(name: str, at: str | float) -> str:
    """Return a group of samples in words.

    >>> group("subgroups/label", 3), group("subgroups/camera", "left")
    ('class 3', 'camera left')
    """
    column = name.removeprefix("subgroups/")
    return f"{'class' if column == 'label' else column} {at}"


def _same(section: Section, name: str, point: Entry) -> str:
    for model in doc.of_role(section, "retrained"):
        for other in doc.series(section, name).get(model["name"], ()):
            if other["at"] == point["at"]:
                return f"; retrained {fmt.gap(other)}"
    return ""


def _control(section: Section, model: Mapping[str, Any]) -> str:
    silent = _silent(model)
    if silent:
        return silent
    found, false = told(section, model), alarms(section)
    text = "a control that must look bad on something."
    if not found.measured:
        return f"a control; {_sentence(section, model)}"
    every = fmt.count(found.measured, "quantity", "quantities")
    farther = "farther from retrained than the yardstick (the floor, else half the interval)"
    if not found.beyond:
        return f"{text} On none of {every} is it {farther}: these numbers cannot tell it from removal."
    again = "" if false is None else "; one more retrained model may be on half"
    text += f" On {found.beyond} of {every} it is {farther}, farthest in {farthest(found)}{again}."
    if found.tested:
        again = "" if false is None else f"; a second retrained model is on {false.sure} of {false.tested}"
        text += f" Corrected for {fmt.count(found.tested, 'test')}, it is told from retrained on {found.sure}{again}."
    # The floor is the second retrained model's own distance: it never lies beyond, one more does on half by chance.
    if false is not None and 2 * found.beyond <= found.measured and found.sure <= false.sure:
        text += " That is no more than a retrained model may show: these numbers cannot tell it from removal."
    return text


def farthest(found: Told) -> str:
    """Return the quantity in which a model is farthest from retrained, in words."""
    return "" if found.farthest is None else f"{found.farthest['label']} ({fmt.times(found.times)})"


def caveats(section: Section) -> list[str]:
    """Return what a reader must know before the numbers: the document's own caveats, flaws, and what always applies.

    Args:
        section: a section of the document.

    Returns:
        Sentences: flaws of models, twins and the like; then want of a retrained model, a floor, seeds, samples.
    """
    said = list(dict.fromkeys(section.get("caveats") or ()))
    flaws = [f"Nothing is said of {m['name']}: {m['flaw'].rstrip('.')}." for m in section["models"] if m["flaw"]]
    said = [*(f for f in flaws if not any(f in known for known in said)), *said]
    said += _unflipped(section)
    if not doc.of_role(section, "retrained"):
        said.append("No model was retrained without the forgotten samples: nothing here can show that they are gone.")
    elif not section["floor"]:
        said.append(
            "Only one model was retrained, so there is no floor: how far two retrained models of different seeds lie "
            "apart is not known, and a difference to retrained may be no more than that."
        )
    if section["seeds"] == 1:
        said.append(
            "One training seed: intervals are over samples, and leave out what another run of training would change."
        )
    return [*said, *_few(section)]


def _unflipped(section: Section) -> list[str]:
    """Return which rows of poisoning by concepts stand without one whose labels alone were changed, in the same way."""
    rows = [(m["name"], m.get("settings") or {}) for m in doc.of_role(section, "method") if not m.get("declined")]
    rows = [(name, own) for name, own in rows if own.get("name") == POISONING]
    flipped = [own.get("labels") for _, own in rows if own.get(PATCHES) == NOT_PATCHED]
    alone = [name for name, own in rows if own.get(PATCHES) != NOT_PATCHED and own.get("labels") not in flipped]
    if not alone:
        return []
    verb = "stands" if len(alone) == 1 else "stand"
    return [
        f'{fmt.listed(alone)} {verb} without a row that changes labels alone ({PATCHES} = "{NOT_PATCHED}"): what the '
        "concepts add to it cannot be told; in published results flipping labels alone did as well."
    ]


def _few(section: Section) -> list[str]:
    """Return how well the attacks' AUCs are known, where that is badly."""
    names = [m["name"] for m in section["metrics"] if is_auc(m["name"])]
    values = [doc.found(section, "values", m["name"], name) for m in section["models"] for name in names]
    halves = [h for v in values if v is not None and (h := fmt.half(v)) is not None]
    seeds, forget = section["seeds"], section["counts"].get("forget")
    if halves and median(halves) > RESOLVED:
        known = fmt.digits(median(halves), "1")
        size = f"The forget set has {fmt.count(forget, 'sample')}" if forget else "There are few samples"
        over = size if seeds == 1 else f"Over {seeds} seeds"
        return [
            f"{over}: the attacks' AUCs are known to ±{known} points only (median), and smaller differences not told."
        ]
    if not halves and any(v is not None for v in values) and forget and forget < ENOUGH:
        size = fmt.count(forget, "sample")
        return [f"The forget set has {size}, too few to know an attack's AUC to ±5 points: that takes about {ENOUGH}."]
    return []
