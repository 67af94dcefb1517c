"""From an image to the tensor the network was trained on: the only place that defines it.

Training, evaluation, export checks and the deployed runtime all call `square_pixels`, so a camera
sees the same pixels as the training set did. Two geometries:

    squash   the whole image, resized to `size` x `size`; proportions change, nothing is cut off
    crop     the shorter side resized to round(size / crop_pct), the central square of that, then
             the central `size` x `size` (the usual ImageNet evaluation)
"""

from __future__ import annotations

import math
import stat
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from edgeda.errors import InputError, did_you_mean

Pixels = NDArray[np.uint8]

MOST_PIXELS = 89_478_485
"""Larger images are refused before they are decoded (Pillow warns from here on)."""
# Pillow's own warning at that size would reach stderr beside our refusal.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000")
"""What Pillow may take a file for. It knows others that start programs (EPS: Ghostscript) or that nobody has tried."""
MOST_SIDE = 1024
"""Largest input of a network, in pixels; a recipe takes no more either."""
RESIZE_MODES = ("crop", "squash")
_KINDS_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")


@dataclass(frozen=True)
class Preprocessing:
    """Geometry and normalization of a network's input.

    `mean` and `std` are per RGB channel on pixels scaled to [0, 1]. The network's input is
    float32 NCHW, `(pixel / 255 - mean) / std`.
    """

    size: int
    resize: str = "crop"
    crop_pct: float = 0.875
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @property
    def stored_size(self) -> int:
        """Side of the square kept before the final central crop."""
        return self.size if self.resize == "squash" else max(self.size, round(self.size / self.crop_pct))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = asdict(self)
        return {**values, "mean": list(self.mean), "std": list(self.std), "channels": "RGB"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`; raises InputError when a value is missing or absurd."""
        try:
            mean = tuple(float(v) for v in values["mean"])
            std = tuple(float(v) for v in values["std"])
            made = cls(int(values["size"]), str(values["resize"]), float(values["crop_pct"]), mean, std)  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"the model's preprocessing cannot be read: {error!r:.200}") from error
        if made.resize not in RESIZE_MODES or not 1 <= made.size <= MOST_SIDE or not 0.1 <= made.crop_pct <= 1:
            raise InputError(f"the model's preprocessing is not one edgeda knows: {dict(values)!r:.200}")
        if len(made.mean) != 3 or len(made.std) != 3 or not np.isfinite([*made.mean, *made.std]).all():
            raise InputError("the model's preprocessing needs three finite means and standard deviations")
        if min(made.std) <= 0:
            raise InputError("the model's preprocessing needs positive standard deviations")
        return made


def open_image(path: Path) -> Image.Image:
    """A whole decoded image file, turned upright by its EXIF orientation.

    Raises InputError for what is missing, empty, truncated, absurdly large or not an image.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"cannot read image {path}: not a regular file")
        with Image.open(path, formats=FORMATS) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise InputError(f"cannot read image {path}: {opened.width} x {opened.height} pixels are too many")
            opened.load()
            return upright(opened, str(path))
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"no such image: {path}") from error
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        reason = "empty file" if path.is_file() and path.stat().st_size == 0 else " ".join(str(error).split())[:120]
        raise InputError(f"cannot read image {path}: {reason}") from error
    except Exception as error:
        raise InputError(f"cannot read image {path}: {type(error).__name__}: {error}") from error


def upright(image: Image.Image, name: str) -> Image.Image:
    """A decoded image turned by its EXIF orientation; InputError for float pixels, whose range nobody knows."""
    if image.mode == "F":
        raise InputError(f"cannot read image {name}: its pixels are floating-point numbers; convert it to 8 or 16 bits")
    return ImageOps.exif_transpose(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as 8-bit RGB: 16-bit greys are scaled (not clipped), transparency lies on black."""
    if image.mode in _KINDS_16_BIT:
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((np.clip(wide, 0, 65535) // 257).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        backdrop = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(backdrop, image)
    return image if image.mode == "RGB" else image.convert("RGB")


CHANNELS = ("rgb", "bgr")
"""Orders of colours in an array."""


def checked_channels(channels: str) -> str:
    """`rgb` or `bgr`; InputError for anything else."""
    if channels not in CHANNELS:
        raise InputError(f"no order of channels '{channels}'{did_you_mean(channels, CHANNELS)}")
    return channels


def square_pixels(image: Image.Image | Pixels, preprocessing: Preprocessing, channels: str = "rgb") -> Pixels:
    """The stored square of an image: uint8 RGB `(S, S, 3)` with S = `preprocessing.stored_size`.

    An array is uint8 `(H, W, 3)` in the order `channels`, `(H, W, 4)` with alpha, or grey `(H, W)`.
    """
    side = preprocessing.stored_size
    width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
    box: tuple[float, float, float, float] = (0, 0, width, height)
    if preprocessing.resize == "crop":
        short = min(width, height)
        left, top = (width - short) / 2, (height - short) / 2
        reach = max(1, math.ceil(short / side)) + 1  # of the filter, beyond the square
        x, y = max(0, int(left) - reach), max(0, int(top) - reach)
        image = part(image, (x, y, width - x, height - y))
        box = (left - x, top - y, left - x + short, top - y + short)
    picture = to_rgb(image if isinstance(image, Image.Image) else from_array(image))
    if picture.size != (side, side) or box != (0, 0, side, side):
        picture = picture.resize((side, side), Image.Resampling.BILINEAR, box=box)
    square = np.asarray(picture, dtype=np.uint8)
    # Each channel is resized by itself, so turning the small square round gives the pixels of turning the large frame.
    return square[..., ::-1] if channels == "bgr" and isinstance(image, np.ndarray) else square


def part(image: Image.Image | Pixels, corners: tuple[int, int, int, int]) -> Image.Image | Pixels:
    """What lies within the corners left, top, right, bottom of an image: a view of an array, a copy of a picture."""
    left, top, right, bottom = corners
    if not isinstance(image, Image.Image):
        return image[top:bottom, left:right]
    return image if (0, 0, *image.size) == corners else image.crop(corners)


def from_array(pixels: Pixels) -> Image.Image:
    """`Image.fromarray`, which copies what is no whole array a second time: here a part of a frame is read in place."""
    height, width, *planes = pixels.shape
    row, *within = pixels.strides
    if planes != [3] or within != [3, 1] or row < 3 * width:
        return Image.fromarray(pixels)
    memory = np.lib.stride_tricks.as_strided(pixels, ((height - 1) * row + 3 * width,), (1,), writeable=False)
    return Image.frombuffer("RGB", (width, height), memory, "raw", "RGB", row, 1)


def central_crop(squares: Pixels, preprocessing: Preprocessing) -> Pixels:
    """The central `size` x `size` of stored squares `(..., S, S, 3)`."""
    offset = (preprocessing.stored_size - preprocessing.size) // 2
    stop = offset + preprocessing.size
    return squares[..., offset:stop, offset:stop, :]


def normalize(images: Pixels, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Images uint8 `(B, size, size, 3)` to the network's float32 input `(B, 3, size, size)`."""
    scale = (1.0 / (255.0 * np.asarray(preprocessing.std, np.float32))).astype(np.float32)
    shift = np.asarray(preprocessing.mean, np.float32) / np.asarray(preprocessing.std, np.float32)
    count, height, width, channels = images.shape
    batch = np.empty((count, channels, height, width), np.float32)
    for channel in range(channels):  # a plane at a time: several times faster than broadcasting along the last axis
        plane = batch[:, channel]
        np.multiply(images[..., channel], scale[channel], out=plane, dtype=np.float32)
        plane -= shift[channel]
    return batch


def network_input(squares: Pixels, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Stored squares uint8 `(B, S, S, 3)` to the float32 input `(B, 3, size, size)`."""
    return normalize(central_crop(squares, preprocessing), preprocessing)


def model_input(squares: Pixels, preprocessing: Preprocessing, layout: str) -> NDArray[Any]:
    """Stored squares uint8 `(B, S, S, 3)` to what a model of this `Manifest.layout` takes: float32 or raw pixels."""
    kind, order = layout.split()[:2]
    if kind == "float32":
        return network_input(squares, preprocessing)
    cropped = central_crop(squares, preprocessing)
    return np.ascontiguousarray(cropped if order == "NHWC" else cropped.transpose(0, 3, 1, 2))
