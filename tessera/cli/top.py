"""`tessera top`: how much of each GPU is booked, how much is used, and by whom."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tessera.cli.gpunodes import NoSuchNodeError, look
from tessera.cli.looking import Looker
from tessera.cli.measuring import measure
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
from tessera.doctor.finding import counted
from tessera.doctor.objects import LookedPod
from tessera.model.errors import TesseraError
from tessera.model.quantity import gib
from tessera.report.usage import ClusterUse, GpuUse, NodeUse, SliceUse, join

COULD_NOT_LOOK: Final = 3
_BAR: Final = 12
_MOST_PODS: Final = 3
_NONE: Final = Text("")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `tessera top`."""
    parser.epilog = (
        "What is used is what the node agents measure, read through the API server (the right to get pods/proxy); "
        "without it only what is booked is shown. Exit code: 0, or 3 where nothing could be looked at."
    )
    add_common(parser)
    add_installation(parser)
    parser.add_argument("node", nargs="*", help="only these nodes")


def run(arguments: argparse.Namespace) -> int:
    """Show booked and used; 0 where the cluster could be read, 3 where not."""
    try:
        found = asyncio.run(_read(arguments))
    except NoSuchNodeError as error:
        sys.stderr.write(f"tessera top: {text(str(error))}\n")
        return COULD_NOT_LOOK
    except TesseraError as error:
        sys.stderr.write(f"tessera top: could not look: {text(str(error))}\n")
        return COULD_NOT_LOOK
    if arguments.output == "json":
        write_json(found)
        return 0
    show(found, console(arguments), wide=arguments.output == "wide")
    return 0


async def _read(arguments: argparse.Namespace) -> ClusterUse:
    with Progress() as progress:
        async with client(arguments.kubeconfig) as api:
            seen, pods = await look(Looker(api, tell=progress), arguments, LookedPod)
            names = {node.name for node in seen.nodes}
            asked = [pod for pod in pods if pod.spec.node_name in names]
            return join(seen, await measure(api, asked, tell=progress))


def show(found: ClusterUse, out: Console, *, wide: bool = False) -> None:
    """Print the sums, a row per GPU (`wide`: a row per slice too), and where nothing is measured."""
    if not found.nodes:
        out.print("No node has a Tessera inventory. Does the node agent run there? (tessera doctor tells)")
        return
    out.print(_sums(found), soft_wrap=True)
    out.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("NODE", "GPU", "MODEL"):
        table.add_column(title, no_wrap=title != "MODEL")
    bars = out.width >= ROOM_FOR_BARS
    if bars:
        table.add_column("MEMORY", no_wrap=True)
    for title in ("USED", "BOOKED", "OF", "COMPUTE"):
        table.add_column(title, no_wrap=True, justify="right")
    table.add_column("POD" if wide else "PODS", overflow="fold")
    for node in found.nodes:
        for row in _rows(node, wide=wide):
            table.add_row(*(row if bars else row[:3] + row[4:]))
    out.print(table)
    _unmeasured(found, out)


def _sums(found: ClusterUse) -> Text:
    share = found.booked / found.usable if found.usable else 0.0
    said = f"{counted(found.gpus, 'GPU')} on {counted(len(found.nodes), 'node')}: {gib(found.booked)} of "
    said += f"{gib(found.usable)} booked ({share:.0%})"
    if not found.measured_nodes:
        return Text(f"{said}; what is used is not known")
    if found.measured_nodes == len(found.nodes):
        return Text(f"{said}, {gib(found.used)} used")
    return Text(f"{said}, {gib(found.used)} used on the {counted(found.measured_nodes, 'node')} that could be asked")


def _rows(node: NodeUse, *, wide: bool) -> Iterator[tuple[Text, ...]]:
    if node.problem:
        yield text(node.name), _NONE, text(node.problem, "red"), _NONE
        return
    name = node.name if node.state == "serving" else f"{node.name} ({node.state})"
    for gpu in node.gpus:
        index = Text(str(gpu.index), style="" if gpu.health == "ok" else "red")
        if gpu.health != "ok":
            index.append(f" {gpu.health}")
        yield (
            text(name),
            index,
            yielding(text(gpu.model.removeprefix("NVIDIA "))),
            _bar(gpu),
            _amount(gpu.used),
            _amount(gpu.booked),
            _amount(gpu.usable),
            Text(f"{gpu.booked_compute}%"),
            _NONE if wide else yielding(_pods(gpu)),
        )
        name = ""
        if wide:
            for piece in gpu.slices:
                yield _slice(piece)
            if gpu.foreign:
                strangers = Text("processes without a slice", "red")
                yield _NONE, _NONE, _NONE, _NONE, _amount(gpu.foreign), _NONE, _NONE, _NONE, strangers


def _slice(piece: SliceUse) -> tuple[Text, ...]:
    booked = Text("whole") if piece.whole else Text(piece.instance) if piece.instance else _amount(piece.booked)
    who = text(f"{piece.pod} {piece.container}".strip())
    if piece.above:
        who.append(" above its slice", style="bold red")
    elif not piece.booked and not piece.instance:
        who.append(" holds no slice", style="red")
    compute = Text(f"{piece.compute}%" if piece.compute else "")
    return _NONE, _NONE, _NONE, _NONE, _amount(piece.used), booked, _NONE, compute, who


def _pods(gpu: GpuUse) -> Text:
    """Who uses most first."""
    used: dict[str, int] = {}
    above: set[str] = set()
    for piece in gpu.slices:
        used[piece.pod] = used.get(piece.pod, 0) + (piece.booked if piece.used is None else piece.used)
        if piece.above:
            above.add(piece.pod)
    order = sorted(used, key=lambda pod: (pod not in above, -used[pod], pod))
    shown = Text(f"{len(order)}: " if order else "")
    for at, pod in enumerate(order[:_MOST_PODS]):
        shown.append(", " if at else "")
        shown.append_text(text(pod, "bold red" if pod in above else ""))
        if pod in above:
            shown.append(" (above)", style="bold red")
    left = len(order) - _MOST_PODS
    shown.append(f" and {left} more" if left > 0 else "")
    if gpu.foreign:
        shown.append(f"  +{gib(gpu.foreign)} foreign", style="red")
    return shown


def _bar(gpu: GpuUse) -> Text:
    """Used, then booked and not used, then free."""
    if not gpu.usable:
        return Text(" " * _BAR)
    booked = min(_BAR, round(gpu.booked / gpu.usable * _BAR))
    used = min(_BAR, round((gpu.used or 0) / gpu.usable * _BAR))
    bar = Text("█" * used, style="cyan")
    bar.append("▒" * max(0, booked - used), style="cyan")
    return bar.append("░" * (_BAR - max(booked, used)), style="dim")


def _amount(amount: int | None) -> Text:
    return Text("-", style="dim") if amount is None else Text(f"{amount / (1 << 30):.1f}")


def _unmeasured(found: ClusterUse, out: Console) -> None:
    """Where nothing is known of what is used, and why; equal reasons together."""
    by_problem: dict[str, list[str]] = {}
    for node in found.nodes:
        if node.unmeasured and not node.problem:
            by_problem.setdefault(node.unmeasured, []).append(node.name)
    if by_problem:
        out.print()
    for why, names in by_problem.items():
        where = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        out.print(Text.assemble("not measured: ", text(where), " (", text(why), ")"), soft_wrap=True)
    legend = "; █ used ▒ booked ░ free" if out.width >= ROOM_FOR_BARS else ""
    out.print(Text(f"memory in GiB{legend}", style="dim"))
