"""Networks: a timm backbone, an optional bottleneck and a linear head; saved with their shapes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeda.channels import narrow_to
from edgeda.checkpoint import write_safetensors
from edgeda.errors import InputError, did_you_mean, one_line
from edgeda.outputs import Output as Output
from edgeda.pretrained import obtain_backbone
from edgeda.runtime.preprocessing import Preprocessing
from edgeda.runtime.strict_json import parse_json

log = logging.getLogger(__name__)

ALIASES = {"r18": "resnet18", "r34": "resnet34", "r50": "resnet50", "r101": "resnet101", "r152": "resnet152"}
METADATA_KEY = "edgeda"


@dataclass(frozen=True)
class Architecture:
    """What it takes to build a network again: timm name, number of classes, bottleneck width (0: none)."""

    backbone: str
    classes: int
    bottleneck: int = 0
    channels: Mapping[str, int] = field(default_factory=dict, hash=False)
    """By name, the convolutions that are pruned and the output channels they have left; empty: dense."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `channels` only of a pruned network."""
        described = asdict(self)
        return described if self.channels else {key: described[key] for key in described if key != "channels"}


@dataclass(frozen=True)
class NetworkCard:
    """What travels with saved weights."""

    architecture: Architecture
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    role: str = "student"


class _StoredArchitecture(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    backbone: str = Field(max_length=200)
    classes: int = Field(ge=1, le=1_000_000)
    bottleneck: int = Field(default=0, ge=0, le=8192)
    channels: Any = Field(default_factory=dict)
    """Whatever it is: `narrow_to` says what is wrong with it in words."""


class StoredCard(BaseModel):
    """A card as JSON, from a file that may be anybody's."""

    model_config = ConfigDict(strict=True)

    architecture: _StoredArchitecture
    classes: Annotated[tuple[str, ...], Field(strict=False)]
    preprocessing: dict[str, Any]
    role: str


class Network(nn.Module):
    """Backbone -> global pooling -> [Linear, BatchNorm, ReLU] -> linear head.

    `forward` takes images `(B, 3, H, W)`, normalized, and returns `Output`.
    """

    def __init__(self, architecture: Architecture, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.architecture = architecture
        self.backbone = backbone
        self.bottleneck: nn.Module = nn.Identity()
        if architecture.bottleneck:
            neck = architecture.bottleneck
            self.bottleneck = nn.Sequential(nn.Linear(width, neck), nn.BatchNorm1d(neck), nn.ReLU())
            width = neck
        self.feature_width = width
        self.head = nn.Linear(width, architecture.classes)

    def forward(self, images: Tensor) -> Output:
        """Features and logits of a batch."""
        features = self.bottleneck(self.backbone(images))
        return Output(features, self.head(features))

    def new_parameters(self) -> Iterator[nn.Parameter]:
        """Bottleneck and head: the layers that no pretrained weights exist for."""
        yield from self.bottleneck.parameters()
        yield from self.head.parameters()


class LogitsOnly(nn.Module):
    """A network as deployed: images `(B, 3, H, W)` to logits `(B, C)`."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch."""
        output: Output = self.network(images)
        return output.logits


def backbone_name(name: str) -> str:
    """The timm name of `name` or of its alias; InputError with the nearest known name otherwise."""
    resolved = ALIASES.get(name.lower(), name)
    base, _, tag = resolved.partition(".")
    if not timm.is_model(base):
        hint = did_you_mean(name.lower(), [*ALIASES, *timm.list_models()]).split("; known")[0]
        raise InputError(f"unknown backbone '{name}'{hint}; any timm name works, and {', '.join(ALIASES)}")
    if tag and resolved not in timm.list_models(f"{base}.*", pretrained=True):
        raise InputError(f"timm has no weights '{tag}' for {base}; leave out '.{tag}' for its own choice")
    return resolved


def build_network(architecture: Architecture, pretrained: str = "none") -> tuple[Network, str]:
    """A network, and where its weights come from in words.

    `pretrained` is `auto` (timm's weights when they can be had, else from scratch), `none`, or a
    local file: a timm or torchvision checkpoint (.safetensors or .pth) or one saved by edgeda. A pruned
    architecture has none: it is shaped here, and its weights are to be loaded.
    """
    name = backbone_name(architecture.backbone)
    if architecture.channels and pretrained != "none":
        raise InputError(f"a pruned {name} cannot start from pretrained weights; use 'none' and load its own")
    backbone, origin = obtain_backbone(name, pretrained)
    # with num_classes=0 timm keeps what follows the pooling (MobileNetV3, VGG): wider than num_features
    width = getattr(backbone, "head_hidden_size", None) or getattr(backbone, "num_features", None)
    if not isinstance(width, int):
        raise InputError(f"backbone '{name}' does not say how wide its features are; choose another")
    network = Network(replace(architecture, backbone=name), backbone, width)
    if architecture.channels:
        narrow_to(network, architecture.channels, name)
    return network, origin


def _skeleton(architecture: Architecture) -> Network | None:
    """The network without memory for its weights: a file of a kilobyte can name one of many gigabytes.

    None for a backbone that computes with its weights while it is built.
    """
    try:
        with torch.device("meta"):
            return build_network(architecture)[0]
    except RuntimeError:  # or that has an operation which `meta` lacks
        return None


def _check_shapes(path: Path, architecture: Architecture, skeleton: Network) -> None:
    """InputError unless the tensors in a file are those of the architecture it names."""
    with safe_open(path, framework="pt") as opened:
        found = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 - no dict
    wanted = {name: tuple(value.shape) for name, value in skeleton.state_dict().items()}
    if found != wanted:
        differ = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise InputError(
            f"the weights in {path} do not fit their own description: of {architecture.backbone}, {len(differ)} tensors"
            f" differ, the first is '{differ[0][:80]}'"
        )


def parameters_m(network: nn.Module) -> float:
    """Parameters in millions."""
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


def save_network(path: Path, state: Mapping[str, Tensor], card: NetworkCard) -> None:
    """Weights as safetensors, with architecture, class names and preprocessing as metadata."""
    described = {
        "architecture": card.architecture.to_dict(),
        "classes": list(card.classes),
        "preprocessing": card.preprocessing.to_dict(),
        "role": card.role,
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    write_safetensors(path, tensors, {METADATA_KEY: json.dumps(described, sort_keys=True)})


def read_card(path: Path) -> NetworkCard:
    """The metadata of saved weights, without reading the weights."""
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        with safe_open(path, framework="pt") as opened:
            text = (opened.metadata() or {}).get(METADATA_KEY)
        stored = StoredCard.model_validate(parse_json(text or "{}"))
        return NetworkCard(
            Architecture(**stored.architecture.model_dump()),
            stored.classes,
            Preprocessing.from_dict(stored.preprocessing),
            stored.role,
        )
    except (SafetensorError, OSError, ValueError) as error:  # pydantic's error is a ValueError
        raise InputError(
            f"{path} is not a network saved by edgeda ({type(error).__name__}: {one_line(error)})"
        ) from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def load_network(path: Path) -> tuple[Network, NetworkCard]:
    """A saved network in eval mode, and its card."""
    card = read_card(path)
    try:
        backbone_name(card.architecture.backbone)
        skeleton = _skeleton(card.architecture)
    except InputError as error:
        raise InputError(f"{path} describes a network that cannot be built: {error}") from error
    if skeleton is not None:
        _check_shapes(path, card.architecture, skeleton)
    network, _ = build_network(card.architecture)
    try:
        network.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the weights in {path} do not fit their own description: {reason}") from error
    return network.eval(), card
