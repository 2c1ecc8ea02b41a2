"""What every test runs under."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest
import torch

from shell import own_modules

hypothesis.settings.register_profile("house", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("house")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _modules_of_projects() -> Iterator[None]:
    """Let no project's module stay for the next file of tests, whose project may have one of the same name."""
    with own_modules():
        yield
