"""Predictions over real targets: one panel a model on the same axes, the forgotten range shaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import IdentityTransform
from numpy.typing import NDArray

from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report.charts import NAME
from expunge.report.document import Section
from expunge.report.looks import Look
from expunge.report.svg import GREY, ORANGE, figure, inline, style

SIZE = 290
PANELS = 6  # models drawn in one row of panels or as lines of one chart
SMALL, LARGE = 2.6, 4.2  # pixels across a dot, where there are many and where there are few
FEW = 300  # dots of a set up to which they are large
ROOM = 0.05  # beside the targets, a share of their span
BEYOND = 0.25  # of the targets' span, that the axes follow predictions which lie outside of it
NAMES = {"forget": "forget set", "retain": "retain set", "test": "test set"}
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Picture:
    """Charts of one kind, with what is to be seen.

    Args:
        title: heading.
        text: what is drawn, and what would be ideal.
        svgs: the charts.
        models: those whose lines are drawn, for a legend; empty where none is needed.
    """

    title: str
    text: str
    svgs: tuple[str, ...]
    models: tuple[str, ...] = ()


def scatter(section: Section, look: Mapping[str, Look], key: str) -> Picture | None:
    """Return predictions over targets, a panel a model: before, after, and retrained beside them.

    Args:
        section: a section of the document.
        look: how each model is drawn, from `expunge.report.looks.looks`.
        key: prefix of the ids, unique in the page.

    Returns:
        The panels; None where no target is a real number.
    """
    sets: Mapping[str, Any] = (section.get("predictions") or {}).get("scatter") or {}
    if not sets:
        return None
    points = {split: _points(part) for split, part in sets.items()}
    models, left = chosen(section, [m for by in points.values() for m in by])
    low, high = _ends([by[m] for by in points.values() for m in models if m in by])
    band = forgotten_range(section)
    svgs, outside = [], 0
    for at, model in enumerate(models):
        own = {split: by[model] for split, by in points.items() if model in by}
        outside += sum(int(((p[1] < low) | (p[1] > high)).sum()) for p in own.values())
        svgs.append(_panel(model, own, (low, high), band, look[model], f"{key}-{at}"))
    drawn = {split: len(next(iter(by.values()))[0]) for split, by in points.items()}
    parts = [
        _legend(section),
        _ideal(section),
        _sampled(sets, drawn),
        f"{fmt.count(outside, 'prediction')} beyond the axes {'is' if outside == 1 else 'are'} drawn at their edge."
        if outside
        else "",
        not_drawn(left),
    ]
    return Picture("Predictions over targets", " ".join(filter(None, parts)), tuple(svgs))


def chosen(section: Section, names: Sequence[str], most: int = PANELS) -> tuple[list[str], list[str]]:
    """Return the models that are drawn, original first and retrained last, and the methods that there is no room for.

    Args:
        section: a section of the document.
        names: models that there is something of.
        most: models that fit.
    """
    of = {role: [str(m["name"]) for m in doc.of_role(section, role) if m["name"] in names] for role in doc.ROLES}
    ends = len(of["original"]) + len(of["retrained"])
    methods, left = of["method"][: most - ends], of["method"][most - ends :]
    return [*of["original"], *methods, *of["retrained"]], left


def not_drawn(left: Sequence[str]) -> str:
    """Return a sentence on the models that there is no room for, or an empty string."""
    return f"Not drawn, for want of room: {fmt.listed([fmt.plain(m) for m in left])}." if left else ""


def forgotten_range(section: Section) -> tuple[float, float] | None:
    """Return the range of targets that was forgotten, or None where the request was none of a range of targets."""
    target = section.get("target")
    if section["kind"] != "range" or not isinstance(target, Mapping) or target.get("column") is not None:
        return None
    low, high = target.get("low"), target.get("high")
    there = isinstance(low, int | float) and isinstance(high, int | float)
    return (float(low), float(high)) if there else None  # type: ignore[arg-type]


def _points(part: Mapping[str, Any]) -> dict[str, Points]:
    """Return targets and predictions by model, (2, n) each."""
    return {
        model: np.asarray([group["target"], said], dtype=np.float64)
        for group in part["groups"]
        for model, said in group["said"].items()
    }


def _ends(points: Sequence[Points]) -> tuple[float, float]:
    """Return the ends of both axes: the targets' span, and a quarter of it more where predictions lie outside."""
    targets, said = (np.concatenate([p[row] for p in points]) for row in (0, 1))
    low, high = float(targets.min()), float(targets.max())
    span = high - low or max(abs(low), 1.0)
    ends = max(low - BEYOND * span, min(low, said.min())), min(high + BEYOND * span, max(high, said.max()))
    return float(ends[0] - ROOM * span), float(ends[1] + ROOM * span)


def _panel(
    model: str,
    points: Mapping[str, Points],
    ends: tuple[float, float],
    band: tuple[float, float] | None,
    look: Look,
    key: str,
) -> str:
    with style(key):
        fig = figure(SIZE, SIZE + 12)
        ax = fig.add_subplot()
        if band is not None:
            ax.axvspan(max(band[0], ends[0]), min(band[1], ends[1]), color=ORANGE, alpha=0.16, lw=0)
        ax.plot(ends, ends, color=GREY, lw=1, ls=(0, (1, 2)))
        ax.set(xlim=ends, ylim=ends, aspect="equal", xlabel="target", ylabel="predicted")
        numbers(ax)
        ax.grid()
        ax.set_axisbelow(True)
        ax.set_title(fmt.plain(model, NAME), loc="left")
        fig.draw_without_rendering()
        fig.set_layout_engine("none")  # dots are placed in pixels, so nothing may move any more
        for split in ("test", "forget"):
            if split in points:
                there = np.stack([points[split][0], points[split][1].clip(*ends)])
                dots(fig, ax, there, look.colour if split == "forget" else GREY, 0.75 if split == "forget" else 0.5)
        told = [f"{NAMES[s]} off by {_off(p)} at the median" for s, p in points.items()]
        return inline(fig, key, f"Predictions of {fmt.plain(model)} over targets: {', '.join(told)}")


def numbers(ax: Axes) -> None:
    """Set few ticks on both axes, with true minus signs."""
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}".replace("-", "−")))


def _off(points: Points) -> str:
    return fmt.digits(float(np.median(np.abs(points[1] - points[0]))), "")


def dots(fig: Figure, ax: Axes, points: Points, colour: str, opacity: float) -> None:
    """Draw dots as one path of points with round ends: a tenth of the bytes of as many marks.

    Args:
        fig: the figure, whose layout no longer moves.
        ax: its axes.
        points: places, (2, n).
        colour: of the dots.
        opacity: 1 for dots in full, less for faint ones.
    """
    size = LARGE if points.shape[1] <= FEW else SMALL
    places = np.repeat(ax.transData.transform(points.T), 2, axis=0)
    places[1::2, 0] += 0.15  # a line that is not drawn to no length, in a page of a tenth of a pixel
    path = Path(places, [Path.MOVETO, Path.LINETO] * points.shape[1])
    path.should_simplify = False
    patch = PathPatch(path, fill=False, ec=colour, lw=size, alpha=opacity, capstyle="round")
    patch.set_transform(IdentityTransform())
    fig.add_artist(patch)


def _legend(section: Section) -> str:
    steps = section["predictions"].get("windows")
    each = f"each the mean of its {steps['steps']} steps" if steps else ""
    band = " The shaded range of targets was forgotten." if forgotten_range(section) else ""
    said = "Dots in a model's colour are samples of the forget set"
    grey = ", grey ones of the test set" if "test" in section["predictions"]["scatter"] else ""
    return f"{said}{grey}{', ' if each else ''}{each}. On the dotted diagonal a prediction is right.{band}"


def _ideal(section: Section) -> str:
    if not doc.of_role(section, "retrained"):
        return "How these samples would lie under a model that never saw them is not known here: run expunge audit."
    return "Ideally the forgotten samples lie as they do under retrained, no nearer to the diagonal and no farther."


def _sampled(sets: Mapping[str, Any], drawn: Mapping[str, int]) -> str:
    """Return how many samples are drawn of how many, where not all are."""
    thinned = {s: part["of"] for s, part in sets.items() if drawn[s] < part["of"]}
    some = [f"{drawn[s]:,} of {of:,} samples of the {NAMES[s]}" for s, of in thinned.items()]
    return f"Drawn are {fmt.listed(some)}, evenly over their sorted targets." if some else ""
