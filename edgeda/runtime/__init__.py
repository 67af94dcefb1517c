"""What leaves the workshop: classify images with an exported model. numpy and Pillow, never torch."""

from edgeda.runtime.classifier import Classifier, Prediction

__all__ = ["Classifier", "Prediction"]
