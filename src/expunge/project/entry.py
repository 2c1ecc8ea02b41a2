"""Functions of the user's own, named ``package.module:function`` in the project file."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from expunge.errors import ExpungeError, UserError, suggest

PATTERN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_entry(name: str) -> bool:
    """Return whether a value names a function, ``package.module:function``.

    >>> is_entry("shop.models:build"), is_entry("hf:folder/model"), is_entry("data/train.parquet")
    (True, False, False)
    """
    return PATTERN.fullmatch(name) is not None and not name.startswith("hf:")


def load(name: str, folder: Path) -> Callable[[], Any]:
    """Import a function without arguments; modules in the project file's folder are found too.

    Args:
        name: ``package.module:function``.
        folder: of the project file.

    Returns:
        The function.

    Raises:
        UserError: the name is not of that form, the module does not import, or has no such function.
    """
    if not is_entry(name):
        raise UserError("'package.module:function'", repr(name), "name a function, for example my_model:build")
    module, _, attribute = name.partition(":")
    where = str(folder.resolve())
    if where not in sys.path:
        sys.path.insert(0, where)
    try:
        importlib.invalidate_caches()
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        own = module == missing or module.startswith(f"{missing}.")
        remedy = f"put it on PYTHONPATH or into {folder}" if own else f"install {missing}"
        raise UserError(f"to import {module} for '{name}'", f"no module {missing}", remedy) from error
    except (Exception, SystemExit) as error:  # whatever the user's module raises when it is run
        raise UserError(*_broken(f"to import {module} for '{name}'", error)) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [n for n in vars(found) if not n.startswith("_")] if hasattr(found, "__dict__") else []
            place = getattr(sys.modules[module], "__file__", None) or "built in"
            raise UserError(f"a function {part} in {module} ({place})", "none of that name", suggest(part, known))
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"a function at '{name}'", type(found).__name__, "name a function without arguments")
    return found  # type: ignore[no-any-return]


def call(name: str, folder: Path) -> Any:
    """Return what the named function returns.

    Raises:
        UserError: it raises; the message carries its error.
        ExpungeError: it raises one of the package's own.
    """
    function = load(name, folder)
    try:
        return function()
    except ExpungeError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code
        raise UserError(*_broken(f"'{name}' to return", error)) from error


def _broken(expected: str, error: BaseException) -> tuple[str, str, str]:
    text = " ".join(str(error).split()) or "no message"
    remedy = "mend it, and try it in Python first"
    if "CUDA" in text or "cuda" in text:
        remedy = "let it build on the CPU (map_location='cpu', no .cuda()); --device moves the network"
    return expected, f"{type(error).__name__}: {text[:300]}", remedy
