"""`edgeda predict`: classify images, videos, streams and cameras with an exported model, as they come."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgeda.artifacts import exported_file, find_model
from edgeda.errors import InputError, Interrupted
from edgeda.prediction_files import Collector, Saver, check_folder
from edgeda.prediction_sources import open_sources
from edgeda.prediction_tally import RateLine, Tally
from edgeda.runtime import (
    Classifier,
    DriftMonitor,
    DriftReference,
    ImageFiles,
    Pipeline,
    Result,
    Source,
)
from edgeda.runtime.cores import usable_cores
from edgeda.runtime.drift import WINDOW

log = logging.getLogger(__name__)

SOURCES_NAMED = 3
"""How many sources without a test of drift the summary's line names."""

Emit = Callable[[dict[str, Any]], None]


def predict(
    model: str | None,
    sources: Sequence[str],
    *,
    emit: Emit,
    engine: str | None = None,
    threads: int | None = None,
    batch_size: int | None = None,
    top_k: int = 1,
    save: Path | None = None,
    drift: bool = False,
    drift_every: int | None = None,
    collect: Path | None = None,
    collect_limit: int = 500,
    retries: int | None = None,
    overwrite: bool = False,
    on_start: Callable[[Pipeline], None] | None = None,
    on_summary: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Classify every source; `emit` gets a dict for each frame and each change of drift. Returns the summary.

    `on_start` gets the running pipeline, whose `stop` ends it early; `on_summary` the summary, also when
    an error follows: InputError when a source failed (once all others have ended) or no image could
    be read, Interrupted when files were stopped before their end.
    """
    path = exported_file(find_model(model))
    found = [source for text in sources for source in open_sources(text, retries)]
    if not found:
        raise InputError("--source is missing: an image, folder, video, rtsp:// address or camera index")
    if len({source.address for source in found}) < len(found):
        raise InputError("the same --source is given twice")
    _tell_apart(found)
    if save and collect and save.resolve() == collect.resolve():
        raise InputError("--save and --collect name one folder; give each its own")
    for folder, option in ((save, "--save"), (collect, "--collect")):
        if folder is not None:
            check_folder(folder, option, overwrite)
    classifier = Classifier(path, engine, threads or 1, concurrency=usable_cores())
    reference = DriftReference.from_dict(classifier.manifest.drift) if drift or collect else None
    saver = Saver(save) if save else None
    collector = Collector(collect, collect_limit) if collect else None
    tally = Tally(found)
    monitors: dict[str, DriftMonitor] = {}
    due: dict[str, int] = {}
    """By source, the next frame that its monitor is shown."""
    pipeline = Pipeline(classifier, found, batch_size=batch_size, keep_pictures=bool(saver or collector))
    try:
        with pipeline as results:
            if on_start is not None:
                on_start(pipeline)
            rate = RateLine(tally)
            for result in results:
                emit(line(result, top_k))
                tally.add(result)
                if reference is not None:
                    watch(result, monitors, due, reference, drift_every, collector, emit)
                if saver is not None:
                    saver.save(result)
                rate.show()
            rate.close()
    finally:
        if saver is not None:
            saver.close()
    for source in found:
        for note in source.notes:
            log.warning("%s", note)
    summary = {
        "model": str(path),
        "engine": classifier.backend.name,
        "precision": classifier.backend.precision,
        **tally.to_dict(),
        "sources": [
            {
                "source": source.name,
                "frames": tally.per_source[source.name],
                "dropped": dropped,
                "reconnects": source.reconnects,
                "notes": source.notes,
                **(
                    {"drift": _drift(monitors.get(source.name), _step(source, drift_every))}
                    if reference is not None
                    else {}
                ),
            }
            for source, dropped in zip(found, pipeline.dropped, strict=True)
        ],
        "failures": [str(failure) for failure in pipeline.failures],
        "stopped": not pipeline.finished,
        "collected": collector.count if collector else None,
        "saved": str(save) if save else None,
    }
    if on_summary is not None:
        on_summary(summary)
    if pipeline.failures:
        raise type(pipeline.failures[0])("; ".join(map(str, pipeline.failures)))
    if not pipeline.finished and not all(source.live for source in found):
        raise Interrupted(f"stopped after {tally.frames} frames, before the end of the files")
    if pipeline.finished and tally.frames == 0:
        raise InputError(f"no image could be read ({tally.unreadable} tried)")
    return summary


def _tell_apart(sources: Sequence[Source]) -> None:
    """Number those that have one name, such as two channels behind one address."""
    seen: dict[str, int] = {}
    for source in sources:
        count = seen[source.name] = seen.get(source.name, 0) + 1
        if count > 1:
            source.name += f" ({count})"


def line(result: Result, top_k: int = 1) -> dict[str, Any]:
    """The JSON object of one frame."""
    frame = result.frame
    values: dict[str, Any] = {"source": frame.source.name, "frame": frame.index}
    if isinstance(frame.source, ImageFiles):
        values["image"] = frame.source.item(frame.index)
    if frame.time_s is not None:
        values["time_s"] = round(frame.time_s, 3)
    if result.prediction is None:
        return {**values, "error": result.error}
    values["label"] = result.prediction.label
    values["probability"] = round(result.prediction.probability, 6)
    if top_k > 1:
        top = result.prediction.top(top_k)
        values["top"] = [{"label": name, "probability": round(value, 6)} for name, value in top]
    return {**values, "latency_ms": round(result.latency_ms, 2)}


def watch(
    result: Result,
    monitors: dict[str, DriftMonitor],
    due: dict[str, int],
    reference: DriftReference,
    every: int | None,
    collector: Collector | None,
    emit: Emit,
) -> None:
    """Show a sampled frame to its camera's monitor; say when the state changes, collect while it has drifted.

    `every` None: each image, and of videos and streams about a frame a second, since neighbours are not independent.
    """
    frame, source = result.frame, result.frame.source
    if result.prediction is None or result.square is None:
        return
    if frame.index < due.get(source.name, 0):  # not by remainder: a live source loses frames on the way
        return
    due[source.name] = frame.index + _step(source, every)
    monitor = monitors.setdefault(source.name, DriftMonitor(reference))
    changed = monitor.update(result.square[None], result.prediction.probabilities[None])
    if changed is not None:
        emit({"event": "drift" if changed.drifted else "drift-over", "source": source.name, "frame": frame.index,
              **changed.to_dict()})  # fmt: skip
        said = "no longer looks like" if changed.drifted else "looks again like"
        log.warning("%s %s what the model was adapted to (%s)", source.name, said, changed.statistic)
    if monitor.drifted and collector is not None:
        collector.add(result)


def _step(source: Source, every: int | None) -> int:
    """Frames from one that is shown to the monitor to the next."""
    return every or (1 if source.rate is None else max(1, round(source.rate)))


def _drift(monitor: DriftMonitor | None, step: int) -> dict[str, Any]:
    last = monitor.last.to_dict() if monitor and monitor.last else None
    return {
        "alarms": monitor.alarms if monitor else 0, "last": last,
        "frames": monitor.frames if monitor else 0, "every": step, "window": monitor.window if monitor else WINDOW,
    }  # fmt: skip


def _untested(sources: Sequence[dict[str, Any]]) -> list[str]:
    """Sources with too few frames for a test of drift: how many each had; of more than a few, how many they are."""
    untested = [source for source in sources if source.get("drift") and source["drift"]["last"] is None]
    if len(untested) > SOURCES_NAMED:
        return [f"drift: not tested for {len(untested)} of {len(sources)} sources, which have too few images"]
    said = []
    for source in untested:
        drift = source["drift"]
        of = "" if len(sources) == 1 else f" of {source['source']}"
        every = "" if drift["every"] == 1 else f" (one in {drift['every']} frames)"
        said.append(
            f"drift{of}: not tested, {drift['frames']} of the {drift['window']} images{every} that a test needs"
        )
    return said


def json_line(values: dict[str, Any]) -> str:
    """One JSON Line; a label or path that is not UTF-8 is escaped."""
    return json.dumps(values, allow_nan=False)


def summary_text(summary: dict[str, Any]) -> str:
    """The summary in one line for a person."""
    latency = summary["latency_ms"]
    parts = [f"{summary['frames']} frames"]
    if summary["unreadable"]:
        parts.append(f"{summary['unreadable']} more could not be read")
    if summary["frames"] and summary["frames_per_s"] is not None:
        parts.append(
            f"{summary['frames_per_s']:.1f}/s, latency with the wait in the queue p50 {latency['p50']} ms, "
            f"p99 {latency['p99']} ms"
        )
    for key in ("dropped", "reconnects"):
        if count := sum(source[key] for source in summary["sources"]):
            parts.append(f"{count} {key}")
    parts.append(f"{summary['engine']} {summary['precision']}")
    if summary["saved"]:
        parts.append(f"saved in {summary['saved']}")
    return "; ".join([", ".join(parts), *_untested(summary["sources"])])
