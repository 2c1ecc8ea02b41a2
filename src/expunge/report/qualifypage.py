"""A qualification as one self-contained HTML file, and in short for a terminal: what simulated requests showed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from expunge.report import format as fmt
from expunge.report import looks
from expunge.report import qualifycharts as charts
from expunge.report.page import template, when
from expunge.report.tunepage import shown

NONE = "not recorded"
GUESS = "50%, a guess"
FEW = "none with so few"  # of a smallest effect that no effect reaches
TONES = {  # of the three values: what is not known is no success
    "indistinguishable within margin": ("good", "green"),
    "distinguishable": ("bad", "red"),
    "insufficient evidence": ("open", "yellow"),
}
CONTROLS = {
    "no_op": ("the model left as it was", "is to be told apart"),
    "head_mask": ("the model with its outputs masked alone", "is to be told apart"),
    "retrained": ("a second retrained model", "is not to be told apart"),
}
AGAINST = {
    "pool": "Models of the pool that were never trained on the samples stood for the retrained ones.",
    "retrained": "For each request a model was trained without its samples.",
}
TESTS = {
    "equivalence": "mean difference, held against a margin",
    "rank": "rank of one model",
    "farther": "distance, beside that of retrained models",
    "nearer": "distance, beside that of the originals",
    "attack": "attack",
}
COSTS = {
    "pool": "training the pool",
    "retrained": "models retrained without the samples",
    "requests": "the requests themselves",
    "analysis": "analysis",
}
SIGNED = re.compile(r"([+−])<(0\.0*)1")  # what is too small for its decimals, with a sign
Record = Mapping[str, Any]
Part = Mapping[str, Any]


def render(record: Record, *, command: str = "") -> str:
    """Return the report of a qualification as the text of one HTML file; the same record gives the same text.

    Args:
        record: the body of a qualification.
        command: that made it.

    Returns:
        The page; it loads nothing and runs no script.
    """
    marks, ids = looks.symbols(charts.LOOKS)
    kinds = [_kind(record, kind, f"k{i}") for i, kind in enumerate(record["kinds"], 1)]
    unit = str(record["unit"])
    return template("qualifypage.html").render(
        title=title(record),
        lead=_lead(record),
        made=when(str(record["made"])),
        kinds=kinds,
        share=_percent(record["share"]),
        confidence=_percent(record["confidence"]),
        unit=fmt.suffix(unit).strip(),
        rows=any(kind["in_row"] for kind in kinds),
        charted={name: any(kind[name] for kind in kinds) for name in ("gaps", "failures")},
        marks=Markup(marks),
        ids=ids,
        looks={name: ids[look] for name, look in _LEGEND.items()},
        excludes=record["excludes"],
        expires=_expires(record),
        facts=_facts(record),
        costs=_costs(record["cost"]),
        missing=fmt.MISSING,
        links=(),
        command=command,
        versions=[(name, record[name]) for name in ("expunge", "torch") if record.get(name)],
    )


_LEGEND = dict(
    zip(
        ("unlearned", "bound", "original", "chance", "tolerance"),
        (charts.UNLEARNED, charts.BOUND, charts.ORIGINAL, charts.CHANCE, charts.TOLERANCE),
        strict=True,
    )
)


def terminal(record: Record) -> list[RenderableType]:
    """Return the numbers of a qualification for a terminal: a table of kinds and sizes, and a verdict a kind.

    Args:
        record: the body of a qualification.

    Returns:
        What rich prints, one after another.
    """
    unit = str(record["unit"])
    named = fmt.suffix(unit).strip()
    said = (
        f"gap, bound and floor{f' in {named}' if named else ''}, a mean over the samples of a request",
        f"bound: of {_percent(record['share'])}% of requests with {_percent(record['confidence'])}% confidence",
        "n: samples in a request",
        "failed: gap beyond the floor, of the requests simulated",
        "test: change of accuracy in points",
        "s: seconds",
    )
    table = Table(title=Text(fmt.plain(title(record))), title_justify="left", caption=Text("; ".join(said)))
    table.box, table.padding, table.pad_edge, table.caption_justify = None, (0, 2, 0, 0), False, "left"
    table.add_column("request", min_width=10, max_width=34)
    for head in ("n", "mean gap", "bound", "floor", "failed", "original", "test", "s"):
        table.add_column(head, justify="right", no_wrap=True)
    for kind in record["kinds"]:
        for at, size in enumerate(kind["sizes"]):
            table.add_row(Text(fmt.plain(kind["words"]) if at == 0 else ""), *map(Text, _short(size, unit)))
    lines: list[RenderableType] = [table]
    for kind in record["kinds"]:
        value = str(kind["verdict"]["value"])
        name = fmt.plain(kind["words"])
        lines.append(Text.assemble(f"{name}: ", (fmt.plain(value), f"bold {TONES.get(value, ('', ''))[1]}".strip())))
    return lines


def title(record: Record) -> str:
    """Return what was qualified, and on what."""
    return f"Qualification of {record['method']['name']} on {record['project']}"


def _short(size: Part, unit: str) -> list[str]:
    """Return one line of the table of a terminal, without the words of its kind."""
    test = _known(size["test"], "1")
    gap = _known(size["gap"], unit)
    return [
        f"{size['n']:,g}",
        fmt.MISSING if gap is None else fmt.difference(gap, compact=True),
        _length(size["bound"], unit),
        _length(size["floor"], unit),
        _of(size["failed"], size["requests"], "/"),
        _of(size["failed_original"], size["requests"], "/"),
        fmt.MISSING if test is None else fmt.difference(test, compact=True),
        _length(size["seconds"], "s"),
    ]


def _lead(record: Record) -> str:
    requests = sum(size["requests"] for kind in record["kinds"] for size in kind["sizes"])
    return (
        f"{fmt.count(requests, 'request')} to forget, simulated on {fmt.count(record['pool']['models'], 'model')}: how "
        "far the models are afterwards from models that were trained without the samples."
    )


def _kind(record: Record, kind: Part, key: str) -> dict[str, Any]:
    """Return what the template reads of one kind of request."""
    unit, verdict, row = str(record["unit"]), kind["verdict"], kind["in_row"]
    value = str(verdict["value"])
    return {
        "key": key,
        "words": kind["words"],
        "against": AGAINST.get(str(kind["against"]), ""),
        "value": value,
        "tone": TONES.get(value, TONES["insufficient evidence"])[0],
        "officer": officer(verdict),
        "sizes": [_size(size, unit) for size in kind["sizes"]],
        "gaps": _markup(charts.gaps(kind, unit, f"{key}-gaps")),
        "failures": _markup(charts.failures(kind, f"{key}-failures")),
        "row": _markup(charts.in_row(kind, f"{key}-row")),
        "in_row": None if row is None else _in_row(row),
        "reasons": verdict["reasons"],
        "text": str(verdict["text"]).splitlines(),
        "basis": f"n = {verdict['n']} replicates, K = {verdict['k']} retrained models to rank among, level "
        f"{verdict['level']:g}",
        "chance": _percent(verdict["chance"]),
        "findings": [_finding(found) for found in verdict["findings"]],
        "controls": _controls(kind.get("controls") or {}, verdict),
        "attacks": None if not kind.get("attacks") else _attacks(kind["attacks"]),
        "no_attack": (kind.get("attacks") or {}).get("why") or "",
    }


def officer(verdict: Part) -> str:
    r"""Return what a verdict says to a data-protection officer: of its words those that stand first.

    >>> officer({"officer": "Verdict: distinguishable.\nThese tests tell the model.\nMargin: none was stated."})
    'These tests tell the model.'
    """
    lines = [line for line in str(verdict.get("officer") or "").splitlines() if line.strip()]
    said = [line for line in lines if line != f"Verdict: {verdict.get('value')}." and not line.startswith("Verdict: ")]
    return said[0] if said else ""


def _size(size: Part, unit: str) -> dict[str, Any]:
    """Return one line of the table of sizes; what is missing is a dash, with its reason where one is known."""
    requests, original = size["requests"], size["failed_original"]
    needed = size["needed"]
    retrained = _length(size["bound_retrained"], unit)
    why = f"needs {fmt.count(needed, 'request')}" if size["bound"] is None and needed else ""
    return {
        "n": f"{size['n']:,g}",
        "requests": f"{requests:,}",
        "gap": _stacked(size["gap"], unit),
        "bound": _length(size["bound"], unit),
        "why": why or ("" if retrained == fmt.MISSING else f"retrained {retrained}"),
        "floor": _length(size["floor"], unit),
        "failed": _of(size["failed"], requests),
        "rate": _value(size["rate"], "1"),
        "by_chance": _number(size["by_chance"], "1"),
        "original": _of(original, requests),
        "original_rate": "" if original is None or not requests else f"{fmt.digits(original / requests, '1')}%",
        "blind": bool(size.get("blind")),
        "test": _stacked(size["test"], "1"),
        "test_retrained": _stacked(again, "1")[0] if (again := size.get("test_retrained")) else "",
        "retain": _stacked(size["retain"], "1"),
        "seconds": _length(size["seconds"], "s"),
    }


def _in_row(row: Part) -> dict[str, Any]:
    each = f"{row['n']:,g} sample{'' if row['n'] == 1 else 's'}"
    held = f"the tolerance of {fmt.digits(row['tolerance'], '1')}%"
    longest = row["longest"] or 0
    kept = f"Up to {fmt.count(longest, 'request')} in a row, of {each} each, {'keeps' if longest == 1 else 'keep'} to"
    none = f"No number of requests of {each} that was tried is shown to keep to"
    return {
        "sentence": row.get("text") or f"{kept if longest else none} {held}.",
        "rows": [
            (f"{n:,}", _value(rate, "1"), _number(bound, "1"))
            for n, rate, bound in zip(row["tried"], row["rates"], row["bounds"], strict=True)
        ],
    }


def _finding(found: Part) -> dict[str, str]:
    unit = str(found.get("unit") or "")
    effect = _effect(found.get("smallest"), unit)
    kind, margin = str(found["kind"]), found.get("margin")
    own = unit if len(unit) > 12 else ""  # too long to stand behind a number
    return {
        "name": found["name"],
        "kind": TESTS.get(kind, kind),
        "p": _p(found.get("p")),
        "within": _p(found.get("within")) if kind == "equivalence" else "",
        "margin": "" if margin is None else f"±{_effect(margin, unit)}",
        "smallest": effect,
        "unit": own if effect != FEW else "",
        "n": f"{found.get('n') or 0:,}",
        "k": f"{found['k']:,}" if found.get("k") else "",
        "needed": fmt.MISSING if found.get("needed") is None else f"{found['needed']:,}",
    }


def _controls(run: Mapping[str, Sequence[Part]], verdict: Part) -> list[dict[str, str]]:
    """Return what became of each control: the verdict's own words say which failed, and which does not apply."""
    lines = [*map(str, verdict["reasons"]), *str(verdict["text"]).splitlines()]
    out = []
    for name in dict.fromkeys([*CONTROLS, *run]):
        what, expected = CONTROLS.get(name, ("", ""))
        own = [line.removeprefix("- ") for line in lines if line.removeprefix("- ").startswith(f"Control {name} ")]
        failed = any(line.startswith(f"Control {name} failed") for line in own)
        tests, tone = run.get(name), "bad" if failed else "calm"
        word = "failed" if failed else "came out right" if tests else "not run"
        why = next((line.removeprefix(f"Control {name} ").partition(": ")[2] for line in own), "")
        if not tests and any("does not apply" in line for line in own):
            word = "does not apply"
        smallest = min((test["p"] for test in tests or () if test.get("p") is not None), default=None)
        out.append({"name": name, "what": what, "expected": expected, "word": word, "tone": tone, "why": why,
                    "p": _p(smallest) if tests else fmt.MISSING})  # fmt: skip
    return out


def _attacks(found: Part) -> list[dict[str, Any]]:
    """Return each attack's name, what it found, and what stands beside it."""
    worst = _number(found["worst_by_chance"], "1")
    pair, members = (_beside(_value(found.get(f"{name}_retrained"), "1"), "retrained") for name in ("pair", "members"))
    quality = _beside(_value(found["quality_floor"], ""), "retrained beside retrained")
    rows = [
        ("u_lira", "likelihood-ratio attack by sample (U-LiRA), balanced accuracy", "1", GUESS),
        ("u_lira_worst", "U-LiRA on the tenth of samples it does best on", "1", _beside(worst, "by chance")),
        ("pooled", "likelihood-ratio attack on all samples alike, balanced accuracy", "1", GUESS),
        ("quality", "forgetting quality, at most 1, more is better", "", quality),
        ("pair", "attack with the models before and after, AUC", "1", pair),
        ("members", "retained told from test samples, AUC", "1", members),
    ]
    told = [(name, _value(found[key], unit), beside) for key, name, unit, beside in rows if key in found]
    told += _klom(found["klom"], found["klom_floor"])
    return [{"name": name, "found": text, "beside": beside} for name, text, beside in told]


def _beside(number: str, words: str) -> str:
    return number if number == fmt.MISSING else f"{number}, {words}"


def _klom(found: Any, floor: Any) -> list[tuple[str, str, str]]:
    """Return KLoM of each part of the data that has one, or a dash."""
    parts = found if isinstance(found, Mapping) and "x" not in found else {"": found}
    out = []
    for part, value in (parts or {"": None}).items():
        own = floor.get(part) if part and isinstance(floor, Mapping) and "x" not in floor else floor
        name = f"divergence of margins (KLoM){f', {part} set' if part else ''}"
        out.append((name, _value(value, ""), _beside(_value(own, ""), "the floor")))
    return out


def _expires(record: Record) -> list[tuple[str, str, str]]:
    """Return what the qualification is of: name, what it is, and by what it is known."""
    return [
        ("the model", f"{record['network']}, {record['task']}", str(record.get("model") or NONE)),
        ("the data", fmt.count(record["samples"], "training sample"), str(record.get("data") or NONE)),
        ("the method", str(record["method"]["name"]), _settings(record["method"]) or "no settings"),
    ]


def _facts(record: Record) -> list[tuple[str, list[tuple[str, str]]]]:
    pool = record["pool"]
    speed = pool.get("models_per_minute")
    return [
        ("pool", [("models", f"{pool['models']:,}"),
                  ("trained on each", f"{pool['samples']:,} of {fmt.count(record['samples'], 'sample')}"),
                  ("seed", str(pool["seed"])),
                  ("models a minute", fmt.MISSING if speed is None else f"{speed:.3g}")]),
        ("recipe", [(str(k), shown(v)) for k, v in record["recipe"].items()] or [("", NONE)]),
        ("method", [(str(k), shown(v)) for k, v in record["method"].items()]),
        ("model, digest of its weights", [("", str(record.get("model") or NONE))]),
        ("data, digest", [("", str(record.get("data") or NONE))]),
        ("confidence of bounds", [("", f"{_percent(record['confidence'])}%")]),
    ]  # fmt: skip


def _costs(cost: Part) -> list[tuple[str, str]]:
    known = [(text, cost.get(name)) for name, text in COSTS.items()]
    total = sum(seconds for _, seconds in known if seconds is not None)
    return [
        *((text, _seconds(seconds)) for text, seconds in known),
        ("together", _seconds(total)),
        ("training one model of the pool, to compare", _seconds(cost.get("retrain"))),
    ]


def _settings(method: Part) -> str:
    return ", ".join(f"{name} = {shown(value)}" for name, value in method.items() if name != "name")


def _seconds(x: float | None) -> str:
    return fmt.MISSING if x is None else f"{fmt.digits(x, 's')} s"


def _markup(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)


def _percent(share: float) -> str:
    return f"{100 * share:g}"


def _known(entry: Any, unit: str) -> dict[str, Any] | None:
    return {**entry, "unit": unit} if isinstance(entry, Mapping) and fmt.known(entry) else None


def _stacked(entry: Any, unit: str) -> tuple[str, str]:
    """Return a difference and its interval, for two lines of one cell."""
    found = _known(entry, unit)
    said = fmt.MISSING if found is None else fmt.difference(found, ends=True)
    text, _, ends = SIGNED.sub(r"\1\g<2>0", said).partition(" (")
    return text, ends.removesuffix(")")


def _value(entry: Any, unit: str) -> str:
    """Return a number with its interval, or a plain number; of a spread over groups of models its mean."""
    spread = isinstance(entry, Mapping) and "mean" in entry
    found = _known({**entry, "x": entry["mean"], "n": entry["size"]} if spread else entry, unit)
    return _number(entry, unit) if found is None else fmt.value(found, ends=True)


def _number(x: Any, unit: str) -> str:
    known = isinstance(x, int | float) and math.isfinite(x)
    return fmt.digits(x, unit) + fmt.suffix(unit) if known else fmt.MISSING


def _length(x: float | None, unit: str) -> str:
    return fmt.MISSING if x is None else fmt.digits(x, unit)


def _of(n: int | None, of: int, word: str = " of ") -> str:
    return fmt.MISSING if n is None else f"{n:,}{word}{of:,}"


def _p(p: float | None) -> str:
    """Return a p-value as text.

    >>> _p(0.01234), _p(2e-9), _p(None)
    ('0.0123', '<0.001', '–')
    """
    return fmt.MISSING if p is None else "<0.001" if p < 0.001 else f"{p:.3g}"


def _effect(x: float | None, unit: str) -> str:
    """Return an effect or a margin with its unit, if that is short."""
    if x is None or math.isinf(x):
        return FEW
    return fmt.digits(x, unit) + ("" if len(unit) > 12 else fmt.suffix(unit, gap=True))
