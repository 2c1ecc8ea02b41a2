"""Many models and what they tell together: scores of membership and of unlearning from collected numbers.

``Pool`` holds margins under shadow models; ``lira``, ``u_lira`` and ``rmia`` score membership; ``Klom`` and
``forgetting_quality`` compare unlearned with retrained ensembles; ``gaussian_scores`` needs one model alone. All are
functions of numbers: nothing here trains a model.
"""

from __future__ import annotations

from expunge.shadows.gaussian import GaussianScores, gaussian_scores, least_mean
from expunge.shadows.klom import Klom, Spread
from expunge.shadows.lira import Rates, lira, u_lira, u_lira_rates
from expunge.shadows.pool import Pool, draw, half, more
from expunge.shadows.quality import Quality, bins, epsilon, epsilons, forgetting_quality, points, resolved
from expunge.shadows.rmia import Tuned, rmia, tuned

__all__ = [
    "GaussianScores",
    "Klom",
    "Pool",
    "Quality",
    "Rates",
    "Spread",
    "Tuned",
    "bins",
    "draw",
    "epsilon",
    "epsilons",
    "forgetting_quality",
    "gaussian_scores",
    "half",
    "least_mean",
    "lira",
    "more",
    "points",
    "resolved",
    "rmia",
    "tuned",
    "u_lira",
    "u_lira_rates",
]
