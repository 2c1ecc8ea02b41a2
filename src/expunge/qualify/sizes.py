"""What simulated requests say of a method at one size of request, and of many requests in a row; no torch.

A request's number is the mean gap of its model over the forgotten samples, G = mean of φ − μ. Three groups have one
each: the unlearned models, the models retrained without the samples, which show how far from 0 chance alone goes, and
the untouched originals, which show what such a number can see at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.errors import UserError, listing
from expunge.kinds import whole
from expunge.qualify.tolerance import least_pairs, tolerance
from expunge.qualify.trials import Floats, Mask, Said, Trials
from expunge.stats import Interval, clopper_pearson, mean_t, paired

SEEN = 0.5  # of untouched originals that a size has to tell from retrained models, with confidence
ROUNDING = 1e-12  # a floor below it is rounding


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is known of a method at one size of request.

    Args:
        n: forgotten samples in a request, the median.
        requests: how many were simulated, T.
        gap: mean over requests of G, in units of the score, with Student's interval.
        floor: largest |G| of a retrained model.
        bound: with the confidence, at least the share of such requests have |G| of at most this; None of too few.
        bound_retrained: the same of retrained models, which no method can be asked to undercut.
        needed: requests that a bound takes, where there is none.
        failed: requests of which the unlearned model has |G| above the floor.
        rate: that as a share, with Clopper and Pearson's interval of the rate given this floor.
        by_chance: expected rate of a model that was retrained.
        failed_original: untouched originals above the floor.
        caught: lower bound, with the confidence, of the rate at which untouched originals are above the floor.
        test: accuracy on test samples of unlearned less that of its own original; None of tasks without classes.
        test_retrained: the same of the retrained models in the place of the unlearned.
        retain: that of the unlearned on the samples that the original was trained on and the request leaves.
    """

    n: int
    requests: int
    gap: Interval
    floor: float
    bound: float | None
    bound_retrained: float | None
    needed: int | None
    failed: int
    rate: Interval
    by_chance: float
    failed_original: int
    caught: float
    test: Interval | None
    test_retrained: Interval | None
    retain: Interval | None

    @property
    def blind(self) -> bool:
        """Whether the size is too small to be told: untouched originals are not shown to fail more often than not.

        A bound that the untouched model meets too says nothing of the method; a claim that few requests fail says
        something only where most of them would, had nothing been done.
        """
        return self.caught <= SEEN

    def to_json(self) -> dict[str, Any]:
        """Return plain values; an end without bound is None."""
        return {name: _plain(value) for name, value in vars(self).items()} | {"blind": self.blind}


@dataclass(frozen=True, kw_only=True)
class InRow:
    """How many requests one after another a method stands.

    Args:
        n: forgotten samples in one request, the median.
        requests: models on which each number was tried, T.
        tried: numbers of requests in a row.
        failed: for each number, unlearned models with |G| above the floor of that number.
        rates: that as a share, with Clopper and Pearson's interval.
        bounds: one-sided upper bound of that rate, with the confidence.
        caught: lower bound of the rate at which untouched originals are above the floor; see `Size.blind`.
        longest: largest tried number that can be claimed; 0 where none can.
        tolerance: rate of failures that a claim allows.
        confidence: of bounds and claim.
    """

    n: int
    requests: int
    tried: tuple[int, ...]
    failed: tuple[int, ...]
    rates: tuple[Interval, ...]
    bounds: tuple[float, ...]
    caught: tuple[float, ...]
    longest: int
    tolerance: float
    confidence: float

    @property
    def needed(self) -> int:
        """The fewest requests of which any number can be claimed, when none fails."""
        return least_pairs(1 - self.tolerance, self.confidence)

    @property
    def text(self) -> str:
        """The claim in one or two sentences, or why there is none."""
        sure = f"with {_percent(self.confidence)} confidence"
        claim = f"at most {_percent(self.tolerance)} of models are farther from retrained than every retrained one"
        if self.requests < self.needed:
            return (
                f"Nothing can be claimed of requests in a row: that {claim} takes {self.needed} simulated requests or "
                f"more {sure}, even where none fails; there were {self.requests}."
            )
        broken = next((i for i, bound in enumerate(self.bounds) if bound > self.tolerance + ROUNDING), None)
        if self.longest:
            found = f"After {self._after(self.longest)} {claim}, {sure}."
        else:
            found = f"Nothing can be claimed of requests of {_counted(self.n, 'sample')} in a row."
        if not self.longest and broken != 0:
            found += " Untouched models are not shown to be any farther from retrained: the requests are too small."
        if broken is not None:
            found += (
                f" After {self._after(self.tried[broken])} {self.failed[broken]} of {self.requests} models were "
                f"farther, which leaves a rate of {_percent(self.bounds[broken])} possible."
            )
        return found

    def _after(self, number: int) -> str:
        return f"{_counted(number, 'request')} of {_counted(self.n, 'sample')}{' in a row' if number > 1 else ''}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values; the text with them."""
        return {name: _plain(value) for name, value in vars(self).items()} | {"text": self.text}


@dataclass(frozen=True, eq=False)
class _Held:
    """Numbers G of the unlearned and the retrained models, (T,), and how many lie above the floor."""

    unlearned: Floats
    retrained: Floats
    floor: float
    failed: int
    failed_original: int


def size_of(trials: Trials, *, share: float = 0.9, confidence: float = 0.95) -> Size:
    """Return what simulated requests of one size say.

    G_t is the mean over the forgotten samples of request t of φ − μ, μ of many models that never saw the sample, and
    ``gap`` is its mean over requests. It estimates unlearned − retrained; the difference to the one retrained model of
    the request would have the same mean and the noise of two models instead of one.

    ``bound`` is the tolerance bound of |G_t|, of any distribution. It speaks of one more request of this kind to one
    more model of this recipe, and takes the T requests as independent; they share the models that μ is a mean of.

    The floor is max_t |G'_t| of the K = T retrained models, and a request fails where |G_t| > floor. A model that was
    retrained does so with a chance of 1/(K + 1), since each of K + 1 such numbers is as likely the largest; a little
    less where unlearned models share their noise with the retrained of other requests, as the halves of a pool do. All
    requests are held against one floor, so their failures are independent only given it: the interval of ``rate``
    covers the rate of further requests against this same floor, not the rate over floors of other pools. Given the
    floor, the rate of a retrained model is itself spread, as a Beta(1, K): there is no failure with a chance of about
    1/2, one with 1/4, k with 2^−(k+1).

    Args:
        trials: requests of one kind and size.
        share: of further requests that the bounds hold for.
        confidence: of bounds and intervals.

    Raises:
        UserError: retrained models that do not differ, a number that is not finite, or a share or confidence outside
            (0.5, 1).

    References:
        Tolerance bounds: that of `tolerance`. Failures: that of `clopper_pearson`. The chance of the largest:
        V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World", 2005,
        https://doi.org/10.1007/b106715.
    """
    _confidence(confidence)
    if not SEEN < share < 1:
        raise UserError("a share of requests between 0.5 and 1", str(share), "write 90 % as 0.9")
    held, count = _held(trials), len(trials)
    size = np.abs(held.unlearned)
    bound = tolerance(size, share, confidence)
    test, again = (_on_test(trials, models, confidence) for models in (trials.unlearned, trials.retrained))
    return Size(
        n=_median(trials.forget),
        requests=count,
        gap=mean_t(held.unlearned, confidence),
        floor=held.floor,
        bound=bound,
        bound_retrained=tolerance(np.abs(held.retrained), share, confidence),
        needed=least_pairs(share, confidence) if bound is None else None,
        failed=held.failed,
        rate=clopper_pearson(held.failed, count, confidence),
        by_chance=1 / (len(trials.retrained) + 1),
        failed_original=held.failed_original,
        caught=_lower(held.failed_original, count, confidence),
        test=test,
        test_retrained=again,
        retain=_on_retain(trials, confidence),
    )


def in_row(
    steps: Sequence[Trials], numbers: Sequence[int], *, floor_tolerance: float = 0.1, confidence: float = 0.95
) -> InRow:
    """Return after how many requests in a row few models are farther from retrained than every retrained model.

    Each number of requests has its own floor, from models that saw none of the samples so far, and an upper bound of
    the failures' rate given it, the 0.95 quantile of Beta(k + 1, T − k) for k failures at a confidence of 0.95. A
    number can be claimed where this bound is at most the tolerance, where the same holds of all tried numbers before
    it, and where untouched originals are shown to fail there (`Size.blind`; smaller numbers need not). The numbers are
    asked in order and the first that does not hold ends it: the chance of a claim beyond what holds is at most 1 −
    confidence, for all numbers together.

    Args:
        steps: trials after each number of requests, on the same originals, forgetting all samples so far.
        numbers: of requests in a row, ascending.
        floor_tolerance: rate of failures that a claim allows; with none in T requests it takes T with
            (1 − tolerance)^T ≤ 1 − confidence, 29 at 0.1 and 0.95. Models that were retrained have k failures or more
            with a chance of about 2^−k: of 64 requests, which allow 2, they miss a claim once in eight.
        confidence: of the claim.

    Raises:
        UserError: numbers that do not ascend or are not as many as the steps, steps of other samples or that forget
            less than one before, retrained models that do not differ, a tolerance outside (0, 0.5), or a confidence
            outside (0.5, 1).

    References:
        Tests in a fixed order: P. H. Westfall, A. Krishen, "Optimally weighted, fixed sequence and gatekeeper multiple
        testing procedures", 2001, https://doi.org/10.1016/S0378-3758(01)00077-5.
    """
    _confidence(confidence)
    if not 0 < floor_tolerance < SEEN:
        raise UserError("a tolerance between 0 and 0.5", str(floor_tolerance), "write 10 % as 0.1")
    _in_order(steps, numbers)
    held, count = [_held(step) for step in steps], len(steps[0])
    bounds = [clopper_pearson(h.failed, count, 2 * confidence - 1).high for h in held]
    caught = [_lower(h.failed_original, count, confidence) for h in held]
    longest = 0
    for number, bound, seen in zip(numbers, bounds, caught, strict=True):
        if bound > floor_tolerance + ROUNDING:
            break
        longest = number if seen > SEEN else longest
    return InRow(
        n=round(_median(steps[0].forget) / numbers[0]),
        requests=count,
        tried=tuple(numbers),
        failed=tuple(h.failed for h in held),
        rates=tuple(clopper_pearson(h.failed, count, confidence) for h in held),
        bounds=tuple(bounds),
        caught=tuple(caught),
        longest=longest,
        tolerance=floor_tolerance,
        confidence=confidence,
    )


def _held(trials: Trials) -> _Held:
    """Return the numbers of the three groups against the floor."""
    groups = trials.unlearned_gaps, trials.retrained_gaps, trials.gaps(trials.original)
    if not all(np.isfinite(g.gap["forget"][trials.forget]).all() for g in groups):
        raise UserError("finite scores of all models", "some that are not", "leave out models that diverged")
    unlearned, retrained, original = (g.mean("forget") for g in groups)
    floor = float(np.abs(retrained).max())
    if floor <= ROUNDING:
        raise UserError("retrained models that differ", "gaps of 0", "vary the seed of retraining")
    failed, failed_original = (int((np.abs(g) > floor).sum()) for g in (unlearned, original))
    return _Held(unlearned, retrained, floor, failed, failed_original)


def _on_test(trials: Trials, models: Said, confidence: float) -> Interval | None:
    """Return the change of accuracy on test samples since the originals."""
    before = trials.original.right_test
    if before is None or models.right_test is None:
        return None
    return paired(models.right_test.mean(axis=1), before.mean(axis=1), confidence)


def _on_retain(trials: Trials, confidence: float) -> Interval | None:
    """Return the change of accuracy on the samples that stay."""
    before, after = trials.original, trials.unlearned
    if before.right is None or after.right is None:
        return None
    stay = before.kept & ~trials.forget
    return paired(_share(after.right, stay), _share(before.right, stay), confidence)


def _share(right: Mask, of: Mask) -> Floats:
    """Return for each model the share of its samples that are right, (T,)."""
    return np.asarray((right & of).sum(axis=1) / of.sum(axis=1), dtype=np.float64)


def _in_order(steps: Sequence[Trials], numbers: Sequence[int]) -> None:
    """Refuse steps that are not of one row of requests.

    Raises:
        UserError: they are not.
    """
    ascending = all(a < b for a, b in zip([0, *numbers], numbers, strict=False))
    if not numbers or not all(whole(n) for n in numbers) or not ascending:
        raise UserError("ascending numbers of requests from 1", listing(numbers) or "none", "list each once, in order")
    if len(steps) != len(numbers):
        raise UserError(f"trials of each of {len(numbers)} numbers", str(len(steps)), "give one after each number")
    for before, after in zip(steps, steps[1:], strict=False):
        if before.ids != after.ids or before.forget.shape != after.forget.shape:
            raise UserError("the same samples and originals at each number", "others", "continue each row of requests")
        if (before.forget & ~after.forget).any():
            got = "a number at which fewer are"
            raise UserError("all samples so far forgotten at each number", got, "forget the union of the requests")


def _lower(successes: int, n: int, confidence: float) -> float:
    return clopper_pearson(successes, n, 2 * confidence - 1).low


def _confidence(confidence: float) -> None:
    if not 0.5 < confidence < 1:
        raise UserError("a confidence between 0.5 and 1", str(confidence), "write 95 % as 0.95")


def _median(forget: NDArray[np.bool_]) -> int:
    return round(float(np.median(forget.sum(axis=1))))


def _plain(value: object) -> Any:
    if isinstance(value, Interval):
        return {name: _plain(end) for name, end in vars(value).items()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
