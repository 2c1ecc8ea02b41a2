"""Concepts of a network: vectors in its representation, what they add to each class, where they are in samples.

A `Concept` is examples, or a vector given from elsewhere; `fit_cav` makes a `Cav` of it, and `Bank` keeps those that
separate, do not depend on the negatives and move a class's logit. `clustered` finds concepts in windows of images.
`fit_head` explains classes by concept scores, integrated gradients say how much of a class's logit each concept gives,
and `pick` chooses a class's concepts and the class that donates its own instead.
"""

from expunge.concepts.attribution import (
    Attributions,
    ClassAttributions,
    class_attributions,
    integrated_gradients,
    network_attributions,
)
from expunge.concepts.bank import Bank
from expunge.concepts.cav import Cav, Concept, Rules, fit_cav, hyperplane
from expunge.concepts.clusters import Cluster, clustered
from expunge.concepts.donor import Pick, pick
from expunge.concepts.head import ConceptHead, fit_head
from expunge.concepts.tcav import class_gradients, directional, magnitude, sign_count

__all__ = [
    "Attributions",
    "Bank",
    "Cav",
    "ClassAttributions",
    "Cluster",
    "Concept",
    "ConceptHead",
    "Pick",
    "Rules",
    "class_attributions",
    "class_gradients",
    "clustered",
    "directional",
    "fit_cav",
    "fit_head",
    "hyperplane",
    "integrated_gradients",
    "magnitude",
    "network_attributions",
    "pick",
    "sign_count",
]
