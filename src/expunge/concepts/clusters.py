"""Concepts found in windows of images: those of one class that a network represents alike."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from torch import Tensor

from expunge.concepts.cav import FLOOR, Concept
from expunge.concepts.windows import Windows
from expunge.errors import Misfit, NotFinite, UserError
from expunge.seeds import seed as named_seed

log = logging.getLogger(__name__)
Rows = NDArray[np.float64]
Places = NDArray[np.int64]
COUNT = 25  # clusters of a class
COMPONENTS = 50  # of the principal component analysis
LEAST = 20  # windows of a cluster
IMAGES = 10  # that they come from
NEAREST = 8  # windows that stand for a cluster
STARTS = 10  # of the clustering, the best is taken
OTHERS = 1000  # windows that a cluster is told from


@dataclass(frozen=True, eq=False)
class Cluster:
    """Windows of one class that are represented alike.

    Args:
        concept: their representations, with those of random other windows as negatives; its facts hold ``class``,
            ``windows``, ``images`` and ``nearest``, a row (image, first row, first column, side) for each window.
        label: the class k.
        members: (n,) int64, positions among the windows, the nearest to the centre first.
    """

    concept: Concept
    label: int
    members: Tensor


def clustered(
    windows: Windows,
    labels: Tensor,
    *,
    classes: Iterable[int] | None = None,
    count: int = COUNT,
    components: int = COMPONENTS,
    least: int = LEAST,
    images: int = IMAGES,
    nearest: int = NEAREST,
    seed: int = 0,
) -> list[Cluster]:
    """Cluster the windows of each class by their representations, standardised and reduced to principal components.

    Clusters of few windows, or of windows of few images, are left out: they stand for an image, not for a concept. The
    negatives are drawn at random from the windows of all classes outside the cluster.

    Args:
        windows: of images of every class.
        labels: class of each image, (M,) int64, by position in the images' data.
        classes: whose windows are clustered, by default every one's that occurs.
        count: clusters of a class.
        components: at most.
        least: windows that a cluster needs.
        images: that they must come from.
        nearest: windows that stand for a cluster.
        seed: of centres and draws.

    Returns:
        Clusters named ``k/cluster_j``, by class, the largest first.

    Raises:
        Misfit: labels do not fit the windows.
        NotFinite: a representation is NaN or infinite.
        UserError: a bad setting, or no cluster that is large enough.

    Reference: Towards automatic concept-based explanations, Ghorbani, Wexler, Zou, Kim, 2019,
    https://arxiv.org/abs/1902.03129
    """
    _check(windows, labels, min(count, components, least, images, nearest))
    of = labels.detach().cpu()[windows.sample.cpu()].numpy()
    low = _reduced(windows.embeddings, components, seed)
    wanted = sorted({int(k) for k in of} if classes is None else set(classes))
    found: list[Cluster] = []
    for k in wanted:
        groups = _groups(low, np.flatnonzero(of == k), count, named_seed("clusters", k, seed) % 2**32)
        big = [at for at in groups if len(at) >= least and len(_images(windows, at)) >= images]
        if len(big) < len(groups):
            log.info("class %d: %d of %d clusters are too small", k, len(groups) - len(big), len(groups))
        big.sort(key=len, reverse=True)
        for j, at in enumerate(big):
            found.append(_made(windows, f"{k}/cluster_{j}", k, at, nearest, seed))
    if not found:
        want = f"a cluster of {least} windows from {images} images among those of {_words(wanted)}"
        raise UserError(want, "none", "pass more images, more windows of each, or ask for fewer clusters")
    return found


def _words(classes: list[int]) -> str:
    return ("class " if len(classes) == 1 else "classes ") + ", ".join(map(str, classes))


def _check(windows: Windows, labels: Tensor, smallest: int) -> None:
    if smallest < 1:
        raise UserError("clusters, components and windows of 1 or more", str(smallest), "raise it")
    if not len(windows):
        raise UserError("windows of images", "none", "pass images")
    if labels.dim() != 1 or labels.is_floating_point() or int(windows.sample.max()) >= len(labels):
        got = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise Misfit(f"a class for each of {int(windows.sample.max()) + 1} images or more", got, "pass their labels")
    if not bool(torch.isfinite(windows.embeddings).all()):
        raise NotFinite("finite representations of windows", "NaN or infinity", "look at the weights and images")


def _reduced(embeddings: Tensor, components: int, seed: int) -> Rows:
    """Return the windows' principal components, (n, at most ``components``), of standardised representations."""
    x: Rows = np.asarray(embeddings.detach().cpu().double().numpy())
    width = x.std(axis=0)
    typical = float(np.sqrt((width**2).mean()))
    at = (x - x.mean(axis=0)) / np.maximum(width, FLOOR * typical if typical else 1.0)
    most = min(components, *at.shape)
    rule = PCA(most, svd_solver="randomized" if most < min(at.shape) else "full", random_state=seed % 2**32)
    with np.errstate(invalid="ignore"):  # of windows that are all alike, whose shares of no variance are not read
        return np.asarray(rule.fit_transform(at), dtype=np.float64)


def _groups(low: Rows, at: Places, count: int, seed: int) -> list[Places]:
    """Return clusters of the rows at these positions, each in order of the distance to its centre."""
    if len(at) == 0:
        return []
    rule = MiniBatchKMeans(min(count, len(at)), random_state=seed, n_init=STARTS, batch_size=1024).fit(low[at])
    away = np.linalg.norm(low[at] - rule.cluster_centers_[rule.labels_], axis=1)
    groups = []
    for j in np.unique(rule.labels_):
        inside = np.flatnonzero(rule.labels_ == j)
        groups.append(at[inside[np.argsort(away[inside], kind="stable")]])
    return groups


def _images(windows: Windows, at: Places) -> set[int]:
    return set(windows.sample[torch.from_numpy(at)].tolist())


def _made(windows: Windows, name: str, k: int, at: Places, nearest: int, seed: int) -> Cluster:
    inside = np.zeros(len(windows), dtype=bool)
    inside[at] = True
    rng = np.random.default_rng(named_seed("windows", name, seed))
    others = rng.permutation(np.flatnonzero(~inside))[:OTHERS]
    shown = torch.from_numpy(at[:nearest])
    rows = torch.cat([windows.sample[shown, None].cpu(), windows.place[shown].cpu()], dim=1)
    facts: dict[str, Any] = {
        "class": k,
        "windows": len(at),
        "images": len(_images(windows, at)),
        "nearest": rows.tolist(),
    }
    members = torch.from_numpy(at)
    concept = Concept(name, windows.embeddings[members], windows.embeddings[torch.from_numpy(others)], facts=facts)
    return Cluster(concept, k, members)
