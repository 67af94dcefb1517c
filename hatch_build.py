"""Build hook: every wheel carries a CycloneDX 1.6 bill of materials, `edgeda-*.dist-info/sboms/edgeda.cdx.json`.

A wheel bundles nobody else's code. The bill names the packages that edgeda is tested with, at the versions of
`requirements.lock`, which of them each part of edgeda wants, and their licences as `docs/dependencies.md` states them.
The same files give the same bytes.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIGHT = "light"
"""The part that `pip install edgeda` brings, without any extra."""


class Locked(NamedTuple):
    """A package of a lock: its version, the hashes of its files, and the packages that want it."""

    name: str
    version: str
    hashes: tuple[str, ...]
    wanted_by: tuple[str, ...]


def canonical(name: str) -> str:
    """The one spelling of a package's name: `types_PyYAML` is `types-pyyaml`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_name(requirement: str) -> str:
    """The package that a requirement such as `ray[default]>=2.9` is about."""
    found = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement)
    if found is None:
        raise ValueError(f"not a requirement: {requirement!r}")
    return canonical(found[0])


def read_lock(path: Path) -> dict[str, Locked]:
    """The packages of a lock written by `make lock`, by canonical name."""
    packages: dict[str, Locked] = {}
    for block in re.split(r"^(?=[A-Za-z0-9])", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        head, *rest = block.splitlines()
        name, _, version = head.rstrip(" \\").partition("==")
        comments = [line.strip(" #").removeprefix("via").strip() for line in rest if line.strip().startswith("#")]
        hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})\b", block)
        wanted_by = tuple(canonical(comment.split()[0]) for comment in comments if comment)
        packages[canonical(name)] = Locked(canonical(name), version, tuple(hashes), wanted_by)
    return packages


def parts_of(packages: dict[str, Locked], parts: dict[str, list[str]]) -> dict[str, list[str]]:
    """For each locked package the parts of edgeda (`light` or an extra) that bring it, in the order of `parts`."""
    wants: dict[str, set[str]] = {name: set() for name in packages}
    for package in packages.values():
        for parent in package.wanted_by:
            wants.setdefault(parent, set()).add(package.name)
    found: dict[str, list[str]] = {name: [] for name in packages}
    for part, requirements in parts.items():
        waiting = [name for name in map(requirement_name, requirements) if name in packages]
        seen: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                found[name].append(part)
                waiting.extend(wants[name])
    return found


def declared_parts(project: dict[str, Any]) -> dict[str, list[str]]:
    """What pyproject.toml's `project` table asks for: the light part first, then each extra."""
    return {LIGHT: project["dependencies"], **project["optional-dependencies"]}


def read_licences(path: Path) -> dict[str, str]:
    """Package to SPDX expression, from the table of `docs/dependencies.md`."""
    rows = re.findall(r"^\| `([^`]+)` \| [^|]+ \| ([^|]+) \|", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: licence.strip(" *") for name, licence in rows}


def purl(name: str, version: str) -> str:
    """The package URL, which is also how the bill refers to a package."""
    return f"pkg:pypi/{name}@{version}"


def bill_of_materials(root: Path, project: dict[str, Any], version: str) -> dict[str, Any]:
    """The CycloneDX document of edgeda at `version`, from the files under `root`."""
    packages = read_lock(root / "requirements.lock")
    licences = read_licences(root / "docs" / "dependencies.md")
    parts = declared_parts(project)
    belongs = parts_of(packages, parts)
    references = {name: purl(name, package.version) for name, package in packages.items()}
    own = purl("edgeda", version)
    direct = {requirement_name(requirement) for wanted in parts.values() for requirement in wanted} & set(packages)
    depends: dict[str, set[str]] = {own: {references[name] for name in direct}}
    depends.update((reference, set()) for reference in references.values())
    for package in packages.values():
        for parent in package.wanted_by:
            if parent in references:
                depends[references[parent]].add(references[package.name])
    components = []
    for name in sorted(packages):
        wanted = belongs[name]
        scope = "required" if LIGHT in wanted else "excluded" if wanted in ([], ["dev"]) else "optional"
        component = {"type": "library", "bom-ref": references[name], "name": name, "version": packages[name].version,
                     "scope": scope, "purl": references[name],
                     "properties": [{"name": "edgeda:part", "value": part} for part in wanted]}  # fmt: skip
        if name in licences:
            component["licenses"] = [{"expression": licences[name]}]
        components.append(component)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "build"}],
            "tools": {
                "components": [{"type": "application", "name": "hatchling", "version": installed_version("hatchling")}]
            },
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": "edgeda",
                "version": version,
                "description": project["description"],
                "licenses": [{"license": {"id": project["license"]}}],
                "purl": own,
            },
            "properties": [
                {"name": "edgeda:bundled", "value": "nothing: the components are what edgeda is tested with"}
            ],
        },
        "components": components,
        "dependencies": [{"ref": ref, "dependsOn": sorted(wanted)} for ref, wanted in sorted(depends.items())],
    }


class BillOfMaterials(BuildHookInterface):
    """Write the bill for the time of the build and have the wheel include it."""

    PLUGIN_NAME = "custom"
    folder: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """`version` is the kind of wheel: an editable one carries no bill."""
        if self.target_name != "wheel" or version != "standard":
            return
        self.folder = Path(tempfile.mkdtemp(prefix="edgeda-sbom-"))
        bill = bill_of_materials(Path(self.root), self.metadata.config["project"], self.metadata.version)
        path = self.folder / "edgeda.cdx.json"
        path.write_text(json.dumps(bill, indent=1) + "\n", encoding="utf-8")
        build_data["sbom_files"].append(str(path))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Leave nothing behind."""
        if self.folder is not None:
            shutil.rmtree(self.folder)
