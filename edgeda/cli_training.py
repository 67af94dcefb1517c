"""The commands that train: adapt, prune, benchmark."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from edgeda.cli_options import Json, given, naming_options
from edgeda.console import TrainingDisplay, print_result, terminal_width
from edgeda.errors import InputError, Interrupted, require

NAMES_IN_A_LINE = 4


class AdaptCommand(TyperCommand):
    """`adapt`: its --help takes presets, methods and alignments from what describes them, and loads torch only then."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The usual help, with the presets and a line for every method and alignment under their options."""
        options: list[Any] = [option for option in self.params if option.name in ("recipe", "method", "alignment")]
        plain = [option.help for option in options]
        for option in options:
            option.help = f"{option.help}\n\n\b\n{_choices(option.name)}"
        try:
            super().format_help(ctx, formatter)
        finally:
            for option, text in zip(options, plain, strict=True):
                option.help = text


def _choices(option: str) -> str:
    try:
        from edgeda.alignments import ALIGNMENTS
        from edgeda.methods import METHODS, summary
        from edgeda.recipe_file import preset_names
    except ModuleNotFoundError:
        return "(to list them: pip install 'edgeda[train]')"
    if option == "recipe":
        names = preset_names()
        return ",\n".join(", ".join(names[at : at + NAMES_IN_A_LINE]) for at in range(0, len(names), NAMES_IN_A_LINE))
    lines = (
        {name: summary(name) for name in METHODS}
        if option == "method"
        else {name: alignment.summary() for name, alignment in ALIGNMENTS.items()}
    )
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {line}" for name, line in lines.items())


def adapt(
    teacher: Annotated[str | None, typer.Option(help="Teacher backbone: r50, r101, r152 or any timm name.")] = None,
    student: Annotated[str | None, typer.Option(help="Student backbone: r18, r34 or any timm name.")] = None,
    source: Annotated[
        str | None,
        typer.Option(help="Labelled images: class folders, an image list, or a name (mnist; edgeda datasets list)."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Unlabelled images: a folder of any depth, an image list, a video, or a built-in name."),
    ] = None,
    target_test: Annotated[
        str | None,
        typer.Option(
            help="Labelled target images: reported on, never trained on; they choose no epoch (but --select oracle)."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="A recipe file, or a preset; default: default with your own data, digits without."),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="RUN", help="Adapt the student and teacher of this finished run again, to --target."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change one key of the recipe, such as distill.tau=4. Repeatable."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="What is trained, in which order."),
    ] = None,
    alignment: Annotated[
        str | None,
        typer.Option(help="What pulls the target's features to the source's: one, or several as mmd,mcc."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the source in the main stage.")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Images of each domain in a batch, on all devices together: --devices divides it."),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(help="GPUs (or CPU processes) that train together; default: 1, under torchrun all it started."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    select: Annotated[
        str | None,
        typer.Option(help="Which epoch to ship: im, snd (no labels), last; oracle reads target-test labels."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="auto (measured once on this machine), fp32, bf16 or fp16."),
    ] = None,
    cache_gb: Annotated[
        float | None,
        typer.Option(help="Gigabytes of decoded images kept for other runs (docs/data.md); default: 20, 0: none."),
    ] = None,
    out_: Annotated[Path | None, typer.Option("--out", help="Run directory; default: a new one under ./runs.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out from its checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    json_: Json = False,
) -> None:
    """Adapt a teacher to unlabelled images; a student learns along.

    Joint progressive knowledge distillation and unsupervised domain adaptation (KD-UDA), or another --method.

    Without --source and --target it runs on built-in real images. `--from RUN --target NEW` goes on with what an
    earlier run has learned: no warm-up, and its student unchanged is what the new one is compared with.
    """
    names = [name.strip() for name in alignment.split(",")] if alignment is not None else None
    asked = {
        "--teacher": ("teacher.backbone", teacher), "--student": ("student.backbone", student),
        "--source": ("data.source", source), "--target": ("data.target", target),
        "--target-test": ("data.target_test", target_test), "--method": ("method", method),
        "--alignment": ("adapt.alignment", names), "--epochs": ("train.epochs", epochs),
        "--batch-size": ("train.batch_size", batch_size), "--devices": ("train.devices", devices),
        "--seed": ("train.seed", seed), "--select": ("select.rule", select),
        "--precision": ("train.precision", precision), "--cache-gb": ("data.cache_gb", cache_gb),
    }  # fmt: skip
    options = given(asked)
    if from_ is not None and (recipe is not None or resume):
        raise InputError(
            f"--from takes the recipe of {from_}: leave {'--recipe' if recipe else '--from'} out"
            + ("" if recipe else ", the run in --out knows where it started")
        )
    with naming_options(asked, set_ or []):
        if from_ is None and not resume:  # before torch, which takes seconds to import
            from edgeda.recipe_file import asked_recipe, parse_set

            asked_recipe(recipe, {**options, **parse_set(set_ or [])})
        require("torch", "train", "training")
        from edgeda.adapt import adapt as run_adapt
        from edgeda.adapt import adapt_recipe
        from edgeda.artifacts import find_run
        from edgeda.readapt import readapt_recipe
        from edgeda.report.summary import summary_text

        if from_ is not None:
            resolved = readapt_recipe(find_run(from_), options, set_ or [], out_)
        else:
            resolved = adapt_recipe(recipe, options, set_ or [], out_, resume)
    display = TrainingDisplay()
    try:
        with _saying_how_to_go_on():
            summary = run_adapt(resolved, out_, display, resume=resume, overwrite=overwrite)
    finally:
        display.close()
    print_result(json_, summary, lambda: summary_text(summary))


@contextlib.contextmanager
def _saying_how_to_go_on() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(f"stopped; {error}" if str(error) else "stopped before anything was written") from None


def prune(
    model: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A finished run directory; default: the newest run.")
    ] = None,
    macs_cut: Annotated[
        float | None, typer.Option(help="Share of its multiply-accumulates to remove, such as 0.45.")
    ] = None,
    role: Annotated[str, typer.Option(help="Which network of the run: student or teacher.")] = "student",
    epochs: Annotated[int | None, typer.Option(help="Passes over the source after the last round of pruning.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Rounds of scoring, pruning and fine-tuning.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the run's recipe, such as prune.minimum=4."),
    ] = None,
    out_: Annotated[Path | None, typer.Option("--out", help="Run directory; default: a new one under ./runs.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    json_: Json = False,
) -> None:
    """Remove a network's least important channels and fine-tune it.

    Those that matter least for both domains (TCP), of a run's student or teacher. The result is a run directory; one
    that was stopped goes on with: edgeda adapt --out RUN --resume
    """
    require("torch", "train", "pruning")
    from edgeda.adapt import adapt as run_adapt
    from edgeda.artifacts import find_run
    from edgeda.methods.tcp import prune_recipe
    from edgeda.report.summary import summary_text

    asked = {
        "--macs-cut": ("prune.macs_cut", macs_cut), "--epochs": ("train.epochs", epochs),
        "--iterations": ("prune.iterations", iterations), "--seed": ("train.seed", seed),
    }  # fmt: skip
    with naming_options(asked, set_ or []):
        resolved = prune_recipe(find_run(model), role, given(asked), set_ or [], out_)
    display = TrainingDisplay()
    try:
        with _saying_how_to_go_on():
            summary = run_adapt(resolved, out_, display, overwrite=overwrite)
    finally:
        display.close()
    print_result(json_, summary, lambda: summary_text(summary))


def benchmark(
    recipe: Annotated[
        str, typer.Option(help="A recipe file or preset with a section `benchmark`: scenarios and methods.")
    ],
    seeds: Annotated[int, typer.Option(help="Runs of each scenario and method: seeds 0 to N-1.", min=1)] = 3,
    only: Annotated[list[str] | None, typer.Option(metavar="METHOD", help="This method. Repeatable.")] = None,
    scenario: Annotated[list[str] | None, typer.Option(metavar="NAME", help="This scenario. Repeatable.")] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="METHOD", help="What the others are compared with; default: the first kd-uda."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe that the methods differ from. Repeatable."),
    ] = None,
    out_: Annotated[
        Path | None, typer.Option("--out", help="Folder of the cells; default: runs/benchmark-<recipe's name>.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make cells again that another recipe made; keep the others.")
    ] = False,
    report: Annotated[bool, typer.Option("--report", help="Train nothing: tabulate what is there.")] = False,
    workers: Annotated[
        int | None, typer.Option(help="Make several cells at once, on so many CPUs of this machine (Ray).", min=1)
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Make them on a Ray cluster that sees the same folders, such as 10.0.0.5:6379.")
    ] = None,
    json_: Json = False,
) -> None:
    """Scenarios x methods x seeds as one table, beside the paper's.

    Cells that are finished are kept, one that was stopped goes on, and the same command started twice
    (or on two machines with a shared disk) shares the work.
    """
    require("torch", "train", "a benchmark")
    from edgeda.benchmark import benchmark as run_benchmark
    from edgeda.recipe_file import load_benchmark, parse_set
    from edgeda.report.benchmark_text import benchmark_text, missing_line

    display = TrainingDisplay()
    try:
        result = run_benchmark(
            load_benchmark(recipe, parse_set(set_ or [])), range(seeds), out_, display, only=only or (),
            scenarios=scenario or (), reference=reference, overwrite=overwrite, report=report, workers=workers,
            address=address,
        )  # fmt: skip
    finally:
        display.close()
    print_result(json_, result, lambda: benchmark_text(result, terminal_width()))
    if result["missing"]:
        raise InputError(missing_line(result))
