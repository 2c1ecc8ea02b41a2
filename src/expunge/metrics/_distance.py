"""What distances between two models on the same samples share: pure functions of logits, and pairs of outputs."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from expunge import stats
from expunge.errors import UserError, suggest
from expunge.evidence import Outputs
from expunge.metric import Audit, Unavailable, Value, missing
from expunge.signals import TINY, by_rows

Base = Literal["nats", "bits"]
ROUNDING = 1e-9
LIMIT: dict[Base, float] = {"nats": math.log(2), "bits": 1.0}
"""The largest Jensen-Shannon divergence, of two distributions without a common class."""


def check_choice(name: str, value: str, known: object) -> None:
    """Refuse a setting that is none of the alternatives.

    Raises:
        UserError: names the setting and what comes closest.
    """
    if value not in get_args(known):
        several = ", ".join(get_args(known))
        raise UserError(f"{name} to be one of {several}", repr(value), suggest(value, get_args(known)))


def js(p_logits: Tensor, q_logits: Tensor, base: Base = "nats") -> Tensor:
    """Return the Jensen-Shannon divergence of two softmax distributions, sample by sample.

    JS = ½ KL(p‖m) + ½ KL(q‖m) with m = (p + q)/2, in [0, ln 2] nats or [0, 1] bits. Worked out as
    ½ Σ_c m_c [(1 + r_c) ln(1 + r_c) + (1 − r_c) ln(1 − r_c)] with r = (p − q)/(p + q): no term is negative, equal
    distributions give exactly 0, the two may change places, and a probability of 0 is no special case.

    Args:
        p_logits: (N, K), finite.
        q_logits: (N, K), finite, of the same samples.
        base: ``nats`` or ``bits``.

    Returns:
        (N,) in float64.

    References:
        J. Lin, "Divergence measures based on the Shannon entropy", 1991, https://doi.org/10.1109/18.61115.
    """
    found = by_rows(_js, p_logits, q_logits)
    return found if base == "nats" else found / LIMIT["nats"]


def _js(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    p, q = p_logits.double().softmax(dim=1), q_logits.double().softmax(dim=1)
    both = p + q
    r = (p - q) / both.clamp(min=TINY)
    least = 2**-53 - 1  # next to −1, where 0 · ln 0 must be 0; torch's own xlog1py costs five times as much
    terms = (1 + r) * torch.log1p(r.clamp(min=least)) + (1 - r) * torch.log1p((-r).clamp(min=least))
    found: Tensor = (both * terms).sum(dim=1) / 4
    return found.clamp(0.0, LIMIT["nats"])  # rounding passes the limit by 1e-16


def js_compat(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Return what published code computes under the name of Jensen-Shannon divergence; kept for comparison alone.

    (1/K) Σ_c m_c [ln m_c − ½ (ln p_c + ln q_c)] with m = (p + q)/2: the divergences are taken from m to the two
    distributions instead of to m, and averaged over classes instead of summed, which squeezes the number by K. It has
    no upper limit.

    Args:
        p_logits: (N, K), finite.
        q_logits: (N, K), finite, of the same samples.

    Returns:
        (N,) in float64, nats per class.

    References:
        The code of V. S. Chundawat, A. K. Tarun, M. Mandal, M. Kankanhalli, "Can Bad Teaching Induce Forgetting?
        Unlearning in Deep Networks using an Incompetent Teacher", 2023, https://arxiv.org/abs/2205.08096.
    """
    return by_rows(_js_compat, p_logits, q_logits)


def _js_compat(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    log_p, log_q = p_logits.double().log_softmax(dim=1), q_logits.double().log_softmax(dim=1)
    log_m = torch.logaddexp(log_p, log_q) - LIMIT["nats"]
    return (log_m.exp() * (log_m - (log_p + log_q) / 2)).mean(dim=1).clamp(min=0.0)


def beside(audit: Audit, split: str, needs: frozenset[str]) -> tuple[Outputs, Outputs] | Unavailable:
    """Return the outputs of the model and of retrained on one split, or why there are none to compare."""
    reason = missing(needs | {split, "retrained"}, audit)
    return Unavailable(reason) if reason else (audit.said(split), audit.said(split, "retrained"))


def mean(values: Tensor, range: tuple[float, float], unit: str) -> Value:
    """Return the mean over samples with a t interval, whose ends are kept inside the possible values.

    Args:
        values: (N,).
        range: of possible values.
        unit: of the values.

    Returns:
        The mean; one sample has no interval.
    """
    return Value.of(within(stats.mean_t(values.numpy()), range), unit)


def within(interval: stats.Interval, range: tuple[float, float]) -> stats.Interval:
    """Return the interval with finite ends kept inside a range; infinite ends say that nothing is known, and stay.

    The estimate is left alone unless it passes the range by rounding.

    >>> within(stats.Interval(0.5, -0.2, 0.9, 7), (0.0, 1.0))
    Interval(x=0.5, low=0.0, high=0.9, n=7)
    """
    x, low, high = (min(range[1], max(range[0], v)) for v in (interval.x, interval.low, interval.high))
    return stats.Interval(
        x if abs(x - interval.x) < ROUNDING else interval.x,
        low if math.isfinite(interval.low) else interval.low,
        high if math.isfinite(interval.high) else interval.high,
        interval.n,
    )
