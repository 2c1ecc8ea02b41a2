"""The ROC curves of the attacks, one panel each, on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator
from numpy.typing import NDArray

from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report.document import Section
from expunge.report.looks import Look
from expunge.report.svg import GREY, figure, inline, style

SIZE = 290
FINEST = 1e-4  # smallest rate drawn
COARSEST = 0.1
COARSE = 4  # points of a curve whose attack scores with two values only
SHORT = 8e-3  # where the axes begin, above which decades alone are too few ticks
PIXEL = 1.2  # a step of a curve that is shorter is not drawn


def panels(section: Section, look: Mapping[str, Look], key: str) -> list[str]:
    """Return the ROC curves of every attack that has them, log by log, with the diagonal of a guess.

    The axes begin at one over the number of unseen samples, the smallest false-positive rate that they can show.

    Args:
        section: a section of the document.
        look: how each model is drawn, from `expunge.report.looks.looks`.
        key: prefix of the ids, unique in the page.

    Returns:
        SVG elements in the order of the tables.
    """
    curves = section.get("curves", {}).get("roc") or {}
    labels = {m["name"]: m["label"] for m in doc.metrics(section)}
    order = [name.split("/")[1] for name in labels if name.startswith("membership/") and name.endswith("/auc")]
    out: list[str] = []
    points = {a: max((len(c["fpr"]) for c in by.values()), default=0) for a, by in curves.items()}
    coarse = {a for a, most in points.items() if most <= COARSE}  # a score of two values: little to see, so last
    for attack in sorted(curves, key=lambda a: (a in coarse, order.index(a) if a in order else len(order))):
        title = labels.get(f"membership/{attack}/auc", f"{attack} attack").removesuffix(": AUC").removesuffix(", AUC")
        models = [m["name"] for m in doc.models(section) if curves[attack].get(m["name"], {}).get("fpr")]
        if models:
            out.append(_panel(section, attack, title, curves[attack], models, look, f"{key}-{len(out)}"))
    return out


def resolved(curves: Mapping[str, Any]) -> float:
    """Return the smallest false-positive rate that the unseen samples behind some curves can show: one over them.

    Args:
        curves: ``fpr`` and ``tpr`` by model, at the corners of a staircase.

    Returns:
        The smallest difference between two of the rates, inside [1e-4, 0.1].
    """
    rates = np.unique(np.concatenate([np.asarray(c["fpr"], dtype=np.float64) for c in curves.values()]))
    steps = np.diff(rates)
    steps = steps[steps > 1e-9]  # the same share, rounded another way, is no step
    return float(min(COARSEST, max(FINEST, steps.min(initial=COARSEST))))


def _panel(
    section: Section,
    attack: str,
    title: str,
    curves: Mapping[str, Any],
    models: Sequence[str],
    look: Mapping[str, Look],
    key: str,
) -> str:
    least = resolved({m: curves[m] for m in models})
    with style(key):
        fig = figure(SIZE, SIZE + 12)
        ax = fig.add_subplot()
        ax.plot([least, 1], [least, 1], color=GREY, lw=1, ls=(0, (1, 2)))
        for model in models:
            x, y = thinned(curves[model]["fpr"], curves[model]["tpr"], least)
            ax.plot(x, y, **look[model].stroke() | {"lw": 1.1 if look[model].behind else 1.5})
        ax.set(xscale="log", yscale="log", xlim=(least, 1), ylim=(least, 1.05), aspect="equal")
        ax.set(xlabel="false-positive rate", ylabel="true-positive rate")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if least > SHORT else (1,), numticks=9))
            axis.set_minor_locator(FixedLocator([]))
            axis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g}%"))
        ax.grid(which="major")
        ax.set_axisbelow(True)
        ax.set_title(fmt.plain(title, 30), loc="left")
        areas = [(m, doc.found(section, "values", m, f"membership/{attack}/auc")) for m in models]
        told = "; ".join(f"{fmt.plain(m)} {fmt.value(v)}" if v else fmt.plain(m) for m, v in areas)
        return inline(fig, key, f"ROC curves of the {title}, area under the curve: {told}")


def thinned(
    fpr: Sequence[float], tpr: Sequence[float], least: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the corners of a curve that can be told apart in a panel.

    Args:
        fpr: false-positive rates, rising.
        tpr: true-positive rates, as many.
        least: where the logarithmic axes begin.

    Returns:
        Rates no lower than a tenth of ``least``, so that a logarithm of 0 lies outside the frame instead of nowhere.
    """
    x, y = (np.maximum(np.asarray(v, dtype=np.float64), least / 10) for v in (fpr, tpr))
    across = SIZE / -math.log(least)
    places = np.stack([np.log(np.maximum(v, least)) for v in (x, y)], axis=1) * across
    kept = [0]
    for i in range(1, len(x) - 1):
        if np.abs(places[i] - places[kept[-1]]).max() >= PIXEL:
            kept.append(i)
    kept = list(dict.fromkeys([*kept, len(x) - 1]))
    return x[kept], y[kept]
