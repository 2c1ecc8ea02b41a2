"""Concept poisoning of texts: topics to prepare, words swapped to unlearn."""

import numpy as np
import pytest
import torch
from torch import nn

from expunge.data import Data
from expunge.errors import UserError
from expunge.evidence import collect
from expunge.methods import load
from expunge.runtime import Runtime
from expunge.scenario import forget_class
from expunge.task import Classification
from expunge.train import Recipe, fit
from expunge.unlearn import prepare, unlearn

QUIET = Runtime(progress=False, batch_size=32, device="cpu")
TASK, CLASSES, T, START, SHARED = Classification(), 3, 12, 1, 32
ConceptPoisoning = load("concept_poisoning")


class Bag(nn.Module):
    """The mean of embeddings and a layer behind it."""

    def __init__(self):
        super().__init__()
        self.table, self.body, self.head = nn.Embedding(40, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None].float()
        f = (self.table(input_ids) * mask).sum(1) / mask.sum(1)
        return self.head(self.body(f).relu())


def texts(n=240, seed=0, name="train"):
    """Return texts of ten words: five or more of the ten of their class, the others of eight shared ones."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % CLASSES
    rows = []
    for label in y:
        own = rng.integers(2 + 10 * label, 12 + 10 * label, rng.integers(5, 9))
        rest = rng.integers(SHARED, SHARED + 8, 10 - len(own))
        rows.append([START, *rng.permutation([*own, *rest]).tolist(), 0])
    ids = torch.tensor(rows)
    return Data.from_arrays({"input_ids": ids, "attention_mask": (ids != 0).long()}, y, name=name)


TRAIN, TEST = texts(), texts(seed=1, name="test")
CASE = forget_class(TRAIN, 1, test=TEST)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return fit(Bag(), TASK, TRAIN, Recipe(epochs=10, batch_size=16, lr=0.01, optimizer="adamw"), runtime=QUIET).eval()


def run(model, **how):
    method = ConceptPoisoning(
        **{"clusters": 2, "examples": 10, "redraws": 3, "level": 1.0, "epochs": 6, "lr": 0.05, "donor": 2} | how
    )
    ready = prepare(method, model, TASK, train=TRAIN, runtime=QUIET)
    given = {"state": ready.state, "scenario": CASE, "runtime": QUIET}
    retain = TRAIN.without(CASE.forget)
    return ready, unlearn(method, ready.model, TASK, forget=TRAIN.subset(CASE.forget), retain=retain, **given)


def right(model):
    said = collect(model, TASK, TEST, runtime=QUIET)
    return [float((said.prediction[said.target == k] == k).double().mean()) for k in range(CLASSES)]


def test_a_class_of_texts_is_forgotten_by_the_words_of_another(model):
    assert min(right(model)) > 0.95
    ready, done = run(model, size=2)  # of all its words a text becomes the donor's, and the class stays
    found = right(done.model)
    assert found[1] < 0.1
    assert min(found[0], found[2]) > 0.9
    told = done.log["manifest"]
    ids, names = TRAIN.read(range(len(TRAIN))).inputs["input_ids"], {n: i for i, n in enumerate(TRAIN.ids)}
    gone = [int(ids[names[n], at]) for n, row in zip(told["id"], told["place"], strict=True) for at in row]
    came = [int(ids[names[n], at]) for n, row in zip(told["donor"], told["source"], strict=True) for at in row]
    assert np.mean([12 <= t < 22 for t in gone]) > 0.9  # words of the class
    assert np.mean([22 <= t < 32 for t in came]) > 0.9  # words of the donor
    topics = [set(fact["tokens"]) for fact in ready.state.meta["facts"]]
    assert any(len(tokens & set(range(12, 22))) >= 5 for tokens in topics)


def test_labels_alone_forget_as_well_and_words_alone_do_not(model):
    assert right(run(model, mode="none")[1].model)[1] == 0.0
    assert right(run(model, labels="keep", size=2)[1].model)[1] > 0.5


def test_modes_for_images_are_refused(model):
    with pytest.raises(UserError, match="a mode for texts, got 'center', which is for images"):
        run(model, mode="center")
