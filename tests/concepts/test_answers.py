import pytest
import torch
from torch import nn

from expunge.concepts.answers import (
    Exchange,
    answered,
    as_data,
    asked,
    batch_of,
    mention,
    mentions,
    places,
    rouge_l,
)
from expunge.data import Data
from expunge.errors import Misfit, UserError
from expunge.runtime import Runtime
from expunge.task import CausalLM, Classification
from task.test_causal_lm import gpt2

TASK = CausalLM()
QUIET = Runtime(progress=False, batch_size=2, device="cpu")
SOME = [Exchange((3, 4), (5, 6, 2)), Exchange((7,), (8, 2)), Exchange((3, 9, 4), (5, 2)), Exchange((4,), (2,))]


@pytest.mark.parametrize("keyed", [True, False])
def test_questions_and_answers_come_back_from_data(keyed):
    data = as_data(SOME, keyed, room=9, columns={"subject": list("abcd")}, name="train")
    found = asked(data)
    assert list(found.exchanges) == SOME
    assert (found.keyed, found.room, found.end, len(found)) == (keyed, 9, 2, 4)
    assert data.column("subject").tolist() == list("abcd")


def test_padding_on_the_left_and_targets_that_count_everything():
    ids, mask = torch.tensor([[0, 0, 5, 7, 2]]), torch.tensor([[0, 0, 1, 1, 1]])
    data = Data.from_arrays({"input_ids": ids, "attention_mask": mask}, TASK.labels(ids, mask))
    assert asked(data).exchanges == (Exchange((5,), (7, 2)),)


def test_an_end_that_stands_inside_an_answer_is_none():
    assert asked(as_data([Exchange((1,), (2, 3, 2))], name="a")).end is None
    assert asked(as_data([Exchange((1,), (3, 2)), Exchange((1,), (3, 4))], name="a")).end is None


def test_samples_that_are_no_questions_with_answers_are_refused():
    ids = torch.tensor([[5, 6, 7, 8]])
    hole = Data.from_arrays(ids, torch.tensor([[-100, 6, -100, 8]]), name="bad")
    with pytest.raises(Misfit, match="a question and one answer behind it in every sequence, got none in bad/0"):
        asked(hole)
    none = Data.from_arrays({"input_ids": ids, "attention_mask": ids * 0 + 1}, torch.full((1, 4), -100))
    with pytest.raises(Misfit, match="a question and one answer"):
        asked(none)
    with pytest.raises(Misfit, match="inputs input_ids and attention_mask, got inputs input_ids, token_type_ids"):
        asked(Data.from_arrays({"input_ids": ids, "token_type_ids": ids * 0}, ids))
    with pytest.raises(Misfit, match="labels in train, got none"):
        asked(Data.from_arrays(ids))
    with pytest.raises(Misfit, match=r"token ids of shape \(N, T\), and targets of the same shape"):
        asked(Data.from_arrays(ids.float(), ids))


def one_by_one(model, prompt, most, room, end):
    ids = list(prompt)
    while len(ids) < room and len(ids) - len(prompt) < most:
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == end:
            break
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("end", [None, 6, 9])
def test_answers_in_batches_are_those_one_by_one(end):
    model = gpt2().double()
    prompts = [(3, 4), (7,), (3, 9, 4), (5, 5), (8, 4), (1, 1, 1, 1, 1, 1, 1, 1)]
    model.train()
    found = answered(model, TASK, prompts, most=4, room=8, end=end, runtime=QUIET)
    assert model.training
    model.eval()
    assert found == [one_by_one(model, p, 4, 8, end) for p in prompts]
    assert found[-1] == ()


def test_answers_need_a_task_of_the_next_token():
    with pytest.raises(UserError, match="a task of the next token, got Classification"):
        answered(nn.Linear(1, 1), Classification(), [(1,)], most=1, room=2)


def test_names_as_token_ids():
    assert mentions(mention([17, 93], [8])) == [(17, 93), (8,)]
    assert places([8, 17, 93, 17], [(17, 93), (8,)]) == {0, 1, 2}
    for bad in ("Mara Velden", "17|", ""):
        with pytest.raises(UserError, match="token ids of a name such as '17 93"):
            mentions(bad)


def test_the_longest_common_subsequence():
    assert rouge_l([], []) == 1.0
    assert rouge_l([], [1]) == 0.0
    assert rouge_l([1, 2, 3], [1, 2, 3]) == 1.0
    assert rouge_l([1, 2, 3, 4, 5], [2, 5, 4]) == pytest.approx(2 * 2 / 8)


def test_a_batch_has_room():
    batch = batch_of([(1, 2), (3,)], True, room=4)
    assert batch.inputs["input_ids"].tolist() == [[1, 2, 0, 0], [3, 0, 0, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]
