"""`edgeda evaluate`: accuracy of any MODEL on labelled images. Exported models need no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeda.artifacts import ROLES, RunDirectory, find_model
from edgeda.data import ImageSet, load_test
from edgeda.errors import InputError, did_you_mean, require

BATCH = 64


def evaluate(model: str | None, data: str, role: str = "student") -> dict[str, Any]:
    """Accuracy in percent, overall and per class, of a run's network or an exported model on labelled `data`."""
    if not data:
        raise InputError("--data is missing: the labelled images to evaluate on, such as class folders")
    if role not in ROLES:
        raise InputError(f"--role {role}{did_you_mean(role, ROLES)}")
    found = find_model(model)
    if isinstance(found, RunDirectory):
        require("torch", "train", "evaluating a run directory")
        from edgeda.inference import predict_logits
        from edgeda.models import load_network

        if not found.weights(role).is_file():
            found.summary()  # a run that has not finished says how to go on
        network, card = load_network(found.weights(role))
        images = load_test(data, card.classes, card.preprocessing)
        logits: NDArray[np.float32] = predict_logits(network, images.squares, card.preprocessing).numpy()
        name, engine, classes = f"{found.path}", "torch", card.classes
    else:
        from edgeda.runtime import Classifier
        from edgeda.runtime.backends import open_backend

        backend = open_backend(found)
        if backend.manifest is None:
            raise InputError(f"{found} was not exported by edgeda: it holds no class names and no preprocessing")
        manifest, name, engine = backend.manifest, str(found), backend.name
        del backend
        classifier = Classifier(found, engine=engine)  # which fills up a batch that the model does not take
        images = load_test(data, manifest.classes, manifest.preprocessing)
        batches = (images.squares[at : at + BATCH] for at in range(0, len(images), BATCH))
        logits = np.concatenate([classifier.logits(part) for part in batches])
        classes = manifest.classes
    return {"model": name, "engine": engine, "data": data, **_report(logits, images, classes)}


def _report(logits: NDArray[np.float32], images: ImageSet, classes: tuple[str, ...]) -> dict[str, Any]:
    if not np.isfinite(logits).all():
        raise InputError("the model's outputs are not finite numbers")
    labels = images.labels
    assert labels is not None
    right = logits.argmax(axis=1) == labels
    per_class = {
        name: {"images": int((labels == index).sum()), "accuracy": round(100 * float(right[labels == index].mean()), 2)}
        for index, name in enumerate(classes)
        if (labels == index).any()
    }
    return {
        "images": len(images),
        "skipped": list(images.skipped),
        "accuracy": round(100 * float(right.mean()), 2),
        "per_class": per_class,
    }
