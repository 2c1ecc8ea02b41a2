"""Gaussian canaries: does the loss still fall along noise that was added to training samples?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge import noise
from expunge.data import Batch, Data
from expunge.errors import UserError
from expunge.metric import Audit, Found, Goal, Metric, Number, Value
from expunge.passes import Passes
from expunge.penalties import without_cudnn
from expunge.runtime import Runtime
from expunge.shadows.gaussian import gaussian_scores
from expunge.task import Classes, Task
from expunge.tensors import eval_mode

UNIT = "sd"  # deviations that a score has in a model that never saw the noise
MUST_BE_PLANTED = "no noise was planted: put it on training samples with expunge.noise.Noise before training"


@dataclass(frozen=True, kw_only=True)
class Gaussian(Metric):
    """Mean score of forgotten samples that carried Gaussian noise in training, with its 95 % t interval, in deviations.

    The score of a sample is ⟨∇ₓ loss(x), ξ⟩ / (ε·‖∇ₓ loss(x)‖), at the input x without its noise ξ. In a model that
    never saw the noise it is N(0, 1), whatever the model: the mean of n is within ±1.96/√n of 0 in 95 % of cases, and
    no retrained model is needed. Below 0 the loss still falls along the noise; above 0, as where the edit overshoots,
    it rises, which gives the samples away as well. Of classes the gradient is that of the margin, which points the same
    way and does not vanish where the model is sure.

    Read it beside the original's, which is the power of the test: where that is near 0, noise leaves no trace in this
    model, and a number near 0 says nothing. To be shown with a power of 95 % a mean must be 3.6/√n from 0.

    Samples at which the gradient is 0 are left out. The noise is found where the training data comes from
    `expunge.noise.Noise.plant`, as that of a request ``noised=0.05`` does.

    References:
        M. Pawelczyk, J. Z. Di, Y. Lu, G. Kamath, A. Sekhari, S. Neel, "Machine Unlearning Fails to Remove Data
        Poisoning Attacks", 2024, https://arxiv.org/abs/2406.17216.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "labels", "data"})
    undefined: ClassVar[tuple[str, ...]] = (
        "no noise was planted",
        "no forgotten sample carries noise",
        "what the samples carry is not the noise that was planted",
        "the model itself was not given",
        "its outputs do not depend on the input",
        "a gradient is infinite or not a number",
        "noise and a gradient that is not 0 are needed on at least 2",
    )

    @property
    def numbers(self) -> dict[str, Number]:
        """``gaussian/score``."""
        return {"gaussian/score": self.number("mean score of noisy canaries", target=0.0)}

    def measure(self, audit: Audit) -> Found:
        """Return the mean score; that of each sample is kept."""
        trained = audit.data["forget"]
        found = noise.planted(trained)
        if found is None:
            return self.none(MUST_BE_PLANTED)
        if not found.ids:
            return self.none("no forgotten sample carries noise")
        model = audit.models.get("model")
        if model is None:
            return self.none("the model itself was not given")
        clean, trained = found.clean.subset(found.ids), trained.subset(found.ids)
        slopes = gradients(model, audit.task, clean, audit.runtime)
        if slopes is None:
            return self.none("its outputs do not depend on the input")
        if not np.isfinite(slopes).all():
            return self.none("a gradient is infinite or not a number")
        drawn = (noise.values_of(trained) - noise.values_of(clean)).reshape(len(clean), -1).numpy()
        slopes = slopes.reshape(len(slopes), -1)
        there = np.abs(slopes).max(axis=1) > 0
        if there.sum() < 2:
            return self.none("noise and a gradient that is not 0 are needed on at least 2 forgotten samples")
        try:
            scores = gaussian_scores(slopes[there], drawn[there], found.deviation)
        except UserError as error:  # as where a patch was put over it
            return self.none(f"what the samples carry is not the noise that was planted: {error.got}")
        audit.kept.samples["score/gaussian"] = scores.scores
        return {"gaussian/score": Value.of(scores.mean, UNIT)}


def gradients(model: nn.Module, task: Task, data: Data, runtime: Runtime) -> NDArray[np.float64] | None:
    """Return the way the loss rises with each input, (n, ...), up to a positive factor a sample.

    Args:
        model: run in eval mode; its modes are left as found.
        task: outputs and loss.
        data: labelled samples.
        runtime: device and batch size.

    Returns:
        ∇ₓ loss, of classes −∇ₓ φ with the margin φ = ln p_y − ln Σ_{c≠y} p_c, for ∇ₓ loss = −(1 − p_y)·∇ₓ φ; None
        where the outputs do not depend on the input.
    """
    model = runtime.placed(model)

    def work(batch: Batch) -> NDArray[np.float64] | None:
        name, values = noise.real(batch.inputs, data)
        values = values.detach().clone().to(runtime.torch_device).requires_grad_()
        moved = batch.to(runtime.torch_device)
        own = {**moved.inputs, name: values} if isinstance(moved.inputs, dict) else values
        with torch.enable_grad():
            outputs, _ = task.forward(model, replace(moved, inputs=own))
            rises = _rises(task, outputs, moved.target)
            found = torch.autograd.grad(rises.sum(), values, allow_unused=True)[0] if rises.requires_grad else None
        return None if found is None else found.double().cpu().numpy()

    with eval_mode(model), without_cudnn(model):
        rows = list(Passes(runtime).over(data, work))
    known = [r for r in rows if r is not None]
    return np.concatenate(known) if len(known) == len(rows) else None


def _rises(task: Task, outputs: Tensor, target: Tensor | None) -> Tensor:
    """Return a number a sample that rises where its loss does."""
    assert target is not None
    if not isinstance(task, Classes):
        return task.loss(outputs, target)
    logits, at = task.class_logits(outputs).double(), target.long().reshape(-1, 1)
    own = logits.gather(1, at)[:, 0]
    return logits.scatter(1, at, -math.inf).logsumexp(dim=1) - own


METRIC = Gaussian
