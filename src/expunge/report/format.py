"""Numbers and names as text: shares in percent, gaps in points, seconds and bytes with as many digits as they carry."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

MISSING = "–"
MIB = 2**20
JOINERS = "\u200c\u200d"  # letters of some scripts and emoji need them


def plain(text: object, most: int | None = None) -> str:
    r"""Return one line of text without control characters, cut after ``most`` characters.

    Terminals obey escape sequences, XML forbids them, and marks of writing direction can make a name read as
    another, so no name keeps any.

    >>> plain("a\x1b[31m\nb"), plain("layer4.1.conv2.weight", 10)
    ('a [31m b', 'layer4.1.…')
    """
    bad = {"Cc", "Cf", "Cs", "Cn"}  # control, invisible format, half a surrogate pair, no character at all
    clean = "".join(" " if unicodedata.category(c) in bad and c not in JOINERS else c for c in str(text))
    clean = " ".join(clean.split())
    return clean if most is None or len(clean) <= most else clean[: most - 1] + "…"


def scale(unit: str) -> float:
    """Return what a number of this unit is multiplied with before it is printed."""
    return {"1": 100.0, "bytes": 1 / MIB}.get(unit, 1.0)


def resolution(unit: str) -> float:
    """Return the smallest difference that the printed digits can show, in the unit itself; 0 where none is fixed."""
    return {"1": 0.001, "nats": 0.001}.get(unit, 0.0)


def suffix(unit: str, gap: bool = False) -> str:
    """Return the printed unit, with the space before it; shares are percent and their differences points."""
    if unit == "1":
        return " points" if gap else "%"
    return {"bytes": " MiB"}.get(unit, f" {plain(unit)}" if unit else "")


def digits(x: float, unit: str, like: float | None = None) -> str:
    """Return a number in its printed scale, without unit and with a true minus sign.

    Args:
        x: the number, in its unit.
        unit: ``1``, ``nats``, ``s``, ``bytes`` or any other.
        like: a number with whose decimals it is printed, the estimate for its interval; None for its own.

    Returns:
        The text; what is above zero but too small for its decimals prints as below the last of them.

    >>> digits(0.9734, "1"), digits(-0.0004, "1"), digits(1.5e-5, "1"), digits(0.0123, "s"), digits(3 * 2**20, "bytes")
    ('97.3', '0.0', '<0.1', '0.012', '3.0')
    """
    scaled, places = x * scale(unit), _places((x if like is None else like) * scale(unit), unit)
    if places is None:
        return f"{scaled:.2e}".replace("-", "−")
    text = f"{scaled:,.{places}f}"
    if not text.strip("-0."):
        return "<" + (f"{10**-places:.{places}f}" if places else "1") if scaled > 0 else text.removeprefix("-")
    return text.replace("-", "−")


def _places(scaled: float, unit: str) -> int | None:
    """Return how many decimals a number prints with: fixed for shares and nats, else three significant digits."""
    if unit in {"1", "nats"}:
        return {"1": 1, "nats": 3}[unit]
    if unit in {"bytes", "steps"}:
        return 1 if abs(scaled) < 100 and (unit == "bytes" or scaled % 1) else 0
    if scaled == 0 or (unit == "s" and abs(scaled) < 1e-3):
        return 3 if unit == "s" else 0
    size = math.floor(math.log10(abs(scaled)))
    # Two digits below 0.1, and an exponent only for the tiny and the huge.
    return max(0, (2 if size >= -1 else 1) - size) if -5 <= size <= 8 else None


def ideal(metric: Mapping[str, Any]) -> str:
    """Return a metric's ideal by definition as text, or an empty string where it is retrained's value.

    >>> ideal({"target": 0.5, "unit": "1"}), ideal({"target": 0, "unit": "nats"}), ideal({"target": None, "unit": "1"})
    ('50%', '0 nats', '')
    """
    if metric.get("target") is None:
        return ""
    unit = str(metric["unit"])
    return f"{metric['target'] * scale(unit):g}".replace("-", "−") + suffix(unit)


def known(value: Mapping[str, Any] | None) -> bool:
    """Return whether the entry of a document holds a number rather than a reason."""
    return value is not None and value.get("x") is not None


def half(value: Mapping[str, Any]) -> float | None:
    """Return half the width of the interval, or None where one observation, or none at all, gives no interval."""
    low, high = value.get("low"), value.get("high")
    if value.get("n", 0) <= 1 or low is None or high is None:
        return None
    return (float(high) - float(low)) / 2


def value(
    entry: Mapping[str, Any], compact: bool = False, gap: bool = False, named: bool = True, ends: bool = False
) -> str:
    """Return an estimate with its interval: x ± half, or x (low to high) where the interval is lopsided.

    Args:
        entry: x, low, high, n and unit.
        compact: leave out unit and spaces, for a terminal: x±half, or x+up−down where the interval is lopsided.
        gap: the entry is a difference, so that shares print as points.
        named: with its unit; without, only the percent sign is kept, and points are numbers.
        ends: always as x (low to high): an interval over samples is no spread over runs, and must not read like one.

    Returns:
        The text; x alone where there is no interval.

    >>> value({"x": 0.973, "low": 0.969, "high": 0.977, "n": 5, "unit": "1"})
    '97.3 ± 0.4%'
    >>> value({"x": 0.0, "low": 0.0, "high": 0.036, "n": 103, "unit": "1"}, compact=True)
    '0.0+3.6'
    >>> value({"x": 0.973, "low": 0.969, "high": 0.977, "n": 500, "unit": "1"}, ends=True)
    '97.3% (96.9 to 97.7)'
    >>> value({"x": 0.973, "low": None, "high": None, "n": 1, "unit": "1"})
    '97.3%'
    >>> value({"x": 200.0, "low": 200.0, "high": None, "n": 1, "unit": "steps"})
    '≥ 200 steps'
    """
    unit = str(entry.get("unit", ""))
    after = suffix(unit, gap) if named or (unit == "1" and not gap) else ""
    middle, spread = digits(entry["x"], unit), half(entry)
    if spread is None and entry.get("high") is None and entry.get("low") == entry["x"]:
        return f"≥{middle}" if compact else f"≥ {middle}{after}"  # counting ended there
    if spread is None or middle.startswith("<"):
        return middle if compact else middle + after
    around = digits(spread, unit, like=entry["x"])
    down, up = entry["x"] - entry["low"], entry["high"] - entry["x"]
    lopsided = abs(up - down) > 0.5 * spread and abs(up - down) >= resolution(unit)
    if compact and not lopsided and not ends:
        return f"{middle}±{around}"
    if compact and not ends:
        sides = [f"{sign}{digits(side, unit, like=entry['x'])}" for sign, side in (("+", up), ("−", down)) if side > 0]
        return middle + "".join(sides)
    if lopsided or ends:
        low, high = (digits(entry[end], unit, like=entry["x"]) for end in ("low", "high"))
        return f"{middle}{'' if compact else after} ({low} to {high})"
    return f"{middle} ± {around}{after}"


def gap(entry: Mapping[str, Any], like: float | None = None) -> str:
    """Return a signed difference without its unit.

    Args:
        entry: x and unit.
        like: a number with whose decimals it is printed, or None for its own.

    Returns:
        The text.

    >>> gap({"x": 0.012, "unit": "1"}), gap({"x": -0.5, "unit": "nats"}), gap({"x": 0.0, "unit": "1"})
    ('+1.2', '−0.500', '0.0')
    """
    unit = str(entry.get("unit", ""))
    text = digits(abs(entry["x"]), unit, like)
    if not text.strip("0.,"):
        return text
    return ("+" if entry["x"] > 0 else "−") + text


def difference(entry: Mapping[str, Any], like: float | None = None, compact: bool = False, ends: bool = False) -> str:
    """Return a signed difference with its interval, without its unit.

    Args:
        entry: x, low, high, n and unit.
        like: a number with whose decimals it is printed, or None for its own.
        compact: leave out spaces.
        ends: always as x (low to high), as `value` does.

    Returns:
        The text; the difference alone where there is no interval.

    >>> difference({"x": -0.012, "low": -0.015, "high": -0.009, "n": 5, "unit": "1"})
    '−1.2 ± 0.3'
    >>> difference({"x": -0.012, "low": -0.015, "high": 0.001, "n": 90, "unit": "1"}, ends=True)
    '−1.2 (−1.5 to +0.1)'
    """
    text, spread, unit = gap(entry, like), half(entry), str(entry.get("unit", ""))
    if spread is None:
        return text
    if ends:
        sides = [gap({"x": entry[end], "unit": unit}, entry["x"] if like is None else like) for end in ("low", "high")]
        return f"{text} ({' to '.join(sides)})"
    between = "±" if compact else " ± "
    return text + between + digits(spread, unit, entry["x"] if like is None else like)


def distance(entry: Mapping[str, Any]) -> str:
    """Return the size of a difference, without sign or unit: averaged after the sign was dropped, where known.

    >>> distance({"x": -0.012, "unit": "1"}), distance({"x": 0.0, "distance": 0.5, "unit": "1"})
    ('1.2', '50.0')
    """
    return digits(size(entry), str(entry.get("unit", "")))


def size(entry: Mapping[str, Any]) -> float:
    """Return the mean size of a difference over seeds, or the size of its mean where the former is not given."""
    return float(entry.get("distance", abs(entry["x"])))


def times(length: float) -> str:
    """Return how many yardsticks a gap is long.

    >>> times(0.31), times(25.2), times(4e5)
    ('0.3×', '25×', '>999×')
    """
    return f"{length:.1f}×" if length < 9.95 else f"{length:,.0f}×" if length < 1000 else ">999×"


def count(n: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun.

    >>> count(1, "seed"), count(1200, "seed")
    ('1 seed', '1,200 seeds')
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def listed(parts: list[str]) -> str:
    """Return the parts joined as a sentence does.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1] if parts else ""
