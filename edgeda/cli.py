"""The command line: each command is one call of one library function, with the same arguments."""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from edgeda import __version__
from edgeda.cli_datasets import datasets
from edgeda.console import TrainingDisplay, out, set_up_logging, stderr, terminal_width
from edgeda.console import print_result as _print
from edgeda.errors import EdgedaError, InputError, Interrupted, MissingExtra, did_you_mean, from_os_error, require

log = logging.getLogger(__name__)

app = typer.Typer(
    name="edgeda",
    help="Adapt an image classifier to unlabelled cameras and distil it small enough for the device.",
    epilog="Start with: edgeda adapt --teacher r50 --student r18   (built-in images, no data needed). "
    "Exit codes: 0 done; 2 the input or request is wrong; 3 this machine lacks what it needs; 1 a bug. "
    "--debug anywhere shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class AdaptCommand(TyperCommand):
    """`adapt`: its --help takes methods and alignments from what describes them, and loads torch only then."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The usual help, with a line for every method and alignment under its option."""
        options: list[Any] = [option for option in self.params if option.name in ("method", "alignment")]
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
    except ModuleNotFoundError:
        return "(to list them: pip install 'edgeda[train]')"
    lines = (
        {name: summary(name) for name in METHODS}
        if option == "method"
        else {name: alignment.summary() for name, alignment in ALIGNMENTS.items()}
    )
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {line}" for name, line in lines.items())


app.add_typer(datasets)

INTERRUPTED = 130
"""What typer makes of Ctrl-C outside training."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; everything else goes to stderr.")]
Model = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]", help="A run directory, a .onnx file or an OpenVINO folder; default: the newest run."
    ),
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: one per physical core.", min=1, max=1024)]


def _version(wanted: bool) -> None:
    if wanted:
        out(f"edgeda {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command(cls=AdaptCommand)
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
        typer.Option(help="Labelled target images, used to report accuracy and for nothing else."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="A recipe file, or a preset: digits (the default without data), default, paper."),
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
    batch_size: Annotated[int | None, typer.Option(help="Images of each domain in a batch.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    select: Annotated[
        str | None,
        typer.Option(help="Which epoch to ship: im, snd (no labels), last; oracle reads target-test labels."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="auto (measured once on this machine), fp32, bf16 or fp16."),
    ] = None,
    out_: Annotated[Path | None, typer.Option("--out", help="Run directory; default: a new one under ./runs.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out from its checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    json_: Json = False,
) -> None:
    """Adapt a teacher to unlabelled target images while a small student learns from it (KD-UDA).

    Without --source and --target it runs on built-in real images.
    """
    require("torch", "train", "training")
    from edgeda.adapt import adapt as run_adapt
    from edgeda.adapt import adapt_recipe
    from edgeda.report.summary import summary_text

    asked: dict[str, Any] = {
        "teacher.backbone": teacher, "student.backbone": student, "data.source": source, "data.target": target,
        "data.target_test": target_test, "method": method, "train.epochs": epochs, "train.batch_size": batch_size,
        "train.seed": seed, "select.rule": select, "train.precision": precision,
        "adapt.alignment": [name.strip() for name in alignment.split(",")] if alignment else None,
    }  # fmt: skip
    options = {key: value for key, value in asked.items() if value is not None}
    resolved = adapt_recipe(recipe, options, set_ or [], out_, resume)
    display = TrainingDisplay()
    try:
        summary = run_adapt(resolved, out_, display, resume=resume, overwrite=overwrite)
    finally:
        display.close()
    _print(json_, summary, lambda: summary_text(summary))


@app.command()
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
    """Remove the channels of a run's network that matter least for both domains (TCP), and fine-tune it.

    The result is a run directory. One that was stopped goes on with: edgeda adapt --out RUN --resume
    """
    require("torch", "train", "pruning")
    from edgeda.adapt import adapt as run_adapt
    from edgeda.artifacts import find_run
    from edgeda.methods.tcp import prune_recipe
    from edgeda.report.summary import summary_text

    asked: dict[str, Any] = {
        "prune.macs_cut": macs_cut, "train.epochs": epochs, "prune.iterations": iterations, "train.seed": seed,
    }  # fmt: skip
    options = {key: value for key, value in asked.items() if value is not None}
    resolved = prune_recipe(find_run(model), role, options, set_ or [], out_)
    display = TrainingDisplay()
    try:
        summary = run_adapt(resolved, out_, display, overwrite=overwrite)
    finally:
        display.close()
    _print(json_, summary, lambda: summary_text(summary))


@app.command()
def evaluate(
    model: Model = None,
    data: Annotated[str, typer.Option(help="Labelled images: class folders, an image list, or a built-in name.")] = "",
    role: Annotated[str, typer.Option(help="Of a run directory: student, teacher or source_only.")] = "student",
    json_: Json = False,
) -> None:
    """Accuracy of a run's network or an exported model on labelled images."""
    from edgeda.evaluate import evaluate as run_evaluate
    from edgeda.report.summary import evaluation_text

    result = run_evaluate(model, data, role)
    _print(json_, result, lambda: evaluation_text(result))


@app.command()
def export(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="A run directory; default: the newest run."),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write an ONNX file with dynamic batch (the default).")] = False,
    role: Annotated[str, typer.Option(help="student, teacher or source_only.")] = "student",
    images: Annotated[
        str | None,
        typer.Option(help="Real images to check the file on; default: the run's own target images."),
    ] = None,
    out_: Annotated[Path | None, typer.Option("--out", help="Folder to write to; default: RUN/exports.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace even a file that is not this run's own export.")
    ] = False,
    threads: Threads = None,
    json_: Json = False,
) -> None:
    """Export a run's network to ONNX and prove on real target images that it gives the same answers."""
    require("torch", "train", "exporting a run")
    from edgeda.artifacts import ROLES, find_run
    from edgeda.export import export_run
    from edgeda.export.images import parity_images
    from edgeda.report.summary import export_text

    if role not in ROLES:
        raise InputError(f"--role {role}{did_you_mean(role, ROLES)}")
    run = find_run(model)
    if role == "student" and (run.summary().get("verdict") or {}).get("ship") == "source-only":
        log.warning("the verdict is to ship the source-only student: edgeda export %s --role source_only", run.path)
    checked = parity_images(run, images, role)
    result = export_run(
        run, checked.squares, images_from=checked.origin, role=role, labels=checked.labels, out=out_,
        overwrite=overwrite, gmacs=checked.gmacs, threads=threads,
    )  # fmt: skip
    _print(json_, result, lambda: export_text(result))


@app.command()
def profile(
    model: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...", help="Run directories, .onnx files, OpenVINO folders or backbone names (r50)."
        ),
    ] = None,
    classes: Annotated[int, typer.Option(help="Of a backbone name: number of classes.", min=1)] = 1000,
    input_size: Annotated[int, typer.Option(help="Of a backbone name: side of the input in pixels.", min=1)] = 224,
    batch_size: Annotated[str, typer.Option(help="Batch sizes, such as 1,8.")] = "1",
    engine: Annotated[
        str | None,
        typer.Option(help="torch, onnxruntime, openvino, or several with commas; default: all that are there."),
    ] = None,
    threads: Threads = None,
    budget: Annotated[float, typer.Option(help="Seconds of measuring for each row.", min=0.01)] = 1.0,
    json_: Json = False,
) -> None:
    """GMACs, parameters, file size and latency, in every engine that is installed."""
    from edgeda.profiling import profile_model
    from edgeda.profiling.machine import machine
    from edgeda.report.profiles import profile_text

    models: list[str | None] = [*model] if model else [None]
    rows = [
        row
        for name in models
        for row in profile_model(
            name, classes=classes, input_size=input_size, batch_sizes=_numbers(batch_size),
            engines=engine.split(",") if engine else None, threads=threads, budget_s=budget,
        )
    ]  # fmt: skip
    _print(
        json_,
        {"rows": [row.to_dict() for row in rows], "machine": machine()},
        lambda: profile_text(rows, terminal_width()),
    )


@app.command()
def compare(
    run: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Run directories; default: the newest run."),
    ] = None,
    threads: Threads = None,
    budget: Annotated[float, typer.Option(help="Seconds of measuring for each row.", min=0.01)] = 0.5,
    json_: Json = False,
) -> None:
    """Teacher, student and source-only student side by side: accuracy, GMACs, parameters, size, latency."""
    require("torch", "train", "comparing the networks of a run")
    from edgeda.artifacts import find_run
    from edgeda.report.compare import compare_run, compare_text

    runs: list[str | None] = [*run] if run else [None]
    results = [compare_run(found, budget_s=budget, threads=threads) for found in map(find_run, runs)]
    _print(json_, {"runs": results}, lambda: "\n\n".join(compare_text(result, terminal_width()) for result in results))


@app.command()
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
            scenarios=scenario or (), reference=reference, overwrite=overwrite, report=report,
        )  # fmt: skip
    finally:
        display.close()
    _print(json_, result, lambda: benchmark_text(result, terminal_width()))
    if result["missing"]:
        raise InputError(missing_line(result))


@app.command()
def doctor(json_: Json = False) -> None:
    """What this machine can do, and which extra would bring what is missing."""
    from edgeda.doctor import diagnose, doctor_text

    found = diagnose()
    _print(json_, found, lambda: doctor_text(found, terminal_width()))


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--batch-size {text}: expected whole numbers with commas, such as 1,8") from None


def main() -> None:
    """Run the command line; every expected failure is one line and its exit code."""
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    set_up_logging()
    with _one_line(debug):
        code = app(arguments, prog_name="edgeda", standalone_mode=False)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)


@contextlib.contextmanager
def _one_line(debug: bool) -> Iterator[None]:
    try:
        yield
    except Interrupted as error:
        stderr.print(str(error), markup=False)
        sys.exit(error.exit_code)
    except EdgedaError as error:
        _fail(str(error), error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; nothing was changed after the last saved state", 2, debug)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        _fail(str(from_os_error(error, "working")), 2, debug)
    except ModuleNotFoundError as error:
        missing = MissingExtra(f"the package {error.name} is not installed; `edgeda doctor` says which extra brings it")
        _fail(str(missing), missing.exit_code, debug)
    except RecursionError:
        _fail("a file that was read is nested too deeply to be one of ours", 2, debug)
    except MemoryError:
        _fail("not enough memory for what was asked; ask for less", 2, debug)
    except Exception as error:  # noqa: BLE001 - the last resort: a bug, said in one line
        usage = getattr(error, "format_message", None)  # click's errors, which typer ships its own copy of
        if usage is None:
            _fail(f"internal error: {type(error).__name__}: {error} (a bug; --debug shows the traceback)", 1, debug)
        if type(error).__name__ == "NoArgsIsHelpError":
            out(usage())
            sys.exit(2)
        context = getattr(error, "ctx", None)
        _fail(f"{usage().rstrip('.')}; see {context.command_path if context else 'edgeda'} --help", 2, debug)


def _fail(message: str, code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    stderr.print(f"error: {' '.join(message.split())}", markup=False)
    sys.exit(code)
