"""What ``--set KEY=VALUE`` means: fields of the method, settings of the runtime."""

from __future__ import annotations

from typing import Any

from expunge.errors import UserError
from expunge.methods import parse


def settings(words: list[str] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the method's fields and the runtime's settings of ``--set``.

    Raises:
        UserError: not KEY=VALUE, a name, which -m gives, or runtime without a key.
    """
    found = parse(words or [])
    if "name" in found:
        raise UserError("fields of the method in --set", "name", "name the method with -m")
    runtime = found.pop("runtime", {})
    if not isinstance(runtime, dict):
        raise UserError(
            "settings of the runtime, runtime.KEY=VALUE", "runtime alone", "name one: runtime.batch_size=64"
        )
    return found, runtime
