"""The charts of a request's record: who paid by group, and a number over the requests fulfilled so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import FuncFormatter, MaxNLocator

from expunge.report import format as fmt
from expunge.report.charts import room
from expunge.report.svg import BLUE, GREY, INK, VERMILION, figure, inline, style

MOST = 24  # groups of one chart: those that changed most
WIDTH = 460


def groups(column: str, rows: Sequence[Mapping[str, Any]], key: str) -> str | None:
    """Return the change of accuracy of each group as a dot with its interval, losses in red.

    Args:
        column: what the groups are of.
        rows: ``at`` and ``change``, a number with an interval, or None.
        key: prefix of the ids, unique in the page.

    Returns:
        An SVG element; None where no change is known.
    """
    known = [row for row in rows if fmt.known(row.get("change"))]
    kept = sorted(known, key=lambda row: -abs(row["change"]["x"]))[:MOST]
    shown = [row for row in known if row in kept]
    if not shown:
        return None
    with style(key):
        fig = figure(WIDTH, 66 + 19 * len(shown))
        ax = fig.add_subplot()
        ends = [0.0]
        for at, row in enumerate(shown):
            change = row["change"]
            colour = VERMILION if change["x"] < 0 else BLUE
            if fmt.half(change) is not None:
                ax.plot([100 * change["low"], 100 * change["high"]], [at, at], color=colour, lw=1.8)
                ends += [100 * change["low"], 100 * change["high"]]
            ax.plot(100 * change["x"], at, "o", color=colour, ms=6, mew=0)
            ends.append(100 * change["x"])
        ax.axvline(0, color=INK, lw=0.9)
        ax.set_yticks(range(len(shown)), [fmt.plain(row["at"], 18) for row in shown])
        ax.set_ylim(len(shown) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.grid(axis="x")
        ax.set_axisbelow(True)
        room(ax, "points", min(ends), max(ends))
        ax.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
        ax.set_xlabel("change of accuracy, points")
        told = "; ".join(f"{fmt.plain(row['at'])} {fmt.difference(row['change'])}" for row in shown)
        return inline(fig, key, f"Change of accuracy in points by {column}: {told}")


def decay(
    label: str,
    points: Sequence[Mapping[str, Any]],
    key: str,
    *,
    bound: Mapping[str, Any] | None = None,
    retrained: Sequence[int] = (),
) -> str | None:
    """Return a number over the requests fulfilled, with its intervals, its bound and the retrainings.

    Args:
        label: of the number.
        points: with ``at``, the requests fulfilled by then, x, low, high, n and unit.
        key: prefix of the ids, unique in the page.
        bound: ``sign`` and ``number``, or None.
        retrained: requests fulfilled by each retraining.

    Returns:
        An SVG element; None of fewer than two points.
    """
    if len(points) < 2:
        return None
    unit = str(points[0].get("unit", ""))
    by, x = fmt.scale(unit), [p["at"] for p in points]
    bounded = [p for p in points if fmt.half(p) is not None]
    with style(key):
        fig = figure(345, 220)
        ax = fig.add_subplot()
        for at in retrained:
            ax.axvline(at, color=GREY, lw=1.1, ls=(0, (1, 1.5)))
        if bounded:
            low, high = ([by * p[end] for p in bounded] for end in ("low", "high"))
            ax.fill_between([p["at"] for p in bounded], low, high, color=BLUE, alpha=0.14, lw=0)
        ax.plot(x, [by * p["x"] for p in points], color=BLUE, lw=1.9, marker="o", ms=4.5, mew=0)
        if bound is not None:
            ax.axhline(by * bound["number"], color=VERMILION, lw=1.4, ls=(0, (5, 2)))
        ax.set_xlabel("requests fulfilled")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        mark = "%" if unit == "1" else ""
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}{mark}".replace("-", "−")))
        ax.set_ylabel("" if unit == "1" else fmt.suffix(unit).strip())
        ax.grid(axis="y")
        ax.set_axisbelow(True)
        held = "" if bound is None else f"; bound {bound['sign']} {fmt.digits(bound['number'], unit)}"
        first, last = points[0], points[-1]
        told = f"{fmt.value(first)} after {first['at']}, {fmt.value(last)} after {last['at']}{held}"
        return inline(fig, key, f"{label} over the requests fulfilled: {told}")
