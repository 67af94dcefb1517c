"""Plots as inline SVG: 360 units wide, coloured by CSS variables, told apart by shape and dash as well as by colour.

Every function returns one `<svg>` with a title and a description for screen readers. Colours and dashes belong to
the classes `s0` to `s4` of the page's style sheet. All text is escaped here.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH = 360.0
STYLES = 5
"""How many series have a look of their own."""
Point = tuple[float, float]


def escape(text: object) -> str:
    """Text as HTML shows it, whatever is in it; control characters that HTML forbids are shown as U+FFFD."""
    safe = "".join(char if char in "\t\n" or char.isprintable() or char == " " else "\N{REPLACEMENT CHARACTER}"
                   for char in str(text))  # fmt: skip
    return html.escape(safe)


def shorten(text: str, most: int) -> str:
    """At most `most` characters, the last an ellipsis where some are gone."""
    return text if len(text) <= most else text[: max(most - 1, 1)] + "…"


@dataclass(frozen=True)
class Axis:
    """From data to units of the drawing, with round ticks."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    whole: bool = False
    """Ticks at whole numbers only."""

    def at(self, value: float) -> float:
        """Where a value lies."""
        low, high, value = (math.log10(v) for v in (self.low, self.high, value)) if self.log else (
            self.low, self.high, value)  # fmt: skip
        return self.start + (value - low) / ((high - low) or 1.0) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Two to eight round values within the axis."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [base * 10.0**power for power in powers for base in (1, 2, 5)]
            inside = [value for value in found if self.low <= value <= self.high]
            return inside if len(inside) <= 8 else [v for v in inside if math.log10(v) % 1 < 1e-9] or inside[::3]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= next(f for f in (1, 2, 5, 10) if (self.high - self.low) / (f * step) <= 5.5)
        step = max(step, 1.0) if self.whole else step
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def axis(
    values: Sequence[float], start: float, end: float, *, zero: bool = False, log: bool = False, whole: bool = False
) -> Axis:
    """An axis around finite `values` with a little room; from 0 on where `zero`."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if log and low > 0:
        return Axis(low / 1.25, high * 1.25, start, end, log=True)
    if zero:
        low = min(low, 0.0)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
        low = max(low, 0.0) if zero else low
    room = 0.05 * (high - low)
    return Axis(low if zero and low >= 0 else low - room, high + room, start, end, whole=whole)


def number(value: float) -> str:
    """A tick's text."""
    if value == 0 or abs(value) < 1e-12:
        return "0"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def svg(title: str, description: str, height: float, body: Sequence[str]) -> str:
    """The drawing around its marks."""
    return (
        f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(f"{title}. {description}")}">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(body)}</svg>"
    )


def text(x: float, y: float, content: object, anchor: str = "start", kind: str = "") -> str:
    """Words at a place; `kind` is a class of the style sheet."""
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(content)}</text>'


def marker(x: float, y: float, series: int, size: float = 3.2, hint: str = "") -> str:
    """A series' sign: circle, triangle, square, diamond, cross. `hint` is its tooltip."""
    look, tip = f"m s{series % STYLES}", f"<title>{escape(hint)}</title>" if hint else ""
    shapes = (
        f'<circle class="{look}" cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}">{tip}</circle>',
        _polygon(look, tip, (x, y - size * 1.2), (x + size * 1.1, y + size * 0.8), (x - size * 1.1, y + size * 0.8)),
        _polygon(look, tip, (x - size, y - size), (x + size, y - size), (x + size, y + size), (x - size, y + size)),
        _polygon(look, tip, (x, y - size * 1.3), (x + size * 1.3, y), (x, y + size * 1.3), (x - size * 1.3, y)),
        f'<path class="{look}" d="M{x - size:.1f} {y:.1f}h{2 * size:.1f}M{x:.1f} {y - size:.1f}v{2 * size:.1f}">{tip}'
        "</path>",
    )
    return shapes[series % STYLES]


def _polygon(look: str, tip: str, *corners: Point) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    return f'<polygon class="{look}" points="{points}">{tip}</polygon>'


def frame(horizontal: Axis, vertical: Axis, x_label: str, y_label: str) -> list[str]:
    """Grid lines, tick texts and the names of both axes; the name of the vertical one stands above it."""
    parts = [text(4, vertical.end - 10, y_label, kind="name")] if y_label else []
    for value in vertical.ticks():
        y = vertical.at(value)
        parts.append(f'<path class="grid" d="M{horizontal.start:.1f} {y:.1f}H{horizontal.end:.1f}"/>')
        parts.append(text(horizontal.start - 5, y + 3.5, number(value), "end"))
    for value in horizontal.ticks():
        x = horizontal.at(value)
        parts.append(f'<path class="grid" d="M{x:.1f} {vertical.start:.1f}v4"/>')
        parts.append(text(x, vertical.start + 16, number(value), "middle"))
    parts.append(f'<path class="axis" d="M{horizontal.start:.1f} {vertical.start:.1f}H{horizontal.end:.1f}"/>')
    if x_label:
        parts.append(text((horizontal.start + horizontal.end) / 2, vertical.start + 32, x_label, "middle", "name"))
    return parts


def lines(
    title: str, description: str, series: Mapping[str, Sequence[Point]], x_label: str, y_label: str, zero: bool = True
) -> str:
    """Curves with a mark at each point; a legend goes beside them. What is not finite is left out."""
    series = {
        name: [(x, y) for x, y in values if math.isfinite(x) and math.isfinite(y)] for name, values in series.items()
    }
    points = [point for values in series.values() for point in values]
    horizontal = axis([x for x, _ in points], 42, 350, whole="epoch" in x_label)
    vertical = axis([y for _, y in points], 190, 28, zero=zero)
    body = frame(horizontal, vertical, x_label, y_label)
    for index, (name, values) in enumerate(series.items()):
        places = [(horizontal.at(x), vertical.at(y)) for x, y in values]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        body.append(f'<path class="l s{index % STYLES}" d="M{path}"/>' if places else "")
        if len(places) <= 60:
            body += [
                marker(x, y, index, 2.8, f"{name}: {number(given[1])} at {number(given[0])}")
                for (x, y), given in zip(places, values, strict=True)
            ]
    return svg(title, description, 232, body)


def scatter(title: str, description: str, groups: Mapping[str, Sequence[Point]]) -> str:
    """Clouds of points on axes without a scale, as of an embedding."""
    points = [point for values in groups.values() for point in values]
    horizontal, vertical = axis([x for x, _ in points], 8, 352), axis([y for _, y in points], 232, 8)
    body = ['<rect class="box" x="1" y="1" width="358" height="238" rx="6"/>']
    for index, values in enumerate(groups.values()):
        body += [marker(horizontal.at(x), vertical.at(y), index, 2.4) for x, y in values]
    return svg(title, description, 240, body)


def bars(
    title: str,
    description: str,
    rows: Sequence[tuple[str, Sequence[float | None]]],
    unit: str,
    top: float | None = None,
) -> str:
    """Horizontal bars, one a series and row, each with its value at the end; None is drawn as `not known`."""
    count = max((len(values) for _, values in rows), default=1)
    thick, gap = (11, 8) if count > 1 else (14, 5)
    known = [value for _, values in rows for value in values if value is not None]
    longest = min(max((len(label) for label, _ in rows), default=1), 18)
    start = 14 + 6.2 * longest
    scale = Axis(0.0, top or max(known, default=1.0) or 1.0, start, 312)
    body, y = [], 4.0
    for label, values in rows:
        height = thick * len(values)
        body.append(text(start - 6, y + height / 2 + 4, shorten(label, 18), "end"))
        for index, value in enumerate(values):
            at = y + index * thick
            if value is None:
                body.append(text(start + 3, at + thick - 2, "not known", kind="dim"))
                continue
            width = max(scale.at(value) - start, 0.8)
            tip = f"<title>{escape(label)}: {value:.4g} {escape(unit)}</title>"
            place = f'x="{start:.1f}" y="{at:.1f}" width="{width:.1f}" height="{thick - 2}"'
            body.append(f'<rect class="b s{index}" {place}>{tip}</rect>')
            body.append(text(start + width + 4, at + thick - 2.5, f"{value:.3g}", kind="value"))
        y += height + gap
    return svg(title, description, y + 2, body)


def histogram(title: str, description: str, values: Sequence[float], x_label: str, marks: Mapping[str, float]) -> str:
    """How often which value was seen, up to twice the 99th percentile; `marks` are vertical lines with a name."""
    ordered = sorted(values)
    low, high = ordered[0], min(ordered[-1], 2 * max(marks.values(), default=ordered[-1]))
    bins = max(8, min(40, int(math.sqrt(len(ordered)))))
    width = (high - low) / bins or 1.0
    counts = [0] * bins
    for value in ordered:
        if value <= high:
            counts[min(int((value - low) / width), bins - 1)] += 1
    horizontal = Axis(low, low + bins * width, 42, 350)
    top = 24 + 13.0 * len(marks)
    vertical = axis([0, *counts], 190, top, zero=True)
    body = frame(horizontal, vertical, x_label, "calls")
    for index, seen in enumerate(counts):
        if seen:
            x, y = horizontal.at(low + index * width), vertical.at(seen)
            body.append(f'<rect class="b s0" x="{x:.1f}" y="{y:.1f}" width="{max(308 / bins - 1, 0.8):.1f}" '
                        f'height="{190 - y:.1f}"/>')  # fmt: skip
    for row, (name, value) in enumerate(marks.items()):
        x = horizontal.at(value)
        left = x > 240
        body.append(f'<path class="mark" d="M{x:.1f} 190V{6 + 13 * row}"/>')
        label = text(x + (-4 if left else 4), 14 + 13 * row, f"{name} {value:.3g}", "end" if left else "start", "value")
        body.append(label)
    return svg(title, description, 232, body)


def matrix(title: str, description: str, labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """A confusion matrix, a row for each true class: shares of the row as shade, counts as numbers where they fit."""
    size = len(labels)
    longest = min(max(map(len, labels), default=1), 10)
    start = 10 + 6.2 * longest if size <= 40 else 8.0
    cell = (WIDTH - start - 4) / size
    body = []
    for row, (label, line) in enumerate(zip(labels, counts, strict=True)):
        total, y = sum(line) or 1, 18 + row * cell
        if size <= 40:
            body.append(text(start - 5, y + cell / 2 + 3.5, shorten(label, 10), "end"))
        for column, seen in enumerate(line):
            share, x = seen / total, start + column * cell
            kind = "hit" if row == column else "miss"
            if seen:
                body.append(f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{cell - 1:.2f}" '
                            f'height="{cell - 1:.2f}" fill-opacity="{0.12 + 0.88 * share:.2f}"><title>'
                            f"{escape(label)} taken for {escape(labels[column])}: {seen}</title></rect>")  # fmt: skip
            if size <= 14 and seen:
                kind = "onfull" if share > 0.45 else "onlight"
                body.append(text(x + cell / 2 - 0.5, y + cell / 2 + 3.5, seen, "middle", kind))
    height = 18 + size * cell
    body.append(text(start, 11, "predicted, in the same order →", kind="name"))
    body.append(f'<rect class="box" x="{start:.1f}" y="18" width="{size * cell:.1f}" height="{size * cell:.1f}"/>')
    return svg(title, description, height + 4, body)


def pareto(
    title: str, description: str, points: Sequence[tuple[str, float, float, bool, int]], budget: float | None = None
) -> str:
    """Latency (ms, logarithmic) against accuracy (%). A point is name, ms, percent, whether on the front, series.

    Points are numbered as in the table beside them; those on the front are joined by a line and ringed.
    """
    horizontal = axis([point[1] for point in points] + ([budget] if budget else []), 42, 350, log=True)
    vertical = axis([point[2] for point in points], 190, 28)
    body = frame(horizontal, vertical, "median latency of one image, ms", "right on the target, %")
    best = sorted((point[1], point[2]) for point in points if point[3])
    if best:
        steps = [f"M{horizontal.at(best[0][0]):.1f} {vertical.at(best[0][1]):.1f}"]
        steps += [f"H{horizontal.at(ms):.1f}V{vertical.at(percent):.1f}" for ms, percent in best[1:]]
        body.append(f'<path class="front" d="{"".join(steps)}H350"/>')
    if budget:
        x = horizontal.at(budget)
        body += [f'<path class="mark" d="M{x:.1f} 190V28"/>', text(x - 4, 185, f"budget {budget:.3g} ms", "end")]
    taken: list[Point] = []
    for number_, (name, ms, percent, on_front, series) in enumerate(points, 1):
        x, y = horizontal.at(ms), vertical.at(percent)
        if on_front:
            body.append(f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="7"/>')
        body.append(marker(x, y, series, 3.6, f"{number_}. {name}: {ms:.3g} ms, {percent:.1f} %"))
        right = x < 335
        place = (x + (9 if right else -9), y - 5)
        while any(abs(place[0] - other[0]) < 12 and abs(place[1] - other[1]) < 10 for other in taken):
            place = (place[0], place[1] + 10)
        taken.append(place)
        body.append(text(*place, number_, "start" if right else "end", "value"))
    return svg(title, description, 232, body)
