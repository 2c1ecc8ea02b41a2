import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn

from expunge.concepts import words
from expunge.concepts.answers import Exchange
from expunge.errors import UserError
from expunge.runtime import Runtime
from expunge.task import CausalLM, Classification

D = torch.float64
TASK = CausalLM()
QUIET = Runtime(progress=False, batch_size=2, device="cpu")


class Mean(nn.Module):
    """Logits after a prefix are the mean of its embeddings, A = (1, 0) and B = (0, 1)."""

    def __init__(self, size=2):
        super().__init__()
        self.places = nn.Embedding(16, size)
        self.table = nn.Embedding(size, size)
        with torch.no_grad():
            self.table.weight.copy_(torch.eye(size))
        self.double()

    def forward(self, ids):
        rows = self.table(ids) + 0 * self.places(torch.arange(ids.shape[1]).expand_as(ids))
        return rows.cumsum(1) / torch.arange(1, ids.shape[1] + 1, dtype=D)[:, None]


A, B = 0, 1


def test_token_attributions_of_the_toy_language_model():
    found = words.attributed(Mean(), TASK, [Exchange((A,), (B, A))], keyed=False, runtime=QUIET)
    assert found.values[0] == pytest.approx((-0.21907020, 0.0), abs=1e-8)
    assert found.values[0][1] == 0.0
    assert sum(found.values[0]) == pytest.approx(-2.00640887 + 1.78733867, abs=1e-8)
    assert found.errors[0] < 1e-8


def test_the_last_token_counts_once_the_score_is_corrected():
    model, one = Mean(), [Exchange((A,), (B, A))]
    found = words.attributed(model, TASK, one, keyed=False, runtime=QUIET)
    gaps = words.surprise(model, TASK, one, [[(A,)]], keyed=False, runtime=QUIET)
    half, whole = -torch.log(torch.tensor([2.0], dtype=D)).item(), -1.3132616875
    assert gaps[0][0] == pytest.approx(whole - half)  # hidden, both tokens are as likely
    assert gaps[0][1] == pytest.approx(half - torch.tensor([0.0, 0.5], dtype=D).log_softmax(0)[0].item())
    scores = words.corrected(found.values, gaps)
    assert scores[0][0] == 0.0
    assert scores[0][1] == pytest.approx(gaps[0][1])
    assert words.corrected(found.values, gaps, gamma=0.0)[0] == (0.0, 0.0)


def test_batches_and_lengths_change_nothing():
    torch.manual_seed(0)
    model = Mean(5)
    model.table.weight.data.normal_()
    several = [Exchange((3, 1), (2, 4, 1, 0)), Exchange((1,), (2,)), Exchange((4, 4, 2), (1, 0))]
    together = words.attributed(model, TASK, several, keyed=False, baseline=3, runtime=Runtime(progress=False))
    alone = [words.attributed(model, TASK, [e], keyed=False, baseline=3, runtime=QUIET).values[0] for e in several]
    for a, b in zip(together.values, alone, strict=True):
        assert a == pytest.approx(b, abs=1e-12)
    assert max(together.errors) < 1e-8
    assert [p.grad for p in model.parameters()] == [None, None]


def tokenizer(tmp_path, vocabulary, kind="words"):
    if kind == "words":
        made = Tokenizer(models.WordLevel({t: i for i, t in enumerate(vocabulary)}, unk_token=vocabulary[0]))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        made = Tokenizer(models.BPE({t: i for i, t in enumerate(vocabulary)}, []))
        made.decoder = decoders.ByteLevel()
    made.save(str(tmp_path / "tokenizer.json"))
    return words.Tokens(tmp_path)


def test_pieces_of_a_word_are_one_word_and_signs_stand_alone(tmp_path):
    own = tokenizer(tmp_path, ["Ma", "ra", "Ġlives", "Ġin", "ĠOs", "lo", ".", "-", "east"], "bytes")
    found = words.split([0, 1, 2, 3, 4, 5, 7, 8, 6], own)
    assert [w.text for w in found] == ["mara", "lives", "in", "oslo", "-", "east", "."]
    assert found[3].at == (4, 5)
    answer = [0, 1, 2, 3, 4, 5, 7, 8, 6]
    assert [w.text for w in found if words.content(w, answer, own)] == ["mara", "lives", "oslo", "east"]
    assert words.masked(answer, found, {0, 3}, (9, 9)) == (9, 9, 2, 3, 9, 9, 7, 8, 6)


def test_names_whole_and_their_long_words_alone(tmp_path):
    own = tokenizer(tmp_path, ["?", "Mara", "de", "Velden", "wrote", "of"])
    name = [own.encode("Mara de Velden")]
    answer = own.encode("Mara de Velden wrote of Velden de")
    found = words.split(answer, own)
    assert words.named(answer, found, name, own) == {0, 1, 2, 5}


def test_answers_count_alike_in_a_ranking():
    found = words.ranking([[("a", 30.0), ("b", 10.0)], [("b", 0.2), ("c", -1.0)], [("c", 0.0)]])
    assert found == {"b": 1.25, "a": 0.75, "c": 0.0}
    assert words.top(found, {"a", "c"}, 2) == ["a"]


def test_bad_input_is_said(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer.json, got no such file: name a tokenizer.json"):
        words.Tokens(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="Expected a tokenizer in"):
        words.Tokens(tmp_path)
    one = [Exchange((1,), (0,))]
    with pytest.raises(UserError, match="a task of the next token, got Classification"):
        words.attributed(Mean(), Classification(), one, keyed=False)
    with pytest.raises(UserError, match="tokens 0 to 1, got 7: take the padding token"):
        words.attributed(Mean(), TASK, one, keyed=False, baseline=7)
    with pytest.raises(UserError, match="the name of an embedding of the network, got 'x': take one of places, table"):
        words.attributed(Mean(), TASK, one, keyed=False, embedding="x")
    with pytest.raises(UserError, match="got 'places', which looks up something else"):
        words.attributed(Mean(), TASK, one, keyed=False, embedding="places")
