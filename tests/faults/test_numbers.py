"""Data and numbers at the edge: trained where that makes sense, refused in one line where it does not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from PIL import Image

from edgeda.adapt import adapt
from edgeda.alignments import ALIGNMENTS
from edgeda.checkpoint import load_checkpoint
from edgeda.data.batches import Batch
from edgeda.errors import Diverged, InputError
from edgeda.health import check_weights
from edgeda.methods.adapter import Adaptation
from edgeda.methods.learner import Learner, descend
from edgeda.methods.uda import Uda
from edgeda.recipe import Recipe
from edgeda.recipe_file import load_recipe
from tests.faults.driver import NETWORK
from tests.integration.test_runs import Watcher
from tests.workshop import recipe as workshop_recipe
from tests.workshop import workshop


def write(folder: Path, counts: list[int], value: int | None = None) -> Path:
    """Class folders of so many images each: noise, or all pixels of one value."""
    random = np.random.default_rng(0)
    for label, count in enumerate(counts):
        place = folder / f"{label:04}"
        place.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = random.integers(0, 256, (8, 8, 3)) if value is None else np.full((8, 8, 3), value)
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    return folder


def recipe(source: Path, target: Path, **values: object) -> Recipe:
    network = {"backbone": NETWORK, "pretrained": "none"}  # one for both: a rate set for the teacher is the student's
    return load_recipe(None, {
        "data.source": str(source), "data.target": str(target), "data.input_size": 32, "data.resize": "squash",
        "data.crop_pct": 1.0, "teacher": network, "student": network, "train.warmup_epochs": 0, "train.epochs": 1,
        "train.batch_size": 8, "train.precision": "fp32", "train.threads": 1, "train.checkpoint_minutes": 0, **values,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("source", "target", "constant", "batch"),
    [
        ([8, 8], [8], 0, 8),  # constant images: no variance anywhere
        ([1, 1, 1, 1], [4], None, 4),  # classes of one image: nothing can be held out
        ([2, 1], [3], None, 4),  # a source of three images, fewer than a batch
        ([60, 1], [20], None, 16),  # extreme imbalance
        ([9, 8], [1], None, 8),  # a target of one image, whose statistics cannot be estimated
        ([9, 8], [9], None, 8),  # seventeen images in eights: a last batch of one, were batches not filled up
        ([1] * 1000, [10], None, 200),  # a thousand classes
    ],
)
def test_what_can_be_trained_on_is(
    tmp_path: Path, source: list[int], target: list[int], constant: int | None, batch: int
):
    images = write(tmp_path / "source", source, constant), write(tmp_path / "target", target, constant)
    summary = adapt(recipe(*images, **{"train.batch_size": batch}), tmp_path / "run", Watcher())
    assert len(summary["classes"]) == len(source)
    assert summary["images"]["target"] == sum(target)
    held_out = sum(source) - summary["images"]["source"]
    assert summary["accuracy_source_images"] == ("held out" if held_out else "training images")
    state = load_checkpoint(tmp_path / "run" / "checkpoint")
    assert state is not None
    for weights in state["networks"].values():
        assert all(torch.isfinite(value).all() for value in weights.values())


@pytest.mark.parametrize(
    ("source", "changes", "words"),
    [([5], {}, "only the class '0000'"), ([4, 4], {"train.batch_size": 1}, "train.batch_size")],
)
def test_what_cannot_be_is_refused(tmp_path: Path, source: list[int], changes: dict[str, object], words: str):
    images = write(tmp_path / "source", source), write(tmp_path / "target", [4])
    with pytest.raises(InputError, match=words):
        adapt(recipe(*images, **changes), tmp_path / "run", Watcher())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", sorted(ALIGNMENTS))
def test_alignments_of_images_that_are_all_the_same_stay_finite(name: str):
    """No spread in any feature: bandwidths, covariances and singular values of zero."""
    shop = workshop(workshop_recipe(adapt={"alignment": [name], "technique": "alignment"}), ("student",))
    method = Uda(shop, "student")
    same = torch.ones(4, 3, 32, 32)
    for step in range(2):
        terms = method.step(Batch(same, torch.tensor([0, 1, 2, 0]), same.clone()), step / 2)
        assert all(math.isfinite(value) for value in terms.values()), terms
    check_weights({"student": shop.networks["student"]})


def test_divergence_names_term_network_batch_and_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = write(tmp_path / "source", [9, 9]), write(tmp_path / "target", [20])
    forward, calls = Adaptation.forward, []

    def spoilt(self: Adaptation, *arguments: object):
        loss, terms = forward(self, *arguments)  # type: ignore[arg-type]
        calls.append(0)
        return (loss * math.nan, {**terms, "mmd": terms["mmd"] * math.inf}) if len(calls) == 2 else (loss, terms)

    monkeypatch.setattr(Adaptation, "forward", spoilt)
    with pytest.raises(Diverged) as caught:
        adapt(recipe(*images), tmp_path / "run", Watcher())
    said = str(caught.value)
    assert caught.value.exit_code == 2
    assert "the loss is not finite (mmd is inf): that of teacher in stage joint, epoch 1, batch 2 (source '" in said
    assert "0000/" in said
    assert f"; target '{images[1]}/0000/" in said
    assert f"the state of stage joint after 1 batches is kept in {tmp_path / 'run' / 'checkpoint'}" in said
    assert "\n" not in said
    state = load_checkpoint(tmp_path / "run" / "checkpoint")
    assert state is not None
    assert state["position"] == [1, 1]


def test_rates_that_explode_end_in_one_line_and_never_in_a_checkpoint(tmp_path: Path):
    images = write(tmp_path / "source", [9, 9]), write(tmp_path / "target", [20])
    exploding = {"teacher.lr": 1e30, "train.epochs": 4, "train.clip_norm": 0.0, "data.source_holdout": 0.0}
    with pytest.raises(Diverged, match=r"not finite.*in stage source-only, epoch .*source .*target .*lower teacher.lr"):
        adapt(recipe(*images, **exploding), tmp_path / "run", Watcher())
    state = load_checkpoint(tmp_path / "run" / "checkpoint")
    assert state is not None
    for weights in state["networks"].values():
        assert all(torch.isfinite(value).all() for value in weights.values())


def test_steps_that_fp16_skips_are_no_divergence_unless_they_never_end():
    """A gradient that overflows halves the scale and moves nothing; one that is NaN at any scale ends the run."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    weight = torch.nn.Parameter(torch.zeros(2))
    learner = Learner(fabric, torch.optim.SGD([weight], lr=1.0), lambda progress: 1.0, 1.0)

    class Overflows(torch.autograd.Function):
        @staticmethod
        def forward(context, value, most):
            context.most = most
            return value.sum()

        @staticmethod
        def backward(context, gradient):
            return (gradient if gradient.abs() <= context.most else gradient * math.inf).expand(2), None

    for _ in range(4):  # 2**16, 2**15 and 2**14 overflow, 2**13 does not
        descend(Overflows.apply(weight, 2.0**13), 0.0, learner)
    assert scaler.get_scale() == 2.0**13
    assert weight.tolist() == pytest.approx([-(0.5**0.5)] * 2), "one step, of norm 1"
    with pytest.raises(Diverged, match="fp16"):  # noqa: PT012 - one of many steps raises
        for _ in range(100):
            descend(Overflows.apply(weight, 0.0), 0.0, learner)
    assert torch.isfinite(weight).all()
