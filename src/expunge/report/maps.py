"""Maps of features: where the forgotten samples lie among the retained ones, before, after and under retrained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.errors import Incompatible
from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report.charts import NAME
from expunge.report.document import Section
from expunge.report.looks import Look
from expunge.report.predictions import Picture, chosen, dots, not_drawn
from expunge.report.svg import GREY, VERMILION, figure, inline, style

RECORD = "representation_map"  # what methods call the map that they record of themselves
WIDE, HIGH = 250, 240
ROOM, BEYOND = 0.06, 0.5  # of the first map's span: beside it, and that the axes follow samples which left it
TITLE = "Where samples lie in the features"
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Sheet:
    """One map.

    Args:
        title: heading.
        forget: places of forgotten samples, (n, 2).
        retain: places of retained samples, (n, 2).
        colour: of the forgotten samples.
    """

    title: str
    forget: Points
    retain: Points
    colour: str

    @property
    def every(self) -> Points:
        """All places."""
        return np.concatenate([self.forget, self.retain])


def charts(section: Section, look: Mapping[str, Look], key: str) -> Picture | None:
    """Return the maps of a section: the original first, retrained last, on common axes.

    Args:
        section: a section of the document.
        look: how each model is drawn, from `expunge.report.looks.looks`.
        key: prefix of the ids, unique in the page.

    Returns:
        A panel a model; None where no features were collected.
    """
    found = section.get("maps")
    if not found:
        return None
    models, left = chosen(section, list(found["models"]))
    sheets = [_sheet(model, found["models"][model], look[model].colour) for model in models]
    if not sheets:
        return None
    own = [m for m in models if m in found["own"]]
    text = f"{_legend(found['explained'], 'the features that the original has of retained samples')} {_anew(own)}"
    return _picture(sheets, text, not_drawn(left), key)


def recorded(log: Mapping[str, Any], key: str) -> Picture | None:
    """Return the map that a method recorded of its own edit, before and after; None where it recorded none.

    Args:
        log: what the edit recorded; ``representation_map`` holds ``explained``, ``kinds`` (``retain`` or ``forget`` by
            sample), ``before`` and ``after`` (a place a sample).
        key: prefix of the ids, unique in the page.

    Raises:
        Incompatible: the record is no such map.
    """
    found = log.get(RECORD)
    if found is None:
        return None
    try:
        gone = np.asarray([kind == "forget" for kind in found["kinds"]], dtype=bool)
        places = {when: np.asarray(found[when], dtype=np.float64).reshape(len(gone), 2) for when in ("before", "after")}
        shares = [float(share) for share in found["explained"]]
    except (KeyError, TypeError, ValueError) as error:
        want = f"kinds, before, after and explained in {RECORD}, a place of two numbers a sample"
        raise Incompatible(want, f"something else ({error})", doc.REMEDY) from error
    sheets = [Sheet(when, at[gone], at[~gone], VERMILION) for when, at in places.items()]
    text = _legend(shares, "the representations that the original has of retained samples")
    return _picture(sheets, text, "", key) if len(gone) else None


def _sheet(model: str, places: Mapping[str, Any], colour: str) -> Sheet:
    forget, retain = (np.asarray(places[s], dtype=np.float64).reshape(-1, 2) for s in ("forget", "retain"))
    return Sheet(model, forget, retain, colour)


def _picture(sheets: Sequence[Sheet], text: str, left: str, key: str) -> Picture:
    low, high = _ends(sheets)
    outside = sum(int(((s.every < low) | (s.every > high)).any(axis=1).sum()) for s in sheets)
    away = f"{fmt.count(outside, 'sample')} beyond the axes {'is' if outside == 1 else 'are'} drawn at their edge."
    svgs = tuple(_panel(sheet, low, high, f"{key}-{at}") for at, sheet in enumerate(sheets))
    return Picture(TITLE, " ".join(filter(None, [text.strip(), away if outside else "", left])), svgs)


def _ends(sheets: Sequence[Sheet]) -> tuple[Points, Points]:
    """Return the lower and upper ends of both axes: the first map's span, and half of it more for what left it."""
    first, every = sheets[0].every, np.concatenate([sheet.every for sheet in sheets])
    low, high = first.min(axis=0), first.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    low = np.maximum(low - BEYOND * span, np.minimum(low, every.min(axis=0)))
    high = np.minimum(high + BEYOND * span, np.maximum(high, every.max(axis=0)))
    return low - ROOM * span, high + ROOM * span


def _panel(sheet: Sheet, low: Points, high: Points, key: str) -> str:
    with style(key):
        fig = figure(WIDE, HIGH)
        ax = fig.add_subplot()
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[])
        for side in ("top", "right"):
            ax.spines[side].set_visible(True)
        for spine in ax.spines.values():
            spine.set_alpha(0.35)
        ax.set_title(fmt.plain(sheet.title, NAME), loc="left")
        fig.draw_without_rendering()
        fig.set_layout_engine("none")  # dots are placed in pixels, so nothing may move any more
        for places, colour, opacity in ((sheet.retain, GREY, 0.55), (sheet.forget, sheet.colour, 0.8)):
            if len(places):
                dots(fig, ax, places.clip(low, high).T, colour, opacity)
        return inline(fig, key, f"{TITLE}, {fmt.plain(sheet.title)}: {_told(sheet)}")


def _told(sheet: Sheet) -> str:
    """Return how far the forgotten samples lie from the retained ones, for those who cannot see it."""
    if not len(sheet.forget) or not len(sheet.retain):
        return "no samples of one of the two sets"
    spread = float(np.sqrt(np.square(sheet.retain - sheet.retain.mean(axis=0)).sum(axis=1).mean()))
    away = float(np.linalg.norm(sheet.forget.mean(axis=0) - sheet.retain.mean(axis=0)))
    far = f"{away / spread:.2g} times their spread" if spread else "at no spread"
    return (
        f"the middle of {len(sheet.forget)} forgotten samples is {far} from that of {len(sheet.retain)} retained ones"
    )


def _legend(shares: Sequence[float], of: str) -> str:
    share = 100 * sum(shares)
    return (
        "Dots in colour are forgotten samples, grey ones retained samples, the same in every map. The two axes are "
        f"the principal ones of {of}: they hold {share:.0f}% of its variance, and nothing is seen of the rest."
    )


def _anew(own: Sequence[str]) -> str:
    if not own:
        return ""
    names = fmt.listed([fmt.plain(m) for m in own])
    each = "axes of its own" if len(own) == 1 else "axes of their own"
    return (
        "Networks trained anew have features of other directions: "
        f"{names} {'has' if len(own) == 1 else 'have'} {each}, "
        "turned, mirrored and scaled so that the retained samples lie as near as they can to the original's."
    )
