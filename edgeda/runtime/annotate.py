"""The label on a frame: a strip of text drawn once for each text, pasted into the top left corner."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edgeda.runtime.preprocessing import Pixels


def annotated(frame: Pixels, text: str) -> Pixels:
    """A copy of a frame uint8 `(H, W, 3)` with white text on black in its top left corner, cut off where it ends."""
    height, width = frame.shape[:2]
    strip = text_strip(text, max(12, min(height, width) // 24))[:height, :width]
    copy = frame.copy()
    copy[: strip.shape[0], : strip.shape[1]] = strip[..., None]
    return copy


@lru_cache(maxsize=256)
def text_strip(text: str, size: int) -> Pixels:
    """Grey pixels `(h, w)` of one line of text, letters about `size` pixels high; `?` for what is not Latin-1."""
    text = text.encode("latin-1", "replace").decode("latin-1")  # all that Pillow's built-in font of every version has
    font = ImageFont.load_default()
    left, top, right, bottom = font.getbbox(text)
    small = Image.new("L", (max(1, int(right - left)) + 4, max(1, int(bottom - top)) + 4), 0)
    ImageDraw.Draw(small).text((2 - left, 2 - top), text, fill=255, font=font)
    factor = max(1, round(size / 12))
    return np.asarray(small.resize((small.width * factor, small.height * factor), Image.Resampling.NEAREST), np.uint8)
