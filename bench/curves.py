"""A line chart as SVG text: allocated % against arrived %, a line per policy. No library: it is forty lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

_WIDTH: Final = 760
_HEIGHT: Final = 430
_LEFT: Final = 60
_TOP: Final = 40
_RIGHT: Final = 215
_BOTTOM: Final = 50


class Curve(NamedTuple):
    """One line: its name, its points, a colour, and whether it is drawn thin (other people's results)."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    thin: bool = False


def draw(
    title: str,
    curves: Sequence[Curve],
    *,
    across: tuple[float, float],
    up: tuple[float, float],
    labels: tuple[str, str] = ("GPU asked by all pods so far, % of the cluster", "GPU allocated, % of the cluster"),
) -> str:
    """Draw curves.

    Args:
        title: above the chart.
        curves: the first is named first.
        across: the range shown from left to right, in percent.
        up: from bottom to top.
        labels: of both axes.

    Returns:
        A whole SVG document.
    """
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="24" font-size="15" fill="#222">{title}</text>',
    ]
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (x - across[0]) / (across[1] - across[0]) * (right - _LEFT),
            bottom - (y - up[0]) / (up[1] - up[0]) * (bottom - _TOP),
        )

    for value in _ticks(*up):
        _, y = place(across[0], value)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{value:g}</text>')
    for value in _ticks(*across):
        x, _ = place(value, up[0])
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#f0f0f0"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle" fill="#555">{value:g}</text>')
    parts.append(
        f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 12}" text-anchor="middle" fill="#222">{labels[0]}</text>'
    )
    parts.append(
        f'<text x="16" y="{(_TOP + bottom) / 2}" text-anchor="middle" fill="#222" '
        f'transform="rotate(-90 16 {(_TOP + bottom) / 2})">{labels[1]}</text>'
    )
    parts.append(
        f'<clipPath id="c"><rect x="{_LEFT}" y="{_TOP}" width="{right - _LEFT}" height="{bottom - _TOP}"/></clipPath>'
    )
    for number, curve in enumerate(curves):
        line = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in curve.points)
        width, dash = (1.2, ' stroke-dasharray="4 3"') if curve.thin else (2.4, "")
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{curve.colour}" stroke-width="{width}"{dash} clip-path="url(#c)"/>'
        )
        y = _TOP + 14 + 20 * number
        parts.append(
            f'<line x1="{right + 12}" y1="{y - 4}" x2="{right + 34}" y2="{y - 4}" stroke="{curve.colour}" '
            f'stroke-width="{width}"{dash}/><text x="{right + 40}" y="{y}" fill="#222">{curve.name}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _ticks(low: float, high: float) -> list[float]:
    span = high - low
    step = next(size for size in (1, 2, 5, 10, 20, 50) if span / size <= 10)
    first = -(-low // step) * step
    return [first + step * number for number in range(int((high - first) // step) + 1)]
