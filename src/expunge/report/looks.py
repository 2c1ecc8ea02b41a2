"""How a model is drawn: one colour, marker and dash in every chart, table and list of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from matplotlib.markers import MarkerStyle
from matplotlib.path import Path
from matplotlib.transforms import Affine2D

from expunge.report import document as doc
from expunge.report.document import Section
from expunge.report.svg import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILION, compact, seen

LETTERS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}
WIDTH = 1.9  # of a line


@dataclass(frozen=True)
class Look:
    """How a model is drawn in every chart.

    Args:
        colour: of line and marker.
        marker: of its dot, told apart without colour.
        line: dashes of its line, told apart without colour.
    """

    colour: str
    marker: str
    line: Any

    @property
    def behind(self) -> bool:
        """Whether it is drawn thinner and below the others: controls are there to compare with."""
        return self.colour == GREY

    def stroke(self) -> dict[str, Any]:
        """Return matplotlib's options for its line."""
        return {
            "color": self.colour,
            "ls": self.line,
            "lw": 1.3 if self.behind else WIDTH,
            "zorder": 2 if self.behind else 3,
        }


def looks(sections: Sequence[Section]) -> dict[str, Look]:
    """Return the look of each model: fixed by its role, and by its place among those of the same role.

    Args:
        sections: all sections of the page, so that a model looks the same in each.

    Returns:
        Looks by model name; more methods than colours repeat colours with other markers and dashes.
    """
    of = {
        "original": cycle([Look(INK, "X", "-")]),
        "retrained": cycle([Look(BLUE, "D", "-")]),
        "floor": cycle([Look(SKY, "d", (0, (5, 2)))]),
        "control": cycle([Look(GREY, m, s) for m, s in (("v", (0, (1, 1.5))), ("<", (0, (4, 1.5, 1, 1.5))))]),
    }
    colours = cycle((VERMILION, GREEN, PURPLE, ORANGE))
    markers = cycle("os^Ph*p")
    lines = cycle(((0, (6, 1.5)), (0, (3, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (2, 1)), (0, (8, 2, 2, 2))))
    out: dict[str, Look] = {}
    for model in (m for section in sections for m in doc.models(section)):
        if model["name"] not in out:
            method = Look(next(colours), next(markers), next(lines)) if model["role"] not in of else None
            out[model["name"]] = method or next(of[model["role"]])
    return out


def symbols(look: Mapping[str, Look]) -> tuple[str, dict[str, str]]:
    """Return the markers and lines of all models as SVG symbols, for lists, tables and legends.

    Args:
        look: how each model is drawn.

    Returns:
        The symbols, ``<id>`` of the marker and ``<id>l`` of the line with it, and the id of each model.
    """
    ids = {model: f"look{i}" for i, model in enumerate(look)}
    parts = [_symbols(ids[model], each) for model, each in look.items()]
    return "".join(parts), ids


def _symbols(name: str, look: Look) -> str:
    ink, marker = seen(look.colour.lower()), _outline(look.marker)
    dash = "" if look.line == "-" else ' stroke-dasharray="{}"'.format(" ".join(f"{WIDTH * d:g}" for d in look.line[1]))
    line = f'<path d="M0 6H30" fill="none" style="stroke:{ink}" stroke-width="{WIDTH}"{dash}/>'
    dot = f'<path d="{marker}" style="fill:{ink}"/>'
    return (
        f'<symbol id="{name}" viewBox="-6 -6 12 12">{dot}</symbol>'
        f'<symbol id="{name}l" viewBox="0 0 30 12">{line}<g transform="translate(15 6)">{dot}</g></symbol>'
    )


def _outline(marker: str, size: float = 8.5) -> str:
    """Return a marker of matplotlib's as the path of an SVG, centred on 0 and about ``size`` high."""
    style = MarkerStyle(marker)
    path = style.get_path().transformed(style.get_transform() + Affine2D().scale(size, -size))
    parts = [LETTERS[code] + " ".join(f"{v:.2f}" for v in ([] if code == Path.CLOSEPOLY else points))
             for points, code in path.iter_segments(simplify=False)]  # fmt: skip
    return compact("".join(parts).replace("Z", "z"))
