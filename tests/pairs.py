"""Audits made by hand of a model, retrained and the original on the same samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.evidence import Outputs
from expunge.metric import Audit
from expunge.scenario import Scenario
from expunge.task import Classification

TAP = "head:input"
THREE = ("forget", "retain", "test")


def said(logits: Tensor, target: Tensor | None = None, features: Tensor | None = None) -> Outputs:
    """Return what a model with these logits says."""
    loss = None if target is None else F.cross_entropy(logits.double(), target, reduction="none")
    tapped = {} if features is None else {TAP: features}
    return Outputs(logits.double(), logits.argmax(dim=1), target, loss, tapped)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Return normal noise in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def audit(
    model: dict[str, Outputs],
    retrained: dict[str, Outputs] | None = None,
    original: dict[str, Outputs] | None = None,
    kind: str = "ids",
    target: Any = None,
    **more: Any,
) -> Audit:
    """Return the audit of a model by its outputs by split, beside retrained's and the original's where given."""
    roles = {"model": model, "retrained": retrained, "original": original}
    evidence = {(role, split): o for role, found in roles.items() if found for split, o in found.items()}
    models: dict[str, nn.Module] = {role: nn.Identity() for role, found in roles.items() if found}
    scenario = Scenario(train=("a", "b"), forget=("a",), kind=kind, target=target)
    given = {"models": models, "task": Classification(), "tap": TAP} | more
    return Audit(evidence=evidence, scenario=scenario, **given)


def taken(found: dict[str, Outputs], order: Tensor) -> dict[str, Outputs]:
    """Return the same samples of every split in another order."""
    return {split: o.take(order) for split, o in found.items()}
