"""Documents and the page of one, made anew or once."""

import pytest

from audits import build, widest
from expunge.report import render


@pytest.fixture(scope="session")
def html():
    """The page of an unaltered document."""
    return render(build())


@pytest.fixture
def document():
    """A small document, to be altered."""
    return build()


@pytest.fixture
def wide():
    """A document with every family of numbers, to be altered."""
    return widest()


@pytest.fixture(scope="session")
def wide_html():
    """The page of an unaltered wide document."""
    return render(widest())
