"""The score of memorisation: by hand where a network is told what it knows, and on samples that only rote explains."""

import numpy as np
import pytest
import torch
from torch import nn

from expunge.data import Data
from expunge.draws import Request
from expunge.errors import UserError
from expunge.evidence import collect
from expunge.hardness import FOLDS, memorisation
from expunge.originals import original
from expunge.seeds import seed as named_seed
from expunge.task import Classification, Regression
from expunge.train import Recipe
from expunge.zoo import Problem
from worlds import QUIET

STRANGE = [3, 5, 8]


def network():
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 2))


def clouds(n=120, real=False):
    """Return two clouds, with the labels of three samples turned round: what is known of those is known by heart."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 2
    x = torch.randn(n, 12, generator=generator) + 2.0 * y[:, None] - 1.0
    y[STRANGE] = 1 - y[STRANGE]
    target = y.float()[:, None].expand(n, 2).contiguous() if real else y
    return Data.from_arrays(x, target)


def problem(data, task=None, **recipe):
    recipe = Recipe(**{"epochs": 60, "batch_size": 8, "lr": 0.05, "weight_decay": 0.0, **recipe})
    return Problem("p", "mlp", data, None, None, task or Classification(), recipe, network, ("a", "b"))


def test_it_is_what_the_original_gains_on_the_network_without_the_third():
    data = clouds(20)
    of = problem(data, epochs=2)
    first = original(of, data, runtime=QUIET, seed=4)
    found = memorisation(of, data, first, runtime=QUIET, seed=4)
    order = np.random.default_rng(named_seed("hardness", 4)).permutation(20)
    ids, want = data.ids, np.empty(20)
    for k in range(FOLDS):
        held = [ids[i] for i in sorted(order[k::FOLDS])]
        other = original(of, data.without(held), runtime=QUIET, seed=named_seed("hardness", 4))
        for key in held:
            x, y = data.subset([key]).read([0]).inputs, int(data.subset([key]).targets())
            with torch.no_grad():
                chances = [float(m(x).double().softmax(dim=1)[0, y]) for m in (first, other)]
            want[ids.index(key)] = chances[0] - chances[1]
    assert np.allclose(found, want, atol=1e-6)
    assert np.array_equal(found, memorisation(of, data, first, runtime=QUIET, seed=4))


def test_samples_that_only_rote_explains_come_first():
    data = clouds()
    of = problem(data)
    first = original(of, data, runtime=QUIET)
    assert bool((collect(first, of.task, data, runtime=QUIET).signals.correct == 1).all())
    scores = memorisation(of, data, first, runtime=QUIET)
    best = sorted(np.argsort(-scores)[:4].tolist())
    assert set(STRANGE) < set(best)  # and one that lies among the others by itself
    assert scores[STRANGE].min() > 0.9
    assert abs(np.median(scores)) < 0.01
    request = Request("hardest", 4)
    _, case = request.draw(of, 0, original=first, runtime=QUIET)
    assert case.forget == tuple(f"train/{i}" for i in best)
    assert case.kind == "ids"
    assert request.parts(of, 0, original=first, runtime=QUIET) == [case.forget]


def test_what_was_never_learned_is_not_known_by_heart():
    """After one gentle epoch the strange samples have the highest loss of all; nothing of them could be forgotten."""
    data = clouds()
    of = problem(data, epochs=3, lr=0.01)
    first = original(of, data, runtime=QUIET)
    said = collect(first, of.task, data, runtime=QUIET)
    assert sorted(said.loss.argsort(descending=True)[:3].tolist()) == STRANGE
    scores = memorisation(of, data, first, runtime=QUIET)
    assert np.abs(scores[STRANGE]).max() < 0.2


def test_without_classes_losses_are_compared():
    data = clouds(21, real=True)
    of = problem(data, Regression(), epochs=2)
    first = original(of, data, runtime=QUIET)
    scores = memorisation(of, data, first, runtime=QUIET)
    own = collect(first, of.task, data, runtime=QUIET).loss.numpy()
    held = scores + own  # the loss of the network without it
    assert (held > 0).all()
    assert scores.mean() > 0


def test_one_sample_or_no_label_tells_nothing():
    data = clouds(10)
    of = problem(data, epochs=1)
    with pytest.raises(UserError, match="two training samples or more to tell the hardest, got 1"):
        memorisation(of, data.subset(data.ids[:1]), network(), runtime=QUIET)
    with pytest.raises(UserError, match="a problem with recipe and new_model, got one without"):
        memorisation(Problem("p", "n", data, None, None, of.task, None, None), data, network(), runtime=QUIET)
