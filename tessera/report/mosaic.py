"""The picture of a cluster's GPUs: every GPU a tile, every slice a stone in it, as wide as the memory it holds.

Under the stones a thin bar shows how much of the compute is reserved. Plain SVG by hand: no drawing library, no script,
no font but the viewer's own; every text is escaped and every stone tells its pod when pointed at.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from tessera.model.quantity import gib
from tessera.report.cluster import ClusterView, GpuView, NodeView
from tessera.report.plaintext import short

TILE_WIDTH: Final = 168
TILE_HEIGHT: Final = 62
GAP: Final = 12
MARGIN: Final = 24
PER_ROW: Final = 8
_HEAD: Final = 64
_NODE_HEAD: Final = 26

# Glass stones: distinct in lightness too, so that the picture survives a grey printer and colour blindness.
_STONES: Final = (
    "#1b6f8a", "#e0a030", "#7a4f9e", "#4c9a5b", "#c2553d", "#3b5ba5", "#b8860b", "#2e8b7a", "#a23b72", "#6b8e23",
)  # fmt: skip
_STYLE: Final = (
    "text{font-family:system-ui,sans-serif;fill:#23303b}.t{font-size:19px;font-weight:600}.s{font-size:12px;fill:#5b6873}"
    ".n{font-size:13px;font-weight:600}.g{font-size:10px;fill:#5b6873}.b{font-size:10px;fill:#fff}"
)


def mosaic(view: ClusterView, *, title: str, note: str = "") -> str:
    """Draw the view as one SVG document.

    Args:
        view: the cluster.
        title: first line.
        note: second line; by default how full the cluster is.
    """
    body: list[str] = []
    y = MARGIN + _HEAD
    columns = max([1, *(min(PER_ROW, len(node.gpus)) for node in view.nodes)])
    for node in view.nodes:
        y = _draw_node(body, node, y)
    width = max(2 * MARGIN + columns * (TILE_WIDTH + GAP) - GAP, 620)
    height = y + MARGIN
    head = [
        f'<text class="t" x="{MARGIN}" y="{MARGIN + 16}">{escape(title)}</text>',
        f'<text class="s" x="{MARGIN}" y="{MARGIN + 38}">{escape(note or summary(view))}</text>',
    ]
    start = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label={quoteattr(title)}>'
    )
    return "\n".join(
        [
            start,
            f"<style>{_STYLE}</style>",
            f'<rect width="{width}" height="{height}" fill="#f6f3ec"/>',
            *head,
            *body,
            "</svg>",
            "",
        ]
    )


def summary(view: ClusterView) -> str:
    """How full the cluster is, in one line."""
    gpus = view.gpus
    memory, compute = fill(gpus)
    used = sum(1 for gpu in gpus if gpu.slices)
    pods = len({piece.pod for gpu in gpus for piece in gpu.slices})
    return (
        f"{_count(len(gpus), 'GPU')} on {_count(len(view.nodes), 'node')}, {used} in use by {_count(pods, 'pod')}; "
        f"memory {memory:.0%} and compute {compute:.0%} allocated; {len(view.waiting)} waiting"
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def fill(gpus: Iterable[GpuView]) -> tuple[float, float]:
    """The allocated share of memory units and of compute, each 0..1, over GPUs."""
    there = tuple(gpus)
    units = sum(gpu.units for gpu in there)
    held = sum(gpu.held_units for gpu in there)
    compute = sum(gpu.held_compute for gpu in there)
    return (held / units if units else 0.0, compute / (100 * len(there)) if there else 0.0)


def _draw_node(body: list[str], node: NodeView, y: int) -> int:
    place = f"{node.region} · " if node.region else ""
    state = "" if node.state == "serving" else f"{node.state} · "
    memory, compute = fill(node.gpus)
    filled = node.problem or f"memory {memory:.0%}, compute {compute:.0%}"
    about = f"{place}{state}{filled}"
    body.append(
        f'<text x="{MARGIN}" y="{y + 14}"><tspan class="n">{escape(node.name)}</tspan>'
        f'<tspan class="s" dx="8">{escape(about)}</tspan></text>'
    )
    y += _NODE_HEAD
    for at, gpu in enumerate(node.gpus):
        column, row = at % PER_ROW, at // PER_ROW
        _draw_gpu(body, gpu, node.unit, MARGIN + column * (TILE_WIDTH + GAP), y + row * (TILE_HEIGHT + GAP))
    rows = -(-len(node.gpus) // PER_ROW)
    return y + rows * (TILE_HEIGHT + GAP) + GAP


def _draw_gpu(body: list[str], gpu: GpuView, unit: int, x: int, y: int) -> None:
    inner = TILE_WIDTH - 4
    edge = "#c9c2b2" if gpu.health == "ok" else "#c2553d"
    health = "" if gpu.health == "ok" else f", {gpu.health}"
    about = f"GPU {gpu.index} {gpu.model} {gpu.id}: {gib(gpu.held_units * unit)} of {gib(gpu.units * unit)}{health}"
    body.append(f"<g><title>{escape(about)}</title>")
    body.append(
        f'<rect x="{x}" y="{y}" width="{TILE_WIDTH}" height="{TILE_HEIGHT}" rx="5" fill="#fff" stroke="{edge}"/>'
    )
    left = float(x + 2)
    for piece in gpu.slices:
        wide = inner * (piece.units / gpu.units if gpu.units else 0.0)
        if piece.role == "init":
            continue  # what runs after it reuses its units; drawn, they would stand twice
        share = f"{gib(piece.units * unit)}" + (f", {piece.compute} % compute" if piece.compute else "")
        colour = _STONES[zlib.crc32(piece.pod.encode()) % len(_STONES)]
        body.append(
            f'<rect x="{left:.1f}" y="{y + 2}" width="{max(1.0, wide - 1):.1f}" height="34" rx="2" fill="{colour}">'
            f"<title>{escape(f'{piece.pod} ({piece.container}): {share}')}</title></rect>"
        )
        label = "whole" if piece.whole else f"{100 * piece.units / gpu.units:.0f}%" if gpu.units else ""
        if wide > 30:
            body.append(f'<text class="b" x="{left + 5:.1f}" y="{y + 23}">{label}</text>')
        left += wide
    if gpu.foreign_units and gpu.units:
        wide = inner * gpu.foreign_units / gpu.units
        body.append(
            f'<rect x="{left:.1f}" y="{y + 2}" width="{wide:.1f}" height="34" fill="#8a8f94">'
            f"<title>in use by processes outside any slice</title></rect>"
        )
    body.append(f'<rect x="{x + 2}" y="{y + 39}" width="{inner}" height="5" fill="#ece7db"/>')
    wide = inner * min(100, gpu.held_compute) / 100
    body.append(f'<rect x="{x + 2}" y="{y + 39}" width="{wide:.1f}" height="5" fill="#23303b"/>')
    name = f"{gpu.index} · {gpu.model.removeprefix('NVIDIA ')}"
    body.append(f'<text class="g" x="{x + 5}" y="{y + 56}">{escape(short(name, 24))}{escape(health)}</text></g>')
