"""edgeda: joint progressive knowledge distillation and unsupervised domain adaptation for the edge."""

__version__ = "0.1.0"
