"""``expunge methods``, ``expunge measures`` and ``expunge cite``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from expunge.cli._app import app
from expunge.cli._show import emit, options


@app.command()
def methods(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="One method, with its fields.")] = None,
    have: Annotated[
        str | None,
        typer.Option(
            help="What you have, as forget,retain-inputs,train-state: train, forget, retain, holdout with labels, "
            "with -inputs without them, with -ids their ids alone; recipe; train-state, what prepare left.",
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="classification, binary, multilabel, regression, quantile or causal_lm.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="Of request: class, subclass, random, ids, subject, range, dates.")
    ] = None,
) -> None:
    """List the methods: what each needs and costs; with a NAME, its settings; with --have, which of them remain.

    With [bold]--have[/bold] the methods that can be used come first, the cheapest first, then the others with what they
    lack. Costs are in epochs of training on the retained data, by the passes that a method makes and what it runs on a
    sample, with 5 % of the training data to forget and 10 classes.

    Raises:
        UserError: an unknown method, task, kind or word for what you have.
    """
    from expunge import choice

    chosen = options(context)
    if name is not None:
        _one(chosen, name)
    elif have is None and task is None and kind is None:
        _every(chosen)
    else:
        words = [word.strip() for word in (have or "").split(",") if word.strip()]
        everything = ["train", "forget", "retain", "holdout", "recipe"]
        found = choice.choices(choice.had(words if have is not None else everything), task=task, kind=kind)
        emit(chosen, {c.name: vars(c) | {"usable": c.usable} for c in found}, *_chosen(found))


def _rows(names: list[str]) -> dict[str, dict[str, Any]]:
    """Return what is told of each method."""
    from dataclasses import MISSING, fields

    from expunge import choice

    rows = {}
    for key in names:
        method = choice.example(key)
        cls = type(method)
        defaults = {f.name: f.default if f.default is not MISSING else getattr(method, f.name) for f in fields(cls)}
        rows[key] = {
            "summary": choice.summary(method),
            "prepare": method.prepares.words(),
            "unlearn": method.unlearns.words(),
            "passes": {phase: choice.passes(method, phase) for phase in ("prepare", "unlearn")},
            "declines": _declines(method),
            "control": cls.control,
            "source": choice.source(method),
            "reference": f"{cls.reference.title}, {cls.reference.year}, {cls.reference.link}",
            "fields": {f.name: {"default": defaults[f.name], **f.metadata} for f in fields(cls)},
        }
    return rows


def _every(chosen: Any) -> None:
    from rich.table import Table

    from expunge.methods import names

    rows = _rows(names(controls=True))
    heads = ("method", "what it does", "to prepare", "to unlearn", "passes", "declines", "source")
    table = Table(*heads, title="Methods and their needs")
    for key, row in rows.items():
        mark = " (control)" if row["control"] else ""
        both = [f"{phase}: {text}" for phase, text in row["passes"].items() if text != "-"]
        texts = (row["summary"], row["prepare"], row["unlearn"], "\n".join(both) or "-", row["declines"])
        table.add_row(key + mark, *texts, row["source"])
        table.add_section()
    emit(chosen, rows, table)


def _one(chosen: Any, name: str) -> None:
    from inspect import cleandoc

    from rich.table import Table

    from expunge.methods import load

    cls = load(name)
    row = _rows([cls.name])[cls.name]
    table = Table("field", "symbol", "default", "unit", "what it is", title=cls.name)
    for field, about in row["fields"].items():
        table.add_row(field, about["symbol"], str(about["default"]), about["unit"], about["text"])
    needs = f"Needs to prepare: {row['prepare']}. Needs to unlearn: {row['unlearn']}. Declines: {row['declines']}."
    cost = f"Passes to prepare: {row['passes']['prepare']}; to unlearn: {row['passes']['unlearn']}."
    emit(chosen, {cls.name: row}, cleandoc(cls.__doc__ or ""), table, needs, cost, f"Source: {row['reference']}")


def _chosen(found: list[Any]) -> list[Any]:
    """Return the tables of methods that remain, and of those that do not."""
    from rich.table import Table

    remain, others = [c for c in found if c.usable], [c for c in found if not c.usable]
    table = Table("method", "what it does", "passes to unlearn", "epochs over retain", "source", title="What remains")
    for c in remain:
        table.add_row(c.name, c.summary, c.passes, f"{c.cost:.3g}", c.source)
    rest = Table("method", "what is missing", title="What does not")
    for c in others:
        rest.add_row(c.name, c.declined or ", ".join(c.missing))
    shown = [table] if remain else ["No method remains with that."]
    return [*shown, *([rest] if others else [])]


def _declines(method: Any) -> str:
    """Return the tasks and kinds of forget sets that a method declines, in words."""
    from typing import get_args

    from torch import nn

    from expunge.choice import TASKS
    from expunge.scenario import Kind, Scenario

    def refused(task: Any) -> list[str]:
        cases: dict[Kind, Scenario] = {
            k: Scenario(train=("a", "b"), forget=("a",), kind=k, target=0) for k in get_args(Kind)
        }
        return [kind for kind, case in cases.items() if method.declines(task, case, nn.Identity())]

    every = list(get_args(Kind))
    tasks = {name: refused(task) for name, task in TASKS.items()}
    whole = [name for name, kinds in tasks.items() if kinds == every]
    kinds = [k for k in every if any(k in found for name, found in tasks.items() if name not in whole)]
    said = [", ".join(whole), f"forget sets of kind {', '.join(kinds)}" if kinds else ""]
    return "; ".join(filter(None, said)) or "-"


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
