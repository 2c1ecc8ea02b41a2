"""``expunge exact``: check exact unlearning after the fact, and write what a server serves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli._app import Options, app
from expunge.cli._show import emit, options

if TYPE_CHECKING:
    from torch import nn

    from expunge.exact.store import Store
    from expunge.folders import Folder
    from expunge.method import State

exact = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Check what sisa and s3t claim: that nothing served was trained on a deleted sample.\n\n"
    "Prepare with [bold]expunge prepare -m s3t[/bold] (or sisa), delete with [bold]expunge forget[/bold]; then "
    "[bold]audit[/bold] holds the folder to its manifest and reads no data, [bold]replay[/bold] trains stages again "
    "and compares bits. [bold]store[/bold] writes a file for each stage, for expunge.exact.server, which deletes while "
    "it serves; once one does, destroy the folders that prepare and forget wrote, which hold the same weights.\n\n"
    "Exit codes: 0 done, 2 bad usage or input, 3 done, and something is not as the manifest says.",
)
app.add_typer(exact, name="exact")

DIFFERS = 3  # exit code: done, and not as the manifest says
Kept = Annotated[Path, typer.Argument(metavar="FOLDER", help="What prepare, forget or exact store wrote.")]
Written = Annotated[Path, typer.Argument(metavar="FOLDER", help="What prepare or forget wrote.")]


def _opened(path: Path, chosen: Options) -> tuple[State | Store, nn.Module | None]:
    """Return the store in a folder, or state and network before any stage in one of prepare or forget."""
    from expunge.cli import _jobs
    from expunge.exact.store import BOOK, Store
    from expunge.files import there

    if there(path / BOOK) == "a file":
        return Store.open(path, check=False), None  # the audit reads the stages
    return _base(_jobs.opened(path, chosen))


def _base(folder: Folder) -> tuple[State, nn.Module]:
    """Return state and network before any stage in a folder of prepare or forget."""
    from expunge.exact.store import recorded

    recorded(folder.state)  # another method's is refused before its weights are read
    return folder.state, folder.project.network.load(folder.path)


@exact.command()
def audit(context: typer.Context, folder: Kept) -> None:
    """Hold a folder to its manifest: no data is read and nothing is trained.

    Checked are: that no sample which anything served has read, through all it was made from, is deleted; that the table
    of deletions is that of the manifest, whose entries follow each other; that the weights of every live stage have
    the digests of their training, and so does the network before them; that nothing of a revoked stage is left. Exit
    code 3: something is not so.

    Raises:
        Exit: with 3 where there is a fault.
    """
    from dataclasses import asdict

    from expunge.exact.replay import audit as run

    chosen = options(context)
    found = run(*_opened(folder, chosen))
    stages = f"{found.live} live stages, {found.served} of them served, at depth {', '.join(map(str, found.depths))}"
    lines = [
        f"{stages} by shard; {found.reached} samples were read for what is served, {found.deleted} are deleted.",
        *found.faults,
        "Clean: no deleted sample is among those read, and all is as the manifest says."
        if found.clean
        else "Not clean: do not serve this.",
    ]
    emit(chosen, asdict(found) | {"clean": found.clean}, *lines)
    if not found.clean:
        raise typer.Exit(DIFFERS)


@exact.command()
def replay(
    context: typer.Context,
    folder: Written,
    stages: Annotated[
        list[str] | None,
        typer.Option("--stage", metavar="SHARD/SLICES", help="Repeatable, as 0/2-0; default every live stage."),
    ] = None,
) -> None:
    """Train stages again from their manifest entries, and compare their weights with those kept, bit by bit.

    The training data is needed, that of deleted samples is not read. A stage begins from the kept weights of the stages
    before it. Work is done on the CPU; bits are the same where versions and the number of threads (OMP_NUM_THREADS) are
    those of the training. Exit code 3: a stage differs.

    Raises:
        Exit: with 3 where a stage differs.
        UserError: the training data or the recipe is not at hand, or a stage is unknown.
    """
    from dataclasses import asdict

    from rich.table import Table

    from expunge.cli import _jobs
    from expunge.errors import UserError
    from expunge.exact.replay import replay as run

    chosen = options(context)
    opened = _jobs.opened(folder, chosen)
    place = opened.project
    if place.recipe is None:
        raise UserError("the [recipe] that was trained by", "none", "put it back into the project file")
    base = place.network.load(opened.path)
    runtime = place.runtime("cpu", {})
    found = run(opened.state, base, place.task, train=place.train, recipe=place.recipe, stages=stages, runtime=runtime)
    table = Table("stage", "samples", "the same bits", "largest difference", title="Stages trained again")
    for one in found:
        table.add_row(one.stage, f"{one.n:,}", "yes" if one.same else "no", f"{one.largest:.3g}")
    odd = [one for one in found if not one.same]
    said = f"{len(odd)} of {len(found)} stages differ." if odd else f"All {len(found)} stages are the same to the bit."
    emit(chosen, {one.stage: asdict(one) | {"same": one.same} for one in found}, table, said)
    if odd:
        raise typer.Exit(DIFFERS)


@exact.command()
def store(
    context: typer.Context,
    folder: Written,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("expunge-store"),
) -> None:
    """Write a file for each stage, a table and a manifest, as expunge.exact.server serves them.

    Stages of s3t are adapters that peft reads. The network they belong to, the base, is the one whose weights stand in
    FOLDER: copy it to where it is served. The state in FOLDER still holds the same stages, and the server cannot delete
    them there: destroy it once the server answers, with every other folder that prepare and forget wrote.

    Raises:
        Incompatible: the network in FOLDER is not the one that training began from.
    """
    from expunge import tensors
    from expunge.cli import _jobs
    from expunge.errors import Incompatible
    from expunge.exact.store import Store, recorded

    chosen = options(context)
    opened = _jobs.opened(folder, chosen)
    _jobs.apart(output, folder)
    state, base = _base(opened)
    if tensors.weights_digest(base) != recorded(state).config["base"]:
        remedy = "restore the folder from a copy"
        raise Incompatible(f"the network that training began from in {folder}", "another", remedy)
    made = Store.create(output, state, overwrite=_jobs.free(chosen, output))
    live = [s.name for s in made.book.stages.values() if s.live]
    said = f"The state in {folder} holds the same weights: destroy it once a server answers from {output}."
    emit(chosen, {"stages": live}, f"Wrote {len(live)} stages: {output}", said)
