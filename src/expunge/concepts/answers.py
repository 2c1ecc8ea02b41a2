"""Questions and answers as token ids: where the answer begins, what a model says itself, whom an answer names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from expunge.copies import check_made
from expunge.data import Batch, Data
from expunge.errors import Misfit, UserError
from expunge.passes import whole
from expunge.runtime import Runtime
from expunge.task import CausalLM, Task
from expunge.task.causal_lm import IGNORED
from expunge.tensors import eval_mode

Ids = tuple[int, ...]
APART = "|"  # between several ways to write a name
PADDING = 0  # what stands behind the end of a sequence: the attention mask is 0 there, so any index does


@dataclass(frozen=True)
class Exchange:
    """A question and its answer.

    Args:
        prompt: token ids before the answer, one or more.
        answer: token ids of the answer, its end token included where it has one.
    """

    prompt: Ids
    answer: Ids

    @property
    def ids(self) -> Ids:
        """All token ids in order."""
        return self.prompt + self.answer


@dataclass(frozen=True)
class Asked:
    """The samples of a language model in their order.

    Args:
        exchanges: a question and answer each.
        keyed: whether inputs are a dict of ``input_ids`` and ``attention_mask``, otherwise one tensor of ids (N, T).
        room: tokens of the longest sequence that the data has room for, T.
    """

    exchanges: tuple[Exchange, ...]
    keyed: bool
    room: int

    def __len__(self) -> int:
        return len(self.exchanges)

    @property
    def end(self) -> int | None:
        """The token that every answer ends on and that stands nowhere else in one, None where there is none."""
        last = {e.answer[-1] for e in self.exchanges}
        token = last.pop() if len(last) == 1 else None
        return None if token is None or any(token in e.answer[:-1] for e in self.exchanges) else token


def asked(data: Data) -> Asked:
    """Return the questions and answers of labelled sequences: the answer is what the targets count.

    Padding may stand on either side. Targets that count every token make the first one the question.

    Args:
        data: ``input_ids`` with ``attention_mask``, or one tensor of ids, (N, T); targets (N, T), −100 of what is no
            answer.

    Raises:
        Misfit: other inputs, or a sequence without a question before one answer at its end.
    """
    batch = data.read(range(len(data)))
    if batch.target is None:
        raise Misfit(f"labels in {data.name}", "none", "give targets of -100 but for the answers")
    ids, mask = _tokens(batch)
    found = []
    for row, real, target, name in zip(ids, mask.bool(), batch.target, data.ids, strict=True):
        tokens, counted = row[real].tolist(), (target[real] != IGNORED).tolist()
        start = max(1, counted.index(True)) if True in counted else len(tokens)
        if start >= len(tokens) or not all(counted[start:]):
            remedy = "let the targets count the tokens of one answer, to the last token"
            raise Misfit("a question and one answer behind it in every sequence", f"none in {name}", remedy)
        found.append(Exchange(tuple(tokens[:start]), tuple(tokens[start:])))
    return Asked(tuple(found), isinstance(batch.inputs, dict), ids.shape[1])


def _tokens(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return token ids and the mask of those that are no padding, (N, T) each."""
    known = {"input_ids", "attention_mask"}
    if isinstance(batch.inputs, dict):
        ids = batch.inputs.get("input_ids")
        if ids is None or not batch.inputs.keys() <= known:
            got = f"inputs {', '.join(batch.inputs)}"
            raise Misfit("inputs input_ids and attention_mask", got, "leave out the others")
        mask = batch.inputs.get("attention_mask", torch.ones_like(ids))
    else:
        ids, mask = batch.inputs, torch.ones_like(batch.inputs)
    if ids.dim() != 2 or ids.is_floating_point() or batch.target is None or batch.target.shape != ids.shape:
        got = f"{ids.dtype} of shape {tuple(ids.shape)}"
        raise Misfit("token ids of shape (N, T), and targets of the same shape", got, "pass tokenised texts")
    if not isinstance(batch.inputs, dict):  # without a mask, padding is what stands behind the last counted token
        last = (batch.target != IGNORED).long() * torch.arange(1, ids.shape[1] + 1)
        mask = torch.arange(ids.shape[1]) < last.max(dim=1, keepdim=True).values
    return ids, mask


def batch_of(rows: Sequence[Ids], keyed: bool, device: str | torch.device = "cpu", room: int = 0) -> Batch:
    """Return sequences as one batch without targets, padded on the right.

    Args:
        rows: token ids of each sequence.
        keyed: whether inputs become a dict with an attention mask.
        device: where to.
        room: tokens that there is room for at least.
    """
    most = max(room, *(len(row) for row in rows))
    ids = torch.tensor([[*row, *[PADDING] * (most - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (most - len(row)) for row in rows], device=device)
    return Batch({"input_ids": ids, "attention_mask": mask} if keyed else ids, None, None, torch.arange(len(rows)))


def as_data(
    exchanges: Sequence[Exchange],
    keyed: bool = True,
    *,
    room: int = 0,
    ids: Iterable[str] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    name: str,
) -> Data:
    """Return questions and answers as labelled data, whose targets count the answers.

    Args:
        exchanges: questions and answers.
        keyed: whether inputs are a dict with an attention mask.
        room: tokens that there is room for at least.
        ids: of the samples.
        columns: further values of each sample.
        name: what messages call it.
    """
    batch = batch_of([e.ids for e in exchanges], keyed, room=room)
    tokens = batch.inputs["input_ids"] if isinstance(batch.inputs, dict) else batch.inputs
    target = torch.full_like(tokens, IGNORED)
    for row, e in zip(target, exchanges, strict=True):
        row[len(e.prompt) : len(e.ids)] = torch.tensor(e.answer)
    return Data.from_arrays(batch.inputs, target, ids=ids, columns=columns, name=name)


def answered(
    model: nn.Module,
    task: Task,
    prompts: Sequence[Ids],
    *,
    most: int,
    room: int,
    end: int | None = None,
    keyed: bool = True,
    runtime: Runtime | None = None,
) -> list[Ids]:
    """Return what a model answers, its likeliest token each time.

    Questions of one length go together, so that none is padded.

    Args:
        model: of the next token; its modes are left as found.
        task: runs it, `expunge.task.CausalLM`.
        prompts: token ids of each question.
        most: tokens of an answer at most, 1 or more.
        room: tokens of question and answer at most.
        end: the token that ends an answer; it is returned with it.
        keyed: whether the model takes a dict with an attention mask.
        runtime: device, batch size, precision.

    Returns:
        Token ids of each answer; of none where a question leaves no room.

    Raises:
        UserError: the task is none of sequences, or memory does not suffice for a batch.
    """
    if not isinstance(task, CausalLM):
        raise UserError("a task of the next token", type(task).__name__, "use CausalLM")
    runtime = runtime or Runtime()
    check_made(model)
    model = runtime.placed(model)
    found: list[Ids] = [()] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    with eval_mode(model), torch.no_grad():
        while order:
            length = len(prompts[order[0]])
            now = [i for i in order[: runtime.batch_size] if len(prompts[i]) == length]
            order = order[len(now) :]
            with whole(f"{len(now)} answers", "lower Runtime.batch_size"):
                said = _greedy(model, task, [prompts[i] for i in now], min(most, room - length), end, keyed, runtime)
            for i, answer in zip(now, said, strict=True):
                found[i] = answer
    return found


def answers_to(of: Asked, model: nn.Module, task: Task, runtime: Runtime | None = None) -> list[Ids]:
    """Return what a model answers to the questions of a set, as long as the longest answer there at most.

    Args:
        of: the questions.
        model: see `answered`.
        task: see `answered`.
        runtime: device, batch size, precision.
    """
    most = max(len(e.answer) for e in of.exchanges)
    prompts = [e.prompt for e in of.exchanges]
    return answered(model, task, prompts, most=most, room=of.room, end=of.end, keyed=of.keyed, runtime=runtime)


def body(answer: Ids, end: int | None) -> Ids:
    """Return an answer without its end token."""
    return answer[:-1] if answer and answer[-1] == end else answer


def _greedy(
    model: nn.Module, task: Task, prompts: Sequence[Ids], most: int, end: int | None, keyed: bool, runtime: Runtime
) -> list[Ids]:
    rows, done = [list(p) for p in prompts], [False] * len(prompts)
    for _ in range(most):
        with runtime.autocast():
            outputs, _ = task.forward(model, batch_of([tuple(r) for r in rows], keyed, runtime.torch_device))
        for i, token in enumerate(outputs[:, -1].argmax(dim=1).tolist()):
            rows[i].append(token)
            done[i] = done[i] or token == end
        if all(done):
            break
    said = [tuple(row[len(p) :]) for row, p in zip(rows, prompts, strict=True)]
    return [a[: a.index(end) + 1] if end is not None and end in a else a for a in said]


def mention(*names: Sequence[int]) -> str:
    """Return a name as the column ``mention`` holds it: token ids, its other ways to be written behind a bar.

    >>> mention([17, 93], [8])
    '17 93|8'
    """
    return APART.join(" ".join(map(str, name)) for name in names)


def mentions(text: object) -> list[Ids]:
    """Return the token ids of a name and its other ways to be written, from a value of the column ``mention``.

    Raises:
        UserError: it holds something else than token ids.

    >>> mentions("17 93|8")
    [(17, 93), (8,)]
    """
    try:
        found = [tuple(int(part) for part in name.split()) for name in str(text).split(APART)]
    except ValueError as error:
        remedy = "write them as expunge.concepts.answers.mention does"
        raise UserError("token ids of a name such as '17 93|8'", repr(text), remedy) from error
    if not all(found):
        remedy = "write them as expunge.concepts.answers.mention does"
        raise UserError("token ids of a name such as '17 93|8'", repr(text), remedy)
    return found


def places(ids: Sequence[int], names: Iterable[Ids]) -> set[int]:
    """Return the positions of token ids at which one of some names stands, each name whole.

    >>> sorted(places([5, 17, 93, 8], [(17, 93)]))
    [1, 2]
    """
    found: set[int] = set()
    for name in names:
        for at in range(len(ids) - len(name) + 1):
            if tuple(ids[at : at + len(name)]) == tuple(name):
                found |= set(range(at, at + len(name)))
    return found


def rouge_l(said: Sequence[int], wanted: Sequence[int]) -> float:
    """Return ROUGE-L of two answers: the F1 of their longest common subsequence of tokens, in [0, 1].

    2·L/(|said| + |wanted|); 1 of two empty answers.

    Args:
        said: token ids of what was answered.
        wanted: token ids of what should have been.

    References:
        Chin-Yew Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004,
        https://aclanthology.org/W04-1013.

    >>> rouge_l([1, 2, 3, 4], [1, 9, 3])
    0.5714285714285714
    """
    if not said and not wanted:
        return 1.0
    row = [0] * (len(wanted) + 1)
    for token in said:
        before = row[:]
        for at, other in enumerate(wanted):
            row[at + 1] = before[at] + 1 if token == other else max(before[at + 1], row[at])
    return 2 * row[-1] / (len(said) + len(wanted))
