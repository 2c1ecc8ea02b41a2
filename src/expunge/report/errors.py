"""How the errors of predictions are distributed, a panel a set and a line a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator

from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report.document import Section
from expunge.report.looks import Look
from expunge.report.predictions import NAMES, Picture, chosen, not_drawn
from expunge.report.svg import figure, inline, style

SIZE = 290
WIDE = 12.0  # largest over smallest median error beyond which the axis is logarithmic
TAIL = 0.98  # share of the samples up to which errors are drawn on a linear axis
HEAD = 0.05  # share of the samples from which they are drawn on a logarithmic one
DISTANCE = "wasserstein/forget"  # the number that compares the predictions' distributions


def errors(section: Section, look: Mapping[str, Look], key: str) -> Picture | None:
    """Return the share of samples with an error of at most so much: forgotten, retained and unseen ones.

    Args:
        section: a section of the document.
        look: how each model is drawn, from `expunge.report.looks.looks`.
        key: prefix of the ids, unique in the page.

    Returns:
        A panel a set, all on one axis of errors; None where no target is a real number.
    """
    sets: Mapping[str, Any] = (section.get("predictions") or {}).get("errors") or {}
    if not sets:
        return None
    names = [m for part in sets.values() for m in part["models"]]
    models, left = chosen(section, names)
    floors = [str(m["name"]) for m in doc.of_role(section, "floor") if m["name"] in names][:1]
    ends, logarithmic = _axis([part["models"][m] for part in sets.values() for m in models if m in part["models"]])
    svgs = []
    for split, part in sets.items():
        lines = {m: part["models"][m] for m in [*floors, *models] if m in part["models"]}
        svgs.append(_panel(split, part["of"], lines, ends, logarithmic, look, f"{key}-{split}"))
    text = " ".join(filter(None, (_text(section, models), _distance(section, models, floors), not_drawn(left))))
    return Picture("Errors of forgotten, retained and unseen samples", text, tuple(svgs), (*models, *floors))


def _axis(quantiles: Sequence[Sequence[float]]) -> tuple[tuple[float, float], bool]:
    """Return the ends of the axis of errors, and whether it is logarithmic: errors differ by much."""
    found = np.asarray(quantiles, dtype=np.float64)
    last = found.shape[1] - 1
    middle = found[:, last // 2]
    if middle.min() > 0 and middle.max() / middle.min() > WIDE:
        low = float(found[:, round(HEAD * last)].min())
        return (max(low, float(middle.min()) / 100), float(found[:, round(TAIL * last)].max())), True
    return (0.0, float(found[:, round(TAIL * last)].max()) or 1.0), False


def _panel(
    split: str,
    of: int,
    lines: Mapping[str, Sequence[float]],
    ends: tuple[float, float],
    logarithmic: bool,
    look: Mapping[str, Look],
    key: str,
) -> str:
    with style(key):
        fig = figure(SIZE, SIZE - 40)
        ax = fig.add_subplot()
        for model, values in lines.items():
            ax.plot(values, np.linspace(0, 100, len(values)), **look[model].stroke())
        if logarithmic:
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(numticks=6))
            ax.xaxis.set_minor_locator(FixedLocator([]))
        else:
            ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        ax.yaxis.set_major_locator(FixedLocator([0, 25, 50, 75, 100]))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}%"))
        ax.set(xlim=ends, ylim=(0, 101), xlabel="absolute error, at most", ylabel="samples")
        ax.grid()
        ax.set_axisbelow(True)
        ax.set_title(f"{NAMES[split]}, {fmt.count(of, 'sample')}", loc="left")
        told = [f"{fmt.plain(m)} {fmt.digits(float(np.median(v)), '')}" for m, v in lines.items()]
        return inline(fig, key, f"Absolute errors on the {NAMES[split]}, median: {', '.join(told)}")


def _text(section: Section, models: Sequence[str]) -> str:
    text = "The share of samples whose prediction is off by at most so much: lines farther left are of smaller errors."
    if not any(m["name"] in models for m in doc.of_role(section, "retrained")):
        return f"{text} There is no retrained model here to compare with."
    return f"{text} Ideally the unlearned model's line lies on retrained's in every panel, be that left or right."


def _distance(section: Section, models: Sequence[str], floors: Sequence[str]) -> str:
    """Return how far apart the predictions' distributions on the forget set are, where that was measured."""
    wanted = [m for m in [*models, *floors] if m not in {r["name"] for r in doc.of_role(section, "retrained")}]
    found = {m: v for m in wanted if (v := doc.found(section, "values", m, DISTANCE)) is not None}
    if not found:
        return ""
    told = fmt.listed([f"{fmt.plain(m)} {fmt.value(v)}" for m, v in found.items()])
    return f"1-Wasserstein distance W₁ of the predictions on the forget set from retrained's, ideal 0: {told}."
