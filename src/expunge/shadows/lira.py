"""Likelihood-ratio attacks on margins: of a trained model (LiRA), and of unlearned models against retrained ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from expunge import seeds
from expunge.errors import UserError, suggest
from expunge.shadows.pool import Floats, Pool, line, table
from expunge.stats import Interval, mean_t

Variance = Literal["auto", "own", "shared"]
ENOUGH = 64  # models a side from which a sample's own deviation is trusted
FLOOR = 1e-3  # nats; what rounding in single precision and another order of sums may move a margin by
GROUPS = 32  # models are left out one by one up to so many a side, beyond it in so many groups
LEAST = 4  # models a side, for two to be left in a fit without the target and without one model more
TRIED = 2000  # samples of the simulation in which there is nothing to tell


@dataclass(frozen=True, eq=False)
class Rates:
    """How well unlearned models are told from retrained ones, by sample and over all; ½ is not at all.

    Args:
        accuracy: balanced accuracy on the values of each sample, (N,).
        p_member: mean of p_member over the unlearned models' values of each sample, (N,).
        overall: mean accuracy with a 95 % interval over models and samples.
        p_overall: mean p_member with such an interval.
        worst: columns of the decile of the samples with the highest accuracy, highest first, (W,).
        low: lower ends of their 95 % intervals, (W,).
        high: upper ends.
        worst_mean: mean accuracy over that decile.
        worst_by_chance: what that mean is on average where there is nothing to tell.
    """

    accuracy: Floats
    p_member: Floats
    overall: Interval
    p_overall: Interval
    worst: NDArray[np.int64]
    low: Floats
    high: Floats
    worst_mean: float
    worst_by_chance: float


def lira(
    target: ArrayLike, pool: Pool, *, online: bool = True, variance: Variance = "auto", ddof: int = 0
) -> NDArray[np.float64]:
    """Return the likelihood-ratio score of membership of each sample: higher means trained on.

    Online it is ln N(φ; μ_in, σ_in²) − ln N(φ; μ_out, σ_out²), of the models of the pool that were trained on the
    sample and of those that were not. Offline it is Φ((φ − μ_out)/σ_out), of the latter alone; it is 1 in double
    precision from 8.3 deviations on, so that what stands out further ties.

    A side's shared deviation is the root of the squared deviations from each sample's own mean, averaged over the
    samples: spread between samples is not in it (ours; pooling all values of a side around one mean would put it
    there). No deviation is taken below 0.001 nats.

    Args:
        target: margins of the samples under the model attacked, (N,), in the order of the pool.
        pool: shadow models without the target, and without its partner where it is a row of ``draw``.
        online: whether to use models that were trained on the sample.
        variance: ``own`` of each sample, ``shared`` by all, or ``auto``: shared where the smaller side of some sample
            has fewer than 64 models.
        ddof: what is taken off the number of values in a variance: 0 or 1.

    Returns:
        Scores, (N,).

    Raises:
        UserError: margins that do not fit the pool, too few models on a side, an unknown variance or ddof.

    References:
        N. Carlini, S. Chien, M. Nasr, S. Song, A. Terzis, F. Tramèr, "Membership Inference Attacks From First
        Principles", 2022, https://arxiv.org/abs/2112.03570.
    """
    _known(variance, ddof)
    x = line(target, len(pool.ids), "margins of the target")
    fewest = int(min(pool.inside.min(), pool.outside.min()) if online else pool.outside.min())
    shared = variance == "shared" or (variance == "auto" and fewest < ENOUGH)
    least = 1 if shared else 2
    pool.require(inside=least if online else 0, outside=least)
    out = _masked(pool.margins, ~pool.seen, shared, ddof)
    if not online:
        return np.asarray(special.ndtr((x - out[0]) / np.sqrt(out[1])), dtype=np.float64)
    return _log_ratio(x, _masked(pool.margins, pool.seen, shared, ddof), out)


def _known(variance: str, ddof: int) -> None:
    if variance not in get_args(Variance):
        raise UserError("a kind of variance", repr(variance), suggest(variance, get_args(Variance)))
    _degrees(ddof)


def _degrees(ddof: int) -> None:
    if ddof not in (0, 1):
        raise UserError("ddof of 0 or 1", str(ddof), "take 0 for the population's deviation, 1 for the sample's")


def _masked(margins: Floats, mask: NDArray[np.bool_], shared: bool, ddof: int) -> tuple[Floats, Floats]:
    """Return means and variances, (N,) each, over the models of a mask."""
    n = mask.sum(axis=0)
    mean = np.where(mask, margins, 0.0).sum(axis=0) / n
    squares = np.square(np.where(mask, margins - mean, 0.0)).sum(axis=0)
    if not shared:
        return mean, _floored(squares / (n - ddof))
    if int((n - 1).sum()) == 0:
        raise UserError("samples with 2 models on a side", "1 of each sample", "train more models")
    return mean, np.broadcast_to(_floored(squares.sum() / (n - ddof).sum()), mean.shape)


def _floored(variance: Floats) -> Floats:
    return np.maximum(variance, FLOOR**2)


def _log_ratio(x: Floats, inside: tuple[Floats, Floats], outside: tuple[Floats, Floats]) -> Floats:
    """Return ln N(x; inside) − ln N(x; outside), each side given by mean and variance."""
    log_in, log_out = (-((x - mean) ** 2) / (2 * v) - np.log(v) / 2 for mean, v in (inside, outside))
    return np.asarray(log_in - log_out, dtype=np.float64)


def u_lira(observed: ArrayLike, inside: ArrayLike, outside: ArrayLike, ddof: int = 0) -> NDArray[np.float64]:
    """Return the probability that each margin comes from an unlearned model and not from one that never saw the sample.

    p_member = N(o; μ_in, σ_in²) / (N(o; μ_in, σ_in²) + N(o; μ_out, σ_out²)), prior ½; ½ is what perfect unlearning
    gives on average. Deviations are those of each sample, and none below 0.001 nats: unlearning that gives one and the
    same model each time has a narrow fit, not an infinite density.

    Args:
        observed: margins under the audited model, (N,); leave that model out of the other two.
        inside: margins under models that were trained on the sample and unlearned it, (A, N), A at least 2.
        outside: margins under models that were never trained on it, (B, N), B at least 2.
        ddof: what is taken off the number of values in a variance: 0 or 1.

    Returns:
        p_member, (N,), in [0, 1].

    Raises:
        UserError: shapes that do not fit, too few models, a margin that is not finite, or an unknown ddof.

    References:
        J. Hayes, I. Shumailov, E. Triantafillou, A. Khalifa, N. Papernot, "Inexact Unlearning Needs More Careful
        Evaluations to Avoid a False Sense of Privacy", 2024, https://arxiv.org/abs/2403.01218.
    """
    ours, theirs = _sides(inside, outside, 2, ddof)
    x = line(observed, ours.shape[1], "margins of the audited model")
    fits = [(side.mean(axis=0), _floored(side.var(axis=0, ddof=ddof))) for side in (ours, theirs)]
    return np.asarray(special.expit(_log_ratio(x, *fits)), dtype=np.float64)


def _sides(inside: ArrayLike, outside: ArrayLike, least: int, ddof: int) -> tuple[Floats, Floats]:
    a, b = table(inside, "unlearned models"), table(outside, "retrained models")
    _degrees(ddof)
    if a.shape[1] != b.shape[1]:
        raise UserError("the same samples on both sides", f"{a.shape[1]} and {b.shape[1]}", "collect them in one order")
    if min(len(a), len(b)) < least:
        raise UserError(f"at least {least} models on either side", f"{len(a)} and {len(b)}", "train more models")
    return a, b


def u_lira_rates(inside: ArrayLike, outside: ArrayLike, ddof: int = 0) -> Rates:
    """Return how often unlearned and retrained models are told apart, each value the target of fits without it.

    A value is called unlearned where p_member > ½ (``u_lira``). Its own side's fit lacks it, and the other side's lacks
    one value too, that of the same row (counted around where there are fewer rows). Without that the other side's fit
    would be the better one of two alike, and the accuracy below ½ where there is nothing to tell. So the fits are of
    A − 1 and B − 1 values wherever the target is from, and it is ½ on average, whatever the distribution.

    Intervals over all count both kinds of draws. Values of one sample share their fits, and samples share models: a
    model that is off everywhere shifts all columns. So the variance is the sum of that over samples, s²/N, and of the
    jackknife over models, (G−1)/G · Σ_g (θ₋g − θ̄)², in which everything is fitted again without the rows of group g on
    both sides (one row each up to 32 models a side). What the two have in common is counted twice: the interval errs
    on the wide side. Its t quantile has min(G, N) − 1 degrees of freedom. Rows of one index may share a seed.

    The samples of the worst decile were picked for their accuracy; some would look so by chance. Compare their mean
    with ``worst_by_chance``, from a simulation of normal values in which both sides are alike. The intervals of single
    samples, from Wilson's of either side, take its A + B calls for independent and not for picked.

    Args:
        inside: margins under unlearned models, (A, N), A at least 4.
        outside: margins under models that never saw the samples, (B, N), B at least 4.
        ddof: what is taken off the number of values in a variance: 0 or 1.

    Returns:
        The rates.

    Raises:
        UserError: shapes that do not fit, too few models, a margin that is not finite, or an unknown ddof.

    References:
        As ``u_lira``. Jackknife: B. Efron, C. Stein, "The Jackknife Estimate of Variance", 1981,
        https://doi.org/10.1214/aos/1176345462.
    """
    a, b = _sides(inside, outside, LEAST, ddof)
    caught, cleared, p = _told(a, b, np.arange(len(a)), np.arange(len(b)), ddof)
    accuracy = (caught + cleared) / 2
    models = min(len(a), len(b), GROUPS)
    parts = [np.array_split(np.arange(len(side)), models) for side in (a, b)]
    fewer = np.array([_means(a, b, gone, ddof) for gone in zip(*parts, strict=True)])
    worst = np.argsort(-accuracy, kind="stable")[: math.ceil(len(accuracy) / 10)]
    low, high = _ends(caught[worst], cleared[worst], len(a), len(b))
    return Rates(
        accuracy=accuracy,
        p_member=p,
        overall=_both(accuracy, fewer[:, 0]),
        p_overall=_both(p, fewer[:, 1]),
        worst=worst,
        low=low,
        high=high,
        worst_mean=float(accuracy[worst].mean()),
        worst_by_chance=_by_chance(len(a), len(b), ddof),
    )


def _left_out(x: Floats, ddof: int) -> tuple[Floats, Floats]:
    """Return means and variances without each value in turn, (R, N) each: from sums of deviations and their squares."""
    n, mean = len(x), x.mean(axis=0)
    off = x - mean
    squares = np.square(off).sum(axis=0) - np.square(off) * (n / (n - 1))
    return mean - off / (n - 1), _floored(squares / (n - 1 - ddof))


def _told(
    a: Floats, b: Floats, rows_a: NDArray[np.int64], rows_b: NDArray[np.int64], ddof: int
) -> tuple[Floats, Floats, Floats]:
    """Return by sample the share of rows of a caught, of b cleared, and the mean p_member of a, (N,) each.

    Args:
        a: margins of unlearned models, all of them, (A, N).
        b: the same of retrained ones, (B, N).
        rows_a: rows to use, in ascending order.
        rows_b: the same of b.
        ddof: of the variances.
    """
    ours, theirs = a[rows_a], b[rows_b]
    fit_a, fit_b = _left_out(ours, ddof), _left_out(theirs, ddof)
    # the row of the same index, or the next that is used: leaving a row out leaves the other pairs as they are
    of_b = np.searchsorted(rows_b, rows_a % len(b)) % len(rows_b)
    of_a = np.searchsorted(rows_a, rows_b % len(a)) % len(rows_a)
    ratio_a = _log_ratio(ours, fit_a, (fit_b[0][of_b], fit_b[1][of_b]))
    ratio_b = _log_ratio(theirs, (fit_a[0][of_a], fit_a[1][of_a]), fit_b)
    return (ratio_a > 0).mean(axis=0), (ratio_b <= 0).mean(axis=0), special.expit(ratio_a).mean(axis=0)


def _means(a: Floats, b: Floats, gone: tuple[NDArray[np.int64], NDArray[np.int64]], ddof: int) -> tuple[float, float]:
    """Return mean accuracy and p_member without some rows of either side."""
    rows = [np.setdiff1d(np.arange(len(side)), part) for side, part in zip((a, b), gone, strict=True)]
    caught, cleared, p = _told(a, b, rows[0], rows[1], ddof)
    return float((caught + cleared).mean() / 2), float(p.mean())


def _both(values: Floats, without: Floats) -> Interval:
    """Return the mean of samples with an interval over them and over groups of models, each left out once."""
    mean, groups, n = float(values.mean()), len(without), len(values)
    if n == 1:
        return mean_t(values)
    variance = float(values.var(ddof=1)) / n + float(without.var()) * (groups - 1)
    half = float(special.stdtrit(min(groups, n) - 1, 0.975)) * math.sqrt(variance)
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half), n)


def _ends(caught: Floats, cleared: Floats, a: int, b: int) -> tuple[Floats, Floats]:
    """Return the ends of ``stats.half_sum`` of Wilson's intervals, for many samples at once."""
    z2 = float(special.ndtri(0.975)) ** 2
    down, up = np.zeros_like(caught), np.zeros_like(caught)
    for p, n in ((caught, a), (cleared, b)):
        middle = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = math.sqrt(z2) / (1 + z2 / n) * np.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        down, up = np.hypot(down, p - middle + half), np.hypot(up, middle + half - p)
    x = (caught + cleared) / 2
    return np.maximum(x - down / 2, 0.0), np.minimum(x + up / 2, 1.0)


def _by_chance(a: int, b: int, ddof: int) -> float:
    """Return the mean accuracy of the worst decile where both sides are normal and alike."""
    values = np.random.default_rng(seeds.seed("nothing to tell", a, b)).standard_normal((a + b, TRIED))
    caught, cleared, _ = _told(values[:a], values[a:], np.arange(a), np.arange(b), ddof)
    return float(np.sort((caught + cleared) / 2)[-TRIED // 10 :].mean())
