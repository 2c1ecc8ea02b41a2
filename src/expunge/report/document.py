"""The audit document a report is made of: what must be in it, and access to its numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from expunge.errors import Incompatible, listing, suggest
from expunge.report.format import known

KIND = "expunge.audit"
SCHEMA = 2
ROLES = ("original", "retrained", "floor", "control", "method")
REMEDY = "make the document again with this version of expunge"
ITSELF = "it is the reference itself"  # why retrained has no distance to retrained
IMAGE = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+=*")

NUMBER: Any = int | float | None

Section = Mapping[str, Any]
Entry = Mapping[str, Any]

# The order in which known metrics are shown; all others follow in the document's own order.
PREFERRED = (
    "accuracy/forget",
    "accuracy/forget_clean",
    "accuracy/retain",
    "accuracy/test",
    "accuracy/test_forget",
    "accuracy/test_retain",
    "accuracy/holdout",
    "error/mae/forget",
    "error/mae/test",
    "error/mae/test_forget",
    "error/mae/test_retain",
    "error/rmse/forget",
    "error/rmse/test",
    "error/rmse/test_forget",
    "error/rmse/test_retain",
    "membership/entropy_lr",
    "membership/loss/auc",
    "membership/loss/balanced_accuracy",
    "membership/loss/tpr_at_fpr_0.01",
    "loss/forget",
    "loss/retain",
    "loss/test",
    "loss/test_forget",
    "loss/test_retain",
    "loss/holdout",
)


def validate(document: Mapping[str, Any]) -> None:
    """Refuse a document that a report cannot be made of.

    Args:
        document: the audit document, as read from JSON.

    Raises:
        Incompatible: another kind or schema, a key is missing or of the wrong type, a model or metric is
            named that is not listed, a number is not finite, or a sample image is not embedded.
    """
    if document.get("kind") != KIND:
        raise Incompatible(f"a document of kind '{KIND}'", repr(document.get("kind")), "give an audit document")
    schema = document.get("schema")
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        raise Incompatible(f"an audit document of schema {SCHEMA}", repr(schema), "update expunge" if newer else REMEDY)
    _keys(document, {"title": str, "lead": str, "created": str, "versions": Mapping, "sections": list}, "the document")
    if not document["sections"]:
        raise Incompatible("at least one section in the document", "none", "audit at least one scenario")
    for number, section in enumerate(document["sections"], 1):
        _section(section, f"section {number}")


def _keys(part: Any, wanted: Mapping[str, Any], where: str) -> None:
    if not isinstance(part, Mapping):
        raise Incompatible(f"an object for {where}", type(part).__name__, REMEDY)
    for key, kind in wanted.items():
        if key not in part:
            raise Incompatible(f"the key '{key}' in {where}", f"only {listing(sorted(part), 12)}", REMEDY)
        if not isinstance(part[key], kind):
            named = getattr(kind, "__name__", "a number or null")
            raise Incompatible(f"'{key}' in {where} as {named}", type(part[key]).__name__, REMEDY)


def _section(section: Any, where: str) -> None:
    kinds = {"name": str, "kind": str, "text": str, "counts": Mapping, "seeds": int, "models": list, "metrics": list}
    _keys(section, kinds | {"values": Mapping, "gaps": Mapping, "floor": Mapping}, where)
    for model in section["models"]:
        _keys(model, {"name": str, "role": str, "nature": str, "flaw": str}, f"a model of {where}")
        if model["role"] not in ROLES:
            raise Incompatible(f"a known role in {where}", repr(model["role"]), suggest(model["role"], ROLES))
    for metric in section["metrics"]:
        texts = dict.fromkeys(("name", "label", "unit", "group"), str)
        _keys(metric, texts | {"target": NUMBER}, f"a metric of {where}")
    models = [m["name"] for m in section["models"]]
    metrics = [m["name"] for m in section["metrics"]]
    for names, what in ((models, "models"), (metrics, "metrics")):
        if len(set(names)) < len(names):
            raise Incompatible(f"unique names of {what} in {where}", "a name more than once", "name each once")
    for part in ("values", "gaps"):
        _listed(section[part], models, "model", f"{part} of {where}")
        for model, entries in section[part].items():
            _entries(entries, metrics, f"{part} of {model!r} in {where}")
    _entries(section["floor"], metrics, f"the floor of {where}")
    _curves(section.get("curves") or {}, models, where)
    _series(section.get("series") or {}, models, where)
    _listed(section.get("changed") or {}, models, "model", f"changed of {where}")
    _traces(section.get("traces") or {}, models, where)
    if section.get("maps") is not None:
        _maps(section["maps"], models, where)
    if not re.fullmatch(r"[\w.-]*", str(section.get("manifest") or "")):
        got = repr(section["manifest"])[:60]
        raise Incompatible(f"the name of a file beside the report as manifest of {where}", got, REMEDY)
    _listed(section.get("concepts") or {}, models, "model", f"concepts of {where}")
    for model, found in (section.get("concepts") or {}).items():
        check_concepts(found, f"concepts of {model!r} in {where}")
    if section.get("predictions") is not None:
        _predictions(section["predictions"], models, where)
    for caveat in section.get("caveats") or ():
        if not isinstance(caveat, str):
            raise Incompatible(f"caveats of {where} as sentences", type(caveat).__name__, REMEDY)
    for bound in section.get("bounds") or ():
        _keys(
            bound,
            {"bound": str, "text": str, "met": bool, "sure": bool, "x": NUMBER},
            f"a bound of {where}",
        )
    for sample in section.get("samples") or ():
        _keys(sample, {"id": str, "label": str, "image": str}, f"a sample of {where}")
        if not IMAGE.fullmatch(sample["image"]):
            got = f"{sample['image'][:40]!r} for sample {sample['id']!r}"
            raise Incompatible("an image embedded as data:image/png;base64,...", got, "embed the image")


def _curves(curves: Mapping[str, Any], models: list[str], where: str) -> None:
    """Refuse curves of unknown models, or whose parts differ in length."""
    lengths: dict[tuple[str, str, str], tuple[int, int]] = {}
    for name in ("loss", "entropy"):
        if curve := curves.get(name):
            _keys(curve, {"edges": list, "densities": Mapping}, f"curve {name} of {where}")
            _listed(curve["densities"], models, "model", f"curve {name} of {where}")
            for model, splits in curve["densities"].items():
                lengths |= {(name, model, s): (len(d), len(curve["edges"]) - 1) for s, d in splits.items()}
    for attack, by_model in (curves.get("roc") or {}).items():
        _listed(by_model, models, "model", f"curve roc of {attack} in {where}")
        for model, rates in by_model.items():
            _keys(rates, {"fpr": list, "tpr": list}, f"curve roc of {model!r} under {attack} in {where}")
            lengths[attack, model, "rates"] = (len(rates["fpr"]), len(rates["tpr"]))
    for key, (one, other) in lengths.items():
        if one != other:
            raise Incompatible(f"as many numbers in curve {'/'.join(key)} of {where}", f"{one} and {other}", REMEDY)


def _series(series: Mapping[str, Any], models: list[str], where: str) -> None:
    """Refuse series of unknown models, or whose points have no place, no number and no reason."""
    _keys(series, {}, f"series of {where}")
    _listed(series, models, "model", f"series of {where}")
    for model, found in series.items():
        for name, points in found.items():
            there = f"series {name} of {model!r} in {where}"
            if not isinstance(points, list):
                raise Incompatible(f"{there} as list", type(points).__name__, REMEDY)
            for point in points:
                _keys(point, {"at": str | int | float}, there)
                _entry(point, str(point["at"]), there)


def _traces(traces: Any, models: list[str], where: str) -> None:
    """Refuse traces of unknown models, or whose points are no pairs of a step and a number or null."""
    _keys(traces, {}, f"traces of {where}")
    _listed(traces, models, "model", f"traces of {where}")
    for model, found in traces.items():
        for name, points in found.items():
            there = f"trace {name} of {model!r} in {where}"
            if not isinstance(points, list) or not all(_pair(point) for point in points):
                raise Incompatible(f"pairs of a step and a number or null for {there}", repr(points)[:60], REMEDY)


def _predictions(found: Any, models: list[str], where: str) -> None:
    """Refuse predictions of unknown models, or as many as there are no targets of, or that are no numbers."""
    there = f"predictions of {where}"
    _keys(found, {"scatter": Mapping, "errors": Mapping, "bytes": int}, there)
    rows: list[tuple[str, Sequence[Any], int | None]] = []  # what it is, its numbers, how many there must be
    for split, part in found["scatter"].items():
        _keys(part, {"of": int, "groups": list}, f"scatter of {split} in {there}")
        for group in part["groups"]:
            _keys(group, {"target": list, "said": Mapping}, f"a group of {split} in {there}")
            _listed(group["said"], models, "model", there)
            rows.append((f"targets of {split}", group["target"], None))
            rows += [(f"{split} by {m!r}", said, len(group["target"])) for m, said in group["said"].items()]
    for split, part in found["errors"].items():
        _keys(part, {"of": int, "models": Mapping}, f"errors of {split} in {there}")
        _listed(part["models"], models, "model", there)
        rows += [(f"errors of {split} by {m!r}", errors, None) for m, errors in part["models"].items()]
    windows = found.get("windows")
    if windows is not None:
        parts = dict.fromkeys(("said", "low", "high"), Mapping)
        _keys(windows, {"of": int, "steps": int, "target": list, **parts}, f"windows of {there}")
        for part in parts:
            _listed(windows[part], models, "model", there)
            for model, series in windows[part].items():
                pairs = zip(series, windows["target"], strict=False)
                rows += [(f"windows by {model!r}", own, len(target)) for own, target in pairs]
                rows.append((f"windows by {model!r}", [0] * len(series), len(windows["target"])))
    for what, numbers, count in rows:
        if not numbers or (count is not None and len(numbers) != count):
            got = f"{len(numbers)} and {count}" if numbers else "none"
            raise Incompatible(f"as many numbers in {what} as targets in {there}", got, REMEDY)
        if not all(isinstance(v, int | float) and math.isfinite(v) for v in numbers):
            raise Incompatible(f"finite numbers for {what} in {there}", "something else", REMEDY)


def _maps(found: Any, models: list[str], where: str) -> None:
    """Refuse maps of unknown models, or places that are no pairs of numbers."""
    there = f"maps of {where}"
    _keys(found, {"explained": list, "own": list, "models": Mapping}, there)
    _listed([*found["models"], *found["own"]], models, "model", there)
    for model, places in found["models"].items():
        _keys(places, {"forget": list, "retain": list}, f"the map of {model!r} in {where}")
        if not all(_pair(p) and p[1] is not None for split in ("forget", "retain") for p in places[split]):
            raise Incompatible(f"pairs of numbers in the map of {model!r} in {where}", "something else", REMEDY)


def check_concepts(found: Any, where: str) -> None:
    """Refuse what an edit by concepts recorded where it cannot be shown.

    Args:
        found: from `expunge.report.concepts.gathered`.
        where: it stands, in words.

    Raises:
        Incompatible: a part is missing or of the wrong type, or a picture is not embedded.
    """
    parts = dict.fromkeys(("concepts", "poisoned", "dropped", "manifest"), list)
    _keys(found, {**parts, "rows": int, "facts": Mapping}, where)
    for concept in found["concepts"]:
        _keys(concept, {"name": str, "windows": list}, f"a concept of {where}")
        for part in ("attribution", "accuracy"):
            if not isinstance(concept.get(part), int | float | None):
                got = repr(concept[part])[:40]
                raise Incompatible(f"a number or null as {part} of {concept['name']!r} in {where}", got, REMEDY)
        for window in concept["windows"]:
            _embedded(window, f"concept {concept['name']!r} of {where}")
    for example in found["poisoned"]:
        _keys(example, {"original": str, "poisoned": str}, f"a poisoned sample of {where}")
        for part in ("original", "poisoned", "donor", "heat"):
            _embedded(example.get(part) or "", f"a poisoned sample of {where}")
    for row in found["dropped"]:
        _keys(row, {"name": str, "reason": str}, f"a dropped concept of {where}")
    for row in found["manifest"]:
        _keys(row, {}, f"a row of the manifest of {where}")


def _embedded(value: Any, where: str) -> None:
    """Refuse what is neither an embedded picture nor a text."""
    if not isinstance(value, str) or (value.startswith("data:") and not IMAGE.fullmatch(value)):
        got = f"{str(value)[:40]!r} in {where}"
        raise Incompatible("an image embedded as data:image/png;base64,..., or a text", got, "embed the image")


def _pair(point: Any) -> bool:
    if not isinstance(point, list | tuple) or len(point) != 2 or not isinstance(point[0], int | float):
        return False
    return point[1] is None or (isinstance(point[1], int | float) and math.isfinite(point[1]))


def _listed(names: Iterable[str], wanted: Iterable[str], what: str, where: str) -> None:
    stray = sorted(set(names) - set(wanted))
    if stray:
        raise Incompatible(f"in {where} only a listed {what}", listing(stray), f"list every {what} of the section")


def _entries(entries: Any, metrics: Iterable[str], where: str) -> None:
    _keys(entries, {}, where)
    _listed(entries, metrics, "metric", where)
    for name, entry in entries.items():
        _entry(entry, name, where)


def _entry(entry: Any, name: str, where: str) -> None:
    if not isinstance(entry, Mapping) or not ("unavailable" in entry or isinstance(entry.get("x"), int | float)):
        raise Incompatible(f"a number x or a reason for {name} in {where}", repr(entry)[:60], REMEDY)
    if not all(math.isfinite(entry.get(k) or 0) for k in ("x", "low", "high")):
        raise Incompatible(f"finite numbers for {name} in {where}", "NaN or infinity", "write null for no bound")


def found(section: Section, part: str, model: str, metric: str) -> Entry | None:
    """Return the number of one model and metric from ``values`` or ``gaps``, or None where there is none."""
    entry: Entry | None = section[part].get(model, {}).get(metric)
    return entry if known(entry) else None


def floor(section: Section, metric: str) -> Entry | None:
    """Return the difference of two retrained models in a metric, or None where it was not measured."""
    entry: Entry | None = section["floor"].get(metric)
    return entry if known(entry) else None


def reason(section: Section, model: Mapping[str, Any], metric: str) -> str:
    """Return why there is no number."""
    entry = section["values"].get(model["name"], {}).get(metric) or {}
    if model.get("declined"):
        return f"declined: {model['declined']}"
    return str(entry.get("unavailable") or "not measured")


def series(section: Section, name: str) -> dict[str, list[Entry]]:
    """Return the points of one series that hold a number, by model in the order of a table; models without are out."""
    every = section.get("series") or {}
    found = {m["name"]: [p for p in every.get(m["name"], {}).get(name, ()) if known(p)] for m in models(section)}
    return {model: points for model, points in found.items() if points}


def is_constant(metric: Mapping[str, Any]) -> bool:
    """Return whether a number is the same for every model: the error of always saying the same."""
    return "_constant/" in metric["name"]


def is_real(section: Section) -> bool:
    """Return whether targets are real numbers: predictions are drawn over them, and nothing is said of classes."""
    return bool(section.get("predictions"))


def of_role(section: Section, *roles: str) -> list[Mapping[str, Any]]:
    """Return the models of these roles in the document's order."""
    return [m for m in section["models"] if m["role"] in roles]


def models(section: Section) -> list[Mapping[str, Any]]:
    """Return the models in the order of a table: original, retrained, floor, controls, methods."""
    return [m for role in ROLES for m in of_role(section, role)]


def metrics(section: Section) -> list[Mapping[str, Any]]:
    """Return the metrics: known ones in their order, unknown ones after them, costs last."""
    at = {name: i for i, name in enumerate(PREFERRED)}
    return sorted(section["metrics"], key=lambda m: (m["group"] == "cost", at.get(m["name"], len(at))))


def groups(section: Section) -> dict[str, list[Mapping[str, Any]]]:
    """Return the metrics by group, groups and metrics in the order of `metrics`."""
    out: dict[str, list[Mapping[str, Any]]] = {}
    for metric in metrics(section):
        out.setdefault(metric["group"], []).append(metric)
    return out
