"""Concept poisoning of texts: topics to prepare, words swapped to unlearn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from expunge.concepts.patches import Ask
from expunge.concepts.texts import poison_texts
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


def test_words_are_masked_by_a_token_and_the_donor_is_not_read(model):
    _, done = run(model, mode="mask", mask=39, size=2, shown=0)
    assert right(done.model)[1] < 0.1
    told = done.log["manifest"]
    ids, names = TRAIN.read(range(len(TRAIN))).inputs["input_ids"], {n: i for i, n in enumerate(TRAIN.ids)}
    gone = [int(ids[names[n], at]) for n, row in zip(told["id"], told["place"], strict=True) for at in row]
    assert np.mean([12 <= t < 22 for t in gone]) > 0.9  # words of the class
    assert set(told["donor"]) == {None}
    assert {s for row in told["source"] for s in row} == {None}
    assert told["concepts"]
    assert told["donor_concepts"] == []


def test_masked_texts_hold_the_mask_where_the_manifest_says_and_nothing_else_changes():
    torch.manual_seed(0)
    few = TRAIN.subset(CASE.forget[:7])
    ask = Ask(
        model=Bag().eval(),
        task=TASK,
        forget=few,
        donors=TRAIN.subset(TRAIN.ids[2::3][:3]),
        targets=torch.zeros(7, dtype=torch.long),
        tap="body",
        names=("a", "b"),
        vectors=torch.randn(2, 8),
        intercepts=torch.zeros(2),
        donor_names=("c", "d"),
        donor_vectors=torch.randn(2, 8),
        donor_intercepts=torch.zeros(2),
        mode="mask",
        size=2,
        mask=39,
        runtime=QUIET,
        seed=0,
    )
    made = poison_texts(ask)
    before, after = (d.read(range(7)).inputs["input_ids"] for d in (few, made.data))
    changed = [sorted(row.nonzero().flatten().tolist()) for row in before != after]
    assert changed == [sorted(row) for row in made.manifest["place"]]
    assert sum(map(len, changed)) > 7
    assert set(after[before != after].tolist()) == {39}
    for odd in (40, None):
        with pytest.raises(UserError, match=f"a token from 0 to 39 to mask words with, got {odd}"):
            poison_texts(replace(ask, mask=odd))


def test_a_mask_and_its_mode_go_together(model):
    with pytest.raises(UserError, match=r"mode='mask' and mask together, got concept_poisoning.mask=39"):
        ConceptPoisoning(mask=39)
    with pytest.raises(UserError, match=r"mode='mask' and mask together, got concept_poisoning.mask=None"):
        ConceptPoisoning(mode="mask")
    with pytest.raises(UserError, match="a token from 0 to 39"):
        run(model, mode="mask", mask=40)


def test_concepts_may_be_lists_of_words_and_rare_ones_are_dropped(model):
    words = [["own", *range(12, 22)], ["other", *range(22, 32)], ["none", 45]]
    ready, done = run(model, source="words", words=words, size=2)
    assert ready.state.meta["names"] == ["own", "other"]
    dropped = {row["name"]: row["why"] for row in done.log["concepts_dropped"]}
    assert dropped["none"].startswith("0 of ")
    assert {row["name"] for row in done.log["concept_pages"] if row["role"] == "class" and row["chosen"]} == {"own"}
    assert right(done.model)[1] < 0.1


@pytest.mark.parametrize("words", ["war", [["war"]], [[12, 13]], [["war", -1]], [["war", True]], ["war"]])
def test_lists_of_words_are_held_to_their_form(words):
    with pytest.raises(UserError, match=r"concept_poisoning.words as lists of a name and token ids"):
        ConceptPoisoning(source="words", words=words)


def test_lists_of_words_need_their_source_their_own_names_and_texts(model):
    with pytest.raises(UserError, match="source='words' and words together"):
        ConceptPoisoning(words=[["war", 12]])
    with pytest.raises(UserError, match="words with each name once"):
        ConceptPoisoning(source="words", words=[["war", 12], ["war", 13]])
    with pytest.raises(UserError, match=r"a concept of 10 samples or more by concept_poisoning.words of train"):
        run(model, source="words", words=[["war", 45]])
