"""kill -9 at random moments of ``add`` and of ``process``, several of each on one workspace at once."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from projects import shop
from services import Shop
from shell import expunge
from storms import ROWS, SETTINGS, WORDS, Storm, settle

ROUND = 50  # kills on one workspace
Fresh = Callable[[str], Shop]


@pytest.fixture(scope="module")
def _begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project whose first version is served, after all that the processes will import is imported."""
    folder = shop(tmp_path_factory.mktemp("soak") / "shop", SETTINGS, n=ROWS)
    code, _, err = expunge("prepare", cwd=folder)
    assert code == 0, err
    warm = shutil.copytree(folder, folder.with_name("warm"))
    assert expunge("requests", "add", "--id", "100", "--route", "edit-then-retrain", cwd=warm)[0] == 0
    assert expunge("requests", "process", cwd=warm)[0] == 0
    Shop(folder)
    assert expunge("requests", "process", cwd=folder)[0] == 0
    return folder


@pytest.fixture
def fresh(_begun: Path, tmp_path: Path) -> Fresh:
    """Return what copies the project."""
    return lambda name: Shop(shutil.copytree(_begun, tmp_path / name, symlinks=True))


def test_killed_again_and_again_it_loses_nothing_and_does_nothing_twice(fresh: Fresh) -> None:
    storm = Storm(fresh("storm"), Random(0))
    seen = storm.rage(20)
    deployed = settle(storm)
    assert seen["looks"] > 10
    assert len(storm.said) > 5
    assert deployed["edit"] >= 1
    assert sum(storm.hit.values()) == 20
    assert {word.partition(":")[0] for word in storm.hit} == {"add", "process"}


@pytest.mark.soak
def test_a_thousand_kills(fresh: Fresh) -> None:
    """Twenty workspaces, fifty kills each; ``make soak`` prints where they fell."""
    began, hit, total = time.monotonic(), Counter[str](), Counter[str]()
    for number in range(1000 // ROUND):
        storm = Storm(fresh(f"storm{number}"), Random(number))
        total.update(storm.rage(ROUND))
        deployed = settle(storm)
        total.update(acknowledged=len(storm.said), edited=deployed["edit"], retrained=deployed["retrain"])
        hit += storm.hit
        shutil.rmtree(storm.shop.folder)
    told = "".join(f"{hit[word]:6}  {word}\n" for word in WORDS)
    sys.stdout.write(f"\n{told}{sum(hit.values()):6}  in {time.monotonic() - began:.0f} s; {dict(total)}\n")
    assert sum(hit.values()) == 1000
    assert total["versions"] > 2 * 1000 // ROUND
    phases = ("editing", "writing the version", "remembering", "measuring", "switching current", "putting away")
    steps = ("recording started", "recording unlearned", "recording verified", "recording deployed")
    assert [phase for phase in (*phases, *steps) if not hit[f"process: {phase}"]] == []
