"""A matplotlib figure as inline SVG: no dates, no foreign ids, text as text, and ink that follows the page."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

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
PLAIN = re.compile(r"(?:\s*[ML]\s*-?[\d.]+\s+-?[\d.]+|\s*z)*\s*")  # straight lines only
NUMBER = re.compile(r"-?\d+\.\d+(?!\d|e)")
NO_METADATA: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@dataclass(frozen=True)
class Dot:
    """A mark over a chart, drawn with a symbol of the page, that says what it is and leads somewhere.

    Args:
        axes: of the chart.
        x: place in the units of the axes.
        y: place in the units of the axes.
        symbol: id of the symbol.
        title: what it is.
        href: relative address of a page or of a place in it, or an empty string.
        size: of the symbol's box, in pixels.
        opacity: 1 for a mark in full, less for a faint one.
    """

    axes: Axes
    x: float
    y: float
    symbol: str
    title: str
    href: str = ""
    size: float = 12.0
    opacity: float = 1.0


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


def figure(width: float, height: float, apart: float = 0.02) -> Figure:
    """Return a figure of this size in CSS pixels, laid out to fit its labels.

    Args:
        width: in pixels.
        height: in pixels.
        apart: room between panels side by side, a share of their width.

    Returns:
        The figure.
    """
    return Figure(figsize=(width / 72, height / 72), layout=ConstrainedLayoutEngine(wspace=apart))


def inline(fig: Figure, key: str, label: str, dots: Sequence[Dot] = ()) -> str:
    """Return a figure as an SVG element for a page.

    Args:
        fig: the figure, made inside `style`.
        key: prefix of its ids, unique in the page.
        label: what the chart shows, for those who cannot see it.
        dots: marks over it, the last on top.

    Returns:
        The element's text, without XML header, scripts, style sheet or metadata.
    """
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", metadata=NO_METADATA)
    ET.register_namespace("", SVG)
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
    root.extend(_dot(dot, float(root.attrib["viewBox"].split()[3])) for dot in dots)
    return ET.tostring(root, encoding="unicode").replace(" />", "/>")


def _dot(dot: Dot, height: float) -> ET.Element:
    """Return a mark as an element; by keyboard its address is reached from a table, not through hundreds of dots."""
    x, y = dot.axes.transData.transform((dot.x, dot.y))  # laid out by now: the figure was written
    side = f"{dot.size:g}"
    corner = {"x": compact(f"{x - dot.size / 2:.2f}"), "y": compact(f"{height - y - dot.size / 2:.2f}")}
    use = ET.Element(f"{{{SVG}}}use", {"href": f"#{dot.symbol}", **corner, "width": side, "height": side})
    if dot.opacity < 1:
        use.attrib["opacity"] = f"{dot.opacity:g}"
    ET.SubElement(use, f"{{{SVG}}}title").text = plain(dot.title)
    if not dot.href:
        return use
    link = ET.Element(f"{{{SVG}}}a", {"href": dot.href, "tabindex": "-1"})
    link.append(use)
    return link


def compact(path: str) -> str:
    """Return SVG coordinates with one decimal, a tenth of a pixel, and lines as steps from point to point.

    >>> compact("M 33.333 125.96  L -0.02 126  L -0.02 7.0  z"), compact("12.04")
    ('M33.3 126h-33.3v-119z', '12')
    """
    if PLAIN.fullmatch(path):
        return _steps(re.findall(r"([MLz])([^MLz]*)", path))
    short = NUMBER.sub(lambda found: _short(float(found[0])), path)
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", short).strip()


def _steps(parts: list[tuple[str, str]]) -> str:
    out: list[str] = []
    x = y = 0.0
    for letter, numbers in parts:
        if letter == "z":
            out.append("z")
            continue
        after = [round(float(v), 1) for v in numbers.split()]
        right, down = round(after[0] - x, 1), round(after[1] - y, 1)  # from the rounded point: nothing drifts
        x, y = after
        if letter == "M":
            out.append(f"M{_short(x)} {_short(y)}")
        elif down == 0 and right:
            out.append(f"h{_short(right)}")
        elif right == 0 and down:
            out.append(f"v{_short(down)}")
        elif right:
            out.append(f"l{_short(right)} {_short(down)}")
    return "".join(out)


def _short(number: float) -> str:
    return f"{round(number, 1) + 0.0:g}".replace("0.", ".") if abs(number) < 1 else f"{round(number, 1):g}"


def seen(css: str) -> str:
    """Return a colour, or a style, with the stand-ins replaced by what the page gives them."""
    for stand_in, real in SEEN_AS.items():
        css = css.replace(stand_in, real)
    return css


def _tidy(root: ET.Element, key: str) -> None:
    """Keep the ids that something points to, under the chart's own prefix, and drop what the page must not get."""
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib["stroke-linejoin"], root.attrib["stroke-linecap"] = "round", "butt"
    root.attrib["fill"] = "currentColor"  # of all text
    for element in root.iter():
        if href := element.attrib.pop(f"{{{XLINK}}}href", None):
            element.attrib["href"] = href
    links = ("clip-path", "href")
    used = dict.fromkeys(m for e in root.iter() for link in links for m in REFERENCE.findall(e.get(link, "")))
    ids = {old: f"{key}-{i}" for i, old in enumerate(used)}
    for element in root.iter():
        if (own := element.attrib.pop("id", None)) in ids:
            element.attrib["id"] = ids[own]
        for link in links:
            if link in element.attrib:
                element.attrib[link] = REFERENCE.sub(lambda found: f"#{ids[found[1]]}", element.attrib[link])
        if element.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
        for name in {"d", "x", "y"} & set(element.attrib):
            element.attrib[name] = compact(element.attrib[name])
        if "style" in element.attrib:
            element.attrib["style"] = _style(element.attrib["style"], text=element.tag == f"{{{SVG}}}text")
        if element.tag != f"{{{SVG}}}text" and not (element.text or "").strip():
            element.text = None
        element.tail = None
    _prune(root)


def _style(css: str, text: bool) -> str:
    # Some versions of matplotlib write a shorthand, which cannot leave the family out.
    css = re.sub(
        r"(font: [^;]*?px) [^;]*", r"\1 system-ui, sans-serif", re.sub(r"font-family: [^;]*; ?", "", seen(css))
    )
    for needless in ("stroke-linejoin: miter", "stroke-dashoffset: 0", *(["fill: currentColor"] if text else [])):
        css = re.sub(rf"(?:; )?{needless}(?=;|$)", "", css)
    return re.sub(r"([;:]) ", r"\1", css).lstrip(";")


def _prune(parent: ET.Element) -> None:
    """Drop what is not seen, and groups that say nothing, whose children take their place."""
    kept: list[ET.Element] = []
    for child in parent:
        _prune(child)
        tag = child.tag.removeprefix(f"{{{SVG}}}")
        # A style element would reach beyond its chart, to the whole page.
        unseen = tag in {"metadata", "style"} or (tag == "path" and child.get("style") == "fill:none")
        if unseen or (tag in {"g", "defs"} and not len(child)):
            continue
        kept += list(child) if tag == "g" and not child.attrib else [child]
    parent[:] = kept
