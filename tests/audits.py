"""Audit documents with realistic numbers, for tests of the report: a small one of two sections, and a wide one."""

import copy

import numpy as np

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
NATURES = {"no_op": "nothing removed", "head_mask": "output suppression"}


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


def curves_of(names, wide=False):
    """Densities and ROC curves; of a wide document, staircases of every attack."""
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
        out["roc"].setdefault("loss", {})[model] = {
            "fpr": fpr.tolist(),
            "tpr": np.minimum(1, fpr ** min(power, 1.0)).tolist(),
        }
        for i, attack in enumerate(ATTACKS if wide else ()):
            far = (0.3 + 0.3 * i) * WIDE[model][4]
            members, others = np.sort(rng.normal(far, 1, 103)), np.sort(rng.normal(0, 1, 59))
            cuts = np.sort(np.concatenate([members, others, [-np.inf, np.inf]]))[::-1]
            rates = {"fpr": [(others >= c).mean() for c in cuts], "tpr": [(members >= c).mean() for c in cuts]}
            out["roc"].setdefault(attack, {})[model] = {k: list(map(float, v)) for k, v in rates.items()}
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
                "nature": NATURES.get(model, "approximate edit" if role == "method" else ""),
                "flaw": "",
            }
            for model, role, _ in MODELS
            if model in names
        ],
        "metrics": [
            dict(zip(("name", "label", "unit", "goal", "group"), m, strict=True)) | {"target": None} for m in METRICS
        ],
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
        "nature": "approximate edit",
        "flaw": "",
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
            "nature": "approximate edit",
            "flaw": "",
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
        "schema": 2,
        "title": "Audit of a ResNet-18 on CIFAR-10",
        "lead": "One class and one person were removed from two trained classifiers. "
        "This page shows how far each result lies from models that never saw them.",
        "created": "2025-03-04T12:30:00+00:00",
        "versions": {"expunge": "0.1.0", "torch": "2.6.0", "python": "3.11.9"},
        "command": f"expunge audit --project 'x' {HOSTILE}",
        "sections": [first, second],
    }


# The wide document. Of each model: role, nature, accuracy on the forget set and on the rest of the test set, and how
# much of the forgotten is left, from 0 to 1, in what it says and in its features.
WIDE = {
    "original": ("original", "", 1.0, 0.98, 1.0, 1.0),
    "retrained": ("retrained", "", 0.0, 0.98, 0.0, 0.0),
    "retrained (other seed)": ("floor", "", 0.0, 0.978, 0.01, 0.03),
    "head_mask": ("control", "output suppression", 0.0, 0.98, -0.2, 1.0),
    "no_op": ("control", "nothing removed", 1.0, 0.98, 1.0, 1.0),
    "finetune": ("method", "approximate edit", 0.83, 0.977, 0.8, 0.97),
    "ssd": ("method", "approximate edit", 0.0, 0.961, -0.1, 0.75),
    "lfssd": ("method", "approximate edit", 0.03, 0.958, 0.05, 0.8),
    "nabla_tau": ("method", "approximate edit", 0.01, 0.973, 0.06, 0.5),
    "amnesiac": ("method", "approximate edit", 0.0, 0.969, -0.9, 0.6),
    "filter": ("method", "output suppression", 0.0, 0.98, -0.1, 1.0),
    "sisa": ("method", "exact", 0.0, 0.951, 0.0, 0.0),
}
SPLITS = {"forget": "forget set", "retain": "retain set", "test": "test set"}
ATTACKS = ("loss", "confidence", "correctness", "entropy", "modified_entropy", "paired")
RATES = {"auc": "AUC", "balanced_accuracy": "balanced accuracy", "tpr_at_fpr_0.01": "TPR at 1 % FPR"}
RATES |= {"tpr_at_fpr_0.001": "TPR at 0.1 % FPR"}
LAYERS = [f"blocks.{i}.{part}" for i in range(8) for part in ("conv.weight", "norm.weight")] + ["head.weight"]


def families():
    """Yield name, label, unit, target, range, and the number by (right, rest, said, laid out) of each metric."""
    sides = {**SPLITS, "test_forget": "test, forgotten kind", "test_retain": "test, the rest", "holdout": "holdout set"}
    for split, text in sides.items():
        yield (
            f"accuracy/{split}", f"accuracy, {text}", "1", None, (0, 1),
            lambda a, r, s, f, split=split: a if "forget" in split else min(1, r + 0.02 * (split == "retain")),
        )  # fmt: skip
    yield (
        "membership/entropy_lr",
        "entropy attack: forget set called member",
        "1",
        None,
        (0, 1),
        (lambda a, r, s, f: min(1, max(0, 0.1 + 0.7 * s))),
    )
    yield (
        "membership/svc",
        "SVC attack (high = forgotten): forget set called unseen",
        "1",
        None,
        (0, 1),
        (lambda a, r, s, f: min(1, max(0, 0.95 - 0.9 * s))),
    )
    for i, attack in enumerate(ATTACKS):
        for rate, text in RATES.items():
            ideal = {"auc": 0.5, "balanced_accuracy": 0.5}.get(rate, 0.01) if attack == "paired" else None
            base = 0.5 if rate in ("auc", "balanced_accuracy") else 0.01
            yield (
                f"membership/{attack}/{rate}", f"{attack} attack: {text}", "1", ideal, (0, 1),
                lambda a, r, s, f, base=base, i=i, rate=rate: None if rate.endswith("0.001") else max(
                    0, base + (0.08 + 0.03 * i) * s * (2 * base)
                ),
            )  # fmt: skip
    for split, text in sides.items():
        yield (
            f"loss/{split}",
            f"loss, {text}",
            "nats",
            None,
            (0, None),
            (lambda a, r, s, f, split=split: 6.5 * (1 - s) if "forget" in split else 2 * (1 - r)),
        )
    yield (
        "paired/gap",
        "difference of confidences, forget set",
        "1",
        0.0,
        (0, 1),
        lambda a, r, s, f: min(1, abs(a) + 0.02),
    )
    yield (
        "paired/shift",
        "forget set known better than by retrained",
        "nats",
        0.0,
        (None, None),
        lambda a, r, s, f: 6 * s,
    )
    for split, text in SPLITS.items():
        far = (lambda a, r, s, f: 0.6 * abs(s) + 0.01) if split == "forget" else (lambda a, r, s, f: 0.99 - r)
        yield f"divergence/js/{split}", f"JS divergence from retrained, {text}", "nats", 0.0, (0, 0.7), far
        yield f"activation/l2/{split}", f"activation distance (L2) to retrained, {text}", "1", 0.0, (0, 1.5), far
        yield (
            f"similarity/cka/{split}",
            f"CKA of features with retrained's (unbiased), {text}",
            "1",
            1.0,
            (-1, 1),
            (lambda a, r, s, f: 0.97 - 0.5 * f),
        )
        yield (
            f"similarity/agreement/{split}",
            f"same prediction as retrained, {text}",
            "1",
            1.0,
            (0, 1),
            (lambda a, r, s, f: min(1, r - 0.4 * abs(s))),
        )
    for name, label in {"to_retrained": "distance to retrained", "to_original": "distance to the original"}.items():
        ideal = 0.0 if name == "to_retrained" else None
        yield f"weights/{name}", f"weights, {label}", "L2", ideal, (0, None), lambda a, r, s, f: 14 + 5 * f
    for way in ("lost", "gained"):
        yield f"flips/{way}/test", f"{way} answers, test set", "1", None, (0, 1), lambda a, r, s, f: 0.99 - r
    yield "tow/tow", "tug of war of accuracies", "1", 1.0, (0, 1), lambda a, r, s, f: (1 - a) * r
    yield "zrf/forget", "ZRF (base 2), forget set", "1", None, (0, 1), lambda a, r, s, f: 0.7 - 0.2 * s
    yield (
        "probe/one_shot",
        "one-shot linear probe: recall of the class",
        "1",
        None,
        (0, 1),
        lambda a, r, s, f: 0.65 + 0.3 * f,
    )
    yield (
        "probe/membership",
        "linear probe: forget set against unseen, AUC",
        "1",
        None,
        (0, 1),
        (lambda a, r, s, f: 0.5 + 0.1 * f),
    )
    yield "relearn/steps", "steps to relearn the forget set", "steps", None, (0, None), lambda a, r, s, f: 40 - 36 * f
    yield (
        "relearn/ain",
        "anamnesis index: steps against retrained's",
        "1",
        1.0,
        (0, None),
        lambda a, r, s, f: 1 - 0.9 * f,
    )
    yield "relearn/few", "forget set after relearning a few of it", "1", None, (0, 1), lambda a, r, s, f: 0.2 + 0.75 * f
    for name in ("int8", "noise", "finetune"):
        yield f"robustness/{name}", f"forget set after {name}", "1", None, (0, 1), lambda a, r, s, f: max(a, 0.3 * f)
    yield (
        "subgroups/worst_change",
        "change of accuracy of the group that paid most",
        "1",
        None,
        (-1, 1),
        (lambda a, r, s, f: 2 * (r - 0.98)),
    )
    yield (
        "canaries/forgotten",
        "AUC, forgotten canaries against unseen ones",
        "1",
        0.5,
        (0, 1),
        (lambda a, r, s, f: 0.5 + 0.4 * s),
    )
    yield (
        "cost/seconds",
        "time of the edit",
        "s",
        None,
        (0, None),
        lambda a, r, s, f: None if s == 1 else 4 * (1 - f) + 0.1,
    )
    yield "cost/changed", "parameters changed", "1", None, (0, 1), lambda a, r, s, f: 1 - 0.9 * max(0, s)


def widest(seeds=1):
    """A fresh document of one section with all families, twelve models and more: one flawed, one that declined."""
    rng = np.random.default_rng(7)
    n = 103 if seeds == 1 else seeds
    names, found = list(WIDE), list(families())
    values, gaps, floor = {m: {} for m in names}, {m: {} for m in names if m != "retrained"}, {}
    for metric, _, unit, target, _, at in found:
        xs = {m: at(*WIDE[m][2:]) for m in names}
        for m, x in xs.items():
            itself = target is not None and m == "retrained"
            if x is None or itself:
                few = "a false-positive rate of 0.001 needs 1000 unseen samples, there are 59"
                bare = "a bare module was given, not an unlearn result" if metric.startswith("cost/") else few
                values[m][metric] = {"unavailable": "it is the reference itself" if itself else bare}
                continue
            x = float(x + (0.002 * rng.normal() if unit == "1" and 0.01 < x < 0.99 else 0.0))
            half = 1.96 * max(x * (1 - x), 0.02 / n) ** 0.5 / n**0.5 if unit == "1" and 0 <= x <= 1 else 0.08 * abs(x)
            values[m][metric] = number(x, half, 1 if metric.startswith(("cost/", "weights/")) else n, unit)
        for m in gaps:
            own, base = values[m][metric], values["retrained"][metric]
            goal = target if target is not None else base.get("x")
            if "x" not in own or goal is None:
                continue
            paired = target is not None or metric.startswith("accuracy/") or seeds > 1
            ends = {k: own[k] - goal if paired and own[k] is not None else None for k in ("low", "high")}
            gaps[m][metric] = {
                "x": own["x"] - goal,
                **ends,
                "n": own["n"],
                "unit": unit,
                "distance": abs(own["x"] - goal),
            }
        again = gaps["retrained (other seed)"].get(metric)
        if again:
            floor[metric] = number(abs(again["x"]), abs(again["x"]), seeds, unit)
    keys = ("name", "label", "unit", "target", "range")
    metrics = [
        dict(zip(keys, f[:5], strict=True)) | {"goal": "as_retrained", "group": f[0].split("/")[0]} for f in found
    ]
    models = [
        {"name": m, "role": role, "text": f"The {m} row.", "nature": nature, "flaw": "", "declined": None, "notes": []}
        for m, (role, nature, *_) in WIDE.items()
    ]
    nothing = {"text": "", "notes": [], "settings": {}, "nature": "approximate edit"}
    models.append(
        {"name": "broken", "role": "method", "flaw": "its outputs on forget hold NaN", "declined": None} | nothing
    )
    models.append(
        {"name": "unsir", "role": "method", "flaw": "", "declined": "it forgets whole classes only"} | nothing
    )
    section = {
        "name": "class 3",
        "kind": "class",
        "target": 3,
        "text": "All training samples of the class 3 are to be forgotten.",
        "counts": {"train": 1168, "forget": 103, "retain": 1065, "holdout": 180, "test": 449},
        "seeds": seeds,
        "models": models,
        "metrics": metrics,
        "values": values | {"broken": {}},
        "gaps": gaps,
        "floor": floor,
        "curves": curves_of(names, wide=True),
        "series": {m: series_of(m, rng) for m in names},
        "changed": {m: {layer: float(rng.choice([0, 0.004, 0.2, 0.7, 1.0])) for layer in LAYERS} for m in names[5:]},
        "caveats": ["4 of 103 forget samples stand in the retain set too, to the bit: train/3 ~ train/81 and 3 more."],
        "bounds": [
            {"bound": "accuracy/test >= 0.95", "x": 0.961, "met": True, "sure": False, "text": "Bound met: it is."},
            {"bound": "gap loss/test <= 0.02", "x": 0.04, "met": False, "sure": False, "text": "Bound missed: no."},
        ],
        "samples": [],
    }  # fmt: skip
    return build() | {"title": "Every family of numbers", "sections": [section]}


def few(document, *names):
    """The first section with a few of its models only, so that what is drawn of each is drawn quickly."""
    section, names = document["sections"][0], names or ("original", "retrained", "ssd", "sisa")
    section["models"] = [m for m in section["models"] if m["name"] in names]
    for part in ("values", "gaps", "series", "changed"):
        section[part] = {m: v for m, v in section[part].items() if m in names}
    curves = section["curves"]
    curves["roc"] = {a: {m: c for m, c in by.items() if m in names} for a, by in curves["roc"].items()}
    for quantity in ("loss", "entropy"):
        curves[quantity]["densities"] = {m: d for m, d in curves[quantity]["densities"].items() if m in names}
    return section


def series_of(model, rng):
    """The curves and groups of one model."""
    _, _, right, rest, _, laid = WIDE[model]

    def at(place, x, half=0.04, n=40, unit="1"):
        return {"at": place, **number(float(x), half, n, unit)}

    # For the original nothing has changed; one group pays for what the others do not.
    paid = {c: 0.0 if model == "original" else (rest - 0.98) * (4 if c == 8 else 0.6) for c in range(10) if c != 3}
    groups = [
        {"at": c, "x": x, "low": x - 0.03, "high": x + 0.03, "n": 45, "unit": "1"}
        for c, x in ((c, x + 0.004 * rng.normal() * (model != "original")) for c, x in paid.items())
    ]
    found = {
        "probe/shots": [at(k, 1 - (0.35 - 0.3 * laid) / k**0.7) for k in (1, 2, 5, 10)],
        "relearn/curve": [at(k, max(right, 1 - np.exp(-(0.01 + 0.15 * laid) * k))) for k in (0, 1, 2, 5, 10, 20, 50)],
        "robustness/change": [at("before", right)]
        + [at(k, max(right, 0.3 * laid)) for k in ("int8", "noise", "finetune")],
        "subgroups/label": groups,
        "subgroups/label/accuracy": [at(g["at"], min(1, 0.98 + g["x"])) for g in groups],
        "weights/layers": [at(layer, 2 + 3 * laid * (i / 16), n=1, unit="L2") for i, layer in enumerate(LAYERS)],
    }
    found["subgroups/label"].append({"at": "none", "unavailable": "fewer than 10 samples: 3"})
    return found
