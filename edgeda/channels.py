"""Which channels of a network may be removed, and removing them: on torch-pruning's dependency graph."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeda.errors import InputError, did_you_mean, require

TRACED_SIZE = 64
"""Side of the images that a graph is traced with, in pixels; nothing is computed."""

Kept = Mapping[str, Tensor]
"""By name of a convolution: the indices of the output channels that stay, int64, ascending."""


@dataclass(frozen=True)
class Coupling:
    """A convolution whose output channels may be removed, by names of modules: what has to shrink with it."""

    conv: str
    norms: tuple[str, ...]
    """BatchNorm layers between the two."""
    consumer: str
    """The only convolution that reads the channels."""

    def tensors(self, network: nn.Module) -> Iterator[tuple[nn.Module, str, int]]:
        """Every parameter and buffer that has these channels: its module, its name there and the dimension."""
        conv, consumer = network.get_submodule(self.conv), network.get_submodule(self.consumer)
        yield from ((conv, name, 0) for name in ("weight", "bias") if getattr(conv, name) is not None)
        for norm in map(network.get_submodule, self.norms):
            names = ("weight", "bias", "running_mean", "running_var")
            yield from ((norm, name, 0) for name in names if getattr(norm, name) is not None)
        yield consumer, "weight", 1


def meta_copy(network: nn.Module) -> nn.Module:
    """A copy in eval mode that knows its shapes and computes nothing; no weight is copied for it.

    BatchNorm passes on what it gets, which has the shape it makes: torch would find that in Python, by operators.
    """
    shapes: dict[int, Any] = {id(value): value.to("meta") for value in network.buffers()}
    for weight in network.parameters():
        shapes[id(weight)] = nn.Parameter(weight.detach().to("meta"), weight.requires_grad)
    copied = copy.deepcopy(network, shapes).eval().to("meta")
    for module in copied.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.forward = torch.clone  # type: ignore[method-assign]
    return copied


def output_pixels(network: nn.Module, input_size: int) -> dict[str, int]:
    """By name, height times width of what each convolution makes of an image of `input_size` pixels a side."""
    copied = meta_copy(network).float()
    pixels = _watched(copied)
    with torch.no_grad():
        copied(torch.zeros(1, 3, input_size, input_size, device="meta"))
    return pixels


def _watched(copied: nn.Module) -> dict[str, int]:
    """By name, height times width of what each convolution makes: filled in by the forwards to come."""
    pixels: dict[str, int] = {}

    def watch(name: str, conv: nn.Module) -> None:
        def seen(module: nn.Module, args: Any, output: Tensor) -> None:
            pixels[name] = output.shape[2] * output.shape[3]

        conv.register_forward_hook(seen)

    for name, module in copied.named_modules():
        if isinstance(module, nn.Conv2d):
            watch(name, module)
    return pixels


def couplings(network: nn.Module, name: str = "the network") -> dict[str, Coupling]:
    """By name, every convolution whose output channels may be removed without changing any other layer's output width.

    These are the convolutions that only BatchNorm, activations and one convolution of the same block
    follow: conv1 and conv2 of bottlenecks, conv1 of basic blocks, all but the last of a VGG. Residual sums, what the
    head reads, grouped convolutions and those of pooled values (squeeze and excitation) keep their width. Raises
    InputError, with `name`, when there is none.
    """
    pruning = require("torch_pruning", "train", "pruning a network")
    copied = meta_copy(network).float()
    images = torch.zeros(2, 3, TRACED_SIZE, TRACED_SIZE, device="meta")  # two: torch may squeeze a batch of one
    pixels = _watched(copied)
    try:
        with torch.enable_grad():
            graph = pruning.DependencyGraph().build_dependency(
                copied.requires_grad_(True), images, output_transform=_tensor, verbose=False
            )
    except Exception as error:
        raise InputError(f"{name} cannot be pruned: its graph cannot be traced; r18 to r152 can") from error
    names = {module: path for path, module in copied.named_modules()}
    found: dict[str, Coupling] = {}
    for module, path in names.items():
        if isinstance(module, nn.Conv2d) and module in graph.module2node and pixels.get(path, 0) > 1:
            every = list(range(module.out_channels))
            group = graph.get_pruning_group(module, pruning.prune_conv_out_channels, every)
            coupling = _coupling(path, [(item.dep.target, item.dep.handler) for item in group], names)
            if coupling is not None:
                found[path] = coupling
    if not found:
        raise InputError(f"{name} cannot be pruned: it has no convolution that one other alone reads; r18 to r152 have")
    return found


def _tensor(output: Any) -> Tensor:
    """The logits of a `Network`, the output itself of any other module."""
    logits: Tensor = getattr(output, "logits", output)
    return logits


def _coupling(path: str, group: list[tuple[Any, Any]], names: Mapping[nn.Module, str]) -> Coupling | None:
    """The group of one convolution's outputs as a coupling; None when more than one convolution's input hangs on it."""
    norms: list[str] = []
    consumers: list[str] = []
    for node, handler in group:
        module = node.module
        if names.get(module) == path:
            if module.groups != 1 or handler.__name__ != "prune_out_channels":
                return None
        elif isinstance(module, nn.BatchNorm2d):
            norms.append(names[module])
        elif isinstance(module, nn.Conv2d) and module.groups == 1 and handler.__name__ == "prune_in_channels":
            consumers.append(names[module])
        elif module in names or "Convolution" in str(node.name):  # the latter: a blur, whose filters are no module
            return None
    if len(consumers) != 1 or consumers[0].rpartition(".")[0] != path.rpartition(".")[0]:
        return None
    return Coupling(path, tuple(norms), consumers[0])


def widths(network: nn.Module, found: Mapping[str, Coupling]) -> dict[str, int]:
    """Output channels of every convolution in `found`."""
    return {name: _conv(network, name).out_channels for name in found}


def narrow(network: nn.Module, found: Mapping[str, Coupling], kept: Kept) -> None:
    """Remove all but the `kept` channels, in place: parameters stay the same objects, so that optimizers keep them."""
    for name, indices in kept.items():
        coupling = found[name]
        for module, tensor, dimension in coupling.tensors(network):
            value = getattr(module, tensor)
            value.data = _select(value.data, dimension, indices)
            if isinstance(value, nn.Parameter):
                value.grad = None
        _conv(network, name).out_channels = len(indices)
        _conv(network, coupling.consumer).in_channels = len(indices)
        for norm in map(network.get_submodule, coupling.norms):
            assert isinstance(norm, nn.BatchNorm2d)
            norm.num_features = len(indices)


def narrow_optimizer_state(
    optimizer: torch.optim.Optimizer, network: nn.Module, found: Mapping[str, Coupling], kept: Kept
) -> None:
    """Let momentum (and Adam's moments) follow the channels that `narrow` keeps in `network`."""
    for name, indices in kept.items():
        for module, tensor, dimension in found[name].tensors(network):
            value = getattr(module, tensor)
            state = optimizer.state.get(value, {}) if isinstance(value, nn.Parameter) else {}
            for key, moment in state.items():
                if isinstance(moment, Tensor) and moment.dim() == value.dim():
                    state[key] = _select(moment, dimension, indices)


def narrow_to(network: nn.Module, channels: Mapping[str, int], name: str) -> None:
    """Shape `network` as a pruned one of so many `channels`: the first of each layer stay, weights are to be loaded.

    Raises InputError for a layer that may not be pruned in backbone `name`, or for a width it cannot have.
    """
    if not isinstance(channels, Mapping):
        raise InputError(f"the pruned widths of {name} should be given by convolution, not as {channels!r:.40}")
    found = couplings(network, name)
    dense = widths(network, found)
    for conv, width in channels.items():
        if conv not in found:
            near = did_you_mean(str(conv), found).partition("; known")[0]
            raise InputError(f"{name} has no convolution '{conv!s:.80}' that could be pruned{near}")
        if not isinstance(width, int) or isinstance(width, bool) or not 1 <= width <= dense[conv]:
            raise InputError(f"{conv} of {name} has 1 to {dense[conv]} channels, not {width!r:.20}")
    narrow(network, found, {conv: torch.arange(width) for conv, width in channels.items()})


def _conv(network: nn.Module, name: str) -> nn.Conv2d:
    conv = network.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    return conv


def _select(value: Tensor, dimension: int, indices: Tensor) -> Tensor:
    """Those indices of a dimension, in the memory format that the whole tensor had."""
    selected = value.index_select(dimension, indices.to(value.device))
    channels_last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
    return selected.contiguous(memory_format=torch.channels_last) if channels_last else selected
