"""Memory that alignments and losses add to a step, counted tensor by tensor."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from edgeda.alignments import ALIGNMENTS, build_alignments
from edgeda.losses.coral import coral, covariance
from edgeda.losses.distillation import similarity_distillation
from edgeda.memory import peak_memory_mb, resident_memory_mb
from edgeda.outputs import Output
from edgeda.profiling.child import resident_mb

IMAGES, WIDTH, CLASSES = 256, 2048, 31


class Counted(TorchDispatchMode):
    """The largest sum of bytes of tensors that were made inside it and alive at one time."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in torch.utils._pytree.tree_leaves(result):
            if isinstance(made, torch.Tensor) and made.untyped_storage()._cdata not in self._known:
                storage = made.untyped_storage()
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


def features(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(IMAGES, WIDTH, generator=generator).requires_grad_()


def counted(loss: Any, known: list[torch.Tensor]) -> float:
    """Peak MB (2**20) of a forward and backward."""
    with Counted(known) as mode:
        loss().backward()
    return mode.peak / 2**20


def test_the_counter_sees_a_pairwise_difference():
    """What must not be there: (512, 512, 2048) float32 is 2048 MB; here a sixteenth of it, forward and saved."""
    points = features(0)[:128]
    assert counted(lambda: (points[:, None] - points[None, :]).square().sum(), [points]) >= 128


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_an_alignment_of_256_and_256_images_adds_at_most_50_mb(name: str):
    torch.manual_seed(0)
    alignment = build_alignments((name,), WIDTH, CLASSES)[name]
    source, target = features(1), features(2)
    logits = [torch.randn(IMAGES, CLASSES).requires_grad_() for _ in range(2)]
    labels = torch.arange(IMAGES) % CLASSES
    known = [source, target, *logits, *alignment.parameters(), *alignment.buffers()]
    used = counted(lambda: alignment(Output(source, logits[0]), Output(target, logits[1]), labels, 0.5), known)
    assert 0 < used <= 50


def test_similarity_distillation_adds_at_most_50_mb():
    student, teacher = features(1), features(2)
    assert counted(lambda: similarity_distillation(student, teacher), [student, teacher]) <= 50


@pytest.mark.parametrize(("images", "others", "shift"), [(5, 9, 0.0), (20, 12, 0.0), (9, 9, 1e-3)])
def test_coral_is_the_same_by_covariances_and_by_gram_matrices(images: int, others: int, shift: float):
    """40 features: more than the images of both domains, so that the Gram matrix is used."""
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(images, 40, generator=generator, dtype=torch.float64)
    target = source * (1 + shift) if shift else torch.randn(others, 40, generator=generator, dtype=torch.float64)
    expected = (covariance(source) - covariance(target)).square().sum() / (4 * 40**2)
    assert float(coral(source, target)) == pytest.approx(float(expected), rel=1e-6)


def test_peak_memory_remembers_what_was_given_back():
    block = torch.ones(64 * 2**20)  # 256 MB
    before = peak_memory_mb()
    assert block[-1] == 1
    assert before > 256
    del block
    assert peak_memory_mb() >= before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells what a process has resident now")
def test_peak_memory_is_this_programs_not_that_of_whoever_started_it():
    block = torch.ones(128 * 2**20)  # 512 MB
    ours = resident_memory_mb()
    assert ours is not None
    assert block[-1] == 1
    assert 512 * 2**20 / 1e6 < ours <= peak_memory_mb()
    assert ours == pytest.approx(resident_mb(), rel=0.02), "one unit, 10^6 bytes, everywhere"
    command = "from edgeda.memory import peak_memory_mb; print(peak_memory_mb())"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 512
