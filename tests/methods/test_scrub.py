"""SCRUB: away from the original on the forget set, along with it on the retain set; and back to an epoch."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import CASES, blobs, deep
from expunge.data import Batch, Data, relabelled
from expunge.errors import Declined, MissingNeed, NotFinite, UserError
from expunge.method import See
from expunge.methods import build, load
from expunge.methods.scrub import closest
from expunge.objectives import Context
from expunge.objectives._distances import divergence
from expunge.task import Classification, Regression
from expunge.tensors import weights_digest
from expunge.train import Recipe, fit
from expunge.unlearn import unlearn
from replays import close, reads, samples

TASK = Classification()
SCRUB = load("scrub")
DATA, HOLDOUT = blobs(), blobs(30, seed=7, name="holdout")
TEACHER = torch.tensor([[2, 0, -1], [0.5, 1.5, 0]], dtype=torch.float64)
STUDENT = torch.tensor([[1, 0.5, -0.5], [1, 1, 0]], dtype=torch.float64)
PLAIN = {"optimizer": "sgd", "milestones": (), "weight_decay": 0.0, "batch_size": 10}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return fit(deep(), TASK, DATA, Recipe(epochs=10, lr=0.05, batch_size=8))


def parts(count: int) -> dict[str, Data]:
    return {"forget": DATA.subset(DATA.ids[:count]), "retain": DATA.without(DATA.ids[:count])}


def one_class() -> dict[str, Data]:
    return {"forget": DATA.subset(DATA.ids[::3]), "retain": DATA.without(DATA.ids[::3])}


def away(teacher: Tensor, student: Tensor, t: float) -> Tensor:
    """Return T²·KL by its definition, the mean over the batch."""
    p, q = (teacher.detach() / t).softmax(1), (student / t).softmax(1)
    return t * t * (p * (p / q).log()).sum(1).mean()


def left(teacher: Tensor, student: Tensor, t: float) -> Tensor:
    """Return what a max-epoch lowers, of logits."""
    batch = Batch(teacher, None, None, torch.arange(len(teacher)))
    return SCRUB(temperature=t).objective.loss(student, batch, Context(TASK, teacher=nn.Identity()))


@pytest.mark.parametrize(("t", "want"), [(1, 0.14812831), (2, 0.18395700), (4, 0.18373445)])
def test_divergence_is_from_the_teacher(t: float, want: float):
    assert float(left(TEACHER, STUDENT, t)) == pytest.approx(-want, abs=1e-8)
    assert float(divergence(STUDENT, TEACHER, t).mean()) != pytest.approx(want, abs=1e-3)


@pytest.mark.parametrize(
    ("gamma", "alpha", "t", "want"), [(1, 0.5, 2, 0.82504120), (0.99, 0.001, 4, 0.72591581), (1, 0, 1, 0.73306270)]
)
def test_the_loss_of_a_min_epoch_is_that_of_the_formula(gamma: float, alpha: float, t: float, want: float):
    losses = F.cross_entropy(STUDENT, torch.tensor([0, 1]), reduction="none")
    found = SCRUB(gamma=gamma, alpha=alpha, temperature=t).following(TEACHER, STUDENT, losses)
    assert float(found) == pytest.approx(want, abs=1e-8)


@pytest.mark.parametrize("t", [1, 2, 4])
def test_gradient_in_the_logits(t: float):
    student = STUDENT.clone().requires_grad_()
    (-left(TEACHER, student, t)).backward()
    want = t * ((STUDENT / t).softmax(1) - (TEACHER / t).softmax(1)) / 2
    assert torch.allclose(student.grad, want, rtol=0, atol=1e-15)
    if t == 1:
        assert student.grad[0].tolist() == pytest.approx([-0.1486, 0.1087, 0.0400], abs=1e-4)
    same = TEACHER.clone().requires_grad_()
    left(TEACHER, same, t).backward()
    assert same.grad.abs().max() < 1e-15


def test_the_rate_decays_after_each_milestone():
    rates = [SCRUB().rate(epoch) for epoch in range(1, 11)]
    assert rates == pytest.approx([5e-4] * 5 + [5e-5] * 3 + [5e-6, 5e-7], rel=1e-12)


def test_the_first_of_the_closest_epochs_is_taken():
    assert closest([Fraction(e, 100) for e in (0, 4, 12, 18, 15, 14)], Fraction(13, 100)) == 2
    assert closest([Fraction(0), Fraction(1, 3), Fraction(1)], Fraction(1, 6)) == 0


@pytest.mark.parametrize("norm", ["moving", "frozen"])
def test_equals_a_loop_written_by_hand(norm: str, model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    seen, sets = reads(monkeypatch, SCRUB), parts(11)
    method = SCRUB(
        epochs=3, max_epochs=2, lr=0.02, optimizer="sgd", weight_decay=1e-2, alpha=0.3, gamma=0.8, temperature=3,
        milestones=(1,), decay=0.5, batch_size=20, forget_batch_size=4, norm=norm,
    )  # fmt: skip
    done = unlearn(method, model, TASK, **sets, seed=2)
    slow, teacher = copy.deepcopy(model).train(norm == "moving"), copy.deepcopy(model).eval()
    optimizer = torch.optim.SGD(slow.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-2)
    max_epoch, min_epoch = [4, 4, 3], [20, 20, 9]
    assert list(map(len, seen)) == [*max_epoch, *min_epoch, *max_epoch, *min_epoch, *min_epoch]
    for step, ids in enumerate(seen):
        x, y = samples(DATA, ids)
        optimizer.param_groups[0]["lr"] = 0.02 if step < 6 else 0.01
        optimizer.zero_grad()
        outputs, original = slow(x), teacher(x)
        if set(ids) <= set(sets["forget"].ids):
            loss = -away(original, outputs, 3)
        else:
            loss = 0.8 * F.cross_entropy(outputs, y) + 0.3 * away(original, outputs, 3)
        loss.backward()
        optimizer.step()
    assert close(done.model, slow)
    assert done.log["steps"] == len(seen)
    assert [at for at, _ in done.log["max_loss"]] == [3, 9]
    assert [at for at, _ in done.log["min_loss"]] == [6, 12, 15]


def test_where_student_and_teacher_agree_the_first_max_epoch_moves_nothing(model: nn.Module):
    still = {**PLAIN, "epochs": 1, "max_epochs": 1, "lr": 0.05, "norm": "frozen", "batch_size": 100}
    done = unlearn(SCRUB(**still), model, TASK, **parts(11))
    slow = copy.deepcopy(model)
    x, y = samples(DATA, parts(11)["retain"].ids)
    loss = F.cross_entropy(slow(x), y)
    loss.backward()
    with torch.no_grad():
        for p in slow.parameters():
            p -= 0.05 * p.grad
    assert close(done.model, slow)
    assert abs(done.log["max_loss"][0][1]) < 1e-15
    assert "has no gradient, and moved nothing; take two max-epochs or more" in done.note


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ({"norm": "frozen", "weight_decay": 1e-3}, "moved weights by weight decay alone."),
        ({"norm": "frozen", "weight_decay": 0.0}, "moved nothing."),
        ({"norm": "moving", "weight_decay": 0.0}, ""),
    ],
)
def test_a_max_epoch_without_gradient_is_noted(settings: dict[str, object], note: str, model: nn.Module):
    done = unlearn(SCRUB(**{**PLAIN, "epochs": 2, **settings}), model, TASK, **parts(5))
    assert done.note.endswith(note)
    assert bool(done.note) == bool(note)
    assert len(done.log["max_loss"]) == 2
    assert done.log["max_loss"][1][1] < 0


def test_it_forgets_a_class_and_keeps_the_rest(model: nn.Module):
    sets = one_class()
    done = unlearn(SCRUB(lr=0.01, weight_decay=5e-4, batch_size=8, forget_batch_size=2), model, TASK, **sets)
    right = {}
    for name, data in sets.items():
        x, y = samples(DATA, data.ids)
        right[name] = float((done.model(x).argmax(1) == y).double().mean())
    assert right["forget"] < 0.3
    assert right["retain"] > 0.9


def wrong(model: nn.Module, data: Data) -> Fraction:
    batch = data.read(range(len(data)))
    with torch.no_grad():
        return Fraction(int((model(batch.inputs).argmax(1) != batch.target).sum()), len(data))


def spoiled(count: int) -> Data:
    """Return holdout data whose first samples of class 0 have wrong labels that count as another forgotten class."""
    targets = HOLDOUT.targets().clone()
    targets[torch.arange(0, 3 * count, 3)] = 1
    return relabelled(HOLDOUT, targets)


def test_rewind_returns_the_epoch_whose_error_is_closest(model: nn.Module):
    forget = DATA.subset([i for i, y in zip(DATA.ids, DATA.targets().tolist(), strict=True) if y < 2][:20])
    sets = {"forget": forget, "retain": DATA.without(forget.ids)}
    settings = {**PLAIN, "lr": 0.1, "max_epochs": 3}
    after = [model] + [unlearn(SCRUB(**settings, epochs=e), model, TASK, **sets).model for e in range(1, 6)]
    errors = [wrong(m, forget) for m in after]
    chosen = []
    for count in range(10):
        holdout = spoiled(count)
        done = unlearn(SCRUB(**settings, epochs=5, rewind=True), model, TASK, **sets, holdout=holdout)
        kept = [i for i, y in zip(holdout.ids, holdout.targets().tolist(), strict=True) if y < 2]
        reference = wrong(after[-1], holdout.subset(kept))
        at = done.log["rewound_to"]
        assert abs(errors[at] - reference) == min(abs(e - reference) for e in errors)
        assert all(abs(e - reference) > abs(errors[at] - reference) for e in errors[:at])
        assert weights_digest(done.model) == weights_digest(after[at])
        assert done.log["reference_error"] == float(reference)
        assert done.log["reference_samples"] == len(kept)
        assert [e for _, e in done.log["forget_error"]] == [float(e) for e in errors]
        assert ("Rewound to the original weights" in done.note) == (at == 0)
        assert (done.changed.count == 0) == (at == 0)
        chosen.append(at)
    assert 0 in chosen
    assert len({*chosen} - {0, 5}) >= 2, (chosen, errors)


def test_rewind_measures_holdout_samples_of_the_forgotten_classes_alone(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
):
    seen, sets = reads(monkeypatch, SCRUB), one_class()
    method = SCRUB(epochs=2, rewind=True)
    unlearn(method, model, TASK, **sets, holdout=HOLDOUT)
    read = [i for ids in seen for i in ids]
    assert sorted(i for i in read if i.startswith("holdout")) == sorted(HOLDOUT.ids[::3])
    assert {read.count(i) for i in sets["forget"].ids} == {2 + 3} == {method.passes("unlearn", None)["forget"]}
    assert {read.count(i) for i in sets["retain"].ids} == {2}


def test_rewind_needs_holdout_samples_of_those_classes(model: nn.Module):
    sets = one_class()
    with pytest.raises(MissingNeed, match="holdout for scrub to unlearn"):
        unlearn(SCRUB(rewind=True), model, TASK, **sets)
    others = HOLDOUT.without(HOLDOUT.ids[::3])
    with pytest.raises(
        UserError, match=r"classes to forget \(0\) for scrub.rewind, got none in holdout: .*rewind=False"
    ):
        unlearn(SCRUB(rewind=True), model, TASK, **sets, holdout=others)
    with pytest.raises(MissingNeed, match="forget data with labels for scrub"):
        unlearn(SCRUB(rewind=True), model, TASK, **{**sets, "forget": sets["forget"].unlabelled()}, holdout=HOLDOUT)


def test_labels_are_asked_for_where_they_are_used(model: nn.Module):
    sets = one_class()
    bare = {name: data.unlabelled() for name, data in sets.items()}
    given = {**sets, "forget": bare["forget"]}
    one, other = (unlearn(SCRUB(epochs=2), model, TASK, **g) for g in (sets, given))
    assert weights_digest(one.model) == weights_digest(other.model)
    with pytest.raises(MissingNeed, match="retain data with labels for scrub"):
        unlearn(SCRUB(), model, TASK, **bare)
    assert SCRUB(gamma=0).unlearns.retain == See.INPUTS
    assert unlearn(SCRUB(gamma=0, epochs=2), model, TASK, **bare).changed.count > 0


def test_sample_weights_multiply_the_loss_and_not_the_divergence(model: nn.Module):
    batch = DATA.read(range(60))
    twice = Data.from_arrays(batch.inputs, batch.target, weight=[2.0] * 60)
    settings = {"epochs": 2, "optimizer": "sgd", "lr": 0.02}
    sets = {"forget": twice.subset(twice.ids[:11]), "retain": twice.without(twice.ids[:11])}
    one = unlearn(SCRUB(**settings), model, TASK, **sets)
    assert close(one.model, unlearn(SCRUB(**settings, gamma=2), model, TASK, **parts(11)).model)
    assert not close(one.model, unlearn(SCRUB(**settings, gamma=2, alpha=1), model, TASK, **parts(11)).model)


def test_the_best_epoch_on_holdout_is_kept_where_asked(model: nn.Module):
    method = SCRUB(epochs=4, lr=0.05, optimizer="sgd", keep_best=True)
    done = unlearn(method, model, TASK, **parts(11), holdout=HOLDOUT)
    losses = [value for _, value in done.log["holdout_loss"]]
    batch = HOLDOUT.read(range(30))
    with torch.no_grad():
        assert float(F.cross_entropy(done.model(batch.inputs), batch.target)) == pytest.approx(min(losses), abs=1e-12)
    assert method.passes("unlearn", None) == {"forget": 3, "retain": 4, "holdout": 4}


@pytest.mark.parametrize("name", ["output_object", "dict_inputs", "branch"])
def test_any_input_and_output_of_a_classifier(name: str):
    model, data = CASES[name].make()
    sets = {"forget": data.subset(data.ids[:3]), "retain": data.without(data.ids[:3])}
    done = unlearn(SCRUB(epochs=2, rewind=True), model, TASK, **sets, holdout=sets["retain"])
    assert done.changed.count > 0 or done.log["rewound_to"] == 0


def test_without_classes_it_declines(model: nn.Module):
    with pytest.raises(Declined, match="compares probabilities of classes, and this task has no classes"):
        unlearn(SCRUB(), model, Regression(), **parts(5))


def test_divergence_names_the_step_and_the_rate(model: nn.Module):
    with pytest.raises(NotFinite, match=r"step \d+: lower scrub.lr \(now 1e"):
        unlearn(SCRUB(lr=1e200, optimizer="sgd"), model, TASK, **parts(9))


def test_settings_survive_plain_values():
    method = build({"name": "scrub", "milestones": [2, 4], "rewind": True})
    assert method.milestones == (2, 4)
    assert build(method.settings()) == method


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"alpha": 0, "gamma": 0}, "scrub.alpha or scrub.gamma above 0"),
        ({"alpha": -1.0}, "scrub.alpha of 0 or more"),
        ({"gamma": math.nan}, "scrub.gamma of 0 or more"),
        ({"temperature": 0}, "scrub.temperature above 0"),
        ({"decay": 0}, "scrub.decay above 0"),
        ({"max_epochs": 0}, "scrub.max_epochs of 1 or more"),
        ({"forget_batch_size": 0}, "scrub.forget_batch_size of 1 or more"),
        ({"milestones": (0,)}, "scrub.milestones as a tuple of epochs"),
        ({"milestones": [3]}, "scrub.milestones as a tuple of epochs"),
        ({"rewind": True, "keep_best": True}, "scrub.rewind or scrub.keep_best, got both"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], match: str):
    with pytest.raises(UserError, match=match):
        SCRUB(**settings)


def test_the_divergence_is_no_less_exact_for_logits_in_bf16() -> None:
    torch.manual_seed(0)
    teacher = 3 * torch.randn(64, 100)
    student = (teacher + 0.05 * torch.randn(64, 100)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = divergence(teacher.bfloat16(), student, 2.0)
    assert torch.allclose(found, divergence(teacher.bfloat16().float(), student.float(), 2.0))
    assert bool((found >= -1e-6).all())
