"""Classify what a GStreamer pipeline decodes: a line of JSON for each frame.

    python3 pipeline.py --uri file:///videos/gate.mp4
    python3 pipeline.py --uri rtsp://camera/stream --live
    python3 pipeline.py                                         # thirty generated frames: does everything work?

Needs GStreamer 1.20 or later with its Python bindings; README.md names the packages.
"""

import argparse
import json
import sys
from pathlib import Path

import gi
import numpy as np

gi.require_version("Gst", "1.0")
from gi.repository import Gst  # noqa: E402 - gi wants its version first

from edgeda.runtime import Classifier  # noqa: E402 - gi wants its version first

MODEL = Path(__file__).with_name("$model")


def description(generated: bool, live: bool) -> str:
    """The pipeline; the address is set on its element, never written into this text."""
    source = (
        "videotestsrc num-buffers=30 ! video/x-raw,width=322,height=240" if generated else "uridecodebin name=source"
    )
    # a Jetson's decoder leaves frames in memory that videoconvert cannot read
    jetson = not generated and Gst.ElementFactory.find("nvvidconv") is not None
    convert = "nvvidconv ! video/x-raw,format=BGRx ! videoconvert" if jetson else "videoconvert"
    # a live source drops what is late, a file waits
    queue = "queue leaky=downstream max-size-buffers=1" if live else "queue max-size-buffers=4"
    drop = "true" if live else "false"
    return (
        f"{source} ! {queue} ! {convert} ! video/x-raw,format=RGB ! "
        f"appsink name=frames sync=false max-buffers=2 drop={drop}"
    )


def to_array(sample: Gst.Sample) -> np.ndarray:
    """An RGB frame, uint8 (H, W, 3); GStreamer fills rows up to a multiple of four bytes."""
    shape = sample.get_caps().get_structure(0)
    width, height = shape.get_value("width"), shape.get_value("height")
    buffer = sample.get_buffer()
    mapped, memory = buffer.map(Gst.MapFlags.READ)
    if not mapped:
        raise RuntimeError("a frame could not be read")
    try:
        stride = (3 * width + 3) // 4 * 4
        rows = np.frombuffer(memory.data, np.uint8, stride * height).reshape(height, stride)
        return rows[:, : 3 * width].reshape(height, width, 3).copy()
    finally:
        buffer.unmap(memory)


def frames(pipeline: Gst.Pipeline):
    """Frames until the stream ends; leaves with the pipeline's own error message."""
    sink, bus = pipeline.get_by_name("frames"), pipeline.get_bus()
    pipeline.set_state(Gst.State.PLAYING)
    try:
        while True:
            sample = sink.emit("try-pull-sample", Gst.SECOND)
            if sample is not None:
                yield to_array(sample)
                continue
            message = bus.pop_filtered(Gst.MessageType.ERROR)
            if message is not None:
                sys.exit(f"error: {message.parse_error()[0].message}")
            if sink.get_property("eos"):
                return
    finally:
        pipeline.set_state(Gst.State.NULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uri", help="file:///..., rtsp://..., http://...; without it, generated frames")
    parser.add_argument("--live", action="store_true", help="drop frames that come faster than they are classified")
    parser.add_argument("--limit", type=int, help="stop after so many frames")
    arguments = parser.parse_args()
    Gst.init(None)
    pipeline = Gst.parse_launch(description(arguments.uri is None, arguments.live))
    if arguments.uri is not None:
        pipeline.get_by_name("source").set_property("uri", arguments.uri)
    classify = Classifier(MODEL, engine="onnxruntime")  # OpenVINO and GStreamer do not share a process well
    seen = 0
    for frame in frames(pipeline):
        if arguments.limit is not None and seen >= arguments.limit:
            break
        best = classify(frame)[0]
        print(json.dumps({"frame": seen, "label": best.label, "probability": round(best.probability, 4)}), flush=True)
        seen += 1
    if not seen:
        sys.exit("error: the pipeline gave no frame")


if __name__ == "__main__":
    main()
