"""A comparison as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeda.errors import InputError
from edgeda.report.page import page, paragraph, write_page
from edgeda.report.plots import comparison_section
from edgeda.report.svg import escape


def write_comparison(compared: Mapping[str, Any], path: Path) -> Path:
    """Write the result of `compare_runs` as a page of its own; InputError when `path` cannot be written."""
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"--html {path}: name a file in a folder that is there")
    said = [run["says"] for run in compared["runs"]]
    head = "<header><h1>Networks side by side</h1>" + paragraph(
        ", ".join(f"{run['run']} ({run['method']})" for run in compared["runs"]), "dim"
    ) + "</header>"  # fmt: skip
    best = (compared["ship"] or {}).get("sentence") or compared["conclusion"]
    lines = "".join(paragraph(line[0].upper() + line[1:]) for lines in said for line in lines)
    write_page(
        path,
        page(
            "edgeda compare",
            [
                head,
                f'<div class="verdict"><p>{escape(best[0].upper() + best[1:])}</p>{lines}</div>',
                comparison_section(compared),
            ],
        ),
    )
    return path
