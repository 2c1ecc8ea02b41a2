"""Where samples lie in the features, as a map of two axes for reports: before, after and under retrained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.metric import Audit
from expunge.scores import Scores
from expunge.seeds import seed as named_seed
from expunge.stats import principal_axes

SETS = {"forget": 200, "retain": 400}  # samples of a set that are drawn, at most
DIGITS = 3  # of a coordinate: a drawn pixel, and no more of the features than that
Points = NDArray[np.float64]


def turned(points: Points, onto: Points) -> tuple[Points, Points, float, Points]:
    """Return what lays points onto others of the same samples: their mean, a turn, a scale, and the others' mean.

    The turn R, orthogonal and so a mirroring where that fits better, and the scale s minimise Σ ‖s (x_i − x̄) R + ȳ −
    y_i‖² (orthogonal Procrustes): networks of different seeds have features that differ by such a turn at least.

    Args:
        points: (N, 2).
        onto: (N, 2).

    References:
        P. H. Schönemann, "A generalized solution of the orthogonal Procrustes problem", 1966,
        https://doi.org/10.1007/BF02289451.
    """
    middle, there = points.mean(axis=0), onto.mean(axis=0)
    left, sizes, right = np.linalg.svd((points - middle).T @ (onto - there))
    spread = float(np.square(points - middle).sum())
    return middle, left @ right, float(sizes.sum()) / spread if spread else 1.0, there


def keep(audit: Audit, *, anew: bool = False) -> None:
    """Keep where some forget and retain samples lie in the features of the model under audit.

    In ``audit.kept.samples``: ``map/forget`` and ``map/retain`` (n, 2), ``map/count`` (how many of each are kept),
    ``map/explained`` (the shares of variance of the axes) and ``map/own`` (1 for axes of the model's own). The axes are
    the two principal ones of the original's features on the retain samples that are kept. A model trained anew has
    features of other directions: it has its own axes, laid onto the original's by `turned` on the retain samples.
    Nothing is kept without an original, without features, or where they are not finite; never an id.

    Args:
        audit: everything known about the model.
        anew: whether it was trained anew, so that its features' directions are its own.
    """
    first, own = _points(audit, "original"), _points(audit, "model")
    if not {"model", "original"}.isdisjoint(audit.flaws) or not first or not own:
        return
    middle, across, shares = principal_axes(first["retain"])
    if anew:
        mine, along, _ = principal_axes(own["retain"])
        goal = (first["retain"] - middle) @ across
        start, turn, scale, end = turned((own["retain"] - mine) @ along, goal)
        points = {s: scale * (((x - mine) @ along - start) @ turn) + end for s, x in own.items()}
    elif own["retain"].shape[1] == len(middle):
        points = {s: (x - middle) @ across for s, x in own.items()}
    else:  # features of another width lie on no axes of the original's
        return
    kept = audit.kept.samples
    kept.update({f"map/{split}": np.ascontiguousarray(p) for split, p in points.items()})
    kept["map/count"] = np.array([float(len(points[split])) for split in SETS])
    kept["map/explained"], kept["map/own"] = shares, np.array([float(anew)])


def _some(audit: Audit, split: str, most: int) -> NDArray[np.int64]:
    """Return positions of at most so many samples, a seeded draw in the order of their ids."""
    outputs, data = audit.outputs(split), audit.data.get(split)
    count = 0 if outputs is None else len(outputs)

    def drawn() -> NDArray[np.int64]:
        order = np.arange(count) if data is None else np.argsort(np.asarray(data.ids, dtype=str), kind="stable")
        generator = np.random.default_rng(named_seed("map", audit.seed, split))
        found: NDArray[np.int64] = order[np.sort(generator.choice(count, min(count, most), replace=False))]
        return found

    return audit.once(f"map/{split}/{count}", drawn)


def _points(audit: Audit, role: str) -> dict[str, Points]:
    """Return the features of some samples of each set, (n, F); nothing where any are missing or not finite."""
    found: dict[str, Points] = {}
    for split, most in SETS.items():
        outputs, at = audit.outputs(split, role), _some(audit, split, most)
        features = None if outputs is None else next(iter(outputs.features.values()), None)
        if features is None or not len(at) or not bool(features.isfinite().all()):
            return {}
        found[split] = features[torch.from_numpy(at)].double().flatten(1).numpy()
    return found


def gathered(scores: Scores, names: Sequence[str]) -> dict[str, Any] | None:
    """Return the maps of models as plain JSON values of bounded size; of several seeds that of the first.

    Args:
        scores: of one seed, or pooled.
        names: models that are drawn.

    Returns:
        ``explained``: the share of variance of each axis; ``own``: models with axes of their own; ``models``: by name
        the places of forget and retain samples. None where nothing was kept.
    """
    kept = {name: found for name in names if "map/count" in (found := scores.samples.get(name, {}))}
    if not kept:
        return None
    shares = next(iter(kept.values()))["map/explained"][:2]
    same = {m: found for m, found in kept.items() if np.allclose(found["map/explained"][:2], shares, rtol=1e-6)}
    return {
        "explained": [round(float(share), DIGITS) for share in shares],
        "own": [m for m, found in same.items() if found["map/own"][0]],
        "models": {m: _first(found) for m, found in same.items()},
    }


def _first(found: Mapping[str, Points]) -> dict[str, list[list[float]]]:
    """Return the places of the first seed's samples, rounded."""
    counts = [int(n) for n in found["map/count"][: len(SETS)]]
    return {
        split: [[float(f"{v:.{DIGITS}g}") for v in row] for row in found[f"map/{split}"][:n].tolist()]
        for split, n in zip(SETS, counts, strict=True)
    }
