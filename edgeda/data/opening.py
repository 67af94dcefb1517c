"""What a user names, as a domain: a built-in name, a folder, an image list or a video."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from edgeda.data.builtin import BUILTIN
from edgeda.data.domains import Domain
from edgeda.data.image_files import LIST_SUFFIXES, VIDEO_SUFFIXES, any_folder, class_folders, image_list
from edgeda.data.video import VideoDomain
from edgeda.errors import InputError, did_you_mean, from_os_error, user_path
from edgeda.recipe import VideoRecipe

Reader = Callable[[Path], Domain]


def open_labelled(spec: str) -> Domain:
    """A domain with labels: class folders, an image list with labels, or a built-in name."""
    return _open(
        spec, class_folders, {LIST_SUFFIXES: partial(image_list, labelled=True)},
        other="cannot be labelled images; give a folder of class folders or an image list",
        empty=f"expected {spec}/<class name>/<image>.jpg or .png",
    )  # fmt: skip


def open_unlabelled(spec: str, video: VideoRecipe) -> Domain:
    """A domain whose labels are never read: any folder, an image list, a video file, or a built-in name."""
    listed = partial(image_list, labelled=False)
    domain = _open(
        spec, any_folder, {LIST_SUFFIXES: listed, VIDEO_SUFFIXES: lambda path: VideoDomain(path, video)},
        other="is not a folder, an image list (.txt) or a video that edgeda knows",
        empty="the target needs unlabelled images (.jpg, .png, ...) at any depth",
    )  # fmt: skip
    domain.labels = domain.classes = None
    return domain


def _open(spec: str, folder: Reader, files: Mapping[frozenset[str], Reader], other: str, empty: str) -> Domain:
    """A built-in name, a folder, or a file by its suffix; InputError for anything `other`, and for one without images.

    What the disk says while images are looked for is said of where they are looked for.
    """
    try:
        domain = _builtin(spec)
        if domain is None:
            path = _existing(spec)
            suffix = path.suffix.lower()
            by_name = (read for suffixes, read in files.items() if suffix in suffixes)
            read = folder if path.is_dir() else next(by_name, None)
            if read is None:
                raise InputError(f"{spec} {other}")
            domain = read(path)
    except OSError as error:
        raise from_os_error(error, f"reading {spec}") from error
    if len(domain) == 0:
        first = f"; passed over: {domain.ignored[0]}" if domain.ignored else ""
        raise InputError(f"no images in {spec}: {empty}{first}")
    return domain


def _builtin(spec: str) -> Domain | None:
    name, _, argument = spec.removeprefix("builtin:").partition(":")
    if name not in BUILTIN or (not spec.startswith("builtin:") and Path(spec).exists()):
        if spec.startswith("builtin:"):
            raise InputError(f"no built-in domain '{name}'{did_you_mean(name, BUILTIN)}")
        return None
    return BUILTIN[name](argument)


def _existing(spec: str) -> Path:
    path = user_path(spec)
    if not path.exists():
        hint = did_you_mean(spec, BUILTIN).split("; known")[0]
        raise InputError(f"no such folder or file: {spec}{hint}")
    return path
