"""`edgeda profile` as text: the table, the arithmetic in both units, and what to know of the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from edgeda.profiling import Profile
from edgeda.profiling.latency import CLEAN_PRESSURE
from edgeda.profiling.machine import machine_line
from edgeda.report.tables import Column, Row, format_value, text_table

PROFILE_COLUMNS = (
    Column("model", "model"),
    Column("engine", "engine"),
    Column("precision", "type"),
    Column("batch", "batch"),
    Column("gmacs", "GMACs"),
    Column("params_m", "params", "M"),
    Column("size_mb", "size", "MB"),
    Column("median_ms", "median", "ms"),
    Column("p90_ms", "p90", "ms"),
    Column("p99_ms", "p99", "ms"),
    Column("images_per_s", "images", "per s"),
)


def profile_text(profiles: Sequence[Profile], width: int = 80) -> str:
    """A table of what was measured, the GFLOPs, the caveats, and the machine."""
    rows = [profile.to_dict() for profile in profiles]
    measured = [row for row in rows if row["runs"]]
    return "\n".join(
        [
            text_table(rows, PROFILE_COLUMNS, width),
            "",
            *_arithmetic(measured),
            *caveats(rows),
            *_samples(measured),
            f"machine: {machine_line()}",
        ]
    )


def caveats(rows: Sequence[Row]) -> list[str]:
    """What to know before trusting the rows, a line each: their notes, and whether the machine was busy."""
    lines = [f"{row['model']} in {row['engine']}: {row['note']}" for row in rows if row["note"]]
    unclean = [row["pressure"] for row in rows if row["clean"] is False]
    if unclean:
        lines.append(
            f"not clean: in {len(unclean)} of {len(rows)} rows other work waited for a CPU too, up to "
            f"{max(unclean):.0%} of the time (clean is at most {CLEAN_PRESSURE:.0%}); measure again on an idle machine"
        )
    return list(dict.fromkeys(lines))


def _arithmetic(rows: Sequence[Row]) -> list[str]:
    lines = [
        f"{row['model']}: {format_value(row['gmacs'])} GMACs = {format_value(row['gflops'])} GFLOPs per image "
        f"at {row['input_size']} px"
        for row in rows
        if row["gmacs"] is not None
    ]
    return list(dict.fromkeys(lines))


def _samples(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    runs, threads = [row["runs"] for row in rows], rows[0]["threads"]
    counted = f"{min(runs)}" if min(runs) == max(runs) else f"{min(runs)} to {max(runs)}"
    return [f"latency of one call, {counted} calls a row, {threads} threads"]
