"""What attacks that read labels refuse alike."""

from __future__ import annotations

from torch import Tensor

from expunge.errors import UserError


def labelled(found: Tensor | None, attack: str) -> Tensor:
    """Return what was worked out from labels.

    Args:
        found: (N,), or None without labels.
        attack: its name in words.

    Raises:
        UserError: there are no labels.
    """
    if found is None:
        raise UserError(f"labelled samples for the {attack}", "none", "give targets")
    return found
