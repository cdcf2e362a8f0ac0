"""A burst of equal pods: none may be lost, hardly any may need a second attempt, and no GPU may hold more than it has.

The real `tessera-extender` beside the fake API server. First 200 pods that take a quarter of a GPU each come to a cluster
with room for 224: all of them are filtered before the first is bound, which is worse than any kube-scheduler
does. Then as kube-scheduler does it: filters one after the other, binds concurrent. Last, 100 pods for one node.

    python -m bench.burst
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Final

import aiohttp

from bench.extender import GPUS, NAMES, Figures, node, pod, ready, start
from tessera.model.plan import decode
from tessera.model.request import ContainerRequest
from tessera.testing.apiserver import FakeApiServer
from tessera.testing.apiserver.tree import Object

PODS: Final = 200
ON_ONE_NODE: Final = 100
BINDING: Final = 64
QUARTER: Final = ContainerRequest(gpus=1, memory_percent=25, compute=25)
SMALL: Final = ContainerRequest(gpus=1, memory_percent=6, compute=6)
"""16 on each GPU: 100 of them fit on a node of 8."""


def run() -> Figures:
    """Measure an extender started for each burst.

    Returns:
        By burst (``filtered_first``, ``pipelined``, ``one_node``): ``lost``, pods that found no place; ``second_attempts_pct``,
        of the pods whose first bind was refused; ``moved_pct``, bound to other GPUs than the filter had named;
        ``seconds`` until all were bound; ``overfull``, GPUs that hold more than they have.
    """
    nodes = PODS // 4 // GPUS + 1
    with tempfile.TemporaryDirectory(prefix="tb") as folder:
        return {
            "filtered_first": asyncio.run(_burst(Path(folder), nodes, [QUARTER] * PODS, ahead=PODS)),
            "pipelined": asyncio.run(_burst(Path(folder), nodes, [QUARTER] * PODS, ahead=BINDING)),
            "one_node": asyncio.run(_burst(Path(folder), 1, [SMALL] * ON_ONE_NODE, ahead=BINDING)),
        }


async def _burst(folder: Path, nodes: int, requests: Sequence[ContainerRequest], *, ahead: int) -> Figures:
    """One burst; `ahead` binds may be outstanding while the next pod is filtered."""
    async with FakeApiServer() as api:
        listed = [f"n{number}" for number in range(nodes)]
        for number, name in enumerate(listed):
            api.put("nodes", node(name, number))
        made = count()
        pods = [api.put("pods", pod(request, next(made))) for request in requests]
        process, address, _ = await start(folder, api)
        try:
            await ready(address)
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
                scheduler = _Scheduler(session, address, listed)
                began = time.perf_counter()
                await scheduler.all(pods, ahead)
                seconds = time.perf_counter() - began
                async with session.get(f"http://{await _status(folder)}/metrics") as answer:
                    moved = _metric(await answer.text(), "tessera_extender_binds_moved_total")
        finally:
            process.kill()
            await process.wait()
        return {
            "lost": scheduler.lost,
            "second_attempts_pct": round(100 * scheduler.again / len(pods), 2),
            "moved_pct": round(100 * moved / len(pods), 2),
            "seconds": round(seconds, 2),
            "overfull": _overfull(api),
        }


class _Scheduler:
    """Filters in order and binds beside, as kube-scheduler does."""

    def __init__(self, session: aiohttp.ClientSession, address: str, listed: Sequence[str]) -> None:
        self._session = session
        self._address = address
        self._listed = listed
        self.again = 0
        self.lost = 0

    async def all(self, pods: Sequence[Object], ahead: int) -> None:
        """Place all; whoever is refused is tried once more at the end."""
        refused: list[Object] = []
        waiting: list[asyncio.Task[None]] = []
        in_flight = asyncio.Semaphore(ahead)
        # Where all are filtered first, no bind begins before the last filter has been answered.
        gate = asyncio.Event()

        async def bind(each: Object, chosen: str) -> None:
            await gate.wait()
            if await self._bind(each, chosen):
                refused.append(each)
            in_flight.release()

        for number, each in enumerate(pods):
            if number >= ahead:
                gate.set()
            await in_flight.acquire()
            chosen = await self._filter(each)
            if chosen:
                waiting.append(asyncio.create_task(bind(each, chosen)))
            else:
                refused.append(each)
                in_flight.release()
        gate.set()
        await asyncio.gather(*waiting)
        self.again = len(refused)
        for each in refused:
            chosen = await self._filter(each)
            if not chosen or await self._bind(each, chosen):
                self.lost += 1

    async def _filter(self, each: Object) -> str:
        body = json.dumps({"Pod": each, "Nodes": None, "NodeNames": list(self._listed)})
        async with self._session.post(f"http://{self._address}/filter", data=body) as answer:
            names = (await answer.json())["NodeNames"]
        return str(names[0]) if names else ""

    async def _bind(self, each: Object, chosen: str) -> str:
        meta = each["metadata"]
        if not isinstance(meta, dict):
            raise SystemExit("a pod without metadata")
        body = {"PodName": meta["name"], "PodNamespace": "default", "PodUID": meta["uid"], "Node": chosen}
        async with self._session.post(f"http://{self._address}/bind", data=json.dumps(body)) as answer:
            return str((await answer.json())["Error"])


def _overfull(api: FakeApiServer) -> int:
    """GPUs whose pods, by their plans in the API, hold more than 100 %."""
    held: Counter[str] = Counter()
    for each in api.objects("pods"):
        metadata = each["metadata"]
        notes = metadata.get("annotations") if isinstance(metadata, dict) else None
        text = notes.get(NAMES.plan) if isinstance(notes, dict) else None
        if isinstance(text, str):
            for pieces in decode(text).containers.values():
                held.update({piece.gpu: piece.compute or 0 for piece in pieces})
    return sum(compute > 100 for compute in held.values())


async def _status(folder: Path) -> str:
    text = await asyncio.to_thread((folder / "log").read_text)
    return text.split(", status ")[1].split()[0]


def _metric(text: str, name: str) -> float:
    return next((float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} ")), 0.0)


def main() -> None:
    """Print the figures."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(json.dumps(run(), indent=1))


if __name__ == "__main__":
    main()
