"""Labels beside points that cover neither each other nor a point: the nearest free place, or none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

Box = tuple[float, float, float, float]  # left, bottom, right, top
Point = tuple[float, float]

DISTANCES = (2.0, 8.0, 16.0, 28.0, 42.0, 58.0)  # between a point's mark and its label, in pixels
NEAR = 8.0  # distance up to which a label needs no line to its point
PADDING = 3.0  # beside a label
LINE = 1.15  # height of a line over the size of its font
# Sides on which a label is tried, first those that the arms of a cross leave free.
SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))


@dataclass(frozen=True)
class Offset:
    """Where a label stands.

    Args:
        across: of its middle from its point, in pixels.
        up: of its middle from its point, in pixels.
        far: whether a line must lead to the point.
    """

    across: float
    up: float
    far: bool


def extent(text: str, size: float) -> Point:
    """Return width and height of a line of text in pixels, as matplotlib's own font has them: a browser's is no wider.

    Args:
        text: one line.
        size: of the font, in pixels.

    Returns:
        Width, and the height of a line whatever its letters.
    """
    if not text.strip():
        return 0.0, LINE * size
    path = TextPath((0, 0), text, size=size, prop=FontProperties(family="DejaVu Sans"), usetex=False)
    return float(path.get_extents().width), LINE * size


def place(
    points: Sequence[Point], sizes: Sequence[Point], frame: Box, radius: float, marks: Sequence[Point] = ()
) -> list[Offset | None]:
    """Return where labels go: each at the nearest place where it covers no mark and no label placed before.

    Args:
        points: what is labelled, in pixels; the first are placed first.
        sizes: width and height of each label.
        frame: what labels stay inside of.
        radius: of a mark.
        marks: further marks that no label may cover.

    Returns:
        The place of each label, or None where every place near its point is taken.
    """
    blocked = [_around(x, y, 2 * radius, 2 * radius) for x, y in [*points, *marks]]
    out: list[Offset | None] = []
    for point, size in zip(points, sizes, strict=True):
        tries = (_offset(side, size, radius, away) for away in DISTANCES for side in SIDES)
        boxes = ((o, _around(point[0] + o.across, point[1] + o.up, size[0] + 2 * PADDING, size[1])) for o in tries)
        offset, box = next(_free(boxes, frame, blocked), (None, None))
        out.append(offset)
        blocked += [] if box is None else [box]
    return out


def _free(boxes: Iterable[tuple[Offset, Box]], frame: Box, blocked: Sequence[Box]) -> Iterator[tuple[Offset, Box]]:
    for offset, box in boxes:
        if _inside(box, frame) and not any(_meet(box, other) for other in blocked):
            yield offset, box


def _offset(side: tuple[int, int], size: Point, radius: float, away: float) -> Offset:
    """Return the place on one side of a point: beside it, over it, or off one of its corners."""
    beside, over = (part != 0 for part in side)
    across = side[0] * (size[0] / 2 + away + (0.2 * radius if over else radius) + PADDING)
    up = side[1] * (size[1] / 2 + away + (0.8 * radius if beside else radius))
    return Offset(across, up, away > NEAR)


def _around(x: float, y: float, width: float, height: float) -> Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _inside(box: Box, frame: Box) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
