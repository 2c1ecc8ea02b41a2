"""The page of a whole grid: heat maps of the gaps to retrained, trade-offs, every seed, curves over steps, tuning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from expunge import stats
from expunge.report import cellpage, decay, heat, looks, page, pareto, strips, tradeoff, tunepage
from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report.distance import told
from expunge.report.findings import FEW_SEEDS, caveats, unranked
from expunge.report.grids import DONE, ORDER, WORDS, Book, Leaf, lines

INDEX = "index.html"
TUNING = "tuning.html"
TRIALS = {"history", "compared", "importance", "space"}  # what a document of tuning has where it tells of its trials
LONGEST = 150  # letters of a reason in a heat map; the page of cells has all
SHARED = "originals and retrained models"  # what all methods of a place share
Look = Mapping[str, looks.Look]


def pages(book: Book) -> dict[str, str]:
    """Return every page of the report by its relative address; the same book gives the same text.

    Args:
        book: the grid and all that is known of it.

    Returns:
        ``index.html``; for each leaf the page of its cells and, where it has numbers, a page of its own; where a method
        was tuned ``tuning.html``.
    """
    look = chosen(book)
    out = {INDEX: render(book, look)}
    if found := _searched(book):
        links = [(f"← {book.title}", f"{INDEX}#tuning")]
        out[TUNING] = tunepage.render(list(found.values()), created=book.created, command=book.command, links=links)
    for leaf in book.leaves:
        out[leaf.cell_page] = cellpage.render(book, leaf, look, _ways(book, leaf, "../", own=False))
        if leaf.section is not None:
            links = _ways(book, leaf, "", own=True)
            out[leaf.page] = page.render(_document(book, leaf), look=look, links=links)
    return out


def chosen(book: Book) -> dict[str, looks.Look]:
    """Return how each model is drawn on every page: methods by their place in the grid, whether they ran or not."""
    named = {"models": [{"name": name, "role": "method"} for name in book.methods]}
    return looks.looks([named, *book.sections])


def _ways(book: Book, leaf: Leaf, up: str, own: bool) -> list[tuple[str, str]]:
    """Return the links above the title of a leaf's page, or of the page of its cells."""
    back = (f"← {book.title}", f"{up}{INDEX}#{_anchor(book, leaf)}")
    if own:
        return [back, ("Every cell", leaf.cell_page)]
    return [back, ("All tables and curves", f"{up}{leaf.page}")] if leaf.section is not None else [back]


def _anchor(book: Book, leaf: Leaf) -> str:
    return f"p{list(book.places).index(leaf.place) + 1}"


def _document(book: Book, leaf: Leaf) -> dict[str, Any]:
    """Return the audit document of one leaf."""
    return {
        "kind": doc.KIND,
        "schema": doc.SCHEMA,
        "title": leaf.name,
        "lead": f"A part of the benchmark “{book.title}”. {book.about}".strip(),
        "created": book.created,
        "versions": dict(leaf.versions),
        "command": book.command,
        "sections": [leaf.section],
    }


def render(book: Book, look: Look) -> str:
    """Return the index as the text of one HTML file.

    Args:
        book: the grid and all that is known of it.
        look: how each model is drawn, from `chosen`.

    Returns:
        The page; it loads nothing, runs no script, and links to the others by relative addresses.
    """
    marks, ids = looks.symbols(look)
    common = _common(book)
    places = [_place(book, leaves, look, ids, common) for leaves in book.places.values()]
    few = [leaf.name for leaf in book.leaves if leaf.section is not None and leaf.section["seeds"] < FEW_SEEDS]
    return page.template("grid.html").render(
        title=book.title,
        about=book.about,
        created=page.when(book.created) if book.created else "",
        command=book.command,
        versions=sorted(book.versions.items()),
        axes=[(name, len(values), ", ".join(values)) for name, values in book.axes.items()],
        statuses=[(status, WORDS[status], n) for status, n in book.statuses().items()],
        total=sum(book.statuses().values()),
        gaps=_gaps(book),
        caveats=common,
        overview=_overview(book) if len(places) > 1 else None,
        places=places,
        tuned=_tuned(book),
        marks=Markup(marks),
        ids=ids,
        few=FEW_SEEDS if few else None,
        few_where="every place" if len(few) == len(book.leaves) else fmt.listed(few),
    )


def _searched(book: Book) -> dict[str, Mapping[str, Any]]:
    """Return the documents of tuned methods that tell of their trials."""
    return {name: body for name, body in book.tuned.items() if body.keys() >= TRIALS}


def _tuned(book: Book) -> list[dict[str, Any]]:
    """Return what is told of each tuned method in short; what its document lacks is a dash."""
    places = {name: f"{TUNING}#t{i}" for i, name in enumerate(_searched(book), 1)}
    return [
        {
            "method": name,
            "href": places.get(name, ""),
            "chosen": [f"{k} = {tunepage.shown(v)}" for k, v in dict(body.get("chosen", {})).items()],
            "on": [str(place.get("text", "")) for place in body.get("on", ())],
            "texts": [_number(body.get(key)) for key in ("value", "default_value", "trials")]
            + [", ".join(map(str, body.get("seeds", ()))) or fmt.MISSING],
        }
        for name, body in book.tuned.items()
    ]


def _number(value: object) -> str:
    return fmt.MISSING if not isinstance(value, int | float) else tunepage.shown(value)


def _common(book: Book) -> list[str]:
    """Return what a reader must know of every place alike, told once above them all."""
    said = [_said(leaf) for leaf in book.leaves if leaf.section is not None]
    shared = [c for c in said[0] if all(c in each for each in said)] if len(said) > 1 else []
    mixed = [
        f"The numbers were made with several versions of {name}: {version}."
        for name, version in book.versions.items()
        if ", " in version
    ]
    seeds = unranked(max((section["seeds"] for section in book.sections), default=FEW_SEEDS))
    return [*shared, *mixed, *([seeds] if seeds else [])]


def _said(leaf: Leaf) -> list[str]:
    """Return what a reader must know before the numbers of a leaf."""
    return [*leaf.warnings, *([] if leaf.section is None else caveats(leaf.section))]


def _gaps(book: Book) -> list[tuple[str, str, int, list[str]]]:
    """Return status and reason of cells that are not done, how many there are, and where."""
    counts, where = Counter[tuple[str, str]](), dict[tuple[str, str], dict[str, dict[str, None]]]()
    for (place, _, method), cell in book.cells().items():
        if cell.status != DONE:
            key = (cell.status, "" if cell.reason == WORDS[cell.status] else cell.reason)
            counts[key] += 1
            where.setdefault(key, {}).setdefault(method or SHARED, {})[place] = None
    every = len(book.places)
    ordered = sorted(counts, key=lambda key: (ORDER.index(key[0]), -counts[key], key[1]))
    return [(WORDS[k[0]], k[1], counts[k], [_where(m, list(ps), every) for m, ps in where[k].items()]) for k in ordered]


def _where(method: str, places: Sequence[str], every: int, most: int = 6) -> str:
    """Return at which places a method is not done.

    >>> _where("ssd", ["class 3", "class 5"], 2), _where("ssd", ["class 3"], 2)
    ('ssd: everywhere', 'ssd: class 3')
    """
    if len(places) == every:
        return f"{method}: everywhere"
    left = len(places) - most
    return f"{method}: {'; '.join(places[:most])}{f'; and {left} more' if left > 0 else ''}"


def _overview(book: Book) -> dict[str, Any]:
    """Return the heat map of all places, those of several steps after the last that has numbers."""
    leaves = [_main(steps) for steps in book.places.values()]
    heads = [
        {"name": leaf.short, "step": leaf.name.removeprefix(leaf.place).lstrip(", "), "href": f"#{_anchor(book, leaf)}"}
        for leaf in leaves
    ]
    rows = [
        {"line": line, "spots": [(spot, head["href"]) for spot, head in zip(spots, heads, strict=True)]}
        for line, spots in heat.overview(leaves, book.methods)
    ]
    return {"heads": heads, "rows": rows}


def _main(steps: Sequence[Leaf]) -> Leaf:
    return next((leaf for leaf in reversed(steps) if leaf.section is not None), steps[-1])


def _place(
    book: Book, steps: Sequence[Leaf], look: Look, ids: Mapping[str, str], common: Sequence[str]
) -> dict[str, Any]:
    """Return what the template reads of a place: its last step in full, the earlier ones in short."""
    leaf, key = _main(steps), _anchor(book, steps[0])
    links = {name: f"{leaf.cell_page}#{anchor}" for name, anchor in book.anchors.items()}
    courses = decay.courses(steps, look, f"{key}-step") if len(steps) > 1 else []
    return {
        "key": key,
        "name": leaf.place,
        "text": leaf.text,
        "sizes": _sizes(leaf),
        "caveats": [c for c in _said(leaf) if c not in common],
        "steps": [_step(book, each, each is leaf) for each in steps] if len(steps) > 1 else [],
        "courses": [{"label": c.label, "svg": Markup(c.svg), "steps": c.steps, "rows": c.rows} for c in courses],
        "legend": strips.models(leaf),
        **_step(book, leaf, True),
        "trade": _trade(book, leaf, look, ids, links, f"{key}-trade"),
        "strip": _strip(leaf, look, ids, links, f"{key}-seed"),
        "published": _published(leaf),
    }


def _sizes(leaf: Leaf) -> str:
    """Return how many samples are forgotten, and on how many seeds the numbers rest, in words."""
    if leaf.section is None:
        return ""
    counts, seeds = leaf.section["counts"], fmt.count(leaf.section["seeds"], "training seed")
    forgotten = f"{counts['forget']:,} of {fmt.count(counts['train'], 'training sample')} to forget"
    return f"{forgotten}; {seeds}"


def _step(book: Book, leaf: Leaf, main: bool) -> dict[str, Any]:
    """Return the heat maps of a leaf, with the address that each row and cell leads to."""
    section = leaf.section
    models = (
        {} if section is None else {m["name"]: f"{leaf.page}#s1-m{i}" for i, m in enumerate(doc.models(section), 1)}
    )
    cells = {name: f"{leaf.cell_page}#{anchor}" for name, anchor in book.anchors.items()}
    first, bands = heat.first(leaf, book.methods), heat.bands(leaf, book.methods)
    counts = {} if section is None else {m["name"]: told(section, m) for m in section["models"]}
    return {
        "leaf": leaf.name,
        "after": f"after request {leaf.step} of {leaf.steps}" if leaf.steps > 1 else "",
        "main": main,
        "page": "" if section is None else leaf.page,
        "cells": leaf.cell_page,
        "first": None if first is None else _band(first, leaf, models, cells),
        "bands": [_band(band, leaf, models, cells) for band in bands],
        "told": counts,
        "count": sum(len(band.columns) for band in bands),
        "waits": [(line.model, line.absent) for line in lines(leaf, book.methods)] if section is None else [],
    }


def _band(band: heat.Band, leaf: Leaf, models: Mapping[str, str], cells: Mapping[str, str]) -> dict[str, Any]:
    numbers = leaf.numbers
    return {
        "families": band.families,
        "columns": band.columns,
        "rows": [
            {
                "line": line,
                "absent": fmt.plain(line.absent, LONGEST),
                "href": models.get(line.model, cells[line.model]),
                "spots": [(spot, f"{cells[line.model]}-{numbers[spot.number]}") for spot in spots],
            }
            for line, spots in band.rows
        ],
    }


def _trade(
    book: Book, leaf: Leaf, look: Look, ids: Mapping[str, str], links: Mapping[str, str], key: str
) -> dict[str, Any] | None:
    found = pareto.trade(leaf, book.methods)
    if found is None:
        return None
    sides, units = (found.forget, found.kept), (str(found.forget["unit"]), str(found.kept["unit"]))
    return {
        "svg": Markup(tradeoff.chart(found, look, ids, links, key)),
        "heads": [f"{m['label']},{fmt.suffix(u, gap=True)}" for m, u in zip(sides, units, strict=True)],
        "fastest": None if found.fastest is None else fmt.digits(found.fastest, "s"),
        "rows": [
            {
                "model": mark.line.model,
                "texts": [_interval(mark.forget, units[0]), _interval(mark.kept, units[1]), _ratio(mark.time)],
                "front": mark.front,
                "lasting": mark.lasting,
                "method": mark.line.role == "method",
            }
            for mark in found.marks
        ],
    }


def _interval(found: stats.Interval, unit: str) -> str:
    """Return the mean size of a gap, with its interval where there is one."""
    middle, low, high = (fmt.digits(v / fmt.scale(unit), unit) for v in (found.x, found.low, found.high))
    return middle if found.n < 2 else f"{middle} ({low} to {high})"


def _ratio(found: stats.Interval | None) -> str:
    return fmt.MISSING if found is None else f"{found.x:.2g}×" if found.x < 10 else f"{found.x:,.0f}×"


def _strip(leaf: Leaf, look: Look, ids: Mapping[str, str], links: Mapping[str, str], key: str) -> dict[str, Any] | None:
    svg = strips.chart(leaf, look, ids, links, key)
    if not svg:
        return None
    metrics = strips.shown(leaf)
    rows = []
    for model in strips.models(leaf):
        found = [(str(m["unit"]), strips.values(leaf, model, str(m["name"])).values()) for m in metrics]
        rows.append((model, [", ".join(fmt.digits(x, unit) for x in xs) or fmt.MISSING for unit, xs in found]))
    return {"svg": Markup(svg), "heads": [m["label"] for m in metrics], "rows": rows}


def _published(leaf: Leaf) -> list[dict[str, Any]]:
    """Return what papers say beside our numbers: a row for each model and number."""
    section = leaf.section or {"models": [], "metrics": [], "values": {}}
    known = {m["name"]: m for m in section["metrics"]}
    out = []
    for paper in leaf.published:
        rows = []
        for model, numbers in paper.values.items():
            for name, theirs in numbers.items():
                metric = known.get(name, {"label": name, "unit": "1"})
                ours = doc.found(section, "values", model, name) if model in section["values"] else None
                rows.append((model, str(metric["label"]), *_beside(theirs, ours, str(metric["unit"]))))
        out.append({"source": paper.source, "differences": list(paper.differences), "rows": rows})
    return out


def _beside(theirs: Sequence[float], ours: Mapping[str, Any] | None, unit: str) -> tuple[str, str, str]:
    """Return published value, ours, and ours less the published one, as text."""
    spread = f" ± {fmt.digits(theirs[1], unit, like=theirs[0])}" if len(theirs) > 1 else ""
    printed = f"{fmt.digits(theirs[0], unit)}{spread}{fmt.suffix(unit)}"
    if ours is None:
        return printed, fmt.MISSING, fmt.MISSING
    gap = {"x": float(ours["x"]) - theirs[0], "unit": unit}
    return printed, fmt.value(ours), f"{fmt.gap(gap, like=theirs[0])}{fmt.suffix(unit, gap=True)}"
