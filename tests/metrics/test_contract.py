"""The contract of every discovered metric and attack; a new file in one of the two folders is tested by being there."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contract import (
    DEGENERATE,
    TASKS,
    Case,
    Setting,
    check_attack_declared,
    check_declared,
    check_degenerate,
    check_harmless,
    check_invariant,
    check_known,
    check_nothing_from_nothing,
    check_reference,
    run,
    setting,
)
from expunge import attacks, metrics
from expunge.data import Data
from expunge.evaluate import evaluate
from expunge.evidence import Outputs, Shadow, collect
from expunge.metric import Audit, Found, Metric, Number, Unavailable, Value
from expunge.metrics import divergence as divergence_module
from expunge.metrics.accuracy import Accuracy
from expunge.metrics.divergence import Divergence
from expunge.metrics.loss import Loss
from expunge.metrics.membership import Membership
from expunge.noise import Noise
from expunge.task import Quantile, Regression
from expunge.train import Recipe
from metrics.test_answers import HALF, KNOWS, audit_of, spoken
from pairs import TAP, audit, said
from worlds import QUIET

D = torch.float64
KINDS = tuple(TASKS)
FAMILIES, ATTACKS = metrics.names(), attacks.names()
QUICK: dict[str, dict[str, Any]] = {  # of families that run the model again
    "ain": {"cap": 30, "alpha": 0.5, "limit": 16},
    "relearn": {"cap": 20, "limit": 16},
    "robustness": {"steps": 3, "draws": 2, "limit": 16},
}


def made(family: str) -> Metric:
    return metrics.load(family)(**QUICK.get(family, {}))


@cache
def audited(kind: str) -> Audit:
    return setting(kind).audit()


# Known answers: one entry a family and one an attack, each small enough to be worked out by hand.


def sure(labels: list[int], wrong: int = 0, classes: int = 3) -> Outputs:
    """Return outputs that give these labels, but the last ``wrong`` of them the next class."""
    target = torch.tensor(labels)
    right = torch.arange(len(labels)) < len(labels) - wrong
    return said(8.0 * F.one_hot(torch.where(right, target, (target + 1) % classes), classes), target)


def chances(*rows: tuple[float, ...], labels: list[int] | None = None) -> Outputs:
    """Return outputs that give these probabilities, labels 0 unless told."""
    return said(torch.tensor(rows, dtype=D).log(), torch.tensor(labels or [0] * len(rows)))


def of_label(*p: float) -> Outputs:
    """Return outputs over two classes that give the label these probabilities."""
    return chances(*((x, 1 - x) for x in p))


def accuracy() -> Case:
    """52 of the first 64 right and 29 of the last 36: 81 % of the samples, 80.9 % as the mean of two batches."""
    labels = [0] * 100
    right = [i < 52 or 64 <= i < 93 for i in range(100)]
    outputs = said(torch.tensor([[1.0, 0.0] if r else [0.0, 1.0] for r in right]), torch.tensor(labels))
    flipped = sure([0, 0, 1, 1, 2])  # true labels 0, 0, 1, 2, 0: three of five are known as what they are
    data = Data.from_arrays(torch.zeros(5, 1), [0, 0, 1, 1, 2], columns={"clean": [0, 0, 1, 2, 0]}, name="forget")
    want: dict[str, float | str] = {"accuracy/test": 0.81, "accuracy/forget": 1.0, "accuracy/forget_clean": 0.6}
    want["accuracy/retain"] = "there are no samples in retain"
    return Case(audit({"test": outputs, "forget": flipped}, data={"forget": data}), want)


def loss() -> Case:
    """Three samples of class 0 at ln 2 and one of class 1 at ln 8: 1.5 ln 2, where the mean over classes is 2 ln 2."""
    half, eighth = (0.5, 0.5), (0.875, 0.125)
    outputs = chances(half, half, half, eighth, labels=[0, 0, 0, 1])
    return Case(audit({"test": outputs}), {"loss/test": 1.5 * math.log(2), "loss/retain": "there are no samples in"})


P = chances((0.7, 0.2, 0.1), (0.1, 0.8, 0.1))
Q = chances((1 / 3, 1 / 3, 1 / 3), (0.2, 0.3, 0.5))


def divergence() -> Case:
    return Case(audit({"forget": P}, {"forget": Q}), {"divergence/js/forget": (0.0748064 + 0.1402278) / 2})


def activation() -> Case:
    return Case(audit({"forget": P}, {"forget": Q}), {"activation/l2/forget": 0.5513401})


class Told(nn.Module):
    """A network with weights drawn anew that answers from a table, by the number of the sample."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.drawn = nn.Linear(4, 4)
        self.register_buffer("table", table)

    def forward(self, x: Tensor) -> Tensor:
        return self.table[x[:, 0].long()] + 0 * self.drawn.weight.sum()  # type: ignore[no-any-return]


def zrf() -> Case:
    x = Data.from_arrays(torch.arange(2.0)[:, None], [0, 0], name="forget")
    own = audit({"forget": P}, data={"forget": x}, new_model=lambda: Told(Q.outputs), runtime=QUIET)
    return Case(replace(own, models={"model": Told(P.outputs)}), {"zrf/forget": 0.8448856})


def linear(*weights: float) -> nn.Module:
    layer = nn.Linear(len(weights), 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weights]))
    return layer


def weights() -> Case:
    models = {"model": linear(1, 2, 2), "retrained": linear(1, 1, 0), "original": linear(1, 2, 5)}
    want = {"to_retrained": 5**0.5, "to_retrained_normalised": 5**0.5 / 3, "to_original": 3.0}
    return Case(replace(audit({"forget": P}), models=models), {f"weights/{k}": v for k, v in want.items()})


def similarity() -> Case:
    """Features turned by 90 degrees and made three times as long; of four predictions three agree."""
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0], [1.0, 1.0]])
    own, other = sure([0, 1, 2, 0]), sure([0, 1, 2, 0], wrong=1)
    turned = 3 * x @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    pair = replace(own, features={TAP: x}), replace(other, features={TAP: turned})
    want = {"similarity/cka/forget": 1.0, "similarity/agreement/forget": 0.75}
    return Case(audit({"forget": pair[0]}, {"forget": pair[1]}), want)


def flips() -> Case:
    """Of ten samples the original has the first six right, the model the last five."""
    labels = [0] * 10
    before = said(_right([i < 6 for i in range(10)]), torch.tensor(labels))
    now = said(_right([i >= 5 for i in range(10)]), torch.tensor(labels))
    want = {"flips/lost/test": 0.5, "flips/gained/test": 0.4}
    return Case(audit({"test": now}, original={"test": before}), want)


def _right(right: list[bool]) -> Tensor:
    return torch.tensor([[1.0, 0.0] if r else [0.0, 1.0] for r in right])


def tow() -> Case:
    own = {"forget": sure([0] * 10, wrong=9), "retain": sure([1] * 50, wrong=1), "test": sure([2] * 100, wrong=26)}
    other = {"forget": sure([0] * 10, wrong=10), "retain": sure([1] * 50), "test": sure([2] * 100, wrong=27)}
    return Case(audit(own, other), {"tow/tow": 0.87318})


def paired() -> Case:
    """Margins are differences of two logits: 3 and 1 against 1 and 0 on forget, 2 against 1 on two unseen samples."""

    def margins(*m: float) -> Outputs:
        return said(torch.tensor([[v, 0.0] for v in m], dtype=D), torch.zeros(len(m), dtype=torch.long))

    own = {"forget": margins(3, 1), "test": margins(2, 2)}
    other = {"forget": margins(1, 0), "test": margins(1, 1)}
    p = [1 / (1 + math.exp(-v)) for v in (3, 1, 1, 0)]
    want = {"gap": ((p[0] - p[2]) + (p[1] - p[3])) / 2, "shift": 1.5, "excess": 0.5}
    known: dict[str, float | str] = {f"paired/{k}": v for k, v in want.items()}
    return Case(audit(own, other), known | {"paired/distance": "it is a distance of regression"})


def probe() -> Case:
    """Each class has an axis of its own, and forget samples another than unseen ones of their class."""

    def featured(labels: list[int], more: int = 0) -> Outputs:
        x = F.one_hot(torch.tensor(labels), 5).double()
        x[:, 4] = more
        return replace(sure(labels, classes=4), features={TAP: x})

    own = {"forget": featured([2] * 12, 1), "retain": featured([0, 1, 3] * 10), "test_forget": featured([2] * 15)}
    want: dict[str, float | str] = {
        "probe/one_shot": 1.0,
        "probe/membership": 1.0,
        "probe/label": "of a forgotten class",
    }
    return Case(audit(own, kind="class", target=2), want)


def known_by_heart(wrong: int) -> tuple[nn.Module, Audit]:
    """Return a network that copies its one-hot inputs, and the audit of it: forget labels are right but for some."""
    network = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        network.weight.copy_(20 * torch.eye(3))
    data, evidence = {}, {}
    for name, labels in (("forget", [0, 1, 2, 0]), ("retain", [0, 1, 2] * 3)):
        x = torch.tensor(labels)
        y = torch.where(torch.arange(len(x)) < wrong, (x + 1) % 3, x) if name == "forget" else x
        data[name] = Data.from_arrays(F.one_hot(x, 3).float(), y, name=name)
        evidence[name] = said(20 * F.one_hot(x, 3), y)
    models = {"model": network, "original": copy.deepcopy(network)}
    return network, replace(audit(evidence, original=evidence, data=data, runtime=QUIET), models=models)


def relearn() -> Case:
    """A model that never forgot is back before any step; three of four are right, one of which is the few."""
    _, own = known_by_heart(0)
    want: dict[str, float | str] = {
        "relearn/steps": 0.0,
        "relearn/few": 1.0,
        "relearn/ain": "there is no retrained model to compare with",
    }
    return Case(own, want, {"few_steps": 0, "curve": (0,)})


def robustness() -> Case:
    """Answers with margins of 20 are moved neither by rounding nor by noise of 2 %, nor by steps on what is right."""
    _, own = known_by_heart(1)
    return Case(own, {f"robustness/{name}": 0.75 for name in ("int8", "noise", "finetune")})


def retained() -> Case:
    """5 of 6 pairs of confidences; margins fall by 2 and 0.5 of forgotten samples, by 1 and 0.5 of retained ones."""

    def margins(*m: float) -> Outputs:
        return said(torch.tensor([[v, 0.0] for v in m], dtype=D), torch.zeros(len(m), dtype=torch.long))

    own = {"forget": margins(1, 2.5), "retain": margins(3, 1), "test": margins(2, 0.5, 0)}
    before = {"forget": margins(3, 3), "retain": margins(4, 1.5)}
    return Case(audit(own, original=before), {"retained/auc": 5 / 6, "retained/drop_auc": 2.5 / 4})


def cost() -> Case:
    models = {"model": linear(1, 2, 3), "original": linear(1, 2, 4)}
    edit = {"seconds": 0.5, "total_seconds": 0.75, "peak_memory": 1024.0}
    return Case(replace(audit({"forget": P}), models=models, edit=edit), {"cost/seconds": 0.5, "cost/changed": 1 / 3})


def canaries() -> Case:
    """Losses ln(1/p): 0.9 is below all three, 0.3 ties with one: 3.5 of 6 pairs."""
    parts = {
        "canary": of_label(0.9, 0.3),
        "canary_kept": of_label(0.95, 0.99),
        "canary_unseen": of_label(0.8, 0.5, 0.3),
    }
    return Case(audit(parts), {"canaries/forgotten": 3.5 / 6, "canaries/kept": 1.0})


def backdoor() -> Case:
    """Of eight images with the trigger of class 2 six are taken for it."""
    return Case(audit({"triggered": sure([2] * 8, wrong=2)}), {"backdoor/success": 0.75})


def gaussian() -> Case:
    """Logits ±x₀: the loss falls along x₀ for class 0, along −x₀ for class 1; a score is ∓ξ₀/ε, whatever else ξ is."""
    data = Data.from_arrays(torch.zeros(4, 3, dtype=D), [0, 1, 0, 1], name="forget")
    noisy, ids = Noise(deviation=0.5).plant(data, 0.99)
    assert ids == data.ids
    drawn = noisy.read(range(4)).inputs
    assert isinstance(drawn, Tensor)
    sides = nn.Linear(3, 2, bias=False, dtype=D)
    with torch.no_grad():
        sides.weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]))
    want = float((drawn[:, 0] * torch.tensor([-1, 1, -1, 1])).mean() / 0.5)
    given = audit({"forget": sure([0, 1, 0, 1])}, data={"forget": noisy}, models={"model": sides}, runtime=QUIET)
    return Case(given, {"gaussian/score": want})


def predictions() -> Case:
    """Of ten samples of the forgotten class 3 eight go to class 9, one to 1, and one stays; retrained spreads them."""

    def answers(*labels: int) -> Outputs:
        return said(F.one_hot(torch.tensor(labels), 10).double(), torch.full((10,), 3))

    own, other = answers(*[9] * 8, 1, 3), answers(*[9] * 4, *[1] * 3, *[5] * 3)
    want: dict[str, float | str] = {"predictions/one_class": 0.8, "predictions/distance": 0.5}
    return Case(audit({"test_forget": own}, {"test_forget": other}, kind="class", target=3), want)


def appearance() -> Case:
    """Of two forgotten questions a knowing network names whom they are about in both answers, the fact in one."""
    return Case(audit_of(KNOWS), {"appearance/name/forget": 1.0, "appearance/secret/forget": 0.5})


def utility() -> Case:
    """Said 4 9 10 for 4 5, and 11 for 7: F1 of 2/5 and 0."""
    return Case(audit_of(HALF), {"utility/rouge/forget": 0.2, "utility/exact/forget": 0.0})


def subgroups() -> Case:
    """Of 20 samples of class 0 the original has 18 right and the model 12, of 10 of class 1 both have 9."""
    labels = torch.tensor([0] * 20 + [1] * 10)

    def outputs(right: int) -> Outputs:
        hit = torch.tensor([i < right if i < 20 else i < 29 for i in range(30)])
        return said(F.one_hot(torch.where(hit, labels, 1 - labels), 2), labels)

    want = {"subgroups/worst_change": -0.3, "subgroups/spread": 0.3}
    return Case(audit({"test": outputs(12)}, original={"test": outputs(18)}), want)


# Without classes, and with two of them.


def real(predictions: list[float], targets: list[float]) -> Outputs:
    """Return one prediction a sample, (N, 1), and its target, (N,)."""
    outputs, target = torch.tensor(predictions, dtype=D)[:, None], torch.tensor(targets, dtype=D)
    return Outputs(outputs, outputs, target, Regression().loss(outputs, target))


def error() -> Case:
    """Targets to retain 1, 2, 9: their median is 2 and their mean 4."""
    parts = {"forget": real([1, 5], [4, 5]), "retain": real([0, 0, 0], [1, 2, 9])}
    want: dict[str, float | str] = {
        "error/mae/forget": 1.5,
        "error/rmse/forget": 4.5**0.5,
        "error/mae_constant/forget": 2.5,
        "error/rmse_constant/forget": 0.5**0.5,
        "error/mae/test": "there are no samples in test",
    }
    return Case(audit(parts, task=Regression()), want)


def wasserstein() -> Case:
    own, other = real([30, 20, 40, 25], [0] * 4), real([50, 35, 22, 30], [0] * 4)
    want: dict[str, float | str] = {"wasserstein/forget": 5.5, "wasserstein/test": "there are no samples in test"}
    return Case(audit({"forget": own}, {"forget": other}, task=Regression()), want)


def error_attack() -> Case:
    """Errors up to 0.4 of retained samples and from 2 on of unseen ones: of five forgotten three are like the first."""
    zeros = [0.0] * 8
    parts = {
        "retain": real([0.1, 0.2, 0.3, 0.4, 0.1, 0.2, 0.3, 0.4], zeros),
        "test": real([2, 2.2, 2.4, 2.6, 2, 2.2, 2.4, 2.6], zeros),
        "forget": real([0.15, -0.35, 2.1, -2.5, 0.25], zeros[:5]),
    }
    return Case(audit(parts, task=Regression()), {"error_attack/auc": 1.0, "error_attack/members": 0.6})


def ain() -> Case:
    """One step of gradient descent on w·1 = 0 at the rate 1/4 halves w: 4 needs two steps to 1.05, and 16 four."""

    def scaled(weight: float) -> nn.Module:
        layer = linear(weight)
        return layer.double().eval()

    x = torch.ones(4, 1, dtype=D)
    parts = {name: Data.from_arrays(x, 0 * x, name=name) for name in ("forget", "retain", "test_forget")}
    models = {"model": scaled(4), "retrained": scaled(16), "original": scaled(1)}
    said = {
        role: {n: collect(m, Regression(), d, runtime=QUIET) for n, d in parts.items()} for role, m in models.items()
    }
    recipe = Recipe(batch_size=3, lr=0.25, momentum=0.0, weight_decay=0.0)
    own = audit(said["model"], said["retrained"], said["original"], task=Regression(), data=parts, runtime=QUIET)
    return Case(replace(own, models=models, recipe=recipe), {"ain/steps": 2.0, "ain/index": 0.5}, {"alpha": 0.05})


def two(*p: float, labels: list[int]) -> Outputs:
    """Return outputs of a two-class model with these chances of class 1."""
    return chances(*((1 - x, x) for x in p), labels=labels)


def decisions() -> Case:
    """Eight of nine pairs are in order; at a threshold of 0.5 two of six decisions differ from the original's."""
    own = two(0.9, 0.8, 0.4, 0.6, 0.2, 0.1, labels=[1, 1, 1, 0, 0, 0])
    before = two(0.9, 0.3, 0.6, 0.7, 0.2, 0.1, labels=[1, 1, 1, 0, 0, 0])
    want: dict[str, float | str] = {
        "decisions/auc/test": 8 / 9,
        "decisions/ks/test": 2 / 3,
        "decisions/rate/test": 0.5,
        "decisions/flipped/original": 2 / 6,
        "decisions/calibration/test": "too few samples to fill 10 bins: 6 instead of 50",
        "decisions/auc/forget": "there are no samples in forget",
    }
    return Case(audit({"test": own}, original={"test": before}), want)


def stability() -> Case:
    """Two cells of ten each before, of five and fifteen after: (5/20 − 1/2) ln(1/2) + (15/20 − 1/2) ln(3/2)."""
    before = two(*[0.2] * 10, *[0.8] * 10, labels=[0] * 20)
    own = two(*[0.2] * 5, *[0.8] * 15, labels=[0] * 20)
    want: dict[str, float | str] = {"stability/original/test": 0.25 * math.log(3)}
    return Case(audit({"test": own}, original={"test": before}), want, {"bins": 2})


def segments() -> Case:
    """Ten scores in the north fall by 0.2 and four of them below one half; ten in the south rise by 0.1."""
    labels, places = [0, 1] * 10, ["north"] * 10 + ["south"] * 10
    before = two(*[0.6] * 4, *[0.9] * 6, *[0.3] * 10, labels=labels)
    own = two(*[0.4] * 4, *[0.7] * 6, *[0.4] * 10, labels=labels)
    data = Data.from_arrays(torch.zeros(20, 1), labels, columns={"place": places}, name="test")
    want: dict[str, float | str] = {"segments/score_change": 0.2, "segments/rate_change": 0.4}
    return Case(audit({"test": own}, original={"test": before}, data={"test": data}), want)


def coverage() -> Case:
    """Of four targets the interval holds three, ends included; its widths are 2, 2, 4 and 0."""
    outputs = torch.tensor([[0, 1, 2], [1, 1, 3], [-2, 0, 2], [5, 5, 5]], dtype=D)
    target, task = torch.tensor([2.0, 0.9, 0.0, 5.0], dtype=D), Quantile()
    said = Outputs(outputs, task.predictions(outputs), target, task.loss(outputs, target))
    return Case(audit({"test": said}, task=task), {"coverage/test": 0.75, "coverage/width/test": 2.0})


# By ranks: 2 forget samples against 3 unseen ones, 6 pairs.
FORGET, UNSEEN = of_label(0.9, 0.6), of_label(0.8, 0.55, 0.3)


def ranked(attack: str, auc: float) -> Case:
    return Case(audit({"forget": FORGET, "test": UNSEEN}), {f"membership/{attack}/auc": auc})


def paired_attack() -> Case:
    """Odds 9 and 1.5 against 1 and 1 of retrained, unseen 4, 11/9 and 3/7 against 1 each: 5 of 6 pairs."""
    even = {"forget": of_label(0.5, 0.5), "test": of_label(0.5, 0.5, 0.5)}
    return Case(audit({"forget": FORGET, "test": UNSEEN}, even), {"membership/paired/auc": 5 / 6})


def with_entropies(*values: float) -> Outputs:
    """Return outputs over eight classes with these entropies, found by bisection."""
    rows = []
    for value in values:
        low, high = 0.0, 60.0
        for _ in range(200):
            middle = (low + high) / 2
            p = torch.tensor([middle] + [0.0] * 7, dtype=D).softmax(0)
            low, high = (middle, high) if float(-torch.xlogy(p, p).sum()) > value else (low, middle)
        rows.append([low] + [0.0] * 7)
    return said(torch.tensor(rows, dtype=D))


def entropy_lr() -> Case:
    own = {
        "retain": with_entropies(0, 0.1, 0.2, 0.3, 0.4, 0.5),
        "test": with_entropies(0.6, 0.9, 1.2),
        "forget": with_entropies(0.05, 0.55, 0.65, 1.0),
    }
    return Case(audit(own), {"membership/entropy_lr": 0.5})


def svc() -> Case:
    own = {
        "retain": of_label(0.99, 0.98, 0.97, 0.95, 0.999, 0.96),
        "test": of_label(0.40, 0.55, 0.62, 0.30, 0.70, 0.90),
        "forget": of_label(0.98, 0.35, 0.60, 0.97, 0.50),
    }
    return Case(audit(own), {"membership/svc": 0.6})


def neighbours() -> Case:
    """Class 1 is gone and lies nearest to class 0, for which the model takes three of its four samples."""
    to_zero, to_two = (0.9, 0.05, 0.05), (0.05, 0.05, 0.9)
    own = {
        "forget": chances(to_zero, to_zero, to_zero, to_two, labels=[1] * 4),
        "retain": chances(to_zero, to_two, labels=[0, 2]),
        "test": chances(*[to_zero] * 4, *[to_two] * 4, labels=[0] * 4 + [2] * 4),
    }
    other = {split: o if split != "forget" else chances(*[to_zero] * 4, labels=[1] * 4) for split, o in own.items()}
    return Case(audit(own, other, kind="class", target=1), {"membership/neighbours": 0.75})


def named(split: str, outputs: Outputs) -> Outputs:
    return replace(outputs, ids=tuple(f"{split}/{i}" for i in range(len(outputs))))


def odds(*x: float) -> Outputs:
    """Return outputs over two classes with these odds of the label."""
    return of_label(*(v / (1 + v) for v in x))


def shadowed(attack: str, forget: Outputs, unseen: Outputs, others: list[list[Outputs]], auc: float) -> Case:
    """Return what an attack finds beside shadow models of these outputs on forget and unseen samples."""
    splits = ("forget", "test")
    own = {split: named(split, o) for split, o in zip(splits, (forget, unseen), strict=True)}
    shadows = [Shadow({s: named(s, o) for s, o in zip(splits, pair, strict=True)}, ()) for pair in others]
    return Case(audit(own), {f"membership/{attack}/auc": auc}, {"shadows": shadows})


def lira() -> Case:
    """Odds beside the geometric mean of two others': 9/4 and 3/2 of the forgotten, 4/4, 1/2 and 3/1.5 of unseen."""
    others = [[odds(2, 0.5), odds(2, 1, 1)], [odds(8, 2), odds(8, 4, 2.25)]]
    return shadowed("lira", odds(9, 1.5), odds(4, 1, 3), others, 5 / 6)


def rmia() -> Case:
    """Chances over 0.65 times another model's plus 0.35: 0.9/0.415 and 0.75/0.675 of forgotten samples.

    Of four unseen ones the ratios are 1, 1, 0.5 and 0.5. A half of them, with one of ratio 1, is the population: both
    forgotten samples exceed all of it and none of the unseen does, though two of these have the highest chances.
    """
    others = [[of_label(0.1, 0.5), of_label(*[0.9] * 4)]]
    whole = 0.65 * 0.9 + 0.35
    return shadowed("rmia", of_label(0.9, 0.75), of_label(whole, whole, whole / 2, whole / 2), others, 1.0)


KNOWN: dict[str, Callable[[], Case]] = {
    "accuracy": accuracy,
    "activation": activation,
    "ain": ain,
    "appearance": appearance,
    "backdoor": backdoor,
    "gaussian": gaussian,
    "canaries": canaries,
    "cost": cost,
    "coverage": coverage,
    "decisions": decisions,
    "divergence": divergence,
    "error": error,
    "error_attack": error_attack,
    "flips": flips,
    "loss": loss,
    "membership": lambda: ranked("loss", 5 / 6),
    "paired": paired,
    "predictions": predictions,
    "probe": probe,
    "relearn": relearn,
    "retained": retained,
    "robustness": robustness,
    "segments": segments,
    "similarity": similarity,
    "stability": stability,
    "subgroups": subgroups,
    "tow": tow,
    "utility": utility,
    "wasserstein": wasserstein,
    "weights": weights,
    "zrf": zrf,
}
SPEAKING = ("appearance", "utility")  # what language models say: of questions and answers alone
KNOWN_OF_ATTACKS: dict[str, Callable[[], Case]] = {
    "confidence": lambda: ranked("confidence", 5 / 6),
    "correctness": lambda: ranked("correctness", 4 / 6),
    "entropy": lambda: ranked("entropy", 4 / 6),
    "entropy_lr": entropy_lr,
    "lira": lira,
    "loss": lambda: ranked("loss", 5 / 6),
    "modified_entropy": lambda: ranked("modified_entropy", 5 / 6),
    "neighbours": neighbours,
    "paired": paired_attack,
    "rmia": rmia,
    "svc": svc,
}


def known(table: dict[str, Callable[[], Case]], name: str, what: str) -> Case:
    """Return the known answer of a name; one without fails."""
    assert name in table, f"the {what} '{name}' has no known answer: add a case worked out by hand to tests/metrics"
    return table[name]()


# The contract.


@pytest.mark.parametrize("family", FAMILIES)
def test_a_metric_declares_itself(family: str) -> None:
    metric = made(family)
    check_declared(metric)
    assert type(metric).__module__.rpartition(".")[2] == family
    assert all(name.split("/")[0] == family for name in metric.numbers)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_declares_itself(name: str) -> None:
    attack = attacks.load(name)
    check_attack_declared(attack)
    assert attack.__module__.rpartition(".")[2] == name
    check_declared(Membership(names=(name,)))


def test_no_two_numbers_share_a_name_or_a_label() -> None:
    numbers = [item for family in FAMILIES for item in made(family).numbers.items()]
    labels = [number.label for _, number in numbers]
    assert len({name for name, _ in numbers}) == len(numbers)
    assert {label for label in labels if labels.count(label) > 1} == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_metric_gives_the_known_answer(family: str) -> None:
    case = known(KNOWN, family, "metric")
    check_known(metrics.load(family)(**case.settings), case)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_gives_the_known_answer(name: str) -> None:
    case = known(KNOWN_OF_ATTACKS, name, "attack")
    check_known(Membership(names=(name,), **case.settings), case)


def test_one_without_a_known_answer_fails() -> None:
    with pytest.raises(AssertionError, match="the metric 'new' has no known answer: add a case worked out by hand"):
        known(KNOWN, "new", "metric")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_order_and_batches_change_nothing(family: str, kind: str) -> None:
    check_invariant(made(family), setting(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_everything_is_left_as_it_was(family: str, kind: str) -> None:
    check_harmless(made(family), setting(kind).audit())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_of_retrained_has_no_gap_to_it(family: str, kind: str) -> None:
    check_reference(made(family), setting(kind))


def test_in_an_evaluation_a_copy_of_retrained_has_no_gap_in_any_number() -> None:
    at = setting("class")
    train = at.data["forget"]
    whole = replace(train, positions=np.sort(np.concatenate([train.positions, at.data["retain"].positions])))
    models = {"original": at.models["original"], "retrained": at.models["retrained"]}
    scores = evaluate(
        {**models, "copy": copy.deepcopy(at.models["retrained"])},
        at.task,
        train=whole,
        test=at.data["test"],
        holdout=at.data["holdout"],
        scenario=at.scenario,
        metrics=[made(family) for family in FAMILIES],
        new_model=at.new_model,
        runtime=QUIET,
    )
    gaps = {name: gap.x for name, gap in scores.gaps["copy"].items() if not name.startswith("cost/")}
    own = gaps.pop("gaussian/score")  # to 0, which is what any model that never saw the noise has on average
    assert own == scores["copy"]["gaussian/score"].x == scores["retrained"]["gaussian/score"].x  # type: ignore[union-attr]
    assert len(gaps) > 50
    assert {name: x for name, x in gaps.items() if abs(x) > 1e-9} == {}
    assert sum(abs(gap.x) > 1e-3 for gap in scores.gaps["no_op"].values()) > 30


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_comes_there_is_a_number_in_range_or_a_declared_reason(family: str, case: str) -> None:
    for kind in KINDS:
        check_degenerate(made(family), DEGENERATE[case](audited(kind)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_comes_of_nothing(family: str, kind: str) -> None:
    check_nothing_from_nothing(made(family), audited(kind))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_is_there_in_some_setting(family: str) -> None:
    """Else nothing above has looked at it."""
    audits = [spoken()] if family in SPEAKING else [setting(kind).audit() for kind in KINDS]
    found = [run(made(family), audit) for audit in audits]
    never = {name for name in found[0] if not any(isinstance(f[name], Value) for f in found)}
    rare = {name for name in never if name.endswith("tpr_at_fpr_0.001")}  # a thousand unseen samples
    assert never == rare


# Deliberately broken copies, each of which must fail.


def fails(check: Callable[[], object], why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        check()


def test_swapped_divergences_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """KL(m‖p) in place of KL(p‖m): zero for equal distributions and symmetric all the same."""

    def swapped(p_logits: Tensor, q_logits: Tensor, base: str = "nats") -> Tensor:
        p, q = p_logits.softmax(dim=1), q_logits.softmax(dim=1)
        m = (p + q) / 2
        return (m * (m.log() - (p.log() + q.log()) / 2)).sum(dim=1)

    monkeypatch.setattr(divergence_module, "js", swapped)
    fails(lambda: check_known(Divergence(), divergence()), r"divergence/js/forget = .* not 0.1075")


@dataclass(frozen=True, kw_only=True)
class OverClasses(Loss):
    """The mean over classes of their mean losses."""

    def _one(self, audit: Audit, split: str, unit: str) -> Value | Unavailable:
        value = super()._one(audit, split, unit)
        if isinstance(value, Unavailable):
            return value
        own = audit.said(split)
        means = [float(own.loss[own.target == c].mean()) for c in own.target.unique()]
        return replace(value, x=sum(means) / len(means), low=0.0, high=math.inf)


@dataclass(frozen=True, kw_only=True)
class OverBatches(Accuracy):
    """The mean over batches of 64 of their accuracies."""

    def _one(self, audit: Audit, split: str) -> Value | Unavailable:
        value = super()._one(audit, split)
        if isinstance(value, Unavailable):
            return value
        own = audit.said(split)
        parts = own.prediction.eq(own.target).double().split(64)
        return replace(value, x=float(torch.stack([p.mean() for p in parts]).mean()), low=0.0, high=1.0)


def test_means_over_classes_fail() -> None:
    fails(lambda: check_known(OverClasses(), loss()), r"loss/test = 1\.386.* not 1\.039")


def test_means_over_batches_fail() -> None:
    fails(lambda: check_known(OverBatches(), accuracy()), r"accuracy/test = 0\.809.* not 0\.81")
    fails(lambda: check_invariant(OverBatches(), setting("ids")), "samples mixed accuracy/")


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_turned_round_fail(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    true = attacks.load(name)

    class Turned(true):  # type: ignore[misc, valid-type]
        def score(self, outputs: Outputs, before: Outputs | None = None) -> Tensor:
            return -super().score(outputs, before)

    case = KNOWN_OF_ATTACKS[name]()
    monkeypatch.setattr(attacks, "load", lambda _: Turned)
    if name == "entropy_lr":  # half of the forget set is called member, whichever way round
        retain = case.audit.said("retain")
        case = replace(case, audit=replace(case.audit, evidence={**case.audit.evidence, ("model", "forget"): retain}))
        case = replace(case, want={"membership/entropy_lr": 1.0})
    fails(lambda: check_known(Membership(names=(name,), **case.settings), case), rf"membership/{name}.* = .*, not")


@dataclass(frozen=True, kw_only=True)
class Broken(Accuracy):
    """An accuracy that breaks one rule, chosen by a field."""

    fault: str = ""

    @property
    def numbers(self) -> dict[str, Number]:
        found = super().numbers
        name = "accuracy/test"
        if self.fault == "no label":
            found[name] = replace(found[name], label=" ")
        if self.fault == "empty range":
            found[name] = replace(found[name], range=(1.0, 1.0))
        if self.fault == "ideal out of range":
            found[name] = replace(found[name], target=2.0)
        return found

    def measure(self, audit: Audit) -> Found:
        found = super().measure(audit)
        name, value = "accuracy/test", found["accuracy/test"]
        if self.fault == "undeclared name":
            found["accuracy/more"] = value
        if self.fault == "name left out":
            del found[name]
        if self.fault == "default number":
            found = {k: Value.single(0.0) if isinstance(v, Unavailable) else v for k, v in found.items()}
        if self.fault == "reason of its own":
            found = {k: Unavailable("not today") if isinstance(v, Unavailable) else v for k, v in found.items()}
        if self.fault == "no reason":
            found = {k: Unavailable(" ") if isinstance(v, Unavailable) else v for k, v in found.items()}
        if not isinstance(value, Value):
            return found
        if self.fault == "bare number":
            found[name] = cast(Any, value.x)
        if self.fault == "out of range":
            found[name] = replace(value, x=1.01, high=2.0)
        if self.fault == "percent":
            found[name] = Value(100 * value.x, 0.0, 100.0, value.n)
        if self.fault == "NaN":
            found[name] = replace(value, x=math.nan)
        if self.fault == "outside its interval":
            found[name] = replace(value, low=value.x + 1e-3, high=1.0)
        if self.fault == "certain of one":
            found[name] = Value(value.x, value.x, value.x, 1)
        if self.fault == "first half":
            half = audit.said("test").take(torch.arange(len(audit.said("test")) // 2))
            found[name] = replace(value, x=float(half.prediction.eq(half.target).double().mean()), low=0.0, high=1.0)
        if self.fault == "unseeded":
            found[name] = replace(value, x=float(np.random.default_rng().random()), low=0.0, high=1.0)
        if self.fault == "global random state":
            torch.rand(1)
        if self.fault == "trains the model":
            with torch.no_grad():
                audit.models["model"][0].weight.add_(1e-3)
        if self.fault == "train mode":
            audit.models["model"].train()
        if self.fault == "changes evidence":
            audit.said("test").outputs.mul_(1.001)
        if self.fault == "far from a copy":
            own, other = audit.said("test"), audit.said("test", "retrained")
            at_odds = audit.models["model"] is not audit.models["retrained"] and own.outputs.equal(other.outputs)
            found[name] = replace(value, x=value.x - 0.01 * at_odds, low=0.0)
        if self.fault == "no zero gap":
            audit.kept.gaps[name] = Value(0.01, 0.0, 0.02, 9)
        return found


@pytest.mark.parametrize(
    ("fault", "check", "why"),
    [
        ("no label", check_declared, "accuracy/test has no label"),
        ("empty range", check_declared, "accuracy/test has the range"),
        ("ideal out of range", check_declared, "the ideal of accuracy/test, 2.0, is outside its range"),
        ("undeclared name", lambda m: check_degenerate(m, audited("ids")), "declares .* 2 more and returned .* 3 more"),
        ("name left out", lambda m: check_degenerate(m, audited("ids")), "declares .* and returned"),
        (
            "bare number",
            lambda m: check_degenerate(m, audited("ids")),
            "returned a float for accuracy/test, not a Value",
        ),
        ("out of range", lambda m: check_degenerate(m, audited("ids")), r"accuracy/test = 1\.01 is outside"),
        ("percent", lambda m: check_degenerate(m, audited("ids")), r"accuracy/test = \d\d\.\d+ is outside its range"),
        ("NaN", lambda m: check_degenerate(m, audited("ids")), "accuracy/test = nan is outside"),
        ("outside its interval", lambda m: check_degenerate(m, audited("ids")), "is outside its interval"),
        ("certain of one", lambda m: check_degenerate(m, audited("ids")), "certain of one observation"),
        ("default number", lambda m: check_nothing_from_nothing(m, audited("ids")), "accuracy/forget = .* of nothing"),
        (
            "reason of its own",
            lambda m: check_degenerate(m, DEGENERATE["no test data"](audited("ids"))),
            "accuracy/test.*: 'not today' is not among the declared reasons",
        ),
        ("no reason", lambda m: check_degenerate(m, DEGENERATE["no test data"](audited("ids"))), "without a reason"),
        ("first half", lambda m: check_invariant(m, setting("class")), "samples mixed.* accuracy/test"),
        ("unseeded", lambda m: check_invariant(m, setting("ids")), "the same again accuracy/test"),
        ("global random state", lambda m: check_harmless(m, setting("ids").audit()), "torch's random state moved"),
        ("trains the model", lambda m: check_harmless(m, copied("ids")), "a model or its evidence was changed"),
        ("train mode", lambda m: check_harmless(m, copied("ids")), "a model or its evidence was changed"),
        ("changes evidence", lambda m: check_harmless(m, setting("ids").audit()), "a model or its evidence"),
        ("far from a copy", lambda m: check_reference(m, setting("ids")), "accuracy/test: .* of retrained itself"),
        ("no zero gap", lambda m: check_reference(m, setting("ids")), "the gap of accuracy/test of a copy is 0.01"),
    ],
    ids=lambda v: v if isinstance(v, str) and len(v) < 25 else "",
)
def test_a_broken_rule_fails(fault: str, check: Callable[[Metric], object], why: str) -> None:
    fails(lambda: check(Broken(fault=fault)), why)


def copied(kind: str) -> Audit:
    at: Setting = setting(kind)
    return replace(at, models={role: copy.deepcopy(m) for role, m in at.models.items()}).audit()


def test_nothing_broken_passes() -> None:
    metric = Broken()
    check_declared(metric)
    check_invariant(metric, setting("ids"))
    check_harmless(metric, setting("ids").audit())
    check_reference(metric, setting("ids"))
    check_nothing_from_nothing(metric, audited("ids"))
    check_known(metric, accuracy())


class Undeclared(attacks.load("loss")):  # type: ignore[misc]
    """An attack that needs what is no need."""

    needs: ClassVar[frozenset[str]] = frozenset({"label"})


class Alone(attacks.load("loss")):  # type: ignore[misc]
    """An attack that compares with a model it does not need."""

    against: ClassVar[str | None] = "retrained"


def test_attacks_that_declare_what_is_not_fail() -> None:
    fails(lambda: check_attack_declared(Undeclared), "{'label'} is no need")
    fails(lambda: check_attack_declared(Alone), "it compares with retrained and does not need it")
