"""Modules that need a package of an extra, imported when they are asked for."""

from __future__ import annotations

import importlib
from typing import Any

from expunge.errors import MissingExtra


def imported(module: str, *, package: str, extra: str) -> Any:
    """Import a module that needs an optional package.

    Args:
        module: its full name.
        package: what it needs.
        extra: the extra of expunge that brings the package.

    Returns:
        The module.

    Raises:
        MissingExtra: the package is not installed; says how to install it.
        ModuleNotFoundError: something else is missing.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtra(package, extra) from error
