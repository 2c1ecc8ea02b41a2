"""Gradient restriction in a project file: the network is trained and retrained with it, and iau unlearns from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from expunge.penalties import GradientNorm
from expunge.project import Project
from expunge.recipe import Recipe, fields_of
from expunge.tensors import load
from expunge.train import fit
from expunge.train import fresh as untrained
from projects import Copy
from shell import expunge, refused
from worlds import QUIET

TRAINS = {"model.weights": "train", "recipe.gradient_norm": 0.5}
N, ANN = 60, 12  # samples, and those of one person


def done(place: Path, *words: object) -> str:
    code, out, err = expunge(*words, cwd=place)
    assert code in (0, 3), err
    return out


def opened(place: Path) -> Project:
    return Project.open(place / "expunge.toml")


def blank_of(project: Project) -> Any:
    """Return the network that the project's training starts from."""
    return untrained(project.blank(), new_model=project.new_model, seed=0)


def written(shop: Path, value: str) -> Path:
    """Write a value of the restriction into a project that has another."""
    file = shop / "expunge.toml"
    text = file.read_text()
    assert text.count("gradient_norm = 0.5") == 1
    file.write_text(text.replace("gradient_norm = 0.5", f"gradient_norm = {value}"))
    return shop


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list of α, one a step that a restricted training takes."""
    found, call = list[float](), GradientNorm.__call__

    def counted(self: GradientNorm, *given: Any) -> Tensor:
        found.append(self.alpha)
        return call(self, *given)

    monkeypatch.setattr(GradientNorm, "__call__", counted)
    return found


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ("0.5", (GradientNorm(0.5),)),
        ('{ alpha = 0.5, form = "per_tensor" }', (GradientNorm(0.5, "per_tensor"),)),
        ("0", ()),
    ],
)
def test_the_recipe_has_it(value: str, want: Any, fresh: Copy) -> None:
    recipe = opened(written(fresh({"recipe.gradient_norm": 0.5}), value)).recipe
    assert recipe == Recipe(epochs=2, batch_size=16, lr=0.1, penalties=want)
    assert Recipe(**fields_of(recipe.to_json())) == recipe


def test_a_table_of_its_own_says_the_same(fresh: Copy) -> None:
    shop = fresh()
    text = (shop / "expunge.toml").read_text() + '\n[recipe.gradient_norm]\nalpha = 0.5\nform = "per_tensor"\n'
    (shop / "expunge.toml").write_text(text)
    recipe = opened(shop).recipe
    assert recipe is not None
    assert recipe.penalties == (GradientNorm(0.5, "per_tensor"),)


def test_the_network_is_trained_and_retrained_with_it(fresh: Copy, steps: list[float]) -> None:
    shop = fresh(TRAINS)
    done(shop, "prepare", "-m", "iau")
    assert steps == [0.5] * 2 * 4  # two epochs of four batches
    done(shop, "forget", "-m", "iau", "--subject", "ann", "-o", "edited")
    assert len(steps) == 8  # no training
    done(shop, "forget", "-m", "retrain", "--subject", "ann", "-o", "anew")
    assert len(steps) == 8 + 2 * 3
    weights = [load(shop / folder / "model.safetensors")[0].whole() for folder in ("expunge-work", "edited", "anew")]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert any(not torch.equal(v, weights[other][k]) for k, v in weights[one].items())
    assert opened(shop).train.columns["owner"].tolist().count("ann") == ANN
    assert len(opened(shop).train) == N


def test_what_is_trained_is_what_fit_trains(fresh: Copy) -> None:
    project = opened(fresh(TRAINS))
    recipe = project.recipe
    assert recipe is not None
    start = blank_of(project)
    want = fit(start, project.task, project.train, recipe, runtime=QUIET, seed=0)
    found = project.trained(QUIET, 0)
    assert all(torch.equal(v, want.state_dict()[k]) for k, v in found.state_dict().items())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("-1", "Recipe.gradient_norm of 0 or more, got -1: give a finite number, or a table with alpha and form"),
        ("'some'", "Recipe.gradient_norm of 0 or more, got 'some'"),
        ("{alpha = 0.1, form = 'all'}", "Recipe.gradient_norm.form global or per_tensor, got 'all'"),
        ("{a = 0.1}", "Recipe.gradient_norm with alpha, form, got 'a'"),
    ],
)
def test_what_it_cannot_be_is_refused_by_name(value: str, text: str, fresh: Copy) -> None:
    assert text in refused(written(fresh(TRAINS), value), "prepare")


def test_a_misspelt_one_is_named_with_its_line(fresh: Copy) -> None:
    said = refused(fresh({"recipe.gradient_nrom": 0.1}), "prepare")
    assert "of expunge.toml, got 'recipe.gradient_nrom': did you mean 'gradient_norm'" in said
