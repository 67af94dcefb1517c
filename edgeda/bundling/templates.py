"""Templates of the kits: plain files with `$name` where a value goes. Data, never imported."""

from __future__ import annotations

import string
from importlib import resources
from pathlib import Path
from typing import Any

from edgeda.errors import InputError


def render(template: str, values: dict[str, Any]) -> bytes:
    """A template of the folder `export/` with its values; every `$name` must have one. `$$` is a dollar sign."""
    return string.Template(_read(template)).substitute({name: str(value) for name, value in values.items()}).encode()


def plain(template: str) -> bytes:
    """A template that is copied as it is."""
    return _read(template).encode()


def _read(template: str) -> str:
    """The text of `export/<template>`: package data in a wheel, the checkout's own folder otherwise."""
    for root in (resources.files("edgeda").joinpath("kits"), Path(__file__).resolve().parents[2] / "export"):
        found = root.joinpath(*template.split("/"))
        if found.is_file():
            return found.read_text(encoding="utf-8")
    raise InputError(f"the template export/{template} is missing from this installation; install edgeda again")
