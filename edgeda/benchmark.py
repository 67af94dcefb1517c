"""`edgeda benchmark`: scenarios x methods x seeds, each cell a run directory, resumable cell by cell."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeda.adapt import adapt, check
from edgeda.artifacts import CHECKPOINT, RECIPE, RUNS, SUMMARY, RunDirectory
from edgeda.benchmark_recipe import BenchmarkRecipe, folder_name
from edgeda.cells import differences, sweep
from edgeda.distributed.world import check_alone
from edgeda.errors import EdgedaError, InputError, Interrupted, did_you_mean, from_os_error, one_line
from edgeda.methods import stages
from edgeda.recipe import Recipe
from edgeda.recipe_file import changed, load_recipe
from edgeda.report.benchmark import Cell, tabulate
from edgeda.report.benchmark_text import comma_separated, markdown
from edgeda.run_folder import holding, is_training, refuse_other
from edgeda.watching import Deaf, Record, Watcher
from edgeda.whole_file import check_writable, write_text

log = logging.getLogger(__name__)

LOCKS = ".locks"
SHARED = ".shared"
"""Where cells leave the stages that others have in common with them, such as the source-only reference."""
FAILURE = ".failed.txt"
LEFT = "another process is at work on it"


@dataclass(frozen=True)
class Planned:
    """A cell to be made: its place in the grid, its run directory and its recipe."""

    scenario: str
    method: str
    seed: int
    folder: Path
    recipe: Recipe

    @property
    def failure(self) -> Path:
        """Where the reason is kept for which this cell failed last."""
        return self.folder.with_name(self.folder.name + FAILURE)

    def __str__(self) -> str:
        return f"{self.scenario}, {self.method}, seed {self.seed}"


def benchmark(
    recipe: Recipe,
    seeds: Sequence[int],
    out: Path | None,
    watcher: Watcher,
    *,
    only: Sequence[str] = (),
    scenarios: Sequence[str] = (),
    reference: str | None = None,
    overwrite: bool = False,
    report: bool = False,
    workers: int | None = None,
    address: str | None = None,
) -> Record:
    """Make the missing cells of a recipe's benchmark, write benchmark.md, .csv and .json in `out`, return the last.

    Finished cells are read, half-finished ones resumed, those that another process is at work on left to
    it; a cell that fails is listed under `missing` with its reason, and the others go on. `overwrite` makes
    cells again that another recipe made; `report` makes none. `reference` is the method that the others are
    compared with, the first kd-uda if not named. With `workers` (processes here) or `address` (a Ray cluster that
    sees the same folders) several cells are made at once.

    Raises InputError for a wrong request (before anything is trained) and Interrupted on Ctrl-C, with the
    tables of what is finished written.
    """
    check_alone("a benchmark")
    section = recipe.benchmark
    if section is None:
        raise InputError(f"the recipe '{recipe.name}' has no section 'benchmark' with scenarios and methods")
    _known(only, section.methods, "--only")
    _known(scenarios, section.scenarios, "--scenario")
    out = RUNS / f"benchmark-{folder_name(recipe.name)}" if out is None else out
    cells = _plan(recipe, section, seeds, out, only or list(section.methods), scenarios or list(section.scenarios))
    reference = _reference(cells, reference)
    _check_folder(out, report)
    if not report:
        for planned in {planned.method: planned for planned in cells}.values():
            _check_method(planned)
    _check_made(cells, overwrite)
    if not report:
        try:
            if workers is None and address is None:
                _make(cells, out, watcher, overwrite)
            else:
                _make_on_ray(cells, out, overwrite, workers, address)
        except (Interrupted, KeyboardInterrupt):
            result = _write_report(out, recipe.name, section, cells, reference)
            finished = len(cells) - len(result["missing"])
            raise Interrupted(
                f"stopped; {finished} of {len(cells)} cells are finished, see {out}/benchmark.md; "
                "the same command goes on where this one stopped"
            ) from None
    return _write_report(out, recipe.name, section, cells, reference)


def _plan(
    recipe: Recipe, section: BenchmarkRecipe, seeds: Sequence[int], out: Path, only: Sequence[str],
    scenarios: Sequence[str],
) -> list[Planned]:  # fmt: skip
    """Seed by seed, then scenario, then method with source-only first: an early stop leaves whole tables."""
    found: list[Planned] = []
    for seed in seeds:
        for scenario in (name for name in section.scenarios if name in scenarios):
            place = section.scenarios[scenario]
            data = {f"data.{key}": value for key, value in place.model_dump(exclude={"set"}).items()}
            row = []
            for method in (name for name in section.methods if name in only):
                keys = {**place.set, **section.methods[method], **data, "train.seed": seed}
                own = changed(recipe, keys, f"{scenario}, method '{method}'")
                folder = out / folder_name(scenario) / folder_name(method) / f"seed-{seed}"
                row.append(Planned(scenario, method, seed, folder, own))
            found += sorted(row, key=lambda planned: planned.recipe.method != "source-only")
    return found


def _known(asked: Sequence[str], names: Any, option: str) -> None:
    for name in asked:
        if name not in names:
            raise InputError(f"{option} {name}: not in this recipe's benchmark{did_you_mean(name, names)}")


def _reference(cells: Sequence[Planned], asked: str | None) -> str | None:
    methods = {planned.method: planned.recipe.method for planned in cells}
    if asked is not None:
        _known([asked], methods, "--reference")
        return asked
    return next((name for name, method in methods.items() if method == "kd-uda"), None)


def _check_folder(out: Path, report: bool) -> None:
    """Refuse a folder that holds something else."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / LOCKS).is_dir():
        raise InputError(f"--out {out} is not empty and not a benchmark's folder; choose another one")
    if report and not out.is_dir():
        raise InputError(f"nothing to report: there is no folder {out}; run the benchmark first, or give --out")
    check_writable(out, "--out")


def _check_made(cells: Sequence[Planned], overwrite: bool) -> None:
    for planned in () if overwrite else cells:
        refuse_other(
            differences(planned.folder, planned.recipe), f"the cell {planned.folder}",
            "choose another --out, or --overwrite to make such cells again",
        )  # fmt: skip


def _check_method(planned: Planned) -> None:
    """What can be known to be wrong with a method before anything is trained."""
    try:
        stages(check(planned.recipe))
    except InputError as error:
        raise InputError(f"benchmark method '{planned.method}': {error}") from error


def _make(cells: Sequence[Planned], out: Path, watcher: Watcher, overwrite: bool) -> None:
    """Every cell once; those that others were at work on once more at the end."""
    try:
        (out / LOCKS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, f"making the folder {out}") from error
    left = []
    for number, planned in enumerate(cells, 1):
        log.info("cell %d of %d: %s", number, len(cells), planned)
        if not _make_cell(planned, out, watcher, overwrite):
            left.append(planned)
    for planned in left:
        log.info("once more: %s", planned)
        _make_cell(planned, out, watcher, overwrite)


def _make_on_ray(
    cells: Sequence[Planned], out: Path, overwrite: bool, workers: int | None, address: str | None
) -> None:
    """Every cell once, several at a time; of those that have stages in common the first goes ahead."""
    from edgeda.fleet.cluster import cluster
    from edgeda.fleet.scheduler import Job, requests, run_jobs

    (out / LOCKS).mkdir(parents=True, exist_ok=True)
    jobs = []
    for planned in cells:
        recipe, cpus, gpus = requests(planned.recipe)
        work = {
            "scenario": planned.scenario, "method": planned.method, "seed": planned.seed, "overwrite": overwrite,
            "folder": str(planned.folder), "out": str(out), "recipe": recipe.model_dump(mode="json"),
        }  # fmt: skip
        finished = (planned.folder / SUMMARY).is_file()
        if not finished or (overwrite and differences(planned.folder, planned.recipe)):
            shares = f"{planned.scenario} {planned.seed}"
            jobs.append(Job(str(planned), work, _work_on, cpus, gpus, shares))

    def ended(job: Job, result: Record) -> None:
        if result["status"] == "failed":  # by the machine: a cell's own failure is noted where it was made
            planned = next(each for each in cells if str(each) == job.name)
            planned.failure.parent.mkdir(parents=True, exist_ok=True)
            planned.failure.write_text(result["reason"] + "\n", encoding="utf-8")
        log.info("%s: %s", job.name, result.get("reason") or result["status"])

    if jobs:
        with cluster(workers, address) as ray:
            run_jobs(ray, jobs, ended)


def _work_on(work: Record) -> Record:
    """A cell in a worker."""
    os.chdir(work["cwd"])
    planned = Planned(
        work["scenario"], work["method"], work["seed"], Path(work["folder"]), Recipe.model_validate(work["recipe"])
    )
    made = _make_cell(planned, Path(work["out"]), Deaf(), work["overwrite"])
    reason = planned.failure.read_text(encoding="utf-8").strip() if planned.failure.is_file() else None
    return {"status": "ended", "reason": reason if made else LEFT}


def _make_cell(planned: Planned, out: Path, watcher: Watcher, overwrite: bool) -> bool:
    """Make or finish a cell, or note why that failed; False when another process is at work on it."""
    lock = out / LOCKS / "--".join(planned.folder.relative_to(out).parts)
    with holding(lock) as mine:
        if not mine or is_training(planned.folder):
            log.info("  %s", LEFT)
            return False
        again = overwrite and bool(differences(planned.folder, planned.recipe))
        if (planned.folder / SUMMARY).is_file() and not again:
            log.info("  it is finished")
            return True
        sweep(planned.folder)
        try:
            _train(planned, out, watcher, again)
        except Interrupted:
            raise
        except (EdgedaError, OSError) as error:
            if is_training(planned.folder):  # somebody began while the images were read
                return False
            log.warning("%s failed: %s", planned, one_line(error))
            planned.folder.parent.mkdir(parents=True, exist_ok=True)
            planned.failure.write_text(" ".join(str(error).split()) + "\n", encoding="utf-8")
        else:
            planned.failure.unlink(missing_ok=True)
    return True


def _train(planned: Planned, out: Path, watcher: Watcher, again: bool) -> None:
    """The one place that trains: a new cell, one to go on with, or one to make again."""
    saved = planned.folder / RECIPE
    resume = saved.is_file() and not again
    recipe = load_recipe(str(saved)) if resume else planned.recipe
    adapt(recipe, planned.folder, watcher, resume=resume, overwrite=again, shared=out / SHARED)
    shutil.rmtree(planned.folder / CHECKPOINT, ignore_errors=True)  # most of a cell, and of no use once it is finished


def _read(planned: Planned) -> Cell:
    """A cell as it stands on the disk."""
    place = (planned.scenario, planned.method, planned.seed, planned.folder)
    if (planned.folder / SUMMARY).is_file():
        try:
            return Cell(*place, summary=RunDirectory(planned.folder).summary())
        except InputError as error:
            return Cell(*place, reason=one_line(error))
    if is_training(planned.folder):
        return Cell(*place, reason=LEFT)
    if planned.failure.is_file():
        return Cell(*place, reason=planned.failure.read_text(encoding="utf-8").strip())
    begun = (planned.folder / RECIPE).is_file()
    return Cell(*place, reason="begun and not finished" if begun else "not begun")


def _write_report(
    out: Path, name: str, section: BenchmarkRecipe, cells: Sequence[Planned], reference: str | None
) -> Record:
    result = {"out": str(out), **tabulate(name, section, [_read(planned) for planned in cells], reference)}
    texts = {
        "md": markdown(result),
        "csv": comma_separated(result),
        "json": json.dumps(result, indent=2, allow_nan=False) + "\n",
    }
    try:
        for suffix, text in texts.items():
            write_text(out / f"benchmark.{suffix}", text, shared=True)
    except OSError as error:
        raise from_os_error(error, f"writing the report in {out}") from error
    return result
