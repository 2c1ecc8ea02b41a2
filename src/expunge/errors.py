"""The package's own exceptions: each message says what was expected, what came, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class ExpungeError(Exception):
    """Base of every exception raised by expunge."""


class UserError(ExpungeError):
    """Something the caller gave cannot be used; the command line prints the sentence and exits with 2.

    Args:
        expected: what would have been right, starting with a lower-case word.
        got: what was given instead.
        remedy: what to do about it, an imperative.
    """

    def __init__(self, expected: str, got: str, remedy: str) -> None:
        super().__init__(f"Expected {expected}, got {got}: {remedy}.")
        self.expected, self.got, self.remedy = expected, got, remedy

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), str(self), vars(self))


def _again(kind: type[UserError], text: str, parts: dict[str, Any]) -> UserError:
    """Return an error as it was, where it crossed from one process to another."""
    error = kind.__new__(kind, text)
    error.args = (text,)
    vars(error).update(parts)
    return error


class MissingNeed(UserError):
    """A method declares a need that was not given."""


class Incompatible(UserError):
    """An artefact belongs to other weights, names, settings or data."""


class CorruptArtefact(UserError):
    """A file is truncated, altered or not what its name says."""


class Unwritable(UserError):
    """The disk is full, or a folder cannot be written: nothing that the work itself did."""


class Declined(UserError):
    """A method says, with a reason, that it does not apply to this task, scenario or model."""


class Misfit(UserError):
    """Labels do not fit a model's outputs: other classes, types or shapes."""


class NotFinite(UserError):
    """A weight, loss, output or importance is NaN or infinite."""


class MissingExtra(UserError):
    """A feature needs an optional dependency that is not installed.

    Args:
        package: the missing package.
        extra: the extra of expunge that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"the package {package}", "no such package", f"run pip install 'expunge[{extra}]'")


class UndeclaredNeed(ExpungeError):
    """A method read something that it does not declare in its needs; a fault of the method, not of its user.

    Args:
        name: what was read.
        method: the method's name.
        phase: ``prepare`` or ``unlearn``.
    """

    def __init__(self, name: str, method: str, phase: str) -> None:
        super().__init__(
            f"Method {method} read session.{name} in {phase} without declaring it: "
            f"add {name} to its `{'prepares' if phase == 'prepare' else 'unlearns'}` needs."
        )


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean X`` for the known name closest to ``name``, or the list of known names.

    Returns:
        The words to end a message with.

    >>> suggest("sdd", ["ssd", "retrain"])
    "did you mean 'ssd'"
    """
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'" if close else "choose from " + ", ".join(known)


def listing(names: Iterable[object], most: int = 5) -> str:
    """Join the first ``most`` names and count the rest, for use in a message.

    Returns:
        The text.

    >>> listing(range(7), most=2)
    '0, 1 and 5 more'
    """
    items = [str(n) for n in names]
    head = ", ".join(items[:most])
    return head if len(items) <= most else f"{head} and {len(items) - most} more"
