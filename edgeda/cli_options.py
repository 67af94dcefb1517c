"""Options that several commands have, and what they set in a recipe."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from edgeda.errors import InputError, WrongKey

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; everything else goes to stderr.")]
Model = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="A run directory, a .onnx file, an .engine or an OpenVINO folder; default: the newest run.",
    ),
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: one per physical core.", min=1, max=1024)]

Asked = dict[str, tuple[str, Any]]
"""By option: the key of the recipe that it sets, and its value, None where it is not given."""


def given(asked: Asked) -> dict[str, Any]:
    """The keys of the recipe that options set."""
    return {key: value for key, value in asked.values() if value is not None}


@contextlib.contextmanager
def naming_options(asked: Asked, pairs: list[str]) -> Iterator[None]:
    """What is wrong with a value is said of the option that it came from, unless a --set pair took its place."""
    try:
        yield
    except WrongKey as error:
        set_keys = {pair.partition("=")[0].strip() for pair in pairs}
        for option, (key, value) in asked.items():
            if value is not None and key not in set_keys and f"{error.key}.".startswith(f"{key}."):
                raise InputError(f"{option}: {error.problem}") from error
        raise
