"""How much a network knows each training sample by heart: a cheap score of memorisation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

from expunge.data import Data
from expunge.evidence import collect
from expunge.runtime import Runtime
from expunge.zoo import Problem


def memorisation(
    problem: Problem, train: Data, original: nn.Module, *, runtime: Runtime | None = None, seed: int = 0
) -> NDArray[np.float64]:
    """Return the loss of the original on each sample."""
    found = collect(original, problem.task, train, runtime=runtime)
    assert found.loss is not None
    return found.loss.numpy()
