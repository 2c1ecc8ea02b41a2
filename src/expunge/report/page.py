"""One self-contained HTML file from an audit document: no network, no script, every value escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from expunge.files import canonical, check_free, jsonable, write_text
from expunge.report import (
    charts,
    concepts,
    errors,
    findings,
    forecasts,
    layout,
    looks,
    maps,
    predictions,
    roc,
    series,
    tables,
    traces,
)
from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report.distance import ALPHA, told
from expunge.report.document import Section
from expunge.report.layout import Block, Part

DISTRIBUTIONS = {
    "loss": "Training pushes the loss of its samples towards zero.",
    "entropy": "How unsure a model is: near zero it is sure, right or wrong.",
}
ROLES = {"original": "", "method": "", "retrained": "the reference", "floor": "retrained again", "control": "control"}
DATA = (
    "These charts hold targets and predictions of forgotten samples: {:,} bytes, without ids and rounded to what a "
    "chart can show. They are data: where they were to be erased, erase this file too, and the audit.json beside it."
)
ATTACKS = 3  # ROC curves that are shown; more are folded
COUNTS = {"train": "training samples", "forget": "to forget", "retain": "to retain"}


def render(
    document: Mapping[str, Any],
    *,
    look: Mapping[str, looks.Look] | None = None,
    links: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the report as the text of one HTML file; the same document gives the same text.

    Args:
        document: the audit document, as read from JSON.
        look: how each model is drawn, where other pages show the same ones; chosen by default.
        links: names and relative addresses of other pages, shown above the title.

    Returns:
        The page; it loads nothing and runs no script.

    Raises:
        Incompatible: the document lacks something, or is of another kind or a newer schema.
    """
    doc.validate(document)
    look = looks.looks(document["sections"]) if look is None else look
    marks, ids = looks.symbols(look)
    sections = [_section(section, look, f"s{i}") for i, section in enumerate(document["sections"], 1)]
    few = [s["name"] for s in document["sections"] if s["seeds"] < findings.FEW_SEEDS]
    return template("page.html").render(
        traced=traces.ONE,
        links=links,
        title=document["title"],
        lead=document["lead"],
        created=when(document["created"]),
        command=document.get("command"),
        versions=sorted(document["versions"].items()),
        sections=sections,
        marks=Markup(marks),
        real=all(doc.is_real(section) for section in document["sections"]),
        ids=ids,
        few=findings.FEW_SEEDS if few else None,
        few_where=fmt.listed(few),
        alpha=f"{ALPHA:.0%}",
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
def template(name: str) -> Template:
    """Return a template of this folder; what it is given is escaped, and no name that it lacks passes for empty."""
    environment = Environment(
        loader=PackageLoader("expunge.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda v: fmt.plain(v) if isinstance(v, str) and not isinstance(v, Markup) else v,
    )
    return environment.get_template(name)


def when(created: str) -> str:
    """Return a time of ISO 8601 as a reader writes it; any other text as it is."""
    try:
        return datetime.fromisoformat(created).strftime("%-d %B %Y, %H:%M %Z").strip()
    except ValueError:
        return created


def _section(section: Section, look: Mapping[str, looks.Look], key: str) -> dict[str, Any]:
    """Return what the template reads of a section."""
    rows, counts = tables.rows(section), section["counts"]
    share = 100 * counts["forget"] / counts["train"] if counts.get("train") and "forget" in counts else None
    shown = [row for row in rows if any(cell.available for cell in row.cells)]
    return {
        "key": key,
        "name": section["name"],
        "text": section["text"],
        "sentences": findings.sentences(section),
        "caveats": findings.caveats(section),
        "bounds": section.get("bounds") or [],
        "counts": [(COUNTS.get(k, k), f"{n:,}") for k, n in counts.items()] + [("seeds", section["seeds"])],
        "share": share,
        "share_text": "" if share is None else f"{fmt.digits(share / 100, '1')}% of the training samples are forgotten",
        "roles": {m["name"]: ROLES.get(m["role"], m["role"]) for m in section["models"]},
        "coloured": any(cell.distance is not None for row in rows for cell in row.cells),
        "absent": [(row.model, row.absent) for row in rows if row not in shown],
        "compared": bool(doc.of_role(section, "retrained")),
        "floored": bool(section["floor"]),
        "first": _first(section, shown),
        "blocks": [_block(section, shown, block) for block in layout.blocks(section)],
        "unmeasured": [(reason, fmt.listed(labels)) for reason, labels in layout.unmeasured(section).items()],
        "models": [_model(model) for model in doc.models(section)],
        "samples": section.get("samples") or [],
        **_charts(section, look, key),
    }


def _charts(section: Section, look: Mapping[str, looks.Look], key: str) -> dict[str, Any]:
    """Return every chart of a section: overviews, attacks, curves, groups, and what was changed."""
    pictures = _pictures(section, look, key)
    quantities = {q: text for q, text in DISTRIBUTIONS.items() if not pictures}  # errors say more than losses do
    curves = [(q, text, charts.distributions(section, q, look, f"{key}-{q}")) for q, text in quantities.items()]
    drawn = series.charts(section, look, f"{key}-series")
    rates = roc.panels(section, look, f"{key}-roc")
    return {
        "overview": _markup(charts.overview(section, layout.key(section), look, f"{key}-key")),
        "pictures": pictures,
        "drawn_from": DATA.format(int(section["predictions"]["bytes"])) if pictures else "",
        "distributions": [(q, text, [Markup(svg) for svg in svgs]) for q, text, svgs in curves if svgs],
        "rocs": [Markup(svg) for svg in rates[:ATTACKS]],
        "more_rocs": [Markup(svg) for svg in rates[ATTACKS:]],
        "answers": [_series(c) for c in drawn if c.family == "predictions"],
        "curves": [_series(c) for c in drawn if c.family not in (*series.GROUPS, "weights", "predictions")],
        "groups": [_series(c) for c in drawn if c.family in series.GROUPS],
        "layers": [_series(c) for c in drawn if c.family == "weights"],
        "maps": _map(maps.charts(section, look, f"{key}-map")),
        "concepts": _concepts(section, f"{key}-concepts"),
        "changed": _markup(charts.changed(section, f"{key}-changed")),
        "traces": _traces(section, f"{key}-trace"),
        "legend": [m["name"] for m in doc.models(section) if not m.get("declined") and not m["flaw"]],
    }


def _pictures(section: Section, look: Mapping[str, looks.Look], key: str) -> list[dict[str, Any]]:
    """Return what there is of predictions of real targets: over the targets, their errors, and a few whole series."""
    found = [
        (predictions.scatter(section, look, f"{key}-said"), True),
        (errors.errors(section, look, f"{key}-error"), True),
        (forecasts.strips(section, look, f"{key}-step"), False),
    ]
    return [
        {"title": p.title, "text": p.text, "models": p.models, "svgs": [Markup(svg) for svg in p.svgs], "mid": mid}
        for p, mid in found
        if p is not None
    ]


def _map(picture: predictions.Picture | None) -> dict[str, Any] | None:
    if picture is None:
        return None
    return {"title": picture.title, "text": picture.text, "svgs": [Markup(svg) for svg in picture.svgs]}


def _concepts(section: Section, key: str) -> list[tuple[str, dict[str, Any]]]:
    """Return what edits by concepts recorded, a page a model; the manifest lies beside the report where it is named."""
    found, link = section.get("concepts") or {}, str(section.get("manifest") or "")
    return [(name, concepts.page(part, f"{key}{i}", link)) for i, (name, part) in enumerate(found.items())]


def _traces(section: Section, key: str) -> list[tuple[str, Markup]]:
    """Return what edits recorded over their steps, a chart a model."""
    unit = next((str(m["unit"]) for m in section["metrics"] if m["name"].startswith("loss/")), "")
    found = section.get("traces") or {}
    drawn = {name: traces.edit([found[name]], f"{key}{i}", unit) for i, name in enumerate(found)}
    return [(name, Markup(svg)) for name, svg in drawn.items() if svg is not None]


def _series(chart: series.Chart) -> dict[str, Any]:
    return {
        "title": chart.title,
        "text": chart.text,
        "svgs": [Markup(svg) for svg in chart.svgs],
        "wide": chart.wide,
        "rows": chart.rows,
        "places": chart.places,
    }


def _markup(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)


def _first(section: Section, rows: list[tables.Row]) -> dict[str, Any] | None:
    """Return the table of the numbers that tell most, and on how many quantities each row is told from retrained."""
    key = layout.key(section)
    if not key:
        return None
    table = _table(section, rows, Part("", tuple(key), tuple(m["label"] for m in key)))
    # Times fit without their spread, which stands with the costs below.
    units = [str(m["unit"]) for m in key]
    table["rows"] = [
        (
            row,
            [replace(c, text=c.text.partition(" ±")[0]) if u == "s" else c for c, u in zip(cells, units, strict=True)],
        )
        for row, cells in table["rows"]
    ]
    table["floor"] = [
        text.partition(" ±")[0] if u == "s" else text for text, u in zip(table["floor"], units, strict=False)
    ]
    counts = {m["name"]: told(section, m) for m in section["models"]}
    tested = any(count.tested for count in counts.values())
    return table | {"told": counts if any(c.measured for c in counts.values()) else {}, "tested": tested}


def _block(section: Section, rows: list[tables.Row], block: Block) -> dict[str, Any]:
    return {
        "title": block.title,
        "text": block.text,
        "folded": block.folded,
        "parts": [_table(section, rows, part) for part in block.parts],
        "summary": _summary(section, block),
    }


def _summary(section: Section, block: Block) -> str:
    """Return what a folded block holds: how many numbers, and the method farthest from retrained."""
    names = {m["name"] for m in block.metrics}
    part = {**section, "metrics": [m for m in section["metrics"] if m["name"] in names]}
    text = fmt.count(len(names), "number")
    far = [(told(part, m), m["name"]) for m in doc.of_role(section, "method")]
    found, model = max(far, key=lambda pair: pair[0].times, default=(None, ""))
    if found is None or found.farthest is None:
        return text
    return f"{text}; farthest from retrained: {model}, {findings.farthest(found)}"


def _table(section: Section, rows: list[tables.Row], part: Part) -> dict[str, Any]:
    """Return one table: its heads, its part of every row, the floor, and reasons for dashes."""
    at = {m["name"]: i for i, m in enumerate(doc.metrics(section))}
    parts = [(row, [row.cells[at[m["name"]]] for m in part.metrics]) for row in rows]
    heads = [
        {"name": m["name"], "label": label + layout.unit(m), "ideal": fmt.ideal(m)}
        for m, label in zip(part.metrics, part.heads, strict=True)
    ]
    floors = [doc.floor(section, m["name"]) for m in part.metrics]
    return {
        "title": part.title,
        "heads": heads,
        "rows": parts,
        "floor": [fmt.MISSING if f is None else fmt.value(f, gap=True, named=False) for f in floors]
        if any(floors)
        else [],
        "why": _why(parts, list(part.heads)),
    }


def _why(parts: list[tuple[tables.Row, list[tables.Cell]]], labels: list[str]) -> list[str]:
    """Return one line for each reason, with the models and metrics it explains."""
    lines: dict[tuple[str, str], list[str]] = {}
    for row, cells in parts:
        dashes = [c.text == fmt.MISSING for c in cells]
        missing = [(c.title, label) for c, label, dash in zip(cells, labels, dashes, strict=True) if dash]
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
        "nature": findings.LONG_NATURES.get(model["nature"], model["nature"]),
        "flaw": model["flaw"],
        "declined": model.get("declined"),
        "notes": model.get("notes") or [],
        "settings": shown,
    }
