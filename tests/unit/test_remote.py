"""Another machine over ssh, against a real sshd on loopback."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeda.errors import InputError, MachineError
from edgeda.remote import Address, Remote, connection_error
from tests.sshd import Sshd, make_key, running_sshd


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


def connect(sshd: Sshd, **changes: str):
    return Remote.open(sshd.url, timeout_s=10, ssh_options=sshd.options_with(**changes))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ssh://nvidia@orin.local", Address("orin.local", "nvidia")),
        ("ssh://nvidia@10.0.0.7:2222", Address("10.0.0.7", "nvidia", 2222)),
        ("ssh://orin", Address("orin")),
        ("ssh://nvidia@[fe80::1]:22", Address("fe80::1", "nvidia", 22)),
    ],
)
def test_an_address_is_user_host_and_port(url: str, expected: Address) -> None:
    assert Address.parse(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "orin", "ssh://", "ssh://-oProxyCommand=id", "ssh://-l@host", "ssh://user@-host", "ssh://user:secret@host",
        "ssh://user@host:0", "ssh://user@host:65536", "ssh://user@host:", "ssh://user@host/path", "ssh://u@h h",
        "ssh://user@host;id", "ssh://user@$(id)", "http://user@host", "ssh://user@host\n", "ssh://@host",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_before_ssh_starts(url: str) -> None:
    with pytest.raises(InputError):
        Address.parse(url)


def test_files_go_there_and_back_and_the_folder_is_private_and_removed(sshd: Sshd, tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "model.onnx").write_bytes(content)
    with connect(sshd) as remote:
        (folder,) = sshd.leftovers()
        assert str(folder) == remote.folder
        assert folder.stat().st_mode & 0o777 == 0o700
        remote.put(tmp_path / "model.onnx", "model.onnx")
        assert sorted(path.name for path in folder.iterdir()) == ["model.onnx"]
        remote.get("model.onnx", tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == content
    assert sshd.leftovers() == []


def test_words_arrive_as_they_are(sshd: Sshd) -> None:
    words = ["$HOME", "a b", "`id`", "'quoted'", '"', "*", ";exit 3", "ü", "-n", "\\", ""]
    with connect(sshd) as remote:
        done = remote.run(["printf", "<%s>\n", *words], timeout_s=10)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [f"<{word}>" for word in words]


def test_exit_code_and_stderr_come_back_and_255_is_not_taken_for_ssh(sshd: Sshd) -> None:
    with connect(sshd) as remote:
        done = remote.run(["sh", "-c", "echo out; echo bad >&2; exit 7"], timeout_s=10)
        assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "bad\n")
        assert remote.run(["sh", "-c", "exit 255"], timeout_s=10).returncode == 254
        assert remote.run(["no-such-program"], timeout_s=10).returncode == 127


def test_the_folder_is_removed_after_a_failure_too(sshd: Sshd) -> None:
    with pytest.raises(KeyboardInterrupt), connect(sshd) as remote:  # noqa: PT012 - the second statement raises
        remote.run(["touch", "x"], timeout_s=10)
        raise KeyboardInterrupt
    assert sshd.leftovers() == []


def test_a_command_that_takes_too_long_is_ended_there(sshd: Sshd) -> None:
    marker = f"61.{os.getpid()}"
    with pytest.raises(MachineError, match="did not finish within 1 s while running sleep there"), connect(sshd) as far:
        far.run(["sleep", marker], timeout_s=1)
    assert sshd.leftovers() == []
    end = time.monotonic() + 60
    while _is_running(marker) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _is_running(marker)


def _is_running(marker: str) -> bool:
    found = False
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found |= path.read_bytes().split(b"\0")[:2] == [b"sleep", marker.encode()]
        except OSError:
            continue
    return found


def test_a_full_disk_there_is_called_so(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x" * 100_000)
    with connect(sshd) as remote:
        remote.run(["ln", "-s", "/dev/full", "model.onnx.part"], timeout_s=10)
        with pytest.raises(MachineError, match=r"model.onnx could not be written there: its disk is full; free"):
            remote.put(tmp_path / "model.onnx", "model.onnx")


def test_a_file_that_is_not_there_leaves_the_local_one_alone(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "engine").write_text("old")
    with connect(sshd) as remote:
        with pytest.raises(MachineError, match=r"model.engine could not be read there"):
            remote.get("model.engine", tmp_path / "engine")
        with pytest.raises(InputError, match="No such file"):
            remote.put(tmp_path / "missing", "model.onnx")
    assert (tmp_path / "engine").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_what_a_login_script_prints_is_not_an_answer(tmp_path: Path) -> None:
    (tmp_path / "payload").write_bytes(b"\x00\x01")
    # which file a shell reads differs; a forced command that greets first stands for any of them
    with running_sshd(tmp_path) as server:
        key = (tmp_path / "client.pub").read_text()
        forced = 'command="echo Welcome; eval \\"$SSH_ORIGINAL_COMMAND\\"" '
        (tmp_path / "authorized_keys").write_text(forced + key)
        with connect(server) as remote:
            assert remote.run(["echo", "answer"], timeout_s=10).stdout == "answer\n"
            remote.put(tmp_path / "payload", "payload")
            remote.get("payload", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"\x00\x01"


def test_a_refused_key(sshd: Sshd) -> None:
    with pytest.raises(MachineError, match=rf"accepts no key of yours; give it one with: ssh-copy-id -p {sshd.port} "):
        connect(sshd, key="stranger").__enter__()


def test_an_unknown_host_key_is_not_accepted_silently(sshd: Sshd) -> None:
    empty = sshd.folder / "empty_known_hosts"
    empty.write_text("")
    lenient = (*sshd.options_with(known_hosts=empty.name), "-o", "StrictHostKeyChecking=no")
    with pytest.raises(MachineError, match="is not known here; check and accept it once with: ssh -p"):
        Remote.open(sshd.url, timeout_s=10, ssh_options=lenient).__enter__()
    assert empty.read_text() == ""


def test_a_changed_host_key(sshd: Sshd) -> None:
    make_key(sshd.folder / "other_host")
    key = " ".join((sshd.folder / "other_host.pub").read_text().split()[:2])
    (sshd.folder / "changed").write_text(f"[127.0.0.1]:{sshd.port} {key}\n")
    with pytest.raises(MachineError, match=rf"another host key than before.*ssh-keygen -R '\[127.0.0.1\]:{sshd.port}'"):
        connect(sshd, known_hosts="changed").__enter__()


def test_a_host_that_is_down() -> None:
    with socket.socket() as unused:  # bound and not listening: refuses
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(MachineError, match=r"cannot be reached .Connection refused.; is it on"):
            Remote.open(f"ssh://nobody@127.0.0.1:{port}", ssh_options=("-F", "none")).__enter__()


def test_a_host_that_accepts_and_says_nothing() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"ssh://nobody@127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(MachineError, match=r"cannot be reached .timed out"):
            Remote.open(url, timeout_s=1, ssh_options=("-F", "none")).__enter__()


def test_a_name_that_is_no_host() -> None:
    stderr = "ssh: Could not resolve hostname orinn: Name or service not known"
    error = connection_error(Address("orinn", "nvidia"), stderr, "connecting")
    assert isinstance(error, InputError)
    assert "no host named 'orinn'" in str(error)


def test_no_ssh_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match="no ssh client here; install one"):
        Remote.open("ssh://nvidia@orin").__enter__()


def test_options_come_from_the_environment(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEDA_SSH_OPTIONS", sshd.environment["EDGEDA_SSH_OPTIONS"])
    with Remote.open(sshd.url) as remote:
        assert remote.run(["pwd"], timeout_s=10).stdout.strip() == remote.folder
    monkeypatch.setenv("EDGEDA_SSH_OPTIONS", "-i 'open")
    with pytest.raises(InputError, match="EDGEDA_SSH_OPTIONS cannot be read"):
        Remote.open(sshd.url).__enter__()


def test_a_folder_that_cannot_be_removed_is_told(sshd: Sshd, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "edgeda.remote"), connect(sshd) as remote:
        real = remote._command
        object.__setattr__(remote, "_command", ("false",))
    assert f"the temporary folder {remote.folder} is still there" in caplog.text
    subprocess.run(["rm", "-rf", remote.folder], check=True)
    assert real[0] == "ssh"
