"""Benchmark data sets as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeda.data.builtin import IN_PACKAGES
from edgeda.data.checks import PartCheck
from edgeda.report.tables import Column, text_table

_LISTING = (
    Column("name", "data set"),
    Column("domains", "domains (images published)"),
    Column("classes", "classes"),
    Column("images", "images"),
    Column("here", "here"),
)
_CHECK = (
    Column("name", "domain"),
    Column("images", "images"),
    Column("published", "published"),
    Column("classes", "classes"),
    Column("state", "state"),
)


def listing_text(rows: Sequence[dict[str, Any]], root: str, width: int) -> str:
    """A table of the data sets, and a line for each: where it is published and how it should lie."""
    shown = []
    for row in rows:
        here = [domain["here"] for domain in row["domains"]]
        domains = [f"{domain['spec'].partition(':')[2]} {domain['images']}" for domain in row["domains"]]
        state = "yes" if all(here) else "in part" if any(here) else "no"
        shown.append({**row, "domains": ", ".join(domains), "here": state})
    lines = [f"{row['name']}: {row['published']}\n  {row['layout']}" for row in rows]
    first = rows[0]["domains"][0]["spec"]
    return "\n".join(
        [
            text_table(shown, _LISTING, width),
            "",
            f"Always there (extra `data`): {', '.join(IN_PACKAGES)}.",
            f"The others are looked for in the folder {root}. A domain is written as {first}. Nothing is downloaded:",
            *lines,
        ]
    )


def check_text(parts: Sequence[PartCheck], width: int) -> str:
    """A table of domains, found beside published."""
    rows = [
        {**part.to_dict(), "classes": f"{part.classes} of {part.classes_published}", "state": _state(part)}
        for part in parts
    ]
    return text_table(rows, _CHECK, width)


def _state(part: PartCheck) -> str:
    return "; ".join(problem.removeprefix(part.name).lstrip(": ") for problem in part.problems) or "as published"
