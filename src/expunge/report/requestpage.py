"""The record of one request as one self-contained HTML file, for an auditor to read and to print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from expunge.report import format as fmt
from expunge.report import requestcharts as charts
from expunge.report.document import PREFERRED
from expunge.report.page import template, when
from expunge.report.tunepage import shown

NONE = "not recorded"
FEW = 16  # numbers up to which none is folded away
STEPS = {
    "received": "Received",
    "held": "Put on hold",
    "released": "Hold released",
    "approved": "Approved by a second operator",
    "refused": "Refused",
    "closed": "Closed",
    "erased": "What the request named was erased from the ledger",
    "scheduled": "Scheduled for the next retraining",
    "absent": "None of its samples is in the training data",
    "unlearned": "New version written",
    "verified": "Measured, and within its bounds",
    "deployed": "New version served",
    "failed": "Failed",
    "rolled_back": "Rolled back to the version before",
    "purged": "Older version destroyed",
}
STARTED = {"edit": "Unlearning began", "retrain": "Retraining began"}
RESULTS = {
    "started": "running",
    "unlearned": "being measured",
    "verified": "about to be served",
    "deployed": "served",
    "replaced": "served, then replaced",
    "failed": "failed",
    "rolled_back": "rolled back",
    "absent": "nothing to do",
    "scheduled": "waiting",
}
KINDS = {"ids": ("sample id", None), "subject": ("data subject", None), "class": ("class", "classes")}
ROUTES = {
    "edit": "unlearn now",
    "retrain": "retrain at the next cadence",
    "edit-then-retrain": "unlearn now, retrain at the next cadence",
}
TONES = {"closed": "good", "refused": "calm", "failed": "bad", "held": "warn", "received": "calm"}
FACTS = (
    ("version", "version"),
    ("before", "weights before, digest"),
    ("after", "weights after, digest"),
    ("samples", "samples of the request"),
    ("batch", "forgotten together"),
    ("data", "training data that stays"),
    ("seed", "seed"),
    ("seconds", "seconds"),
    ("environment", "code and environment"),
    ("changed", "share of parameters changed"),
)
EXTRA = (  # only where they were recorded: not every method has them
    ("proof", "proof of what was left out"),
    ("recipe", "recipe"),
    ("prepared", "state prepared anew"),
    ("so_far", "edits since the last training"),
    ("accuracy_drop", "fall of test accuracy"),
    ("not_at_hand", "samples not at hand"),
)


def render(record: Mapping[str, Any], *, links: Sequence[tuple[str, str]] = ()) -> str:
    """Return the record of a request as the text of one HTML file; the same record gives the same text.

    Args:
        record: of `expunge.service.record.record_of`.
        links: names and relative addresses of other pages, shown above the title.

    Returns:
        The page; it loads nothing and runs no script.
    """
    account = record["account"]
    asked, status = account["request"], account["status"]
    models = [_model(record, name, f"m{i}") for i, name in enumerate(record["models"], 1)]
    return template("requestpage.html").render(
        links=links,
        title=f"Request {asked['id']}",
        lead=lead(record),
        status=status["word"],
        tone="bad" if record["overdue"] else TONES.get(status["word"], "warn" if status["open"] else "calm"),
        overdue=record["overdue"],
        held=status["held"],
        counts=_counts(record),
        timeline=[_entry(entry) for entry in account["timeline"]],
        due=day(asked["due"]),
        models=models,
        destroyed=[_destroyed(found) for found in record["destroyed"]],
        limits=record["limits"],
        ledger=record["ledger"],
        head=record["head"],
        written=when(record["written"]),
        none=NONE,
        command="",
        versions=[("expunge", record["expunge"])],
    )


def lead(record: Mapping[str, Any]) -> str:
    """Return in a sentence what was asked, and whether it was done in time."""
    asked, status, days = (record["account"][part] for part in ("request", "status", "days"))
    one, many = KINDS.get(asked["kind"], (asked["kind"], None))
    said = f"Asked to forget {fmt.count(asked['count'], one, many)}, received on {day(asked['received'])}"
    if days["closed"] is not None:
        left = days["left"] or 0
        fits = f"{fmt.count(left, 'day')} before it was due" if left > 0 else "on the day it was due"
        return f"{said}, closed on {day(days['closed'])}, {fits if left >= 0 else fmt.count(-left, 'day') + ' late'}."
    if status["refused"] is not None:
        return f"{said}, refused: {str(status['refused']).rstrip('.')}."
    waits = "overdue" if record["overdue"] else "not closed yet"
    return f"{said}, due on {day(asked['due'])}, {waits}."


def day(text: str) -> str:
    """Return a day of ISO 8601 as a reader writes it; any other text as it is.

    >>> day("2025-03-02"), day("soon")
    ('2 March 2025', 'soon')
    """
    return when(text).removesuffix(", 00:00")


def _counts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    account = record["account"]
    asked, days = account["request"], account["days"]
    rows = [
        ("asked", fmt.count(asked["count"], *KINDS.get(asked["kind"], (asked["kind"], None)))),
        ("route", ROUTES.get(asked["route"], "as the policy says")),
        ("received", day(asked["received"])),
        ("due", day(asked["due"])),
        ("in time", "not closed" if days["in_time"] is None else "yes" if days["in_time"] else "no"),
        ("models", f"{len(record['models']):,}"),
    ]
    approved = account["status"]["approved_by"]
    return [*rows, *([("approved by", approved)] if approved else [])]


def _entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    step = str(entry["step"])
    text = STARTED.get(str(entry.get("how")), "Work began") if step == "started" else STEPS.get(step, step)
    more = [f"version {entry['version']}"] if entry.get("version") else []
    more += [str(entry["reason"])] if entry.get("reason") else []
    return {
        "seq": entry["seq"],
        "day": day(str(entry["at"])[:10]),
        "time": str(entry["at"])[11:16],
        "text": text,
        "more": "; ".join(more),
        "model": entry["model"],
        "actor": entry["actor"],
        "kind": "bad" if step in ("failed", "rolled_back") else "warn" if step in ("held", "refused") else step,
    }


def _model(record: Mapping[str, Any], name: str, key: str) -> dict[str, Any]:
    found, course = record["models"][name], record["decay"].get(name) or {}
    bounds = {b["name"]: b for b in course.get("bounds") or ()}
    drawn = [
        (curve["label"], charts.decay(curve["label"], curve["points"], f"{key}-d{i}", bound=bounds.get(number),
                                      retrained=course.get("retrained") or ()))
        for i, (number, curve) in enumerate((course.get("curves") or {}).items())
    ]  # fmt: skip
    return {
        "key": key,
        "name": name,
        "outcome": found["outcome"],
        "nature": found["nature"],
        "shows": found["shows"]["text"] if any(a["result"] != "absent" for a in found["attempts"]) else "",
        "attempts": [_attempt(a, f"{key}-a{i}", i) for i, a in enumerate(found["attempts"], 1)],
        "fulfilled": course.get("fulfilled"),
        "decay": [(label, Markup(svg)) for label, svg in drawn if svg is not None],
        "left": [_left(b, course["curves"][b["name"]]) for b in bounds.values() if b["name"] in course["curves"]],
        "advice": course.get("advice") or (),
        "retrained": bool(course.get("retrained")),
    }


def _left(bound: Mapping[str, Any], curve: Mapping[str, Any]) -> str:
    """Return how far the last number is from its bound."""
    unit = str(curve["points"][-1].get("unit", ""))
    held = f"{curve['label']} is held to {bound['sign']} {fmt.digits(bound['number'], unit)}{fmt.suffix(unit)}"
    far = f"{fmt.digits(abs(bound['left']), unit)}{fmt.suffix(unit, gap=True)}"
    return f"{held}: {'missed by ' + far if bound['left'] < 0 else far + ' left'}."


def _attempt(attempt: Mapping[str, Any], key: str, number: int) -> dict[str, Any]:
    tables = [_group(column, rows, f"{key}-g{i}") for i, (column, rows) in enumerate((attempt["groups"] or {}).items())]
    return {
        "number": number,
        "how": {"edit": "unlearning", "retrain": "retraining"}.get(str(attempt["how"]), ""),
        "worked": attempt["how"] is not None,
        "result": RESULTS.get(str(attempt["result"]), attempt["result"]),
        "began": when(str(attempt["began"])[:16]),
        "ended": NONE if attempt["ended"] is None else when(str(attempt["ended"])[:16]),
        "failed": attempt["result"] == "failed",
        "reason": attempt["reason"],
        "remedy": attempt["remedy"],
        "method": (attempt["method"] or {}).get("name", NONE),
        "settings": [(k, shown(v)) for k, v in (attempt["method"] or {}).items() if k != "name"],
        "nature": attempt["nature"] or NONE,
        "papers": [_paper(paper) for paper in attempt["papers"]],
        "facts": [(label, _fact(attempt.get(name))) for name, label in FACTS]
        + [(label, _fact(attempt[name])) for name, label in EXTRA if attempt.get(name) is not None],
        "files": list((attempt["files"] or {}).items()),
        "tables": _tables(attempt),
        "gaps": any(row["gap"] for row in attempt["numbers"]),
        "groups": tables,
        "bounds": [_bound(bound) for bound in attempt["bounds"] or ()],
        "note": attempt["note"],
        "unmeasured": attempt["unmeasured"],
    }


def _tables(attempt: Mapping[str, Any]) -> list[list[dict[str, str]]]:
    """Return the numbers that tell most, in the order of other reports, and all others."""
    bounds = " ".join(str(bound.get("bound", "")) for bound in attempt["bounds"] or ())
    at = {name: i for i, name in enumerate(PREFERRED)}
    rows = sorted(attempt["numbers"], key=lambda row: at.get(row["name"], len(at)))
    first = [r for r in rows if r["name"] in at or r["name"].startswith("flips/") or r["name"] in bounds]
    parts = [rows] if len(rows) <= FEW else [first, [r for r in rows if r not in first]]
    return [[_number(row) for row in part] for part in parts if part]


def _paper(paper: Mapping[str, Any]) -> str:
    authors = str(paper.get("authors", "")).replace(" and ", ", ")
    parts = [authors, f"“{paper.get('title', '')}”", str(paper.get("venue") or ""), str(paper.get("year", ""))]
    return ", ".join(p for p in [*parts, str(paper.get("link", ""))] if p)


def _fact(value: Any) -> list[tuple[str, str]]:
    """Return a fact as pairs of a name and a text, the name empty where there is one value only."""
    if value is None:
        return [("", NONE)]
    if isinstance(value, Mapping):
        flat = {k: v for k, v in value.items() if not isinstance(v, Mapping)}
        flat |= {
            f"{k} {part}": v for k, inner in value.items() if isinstance(inner, Mapping) for part, v in inner.items()
        }
        return [(str(k), NONE if v is None else shown(v)) for k, v in flat.items()]
    return [("", shown(value))]


def _number(row: Mapping[str, Any]) -> dict[str, str]:
    before, after = (_known(row[part]) for part in ("before", "after"))
    change = ""
    if before and after:
        unit = str(after["unit"])
        change = fmt.gap({"x": after["x"] - before["x"], "unit": unit}, like=after["x"]) + fmt.suffix(unit, gap=True)
    gap = _known(row["gap"])
    return {
        "name": row["name"],
        "label": row["label"],
        "before": fmt.value(before, ends=True) if before else fmt.MISSING if after else NONE,
        "after": fmt.value(after, ends=True) if after else NONE,
        "change": change or fmt.MISSING,
        "gap": "" if gap is None else fmt.difference(gap, ends=True),
        "n": "" if after is None else f"{after.get('n', 0):,}",
    }


def _known(entry: Any) -> Mapping[str, Any] | None:
    if not isinstance(entry, Mapping) or isinstance(entry.get("x"), bool):
        return None
    return {"unit": "", **entry} if isinstance(entry.get("x"), int | float) else None


def _group(column: str, rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    svg = charts.groups(column, rows, key)
    texts = []
    for row in rows:
        accuracy, change = _known(row.get("accuracy")), _known(row.get("change"))
        texts.append(
            (
                str(row["at"]),
                fmt.value(accuracy, ends=True) if accuracy else NONE,
                fmt.difference(change, ends=True) if change else NONE,
                "" if accuracy is None else f"{accuracy.get('n', 0):,}",
            )
        )
    title = "class" if column == "label" else column
    return {"title": title, "svg": None if svg is None else Markup(svg), "rows": texts, "most": charts.MOST}


def _bound(bound: Mapping[str, Any]) -> dict[str, str]:
    if bound.get("held") is False:
        word = "not held"
    else:
        word = "missed" if not bound.get("met") else "met" if bound.get("sure") else "met, unsure"
    return {"word": word, "text": str(bound.get("text") or bound.get("bound") or NONE)}


def _destroyed(found: Mapping[str, Any]) -> dict[str, Any]:
    items = [
        f"{name}: {', '.join(map(str, w)) if isinstance(w, list) else shown(w)}" for name, w in found["what"].items()
    ]
    return {
        "day": day(str(found["at"])[:10]),
        "model": found["model"],
        "step": STEPS.get(str(found["step"]), found["step"]),
        "what": items or [NONE],
        "reason": found["reason"],
    }
