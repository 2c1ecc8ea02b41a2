"""Zero retrain forgetting: how close the model's answers on the forget set come to those of an untrained network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge import stats, tensors
from expunge.errors import NotFinite, UserError
from expunge.evidence import collect
from expunge.metric import SPLITS, Audit, Found, Goal, Metric, Number, Unavailable, Value, missing
from expunge.metrics._distance import LIMIT, Base, check_choice, js, js_compat, within
from expunge.seeds import seed as named_seed
from expunge.train import fresh

_SPLITS = ("forget", "test_forget")
PRETRAINED = 0.5  # share of the weights that no seed changes, above which a network is not drawn at random


def zrf(divergences: Tensor) -> stats.Interval:
    """Return 1 − the mean divergence of a model from several untrained networks, with an interval.

    Both the samples and the networks are drawn, so that the interval's half width is √(a² + b²), with a that of
    Student's interval of the samples' means (over networks) and b that of the networks' means (over samples); it is a
    little too wide rather than too narrow, and one network or one sample has none.

    Args:
        divergences: (networks, samples).

    Returns:
        1 − mean, n being the number of samples.
    """
    samples, networks = (stats.mean_t(1 - divergences.mean(dim=dim).numpy()) for dim in (0, 1))
    half = math.hypot(samples.high - samples.x, networks.high - networks.x)
    return stats.Interval(samples.x, samples.x - half, samples.x + half, samples.n)


@dataclass(frozen=True, kw_only=True)
class Zrf(Metric):
    """ZRF = 1 − mean over forget samples and draws of JS(p, t), p the model's softmax and t an untrained network's.

    The untrained ("incompetent") networks are drawn by seed: by the audit's ``new_model``, else by drawing the
    weights of the original anew, and are the same for all models of an evaluation. A network pretrained on other
    data is not incompetent, so there is no number where the weights that ``new_model`` returns hardly depend on the
    seed. In base 2 the divergence and so the score lie in [0, 1]; in base e the score lies in [1 − ln 2, 1].

    The goal is retrained's value, not 1: a network trained on other samples gives sure answers on the forgotten ones
    too, and one that answers at random where retrained does not gives itself away.

    Args:
        base: of the logarithm; named in the label.
        draws: untrained networks, at least 1; two or more give an interval.
        compat: give the number that published code calls ZRF, 1 − the mean of `js_compat`, in base e and under a name
            of its own; it is squeezed towards 1 by the number of classes, and has no lower limit.

    References:
        V. S. Chundawat, A. K. Tarun, M. Mandal, M. Kankanhalli, "Can Bad Teaching Induce Forgetting? Unlearning in
        Deep Networks using an Incompetent Teacher", 2023, https://arxiv.org/abs/2205.08096.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    wants: ClassVar[frozenset[str]] = frozenset({"forget", "data"})
    undefined: ClassVar[tuple[str, ...]] = (
        "there is no network to draw anew",
        "no untrained network can be made",
        "the untrained network's weights hardly depend on the seed",
        "the untrained network has other outputs",
        "the untrained network's outputs hold NaN or infinity",
    )
    trains: ClassVar[bool] = True  # runs the untrained networks

    base: Base = "bits"
    draws: int = 5
    compat: bool = False

    def __post_init__(self) -> None:
        check_choice("base", self.base, Base)
        if self.draws < 1:
            raise UserError("at least one draw", str(self.draws), "set draws to 1 or more")

    @property
    def numbers(self) -> dict[str, Number]:
        """``zrf/forget`` and ``zrf/test_forget``, or ``zrf/compat/...``."""
        label = f"ZRF (base {2 if self.base == 'bits' else 'e'})"
        low = -math.inf if self.compat else 1 - LIMIT[self.base]
        return {
            self._name(split): self.number(
                f"{'published ZRF' if self.compat else label}, {SPLITS[split]}", range=(low, 1.0)
            )
            for split in _SPLITS
        }

    def measure(self, audit: Audit) -> Found:
        """Return the score on the forget set, and on unseen samples of its kind where there are any."""
        return {self._name(split): self._one(audit, split) for split in _SPLITS}

    def _name(self, split: str) -> str:
        return f"zrf/{'compat/' if self.compat else ''}{split}"

    def _one(self, audit: Audit, split: str) -> Value | Unavailable:
        reason = missing(self.needs | {split, "data"}, audit)
        if reason:
            return Unavailable(reason)
        template = next((audit.models[r] for r in ("original", "retrained", "model") if r in audit.models), None)
        if template is None:
            return Unavailable("there is no network to draw anew")
        # Networks are drawn after the original, where there is one, so that all models are compared with the same.
        name = f"zrf/{split}/{self.draws}/{tensors.shapes_digest(template)}"
        said = audit.once(name, lambda: untrained(template, audit, split, self.draws))
        if isinstance(said, Unavailable):
            return said
        own = audit.said(split).logits
        if said[0].shape != own.shape:
            return Unavailable("the untrained network has other outputs than the model")
        apart = self._apart(own, said)
        if missing(frozenset({split, "retrained"}), audit) is None:
            between = zrf(1 + apart - self._apart(audit.said(split, "retrained").logits, said))
            audit.kept.gaps[self._name(split)] = Value.of(between, self._unit)
        low = -math.inf if self.compat else 1 - LIMIT[self.base]
        return Value.of(within(zrf(apart), (low, 1.0)), self._unit)

    @property
    def _unit(self) -> str:
        return "" if self.compat else "1"

    def _apart(self, own: Tensor, said: Sequence[Tensor]) -> Tensor:
        """Return the divergence from each untrained network, (draws, N)."""
        return torch.stack([js_compat(own, t) if self.compat else js(own, t, self.base) for t in said])


def untrained(template: nn.Module, audit: Audit, split: str, draws: int) -> list[Tensor] | Unavailable:
    """Return the outputs of untrained networks on a split, or why there are none.

    Args:
        template: the network whose shapes they have.
        audit: with ``new_model``, data, seed and runtime.
        split: of the audit's data.
        draws: how many networks.

    Returns:
        (N, K) logits of each network.
    """
    said: list[Tensor] = []
    first: nn.Module | None = None
    for draw in range(max(draws, 2)):  # one draw alone does not show what the seed changes
        try:
            made = fresh(template, new_model=audit.new_model, seed=named_seed("zrf", audit.seed, draw))
        except UserError as error:
            return Unavailable(f"no untrained network can be made: {error}")
        if first is None:
            first = made
        elif draw == 1 and _alike(first, made) > PRETRAINED:
            why = "pretrained, and so not incompetent, or drawn from a seed of its own"
            return Unavailable(f"the untrained network's weights hardly depend on the seed: it is {why}")
        if draw < draws:
            try:
                said.append(collect(made, audit.task, audit.data[split], runtime=audit.runtime).logits)
            except NotFinite:
                return Unavailable("the untrained network's outputs hold NaN or infinity")
    return said


def _alike(one: nn.Module, other: nn.Module) -> float:
    """Return the share of weights that two draws have in common, tensors of one constant left out: they are set."""
    same = count = 0
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        if a.numel() > 1 and bool((a != a.flatten()[0]).any()):
            same, count = same + int((a == b).sum()), count + a.numel()
    return same / max(1, count)


METRIC = Zrf
