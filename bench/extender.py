"""The extender's cost: how long kube-scheduler waits for a filter, and how many pods a second go all the way.

The real `tessera-extender` runs as a process of its own; the API server is the fake, in this process. Filters come as
kube-scheduler sends them, one after the other on one connection with the names of all nodes, for pods of different
shapes on a half-full cluster. In the first part every other pod is bound, so that the ledger changes under the filter. In the
second part pods are filtered one by one and bound concurrently, as fast as it goes; there the fake API server takes more of
the time than the extender.

    python -m bench.extender [NODES [FILTERS]]
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Final, TypeAlias

import aiohttp

from tessera.model.inventory import Gpu, Inventory, encode
from tessera.model.names import names
from tessera.model.quantity import GIB
from tessera.model.request import ContainerRequest, PodRequest
from tessera.model.request import encode as encode_request
from tessera.model.tickets import tickets
from tessera.testing.apiserver import FakeApiServer
from tessera.testing.apiserver.tree import Object

NODES: Final = 100
GPUS: Final = 8
FILTERS: Final = 2000
PODS: Final = 400
"""Pods of the second part."""
BINDING: Final = 32
"""Binds in flight at once in the second part."""
STARTING: Final = 30.0
NAMES: Final = names()
SHAPES: Final = (
    ContainerRequest(gpus=1, memory=8 * GIB, compute=10),
    ContainerRequest(gpus=1, memory=20 * GIB),
    ContainerRequest(gpus=1, memory_percent=25, compute=25),
    ContainerRequest(gpus=1, whole=True),
    ContainerRequest(gpus=2, memory=4 * GIB),
    ContainerRequest(gpus=4, whole=True),
)

Figures: TypeAlias = dict[str, float | int]


def run(*, nodes: int = NODES, filters: int = FILTERS, pods: int = PODS) -> Figures:
    """Measure an extender started for it.

    Returns:
        ``filter_p50_ms``, ``filter_p95_ms``, ``filter_p99_ms``, ``filter_max_ms``, ``filters_per_s`` (one client);
        ``first_ms``, the first filter of all; ``refuse_p99_ms``, of filters that have to name a reason for every node;
        ``pods_per_s``, filtered and bound; ``rss_mib`` of the extender; ``nodes``, ``gpus``, ``filters``, ``pods``.
    """
    with tempfile.TemporaryDirectory(prefix="tb") as folder:
        return asyncio.run(_measure(Path(folder), nodes, filters, pods))


async def _measure(folder: Path, nodes: int, filters: int, pods: int) -> Figures:
    async with FakeApiServer() as api:
        listed = [f"gpu-node-{number:05d}.example.internal" for number in range(nodes)]
        for number, name in enumerate(listed):
            api.put("nodes", _node(name, number))
        made = count()
        process, address = await _start(folder, api)
        try:
            await _ready(address)
            client = _Client(address, listed)
            first = client.filter(_pod(SHAPES[0], next(made)))[0]
            await _half_full(api, address, listed, made)
            found: Figures = {"first_ms": _ms(first)}
            times = []
            async with aiohttp.ClientSession() as session:
                for number in range(filters):
                    pod = _pod(SHAPES[number % len(SHAPES)], next(made))
                    taken, chosen = client.filter(pod)
                    times.append(taken)
                    if number % 2 and chosen:
                        await _bind(api, session, address, pod, chosen)
            refusals = sorted(
                client.filter(_pod(ContainerRequest(gpus=8, memory=79 * GIB), next(made)))[0] for _ in range(200)
            )
            found |= {"filters_per_s": round(len(times) / sum(times))}
            times.sort()
            for label, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0)):
                found[f"filter_{label}_ms"] = _ms(times[min(len(times) - 1, int(share * len(times)))])
            found["refuse_p99_ms"] = _ms(refusals[int(0.99 * len(refusals))])
            found["pods_per_s"] = await _all_the_way(
                api, address, listed, [_pod(SHAPES[0], next(made)) for _ in range(pods)]
            )
            found["rss_mib"] = _rss(process.pid)
        finally:
            process.kill()
            await process.wait()
    return found | {"nodes": nodes, "gpus": nodes * GPUS, "filters": filters, "pods": pods}


class _Client:
    """kube-scheduler's side of a filter, blocking, so that nothing but the extender takes time."""

    def __init__(self, address: str, listed: list[str]) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=10)
        self._names = json.dumps(listed).encode()

    def filter(self, pod: Object) -> tuple[float, str]:
        """Seconds that it took, and the node named."""
        body = b'{"Pod":%b,"Nodes":null,"NodeNames":%b}' % (json.dumps(pod).encode(), self._names)
        start = time.perf_counter()
        self._connection.request("POST", "/filter", body, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        content = answer.read()
        taken = time.perf_counter() - start
        if answer.status != 200:
            raise SystemExit(f"unexpected answer: {answer.status} {content[:300]!r}")
        chosen = json.loads(content)["NodeNames"]
        return taken, chosen[0] if chosen else ""


async def _half_full(api: FakeApiServer, address: str, listed: list[str], made: Iterator[int]) -> None:
    """Bind pods until half of all memory is held."""
    await _all_the_way(api, address, listed, [_pod(SHAPES[1], next(made)) for _ in range(2 * len(listed) * GPUS)])


async def _all_the_way(api: FakeApiServer, address: str, listed: list[str], pods: list[Object]) -> float:
    """Filter one by one and bind concurrently; pods a second."""
    in_flight = asyncio.Semaphore(BINDING)
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        start = time.perf_counter()

        async def bind(pod: Object, node: str) -> None:
            try:
                await _bind(api, session, address, pod, node)
            finally:
                in_flight.release()

        for pod in pods:
            await in_flight.acquire()
            async with session.post(
                f"http://{address}/filter", data=json.dumps({"Pod": pod, "Nodes": None, "NodeNames": listed})
            ) as answer:
                chosen = (await answer.json())["NodeNames"]
            if not chosen:
                raise SystemExit("a pod found no node on a cluster that has room")
            group.create_task(bind(pod, chosen[0]))
    return round(len(pods) / (time.perf_counter() - start), 1)


async def _bind(api: FakeApiServer, session: aiohttp.ClientSession, address: str, pod: Object, node: str) -> None:
    made = api.put("pods", pod)
    meta = made["metadata"]
    if not isinstance(meta, dict):
        raise SystemExit("the fake API server made no metadata")
    body = {"PodName": meta["name"], "PodNamespace": "default", "PodUID": meta["uid"], "Node": node}
    async with session.post(f"http://{address}/bind", data=json.dumps(body)) as answer:
        error = (await answer.json())["Error"]
    if error:
        raise SystemExit(f"unexpected answer: {error}")


async def _start(folder: Path, api: FakeApiServer) -> tuple[asyncio.subprocess.Process, str]:
    """Start the program; its address stands in its log."""
    log = folder / "log"
    command = [sys.executable, "-m", "webhook.extender", "--kubeconfig", api.kubeconfig(folder / "kubeconfig")]
    command += ["--listen", "127.0.0.1:0", "--dashboard-listen", "127.0.0.1:0", "--status-listen", "127.0.0.1:0"]
    environ = {key: value for key, value in os.environ.items() if not key.startswith("TESSERA_")}
    with log.open("w") as file:
        process = await asyncio.create_subprocess_exec(*command, stderr=file, env=environ)
    async with asyncio.timeout(STARTING):
        while "listening on " not in (text := log.read_text()):
            if process.returncode is not None:
                raise SystemExit(f"the extender ended: {text}")
            await asyncio.sleep(0.02)
    return process, text.split("listening on ")[1].split(",")[0]


async def _ready(address: str) -> None:
    body = json.dumps({"Pod": {}, "NodeNames": []})
    async with aiohttp.ClientSession() as session, asyncio.timeout(STARTING):
        while True:
            async with session.post(f"http://{address}/filter", data=body) as answer:
                if answer.status == 200:
                    return
            await asyncio.sleep(0.02)


def _node(name: str, number: int) -> Object:
    gpus = tuple(
        Gpu(
            id=f"{number * GPUS + index:012x}",
            uuid=f"GPU-{number * GPUS + index:08x}-0000-0000-0000-000000000000",
            index=index,
            model="NVIDIA A100-SXM4-80GB",
            memory=80 * GIB,
            units=316,
        )
        for index in range(GPUS)
    )
    amounts: Object = {"cpu": "128", "pods": "500", NAMES.memory_units: str(316 * GPUS)}
    return {
        "metadata": {
            "name": name,
            "annotations": {NAMES.inventory: encode(Inventory(v=1, unit=NAMES.memory_unit, gpus=gpus))},
        },
        "status": {
            "capacity": amounts,
            "allocatable": amounts,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def _pod(request: ContainerRequest, number: int) -> Object:
    limits: Object = {ticket: str(amount) for ticket, amount in tickets(request, NAMES).items()}
    asked = PodRequest(v=1, dialect="tessera", containers={"main": request})
    return {
        "metadata": {
            "name": f"p{number}",
            "namespace": "default",
            "uid": f"00000000-0000-0000-0000-{number:012d}",
            "annotations": {NAMES.request: encode_request(asked)},
        },
        "spec": {
            "schedulerName": "tessera-scheduler",
            "containers": [
                {"name": "main", "image": "train:1", "resources": {"limits": limits, "requests": limits}},
            ],
        },
        "status": {"phase": "Pending"},
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def _rss(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    kib = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS"))
    return round(kib / 1024, 1)


def main(arguments: list[str]) -> None:
    """Print the figures."""
    numbers = [int(argument) for argument in arguments]
    figures = run(nodes=numbers[0] if numbers else NODES, filters=numbers[1] if numbers[1:] else FILTERS)
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
