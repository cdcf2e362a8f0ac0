"""The extender's cost: how long kube-scheduler waits for a filter, and how many pods a second go all the way.

The real `tessera-extender` runs as a process of its own; the API server is the fake, in this process. Filters come as
kube-scheduler sends them, one after the other on one connection with the names of all nodes, in another order each time
(its own filters append to one list from many goroutines), for pods of six shapes on a cluster where so many pods are placed
already. In the first part every other pod is bound, so that the ledger changes under
the filter. In the second part pods are filtered one by one and bound concurrently, as fast as it goes; there the fake API
server takes more of the time than the extender. In the third the whole state is read by a dashboard meanwhile.

    python -m bench.extender [NODES PLACED [FILTERS]]       without arguments: 100, 1,000, 5,000 nodes x 0, 10,000, 40,000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Final, TypeAlias

import aiohttp
import numpy as np

from tessera.model.guarantee import Guarantees
from tessera.model.inventory import Gpu, Inventory, encode
from tessera.model.names import names
from tessera.model.plan import Plan, PlannedSlice
from tessera.model.plan import encode as encode_plan
from tessera.model.quantity import GIB
from tessera.model.request import ContainerRequest, PodRequest
from tessera.model.request import encode as encode_request
from tessera.model.tickets import tickets
from tessera.testing.apiserver import FakeApiServer
from tessera.testing.apiserver.tree import Object

NODES: Final = (100, 1000, 5000)
PLACED: Final = (0, 10_000, 40_000)
GPUS: Final = 8
FILTERS: Final = 1000
PODS: Final = 400
"""Pods of the second part."""
UNITS: Final = 5
"""Memory units of a pod that is placed already: 50 of them on each GPU of the smallest cluster take 250 of 316."""
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

Figures: TypeAlias = "dict[str, float | int | Figures]"


def run(*, nodes: Sequence[int] = NODES, placed: Sequence[int] = PLACED, filters: int = FILTERS) -> Figures:
    """Measure an extender started for each size.

    Returns:
        By ``<nodes>x<placed>``: ``ready_s``, from the start of the process until its first answer; ``ready_cpu_s``,
        the CPU that took; ``first_ms``, the first filter of all; ``filter_p50_ms``, ``_p95_``, ``_p99_``, ``_max_`` and ``filters_per_s`` (one client);
        ``filter_cpu_ms``, the extender's CPU per filter and half a bind;
        ``refuse_p99_ms``, of filters that have to name a reason for every node; ``pods_per_s``, filtered and bound;
        ``beside_dashboard_max_ms``, of filters while the state of all nodes is read; ``rss_mib`` of the extender,
        ``rss_after_mib`` once all that is done.
    """
    return {f"{number}x{there}": _one(number, there, filters) for number in nodes for there in placed}


def _one(nodes: int, placed: int, filters: int) -> Figures:
    with tempfile.TemporaryDirectory(prefix="tb") as folder:
        return asyncio.run(_measure(Path(folder), nodes, placed, filters))


async def _measure(folder: Path, nodes: int, placed: int, filters: int) -> Figures:
    async with FakeApiServer() as api:
        listed = [f"gpu-node-{number:05d}.example.internal" for number in range(nodes)]
        for number, name in enumerate(listed):
            api.put("nodes", node(name, number))
        for number in range(placed):
            api.put("pods", _placed(number, listed))
        made = count(placed)
        began = time.perf_counter()
        process, address, dashboard = await start(folder, api)
        try:
            await ready(address)
            found: Figures = {"ready_s": round(time.perf_counter() - began, 2), "ready_cpu_s": _cpu(process.pid)}
            lists = _Lists(listed)
            client = _Client(address, lists)
            found["first_ms"] = _ms(client.filter(pod(SHAPES[0], next(made)))[0])
            times, spent = [], _cpu(process.pid)
            async with aiohttp.ClientSession() as session:
                for number in range(filters):
                    asking = pod(SHAPES[number % len(SHAPES)], next(made))
                    if number % 2:
                        asking = api.put("pods", asking)
                    taken, chosen = client.filter(asking)
                    times.append(taken)
                    if number % 2 and chosen and (error := await _refused(session, address, asking, chosen)):
                        raise SystemExit(f"unexpected answer: {error}")
            found["filter_cpu_ms"] = round((_cpu(process.pid) - spent) * 1e3 / (filters or 1), 2)
            refused = [client.filter(pod(ContainerRequest(gpus=9, memory=GIB), next(made)))[0] for _ in range(100)]
            found |= _percentiles(times) | {"refuse_p99_ms": _ms(sorted(refused)[98])}
            # The UID is the API server's: filter and bind have to speak of the same one.
            pods = [api.put("pods", pod(SHAPES[0], next(made))) for _ in range(PODS)]
            found["rss_mib"] = _rss(process.pid)
            found["pods_per_s"] = await _all_the_way(address, lists, pods)
            found["beside_dashboard_max_ms"] = await _beside_dashboard(client, dashboard, made)
            found["rss_after_mib"] = _rss(process.pid)
        finally:
            process.kill()
            await process.wait()
    return found


async def _beside_dashboard(client: _Client, dashboard: str, made: Iterator[int]) -> float:
    """The longest filter while the JSON of all nodes is made and sent."""
    stop = asyncio.Event()

    def filters() -> float:
        longest = 0.0
        while not stop.is_set():
            longest = max(longest, client.filter(pod(SHAPES[next(made) % len(SHAPES)], next(made)))[0])
        return longest

    async with aiohttp.ClientSession() as session:
        longest = asyncio.create_task(asyncio.to_thread(filters))
        try:
            async with session.get(f"http://{dashboard}/api/v1/nodes") as answer:
                if not await answer.read():
                    raise SystemExit("the dashboard's JSON is empty")
        finally:
            stop.set()
        return _ms(await longest)


def _percentiles(times: list[float]) -> Figures:
    ordered = sorted(times)
    shares = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))
    found: Figures = {"filters_per_s": round(len(times) / sum(times))}
    return found | {
        f"filter_{label}_ms": _ms(ordered[min(len(ordered) - 1, int(share * len(ordered)))]) for label, share in shares
    }


class _Lists:
    """The names of all nodes as JSON, in an order that no list before had."""

    def __init__(self, listed: list[str]) -> None:
        self._names = np.array([json.dumps(name).encode() for name in listed], object)
        self._random = np.random.default_rng(0)

    def args(self, pod: Object) -> bytes:
        """A body of a filter."""
        names = b",".join(self._random.permutation(self._names).tolist())
        return b'{"Pod":%b,"Nodes":null,"NodeNames":[%b]}' % (json.dumps(pod).encode(), names)


class _Client:
    """kube-scheduler's side of a filter, blocking, so that nothing but the extender takes time.

    One connection, on which a request is written in one piece and its answer is read by Content-Length: `http.client` would
    add 0.1 ms of its own to each, mostly for parsing headers as mail.
    """

    def __init__(self, address: str, lists: _Lists) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = f"POST /filter HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
        self._lists = lists

    def filter(self, pod: Object) -> tuple[float, str]:
        """Seconds that it took, from the first byte sent to the last one read, and the node named."""
        body = self._lists.args(pod)
        request = f"{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        start = time.perf_counter()
        self._socket.sendall(request)
        head, content = self._read()
        taken = time.perf_counter() - start
        if not head.startswith(b"HTTP/1.1 200 "):
            raise SystemExit(f"unexpected answer: {head!r} {content[:300]!r}")
        chosen = json.loads(content)["NodeNames"]
        return taken, chosen[0] if chosen else ""

    def _read(self) -> tuple[bytes, bytes]:
        """An answer's head and body."""
        found = self._some()
        while b"\r\n\r\n" not in found:
            found += self._some()
        head, _, content = found.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        parts, size = [content], len(content)
        while size < length:
            parts.append(self._some())
            size += len(parts[-1])
        return head, b"".join(parts)

    def _some(self) -> bytes:
        found = self._socket.recv(1 << 18)
        if not found:
            raise SystemExit("the extender has closed the connection")
        return found


async def _all_the_way(address: str, lists: _Lists, pods: list[Object]) -> float:
    """Filter one by one and bind concurrently; pods a second."""
    in_flight = asyncio.Semaphore(BINDING)
    again: list[Object] = []
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        left, bound = deque(pods), 0
        start = time.perf_counter()

        async def bind(pod: Object, node: str) -> None:
            nonlocal bound
            try:
                # On the smallest cluster what the first part named and never bound is avoided no more: it would fill it.
                if await _refused(session, address, pod, node):
                    again.append(pod)
                else:
                    bound += 1
            finally:
                in_flight.release()

        while left or bound < len(pods):
            await in_flight.acquire()
            left.extend(again)
            again.clear()
            if not left:
                in_flight.release()
                await asyncio.sleep(0)
                continue
            pod = left.popleft()
            async with session.post(f"http://{address}/filter", data=lists.args(pod)) as answer:
                chosen = (await answer.json())["NodeNames"]
            if not chosen:
                raise SystemExit("a pod found no node on a cluster that has room")
            group.create_task(bind(pod, chosen[0]))
    return round(len(pods) / (time.perf_counter() - start), 1)


async def _refused(session: aiohttp.ClientSession, address: str, pod: Object, node: str) -> str:
    """Bind a pod; why it was refused, or nothing."""
    meta = pod["metadata"]
    if not isinstance(meta, dict):
        raise SystemExit("the fake API server made no metadata")
    body = {"PodName": meta["name"], "PodNamespace": "default", "PodUID": meta["uid"], "Node": node}
    async with session.post(f"http://{address}/bind", data=json.dumps(body)) as answer:
        return str((await answer.json())["Error"])


async def start(folder: Path, api: FakeApiServer) -> tuple[asyncio.subprocess.Process, str, str]:
    """Start the program; its address and its dashboard's stand in its log."""
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
    address, dashboard = text.split("listening on ")[1].split(", dashboard ")
    return process, address, dashboard.split(",")[0]


async def ready(address: str) -> None:
    """Wait for the first answer."""
    body = json.dumps({"Pod": {}, "NodeNames": []})
    async with aiohttp.ClientSession() as session, asyncio.timeout(STARTING):
        while True:
            async with session.post(f"http://{address}/filter", data=body) as answer:
                if answer.status == 200:
                    return
            await asyncio.sleep(0.02)


def node(name: str, number: int) -> Object:
    """A node with eight GPUs of 80 GiB; numbers make GPUs different."""
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


def pod(request: ContainerRequest, number: int) -> Object:
    """A pod as admission leaves it."""
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


def _placed(number: int, listed: list[str]) -> Object:
    """A pod that runs, on the GPU that is its turn, with its plan."""
    row, gpu = number % len(listed), number // len(listed) % GPUS
    made = pod(ContainerRequest(gpus=1, memory=UNITS * NAMES.memory_unit, compute=1), number)
    piece = PlannedSlice(gpu=f"{row * GPUS + gpu:012x}", units=UNITS, compute=1)
    plan = Plan(v=1, node=listed[row], guarantee=Guarantees(), containers={"main": (piece,)})
    metadata, spec = made["metadata"], made["spec"]
    if not (isinstance(metadata, dict) and isinstance(spec, dict) and isinstance(metadata["annotations"], dict)):
        raise SystemExit("a pod without metadata")
    metadata["annotations"][NAMES.plan] = encode_plan(plan)
    spec["nodeName"] = listed[row]
    return made | {"status": {"phase": "Running"}}


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process has taken: what a machine busy with others does not change."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return round((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), 2)


def _rss(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    kib = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS"))
    return round(kib / 1024, 1)


def main(arguments: list[str]) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nodes", nargs="?", type=int, help="(three sizes)")
    parser.add_argument("placed", nargs="?", type=int, help="pods that are placed already (three sizes)")
    parser.add_argument("filters", nargs="?", type=int, default=FILTERS, help="(%(default)s)")
    given = parser.parse_args(arguments)
    nodes = NODES if given.nodes is None else [given.nodes]
    placed = PLACED if given.placed is None else [given.placed]
    print(json.dumps(run(nodes=nodes, placed=placed, filters=given.filters), indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
