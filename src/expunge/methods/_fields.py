"""The base of methods that check their fields, made in Python or from plain values."""

from __future__ import annotations

from expunge.method import Method
from expunge.part import Checks


class Checked(Checks, Method):
    """A method with the checks of `expunge.part.Checks`."""
