"""Line and bar charts as inline SVG, coloured by the page's own CSS, so that they follow dark mode and print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 640, 350
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 14, 62
_TICKS = 5
_NAME, _BAR = 30, 14  # heights of a group's name and of a bar


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: for the legend.
        points: (x, y), in the order of x.
        style: CSS class, ``attack``, ``control``, ``reference``...
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: str


def line_chart(series: Sequence[Series], x_label: str, y_label: str, x_ticks: Sequence[tuple[float, str]]) -> str:
    """A chart as SVG text.

    Args:
        series: the lines; one of a single point is drawn as a dot, one of style ``reference`` right across.
        x_label: below the chart.
        y_label: above the axis.
        x_ticks: places and texts of the ticks.
    """
    xs = [x for x, _ in x_ticks] + [x for s in series for x, _ in s.points]
    top = _nice(max((y for s in series for _, y in s.points), default=1.0))
    low, high = min(xs), max(xs)
    span = (high - low) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - low) / span if high > low else 0.5
        wide, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        return round(_LEFT + across * wide, 1), round(_TOP + (1 - max(y, 0.0) / top) * tall, 1)

    name = escape(f'{y_label} against {x_label}')
    parts = [f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}">']
    for i in range(_TICKS):
        value = top * i / (_TICKS - 1)
        y = place(low, value)[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    for x, text in x_ticks:
        at = place(x, 0)
        anchor = 'middle' if low < x < high or high == low else 'start' if x == low else 'end'
        parts.append(f'<text class="tick" x="{at[0]}" y="{at[1] + 24}" text-anchor="{anchor}">{escape(text)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts += [_line(s, [place(x, y) for x, y in s.points]) for s in series if s.points]
    parts.append('</svg>')
    return ''.join(parts)


def bar_chart(groups: Sequence[tuple[str, Sequence[tuple[str, float]]]], reference: float, label: str) -> str:
    """Horizontal bars in groups, with a line down all of them, as SVG text.

    Args:
        groups: name of each, and its bars as CSS class and value.
        reference: where the line is.
        label: of the axis.
    """
    top = _nice(max([reference, *(value for _, bars in groups for _, value in bars)]))
    wide = _WIDTH - 2 * _RIGHT

    def across(value: float) -> float:
        return round(_RIGHT + max(value, 0.0) / top * wide, 1)

    parts: list[str] = []
    names: list[str] = []  # drawn last, over the line
    y = _TOP
    for name, bars in groups:
        y += _NAME
        names.append(f'<text class="axis" x="{_RIGHT}" y="{y - 6}">{escape(name)}</text>')
        for style, value in bars:
            title = f'<title>{escape(name)}: {value:.1f}</title>'
            size = f'width="{max(across(value) - _RIGHT, 1.0):.1f}" height="{_BAR - 2}"'
            parts.append(f'<rect class="{escape(style)}" x="{_RIGHT}" y="{y}" {size}>{title}</rect>')
            y += _BAR
    height = y + _BOTTOM
    grid = []
    for i in range(_TICKS):
        value = top * i / (_TICKS - 1)
        x = across(value)
        anchor = 'start' if i == 0 else 'end' if i == _TICKS - 1 else 'middle'
        grid.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{y + 4}"/>')
        grid.append(f'<text class="tick" x="{x}" y="{y + 26}" text-anchor="{anchor}">{value:g}</text>')
    x = across(reference)
    line = f'<g class="reference"><line x1="{x}" x2="{x}" y1="{_TOP}" y2="{y + 4}"/></g>'
    axis = f'<text class="axis" x="{_WIDTH / 2}" y="{height - 6}" text-anchor="middle">{escape(label)}</text>'
    head = f'<svg class="chart bars" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">'
    return ''.join([head, *grid, *parts, line, *names, axis, '</svg>'])


def _line(series: Series, points: Sequence[tuple[float, float]]) -> str:
    title = f'<title>{escape(series.name)}</title>'
    if series.style == 'reference':
        y = points[0][1]
        return f'<g class="reference">{title}<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/></g>'
    path = ' '.join(f'{x},{y}' for x, y in points)
    dots = ''.join(f'<circle cx="{x}" cy="{y}" r="4"/>' for x, y in points)
    return f'<g class="{escape(series.style)}">{title}<polyline points="{path}"/>{dots}</g>'


def _nice(value: float) -> float:
    """The next round number above a value, for the top of an axis that is cut into four."""
    if value <= 0 or not math.isfinite(value):
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    for factor in (1, 2, 4, 6, 8, 10):
        if value <= factor * unit:
            return factor * unit
    return 10 * unit
