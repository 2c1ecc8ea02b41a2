import pytest
import torch
from torch import nn

from expunge import tensors
from expunge.data import Data
from expunge.errors import UserError
from expunge.task import Classification, Regression
from expunge.train import Recipe, fit, fresh
from expunge.trial import Request, original
from expunge.zoo import Problem
from worlds import QUIET

TASK = Classification()


def samples(n=30, name="train", real=False):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=generator)
    return Data.from_arrays(x, x[:, :1] if real else torch.arange(n) % 3, name=name)


def problem(new_model=lambda: nn.Linear(4, 3), real=False, **recipe):
    sets = samples(real=real), samples(9, "holdout", real), samples(9, "test", real)
    task, classes = (Regression(), ()) if real else (TASK, ("a", "b", "c"))
    return Problem("p", "linear", *sets, task, Recipe(epochs=3, **recipe), new_model, classes)


def same(a, b):
    return tensors.weights_digest(a) == tensors.weights_digest(b)


def pretrained():
    torch.manual_seed(7)
    return nn.Linear(4, 3)


def test_the_original_starts_where_the_retrained_ones_start():
    of, state = problem(), torch.get_rng_state()
    start = fresh(nn.Linear(4, 3), new_model=of.new_model, seed=5)
    torch.set_rng_state(state)
    found = original(of, of.train, runtime=QUIET, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(found, fit(start, TASK, of.train, of.recipe, runtime=QUIET, seed=5))
    assert not same(found, original(of, of.train, runtime=QUIET, seed=6))


def test_a_factory_that_always_gives_the_same_weights_is_trained():
    of = problem(pretrained)
    assert same(original(of, of.train, runtime=QUIET), fit(pretrained(), TASK, of.train, of.recipe, runtime=QUIET))


def test_the_original_may_stop_by_holdout():
    of = problem(patience=1, lr=0.5)
    want = fit(pretrained(), TASK, of.train, of.recipe, holdout=of.holdout, runtime=QUIET)
    assert same(original(problem(pretrained, patience=1, lr=0.5), of.train, runtime=QUIET), want)


@pytest.mark.parametrize("share", ["5", "1", "0", "-0.1", "nan"])
def test_a_share_of_wrong_labels_is_a_share(share):
    of = problem()
    with pytest.raises(UserError, match=r"a share of labels to flip in \(0, 1\), got"):
        Request.parse(f"mislabelled={share}").draw(of, 0)


def test_labels_are_flipped_between_classes_alone():
    with pytest.raises(UserError, match="class labels to flip, got torch.float32"):
        Request.parse("mislabelled=0.1").draw(problem(real=True), 0)
    one = Data.from_arrays(torch.zeros(9, 4), torch.zeros(9, dtype=torch.long))
    with pytest.raises(UserError, match="two classes or more"):
        Request("mislabelled", 0.3).draw(Problem("p", "n", one, None, None, TASK, None, None), 0)
