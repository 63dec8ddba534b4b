"""Small charts as SVG text, which takes its colours from the page; all text in them is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite

import numpy as np

_LEFT, _TOP, _BOTTOM = 34, 22, 30
"""Room for the numbers of the axes, in units of the drawing."""


def interval_bar(value: float, low: float, high: float, chance: float) -> str:
    """A rate in [0, 1] as a dot on a line, with its interval and a mark at chance."""
    width, height = 160, 18
    bounds = [x if isfinite(x) else value for x in (low, high)]
    ends = f'x1="{bounds[0] * width:.1f}" x2="{bounds[1] * width:.1f}"'
    return (
        f'<svg class="interval" viewBox="0 0 {width} {height}" width="{width}" height="{height}" aria-hidden="true">'
        f'<line class="grid" x1="0" x2="{width}" y1="9" y2="9"/>'
        f'<line class="chance" x1="{chance * width:.1f}" x2="{chance * width:.1f}" y1="3" y2="15"/>'
        f'<line class="range" {ends} y1="9" y2="9"/>'
        f'<circle class="dot" cx="{value * width:.1f}" cy="9" r="4.5"/></svg>'
    )


def reliability(clips: np.ndarray, confidence: np.ndarray, accuracy: np.ndarray, title: str) -> str:
    """Accuracy against confidence by bins (I,), areas by the number of clips."""
    size = 190
    parts = [_frame(size, size, (0, 1), (0, 1), "confidence", "accuracy", percent=True)]
    parts.append(f'<line class="ideal" x1="{_LEFT}" y1="{_TOP + size}" x2="{_LEFT + size}" y2="{_TOP}"/>')
    most = max(int(clips.max()), 1)
    points = [
        (_LEFT + float(x) * size, _TOP + size - float(y) * size, int(n))
        for n, x, y in zip(clips, confidence, accuracy, strict=True)
        if n
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
    parts.append(f'<polyline class="line c0" points="{path}"/>')
    for x, y, n in points:
        radius = 2.5 + 6.5 * (n / most) ** 0.5
        parts.append(
            f'<circle class="fill c0" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{n} clips</title></circle>'
        )
    return _svg(size + _LEFT + 10, size + _TOP + _BOTTOM, parts, title)


def histogram(groups: Mapping[str, np.ndarray], label: str, title: str, bins: int = 24) -> str:
    """How values (V,) of up to two groups are distributed, one on top of the other."""
    width, height = 270, 120
    values = {name: one[np.isfinite(one)] for name, one in groups.items()}
    together = np.concatenate([*values.values(), np.zeros(0)])
    top = float(together.max()) if len(together) and together.max() > 0 else 1.0
    counts = {name: np.histogram(one, bins, (0, top))[0] for name, one in values.items()}
    most = max(2, int(sum(counts.values(), np.zeros(bins, int)).max()))
    most += most % 2  # half of it is a number on the axis
    parts = [_frame(width, height, (0, top), (0, most), label, "clips")]
    base = np.zeros(bins)
    colours = _GROUPS if len(groups) > 1 else (0,)
    for number, count in enumerate(counts.values()):
        for place, n in enumerate(count):
            if n:
                x, tall = _LEFT + place * width / bins, n * height / most
                y = _TOP + height - (base[place] + n) * height / most
                parts.append(
                    f'<rect class="fill c{colours[number]}" x="{x + 0.5:.1f}" y="{y:.1f}" '
                    f'width="{width / bins - 1:.1f}" height="{tall:.1f}"/>'
                )
        base += count
    return _svg(width + _LEFT + 10, height + _TOP + _BOTTOM, parts, title)


_GROUPS = (2, 1)
"""Colours of right and wrong."""


def lines(series: Mapping[str, Sequence[float]], title: str) -> str:
    """Values by epoch, from 1."""
    width, height = 270, 150
    known = [value for one in series.values() for value in one if isfinite(value)]
    low, high = (min(0.0, *known), max(known)) if known else (0.0, 1.0)
    high = high if high > low else low + 1
    longest = max((len(one) for one in series.values()), default=1)
    parts = [_frame(width, height, (1, max(longest, 2)), (low, high), "epoch", "value")]
    for number, values in enumerate(series.values()):
        points = [
            f"{_LEFT + n * width / max(longest - 1, 1):.1f},{_TOP + height - (v - low) * height / (high - low):.1f}"
            for n, v in enumerate(values)
            if isfinite(v)
        ]
        parts.append(f'<polyline class="line c{number}" points="{" ".join(points)}"/>')
    return _svg(width + _LEFT + 10, height + _TOP + _BOTTOM, parts, title)


def grouped_bars(groups: Sequence[str], series: Mapping[str, Sequence[float]], title: str) -> str:
    """Shares in [0, 1] as bars, one of each series for every group."""
    width, height = max(270, 12 * len(series) * len(groups)), 150
    top = max(0.05, *(value for one in series.values() for value in one if isfinite(value)))
    parts = [_frame(width, height, None, (0, top), "", "share", percent=True)]
    room = width / len(groups)
    bar = room * 0.8 / len(series)
    for place, group in enumerate(groups):
        start = _LEFT + place * room
        for number, values in enumerate(series.values()):
            if isfinite(values[place]):
                tall = values[place] * height / top
                parts.append(
                    f'<rect class="fill c{number}" x="{start + room * 0.1 + number * bar:.1f}" '
                    f'y="{_TOP + height - tall:.1f}" width="{max(bar - 1.5, 1):.1f}" height="{tall:.1f}">'
                    f"<title>{100 * values[place]:.1f} %</title></rect>"
                )
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{start + room / 2:.1f}" y="{_TOP + height + 15}">'
            f"{escape(group)}</text>"
        )
    return _svg(width + _LEFT + 10, height + _TOP + _BOTTOM, parts, title)


def _svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    text = escape(title)
    return (
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{text}" '
        f'style="max-width:{width * 1.15:.0f}px"><title>{text}</title>{"".join(parts)}</svg>'
    )


def _frame(
    width: float,
    height: float,
    across: tuple[float, float] | None,
    up: tuple[float, float],
    x_label: str,
    y_label: str,
    *,
    percent: bool = False,
) -> str:
    """Axes with their numbers; ``across`` None leaves those of x to the caller."""
    parts = []
    scale, unit = (100, " %") if percent else (1, "")
    for share in (0, 0.5, 1):
        y, value = _TOP + height * (1 - share), (up[0] + share * (up[1] - up[0])) * scale
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + width}" y1="{y:g}" y2="{y:g}"/>')
        parts.append(
            f'<text class="tick" text-anchor="end" x="{_LEFT - 5}" y="{y + 4:g}">{_short(value)}</text>'
        )
        if across:
            x, value = _LEFT + width * share, (across[0] + share * (across[1] - across[0])) * scale
            anchor = "start" if share == 0 else "end" if share == 1 else "middle"
            place = f'x="{x:g}" y="{_TOP + height + 15}"'
            parts.append(f'<text class="tick" text-anchor="{anchor}" {place}>{_short(value)}</text>')
    middle = _LEFT + width / 2
    if x_label:
        parts.append(
            f'<text class="name" text-anchor="middle" x="{middle:g}" y="{_TOP + height + 27}">'
            f"{escape(x_label)}{unit if across else ''}</text>"
        )
    parts.append(f'<text class="name" x="2" y="{_TOP - 11}">{escape(y_label)}{unit}</text>')
    return "".join(parts)


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.2g}"
