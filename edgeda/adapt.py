"""`edgeda adapt`: from a recipe to a finished run directory."""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from edgeda.artifacts import CHECKPOINT, RECIPE, ROLES, SUMMARY, RunDirectory
from edgeda.checkpoint import load_checkpoint
from edgeda.data import Domains, ImageSet, load_domains
from edgeda.data.batches import PairedBatches
from edgeda.data.cache import SquareCache
from edgeda.data.prefetch import Prefetched
from edgeda.errors import InputError, from_os_error
from edgeda.fast_blocks import use_fast_network
from edgeda.memory import keep_freed_memory
from edgeda.methods import METHODS, Stage, Workshop, method_name, stages
from edgeda.models import Architecture, Network, backbone_name, build_network, load_network
from edgeda.precision import FABRIC, resolve_device, resolve_precision
from edgeda.profiling.machine import usable_threads
from edgeda.recipe import NetworkRecipe, Recipe
from edgeda.recipe_file import load_recipe, parse_set
from edgeda.run_folder import claim, clear, locked, write
from edgeda.stage_cache import StageCache
from edgeda.summary import finish
from edgeda.tracking import Trackers
from edgeda.train import Fit, Record, Watcher

log = logging.getLogger(__name__)

PREFETCH = {"cpu": 0, "cuda": 2}
"""Batches made ahead unless the recipe says otherwise: on two cores the second thread took more than it gave."""


def adapt(
    recipe: Recipe,
    out: Path | None,
    watcher: Watcher,
    resume: bool = False,
    overwrite: bool = False,
    shared: Path | None = None,
) -> Record:
    """Run a recipe and return what summary.json holds.

    `shared` is a folder in which runs leave the stages that others have in common with them, and find them.
    Raises InputError for wrong input (nothing is written), Diverged and Interrupted with the last good
    state kept for `resume`.
    """
    if resume and out is not None and (out / SUMMARY).is_file():
        log.info("the run %s has finished already: there is nothing to resume", out)
        return {"run": str(out), **RunDirectory(out).summary()}
    recipe = check(recipe)
    Trackers(recipe.train.track)  # what is not installed is said before data are read
    planned = stages(recipe)
    if recipe.select.rule == "oracle" and recipe.data.target_test is None:
        raise InputError(
            "selection by oracle reads target-test labels: give --target-test, or select by im, snd or last"
        )
    run = RunDirectory(claim(out, recipe, resume, overwrite))
    data = load_domains(recipe.data, SquareCache(recipe.data.cache_bytes))
    recipe = resolve(recipe)
    networks, origins = _networks(recipe, planned, data, run if resume else None)
    workshop = make_workshop(recipe, networks)
    if not resume:
        for stage in planned:  # what a stage cannot use is said before hours are spent on those before it
            if stage.check:
                stage.check(workshop)
            stage.build(workshop)
    _describe(data, recipe, origins)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        with locked(run.path):
            if not resume:
                clear(run.path)
            write(run.path / RECIPE, recipe.to_yaml())
            fit = _train(workshop, planned, run, data, origins, watcher, resume, shared)
            return finish(recipe, run, data, networks, fit, origins)
    except OSError as error:
        raise from_os_error(error, f"writing the run {run.path}") from error
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        raise InputError(
            f"not enough memory for batches of {recipe.train.batch_size} and {recipe.train.batch_size} images; lower "
            "train.batch_size or data.input_size"
        ) from error


def adapt_recipe(
    recipe: str | None, options: dict[str, Any], pairs: list[str], out: Path | None, resume: bool
) -> Recipe:
    """The recipe that a command line means: `--recipe`, then its options, then `--set key=value` pairs.

    Without a recipe it is `digits` when no data is named and `default` otherwise. To resume, it is the
    run's own; InputError when what is asked for now differs from it.
    """
    overrides = {**options, **parse_set(pairs)}
    if resume:
        return _recipe_to_resume(out, recipe, overrides)
    own_data = "data.source" in overrides or "data.target" in overrides
    if own_data and recipe is None:
        for key, flag in (("data.source", "--source"), ("data.target", "--target")):
            if key not in overrides:
                raise InputError(f"{flag} is missing; give both --source and --target, or neither for built-in images")
    loaded = load_recipe(("default" if own_data else "digits") if recipe is None else recipe, overrides)
    check_used(loaded, overrides)
    return loaded


def check_used(recipe: Recipe, overrides: dict[str, Any]) -> None:
    """InputError when an alignment is asked for by name and nothing aligns; a warning for a teacher nobody trains."""
    planned = stages(recipe)
    if "adapt.alignment" in overrides and not any(stage.aligns for stage in planned):
        able = [name for name in METHODS if _aligns(recipe.model_copy(update={"method": name}))]
        raise InputError(
            f"method {recipe.method} uses no alignment as this recipe has it; leave --alignment out, or take a method "
            f"that adapts by one: {', '.join(able) or 'any, with adapt.technique=alignment'}"
        )
    if "teacher.backbone" in overrides and not any("teacher" in stage.trains for stage in planned):
        log.warning("method %s trains no teacher: %s is not used", recipe.method, recipe.teacher.backbone)


def _aligns(recipe: Recipe) -> bool:
    try:
        return any(stage.aligns for stage in stages(recipe))
    except InputError:  # a method that this recipe does not suit
        return False


def _recipe_to_resume(out: Path | None, recipe: str | None, overrides: dict[str, Any]) -> Recipe:
    if out is None:
        raise InputError("--resume needs --out, the run directory to go on with")
    if not (out / RECIPE).is_file():
        raise InputError(f"nothing to resume in {out}: it has no {RECIPE}")
    saved = load_recipe(str(out / RECIPE))
    asked = load_recipe(recipe or str(out / RECIPE), overrides)
    resolved = resolve(asked)
    for key, was, now in _differences(saved.outcome(), resolved.outcome()):
        raise InputError(f"the run in {out} has another recipe: its {key} is {was}, now {now} was asked for")
    return saved.at_workplace(asked)


def check(recipe: Recipe) -> Recipe:
    """The recipe with full backbone names; InputError or MachineError for what can be known to be wrong at once."""
    resolve_device(recipe.train.device)
    networks = {
        role: network.model_copy(update={"backbone": backbone_name(network.backbone)})
        for role, network in (("teacher", recipe.teacher), ("student", recipe.student))
    }
    return recipe.model_copy(update={**networks, "method": method_name(recipe.method)})


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with everything decided that `auto` left open; may have to measure."""
    recipe = check(recipe)
    threads = recipe.train.threads or usable_threads()
    torch.set_num_threads(threads)
    device = resolve_device(recipe.train.device)
    if device == "cpu":
        keep_freed_memory()
    largest = Architecture(recipe.teacher.backbone, 10)
    precision = resolve_precision(recipe.train.precision, device, largest, recipe.data.input_size)
    train = recipe.train.model_copy(update={"threads": threads, "device": device, "precision": precision})
    return recipe.model_copy(update={"train": train})


def make_workshop(recipe: Recipe, networks: dict[str, Network]) -> Workshop:
    """The networks on the device of a resolved recipe, in its precision."""
    fabric = Fabric(accelerator=recipe.train.device, devices=1, precision=FABRIC[recipe.train.precision])  # type: ignore[arg-type]
    if (recipe.train.device, recipe.train.precision) == ("cpu", "bf16"):
        for network in networks.values():
            use_fast_network(network)
    return Workshop(fabric, recipe, {role: fabric.setup_module(network) for role, network in networks.items()})


def _train(
    workshop: Workshop,
    planned: list[Stage],
    run: RunDirectory,
    data: Domains,
    origins: dict[str, str],
    watcher: Watcher,
    resume: bool,
    shared: Path | None,
) -> Fit:
    recipe = workshop.recipe
    batches = PairedBatches(
        data.source,
        data.target,
        recipe.data.preprocessing,
        recipe.data.augment,
        recipe.train.batch_size,
        recipe.train.seed,
        workshop.fabric.device,
    )
    images = _images_digest(data.source, data.source_test, data.target, data.target_test)
    fingerprint = hashlib.sha256(f"{json.dumps(recipe.outcome())}{images}".encode()).hexdigest()
    source_images = _images_digest(data.source, data.source_test)
    cache = StageCache(shared, recipe, images, source_images, origins) if shared else None
    depth = recipe.train.prefetch
    feed = Prefetched(batches, PREFETCH[recipe.train.device] if depth is None else depth)
    trackers = Trackers(recipe.train.track)
    fit = Fit(workshop, planned, feed, data, run.path, watcher, fingerprint, origins, cache, trackers)
    finished = False
    try:
        trackers.begin(run.path, f"{recipe.name} {run.name}", recipe.model_dump(mode="json"))
        fit.run(resume)
        finished = True
    finally:
        feed.close()
        trackers.close(finished)
    return fit


def _networks(
    recipe: Recipe, planned: list[Stage], data: Domains, resumed: RunDirectory | None
) -> tuple[dict[str, Network], dict[str, str]]:
    """The networks of every role that is trained or started from, and where their first weights come from.

    Each role has random numbers of its own, so that the student starts equally whatever the method. To
    resume, only shapes are built: the checkpoint holds the weights.
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
        first = "none" if state or role == "source_only" else part.pretrained
        if state and role in state.get("architectures", {}):  # pruning changes shapes on the way
            architecture = Architecture(**state["architectures"][role])
        if role in files and not state:
            network, origins[role] = _load_start(files[role], part if role != "source_only" else None, data)
        else:
            network, origins[role] = build_network(architecture, first)
        networks[role] = network.to(memory_format=torch.channels_last)
    if "source_only" in origins and "source_only" not in files:
        origins["source_only"] = origins.get("student", "from scratch")
    return networks, state["origins"] if state else origins


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
    return network, f"the run {path.parent.name} ({path.name})"


def _describe(data: Domains, recipe: Recipe, origins: dict[str, str]) -> None:
    """Say what was found before hours are spent on it."""
    names = ", ".join(data.classes[:6]) + (", ..." if len(data.classes) > 6 else "")
    held = 0 if data.source_test is data.source else len(data.source_test)
    log.info("source %s: %d images, %d held out, %d classes (%s)", recipe.data.source, len(data.source) + held, held,
             len(data.classes), names)  # fmt: skip
    tested = f"; {len(data.target_test)} labelled images for reporting" if data.target_test else ""
    log.info("target %s: %d images%s", recipe.data.target, len(data.target), tested)
    for role in ("teacher", "student"):
        if role in origins:
            backbone = recipe.teacher.backbone if role == "teacher" else recipe.student.backbone
            log.info("%s %s: %s", role, backbone, origins[role])


def _out_of_memory(error: RuntimeError) -> bool:
    """torch's own error on a GPU; on a CPU it is a RuntimeError like any other."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _images_digest(*parts: ImageSet | None) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.digest() if part is not None else b"")
    return digest.hexdigest()


def _differences(saved: Record, asked: Record, prefix: str = "") -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for key, was in saved.items():
        now = asked[key]
        if isinstance(was, dict):
            found += _differences(was, now, f"{prefix}{key}.")
        elif was != now:
            found.append((prefix + key, was, now))
    return found
