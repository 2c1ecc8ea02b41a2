"""Distance between the weights themselves, tensor by tensor and in all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge.metric import Audit, Found, Goal, Metric, Number, Unavailable, Value, missing

BLOCK = 2**22  # scalars worked on at once


def distances(one: nn.Module, other: nn.Module) -> dict[str, float] | None:
    """Return ‖θ − θ'‖₂ of each parameter by name, frozen ones included, tied ones once; None of other networks."""
    return _apart(dict(one.named_parameters()), dict(other.named_parameters()))


def buffer_distances(one: nn.Module, other: nn.Module) -> dict[str, float] | None:
    """Return ‖b − b'‖₂ of each floating-point buffer by name, such as running statistics; None of other networks."""
    return _apart(*({k: b for k, b in m.named_buffers() if b.is_floating_point()} for m in (one, other)))


def norm(model: nn.Module) -> float:
    """Return ‖θ‖₂ over all parameters."""
    return _total(_norm(p) for p in model.parameters())


def _apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, float] | None:
    if one.keys() != other.keys() or any(one[k].shape != other[k].shape for k in one):
        return None
    return {k: _norm(one[k], other[k]) for k in one}


def _norm(one: Tensor, other: Tensor | None = None) -> float:
    """Return the norm of a tensor, or of a difference, in float64, a block at a time."""
    a = one.detach().reshape(-1)
    b = None if other is None else other.detach().reshape(-1)
    parts = []
    for i in range(0, len(a), BLOCK):
        block = _wide(a[i : i + BLOCK])
        parts.append(float((block if b is None else block - _wide(b[i : i + BLOCK])).norm()))
    return _total(parts)


def _wide(block: Tensor) -> Tensor:
    return block.cpu().to(torch.complex128 if block.is_complex() else torch.float64)


def _total(norms: Iterable[float]) -> float:
    return math.hypot(*norms)


@dataclass(frozen=True, kw_only=True)
class Weights(Metric):
    """L2 distance of the model's parameters θ_U from retrained's θ_R and the original's θ_O.

    ``to_retrained`` is √(Σ over tensors of ‖θ_U − θ_R‖₂²), 0 being ideal; ``to_retrained_normalised`` is that divided
    by ‖θ_U‖₂, the norm of the model under audit, so it changes when the two change places; ``to_original`` is how far
    the edit moved, compared with how far retraining ends. Buffers do not count. The series ``weights/layers`` holds
    ‖θ_U − θ_R‖₂ of each tensor, and ``weights/buffers`` the same of each floating-point buffer.

    A distance to retrained means something only where retrained started from the same initialisation and saw the
    retained samples in the same order: two trainings that agree on every sample may lie far apart, for a network
    computes the same after its hidden units have changed places. A second retrained model, of another seed, is as a
    rule farther off than the untouched original, so that this distance alone clears or convicts no one.

    References:
        In the code of A. Golatkar, A. Achille, S. Soatto, "Forgetting Outside the Box: Scrubbing Deep Networks of
        Information Accessible from Input-Output Observations", 2020, https://arxiv.org/abs/2003.02960.
    """

    goal: ClassVar[Goal] = Goal.MIN
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    undefined: ClassVar[tuple[str, ...]] = (
        "it is another network than",
        "a weight is infinite or not a number",
        "all weights of the model are zero",
        "the model has no parameters",
    )

    @property
    def numbers(self) -> dict[str, Number]:
        """``weights/to_retrained``, ``weights/to_retrained_normalised`` and ``weights/to_original``."""
        return {
            "weights/to_retrained": self.number("weights, distance to retrained", target=0.0),
            "weights/to_retrained_normalised": self.number(
                "weights, distance to retrained over the model's norm", target=0.0
            ),
            "weights/to_original": self.number("weights, distance to the original", goal=Goal.AS_RETRAINED),
        }

    def measure(self, audit: Audit) -> Found:
        """Return the distances, and keep those to retrained of each tensor."""
        near = self._to(audit, "retrained")
        found: Found = {"weights/to_retrained": near, "weights/to_retrained_normalised": near}
        if isinstance(near, Value):
            size = norm(audit.models["model"])
            scaled = Value.single(near.x / size, "") if size > 0 else Unavailable("all weights of the model are zero")
            found["weights/to_retrained_normalised"] = scaled
        return found | {"weights/to_original": self._to(audit, "original")}

    def _to(self, audit: Audit, role: str) -> Value | Unavailable:
        reason = missing(frozenset({role}), audit)
        if reason:
            return Unavailable(reason)
        if role not in audit.models or "model" not in audit.models:
            return Unavailable(f"there is no {role} model to compare with")
        one, other = audit.models["model"], audit.models[role]
        each = distances(one, other)
        if each is None:
            return Unavailable(f"it is another network than {'retrained' if role == 'retrained' else 'the original'}")
        if not each:
            return Unavailable("the model has no parameters")
        total = _total(each.values())
        if not math.isfinite(total):
            return Unavailable("a weight is infinite or not a number")
        if role == "retrained":
            for name, x in each.items():
                audit.record("weights/layers", name, Value.single(x, "L2"))
            for name, x in (buffer_distances(one, other) or {}).items():
                if math.isfinite(x):
                    audit.record("weights/buffers", name, Value.single(x, "L2"))
        return Value.single(total, "L2")


METRIC = Weights
