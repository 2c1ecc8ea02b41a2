"""The page of tasks tells losses as the tasks have them."""

from pathlib import Path

import pytest
import torch

from expunge.choice import TASKS

PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"


@pytest.mark.parametrize("kind", TASKS)
def test_the_losses_on_the_page_are_the_tasks(kind):
    said = next(line for line in PAGE.read_text().splitlines() if f"`{kind}` |" in line)
    assert type(TASKS[kind]).__name__ in said
    outputs = {"classification": torch.zeros(2, 4), "binary": torch.zeros(2, 1), "quantile": torch.zeros(2, 3)}
    outputs["causal_lm"] = torch.zeros(2, 4, 3)
    z = outputs.get(kind, torch.zeros(2, 4))
    y = {"classification": torch.ones(2, dtype=torch.long), "binary": torch.ones(2), "quantile": torch.ones(2)}
    y["causal_lm"] = torch.tensor([[1, 2, 0, -100]] * 2)
    y = y.get(kind, torch.ones(2, 4))
    want = {"classification": 1.3863, "binary": 0.6931, "multilabel": 0.6931, "regression": 1.0, "quantile": 1.5}
    want["causal_lm"] = 1.0986
    assert TASKS[kind].loss(z, y).tolist() == pytest.approx([want[kind]] * 2, abs=1e-4)
