import math

import pytest
import torch
import transformers
from torch.nn import functional as F

from expunge.data import Batch, Data
from expunge.errors import UserError
from expunge.fisher import diagonal
from expunge.runtime import Runtime
from expunge.task import CausalLM, Classes, Task, class_count
from expunge.train import Recipe, fit

D = torch.float64
V, T = 11, 6
TASK = CausalLM()


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=16,
        vocab_size=V,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.LlamaForCausalLM(config).eval()


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=V, bos_token_id=1, eos_token_id=2, n_positions=8,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


def sequences(n=12, padded=True):
    """Return sequences of T tokens, padded on the right to several lengths."""
    ids = torch.randint(3, V, (n, T), generator=torch.Generator().manual_seed(1))
    lengths = 2 + torch.arange(n) % (T - 1) if padded else torch.full((n,), T)
    mask = (torch.arange(T) < lengths[:, None]).long()
    return ids * mask, mask


def data(n=12, padded=True):
    ids, mask = sequences(n, padded)
    return Data.from_arrays({"input_ids": ids, "attention_mask": mask}, TASK.labels(ids, mask))


def by_hand(logits, target):
    found = []
    for row, labels in zip(logits, target, strict=True):
        terms = [-row[t].log_softmax(0)[labels[t + 1]] for t in range(len(labels) - 1) if labels[t + 1] != -100]
        found.append(sum(terms) / len(terms))
    return torch.stack(found)


def test_it_is_a_task_without_exclusive_classes():
    assert isinstance(TASK, Task)
    assert not isinstance(TASK, Classes)
    assert class_count(TASK, torch.zeros(2, T, V)) == 0


def test_the_loss_is_the_mean_over_the_tokens_that_count():
    target = data().targets()
    logits = torch.randn(12, T, V, dtype=D, generator=torch.Generator().manual_seed(2))
    found = TASK.loss(logits, target)
    assert found.shape == (12,)
    assert torch.allclose(found, by_hand(logits, target), atol=1e-12, rtol=0)
    assert TASK.loss(torch.zeros(1, 3, 4), torch.tensor([[0, 1, -100]])).tolist() == pytest.approx([math.log(4)])


def test_the_first_token_and_the_last_logits_do_not_count():
    target = torch.tensor([[1, 2, 3]])
    logits = torch.randn(1, 3, V)
    other = logits.clone()
    other[:, -1] += 5 * torch.randn(V)
    assert torch.equal(TASK.loss(logits, target), TASK.loss(other, torch.tensor([[7, 2, 3]])))


@pytest.mark.parametrize("build", [llama, gpt2])
def test_of_one_sequence_it_is_the_loss_of_transformers(build):
    model, read = build(), data()
    for at in range(3):
        batch = read.read([at])
        outputs, _ = TASK.forward(model, batch)
        want = model(**batch.inputs, labels=batch.target).loss
        assert TASK.loss(outputs, batch.target).item() == pytest.approx(want.item(), rel=1e-6)


@pytest.mark.parametrize("build", [llama, gpt2])
def test_padding_changes_nothing(build):
    model, (ids, mask) = build(), sequences()
    outputs, _ = TASK.forward(model, data().read(range(12)))
    all_at_once = TASK.loss(outputs, TASK.labels(ids, mask))
    for at in range(12):
        own = ids[at : at + 1, : int(mask[at].sum())]
        batch = Batch({"input_ids": own}, own, None, torch.arange(1))
        alone = TASK.loss(TASK.forward(model, batch)[0], own)
        assert all_at_once[at].item() == pytest.approx(alone.item(), abs=2e-6)


def test_predictions_and_taps():
    model, batch = gpt2(), data().read(range(3))
    outputs, taps = TASK.forward(model, batch, ["transformer.h.1"])
    assert outputs.shape == (3, T, V)
    assert taps["transformer.h.1"].shape == (3, T, 16)
    assert torch.equal(TASK.predictions(outputs), outputs.argmax(-1))


def test_tokens_are_drawn_from_what_stands_before_them():
    logits = torch.tensor([[[0.0, math.log(3)], [math.log(9), 0.0], [5.0, 0.0]]]).expand(40_000, 3, 2)
    drawn = TASK.sample_target(logits, torch.Generator().manual_seed(0))
    assert drawn.shape == (40_000, 3)
    assert bool((drawn[:, 0] == -100).all())
    assert drawn[:, 1:].double().mean(dim=0).tolist() == pytest.approx([0.75, 0.1], abs=0.01)
    TASK.check(logits, drawn)


def test_the_first_token_is_not_predicted_wherever_the_padding_is():
    ids, mask = torch.tensor([[0, 0, 5, 7], [5, 7, 0, 0]]), torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0]])
    assert TASK.labels(ids, mask).tolist() == [[-100, -100, -100, 7], [5, 7, -100, -100]]


def test_labels_refuse_a_mask_of_another_shape():
    with pytest.raises(UserError, match=r"an attention mask of the shape of the token ids, got \(2, 3\) for ids \(2, "):
        TASK.labels(torch.zeros(2, 4, dtype=torch.long), torch.ones(2, 3))


def test_padding_as_a_target_is_refused():
    ids, mask = sequences()
    wrong = Data.from_arrays({"input_ids": ids, "attention_mask": mask}, ids)
    with pytest.raises(
        UserError, match=r"targets of -100 where attention_mask is 0, got token ids of padding: take Ca"
    ):
        fit(gpt2(), TASK, wrong, Recipe(epochs=1))


@pytest.mark.parametrize(
    ("outputs", "target", "said"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3).long(), r"logits of shape \(B, T, V\), got \(2, 3\): use a network with"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3), r"token ids as integers of shape \(B, T\), got torch.float32"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 4).long(), r"got torch.int64 of shape \(2, 4\) for logits \(2, 3, 4\)"),
        (torch.zeros(1, 3, 4), torch.tensor([[0, 4, 1]]), "token ids 0 to 3, or -100, got 4"),
        (torch.zeros(1, 3, 4), torch.tensor([[0, -1, 1]]), "token ids 0 to 3, or -100, got -1"),
        (torch.zeros(1, 3, 4), torch.tensor([[2, -100, -100]]), "a token to predict in every sequence, got a sequence"),
    ],
)
def test_what_does_not_fit_is_said(outputs, target, said):
    with pytest.raises(UserError, match=said):
        TASK.check(outputs, target)


@pytest.mark.parametrize("build", [llama, gpt2])
def test_a_model_learns_its_sequences(build):
    train = data()
    made = fit(build(), TASK, train, Recipe(epochs=30, lr=0.02, optimizer="adamw", weight_decay=0.0, batch_size=5))
    batch = train.read(range(12))
    before, after = (float(TASK.loss(TASK.forward(m, batch)[0], batch.target).mean()) for m in (build(), made))
    assert after < 0.5 * before


def test_importances_are_those_of_each_sequence():
    model, train = gpt2().double(), data(5)
    runtime = Runtime(batch_size=2, progress=False, device="cpu")
    found = diagonal(model, TASK, train, of="loss", params=["transformer.ln_f.weight"], runtime=runtime)
    weight, total = model.transformer.ln_f.weight, torch.zeros(16, dtype=D)
    for at in range(5):
        batch = train.read([at])
        outputs, _ = TASK.forward(model, batch)
        loss = F.cross_entropy(outputs[0, :-1], batch.target[0, 1:], ignore_index=-100)
        total += torch.autograd.grad(loss, weight)[0] ** 2 / 5
    assert torch.allclose(found.values["transformer.ln_f.weight"], total, rtol=1e-9, atol=1e-12)
