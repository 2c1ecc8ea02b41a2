import numpy as np
import pytest
import torch
from torch import nn

from expunge.concepts.patches import Ask
from expunge.concepts.texts import poison_texts, token_scores, weights
from expunge.concepts.topics import Documents, documents, listed, topics
from expunge.data import Data
from expunge.errors import Misfit, UserError
from expunge.runtime import Runtime
from expunge.task import Classification

QUIET = Runtime(progress=False, batch_size=3, device="cpu")
V, T = 12, 6
START, PAD = 1, 0


class Bag(nn.Module):
    """The mean of embeddings, a hidden layer, two classes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(V, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        self.double()

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None].double()
        f = (self.table(input_ids) * mask).sum(1) / mask.sum(1)
        return self.head(self.body(f))


def texts(rows, labels=None, name="train"):
    ids = torch.tensor([[START, *row, *[PAD] * (T - 1 - len(row))] for row in rows])
    return Data.from_arrays({"input_ids": ids, "attention_mask": (ids != PAD).long()}, labels, name=name)


OWN = texts([[2, 3, 4], [3, 5, 2, 6], [2, 6], [7, 3, 5]], name="forget")
DONORS = texts([[8, 9, 10], [9, 11, 8, 10]], name="donors")


def ask(mode="localized", **more):
    vectors = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]], dtype=torch.float64)
    given = {
        "model": Bag().eval(),
        "task": Classification(),
        "forget": OWN.unlabelled(),
        "donors": DONORS,
        "targets": torch.ones(4, dtype=torch.long),
        "tap": "head:input",
        "names": ("a", "b"),
        "vectors": vectors,
        "intercepts": torch.zeros(2),
        "donor_names": ("c", "d"),
        "donor_vectors": -vectors,
        "donor_intercepts": torch.zeros(2),
        "mode": mode,
        "size": 2,
        "runtime": QUIET,
        "seed": 3,
    }
    return Ask(**{**given, **more})


def inputs(data):
    return data.read(range(len(data))).inputs


def test_scores_of_tokens_in_a_linear_network_are_their_shares():
    """With no bias in the way a token adds W·e/n, n the words of the text."""
    model, vector = Bag().eval(), torch.tensor([[1.0, -2.0, 0.0, 0.5]], dtype=torch.float64)
    found = token_scores(model, Classification(), OWN, "head:input", vector, runtime=QUIET)
    unit = vector[0] / vector[0].norm()
    batch = inputs(OWN)
    mask = batch["attention_mask"].double()
    with torch.no_grad():
        want = model.table(batch["input_ids"]) @ model.body.weight.T @ unit * mask / mask.sum(1, keepdim=True)
    torch.testing.assert_close(found.values[0], want, atol=1e-7, rtol=0)
    assert float(found.gap.abs().max()) < 1e-7


def test_padding_and_what_stands_in_every_text_are_no_words():
    own, donors = documents(OWN, DONORS)
    assert own.words[0].tolist() == [False, True, True, True, False, False]
    assert donors.words[1].tolist() == [False, True, True, True, True, False]
    alone = documents(OWN.subset(OWN.ids[:1]))[0]
    assert alone.words[0].tolist() == [True, True, True, True, False, False]


def test_every_text_counts_alike_in_the_weights():
    some = Documents(torch.tensor([[2, 3], [2, 4]]), torch.tensor([[True, True], [True, False]]))
    found = weights(some, torch.tensor([[[30.0, 10.0], [0.1, 5.0]]]))
    assert found[0].tolist() == pytest.approx([0, 0, 1.75, 0.25, 0])


def test_first_words_of_the_class_become_first_words_of_the_donor():
    made = poison_texts(ask())
    rows, before = inputs(made.data), inputs(OWN)
    donors = inputs(DONORS)["input_ids"]
    assert torch.equal(rows["attention_mask"], before["attention_mask"])
    assert made.data.ids == [f"poisoned/{i}" for i in OWN.ids]
    assert made.data.targets().tolist() == [1] * 4
    pairs = [DONORS.ids.index(d) for d in made.manifest["donor"]]
    for i, (place, source) in enumerate(zip(made.manifest["place"], made.manifest["source"], strict=True)):
        assert len(set(place)) == len(place) >= 1
        want = before["input_ids"][i].clone()
        want[place] = donors[pairs[i]][source]
        assert torch.equal(rows["input_ids"][i], want)
        assert 0 not in place  # the start token stays
    assert any(made.manifest["place"])
    one = ask(names=("a",), vectors=ask().vectors[:1], donor_vectors=ask().donor_vectors[:1], size=1)
    found = token_scores(one.model, one.task, OWN, one.tap, one.vectors, runtime=QUIET)
    rank = weights(documents(OWN, DONORS)[0], found.values)[0]
    for row, place in zip(before["input_ids"], poison_texts(one).manifest["place"], strict=True):
        best = max(float(rank[t]) for t in row[1:] if t != PAD)
        assert (not place and best == 0) or float(rank[row[place[0]]]) == best


def test_the_other_modes():
    none, whole, drawn = (poison_texts(ask(mode)) for mode in ("none", "whole", "random"))
    assert torch.equal(inputs(none.data)["input_ids"], inputs(OWN)["input_ids"])
    assert none.manifest["donor"] == [None] * 4
    pairs = [DONORS.ids.index(d) for d in whole.manifest["donor"]]
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(inputs(whole.data)[name], inputs(DONORS)[name][pairs])
    assert [len(p) for p in drawn.manifest["place"]] == [3, min(4, len(drawn.manifest["source"][1])), 2, 3]
    again = poison_texts(ask("random"))
    assert torch.equal(inputs(again.data)["input_ids"], inputs(drawn.data)["input_ids"])
    plain = [Data.from_arrays(inputs(d)["input_ids"], name=d.name) for d in (OWN, DONORS)]
    tensors = poison_texts(ask("random", forget=plain[0], donors=plain[1]))
    assert isinstance(tensors.data.read([0]).inputs, torch.Tensor)


def test_what_texts_cannot_be_poisoned_with():
    with pytest.raises(UserError, match="a mode for texts, got 'full', which is for images"):
        poison_texts(ask("full"))
    with pytest.raises(Misfit, match=r"token ids \(N, T\), input_ids in a dict, got torch.float32"):
        poison_texts(ask(forget=Data.from_arrays(torch.randn(4, 6)), donors=Data.from_arrays(torch.randn(2, 6))))
    short = Data.from_arrays({k: v[:, :5] for k, v in inputs(DONORS).items()})
    with pytest.raises(UserError, match="texts padded to one length, got 6 and 5 tokens"):
        poison_texts(ask("whole", donors=short))


def drawn_texts(n=80):
    """Return texts of two topics, words 2 to 5 and 6 to 9, a shared word 10, and their representations."""
    rng = np.random.default_rng(0)
    rows = [[*rng.choice(np.arange(2, 6) + 4 * (i % 2), 4).tolist(), 10 if i % 5 else 11] for i in range(n)]
    f = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    f[1::2, 0] += 4
    return documents(texts(rows))[0], f


def test_topics_are_found_with_their_words():
    own, f = drawn_texts()
    found = topics(own, f, count=2, least=4)
    apart = [set(c.facts["tokens"][:4]) for c in found]
    assert {2, 3, 4, 5} in apart
    assert {6, 7, 8, 9} in apart
    for concept in found:
        assert len(concept.positives) == 8
        assert len(concept.negatives) == 72
    odd = next(c for c in found if set(c.facts["tokens"][:4]) == {6, 7, 8, 9})
    assert float(odd.positives[:, 0].min()) > 1
    again = topics(own, f, count=2, least=4)
    assert [c.facts for c in again] == [c.facts for c in found]


def test_lists_of_words_are_concepts():
    own, f = drawn_texts()
    (found,) = listed(own, f, {"second": [6, 7, 8, 9]})
    assert torch.equal(found.positives, f[1::2])
    with pytest.raises(UserError, match="some texts with a word of none, and some without, got 0 of 80 for 99"):
        listed(own, f, {"none": [99]})


def test_too_few_texts_are_refused():
    own, f = drawn_texts()
    with pytest.raises(UserError, match="2 to 10 topics, got 11 topics of 80 texts with 10 words"):
        topics(own, f, count=11, least=4)
    with pytest.raises(UserError, match="examples of a topic in at most half of the texts, got 41 of 80"):
        topics(own, f, count=3, least=41)
    with pytest.raises(UserError, match="representations of 80 texts, got 3"):
        topics(own, f[:3])
    with pytest.raises(UserError, match="texts with words, got none"):
        topics(documents(texts([[2, 3]] * 4))[0], f[:4], least=2)
