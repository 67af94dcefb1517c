"""The page around the plots: one HTML file that loads nothing, reads on a phone, in the dark and by ear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeda.errors import from_os_error
from edgeda.report.svg import escape, marker
from edgeda.report.tables import Column, Row, format_value
from edgeda.whole_file import write_text

GENERATOR = '<meta name="generator" content="edgeda">'
"""In every page of ours, near its top: what has none is the user's."""
STYLE = Path(__file__).with_name("page.css")


def page(title: str, body: Sequence[str]) -> str:
    """A whole document. Its policy forbids every request and every script."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{GENERATOR}\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def write_page(path: Path, document: str) -> None:
    """Write a whole file or none; InputError when the disk is full or the folder is not ours."""
    try:
        write_text(path, document)
    except OSError as error:
        raise from_os_error(error, f"writing {path.name}") from error


def section(title: str, *parts: str) -> str:
    """A part of the page under a heading, or nothing when it has no content."""
    content = [part for part in parts if part]
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(content) + "\n</section>" if content else ""


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def items(lines: Sequence[str]) -> str:
    """A list of plain texts."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>" if lines else ""


def figure(caption: str, drawing: str, *, legend: Sequence[str] = (), note: str = "", table: str = "") -> str:
    """A plot with caption, legend, a remark, and its data as a table to unfold."""
    signs = "".join(
        f'<li><svg viewBox="0 0 12 12" aria-hidden="true">{marker(6, 6, index, 4)}</svg>{escape(name)}</li>'
        for index, name in enumerate(legend)
    )
    return (
        f"<figure><figcaption>{escape(caption)}</figcaption>"
        + (f'<ul class="legend">{signs}</ul>' if signs else "")
        + drawing
        + (paragraph(note, "note") if note else "")
        + (f"<details><summary>as a table</summary>{table}</details>" if table else "")
        + "</figure>"
    )


def figures(*found: str) -> str:
    """Figures beside each other where there is room."""
    kept = [one for one in found if one]
    return f'<div class="figures">{"".join(kept)}</div>' if kept else ""


def table(rows: Sequence[Row], columns: Sequence[Column], marked: Sequence[bool] = ()) -> str:
    """Rows as an HTML table that scrolls by itself when it is wider than the screen; `marked` rows stand out."""
    head = "".join(
        f'<th scope="col">{escape(column.title)}{f" <small>{escape(column.unit)}</small>" if column.unit else ""}</th>'
        for column in columns
    )
    numeric = [any(_is_number(row.get(column.key)) for row in rows) for column in columns]
    lines = []
    for index, row in enumerate(rows):
        cells = []
        for place, column in enumerate(columns):
            shown = escape(format_value(row.get(column.key), column.decimals))
            kind = ' class="n"' if numeric[place] else ""
            cells.append(f'<th scope="row">{shown}</th>' if place == 0 else f"<td{kind}>{shown}</td>")
        style = ' class="marked"' if index < len(marked) and marked[index] else ""
        lines.append(f"<tr{style}>{''.join(cells)}</tr>")
    return (
        f'<div class="wide" role="region" aria-label="table" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def facts(pairs: Mapping[str, object]) -> str:
    """Names and values, one below the other."""
    return "<dl>" + "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs.items()
    ) + "</dl>"  # fmt: skip


def folded(summary: str, text: str) -> str:
    """A long plain text that is shown when asked for."""
    return f'<details><summary>{escape(summary)}</summary><pre tabindex="0">{escape(text)}</pre></details>'
