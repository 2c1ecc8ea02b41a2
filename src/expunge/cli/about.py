"""``expunge methods``, ``expunge measures`` and ``expunge cite``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from expunge.cli._app import app
from expunge.cli._show import emit, options


@app.command()
def methods(
    context: typer.Context, name: Annotated[str | None, typer.Argument(help="One method, with its fields.")] = None
) -> None:
    """List the methods: what each needs to prepare and to unlearn; with a NAME, its settings and source."""
    from dataclasses import fields

    from rich.table import Table

    from expunge.methods import build, load
    from expunge.methods import names as known

    chosen = known(controls=True) if name is None else [load(name).name]
    rows = {}
    for key in chosen:
        cls = load(key)
        method = build({"name": key, **cls.example})
        rows[key] = {
            "summary": (cls.__doc__ or "").strip().splitlines()[0],
            "prepare": method.prepares.words(),
            "unlearn": method.unlearns.words(),
            "declines": _declines(method),
            "control": cls.control,
            "reference": f"{cls.reference.title}, {cls.reference.year}, {cls.reference.link}",
            "fields": {f.name: {"default": f.default, **f.metadata} for f in fields(cls)},
        }
    if name is None:
        table = Table("method", "what it does", "to prepare", "to unlearn", "declines", title="Methods and their needs")
        for key, row in rows.items():
            mark = " (control)" if row["control"] else ""
            table.add_row(key + mark, *(str(row[k]) for k in ("summary", "prepare", "unlearn", "declines")))
            table.add_section()
        emit(options(context), rows, table)
        return
    row = rows[chosen[0]]
    table = Table("field", "symbol", "default", "unit", "what it is", title=chosen[0])
    for field in fields(load(name)):
        m = field.metadata
        table.add_row(field.name, m["symbol"], str(field.default), m["unit"], m["text"])
    needs = f"Needs to prepare: {row['prepare']}. Needs to unlearn: {row['unlearn']}. Declines: {row['declines']}."
    emit(options(context), rows, str(row["summary"]), table, needs, f"Source: {row['reference']}")


def _declines(method: Any) -> str:
    """Return the tasks and kinds of forget sets that a method declines, in words."""
    from typing import get_args

    from torch import nn

    from expunge.scenario import Kind, Scenario
    from expunge.task import Classification, Regression

    def refused(task: Any) -> list[str]:
        cases = {k: Scenario(train=("a", "b"), forget=("a",), kind=k, target=0) for k in get_args(Kind)}
        return [kind for kind, case in cases.items() if method.declines(task, case, nn.Identity())]

    every = list(get_args(Kind))
    tasks = {"classification": refused(Classification()), "regression": refused(Regression())}
    whole = [name for name, kinds in tasks.items() if kinds == every]
    kinds = [k for k in every if any(k in found for name, found in tasks.items() if name not in whole)]
    return "; ".join([*whole, *([f"forget sets of kind {', '.join(kinds)}"] if kinds else [])]) or "-"


@app.command()
def measures(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="One family or attack, with its definition.")] = None,
) -> None:
    """List what the audit measures: numbers by name, for --metric and --bound, their ideal and what they need."""
    from inspect import cleandoc

    from rich.table import Table

    from expunge import attacks, metrics
    from expunge.errors import UserError, suggest
    from expunge.metrics.membership import Membership

    found: dict[str, Any] = {n: metrics.load(n)() for n in metrics.names() if n != "membership"}
    found |= {f"membership/{n}": Membership(names=(n,)) for n in attacks.names()}
    if name is not None and name not in found:
        raise UserError("a known metric or attack", repr(name), suggest(name, found))
    rows = {}
    for key in [name] if name else found:
        attack = key.partition("/")[2]
        cls = attacks.load(attack) if attack else type(found[key])
        rows[key] = {
            "text": cleandoc(cls.__doc__ or ""),
            "kind": "attack" if attack else "metric",
            "needs": sorted(found[key].needs | cls.needs),
            "trains": found[key].trains,
            "numbers": {
                n: {"label": m.label, "goal": str(m.goal), "ideal": m.target, "range": list(m.range)}
                for n, m in found[key].numbers.items()
            },
        }
    table = Table("number", "what it is", "ideal", "needs", title="What the audit measures")
    table.columns[0].no_wrap = True  # names are typed into --bound: an ellipsis would make two of them one
    for row in rows.values():
        for n, m in row["numbers"].items():
            ideal = _ideal(m)
            table.add_row(
                n, m["label"], ideal, ", ".join(row["needs"]) + (" (runs the model)" if row["trains"] else "")
            )
        table.add_section()
    emit(options(context), rows, *([rows[name]["text"]] if name else []), table)


def _ideal(number: Any) -> str:
    if number["ideal"] is not None:
        return f"{number['ideal']:g}"
    return {"as_retrained": "retrained's", "max": "high", "min": "low"}[number["goal"]]


@app.command()
def cite(name: Annotated[str, typer.Argument(help="A method, see expunge methods.")]) -> None:
    """Print the BibTeX entry of a method's source."""
    from expunge.methods import load

    typer.echo(load(name).reference.bibtex(f"{name}"))
