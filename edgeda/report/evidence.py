"""What a report needs beyond summary.json: predictions and features of both students, embeddings, costs by layer.

Every part may be missing: images that are gone or weights that were deleted leave it empty, with a line that says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeda.artifacts import RECIPE, RunDirectory
from edgeda.data import ImageSet, load_target, load_test, spread
from edgeda.data.augment import prepare
from edgeda.data.images import decode, warn_skipped
from edgeda.data.opening import open_labelled
from edgeda.data.squares import Squares
from edgeda.errors import EdgedaError, one_line
from edgeda.inference import BATCH
from edgeda.models import Network, load_network
from edgeda.recipe import Recipe
from edgeda.recipe_file import load_recipe
from edgeda.runtime.preprocessing import Preprocessing

Array = NDArray[np.float32]

EMBEDDED = 250
"""Images of each domain in the plots of features."""
BEFORE, AFTER = "source_only", "student"


@dataclass
class Evidence:
    """Parts of a report; None or empty: not to be had, and `missing` says why."""

    recipe: Recipe | None = None
    test: ImageSet | None = None
    """Target images for confusion and samples: the labelled target-test, or unlabelled ones."""
    logits: dict[str, Array] = field(default_factory=dict)
    """Of `test`, by role."""
    features: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    """By role: features of source and of target images `(N, D)`."""
    layers: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def collect(run: RunDirectory, finished: bool = True) -> Evidence:
    """Everything that can be had of a run; of one that has not `finished`, its recipe."""
    found = Evidence()
    try:
        found.recipe = load_recipe(str(run.path / RECIPE))
    except EdgedaError as error:
        found.missing.append(f"the recipe cannot be read: {error}")
    networks: dict[str, Network] = {}
    classes: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    for role in (BEFORE, AFTER) if finished else ():
        try:
            networks[role], card = load_network(run.weights(role))
            classes, preprocessing = card.classes, card.preprocessing
        except EdgedaError as error:
            found.missing.append(f"no {role.replace('_', '-')} weights: {error}")
    if AFTER in networks and preprocessing:
        found.layers = layer_costs(networks[AFTER], preprocessing.size)
    if found.recipe is None or preprocessing is None:
        return found
    _images(found, found.recipe, networks, classes, preprocessing)
    return found


def _images(
    found: Evidence, recipe: Recipe, networks: Mapping[str, Network], classes: tuple[str, ...], prepared: Preprocessing
) -> None:
    test = recipe.data.target_test
    try:
        target = load_target(recipe.data, 2 * EMBEDDED if test else 4 * EMBEDDED, warn=False)
        labelled = load_test(test, classes, prepared, warn=False) if test else None
        source = decode(open_labelled(recipe.data.source), prepared, "source", EMBEDDED, warn=False)
    except (EdgedaError, OSError) as error:
        found.missing.append(
            f"the run's images cannot be read, so confusion, features and samples are left out: {one_line(error)}"
        )
        return
    read = [images for images in (source, target, labelled) if images]
    skipped = list(dict.fromkeys(file for images in read for file in images.skipped))
    if skipped:  # one folder may be both target and target-test
        warn_skipped("the run's images", skipped, sum(map(len, read)))
    found.test = labelled or target
    shown = target.take(spread(len(target), EMBEDDED))
    for role, network in networks.items():
        _, found.logits[role] = outputs(network, found.test.squares, prepared)
        broken = int((~np.isfinite(found.logits[role]).all(axis=1)).sum())
        if broken:
            found.missing.append(f"the {role.replace('_', '-')} gives outputs that are not finite on {broken} images")
        features = [outputs(network, images.squares, prepared)[0] for images in (source, shown)]
        found.features[role] = (features[0], features[1])


@torch.inference_mode()
def outputs(network: Network, squares: Squares, preprocessing: Preprocessing) -> tuple[Array, Array]:
    """Features `(N, D)` and logits `(N, C)` of stored squares."""
    parts = [
        network(prepare(torch.from_numpy(np.ascontiguousarray(squares[at : at + BATCH])), preprocessing))
        for at in range(0, len(squares), BATCH)
    ]
    return tuple(  # type: ignore[return-value]
        torch.cat([getattr(part, name).float() for part in parts]).numpy() for name in ("features", "logits")
    )


def confusion(logits: Array, labels: NDArray[np.int64], classes: int) -> list[list[int]]:
    """Counts by true class (rows) and predicted class (columns)."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, logits.argmax(axis=1)), 1)
    return [[int(seen) for seen in row] for row in counts]


def embed(source: Array, target: Array) -> tuple[str, Array, Array]:
    """Two dimensions of both domains' features, embedded together: t-SNE where scikit-learn is there, else PCA.

    Returns what was done in words, and points `(N, 2)` of source and target.
    """
    joined = np.nan_to_num(np.concatenate([source, target]).astype(np.float64))
    plane = pca(joined, min(30, *joined.shape))
    name = "PCA"
    if len(joined) >= 12:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from sklearn.manifold import TSNE

                perplexity = min(30.0, (len(joined) - 1) / 3)
                plane = TSNE(2, perplexity=perplexity, init="pca", random_state=0, max_iter=500).fit_transform(plane)
            name = "t-SNE"
        except (ImportError, ValueError):
            pass  # PCA says it too
    points = np.asarray(plane[:, :2], np.float32)
    if points.shape[1] < 2:
        points = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    return name, points[: len(source)], points[len(source) :]


def pca(values: NDArray[np.float64], dimensions: int) -> NDArray[np.float64]:
    """Coordinates `(N, dimensions)` along the directions of largest variance."""
    centred = values - values.mean(axis=0)
    left, strength, _ = np.linalg.svd(centred, full_matrices=False)
    return np.asarray(left[:, :dimensions] * strength[:dimensions])


def domain_gap(source: Array, target: Array) -> float:
    """Distance of the two domains' mean features, relative to the mean spread within a domain; 0: they coincide."""
    between = float(np.linalg.norm(source.mean(axis=0) - target.mean(axis=0)))
    within = np.sqrt((source.var(axis=0).sum() + target.var(axis=0).sum()) / 2)
    return between / max(float(within), 1e-12)


def layer_costs(network: Network, size: int) -> list[dict[str, Any]]:
    """Convolutions and linear layers in the order they run: `layer`, `gmacs` of one image, `params_m`, `output`."""
    rows: list[dict[str, Any]] = []

    def hook(name: str) -> Any:
        def note(module: nn.Module, _: Any, output: torch.Tensor) -> None:
            weight = module.weight
            assert isinstance(weight, torch.Tensor)
            macs = output[0].numel() * weight[0].numel()
            rows.append({
                "layer": name, "gmacs": macs / 1e9, "params_m": sum(p.numel() for p in module.parameters()) / 1e6,
                "output": " x ".join(map(str, output.shape[1:])),
            })  # fmt: skip

        return note

    handles = [
        module.register_forward_hook(hook(name.removeprefix("backbone.")))
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, 3, size, size))
    finally:
        for handle in handles:
            handle.remove()
    return rows


def samples(found: Evidence, most: int = 12) -> list[int]:
    """Which target images to show: those that adaptation put right, those it spoiled, and some of the others.

    Without labels, those whose predicted class changed. In the order of the domain, evenly spread over it.
    """
    if found.test is None or not {BEFORE, AFTER} <= set(found.logits):
        return []
    before, after = (found.logits[role].argmax(axis=1) for role in (BEFORE, AFTER))
    labels = found.test.labels
    if labels is None:
        groups = [np.flatnonzero(before != after), np.flatnonzero(before == after)]
    else:
        was, now = before == labels, after == labels
        groups = [np.flatnonzero(group) for group in (~was & now, was & ~now, ~was & ~now, was & now)]
    return _take(groups, most)


def _take(groups: Sequence[NDArray[np.int64]], most: int) -> list[int]:
    """Up to `most` positions, shared out among the groups that have any."""
    left, chosen = most, list[int]()
    full = [group for group in groups if len(group)]
    for at, group in enumerate(full):
        share = -(-left // (len(full) - at))
        picked = group[spread(len(group), share)].tolist()
        chosen += picked
        left -= len(picked)
    return chosen
