"""edgeda: joint progressive knowledge distillation and unsupervised domain adaptation for the edge."""

import os

__version__ = "0.1.0"

# ONNX Runtime 1.31 and later keep a device id in the home folder and send events to their maker unless told otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
