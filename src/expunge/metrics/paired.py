"""How much more the model knows of each forget sample than retrained does, sample by sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from expunge import stats
from expunge.metric import Audit, Found, Goal, Metric, Number, Unavailable, Value, missing
from expunge.metrics._distance import mean
from expunge.stats import Interval
from expunge.task import Classes, Quantile, Regression


@dataclass(frozen=True, kw_only=True)
class Paired(Metric):
    """Differences to retrained on the same samples: what makes a sample easy or hard drops out.

    - ``paired/gap`` = mean over forget of |p_y(model) − p_y(retrained)|, p_y the softmax probability of the label,
      in [0, 1]; two trainings of one recipe differ too, so the floor is what to hold it against.
    - ``paired/distance``, of regression: mean over forget and outputs of |ŷ(model) − ŷ(retrained)|, in units of the
      target.
    - ``paired/shift`` = mean over forget of φ(model) − φ(retrained), nats, signed: above 0 the forgotten are still
      known better than had they never been there, below it worse. φ = ln p_y − ln(1 − p_y), the margin, is cut to
      [−clip, clip], so that no single extreme sample makes the mean: a logit pushed to −1000 counts as one at −clip. Of
      a task without classes it is the mean of loss(retrained) − loss(model), not cut.
    - ``paired/excess`` = the shift on forget − the same shift on unseen samples of the forgotten kind (all test samples
      where the kind cannot be told): a difference in differences, in which what sets the two trainings apart on
      samples of either set drops out, such as another seed, or damage to the whole model. Of a removed class the
      unseen samples are of the class too, and what a model still knows of the class as such drops out as well: the
      shift shows it.

    The ideal of each is 0, by definition. Intervals are over samples, with both models as they are: they do not hold
    the spread between training seeds.

    Args:
        clip: where margins are cut, nats; 20 is a probability within 2e-9 of 0 or 1.

    References:
        The paired distance of regression: A. K. Tarun, V. S. Chundawat, M. Mandal, M. Kankanhalli, "Deep Regression
        Unlearning", 2023, https://arxiv.org/abs/2210.08196, whose distance of distributions it completes. The margin:
        N. Carlini, S. Chien, M. Nasr, S. Song, A. Terzis, F. Tramèr, "Membership Inference Attacks From First
        Principles", 2022, https://arxiv.org/abs/2112.03570.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    target: ClassVar[float | None] = 0.0
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "labels", "retrained"})
    wants: ClassVar[frozenset[str]] = frozenset({"test", "classes"})
    undefined: ClassVar[tuple[str, ...]] = (
        "it is a distance of regression",
        "no unseen sample of the forgotten kind",
        "a loss of retrained is infinite or not a number",
    )

    clip: float = 20.0

    @property
    def numbers(self) -> dict[str, Number]:
        """``paired/gap``, ``paired/distance``, ``paired/shift``, ``paired/excess``."""
        return {
            "paired/gap": self.number("difference of confidences, forget set", goal=Goal.MIN, range=(0.0, 1.0)),
            "paired/distance": self.number(
                "difference of predictions, forget set", goal=Goal.MIN, range=(0.0, math.inf)
            ),
            "paired/shift": self.number("forget set known better than by retrained"),
            "paired/excess": self.number("forget set known better, beyond unseen samples"),
        }

    def measure(self, audit: Audit) -> Found:
        """Return the four differences; the intervals are over samples."""
        return {
            "paired/gap": self._gap(audit),
            "paired/distance": self._distance(audit),
            "paired/shift": self._valued(self._shift(audit, "forget"), audit),
            "paired/excess": self._valued(self._excess(audit), audit),
        }

    def _gap(self, audit: Audit) -> Value | Unavailable:
        if not isinstance(audit.task, Classes):
            return Unavailable("the task has no classes")
        own, other = (audit.said("forget", role).signals.confidence for role in ("model", "retrained"))
        assert own is not None
        assert other is not None
        return mean((own - other).abs(), (0.0, 1.0), "1")

    def _distance(self, audit: Audit) -> Value | Unavailable:
        if not isinstance(audit.task, Regression | Quantile):
            return Unavailable("it is a distance of regression")
        own, other = (audit.said("forget", role).prediction for role in ("model", "retrained"))
        return mean((own - other).abs().reshape(len(own), -1).mean(dim=1), (0.0, math.inf), "target units")

    def _shift(self, audit: Audit, split: str) -> Interval | Unavailable:
        """Return the mean shift on a split."""
        own, other = audit.said(split), audit.said(split, "retrained")
        if isinstance(audit.task, Classes):
            a, b = own.signals.margin, other.signals.margin
            assert a is not None
            assert b is not None
            return stats.mean_t((a.clamp(-self.clip, self.clip) - b.clamp(-self.clip, self.clip)).numpy())
        assert own.loss is not None
        assert other.loss is not None
        if not bool(other.loss.isfinite().all()):
            return Unavailable("a loss of retrained is infinite or not a number")
        return stats.mean_t((other.loss - own.loss).numpy())

    def _excess(self, audit: Audit) -> Interval | Unavailable:
        unseen = "test" if audit.outputs("test_forget") is None else "test_forget"
        if (like := audit.outputs(unseen)) is not None and len(like) == 0:
            return Unavailable("no unseen sample of the forgotten kind")
        if reason := missing(frozenset({unseen, "labels", "retrained"}), audit):
            return Unavailable(reason)
        there, beyond = self._shift(audit, "forget"), self._shift(audit, unseen)
        if isinstance(there, Unavailable) or isinstance(beyond, Unavailable):
            return there if isinstance(there, Unavailable) else beyond
        return stats.difference(there, beyond)

    def _valued(self, found: Interval | Unavailable, audit: Audit) -> Value | Unavailable:
        unit = "nats" if isinstance(audit.task, Classes) else "loss"
        return found if isinstance(found, Unavailable) else Value.of(found, unit)


METRIC = Paired
