"""A real sshd on loopback for tests: its own port, keys and known_hosts in a temporary folder, no root needed."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAM = shutil.which("sshd") or "/usr/sbin/sshd"
_PRIVILEGE_FOLDER = Path("/run/sshd")


@dataclass(frozen=True)
class Sshd:
    """A server that is up, and how to reach it."""

    port: int
    folder: Path
    """Holds `client`, `client.pub`, `host`, `host.pub`, `known_hosts`, `authorized_keys`."""

    @property
    def url(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"

    @property
    def options(self) -> tuple[str, ...]:
        """For ssh: this server's key and known_hosts, and nothing of the user's own configuration."""
        return self.options_with()

    def options_with(self, key: str = "client", known_hosts: str = "known_hosts") -> tuple[str, ...]:
        known = f"UserKnownHostsFile={self.folder / known_hosts}"
        return ("-F", "none", "-i", str(self.folder / key), "-o", "IdentitiesOnly=yes", "-o", known)

    @property
    def environment(self) -> dict[str, str]:
        """EDGEDA_SSH_OPTIONS for a command that is to reach this server."""
        return {"EDGEDA_SSH_OPTIONS": " ".join(self.options)}

    def leftovers(self) -> list[Path]:
        """What a client left behind there, in the temporary folder or the user's own."""
        return sorted(path for place in ("tmp", "home") for path in (self.folder / place).iterdir())


def skip_reason() -> str | None:
    """Why no sshd can be started here; None when it can."""
    if shutil.which("ssh") is None or not os.access(PROGRAM, os.X_OK):
        return "no ssh or sshd here (Debian: apt install openssh-client openssh-server)"
    if os.geteuid() == 0 and not _PRIVILEGE_FOLDER.is_dir():
        try:
            _PRIVILEGE_FOLDER.mkdir(mode=0o755)
        except OSError:
            return f"sshd as root needs {_PRIVILEGE_FOLDER}, which cannot be made here"
    return None


@contextmanager
def running_sshd(folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[Sshd]:
    """Start sshd with its files in `folder`; sessions get `environment`, TMPDIR and an empty HOME in it.

    Skips the test where there is no sshd.
    """
    if reason := skip_reason():
        pytest.skip(reason)
    (folder / "tmp").mkdir()
    (folder / "home").mkdir(exist_ok=True)
    for name in ("host", "client", "stranger"):
        make_key(folder / name)
    (folder / "authorized_keys").write_bytes((folder / "client.pub").read_bytes())
    variables = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), **(environment or {})}
    settings = folder / "sshd_config"
    port = _free_port()
    settings.write_text(
        "\n".join(
            [
                f"Port {port}",
                "ListenAddress 127.0.0.1",
                f"HostKey {folder / 'host'}",
                f"AuthorizedKeysFile {folder / 'authorized_keys'}",
                f"PidFile {folder / 'pid'}",
                "StrictModes no",
                "UsePAM no",
                "UseDNS no",
                "KexAlgorithms curve25519-sha256",
                "PasswordAuthentication no",
                "KbdInteractiveAuthentication no",
                "PermitRootLogin yes",
                "PrintMotd no",
                "SetEnv " + " ".join(f'"{name}={value}"' for name, value in variables.items()),
            ]
        )
        + "\n"
    )
    known = (folder / "host.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {' '.join(known)}\n")
    log = folder / "sshd.log"
    server = subprocess.Popen([PROGRAM, "-D", "-f", str(settings), "-E", str(log)], start_new_session=True)
    try:
        _wait_until_up(server, port, log)
        yield Sshd(port, folder)
    finally:
        server.terminate()
        server.wait(10)


def make_key(path: Path) -> None:
    """An ed25519 key pair without a passphrase, `path` and `path`.pub."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_up(server: subprocess.Popen[bytes], port: int, log: Path, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            pytest.skip(f"sshd does not start here: {' '.join(log.read_text().split())[-200:]}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"sshd does not listen within {seconds:.0f} s: {log.read_text()}")
