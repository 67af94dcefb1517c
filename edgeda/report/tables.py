"""Aligned tables of dictionaries, for a terminal (rich) and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

_SHORT_TEXT = 12
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """What a column shows: the value under `key`, with `decimals`, or three significant digits when None."""

    key: str
    title: str
    unit: str = ""
    decimals: int | None = None


def format_value(value: Any, decimals: int | None = None) -> str:
    """None as `-`, truth as yes or no, numbers with `decimals` or three significant digits, the rest as text."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        if decimals is not None:
            return f"{value:.{decimals}f}"
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".") if value else "0"
    if isinstance(value, (list, tuple)):
        return ", ".join(format_value(item, decimals) for item in value) or "-"
    return str(value)


def rich_table(rows: Sequence[Row], columns: Sequence[Column], gap: int = 2) -> Table:
    """A rich table: numbers to the right, numbers and single words never cut, longer text folded, units in the header.

    `gap` is the number of characters between columns, at least 1.
    """
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0), header_style="bold")
    for column in columns:
        title = Text(column.title + (f"\n{column.unit}" if column.unit else ""))
        width = _natural_width(rows, column)
        fixed = _is_numeric(rows, column) or width <= _SHORT_TEXT
        table.add_column(
            title,
            justify="right" if _is_numeric(rows, column) else "left",
            no_wrap=fixed,
            min_width=width if fixed else _SHORT_TEXT,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(_cell(row, column)) for column in columns))
    return table


def text_table(rows: Sequence[Row], columns: Sequence[Column], width: int = 80) -> str:
    """`rich_table` as plain text: at most `width` characters wide, or as wide as its numbers and words need."""
    natural = [_natural_width(rows, column) for column in columns]
    least = [
        size if _is_numeric(rows, column) else min(size, _SHORT_TEXT)
        for size, column in zip(natural, columns, strict=True)
    ]
    gaps = len(columns) - 1
    gap = 2 if sum(natural) + 2 * gaps <= width else 1
    console = Console(width=max(width, sum(least) + gaps), color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(rich_table(rows, columns, gap))
    return "\n".join(line.rstrip() for line in capture.get().rstrip("\n").split("\n"))


def markdown_table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """The same as a Markdown table, units in brackets."""
    titles = [column.title + (f" ({column.unit})" if column.unit else "") for column in columns]
    rules = ["---:" if _is_numeric(rows, column) else "---" for column in columns]
    cells = [[_cell(row, column).replace("|", "\\|") for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, rules, *cells))


def _cell(row: Row, column: Column) -> str:
    return " ".join(format_value(row.get(column.key), column.decimals).split())


def _is_numeric(rows: Sequence[Row], column: Column) -> bool:
    values = [row.get(column.key) for row in rows]
    return all(value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)) for value in values)


def _natural_width(rows: Sequence[Row], column: Column) -> int:
    return max(len(column.title), len(column.unit), *(len(_cell(row, column)) for row in rows), 0)
