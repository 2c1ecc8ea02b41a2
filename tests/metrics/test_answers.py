import pytest
import torch
from torch import nn

from expunge.concepts.answers import Exchange, as_data, mention
from expunge.evaluate import evaluate
from expunge.evidence import collect
from expunge.metric import Audit, Unavailable
from expunge.metrics.appearance import Appearance
from expunge.metrics.utility import Utility
from expunge.scenario import forget_subject
from expunge.task import CausalLM, Classification
from worlds import QUIET

TASK = CausalLM()
V, END = 12, 1


class Chain(nn.Module):
    """Says the token that a table has behind the last one."""

    def __init__(self, *pairs):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(V, V))
        with torch.no_grad():
            self.table[:, END] = 1.0
            for a, b in pairs:
                self.table[a, b] = 2.0

    def forward(self, input_ids, attention_mask):
        return self.table[input_ids]


TEXTS = [Exchange((2, 3), (4, 5, END)), Exchange((2, 6), (7, END)), Exchange((2, 8), (9, 10, END))]
COLUMNS = {"subject": ["a", "a", "b"], "mention": [mention([4, 5]), mention([4], [7]), mention([9])]}
TRAIN = as_data(TEXTS, columns={**COLUMNS, "secret": [mention([5]), mention([6]), mention([10])]}, name="train")
TEST = as_data([Exchange((3,), (4, 5, END)), Exchange((8,), (9, 10, END))],
               columns={"subject": ["a", "b"], "mention": [mention([4, 5]), mention([9])]}, name="test")  # fmt: skip
CASE = forget_subject(TRAIN, "a", column="subject", test=TEST)
KNOWS = Chain((3, 4), (4, 5), (6, 7), (8, 9), (9, 10))  # every answer
HALF = Chain((3, 4), (4, 9), (6, 11), (8, 9), (9, 10))  # 4 9, 11: of the forgotten answers one of three words


def scores(model, metrics, **more):
    given = {"train": TRAIN, "test": TEST, "scenario": CASE, "metrics": metrics, "runtime": QUIET}
    return evaluate({"original": KNOWS, "half": model, **more}, TASK, **given)


def test_names_and_facts_that_answers_still_tell():
    found = scores(HALF, ["appearance"], retrained=HALF).values
    assert found["original"]["appearance/name/forget"].x == 1.0
    assert found["original"]["appearance/secret/forget"].x == 0.5  # "6" stands in the question alone
    assert found["half"]["appearance/name/forget"].x == 0.0
    assert found["half"]["appearance/name/test_forget"].x == 0.0
    assert found["original"]["appearance/name/test_forget"].x == 1.0
    reason = found["half"]["appearance/secret/test_forget"].reason
    assert reason == "test_forget has no column with the token ids of what is to be forgotten, 'secret'"


def test_overlap_with_the_gold_answers():
    found = scores(HALF, ["utility"]).values
    assert found["original"]["utility/exact/forget"].x == found["original"]["utility/rouge/forget"].x == 1.0
    # said 4 9 10 for 4 5: two of five tokens match once; 11 for 7 matches nothing
    assert found["half"]["utility/rouge/forget"].x == pytest.approx((2 / 5 + 0) / 2)
    assert found["half"]["utility/exact/forget"].x == 0.0
    assert found["half"]["utility/exact/retain"].x == 1.0
    assert found["half"]["utility/exact/test_retain"].x == 1.0


def test_gaps_to_retrained_are_paired():
    audit = audit_of(KNOWS, HALF)
    Appearance()(audit)
    Utility()(audit)
    assert audit.kept.gaps["appearance/name/forget"].x == 1.0
    assert audit.kept.gaps["utility/exact/forget"].x == 1.0
    assert audit.kept.gaps["utility/rouge/forget"].x == pytest.approx(0.8)


def audit_of(model, retrained=None, task=TASK, data=None):
    data = {"forget": TRAIN.subset(CASE.forget)} if data is None else data
    models = {"model": model} | ({} if retrained is None else {"retrained": retrained})
    evidence = {(r, s): collect(m, TASK, d, runtime=QUIET) for r, m in models.items() for s, d in data.items()}
    return Audit(evidence=evidence, models=models, task=task, scenario=CASE, data=data, runtime=QUIET)


def spoken():
    """Return an audit with every split that answers are measured on."""
    held = as_data(
        [Exchange((3,), (4, 5, END)), Exchange((8,), (9, 10, END))],
        columns={c: [TRAIN.column(c)[i] for i in (0, 2)] for c in ("subject", "mention", "secret")},
        name="test",
    )
    like = {"test_forget": held.subset(held.ids[:1]), "test_retain": held.without(held.ids[:1]), "test": held}
    train = {"forget": TRAIN.subset(CASE.forget), "retain": TRAIN.without(CASE.forget)}
    return audit_of(KNOWS, HALF, data={**train, **like})


def test_why_there_is_nothing_to_measure():
    for metric in (Appearance(), Utility()):
        found = metric(audit_of(KNOWS, task=Classification()))
        assert {v.reason for v in found.values()} == {"the task has no next token"}
        assert all(isinstance(v, Unavailable) for v in found.values())
    wrong = as_data(TEXTS[:2], columns={"mention": ["Mara", "Tom"]}, name="train")
    found = Appearance()(audit_of(KNOWS, data={"forget": wrong}))
    assert found["appearance/name/forget"].reason == "the column 'mention' of forget holds no token ids: 'Mara'"
    assert found["appearance/name/test_forget"].reason == "there are no samples in test_forget"
