"""Fisher forgetting: noise on every weight, the more the less the retained samples tell of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from expunge.data import Batch
from expunge.errors import UserError
from expunge.fisher import diagonal
from expunge.fisher.checks import wide
from expunge.fisher.quantities import expects
from expunge.method import Needs, Reference, Search, See, Session, State, option
from expunge.methods._fields import Checked
from expunge.methods._steps import only_classes
from expunge.recipe import Recipe
from expunge.references import GOLATKAR_2020
from expunge.scenario import Scenario
from expunge.seeds import seed as named_seed
from expunge.task import Task, class_count
from expunge.tensors import parameters

Form = Literal["quartic", "variance"]
NOISE = {"quartic": 1e-9, "variance": 1e-6}
CAP, HEAD_CAP, CLASS_VARIANCE, FACTOR = 1e3, 1e2, 1e-4, 10.0  # of the released code
PROBED = 4  # samples that show which tensors give the logits


def deviations(fisher: Tensor, noise: float, damping: float) -> Tensor:
    """Return the standard deviations (λσ_h²)^{1/4}·(F + δ)^{−1/4} of the paper's noise.

    Args:
        fisher: F ≥ 0, any shape.
        noise: λσ_h².
        damping: δ.

    >>> deviations(torch.tensor([1e-3]), 1e-9, 1e-8)
    tensor([0.0316])
    """
    return (noise / (fisher + damping)) ** 0.25


def variances(
    fisher: Tensor, noise: float, damping: float, *, head: bool = False, whole: bool = False, label: int | None = None
) -> Tensor:
    """Return the variances of the released code's noise for one tensor.

    v = a·min(1/(F + δ), 1000), at most a·100 in the head; averaged over dimension 1 where there is one; 1e-4 in the
    head's row of the class to forget; tenfold in tensors of one dimension and, when a whole class goes, in the head.

    Args:
        fisher: F ≥ 0, in the parameter's shape.
        noise: a.
        damping: δ.
        head: whether the tensor gives the logits, a row each.
        whole: whether a whole class is forgotten.
        label: that class.

    Returns:
        The variances, same shape.

    >>> variances(torch.tensor([[1e-3, 1.0], [1.0, 1.0]]), 1e-6, 1e-8).sqrt()
    tensor([[0.0224, 0.0224],
            [0.0010, 0.0010]])
    """
    v = noise * (1 / (fisher + damping)).clamp(max=HEAD_CAP if head else CAP)
    if v.dim() > 1:
        v = v.mean(dim=1, keepdim=True).expand_as(v).clone()
    if head and label is not None:
        v[label] = CLASS_VARIANCE
    return v * FACTOR if v.dim() == 1 or (head and whole) else v


def head_of(model: nn.Module, task: Task, batch: Batch, *, by_shape: bool = False) -> tuple[set[str], int]:
    """Return the names of the parameters that give the logits, and the number K of logits.

    A parameter is the head's where it has K rows and row c moves logit c alone, which the gradients of a few samples
    show; of a model that ends in a softmax there is none.

    Args:
        model: in eval mode.
        task: how to run it.
        batch: a few samples.
        by_shape: take every parameter with K rows, as the released code does.
    """
    with torch.enable_grad():
        outputs, _ = task.forward(model, batch)
    k = outputs.shape[1]
    found = {name: p for name, p in parameters(model).items() if p.dim() and len(p) == k}
    if by_shape or not found:
        return set(found), k
    own, other = dict.fromkeys(found, False), dict.fromkeys(found, False)
    for c in range(k):
        grads = torch.autograd.grad(outputs[:, c].sum(), list(found.values()), retain_graph=True, allow_unused=True)
        for name, grad in zip(found, grads, strict=True):
            if grad is not None:
                moved = grad.reshape(k, -1).ne(0).any(dim=1)
                own[name] |= bool(moved[c])
                moved[c] = False
                other[name] |= bool(moved.any())
    return {name for name in found if own[name] and not other[name]}, k


@dataclass(frozen=True, kw_only=True)
class FisherForgetting(Checked):
    """Add noise to every weight, the more the less Fisher information the retained samples hold about it.

    θ ← θ + (λσ_h²)^{1/4}·F^{−1/4}·ε, ε ~ N(0, I), with F the diagonal of the Fisher information on the retain set,
    F_i = (1/n_r) Σ_x Σ_c p_c(x)·(∂ℓ(x, c)/∂θ_i)², whose labels are the model's own. Where F is 0 the paper's noise has
    no bound: F + δ takes its place. A converged network has F near 0 in most weights, so δ decides there; ``capped``
    in the log is the share of such weights.

    ``form="variance"`` is the released code's noise, which published comparisons were made with: of variance
    v = a/(F + δ), so its deviation goes with F^{−1/2}; 1/(F + δ) is at most 1000, in the head 100; v is averaged over
    input channels; in tensors of one dimension it is tenfold. Where a whole class is forgotten (a scenario of kind
    ``class``, which is taken to be all of it) the head's v is tenfold too, and the class's row of the head is drawn
    around 0 with a variance of 10⁻³. The head is what gives one logit a row; ``compat="official"`` takes every tensor
    whose first dimension is K for it, as the code does.

    Where one logit tells two classes none has a row of its own, and none is drawn around 0.

    Needs inputs of the retain set, no labels, and nothing of the forget set. Passes: the retain set once, with one
    backward pass a class, or a label of several. Declines tasks without either. BatchNorm statistics stay, and weights
    that masks hold. The noise comes from the seed and the number of requests before. The paper's λσ_h² is not known to
    us; the default gives the noise that the code has where it begins to cap, a deviation of 0.032 at F = 10⁻³.
    """

    distributed: ClassVar[bool] = True
    prepared_by: ClassVar[frozenset[str] | None] = frozenset()  # nothing is prepared but the record of ids
    reference: ClassVar[Reference] = GOLATKAR_2020
    example: ClassVar[dict[str, object]] = {}

    form: Form = option("quartic", unit="-", text="deviations with F^(-1/4), quartic, or variances with 1/F, variance")
    noise: float | None = option(
        None,
        symbol="λσ_h², a",
        unit="1",
        text="strength of the noise; unset, " + ", ".join(f"{v:g} for {k}" for k, v in NOISE.items()),
        search=Search(1e-12, 1e-6, log=True),
    )
    damping: float = option(1e-8, symbol="δ", unit="of F", text="added to the Fisher information")
    compat: Literal["paper", "official"] = option(
        "paper", unit="-", text="official: every tensor of K rows is the head; of the form variance"
    )

    def __post_init__(self) -> None:
        self.one_of("form", "quartic", "variance")
        self.one_of("compat", "paper", "official")
        self.positive("noise", "damping")
        if self.compat == "official" and self.form != "variance":
            want = f"{self.name} with compat='official' and form='variance', as published"
            raise UserError(want, f"form={self.form!r}", "set that too, or leave compat out")

    @property
    def unlearns(self) -> Needs:
        """Inputs of the retain set; the form ``variance`` asks the scenario for a class."""
        return Needs(retain=See.INPUTS, scenario=self.form == "variance", optional=frozenset({"scenario"}))

    def work(self, phase: str, recipe: Recipe | None, classes: int) -> dict[str, float]:
        """Return the pass with one run forward, a third of a step, and one backward a class."""
        return {name: times * (1 + 2 * classes) / 3 for name, times in self.passes(phase, recipe).items()}

    def declines(self, task: Task, scenario: Scenario | None, model: nn.Module) -> str | None:
        """Decline tasks whose targets are no classes or labels, over which an expectation is a sum."""
        why = "it takes the Fisher information over the model's classes"
        return None if expects(task) else only_classes(task, why)

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        """One pass over the retain set for F, then the noise; the next request draws another."""
        model, masks = session.model, session.masks
        fisher = diagonal(model, session.task, session.retain, of="true", runtime=session.runtime, seed=session.seed)
        head, label, whole = self._head(session) if self.form == "variance" else (set[str](), None, False)
        before = int(state.meta.get("noised", 0))
        generator = torch.Generator().manual_seed(named_seed("fisher_forgetting", session.seed, before))
        held = None if masks is None else masks.hold(model)
        log = _Log(session)
        with torch.no_grad():
            for name, theta in parameters(model).items():
                f = (fisher.sums[name] / fisher.count).to(theta.device)
                deviation, cap = self._deviation(f, name in head, whole, label)
                start, mean = theta.detach().clone(), wide(theta).clone()
                if name in head and label is not None:
                    mean[label] = 0
                draw = torch.randn(theta.shape, generator=generator, dtype=torch.float64).to(mean)
                theta.copy_(mean + deviation.to(mean) * draw)
                free = None if masks is None else masks.kept.get(name)
                log.add(name, start, theta, deviation, f < cap, free)
        if held is not None:
            held.put_back()
        log.close()
        return model, State(state.tensors, {**state.meta, "noised": before + 1})

    def _deviation(self, f: Tensor, head: bool, whole: bool, label: int | None) -> tuple[Tensor, float]:
        """Return the deviations of a tensor's noise, and the F below which they hardly depend on it."""
        noise = NOISE[self.form] if self.noise is None else self.noise
        if self.form == "quartic":
            return deviations(f, noise, self.damping), self.damping
        found = variances(f, noise, self.damping, head=head, whole=whole, label=label)
        return found.sqrt(), 1 / (HEAD_CAP if head else CAP) - self.damping

    def _head(self, session: Session) -> tuple[set[str], int | None, bool]:
        """Return the names of the head's parameters, the class to forget, and whether a whole class is forgotten."""
        few = session.retain.read(range(min(PROBED, len(session.retain)))).to(session.runtime.torch_device)
        head, k = head_of(session.model, session.task, few, by_shape=self.compat == "official")
        with torch.no_grad():
            outputs = session.task.forward(session.model, few)[0]
        session.record("head", sorted(head))
        scenario = session.scenario
        if scenario is None or scenario.kind != "class":
            return head, None, False
        label, classes = int(scenario.target), class_count(session.task, outputs)
        if not 0 <= label < classes:
            raise UserError(f"a class from 0 to {classes - 1} to forget", str(label), "name a class of the model")
        if k != classes:
            text = f"One logit tells both classes, so class {label} has no row of its own, and none is drawn around 0."
            session.record("note", text)
            return head, None, True
        if not head:
            text = f"No layer gives one logit a row, so the row of class {label} was not found, and not drawn around 0."
            session.record("note", text)
        return head, label, True


class _Log:
    """Records what the noise was, of the weights that may move.

    Args:
        session: where it is recorded.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.sums = dict.fromkeys(("size", "deviation", "variance", "squares", "capped", "moved"), 0.0)
        self.largest, self.step = 0.0, 0

    def add(
        self, name: str, start: Tensor, theta: Tensor, deviation: Tensor, capped: Tensor, free: Tensor | None
    ) -> None:
        """Add a tensor: weights before and after, deviations, where a cap decided them, and which may move."""
        free = torch.ones_like(capped) if free is None else free.to(capped.device)
        d = deviation[free].double()
        one: dict[str, Any] = {"size": d.numel(), "deviation": float(d.sum()), "variance": float(d.square().sum())}
        one |= {"squares": float(start[free].double().square().sum()), "capped": int(capped[free].sum())}
        one["moved"] = int((theta != start)[free].sum())
        self.sums = {key: total + one[key] for key, total in self.sums.items()}
        largest = float(d.max()) if d.numel() else 0.0
        self.largest = max(self.largest, largest)
        told = {"tensor": name, "deviation": one["deviation"] / max(1, d.numel()), "largest": largest}
        self.session.record("noise", {**told, "capped": one["capped"] / max(1, d.numel())}, step=self.step)
        self.step += 1

    def close(self) -> None:
        """Record the totals, and say where the noise did not do what a reader would think."""
        size = max(1.0, self.sums["size"])
        capped = self.sums["capped"] / size
        self.session.record("deviation", self.sums["deviation"] / size)
        self.session.record("largest_deviation", self.largest)
        self.session.record("capped", capped)
        if self.sums["squares"] > 0:
            self.session.record("noise_to_weights", math.sqrt(self.sums["variance"] / self.sums["squares"]))
        if self.sums["moved"] == 0:
            text = "No weight moved: the noise is lost in rounding, or masks hold all weights."
            self.session.record("note", text)
        elif capped > 0.5:
            self.session.record(
                "note",
                f"The Fisher information of {capped:.0%} of the weights is so low that the largest deviation there is "
                "decides their noise, not the retained samples.",
            )


METHOD = FisherForgetting
