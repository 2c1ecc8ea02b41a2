"""Exact unlearning by keeping apart what each part of a model was trained on: the choice, the theory, the training."""

from __future__ import annotations

from expunge.exact.arrivals import Independent, Owners, Samples
from expunge.exact.orders import Order
from expunge.exact.sequences import Live, best, choose, depth
from expunge.exact.simulate import Simulation, lifetime, plans, restarts, simulate

__all__ = [
    "Independent",
    "Live",
    "Order",
    "Owners",
    "Samples",
    "Simulation",
    "best",
    "choose",
    "depth",
    "lifetime",
    "plans",
    "restarts",
    "simulate",
]
