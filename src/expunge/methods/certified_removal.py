"""Certified removal from a convex head: Newton steps that noise hides, with an (ε, δ) budget that is kept."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data import Data
from expunge.errors import Incompatible, UserError
from expunge.files import digest, jsonable
from expunge.method import Needs, Reference, Search, See, Session, State, option
from expunge.methods import _convex
from expunge.methods._convex import Kind, Objective, Removed, Rows
from expunge.methods._fields import Checked
from expunge.methods._head import Features, Head, joined, linear
from expunge.scenario import Scenario
from expunge.seeds import seed as named_seed
from expunge.task import Binary, Classification, MultiLabel, Regression, Task

DRIFT = 1e-3  # share of the budget by which a residual may exceed its bound before the data is taken for other data
COST = 0.01  # of training accuracy, or of the error, from which the price of the noise is told


@dataclass(frozen=True)
class Form:
    """How rows and heads stand for a network's last layer.

    Args:
        radius: R, in feature units: rows are φ/max(R, ‖φ‖).
        constant: whether a constant stands beside them for the bias: (φ/max(R, ‖φ‖), 1)/√2.
        pair: whether one head gives both logits of two classes, as −η/2 and η/2.
        kind: the loss.
    """

    radius: float
    constant: bool
    pair: bool
    kind: Kind

    @property
    def root(self) -> float:
        """What keeps the norm of a row at 1 or below beside the constant."""
        return math.sqrt(2) if self.constant else 1.0

    def rows(self, features: Features, task: Task, bias: Tensor | None, outputs: int) -> Rows:
        """Return the scaled rows with their targets; a bias that may not move is the offset of the scores.

        Args:
            features: of the samples.
            task: tells what targets are.
            bias: of the layer, (outputs,), or None.
            outputs: of the layer.
        """
        x = features.x / features.x.norm(dim=1, keepdim=True).clamp_min(self.radius)
        if self.constant:
            x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1) / self.root
        y = _targets(features.target, task, outputs)
        zeros = torch.zeros(outputs, dtype=x.dtype, device=x.device)
        offset = zeros if self.constant or bias is None else bias.detach().to(x)
        if self.pair:
            y, offset = y[:, 1:], (offset[1] - offset[0]).reshape(1)
        return Rows(x, y, features.weight, offset, self.kind)

    def outputs(self, scores: Tensor) -> Tensor:
        """Return the layer's outputs from the heads' scores (n, K)."""
        return torch.cat([-scores / 2, scores / 2], dim=1) if self.pair else scores

    def write(self, layer: nn.Linear, w: Tensor) -> None:
        """Give the layer the weights of heads w (K, d), in its own type."""
        rows = torch.cat([-w / 2, w / 2]) if self.pair else w
        with torch.no_grad():
            layer.weight.copy_(rows[:, : layer.in_features] / (self.radius * self.root))
            if self.constant:
                layer.bias.copy_(rows[:, -1] / self.root)


def _targets(target: Tensor, task: Task, outputs: int) -> Tensor:
    """Return a target for each sample and output: −1 or 1 of classes and labels, numbers of a regression."""
    if isinstance(task, Regression):
        return target.double().reshape(len(target), outputs)
    if isinstance(task, Classification):
        target = nn.functional.one_hot(target.long(), outputs)
    return 2 * target.double().reshape(len(target), outputs) - 1


@dataclass(frozen=True, eq=False)
class Fit:
    """Heads with what they were fitted by: what a state holds.

    Args:
        w: (K, d), float64.
        noise: b (K, d), float64; secret.
        form: how they stand for the layer.
        n: rows they are fitted to.
        beta: β, the bound on ‖∇J‖ over all heads.
        removals: rows removed since the fit.
        fits: how often they were fitted.
    """

    w: Tensor
    noise: Tensor
    form: Form
    n: int
    beta: float
    removals: int = 0
    fits: int = 1

    def state(self, head: str, preparation: dict[str, Any]) -> State:
        """Return it as a state."""
        meta = {**vars(self), "form": vars(self.form), "head": head, "preparation": preparation}
        tensors = {name: meta.pop(name).cpu() for name in ("w", "noise")}
        return State(tensors, meta)

    @classmethod
    def of(cls, state: State, device: torch.device) -> Fit:
        """Return what a state holds."""
        meta = {k: v for k, v in state.meta.items() if k not in ("head", "preparation")}
        made = {name: state.tensors[name].to(device) for name in ("w", "noise")}
        return cls(**{**meta, **made, "form": Form(**meta["form"])})


@dataclass(frozen=True, kw_only=True)
class CertifiedRemoval(Checked):
    """Train the last linear layer with noise that hides what its Newton removals leave, up to an (ε, δ) budget.

    Prepare: w = argmin Σ_i ℓ(wᵀx_i, y_i) + (λn/2)‖w‖² + bᵀw with b ~ N(0, σ²I), to ‖∇J‖ ≤ 1e-10, β = ‖∇J‖.
    Unlearn a row: w ← w + H⁻¹(λw + ∇ℓ), H the Hessian on the rows that stay; β grows by γ·‖X‖₂·‖s‖·‖Xs‖ with
    s = H⁻¹(λw + ∇ℓ), γ = 1/4 of the logistic loss and 0 of the squared one. While β ≤ σε/c, c = √(2 ln(1.5/δ)), the
    weights are (ε, δ)-indistinguishable from those of training on the rows that stay. A request that would exceed the
    budget is refused before anything is touched, or answered with ``refit`` by training on what stays, with another b.

    Rows are the features φ of everything below the layer, as (φ/max(R, ‖φ‖), 1)/√2, or without the constant where it
    has no bias, so that ‖x‖ ≤ 1; λ holds the bias too. ``ready.model`` has other weights in that layer than the model
    given. Losses: ½(f − y)² of `Regression`, ln(1 + e^{∓η}) of `Binary`, of each label of `MultiLabel`, and of
    `Classification`: one logit difference of two classes, one against the rest of more. All K heads are removed from,
    and one b ∈ ℝ^{Kd} hides them together: β is the norm over all of them. Sample weights multiply ℓ.

    The certificate is of the last layer. It takes as given what lies below it, the radius R, the number of samples and
    σ, λ; it asks that b, and so the state and a ``draw`` seed, stay secret, and that nobody chooses requests by looking
    at the weights. With a network below that was trained on the same samples it says nothing of what that one keeps.

    Needs labelled training data to prepare; labelled forget and all retain data to unlearn, from which features and
    Hessian are computed anew, so the state holds no sample: weights, b, β and counts. Passes: one over each, forward.
    Declines other tasks, the absolute error, and networks without a linear layer. The defaults of λ and σ are those
    published for 12,000 rows; on few rows such noise drowns the fit, which prepare tells.
    """

    refits: ClassVar[bool] = True
    prepared_by: ClassVar[frozenset[str] | None] = frozenset({"lam", "sigma", "radius", "draw"})
    prepares = Needs(train=See.LABELLED)
    unlearns = Needs(forget=See.LABELLED, retain=See.LABELLED)
    reference: ClassVar[Reference] = Reference(
        "Certified Data Removal from Machine Learning Models",
        "Chuan Guo and Tom Goldstein and Awni Hannun and Laurens van der Maaten",
        2020,
        "https://arxiv.org/abs/1911.03030",
        "ICML",
    )
    example: ClassVar[dict[str, object]] = {"lam": 0.5, "sigma": 5.0}

    lam: float = option(1e-3, symbol="λ", unit="1", text="of the squared norm", search=Search(1e-4, 1.0, log=True))
    sigma: float = option(10.0, symbol="σ", unit="1", text="standard deviation of the noise b")
    epsilon: float = option(1.0, symbol="ε", unit="1", text="that may be spent")
    delta: float = option(1e-4, symbol="δ", unit="1", text="probability that may lie outside of ε")
    radius: float | None = option(
        None,
        symbol="R",
        unit="feature units",
        text="bound on the features' norm, longer rows are shortened; unset, the longest prepared row, taken as given",
    )
    batch: bool = option(
        False, unit="-", text="remove a request in one step: its bound may grow like m², that of one by one like m"
    )
    refit: bool = option(False, unit="-", text="train on what stays where the budget does not suffice")
    draw: Literal["seed", "system"] = option(
        "seed", unit="-", text="where b comes from: the session's seed, or the operating system, which no seed repeats"
    )

    def __post_init__(self) -> None:
        self.positive("lam", "sigma", "epsilon", "radius")
        self.inside("delta", 0, 1)
        self.flag("batch")
        self.flag("refit")
        self.one_of("draw", "seed", "system")
        if not _convex.holds(self.epsilon, self.delta):
            want = f"{self.name}.epsilon for which c = √(2 ln(1.5/δ)) suffices at delta {self.delta:g}"
            raise UserError(want, f"{self.epsilon:g}", "lower it; 1 always does")

    @property
    def budget(self) -> float:
        """σε/c."""
        return _convex.budget(self.sigma, self.epsilon, self.delta)

    def declines(self, task: Task, scenario: Scenario | None, model: nn.Module) -> str | None:
        """Decline losses that are not convex and smooth in a linear head, and networks without one."""
        if isinstance(task, Regression) and task.error != "squared":
            return "its bound needs a smooth loss, and the absolute error has a kink: take the squared error"
        if not isinstance(task, Binary | Classification | MultiLabel | Regression):
            return f"it knows the curvature of logistic and squared losses alone, not of {type(task).__name__}"
        if any(True for _ in model.parameters()) and not linear(model):
            return "it trains the last linear layer, and this network has none"
        return None

    def prepare(self, session: Session) -> tuple[nn.Module, State]:
        """Train the head with noise."""
        with session.runtime.tracking(f"preparing {self.name}", len(session.train)) as advance:
            head = self._head(session, session.train)
            features = head.features(session.train, session.runtime, advance)
        fit, rows = self._fitted(session, head, session.train, features, fits=1)
        self._tell(session, fit, rows, features)
        self._warn(session, head)
        text = "The last linear layer was trained anew, with noise: serve this model, not the one that was given."
        session.record("note", text)
        return self._written(session, head, fit), fit.state(head.name, jsonable(self.preparation()))

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        """Remove the rows, or refuse where that would exceed the budget."""
        self._check_state(state)
        forget, retain = session.forget, session.retain
        with session.runtime.tracking(f"unlearning by {self.name}", 2 * len(forget) + len(retain)) as advance:
            head = self._head(session, forget)
            found = [head.features(part, session.runtime, advance) for part in (forget, retain)]
            fit = Fit.of(state, head.device)
            self._check_same(session, head, state, fit, len(forget) + len(retain))
            gone, rest = (self._rows(session, head, part, fit.form) for part in found)
            gone = gone.take(torch.from_numpy(np.argsort(np.asarray(forget.ids))).to(head.device))
            beta = self._measured(fit, gone.joined(rest))
            fit, bound, simple = self._removed(fit, beta, gone, rest, advance)
        if fit.beta > self.budget:
            if not self.refit:
                raise self._exceeded(beta, fit.beta, len(gone))
            fit, rest = self._fitted(session, head, retain, found[1], fits=fit.fits + 1)
            session.record("note", f"The budget did not suffice: the head was trained anew on the {fit.n} that stay.")
        session.record("refitted", fit.removals == 0)
        if fit.removals:
            session.record("bound", bound)
            session.record("simple_bound", simple)
        self._report(session, head, fit, rest, found[1])
        return self._written(session, head, fit), fit.state(head.name, jsonable(self.preparation()))

    def _head(self, session: Session, data: Data) -> Head:
        head = Head(session.model, session.task, data, self.name)
        layer = session.model.get_submodule(head.name)
        if not layer.weight.requires_grad:
            raise UserError(f"a last layer whose weights may move for {self.name}", "frozen ones", "unfreeze them")
        kept = {} if session.masks is None else session.masks.kept
        held = [n for p in ("weight", "bias") if not bool(kept.get(n := joined(head.name, p), torch.ones(1)).all())]
        if held:
            remedy = "run it without the mask, or under one that leaves the last layer free"
            raise UserError(f"a last layer that may move for {self.name}", f"a mask over {held[0]}", remedy)
        return head

    def _constant(self, session: Session, head: Head) -> bool:
        bias = session.model.get_submodule(head.name).bias
        return bias is not None and bool(bias.requires_grad)

    def _rows(self, session: Session, head: Head, features: Features, form: Form) -> Rows:
        return form.rows(features, session.task, head.layer.bias, head.layer.out_features)

    def _fitted(self, session: Session, head: Head, data: Data, features: Features, fits: int) -> tuple[Fit, Rows]:
        """Return heads that are trained with a fresh b, and the rows they are trained on.

        Raises:
            UserError: the fit does not come close enough to its minimum.
        """
        longest = float(features.x.norm(dim=1).max())
        radius = (longest or 1.0) if self.radius is None else float(self.radius)
        pair = isinstance(session.task, Classification) and head.layer.out_features == 2
        kind: Kind = "squared" if isinstance(session.task, Regression) else "logistic"
        form = Form(radius, self._constant(session, head), pair, kind)
        rows = self._rows(session, head, features, form)
        shape = (rows.y.shape[1], rows.x.shape[1])
        noise = torch.from_numpy(self._drawn(session, data.ids, fits, shape)).to(rows.x)
        objective = Objective(rows, self.lam, noise)
        w = _convex.fitted(objective)
        beta = objective.residual(w)
        if beta > DRIFT * self.budget:
            got = f"{beta:.3g} of a budget of {self.budget:.3g}"
            raise UserError("a fit that leaves next to nothing of its gradient", got, f"raise {self.name}.lam or sigma")
        return Fit(w, noise, form, len(rows), beta, fits=fits), rows

    def _drawn(self, session: Session, ids: list[str], fits: int, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
        """Return b ~ N(0, σ²I), others at each fit and for other samples."""
        source = (
            named_seed(self.name, session.seed, fits, digest(ids)) if self.draw == "seed" else secrets.randbits(256)
        )
        return self.sigma * np.random.default_rng(source).standard_normal(shape)

    def _removed(
        self, fit: Fit, beta: float, gone: Rows, rest: Rows, advance: Callable[[int], None]
    ) -> tuple[Fit, float, float]:
        """Return the heads after the removal, and the bounds that it adds; where β exceeds the budget it ends early.

        One row after another, or all in one step, which costs less where the rows pull against each other; with the
        squared loss both come to the same.
        """
        if self.batch or rest.kind == "squared":
            done = _convex.removed(gone, rest, fit.w, self.lam)
            advance(len(gone))
            after = replace(fit, w=done.w, n=len(rest), beta=beta + done.bound, removals=fit.removals + len(gone))
            return after, done.bound, done.simple
        everyone, w, bound, simple = gone.joined(rest), fit.w, 0.0, 0.0
        largest = _convex.norm(everyone.x[1:])  # of fewer rows the norm is no larger
        for at in range(len(gone)):
            now, after_it = everyone.take(slice(at, at + 1)), everyone.take(slice(at + 1, None))
            one: Removed = _convex.removed(now, after_it, w, self.lam, largest)
            w, bound, simple = one.w, bound + one.bound, simple + one.simple
            advance(1)
            if beta + bound > self.budget:
                break
        after = replace(fit, w=w, n=len(rest), beta=beta + bound, removals=fit.removals + len(gone))
        return after, bound, simple

    def _measured(self, fit: Fit, rows: Rows) -> float:
        """Return β of the heads on all rows there were, never below the residual that is measured.

        Raises:
            Incompatible: the residual is not that of the prepared rows.
        """
        found = Objective(rows, self.lam, fit.noise).residual(fit.w)
        if found > fit.beta + DRIFT * self.budget:
            want = f"features and labels as prepared, on which the gradient's norm is {fit.beta:.3g} at most"
            remedy = (
                "pass the samples as they were prepared, without augmentation, and the model that came with the state"
            )
            raise Incompatible(want, f"a norm of {found:.3g}", remedy)
        return max(fit.beta, found)

    def _exceeded(self, before: float, after: float, count: int) -> UserError:
        want = f"a request of {count} that fits the budget σε/c = {self.budget:.4g} of (ε, δ) = {self._pair()}"
        got = f"β = {before:.4g} before it and {after:.4g} or more after"
        remedy = "prepare again on what stays, or set refit=true"
        if count > 1:
            remedy = f"try batch={'false' if self.batch else 'true'}, {remedy}"
        return UserError(want, got, remedy)

    def _pair(self) -> str:
        return f"({self.epsilon:g}, {self.delta:g})"

    def _check_state(self, state: State) -> None:
        """Refuse a state of other settings.

        Raises:
            Incompatible: names them.
        """
        own, found = jsonable(self.preparation()), state.meta.get("preparation", {})
        odd = [name for name in own if found.get(name) != own[name]]
        if odd:
            want, got = (", ".join(f"{n}={said.get(n)!r}" for n in odd) for said in (own, found))
            raise Incompatible(
                f"a state of {self.name} with {want}", f"one with {got}", "prepare anew, or ask as prepared"
            )

    def _check_same(self, session: Session, head: Head, state: State, fit: Fit, count: int) -> None:
        """Refuse data that is not all there was, and a last layer of which something else may move."""
        if head.name != state.meta["head"] or fit.form.constant != self._constant(session, head):
            want = f"the last layer {state.meta['head']} with its bias {'free' if fit.form.constant else 'held'}"
            got = f"{head.name} with its bias {'held' if fit.form.constant else 'free'}"
            raise Incompatible(f"{want}, as prepared", got, "pass the model that came with the state")
        if count != fit.n:
            want = f"forget and retain data of {fit.n} samples, all that the head is fitted to"
            raise UserError(want, f"{count}", "pass retain=train.without(forget ids), and all of it")

    def _written(self, session: Session, head: Head, fit: Fit) -> nn.Module:
        layer: nn.Linear = session.model.get_submodule(head.name)  # type: ignore[assignment]
        fit.form.write(layer, fit.w)
        return session.model

    def _tell(self, session: Session, fit: Fit, rows: Rows, features: Features) -> None:
        """Record the fit, and what the noise costs on the training data."""
        session.record("samples", fit.n)
        session.record("heads", list(fit.w.shape))
        session.record("radius", fit.form.radius)
        session.record("shortened", int((features.x.norm(dim=1) > fit.form.radius * (1 + 1e-12)).sum()))
        session.record("beta", fit.beta)
        session.record("budget", self.budget)
        if rows.kind == "logistic" and fit.n > 1 and bool((rows.weight <= 1).all()):
            session.record("worst_case_bound", math.sqrt(len(fit.w)) * _convex.worst_case(self.lam, fit.n))
        plain = _convex.fitted(Objective(rows, self.lam, torch.zeros_like(fit.noise)), fit.w)
        squared = rows.kind == "squared"
        noisy, without = (self._score(session.task, fit.form, rows, features, w) for w in (fit.w, plain))
        name = "train_error" if squared else "train_accuracy"
        session.record(name, noisy)
        session.record(f"{name}_without_noise", without)
        if squared and noisy > (1 + COST) * without:
            text = f"The noise raises the mean squared error on the training data from {without:.4g} to {noisy:.4g}"
            session.record("note", f"{text}: lower sigma, or raise lam.")
        if not squared and noisy < without - COST:
            text = f"The noise lowers accuracy on the training data from {without:.1%} to {noisy:.1%}"
            session.record("note", f"{text}: lower sigma, or raise lam.")

    @staticmethod
    def _score(task: Task, form: Form, rows: Rows, features: Features, w: Tensor) -> float:
        outputs = form.outputs(rows.scores(w))
        if isinstance(task, Regression):
            return float(task.loss(outputs, features.target).mean())
        said = task.predictions(outputs)
        return float((said == features.target.reshape(said.shape).to(said)).double().mean())

    def _report(self, session: Session, head: Head, fit: Fit, rest: Rows, features: Features) -> None:
        """Record what is spent, and say which level holds, and of what."""
        spent = _convex.spent(fit.beta, self.sigma, self.delta)
        session.record("beta", fit.beta)
        session.record("budget", self.budget)
        session.record("budget_left", self.budget - fit.beta)
        session.record("epsilon", spent)
        session.record("delta", self.delta)
        session.record("removals", fit.removals)
        session.record("residual", Objective(rest, self.lam, fit.noise).residual(fit.w))
        count = f"{fit.removals} removal{'' if fit.removals == 1 else 's'} since the last fit"
        session.record(
            "note",
            f"(ε, δ) = ({spent:.3g}, {self.delta:g}) holds of the last linear layer after {count}, "
            f"of {self._pair()} that may be spent.",
        )
        self._warn(session, head)
        if self.radius is None and float(features.x.norm(dim=1).max()) < fit.form.radius * (1 - 1e-9):
            text = (
                "The longest row, which sets the scale, is no longer among the samples: its length stays in the state"
            )
            session.record("note", f"{text} and outside the certificate; refit forgets it once the budget is spent.")

    def _warn(self, session: Session, head: Head) -> None:
        """Say what the certificate takes as given."""
        if not head.alone:
            text = (
                "What lies below the last layer is taken as given: the certificate does not cover what it has learned."
            )
            session.record("note", text)
        if head.layer.bias is not None and not self._constant(session, head):
            session.record("note", "The bias is frozen: it stays as given, outside the certificate.")
        text = "The certificate holds against those who do not know the state, which keeps the noise"
        if self.draw == "seed":
            text += ", nor the seed, which records show and draws it: draw=system takes noise that no seed tells"
        session.record("note", f"{text}.")


METHOD = CertifiedRemoval
