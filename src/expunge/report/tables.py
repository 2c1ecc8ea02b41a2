"""The numbers of a section as sentences and as tables: for the page, a terminal and Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report import layout
from expunge.report.distance import distance_class, length, overforgets, yardstick
from expunge.report.document import Entry, Section
from expunge.report.findings import caveats, sentences

STYLES = ("green", "", "yellow", "dark_orange", "red")
COLUMNS = 10  # of a short table at most
NAMED = 3  # numbers left out that are named, not counted
CONSTANT = "(constant)"  # a row beside the models: what always saying the same gives
SAME = f"{CONSTANT}: always saying the same, the best of that kind for the retain set"

HEADS = {
    "membership/entropy_lr": "entropy\nattack",
    "membership/loss/auc": "loss\nAUC",
    "membership/loss/balanced_accuracy": "loss\nbal. acc.",
    "membership/loss/tpr_at_fpr_0.01": "TPR at\n1% FPR",
    "accuracy/test_retain": "test\nrest",
    "error/mae/forget": "forget\nMAE in\nunits",
    "error/mae/test": "test\nMAE in\nunits",
    "error/mae/test_retain": "test rest\nMAE in\nunits",
    "wasserstein/forget": "forget\nW1 in\nunits",
    "probe/one_shot": "one-shot\nprobe",
    "cost/seconds": "time\nin s",
}


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
        ideal: no value, but the ideal by definition: what retrained would have against itself.
    """

    metric: str
    text: str
    gap: str = ""
    distance: int | None = None
    times: str = ""
    title: str = ""
    available: bool = True
    over: bool = False
    ideal: bool = False


@dataclass(frozen=True)
class Row:
    """One model of a table.

    Args:
        model: its name.
        role: its role.
        text: what the row is.
        absent: why nothing is known of the model, because the method declined or its outputs are of no use.
        cells: one for each metric, in the order of `expunge.report.document.metrics`.
    """

    model: str
    role: str
    text: str
    absent: str
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
            absent=str(model.get("declined") or model["flaw"] or ""),
            cells=tuple(_cell(section, model, metric) for metric in doc.metrics(section)),
        )
        for model in doc.models(section)
    ]


def _cell(section: Section, model: Mapping[str, Any], metric: Mapping[str, Any]) -> Cell:
    name, key = model["name"], metric["name"]
    value = doc.found(section, "values", name, key)
    if value is None:
        why = doc.reason(section, model, key)
        if model["role"] == "retrained" and metric["target"] is not None and why == doc.ITSELF:
            return Cell(key, fmt.ideal(metric), title=f"{why}: the ideal by definition", available=False, ideal=True)
        return Cell(key, fmt.MISSING, title=why, available=False)
    gap = doc.found(section, "gaps", name, key) if model["role"] != "retrained" else None
    if gap is None or metric["group"] == "cost":
        return Cell(key, fmt.value(value, named=False), title=_title(value, None))
    over, unit = overforgets(section, name, key), yardstick(section, name, key)
    shown = "" if metric["target"] == 0 else fmt.gap(gap, like=value["x"])  # else it would repeat the value
    far = length(section, model, metric)
    if far is None or unit is None:
        return Cell(key, fmt.value(value, named=False), shown, title=_title(value, gap), over=over)
    title = f"{_title(value, gap)}; yardstick: {unit[1]} of {fmt.digits(unit[0], str(gap['unit']))}"
    return Cell(key, fmt.value(value, named=False), shown, distance_class(far), fmt.times(far), title, over=over)


def _title(value: Entry, gap: Entry | None) -> str:
    unit = str(value["unit"])
    text = f"n = {value['n']}" if fmt.half(value) is not None else "no interval, n = 1"
    if gap is None:
        return text
    text = f"{text}; {fmt.gap(gap)}{fmt.suffix(unit, gap=True)} from retrained"
    if fmt.half(gap) is None:
        return text
    ends = " to ".join(fmt.gap({"x": gap[end], "unit": unit}) for end in ("low", "high"))
    return f"{text}, interval {ends}"


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
    lines = {r.model: [_short(section, r, c) for c in r.cells] for r in every}
    fixed = layout.constants(section)
    same = [_digits(fixed[m["name"]]) if m["name"] in fixed else fmt.MISSING for m in metrics]
    names = [*(r.model for r in every), *([CONSTANT] if fixed else [])]
    shown = _fitting(columns(section), metrics, [*lines.values(), same], width - min(24, max(map(len, names))))
    caption = "percent where no unit is given; ± + −: ends of the 95% interval; colour: distance to retrained"
    compared = any(metrics[i]["name"] in fixed for i in shown)
    if compared:
        caption += f"; {SAME}"
    if rest := _rest(section, [metrics[i] for i in shown]):
        caption += f"; in the report also: {rest}"
    table = Table(title=Text(fmt.plain(section["name"])), caption=caption, title_justify="left", caption_justify="left")
    table.box, table.padding, table.pad_edge = None, (0, 1), False
    table.add_column("model", no_wrap=True, max_width=24)
    for i in shown:
        table.add_column(Text(head(metrics[i])), justify="right", vertical="bottom", no_wrap=True)
    for row in every:
        cells = [Text(lines[row.model][i], style=_style(row.cells[i])) for i in shown]
        table.add_row(Text(fmt.plain(row.model, 24), style="bold" if row.role == "retrained" else ""), *cells)
    if compared:
        table.add_row(Text(CONSTANT), *(Text(same[i], style="dim" if same[i] == fmt.MISSING else "") for i in shown))
    return table


def columns(section: Section) -> list[int]:
    """Return the positions of the columns of a short table, in the order in which they are placed, at most ten."""
    at = {m["name"]: i for i, m in enumerate(doc.metrics(section))}
    there = layout.measured(section)
    first = [m["name"] for m in layout.key(section)]
    then = [m["name"] for m in there if m["group"] == "accuracy" and m["name"] != "accuracy/holdout"]
    last = [m["name"] for m in there if m["group"] == "membership" and layout.leading(m)]
    chosen = list(dict.fromkeys([*first, *then, *last])) or [m["name"] for m in there if not doc.is_constant(m)]
    return [at[name] for name in chosen[:COLUMNS]]


def _rest(section: Section, shown: list[Mapping[str, Any]]) -> str:
    """Return the numbers that a short table leaves out, of models: named where they are few, else counted."""
    names = {m["name"] for m in shown}
    there = (m for m in layout.measured(section) if not doc.is_constant(m))
    left = [fmt.plain(m["name"]) for m in there if m["name"] not in names]
    return ", ".join(left) if len(left) <= NAMED else f"{len(left)} more numbers" if left else ""


def _fitting(key: list[int], metrics: list[Mapping[str, Any]], lines: list[list[str]], room: int) -> list[int]:
    """Return those of the columns that fit, in the order of the report; the first ones are placed first."""
    shown: list[int] = []
    for i in key:
        words = head(metrics[i]).splitlines()
        size = 2 + max(len(text) for text in [*words, *(line[i] for line in lines)])
        if size > room:
            break
        room -= size
        shown.append(i)
    return sorted(shown)


def head(metric: Mapping[str, Any]) -> str:
    """Return a metric's name over a narrow column, of several lines."""
    name = metric["name"]
    if name in HEADS:
        return HEADS[name]
    short = name.removeprefix("accuracy/").removeprefix("membership/").replace("_", " ").replace("/", " ")
    short = short.removesuffix("auc") + "AUC" if short.endswith(" auc") else short
    unit = "" if metric["unit"] == "1" else f" {fmt.suffix(metric['unit']).strip()}"
    return "\n".join(fmt.plain(short + unit).split())


def _short(section: Section, row: Row, cell: Cell) -> str:
    entry = doc.found(section, "values", row.model, cell.metric)
    if entry is None:
        return fmt.MISSING
    return _digits(entry)


def _digits(entry: Entry) -> str:
    """Return a number as a short table prints it."""
    ended = entry.get("high") is None and entry.get("low") == entry["x"]  # a count given up at its cap
    whole = entry["unit"] == "1" or ended
    return fmt.value(entry, compact=True) if whole else fmt.digits(entry["x"], entry["unit"])


def _style(cell: Cell) -> str:
    return "dim" if not cell.available else STYLES[cell.distance] if cell.distance is not None else ""


def markdown(section: Section) -> str:
    """Return caveats, sentences and numbers of a section as Markdown.

    Args:
        section: a section of the document.

    Returns:
        The text, every name escaped; gaps to retrained stand in brackets. Of few numbers there is a table for each
        group, of many one table of those that tell most.
    """
    every, metrics = rows(section), doc.metrics(section)
    out = [f"### {escape(section['name'])}", escape(section["text"])]
    out += ["\n".join(f"> {escape(text)}" for text in [*caveats(section), *bounds(section)])]
    out += ["\n".join(f"- {escape(str(sentence))}" for sentence in sentences(section))]
    if len(layout.measured(section)) > layout.MANY:
        shown = [metrics[i] for i in sorted(columns(section))]
        rest = _rest(section, shown)
        out += [_table(section, every, shown), f"In the report also: {escape(rest)}." if rest else ""]
    else:
        groups = ([m for m in group if not doc.is_constant(m)] for group in doc.groups(section).values())
        out += [_table(section, every, group) for group in groups if group]
    return "\n\n".join(part for part in out if part) + "\n"


def bounds(section: Section) -> list[str]:
    """Return what became of each bound that was set, in sentences."""
    return [str(bound["text"]) for bound in section.get("bounds") or ()]


def _table(section: Section, every: list[Row], metrics: list[Mapping[str, Any]]) -> str:
    names, fixed = {m["name"] for m in metrics}, layout.constants(section)
    ideals = [f" (ideal {fmt.ideal(m)})" if fmt.ideal(m) else "" for m in metrics]
    units = [layout.unit(m) for m in metrics]
    heads = [escape(m["label"] + u + i) for m, u, i in zip(metrics, units, ideals, strict=True)]
    lines = [["model", *heads], ["---", *("---:" for _ in metrics)]]
    for row in every:
        cells = [f"{c.text} ({c.gap})" if c.gap else c.text for c in row.cells if c.metric in names]
        lines.append([escape(row.model), *map(escape, cells)])
    same = [fmt.value(fixed[m["name"]], named=False) if m["name"] in fixed else fmt.MISSING for m in metrics]
    if names & fixed.keys():
        lines.append([f"{CONSTANT}: always the same", *map(escape, same)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape(text: str) -> str:
    """Return a text so that Markdown shows it as it is, in one line."""
    clean = fmt.plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", clean)
