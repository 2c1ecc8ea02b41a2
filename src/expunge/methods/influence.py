"""Influence, Newton, IU and first-order updates: one step from the original, by gradients and inverse curvature."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data import Data
from expunge.errors import UserError
from expunge.influence import (
    CG,
    Compat,
    Curvature,
    Direct,
    Kind,
    Lissa,
    LowRank,
    OfModel,
    Operator,
    Solution,
    Solver,
    Space,
    Woodbury,
    gradient,
    named,
)
from expunge.influence.solvers import COLUMNS, MOST, POWER
from expunge.method import Needs, Reference, Search, See, Session, State, option
from expunge.methods._fields import Checked
from expunge.recipe import Recipe
from expunge.references import KOH_2017
from expunge.scenario import Scenario
from expunge.seeds import seed as named_seed
from expunge.task import Quantile, Regression, Task
from expunge.train import mean_loss

log = logging.getLogger(__name__)
Form = Literal["influence", "newton", "iu", "first_order"]
How = Literal["direct", "cg", "lissa", "woodbury", "compat"]
FAR, STEEP, SHORT = 0.1, 0.3, 0.01  # of gradient, leverage and residual, from which a note says so
POWERS = range(-6, 7)  # of two, among which α is searched
GRAM = 12  # passes over the drawn samples that the dual form is reckoned to take


def iu_direction(forget: Tensor, retain: Tensor, n_f: int, n_r: int) -> Tensor:
    """Return v = ∇L̄_D − ∇L̄_{D_r} = S_f/n − (1/n_r − 1/n)·S_r, bars being means; S_f/n_r where S_f + S_r = 0.

    Args:
        forget: S_f, the summed gradients of the samples to forget, (p,).
        retain: S_r, of those that stay, (p,).
        n_f: how many are forgotten.
        n_r: how many stay.

    >>> iu_direction(torch.tensor([-0.7, -2.1]), torch.tensor([0.7, 2.1]), 1, 3)
    tensor([-0.2333, -0.7000])
    """
    n = n_f + n_r
    return forget / n - (1 / n_r - 1 / n) * retain


@dataclass(frozen=True, kw_only=True)
class Influence(Checked):
    """Take one step from the original to where the optimum would be without the forget set: θ ← θ + α·(C + δI)⁻¹v.

    J(θ) = Σ_D ℓ_i + (n·λ/2)‖θ‖² was minimised; Δ = Σ_{D_f} (∇ℓ_i + λθ) is what the samples to forget added to its
    gradient. ``influence`` takes the mean curvature of J over all data and v = Δ/n; ``newton`` that over the retain
    set and Δ/n_r, which is exact for a quadratic loss, whatever is forgotten; ``iu`` the Fisher information of the
    retain set and v = ∇L̄_D − ∇L̄_{D_r}, of data alone; ``first_order`` no curvature: θ ← θ + α·Σ_{D_f} ∇ℓ_i.

    All curvatures are means over samples, so δ is in the units of a weight decay. The error of ``influence`` on one
    sample of a linear model with squared error is its leverage h, as a share of the distance to the retrained weights;
    ``leverage`` in the log is the same for any model and any number: the share of the curvature along the step that the
    forgotten samples had. Steps are believed near a minimum alone: the log has ‖∇J‖/‖Δ‖ (``gradient_ratio``), and
    a note says where it is large.

    Needs the forget and the retain set with labels (``first_order`` the forget set alone), in eval mode and without
    augmentation. λ is the recipe's weight decay where a recipe of SGD is given. BatchNorm statistics stay, and so do
    weights that masks hold, within which the step is then sought. Applies to every task whose loss has gradients.
    ``solver="compat"`` is what published code of IU computes, no inverse at all: see `expunge.influence.Compat`.

    References:
        P. W. Koh, P. Liang, "Understanding Black-box Predictions via Influence Functions", 2017,
        https://arxiv.org/abs/1703.04730; J. Jia et al., "Model Sparsity Can Simplify Machine Unlearning", 2023,
        https://arxiv.org/abs/2304.04934, for ``iu``; A. Warnecke, L. Pirch, C. Wressnegger, K. Rieck, "Machine
        Unlearning of Features and Labels", 2023, https://arxiv.org/abs/2108.11577, for ``first_order``.
    """

    prepared_by: ClassVar[frozenset[str] | None] = frozenset()  # nothing is prepared but the record of ids
    reference: ClassVar[Reference] = KOH_2017
    example: ClassVar[dict[str, object]] = {"damping": 0.1, "iterations": 20}

    kind: Form = option("influence", unit="-", text="influence, newton, iu or first_order")
    curvature: Kind | None = option(
        None, symbol="C", unit="-", text="hessian, gauss_newton or fisher; unset, fisher for iu, else gauss_newton"
    )
    solver: How | None = option(
        None, unit="-", text="direct, cg, lissa, woodbury or compat; unset, woodbury for iu, else cg"
    )
    layers: str | tuple[str, ...] = option("all", unit="-", text="whose weights move: all, last, or names of modules")
    damping: float | None = option(
        None,
        symbol="δ",
        unit="of the mean curvature",
        text="added to it; unset, 1 for iu, else 0.001",
        search=Search(1e-5, 1.0, log=True),
    )
    alpha: float | Literal["search"] | None = option(
        None,
        symbol="α, τ",
        unit="steps",
        text="length of the step, or search: of the lowest holdout loss; unset, 1; first_order asks for a number",
    )
    penalty: float | None = option(
        None, symbol="λ", unit="1", text="L2 term of the objective; unset, the recipe's weight decay, 0 without recipe"
    )
    penalty_scales: bool = option(True, unit="-", text="whether that term is nλ/2·‖θ‖², or λ/2·‖θ‖² whatever n is")
    penalised: Literal["all", "weights"] = option(
        "all", unit="-", text="all parameters, or weights: not those of a single dimension, such as biases"
    )
    samples: int = option(1000, symbol="N", unit="samples", text="of the retain set, for woodbury and compat")
    iterations: int = option(100, unit="products", text="of the solver cg at most")
    rtol: float = option(1e-4, unit="of ‖v‖", text="residual at which cg and lissa stop")
    depth: int = option(1000, unit="products", text="iterations of the solver lissa at most")
    scale: float | None = option(
        None, symbol="s", unit="of the mean curvature", text="of lissa; unset, just above its largest eigenvalue"
    )
    shrink: float = option(0.0, symbol="d", unit="1", text="of lissa, which adds s·d to the damping")
    batch: int | None = option(None, unit="samples", text="an iteration of lissa sees; unset, all")

    def __post_init__(self) -> None:
        self.one_of("kind", *get_args(Form))
        for name, known in (("curvature", get_args(Kind)), ("solver", get_args(How))):
            if getattr(self, name) is not None:
                self.one_of(name, *known)
        self.one_of("penalised", "all", "weights")
        self.flag("penalty_scales")
        self.positive("damping", "penalty", "shrink", zero=True)
        self.positive("rtol", "scale")
        self.positive("alpha", word="search")
        for name in ("samples", "iterations", "depth", "batch"):
            self.count(name, 1)
        names = (self.layers,) if isinstance(self.layers, str) else self.layers
        if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) and n for n in names):
            raise UserError(f"{self.name}.layers all, last or names", repr(self.layers), "write for example ['fc']")
        self._check_fits()

    def _check_fits(self) -> None:
        """Refuse settings that do not go together."""
        for name, unset in (("scale", None), ("batch", None), ("shrink", 0)):
            if self.how != "lissa" and getattr(self, name) != unset:
                remedy = "leave it out, or set the solver"
                raise UserError(f"solver='lissa' with {self.name}.{name}", repr(self.how), remedy)
        if self.kind in ("iu", "first_order") and self.penalty is not None:
            remedy = "leave it out: the step is made of the samples' own gradients"
            raise UserError(f"no penalty for kind='{self.kind}'", repr(self.penalty), remedy)
        if not self.penalty_scales and self.penalty is None:
            remedy = "set the penalty: the recipe's weight decay scales with n"
            raise UserError("a penalty with penalty_scales=False", "none", remedy)
        if self.kind == "first_order":
            if not isinstance(self.alpha, float | int):
                remedy = "write a number, such as the rate of training over the samples of a batch"
                raise UserError("alpha for kind='first_order'", repr(self.alpha), remedy)
            for name in ("curvature", "solver", "damping"):
                if getattr(self, name) is not None:
                    got = repr(getattr(self, name))
                    raise UserError(f"no {name} for kind='first_order'", got, "leave it out, or take another kind")
            return
        low = self.how in ("woodbury", "compat")
        if low and self.of != "fisher":
            raise UserError(f"curvature='fisher' for the solver {self.how}", repr(self.of), "set it, or take cg")
        if low and self.kind == "influence":
            remedy = "take kind='newton', or the solver cg"
            raise UserError(f"the retain set's curvature for the solver {self.how}", "kind='influence'", remedy)
        if self.how == "compat" and (self.kind != "iu" or self.damping not in (None, 1)):
            got = f"kind='{self.kind}' and damping={self.damping}"
            raise UserError("kind='iu' and no damping for the solver compat", got, "leave both as published")
        if self.how == "woodbury" and self.delta == 0:
            raise UserError("damping above 0 for the solver woodbury", "0", "give some, or take the solver cg")

    @property
    def of(self) -> Kind:
        """The curvature."""
        return self.curvature or ("fisher" if self.kind == "iu" else "gauss_newton")

    @property
    def how(self) -> How:
        """The solver."""
        return self.solver or ("woodbury" if self.kind == "iu" else "cg")

    @property
    def delta(self) -> float:
        """δ."""
        return (1.0 if self.kind == "iu" else 1e-3) if self.damping is None else self.damping

    @property
    def unlearns(self) -> Needs:
        """Forget and retain data with labels, of ``first_order`` forget data alone; holdout to search α; a recipe."""
        first = self.kind == "first_order"
        return Needs(
            forget=See.LABELLED,
            retain=See.NONE if first else See.LABELLED,
            holdout=See.LABELLED if self.alpha == "search" else See.NONE,
            recipe=self.kind in ("influence", "newton"),
            optional=frozenset({"recipe"}),
        )

    def declines(self, task: Task, scenario: Scenario | None, model: nn.Module) -> str | None:
        """Decline losses that are linear in the outputs, of which Gauss-Newton products are 0."""
        linear = isinstance(task, Quantile) or (isinstance(task, Regression) and task.error == "absolute")
        if linear and self.kind != "first_order" and self.of == "gauss_newton":
            return "Gauss-Newton products need a loss that is curved in the outputs: set curvature to 'fisher'"
        return None

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return how often each set is read at most: once for the gradients, and once a product with the curvature."""
        if phase != "unlearn":
            return {}
        if self.kind == "first_order":
            return {"forget": 1.0}
        found = {"forget": 1.0, "retain": 1.0 + self._products}
        if self.kind == "influence":
            found["forget"] += self._products + 1
        return found | ({"holdout": 1.0 + len(POWERS)} if self.alpha == "search" else {})

    def work(self, phase: str, recipe: Recipe | None, classes: int) -> dict[str, float]:
        """Return the passes with products at three times a step of training, and holdout at a third."""
        found = self.passes(phase, recipe)
        return {name: n / 3 if name == "holdout" else 1 + 3 * (n - 1) for name, n in found.items()}

    @property
    def _products(self) -> float:
        """Passes over the samples to solve, at most."""
        most = {"direct": -(-MOST // COLUMNS), "cg": self.iterations, "lissa": self.depth + POWER + 1}
        return float(most.get(self.how, GRAM) + 1)

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        """Sum the gradients, solve for the step, and take it."""
        sets = [name for name in ("forget", "retain", "holdout") if session.needs.declared(name)]
        total = sum(n * len(getattr(session, name)) for name, n in self.passes("unlearn", None).items() if name in sets)
        with session.runtime.tracking(f"unlearning by {self.name}", math.ceil(total)) as advance:
            step = _Step(self, session, advance)
            step.move(step.direction())
        return session.model, state


class _Step:
    """One request.

    Args:
        method: its settings.
        session: data, model and where values are recorded.
        advance: called with samples read.
    """

    def __init__(self, method: Influence, session: Session, advance: Any) -> None:
        self.method, self.session, self.advance = method, session, advance
        self.model, self.task = session.model, session.task
        self.runtime = replace(session.runtime, precision="full")
        few = session.forget.read([0]).to(self.runtime.torch_device)
        self.space = Space(self.model, named(self.model, method.layers, self.task, few))
        self.start = self.space.weights()
        self.free = self._free()
        self.n_f = len(session.forget)
        self.n_r = 0 if method.kind == "first_order" else len(session.retain)
        self.penalty = self._penalty()
        session.record("parameters", self.space.size)

    def _free(self) -> Tensor | None:
        """Return which of the weights may move under the session's masks, (p,) bool, or None for all."""
        masks = self.session.masks
        if masks is None:
            return None
        masks.check(self.model)
        held = {name: (~masks.kept[name]).double() for name in self.space.params if name in masks.kept}
        free = self.space.filled(held) == 0
        if self.method.how in ("woodbury", "compat") and self.method.kind != "first_order" and not bool(free.all()):
            remedy = "take the solver cg"
            raise UserError(f"weights that may all move, for the solver {self.method.how}", "some under a mask", remedy)
        return free

    def _penalty(self) -> Tensor:
        """Return λ of each weight, (p,); 0 where it is not penalised."""
        m, recipe = self.method, self.session.recipe if self.session.needs.recipe else None
        value = m.penalty or 0.0
        if recipe is not None and m.penalty is None:
            value = recipe.weight_decay if recipe.optimizer == "sgd" else 0.0
            if recipe.optimizer != "sgd" and recipe.weight_decay:
                text = f"The weight decay of {recipe.optimizer} is no part of the objective, and not of the curvature."
                self.session.record("note", text)
        if recipe is not None and recipe.penalties:
            text = "The recipe's penalties are no part of the curvature: the step is that of training without them."
            self.session.record("note", text)
        self.session.record("penalty", value)
        which = {n: value for n, p in self.space.params.items() if m.penalised == "all" or p.dim() > 1}
        return self.space.filled(which)

    def _gradient(self, data: Data) -> Tensor:
        found = gradient(self.space, self.task, data, self.runtime, advance=self.advance)
        return found if self.free is None else found * self.free

    def direction(self) -> Tensor:
        """Return the step for α = 1."""
        m, forget = self.method, self._gradient(self.session.forget)
        if m.kind == "first_order":
            return forget
        retain = self._gradient(self.session.retain)
        n = self.n_f + self.n_r
        pull = self.penalty * self.start * (1.0 if self.free is None else self.free)
        scaled = m.penalty_scales
        delta = forget + (self.n_f * pull if scaled else 0.0)
        whole = forget + retain + (n if scaled else 1) * pull
        over = n if m.kind == "influence" else self.n_r
        v = iu_direction(forget, retain, self.n_f, self.n_r) if m.kind == "iu" else delta / over
        self._stationary(whole, delta)
        damping = m.delta + (0.0 if m.kind == "iu" else self.penalty / (1 if scaled else over))
        damping = damping if isinstance(damping, Tensor) else torch.full_like(v, damping)
        if self.free is not None:  # x = 0 there: nothing singular, and no larger eigenvalue than among the free
            held = damping[self.free].amax() if bool(self.free.any()) else damping.new_zeros(())
            damping = torch.where(self.free, damping, held if held > 0 else torch.ones_like(held))
        del forget, retain, pull, delta, whole  # each as large as the network
        operator = self._operator(over)
        found = self._solver().solve(operator, v, damping)
        self._solved(found, v)
        if m.kind == "influence":
            self._leverage(found.x, v, over)
        return found.x

    def _stationary(self, whole: Tensor, delta: Tensor) -> None:
        """Record how far from a minimum the original is, and say so where it is far."""
        size, own = float(torch.linalg.vector_norm(whole)), float(torch.linalg.vector_norm(delta))
        ratio = size / own if own > 0 else math.inf if size > 0 else 0.0
        self.session.record("gradient_norm", size / (self.n_f + self.n_r))
        self.session.record("gradient_ratio", ratio)
        if ratio > FAR:
            text = (
                f"The original is not at a minimum of the training objective: its gradient is {ratio:.2g} times what "
                "the samples to forget add to it, so the step may be far from the retrained weights."
            )
            self.session.record("note", text)

    def _operator(self, over: int) -> Operator:
        """Return the mean curvature."""
        m, s = self.method, self.session
        if m.how in ("woodbury", "compat"):
            return LowRank(OfModel(self.space, self.task, self._drawn(), self.runtime, advance=self.advance))
        sets = [s.forget, s.retain] if m.kind == "influence" else [s.retain]
        return self._curvature(sets, 1 / over)

    def _curvature(self, sets: Sequence[Data], scale: float) -> Curvature:
        return Curvature(
            self.space,
            self.task,
            sets,
            self.runtime,
            kind=self.method.of,
            scale=scale,
            free=self.free,
            advance=self.advance,
        )

    def _drawn(self) -> Data:
        """Return the samples of the Fisher information: drawn, or the first as published."""
        retain, many = self.session.retain, self.method.samples
        if self.method.how == "compat":
            at: Any = range(min(len(retain), many + 2))  # published code reads two more than it divides by
        elif many >= len(retain):
            return retain
        else:
            seed = named_seed("influence", self.session.seed)
            at = np.sort(np.random.default_rng(seed).choice(len(retain), many, replace=False))
        ids = retain.ids
        return retain.subset([ids[i] for i in at])

    def _solver(self) -> Solver:
        m = self.method
        if m.how == "lissa":
            seed = named_seed("lissa", self.session.seed)
            return Lissa(m.depth, m.scale, m.shrink, m.rtol, m.batch, seed)
        if m.how == "cg":
            return CG(m.rtol, 0.0, m.iterations)
        if m.how == "compat":
            return Compat(m.samples)
        return Direct() if m.how == "direct" else Woodbury()

    def _solved(self, found: Solution, v: Tensor) -> None:
        """Record what the solver reached, and say so where it is not what was asked for."""
        size = float(torch.linalg.vector_norm(v))
        share = found.residual / size if size > 0 else 0.0
        self.session.record("iterations", found.iterations)
        self.session.record("residual", found.residual)
        self.session.record("relative_residual", share)
        self.session.record("damping", self.method.delta)
        if self.method.how == "compat":
            self.session.record("note", "The published recursion was run, which applies no inverse curvature.")
        elif not found.done or share > SHORT:
            field = {"cg": "iterations", "lissa": "depth"}.get(self.method.how)
            more = f"raise the damping (now {self.method.delta:g})" + (f" or {self.name}.{field}" if field else "")
            text = f"The solver ended at a residual of {share:.2g} of ‖v‖: {more}."
            self.session.record("note", text)

    @property
    def name(self) -> str:
        """The method's name."""
        return self.method.name

    def _leverage(self, x: Tensor, v: Tensor, over: int) -> None:
        """Record the share of the curvature along the step that the forgotten samples had."""
        along = float(x @ v)
        if along <= 0:
            return
        own = self._curvature([self.session.forget], 1 / over).products(x[None])[0]
        if self.method.penalty_scales:
            own = own + self.n_f / over * self.penalty * x
        share = float(x @ own) / along
        self.session.record("leverage", share)
        if share > STEEP:
            text = (
                f"The samples to forget had {share:.0%} of the curvature along the step, which falls short by about "
                "that: kind='newton' leaves them out of it."
            )
            self.session.record("note", text)

    def move(self, step: Tensor) -> None:
        """Take the step, at the α that is set or found."""
        alpha = self._searched(step) if self.method.alpha == "search" else self.method.alpha or 1.0
        self.space.put(self.start + alpha * step)
        size = float(torch.linalg.vector_norm(step))
        self.session.record("alpha", alpha)
        self.session.record("step_norm", size)
        self.session.record("step_to_weights", alpha * size / max(1e-300, float(torch.linalg.vector_norm(self.start))))
        if bool((self.space.weights() == self.start).all()):
            self.session.record("note", "No weight moved: the step is 0, or lost in rounding.")

    def _searched(self, step: Tensor) -> float:
        """Return the power of two at which the holdout loss is lowest."""
        losses = dict[float, float]()
        for alpha in (0.0, *(2.0**k for k in POWERS)):
            self.space.put(self.start + alpha * step)
            try:
                losses[alpha] = mean_loss(self.model, self.task, self.session.holdout, self.runtime)
            except UserError:
                if alpha == 0:
                    raise
                losses[alpha] = math.inf  # steps this long leave the numbers' range
            self.advance(len(self.session.holdout))
        before = losses.pop(0.0)
        best = min(losses, key=lambda a: losses[a])
        self.session.record("holdout_losses", [[a, v if math.isfinite(v) else None] for a, v in losses.items()])
        self.session.record("holdout_loss", losses[best])
        if losses[best] >= before:
            text = f"Every step raises the holdout loss, from {before:.4g} to {losses[best]:.4g} at the least."
            self.session.record("note", text)
        return best


METHOD = Influence
