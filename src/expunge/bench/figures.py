"""Figures over a grid's finished cells: what edits recorded over their steps, and what is kept along a setting."""

from __future__ import annotations

from collections.abc import Sequence

from expunge.bench.collect import Group
from expunge.bench.curves import trace
from expunge.bench.grid import Grid
from expunge.bench.planes import frontier
from expunge.bench.shown import Made, Wanted, shown

KINDS = {"trace": trace, "frontier": frontier}


def make(grid: Grid, groups: Sequence[Group], wanted: Wanted) -> Made:
    """Return a figure over finished cells; nothing is computed.

    Args:
        grid: what was asked for.
        groups: what there is, from `expunge.bench.collect.groups` with ``logs``.
        wanted: what it is to show.

    Returns:
        The figure, with all that is missing in it told; `Made.write` writes it to a file.

    Raises:
        UserError: no such place, method, recorded name, number or setting, or nothing finished among those.
    """
    return KINDS[wanted.of](shown(grid, groups, wanted))
