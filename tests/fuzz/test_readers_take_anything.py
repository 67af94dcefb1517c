"""Any bytes, any document: a reader returns what it read or raises an InputError, nothing else."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from edgeda.artifacts import RunDirectory
from edgeda.data.archives import is_archive, unpack
from edgeda.data.image_files import image_list
from edgeda.errors import InputError
from edgeda.fleet.recipe import load_fleet
from edgeda.models import read_card
from edgeda.recipe_file import load_recipe, parse_set
from edgeda.runtime.backends.engine_file import built_by, read_sidecar, sidecar_path
from edgeda.runtime.manifest import Manifest
from edgeda.runtime.onnx_file import read_metadata
from edgeda.runtime.preprocessing import open_image, to_rgb
from tests.fuzz.mutate import paths_of, replaced
from tests.fuzz.seeds import FORMATS, image_bytes, manifest, onnx_bytes, safetensors, tar_bytes, zip_bytes
from tests.fuzz.text_cases import FLEET

fast = settings(max_examples=60, deadline=None, derandomize=True, database=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])  # fmt: skip
texts = some.text(max_size=20) | some.sampled_from(["../x", "a\0b", "\ud800", "<b>", "x" * 5000, "9" * 5000])
values = some.recursive(
    some.none() | some.booleans() | some.integers(-(2**70), 2**70) | some.floats() | texts,
    lambda inside: some.lists(inside, max_size=3) | some.dictionaries(texts, inside, max_size=3), max_leaves=6,
)  # fmt: skip


def takes(read: Callable[[], object]) -> None:
    """Nothing but a value or an InputError comes out."""
    with contextlib.suppress(InputError):
        read()


def like(document: dict) -> some.SearchStrategy:
    """The document with something else at one of its places."""
    return some.builds(replaced, some.just(document), some.sampled_from(list(paths_of(document))[1:]), values)


def damaged(data: bytes) -> some.SearchStrategy[bytes]:
    """Bytes cut, and some of them changed."""

    def change(cut: int, changes: list[tuple[int, int]]) -> bytes:
        made = bytearray(data[:cut])
        for at, byte in changes:
            if made:
                made[at % len(made)] = byte
        return bytes(made)

    places = some.integers(0, min(len(data), 400))
    return some.builds(change, some.integers(0, len(data)) | some.just(len(data)),
                       some.lists(some.tuples(places, some.integers(0, 255)), max_size=4))  # fmt: skip


@fast
@given(like({"name": "x", "data": {"source": "a", "target": "b"}, "train": {"seed": 1}, "distill": {"tau": 4}}))
def test_recipes(tmp_path: Path, document: object):
    (tmp_path / "r.yaml").write_bytes(json.dumps(document).encode("utf-8", "surrogatepass"))
    takes(lambda: load_recipe(str(tmp_path / "r.yaml")).to_yaml())


@fast
@given(some.binary(max_size=60) | some.text("a:-[]{}&*!|>\n\t <?,'\"#%@0.", max_size=40).map(str.encode))
def test_any_bytes_as_a_recipe_and_as_a_fleet(tmp_path: Path, content: bytes):
    (tmp_path / "any.yaml").write_bytes(content)
    takes(lambda: load_recipe(str(tmp_path / "any.yaml")))
    takes(lambda: load_fleet(str(tmp_path / "any.yaml")))


@fast
@given(some.text(max_size=30))
def test_settings(text: str):
    takes(lambda: load_recipe("default", parse_set([f"distill.tau={text}"])))


@fast
@given(like(FLEET))
def test_fleets(tmp_path: Path, document: object):
    (tmp_path / "FLEET.yaml").write_bytes(json.dumps(document).encode("utf-8", "surrogatepass"))
    takes(lambda: [load_fleet(str(tmp_path / "FLEET.yaml"))])


@fast
@given(like(manifest()))
def test_manifests(document: object):
    def read() -> None:
        found = Manifest.from_json(json.dumps(document))
        assert Manifest.from_json(found.embedded()).classes == found.classes

    takes(read)


@fast
@given(damaged(onnx_bytes()))
def test_onnx_files(tmp_path: Path, content: bytes):
    (tmp_path / "m.onnx").write_bytes(content)
    takes(lambda: read_metadata(tmp_path / "m.onnx"))


@fast
@given(some.binary(max_size=200) | some.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_image_lists(tmp_path: Path, content: bytes):
    (tmp_path / "l.txt").write_bytes(content)
    for labelled in (True, False):
        takes(lambda labelled=labelled: image_list(tmp_path / "l.txt", labelled).names)


@pytest.mark.parametrize("suffix", FORMATS)
def test_images(tmp_path: Path, suffix: str):
    @settings(fast, max_examples=25)
    @given(damaged(image_bytes(suffix)))
    def check(content: bytes) -> None:
        (tmp_path / f"x.{suffix}").write_bytes(content)
        takes(lambda: to_rgb(open_image(tmp_path / f"x.{suffix}")))

    check()


CARD = {
    "architecture": {"backbone": "resnet10t", "classes": 2, "bottleneck": 0}, "classes": ["a", "b"], "role": "student",
    "preprocessing": {"size": 32, "resize": "squash", "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3},
}  # fmt: skip


@fast
@given(like(CARD).map(lambda card: safetensors({"__metadata__": {"edgeda": json.dumps(card)}}))
       | damaged(safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4)))  # fmt: skip
def test_saved_networks(tmp_path: Path, content: bytes):
    (tmp_path / "n.safetensors").write_bytes(content)
    takes(lambda: read_card(tmp_path / "n.safetensors"))


SUMMARY = {
    "method": "kd-uda", "classes": ["a"], "images": {"source": 1}, "selection": {"rule": "im", "epoch": 1},
    "accuracy": {"student": {"target": {"last": 1.0}, "source": 1.0}}, "verdict": {"ship": "adapted", "reason": "r"},
    "complexity": {"student": {"gmacs": 1.0}}, "machine": {"cpu": "x", "gpus": []}, "skipped": {"source": ["x"]},
}  # fmt: skip


@fast
@given(like(SUMMARY) | values)
def test_summaries(tmp_path: Path, document: object):
    (tmp_path / "summary.json").write_text(json.dumps(document))
    takes(RunDirectory(tmp_path).summary)


SIDECAR = {"engine": {"package": "tensorrt", "version": "10.3", "gpu": {"name": "a", "compute_capability": "8.7"},
                      "onnx": "m.onnx", "version_compatible": False}}  # fmt: skip


@fast
@given(like(SIDECAR) | values)
def test_sidecars_of_engines(tmp_path: Path, document: object):
    engine = tmp_path / "m.engine"
    sidecar_path(engine).write_text(json.dumps(document))
    takes(lambda: built_by(engine, read_sidecar(engine) or {}))


@fast
@given(damaged(zip_bytes({"a/b.jpg": b"x" * 50, "c": b"y"})) | damaged(tar_bytes({"a/b.jpg": b"x" * 50, "c": b"y"})))
def test_archives(tmp_path: Path, content: bytes):
    archive, folder = tmp_path / "archive", tmp_path / "parent" / "folder"
    archive.write_bytes(content)
    folder.mkdir(parents=True, exist_ok=True)
    if is_archive(archive):
        takes(lambda: unpack(archive, folder))
    assert [path.name for path in folder.parent.iterdir()] == ["folder"], "nothing is written beside the folder"
