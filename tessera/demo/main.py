"""`tessera demo`: the whole of Tessera on this machine, in under a minute, judged at the end."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import aiohttp
import msgspec
import yaml
from rich.console import Console

from tessera.demo.api import Api, Json
from tessera.demo.play import Play, note_binds
from tessera.demo.processes import Processes
from tessera.demo.show import Progress, report
from tessera.demo.stage import SCHEDULER, Builder, Stage
from tessera.kube.client import ApiClient
from tessera.kube.clock import SystemClock
from tessera.kube.config import StaticConnection
from tessera.kube.resources import NODES, PODS
from tessera.model.errors import TesseraError
from tessera.model.names import names
from tessera.model.node import Node
from tessera.model.pod import Pod
from tessera.report.cluster import view
from tessera.report.mosaic import mosaic
from tessera.testing.scheduler import FakeScheduler, SchedulerSettings

EXAMPLES: Final = Path(__file__).parents[2] / "examples"
"""In a checkout; an installed package has none, and the demo then draws all its pods."""

_NEEDED: Final = ("cryptography", "grpc", "jsonpatch", "numpy")
"""Of what the parts' extras bring, one each."""

MOST: Final = 1000
"""Of pods and of rounds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `tessera demo`."""
    parser.add_argument("--out", default="out/demo", metavar="DIR", help="logs and picture (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="draws the same pods again (default %(default)s)")
    parser.add_argument("--crowd", type=_count, default=140, metavar="PODS", help="first pods (default %(default)s)")
    parser.add_argument("--rounds", type=_count, default=3, help="times pods end and others come (default %(default)s)")
    parser.add_argument("--each", type=_count, default=50, metavar="PODS", help="pods of a round (default %(default)s)")
    parser.add_argument("--serve", action="store_true", help="keep the cluster running afterwards, until Ctrl-C")
    parser.add_argument("--no-color", action="store_true", help="plain text (also $NO_COLOR)")


def _count(text: str) -> int:
    """A number of pods or rounds: one machine plays so many in minutes."""
    if not text.isascii() or not text.isdecimal() or len(text) > len(str(MOST)) or int(text) > MOST:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a number from 0 to {MOST}")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Play the demo; 0 only where every check holds, 1 where one does not, 3 where it could not be played.

    Raises:
        ModuleNotFoundError: what a part needs is not installed.
    """
    for module in _NEEDED:
        # Else a part would say so, in a log.
        importlib.import_module(module)
    # A pipe or a log has no width of its own; a table cut at 80 columns tells nobody anything.
    width = None if sys.stdout.isatty() else 132
    console = Console(no_color=arguments.no_color or "NO_COLOR" in os.environ, highlight=False, width=width)
    out = os.path.abspath(arguments.out)
    os.makedirs(out, exist_ok=True)
    try:
        return 0 if asyncio.run(_demo(arguments, console, out)) else 1
    except KeyboardInterrupt:
        return 130
    except asyncio.CancelledError:
        return 143
    except TesseraError as error:
        problems: list[BaseException] = [error]
    except BaseExceptionGroup as group:
        ours, other = group.split(TesseraError)
        if ours is None or other is not None:
            raise
        problems = _leaves(ours)
    for problem in problems:
        sys.stderr.write(f"tessera demo: {problem}\n")
    return 3


async def _demo(arguments: argparse.Namespace, console: Console, out: str) -> bool:
    began = time.monotonic()
    if (task := asyncio.current_task()) is not None:
        # What was started has to end with us, also where the one who ends us is no person at a terminal.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    rng = random.Random(arguments.seed)
    async with AsyncExitStack() as stack:
        run_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="tessera-"))
        processes = await stack.enter_async_context(Processes(os.path.join(out, "logs")))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        progress = Progress(console)
        stack.callback(progress.stop)
        progress.tell("starting API server, webhook, extender, five kubelets and five node agents")
        stage = await Builder(processes, session, folder=out, run_dir=run_dir, seed=arguments.seed).build()
        progress.tell(f"all ready after {time.monotonic() - began:.0f} s")
        clock = SystemClock()
        client = await stack.enter_async_context(ApiClient(StaticConnection(stage.api), clock=clock, rng=rng))
        settings = SchedulerSettings(
            names=frozenset({SCHEDULER, "default-scheduler"}),
            extender=stage.extender,
            managed=f"{names().domain}/",
            backoff=0.2,
            most_backoff=1.0,
        )
        scheduler = FakeScheduler(client, settings, clock=clock, rng=rng)
        await stack.enter_async_context(scheduler.running())
        order: list[str] = []
        noting = asyncio.create_task(note_binds(session, stage.api, order))
        stack.callback(noting.cancel)
        play = Play(
            stage, Api(session, stage.api), scheduler, processes,
            examples=_examples(), order=order, rng=rng, tell=progress.tell,
        )  # fmt: skip
        scene = await play.run(crowd=arguments.crowd, rounds=arguments.rounds, each=arguments.each)
        progress.stop()
        await _finish(console, client, scheduler, play, out)
        console.print(f"\n{time.monotonic() - began:.0f} s in all; logs are in {os.path.join(out, 'logs')}")
        if arguments.serve:
            await _serve(console, stage, processes)
        return scene.passed


async def _finish(console: Console, client: ApiClient, scheduler: FakeScheduler, play: Play, out: str) -> None:
    """Say and draw how it ended."""
    nodes = await client.list(NODES, decoder=msgspec.json.Decoder(Node))
    pods = await client.list(PODS, decoder=msgspec.json.Decoder(Pod))
    seen = view(nodes.items, pods.items, names())
    report(console, play.scene, seen, scheduler.reasons)
    picture = os.path.join(out, "mosaic.svg")
    await asyncio.to_thread(Path(picture).write_text, mosaic(seen, title="The demo's GPUs"), encoding="utf-8")
    console.print(f"\nThe cluster's GPUs as a mosaic: {picture}")


async def _serve(console: Console, stage: Stage, processes: Processes) -> None:
    console.print(f"\nStill running, until Ctrl-C. API server: {stage.api}, kubeconfig: {stage.kubeconfig}")
    console.print(f"  tessera inspect --kubeconfig {stage.kubeconfig}")
    for name, address in stage.status.items():
        console.print(f"  {name}: http://{address}/metrics")
    while True:
        processes.check()
        await asyncio.sleep(1)


def _examples() -> list[Json]:
    """Pods of the repository's example manifests, each in a namespace that there is."""
    found: list[Json] = []
    for path in sorted(EXAMPLES.glob("*.yaml")):
        with open(path, encoding="utf-8") as file:
            found += [each for each in yaml.safe_load_all(file) if each and each.get("kind") == "Pod"]
    for pod in found:
        pod["metadata"]["namespace"] = "default"
    return found


def _leaves(group: BaseExceptionGroup[TesseraError]) -> list[BaseException]:
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]
