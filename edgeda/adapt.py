"""`edgeda adapt`: from a recipe to a finished run directory."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from edgeda import __version__
from edgeda.artifacts import CHECKPOINT, METRICS, RECIPE, ROLES, RUNS, SUMMARY, RunDirectory
from edgeda.checkpoint import load_checkpoint
from edgeda.data import Domains, load_domains
from edgeda.data.batches import PairedBatches
from edgeda.errors import InputError, from_os_error
from edgeda.inference import predict_logits
from edgeda.methods import Stage, Workshop, stages
from edgeda.models import Architecture, Network, NetworkCard, backbone_name, build_network, save_network
from edgeda.precision import FABRIC, resolve_device, resolve_precision
from edgeda.profiling.complexity import torch_complexity
from edgeda.profiling.machine import machine, usable_threads
from edgeda.recipe import Recipe, load_recipe, parse_set
from edgeda.selection import judge
from edgeda.train import Fit, Record, Watcher

log = logging.getLogger(__name__)

OURS = (RECIPE, SUMMARY, METRICS, "report.html", *(f"{role}.safetensors" for role in ROLES))
LOCK = ".lock"
OUR_FOLDERS = (CHECKPOINT, "plots", "exports")


def adapt(recipe: Recipe, out: Path | None, watcher: Watcher, resume: bool = False, overwrite: bool = False) -> Record:
    """Run a recipe and return what summary.json holds.

    Raises InputError for wrong input (nothing is written), Diverged and Interrupted with the last good
    state kept for `resume`.
    """
    if resume and out is not None and (out / SUMMARY).is_file():
        log.info("the run %s has finished already: there is nothing to resume", out)
        return {"run": str(out), **RunDirectory(out).summary()}
    recipe = check(recipe)
    planned = stages(recipe)
    if recipe.select.rule == "oracle" and recipe.data.target_test is None:
        raise InputError(
            "selection by oracle reads target-test labels: give --target-test, or select by im, snd or last"
        )
    run = RunDirectory(_claim(out, recipe, resume, overwrite))
    data = load_domains(recipe.data)
    recipe = resolve(recipe)
    networks, origins = _networks(recipe, planned, data, run if resume else None)
    _describe(data, recipe, origins)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        with _locked(run.path):
            if not resume:
                _clear(run.path)
            _write(run.path / RECIPE, recipe.to_yaml())
            fit = _train(recipe, planned, run, data, networks, origins, watcher, resume)
            return _finish(recipe, run, data, networks, fit, origins)
    except OSError as error:
        raise from_os_error(error, f"writing the run {run.path}") from error


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
    return load_recipe(("default" if own_data else "digits") if recipe is None else recipe, overrides)


def _recipe_to_resume(out: Path | None, recipe: str | None, overrides: dict[str, Any]) -> Recipe:
    if out is None:
        raise InputError("--resume needs --out, the run directory to go on with")
    if not (out / RECIPE).is_file():
        raise InputError(f"nothing to resume in {out}: it has no {RECIPE}")
    saved = load_recipe(str(out / RECIPE))
    asked = load_recipe(recipe or str(out / RECIPE), overrides)
    resolved = resolve(asked)
    for key, was, now in _differences(saved.model_dump(mode="json"), resolved.model_dump(mode="json")):
        raise InputError(f"the run in {out} has another recipe: its {key} is {was}, now {now} was asked for")
    return saved


def check(recipe: Recipe) -> Recipe:
    """The recipe with full backbone names; InputError or MachineError for what can be known to be wrong at once."""
    resolve_device(recipe.train.device)
    networks = {
        role: network.model_copy(update={"backbone": backbone_name(network.backbone)})
        for role, network in (("teacher", recipe.teacher), ("student", recipe.student))
    }
    return recipe.model_copy(update=networks)


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with everything decided that `auto` left open; may have to measure."""
    recipe = check(recipe)
    threads = recipe.train.threads or usable_threads()
    torch.set_num_threads(threads)
    device = resolve_device(recipe.train.device)
    largest = Architecture(recipe.teacher.backbone, 10)
    precision = resolve_precision(recipe.train.precision, device, largest, recipe.data.input_size)
    train = recipe.train.model_copy(update={"threads": threads, "device": device, "precision": precision})
    return recipe.model_copy(update={"train": train})


def _claim(out: Path | None, recipe: Recipe, resume: bool, overwrite: bool) -> Path:
    """The run's folder; refuses one that holds something which was not asked to be replaced."""
    if out is None:
        taken = [path.name for path in RUNS.iterdir()] if RUNS.is_dir() else []
        number = next(n for n in range(1, len(taken) + 2) if f"{recipe.name}-{n}" not in taken)
        return RUNS / f"{recipe.name}-{number}"
    if resume:
        return out
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()):
        if not _is_run(out):
            raise InputError(f"--out {out} is not empty and not a run directory; choose another folder")
        if not overwrite:
            raise InputError(f"the run {out} exists already; add --resume to go on, --overwrite to start again")
    return out


def _is_run(folder: Path) -> bool:
    """Whether a folder holds a recipe of ours, so that what lies beside it may be replaced."""
    try:
        load_recipe(str(folder / RECIPE))
    except InputError:
        return False
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second process out of a run directory; the system lets go of the lock when a process dies."""
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is training in {folder}; choose another --out or wait for it") from None
        yield


def _clear(folder: Path) -> None:
    """Remove an earlier run's own files, nothing else."""
    for name in OURS:
        (folder / name).unlink(missing_ok=True)
    for name in OUR_FOLDERS:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)


def _train(
    recipe: Recipe,
    planned: list[Stage],
    run: RunDirectory,
    data: Domains,
    networks: dict[str, Network],
    origins: dict[str, str],
    watcher: Watcher,
    resume: bool,
) -> Fit:
    fabric = Fabric(accelerator=recipe.train.device, devices=1, precision=FABRIC[recipe.train.precision])  # type: ignore[arg-type]
    workshop = Workshop(fabric, recipe, {role: fabric.setup_module(network) for role, network in networks.items()})
    batches = PairedBatches(
        data.source,
        data.target,
        recipe.data.preprocessing,
        recipe.data.augment,
        recipe.train.batch_size,
        recipe.train.seed,
        fabric.device,
    )
    fit = Fit(workshop, planned, batches, data, run.path, watcher, _fingerprint(recipe, data), origins)
    fit.run(resume)
    return fit


def _networks(
    recipe: Recipe, planned: list[Stage], data: Domains, resumed: RunDirectory | None
) -> tuple[dict[str, Network], dict[str, str]]:
    """The networks of every role that is trained or started from, and where their first weights come from.

    Each role has random numbers of its own, so that the student starts equally whatever the method. To
    resume, only shapes are built: the checkpoint holds the weights.
    """
    state = load_checkpoint(resumed.path / CHECKPOINT) if resumed else None
    roles = {role for stage in planned for role in (*stage.roles, *stage.starts_from.values())}
    networks: dict[str, Network] = {}
    origins: dict[str, str] = {}
    for role in (role for role in ("teacher", "student", "source_only") if role in roles):
        torch.manual_seed(recipe.train.seed + zlib.crc32(role.encode()))
        part = recipe.teacher if role == "teacher" else recipe.student
        architecture = Architecture(part.backbone, len(data.classes), part.bottleneck)
        first = "none" if state or role == "source_only" else part.pretrained
        network, origins[role] = build_network(architecture, first)
        networks[role] = network.to(memory_format=torch.channels_last)
    if "source_only" in origins:
        origins["source_only"] = origins.get("student", "from scratch")
    return networks, state["origins"] if state else origins


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


def _finish(
    recipe: Recipe, run: RunDirectory, data: Domains, networks: dict[str, Network], fit: Fit, origins: dict[str, str]
) -> Record:
    """Save the selected weights, judge them without target labels and write the summary."""
    if "student" not in fit.best:
        fit.best["student"], networks["student"] = fit.best["source_only"], networks["source_only"]
    logits: dict[str, Tensor] = {}
    for role, best in fit.best.items():
        network = networks[role]
        card = NetworkCard(network.architecture, data.classes, recipe.data.preprocessing, role)
        save_network(run.weights(role), best["weights"], card)
        network.load_state_dict(best["weights"])
        logits[role] = predict_logits(network, data.target.squares, recipe.data.preprocessing)
    selected = {role: best["record"] for role, best in fit.best.items()}
    verdict = judge(
        logits["student"], logits["source_only"], logits.get("teacher"),
        selected["student"]["source_accuracy"], selected["source_only"]["source_accuracy"],
    )  # fmt: skip
    summary: Record = {
        "edgeda": __version__,
        "method": recipe.method,
        "alignment": list(recipe.adapt.alignment) if "teacher" in fit.best else None,
        "teacher": recipe.teacher.backbone if "teacher" in fit.best else None,
        "student": recipe.student.backbone,
        "weights_from": origins,
        "source": recipe.data.source,
        "target": recipe.data.target,
        "target_test": recipe.data.target_test,
        "classes": list(data.classes),
        "images": {
            "source": len(data.source),
            "target": len(data.target),
            "target_test": len(data.target_test) if data.target_test else 0,
        },
        "skipped": data.skipped,
        "seed": recipe.train.seed,
        "epochs": recipe.train.epochs,
        "precision": recipe.train.precision,
        "machine": machine(),
        "wall_s": round(fit.wall_s, 1),
        "pairs_per_s": round(fit.pairs_per_s, 2),
        "peak_memory_mb": _peak_memory_mb(),
        "selection": {"rule": recipe.select.rule, "epoch": selected["student"]["epoch"]},
        "accuracy": {role: _accuracies(role, fit) for role in ROLES},
        "accuracy_source_images": "held out" if data.source_test is not data.source else "training images",
        "verdict": verdict.to_dict(),
        "complexity": {
            role: _complexity(networks[role], recipe) for role in ("teacher", "student") if role in networks
        },
    }
    _write(run.path / SUMMARY, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return {"run": str(run.path), **summary}


def _accuracies(role: str, fit: Fit) -> Record:
    """`last`, `selected` and `oracle` on target-test, in percent; null without labels. Source of the selected epoch."""
    if role not in fit.best:
        return {"target": {"last": None, "selected": None, "oracle": None}, "source": None}
    chosen = fit.best[role]["record"]
    trained_as = chosen["role"]
    epochs = [line["networks"][trained_as] for line in fit.history if line["stage"] == chosen["stage"]]
    on_target = [epoch["target_accuracy"] for epoch in epochs]
    known = None not in on_target
    return {
        "target": {
            "last": round(on_target[-1], 2) if known else None,
            "selected": round(chosen["target_accuracy"], 2) if known else None,
            "oracle": round(max(on_target), 2) if known else None,
        },
        "source": round(chosen["source_accuracy"], 2),
    }


def _complexity(network: Network, recipe: Recipe) -> Record:
    found = torch_complexity(network, recipe.data.input_size)
    return {"gmacs": round(found.gmacs, 4), "gflops": round(found.gflops, 4), "params_m": round(found.params_m, 3)}


def _fingerprint(recipe: Recipe, data: Domains) -> str:
    digest = hashlib.sha256(recipe.model_dump_json().encode())
    for part in (data.source, data.target):
        digest.update("\n".join(part.names).encode("utf-8", "surrogateescape"))
        digest.update(b"" if part.labels is None else part.labels.tobytes())
        for at in range(0, len(part), 1024):
            digest.update(part.squares[at : at + 1024].tobytes())
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


def _peak_memory_mb() -> float:
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
