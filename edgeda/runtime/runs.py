"""What a run directory holds for the runtime: its exported models."""

from __future__ import annotations

from pathlib import Path

RECIPE, SUMMARY, KIT_LISTING = "recipe.yaml", "summary.json", "bundle.json"


def is_run(folder: Path) -> bool:
    """Whether a folder is a run directory."""
    return (folder / RECIPE).is_file() or (folder / SUMMARY).is_file()


def exported_models(run: Path) -> list[Path]:
    """Every model in RUN/exports, of any format and at any depth; kits hold copies of these and are left out."""
    exports = run / "exports"
    paths = [path for kind in ("*.onnx", "*.xml", "*.engine") for path in sorted(exports.rglob(kind))]
    kits = {listing.parent for listing in exports.rglob(KIT_LISTING)}
    return [path for path in paths if kits.isdisjoint(path.parents)]
