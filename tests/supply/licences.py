"""Write `docs/dependencies.md`: every locked package, its licence as its own metadata states it, and who wants it.

`python -m tests.supply.licences` (part of `make lock`), in an environment that has the locked packages installed.
"""

from __future__ import annotations

import re
import sys
from email.message import Message
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import tomllib

from hatch_build import declared_parts, parts_of, read_lock

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "dependencies.md"

PROPRIETARY = "LicenseRef-NVIDIA-Proprietary"
ALLOWED = frozenset({
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "ISC", "LLVM-exception",
    "LicenseRef-BSD", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Zlib",
})  # fmt: skip
"""Licences that a dependency may have. MPL-2.0 asks that changes to its own files stay open; edgeda changes none."""

ALLOWED_PROPRIETARY = ("cuda-", "nvidia-", "tensorrt-rtx")
"""Packages of NVIDIA's that may be proprietary: what GPU builds of torch bring, and the extra `rtx`."""

STATED = {"cuda-toolkit": PROPRIETARY}
"""Packages whose metadata names no licence: what their publisher says elsewhere."""

SPDX = {
    "3-Clause BSD License": "BSD-3-Clause", "Apache 2.0": "Apache-2.0", "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0", "Apache-2.0": "Apache-2.0", "BSD": "LicenseRef-BSD",
    "BSD 3-Clause": "BSD-3-Clause", "BSD 3-Clause License": "BSD-3-Clause", "BSD License": "LicenseRef-BSD",
    "BSD-2-Clause": "BSD-2-Clause", "BSD-3-Clause": "BSD-3-Clause", "ISC": "ISC", "ISC License": "ISC",
    "ISC License (ISCL)": "ISC", "MIT": "MIT", "MIT License": "MIT",
    "MIT licensed, as found in the LICENSE file": "MIT", "MPL-2.0": "MPL-2.0", "MPL-2.0 AND MIT": "MPL-2.0 AND MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0", "PSF-2.0": "PSF-2.0", "PSFL": "PSF-2.0",
    "NVIDIA Proprietary Software": PROPRIETARY, "Other/Proprietary License": PROPRIETARY,
    "Python Software Foundation License": "PSF-2.0",
}  # fmt: skip
"""What packages write in their metadata, and the SPDX name of it. `LicenseRef-BSD`: a BSD licence, not saying which."""

HEAD = """\
# Dependencies and their licences

Written by `make lock` from the packages' own metadata; edit `tests/supply/licences.py` instead. A wheel of edgeda
bundles none of them. `light` is what `pip install edgeda` brings; the other parts are extras. `LicenseRef-BSD` is a BSD
licence whose metadata does not say which.

**Proprietary** are NVIDIA's packages marked in bold: TensorRT for RTX (extra `rtx`), and the CUDA libraries that the
index's Linux builds of torch depend on. Their licences allow use, not every redistribution: read them before you
ship an image that holds them. A CPU build of torch needs none of them. Not in the lock, and proprietary too: `tensorrt`
(extra `gpu`).

| package | version | licence | parts |
|---|---|---|---|
"""


def licence_of(name: str, stated: Message) -> str:
    """The SPDX expression for what a package's metadata states; a ValueError names the package that has none."""
    if expression := stated.get("License-Expression"):
        return str(expression)
    classifiers = [line.rsplit(" :: ", 1)[-1] for line in stated.get_all("Classifier") or [] if line[:7] == "License"]
    if "Other/Proprietary License" in classifiers:
        return PROPRIETARY
    field = str(stated.get("License") or "").split("\n")[0].removeprefix("OSI Approved :: ").strip()
    for text in [field, *classifiers]:
        if text in SPDX:
            return SPDX[text]
    if name in STATED:
        return STATED[name]
    raise ValueError(f"{name}: no licence known by {[field, *classifiers]}; add it to tests/supply/licences.py")


def refusal(name: str, expression: str) -> str:
    """Why a package with this licence may not be a dependency; empty if it may."""
    tokens = set(re.findall(r"[A-Za-z0-9.+-]+", expression)) - {"AND", "OR", "WITH"}
    if name.startswith(ALLOWED_PROPRIETARY):
        tokens.discard(PROPRIETARY)
    return ", ".join(sorted(tokens - ALLOWED))


def table() -> str:
    """The page, for the packages of requirements.lock as installed here."""
    packages = read_lock(ROOT / "requirements.lock")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    belongs = parts_of(packages, declared_parts(project))
    lines = []
    for name, package in sorted(packages.items()):
        expression = licence_of(name, metadata(name))
        shown = f"**{expression}**" if PROPRIETARY in expression else expression
        lines.append(f"| `{name}` | {package.version} | {shown} | {', '.join(belongs[name])} |\n")
    return HEAD + "".join(lines)


if __name__ == "__main__":
    try:
        TABLE.write_text(table(), encoding="utf-8")
    except (PackageNotFoundError, ValueError) as failure:
        sys.exit(f"error: {failure}")
