"""What a `--source` of `predict` means."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from edgeda.data.image_files import IMAGE_SUFFIXES, LIST_SUFFIXES, VIDEO_SUFFIXES, any_folder, image_list
from edgeda.errors import InputError, user_path
from edgeda.runtime import ImageFiles, Source, Stream, VideoFile

STREAM_PREFIXES = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "udp://", "tcp://", "srt://")


def open_sources(text: str, retries: int | None = None) -> list[Source]:
    """What a --source means: a path comes first, then a pattern, an address, a camera index."""
    if text.lower().startswith(STREAM_PREFIXES):
        return [Stream(text, retries)]
    path = user_path(text)
    if path.is_dir():
        images = any_folder(path).paths
        shown = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        videos = [VideoFile(file) for file in shown if file.suffix.lower() in VIDEO_SUFFIXES]
        if not images and not videos:
            raise InputError(f"no images or videos in {path}")
        return [*([ImageFiles(text, images, path)] if images else []), *videos]
    if path.exists():
        return _files([path], text)
    if re.fullmatch(r"[0-9]{1,4}", text):
        return [Stream(text, retries)]
    matched = sorted(Path(name) for name in glob.glob(str(path), recursive=True)) if glob.has_magic(text) else []
    files = [file for file in matched if file.is_file()]
    if not files:
        what = "no file matches" if glob.has_magic(text) else "no such file, folder, address or camera:"
        raise InputError(f"{what} {text}")
    return _files(files, text)


def _files(paths: list[Path], text: str) -> list[Source]:
    """Videos as sources of their own, all other files as images; one list file stands for its images."""
    if len(paths) == 1 and paths[0].suffix.lower() in LIST_SUFFIXES:
        listed = image_list(paths[0], labelled=False).paths
        if not listed:
            raise InputError(f"the list {paths[0]} names no images")
        return [ImageFiles(text, listed, paths[0].parent)]
    videos = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
    others = [path for path in paths if path.suffix.lower() not in VIDEO_SUFFIXES]
    images = others if len(paths) == 1 else [path for path in others if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images and not videos:
        raise InputError(f"no image or video matches {text}")
    return [*([ImageFiles(text, images)] if images else []), *(VideoFile(path) for path in videos)]
