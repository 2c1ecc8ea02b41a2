"""The numbers of a section as sentences and as tables: for the page, a terminal and Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report.distance import FORGOTTEN, distance_class, overforgets, yardstick
from expunge.report.document import Entry, Section

FEW_SEEDS = 10
STYLES = ("green", "", "yellow", "dark_orange", "red")

# What a sentence tells, one metric of each line, the first that has a gap.
TOLD = (
    ((FORGOTTEN, "on the forgotten samples"),),
    (("accuracy/test", "on the test set"), ("accuracy/test_retain", "on the test set without the forgotten class")),
    (("accuracy/retain", "on the retained samples"),),
    (("membership/loss/auc", "in the AUC of the loss attack"),),
    (("probe/one_shot", "in what a one-shot probe of the features finds"),),
)
HEADS = {
    "membership/entropy_lr": "entropy\nattack",
    "membership/loss/auc": "loss\nAUC",
    "membership/loss/balanced_accuracy": "loss\nbal. acc.",
    "membership/loss/tpr_at_fpr_0.01": "TPR at\n1% FPR",
    "probe/one_shot": "one-shot\nprobe",
    "cost/seconds": "time\nin s",
}
# Columns of a narrow terminal, in the order in which they are placed.
KEPT = (
    "accuracy/forget",
    "accuracy/test",
    "accuracy/test_retain",
    "membership/loss/auc",
    "probe/one_shot",
    "cost/seconds",
    "accuracy/retain",
)


@dataclass(frozen=True)
class Sentence:
    """What is said about one model, or about the section where ``model`` is empty.

    Args:
        model: name of the model, or an empty string.
        role: role of the model, or ``section``.
        text: what is said, to be read after the name and a colon.
    """

    model: str
    role: str
    text: str

    def __str__(self) -> str:
        return f"{self.model}: {self.text}" if self.model else self.text


@dataclass(frozen=True)
class Cell:
    """One number of a table, as text.

    Args:
        metric: name of the metric.
        text: the value with its interval, or a dash.
        gap: signed difference to retrained without its unit, or an empty string.
        distance: class 0 to 4 of the gap by its length in yardsticks, or None where there is no yardstick.
        times: length of the gap in yardsticks, as text.
        title: what a reader may ask for: the interval, the yardstick, or the reason for a dash.
        available: whether there is a value.
        over: forgets more than retraining does.
    """

    metric: str
    text: str
    gap: str = ""
    distance: int | None = None
    times: str = ""
    title: str = ""
    available: bool = True
    over: bool = False


@dataclass(frozen=True)
class Row:
    """One model of a table.

    Args:
        model: its name.
        role: its role.
        text: what the row is.
        declined: reason why the method declined, or an empty string.
        cells: one for each metric, in the order of `expunge.report.document.metrics`.
    """

    model: str
    role: str
    text: str
    declined: str
    cells: tuple[Cell, ...]


def rows(section: Section) -> list[Row]:
    """Return the table of a section as text, one row for each model and one cell for each metric.

    Args:
        section: a section of the document.

    Returns:
        Rows in the order original, retrained, floor, controls, methods.
    """
    return [
        Row(
            model=model["name"],
            role=model["role"],
            text=str(model.get("text") or ""),
            declined=str(model.get("declined") or ""),
            cells=tuple(_cell(section, model, metric) for metric in doc.metrics(section)),
        )
        for model in doc.models(section)
    ]


def _cell(section: Section, model: Mapping[str, Any], metric: Mapping[str, Any]) -> Cell:
    name, key = model["name"], metric["name"]
    value = doc.found(section, "values", name, key)
    if value is None:
        return Cell(key, fmt.MISSING, title=doc.reason(section, model, key), available=False)
    gap = doc.found(section, "gaps", name, key) if model["role"] != "retrained" else None
    if gap is None:
        return Cell(key, fmt.value(value), title=_title(value, None))
    unit = yardstick(section, name, key) if metric["group"] != "cost" else None
    over = key == FORGOTTEN and overforgets(section, name)
    shown = fmt.gap(gap, like=value["x"])
    if unit is None:
        return Cell(key, fmt.value(value), shown, title=_title(value, gap), over=over)
    length = fmt.size(gap) / unit[0]
    times = f"{length:.1f}×" if length < 9.95 else f"{length:,.0f}×" if length < 1000 else ">999×"
    title = f"{_title(value, gap)}; {times} the {unit[1]} of {fmt.digits(unit[0], str(gap['unit']))}"
    return Cell(key, fmt.value(value), shown, distance_class(length), times, title, over=over)


def _title(value: Entry, gap: Entry | None) -> str:
    unit = str(value["unit"])
    bounds = "no interval"
    if fmt.half(value) is not None:
        bounds = f"95% interval {fmt.digits(value['low'], unit)} to {fmt.digits(value['high'], unit)}"
    text = f"{bounds}, n = {value['n']}"
    if gap is None:
        return text
    if fmt.half(gap) is None:
        return f"{text}; {fmt.gap(gap)}{fmt.suffix(unit, gap=True)} from retrained"
    ends = " to ".join(fmt.gap({"x": gap[end], "unit": unit}) for end in ("low", "high"))
    return f"{text}; {fmt.gap(gap)} ({ends}){fmt.suffix(unit, gap=True)} from retrained"


def sentences(section: Section) -> list[Sentence]:
    """Return one sentence for each method and each control, and one on the number of seeds where it is small.

    Args:
        section: a section of the document.

    Returns:
        Facts, methods first: how far each model is from retrained, beside how far two retrained models are from
        each other. Nothing is ranked.
    """
    said = [Sentence(m["name"], m["role"], _sentence(section, m)) for m in doc.of_role(section, "method")]
    said += [Sentence(m["name"], m["role"], _control(section, m)) for m in doc.of_role(section, "control")]
    if section["seeds"] < FEW_SEEDS:
        ranks = "ranks" if section["seeds"] == 1 else "rank"
        text = f"{fmt.count(section['seeds'], 'seed')} {ranks} nothing: read the rows as measurements, not as an order."
        said.append(Sentence("", "section", text))
    return said


def _sentence(section: Section, model: Mapping[str, Any]) -> str:
    if model.get("declined"):
        return f"declined this task: {str(model['declined']).rstrip('.')}."
    told = list(_told(section, model["name"]))
    if not told and not doc.of_role(section, "retrained"):
        return _alone(section, model["name"])
    if not told:
        return f"no distance to retrained could be measured ({doc.reason(section, model, FORGOTTEN).rstrip('.')})."
    parts: list[str] = []
    unit = ""
    for metric, where in told:
        gap = doc.found(section, "gaps", model["name"], metric) or {}
        same = str(gap["unit"]) == unit
        unit = str(gap["unit"])
        named = "" if same else fmt.suffix(unit, gap=True) + (" from retrained" if not parts else "")
        parts.append(f"{fmt.distance(gap)}{named} {where}")
    text = f"{fmt.listed(parts)}; {_floors(section, told)}."
    if overforgets(section, model["name"]):
        text += (
            " This is over-forgetting: it gets fewer of the forgotten samples right than a model that never saw them,"
            " a distance like any other and itself a trace."
        )
    return text


def _alone(section: Section, model: str) -> str:
    """Return a sentence for a section without a retrained model: what changed, and that nothing is compared."""
    parts = []
    for metric, where in (TOLD[0][0], TOLD[1][0]):
        now, before = (doc.found(section, "values", name, metric) for name in (model, "original"))
        if now is not None:
            parts.append(f"{fmt.value(now)} {where}" + (f" (original {fmt.value(before)})" if before else ""))
    told = f"accuracy {fmt.listed(parts)}" if parts else "no accuracy was measured"
    return f"{told}; there is no retrained model here to compare with."


def _told(section: Section, model: str) -> Iterator[tuple[str, str]]:
    """Yield the metrics a sentence tells: the known ones, else the first three that have a gap."""
    gaps = {m["name"]: m for m in doc.metrics(section) if doc.found(section, "gaps", model, m["name"])}
    chosen = [next((line for line in lines if line[0] in gaps), None) for lines in TOLD]
    if any(chosen):
        yield from (line for line in chosen if line)
        return
    rest = [(name, f"in {m['label']}") for name, m in gaps.items() if m["group"] != "cost"]
    yield from rest[:3]


def _floors(section: Section, told: list[tuple[str, str]]) -> str:
    floors = [(doc.floor(section, metric), where) for metric, where in told]
    there = [(fmt.distance(floor), where) for floor, where in floors if floor is not None]
    if not there:
        return "how far two retrained models differ was not measured"
    if len(there) == len(floors):
        return f"two retrained models differ by {fmt.listed([text for text, _ in there])}"
    return f"two retrained models differ by {fmt.listed([f'{text} {where}' for text, where in there])}"


def _control(section: Section, model: Mapping[str, Any]) -> str:
    if model.get("declined"):
        return _sentence(section, model)
    text = f"a control that must look bad on something: {_sentence(section, model)}"
    row = next(r for r in rows(section) if r.model == model["name"])
    lengths = [cell.distance for cell in row.cells if cell.distance is not None]
    if not lengths:
        return text
    far, every = sum(length > 0 for length in lengths), fmt.count(len(lengths), "quantity", "quantities")
    farther = "it is farther from retrained than the yardstick (the floor, else half the interval)"
    if far:
        return f"{text} On {far} of {every} {farther}{_false_alarms(section)}."
    return f"{text} On none of {every} {farther.replace('it is', 'is it')}: these numbers cannot tell it from removal."


def _false_alarms(section: Section) -> str:
    """Return on how many quantities a second retrained model is as far, so that a control's number can be judged."""
    others = {m["name"] for m in doc.of_role(section, "floor")}
    far = [sum((c.distance or 0) > 0 for c in row.cells) for row in rows(section) if row.model in others]
    return f"; so is a second retrained model on {max(far)}" if any(far) else ""


def terminal(section: Section, width: int = 120) -> Table:
    """Return the key numbers for a terminal: x±half interval, shares in percent, coloured by the gap's class.

    Args:
        section: a section of the document.
        width: columns of the terminal; metrics that do not fit are named in the caption.

    Returns:
        A rich table with one row for each model.
    """
    every = rows(section)
    metrics = doc.metrics(section)
    key = [i for i, m in enumerate(metrics) if m["group"] in {"accuracy", "membership", "probe"}]
    key += [i for i, m in enumerate(metrics) if m["name"] == "cost/seconds"]
    key = [i for i in key if any(r.cells[i].available for r in every)]
    key = [i for i in key or range(len(metrics)) if metrics[i]["name"] != "accuracy/holdout"]
    lines = {r.model: [_short(section, r, c) for c in r.cells] for r in every}
    shown, left_out = _fitting(key, metrics, lines, width - min(24, max(len(r.model) for r in every)))
    caption = "percent where no unit is given; colour: distance to retrained"
    if left_out:
        caption += "; in the report also: " + ", ".join(fmt.plain(metrics[i]["name"]) for i in left_out)
    table = Table(title=Text(fmt.plain(section["name"])), caption=caption, title_justify="left", caption_justify="left")
    table.box, table.padding, table.pad_edge = None, (0, 1), False
    table.add_column("model", no_wrap=True, max_width=24)
    for i in shown:
        table.add_column(Text(_head(metrics[i])), justify="right", vertical="bottom", no_wrap=True)
    for row in every:
        cells = [Text(lines[row.model][i], style=_style(row.cells[i])) for i in shown]
        table.add_row(Text(fmt.plain(row.model, 24), style="bold" if row.role == "retrained" else ""), *cells)
    return table


def _fitting(
    key: list[int], metrics: list[Mapping[str, Any]], lines: Mapping[str, list[str]], room: int
) -> tuple[list[int], list[int]]:
    """Return the key columns that fit and those that do not, the most telling ones first to be placed."""
    shown: list[int] = []
    first = {name: at for at, name in enumerate(KEPT)}
    for i in sorted(key, key=lambda i: first.get(metrics[i]["name"], len(first))):
        words = _head(metrics[i]).splitlines()
        size = 2 + max(len(text) for text in [*words, *(line[i] for line in lines.values())])
        if size > room:
            break
        room -= size
        shown.append(i)
    return sorted(shown), [i for i in key if i not in shown]


def _head(metric: Mapping[str, Any]) -> str:
    name = metric["name"]
    if name in HEADS:
        return HEADS[name]
    short = name.removeprefix("accuracy/").replace("_", " ").replace("/", " ")
    unit = "" if metric["unit"] == "1" else f" {fmt.suffix(metric['unit']).strip()}"
    return "\n".join(fmt.plain(short + unit).split())


def _short(section: Section, row: Row, cell: Cell) -> str:
    entry = doc.found(section, "values", row.model, cell.metric)
    if entry is None:
        return fmt.MISSING
    return fmt.value(entry, compact=True) if entry["unit"] == "1" else fmt.digits(entry["x"], entry["unit"])


def _style(cell: Cell) -> str:
    return "dim" if not cell.available else STYLES[cell.distance] if cell.distance is not None else ""


def markdown(section: Section) -> str:
    """Return the sentences and the table of a section as Markdown, one table for each group of metrics.

    Args:
        section: a section of the document.

    Returns:
        The text, every name escaped; gaps to retrained stand in brackets.
    """
    every = rows(section)
    out = [f"### {_escape(section['name'])}", _escape(section["text"])]
    out.append("\n".join(f"- {_escape(str(sentence))}" for sentence in sentences(section)))
    for metrics in doc.groups(section).values():
        names = {m["name"] for m in metrics}
        lines = [["model", *(_escape(m["label"]) for m in metrics)], ["---", *("---:" for _ in metrics)]]
        for row in every:
            cells = [f"{c.text} ({c.gap})" if c.gap else c.text for c in row.cells if c.metric in names]
            lines.append([_escape(row.model), *map(_escape, cells)])
        out.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(part for part in out if part) + "\n"


def _escape(text: str) -> str:
    clean = fmt.plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", clean)
