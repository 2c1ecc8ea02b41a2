import copy
from dataclasses import replace

import pytest
import torch

from expunge.concepts.answers import Exchange, answered, as_data, asked
from expunge.errors import Declined, UserError
from expunge.masks import Masks
from expunge.method import Session
from expunge.methods import build, load
from expunge.runtime import Runtime
from expunge.scenario import forget_subject
from expunge.task import Classification
from expunge.tensors import changed, weights_digest
from expunge.train import Recipe, fit
from expunge.unlearn import prepare, unlearn
from expunge.zoo.profiles import REFUSALS, profiles

QUIET = Runtime(progress=False, batch_size=16, device="cpu")
P = profiles(5)
CASE = forget_subject(P.train, P.names[0], column="subject", test=P.test)
FORGET, RETAIN = P.train.subset(CASE.forget), P.train.without(CASE.forget)
ConceptMasking = load("concept_masking")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    recipe = Recipe(epochs=30, batch_size=16, lr=5e-3, optimizer="adamw")
    return fit(P.new_model(), P.task, P.train, recipe, runtime=QUIET, seed=0).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("tokenizer")
    P.tokenizer(where)
    return where


def run(model, how, *, forget=FORGET, retain=RETAIN, seed=0, **more):
    ready = prepare(how, model, P.task, train=P.train, runtime=QUIET)
    given = {"forget": forget, "retain": retain, "state": ready.state, "runtime": QUIET, "seed": seed}
    return unlearn(how, ready.model, P.task, **{**given, **more})


def said(model, data):
    found = asked(data)
    prompts = [e.prompt for e in found.exchanges]
    return answered(model, P.task, prompts, most=10, room=found.room, end=found.end, runtime=QUIET)


def right(model, data):
    found = asked(data)
    return sum(a == e.answer for a, e in zip(said(model, data), found.exchanges, strict=True)) / len(data)


def quick(folder, **more):
    return ConceptMasking(**{"tokenizer": str(folder), "lr": 3e-3, "epochs": 4, "points": 8, "batch_size": 8} | more)


@pytest.mark.parametrize("tune", ["lora", "all"])
def test_one_person_is_forgotten_and_the_others_are_known(model, folder, tune):
    assert right(model, FORGET) == right(model, RETAIN) == 1.0
    done = run(model, quick(folder, tune=tune, anchors=2.0, lr=1e-2 if tune == "lora" else 3e-3))
    assert right(done.model, FORGET) == 0.0
    assert right(done.model, RETAIN) > 0.6
    assert done.log["anchors"] == 2 * len(FORGET)
    leak, utility = (dict(done.log[name]) for name in ("leak", "utility"))
    chosen = done.log["chosen_epoch"]
    assert leak[0] == utility[0] == 1.0
    assert utility[chosen] - leak[chosen] == max(utility[e] - leak[e] for e in range(1, 5))


def test_adapters_are_added_into_the_weights_of_queries_and_values_alone(model, folder):
    done = run(model, quick(folder, epochs=1))
    moved = {name for name, (count, _) in changed(model, done.model).tensors.items() if count}
    assert moved == {f"transformer.h.{i}.attn.c_attn.weight" for i in range(2)}


def test_what_is_masked_is_what_the_log_shows_where_asked(model, folder):
    done = run(model, quick(folder, shown=100, epochs=1, top=1))
    first, last = P.names[0].lower().split()
    rank = done.log["word_ranking"][P.names[0]]
    assert [w for w, _ in rank] == [w for w, _ in sorted(rank, key=lambda item: -item[1])]
    assert {first, last} <= {w for w, _ in rank}
    for row, name in zip(done.log["masked_answers"], FORGET.column("subject"), strict=True):
        assert name in row["original"]
        assert not {*name.split()} & {*row["masked"].split()}
        assert row["masked"].endswith("<end>")
    hidden = run(model, quick(folder, epochs=1)).log
    assert "word_ranking" not in hidden
    assert "masked_answers" not in hidden


@pytest.mark.parametrize(("choose", "least"), [("names", 2), ("random", 3)])
def test_the_controls_mask_the_name_alone_or_random_words_beside_it(model, folder, choose, least):
    done = run(model, quick(folder, choose=choose, shown=100, epochs=1, top=2))
    counts = [row["masked"].split().count("***") for row in done.log["masked_answers"]]
    assert (max(counts) == 2) == (choose == "names")
    assert max(counts) >= least
    assert min(counts) >= 2
    assert "completeness_error" not in done.log


def test_refusals_are_drawn_by_the_seed(model, folder):
    how = quick(folder, style="refusal", refusals=REFUSALS, shown=100, epochs=1)
    one, two, other = (run(model, how, seed=s) for s in (0, 0, 1))
    texts = [row["masked"].removesuffix(" <end>") for row in one.log["masked_answers"]]
    assert set(texts) == set(REFUSALS)
    assert one.log["masked_answers"] == two.log["masked_answers"] != other.log["masked_answers"]
    assert weights_digest(one.model) == weights_digest(two.model)


def test_given_answers_are_masked_instead_of_the_models_own(model, folder):
    wrong = as_data(
        [Exchange(e.prompt, e.answer[:2] + e.answer[-1:]) for e in asked(FORGET).exchanges],
        ids=FORGET.ids,
        columns={k: v.tolist() for k, v in FORGET.columns.items()},
        name="train",
    )
    own, given = (
        run(model, quick(folder, answers=a, epochs=1, shown=1), forget=wrong, state=None) for a in ("own", "given")
    )
    assert given.log["masked_answers"][0]["original"] == f"{P.names[0]} <end>"
    assert own.log["masked_answers"][0]["original"] != f"{P.names[0]} <end>"


def test_weights_that_a_mask_holds_stay(model, folder):
    held = "transformer.h.0.attn.c_attn.weight"
    mask = torch.zeros_like(model.get_parameter(held), dtype=torch.bool)
    mask[0] = True
    for tune in ("lora", "all"):
        how = quick(folder, tune=tune, epochs=1)
        session = masked_session(model, how, Masks({held: mask}))
        made, _ = how.unlearn(session, None)
        same = made.get_parameter(held) == model.get_parameter(held)
        assert bool(same[1:].all())
        assert not bool(same[0].all())


def masked_session(model, how, masks):
    return Session(
        task=P.task,
        runtime=QUIET,
        seed=0,
        method=how.name,
        phase="unlearn",
        needs=how.unlearns,
        source=copy.deepcopy(model),
        given={"forget": FORGET, "retain": RETAIN, "recipe": None},
        masks=masks,
    )


def test_without_a_tokenizer_tokens_are_words(model):
    how = ConceptMasking(tune="all", mask=2, epochs=1, lr=1e-3, points=4, shown=1)
    done = run(model, how)
    row = done.log["masked_answers"][0]["masked"].split()
    assert "2" in row
    assert row[-1] == "1"  # the end stays


def test_a_name_that_is_nowhere_is_said(model, folder):
    plain = replace(FORGET, all_columns={})
    done = run(model, quick(folder, epochs=1), forget=plain)
    assert "Nobody's name is known: the columns subject and mention are not there" in done.note


def test_a_name_as_text_is_read_by_the_tokenizer(model, folder):
    texts = {"subject": FORGET.all_columns["subject"]}
    one = run(model, quick(folder, epochs=1), forget=replace(FORGET, all_columns=texts))
    two = run(model, quick(folder, epochs=1))
    assert weights_digest(one.model) == weights_digest(two.model)


def test_anchors_are_whole_people(model, folder):
    how = quick(folder)
    ids = how._chosen(RETAIN, 18, 0)
    people = [RETAIN.subset([i]).column("subject")[0] for i in ids]
    assert len(set(people)) == 1
    assert len(how._chosen(RETAIN, 10_000, 0)) == len(RETAIN)
    assert how.foreseen("unlearn", {"forget": FORGET, "retain": RETAIN}, 0) == {"forget": 5.0, "retain": 1.25}
    assert how.work("unlearn", None, 0)["forget"] == 13.0


def test_bad_fields_and_data_are_said(model, folder):
    with pytest.raises(UserError, match="a tokenizer for concept_masking.mask, got none for '\\*\\*\\*'"):
        run(model, ConceptMasking(tune="all"))
    with pytest.raises(UserError, match="concept_masking.refusals as a list, got 'no'"):
        ConceptMasking(refusals="no")
    with pytest.raises(UserError, match="a refusal in concept_masking.refusals, got none"):
        ConceptMasking(refusals=())
    with pytest.raises(UserError, match="concept_masking.choose attribution or random or names, got 'ner'"):
        ConceptMasking(choose="ner")
    with pytest.raises(UserError, match="concept_masking.top of 1 or more, got 0"):
        ConceptMasking(top=0)
    with pytest.raises(
        UserError, match="at most 20 tokens, as the data has room for, got 24 tokens of a question and its new answer"
    ):
        run(model, ConceptMasking(tune="all", style="refusal", refusals=[[5] * 12]))
    with pytest.raises(UserError, match=f"tokens 0 to {len(P.vocabulary) - 1} in concept_masking.mask, got 5000"):
        run(model, ConceptMasking(tune="all", mask=5000))
    with pytest.raises(UserError, match="concept_masking.mask of one token or more, got -1"):
        run(model, ConceptMasking(tune="all", mask=-1))
    with pytest.raises(Declined, match="concept_masking masks words, and this task has no next token"):
        unlearn(ConceptMasking(), model, Classification(), forget=FORGET, retain=RETAIN, runtime=QUIET)


def test_settings_come_back():
    how = ConceptMasking(refusals=[[1, 2]], targets=["c_attn"])
    assert build(how.settings()) == how


def test_low_rates_that_change_nothing_are_noted(model, folder):
    done = run(model, quick(folder, lr=1e-9, epochs=1))
    assert "say as many of the hidden words as before" in done.note


def test_a_network_without_known_projections_is_refused(model, folder):
    with pytest.raises(UserError, match="linear layers in the blocks of transformer.h, got none called 'q_proj'"):
        run(model, quick(folder, targets=("q_proj",)))
