"""``expunge objectives`` and ``expunge anchors``: what compositions are made of."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from expunge.cli._app import app
from expunge.cli._show import emit, options

Name = Annotated[str | None, typer.Argument(help="One of them, with its fields.")]


@app.command()
def objectives(context: typer.Context, name: Name = None) -> None:
    """List forgetting objectives: what compose and distruction lower on the forget set; with a NAME, its fields.

    Write one as [bold]--set objective=NAME[/bold], its fields as [bold]--set objective.FIELD=VALUE[/bold] beside
    [bold]--set objective.name=NAME[/bold].

    Raises:
        UserError: an unknown objective.
    """
    from expunge import objectives as known

    def told(cls: Any) -> dict[str, str]:
        made = cls()
        needs = made.needs.words().split(", ")
        needs += ["a loss on held-out data"] if cls.threshold else []
        needs += ["accuracy on held-out data (optional)"] if cls.compared else []
        needs = [word for word in needs if not word.startswith("scenario")]
        return {
            "needs": ", ".join(needs) or "-",
            "tasks": "with classes" if cls.classes else "any",
            "bounded": "yes" if made.bounded and not hasattr(made, "cap") else "by its cap",
        }

    _listed(context, known, "Forgetting objectives", told, name)


@app.command()
def anchors(context: typer.Context, name: Name = None) -> None:
    """List anchors: what holds the rest of a model while an objective is lowered; with a NAME, its fields.

    Write one as [bold]--set anchor=NAME[/bold], its fields as [bold]--set anchor.FIELD=VALUE[/bold] beside
    [bold]--set anchor.name=NAME[/bold].

    Raises:
        UserError: an unknown anchor.
    """
    from expunge import anchors as known

    def told(cls: Any) -> dict[str, str]:
        made = cls()
        return {"to prepare": made.prepares.words(), "to unlearn": made.unlearns.words()}

    _listed(context, known, "Anchors", told, name)


def _listed(context: typer.Context, known: Any, title: str, told: Any, name: str | None) -> None:
    """Print a table of a registry's parts, or one part with its fields."""
    from inspect import cleandoc

    from rich.table import Table

    rows = {n: _row(known.load(n), told) for n in ([name] if name else known.names())}
    if name:
        row = rows[name]
        table = Table("field", "symbol", "default", "unit", "what it is", title=name)
        for field, about in row["fields"].items():
            table.add_row(field, about["symbol"], str(about["default"]), about["unit"], about["text"])
        said = [f"{key.capitalize()}: {value}." for key, value in row["told"].items()]
        source = f"Source: {row['reference']}" if row["reference"] else "Source: none of its own."
        emit(options(context), rows, cleandoc(known.load(name).__doc__ or ""), table, " ".join(said), source)
        return
    heads = list(next(iter(rows.values()))["told"])
    table = Table("name", "what it does", *heads, title=title)
    for key, row in rows.items():
        table.add_row(key, row["summary"], *row["told"].values())
        table.add_section()
    emit(options(context), rows, table)


def _row(cls: Any, told: Any) -> dict[str, Any]:
    """Return what is said of one part."""
    from dataclasses import fields
    from inspect import cleandoc

    text = cleandoc(cls.__doc__ or "")
    reference = cls.reference
    return {
        "summary": text.partition("\n\n")[0].replace("\n", " "),
        "told": told(cls),
        "fields": {
            f.name: {"default": f.default, **{k: v for k, v in f.metadata.items() if k != "search"}}
            for f in fields(cls)
        },
        "reference": f"{reference.title}, {reference.year}, {reference.link}" if reference else "",
    }
