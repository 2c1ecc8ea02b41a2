import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from expunge import zoo
from expunge.errors import UserError
from expunge.runtime import Runtime
from expunge.scenario import forget_subject
from expunge.task import Binary
from expunge.train import fit
from expunge.zoo import cards, networks

QUIET = Runtime(progress=False)


@pytest.fixture(scope="module")
def found():
    return cards.cards()


def whole(found):
    parts = [found.train, found.holdout, found.test]
    batches = [p.read(range(len(p))) for p in parts]
    inputs = {k: torch.cat([b.inputs[k] for b in batches]) for k in ("real", "categories")}
    return inputs, torch.cat([b.target for b in batches]), [p.columns for p in parts]


def test_the_seed_decides_everything(found):
    again, other = cards.cards(), cards.cards(seed=1)
    for key in ("real", "categories"):
        assert torch.equal(whole(found)[0][key], whole(again)[0][key])
    assert torch.equal(whole(found)[1], whole(again)[1])
    assert found.train.column("date").tolist() == again.train.column("date").tolist()
    assert len(other.train) != len(found.train) or not torch.equal(whole(other)[1], whole(found)[1])


def test_people_have_several_rows_and_parts_follow_in_time(found):
    inputs, label, columns = whole(found)
    rows = np.bincount(inputs["categories"][:, 0])
    assert len(rows) == 200
    assert (rows.min(), rows.max()) == (5, 35)
    n = len(label)
    assert [len(p) for p in (found.train, found.holdout, found.test)] == [
        round(0.65 * n),
        round(0.75 * n) - round(0.65 * n),
        n - round(0.75 * n),
    ]
    dates = [date for part in columns for date in part["date"]]
    assert dates == sorted(dates)
    assert found.train.ids[:2] == ["cards/0", "cards/1"]
    assert found.test.ids[-1] == f"cards/{n - 1}"
    subjects = [s for part in columns for s in part["subject"]]
    assert subjects == inputs["categories"][:, 0].tolist()
    names = list(cards.CATEGORIES)
    assert [c for part in columns for c in part["category"]] == [names[i] for i in inputs["categories"][:, 1]]
    assert inputs["categories"].amax(dim=0).tolist() == [size - 1 for size in found.shape.sizes]


def test_the_training_rows_alone_decide_the_scale(found):
    real = found.train.read(range(len(found.train))).inputs["real"].double()
    assert real.mean(dim=0).abs().max() < 1e-6
    assert (real.std(dim=0, correction=0) - 1).abs().max() < 1e-6
    test = found.test.read(range(len(found.test))).inputs["real"].double()
    assert test.mean(dim=0).abs().max() > 1e-3  # its own mean is another


def test_labels_follow_the_rule_with_noise(found):
    inputs, label, _ = whole(found)
    assert 0.08 < float(label.double().mean()) < 0.2
    away = roc_auc_score(label, inputs["categories"][:, 1].eq(list(cards.CATEGORIES).index("groceries")))
    assert away < 0.45  # groceries are the safest
    per = {who: float(label[inputs["categories"][:, 0] == who].double().mean()) for who in range(200)}
    assert np.var(list(per.values())) > 0.01  # people differ


def test_a_network_learns_it():
    problem = zoo.load("cards")
    assert (problem.network, problem.task, problem.classes) == ("tabular", Binary(), ("genuine", "fraud"))
    torch.manual_seed(0)
    model = fit(problem.new_model(), problem.task, problem.train, problem.recipe, runtime=QUIET)
    batch = problem.test.read(range(len(problem.test)))
    outputs, _ = problem.task.forward(model, batch)
    problem.task.check(outputs, batch.target)
    assert roc_auc_score(batch.target, outputs.detach()[:, 0]) > 0.68


def test_all_rows_of_a_cardholder_go_and_the_embedding_row_is_never_trained():
    problem = zoo.load("cards", limit=400)
    who = int(np.bincount(problem.train.column("subject").astype(int)).argmax())
    case = forget_subject(problem.train, str(who), column="subject", test=problem.test)
    kept = problem.train.without(case.forget)
    assert len(case.forget) == (problem.train.column("subject") == who).sum() > 1
    assert who not in set(kept.column("subject"))
    assert who not in kept.read(range(len(kept))).inputs["categories"][:, 0].tolist()
    torch.manual_seed(0)
    start = problem.new_model()
    original, retrained = (fit(start, problem.task, d, problem.recipe, runtime=QUIET) for d in (problem.train, kept))
    drawn = zoo.embedding_row(start, who)
    assert torch.equal(zoo.embedding_row(retrained, who), drawn)
    assert not torch.equal(zoo.embedding_row(original, who), drawn)


def test_few_cardholders_make_a_small_set():
    small = cards.cards(2)
    assert small.shape.sizes[0] == 2
    networks.check("tabular", small.shape)
    with pytest.raises(UserError, match="two cardholders or more, got 1: raise it, so that somebody is retained"):
        cards.cards(1)


def test_a_limit_takes_rows_whatever_their_label():
    few, every = zoo.load("cards", limit=300), zoo.load("cards")
    assert (len(few.train), len(few.holdout), len(few.test)) == (300, 37, 150)
    assert set(few.train.ids) < set(every.train.ids)
    assert abs(float(few.train.targets().double().mean()) - float(every.train.targets().double().mean())) < 0.08
    known = zoo.known("cards", limit=300)
    assert known.counts == tuple(torch.bincount(few.train.targets()).tolist())
    assert set(known.columns) == {"subject", "category", "date"}
