"""Layers and stems exchanged for training on a CPU: the same numbers, gradients, statistics and names."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import edgeda.kernels.batchnorm
from edgeda.fast_blocks import (
    WORTH_COMPILING,
    CompiledBasicBlock,
    CompiledBottleneck,
    CompiledResNet,
    LaterReLU,
    RectifyingPool,
    use_fast_network,
)
from edgeda.kernels.batchnorm import CompiledBatchNorm2d
from edgeda.kernels.compiled import available
from edgeda.models import Architecture, build_network


def pair(backbone: str = "resnet26", half: bool = True, pixels: int = 0) -> tuple[nn.Module, nn.Module]:
    """timm's network, and its fast twin."""
    torch.manual_seed(0)
    plain = build_network(Architecture(backbone, 3))[0].to(memory_format=torch.channels_last).train()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    fast = copy.deepcopy(plain)
    use_fast_network(fast, half, pixels)
    return plain, fast


def trained(network: nn.Module, half: bool, size: int = 64) -> dict[str, Tensor]:
    """Everything that one step leaves behind: the gradients of all parameters and the statistics of all layers."""
    random = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, size, size, generator=random).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        out = network(images.to(next(network.parameters()).dtype))
    out.features.float().square().mean().backward()
    left = {f"gradient of {name}": part.grad for name, part in network.named_parameters() if part.grad is not None}
    return left | {name: buffer.float() for name, buffer in network.named_buffers()}


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    assert ours.keys() == theirs.keys()
    return {name: float((ours[name] - theirs[name]).norm() / (theirs[name].norm() + 1e-6)) for name in ours}


def test_a_bf16_step_is_as_near_to_fp32_as_timms_own():
    """Gradients differ from those of fp32 by bf16's rounding: by no more than timm's own blocks let them differ."""
    plain, fast = pair()
    wanted = trained(copy.deepcopy(plain), half=False)
    theirs, ours = distance(trained(plain, half=True), wanted), distance(trained(fast, half=True), wanted)
    for name in wanted:
        assert ours[name] <= 1.5 * theirs[name] + 0.01, (name, ours[name], theirs[name])


def test_a_stem_pools_before_it_rectifies_with_the_same_numbers_and_gradients():
    plain, fast = pair()
    assert type(fast.backbone.act1) is LaterReLU
    assert type(fast.backbone.maxpool) is RectifyingPool
    ours, theirs = trained(fast, half=False), trained(plain, half=False)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.skipif(not available(), reason="numba (the extra fast) is not installed")
@pytest.mark.parametrize(("backbone", "block"), [("resnet26", CompiledBottleneck), ("resnet18", CompiledBasicBlock)])
def test_a_step_of_compiled_blocks_is_as_near_to_double_precision_as_timms(backbone: str, block: type[nn.Module]):
    plain, fast = pair(backbone, half=False, pixels=WORTH_COMPILING)
    assert any(type(module) is block for module in fast.modules())
    assert type(fast.backbone) is CompiledResNet
    exact = trained(copy.deepcopy(plain).double(), half=False)
    theirs, ours = distance(trained(plain, half=False), exact), distance(trained(fast, half=False), exact)
    for name in exact:
        assert ours[name] <= theirs[name] + 1e-4, (name, ours[name], theirs[name])


@pytest.mark.skipif(not available(), reason="numba (the extra fast) is not installed")
def test_a_bf16_step_of_compiled_blocks_is_as_near_to_fp32_as_timms_own():
    plain, fast = pair(pixels=WORTH_COMPILING)
    wanted = trained(copy.deepcopy(plain), half=False)
    theirs, ours = distance(trained(plain, half=True), wanted), distance(trained(fast, half=True), wanted)
    for name in wanted:
        assert ours[name] <= 1.5 * theirs[name] + 0.01, (name, ours[name], theirs[name])


def test_compiled_blocks_answer_as_timms_in_eval_mode_and_without_numba(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(edgeda.kernels.batchnorm, "available", lambda: False)
    plain, fast = pair("resnet18", half=False, pixels=WORTH_COMPILING)
    assert any(type(module) is CompiledBatchNorm2d for module in fast.modules())
    ours, theirs = trained(fast, half=False), trained(plain, half=False)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(fast.eval()(images).logits, plain.eval()(images).logits)


def test_blocks_with_more_in_them_are_left_to_timm():
    """Squeeze and excitation comes between BatchNorm and the addition."""
    fast = pair("seresnet18", half=False, pixels=WORTH_COMPILING)[1]
    assert not any(type(module) is CompiledBasicBlock for module in fast.modules())


def test_small_steps_are_not_worth_compiling():
    assert not any(type(m) is CompiledBatchNorm2d for m in pair(half=True, pixels=WORTH_COMPILING - 1)[1].modules())


def test_names_and_what_is_saved_stay():
    plain, fast = pair()
    assert list(fast.state_dict()) == list(plain.state_dict())


def test_features_of_one_pixel_train_too():
    """Images of 32 px, as the demo's: fused kernels may have no bf16 there."""
    assert all(value.isfinite().all() for value in trained(pair()[1], half=True, size=32).values())
