"""Books of a grid's report with realistic numbers: a small one, one of steps, and a large one of many methods."""

import copy

import numpy as np

from audits import HOSTILE, widest
from expunge.report.grids import Book, Cell, Leaf, Published

SEEDS = (0, 1, 2)
METHODS = ("finetune", "ssd", "lfssd")


def run_of(section, seed):
    """The section as one seed of several has it: each number a little elsewhere, no curve."""
    rng = np.random.default_rng(seed)
    found = copy.deepcopy(section) | {"seeds": 1, "curves": {}, "series": {}, "changed": {}, "bounds": []}
    for part in ("values", "gaps"):
        for entries in found[part].values():
            for entry in entries.values():
                if "x" in entry and entry["unit"] != "steps":
                    entry["x"] *= 1 + 0.04 * rng.normal()
                if "distance" in entry:
                    entry["distance"] = abs(entry["x"])
    return found


def only(section, methods):
    """The section with these methods alone, beside all others' roles."""
    kept = {m["name"] for m in section["models"] if m["role"] != "method" and not m["flaw"]} | set(methods)
    found = copy.deepcopy(section)
    found["models"] = [m for m in found["models"] if m["name"] in kept]
    for part in ("values", "gaps"):
        found[part] = {m: v for m, v in found[part].items() if m in kept}
    return found | {"curves": {}, "series": {}, "changed": {}}  # charts of a leaf's own page, tested elsewhere


def leaf(place, *, methods=METHODS, missing=None, step=1, steps=1, seeds=SEEDS, section=None, **more):
    """A leaf: all methods done, but those that ``missing`` gives a cell for, by method or seed and method."""
    missing = missing or {}
    gone = [m for m in methods if m in missing]
    section = (
        only(widest(len(seeds))["sections"][0], [m for m in methods if m not in gone]) if section is None else section
    )
    section |= {"name": place, "seeds": len(seeds)}
    cells = {}
    for seed in seeds:
        for method in ("", *methods):
            done = Cell("done", name=f"measured/{seed}{method}", seconds={"measure": 0.5, "unlearn": 0.02})
            cells[seed, method] = missing.get((seed, method)) or missing.get(method) or done
    runs = {seed: run_of(section, seed) for seed in seeds}
    for seed in seeds:
        lost = [m for m in methods if cells[seed, m].status != "done"]
        for part in ("values", "gaps"):
            runs[seed][part] = {m: v for m, v in runs[seed][part].items() if m not in lost}
    return Leaf(
        place=place,
        slug=f"{place.replace(', ', '-').replace(' ', '-')}-{step}",
        section=section,
        text="All training samples of the class 3 are to be forgotten.",
        step=step,
        steps=steps,
        runs=runs,
        cells=cells,
        versions={"expunge": "0.1.0", "torch": "2.6.0"},
        short=place.rpartition(", ")[2],
        **more,
    )


def empty(place, *, methods=METHODS, seeds=SEEDS):
    """A leaf of which nothing is done."""
    cells = {(seed, method): Cell("missing", "not run yet") for seed in seeds for method in ("", *methods)}
    return Leaf(place=place, slug=place.replace(", ", "-"), section=None, cells=cells, short=place.rpartition(", ")[2])


def book(*leaves, methods=METHODS, **more):
    """A book of some leaves."""
    axes = {"data sets": ["digits"], "requests": [each.place for each in leaves], "methods": list(methods)}
    return Book("A grid", "Made for tests.", axes, list(leaves), list(methods), command="expunge bench report", **more)


def small():
    """Two places: one whole with published numbers, one with a method that declined and one that failed on a seed."""
    paper = Published("A paper, 2024, table 1", ["Other data."], {"ssd": {"accuracy/forget": [0.02, 0.01]}})
    failed = Cell("failed", "out of memory", "measured/1ssd")
    declined = Cell("declined", "it forgets whole classes only")
    return book(
        leaf("digits, mlp, class 3", published=[paper]),
        leaf("digits, mlp, random 5 %", missing={"lfssd": declined, (1, "ssd"): failed}),
    )


def hostile():
    """A place, a method, a reason, a title and a setting that would be tags if they were not escaped."""
    section = only(widest(3)["sections"][0], ["finetune", "ssd"])
    for model in section["models"]:
        if model["name"] == "ssd":
            model |= {"name": HOSTILE, "text": HOSTILE, "settings": {HOSTILE: HOSTILE}, "notes": [HOSTILE]}
    for part in ("values", "gaps"):
        section[part] = {HOSTILE if m == "ssd" else m: v for m, v in section[part].items()}
    section["metrics"][0]["label"] = HOSTILE
    section["caveats"] = [HOSTILE]
    methods = ("finetune", HOSTILE, f"b {HOSTILE}")
    failed = Cell("failed", HOSTILE, HOSTILE, log={HOSTILE: HOSTILE})
    paper = Published(HOSTILE, [HOSTILE], {HOSTILE: {"accuracy/forget": [0.1]}, f"c {HOSTILE}": {HOSTILE: [0.2]}})
    found = leaf(HOSTILE, methods=methods, section=section, missing={methods[2]: failed}, published=[paper])
    named = Leaf(
        **{**vars(found), "slug": "hostile", "text": HOSTILE, "short": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    )
    return Book(HOSTILE, HOSTILE, {HOSTILE: [HOSTILE]}, [named], list(methods), command=HOSTILE, created=HOSTILE)


def scaled(entry, by):
    """An entry of a section with its number times a factor."""
    numbers = {k: entry[k] * by for k in ("x", "low", "high", "distance") if entry.get(k) is not None}
    return entry | (numbers if "x" in entry else {})


def stepwise(steps=3):
    """One place of several requests, the last step not measured yet."""
    place = "digits, mlp, sequential 10"
    found = [leaf(place, step=step, steps=steps) for step in range(1, steps)]
    waits = empty(place)
    return book(*found, Leaf(**{**vars(waits), "slug": "last", "step": steps, "steps": steps}))


def large(methods=30, places=1):
    """Many methods under long names, over every number of a wide document."""
    section, rng = only(widest(3)["sections"][0], ["ssd"]), np.random.default_rng(3)
    names = [f"method number {i} with a long name" if i % 5 == 0 else f"method {i}" for i in range(methods)]
    entry = next(m for m in section["models"] if m["name"] == "ssd")
    section["models"] = [m for m in section["models"] if m["name"] != "ssd"] + [entry | {"name": n} for n in names]
    sizes = [float(10 ** rng.uniform(-1, 0.6)) for _ in names]
    for part in ("values", "gaps"):
        base = section[part].pop("ssd")
        for name, size in zip(names, sizes, strict=True):
            section[part][name] = {k: scaled(v, size) for k, v in base.items()}
    leaves = [leaf(f"digits, mlp, class {i}", methods=names, section=copy.deepcopy(section)) for i in range(places)]
    return book(*leaves, methods=names)
