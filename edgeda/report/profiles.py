"""`edgeda profile` as text: the table, and what to know of the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgeda.profiling import Profile
from edgeda.profiling.latency import CLEAN_PRESSURE
from edgeda.profiling.machine import machine_line
from edgeda.profiling.roofline import LABEL
from edgeda.profiling.stages import STAGES
from edgeda.report.tables import Column, Row, format_value, text_table

PROFILE_COLUMNS = (
    Column("model", "model"),
    Column("engine", "engine"),
    Column("precision", "type"),
    Column("batch", "batch"),
    Column("streams", "streams"),
    Column("gmacs", "GMACs"),
    Column("params_m", "params", "M"),
    Column("size_mb", "size", "MB"),
    Column("median_ms", "median", "ms"),
    Column("p90_ms", "p90", "ms"),
    Column("p99_ms", "p99", "ms"),
    Column("images_per_s", "images", "per s"),
    Column("peak_memory_mb", "memory", "MB"),
    Column("energy_mj_per_image", "energy", "mJ"),
)
LAYER_COLUMNS = (
    Column("name", "layer"),
    Column("kind", "kind"),
    Column("precision", "type"),
    Column("mmacs", "MACs", "M"),
    Column("params_k", "params", "k"),
    Column("activations_k", "activ.", "k"),
    Column("share", "share", "%", 1),
    Column("bar", "of the MACs"),
)
ESTIMATE_COLUMNS = (
    Column("model", "model"),
    Column("device", "device"),
    Column("precision", "type"),
    Column("lower_bound_ms", "at least", "ms"),
    Column("images_per_s_at_most", "at most", "images/s"),
    Column("label", "what this is"),
)
MOST_LAYERS = 20
BAR = 24
_IF_USED = {"batch": 1, "streams": 1, "peak_memory_mb": None, "energy_mj_per_image": None}
"""Columns that are only shown where a row has another value than this."""


def profile_text(
    profiles: Sequence[Profile],
    width: int = 80,
    described: Mapping[str, Any] | None = None,
    *,
    device: str | None = None,
    verbose: bool = False,
) -> str:
    """A table of what was measured, what was asked for beside it, the caveats, and what it was measured on.

    `described` is the `machine()` of where it was; this one unless given. `verbose` adds everything else.
    """
    rows = [profile.to_dict() for profile in profiles]
    measured = [row for row in rows if row["runs"]]
    where = machine_line(None if described is None else dict(described)) + (f" ({device})" if device else "")
    columns = shown_columns(rows, PROFILE_COLUMNS)
    table = text_table(rows, columns, width)
    if any(len(line) > width for line in table.split("\n")):  # what --verbose says too
        table = text_table(rows, [column for column in columns if column.key != "peak_memory_mb"], width)
    details = [*_arithmetic(measured), *_memory(measured), *_mlperf(measured), *_jitter(measured)]
    return "\n".join(
        [
            table,
            "",
            *(details if verbose else ()),
            *_end_to_end(measured),
            *_power(measured),
            *caveats(rows),
            "; ".join([*_samples(measured), f"machine: {where}"]),
            *(() if verbose else ["load time, memory by part, GFLOPs, MLPerf's figures and jitter: --verbose"]),
        ]
    )


def result_text(result: Mapping[str, Any], width: int = 80, verbose: bool = False) -> str:
    """All of `edgeda.profiling.session.profile`: the rows, layers, estimates, and the check of estimates."""
    profiles = [Profile(**row) for row in result["rows"]]
    parts = [profile_text(profiles, width, result["machine"], device=result["device"], verbose=verbose)]
    state = result["state"]
    if verbose and state["pressure_before"] is not None and state["pressure_after"] is not None:
        parts[0] += (
            f"\nCPU pressure: {state['pressure_before']:.0%} before, {state['pressure_after']:.0%} after "
            "(share of ten seconds in which some task waited for a CPU)"
        )
    parts += [layers_text(model, layers, width) for model, layers in result.get("layers", {}).items()]
    if "estimates" in result:
        parts.append(estimates_text(result["estimates"], width))
    if "check" in result:
        parts.append(check_text(result["check"]))
    return "\n\n".join(parts)


def layers_text(model: str, layers: Sequence[Row], width: int = 80) -> str:
    """The layers that take most arithmetic as a table, each with a bar of its share, in the network's order."""
    total = sum(layer["macs"] for layer in layers) or 1
    most = sorted(range(len(layers)), key=lambda at: -layers[at]["macs"])[:MOST_LAYERS]
    longest = max((layer["macs"] for layer in layers), default=0) or 1
    rows = [
        {
            **layer, "mmacs": layer["macs"] / 1e6, "params_k": layer["params"] / 1e3,
            "activations_k": layer["activations"] / 1e3, "share": 100 * layer["macs"] / total,
            "bar": "\u2588" * max(1, round(BAR * layer["macs"] / longest)),
        }
        for layer in (layers[at] for at in sorted(most))
    ]  # fmt: skip
    rest = len(layers) - len(rows)
    left = 100 * (1 - sum(layer["macs"] for layer in (layers[at] for at in most)) / total)
    lines = [f"{model}: where the cost is, for one image", text_table(rows, LAYER_COLUMNS, max(width, 100))]
    if rest > 0:
        smaller = f"{rest} smaller layer{'s' if rest > 1 else ''}"
        lines.append(f"and {smaller} with {left:.1f} % of the arithmetic (all of them with --json)")
    return "\n".join(lines)


def estimates_text(estimates: Sequence[Row], width: int = 80) -> str:
    """Lower bounds by device, what they assume, and where the peaks come from."""
    sources = dict.fromkeys(f"{row['title']}: {row['source']}" for row in estimates)
    return "\n".join(
        [
            f"Estimates: {LABEL}. A roofline over the layers with published peaks at the highest clocks; a real device",
            "is slower, a small network many times slower.",
            text_table(estimates, ESTIMATE_COLUMNS, width),
            "sources:",
            *(f"  {source}" for source in sources),
        ]
    )


def check_text(check: Mapping[str, Any]) -> str:
    """The same estimate for the machine at hand, from measured peaks, beside what was measured."""
    peaks = check["peaks"]
    int8 = f"{format_value(peaks['int8_gops'])} int8 GOP/s, " if peaks["int8_gops"] else ""
    lines = [
        f"the same estimate for this machine, from peaks measured on {peaks['threads']} threads "
        f"({format_value(peaks['fp32_gflops'])} fp32 GFLOP/s, {int8}{format_value(peaks['bandwidth_gb_s'])} GB/s):"
    ]
    lines += [
        f"  {row['model']} in {row['engine']}, {row['precision']}: at least {format_value(row['lower_bound_ms'])} ms "
        f"estimated, {format_value(row['measured_ms'])} ms measured: error {row['error_percent']:+.0f} %, "
        f"measured is {format_value(row['ratio'])} x the bound"
        for row in check["rows"]
    ]
    return "\n".join(lines if check["rows"] else [*lines, "  nothing was measured that it could be held against"])


def caveats(rows: Sequence[Row]) -> list[str]:
    """What to know before trusting the rows, a line each: their notes, and whether the machine was busy."""
    noted: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["note"]:
            noted.setdefault((row["engine"], row["note"]), []).append(row["model"])
    lines = [f"{', '.join(dict.fromkeys(models))} in {engine}: {note}" for (engine, note), models in noted.items()]
    unclean = [row["pressure"] for row in rows if row["clean"] is False]
    if unclean:
        lines.append(
            f"not clean: in {len(unclean)} of {len(rows)} rows other work waited for a CPU too, up to "
            f"{max(unclean):.0%} of the time (clean is at most {CLEAN_PRESSURE:.0%}); measure again on an idle machine"
        )
    return lines


def _arithmetic(rows: Sequence[Row]) -> list[str]:
    lines = [
        f"{row['model']}: {format_value(row['gmacs'])} GMACs = {format_value(row['gflops'])} GFLOPs per image "
        f"at {row['input_size']} px"
        for row in rows
        if row["gmacs"] is not None
    ]
    return list(dict.fromkeys(lines))


def shown_columns(rows: Sequence[Row], columns: Sequence[Column]) -> list[Column]:
    return [
        column
        for column in columns
        if column.key not in _IF_USED or any(row[column.key] != _IF_USED[column.key] for row in rows)
    ]


def _named(row: Row) -> str:
    return f"{row['model']} in {row['engine']}"


def _memory(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if row["streams"] == 1 and (row["load_ms"] is not None or row["peak_memory_mb"] is not None):
            loaded = f"loads in {format_value(row['load_ms'])} ms" if row["load_ms"] is not None else ""
            used = (
                f"peak memory {format_value(row['peak_memory_mb'])} MB at batch {row['batch']}, of it the model "
                f"{format_value(row['model_memory_mb'])} MB"
                if row["peak_memory_mb"] is not None
                else ""
            )
            if used or row["batch"] == min(other["batch"] for other in rows if _named(other) == _named(row)):
                yield f"{_named(row)}: {', '.join(filter(None, (loaded, used)))}"


def _mlperf(rows: Sequence[Row]) -> Iterator[str]:
    for name in dict.fromkeys(map(_named, rows)):
        mine = [row for row in rows if _named(row) == name]
        parts = [
            f"{title} {format_value(row[key])} ms of {row['runs']} queries"
            for title, key in (("SingleStream (p90)", "single_stream_p90_ms"),
                               ("MultiStream (p99, 8 images a query)", "multi_stream_p99_ms"))
            for row in mine
            if row[key] is not None
        ]  # fmt: skip
        if parts:
            yield f"{name}: in the manner of MLPerf, not its rules: {', '.join(parts)}"


def _end_to_end(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if stages := row["stages"]:
            parts = ", ".join(f"{name} {format_value(stages[f'{name}_ms'])}" for name in STAGES)
            yield (
                f"{_named(row)}, end to end on {stages['image']} ({stages['image_width']} x {stages['image_height']}): "
                f"median {format_value(stages['total_median_ms'])} ms, p99 {format_value(stages['total_p99_ms'])} ms; "
                f"{parts} ms; the network is {stages['compute_share']:.0%} of it"
            )


def _power(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if power := row["power"]:
            if power["mean_w"] is None:
                yield f"{_named(row)}: {power['source']} gave no reading while it was measured; raise --seconds"
                continue
            rails = ", ".join(f"{name} {format_value(watts)} W" for name, watts in power["rails_w"].items())
            yield (
                f"{_named(row)}, batch {row['batch']}: {format_value(power['mean_w'])} W on average, "
                f"{format_value(power['max_w'])} W at most, {format_value(power['energy_mj_per_image'])} mJ an image "
                f"({power['source']}, {power['samples']} readings: {rails})"
            )


def _samples(rows: Sequence[Row]) -> list[str]:
    """What each number is of; which batch only where no column says it."""
    if not rows:
        return []
    batch, counted, size, threads = (_span([row[key] for row in rows]) for key in (
        "batch", "runs", "input_size", "threads"))  # fmt: skip
    images = f"one {size} px image" if batch == "1" else f"{size} px images"
    return [f"{counted} calls a row with {images} on {threads} {'thread' if threads == '1' else 'threads'}"]


def _jitter(rows: Sequence[Row]) -> list[str]:
    known = [row["jitter_mad_ms"] / row["median_ms"] for row in rows if row["jitter_mad_ms"] is not None]
    return [f"jitter (MAD) up to {max(known):.1%} of the median"] if known else []


def _span(values: Sequence[int]) -> str:
    least, most = min(values), max(values)
    return f"{least}" if least == most else f"{least} to {most}"
