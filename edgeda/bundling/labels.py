"""Class names as lines and lists that other tools read: no delimiter, no line break, no name twice."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 120
"""Bytes of a label in UTF-8; DeepStream keeps 127 of one."""


def safe_labels(classes: Sequence[str]) -> list[str]:
    """A label for each class, in order, none empty and none like another.

    Line breaks, control characters and `;` become spaces, whatever is longer than LONGEST bytes is cut, and a label
    that is taken gets the class's number.
    """
    labels: list[str] = []
    taken: set[str] = set()
    for index, name in enumerate(classes):
        kept = " ".join("".join(c if c.isprintable() and c != ";" else " " for c in name).split())
        label, number = _cut(kept, LONGEST) or f"class {index}", index
        while label in taken:
            label, number = f"{_cut(kept, LONGEST - 24)} ({number})".strip(), number + len(classes)
        taken.add(label)
        labels.append(label)
    return labels


def _cut(text: str, size: int) -> str:
    return text.encode("utf-8", "replace")[:size].decode("utf-8", "ignore").rstrip()
