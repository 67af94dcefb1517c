"""The command that makes a kit for a video pipeline of an exported model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeda.cli_options import Json
from edgeda.console import print_result

if TYPE_CHECKING:
    from edgeda.bundling import Bundle


def bundle(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A run directory that has been exported, a .onnx file or an OpenVINO folder; default: the newest run.",
        ),
    ] = None,
    for_: Annotated[
        str, typer.Option("--for", metavar="KIT", help="deepstream, triton, gstreamer or python.")
    ] = "python",
    out_: Annotated[
        Path | None, typer.Option("--out", help="Folder of the kit; default: KIT-kit beside the model.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What configuration files call the model; default: the name of its run.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the kit in --out.")] = False,
    json_: Json = False,
) -> None:
    """An exported model as a kit: configuration, scripts, labels.

    Its README has a command that tries it.

    For DeepStream and Triton, normalization and softmax go into the graph, which is compared with the plain file.
    """
    from edgeda.bundling import bundle as write_bundle

    made = write_bundle(model, for_, out_, name, overwrite)
    print_result(json_, made.to_dict(), lambda: _text(made))


def _text(made: Bundle) -> str:
    lines = [f"wrote {made.path}: {', '.join(made.files)}"]
    if made.parity:
        parity = made.parity
        lines.append(
            f"pixels to probabilities in one graph, checked against the plain file on {parity['images']} generated "
            f"images: largest difference {parity['max_abs_error']:.1e} (limit {parity['limit']:.0e})"
        )
    return "\n".join([*lines, "", f"next: {made.path}/README.md has the command that tries it"])
