"""The audit as one self-contained HTML page, as a terminal table and as Markdown; no torch."""

from expunge.report.page import render, write

__all__ = ["render", "write"]
