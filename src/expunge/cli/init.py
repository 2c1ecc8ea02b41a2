"""``expunge init``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli._app import app
from expunge.cli._show import emit, options


@app.command()
def init(
    context: typer.Context,
    network: Annotated[
        str | None, typer.Option(help="package.module:function, hf:folder, or a named network for --name.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Trained weights: safetensors or a state_dict.")] = None,
    train: Annotated[str | None, typer.Option(help="Training samples: file, pattern, folder or function.")] = None,
    test: Annotated[str | None, typer.Option(help="Test samples.")] = None,
    name: Annotated[str | None, typer.Option(help="A named data set instead of files.")] = None,
    inputs: Annotated[str, typer.Option(help="Input columns, comma-separated.")] = "image",
    target: Annotated[str, typer.Option(help="Label column, or several, comma-separated, of multilabel.")] = "label",
    ids: Annotated[str | None, typer.Option("--id", help="Column of unique ids.")] = None,
    task: Annotated[
        str | None, typer.Option(help="classification, binary, multilabel, regression, quantile or causal_lm.")
    ] = None,
    regression: Annotated[bool, typer.Option("--regression", help="The same as --task regression.")] = False,
    method: Annotated[str, typer.Option("--method", "-m", help="See expunge methods.")] = "ssd",
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("expunge.toml"),
) -> None:
    """Write a commented project file that says what the model and the data are.

    Edit it, then run [bold]expunge prepare[/bold]. For an example:
    [bold]expunge init --network hf:checkpoint --train train.parquet --inputs text --id customer[/bold]

    Raises:
        UserError: the path is a folder, or the kind of task is unknown.
    """
    from expunge.choice import TASKS
    from expunge.cli._jobs import free
    from expunge.errors import UserError, suggest
    from expunge.files import there, write_text
    from expunge.methods import load
    from expunge.project import template

    load(method)
    kind = task or ("regression" if regression else "classification")
    if kind not in TASKS:
        raise UserError("a kind of task", repr(kind), suggest(kind, TASKS))
    if regression and kind != "regression":
        raise UserError("one kind of task", f"--task {kind} and --regression", "leave one of them out")
    if there(output) == "a folder":
        raise UserError("a file to write", f"the folder {output}", "name a file: -o expunge.toml")
    targets = tuple(word.strip() for word in target.split(",") if word.strip())
    if not targets:
        raise UserError("a label column", "none", "name one by --target")
    replace = free(options(context), output, ".toml")
    network = network or ("" if name else "my_model:build")
    own = network.startswith("hf:") or name is not None
    text = template(
        network=network,
        weights=weights or (None if own else "model.safetensors"),
        train=train or (None if name else "train.parquet"),
        name=name,
        test=test,
        inputs=tuple(word.strip() for word in inputs.split(",") if word.strip()),
        target=targets,
        ids=ids,
        kind=kind,
        method=method,
    )
    write_text(output, text)
    done = "Replaced" if replace else "Wrote"
    emit(options(context), {"file": str(output)}, f"{done} {output}: edit it, then run expunge prepare.")
