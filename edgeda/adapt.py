"""`edgeda adapt`: from a recipe to a finished run directory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from edgeda.artifacts import RECIPE, SUMMARY, RunDirectory
from edgeda.data import Domains, ImageSet, load_domains
from edgeda.data.batches import PairedBatches
from edgeda.data.cache import SquareCache
from edgeda.data.prefetch import Prefetched
from edgeda.distributed.batchnorm import synchronize
from edgeda.distributed.devices import (
    check_devices,
    devices_asked,
    is_lost,
    joined,
    lost,
    make_fabric,
    same_everywhere,
    threads_here,
)
from edgeda.distributed.group import Group
from edgeda.distributed.launch import as_job, run_workers
from edgeda.distributed.world import world
from edgeda.errors import InputError, from_os_error
from edgeda.fast_blocks import use_fast_network
from edgeda.first_networks import first_networks
from edgeda.memory import is_out_of_memory, keep_freed_memory
from edgeda.methods import METHODS, Stage, Workshop, full_names, stages
from edgeda.models import Architecture, Network
from edgeda.precision import FABRIC, resolve_device, resolve_precision
from edgeda.pretrained import NOT_HAD
from edgeda.recipe import Recipe
from edgeda.recipe_file import asked_recipe, load_recipe, parse_set
from edgeda.run_folder import claim, clear, locked, refuse_other
from edgeda.stage_cache import StageCache
from edgeda.summary import finish
from edgeda.tracking import Trackers
from edgeda.train import Fit
from edgeda.watching import Deaf, Record, Watcher
from edgeda.whole_file import make_folder, write_text

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
    many_targets: bool = False,
) -> Record:
    """Run a recipe and return what summary.json holds.

    `shared` is a folder in which runs leave the stages that others have in common with them, and find them; with
    `many_targets` also, on one device, what runs with other targets can use of a stage that is scored on the target.
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
    devices = devices_asked(recipe.train.devices)
    device = resolve_device(recipe.train.device)
    check_devices(devices, recipe.train.batch_size, device)
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"devices": devices})})
    if devices > world().size:
        run = RunDirectory(claim(out, recipe, resume, overwrite))
        with _in_plain_words(run, recipe):
            return run_workers(as_job(recipe, run.path, resume, overwrite, shared), devices, watcher)
    with joined(device) as group:
        run = RunDirectory(Path(group.decide(lambda: str(claim(out, recipe, resume, overwrite)))))
        with _in_plain_words(run, recipe):
            return _run(
                recipe, planned, run, watcher if group.leads else Deaf(), resume, overwrite, shared, many_targets, group
            )


def _run(
    recipe: Recipe, planned: list[Stage], run: RunDirectory, watcher: Watcher, resume: bool, overwrite: bool,
    shared: Path | None, many_targets: bool, group: Group,
) -> Record:  # fmt: skip
    """One process's part of a run; the first one writes, and returns the summary."""
    data = group.leader_first(lambda: load_domains(recipe.data, SquareCache(recipe.data.cache_bytes)))
    images = _images_digest(data.source, data.source_test, data.target, data.target_test)
    same_everywhere(group, images)
    precision = group.decide(lambda: resolve(recipe).train.precision)
    recipe = resolve(recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": precision})}))
    with group.together():
        networks, origins = first_networks(recipe, planned, data, run if resume else None, group.leads)
    origins = group.decide(lambda: origins)
    workshop = make_workshop(recipe, networks, group)
    if not resume:
        for stage in planned:  # what a stage cannot use is said before hours are spent on those before it
            if stage.check:
                stage.check(workshop)
            stage.build(replace(workshop, modules={}))  # its modules are made when its turn comes
    with contextlib.ExitStack() as lock:
        with group.together():
            if group.leads:
                _describe(data, recipe, origins)
                make_folder(run.path)
                lock.enter_context(locked(run.path))
                if not resume:
                    clear(run.path, overwrite)
                write_text(run.path / RECIPE, recipe.to_yaml())
        fit = _train(workshop, planned, run, data, images, origins, watcher, resume, shared, many_targets)
        return finish(recipe, run, data, networks, fit, origins) if group.leads else {}


@contextlib.contextmanager
def _in_plain_words(run: RunDirectory, recipe: Recipe) -> Iterator[None]:
    """What the disk, the memory and other processes can do to a run."""
    count = recipe.train.batch_size
    try:
        yield
    except KeyboardInterrupt as error:  # outside the loop, which stops by itself
        if str(error) or not (run.path / RECIPE).is_file():
            raise
        raise KeyboardInterrupt(f"go on with: edgeda adapt --out {run.path} --resume") from error
    except OSError as error:
        raise from_os_error(error, f"working on the run {run.path}") from error
    except RuntimeError as error:
        if is_lost(error):
            raise lost(error, f"; go on with: edgeda adapt --out {run.path} --resume") from error
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"not enough memory for batches of {count} and {count} images; lower --batch-size (in a recipe: "
            "train.batch_size), or the images' size with --set data.input_size"
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
    loaded = asked_recipe(recipe, overrides)
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
    if not asked.train.threads:  # left to the machine: as many as the run has
        train = asked.train.model_copy(update={"threads": saved.train.threads})
        asked = asked.model_copy(update={"train": train})
    resolved = resolve(asked)
    refuse_other(saved.differences(resolved), f"the run in {out}", "leave it out to go on")
    return saved.at_workplace(asked)


def check(recipe: Recipe) -> Recipe:
    """The recipe with full backbone names; InputError or MachineError for what can be known to be wrong at once."""
    resolve_device(recipe.train.device)
    return full_names(recipe)


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with everything decided that `auto` left open; may have to measure."""
    recipe = check(recipe)
    threads = recipe.train.threads or threads_here()
    torch.set_num_threads(threads)
    device = resolve_device(recipe.train.device)
    if device == "cpu":
        keep_freed_memory()
    taught = any("teacher" in (*stage.trains, *stage.starts_from) for stage in stages(recipe))
    largest = Architecture((recipe.teacher if taught else recipe.student).backbone, 10)
    precision = resolve_precision(recipe.train.precision, device, largest, recipe.data.input_size)
    train = recipe.train.model_copy(update={"threads": threads, "device": device, "precision": precision})
    return recipe.model_copy(update={"train": train})


def make_workshop(recipe: Recipe, networks: dict[str, Network], group: Group | None = None) -> Workshop:
    """The networks on the device of a resolved recipe, in its precision."""
    fabric = make_fabric(recipe.train.device, FABRIC[recipe.train.precision])
    for network in networks.values():
        if group is not None and group.size > 1:
            synchronize(network)
        if recipe.train.device == "cpu":
            pixels = 2 * recipe.train.batch_size * recipe.data.input_size**2
            use_fast_network(network, half=recipe.train.precision == "bf16", pixels=pixels)
    modules = {role: fabric.setup_module(network) for role, network in networks.items()}
    return Workshop(fabric, recipe, modules, group=group or Group())


def _train(
    workshop: Workshop,
    planned: list[Stage],
    run: RunDirectory,
    data: Domains,
    images: str,
    origins: dict[str, str],
    watcher: Watcher,
    resume: bool,
    shared: Path | None,
    many_targets: bool,
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
        (workshop.group.rank, workshop.group.size),
    )
    fingerprint = hashlib.sha256(f"{json.dumps(recipe.outcome())}{images}".encode()).hexdigest()
    cache = None
    if shared:
        source_images = _images_digest(data.source, data.source_test)
        any_target = many_targets and workshop.group.size == 1
        cache = StageCache(shared, recipe, images, source_images, origins, any_target)
    depth = recipe.train.prefetch
    feed = Prefetched(batches, PREFETCH[recipe.train.device] if depth is None else depth)
    trackers = Trackers(recipe.train.track if workshop.group.leads else ())
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


def _describe(data: Domains, recipe: Recipe, origins: dict[str, str]) -> None:
    """Say what was found before hours are spent on it."""
    names = ", ".join(data.classes[:6]) + (", ..." if len(data.classes) > 6 else "")
    held = len(data.source_test) if data.held_out else 0
    log.info("source %s: %d images, %d held out, %d classes (%s)", recipe.data.source, len(data.source) + held, held,
             len(data.classes), names)  # fmt: skip
    tested = f"; {len(data.target_test)} labelled images for reporting" if data.target_test else ""
    log.info("target %s: %d images%s", recipe.data.target, len(data.target), tested)
    count = recipe.train.batch_size
    for domain, images in (("source", data.source), ("target", data.target)):
        if len(images) < count:
            log.warning("a batch of %d is more than the %d %s images: it has some twice", count, len(images), domain)
    named = {"teacher": recipe.teacher.backbone, "student": recipe.student.backbone}
    for origin in dict.fromkeys(origins[role] for role in named if role in origins):
        those = " and ".join(f"{role} {name}" for role, name in named.items() if origins.get(role) == origin)
        log.log(logging.WARNING if origin.startswith(NOT_HAD) else logging.INFO, "%s: %s", those, origin)


def _images_digest(*parts: ImageSet | None) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.digest() if part is not None else b"")
    return digest.hexdigest()
