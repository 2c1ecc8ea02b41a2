"""The command line called as a user types it, in this process, and what it printed."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from expunge.cli import main

Run = Callable[..., tuple[int, str, str]]


@contextlib.contextmanager
def own_modules() -> Iterator[None]:
    """Forget, after the block, the modules that a project's entry points imported, and where they were found."""
    path, known = list(sys.path), set(sys.modules)
    try:
        yield
    finally:
        folders = [p for p in sys.path if p not in path]
        sys.path[:] = path
        for name in set(sys.modules) - known:
            place = getattr(sys.modules[name], "__file__", None) or ""
            if any(place.startswith(folder) for folder in folders):
                del sys.modules[name]


def expunge(*words: object, cwd: Path) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error of ``expunge WORDS`` in a folder."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["expunge", *map(str, words)]
    code: object = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(cwd), own_modules():
            main()
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = argv
    return (code if isinstance(code, int) else 1 if code else 0), out.getvalue(), err.getvalue()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Return the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: expunge(*words, cwd=Path.cwd())


def sentence(err: str) -> str:
    """Return what a refusal said, having held it to one line without a traceback."""
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    return lines[0]


def listing(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder with its content."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "__pycache__" not in p.parts
    }


def refused(folder: Path, *words: object) -> str:
    """Return the sentence of a command that is refused: exit code 2, nothing printed, every file as it was."""
    before = listing(folder)
    folders = sorted(p for p in folder.rglob("*") if p.name != "__pycache__")
    code, out, err = expunge(*words, cwd=folder)
    assert code == 2, (code, out, err)
    assert out == ""
    assert listing(folder) == before
    assert sorted(p for p in folder.rglob("*") if p.name != "__pycache__") == folders
    return sentence(err)


@contextlib.contextmanager
def light_reports() -> Iterator[None]:
    """Let reports be their titles inside the block: drawing them takes ten times what the rest of a command does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("expunge.report.render", lambda page: " ".join(s["name"] for s in page["sections"]))
        yield


@pytest.fixture
def whole_reports() -> None:
    """Ask for reports as they are."""


@pytest.fixture(autouse=True)
def _reports(request: pytest.FixtureRequest) -> Iterator[None]:
    with contextlib.nullcontext() if "whole_reports" in request.fixturenames else light_reports():
        yield
