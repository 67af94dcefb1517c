"""What leaves the workshop: classify images with an exported model. numpy and Pillow, never torch."""

from edgeda.runtime.classifier import Classifier, Prediction
from edgeda.runtime.drift import DriftMonitor, DriftReference, DriftReport
from edgeda.runtime.pipeline import Pipeline, Result
from edgeda.runtime.sources import Frame, ImageFiles, Source, Stream, VideoFile

__all__ = [
    "Classifier",
    "DriftMonitor",
    "DriftReference",
    "DriftReport",
    "Frame",
    "ImageFiles",
    "Pipeline",
    "Prediction",
    "Result",
    "Source",
    "Stream",
    "VideoFile",
]
