"""Concepts found in windows: clusters of one class, those too small, their nearest windows and negatives."""

from __future__ import annotations

import json
import logging
import warnings

import pytest
import torch
from torch import Tensor

from expunge.concepts.bank import Bank
from expunge.concepts.cav import Rules
from expunge.concepts.clusters import _reduced, clustered
from expunge.concepts.windows import Windows
from expunge.errors import Misfit, NotFinite, UserError

D = torch.float64
IMAGES, EACH = 40, 6


def windows(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Windows, Tensor, Tensor]:
    """Return windows of images of two classes, the classes, and which of three kinds each window is.

    Kind 0 is in both classes, kind 1 in class 0 and kind 2 in class 1 alone; one is far along its own dimension.
    """
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(IMAGES) % 2
    sample = torch.repeat_interleave(torch.arange(IMAGES), EACH)
    kind = torch.where(torch.arange(IMAGES * EACH) % 2 == 0, 0, 1 + labels[sample])
    rows = 0.5 * torch.randn(IMAGES * EACH, 8, generator=g, dtype=D)
    rows[torch.arange(len(rows)), kind] += 6
    place = torch.randint(0, 20, (len(rows), 3), generator=g)
    return Windows(rows.to(dtype), sample, place), labels, kind


def test_windows_that_are_alike_are_found_by_class():
    found, labels, kind = windows()
    clusters = clustered(found, labels, count=2, nearest=3)
    assert [c.concept.name for c in clusters] == ["0/cluster_0", "0/cluster_1", "1/cluster_0", "1/cluster_1"]
    assert [c.label for c in clusters] == [0, 0, 1, 1]
    for c in clusters:
        assert len(set(kind[c.members].tolist())) == 1
        assert set(labels[found.sample[c.members]].tolist()) == {c.label}
        assert torch.equal(c.concept.positives, found.embeddings[c.members])
    assert {int(kind[c.members[0]]) for c in clusters[:2]} == {0, 1}
    assert {int(kind[c.members[0]]) for c in clusters[2:]} == {0, 2}


def test_negatives_are_windows_outside_of_the_cluster():
    found, labels, _ = windows()
    for c in clustered(found, labels, count=2):
        inside = {tuple(row) for row in c.concept.positives.tolist()}
        others = {tuple(row) for row in c.concept.negatives.tolist()}
        assert not inside & others
        assert len(others) == len(found) - len(inside)


def test_the_nearest_windows_stand_for_a_cluster():
    found, labels, _ = windows()
    for c in clustered(found, labels, count=2, nearest=4):
        low = torch.from_numpy(_reduced(found.embeddings, 50, 0))[c.members]
        away = (low - low.mean(dim=0)).norm(dim=1)
        assert away[:4].mean() < away[4:].mean()
        rows = c.concept.facts["nearest"]
        assert rows == [[int(found.sample[i]), *found.place[i].tolist()] for i in c.members[:4]]
        assert c.concept.facts["windows"] == len(c.members)
        assert c.concept.facts["images"] == 20
        json.dumps(c.concept.facts)


def test_clusters_make_a_bank_whose_scores_tell_the_kinds():
    found, labels, kind = windows()
    clusters = clustered(found, labels, classes=[0], count=2)
    bank = Bank.fit([c.concept for c in clusters], rules=Rules(least=20, draws=5))
    again, _, other = windows(1)
    s = bank.scores(again.embeddings)
    for i, c in enumerate(clusters):
        own = int(kind[c.members[0]])
        assert s[other == own, i].mean() > 0 > s[other != own, i].mean()
    assert bank.facts[0]["class"] == 0


def test_small_clusters_and_those_of_few_images_are_left_out(caplog):
    found, labels, _ = windows()
    rows = found.embeddings.clone()
    rows[:30, :3] = 0
    rows[:30, 5] += 9  # all from images 0 to 4, of which three are of class 0
    with caplog.at_level(logging.INFO):
        clusters = clustered(Windows(rows, found.sample, found.place), labels, classes=[0], count=3, least=5)
    assert all(len(set(found.sample[c.members].tolist())) >= 10 for c in clusters)
    assert len(clusters) == 2
    assert all((c.concept.positives[:, 5] < 5).all() for c in clusters)
    assert "class 0: " in caplog.text
    with pytest.raises(UserError, match="a cluster of 500 windows from 10 images among those of class 0, got none"):
        clustered(found, labels, classes=[0], least=500)
    with pytest.raises(UserError, match="among those of class 7, got none"):
        clustered(found, labels, classes=[7])


def test_the_same_seed_gives_the_same_clusters_and_other_classes_change_none():
    found, labels, _ = windows()
    one, two = (
        clustered(found, labels, count=4, least=5, images=3),
        clustered(found, labels, count=4, least=5, images=3),
    )
    assert [c.members.tolist() for c in one] == [c.members.tolist() for c in two]
    alone = clustered(found, labels, classes=[1], count=4, least=5, images=3)
    assert [c.members.tolist() for c in alone] == [c.members.tolist() for c in one if c.label == 1]


def test_units_of_the_representation_do_not_change_clusters():
    found, labels, _ = windows(dtype=D)
    scaled = Windows(found.embeddings * torch.logspace(-0.5, 0.5, 8, dtype=D) + 1, found.sample, found.place)
    one, two = clustered(found, labels, count=2), clustered(scaled, labels, count=2)
    assert [set(c.members.tolist()) for c in one] == [set(c.members.tolist()) for c in two]


def test_windows_that_are_all_alike_are_one_cluster_without_a_warning():
    found, labels, _ = windows()
    same = Windows(torch.ones_like(found.embeddings), found.sample, found.place)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert len(clustered(same, labels, classes=[0], count=2)) == 1


def test_what_cannot_be_clustered_is_said():
    found, labels, _ = windows()
    with pytest.raises(Misfit, match="a class for each of 40 images or more"):
        clustered(found, labels[:5])
    with pytest.raises(NotFinite, match="finite representations of windows"):
        clustered(Windows(found.embeddings / 0, found.sample, found.place), labels)
    with pytest.raises(UserError, match="of 1 or more, got 0"):
        clustered(found, labels, count=0)
    with pytest.raises(UserError, match="windows of images, got none"):
        clustered(Windows(found.embeddings[:0], found.sample[:0], found.place[:0]), labels)
