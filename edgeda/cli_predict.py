"""The command that uses a model: predict."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeda.cli_options import Json, Model
from edgeda.console import out, stderr

if TYPE_CHECKING:
    from edgeda.runtime import Pipeline


def predict(
    model: Model = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="Image, folder, pattern ('*.jpg'), list (.txt), video, rtsp:// or http:// stream, or camera index. "
            "Repeat it for several at once."
        ),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Folder for annotated images and videos; must be new or empty.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Most frames that go through the network together; none waits. Default: 4 of files.", min=1),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Classes in each line, the likeliest first.", min=1)] = 1,
    engine: Annotated[
        str | None, typer.Option(help="onnxruntime or openvino; default: the one that is faster here.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Engine threads for each of the workers, one worker per core.", min=1, max=1024)
    ] = None,
    drift: Annotated[
        bool, typer.Option("--drift", help="Say when a camera no longer looks like what the model was adapted to.")
    ] = False,
    drift_every: Annotated[
        int | None,
        typer.Option(help="Frames from one that is tested to the next; default: every image, one a second.", min=1),
    ] = None,
    collect: Annotated[
        Path | None, typer.Option(help="Folder for frames that drifted, for the next `adapt`; turns --drift on.")
    ] = None,
    collect_limit: Annotated[int, typer.Option(help="Most frames to collect.", min=1)] = 500,
    retries: Annotated[
        int | None,
        typer.Option(help="Tries in a row without a frame until a stream is given up; default: 3, later any.", min=1),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Add to folders that hold something.")] = False,
    json_: Json = False,
) -> None:  # fmt: skip
    """Classify images, videos, streams and cameras.

    A JSON object on a line of stdout for each frame.

    `latency_ms` is from when a frame was read to its answer, the waits for its batch and a free core included.
    With --json, only one object at the end. Ctrl-C ends a stream with the summary.
    """
    from edgeda.predict import json_line, summary_text
    from edgeda.predict import predict as run_predict

    def summarize(summary: dict[str, Any]) -> None:
        if json_:
            out(json_line(summary))
        else:
            stderr.print(summary_text(summary), markup=False)

    with contextlib.ExitStack() as stack, closed_pipe_is_an_end():
        run_predict(
            model, source or [], emit=(lambda values: None) if json_ else (lambda values: out(json_line(values))),
            engine=engine, threads=threads, batch_size=batch_size, top_k=top_k, save=save, drift=drift,
            drift_every=drift_every, collect=collect, collect_limit=collect_limit, retries=retries, overwrite=overwrite,
            on_start=lambda pipeline: stack.enter_context(stopped_by_signals(pipeline)), on_summary=summarize,
        )  # fmt: skip


@contextlib.contextmanager
def closed_pipe_is_an_end() -> Iterator[None]:
    """Whoever reads our lines may stop reading, as `head` does: no error, and nothing more to say."""
    try:
        yield
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # what is still buffered goes there when Python ends
        os.close(nowhere)


@contextlib.contextmanager
def stopped_by_signals(pipeline: Pipeline) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop the pipeline; a second Ctrl-C does not wait for it, a second SIGTERM changes nothing."""
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True
        pipeline.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            if number == signal.SIGINT or not stopping:
                signal.signal(number, handler)
