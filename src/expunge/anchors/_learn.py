"""What a Gaussian anchor prepares: σ by any of its accounts, tried by drawing weights, and facts for later."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge import __version__
from expunge.anchors._bgd import Learned, Learner, disturb, draws
from expunge.anchors._flat import Flat, exact, noise_seed
from expunge.anchors._importance import geometric, measured, narrowed_by, quantity, rescaled
from expunge.anchors._posterior import Posterior
from expunge.anchors._settings import Learning
from expunge.data import Data
from expunge.errors import NotFinite, UserError
from expunge.evidence import collect
from expunge.files import digest
from expunge.identity import described
from expunge.method import See, Session, State
from expunge.runtime import Runtime
from expunge.task import Classes
from expunge.train import mean_loss

log = logging.getLogger(__name__)
CHECKED = 4096  # samples at most on which drawn weights are held to the weights themselves
SLACK = 0.05  # nats by which a draw's loss may be higher; of a loss in another unit as many of those, or this share
SHOWN = 10**6  # scalars at most whose σ quantiles are taken
INFORMED = 0.05  # share of the weights that samples tell of, below which a note says so
QUANTILES = (0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0)


class Trial:
    """The mean loss of drawn weights beside that of the weights as they are, on up to 4,096 samples.

    Args:
        session: task and seed.
        flat: the weights as they are.
        data: labelled; where there are more, 4,096 of them evenly spaced.
        runtime: in full precision.
    """

    def __init__(self, session: Session, flat: Flat, data: Data, runtime: Runtime) -> None:
        self.session, self.flat, self.runtime = session, flat, runtime
        ids = data.ids
        at = range(len(ids)) if len(ids) <= CHECKED else np.linspace(0, len(ids) - 1, CHECKED).astype(int)
        self.data = data if len(ids) <= CHECKED else data.subset([ids[i] for i in at])
        self.clean = self._mean()

    def _mean(self) -> float:
        return mean_loss(self.flat.model, self.session.task, self.data, self.runtime)

    def sampled(self, log_sigma: Tensor) -> float:
        """Return the mean loss under one draw of weights, inf where it is not finite; the weights are put back."""
        mu = self.flat.weights.clone()
        disturb(self.flat, mu, log_sigma, noise_seed(self.session.seed, "trial"))
        try:
            return self._mean()
        except NotFinite:
            return math.inf
        finally:
            self.flat.weights.copy_(mu)

    @property
    def slack(self) -> float:
        """How much higher the loss of a draw may be than that of the weights, in the loss's unit."""
        return SLACK * (1.0 if isinstance(self.session.task, Classes) else max(1.0, abs(self.clean)))


def started(settings: Learning, trial: Trial, session: Session) -> float:
    """Return σ0, halved until a draw's loss is at most twice that of the weights, or above it by the slack.

    Raises:
        UserError: it would have to be below σ_min.
    """
    sigma0, most = settings.sigma0, max(2 * trial.clean, trial.clean + trial.slack)
    while True:
        found = trial.sampled(trial.flat.vector(math.log(sigma0)))
        if found <= most:
            break
        log.warning("with σ0 = %.3g drawn weights have a loss of %.4g against %.4g: halved", sigma0, found, trial.clean)
        if sigma0 / 2 <= settings.sigma_min:
            want = f"a σ0 above sigma_min ({settings.sigma_min:g}) at which drawn weights keep a loss of {most:.4g}"
            remedy = f"lower {settings.name}.sigma_min, or check that the model was trained on this data"
            raise UserError(want, f"a loss of {found:.4g} at {sigma0:.3g}", remedy)
        sigma0 /= 2
    if sigma0 < settings.sigma0:
        text = f"σ0 was halved to {sigma0:.3g}: drawn weights lost the model's loss at {settings.sigma0:g}."
        session.record("note", text)
    return sigma0


def prepared(settings: Learning, session: Session) -> tuple[nn.Module, State]:
    """Learn σ from the training data, and return the model with what is to be kept.

    The model is in eval mode throughout: no dropout, BatchNorm as it was left, no augmentation. Weights are as they
    were to the last bit, unless ``mean_rate`` lets them follow. In float32 the work is done as such, whatever the
    runtime's precision, for the answer to a small draw is lost in rounding otherwise.

    Args:
        settings: how.
        session: training data at ``settings.sight``; holdout data where declared and given.

    Returns:
        The session's model, and the state of a `Posterior`.

    Raises:
        UserError: no training data, or none with labels where they are read; drawn weights lose the model's loss even
            at a σ0 near σ_min.
        NotFinite: a loss or gradient is NaN or infinite.
    """
    runtime = replace(session.runtime, precision="full")
    if session.runtime.precision != "full":
        session.record("note", f"σ was learned in float32: {session.runtime.precision} would round a draw away.")
    if settings.mean_rate:
        text = f"The weights followed at a rate of {settings.mean_rate:g} while σ was learned: what was prepared is "
        session.record("note", f"{text}their mean at the end, not the model that was given.")
    train, holdout = session.train, _holdout(session)
    _check(settings, train)
    with exact(torch.device(runtime.torch_device)):
        fisher = measured(settings.importance, session, runtime) if settings.importance.startswith("fisher") else None
        flat = Flat(session.model, session.masks)
        if flat.moving == 0:
            raise UserError("weights that may move", "masks on all of them", "mask fewer")
        trial = _trial(session, flat, runtime, train, holdout)
        sigma0 = settings.sigma0 if trial is None else started(settings, trial, session)
        found = _learned(settings, session, runtime, flat, fisher, sigma0)
        del fisher  # a float64 a weight
        facts = {**_facts(settings, session, sigma0, found), **_shapes(flat)}
        facts |= _tried(settings, session, trial, found.log_sigma)
        _told(settings, session, flat, found, sigma0)
        log_sigma = dict(flat.named(found.log_sigma))
        model = flat.released()
        facts |= _held_out(session, model, holdout, runtime)
    return model, Posterior(log_sigma, found.samples, facts).state(settings.stored)


def passes(settings: Learning, classes: int = 1, *, most: bool = True) -> float:
    """Return how many passes of plain training over the training set a preparation costs.

    Bayesian gradient descent takes a forward and a backward pass a draw, so epochs × 2·pairs.

    Args:
        settings: how.
        classes: of the task, one backward pass each for the Fisher information of the model's own labels.
        most: as many epochs as it takes at most where two estimates of σ must agree; else at least.

    >>> passes(Learning(pairs=2, epochs=3, most_epochs=30)), passes(Learning(pairs=2, epochs=3), most=False)
    (120.0, 12.0)
    """
    checked = len(draws(settings)) == 2
    epochs = settings.most_epochs if checked and most else settings.epochs
    bgd = 2.0 * epochs * settings.pairs if "bgd" in (settings.importance, settings.scale) else 0.0
    fisher = {"fisher_model": (1 + 2 * classes) / 3, "fisher_emp": 1.0}
    return bgd + fisher.get(settings.importance, 0.0)


def _holdout(session: Session) -> Data | None:
    """Return held-out data with labels, or None."""
    data = session.holdout if session.needs.declared("holdout") else None
    return data if data is not None and len(data) and data.labelled else None


def _check(settings: Learning, train: Data) -> None:
    """Refuse training data that is empty or lacks the labels that are read.

    Raises:
        UserError: says which.
    """
    if len(train) == 0:
        raise UserError("training data to learn σ from", f"no sample in {train.name}", "pass data that is not empty")
    if settings.sight == See.LABELLED and not train.labelled:
        remedy = f"give targets when building the data, or set {settings.name}.importance to 'fisher_model'"
        raise UserError(f"labels in {train.name}, to learn σ from the training loss", "none", remedy)


def _trial(session: Session, flat: Flat, runtime: Runtime, train: Data, holdout: Data | None) -> Trial | None:
    """Return the trial of drawn weights on training data, without its labels on held-out data, without those none."""
    data = train if train.labelled else holdout
    if data is None:
        session.record("note", "No labels were seen, so σ was not held to the loss of drawn weights.")
        return None
    return Trial(session, flat, data, runtime)


def _learned(
    settings: Learning,
    session: Session,
    runtime: Runtime,
    flat: Flat,
    fisher: Mapping[str, Tensor] | None,
    sigma0: float,
) -> Learned:
    """Return σ by its account, rescaled where asked; epochs and agreement are those of the descent, if there was one.

    Where σ is rescaled to that of a descent, n_eff is the descent's too.
    """
    run = None
    if "bgd" in (settings.importance, settings.scale):
        run = Learner(settings, session, flat, sigma0, runtime).run()
        session.record("training_passes", 2 * settings.pairs * run.epochs)
    samples = float(settings.epochs * len(session.train)) if run is None else run.samples
    if fisher is not None:
        log_sigma = narrowed_by(fisher, flat, sigma0, samples, settings.sigma_min)
    elif settings.importance == "bgd" and run is not None:
        log_sigma = run.log_sigma
    else:
        log_sigma = flat.vector(math.log(sigma0))
    if settings.scale == "bgd" and run is not None:
        rescaled(flat, log_sigma, geometric(flat, run.log_sigma))
    elif settings.scale != "own":
        rescaled(flat, log_sigma, float(settings.scale))
    if run is None:
        return Learned(log_sigma, samples, settings.epochs, ())
    return replace(run, log_sigma=log_sigma)


def _facts(settings: Learning, session: Session, sigma0: float, found: Learned) -> dict[str, Any]:
    """Return how σ was learned."""
    chosen = ("importance", "scale", "sigma_min", "pairs", "antithetic", "mean_rate")
    facts = {name: getattr(settings, name) for name in chosen}
    if settings.importance.startswith("fisher"):
        facts["fisher"] = quantity(settings.importance, session.task)
    return {
        **facts,
        "sigma0": sigma0,
        "sigma_max": settings.sigma_max or 3 * sigma0,
        "N": len(session.train),
        "epochs": found.epochs,
        "passes": found.samples / len(session.train),
        "batch": settings.learn_batch,
        "agreement": list(found.agreement),
        "agreement_wanted": settings.agreement,
        "seed": session.seed,
        "task": described(session.task),
        "transform": digest(_transforms(session.train.source))[:16],
        "version": __version__,
    }


def _transforms(source: object) -> list[Any]:
    """Return the transforms that decide inputs, of a source and of what it reads from."""
    found = []
    while source is not None:
        found += [described(getattr(source, name, None)) for name in ("transform", "transforms")]
        source = getattr(source, "source", None) or getattr(source, "dataset", None)
    return found


def _shapes(flat: Flat) -> dict[str, Any]:
    """Return how many weights have a σ, which parameters have none, and which stand under several names."""
    every: dict[int, list[str]] = {}
    for name, p in flat.model.named_parameters(remove_duplicate=False):
        every.setdefault(id(p), []).append(name)
    frozen = [name for name, p in flat.model.named_parameters() if not p.requires_grad]
    ties = {names[0]: names[1:] for names in every.values() if len(names) > 1}
    return {"scalars": flat.count, "masked": flat.count - flat.moving, "excluded": frozen, "ties": ties}


def _tried(settings: Learning, session: Session, trial: Trial | None, log_sigma: Tensor) -> dict[str, Any]:
    """Return the loss of a draw from what was learned, and note it where it is not near that of the weights."""
    if trial is None:
        return {"clean_loss": None, "sampled_loss": None, "checked": 0}
    sampled = trial.sampled(log_sigma)
    told = {"clean_loss": trial.clean, "sampled_loss": sampled if math.isfinite(sampled) else None}
    for name, value in told.items():
        session.record(name, value)
    if not sampled <= trial.clean + trial.slack:
        text = f"Weights drawn from what was learned have a mean loss of {sampled:.4g}, the weights themselves "
        text += f"{trial.clean:.4g}: σ is too wide; lower {settings.name}.sigma0 or raise epochs."
        session.record("note", text)
    return {**told, "checked": len(trial.data)}


def _told(settings: Learning, session: Session, flat: Flat, found: Learned, sigma0: float) -> None:
    """Record n_eff, σ0, quantiles of σ, and two shares of the weights.

    ``informed`` is the share of those that may move of which the samples tell more than σ0 does: σ is below σ0/√2.
    ``below_bf16`` is the share of which a draw by σ would be lost in bf16: σ is below 2⁻⁸·|μ|.
    """
    session.record("n_eff", found.samples)
    session.record("sigma0", sigma0)
    shown = flat.scalars(found.log_sigma, SHOWN).double().exp().cpu().numpy()
    values = np.quantile(shown, QUANTILES)
    session.record("sigma_quantiles", {f"{q:g}": float(v) for q, v in zip(QUANTILES, values, strict=True)})
    informed = float(np.mean(shown < sigma0 / math.sqrt(2)))
    session.record("informed", informed)
    if settings.importance != "uniform" and settings.scale == "own" and informed < INFORMED:
        text = f"The samples tell more than σ0 does of {informed:.1%} of the weights: the others are held alike; raise "
        session.record("note", f"{text}{settings.name}.epochs, or σ0 as far as drawn weights keep the model's loss.")
    pieces = flat.pieces(flat.weights, found.log_sigma)
    small = sum(int(torch.count_nonzero(spread.exp() < weights.abs() * 2**-8)) for weights, spread in pieces)
    session.record("below_bf16", small / flat.count)


def _held_out(session: Session, model: nn.Module, data: Data | None, runtime: Runtime) -> dict[str, Any]:
    """Return τ, the mean loss on held-out data, its standard deviation over samples, and accuracy with classes."""
    if data is None:
        return {"tau": None, "tau_sd": None, "accuracy": None, "held_out": 0}

    def work() -> dict[str, Any]:
        found = collect(model, session.task, data, runtime=runtime)
        assert found.loss is not None
        assert found.target is not None
        hits = found.prediction == found.target if isinstance(session.task, Classes) else None
        return {
            "tau": float(found.loss.mean()),
            "tau_sd": float(found.loss.std(correction=0)),
            "accuracy": None if hits is None else float(hits.double().mean()),
            "held_out": len(data),
        }

    return runtime.on_main(work)
