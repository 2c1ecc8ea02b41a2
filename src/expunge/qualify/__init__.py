"""Whether an unlearned model can be told from retrained ones: tests whose errors are known, and one verdict of three.

`tost` holds the mean difference of a number against a margin, `every` several of them; `margin_from_floor` reads the
margin off pairs of retrained models. `three_samples` compares vectors of unlearned, original and retrained models by a
kernel; `rank_number` and `rank_distance` rank one unlearned model among retrained ones. The modules `power` and
`planted` say what so many models or samples could have shown. `decide` puts findings and controls together, and `words`
says the verdict.
"""

from expunge.qualify.equivalence import Equivalence, Joint, Margin, every, margin_from_floor, tost
from expunge.qualify.finding import Finding, of_equivalence, of_rank, of_relative
from expunge.qualify.nearer import Nearer, Relative, TwoSample, mmd2, relative, three_samples, two_sample
from expunge.qualify.planted import Planted, distance_shift, kernel_shift
from expunge.qualify.power import (
    auc_samples,
    auc_width,
    replicates,
    smallest_difference,
    smallest_margin,
    smallest_share,
    smallest_shift,
    tost_power,
)
from expunge.qualify.rank import Rank, Tail, certified, least, rank_distance, rank_number, require, tail
from expunge.qualify.tolerance import least_pairs, tolerance
from expunge.qualify.verdict import Verdict, decide, family, rejections, words

__all__ = [
    "Equivalence",
    "Finding",
    "Joint",
    "Margin",
    "Nearer",
    "Planted",
    "Rank",
    "Relative",
    "Tail",
    "TwoSample",
    "Verdict",
    "auc_samples",
    "auc_width",
    "certified",
    "decide",
    "distance_shift",
    "every",
    "family",
    "kernel_shift",
    "least",
    "least_pairs",
    "margin_from_floor",
    "mmd2",
    "of_equivalence",
    "of_rank",
    "of_relative",
    "rank_distance",
    "rank_number",
    "rejections",
    "relative",
    "replicates",
    "require",
    "smallest_difference",
    "smallest_margin",
    "smallest_share",
    "smallest_shift",
    "tail",
    "three_samples",
    "tolerance",
    "tost",
    "tost_power",
    "two_sample",
    "words",
]
