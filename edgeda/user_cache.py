"""Where this user keeps what can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`edgeda` below $EDGEDA_CACHE, $XDG_CACHE_HOME or ~/.cache; it need not exist."""
    base = os.environ.get("EDGEDA_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "edgeda"
