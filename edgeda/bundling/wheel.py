"""A wheel of the runtime alone, from the package that is running: edgeda is not on PyPI, and a kit must install."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from pathlib import Path

import edgeda

REQUIRES = ("numpy>=1.23", "pillow>=9.4")
EXTRAS = {
    "cpu": ("onnxruntime>=1.17",),
    "gpu": ("onnxruntime-gpu>=1.17",),
    "openvino": ("openvino>=2024.4",),
    "video": ("opencv-python-headless>=4.8",),
}
VERSION = f"{edgeda.__version__}+runtime"
"""The local label says that this is not all of edgeda."""
WHEEL = f"edgeda-{VERSION}-py3-none-any.whl"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def runtime_wheel() -> bytes:
    """`edgeda.runtime` and `edgeda.errors` as a wheel; the same bytes from the same sources."""
    root = Path(edgeda.__file__).resolve().parent
    sources = [root / "__init__.py", root / "errors.py", root / "py.typed", *sorted((root / "runtime").rglob("*.py"))]
    files = {f"edgeda/{path.relative_to(root).as_posix()}": path.read_bytes() for path in sources}
    info = f"edgeda-{VERSION}.dist-info"
    files[f"{info}/METADATA"] = _metadata().encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: edgeda\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files.items()]
    files[f"{info}/RECORD"] = ("\n".join([*record, f"{info}/RECORD,,"]) + "\n").encode()
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return written.getvalue()


def _metadata() -> str:
    lines = ["Metadata-Version: 2.1", "Name: edgeda", f"Version: {VERSION}", "Requires-Python: >=3.10",
             "Summary: The runtime of edgeda: classify images with an exported model", "License: Apache-2.0",
             *(f"Requires-Dist: {each}" for each in REQUIRES)]  # fmt: skip
    for extra, needed in EXTRAS.items():
        lines += [f"Provides-Extra: {extra}", *(f'Requires-Dist: {each}; extra == "{extra}"' for each in needed)]
    return "\n".join(lines) + "\n"


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
