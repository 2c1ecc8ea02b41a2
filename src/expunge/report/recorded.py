"""What edits record while they take their steps: which of it are curves, of what quantity, and what stands together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from expunge.report.format import listed
from expunge.report.looks import Look
from expunge.report.svg import GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILION

Points = Sequence[tuple[float, float]]  # step and value, in the order of steps; what is not finite is NaN
Pairs = Sequence[tuple[float, float | None]]  # the same as JSON has it, None for NaN

LOSS = "loss"  # the panel, and the stand-in for the unit, of what is in the unit of the task's loss
LEVELS = {"tau": "forget_loss"}  # numbers recorded once, and the curves that they are levels of
NOT_FINITE = ("nan", "inf", "-inf")  # how a log writes what JSON has no number for


@dataclass(frozen=True)
class Quantity:
    """What a recorded name stands for.

    Args:
        label: in words.
        unit: ``1`` for a share, printed in percent; an empty string for a number without one.
        panel: quantities of one panel are of one unit and drawn together.
        spans: whether values may span much, so that a logarithmic axis is of use.
    """

    label: str
    unit: str = ""
    panel: str = ""
    spans: bool = True

    @property
    def axis(self) -> str:
        """The label of its axis."""
        unit = "%" if self.unit == "1" else self.unit
        return f"{self.label}, {unit}" if unit else self.label


KNOWN = {
    "loss": Quantity("lowered loss", LOSS, LOSS),
    "tau": Quantity("τ", LOSS, LOSS),
    "alpha": Quantity("α", "", "alpha", spans=False),
    "hinge_active": Quantity("steps with the hinge active", "1", "hinge_active", spans=False),
    "kl": Quantity("KL(q ‖ p)", "nats", "kl"),
    "kl_per_sample": Quantity("KL(q ‖ p) ÷ n_eff", "nats", "kl_per_sample"),
    "penalty": Quantity("penalty of the anchor", "", "penalty"),
    "objective": Quantity("forgetting objective U", "", "objective"),
    "entropy": Quantity("entropy, forget set", "nats", "entropy"),
    "forget_accuracy": Quantity("accuracy, forget set", "1", "forget_accuracy", spans=False),
    "forget_error": Quantity("errors, forget set", "1", "forget_error", spans=False),
    "ue_loss": Quantity("L_UE above its start", "", "losses above their start", spans=False),
    "ra_loss": Quantity("L_RA above its start", "", "losses above their start", spans=False),
    "vae_loss": Quantity("loss of the autoencoder", "", "loss of the autoencoders"),
    "forget_vae_loss": Quantity("loss of the forget set's autoencoder", "", "loss of the autoencoders"),
    "retain_agreement": Quantity("agreement with the original, retain", "1", "agreement with the original", False),
    "forget_agreement": Quantity("agreement with the original, forget", "1", "agreement with the original", False),
    "retain_turned": Quantity("1 − cosine to the original, retain", "", "1 − cosine to the original", spans=False),
    "forget_turned": Quantity("1 − cosine to the original, forget", "", "1 − cosine to the original", spans=False),
    "taken_for_class": Quantity("forget set still taken for the class", "1", "taken_for_class", spans=False),
    "leak": Quantity("hidden words still said", "1", "leak", spans=False),
    "utility": Quantity("ROUGE-L on the anchors", "1", "utility", spans=False),
    "lr": Quantity("learning rate", "", "lr", spans=False),
    "rate": Quantity("rate η of a step", "", "rate"),
}
DASHES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (3, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (1, 1.2)))
MARKERS, LIGHTEST = "os^Dv", 0.82  # beyond, the colours are too light for white paper
ALONE = Look(INK, "o", "-")  # of what is alone in its panel
# In one panel a name looks alike in every figure; others take what is left.
NAMED = {
    "forget_loss": Look(VERMILION, "o", "-"),
    "retain_loss": Look(GREEN, "s", (0, (6, 1.5))),
    "tau": Look(INK, "", (0, (1, 1.2))),
    "loss": Look(GREY, "v", (0, (3, 1.5))),
    "holdout_loss": Look(SKY, "d", (0, (5, 2))),
}
SPARE = [Look(c, m, d) for c, m, d in ((PURPLE, "^", (0, (6, 1.5, 1, 1.5))), (ORANGE, "P", (0, (2, 1))))]


def quantity(name: str, loss_unit: str = "") -> Quantity:
    """Return what a recorded name stands for.

    Args:
        name: as recorded.
        loss_unit: unit of the task's loss, where it is known.

    Returns:
        A known quantity; of other names those that end in ``loss`` are losses, and the rest has a panel of its own.

    >>> quantity("retain_loss", "nats").axis, quantity("hinge_active").axis, quantity("odd_number").axis
    ('retain loss, nats', 'steps with the hinge active, %', 'odd number')
    """
    words = name.replace("_", " ")
    other = Quantity(words, LOSS, LOSS) if name.endswith("loss") else Quantity(words, "", name)
    found = KNOWN.get(name, other)
    return replace(found, unit=loss_unit) if found.unit == LOSS else found


def series(log: Mapping[str, Any]) -> dict[str, Pairs]:
    """Return what a log holds of numbers recorded step by step: step and value, None for NaN and infinity.

    A level that was recorded once, such as τ where it stays, is a level line below or above its curve.

    >>> series({"loss": [[2, 0.7], [4, "nan"]], "steps": 4, "head": [1, 2], "counts": [[0, {"size": 3}]]})
    {'loss': [(2.0, 0.7), (4.0, None)]}
    >>> series({"tau": 0.5, "forget_loss": [[0, 0.1], [20, 0.3], [40, 0.5]]})["tau"]
    [(0.0, 0.5), (40.0, 0.5)]
    """
    found = {name: value for name, value in log.items() if isinstance(value, list) and all(map(_point, value))}
    pairs: dict[str, Pairs] = {name: [(float(s), _finite(v)) for s, v in value] for name, value in found.items()}
    pairs = {name: points for name, points in pairs.items() if any(v is not None for _, v in points)}
    for level, curve in LEVELS.items():
        value = _finite(log.get(level))
        if value is not None and curve in pairs:
            steps = [step for step, _ in pairs[curve]]
            pairs[level] = [(step, value) for step in dict.fromkeys((min(steps), max(steps)))]
    return pairs


def _point(pair: Any) -> bool:
    two = isinstance(pair, list | tuple) and len(pair) == 2
    return two and type(pair[0]) in (int, float) and (isinstance(pair[1], int | float) or pair[1] in NOT_FINITE)


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def points(pairs: Pairs) -> list[tuple[float, float]]:
    """Return step and value in the order of steps, NaN for what is not finite."""
    return sorted((float(step), math.nan if value is None else float(value)) for step, value in pairs)


def panels(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return recorded names by panel: quantities of one unit together, known ones first and in their own order.

    >>> panels(["lr", "odd", "forget_loss", "tau", "alpha"])
    [('forget_loss', 'tau'), ('alpha',), ('lr',), ('odd',)]
    """
    order = list(KNOWN)
    ranked = sorted(names, key=lambda n: order.index(n) if n in order else order.index("tau") if LOSS in n else 99)
    found: dict[str, list[str]] = {}
    for name in ranked:
        found.setdefault(quantity(name).panel, []).append(name)
    return [tuple(some) for some in found.values()]


def shared(names: Sequence[str], loss_unit: str = "") -> Quantity:
    """Return what a panel of several names shows: their one quantity, or numbers of several kinds.

    >>> shared(["tau", "forget_loss"], "nats").axis, shared(["alpha", "lr"]).axis
    ('loss, nats', 'α and learning rate')
    """
    found = [quantity(name, loss_unit) for name in names]
    if len({q.panel for q in found}) == 1:
        return replace(found[0], label=found[0].panel.replace("_", " "))
    units = {q.unit for q in found}
    unit = units.pop() if len(units) == 1 else ""
    return Quantity(listed([q.label for q in found]), unit, spans=all(q.spans for q in found))


def named(names: Sequence[str]) -> dict[str, Look]:
    """Return how each of several names is drawn in a panel that they share."""
    spare = [SPARE[i % len(SPARE)] for i in range(len(names))]
    others = [name for name in names if name not in NAMED]
    return {name: NAMED.get(name) or spare[others.index(name)] for name in names}


def ramp(n: int) -> list[Look]:
    """Return how each of n ordered values is drawn: dark to light, and by dashes and markers told apart in grey too."""
    colours = [to_hex(c) for c in colormaps["viridis"](np.linspace(0.0, LIGHTEST, max(n, 2)))[:n]]
    return [Look(colour, MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)]) for i, colour in enumerate(colours)]
