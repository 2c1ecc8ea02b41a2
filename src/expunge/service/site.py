"""One model of a run: its project, its versions, what it was trained on, and what it has forgotten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from torch import nn

from expunge.data import Data
from expunge.errors import UserError
from expunge.folders import Folder
from expunge.ledger import Ledger, Status
from expunge.ledger.steps import How
from expunge.method import Method
from expunge.project import Project
from expunge.project.config import RequestsSection
from expunge.qualify.record import Qualification
from expunge.runtime import Runtime
from expunge.service.targets import Holding, Target, holding
from expunge.service.workspace import Workspace
from expunge.stamp import prepared
from expunge.unlearn import Prepared, prepare

COUNTERS: dict[str, Any] = {
    "requests": 0,
    "samples": 0,
    "stale": 0,
    "retrained": None,
    "seq": 0,
    "first": None,
    "qualified": None,  # digest of the record that held for the last edit
}


@dataclass
class Site:
    """One model of a run.

    Args:
        name: of the model.
        place: its project.
        policy: how requests are fulfilled.
        space: where versions are kept.
        ledger: the requests.
        runtime: device, batch size; work that goes on is kept in the workspace.
        seed: of everything random.
        now: tells the time.
    """

    name: str
    place: Project
    policy: RequestsSection
    space: Workspace
    ledger: Ledger
    runtime: Runtime
    seed: int
    now: Callable[[], datetime]
    qualification: Qualification | None = field(default=None, repr=False)  # which edits cite, read before work begins
    same: dict[str, bool] = field(default_factory=dict, repr=False)  # by trained weights: whether on qualified data
    _opened: Project | None = field(default=None, repr=False)
    _holding: tuple[Path, Holding] | None = field(default=None, repr=False)

    def begin(self) -> None:
        """Copy the first version, unless that is done.

        Raises:
            UserError: the folder to start from is not one of prepare.
        """
        start = self.place.folder / self.place.config.requests.start
        if not self.space.has_begun(self.name):
            folder = Folder.open(start, self.place.file, self.place.data_dir)
            if folder.record["step"] != "prepare" or folder.record.get("forgotten"):
                remedy = "run expunge prepare, and name its folder by start in [requests]"
                raise UserError(f"a folder of expunge prepare at {start}", "one of expunge forget", remedy)
            folder.model()  # which holds the weights to the record and to the state
            self._refuse_late(folder)
        self.space.begin(self.name, start, self.now())

    def _refuse_late(self, folder: Folder) -> None:
        """Refuse a model that comes after requests were closed, and has learned what they named: none asks for it."""
        train = folder.project.train if folder.project.train_is_here else None
        gone = [] if train is None else self.ledger.remembered(train.ids, over=True)
        known = prepared(folder.state, gone)
        learned = len(gone) if known is None else int(sum(known))
        if learned:
            got = f"{learned} of its training samples, deleted on request before it came"
            remedy = "train and prepare it without them"
            raise UserError(f"a model {self.name} that has learned nothing that closed requests named", got, remedy)

    def folder(self) -> Folder:
        """Return the version that is served, its data read once for all versions."""
        found = Folder.open(self.space.served(self.name), self.place.file, self.place.data_dir)
        if self._opened is None:
            self._opened = found.project
            if not self._opened.train_is_here:
                where = self._opened.config.data.train or "anywhere: [data] train is not set"
                remedy = "restore it; requests are looked up in it"
                raise UserError(f"the training data of {self.name}", f"none at {where}", remedy)
        return replace(found, project=self._opened)

    def holding(self, folder: Folder) -> Holding:
        """Return what the served model holds of the training data at hand, looked up once a version."""
        if self._holding is None or self._holding[0] != folder.path:
            train = folder.project.train
            gone = self.ledger.remembered(train.ids, self.name)
            self._holding = folder.path, holding(train, gone, folder.state)
        return self._holding[1]

    def remember(self, target: Target) -> str:
        """Remember the samples of a request, and return the digest of its marks."""
        self._holding = None
        return self.ledger.remember(self.name, target.remembered, target.request.id)

    def counters(self, folder: Folder) -> dict[str, Any]:
        """Return edits since the last training, requests and samples forgotten by them, and when that was."""
        found = folder.record.get("service", {})
        edits = found.get("requests", 0)  # of versions that did not count them: there were no more than these
        return {**COUNTERS, "edits": edits, **found}

    def due(self, folder: Folder) -> datetime:
        """Return when the next retraining is due."""
        last = self.counters(folder)["retrained"] or self.space.begun(self.name)["begun"]
        return datetime.fromisoformat(last) + timedelta(days=self.policy.cadence)

    def working(self) -> Runtime:
        """Return the runtime for work that an interrupted process left, and that goes on in the workspace."""
        return replace(self.runtime, workdir=self.space.work(self.name))

    def prepare(self, method: Method, model: nn.Module, place: Project, train: Data) -> Prepared:
        """Prepare a method on weights and the training data that is left.

        Args:
            method: the method.
            model: the network.
            place: its project, opened.
            train: without what was forgotten.

        Returns:
            The network and the state for edits.
        """
        return prepare(
            method,
            model,
            place.task,
            train=train,
            holdout=place.holdout,
            recipe=place.recipe,
            new_model=place.new_model,
            runtime=self.working(),
            seed=self.seed,
        )

    def wants(self, status: Status, how: How | None) -> How | None:
        """Return what is to be done for a request now or at the next cadence; None for nothing.

        Args:
            status: of the request.
            how: what the operator asked for alone: edits, or retraining for all; None goes by the routes.
        """
        model = status.models.get(self.name)
        done = model.done if model else frozenset()
        waits = self.policy.approval and status.approved_by is None and not status.begun
        if not status.open or status.held is not None or status.erased or waits or (model and model.step == "absent"):
            return None
        route = status.route or self.policy.route
        if how == "retrain":
            return None if "retrain" in done else "retrain"
        if not done and route != "retrain":
            return "edit"
        return None if route == "edit" or "retrain" in done or how == "edit" else "retrain"


def refuse_learning_again(ledger: Ledger, name: str | None, ids: Sequence[str], over: bool = False) -> None:
    """Refuse training data that holds samples deleted on request.

    Args:
        ledger: what remembers them.
        name: of the model; None for any.
        ids: of the training data.
        over: whether only requests that are no longer open count.

    Raises:
        UserError: says how many, without naming them.
    """
    gone = ledger.remembered(ids, name, over=over)
    if gone:
        got = f"{len(gone)} of {len(ids)} samples that were deleted on request"
        remedy = "take them out of the data, so that no training learns them again"
        raise UserError("training data without deleted samples", got, remedy)
