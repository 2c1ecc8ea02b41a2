"""A document of two sections with realistic numbers: a class forgotten over five seeds, people over one."""

import copy

import numpy as np
import pytest

from expunge.report import render

HOSTILE = "<script>alert('x')</script> \"q\" & $a_b$ \x1b[31m"
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5Erk"
    "Jggg=="
)

METRICS = [
    ("accuracy/forget", "accuracy, forget set", "1", "as_retrained", "accuracy"),
    ("accuracy/retain", "accuracy, retain set", "1", "as_retrained", "accuracy"),
    ("accuracy/test", "accuracy, test set", "1", "as_retrained", "accuracy"),
    ("accuracy/test_forget", "accuracy, test set, forgotten class", "1", "as_retrained", "accuracy"),
    ("accuracy/test_retain", "accuracy, test set, other classes", "1", "as_retrained", "accuracy"),
    ("loss/forget", "loss, forget set", "nats", "as_retrained", "loss"),
    ("loss/test", "loss, test set", "nats", "as_retrained", "loss"),
    ("membership/entropy_lr", "entropy attack, share taken for members", "1", "as_retrained", "membership"),
    ("membership/loss/auc", "loss attack, AUC", "1", "as_retrained", "membership"),
    ("membership/loss/tpr_at_fpr_0.01", "loss attack, TPR at 1% FPR", "1", "as_retrained", "membership"),
    ("probe/linear", "probe, linear readout of the class", "1", "as_retrained", "probe"),
    ("odd/new", "something new", "widgets", "as_retrained", "odd"),
    ("cost/seconds", "cost, unlearning time", "s", "min", "cost"),
    ("cost/peak_memory", "cost, peak memory", "bytes", "min", "cost"),
]

# The estimates of one section: model, role, then the metrics in their order.
MODELS = [
    (
        "original",
        "original",
        [0.998, 0.997, 0.942, 0.931, 0.943, 0.012, 0.213, 0.83, 0.642, 0.061, 0.97, 4.2, None, None],
    ),
    (
        "retrained",
        "retrained",
        [0.0, 0.996, 0.851, 0.0, 0.945, 6.31, 0.862, 0.06, 0.508, 0.011, 0.71, 3.1, 41.27, 9.1e8],
    ),
    (
        "retrained (other seed)",
        "floor",
        [0.0, 0.997, 0.849, 0.0, 0.943, 6.22, 0.871, 0.07, 0.497, 0.012, 0.70, 3.3, 41.9, 9.1e8],
    ),
    ("no_op", "control", [0.998, 0.997, 0.942, 0.931, 0.943, 0.012, 0.213, 0.83, 0.642, 0.061, 0.97, 4.2, 0.0001, 1e6]),
    ("head_mask", "control", [0.0, 0.995, 0.850, 0.0, 0.944, 9.8, 1.213, 0.22, 0.611, 0.041, 0.97, 4.2, 0.0042, 1e6]),
    ("finetune", "method", [0.31, 0.991, 0.87, 0.28, 0.936, 2.4, 0.492, 0.31, 0.561, 0.022, 0.88, 3.9, 6.12, 8.2e8]),
    ("ssd", "method", [0.003, 0.989, 0.841, 0.002, 0.935, 7.9, 0.99, 0.09, 0.531, 0.016, 0.83, 3.6, 0.873, 4.4e8]),
    ("lfssd", "method", [0.012, 0.978, 0.832, 0.011, 0.924, 5.9, 0.91, 0.12, 0.522, 0.014, 0.79, 3.2, 0.791, 4.4e8]),
]
FLOOR = [0.0, 0.0012, 0.0031, 0.0, 0.0024, 0.11, 0.014, 0.012, 0.009, 0.004, 0.012, 0.21, None, None]
SIGNS = [1, -1, 1, 1, -1]


def number(x, spread, n, unit):
    if n == 1:
        return {"x": x, "low": None, "high": None, "n": 1, "unit": unit}
    low, high = x - spread, x + spread
    if unit == "1":
        low, high = max(low, 0.0), min(high, 1.0)
    return {"x": x, "low": low, "high": high, "n": n, "unit": unit}


def tables_of(n, names):
    """Values, gaps and floor of a section for these models."""
    values, gaps, floor = {}, {}, {}
    goal = dict(zip((m[0] for m in METRICS), MODELS[1][2], strict=True))
    for model, _, row in MODELS:
        if model not in names:
            continue
        values[model], gaps[model] = {}, {}
        for (metric, _, unit, _, _), x in zip(METRICS, row, strict=True):
            if x is None:
                values[model][metric] = {"unavailable": "nothing was unlearned"}
                continue
            spread = {"1": 0.3 * (x * (1 - x)) ** 0.5 * 0.1, "nats": 0.06 * x, "bytes": 0.01 * x}.get(unit, 0.05 * x)
            values[model][metric] = number(x, spread, n, unit)
            if model != "retrained" and not metric.startswith("cost/"):
                gap = number(0.0, spread * 1.3, n, unit) | {"x": x - goal[metric]}
                if n > 1:
                    gap |= {"low": gap["x"] - 1.3 * spread, "high": gap["x"] + 1.3 * spread}
                gaps[model][metric] = gap
    for (metric, _, unit, _, _), x in zip(METRICS, FLOOR, strict=True):
        if x is not None:
            floor[metric] = number(x, x / 2, n, unit)
    return values, gaps, floor


def curves_of(names):
    rng = np.random.default_rng(0)
    edges = np.linspace(0, 10, 41)
    center = {"original": 0.05, "retrained": 6.3, "finetune": 2.4, "ssd": 7.6, "lfssd": 5.7, HOSTILE: 1.0}
    out = {"loss": {"edges": edges.tolist(), "densities": {}}, "roc": {}}
    out["entropy"] = {"edges": np.linspace(0, 2.31, 31).tolist(), "densities": {}}
    for at, model in enumerate(names):
        mean = center.get(model, 0.1)
        forget = np.clip(rng.normal(mean, 0.1 + mean / 4, 500), 0, 9.99)
        test = np.clip(rng.exponential(0.3 + 0.02 * at, 1000), 0, 9.99)
        for quantity, f, t in (("loss", forget, test), ("entropy", forget % 2.3, test % 2.3)):
            bins = out[quantity]["edges"]
            out[quantity]["densities"][model] = {
                "forget": (np.histogram(f, bins)[0] / len(f)).tolist(),
                "test": (np.histogram(t, bins)[0] / len(t)).tolist(),
            }
        fpr = np.concatenate([[0.0], np.geomspace(1e-3, 1, 60)])
        power = {"original": 0.6, "no_op": 0.6, "head_mask": 0.68, "finetune": 0.8, "ssd": 0.9}.get(
            model, 0.95 + at / 99
        )
        out["roc"][model] = {"fpr": fpr.tolist(), "tpr": np.minimum(1, fpr ** min(power, 1.0)).tolist()}
    return out


def section_of(name, n, names, *, layers):
    values, gaps, floor = tables_of(n, names)
    rng = np.random.default_rng(1)
    methods = [m for m in names if dict((a, b) for a, b, _ in MODELS).get(m) == "method"]
    return {
        "name": name,
        "kind": "class",
        "target": 3,
        "text": "Every training sample of class 3 is forgotten.",
        "counts": {"train": 50000, "forget": 5000, "retain": 45000, "holdout": 0, "test": 10000},
        "seeds": n,
        "models": [
            {
                "name": model,
                "role": role,
                "text": f"The {model} row.",
                "settings": {"alpha": 10.0, "dampening": 1.0, "parts": ["a", None]} if role == "method" else {},
                "notes": ["The threshold α lies above n/n_f for 3 of 62 tensors."] if model == "ssd" else [],
                "declined": None,
            }
            for model, role, _ in MODELS
            if model in names
        ],
        "metrics": [dict(zip(("name", "label", "unit", "goal", "group"), m, strict=True)) for m in METRICS],
        "values": values,
        "gaps": gaps,
        "floor": floor,
        "curves": curves_of([m for m in names if m in values]),
        "changed": {m: {layer: float(rng.choice([0, 0.004, 0.2, 0.7, 1.0])) for layer in layers} for m in methods},
        "samples": [],
    }


def build():
    """A fresh document."""
    names = [m for m, _, _ in MODELS]
    blocks = [
        f"layer{i}.{j}.{part}"
        for i in (1, 2, 3, 4)
        for j in (0, 1)
        for part in ("conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight")
    ]
    first = section_of("class 3", 5, names, layers=["conv1.weight", *blocks, "fc.weight", "fc.bias"])
    declined = {
        "name": "unsir",
        "role": "method",
        "text": "Impair, then repair.",
        "settings": {},
        "notes": [],
        "declined": "it forgets whole classes only",
    }
    first["models"].append(declined)
    second = section_of(
        f"people {HOSTILE}",
        1,
        ["original", "retrained", "no_op", "ssd"],
        layers=["fc1.weight", "fc1.bias", "fc2.weight"],
    )
    second |= {"kind": "subject", "text": f"One person's samples {HOSTILE}", "floor": {}}
    second["counts"] = {"train": 280, "forget": 7, "retain": 273, "test": 120}
    second["models"].append(
        {
            "name": HOSTILE,
            "role": "method",
            "text": HOSTILE,
            "settings": {HOSTILE: HOSTILE},
            "notes": [HOSTILE],
            "declined": None,
        }
    )
    second["values"][HOSTILE] = copy.deepcopy(second["values"]["ssd"])
    second["gaps"][HOSTILE] = copy.deepcopy(second["gaps"]["ssd"])
    second["values"][HOSTILE]["loss/forget"] = {"unavailable": HOSTILE}
    del second["gaps"][HOSTILE]["loss/forget"]
    second["metrics"][-3]["label"] = HOSTILE
    second["curves"] = curves_of(["original", "retrained", "ssd", HOSTILE])
    second["changed"][HOSTILE] = {HOSTILE: 0.5, "fc2.weight": 1.0}
    second["samples"] = [
        {"id": HOSTILE, "label": HOSTILE, "image": PIXEL},
        {"id": "train/17", "label": "3", "image": PIXEL},
    ]
    return {
        "kind": "expunge.audit",
        "schema": 1,
        "title": "Audit of a ResNet-18 on CIFAR-10",
        "lead": "One class and one person were removed from two trained classifiers. "
        "This page shows how far each result lies from models that never saw them.",
        "created": "2025-03-04T12:30:00+00:00",
        "versions": {"expunge": "0.1.0", "torch": "2.6.0", "python": "3.11.9"},
        "command": f"expunge audit --project 'x' {HOSTILE}",
        "sections": [first, second],
    }


@pytest.fixture(scope="session")
def html():
    """The page of an unaltered document."""
    return render(build())


@pytest.fixture
def document():
    return build()
