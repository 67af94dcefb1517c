"""The networks that a run begins with: built, pretrained, or those of an earlier run."""

from __future__ import annotations

import zlib
from pathlib import Path

import torch

from edgeda.artifacts import CHECKPOINT, ROLES, RunDirectory
from edgeda.checkpoint import load_checkpoint, restoring
from edgeda.data import Domains
from edgeda.errors import InputError
from edgeda.methods import Stage
from edgeda.models import Architecture, Network, build_network, load_network
from edgeda.pretrained import short_digest
from edgeda.recipe import NetworkRecipe, Recipe


def first_networks(
    recipe: Recipe, planned: list[Stage], data: Domains, resumed: RunDirectory | None, leads: bool = True
) -> tuple[dict[str, Network], dict[str, str]]:
    """The networks of every role that is trained or started from, and where their first weights come from.

    Each role has random numbers of its own, so that the student starts equally whatever the method. To
    resume, only shapes are built: the checkpoint holds the weights. So it is for a process that does not lead: its
    networks follow those of the one that does.
    """
    state = load_checkpoint(resumed.path / CHECKPOINT) if resumed else None
    files = {role: of for stage in planned for role, of in stage.starts_from.items() if isinstance(of, Path)}
    copied = {of for stage in planned for of in stage.starts_from.values() if isinstance(of, str)}
    roles = copied.union(*((*stage.trains, *stage.scores, *stage.starts_from) for stage in planned))
    assert roles <= set(ROLES), f"stages name unknown roles: {roles - set(ROLES)}"
    networks: dict[str, Network] = {}
    origins: dict[str, str] = {}
    for role in (role for role in ROLES if role in roles):
        torch.manual_seed(recipe.train.seed + zlib.crc32(role.encode()))
        part = recipe.teacher if role == "teacher" else recipe.student
        architecture = Architecture(part.backbone, len(data.classes), part.bottleneck)
        first = "none" if state or role == "source_only" or not leads else part.pretrained
        if resumed and state and role in state.get("architectures", {}):  # pruning changes shapes on the way
            with restoring(resumed.path / CHECKPOINT):
                architecture = Architecture(**state["architectures"][role])
        if role in files and not state:
            network, origins[role] = _load_start(files[role], part if role != "source_only" else None, data)
        else:
            network, origins[role] = build_network(architecture, first)
        networks[role] = network.to(memory_format=torch.channels_last)
    if "source_only" in origins and "source_only" not in files:
        origins["source_only"] = origins.get("student", "from scratch")
    return networks, dict(state.get("origins") or {}) if state else origins


def _load_start(path: Path, wanted: NetworkRecipe | None, data: Domains) -> tuple[Network, str]:
    """A network of an earlier run, head and pruned widths included; InputError when it is not the one `wanted`."""
    network, card = load_network(path)
    found = card.architecture
    if wanted and (found.backbone, found.bottleneck) != (wanted.backbone, wanted.bottleneck):
        raise InputError(
            f"{path} holds a {found.backbone} with bottleneck {found.bottleneck}, the recipe's network is a "
            f"{wanted.backbone} with bottleneck {wanted.bottleneck}; leave both alone"
        )
    if card.classes != data.classes:
        raise InputError(
            f"{path} was trained for other classes than those of the source {data.source.name}; use its own"
        )
    return network, f"the run {path.parent.name} ({path.name}, sha256 {short_digest(path)})"
