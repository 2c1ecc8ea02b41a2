"""A matplotlib figure as inline SVG: no dates, no foreign ids, text as text, and ink that follows the page."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from expunge.report.format import plain

# Okabe and Ito's palette, distinguishable with every common colour blindness: https://jfly.uni-koeln.de/color/
BLUE, SKY, GREEN, ORANGE, VERMILION, PURPLE = "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7"
GREY = "#8A8F98"
# Stand-ins that become the page's own ink and rule, so that one chart serves light, dark and paper.
INK, RULE = "#010203", "#040506"
SEEN_AS = {
    INK: "currentColor",
    RULE: "var(--rule, #d5d8dd)",
    BLUE.lower(): f"var(--retrained, {BLUE.lower()})",  # too dark for a dark page
}

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
REFERENCE = re.compile(r"#([\w.-]+)")
DECIMALS = re.compile(r"(\.\d\d)\d+")
NO_METADATA: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@contextmanager
def style(key: str) -> Iterator[None]:
    """Set matplotlib's options for one chart and put the caller's back.

    Args:
        key: salt of the chart's ids, unique in the page.

    Yields:
        Nothing; figures are made and drawn inside.
    """
    options: Any = {  # matplotlib types the keys as one long literal
        "svg.hashsalt": key,
        "svg.fonttype": "none",
        "text.parse_math": False,  # a dollar sign in a name is a dollar sign
        "font.family": ["DejaVu Sans"],
        "font.size": 11,
        "axes.titlesize": 11.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.labelsize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "xtick.labelsize": 10,
        "ytick.labelsize": 10.5,
        "grid.linewidth": 0.8,
        "legend.frameon": False,
        "legend.fontsize": 10,
        "figure.dpi": 72,
    }
    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    options |= dict.fromkeys(ink, INK) | {"grid.color": RULE}
    with warnings.catch_warnings(), mpl.rc_context():
        # The browser draws the text; a glyph missing here only makes its measured width a guess.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        mpl.rcdefaults()
        mpl.rcParams.update(options)
        yield


def figure(width: float, height: float) -> Figure:
    """Return a figure of this size in CSS pixels, laid out to fit its labels."""
    return Figure(figsize=(width / 72, height / 72), layout="constrained")


def inline(fig: Figure, key: str, label: str) -> str:
    """Return a figure as an SVG element for a page.

    Args:
        fig: the figure, made inside `style`.
        key: prefix of its ids, unique in the page.
        label: what the chart shows, for those who cannot see it.

    Returns:
        The element's text, without XML header, scripts, style sheet or metadata.
    """
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", metadata=NO_METADATA)
    for prefix, space in (("", SVG), ("xlink", XLINK)):
        ET.register_namespace(prefix, space)
    root = ET.fromstring(buffer.getvalue())
    _tidy(root, key)
    width = root.attrib["viewBox"].split()[2]
    root.attrib |= {
        "role": "img",
        "aria-label": plain(label),
        "style": f"font-family:system-ui,sans-serif;width:100%;max-width:{1.25 * float(width):.0f}px",
    }
    title = ET.Element(f"{{{SVG}}}title")
    title.text = plain(label)
    root.insert(0, title)
    return ET.tostring(root, encoding="unicode")


def _tidy(root: ET.Element, key: str) -> None:
    """Keep the ids that something points to, under the chart's own prefix, and drop what the page must not get."""
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    for parent in list(root.iter()):
        for child in list(parent):
            # A style element would reach beyond its chart, to the whole page.
            if child.tag in {f"{{{SVG}}}metadata", f"{{{SVG}}}style"}:
                parent.remove(child)
    root.attrib["stroke-linejoin"], root.attrib["stroke-linecap"] = "round", "butt"
    links = ("clip-path", f"{{{XLINK}}}href")
    used = {m for e in root.iter() for link in links for m in REFERENCE.findall(e.get(link, ""))}
    for element in root.iter():
        if (own := element.attrib.pop("id", None)) in used:
            element.attrib["id"] = f"{key}-{own}"
        for link in links:
            if link in element.attrib:
                element.attrib[link] = REFERENCE.sub(rf"#{key}-\1", element.attrib[link])
        for name in {"d", "x", "y", "transform"} & set(element.attrib):
            element.attrib[name] = DECIMALS.sub(r"\1", element.attrib[name])
        if "style" in element.attrib:
            element.attrib["style"] = _seen(element.attrib["style"])


def _seen(css: str) -> str:
    for stand_in, real in SEEN_AS.items():
        css = css.replace(stand_in, real)
    # Some versions of matplotlib write a shorthand, which cannot leave the family out.
    return re.sub(r"(font: [^;]*?px) [^;]*", r"\1 system-ui, sans-serif", re.sub(r"font-family: [^;]*; ?", "", css))
