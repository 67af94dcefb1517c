"""Another machine over ssh: a private folder there, files to and fro, commands. No torch, nothing to install there.

Only the system's own `ssh` is used, with keys and without questions; a device needs a POSIX shell and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from edgeda.errors import EdgedaError, InputError, MachineError, from_os_error
from edgeda.whole_file import whole_file

log = logging.getLogger(__name__)

OPTIONS_VARIABLE = "EDGEDA_SSH_OPTIONS"
"""Environment variable with more options for ssh, as in a shell: `-i ~/.ssh/device -F config`."""
CONNECT_S = 15.0
"""Longest wait for a host to answer at all."""
TRANSFER_S = 600.0
"""Longest time for one file."""

_URL = re.compile(
    r"ssh://(?:(?P<user>[A-Za-z_][A-Za-z0-9._-]*)@)?"
    r"(?P<host>[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?/?"
)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_MARK = b"--- edgeda: output starts here ---\n"
"""Printed before anything else, so that what a login script says is not taken for an answer."""
_RUNNING = ".running"
_LOST = 255
"""How ssh itself ends when the connection fails; a command that ends so is reported as 254."""


@dataclass(frozen=True)
class Address:
    """Where a device is: `ssh://user@host[:port]`; without a user, the one of ssh's own configuration."""

    host: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, url: str) -> Address:
        """InputError for anything but `ssh://[user@]host[:port]`."""
        found = _URL.fullmatch(url)
        if found is None:
            raise InputError(
                f"'{url}' is no device; write ssh://user@host or ssh://user@host:port (keys, no passwords)"
            )
        port = None if found["port"] is None else int(found["port"])
        if port is not None and not 1 <= port <= 65535:
            raise InputError(f"'{url}': a port is a number from 1 to 65535")
        return cls(found["host"].strip("[]"), found["user"], port)

    def __str__(self) -> str:
        return self.login + (f":{self.port}" if self.port else "")

    @property
    def login(self) -> str:
        """`user@host`, as ssh takes it."""
        return f"{self.user}@{self.host}" if self.user else self.host

    @property
    def arguments(self) -> list[str]:
        """What names it on ssh's command line; the pattern of the URL lets no option through."""
        return [*(["-p", str(self.port)] if self.port else []), "--", self.login]

    @property
    def known_as(self) -> str:
        """Its name in known_hosts."""
        return f"[{self.host}]:{self.port}" if self.port not in (None, 22) else self.host


@dataclass(frozen=True)
class Remote:
    """A private temporary folder on another machine; make one with `Remote.open`."""

    address: Address
    folder: str = field(repr=False)
    _command: tuple[str, ...] = field(repr=False)

    @classmethod
    @contextlib.contextmanager
    def open(cls, url: str, timeout_s: float = CONNECT_S, ssh_options: Sequence[str] | None = None) -> Iterator[Remote]:
        """A fresh folder on the device at `url`, removed at the end whatever happens.

        `timeout_s` is the longest wait for the connection. `ssh_options` are more options for ssh, such as
        `-i KEY` (default: those of EDGEDA_SSH_OPTIONS); they cannot switch off the check of the host's key.
        Raises InputError for a bad URL or an unknown host name, MachineError when there is no ssh here,
        or the host is down, unknown, refuses the key or has no space.
        """
        address = Address.parse(url)
        remote = cls(address, "", _ssh_command(address, timeout_s, ssh_options))
        made = remote._call('umask 077; mktemp -d "${TMPDIR:-/tmp}/edgeda.XXXXXXXX"', timeout_s + 15, "connecting")
        folder = made.stdout.decode(errors="replace").strip()
        if made.returncode or not folder.startswith("/") or "\n" in folder:
            raise MachineError(f"{address}: no temporary folder could be made there: {remote._reason(made.stderr)}")
        remote = cls(address, folder, remote._command)
        try:
            yield remote
        finally:
            remote._remove(timeout_s + 15)

    def put(self, local: Path, name: str, timeout_s: float = TRANSFER_S) -> None:
        """Copy a file into the folder as `name`. InputError when it cannot be read, MachineError when not written."""
        _check_name(name)
        part = shlex.quote(f"{name}.part")
        script = f"cat > {part} && mv -- {part} {shlex.quote(name)}"
        try:
            with local.open("rb") as stream:
                done = self._call(self._here(script), timeout_s, f"copying {name} there", stdin=stream)
        except OSError as error:
            raise from_os_error(error, "reading what is to be copied to the device") from error
        if done.returncode:
            raise MachineError(f"{self.address}: {name} could not be written there: {self._reason(done.stderr)}")

    def get(self, name: str, local: Path, timeout_s: float = TRANSFER_S) -> None:
        """Copy a file of the folder to `local`, all of it or nothing. MachineError when it is not there."""
        _check_name(name)
        done = self._call(self._here(f"cat -- {shlex.quote(name)}"), timeout_s, f"copying {name} from there")
        if done.returncode:
            raise MachineError(f"{self.address}: {name} could not be read there: {self._reason(done.stderr)}")
        try:
            with whole_file(local) as part:
                part.write_bytes(done.stdout)
        except OSError as error:
            raise from_os_error(error, f"writing {local.name}") from error

    def run(self, argv: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Run a command in the folder, and return how it ended and what it printed, whatever its exit code.

        The words of `argv` arrive as they are: no shell there expands anything in them. Raises MachineError
        when the connection fails or the command takes longer than `timeout_s` (it is ended then).
        """
        script = (
            f"{shlex.join(argv)} </dev/null & echo $! >{_RUNNING}; wait $!; code=$?; rm -f {_RUNNING}; "
            f"if [ $code -eq {_LOST} ]; then code={_LOST - 1}; fi; exit $code"
        )
        done = self._call(self._here(script), timeout_s, f"running {argv[0]} there")
        texts = (done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
        return subprocess.CompletedProcess(list(argv), done.returncode, *texts)

    def _here(self, script: str) -> str:
        return f"cd -- {shlex.quote(self.folder)} || exit 1; {script}"

    def _call(
        self, script: str, timeout_s: float, doing: str, stdin: BinaryIO | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a script in the POSIX shell there; its stdout starts after the mark."""
        marked = f"printf '%s\\n' {shlex.quote(_MARK.decode().strip())}; {script}"
        command = [*self._command, f"exec sh -c {shlex.quote(marked)}"]
        try:
            done = subprocess.run(
                command,
                stdin=stdin or subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
                check=False,
                env={**os.environ, "LC_ALL": "C"},
            )
        except subprocess.TimeoutExpired as error:
            raise MachineError(f"{self.address} did not finish within {timeout_s:.0f} s while {doing}") from error
        except OSError as error:
            raise MachineError(f"ssh cannot be started: {error.strerror}") from error
        if done.returncode == _LOST:
            raise connection_error(self.address, done.stderr.decode(errors="replace"), doing)
        done.stdout = done.stdout.partition(_MARK)[2]
        return done

    def _reason(self, stderr: bytes) -> str:
        text = stderr.decode(errors="replace")
        if "No space left on device" in text or "Disk quota exceeded" in text:
            return "its disk is full; free some space on the device"
        lines = [line for line in text.splitlines() if line.strip()]
        return lines[-1].strip()[:200] if lines else "it gives no reason"

    def _remove(self, timeout_s: float) -> None:
        """End what still runs there, and take the folder away; a failure is told, and hides no other."""
        folder = shlex.quote(self.folder)
        script = f"cd / && if [ -s {folder}/{_RUNNING} ]; then kill $(cat {folder}/{_RUNNING}); fi; rm -rf -- {folder}"
        try:
            done = self._call(script, timeout_s, "cleaning up")
            if done.returncode == 0:
                return
            reason = self._reason(done.stderr)
        except EdgedaError as error:
            reason = str(error)
        log.warning("%s: the temporary folder %s is still there: %s", self.address, self.folder, reason)


def connection_error(address: Address, stderr: str, doing: str) -> EdgedaError:
    """What ssh's own failure means, in one line that says what to do."""
    port = f"-p {address.port} " if address.port else ""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in stderr:
        return MachineError(
            f"{address} shows another host key than before: somebody may be listening; if the device was really set "
            f"up anew, run: ssh-keygen -R '{address.known_as}', then: ssh {port}{address.login}"
        )
    if "host key is known" in stderr or "Host key verification failed" in stderr:
        return MachineError(
            f"the host key of {address} is not known here; check and accept it once with: ssh {port}{address.login}"
        )
    if "Permission denied" in stderr or "Too many authentication failures" in stderr:
        return MachineError(
            f"{address} accepts no key of yours; give it one with: ssh-copy-id {port}{address.login} "
            f"(or name yours in ~/.ssh/config or {OPTIONS_VARIABLE})"
        )
    if "Could not resolve hostname" in stderr:
        return InputError(f"no host named '{address.host}' is known; check the name in --device")
    down = ("Connection refused", "timed out", "No route to host", "Network is unreachable", "Host is down")
    if reason := next((reason for reason in down if reason in stderr), None):
        return MachineError(f"{address} cannot be reached ({reason}); is it on, and does sshd listen there?")
    return MachineError(
        f"the connection to {address} failed while {doing}: {lines[-1][:200] if lines else 'no reason'}"
    )


def _ssh_command(address: Address, timeout_s: float, ssh_options: Sequence[str] | None) -> tuple[str, ...]:
    if shutil.which("ssh") is None:
        raise MachineError("no ssh client here; install one (Debian: apt install openssh-client)")
    if ssh_options is None:
        try:
            ssh_options = shlex.split(os.environ.get(OPTIONS_VARIABLE, ""))
        except ValueError as error:
            raise InputError(f"{OPTIONS_VARIABLE} cannot be read: {error}") from error
    seconds = max(1, round(min(timeout_s, CONNECT_S)))
    settings = {  # ssh keeps the first value it sees: these cannot be loosened by what follows
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "ConnectTimeout": str(seconds),
        "ConnectionAttempts": "1",
        "ServerAliveInterval": "15",
        "ServerAliveCountMax": "3",
        "ClearAllForwardings": "yes",
        "ForwardAgent": "no",
        "LogLevel": "ERROR",
    }
    fixed = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
    return ("ssh", "-T", *fixed, *ssh_options, *address.arguments)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"not a plain file name: {name!r}")
