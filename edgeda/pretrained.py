"""Where a backbone's first weights come from: timm's hub, a local file, or nowhere."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeda.artifacts import sha256
from edgeda.errors import InputError, user_path

CONNECT_S = 3.0
NOT_HAD = "from scratch: no pretrained weights could be had"


def obtain_backbone(name: str, pretrained: str) -> tuple[nn.Module, str]:
    """A timm backbone without its head, and where its weights come from in words.

    `pretrained` is `auto`, `none` or a local file, as in `models.build_network`.
    """
    if pretrained == "none":
        return _create(name, False), "from scratch"
    if pretrained == "auto":
        return _pretrained_or_scratch(name)
    backbone = _create(name, False)
    return backbone, _load_backbone(backbone, user_path(pretrained))


def _create(name: str, pretrained: bool) -> nn.Module:
    model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0)
    return model


def _pretrained_or_scratch(name: str) -> tuple[nn.Module, str]:
    if not (timm.models.get_pretrained_cfg(name) or timm.models.PretrainedCfg()).has_weights:
        return _create(name, False), "from scratch (timm has no weights for it)"
    if not _can_be_had(name):
        return _scratch(name, "they are not in the local cache and their hub cannot be reached")
    try:
        return _create(name, True), "pretrained (timm)"
    except Exception as error:  # noqa: BLE001 - every client and mirror fails in its own way
        reason = (str(error).split("\n") or [""])[0][:120] or type(error).__name__
        return _scratch(name, reason)


def _scratch(name: str, reason: str) -> tuple[nn.Module, str]:
    return _create(name, False), f"{NOT_HAD} ({reason})"


def _can_be_had(name: str) -> bool:
    """Whether weights are cached or their hub answers: asking first saves a minute of retries without a network."""
    configuration = timm.models.get_pretrained_cfg(name)
    repository = getattr(configuration, "hf_hub_id", None)
    if repository:
        for file in ("model.safetensors", "pytorch_model.bin"):
            if isinstance(huggingface_hub.try_to_load_from_cache(repository, file), str):
                return True
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # only the client knows its proxy
    endpoint = urlsplit(huggingface_hub.constants.ENDPOINT)
    try:
        with socket.create_connection((endpoint.hostname or "", endpoint.port or 443), timeout=CONNECT_S):
            return True
    except OSError:
        return False


def _load_backbone(backbone: nn.Module, path: Path) -> str:
    state = _read_weights(path)
    state = {key.removeprefix("module.").removeprefix("backbone."): value for key, value in state.items()}
    wanted = backbone.state_dict()
    fits = {key: value for key, value in state.items() if key in wanted and value.shape == wanted[key].shape}
    missing = [key for key in wanted if key not in fits and not key.endswith("num_batches_tracked")]
    if missing:
        raise InputError(
            f"{path} does not hold this backbone: {len(missing)} of {len(wanted)} tensors are missing or of "
            f"another shape, the first is '{missing[0]}'"
        )
    backbone.load_state_dict(fits, strict=False)
    return f"pretrained ({path.name}, sha256 {short_digest(path)})"


def short_digest(path: Path) -> str:
    """The first twelve digits of a file's SHA-256: which weights these are, whatever their name."""
    return sha256(path)[:12]


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"no such weights file: {path}; use 'auto', 'none' or a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).split("\n")[0][:160]
        raise InputError(f"cannot read weights from {path}: {reason}") from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise InputError(f"{path} holds no state dict of tensors")
    return dict(state)
