"""Checkpoints: what comes back is what was saved, or nothing is lost."""

from __future__ import annotations

import errno
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import edgeda.checkpoint
from edgeda import checkpoint
from edgeda.checkpoint import FILE, PREVIOUS, load_checkpoint, save_checkpoint, write_safetensors
from edgeda.errors import InputError


def same(found: Any, wanted: Any) -> bool:
    """Equal in value and type; tensors bit for bit, tuples come back as lists."""
    if isinstance(wanted, torch.Tensor):
        bits = [tensor.contiguous().reshape(-1).view(torch.uint8).tolist() for tensor in (found, wanted)]
        return found.dtype == wanted.dtype and found.shape == wanted.shape and bits[0] == bits[1]
    if isinstance(wanted, dict):
        keys = [(type(key), key) for key in found], [(type(key), key) for key in wanted]
        return keys[0] == keys[1] and all(same(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, (list, tuple)):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(same, found, wanted))
    return type(found) is type(wanted) and found == wanted


def round_trip(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    save_checkpoint(folder, state)
    loaded = load_checkpoint(folder)
    assert loaded is not None
    return loaded


def test_a_tree_comes_back_exactly(tmp_path):
    state = {
        "nested": {"a": {"b": {"weight": torch.randn(2, 3)}}, "empty": {}, "none": None},
        "optimizer": {"state": {0: {"momentum_buffer": torch.randn(4)}, 11: {}}, "groups": [{"params": [0, 11]}]},
        "list": [1, 2.5, "three", None, True, [torch.tensor([1, 2])], []],
        "tuple": (1, (2.0, torch.tensor(3.0))),
        "floats": [0.1, 1e-300, -0.0, 123456789.123456789, math.pi],
        "integers": [0, -1, 2**63],
        "text": "naïve 帽子 \n \ud800",
        "scalar": torch.tensor(0.1),
        "kinds": [
            torch.tensor([1.0, -0.1, 3e38]).to(torch.bfloat16), torch.tensor([0.1]).half(),
            torch.tensor([0.1]).double(), torch.tensor([True, False]), torch.arange(5, dtype=torch.uint8),
            torch.tensor(-(2**62)), torch.tensor([math.nan, math.inf]), torch.empty(0, 3), torch.get_rng_state(),
        ],
    }  # fmt: skip
    found = round_trip(tmp_path / "deep" / "checkpoint", state)
    assert same(found, state)
    assert math.copysign(1.0, found["floats"][2]) == -1.0


def test_keys_that_look_alike_stay_apart(tmp_path):
    state = {
        "a": {"b": torch.tensor(1)}, "a/b": torch.tensor(2), "list": [torch.tensor(3)], "list/0": torch.tensor(4),
        "numbers": {1: torch.tensor(5), "1": torch.tensor(6)}, "__tensor__": "a", "items": [["x", 1]],
    }  # fmt: skip
    assert same(round_trip(tmp_path, state), state)


def test_a_shared_tensor_is_saved_for_each_that_shares_it(tmp_path):
    whole = torch.arange(6.0)
    views = {"part": whole[2:4], "turned": whole.view(2, 3).T, "wide": whole[:1].expand(4)}
    state = {"whole": whole, "again": whole, **views}
    found = round_trip(tmp_path, state)
    assert same(found, state)
    found["whole"][0] = 7.0
    assert found["again"][0] == 0.0


def test_channels_last_weights_keep_their_values(tmp_path):
    weights = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    assert same(round_trip(tmp_path, {"weights": weights}), {"weights": weights})


def test_saving_changes_nothing_of_the_state(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(2))
    save_checkpoint(tmp_path, {"parameter": parameter})
    with torch.no_grad():
        parameter += 1.0
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded["parameter"].tolist() == [1.0, 1.0]
    assert not loaded["parameter"].requires_grad
    assert parameter.requires_grad


def test_what_was_loaded_does_not_hold_the_file(tmp_path):
    """Else a resumed run that is saved again has three on the disk, one without a name."""
    loaded = round_trip(tmp_path, {"weights": torch.arange(10.0)})
    assert FILE not in Path("/proc/self/maps").read_text()
    assert loaded["weights"].tolist() == list(range(10))


def test_a_later_checkpoint_replaces_the_earlier(tmp_path):
    save_checkpoint(tmp_path, {"position": 1})
    assert round_trip(tmp_path, {"position": 2}) == {"position": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS, FILE]


def test_there_is_none_yet(tmp_path):
    assert load_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path / "never") is None


def test_the_file_is_safetensors_and_holds_no_objects(tmp_path):
    save_checkpoint(tmp_path, {"weights": torch.ones(2), "epoch": 3})
    with safe_open(tmp_path / FILE, framework="pt") as opened:
        assert [opened.get_tensor(key).tolist() for key in opened.keys()] == [[1.0, 1.0]]  # noqa: SIM118
        assert set(opened.metadata()) == {"tree", "checksum"}
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_checkpoint(tmp_path, {"object": object()})
    assert load_checkpoint(tmp_path) is not None


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, {"position": 1, "weights": torch.ones(3)})

    def full(tensor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_checksum", lambda *arguments: "")
        patched.setattr(checkpoint, "_bytes_of", full)  # the header is written
        with pytest.raises(OSError, match="No space left") as caught:
            save_checkpoint(tmp_path, {"position": 2, "weights": torch.zeros(3)})
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded["position"] == 1
    assert loaded["weights"].tolist() == [1.0, 1.0, 1.0]


def test_a_disk_that_is_full_when_written_out_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    # network and delayed-allocation file systems report it at fsync
    save_checkpoint(tmp_path, {"position": 1})

    def fsync(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(tmp_path, {"position": 2})
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert load_checkpoint(tmp_path) == {"position": 1}


def test_what_a_killed_run_left_half_written_is_not_read(tmp_path):
    save_checkpoint(tmp_path, {"position": 1})
    (tmp_path / f"{FILE}.part").write_bytes(b"half of it")
    assert load_checkpoint(tmp_path) == {"position": 1}
    assert round_trip(tmp_path, {"position": 2}) == {"position": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS, FILE]


@pytest.mark.parametrize("made", [
    torch.arange(6.0).reshape(2, 3), torch.tensor(2.5, dtype=torch.float64), torch.ones(3, 0), torch.arange(5),
    torch.tensor([True, False, True]), torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    torch.tensor([7], dtype=torch.uint8), torch.arange(6.0).reshape(2, 3).T, torch.tensor([1, 2], dtype=torch.int32),
], ids=str)  # fmt: skip
def test_safetensors_reads_what_is_written(made, tmp_path):
    tensors = {"a": made, "b/\u00e9": torch.full((3,), 2.0), "c": torch.ones((), dtype=torch.int8)}
    write_safetensors(tmp_path / "a", tensors, {"key": "value \u00e9"})
    with safe_open(tmp_path / "a", framework="pt") as opened:
        assert opened.metadata() == {"key": "value \u00e9"}
        found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_damaged_checkpoint(keep, tmp_path):
    save_checkpoint(tmp_path, {"weights": torch.ones(100)})
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="is damaged") as caught:
        load_checkpoint(tmp_path)
    assert str(path) in str(caught.value)
    assert "--overwrite" in str(caught.value)


def test_another_safetensors_file_is_no_checkpoint(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / FILE)
    with pytest.raises(InputError, match="is damaged"):
        load_checkpoint(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / FILE, metadata={"tree": "{not json"})
    with pytest.raises(InputError, match="is damaged"):
        load_checkpoint(tmp_path)


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(tmp_path, caplog):
    """Whatever was damaged: cut off, emptied, zeroed as after a power cut, or a single bit of a weight."""
    for number in (1, 2):
        save_checkpoint(tmp_path, {"position": number, "weights": torch.full((1000,), float(number))})
    whole, before = ((tmp_path / name).read_bytes() for name in (FILE, PREVIOUS))
    flipped = bytearray(whole)
    flipped[-2000] ^= 1
    for damaged in (b"", whole[:100], whole[:-1], bytes(len(whole)), bytes(flipped)):
        (tmp_path / FILE).write_bytes(damaged)
        (tmp_path / PREVIOUS).write_bytes(before)
        caplog.clear()
        found = load_checkpoint(tmp_path)
        assert found is not None
        assert (found["position"], found["weights"].unique().tolist()) == (1, [1.0])
        assert "is damaged: going on from the one before it" in caplog.text
        assert (tmp_path / FILE).read_bytes() == damaged, "reading changes nothing: another process may read, too"
        save_checkpoint(tmp_path, {"position": 3})
        assert (tmp_path / PREVIOUS).read_bytes() == before, "the damaged one was replaced, not the good one"
        assert load_checkpoint(tmp_path) == {"position": 3}


@pytest.mark.parametrize(
    "passing", [OSError(errno.EMFILE, "Too many open files"), RuntimeError("[enforce] can't allocate memory")]
)
def test_what_may_pass_is_no_damage(passing, tmp_path, monkeypatch):
    """Too many open files, or too little memory, says nothing about the newest checkpoint."""
    for number in (1, 2):
        save_checkpoint(tmp_path, {"position": number})

    def fails(*args: object, **options: object) -> None:
        raise passing

    with monkeypatch.context() as patched:
        patched.setattr(edgeda.checkpoint, "safe_open", fails)
        with pytest.raises(type(passing)):
            load_checkpoint(tmp_path)
    assert load_checkpoint(tmp_path) == {"position": 2}


def test_both_damaged_are_one_line(tmp_path):
    for name in (FILE, PREVIOUS):
        (tmp_path / name).write_bytes(b"half of it")
    with pytest.raises(InputError, match=f"{FILE} is damaged .*--overwrite"):
        load_checkpoint(tmp_path)
