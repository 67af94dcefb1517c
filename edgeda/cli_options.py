"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; everything else goes to stderr.")]
Model = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="A run directory, a .onnx file, an .engine or an OpenVINO folder; default: the newest run.",
    ),
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: one per physical core.", min=1, max=1024)]
