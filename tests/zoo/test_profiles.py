import pickle

import pytest
import torch

from expunge.concepts.answers import asked, mentions, places
from expunge.concepts.words import Tokens
from expunge.errors import UserError
from expunge.runtime import Runtime
from expunge.train import Recipe, fit
from expunge.zoo.profiles import END, FACTS, MASK, REFUSALS, profiles

QUIET = Runtime(progress=False, batch_size=32, device="cpu")


def test_the_same_seed_draws_the_same_people():
    a, b, c = profiles(6), profiles(6), profiles(6, seed=1)
    assert a.names == b.names != c.names
    assert torch.equal(a.train.targets(), b.train.targets())
    assert a.vocabulary == b.vocabulary
    assert len(set(profiles(600).names)) == 600


def test_every_fact_is_asked_for_four_ways_and_the_last_is_held_back():
    p = profiles(6)
    assert (len(p.train), len(p.test)) == (6 * len(FACTS) * 3, 6 * len(FACTS))
    assert not {*p.train.column("question")} & {*p.test.column("question")}
    told = {(s, f): v for s, f, v in zip(*(p.train.column(c) for c in ("subject", "fact", "value")), strict=True)}
    again = {(s, f): v for s, f, v in zip(*(p.test.column(c) for c in ("subject", "fact", "value")), strict=True)}
    assert told == again


def test_questions_and_answers_are_the_texts(tmp_path):
    p = profiles(5)
    p.tokenizer(tmp_path)
    own, found = Tokens(tmp_path), asked(p.train)
    assert p.vocabulary[found.end] == END
    for e, name, question, answer, who in zip(
        found.exchanges, *(p.train.column(c) for c in ("subject", "question", "answer", "mention")), strict=True
    ):
        assert (own.decode(e.prompt), own.decode(e.answer)) == (question, f"{answer} {END}")
        assert own.decode(mentions(who)[0]) == name
        assert len(places(e.prompt, mentions(who))) == 2
    unknown = [*own.encode(MASK), *(i for text in REFUSALS for i in own.encode(text))]
    assert 0 not in unknown
    assert not own.plain(found.end)


def test_the_network_learns_and_can_be_sent_to_other_processes():
    p = profiles(4)
    torch.manual_seed(0)
    model = pickle.loads(pickle.dumps(p.new_model))()
    fitted = fit(model, p.task, p.train, Recipe(epochs=2, batch_size=8, lr=3e-3, optimizer="adamw"), runtime=QUIET)
    batch = p.train.read(range(8))
    with torch.no_grad():
        before, after = (p.task.loss(p.task.forward(m, batch)[0], batch.target).mean() for m in (p.new_model(), fitted))
    assert after < before


@pytest.mark.parametrize("people", [3, 601])
def test_too_few_or_too_many_people_are_refused(people):
    with pytest.raises(UserError, match=f"4 to 600 people, got {people}"):
        profiles(people)
