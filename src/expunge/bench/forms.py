"""The benchmark's tables in the forms they are read in: terminal, Markdown, LaTeX, HTML."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import jinja2
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from expunge.bench.remarks import WARNING
from expunge.bench.sheets import Cell, Head, Line, Sheet
from expunge.report import format as fmt
from expunge.report.tables import STYLES, escape

WIDTH, NAME, GAP = 120, 24, 1  # columns of a terminal, of a model's name, between columns
LATEX_WIDTH, LATEX_HEAD = 96, 14  # signs of a line of a page, and of a column's head
COLOURS = (
    "Colour: how long the gap is in floors, else in half intervals: green up to 1, none up to 2, yellow up to 4, "
    "orange up to 8, red beyond."
)
SAMPLES = re.compile(r" (?=\()")  # before an interval that gets its own line

LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "≈": r"$\approx$",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
    "α": r"$\alpha$",
    "λ": r"$\lambda$",
    "–": "--",
    "…": r"\ldots{}",
} | {sign: f"\\{sign}" for sign in "&%$#_"}

PAGE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
HTML = PAGE.from_string(
    """
<div class="expunge-tables">
<h2>{{ title }}</h2>
<style>
.expunge-tables { font: 14px/1.4 system-ui, sans-serif; overflow-x: auto; }
.expunge-tables table { border-collapse: collapse; margin: .5em 0; }
.expunge-tables th, .expunge-tables td { padding: .2em .6em; text-align: right; vertical-align: top; }
.expunge-tables td { white-space: nowrap; }
.expunge-tables th:first-child, .expunge-tables .said { text-align: left; }
.expunge-tables thead th { border-bottom: 1px solid; vertical-align: bottom; }
.expunge-tables small { display: block; opacity: .75; }
.expunge-tables .last { border-top: 1px solid; }
.expunge-tables .retrained { font-weight: bold; }
.expunge-tables .d0 { background: #2a9d3a33; } .expunge-tables .d2 { background: #e0b00033; }
.expunge-tables .d3 { background: #e0700044; } .expunge-tables .d4 { background: #d0202055; }
</style>
{% for sheet in sheets %}
<section>
<h3>{{ sheet.title }}</h3>
{% if sheet.text %}
<p>{{ sheet.text }}</p>
{% endif %}
<table>
<thead><tr><th scope="col">{{ sheet.first }}</th>
{%- for head in sheet.heads %}<th scope="col">{{ head.long }}</th>{% endfor %}</tr></thead>
<tbody>
{% for line in sheet.lines %}
<tr{% if line.floor %} class="last"{% elif line.role %} class="{{ line.role }}"{% endif %}>
<th scope="row">{{ line.name }}
{%- if line.said and not line.empty %}<small>{{ line.said }}</small>{% endif %}</th>
{%- if line.said and line.empty %}<td class="said" colspan="{{ sheet.heads|length }}">{{ line.said }}</td>
{%- else %}{% for cell in line.cells %}
<td{% if cell.distance is not none %} class="d{{ cell.distance }}"{% endif %}
{%- if cell.title %} title="{{ cell.title }}"{% endif %}>{{ cell.text }}
{%- if cell.gap %}<small>{{ cell.gap }}</small>{% endif %}</td>
{%- endfor %}{% endif %}</tr>
{% endfor %}
</tbody>
</table>
{% if sheet.notes %}
<ul>
{% for note in sheet.notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
{% endif %}
</section>
{% endfor %}
{% if colours %}
<p>{{ colours }}</p>
{% endif %}
</div>
"""
)


def markdown(title: str, sheets: Sequence[Sheet]) -> str:
    """Return the tables as Markdown, every name escaped; gaps stand behind the values."""
    parts = [f"# {escape(title)}"]
    for sheet in sheets:
        parts += [f"## {escape(sheet.title)}", escape(sheet.text), _pipes(sheet)]
        parts.append("\n".join(f"- {escape(note)}" for note in sheet.notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def _pipes(sheet: Sheet) -> str:
    rows = [[sheet.first, *(head.long for head in sheet.heads)]]
    rows += [
        [f"{line.name} ({line.said})" if line.said else line.name, *(_joined(cell) for cell in line.cells)]
        for line in sheet.lines
    ]
    lines = [f"| {' | '.join(map(escape, row))} |" for row in rows]
    return "\n".join([lines[0], f"| --- |{' ---: |' * len(sheet.heads)}", *lines[1:]])


def _joined(cell: Cell) -> str:
    return f"{cell.text}; {cell.gap}" if cell.gap else cell.text


def latex(title: str, sheets: Sequence[Sheet]) -> str:
    r"""Return the tables as LaTeX for ``\input``: booktabs, one ``table`` each, wide ones in parts, notes below."""
    parts = [f"% {fmt.plain(title)}", r"% needs \usepackage{booktabs}"]
    return "\n".join([*parts, *("\n".join(_float(sheet)) for sheet in sheets)]) + "\n"


def _float(sheet: Sheet) -> Iterator[str]:
    caption = f"{sheet.title}. {sheet.text}" if sheet.text else f"{sheet.title}."
    yield from ("", r"\begin{table}", r"\centering", r"\small", rf"\caption{{{tex(caption)}}}")
    heads = [textwrap.fill(fmt.plain(head.long), LATEX_HEAD, break_long_words=False) for head in sheet.heads]
    for part in _parts(sheet, LATEX_WIDTH, heads):
        yield from _tabular(sheet, part, heads)
    if sheet.notes:
        yield r"\par\medskip\footnotesize\raggedright"
        yield from (f"{tex(note)}\\par" for note in sheet.notes)
    yield r"\end{table}"


def _tabular(sheet: Sheet, columns: Sequence[int], heads: Sequence[str]) -> Iterator[str]:
    yield rf"\begin{{tabular}}{{l{'r' * len(columns)}}}"
    yield r"\toprule"
    yield " & ".join([tex(sheet.first), *(_stack(heads[at].splitlines()) for at in columns)]) + r" \\"
    yield r"\midrule"
    for line in _lines(sheet, columns):
        if line.floor:
            yield r"\midrule"
        yield _row(line, columns) + r" \\"
    yield from (r"\bottomrule", r"\end{tabular}\par\medskip")


def _row(line: Line, columns: Sequence[int]) -> str:
    if line.said and line.empty and columns:
        return rf"{tex(line.name)} & \multicolumn{{{len(columns)}}}{{l}}{{{tex(line.said)}}}"
    name = tex(line.name) + (rf" {{\scriptsize ({tex(line.said)})}}" if line.said else "")
    return " & ".join([name, *(_stack(_stacked(line.cells[at]).splitlines(), r"\scriptsize ") for at in columns)])


def _stack(lines: Sequence[str], small: str = "") -> str:
    """Return lines above each other, those below the first in another size."""
    first, *others = map(tex, lines)
    below = "".join(rf" \\ {{{small}{other}}}" for other in others)
    return rf"\shortstack[r]{{{first}{below}}}" if others else first


def tex(text: str) -> str:
    r"""Return a text so that LaTeX shows it as it is.

    >>> tex("ssd_5 & 10% ± 1 [x]")
    'ssd\\_5 \\& 10\\% $\\pm$ 1 {[}x{]}'
    """
    shown = "".join(LATEX.get(sign, sign) for sign in fmt.plain(text))
    return re.sub(r"(?<!\\)\[", "{[}", shown).replace("]", "{]}")


def html(title: str, sheets: Sequence[Sheet]) -> str:
    """Return the tables as a fragment of HTML that carries its own style; every name is escaped."""
    found = [_clean(sheet) for sheet in sheets]
    return HTML.render(sheets=found, title=fmt.plain(title), colours=_colours(sheets)).lstrip("\n")


def _colours(sheets: Sequence[Sheet]) -> str:
    """Return what colours mean, where there are any."""
    every = (cell for sheet in sheets for line in sheet.lines for cell in line.cells)
    return COLOURS if any(cell.distance is not None for cell in every) else ""


def _clean(sheet: Sheet) -> Sheet:
    """Return a sheet without control characters, which no escaping makes valid."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, str):
            return fmt.plain(value)
        if isinstance(value, tuple):
            return tuple(cleaned(v) for v in value)
        if isinstance(value, Cell | Head | Line):
            return type(value)(**{name: cleaned(v) for name, v in vars(value).items()})
        return value

    return Sheet(**{name: cleaned(v) for name, v in vars(sheet).items()})


def rich(title: str, sheets: Sequence[Sheet], width: int = WIDTH) -> list[Any]:
    """Return the tables for a terminal: gaps below the values, coloured by their length; wide ones in several parts."""
    found: list[Any] = [Text(fmt.plain(title), style="bold")]
    for sheet in sheets:
        found += ["", Text(fmt.plain(sheet.title), style="bold")]
        found += [Text(fmt.plain(sheet.text))] if sheet.text else []
        heads = [head.short for head in sheet.heads]
        found += [_grid(sheet, part) for part in _parts(sheet, width, heads)]
        found += [Padding(Text(fmt.plain(note), style=_loud(note)), (0, 0, 0, 2)) for note in sheet.notes]
    return [*found, "", Text(colours, style="dim")] if (colours := _colours(sheets)) else found


def _loud(note: str) -> str:
    return "yellow" if note.startswith(WARNING) else "dim"


def _parts(sheet: Sheet, width: int, heads: Sequence[str]) -> list[list[int]]:
    """Return the columns in as many parts as fit beside the names."""
    names = max([len(sheet.first), *(min(NAME, len(fmt.plain(line.name))) for line in sheet.lines)])
    said = [NAME for line in sheet.lines if line.said]
    room = width - max([names, *said]) - GAP
    parts: list[list[int]] = [[]]
    left = room
    for columns in _tied(sheet):
        size = sum(GAP + _broad(sheet, at, heads[at]) for at in columns)
        if size > left and parts[-1]:
            parts.append([])
            left = room
        parts[-1] += columns
        left -= size
    return parts


def _tied(sheet: Sheet) -> list[list[int]]:
    """Return the columns that must not be parted: a number and what papers say of it."""
    found: list[list[int]] = []
    for at, head in enumerate(sheet.heads):
        if head.tied and found:
            found[-1].append(at)
        else:
            found.append([at])
    return found


def _broad(sheet: Sheet, at: int, head: str) -> int:
    """Return the signs of the longest line of a column."""
    cells = (line for row in sheet.lines for line in _stacked(row.cells[at]).splitlines())
    return max(map(len, [*head.splitlines(), *cells]), default=0)


def _lines(sheet: Sheet, columns: Sequence[int]) -> list[Line]:
    """Return the rows of one part of a table; a floor without numbers there is left out."""
    none = [all(line.cells[at].text == fmt.MISSING for at in columns) for line in sheet.lines]
    return [line for line, empty in zip(sheet.lines, none, strict=True) if not (empty and line.floor)]


def _grid(sheet: Sheet, columns: Sequence[int]) -> Table:
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
    heads = [sheet.first, *("\n".join(map(fmt.plain, sheet.heads[at].short.splitlines())) for at in columns)]
    high = max(head.count("\n") for head in heads)
    first, *others = ("\n" * (high - head.count("\n")) + head for head in heads)
    table.add_column(Text(first), max_width=NAME)
    for head in others:
        table.add_column(Text(head), justify="right", no_wrap=True)
    for line in _lines(sheet, columns):
        name = Text(fmt.plain(line.name, NAME), style="bold" if line.role == "retrained" or line.floor else "")
        if line.said:
            name.append(f"\n{fmt.plain(line.said)}", style="dim")
        table.add_row(name, *(_shown(line.cells[at]) for at in columns))
    return table


def _stacked(cell: Cell) -> str:
    """Return the lines of a cell: value, interval over samples, gap."""
    text = SAMPLES.sub("\n", cell.text)
    return f"{text}\n{cell.gap}" if cell.gap else text


def _shown(cell: Cell) -> Text:
    text = SAMPLES.sub("\n", cell.text)
    style = STYLES[cell.distance] if cell.distance is not None else ""
    shown = Text(text, style=style)
    return shown.append(f"\n{cell.gap}", style="dim") if cell.gap else shown
