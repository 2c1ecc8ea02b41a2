"""Requests as a table for a spreadsheet, in which no cell is taken for a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

COLUMNS = ("request", "status", "kind", "count", "route", "received", "due", "overdue", "models")
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # the last four are wide forms of the first


def defused(value: object) -> str:
    """Return a value as the text of a cell that no spreadsheet computes: with an apostrophe before a formula's sign.

    A sign counts after spaces too. Numbers, which are no texts, stay as they are.

    Args:
        value: of a cell; None for an empty one.

    Returns:
        The text.

    References:
        OWASP, "CSV Injection", https://owasp.org/www-community/attacks/CSV_Injection.

    >>> defused("=1+1"), defused(" @SUM(A1)"), defused(-3), defused("req-1"), defused(None)
    ("'=1+1", "' @SUM(A1)", '-3', 'req-1', '')
    """
    if value is None:
        return ""
    if isinstance(value, int | float):
        return str(value)
    text = str(value)
    return f"'{text}" if text.startswith(FORMULAS) or text.lstrip().startswith(FORMULAS) else text


def table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    """Return rows as CSV (RFC 4180) with a header line; what a row lacks is an empty cell.

    Args:
        rows: values by column.
        columns: in their order.

    Returns:
        The text.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow([defused(name) for name in columns])
    writer.writerows([defused(row.get(name)) for name in columns] for row in rows)
    return out.getvalue()
