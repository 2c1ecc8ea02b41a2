"""The page of a place's cells: for every model the numbers of each seed, its settings, what it took and what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from expunge.report import concepts, layout, looks, maps, traces
from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report.document import Section
from expunge.report.grids import DONE, WORDS, Book, Cell, Leaf, told
from expunge.report.page import ROLES, template
from expunge.report.tunepage import shown

LONGEST = 160  # letters of a recorded value


def render(book: Book, leaf: Leaf, look: Mapping[str, looks.Look], links: Sequence[tuple[str, str]]) -> str:
    """Return the page of a place's cells as the text of one HTML file.

    Every cell has a place of its own, ``#m3-s0`` for the third model and seed 0, and so has every number of a model,
    ``#m3-n12``; see `Book.anchors` and `Leaf.numbers`.

    Args:
        book: the grid.
        leaf: the place.
        look: how each model is drawn.
        links: names and relative addresses of other pages.

    Returns:
        The page; it loads nothing and runs no script.
    """
    marks, ids = looks.symbols(look)
    seeds = sorted({seed for seed, _ in leaf.cells})
    models = [_model(book, leaf, name, seeds) for name in book.models if _asked(book, leaf, name)]
    return template("cells.html").render(
        title=f"Cells of {leaf.name}",
        text=leaf.text,
        about=book.title,
        links=links,
        seeds=seeds,
        words=WORDS,
        models=models,
        traced=traces.TEXT if len(seeds) > 1 else traces.ONE,
        marks=Markup(marks),
        ids=ids,
        versions=sorted(leaf.versions.items()),
    )


def _asked(book: Book, leaf: Leaf, name: str) -> bool:
    """Return whether a model belongs to a place: a method of the grid always does, a control where it was measured."""
    return name in book.methods or (leaf.section is not None and name in {m["name"] for m in leaf.section["models"]})


def _model(book: Book, leaf: Leaf, name: str, seeds: Sequence[int]) -> dict[str, Any]:
    entries = {} if leaf.section is None else {m["name"]: m for m in leaf.section["models"]}
    entry, anchor = entries.get(name, {}), book.anchors[name]
    shared = "" if name not in book.methods else name  # original, retrained and controls are one cell a seed
    cells = [leaf.cells.get((seed, shared), Cell("missing")) for seed in seeds]
    done = [cell.status == DONE for cell in cells]
    return {
        "name": name,
        "anchor": anchor,
        "role": ROLES.get(str(entry.get("role", "")), str(entry.get("role", ""))),
        "text": str(entry.get("text") or ""),
        "settings": [(k, shown(v)) for k, v in (entry.get("settings") or {}).items()],
        "cells": [
            {"seed": s, "anchor": f"{anchor}-s{s}", "status": c.status} for s, c in zip(seeds, cells, strict=True)
        ],
        "gaps": leaf.gaps(shared),
        "facts": _facts(leaf, name, seeds, cells),
        "trace": _trace(leaf, cells, f"{anchor}-trace"),
        "map": _map(cells, f"{anchor}-map"),
        "concepts": _concepts(seeds, cells, f"{anchor}-concepts"),
        "families": _families(leaf, name, anchor, dict(zip(seeds, cells, strict=True))) if any(done) else [],
    }


def _facts(leaf: Leaf, name: str, seeds: Sequence[int], cells: Sequence[Cell]) -> list[tuple[str, list[str]]]:
    """Return what is known of each seed's cell beside the numbers: folder, seconds, what was recorded, notes."""
    rows: dict[str, list[str]] = {"folder": [cell.name for cell in cells]}
    for part in dict.fromkeys(p for cell in cells for p in cell.seconds):
        rows[f"{part}, s"] = [fmt.digits(c.seconds[part], "s") if part in c.seconds else fmt.MISSING for c in cells]
    for key in dict.fromkeys(k for cell in cells for k in cell.log):
        rows[key] = [fmt.plain(shown(c.log[key]), LONGEST) if key in c.log else fmt.MISSING for c in cells]
    rows["note"] = [" ".join(_entry(leaf.runs.get(seed), name).get("notes") or []) for seed in seeds]
    return [(key, texts) for key, texts in rows.items() if any(t not in ("", fmt.MISSING) for t in texts)]


def _trace(leaf: Leaf, cells: Sequence[Cell], key: str) -> Markup | None:
    """Return what a model's edits recorded step by step as charts."""
    units = [m["unit"] for m in (leaf.section or {"metrics": []})["metrics"] if m["name"].startswith("loss/")]
    svg = traces.edit([cell.series for cell in cells if cell.series], key, str(units[0]) if units else "")
    return None if svg is None else Markup(svg)


def _map(cells: Sequence[Cell], key: str) -> dict[str, Any] | None:
    """Return the map of representations of the first seed that recorded one."""
    found = next((cell.map for cell in cells if cell.map), None)
    picture = None if found is None else maps.recorded({maps.RECORD: found}, key)
    return None if picture is None else {"text": picture.text, "svgs": [Markup(svg) for svg in picture.svgs]}


def _concepts(seeds: Sequence[int], cells: Sequence[Cell], key: str) -> tuple[int, dict[str, Any]] | None:
    """Return the first seed that recorded concepts, and what it recorded of them."""
    found = next(((s, c.concepts) for s, c in zip(seeds, cells, strict=True) if c.concepts), None)
    return None if found is None else (found[0], concepts.page(found[1], key))


def _entry(section: Section | None, name: str) -> Mapping[str, Any]:
    return next((m for m in (section or {"models": []})["models"] if m["name"] == name), {})


def _families(leaf: Leaf, name: str, anchor: str, cells: Mapping[int, Cell]) -> list[dict[str, Any]]:
    """Return the numbers by family: each seed's value and its gap, and the mean."""
    section, out = leaf.section, []
    if section is None or name not in section["values"]:
        return []
    there, places = {m["name"] for m in layout.measured(section)}, leaf.numbers
    for group, metrics in doc.groups(section).items():
        rows = []
        for metric in (m for m in metrics if m["name"] in there):
            key = str(metric["name"])
            rows.append({
                "id": f"{anchor}-{places[key]}",
                "name": key,
                "label": str(metric["label"]) + layout.unit(metric),
                "mean": _value(section, name, metric),
                "seeds": [_seed(leaf.runs.get(seed), name, metric, cell) for seed, cell in cells.items()],
            })  # fmt: skip
        if rows:
            out.append({"title": layout.TITLES.get(group, group.capitalize()), "rows": rows})
    return out


def _seed(section: Section | None, name: str, metric: Mapping[str, Any], cell: Cell) -> dict[str, str]:
    """Return one seed's number, without an interval; a dash where its cell is not done."""
    if section is None or cell.status != DONE:
        return {"text": fmt.MISSING, "gap": "", "title": told(cell.status, cell.reason, [], 0)}
    value = doc.found(section, "values", name, str(metric["name"]))
    alone = (
        None if value is None else fmt.digits(value["x"], str(value["unit"])) + ("%" if value["unit"] == "1" else "")
    )
    return _value(section, name, metric) | ({} if alone is None else {"text": alone})


def _value(section: Section, name: str, metric: Mapping[str, Any]) -> dict[str, str]:
    """Return a value and its gap as text; a dash with its reason where there is none."""
    key = str(metric["name"])
    value, gap = (doc.found(section, part, name, key) for part in ("values", "gaps"))
    if value is None:
        return {
            "text": fmt.MISSING,
            "gap": "",
            "title": doc.reason(section, _entry(section, name) or {"name": name}, key),
        }
    shown = "" if gap is None or metric["group"] == "cost" or metric["target"] == 0 else fmt.gap(gap, like=value["x"])
    return {"text": fmt.value(value, named=False), "gap": shown, "title": ""}
