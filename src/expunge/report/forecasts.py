"""A few forgotten series with what each model says of them, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report.document import Section
from expunge.report.looks import Look
from expunge.report.predictions import Picture, chosen, not_drawn
from expunge.report.svg import GREY, figure, inline, style

WIDTH, HEIGHT = 350, 220
LINES = 4  # models of one chart
BEYOND = 1.0  # of the targets' span, that the axis follows what lies outside of it


def strips(section: Section, look: Mapping[str, Look], key: str) -> Picture | None:
    """Return forecasts of a few samples of the forget set: target, predictions, and intervals between quantiles.

    Args:
        section: a section of the document.
        look: how each model is drawn, from `expunge.report.looks.looks`.
        key: prefix of the ids, unique in the page.

    Returns:
        A chart a sample; None where a sample has one target, or its targets are no real numbers.
    """
    found: Mapping[str, Any] | None = (section.get("predictions") or {}).get("windows")
    if not found or not found["said"]:
        return None
    models, left = chosen(section, list(found["said"]), LINES)
    svgs = [_strip(found, at, models, look, f"{key}-{at}") for at in range(len(found["target"]))]
    parts = (_text(section, found), _ideal(section, models), not_drawn(left))
    return Picture("Some forgotten samples, step by step", " ".join(filter(None, parts)), tuple(svgs), tuple(models))


def _strip(found: Mapping[str, Any], at: int, models: Sequence[str], look: Mapping[str, Look], key: str) -> str:
    target = np.asarray(found["target"][at], dtype=np.float64)
    steps = np.arange(1, len(target) + 1)
    with style(key):
        fig = figure(WIDTH, HEIGHT)
        ax = fig.add_subplot()
        ax.plot(steps, target, color=GREY, alpha=0.8, lw=4, solid_capstyle="round", zorder=2)
        for model in models:
            if model in found["low"]:
                low, high = (np.asarray(found[end][model][at], dtype=np.float64) for end in ("low", "high"))
                ax.fill_between(steps, low, high, color=look[model].colour, alpha=0.13, lw=0, zorder=1)
            ax.plot(steps, found["said"][model][at], **look[model].stroke())
        ax.set_ylim(*_ends(found, at, models, target))
        ax.set(xlim=(1, max(2, len(target))), xlabel="step")
        ax.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}".replace("-", "−")))
        ax.grid(axis="y")
        ax.set_axisbelow(True)
        off = {m: float(np.abs(np.asarray(found["said"][m][at]) - target).mean()) for m in models}
        ax.set_title(f"sample {at + 1} of {len(found['target'])}", loc="left")
        told = ", ".join(f"{fmt.plain(m)} {fmt.digits(error, '')}" for m, error in off.items())
        what = f"Sample {at + 1} of the forget set over {len(target)} steps"
        return inline(fig, key, f"{what}, mean absolute error: {told}")


def _ends(found: Mapping[str, Any], at: int, models: Sequence[str], target: Any) -> tuple[float, float]:
    """Return the ends of the axis: all that is drawn, but of what lies far from the target only the beginning."""
    low, high = float(target.min()), float(target.max())
    span = high - low or max(abs(low), 1.0)
    parts = [found[part][m][at] for part in ("said", "low", "high") for m in models if m in found[part]]
    every = np.concatenate([target, *(np.asarray(p, dtype=np.float64) for p in parts)])
    ends = max(low - BEYOND * span, every.min()), min(high + BEYOND * span, every.max())
    return float(ends[0] - 0.05 * span), float(ends[1] + 0.05 * span)


def _text(section: Section, found: Mapping[str, Any]) -> str:
    shown, of = len(found["target"]), int(found["of"])
    first = "original" if doc.of_role(section, "original") else "retrained"
    which = f"{shown} of the {of:,} samples of the forget set, evenly over the error of {first}, the smallest first."
    drawn = len(found["target"][0])
    cut = f" Of {found['steps']:,} steps the first {drawn} are drawn." if drawn < found["steps"] else ""
    seeds = " They are those of the first seed." if section["seeds"] > 1 else ""
    band = ", the bands reach from the lowest to the highest quantile" if found["low"] else ""
    return f"{which} The wide grey line is the target, thin lines are the models' predictions{band}.{cut}{seeds}"


def _ideal(section: Section, models: Sequence[str]) -> str:
    if not any(m["name"] in models for m in doc.of_role(section, "retrained")):
        return ""
    return "Ideally the unlearned model's line and band lie on retrained's, as far from the target as those."
