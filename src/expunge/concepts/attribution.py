"""Integrated gradients: of concept scores through a head, and of a network's representation along concepts."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data import Batch, Data
from expunge.errors import Misfit, UserError
from expunge.extras import imported
from expunge.passes import Passes
from expunge.runtime import Runtime
from expunge.task import Binary, Task, class_logits
from expunge.tensors import check_finite, eval_mode

Function = Callable[[Tensor], Tensor]  # (N, ...) to (N,), each row by itself
Engine = Literal["auto", "captum", "own"]
Split = Literal["unit", "least_squares"]
STEPS = 50  # nodes of the quadrature
CUT = 1e-10  # of the largest singular value: below it, directions of concepts are taken for one


@dataclass(frozen=True, eq=False)
class Attributions:
    """What each number of an input adds to a function's value over a baseline's.

    Args:
        values: (N, ...), in units of the function.
        gap: (N,), Σ values − (F(x) − F(x')), the error of the quadrature.
        engine: ``captum`` or ``own``, whose quadrature it was.
    """

    values: Tensor
    gap: Tensor
    engine: str


def chosen(engine: Engine) -> str:
    """Return the engine that works: ``auto`` is captum where it is installed, otherwise the package's own.

    Raises:
        UserError: no such engine.
    """
    if engine not in get_args(Engine):
        raise UserError(f"an engine among {', '.join(get_args(Engine))}", repr(engine), "choose one of them")
    if engine == "auto":
        return "captum" if importlib.util.find_spec("captum") else "own"
    return engine


def mean_gradients(
    function: Function, x: Tensor, baseline: Tensor, *, steps: int = STEPS, engine: Engine = "auto"
) -> Tensor:
    """Return the mean gradient on the way from a baseline: ∫₀¹ ∂F/∂x (x' + a(x − x')) da, by Gauss-Legendre's rule.

    The rule is exact for polynomials F of degree up to 2·steps. Trapezoids, which captum offers too, have weights that
    add up to (steps − 1)/steps.

    Args:
        function: F; called with as many rows as ``x`` has, in their order, once a node.
        x: (N, ...).
        baseline: x', of a shape that broadcasts to that of ``x``.
        steps: nodes, 1 or more.
        engine: see `chosen`.

    Returns:
        (N, ...), detached.

    Raises:
        UserError: no node, or no such engine.
        MissingExtra: captum is asked for and not installed.
    """
    if steps < 1:
        raise UserError("one node of the quadrature or more", str(steps), "raise steps")
    x, start = x.detach(), baseline.detach().to(x).expand_as(x)
    if not len(x):
        return torch.zeros_like(x)
    if chosen(engine) == "captum":
        attr: Any = imported("captum.attr", package="captum", extra="concepts")
        rule = attr.IntegratedGradients(function, multiply_by_inputs=False)
        with torch.enable_grad():
            found: Tensor = rule.attribute(
                x, start.contiguous(), n_steps=steps, method="gausslegendre", internal_batch_size=len(x)
            )
        return found.detach().to(x)
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    total = torch.zeros_like(x)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        with torch.enable_grad():
            at = (start + float(node) * (x - start)).requires_grad_(True)
            (gradient,) = torch.autograd.grad(function(at).sum(), at)
        total += float(weight) * gradient
    return total


def integrated_gradients(
    function: Function, x: Tensor, baseline: Tensor, *, steps: int = STEPS, engine: Engine = "auto"
) -> Attributions:
    """Return IG_i(x; F, x') = (x_i − x'_i) ∫₀¹ ∂F/∂x_i (x' + a(x − x')) da, whose sum is F(x) − F(x').

    Args:
        function: F, see `mean_gradients`.
        x: (N, ...).
        baseline: x', of a shape that broadcasts to that of ``x``.
        steps: nodes of the quadrature.
        engine: see `chosen`.

    Returns:
        Values with what they miss of completeness.

    Raises:
        UserError: no node, or no such engine.

    >>> found = integrated_gradients(lambda x: x[:, 0] * x[:, 1], torch.tensor([[3.0, 2.0]]), torch.zeros(2))
    >>> [round(v, 4) for v in found.values[0].tolist()]
    [3.0, 3.0]

    Reference: Axiomatic attribution for deep networks, Sundararajan, Taly, Yan, 2017,
    https://arxiv.org/abs/1703.01365
    """
    values = (x - baseline.to(x)).detach() * mean_gradients(function, x, baseline, steps=steps, engine=engine)
    with torch.no_grad():
        rise = function(x) - function(baseline.to(x).expand_as(x))
    return Attributions(values, values.flatten(1).sum(dim=1) - rise, chosen(engine))


@dataclass(frozen=True, eq=False)
class ClassAttributions:
    """How much each concept adds to the logit of each class, A (K, m).

    Args:
        values: A, in logits; a row of zeros for a class without samples.
        counts: (K,) int64, samples that each row is a mean of.
        gap: the largest error of the quadrature of a sample, in logits.
        residual: (K,) what the concepts leave of the rise of the logit, by class; None where they leave nothing.
        engine: whose quadrature it was.
        above: (K, m), how much more of each concept a class has than the baseline, in units of the score.
    """

    values: Tensor
    counts: Tensor
    gap: float
    residual: Tensor | None
    engine: str
    above: Tensor

    @property
    def present(self) -> Tensor:
        """A (K, m), 0 for concepts that a class has less of than the baseline.

        What a class lacks can add to its logit too, but it is nowhere to be found in the class's samples.
        """
        return self.values.where(self.above > 0, torch.zeros_like(self.values))


def class_attributions(
    logits: Function,
    scores: Tensor,
    target: Tensor,
    classes: int,
    *,
    baseline: Tensor | None = None,
    steps: int = STEPS,
    engine: Engine = "auto",
) -> ClassAttributions:
    """Return A_ki = mean over x of class k of IG_i(s(x); logit_k, s̄).

    For a linear head with weights W that is W_ki (mean_k s_i − s̄_i): a large weight on a concept that is seldom there
    does not win.

    Args:
        logits: of a head of concepts, (N, m) to (N, K).
        scores: s, (N, m).
        target: (N,) class indices.
        classes: K.
        baseline: s̄ (m,), by default the mean score.
        steps: nodes of the quadrature.
        engine: see `chosen`.

    Returns:
        A with the samples behind it.

    Raises:
        UserError: no samples.
        Misfit: labels that are no classes, or not one for each row.
    """
    target = _checked(target, classes)
    if not len(scores):
        raise UserError("scores of samples to attribute", "none", "pass samples of the classes")
    if len(scores) != len(target):
        raise Misfit(f"a class for each of {len(scores)} rows", str(len(target)), "pass labels of the same samples")
    start = scores.mean(dim=0) if baseline is None else baseline
    at = target[:, None]
    found = integrated_gradients(
        lambda s: logits(s).gather(1, at).squeeze(1), scores, start, steps=steps, engine=engine
    )
    values, counts = _by_class(found.values, target, classes)
    above, _ = _by_class(scores - start.to(scores), target, classes)
    return ClassAttributions(values, counts, float(found.gap.abs().max()), None, found.engine, above)


def network_attributions(
    model: nn.Module,
    task: Task,
    data: Data,
    tap: str,
    vectors: Tensor,
    classes: int,
    *,
    baseline: Tensor,
    split: Split = "unit",
    steps: int = STEPS,
    engine: Engine = "auto",
    runtime: Runtime | None = None,
) -> ClassAttributions:
    """Return what concepts add to the network's own logits, by integrated gradients at the representation.

    With G the mean gradient on the way from ē to e and unit vectors u_i of the concepts, ``unit`` gives
    A_ki = mean ((e − ē)·u_i)(G·u_i). Vectors that are not orthogonal, or too few, do not add up to the rise of the
    logit; what they leave is the residual. ``least_squares`` writes e − ē as Σ_i a_i u_i as far as that goes and gives
    A_ki = mean a_i (G·u_i), which is additive: the residual is what lies outside the concepts.

    Args:
        model: the network; run in eval mode, left as it is.
        task: of exclusive classes.
        data: labelled.
        tap: of the representation, (B, d), or with positions, which are added up.
        vectors: of concepts, (m, d), not 0.
        classes: K.
        baseline: ē, (d,), the mean representation.
        split: see above.
        steps: nodes of the quadrature, each one forward pass.
        engine: see `chosen`.
        runtime: device, batch size.

    Returns:
        A with its residual by class.

    Raises:
        UserError: no samples, no labels, a task without classes, vectors of another length, or no such split.
        NotFinite: an attribution is NaN or infinite.
    """
    if split not in get_args(Split):
        raise UserError(f"a split among {', '.join(get_args(Split))}", repr(split), "choose one of them")
    filled(data)
    runtime = runtime or Runtime()
    model = runtime.placed(model)

    def work(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        batch = batch.to(runtime.torch_device)
        target = labels_of(batch, data)
        rest, e = tail(model, task, batch, tap)
        wide = places_of(e).shape[2]
        if vectors.shape[1:] != (wide,) or baseline.shape != (wide,):
            got = f"vectors {tuple(vectors.shape)} and a baseline {tuple(baseline.shape)}"
            raise UserError(f"concepts and a baseline of {wide} numbers, as at {tap}", got, "take them from this layer")
        start = _spread(baseline.to(e), e)
        own: Function = lambda at: class_logit(task, rest(at), target)  # noqa: E731
        gradient = mean_gradients(own, e, start, steps=steps, engine=engine)
        with torch.no_grad():
            rise = (own(e) - own(start)).double()
        away, slope = places_of(e - start).double(), places_of(gradient).double()
        units = (vectors / vectors.norm(dim=1, keepdim=True)).to(away)
        ways = units if split == "unit" else torch.linalg.pinv(units, rtol=CUT).T
        values = ((away @ ways.T) * (slope @ units.T)).sum(dim=1)
        gap = (away * slope).sum(dim=(1, 2)) - rise
        more = (away @ units.T).mean(dim=1).cpu()
        return values.cpu(), more, (rise - values.sum(dim=1)).cpu(), gap.cpu(), target.cpu()

    with eval_mode(model):
        parts = list(Passes(runtime).over(data, work))
    values, more, left, gap, target = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    check_finite({tap: values}, f"attributions on {data.name}", "check the weights and inputs")
    target = _checked(target, classes)
    mean, counts = _by_class(values, target, classes)
    residual, _ = _by_class(left[:, None], target, classes)
    above, _ = _by_class(more, target, classes)
    return ClassAttributions(mean, counts, float(gap.abs().max()), residual[:, 0], chosen(engine), above)


def _by_class(values: Tensor, target: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the mean of values (N, m) over each class, zeros without samples, and the counts."""
    target = target.to(values.device)
    counts = torch.bincount(target, minlength=classes)
    total = torch.zeros(classes, values.shape[1], dtype=torch.float64, device=values.device)
    total.index_add_(0, target, values.double())
    return total / counts.clamp_min(1)[:, None], counts


def _checked(target: Tensor, classes: int) -> Tensor:
    if target.dim() != 1 or target.is_floating_point() or (len(target) and int(target.min()) < 0):
        raise Misfit("one class a sample", f"{target.dtype} of shape {tuple(target.shape)}", "pass class indices")
    if len(target) and int(target.max()) >= classes:
        raise Misfit(f"classes 0 to {classes - 1}", f"class {int(target.max())}", "pass the labels of this network")
    return target.long()


def class_logit(task: Task, outputs: Tensor, target: Tensor) -> Tensor:
    """Return the logit of each sample's class, (B,); of one output z for two classes, z for class 1 and −z for class 0.

    Args:
        task: of exclusive classes.
        outputs: of the network, (B, ...).
        target: (B,) class indices.

    Raises:
        UserError: the task has no classes.
        Misfit: labels that are no classes.
    """
    logits = class_logits(task, outputs, "concepts of classes")
    if isinstance(task, Binary):
        logits = logits - logits.flip(1)
    return logits.gather(1, _checked(target, logits.shape[1])[:, None]).squeeze(1)


def filled(data: Data) -> None:
    """Refuse data without samples.

    Raises:
        UserError: says so.
    """
    if not len(data):
        raise UserError(f"samples in {data.name}", "none", "pass data that is not empty")


def labels_of(batch: Batch, data: Data) -> Tensor:
    """Return a batch's labels.

    Raises:
        UserError: there are none.
    """
    if batch.target is None:
        raise UserError(f"labels in {data.name}", "none", "pass labelled samples")
    return batch.target


def places_of(tapped: Tensor) -> Tensor:
    """Return a tapped tensor as (B, P, d): one position of (B, d), those of (B, T, d), the places of (B, d, ...)."""
    if tapped.dim() == 2:
        return tapped[:, None]
    return tapped if tapped.dim() == 3 else tapped.flatten(2).transpose(1, 2)


def _spread(vector: Tensor, like: Tensor) -> Tensor:
    """Return one vector (d,) at every position of a tapped tensor."""
    shaped = vector if like.dim() <= 3 else vector.reshape(-1, *[1] * (like.dim() - 2))
    return shaped.expand_as(like)


def tail(model: nn.Module, task: Task, batch: Batch, tap: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return what a network makes of a representation, and the representation of a batch.

    Args:
        model: in eval mode.
        task: runs it.
        batch: the samples.
        tap: ``module`` or ``module:input``.

    Returns:
        A function of representations of the batch's shape that gives outputs (B, ...), with gradients to the
        representation alone; and the batch's own representation, detached.

    Raises:
        UserError: no such module, the forward pass does not reach it, or the outputs do not depend on it.
    """
    with torch.no_grad():
        _, found = task.forward(model, batch, [tap])
    here = found[tap]
    if not isinstance(here, Tensor) or not here.is_floating_point() or here.dim() < 2:
        got = f"{here.dtype} of shape {tuple(here.shape)}" if isinstance(here, Tensor) else type(here).__name__
        raise UserError(f"a representation (B, ...) of real numbers at {tap}", got, "tap another module")

    def rest(e: Tensor) -> Tensor:
        with _replaced(model, tap, e):
            outputs, _ = task.forward(model, batch)
        return outputs

    with torch.enable_grad():
        if not rest(here.detach().requires_grad_(True)).requires_grad:
            raise UserError(f"outputs that depend on {tap}", "outputs that do not", "tap another module")
    return rest, here.detach()


@contextmanager
def _replaced(model: nn.Module, tap: str, value: Tensor) -> Iterator[None]:
    """Put a value in a tap's place in the forward passes of the block; no gradient reaches parameters."""
    name, _, side = tap.partition(":")
    module = model.get_submodule(name)

    def before(module: nn.Module, args: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (value, *args[1:]), named
        first = next(iter(named))
        return args, {**named, first: value}

    def after(module: nn.Module, args: Any, out: Any) -> Any:
        return (value, *out[1:]) if isinstance(out, tuple) else value

    moving = [p for p in model.parameters() if p.requires_grad]
    handle = module.register_forward_pre_hook(before, with_kwargs=True) if side else module.register_forward_hook(after)
    try:
        for p in moving:
            p.requires_grad_(False)
        yield
    finally:
        for p in moving:
            p.requires_grad_(True)
        handle.remove()
