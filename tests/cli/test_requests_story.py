"""Deletion requests from the first letter to the auditor, through the shell, on a model of the user's own."""

from __future__ import annotations

import fcntl
import json
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expunge.ledger import Ledger, signing
from expunge.metrics import Metric
from expunge.service import measure
from projects import shop, toml
from shell import expunge, refused, sentence

SETTINGS: dict[str, Any] = {"method.alpha": 0.003, "method.dampening": 0.003}
PAGE = (Path(__file__).parents[2] / "docs" / "requests.md").read_text()
Expunge = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _few_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure a few families of numbers: the others take most of the time."""
    every = measure.families

    def few(place: Any) -> list[Metric]:
        return [m for m in every(place) if type(m).__module__.rpartition(".")[2] in ("accuracy", "flips")]

    monkeypatch.setattr(measure, "families", few)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project of pets that was prepared, to be copied."""
    folder = shop(tmp_path_factory.mktemp("story") / "shop", SETTINGS)
    assert expunge("prepare", cwd=folder)[0] == 0
    return folder


@pytest.fixture
def here(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "shop"))


@pytest.fixture
def run(here: Path) -> Expunge:
    """Return the command line in the project."""
    return lambda *words: expunge(*words, cwd=here)


def good(run: Expunge, *words: object) -> str:
    code, out, err = run("requests", *words) if words[0] != "--json" else run("--json", "requests", *words[1:])
    assert code == 0, (out, err)
    return out


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def served(folder: Path, model: str = "model") -> Path:
    return (folder / "expunge-requests" / "models" / model / "current").resolve()


def test_the_whole_story(run: Expunge, here: Path) -> None:
    (here / "ids.txt").write_text("100\n103\n")
    good(run, "add", "ids", "--ids", "ids.txt")
    good(run, "add", "person", "--subject", "ann", "--note", "a letter from ann")
    good(run, "add", "class", "--class", "bird", "--route", "edit-then-retrain")
    good(run, "add", "held", "--id", 121)
    good(run, "hold", "held", "--reason", "<b>a lawsuit</b>")
    plan = json.loads(good(run, "--json", "process", "--plan"))["plan"]
    assert [(row["requests"], row["how"]) for row in plan] == [
        (["class"], "edit"), (["ids", "person"], "edit"), (["held"], None),
    ]  # fmt: skip
    assert not (here / "expunge-requests" / "models").exists()
    out = good(run, "process")
    assert "Still open: 1 held, 1 scheduled." in out
    assert "model: the new version was held to no bound. Set accuracy_drop or bounds in [policy]" in out
    found = {r["request"]: r for r in json.loads(good(run, "--json", "list", "--all"))["requests"]}
    assert [found[id]["step"] for id in ("ids", "person", "held")] == ["closed", "closed", "held"]
    assert found["class"]["step"] == "scheduled"
    assert "expunge requests process class --how retrain" in good(run, "show", "class")
    assert "right on" in good(run, "show", "person")

    signing.generate_key(here / "key.pem")
    good(run, "export", "person", "-o", "pack", "--sign", "key.pem")
    out = good(run, "verify", "pack", "--key", "key.pem.pub")
    assert "Checked the pack pack: 0 problems." in out
    assert "Signed with the key that was given" in out
    code = "import sys; from expunge.cli import app; app(['requests', 'verify', 'shop/pack'], standalone_mode=False)"
    alone = [sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"]
    done = subprocess.run(alone, cwd=here.parent, capture_output=True, text=True, check=False)  # without a project
    assert done.returncode == 0, done.stderr
    content = b"".join(p.read_bytes() for p in (here / "pack").iterdir())
    assert re.search(rb"\bann\b", content) is None
    good(run, "export", "held", "-o", "pack-held")
    page = (here / "pack-held" / "record.html").read_text()
    assert "&lt;b&gt;a lawsuit&lt;/b&gt;" in page
    assert "<b>a lawsuit" not in page
    flip(here / "pack" / "record.json")
    code, out, _ = run("requests", "verify", "pack")
    assert code == 1
    assert "record.json: it was altered" in out

    head = good(run, "anchor").strip()
    first = served(here)
    good(run, "process", "class", "--how", "retrain")
    assert served(here) != first
    assert json.loads(good(run, "--json", "show", "class"))["step"] == "closed"
    weights = (served(here) / "model.safetensors").read_bytes()
    good(run, "verify", "--head", head)
    flip(served(here) / "model.safetensors")
    code, out, _ = run("requests", "verify")
    assert code == 1
    assert f"models/model/versions/{served(here).name}/model.safetensors: altered" in out
    (served(here) / "model.safetensors").write_bytes(weights)
    (here / "copy").mkdir()
    shutil.copytree(here / "expunge-requests", here / "copy" / "damaged", symlinks=True)
    with sqlite3.connect(here / "copy" / "damaged" / "ledger.sqlite3") as db:
        db.execute("DROP TRIGGER events_update")
        db.execute("UPDATE events SET body = '{' WHERE seq = 20")
        db.execute("UPDATE events SET body = '{}' WHERE step = 'unlearned'")
    db.close()
    code, out, err = run("requests", "verify", "--workspace", "copy/damaged")
    assert (code, err) == (1, "")
    assert "event 20 (" in out

    out = good(run, "rollback")
    assert f"model: {first.name} is served again." in out
    assert "Open again: class." in out
    assert served(here) == first
    good(run, "process", "class", "--how", "retrain")
    sealed = sorted(p.name for p in (here / "expunge-requests" / "undo").iterdir())
    assert f"model-{first.name}.sealed" in sealed
    good(run, "verify", "--head", head)
    flip(here / "expunge-requests" / "undo" / sealed[0])
    code, out, _ = run("requests", "verify")
    assert code == 1
    assert f"undo/{sealed[0]}: " in out

    assert "expunge --yes requests purge" in sentence(run("requests", "purge")[2])
    code, out, err = run("--yes", "requests", "purge")
    assert code == 0, err
    assert "Destroyed: model v000000." in out
    assert "expunge-work: Written by expunge prepare" in out
    assert list((here / "expunge-requests" / "undo").iterdir()) == []
    assert "of model to be kept, got one that was destroyed" in sentence(run("requests", "rollback")[2])
    code, out, err = run("--yes", "requests", "erase", "person")
    assert code == 0, err
    assert "that it was erased" in sentence(run("requests", "show", "person", "--reveal")[2])
    good(run, "verify", "--head", head)
    head = good(run, "anchor").strip()
    with sqlite3.connect(here / "expunge-requests" / "ledger.sqlite3") as db:
        db.execute("DROP TRIGGER events_delete")
        db.execute("DELETE FROM events WHERE seq = (SELECT max(seq) FROM events)")
    db.close()
    code, out, _ = run("requests", "verify", "--head", head)
    assert code == 1
    assert f"event {head.partition(':')[0]}: removed from the end" in out


def test_a_missed_bound_keeps_the_old_version_and_exits_with_3(run: Expunge, here: Path) -> None:
    (here / "expunge.toml").write_text(toml(SETTINGS | {"policy.bounds": ["accuracy/test >= 0.999"]}))
    good(run, "add", "r", "--id", 100)
    code, out, err = run("requests", "process")
    assert (code, err) == (3, "")
    text = " ".join(out.split())
    assert "Bound missed" in text
    assert "expunge requests process REQUEST --how retrain" in text
    assert served(here).name == "v000000"
    code, out, _ = run("--json", "requests", "process")
    assert code == 3
    assert json.loads(out)["missed"] is True
    assert "mend what the last attempt failed for" in good(run, "show", "r")


def test_process_with_purge_leaves_the_served_version_alone(run: Expunge, here: Path) -> None:
    good(run, "add", "r", "--id", 100)
    body = json.loads(good(run, "--json", "process", "--purge"))
    assert body["purged"]["versions"] == [["model", "v000000"]]
    assert [p.name for p in served(here).parent.iterdir()] == [served(here).name]
    assert good(run, "process").startswith("Nothing to do.")


def test_one_request_touches_several_models(run: Expunge, here: Path) -> None:
    other = here / "other"
    shutil.copytree(here, other, ignore=shutil.ignore_patterns("other"))
    models = {"requests.models.shop": "expunge.toml", "requests.models.search": "other/expunge.toml"}
    (here / "expunge.toml").write_text(toml(SETTINGS | models))
    body = json.loads(good(run, "--json", "add", "r", "--subject", "bob"))
    assert body["requests"][0]["samples"] == 12
    good(run, "process")
    rows = json.loads(good(run, "--json", "list", "--all"))["requests"]
    assert rows[0]["models"] == {"shop": "deployed", "search": "deployed"}
    good(run, "add", "later", "--id", 103, "--route", "retrain")
    good(run, "process", "later")
    (here / "expunge.toml").write_text(toml(SETTINGS | {"requests.models.shop": "expunge.toml"}))
    assert "it waits for search, which [requests.models] names no longer: put it back" in good(run, "show", "later")
    assert rows[0]["step"] == "closed"
    assert "one model in" in sentence(run("requests", "rollback")[2])
    assert "shop: v000000 is served again." in good(run, "rollback", "--model", "shop")


def test_training_commands_refuse_data_with_deleted_samples(run: Expunge, here: Path) -> None:
    good(run, "add", "r", "--subject", "ann")
    good(run, "process")
    (here / "grid.toml").write_text(
        'seeds = [0]\ndata = {pets = {project = "expunge.toml"}}\nscenarios = ["class=0"]\nmethods = ["ssd"]\n'
    )
    (here / "ids.txt").write_text("101\n")
    want = "training data without deleted samples, got 12 of "
    assert want + "60" in refused(here, "prepare", "-o", "again")
    assert want + "60" in refused(here, "prepare", "-o", "again", "--plan")
    assert want + "59" in refused(here, "forget", "--ids", "ids.txt", "-m", "retrain")
    assert want + "60" in refused(here, "tune", "ssd", "--grid", "grid.toml", "--trials", 1)
    assert want + "60" in refused(here, "bench", "run", "grid.toml", "-s", "here")
    (here / "ann.txt").write_text("\n".join(str(100 + k) for k in range(0, 60, 5)))
    code, _, err = run("forget", "--ids", "ann.txt", "-m", "retrain", "-o", "without")  # they are what it leaves out
    assert code == 0, err
    assert run("audit", "--unlearned", "without", "--metric", "accuracy", "-o", "audit")[0] == 0


def test_an_audit_refuses_to_retrain_on_deleted_samples(run: Expunge, here: Path) -> None:
    (here / "ids.txt").write_text("101\n")
    assert run("forget", "--ids", "ids.txt")[0] in (0, 3)
    good(run, "add", "r", "--subject", "ann")
    good(run, "process")
    assert "got 12 of 59 samples that were deleted on request" in refused(here, "audit")


def test_another_process_that_works_on_the_model_is_waited_for_aloud(run: Expunge, here: Path) -> None:
    good(run, "add", "r", "--id", 100)
    lock = here / "expunge-requests" / "models" / "model" / "lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as file:
        file.write("4711")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        free = threading.Timer(0.5, lambda: fcntl.flock(file, fcntl.LOCK_UN))
        free.start()
        code, out, err = run("requests", "process")
        free.join()
    assert code == 0, err
    assert "Waiting for process 4711, which works on the model model." in err


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the page's keys are made by openssl")
def test_the_page_runs(run: Expunge, here: Path) -> None:
    (text,) = re.findall(r"```csv\n(.*?)```", PAGE, flags=re.DOTALL)
    (here / "mail.csv").write_text(text)
    lines = [x for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL) for x in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines]
    shutil.rmtree(here / "expunge-work")
    for words in commands:
        if words[0] == "openssl":
            subprocess.run(words, cwd=here, check=True, capture_output=True)
            continue
        code, out, err = run(*words[1:])
        assert code == 0, (words, out, err)
    assert {words[words.index("requests") + 1] for words in commands if "requests" in words} == {
        "add", "list", "process", "show", "hold", "release", "refuse", "export", "verify", "anchor", "rollback",
        "purge", "erase",
    }  # fmt: skip
    with Ledger.open(here / "expunge-requests", readonly=True) as ledger:
        assert ledger.status("mail-2").erased
        assert ledger.status("court-1").refused == "a legal duty to keep it"
        assert any(s.request == "r-20250131-0001" for s in ledger.all())
    (code_block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        scope: dict[str, Any] = {}
        exec(code_block, scope)
    assert "api-1" in scope["overdue"]
