"""Smoothing the outputs around the forgotten samples, with nothing but their inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from expunge.errors import UserError
from expunge.method import Needs, Reference, Search, See, Session, option
from expunge.methods._inputs import real
from expunge.methods._steps import Descent, Stepped, Taken
from expunge.train import Recipe

PUBLISHED = {"norm": "moving", "optimizer": "sgd", "momentum": 0.0}


def quotients(outputs: Tensor, moved: Tensor, inputs: Tensor, nearby: Tensor) -> Tensor:
    """Return k = ‖f(x) − f(x′)‖₂ / ‖x − x′‖₂ of each sample (B,), in float32 or wider.

    Where rounding or clamping leaves x′ = x there is no quotient: it is 0 there, whatever dropout or batch statistics
    made of f, and so is its gradient. The gradient of a norm at 0 is taken as 0.

    Args:
        outputs: f(x), (B, ...).
        moved: f(x′), (B, ...).
        inputs: x, (B, ...).
        nearby: x′, (B, ...).
    """
    near, far = _distances(nearby, inputs), _distances(outputs, moved)
    apart = near > 0
    return torch.where(apart, far / near.where(apart, torch.ones_like(near)), torch.zeros_like(far))


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Return ‖a − b‖₂ of each sample (B,), in float32 or wider."""
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    found: Tensor = torch.linalg.vector_norm((a.to(wide) - b.to(wide)).flatten(1), dim=1)
    return found


@dataclass(frozen=True, kw_only=True)
class JiT(Stepped):
    """Lower how fast the outputs change around each forgotten sample: the mean Lipschitz quotient under noise.

    k(x, ε) = ‖f(x) − f(x + ε)‖₂ / ‖ε‖₂ with ε ~ N(0, σ²I), f the outputs (logits for classes);
    θ ← θ − η ∇_θ Σ_{x in batch} (1/N) Σ_{j ≤ N} k(x, ε_j), by plain SGD.
    The sum over the batch is kept as published: to first order a step on a batch is a step of rate η on each of its
    samples, which is the paper's algorithm, so η does not depend on the batch size. A smaller batch saves memory,
    of which a step takes that of N + 1 forward passes.

    Needs inputs of the forget set, neither labels nor retain data. Passes: ``epochs`` over the forget set, each
    sample run N + 1 times. Refuses inputs that are no real numbers. Works for any task whose outputs are a tensor.
    The network stays in eval mode; ``norm="moving"`` puts it in train mode, dropout included.

    ``compat="official"`` takes steps as the published code does: no gradient through f(x + ε), which is another
    method (in a linear model its gradient is zero in the mean over ±ε); x + ε clamped to the range of the batch;
    gradients that are never zeroed, so they add up over steps; train mode, which must be asked for by
    ``norm="moving"``.
    """

    reference: ClassVar[Reference] = Reference(
        "Zero-Shot Machine Unlearning at Scale via Lipschitz Regularization",
        "Jack Foster and Kyle Fogarty and Stefan Schoepf and Cengiz Öztireli and Alexandra Brintrup",
        2024,
        "https://arxiv.org/abs/2402.01401v1",
    )
    example: ClassVar[dict[str, object]] = {"samples": 3, "lr": 1e-2}

    epochs: int = option(1, symbol="E", unit="passes over the forget set", text="how long")
    lr: float = option(3e-4, symbol="η", unit="1", text="learning rate a sample", search=Search(1e-5, 1e-1, log=True))
    momentum: float = option(0.0, symbol="μ", unit="1", text="of sgd")
    weight_decay: float = option(0.0, symbol="wd", unit="1", text="coupled L2")
    batch_size: int = option(128, symbol="B", unit="samples", text="a step")
    norm: Literal["moving", "frozen"] = option(
        "frozen", unit="-", text="frozen keeps the network in eval mode, moving puts it in train mode"
    )
    sigma: float = option(
        0.5, symbol="σ", unit="input units", text="standard deviation of the noise", search=Search(1e-2, 4.0, log=True)
    )
    samples: int = option(25, symbol="N", unit="draws", text="of noise for each sample and step")
    compat: Literal["paper", "official"] = option(
        "paper", unit="-", text="paper, or official for the steps of the published code"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.positive("sigma")
        self.count("samples", 1)
        self.one_of("compat", "paper", "official")
        other = {k: v for k, v in PUBLISHED.items() if getattr(self, k) != v}
        if self.compat == "official" and other:
            want = "jit with compat='official' and " + ", ".join(f"{k}={v!r}" for k, v in other.items())
            got = ", ".join(f"{k}={getattr(self, k)!r}" for k in other)
            raise UserError(f"{want}, as published", got, "set that too, or leave compat out")

    @property
    def unlearns(self) -> Needs:
        """Inputs of the forget set; with ``keep_best`` labelled holdout data."""
        return Needs(forget=See.INPUTS, holdout=See.LABELLED if self.keep_best else See.NONE)

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return the epochs over the forget set, and over holdout data with ``keep_best``."""
        return self.reads(phase, forget=self.epochs)

    def work(self, phase: str, recipe: Recipe | None, classes: int) -> dict[str, float]:
        """Return the same with N + 1 runs a sample; the official ones but one are not run backward, a third each."""
        each = self.samples + 1 if self.compat == "paper" else (self.samples + 3) / 3
        found = self.passes(phase, recipe)
        return {name: times * (each if name == "forget" else 1.0) for name, times in found.items()}

    def descend(self, session: Session, descent: Descent) -> None:
        """Take a step a batch; the mean quotient of each epoch is recorded."""
        if self.compat == "official":
            for group in descent.optimizer.param_groups:
                group["momentum"] = 1.0  # the sum of all gradients so far: what is left when none is zeroed
        for _ in range(self.epochs):
            total = 0.0

            def loss(model: nn.Module, now: Taken) -> Tensor:
                nonlocal total
                value = self._smoothness(descent, model, now)
                total += float(value.detach())
                return value

            descent.epoch([session.forget], loss, name="batch_loss")
            session.record("quotient", total / len(session.forget), step=descent.steps)
            if total == 0:
                text = "The outputs did not change under the noise, or rounding swallowed it"
                session.record("note", f"{text}: this pass changed nothing.")
            descent.ended()

    def _smoothness(self, descent: Descent, model: nn.Module, now: Taken) -> Tensor:
        """Return Σ_x (1/N) Σ_j k(x, ε_j), a scalar."""
        if self.norm == "frozen":
            model.eval()  # dropout would tell f(x) from f(x + ε) by itself
        inputs = real(now.batch.inputs, self.name)
        outputs = descent.outputs(now.batch)
        official = self.compat == "official"
        total = torch.zeros(len(inputs), device=inputs.device)
        for _ in range(self.samples):
            nearby = inputs + self.sigma * torch.randn_like(inputs)
            if official:
                nearby = nearby.clamp(inputs.min(), inputs.max())
            with torch.set_grad_enabled(not official):
                moved = descent.outputs(replace(now.batch, inputs=nearby))
            total = total + quotients(outputs, moved, inputs, nearby)
        return total.sum() / self.samples


METHOD = JiT
