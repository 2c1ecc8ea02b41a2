"""The registry of anchors is this folder: an anchor's name is its file's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.anchors._base import Anchor, Hold, Known
from expunge.registry import Registry

__all__ = ["Anchor", "Hold", "Known", "build", "load", "names"]
_ANCHORS = Registry(__name__, __path__, Anchor, word="anchor", held="ANCHOR", group="expunge.anchors")  # type: ignore[type-abstract]


def names() -> list[str]:
    """Return the names of all anchors.

    >>> {"kl_gaussian", "none"} <= set(names())
    True
    """
    return _ANCHORS.names()


def load(name: str) -> type[Anchor]:
    """Return the class of an anchor.

    Raises:
        UserError: no such anchor, or its module or entry point does not hold one.
    """
    return _ANCHORS.load(name)


def build(config: Mapping[str, Any] | str | Anchor) -> Anchor:
    """Return an anchor from its name, or from plain values.

    Args:
        config: ``{"name": anchor, field: value, ...}``, or the name.

    Raises:
        UserError: no name, an unknown field, or a value of another type or range.

    >>> build("none").name
    'none'
    """
    return _ANCHORS.given("anchor", config)
