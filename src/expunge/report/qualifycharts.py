"""The charts of a qualification: gaps by size, failures by size, and failures over requests in a row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from expunge.report import format as fmt
from expunge.report.looks import Look
from expunge.report.svg import BLUE, GREEN, INK, SKY, VERMILION, figure, inline, style

SIZE = (345, 245)  # pixels
SPAN = 12  # largest over smallest floor or bound beyond which the axis of gaps is logarithmic away from 0
APART = 1.3  # ratio of neighbouring sizes from which both are labelled
ASIDE = 1.4  # how far the floor or a level of a size that stands alone is drawn to either side, as a ratio
LOOKS: Mapping[str, Look] = {
    "after unlearning": Look(VERMILION, "o", "-"),
    "the bound, ±": Look(VERMILION, "", (0, (3, 1.5))),
    "the untouched original": Look(INK, "X", (0, (4, 1.5, 1, 1.5))),
    "a retrained model, by chance": Look(BLUE, "", (0, (1, 1.5))),
    "tolerance": Look(GREEN, "", (0, (6, 2))),
}
UNLEARNED, BOUND, ORIGINAL, CHANCE, TOLERANCE = LOOKS
Part = Mapping[str, Any]


def gaps(kind: Part, unit: str, key: str) -> str | None:
    """Return the mean gap by size with its intervals, the floor as a band about 0, and the bound on either side of 0.

    Args:
        kind: one kind of request of a qualification.
        unit: of gaps.
        key: prefix of the ids, unique in the page.

    Returns:
        An SVG element; None where no mean gap is known.
    """
    sizes = [size for size in kind["sizes"] if fmt.known(size["gap"])]
    if not sizes:
        return None
    with style(key):
        fig, ax = _axes()
        _floors(ax, sizes)
        ax.axhline(0, color=INK, lw=0.8)
        for sign in (-1, 1):
            _bounds(ax, [(size["n"], sign * size["bound"]) for size in sizes if size["bound"] is not None])
        _line(ax, [size["n"] for size in sizes], [size["gap"] for size in sizes], LOOKS[UNLEARNED])
        _gap_axis(ax, sizes)
        _size_axis(ax, [size["n"] for size in sizes])
        ax.set_ylabel(fmt.suffix(unit).strip() or "gap")
        told = "; ".join(_gap_told(size, unit) for size in sizes)
        return inline(fig, key, f"{kind['words']}: mean gap per sample by size of the request: {told}")


def failures(kind: Part, key: str) -> str | None:
    """Return the rate of failed requests by size with its intervals, the untouched original's, and that of chance.

    Args:
        kind: one kind of request of a qualification.
        key: prefix of the ids, unique in the page.

    Returns:
        An SVG element; None where no rate is known.
    """
    sizes = [size for size in kind["sizes"] if fmt.known(size["rate"])]
    if not sizes:
        return None
    with style(key):
        fig, ax = _axes()
        controls = [s for s in sizes if s["failed_original"] is not None]
        _line(ax, [s["n"] for s in controls], [{"x": _original(s)} for s in controls], LOOKS[ORIGINAL], 100)
        chance = [(size["n"], 100 * size["by_chance"]) for size in sizes if size["by_chance"] is not None]
        _level(ax, chance, LOOKS[CHANCE])
        _line(ax, [size["n"] for size in sizes], [size["rate"] for size in sizes], LOOKS[UNLEARNED], 100)
        _share_axis(ax)
        _size_axis(ax, [size["n"] for size in sizes])
        told = "; ".join(f"{_size(size['n'])}: {_share(size['rate'])}" for size in sizes)
        return inline(fig, key, f"{kind['words']}: failed requests by size of the request: {told}")


def in_row(kind: Part, key: str) -> str | None:
    """Return the rate of failures over requests handled one after another, with its intervals and the tolerance.

    Args:
        kind: one kind of request of a qualification.
        key: prefix of the ids, unique in the page.

    Returns:
        An SVG element; None where no requests were handled in a row.
    """
    row = kind["in_row"]
    if row is None:
        return None
    known = [(n, rate) for n, rate in zip(row["tried"], row["rates"], strict=True) if fmt.known(rate)]
    if not known:
        return None
    with style(key):
        fig, ax = _axes()
        ax.axhline(100 * row["tolerance"], **LOOKS[TOLERANCE].stroke())
        _line(ax, [n for n, _ in known], [rate for _, rate in known], LOOKS[UNLEARNED], 100)
        _share_axis(ax)
        _size_axis(ax, [n for n, _ in known])
        ax.set_xlabel(f"requests in a row, of {_size(row['n'])} each")
        told = "; ".join(f"{n}: {_share(rate)}" for n, rate in known)
        held = f"tolerance {fmt.digits(row['tolerance'], '1')}%"
        return inline(fig, key, f"{kind['words']}: failures after so many requests in a row: {told}; {held}")


def _axes() -> tuple[Figure, Axes]:
    fig = figure(*SIZE)
    ax = fig.add_subplot()
    ax.grid(axis="y")
    ax.set_axisbelow(True)
    return fig, ax


def _line(ax: Axes, at: Sequence[float], entries: Sequence[Part], look: Look, by: float = 1.0) -> None:
    """Draw numbers over their places, each with its interval where it has one."""
    for x, entry in zip(at, entries, strict=True):
        if fmt.half(entry) is not None:
            ax.plot([x, x], [by * entry["low"], by * entry["high"]], color=look.colour, lw=1.5, zorder=4)
    values = [by * entry["x"] for entry in entries]
    ax.plot(at, values, **look.stroke(), marker=look.marker, ms=6, mew=0)


def _floors(ax: Axes, sizes: Sequence[Part]) -> None:
    """Draw how far retrained models lie from each other: the margin, as a band; of one size as a bar."""
    known = [(size["n"], size["floor"]) for size in sizes if size["floor"] is not None]
    if len(known) == 1:
        ((n, floor),) = known
        known = [(n / ASIDE, floor), (n * ASIDE, floor)]
    if known:
        at, floors = zip(*known, strict=True)
        ax.fill_between(at, [-floor for floor in floors], floors, color=SKY, alpha=0.28, lw=0)


def _bounds(ax: Axes, points: Sequence[tuple[float, float]]) -> None:
    _level(ax, points, LOOKS[BOUND], 1.3)
    x, y = [n for n, _ in points], [bound for _, bound in points]
    ax.plot(x, y, "_", color=LOOKS[BOUND].colour, ms=13, mew=2, zorder=3)


def _level(ax: Axes, points: Sequence[tuple[float, float]], look: Look, width: float = 1.9) -> None:
    """Draw a line from size to size; of one size alone a short one about it."""
    if len(points) == 1:
        ((n, level),) = points
        points = [(n / ASIDE, level), (n * ASIDE, level)]
    ax.plot([n for n, _ in points], [level for _, level in points], **{**look.stroke(), "lw": width})


def _size_axis(ax: Axes, sizes: Sequence[float]) -> None:
    """Lay sizes out by their logarithm, each labelled that does not stand too close to the one before."""
    ax.set_xscale("log")
    shown: list[float] = []
    for n in sorted(set(sizes)):
        shown += [n] if not shown or n >= APART * shown[-1] else []
    ax.xaxis.set_major_locator(FixedLocator(shown))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,g}"))
    room = max(1.25, (max(sizes) / min(sizes)) ** 0.08) if len(set(sizes)) > 1 else 2
    ax.set_xlim(min(sizes) / room, max(sizes) * room)
    ax.set_xlabel("forgotten samples in a request")


def _gap_axis(ax: Axes, sizes: Sequence[Part]) -> None:
    """Mark gaps on either side of 0; where floors and bounds span much, logarithmic beyond the smallest of them."""
    levels = [size[name] for size in sizes for name in ("floor", "bound") if size[name]]
    most = max([*levels, *(abs(end) for size in sizes for end in _ends(size["gap"]))])
    number = FuncFormatter(lambda y, _: f"{y:,g}".replace("-", "−"))
    if levels and max(levels) > SPAN * min(levels):
        least = 10.0 ** math.floor(math.log10(min(levels)))
        ax.set_yscale("symlog", linthresh=least, linscale=0.6)
        decades = [least * 10.0**k for k in range(math.floor(math.log10(most / least)) + 1)]
        ax.yaxis.set_major_locator(FixedLocator([*(-d for d in reversed(decades)), 0.0, *decades]))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_minor_formatter(NullFormatter())
    else:
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    ax.yaxis.set_major_formatter(number)


def _ends(gap: Part) -> list[float]:
    return [gap["x"]] if fmt.half(gap) is None else [gap["x"], gap["low"], gap["high"]]


def _share_axis(ax: Axes) -> None:
    ax.set_ylim(-4, 104)
    ax.yaxis.set_major_locator(FixedLocator([0, 25, 50, 75, 100]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}%"))


def _original(size: Part) -> float:
    return float(size["failed_original"] / max(size["requests"], 1))


def _size(n: float) -> str:
    """Return a number of samples, which as a median may be halved, with its noun.

    >>> _size(1), _size(36.5)
    ('1 sample', '36.5 samples')
    """
    return f"{n:,g} sample{'' if n == 1 else 's'}"


def _share(rate: Part) -> str:
    return fmt.value({**rate, "unit": "1"}, ends=True)


def _gap_told(size: Part, unit: str) -> str:
    gap, after = fmt.difference({**size["gap"], "unit": unit}, ends=True), fmt.suffix(unit)
    floor, bound = (
        "not known" if size[name] is None else fmt.digits(size[name], unit) + after for name in ("floor", "bound")
    )
    return f"{_size(size['n'])}: {gap}{after}, floor {floor}, bound {bound}"
