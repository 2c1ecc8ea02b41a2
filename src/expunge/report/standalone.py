"""A chart as a file of its own, on white paper whatever page it is put on: SVG, PNG or PDF."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from expunge.errors import UserError
from expunge.files import atomic
from expunge.report import format as fmt
from expunge.report.svg import inline, style

ENDINGS = (".svg", ".png", ".pdf")
DOTS = 200  # an inch, of a PNG
PAPER, BLACK, LIGHT = "#ffffff", "#1d2329", "#d5d8dd"
FONTS = "DejaVu Sans, Verdana, sans-serif"  # the first one's letters were measured; no other is wider
NO_DATES: dict[str, dict[str, Any]] = {".png": {"Software": None}, ".pdf": {"CreationDate": None}}


def check(path: Path) -> None:
    """Refuse a file whose ending is no form of a chart.

    Raises:
        UserError: names the endings.
    """
    if path.suffix not in ENDINGS:
        got = f"'{path.suffix}'" if path.suffix else f"no ending in {path.name}"
        raise UserError(f"a file that ends in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}", got, "choose one of them")


def write(path: Path, draw: Callable[[], Figure], *, title: str, told: str) -> None:
    """Write a chart to a file, whole or not at all; the same chart gives the same bytes.

    Args:
        path: of the file; its ending says the form.
        draw: makes the figure.
        title: heading for those who cannot see it, and the title of a PDF.
        told: what the chart shows, for those who cannot see it.

    Raises:
        UserError: an ending that is no form of a chart.
        Unwritable: the file cannot be written.
    """
    check(path)
    with style("figure"), atomic(path) as room:
        fig = draw()
        if path.suffix == ".svg":
            room.write_text(_svg(fig, f"{title}. {told}"), encoding="utf-8")
        else:
            for ax in fig.axes:
                ax.tick_params(which="both", grid_color=LIGHT)
            named = {"Title": fmt.plain(title)}
            fig.savefig(room, dpi=DOTS, facecolor=PAPER, metadata=named | NO_DATES[path.suffix])


def _svg(fig: Figure, label: str) -> str:
    """Return a figure as a document of its own: with colours, fonts and a size that no page gives it."""
    text = inline(fig, "figure", label)
    text = re.sub(r"var\(--[\w-]+, *([^()]+)\)", r"\1", text).replace("currentColor", BLACK)
    text = text.replace("system-ui, sans-serif", FONTS)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups()  # type: ignore[union-attr]
    size = f'width="{width}" height="{height}" style="font-family:{FONTS}"'
    text = re.sub(r'style="font-family:system-ui[^"]*"', size, text, count=1)
    paper = f'</title><path fill="{PAPER}" d="M0 0h{width}v{height}h-{width}z"/>'
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text.replace("</title>", paper, 1)}\n'
