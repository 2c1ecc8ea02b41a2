"""Curves and groups as inline SVG: lines over numbers, bars over names, profiles over many names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report.charts import NAME, PANEL, STRIP, TITLE, room
from expunge.report.document import Entry, Section
from expunge.report.findings import group
from expunge.report.looks import Look
from expunge.report.svg import BLUE, INK, figure, inline, style

MOST = 24  # groups of a bar chart
LONG = 12  # named places beyond which they are drawn as a profile
LOGARITHMIC = 15  # largest over smallest place beyond which the axis is logarithmic
LINES = 350
GROUPS = ("subgroups", "segments")  # families whose places are groups of samples, and whose values are changes
BEFORE = "before"  # the place that the others of its series are changes from

# What the places of a family's curves are, and what is drawn over them.
AXES = {
    "probe": ("labelled samples a class", "recall of the forgotten class"),
    "relearn": ("steps", "forgotten samples right"),
}
HEADINGS = {
    "predictions/classes": "Where the forgotten class goes",
    "probe/shots": "Reading the class out of the features",
    "relearn/curve": "Relearning the forgotten",
    "robustness/change": "Disturbing the model a little",
    "weights/layers": "Weights, layer by layer",
    "weights/buffers": "Buffers, layer by layer",
}
NOTES = {
    "probe": "What a small model reads out of the features, by how many labelled samples it is given. A network that "
    "never saw the forgotten samples needs more of them. Drawn by ridge regression; the one-shot number in the tables "
    "is by logistic regression and may lie elsewhere.",
    "predictions": "Classes that unseen samples of the forgotten class are taken for, with 95% intervals of each share "
    "alone. Where there is a blue mark, it is the retrained model, which never saw the class and spreads its samples "
    "over those that look alike. All of them in one other class give away an edit that trained them towards it.",
    "relearn": "The model is trained further: the sooner the forgotten comes back, sooner than for retrained, the more "
    "of it was still there.",
    "robustness": "The model is disturbed a little: the ring is the forget set before, the mark after. What comes back "
    "was hidden, not gone, unless retrained shows it too.",
    "subgroups": "Change of accuracy against the original on samples that were to stay, with 95% intervals. The blue "
    "mark is the retrained model: what it pays, forgetting itself costs.",
    "segments": "Change of the mean score, or of the share accepted, against the original in segments of the test "
    "set, with 95% intervals. The blue mark is the retrained model: what it moves, forgetting itself moves.",
    "weights": "Distance of each layer's weights, in the model's order.",
}


@dataclass(frozen=True)
class Chart:
    """The charts of one series.

    Args:
        name: name of the series.
        title: heading.
        text: what is drawn.
        svgs: one or several charts.
        wide: a single chart as wide as the page.
        rows: instead of charts, a table: each model's name and its numbers, as text.
        places: heads of that table.
    """

    name: str
    title: str
    text: str
    svgs: tuple[str, ...] = ()
    wide: bool = False
    rows: tuple[tuple[str, tuple[str, ...]], ...] = ()
    places: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """First part of the name."""
        return self.name.partition("/")[0]


def charts(section: Section, look: Mapping[str, Look], key: str) -> list[Chart]:
    """Return the charts of every series, in the document's order.

    Args:
        section: a section of the document.
        look: how each model is drawn, from `expunge.report.looks.looks`.
        key: prefix of the ids, unique in the page.

    Returns:
        Lines with interval bands where the places are numbers; bars in a panel for each model where they are names, or
        changes of groups of samples; steps from before to after where one is named so; profiles where there are many
        names; a table of what groups of samples changed to. Nothing for a series without a number.
    """
    names = dict.fromkeys(name for found in (section.get("series") or {}).values() for name in found)
    drawn = [_chart(section, name, look, f"{key}-{i}") for i, name in enumerate(names)]
    return [chart for chart in drawn if chart is not None]


def _chart(section: Section, name: str, look: Mapping[str, Look], key: str) -> Chart | None:
    found = doc.series(section, name)
    places = list(dict.fromkeys(p["at"] for points in found.values() for p in points))
    if not places:
        return None
    family = name.partition("/")[0]
    text, title = NOTES.get(family, ""), heading(name)
    if family not in GROUPS and all(isinstance(at, int | float) for at in places) and len(places) > 1:
        return Chart(name, title, text, (_lines(found, name, look, key),))
    if BEFORE in places and len(places) > 1:
        return Chart(name, title, text, (_changes(found, places, look, key, title),), wide=True)
    if family == "weights" or (len(places) > LONG and family not in GROUPS):
        return Chart(name, title, text, (_profile(found, places, name, look, key),), wide=True)
    if family == "subgroups" and name.count("/") > 1:  # the changes are drawn, what they changed to is a table
        return Chart(name, title, "", rows=_rows(found, places), places=tuple(str(at) for at in places))
    if len(places) > MOST:
        size = {at: max(abs(p["x"]) for points in found.values() for p in points if p["at"] == at) for at in places}
        kept = set(sorted(places, key=lambda at: -size[at])[:MOST])
        text = f"{text} {MOST} of {len(places)} groups are shown, those with the largest numbers.".strip()
        places = [at for at in places if at in kept]
    return Chart(name, title, text, _bars(section, found, places, name, look, key))


def heading(name: str) -> str:
    """Return the name of a series as a heading.

    >>> heading("subgroups/label"), heading("subgroups/camera/accuracy"), heading("probe/one_class")
    ('By class', 'By camera: accuracy', 'Probe: one class')
    """
    if name in HEADINGS:
        return HEADINGS[name]
    family, _, rest = name.partition("/")
    column, _, what = rest.partition("/")
    if family == "subgroups":
        by = f"By {'class' if column == 'label' else column}"
        return f"{by}: {what}" if what else by
    if family == "segments":
        return f"By {column}: {'share accepted' if what == 'rate' else 'mean score'}"
    words = rest.replace("_", " ").replace("/", ": ")
    return f"{family.capitalize()}: {words}" if words else family.capitalize()


def _changes(
    found: Mapping[str, Sequence[Entry]],
    places: Sequence[str | float],
    look: Mapping[str, Look],
    key: str,
    title: str,
) -> str:
    """Return a panel for each change: from a ring, the value before, to the value after, a row for each model."""
    unit, models, after = _unit(found), list(found), [at for at in places if at != BEFORE]
    by, points = fmt.scale(unit), {(m, p["at"]): p for m, some in found.items() for p in some}
    every = [by * p["x"] for p in points.values()]
    with style(key):
        fig = figure(150 + 150 * len(after), 70 + 21 * len(models), apart=0.08)
        axes = fig.subplots(1, len(after), sharey=True, squeeze=False)[0]
        for ax, place in zip(axes, after, strict=True):
            for row, model in enumerate(models):
                start, end = points.get((model, BEFORE)), points.get((model, place))
                if start and end:
                    ax.plot([by * start["x"], by * end["x"]], [row, row], color=look[model].colour, lw=1.8)
                if start:
                    ax.plot(by * start["x"], row, "o", mfc="none", mec=look[model].colour, ms=7.5, mew=1.2)
                if end:
                    ax.plot(by * end["x"], row, look[model].marker, color=look[model].colour, ms=6.5, mew=0)
            room(ax, unit, min(every), max(every))
            ax.tick_params(axis="y", length=0)
            ax.spines["left"].set_visible(False)
            ax.grid(axis="x")
            ax.set_axisbelow(True)
            ax.set_title(fmt.plain(place, TITLE), loc="left")
        axes[0].set_yticks(range(len(models)), [fmt.plain(m, NAME) for m in models])
        axes[0].set_ylim(len(models) - 0.4, -0.6)
        told = []
        for model in models:
            values = [f"{at} {fmt.value(points[model, at])}" for at in places if (model, at) in points]
            told.append(f"{model}: {', '.join(values)}")
        return inline(fig, key, f"{title}: {'; '.join(told)}")


def _rows(
    found: Mapping[str, Sequence[Entry]], places: Sequence[str | float]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    texts = {model: {p["at"]: fmt.value(p) for p in points} for model, points in found.items()}
    return tuple((model, tuple(text.get(at, fmt.MISSING) for at in places)) for model, text in texts.items())


def _unit(found: Mapping[str, Sequence[Entry]]) -> str:
    return next(str(p["unit"]) for points in found.values() for p in points)


def _lines(found: Mapping[str, Sequence[Entry]], name: str, look: Mapping[str, Look], key: str) -> str:
    family = name.partition("/")[0]
    across, up = AXES.get(family, ("", ""))
    if family == "relearn" and _unit(found) != "1":  # not how many are right, but how far off they are
        up = "forgotten samples"
    return lines(found, heading(name), (across, up), look, key)


def lines(
    found: Mapping[str, Sequence[Entry]],
    title: str,
    labels: tuple[str, str],
    look: Mapping[str, Look],
    key: str,
    size: tuple[int, int] = (LINES, 250),
) -> str:
    """Return a line for each model over places that are numbers, with the interval as a band.

    Args:
        found: points of one unit by model, with ``at``, x, low, high, n and unit.
        title: what is drawn, for those who cannot see it.
        labels: what the places are, and what is drawn over them.
        look: how each model is drawn.
        key: prefix of the ids, unique in the page.
        size: width and height in pixels.

    Returns:
        An SVG element.
    """
    unit, (across, up) = _unit(found), labels
    by = fmt.scale(unit)
    with style(key):
        fig = figure(*size)
        ax = fig.add_subplot()
        for model, points in found.items():
            line = sorted(points, key=lambda p: p["at"])
            x, y = [p["at"] for p in line], [by * p["x"] for p in line]
            bounded = [p for p in line if fmt.half(p) is not None]
            if bounded and not look[model].behind:
                low, high = ([by * p[end] for p in bounded] for end in ("low", "high"))
                ax.fill_between([p["at"] for p in bounded], low, high, color=look[model].colour, alpha=0.12, lw=0)
            ax.plot(x, y, **look[model].stroke(), marker=look[model].marker, ms=4.5, mew=0)
        ax.set(
            xlabel=across, ylabel=f"{up}{'' if unit == '1' or not up else ','}{fmt.suffix(unit)}" if unit != "1" else up
        )
        _numbers(ax, [p["at"] for points in found.values() for p in points])
        _upright(ax, unit)
        last = [f"{m} {fmt.value(max(points, key=lambda p: p['at']))}" for m, points in found.items()]
        return inline(fig, key, f"{title}, at the last point: {'; '.join(last)}")


def _numbers(ax: Axes, places: Sequence[float]) -> None:
    """Set the axis of places: logarithmic where they span much, ticks on the places themselves where they are few."""
    some = sorted(set(places))
    if some[0] > 0 and some[-1] / some[0] >= LOGARITHMIC:
        ax.set_xscale("log")
        ax.xaxis.set_minor_locator(FixedLocator([]))
    elif some[0] == 0 and len(some) > 2 and some[-1] / some[1] >= LOGARITHMIC:
        ax.set_xscale("function", functions=(np.log1p, np.expm1))
    if len(some) <= 8:
        ax.xaxis.set_major_locator(FixedLocator(some))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}".replace("-", "−")))


def _upright(ax: Axes, unit: str) -> None:
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    mark = "%" if unit == "1" else ""
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}{mark}".replace("-", "−")))
    ax.grid(axis="y")
    ax.set_axisbelow(True)


def _bars(
    section: Section,
    found: Mapping[str, Sequence[Entry]],
    places: Sequence[str | float],
    name: str,
    look: Mapping[str, Look],
    key: str,
) -> tuple[str, ...]:
    unit = _unit(found)
    by = fmt.scale(unit)
    change = name.partition("/")[0] in GROUPS
    hidden = {m["name"] for m in doc.of_role(section, "original")} if change else set()  # its change is 0
    goal = next((m["name"] for m in doc.of_role(section, "retrained") if m["name"] in found), "")
    ends = [by * v for m, points in found.items() if m not in hidden for p in points for v in _span(p)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    out: list[str] = []
    for model in (m for m in found if m not in hidden):
        values = {p["at"]: p for p in found[model]}
        marks = {p["at"]: p for p in found.get(goal, ())} if model != goal else {}
        with style(f"{key}-{len(out)}"):
            fig = figure(PANEL, 62 + 15 * len(places))
            ax = fig.add_subplot()
            for row, at in enumerate(places):
                _bar(ax, row, values.get(at), marks.get(at), look[model], by)
            ax.axvline(0, color=INK, lw=0.8)
            ax.set_yticks(range(len(places)), [_place(at) for at in places])
            ax.set_ylim(len(places) - 0.4, -0.6)
            ax.tick_params(axis="y", length=0)
            ax.spines["left"].set_visible(False)
            ax.grid(axis="x")
            ax.set_axisbelow(True)
            room(ax, "points" if change else unit, min(low, 0.0), max(high, 0.0))
            ax.set_title(fmt.plain(model, NAME), loc="left")
            if unit != "1" or change:
                ax.set_xlabel(fmt.suffix(unit, gap=change).strip())
            label = group if name.startswith("subgroups/") else lambda _, at: str(at)
            told = [f"{label(name, at)} {fmt.value(p, gap=change)}" for at, p in values.items() if at in places]
            out.append(inline(fig, f"{key}-{len(out)}", f"{heading(name)}, {model}: {'; '.join(told)}"))
    return tuple(out)


def _place(at: str | float) -> str:
    return f"{at:g}".replace("-", "−") if isinstance(at, float) else fmt.plain(at, 14)


def _span(point: Entry) -> tuple[float, ...]:
    return (point["x"],) if fmt.half(point) is None else (point["low"], point["x"], point["high"])


def _bar(ax: Axes, row: int, point: Entry | None, mark: Entry | None, look: Look, by: float) -> None:
    """Draw one value as a bar from 0 with its interval, and retrained's as a mark across it."""
    if point is None:
        ax.annotate("–", (0.5, row), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    else:
        ax.barh(row, by * point["x"], height=0.62, color=look.colour, alpha=0.55, lw=0)
        if fmt.half(point) is not None:
            ax.plot([by * point["low"], by * point["high"]], [row, row], color=INK, lw=0.9, alpha=0.75)
    if mark is not None:
        ax.plot([by * mark["x"]] * 2, [row - 0.4, row + 0.4], color=BLUE, lw=2)


def _profile(
    found: Mapping[str, Sequence[Entry]],
    places: Sequence[str | float],
    name: str,
    look: Mapping[str, Look],
    key: str,
) -> str:
    unit = _unit(found)
    with style(key):
        fig = figure(STRIP, 300)
        ax = fig.add_subplot()
        at = {place: i for i, place in enumerate(places)}
        for model, points in found.items():
            y = np.full(len(places), np.nan)
            for p in points:
                y[at[p["at"]]] = fmt.scale(unit) * p["x"]
            ax.plot(np.arange(len(places)), y, **look[model].stroke(), marker=look[model].marker, ms=4, mew=0)
        every = -(-len(places) // 28)
        shown = list(range(0, len(places), every))
        ax.set_xticks(shown, [fmt.plain(places[i], 26) for i in shown], rotation=90, fontsize=9)
        _upright(ax, unit)
        ax.set_ylabel(fmt.suffix(unit).strip())
        told = [f"{m} {max(points, key=lambda p: p['x'])['at']}" for m, points in found.items()]
        return inline(fig, key, f"{heading(name)}, largest in: {'; '.join(told)}")
