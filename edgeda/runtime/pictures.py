"""What may be given as one image, and what is said of anything else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from edgeda.errors import InputError
from edgeda.runtime.preprocessing import Pixels, open_image, upright

Picture = Pixels | Image.Image | str | Path
"""One image: an array of uint8 pixels of any size, a Pillow image, or the path of an image file."""


def decoded(picture: object, index: int, channels: str = "rgb") -> Image.Image | Pixels:
    """A Pillow image, turned upright, or an array uint8 `(H, W, 3)`, `(H, W, 4)` or `(H, W)`.

    Raises InputError, which names the picture by `index` or path, for any other array or object.
    """
    if isinstance(picture, (str, Path)):
        return open_image(Path(picture))
    if isinstance(picture, Image.Image):
        return upright(picture, str(index))
    if not isinstance(picture, np.ndarray):
        raise InputError(f"image {index} is a {type(picture).__name__}; give a numpy array, a Pillow image or a path")
    shape = picture.shape
    if picture.dtype == np.uint8 and picture.size:
        if len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4)):
            return picture
        if len(shape) == 3 and shape[2] == 1:
            return picture[..., 0]
    advice = ""
    if not picture.size:
        advice = "; it has no pixels"
    elif picture.dtype == np.uint16:
        advice = "; scale 16-bit pixels to 8 bits first (pixels // 257 where all 16 bits are used)"
    elif len(shape) == 4:
        advice = "; give several as a list"
    expected = f"uint8 {channels.upper()} (H, W, 3), (H, W, 4) with alpha or grey (H, W)"
    raise InputError(f"image {index} must be {expected}, got {picture.dtype} {shape}{advice}")
