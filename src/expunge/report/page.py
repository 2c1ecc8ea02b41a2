"""One self-contained HTML file from an audit document: no network, no script, every value escaped."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from expunge.files import canonical, check_free, jsonable, write_text
from expunge.report import charts, tables
from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report.document import Section
from expunge.report.svg import SEEN_AS

GROUPS = {
    "accuracy": "Share of samples classified right.",
    "loss": "Mean loss of a sample.",
    "membership": "How well an attack tells the forgotten samples from unseen ones.",
    "probe": "What a second, small model still reads out of the features.",
    "cost": "Time, memory and weights touched. No distance to retrained is sought here.",
}
DISTRIBUTIONS = {
    "loss": "Training pushes the loss of its samples towards zero.",
    "entropy": "How unsure a model is: near zero it is sure, right or wrong.",
}
OTHER = "other quantities"
ROLES = {"original": "", "retrained": "the reference", "floor": "retrained again", "control": "control"}
COUNTS = {"train": "training samples", "forget": "to forget", "retain": "to retain"}


def render(document: Mapping[str, Any]) -> str:
    """Return the report as the text of one HTML file; the same document gives the same text.

    Args:
        document: the audit document, as read from JSON.

    Returns:
        The page; it loads nothing and runs no script.

    Raises:
        Incompatible: the document lacks something, or is of another kind or a newer schema.
    """
    doc.validate(document)
    look = charts.looks(document["sections"])
    sections = [_section(section, look, f"s{i}") for i, section in enumerate(document["sections"], 1)]
    few = [s["name"] for s in document["sections"] if s["seeds"] < tables.FEW_SEEDS]
    return _template().render(
        title=document["title"],
        lead=document["lead"],
        created=_when(document["created"]),
        command=document.get("command"),
        versions=sorted(document["versions"].items()),
        sections=sections,
        few=tables.FEW_SEEDS if few else None,
        few_where=fmt.listed(few),
    )


def write(path: Path | str, document: Mapping[str, Any], overwrite: bool = False) -> None:
    """Write the report to a file, whole or not at all.

    Args:
        path: the HTML file.
        document: the audit document, as read from JSON.
        overwrite: replace a file that is there.

    Raises:
        UserError: the path is taken or cannot be written.
        Incompatible: the document lacks something, or is of another kind or a newer schema.
    """
    check_free(Path(path), overwrite)
    write_text(Path(path), render(document))


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("expunge.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda v: fmt.plain(v) if isinstance(v, str) and not isinstance(v, Markup) else v,
    )
    return environment.get_template("page.html")


def _when(created: str) -> str:
    try:
        return datetime.fromisoformat(created).strftime("%-d %B %Y, %H:%M %Z").strip()
    except ValueError:
        return created


def _section(section: Section, look: Mapping[str, charts.Look], key: str) -> dict[str, Any]:
    """Return what the template reads of a section."""
    rows, counts = tables.rows(section), section["counts"]
    share = 100 * counts["forget"] / counts["train"] if counts.get("train") and "forget" in counts else None
    curves = [(q, text, charts.distributions(section, q, look, f"{key}-{q}")) for q, text in DISTRIBUTIONS.items()]
    return {
        "key": key,
        "name": section["name"],
        "text": section["text"],
        "sentences": tables.sentences(section),
        "counts": [(COUNTS.get(k, k), f"{n:,}") for k, n in counts.items()] + [("seeds", section["seeds"])],
        "share": share,
        "share_text": "" if share is None else f"{fmt.digits(share / 100, '1')}% of the training samples are forgotten",
        "colours": {m: SEEN_AS.get(seen.colour.lower(), seen.colour) for m, seen in look.items()},
        "roles": {m["name"]: ROLES.get(m["role"], m["role"]) for m in section["models"]},
        "coloured": any(cell.distance is not None for row in rows for cell in row.cells),
        "declined": [(row.model, row.declined) for row in rows if row.declined],
        "tables": _tables(section, [row for row in rows if not row.declined]),
        "accuracies": [Markup(svg) for svg in charts.accuracies(section, look, f"{key}-accuracy")],
        "distributions": [(q, text, [Markup(svg) for svg in svgs]) for q, text, svgs in curves if svgs],
        "roc": _markup(charts.roc(section, look, f"{key}-roc")),
        "changed": _markup(charts.changed(section, f"{key}-changed")),
        "models": [_model(model) for model in doc.models(section)],
        "samples": section.get("samples") or [],
    }


def _markup(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)


def _tables(section: Section, rows: list[tables.Row]) -> list[dict[str, Any]]:
    """Return a table for each group of metrics; groups of one metric share a table."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for group, metrics in doc.groups(section).items():
        groups.setdefault(group if len(metrics) > 1 or group in {"accuracy", "cost"} else OTHER, []).extend(metrics)
    costs = groups.pop("cost", None)
    return [_table(section, rows, g, ms) for g, ms in (groups | ({"cost": costs} if costs else {})).items()]


def _table(section: Section, rows: list[tables.Row], group: str, metrics: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one group's table: its heads, its part of every row, the floor, and reasons for dashes."""
    names = {m["name"] for m in metrics}
    parts = [(row, [cell for cell in row.cells if cell.metric in names]) for row in rows]
    heads = [{"name": m["name"], "label": _head(m["label"], group)} for m in metrics]
    floors = [doc.floor(section, m["name"]) for m in metrics]
    return {
        "title": group.capitalize(),
        "text": GROUPS.get(group, ""),
        "heads": heads,
        "rows": parts,
        "floor": [fmt.MISSING if f is None else fmt.value(f, gap=True) for f in floors] if any(floors) else [],
        "why": _why(parts, [head["label"] for head in heads]),
    }


def _head(label: str, group: str) -> str:
    """Return a metric's label without the group that already stands above the table."""
    short = label[len(group) :].lstrip(", :") if label.lower().startswith(group.lower()) else label
    return short or label


def _why(parts: list[tuple[tables.Row, list[tables.Cell]]], labels: list[str]) -> list[str]:
    """Return one line for each reason, with the models and metrics it explains."""
    lines: dict[tuple[str, str], list[str]] = {}
    for row, cells in parts:
        missing = [(cell.title, label) for cell, label in zip(cells, labels, strict=True) if not cell.available]
        for reason in dict.fromkeys(title for title, _ in missing):
            what = [label for title, label in missing if title == reason]
            every = "" if len(what) == len(labels) else ", ".join(what)
            lines.setdefault((reason, every), []).append(row.model)
    return [f"{', '.join(models)}{f' ({what})' if what else ''}: {reason}" for (reason, what), models in lines.items()]


def _model(model: Mapping[str, Any]) -> dict[str, Any]:
    settings = model.get("settings") or {}
    shown = [(k, v if isinstance(v, str) else canonical(jsonable(v))) for k, v in settings.items()]
    return {
        "name": model["name"],
        "role": model["role"],
        "text": model.get("text") or "",
        "declined": model.get("declined"),
        "notes": model.get("notes") or [],
        "settings": shown,
    }
