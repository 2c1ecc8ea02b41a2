"""Checkpoint folders: weights, state and record of one step, written together; what prepare, forget and audit share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from expunge import zoo
from expunge.errors import Incompatible, UserError
from expunge.files import atomic, check_free, read_document, write_document
from expunge.method import Method, State
from expunge.methods import build
from expunge.scenario import Scenario
from expunge.tensors import changed, load_weights, save_weights
from expunge.unlearn import Unlearned, serve

RECORD, SCHEMA = "expunge.record", 1
WEIGHTS, STATE, NOTE = "model.safetensors", "state.safetensors", "record.json"


@dataclass(frozen=True)
class Folder:
    """A step on disk.

    Args:
        path: the folder.
        record: what was done, as JSON values.
        problem: data, task, network and recipe it was done on.
    """

    path: Path
    record: Mapping[str, Any]
    problem: zoo.Problem

    @classmethod
    def open(cls, path: Path) -> Folder:
        """Read a folder's record.

        Returns:
            The step.

        Raises:
            UserError: no folder, or none that prepare or forget wrote.
        """
        if not (path / NOTE).is_file():
            got = "a folder without record.json" if path.is_dir() else "a file" if path.exists() else "nothing there"
            raise UserError(f"a folder written by prepare or forget at {path}", got, "run expunge prepare first")
        record = read_document(path / NOTE, RECORD, SCHEMA)
        return cls(path, record, zoo.load(record["data"], record["network"]))

    def model(self, method: Method | None = None) -> nn.Module:
        """Return the network with this folder's weights, served by its method where that wraps it.

        Raises:
            Incompatible: the weights are not those that the record names.
        """
        network = self.problem.new_model()
        meta = load_weights(self.path / WEIGHTS, network)
        if meta["weights"] != self.record["weights"]:
            raise Incompatible(f"the weights of {self.path / NOTE}", "others", "restore the folder from a copy")
        network = network.eval()
        return network if method is None else serve(method, network, self.state())

    def unlearned(self, before: nn.Module) -> Unlearned:
        """Return the result that forget wrote here, with its times and notes."""
        method = build(self.record["method"])
        model = self.model(method)
        return Unlearned(
            model=model,
            state=self.state(),
            log=self.record["log"],
            note=self.record["note"],
            seconds=self.record["seconds"],
            total_seconds=self.record["total_seconds"],
            changed=changed(before, model),
            peak_memory=self.record["peak_memory"],
            method=self.record["method"],
        )

    def state(self) -> State:
        """Return this folder's state."""
        return State.load(self.path / STATE)

    @property
    def scenario(self) -> Scenario:
        """Who was forgotten in this step.

        Raises:
            UserError: nobody was.
        """
        if not self.record.get("scenario"):
            raise UserError(f"a folder written by forget at {self.path}", "one of prepare", "name another folder")
        return Scenario.from_json(self.record["scenario"])


def write(
    path: Path, model: nn.Module, state: State, record: Mapping[str, Any], extra: Mapping[str, str], overwrite: bool
) -> None:
    """Write a folder whole or not at all: weights, state, record, and further text files by name."""
    check_free(path, overwrite)
    with atomic(path) as room:
        room.mkdir()
        save_weights(room / WEIGHTS, model, {})
        state.save(room / STATE)
        for name, text in extra.items():
            (room / name).write_text(text, encoding="utf-8")
        write_document(room / NOTE, RECORD, SCHEMA, record)
