"""kill -9 in every gap: nothing acknowledged is lost, nothing done twice, the served model is whole and verified."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benches import FORK, forked
from expunge import files, folders
from expunge.folders import Folder
from expunge.ledger import Ledger
from expunge.service import Workspace, attempt, undo
from expunge.service.measure import Measured
from expunge.service.workspace import FIRST, check_files
from expunge.tensors import weights_digest
from services import Shop

KILLED = 9


class Doomed:
    """Ends its own process, at once and without a word, after the nth thing that it does to the disk.

    Args:
        after: which one; 0 counts them.
    """

    def __init__(self, after: int) -> None:
        self.after, self.count = after, 0

    def __call__(self, shop: Shop, told: Path) -> None:
        self._watch(Ledger, "record_all", "remember")
        self._watch(Workspace, "switch", "destroy")
        self._watch(undo, "archive")
        self._watch(files, "write_document")
        self._watch(folders, "write")
        self._watch(attempt, "check_files")
        shop.process()
        told.write_text(str(self.count))

    def _watch(self, home: Any, *names: str) -> None:
        for name in names:
            setattr(home, name, self._counted(getattr(home, name)))

    def _counted(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any, **more: Any) -> Any:
            found = work(*given, **more)
            self.count += 1
            if self.count == self.after:
                os._exit(KILLED)
            return found

        return counted


@pytest.fixture
def busy(pets: Any, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Two requests that one edit fulfils, of which one is retrained for in the same run, and one that is absent.

    Nothing is measured: it takes most of the time, and writes nothing.
    """
    monkeypatch.setattr(attempt, "measure", lambda *given, **more: Measured({"bounds": []}, ()))
    shop: Shop = pets({"requests.cadence": 0})
    shop.ask("r1", "101", "102", route="edit-then-retrain")
    shop.ask("r2", "103", "104")
    shop.ask("r3", "nobody", kind="subject")
    return shop


def copied(shop: Shop, folder: Path) -> Shop:
    shutil.copytree(shop.folder, folder)
    return Shop(folder)


def whole(shop: Shop) -> None:
    """Hold the served version to being the first, or one that the ledger says was verified."""
    version = shop.space.current("model")
    if version is None:  # before the first was copied
        return
    folder: Folder = shop.served()
    assert weights_digest(folder.model()) == folder.record["weights"]
    with shop.ledger() as ledger:
        events = list(ledger.events())
        assert ledger.check() == []
    if version != FIRST:
        assert version in [e.body["version"] for e in events if e.step == "verified"]
        check_files(
            folder.path, next(e.body["files"] for e in events if e.body.get("version") == version and "files" in e.body)
        )


def done(shop: Shop) -> dict[str, Any]:
    """Return what a run came to, but for times and the numbers of events."""
    with shop.ledger() as ledger:
        steps = [(e.request, e.step, e.body.get("how")) for e in ledger.events()]
        assert ledger.check() == []
        asked = {s.request: ledger.request(s.request).values for s in ledger.all()}
    kept = len(list(shop.space.undo.glob("*.sealed")))
    return {
        "weights": weights_digest(shop.served().model()),
        "forgotten": shop.remembered(),
        "asked": asked,
        "words": {r: shop.status(r).word for r in asked},
        "deployed": sorted(s for s in steps if s[1] == "deployed"),
        "closed": sorted(s for s in steps if s[1] == "closed"),
        "in the clear": len(shop.space.versions("model")),
        "sealed": kept,
    }


def test_killed_after_anything_it_does_to_the_disk(busy: Shop, tmp_path: Path) -> None:
    smooth, told = copied(busy, tmp_path / "smooth"), tmp_path / "count"
    smooth.process()  # in this process, so that copies of it have imported all
    want = done(smooth)
    assert forked(Doomed(0), copied(busy, tmp_path / "counted"), told) == 0
    count = int(told.read_text())
    assert want["words"] == dict.fromkeys(("r1", "r2", "r3"), "closed")
    assert [s[::2] for s in want["deployed"]] == [("r1", "edit"), ("r1", "retrain"), ("r2", "edit")]
    assert count > 20
    for after in range(1, count + 1):
        shop = copied(busy, tmp_path / f"killed{after}")
        assert forked(Doomed(after), shop, told) == KILLED, after
        whole(shop)
        shop.process()
        whole(shop)
        assert done(shop) == want, after
        assert [p.name for p in (shop.space.folder / "models").rglob(".*")] == [], after
        shutil.rmtree(shop.folder)


def test_a_version_that_was_damaged_before_it_was_served_is_made_again(busy: Shop, tmp_path: Path) -> None:
    smooth, told = copied(busy, tmp_path / "smooth"), tmp_path / "count"
    forked(Doomed(0), smooth, told)
    for after in range(1, int(told.read_text())):
        shop = copied(busy, tmp_path / f"killed{after}")
        forked(Doomed(after), shop, told)
        status = shop.status("r1").models.get("model")
        if status is not None and status.step == "verified" and shop.space.current("model") == status.version:
            break
        shutil.rmtree(shop.folder)
    weights = shop.served().path / "model.safetensors"  # switched to, and not yet recorded
    weights.write_bytes(weights.read_bytes()[:-1])
    shop.process()
    assert done(shop) == done(smooth)


def test_a_lock_does_not_outlive_its_process(busy: Shop, tmp_path: Path) -> None:
    def hold() -> None:
        with busy.space.locked("model"):
            os._exit(KILLED)

    assert forked(hold) == KILLED
    with busy.space.locked("model"):
        pass


def test_several_processes_at_once_fulfil_each_request_once(busy: Shop) -> None:
    def work() -> None:
        busy.process()

    several = [FORK.Process(target=work) for _ in range(3)]
    for process in several:
        process.start()
    for process in several:
        process.join(120)
    assert [p.exitcode for p in several] == [0, 0, 0]
    found = done(busy)
    assert [s[::2] for s in found["deployed"]] == [("r1", "edit"), ("r1", "retrain"), ("r2", "edit")]
    assert len(found["closed"]) == 3
