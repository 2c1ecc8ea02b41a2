"""What tuning found as one self-contained HTML file: values chosen, what they were chosen by, and every trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from expunge.files import canonical, jsonable
from expunge.report import format as fmt
from expunge.report import tunecharts as charts
from expunge.report.page import template, when
from expunge.report.svg import BLUE, GREY, INK, VERMILION, seen

MODELS = {**charts.LINES, "head_mask": "the class's output masked"}
Document = Mapping[str, Any]


def render(
    documents: Sequence[Document], *, created: str = "", command: str = "", links: Sequence[tuple[str, str]] = ()
) -> str:
    """Return the report of tuned methods as the text of one HTML file.

    Args:
        documents: of `expunge.bench.tune.tune`, one a method.
        created: when, in ISO 8601.
        command: that made it.
        links: names and relative addresses of other pages, shown above the title.

    Returns:
        The page; it loads nothing and runs no script.
    """
    return template("tunepage.html").render(
        title="What tuning found",
        links=links,
        created=when(created),
        command=command,
        version=documents[0]["expunge"],
        methods=[_method(document, f"t{i}") for i, document in enumerate(documents, 1)],
        colours={name: Markup(seen(c.lower())) for name, c in _COLOURS.items()},
    )


_COLOURS = {"ink": INK, "blue": BLUE, "grey": GREY, "star": VERMILION}


def sentence(document: Document) -> str:
    """Return what was found in one sentence.

    Args:
        document: of one tuned method.

    Returns:
        For example: ``ssd: alpha = 6.75, dampening = 0.172; value 1.87, default settings 2.04.``
    """
    chosen = ", ".join(f"{name} = {shown(value)}" for name, value in document["chosen"].items())
    default = document["default_value"]
    stand = "the default settings gave none" if default is None else f"default settings {default:.3g}"
    kept = " (the default settings, which nothing tried was better than)" if document["best"] == 0 else ""
    return f"{document['method']['name']}: {chosen}{kept}; value {document['value']:.3g}, {stand}."


def shown(value: object) -> str:
    """Return a setting as text.

    >>> shown(0.123456), shown("auto"), shown(None), shown(3)
    ('0.123', 'auto', 'null', '3')
    """
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else canonical(jsonable(value))


def _method(document: Document, key: str) -> dict[str, Any]:
    budget, seeds = document["budget"], document["seeds"]
    counts = {
        "trials": document["trials"],
        "on all seeds": budget["complete"],
        "given up": budget["pruned"],
        "that do not work": budget["refused"],
        "edits": f"{budget['edits']:,}",
        "seconds": f"{budget['seconds']:,.0f}",
    }
    plane = charts.plane(document, f"{key}-plane")
    return {
        "key": key,
        "name": document["method"]["name"],
        "sentence": sentence(document),
        "about": document["about"],
        "places": [place["text"] for place in document["on"]],
        "seeds": ", ".join(map(str, seeds)),
        "counts": list(counts.items()),
        "fields": [_field(document, name) for name in document["space"]],
        "fixed": [(name, shown(value)) for name, value in document["fixed"].items()],
        "compared": _values(document),
        "tables": [_lengths(document, at) for at in range(len(document["on"]))],
        "history": Markup(charts.history(document, f"{key}-history")),
        "slices": [Markup(svg) for svg in charts.slices(document, f"{key}-slice")],
        "plane": None if plane is None else Markup(plane),
        "trials": [_trial(document, trial) for trial in document["history"]],
    }


def _field(document: Document, name: str) -> dict[str, str]:
    search, weight = document["space"][name], document["importance"].get(name)
    if search.get("choices"):
        where = ", ".join(shown(v) for v in search["choices"])
    else:
        where = f"{search['low']:g} to {search['high']:g}{', log scale' if search['log'] else ''}"
    return {
        "name": name,
        "symbol": search.get("symbol", ""),
        "range": where,
        "default": shown(charts.default_of(document, name)),
        "chosen": shown(document["chosen"][name]),
        "importance": fmt.MISSING if weight is None else f"{100 * weight:.0f}%",
    }


def _values(document: Document) -> list[tuple[str, str]]:
    """Return the value of what stands in the table of lengths, the smallest first."""
    found = {"chosen": document["value"], "default settings": document["default_value"]}
    found |= {MODELS.get(model, model): value for model, value in document["compared"]["values"].items()}
    there = {name: value for name, value in found.items() if value is not None}
    return [(name, f"{value:.3g}") for name, value in sorted(there.items(), key=lambda pair: pair[1])]


def _lengths(document: Document, at: int) -> dict[str, Any]:
    """Return, for one request, how far the chosen, the default and what they stand beside are by number."""
    by_number = {t["number"]: t["lengths"] for t in document["history"] if t["state"] == "complete"}
    columns = {"chosen": by_number[document["best"]], "default": by_number.get(0)}
    columns |= {MODELS.get(m, m): lengths for m, lengths in document["compared"]["lengths"].items()}
    there = {name: lengths[at] for name, lengths in columns.items() if lengths is not None}
    scales = document["compared"]["scales"][at]
    rows = [(name, f"{scale:.3g}", [f"{there[c][name]:.2f}" for c in there]) for name, scale in scales.items()]
    return {"place": document["on"][at]["text"], "heads": list(there), "rows": rows}


def _trial(document: Document, trial: Mapping[str, Any]) -> dict[str, Any]:
    words = {
        "complete": "",
        "pruned": f"given up after {fmt.count(len(trial['values']), 'seed')}",
        "refused": trial["why"],
    }
    settings = {name: charts.default_of(document, name) for name in document["space"]} | trial["chosen"]
    return {
        "number": trial["number"] + 1,
        "mark": "default" if trial["number"] == 0 else "",
        "best": trial["number"] == document["best"],
        "settings": [shown(settings[name]) for name in document["space"]],
        "value": fmt.MISSING if trial["value"] is None else f"{trial['value']:.3g}",
        "state": words[trial["state"]],
        "seconds": f"{trial['seconds']:.2g}",
    }
