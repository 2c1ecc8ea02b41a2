"""The wheel as a user installs it: into an environment that has the dependencies and no checkout, with no network."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OFFLINE = """
import socket

def refuse(self, address):
    if self.family != socket.AF_UNIX:
        raise OSError(f"the network is off: {address}")
    return connect(self, address)

connect, socket.socket.connect = socket.socket.connect, refuse
"""


def run(*command: object, cwd: Path, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | environment
    done = subprocess.run([*map(str, command)], cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment with this one's packages, and expunge from the wheel alone."""
    room = tmp_path_factory.mktemp("wheel")
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", room / "dist", ROOT)
    run(sys.executable, *build, cwd=room)
    (wheel,) = (room / "dist").glob("expunge-*.whl")
    venv.create(room / "venv", with_pip=True)
    interpreter = room / "venv" / "bin" / "python"
    run(interpreter, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=room)
    packages = next((room / "venv" / "lib").glob("python3*/site-packages"))
    # A path in a .pth file is searched, but the .pth files in it are not read: the editable checkout stays out.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    (packages / "sitecustomize.py").write_text(OFFLINE)
    return interpreter


@pytest.mark.slow
def test_the_wheel_carries_everything_the_demo_needs(python: Path, tmp_path: Path) -> None:
    origin = run(python, "-c", "import expunge; print(expunge.__file__)", cwd=tmp_path)
    assert str(python.parent.parent) in origin
    code = "import urllib.request as u; u.urlopen('http://192.0.2.1', timeout=2)"
    blocked = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "the network is off" in blocked.stderr
    out = run(python.parent / "expunge", "demo", "--seeds", "1", "--output", "demo", cwd=tmp_path, OMP_NUM_THREADS="1")
    assert "ssd" in out
    assert (tmp_path / "demo" / "report.html").read_text().startswith("<!doctype html>")
    out = run(python, "-m", "expunge", "methods", cwd=tmp_path)
    assert "lfssd" in out


@pytest.mark.slow
def test_every_module_of_the_wheel_imports(python: Path, tmp_path: Path) -> None:
    code = """
import importlib, pkgutil, expunge
names = [m.name for m in pkgutil.walk_packages(expunge.__path__, "expunge.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    assert int(run(python, "-c", code, cwd=tmp_path)) > 80
