"""Curvature of the training loss: products with it, and solvers of (C + δI)·x = v."""

from __future__ import annotations

from expunge.influence.gram import Gradients, Listed, OfModel
from expunge.influence.products import (
    KINDS,
    Curvature,
    Kind,
    Matrix,
    Operator,
    directional,
    gradient,
)
from expunge.influence.solvers import CG, Direct, Lissa, Solution, Solver
from expunge.influence.space import Space, named
from expunge.influence.woodbury import Compat, LowRank, Woodbury

__all__ = [
    "CG",
    "KINDS",
    "Compat",
    "Curvature",
    "Direct",
    "Gradients",
    "Kind",
    "Lissa",
    "Listed",
    "LowRank",
    "Matrix",
    "OfModel",
    "Operator",
    "Solution",
    "Solver",
    "Space",
    "Woodbury",
    "directional",
    "gradient",
    "named",
]
