"""What a preparation leaves: ln σ of every trainable weight, the samples behind it, and how it was learned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from expunge.anchors._base import Known
from expunge.anchors._settings import Stored
from expunge.errors import Incompatible, MissingNeed, listing
from expunge.files import jsonable
from expunge.method import State
from expunge.tensors import parameters, total

LOW, HIGH, LEVELS = 1e-6, 1.0, 256
STEP = math.log(HIGH / LOW) / (LEVELS - 1)
WORST = math.expm1(STEP / 2)  # relative error of σ at most, where σ is on the grid
_PREFIX, _META = "log_sigma/", "posterior"
_AGAIN = "prepare again"


def coded(log_sigma: Tensor) -> Tensor:
    """Return ln σ as a place on the grid of 256 values of σ from 1e-6 to 1, equal ratios apart; uint8.

    >>> coded(torch.tensor([1e-9, 1e-6, 1.0]).log())
    tensor([  0,   0, 255], dtype=torch.uint8)
    """
    return ((log_sigma - math.log(LOW)) / STEP).round_().clamp_(0, LEVELS - 1).to(torch.uint8)


def decoded(codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the ln σ that `coded` places stand for.

    Args:
        codes: uint8.
        dtype: of the result.
    """
    return codes.to(dtype).mul_(STEP).add_(math.log(LOW))


@dataclass(frozen=True, eq=False)
class Posterior:
    """A Gaussian of independent scalars around a model's trainable weights.

    Args:
        log_sigma: ln σ by parameter, in its shape; float32, or float64 for a model of float64.
        samples: n_eff, the samples behind σ: 1/σ² ≈ 1/σ0² + n_eff·h with h the curvature of the mean loss.
        facts: JSON values: how σ was learned, and τ on held-out data.
    """

    log_sigma: Mapping[str, Tensor] = field(repr=False)
    samples: float
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def known(self) -> Known:
        """What was written down of held-out data."""
        return Known(self.facts.get("tau"), self.facts.get("accuracy"))

    @property
    def geometric(self) -> float:
        """The geometric mean of σ over all scalars."""
        summed = sum(float(t.sum(dtype=torch.float64)) for t in self.log_sigma.values())
        return math.exp(summed / max(1, total(self.log_sigma.values())))

    def replaced(self, log_sigma: Mapping[str, Tensor], samples: float | None = None, **facts: Any) -> Posterior:
        """Return another σ with the same facts.

        Args:
            log_sigma: as in the class.
            samples: n_eff, as it is by default.
            facts: added to those there are, or in their place.
        """
        return replace(
            self,
            log_sigma=log_sigma,
            samples=self.samples if samples is None else samples,
            facts={**self.facts, **facts},
        )

    def state(self, stored: Stored = "float32") -> State:
        """Return what is kept of it: tensors of its own on the CPU, and its facts.

        Args:
            stored: ``float32`` keeps ln σ as it is; ``uint8`` on a grid of 256 values of σ from 1e-6 to 1, which
                changes σ by 2.8 % at most, and more where σ is not on the grid. The largest change is in the state's
                meta as ``error``.
        """
        kept, error = dict[str, Tensor](), 0.0
        for name, value in self.log_sigma.items():
            plain = value.detach().to("cpu", copy=True).contiguous()
            if stored == "uint8":
                codes = coded(plain)
                gap = torch.expm1((decoded(codes, plain.dtype) - plain).abs_())
                error, plain = max(error, float(gap.max()) if gap.numel() else 0.0), codes
            kept[_PREFIX + name] = plain
        meta = {"samples": self.samples, "stored": stored, "error": error, "facts": jsonable(dict(self.facts))}
        return State(kept, {_META: meta})

    @classmethod
    def load(cls, state: State, model: nn.Module) -> Posterior:
        """Return what a state keeps for a model, on the model's device.

        Args:
            state: from `state`, of a model of the same trainable parameters.
            model: the network that it belongs to.

        Raises:
            MissingNeed: there is no σ in the state.
            Incompatible: σ of other parameters or shapes, or one that is not positive and finite.
        """
        if _META not in state.meta:
            want = "ln σ of every weight, which a Gaussian anchor needs from its preparation"
            raise MissingNeed(want, "a state without it", "run prepare while the training data is at hand")
        samples, facts = _told(state.meta[_META])
        found = {n.removeprefix(_PREFIX): state.tensors[n] for n in state.tensors if n.startswith(_PREFIX)}
        params = parameters(model)
        _check_names(found, params)
        log_sigma = {}
        for name, p in params.items():
            wide = torch.promote_types(p.dtype, torch.float32)
            value = found[name].to(p.device)
            _check_kind(name, value)
            log_sigma[name] = decoded(value, wide) if value.dtype == torch.uint8 else value.to(wide)
        _check_positive(log_sigma)
        return cls(log_sigma, samples, facts)


def remembered(state: State) -> Known:
    """Return what a state says of held-out data, its tensors left unread; nothing where no Gaussian was prepared."""
    if _META not in state.meta:
        return Known()
    _, facts = _told(state.meta[_META])
    return Known(facts.get("tau"), facts.get("accuracy"))


def _told(meta: object) -> tuple[float, dict[str, Any]]:
    """Return n_eff and the facts of a state, refusing what no preparation writes.

    Raises:
        Incompatible: names the fact.
    """
    facts = meta.get("facts") if isinstance(meta, Mapping) else None
    if not isinstance(meta, Mapping) or not isinstance(facts, Mapping):
        raise Incompatible("a state with n_eff and facts of its σ", repr(meta)[:80], _AGAIN)
    samples = meta.get("samples")
    if not (_number(samples) and samples > 0):
        raise Incompatible("σ learned from more than 0 samples", repr(samples), _AGAIN)
    least = {"sigma0": 0.0, "passes": 0.0, "tau": -math.inf, "accuracy": -math.inf, "requests": -1.0}
    for name in least.keys() & facts.keys():
        value, optional = facts[name], name in ("tau", "accuracy")
        if not (optional and value is None) and not (_number(value) and value > least[name]):
            raise Incompatible(f"a number as {name} of σ in the state", repr(value), _AGAIN)
    found = facts.get("agreement", [])
    if not isinstance(found, list) or not all(map(_number, found)):
        raise Incompatible("numbers as agreement of σ in the state", repr(found), _AGAIN)
    return float(samples), dict(facts)


def _number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_kind(name: str, value: Tensor) -> None:
    """Refuse ln σ in another type than those it is kept in.

    Raises:
        Incompatible: names the parameter.
    """
    if not (value.dtype == torch.uint8 or value.dtype.is_floating_point):
        raise Incompatible("ln σ as floats, or in uint8 on the grid", f"{value.dtype} of {name}", _AGAIN)


def _check_names(found: Mapping[str, Tensor], params: Mapping[str, nn.Parameter]) -> None:
    """Refuse σ of other parameters than the model trains, or of other shapes.

    Raises:
        Incompatible: names them.
    """
    wrong = {
        "none for": [n for n in params if n not in found],
        "one for": [f"{n}, which is not trained" for n in found if n not in params],
        "another shape for": [n for n, p in params.items() if n in found and found[n].shape != p.shape],
    }
    if any(wrong.values()):
        got = "; ".join(f"{what} {listing(names)}" for what, names in wrong.items() if names)
        remedy = f"pass the model that was prepared, with the same weights frozen, or {_AGAIN}"
        raise Incompatible("σ of the weights that the model trains", got, remedy)


def _check_positive(log_sigma: Mapping[str, Tensor]) -> None:
    """Refuse ln σ that is NaN or infinite, or so far out that σ or 1/σ² is 0 or infinite.

    Raises:
        Incompatible: names the parameters.
    """
    bad = []
    for name, value in log_sigma.items():
        precision = (-2 * value).exp_()
        odd = int((~torch.isfinite(precision) | (precision <= 0)).sum())
        if odd:
            bad.append(f"{odd} of {value.numel()} in {name}")
    if bad:
        raise Incompatible("positive finite σ of every weight", f"others: {listing(bad)}", _AGAIN)
