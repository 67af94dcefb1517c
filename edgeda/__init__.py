"""edgeda: joint progressive knowledge distillation and unsupervised domain adaptation for the edge."""

import os
import sys

__version__ = "0.1.0"

# Some of what edgeda is built on reports its use to its makers, in part when it is imported (docs/hostile-input.md).
# Nothing is sent from here: a user who wants that sets the variable. OpenVINO and NNCF have no variable; without this
# package they are mute.
for _name, _value in {
    "ORT_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}.items():
    os.environ.setdefault(_name, _value)
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
