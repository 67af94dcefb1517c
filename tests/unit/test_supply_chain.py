"""What edgeda is installed with: pinned, hashed, licensed, and listed in every wheel."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from email.message import Message
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import tomllib

from hatch_build import Locked, declared_parts, parts_of, read_licences, read_lock, requirement_name
from tests.supply.licences import PROPRIETARY, licence_of, refusal

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements.lock"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-build.lock"])
def test_every_requirement_of_a_lock_has_one_version_and_hashes(name: str):
    text = (ROOT / name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    heads = [line for line in lines if not line.startswith(" ")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[A-Za-z0-9.!+-]+ \\", head) for head in heads)
    assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in lines if line not in heads)
    packages = read_lock(ROOT / name)
    assert len(packages) == len(heads)
    assert all(package.hashes and package.version for package in packages.values())
    assert "://" not in text, "a lock names no index"


def test_the_lock_covers_what_the_makefile_installs():
    extras = re.search(r"^EXTRAS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    parts = declared_parts(PROJECT)
    wanted = {requirement_name(line) for part in ("light", *extras) for line in parts[part]}
    assert wanted - set(read_lock(LOCK)) == set(), "run make lock"


def test_what_builds_is_locked_at_the_same_versions():
    build, packages = read_lock(ROOT / "requirements-build.lock"), read_lock(LOCK)
    assert {"editables", "hatchling", "setuptools"} <= set(build)
    assert {name: (package.version, package.hashes) for name, package in build.items()} == {
        name: (packages[name].version, packages[name].hashes) for name in build
    }


def test_every_locked_package_is_in_the_licence_table_at_its_version():
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", page, flags=re.MULTILINE))
    locked = {name: package.version for name, package in read_lock(LOCK).items()}
    assert rows == locked, "run make lock"


def test_every_licence_is_allowed():
    licences = read_licences(ROOT / "docs" / "dependencies.md")
    assert {name: why for name, licence in licences.items() if (why := refusal(name, licence))} == {}


def test_the_table_says_what_installed_packages_say():
    """Where the locked version is the one installed; a table edited by hand does not get past this."""
    licences, compared = read_licences(ROOT / "docs" / "dependencies.md"), 0
    for name, package in read_lock(LOCK).items():
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue
        if installed.version == package.version:
            assert licences[name] == licence_of(name, installed.metadata)
            compared += 1
    assert compared > 20


def test_proprietary_packages_are_nvidias_and_never_in_the_light_part():
    belongs = parts_of(read_lock(LOCK), declared_parts(PROJECT))
    proprietary = {
        name for name, licence in read_licences(ROOT / "docs" / "dependencies.md").items() if PROPRIETARY in licence
    }
    assert {"tensorrt-rtx", "nvidia-cublas"} <= proprietary
    assert {part for name in proprietary for part in belongs[name]} == {"train", "rtx"}


def metadata_with(**fields: str) -> Message:
    message = Message()
    for key, value in fields.items():
        message[key.replace("_", "-")] = value
    return message


def test_a_copyleft_or_unknown_licence_is_refused():
    assert refusal("somebody", "GPL-3.0-only OR MIT") == "GPL-3.0-only"
    assert refusal("somebody", PROPRIETARY) == PROPRIETARY
    assert refusal("nvidia-cublas", PROPRIETARY) == ""
    assert refusal("both", "(Apache-2.0 WITH LLVM-exception) AND MIT") == ""
    with pytest.raises(ValueError, match="somebody: no licence known by"):
        licence_of("somebody", metadata_with(License="do what you like"))


def test_a_licence_comes_from_the_expression_then_the_field_then_the_classifier():
    bsd = "License :: OSI Approved :: BSD License"
    assert licence_of("a", metadata_with(License_Expression="MIT", License="BSD", Classifier=bsd)) == "MIT"
    assert licence_of("a", metadata_with(License="Apache 2.0", Classifier=bsd)) == "Apache-2.0"
    assert licence_of("a", metadata_with(License="Copyright\nlong text", Classifier=bsd)) == "LicenseRef-BSD"
    assert licence_of("a", metadata_with(Classifier="License :: Other/Proprietary License")) == PROPRIETARY


def test_parts_follow_who_wants_whom():
    packages = {
        "top": Locked("top", "1", (), ("edgeda",)), "below": Locked("below", "1", (), ("top", "side")),
        "side": Locked("side", "1", (), ("edgeda",)), "loop": Locked("loop", "1", (), ("below", "loop")),
    }  # fmt: skip
    found = parts_of(packages, {"light": ["Top>=1"], "extra": ["side[x]>=2"]})
    assert found == {"top": ["light"], "below": ["light", "extra"], "side": ["extra"], "loop": ["light", "extra"]}


@pytest.fixture(scope="module")
def bills(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The bill of materials of two wheels, built one after the other without an index."""
    found = []
    for _ in range(2):
        where = tmp_path_factory.mktemp("wheel")
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(where)]
        done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (wheel,) = where.glob("*.whl")
        archive = zipfile.ZipFile(wheel)
        (name,) = [name for name in archive.namelist() if name.endswith(".json") and "/sboms/" in name]
        assert re.fullmatch(r"edgeda-[0-9.]+\.dist-info/sboms/edgeda\.cdx\.json", name)
        found.append(archive.read(name))
    return found


def test_the_same_files_give_the_same_bill(bills: list[bytes]):
    assert bills[0] == bills[1]


def test_the_bill_is_cyclonedx_and_names_every_locked_package(bills: list[bytes]):
    bill = json.loads(bills[0])
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 1)
    own = bill["metadata"]["component"]
    assert (own["name"], own["licenses"]) == ("edgeda", [{"license": {"id": "Apache-2.0"}}])
    locked = {name: package.version for name, package in read_lock(LOCK).items()}
    assert {component["name"]: component["version"] for component in bill["components"]} == locked
    for component in bill["components"]:
        assert component["bom-ref"] == component["purl"] == f"pkg:pypi/{component['name']}@{component['version']}"
        assert component["licenses"][0]["expression"]


def test_the_bill_knows_which_part_wants_which_package(bills: list[bytes]):
    bill = json.loads(bills[0])
    scope = {component["name"]: component["scope"] for component in bill["components"]}
    assert {name: scope[name] for name in ("numpy", "pydantic-core", "torch", "nvidia-cublas", "pytest")} == {
        "numpy": "required", "pydantic-core": "required", "torch": "optional", "nvidia-cublas": "optional",
        "pytest": "excluded",
    }  # fmt: skip
    references = {component["bom-ref"] for component in bill["components"]} | {bill["metadata"]["component"]["bom-ref"]}
    graph = {entry["ref"]: entry["dependsOn"] for entry in bill["dependencies"]}
    assert set(graph) == references
    assert {wanted for wants in graph.values() for wanted in wants} <= references
    reached, waiting = set(), [bill["metadata"]["component"]["bom-ref"]]
    while waiting:
        if (reference := waiting.pop()) not in reached:
            reached.add(reference)
            waiting.extend(graph[reference])
    assert reached == references, "everything locked is there because edgeda wants it, directly or not"
