"""edgeda: joint progressive knowledge distillation and unsupervised domain adaptation for the edge."""

import os
import sys

__version__ = "0.1.0"

# What edgeda is built on reports its use to its makers unless told otherwise, some on import: nothing is sent from here.
# A user who wants the reports sets the variable. OpenVINO and NNCF have no variable; without this package they are mute.
for _name, _value in {
    "ORT_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}.items():
    os.environ.setdefault(_name, _value)
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
