"""Forgetting objectives: their values and gradients by hand, what bounds them, caps, labels drawn, weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from expunge.data import Batch
from expunge.errors import Misfit, UserError
from expunge.objectives import Context, Objective, build, load, names
from expunge.objectives._base import targets
from expunge.task import Classification, Regression

D = torch.float64
Z, P = [2.0, 0.0, -1.0], [0.8437947345, 0.1141951994, 0.0420100661]  # logits of a sample of class 0, and its softmax
DRAWN_2 = 0.9  # the uniform number by which class 0 of three becomes 2
LABELLED = ["random_label", "ascent", "tau_hinge"]
SQUARED, ABSOLUTE = Regression(), Regression("absolute")


class Says(nn.Module):
    """A teacher that says the same logits of every batch."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, inputs: Tensor) -> Tensor:
        return self.logits


def rows(values: Sequence[Sequence[float]] | Tensor) -> Tensor:
    """Return logits that gradients are taken with respect to."""
    return torch.as_tensor(values, dtype=D).clone().requires_grad_()


def of(labels: Sequence[int] | Tensor | None, size: int = 1, weight: Sequence[float] | None = None) -> Batch:
    """Return a batch of which an objective sees labels, weights and positions."""
    target = None if labels is None else torch.as_tensor(labels)
    n = size if target is None else len(target)
    return Batch(torch.zeros(n, 1), target, None if weight is None else torch.tensor(weight), torch.arange(n))


def about(**more: Any) -> Context:
    return Context(**{"task": Classification(), **more})


def some(n: int = 6, classes: int = 4, seed: int = 0) -> tuple[Tensor, Batch, Context]:
    """Return logits, labels, and all that any objective looks at."""
    random = torch.Generator().manual_seed(seed)
    z, teacher = (torch.randn(n, classes, dtype=D, generator=random) for _ in range(2))
    labels = torch.randint(classes, (n,), generator=random)
    draws = torch.rand(n, dtype=D, generator=random)
    return z.requires_grad_(), of(labels), about(teacher=Says(teacher), draws=draws, tau=2.0)


def gradient(objective: Objective, z: Tensor, batch: Batch, context: Context) -> Tensor:
    return torch.autograd.grad(objective.loss(z, batch, context), z)[0]


PARITY = [
    ("entropy", {}, {}, -0.5242666167, [0.2990582337, -0.1879172680, -0.1111409657]),
    ("uniform", {}, {}, 0.7379003976, [0.5104614011, -0.2191381339, -0.2913232672]),
    ("random_label", {}, {"draws": [DRAWN_2]}, 3.1698460196, [P[0], P[1], -0.9579899339]),
    ("bad_teacher", {}, {"teacher": [0.2, 0.5, 0.3]}, 1.0401930055, [0.6437947345, -0.3858048006, -0.2579899339]),
    ("scrub", {}, {"teacher": [3, 0.5, -1]}, -0.0776032266, [0.1776916604, -0.0420174257, -0.1356742347]),
    ("ascent", {}, {}, -0.1698460196, [0.1562052655, -P[1], -P[2]]),
    ("tau_hinge", {}, {"tau": 0.9}, 0.5331248352, [0.2281077928, -0.1667601588, -0.0613476340]),
    ("tau_hinge", {"reduction": "sample"}, {"tau": 0.9}, 0.5331248352, [0.2281077928, -0.1667601588, -0.0613476340]),
    ("tau_hinge", {"tau": 0.9}, {"tau": 5.0}, 0.5331248352, [0.2281077928, -0.1667601588, -0.0613476340]),
]


@pytest.mark.parametrize(("name", "settings", "seen", "value", "slope"), PARITY)
def test_a_sample_has_the_value_and_gradient_of_the_formula(
    name: str, settings: dict[str, Any], seen: dict[str, Any], value: float, slope: list[float]
) -> None:
    made = {k: torch.tensor(v, dtype=D) if isinstance(v, list) else v for k, v in seen.items()}
    if name == "bad_teacher":
        made["teacher"] = made["teacher"].log()  # softmax of the logarithms of probabilities is these
    if "teacher" in made:
        made["teacher"] = Says(made["teacher"][None])
    objective, z = build({"name": name, **settings}), rows([Z])
    assert objective.values(z, of([0]), about(**made)).tolist() == pytest.approx([value], abs=1e-8)
    assert objective.loss(z, of([0]), about(**made)).item() == pytest.approx(value, abs=1e-8)
    assert gradient(objective, z, of([0]), about(**made))[0].tolist() == pytest.approx(slope, abs=1e-8)


def test_the_published_bad_teacher_is_smaller_by_the_number_of_classes() -> None:
    objective, z = build({"name": "bad_teacher", "compat": "official"}), rows([Z])
    context = about(teacher=Says(torch.tensor([[0.2, 0.5, 0.3]], dtype=D).log()))
    assert objective.values(z, of(None), context).tolist() == pytest.approx([0.3467310018], abs=1e-8)
    assert objective.loss(z, of(None), context).item() == pytest.approx(0.3467310018, abs=1e-8)
    want = [g / 3 for g in (0.6437947345, -0.3858048006, -0.2579899339)]
    assert gradient(objective, z, of(None), context)[0].tolist() == pytest.approx(want, abs=1e-8)


@pytest.mark.parametrize("t", [1.0, 2.5])
def test_a_temperature_divides_all_logits(t: float) -> None:
    z, batch, context = some()
    p = (z / t).softmax(1)
    q = (context.taught(batch) / t).softmax(1)
    far = (q * (q / p).log()).sum(1)
    bad = build({"name": "bad_teacher", "temperature": t})
    assert torch.allclose(bad.values(z, batch, context), far, atol=1e-12)
    assert torch.allclose(gradient(bad, z, batch, context), (p - q) / t / len(z), atol=1e-12)
    away = build({"name": "scrub", "temperature": t})
    assert torch.allclose(away.values(z, batch, context), -t * t * far, atol=1e-12)
    assert torch.allclose(gradient(away, z, batch, context), -t * (p - q) / len(z), atol=1e-12)


@pytest.mark.parametrize("name", names())
def test_a_step_lowers_the_mean_over_samples_by_its_gradient(name: str) -> None:
    z, batch, context = some()
    objective = build({"name": name, "reduction": "sample"} if name == "tau_hinge" else name)
    assert objective.values(z, batch, context).shape == (len(z),)
    assert torch.allclose(objective.loss(z, batch, context), objective.values(z, batch, context).mean(), atol=1e-15)
    assert torch.autograd.gradcheck(lambda x: objective.loss(x, batch, context), (z,))
    lower = z - 1e-4 * gradient(objective, z, batch, context)
    assert objective.loss(lower, batch, context) < objective.loss(z, batch, context)


@pytest.mark.parametrize("name", ["bad_teacher", "scrub"])
def test_no_gradient_flows_into_what_a_teacher_says(name: str) -> None:
    student, teacher = rows([Z]), rows([[3.0, 0.5, -1.0]])
    found = build(name).loss(student, of(None), about(teacher=Says(teacher)))
    assert torch.autograd.grad(found, [student, teacher], allow_unused=True)[1] is None
    if name == "bad_teacher":
        found = load(name)().distance(teacher, student)
        assert torch.autograd.grad(found, [student, teacher], allow_unused=True)[1] is None


@pytest.mark.parametrize("name", ["entropy", "uniform", "bad_teacher", "scrub"])
def test_bf16_logits_are_worked_on_in_float32(name: str) -> None:
    z, batch, context = some()
    rounded = z.detach().bfloat16()
    context = about(teacher=Says(context.taught(batch).bfloat16()))
    found = build(name).values(rounded, batch, context)
    assert found.dtype == torch.float32
    wide = about(teacher=Says(context.taught(batch).float()))
    assert torch.equal(found, build(name).values(rounded.float(), batch, wide))


def test_entropy_has_no_gradient_where_a_prediction_is_certain_and_uniform_has() -> None:
    certain = rows([[60.0, 0.0, 0.0]])
    assert gradient(build("entropy"), certain, of(None), about()).abs().max() < 1e-20
    pull = gradient(build("uniform"), certain, of(None), about())[0]
    assert pull.tolist() == pytest.approx([2 / 3, -1 / 3, -1 / 3], abs=1e-12)


@given(st.lists(st.floats(-300, 300), min_size=3, max_size=3), st.integers(0, 2), st.floats(0, 1, exclude_max=True))
def test_what_is_bounded_is_never_below_its_bound(logits: list[float], label: int, draw: float) -> None:
    z = torch.tensor([logits], dtype=D)
    context = about(teacher=Says(z.flip(1)), draws=torch.tensor([draw], dtype=D), tau=1.0)
    least = {"entropy": -math.log(3), "uniform": 0, "random_label": 0, "bad_teacher": 0, "tau_hinge": 0}
    for name, bound in least.items():
        assert build(name).bounded
        assert float(build(name).loss(z, of([label]), context)) >= bound - 1e-12


@pytest.mark.parametrize("name", ["ascent", "scrub"])
def test_what_is_not_bounded_is_capped_unless_it_is_told_to_go_on(name: str) -> None:
    objective = load(name)
    assert objective().bounded
    assert not objective(capped=False).bounded
    far, context = rows([[-1e6, 0.0, 0.0]]), about(teacher=Says(rows([[1.0, 0.0, 0.0]]).detach()))
    for free in (False, True):
        found = objective(capped=not free).loss(far, of([0]), context)
        assert found.item() < -1e5
        assert found.requires_grad is free


# Caps.


def loss_of(losses: Sequence[float], classes: int = 3) -> Tensor:
    """Return logits under which class 0 has these losses: its probability is e^−loss, the others share the rest."""
    gone = torch.exp(-torch.tensor(losses, dtype=D))
    rest = ((1 - gone) / (classes - 1)).log()[:, None].expand(-1, classes - 1)
    return rows(torch.cat([gone.log()[:, None], rest], dim=1))


@pytest.mark.parametrize(
    ("settings", "losses", "free"),
    [
        ({}, [2 * math.log(3) + 1e-6], False),
        ({}, [2 * math.log(3) - 1e-6], True),
        ({"cap": 1.0}, [1.5], False),
        ({"cap": 1.0}, [0.5], True),
        ({"cap": 1.0}, [1.5, 0.4], True),  # the batch's mean is below it
        ({"cap": 1.0}, [1.7, 0.4], False),
        ({"cap": 1.0, "capped": False}, [1.5], True),
    ],
)
def test_past_a_mean_loss_an_ascent_has_no_gradient_and_the_value_stays(
    settings: dict[str, Any], losses: list[float], free: bool
) -> None:
    found = build({"name": "ascent", **settings}).loss(loss_of(losses), of([0] * len(losses)), about())
    assert found.item() == pytest.approx(-sum(losses) / len(losses), abs=1e-12)
    assert found.requires_grad is free


@pytest.mark.parametrize("t", [1.0, 4.0])
@pytest.mark.parametrize("over", [1e-6, -1e-6])
def test_the_cap_of_scrub_is_a_divergence_without_its_factor(t: float, over: float) -> None:
    z, teacher = rows([[0.0, 3.0, 1.0]]), torch.tensor([[4.0, -1.0, 0.0]], dtype=D)
    p, q = (teacher / t).softmax(1), (z.detach() / t).softmax(1)
    far = float((p * (p / q).log()).sum())
    objective = load("scrub")(temperature=t, cap=far - over)
    found = objective.loss(z, of(None), about(teacher=Says(teacher)))
    assert found.item() == pytest.approx(-t * t * far, rel=1e-12)
    assert found.requires_grad is (over < 0)


def test_a_cap_of_scrub_that_is_unset_is_twice_the_logarithm_of_the_classes() -> None:
    one = torch.tensor([[40.0, 0.0, 0.0]], dtype=D)  # the divergence from it is the loss of class 0
    for loss, free in ((2 * math.log(3) - 1e-6, True), (2 * math.log(3) + 1e-6, False)):
        found = load("scrub")(temperature=1.0).loss(loss_of([loss]), of(None), about(teacher=Says(one)))
        assert found.item() == pytest.approx(-loss, abs=1e-12)
        assert found.requires_grad is free


# The hinge.


@pytest.mark.parametrize(
    ("tau", "losses", "batch", "sample", "both"),
    [
        (0.9, [0.1, 0.3, 0.2, 0.0], 0.5625, 0.575, 0.5625),
        (0.5, [0.9, 0.7], 0.0, 0.0, 0.09),
        (1.0, [2.5, 0.1], 0.0, 0.405, 0.09),
    ],
)
def test_the_hinge_is_on_the_mean_of_a_batch_or_on_each_sample(
    tau: float, losses: list[float], batch: float, sample: float, both: float
) -> None:
    found = torch.tensor(losses, dtype=D, requires_grad=True)
    hinge = load("tau_hinge")
    assert hinge().of(found, tau, each=False).item() == pytest.approx(batch, abs=1e-12)
    assert hinge().of(found, tau, each=True).item() == pytest.approx(sample, abs=1e-12)
    assert hinge(hinge="two_sided").of(found, tau, each=False).item() == pytest.approx(both, abs=1e-12)
    mean, n = sum(losses) / len(losses), len(losses)
    (slope,) = torch.autograd.grad(hinge().of(found, tau, each=False), found)
    assert slope.tolist() == pytest.approx([-2 * max(0, tau - mean) / n] * n, abs=1e-12)
    (slope,) = torch.autograd.grad(hinge().of(found, tau, each=True), found)
    assert slope.tolist() == pytest.approx([-2 * max(0, tau - loss) / n for loss in losses], abs=1e-12)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("reduction", ["auto", "batch", "sample"])
def test_of_a_whole_class_the_hinge_is_on_each_sample_unless_a_field_says_otherwise(
    whole: bool, reduction: str
) -> None:
    objective = build({"name": "tau_hinge", "reduction": reduction})
    context = about(tau=1.2, whole_class=whole)
    z = loss_of([2.5, 0.1])
    each = reduction == "sample" or (whole and reduction == "auto")
    assert objective.each(context) is each
    want = (1.2 - 0.1) ** 2 / 2 if each else 0.0
    assert objective.loss(z, of([0, 0]), context).item() == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize(
    ("tau", "known", "whole", "want"),
    [
        (None, 0.4, False, 0.4),
        (None, 0.4, True, math.log(3)),
        (None, 1.7, True, 1.7),
        (0.3, 0.4, True, 0.3),
        (0.3, None, False, 0.3),
    ],
)
def test_tau_of_a_class_is_no_less_than_that_of_chance(
    tau: float | None, known: float | None, whole: bool, want: float
) -> None:
    objective, context = load("tau_hinge")(tau=tau), about(tau=known, whole_class=whole)
    assert objective.level(3, context) == want
    found = objective.loss(loss_of([0.1]), of([0]), context)
    assert found.item() == pytest.approx((want - 0.1) ** 2, abs=1e-12)


def test_without_a_loss_on_held_out_data_the_hinge_asks_for_it() -> None:
    with pytest.raises(
        UserError, match="a loss on held-out data for tau_hinge, got none: pass holdout=.*tau_hinge.tau"
    ):
        build("tau_hinge").loss(rows([Z]), of([0]), about())


# Labels that are drawn.


@pytest.mark.parametrize("classes", [2, 5])
def test_a_drawn_label_is_never_the_true_one_unless_it_may_be(classes: int) -> None:
    random = torch.Generator().manual_seed(1)
    labels = torch.randint(classes, (4000,), generator=random)
    context = about(draws=torch.rand(4000, dtype=D, generator=random))
    drawn = load("random_label")().relabelled(labels, torch.arange(4000), classes, context)
    assert not (drawn == labels).any()
    assert {(int(a), int(b)) for a, b in zip(labels, drawn, strict=True)} == {
        (a, b) for a, b in product(range(classes), repeat=2) if a != b
    }
    any_class = load("random_label")(exclude_true=False).relabelled(labels, torch.arange(4000), classes, context)
    assert float((any_class == labels).double().mean()) == pytest.approx(1 / classes, abs=0.03)


def test_one_draw_serves_all_batches_of_a_request() -> None:
    z, batch, context = some(n=40)
    objective = build("random_label")
    every = objective.values(z, batch, context)
    at = torch.randperm(40, generator=torch.Generator().manual_seed(2))[:11]
    part = Batch(torch.zeros(11, 1), batch.target[at], None, at)
    assert torch.equal(objective.values(z[at], part, context), every[at])
    other = about(draws=torch.rand(40, dtype=D, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(objective.values(z, batch, other), every)


def test_labels_that_are_no_classes_are_refused() -> None:
    _, _, context = some(n=1)
    for name in LABELLED:
        with pytest.raises(Misfit, match="classes 0 to 2, got class 3"):
            build(name).loss(rows([Z]), of([3]), context)


def test_a_batch_without_labels_is_refused_where_they_are_read() -> None:
    z, _, context = some()
    for name in names():
        if name in LABELLED:
            with pytest.raises(UserError, match="labels of the samples to forget, got none"):
                build(name).values(z, of(None, len(z)), context)
        else:
            assert build(name).values(z, of(None, len(z)), context).shape == (len(z),)
    assert sorted(n for n in names() if load(n).labels) == sorted(LABELLED)
    assert targets(of([1])).tolist() == [1]


class Whole(Classification):
    """A task whose loss is that of the whole batch, as a protocol it breaks."""

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        return super().loss(outputs, target).mean()


@pytest.mark.parametrize("name", LABELLED)
def test_a_loss_that_is_not_one_number_a_sample_is_refused(name: str) -> None:
    z, batch, context = some()
    context = about(task=Whole(), draws=context.draws, tau=1.0)
    with pytest.raises(UserError, match=r"a loss of shape \(B,\), one number a sample, got shape \(\) for 6"):
        build(name).loss(z, batch, context)


# Weights.


@pytest.mark.parametrize("name", names())
def test_the_weight_of_a_sample_counts_in_what_is_the_loss_of_training(name: str) -> None:
    z, batch, context = some()
    weight = [0.0, 2.0, 0.5, 1.0, 0.0, 3.0]
    heavy = Batch(batch.inputs, batch.target, torch.tensor(weight), batch.index)
    objective = build(name)
    assert objective.weighed is (name in ("ascent", "random_label"))
    assert torch.equal(objective.values(z, heavy, context), objective.values(z, batch, context))
    plain, found = objective.loss(z, batch, context), objective.loss(z, heavy, context)
    if objective.weighed:
        want = (objective.values(z, batch, context) * torch.tensor(weight, dtype=D)).mean()
        assert torch.allclose(found, want, atol=1e-15)
        assert not torch.allclose(found, plain)
    else:
        assert torch.equal(found, plain)


def test_the_cap_is_on_the_mean_with_weights() -> None:
    objective, z = load("ascent")(cap=1.0), loss_of([0.6, 0.6])
    assert objective.loss(z, of([0, 0]), about()).requires_grad
    assert not objective.loss(z, of([0, 0], weight=[2.0, 2.0]), about()).requires_grad


# Tasks without classes.


@pytest.mark.parametrize("task", [SQUARED, ABSOLUTE], ids=["squared", "absolute"])
def test_ascent_and_the_hinge_take_any_loss(task: Regression) -> None:
    y = rows([[0.3, -0.3], [0.9, 0.4]])
    target = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=D)
    batch = Batch(torch.zeros(2, 1), target, None, torch.arange(2))
    losses = task.loss(y, target)
    up = load("ascent")(cap=50.0)
    assert torch.equal(up.loss(y, batch, about(task=task)), -losses.mean())
    assert torch.autograd.gradcheck(lambda x: up.loss(x, batch, about(task=task)), (y,))
    assert not load("ascent")(cap=0.05).loss(y, batch, about(task=task)).requires_grad
    hinge = build("tau_hinge")
    for tau in (4.0, 0.5):  # of a whole class too, for without classes there is no loss of chance, ln 2
        context = about(task=task, tau=tau, whole_class=True)
        want = (tau - losses).clamp_min(0).square().mean()
        assert torch.allclose(hinge.loss(y, batch, context), want, atol=1e-12)
        assert torch.autograd.gradcheck(lambda x, context=context: hinge.loss(x, batch, context), (y,))
