"""``expunge methods`` and ``expunge cite``."""

from __future__ import annotations

from typing import Annotated

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
            "control": cls.control,
            "reference": f"{cls.reference.authors.split(' and ')[0]} et al. {cls.reference.year}",
            "fields": {f.name: {"default": f.default, **f.metadata} for f in fields(cls)},
        }
    table = Table(title="Methods" if name is None else name, show_lines=True)
    if name is None:
        for column in ("method", "what it does", "prepare needs", "unlearn needs"):
            table.add_column(column)
        for key, row in rows.items():
            mark = " (control)" if row["control"] else ""
            table.add_row(key + mark, str(row["summary"]), str(row["prepare"]), str(row["unlearn"]))
    else:
        for column in ("field", "symbol", "default", "unit", "what it is"):
            table.add_column(column)
        for field in fields(load(name)):
            m = field.metadata
            table.add_row(field.name, m["symbol"], str(field.default), m["unit"], m["text"])
    row = rows[chosen[0]]
    more = [] if name is None else [f"Needs to prepare: {row['prepare']}. Needs to unlearn: {row['unlearn']}."]
    emit(options(context), rows, table, *more)


@app.command()
def cite(name: Annotated[str, typer.Argument(help="A method, see expunge methods.")]) -> None:
    """Print the BibTeX entry of a method's source."""
    from expunge.methods import load

    typer.echo(load(name).reference.bibtex(f"{name}"))
