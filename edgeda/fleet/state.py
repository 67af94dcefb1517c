"""What is known of each camera, as small JSON objects on a path or any storage that fsspec knows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edgeda.benchmark_recipe import folder_name
from edgeda.errors import InputError, from_os_error, one_line, require, user_path
from edgeda.whole_file import write_text

Record = dict[str, Any]

FLEET = "fleet"
AT_ONCE = 32
"""Objects read at once: an object store takes tens of milliseconds for each, whatever its size."""


class Storage:
    """Named JSON objects below a place: a folder, `file://...` or another fsspec URL such as `s3://bucket/site`.

    A reader sees a whole object or the one before it: in a folder by renaming, elsewhere by the storage's own put.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self._system: Any = None
        if "://" not in place or place.startswith("file://"):
            self._folder = user_path(place.removeprefix("file://")).absolute()
            self.place = str(self._folder)
            return
        fsspec = require("fsspec", "ray", f"the state in {place}")
        try:
            self._system, self._root = fsspec.core.url_to_fs(place)
        except (ValueError, ImportError) as error:
            raise InputError(f"the state cannot be kept in {place}: {one_line(error)}") from error

    def write(self, name: str, record: Record) -> None:
        """Replace an object whole."""
        text = json.dumps(record, indent=1, allow_nan=False)
        try:
            if self._system is not None:
                self._system.pipe_file(f"{self._root}/{name}.json", text.encode())
                return
            path = self._folder / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text, shared=True)
        except OSError as error:
            raise from_os_error(error, f"keeping the state in {self.place}") from error

    def read(self, name: str) -> Record | None:
        """An object, or None where there is none; InputError for one that is damaged."""
        try:
            if self._system is not None:
                text = self._system.cat_file(f"{self._root}/{name}.json").decode()
            else:
                text = (self._folder / f"{name}.json").read_text(encoding="utf-8")
            found = json.loads(text)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise from_os_error(error, f"reading the state in {self.place}") from error
        except ValueError as error:
            raise InputError(f"the state {self.place}/{name}.json is damaged: {one_line(error)}") from error
        if not isinstance(found, dict):
            raise InputError(f"the state {self.place}/{name}.json is damaged: not a JSON object")
        return found

    def read_many(self, names: Iterable[str]) -> list[Record | None]:
        """`read` of each, several at once."""
        with ThreadPoolExecutor(AT_ONCE, "state") as pool:
            return list(pool.map(self.read, names))


def default_place(out: Path) -> str:
    """Where the state of a fleet is when nothing else is said."""
    return str(out / "state")


def camera_key(name: str) -> str:
    """Where the state of a camera is kept, and its run."""
    return f"cameras/{folder_name(name)}"
