"""The registry of attacks is this folder: an attack's name is its file's name."""

from __future__ import annotations

import importlib
import pkgutil

from expunge.errors import UserError, suggest
from expunge.metric import Attack

__all__ = ["alone", "load", "names"]


def names() -> list[str]:
    """Return the names of all attacks.

    >>> {"entropy_lr", "loss"} <= set(names())
    True
    """
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def alone() -> list[str]:
    """Return the names of the attacks that need no shadow models: what "all" means where there are none.

    >>> "loss" in alone(), "lira" in alone()
    (True, False)
    """
    return [name for name in names() if load(name).shadows == 0]


def load(name: str) -> type[Attack]:
    """Return the class of an attack.

    Raises:
        UserError: no such attack.
    """
    if name not in names():
        raise UserError("a known attack", repr(name), suggest(name, names()))
    found: type[Attack] = importlib.import_module(f"{__name__}.{name}").ATTACK
    return found
