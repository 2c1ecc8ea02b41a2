import re
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from expunge import tensors
from expunge.data import Data
from expunge.errors import UserError
from expunge.methods import load
from expunge.metric import Value
from expunge.stamp import forgotten
from expunge.steps import step
from expunge.task import Classification, Regression
from expunge.train import Recipe, fit, fresh
from expunge.trial import Request, describe, handled, original, trial
from expunge.unlearn import prepare, unlearn
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


def images(n, name):
    """Return noisy images of three patterns, with a value by name."""
    generator = torch.Generator().manual_seed(len(name))
    y = torch.arange(n) % 3
    x = torch.randn(n, 1, 4, 4, generator=generator) / 2 + torch.randn(3, 1, 4, 4, generator=generator)[y]
    return Data.from_arrays(x, y, columns={"who": [f"p{i % 6}" for i in range(n)]}, name=name)


def small(**recipe):
    def new():
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    sets = images(36, "train"), images(9, "holdout"), images(15, "test")
    return Problem("p", "linear", *sets, TASK, Recipe(**{"epochs": 2, **recipe}), new, ("a", "b", "c"))


TEXTS = (
    "class=1,fraction=0.5",
    "subclass:who=p3",
    "subject:who=*",
    "random=3",
    "hardest=3",
    "mislabelled=0.1",
    "poison=0.2,target=1,patch=2",
    "noised=0.2,deviation=1",
    "single=2",
    "sequential=3,times=2",
    "sequential:class=1+0",
)


@pytest.mark.parametrize("text", TEXTS)
def test_every_kind_of_request_is_tried(text, monkeypatch):
    asked = []
    monkeypatch.setattr("expunge.trial.evaluate", lambda models, task, **given: asked.append(given) or Measured(models))
    request, of = Request.parse(text), small()
    scores = trial(of, request, {"tuned": load("finetune")(epochs=1)}, runtime=QUIET, seed=1)
    given = asked[0]
    first = scores.values["original"]
    assert list(scores.values) == ["original", "retrained", "tuned"]
    assert given["train"].ids == request.training(of, 1).ids
    assert given["train"].targets().tolist() == request.training(of, 1).targets().tolist()
    assert given["scenario"] == request.draw(of, 1, original=first, runtime=QUIET)[1]
    assert (given["triggered"] is not None) == (request.kind == "poison")
    assert given["test"] is of.test
    for done in (*scores.values["retrained"], scores.values["tuned"]):
        gone, stayed = (forgotten(done.state, ids) for ids in (given["scenario"].forget, given["scenario"].retain))
        assert gone.all()
        assert not stayed.any()
    assert scores.values["tuned"].state.meta["expunge"]["requests"] == request.steps
    again = retrained_by_hand(of, given["train"], given["scenario"])
    assert same(scores.values["retrained"][0].model, again)


@dataclass(frozen=True)
class Measured:
    """The models that were to be measured, in place of their scores."""

    values: dict
    declined: dict = field(default_factory=dict)


def retrained_by_hand(of, train, case):
    start = fresh(original(of, train, runtime=QUIET, seed=1), new_model=of.new_model, seed=1)
    return fit(start, TASK, train.without(case.forget), of.recipe, runtime=QUIET, seed=1)


def test_requests_one_after_another_go_on_from_what_the_last_one_left():
    of, request = small(), Request("sequential", 3, times=2)
    first = original(of, of.train, runtime=QUIET)
    (_, case), parts = request.draw(of, 0), request.parts(of, 0)
    steps = [step(case, parts, number) for number in (1, 2)]
    given = {"recipe": of.recipe, "new_model": of.new_model, "runtime": QUIET, "holdout": of.holdout}
    method = load("ssd")(alpha=1.0)
    done = handled(method, first, of, of.train, steps, seed=0, **given)
    ready = prepare(method, first, TASK, train=of.train, runtime=QUIET)
    now, state, seconds = ready.model, ready.state, 0.0
    for part in parts:
        last = unlearn(method, now, TASK, forget=of.train.subset(part), state=state, runtime=QUIET)
        now, state, seconds = last.model, last.state, seconds + last.seconds
    assert same(done.model, now)
    assert done.changed.count == tensors.changed(first, now).count
    assert done.state.meta["expunge"]["forgotten"] == 6
    one = handled(method, first, of, of.train, steps[:1], seed=0, **given)
    assert done.total_seconds > done.seconds > 0
    assert not same(one.model, done.model)


def test_a_method_that_declines_is_named_with_its_reason():
    methods = {"mask": load("head_mask")(), "tuned": load("finetune")(epochs=1)}
    scores = trial(small(), Request("random", 3), methods, runtime=QUIET, retrained=1)
    assert scores.declined["mask"] == "it masks one class, and the forget set is of kind 'random'"
    assert "mask" not in scores.values
    assert "tuned" in scores.values


def test_the_original_is_trained_on_what_the_request_changed():
    request, of = Request("poison", 0.2, target=1), small(epochs=8)
    scores = trial(of, request, {}, runtime=QUIET, retrained=1)
    train = request.training(of, 0)
    assert scores["original"]["accuracy/forget"].n == 7
    assert isinstance(scores["original"]["backdoor/success"], Value)
    assert scores["original"]["backdoor/success"].n == 10
    first = original(of, train, runtime=QUIET)
    by_hand = trial(of, request, {}, trained=first, runtime=QUIET, retrained=1)
    assert by_hand["original"]["backdoor/success"] == scores["original"]["backdoor/success"]


@pytest.mark.parametrize(
    ("text", "sentence", "gone"),
    [
        ("class=1", "All training samples of the class b are to be forgotten.", 12),
        ("class=1,fraction=0.5", "A random 50 % of the samples of the class b are to be forgotten.", 6),
        ("subclass:who=p3", r"All training samples of p3 \(who\) are to be forgotten; the label is coarser.", 6),
        ("subject:who=p3", "All training samples of p3 are to be forgotten.", 6),
        ("subject:who=*", "All training samples of one person, drawn for each seed, are to be forgotten.", 6),
        ("random=3", "A random part of the training samples is to be forgotten", 3),
        ("hardest=0.1", "that the original knows by heart the most are to be forgotten.", 4),
        ("mislabelled=0.1", "A part of the labels was flipped before training", 4),
        ("poison=0.2,target=1", "a trigger patch and the label b; .* The original answers b wherever it sees", 7),
        ("noised=0.2", "was given Gaussian noise; .* loss falls along the noise, that of a retrained model", 7),
        ("single=2", "2 requests to forget one random sample each are handled one after another.", 2),
        ("sequential=3,times=2", "2 requests to forget random samples are .*, measured after each.", 6),
        ("sequential:class=1+0", "The classes b, a are to be forgotten one after another, measured after each.", 24),
        ("ids=train/3+train/8", "^2 named training samples are to be forgotten.$", 2),
        ("ids=train/3", "^1 named training sample is to be forgotten.$", 1),
    ],
)
def test_requests_are_described_with_the_sizes_of_their_sets(text, sentence, gone):
    found, counts = describe(Request.parse(text), small())
    assert re.search(sentence, found)
    assert counts == {"train": 36, "forget": gone, "retain": 36 - gone, "holdout": 9, "test": 15}
