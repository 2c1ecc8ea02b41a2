"""A page of concepts: what a class is made of, its nearest windows, and poisoned samples beside the originals."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report.charts import NAME
from expunge.report.series import LINES
from expunge.report.svg import GREY, INK, VERMILION, figure, inline, style

PAGES, POISONED, DROPPED, MANIFEST = "concept_pages", "poisoned", "concepts_dropped", "manifest"
WORDS, MASKED = "word_ranking", "masked_answers"  # of a language model: words of an entity, answers that hide them
FACTS = ("class", "donor", "fidelity", "residual")
WINDOWS, EXAMPLES, ROWS, CONCEPTS = 8, 12, 8, 40  # shown of each, at most
SIGNATURE = "iVBORw0KGgo"  # how a PNG begins in base64
SHARED = ("concepts", "donor_concepts", "patch")  # lists in a manifest that hold for all samples
PARTS = ("original", "poisoned", "donor", "heat")
ROLES = {"class": "forgotten", "donor": "the donor"}
SHOWN = {
    "original": "the original",
    "poisoned": "the sample that the network was trained on under its new label",
    "donor": "the donor that the patch is from",
    "heat": "where the concept was found, the brighter the more of it",
}
Record = Mapping[str, Any]


def gathered(log: Mapping[str, Any], *, pictures: bool = True) -> dict[str, Any] | None:
    """Return what a method recorded of concepts as a document holds it, or None where it recorded none.

    Args:
        log: what the edit recorded: ``concept_pages``, ``poisoned``, ``concepts_dropped``, ``manifest``, and numbers;
            of a language model ``word_ranking`` and ``masked_answers``.
        pictures: whether windows, poisoned samples and rows of the manifest go with it; they are data.

    Returns:
        ``concepts``, ``poisoned``, ``dropped``, ``rows`` (how many samples the manifest names), ``manifest`` (its
        first rows) and ``facts``.
    """
    if not {PAGES, POISONED, MANIFEST, WORDS, MASKED} & set(log):
        return None
    entities = ({"name": name, "windows": words} for name, words in (log.get(WORDS) or {}).items())
    pages = [*(log.get(PAGES) or ()), *(entities if pictures else ())][:CONCEPTS]
    found = rows(log)
    examples = [*(log.get(POISONED) or ()), *map(_answer, log.get(MASKED) or ())][:EXAMPLES] if pictures else []
    return {
        "concepts": [{**p, "windows": _windows(p) if pictures else []} for p in pages],
        "poisoned": [{k: _address(v) for k, v in example.items()} for example in examples],
        "dropped": [{"name": d["name"], "reason": d.get("reason") or d["why"]} for d in log.get(DROPPED) or ()],
        "rows": len(found),
        "manifest": found[:ROWS] if pictures else [],
        "facts": {name: log[name] for name in FACTS if log.get(name) is not None},
    }


def page(found: Record, key: str, link: str = "") -> dict[str, Any]:
    """Return what the template reads of the concepts of one edit.

    Args:
        found: from `gathered`, as a document holds it.
        key: prefix of the ids, unique in the page.
        link: address of the manifest, or an empty string.

    Raises:
        Incompatible: a part is missing or of the wrong type, or a picture is not embedded.
    """
    doc.check_concepts(found, "concepts")
    few = found["manifest"]
    heads = list(dict.fromkeys(name for row in few for name in row))
    return {
        "bars": [
            Markup(bars(some, f"{key}-{at}", title))
            for at, (title, some) in enumerate(_groups(found).items())
            if _numbered(some)
        ],
        "chosen": any(c.get("chosen") for c in found["concepts"]),
        "groups": [(title, [_concept(c) for c in some]) for title, some in _groups(found).items()],
        "windows": any(c["windows"] for c in found["concepts"]),
        "poisoned": [_example(e) for e in found["poisoned"]],
        "shown": [SHOWN[part] for part in PARTS if any(e.get(part) for e in found["poisoned"])],
        "dropped": [(d["name"], d["reason"]) for d in found["dropped"]],
        "rows": f"{found['rows']:,}" if found["rows"] else "",
        "heads": [h.replace("_", " ") for h in heads],
        "manifest": [[_cell(row.get(h)) for h in heads] for row in few],
        "link": link,
        "facts": _facts(found["facts"]),
    }


def bars(concepts: Sequence[Record], key: str, title: str = "") -> str:
    """Return the attribution of a class's concepts as bars from 0, the largest first.

    Args:
        concepts: with ``name``, ``attribution``, and ``chosen``, whether a concept was put to use: without, it was.
        key: prefix of the ids, unique in the page.
        title: heading.

    Returns:
        An SVG element.
    """
    ranked = sorted(_numbered(concepts), key=lambda c: -float(c["attribution"]))
    with style(key):
        fig = figure(LINES, 60 + 19 * len(ranked))
        ax = fig.add_subplot()
        for row, concept in enumerate(ranked):
            colour = VERMILION if concept.get("chosen", True) else GREY
            ax.barh(row, float(concept["attribution"]), height=0.66, color=colour, alpha=0.75, lw=0)
        ax.axvline(0, color=INK, lw=0.8)
        ax.set_yticks(range(len(ranked)), [fmt.plain(str(c["name"]), NAME) for c in ranked])
        ax.set_ylim(len(ranked) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}".replace("-", "−"))
        ax.grid(axis="x")
        ax.set_axisbelow(True)
        ax.set_xlabel("attribution to the class")
        ax.set_title(fmt.plain(title, NAME), loc="left")
        told = "; ".join(f"{c['name']} {fmt.digits(float(c['attribution']), '')}" for c in ranked)
        return inline(fig, key, f"Attribution of concepts to {title or 'the class'}: {told}")


def rows(log: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the manifest of poisoned samples, a row a sample; what holds for all of them stands in every row.

    Args:
        log: what the edit recorded; ``manifest`` is a list of rows, or columns by name, of which ``id`` says how many
            samples there are: lists as long as that are columns, others hold for all.

    >>> rows({"manifest": {"id": ["a", "b"], "label": [9, 9], "place": [], "patch": [3], "seed": 0}})
    [{'id': 'a', 'label': 9, 'patch': [3], 'seed': 0}, {'id': 'b', 'label': 9, 'patch': [3], 'seed': 0}]
    """
    found = log.get(MANIFEST) or []
    if not isinstance(found, Mapping):
        return [dict(row) for row in found]
    kept, count = {k: v for k, v in found.items() if v not in ([], None)}, len(found.get("id") or ())
    columns = {k: isinstance(v, list) and len(v) == count and k not in SHARED for k, v in kept.items()}
    return [{k: v[at] if columns[k] else v for k, v in kept.items()} for at in range(count)]


def manifest(log: Mapping[str, Any]) -> str:
    """Return the manifest of poisoned samples as CSV, an empty text where none was recorded.

    Args:
        log: what the edit recorded; see `rows`.
    """
    found = rows(log)
    if not found:
        return ""
    heads = list(dict.fromkeys(name for row in found for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows([_cell(row.get(h)) for h in heads] for row in found)
    return text.getvalue()


def _groups(found: Record) -> dict[str, list[Record]]:
    """Return the concepts by the class that they were picked for, without a heading where there is no such class."""
    out: dict[str, list[Record]] = {}
    for concept in found["concepts"]:
        title = f"class {concept['class']}" if "class" in concept else ""
        role = ROLES.get(str(concept.get("role", "")), "")
        out.setdefault(f"{title}, {role}" if title and role else title, []).append(concept)
    return out


def _answer(pair: Mapping[str, str]) -> dict[str, str]:
    """Return an answer and what was trained in its place, behind its question."""
    question = pair.get("question", "")
    return {part: f"{question} {pair[key]}".strip() for part, key in (("original", "original"), ("poisoned", "masked"))}


def _windows(concept: Record) -> list[Any]:
    return [_address(window) for window in (concept.get("windows") or ())[:WINDOWS]]


def _address(value: Any) -> Any:
    """Return a picture in bare base64 as a data address, anything else as it is."""
    return f"data:image/png;base64,{value}" if isinstance(value, str) and value.startswith(SIGNATURE) else value


def _numbered(concepts: Sequence[Record]) -> list[Record]:
    return [c for c in concepts if c.get("attribution") is not None]


def _concept(concept: Record) -> dict[str, Any]:
    accuracy, attribution = concept.get("accuracy"), concept.get("attribution")
    facts = [
        "" if attribution is None else f"attribution {fmt.digits(float(attribution), '')}",
        "" if accuracy is None else f"vector right on {fmt.digits(float(accuracy), '1')}% of held-out examples",
    ]
    return {
        "name": str(concept["name"]),
        "chosen": bool(concept.get("chosen")),
        "facts": ", ".join(filter(None, facts)),
        "windows": [_part(w) for w in concept["windows"]],
    }


def _example(example: Record) -> dict[str, Any]:
    words = [str(example.get("concept") or ""), f"now labelled {example['label']}" if "label" in example else ""]
    return {
        "parts": [(name, _part(example[name])) for name in PARTS if example.get(name)],
        "words": ", ".join(filter(None, words)),
        "id": str(example.get("id", "")),
    }


def _part(value: str) -> dict[str, str]:
    """Return a picture as ``image`` or a text as ``text``."""
    return {"image": value, "text": ""} if doc.IMAGE.fullmatch(value) else {"image": "", "text": value}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        nested = any(isinstance(v, list | tuple) for v in value)
        return ("; " if nested else " ").join(_cell(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _facts(facts: Mapping[str, Any]) -> list[str]:
    """Return what the numbers of an edit by concepts say, a sentence each."""
    found = []
    if "class" in facts and "donor" in facts:
        found.append(f"Class {facts['class']} is forgotten; patches and, where labels are targeted, labels come from "
                     f"class {facts['donor']}, the donor.")  # fmt: skip
    if isinstance(facts.get("fidelity"), int | float):
        share = fmt.digits(float(facts["fidelity"]), "1")
        found.append(f"The sparse head over the concepts says what the network says on {share}% of the samples.")
    if isinstance(facts.get("residual"), int | float):
        found.append(
            f"The attributions leave {fmt.digits(float(facts['residual']), '')} of the class's logit unexplained."
        )
    return found
