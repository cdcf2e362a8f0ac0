"""`tessera inspect`: nodes x GPUs, how full each is, how firmly it is held, and which pods are on it."""

from __future__ import annotations

import argparse
import asyncio
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tessera.cli.gpunodes import NoSuchNodeError, look
from tessera.cli.looking import Looker
from tessera.cli.terminal import (
    ROOM_FOR_BARS,
    Progress,
    add_common,
    add_installation,
    client,
    console,
    text,
    write_json,
    yielding,
)
from tessera.model.errors import TesseraError
from tessera.model.pod import Pod
from tessera.model.quantity import binary, gib
from tessera.report.cluster import ClusterView, GpuView, NodeView

_BAR = 12
_FULL, _EMPTY = "█", "░"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `tessera inspect`."""
    parser.epilog = "Exit code: 0 shown, 3 could not look, or no such node."
    add_common(parser)
    add_installation(parser)
    parser.add_argument("node", nargs="*", help="only these nodes")


def run(arguments: argparse.Namespace) -> int:
    """Show the cluster's GPUs; 0 where it could be read, 3 where not."""
    try:
        found = asyncio.run(_read(arguments))
    except NoSuchNodeError as error:
        sys.stderr.write(f"tessera inspect: {text(str(error))}\n")
        return 3
    except TesseraError as error:
        sys.stderr.write(f"tessera inspect: could not look: {text(str(error))}\n")
        return 3
    if arguments.output == "json":
        write_json(found)
        return 0
    show(found, console(arguments), wide=arguments.output == "wide")
    return 0


async def _read(arguments: argparse.Namespace) -> ClusterView:
    with Progress() as progress:
        async with client(arguments.kubeconfig) as api:
            found, _ = await look(Looker(api, tell=progress), arguments, Pod)
            return found


def show(found: ClusterView, out: Console, *, wide: bool = False, waiting: bool = True) -> None:
    """Print the view: one row per GPU; `wide` adds a row per slice, `waiting` the pods that have no node."""
    if not found.nodes:
        out.print(
            "No node has a Tessera inventory. Does the node agent run there? (kubectl get pods -A | grep tessera)"
        )
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("NODE", "GPU", "MODEL", "MEMORY", "COMPUTE", "HELD BY", "PODS"):
        table.add_column(title, no_wrap=title not in ("MODEL", "PODS"))
    for node in found.nodes:
        _rows(table, node, wide=wide, bars=out.width >= ROOM_FOR_BARS)
    out.print(table)
    left = found.waiting if waiting else ()
    for pod in left[:20]:
        out.print(text(f"waits: {pod.pod} ({pod.asks})"), soft_wrap=True)
    if len(left) > 20:
        out.print(f"waits: and {len(left) - 20} more")


def _rows(table: Table, node: NodeView, *, wide: bool, bars: bool) -> None:
    if node.problem:
        table.add_row(text(node.name), "", text(node.problem, "red"))
        return
    name = node.name if node.state == "serving" else f"{node.name} ({node.state})"
    for gpu in node.gpus:
        pods = sorted({piece.pod for piece in gpu.slices})
        health = Text(f"{gpu.index}", style="" if gpu.health == "ok" else "red")
        if gpu.health != "ok":
            health.append(f" {gpu.health}")
        table.add_row(
            text(name),
            health,
            yielding(text(gpu.model.removeprefix("NVIDIA "))),
            _memory(gpu, node.unit, bars=bars),
            _bar(gpu.held_compute / 100, f"{gpu.held_compute}%", bars=bars),
            f"{gpu.guarantee.memory}/{gpu.guarantee.compute}",
            text(f"{len(pods)}: {', '.join(pods)}") if pods else "",
        )
        name = ""
        if wide:
            for piece in gpu.slices:
                amount = "whole" if piece.whole else piece.instance or binary(piece.units * node.unit)
                compute = f"{piece.compute}%" if piece.compute else "shared"
                mark = " (drift)" if piece.drift else ""
                table.add_row(
                    "", "", _slot(piece.container), _slot(amount), _slot(compute), "", _slot(f"{piece.pod}{mark}")
                )


def _slot(what: str) -> Text:
    """A slice's cell, indented below its GPU's."""
    return Text("  ").append_text(text(what))


def _memory(gpu: GpuView, unit: int, *, bars: bool) -> Text:
    share = gpu.held_units / gpu.units if gpu.units else 0.0
    text = _bar(share, f"{gib(gpu.held_units * unit).removesuffix(' GiB')}/{gib(gpu.units * unit)}", bars=bars)
    if gpu.foreign_units:
        text.append(f" +{gib(gpu.foreign_units * unit)} foreign", style="red")
    return text


def _bar(share: float, label: str, *, bars: bool) -> Text:
    if not bars:
        return Text(label)
    full = min(_BAR, round(share * _BAR))
    text = Text(_FULL * full, style="cyan")
    text.append(_EMPTY * (_BAR - full), style="dim")
    return text.append(f" {label}")
