"""What ``--plan`` prints: ids matched, needs missing, passes, time, files to be written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich.table import Table
from torch import nn

from expunge.cli._app import Options
from expunge.cli._show import emit
from expunge.plan import Plan
from expunge.tensors import total


def files(path: Path, model: nn.Module, state: float | None, names: list[str]) -> list[dict[str, Any]]:
    """Return the files that would be written, with their sizes in bytes where they are known beforehand.

    Args:
        path: the folder.
        model: whose weights are written.
        state: bytes of the state, or None.
        names: of further files.

    Returns:
        Rows with ``file`` and ``bytes``.
    """
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    rows: list[dict[str, Any]] = [{"file": str(path / "model.safetensors"), "bytes": weights}]
    rows.append({"file": str(path / "state.safetensors"), "bytes": None if state is None else round(state)})
    return rows + [{"file": str(path / name), "bytes": None} for name in names]


def state_bytes(model: nn.Module, samples: int, sums: bool) -> float:
    """Return the bytes of a prepared state: two hashes and a flag a sample, and float64 sums where it holds them."""
    return 17.0 * samples + (8.0 * total(p for p in model.parameters() if p.requires_grad) if sums else 0.0)


def show(
    chosen: Options, what: str, found: Plan, ids: Mapping[str, Any], rows: list[dict[str, Any]], *, timed: str = ""
) -> None:
    """Print a plan, and exit with 2 where the run itself would be refused.

    Args:
        chosen: root options.
        what: the phase and method in words.
        found: the plan.
        ids: ``matched``, ``unknown`` and so on, by name.
        rows: files to be written.
        timed: what the time is taken by, where that is not the whole.

    Raises:
        Exit: always; 0 where the run would go through.
    """
    problem = ids.get("problem") or found.problem
    body = {
        "plan": what,
        "ids": dict(ids),
        "passes": dict(found.passes),
        "sizes": dict(found.sizes),
        "samples_read": found.reads,
        "seconds": found.seconds,
        "probed": found.probed,
        "files": rows,
        "problem": problem,
    }
    table = Table("", "plan", title=f"Plan: {what}. Nothing is written.")
    for name, value in ids.items():
        if name != "problem":
            table.add_row(name, str(value))
    reads = [
        f"{name}: {found.sizes[name]:,} samples, {n:.3g} time{'s' if n != 1 else ''}"
        for name, n in found.passes.items()
        if n
    ]
    table.add_row("reads", "\n".join(reads) or "no samples")
    if found.seconds is not None:
        taken = f"about {_time(found.seconds)}" + (f" {timed}" if timed else "")
        probe = f"a probe of {found.probed:,} samples" if found.probed else "the same done once, without writing it,"
        table.add_row("time", f"{taken}, from {probe} on this machine")
    sizes = [f"{r['file']}" + (f" ({_size(r['bytes'])})" if r["bytes"] is not None else "") for r in rows]
    table.add_row("writes", "\n".join(sizes))
    table.add_row("would be refused" if problem else "needs missing", problem or "none")
    emit(chosen, body, table)
    raise typer.Exit(2 if problem else 0)


def _size(count: float) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
