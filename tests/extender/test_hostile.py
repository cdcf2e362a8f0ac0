"""A client that spaces nothing out and a world that breaks things: nothing is ever given twice.

The judge reads API objects only, and counts by the contract's own sums in a few lines of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections import defaultdict
from fractions import Fraction
from math import ceil

import aiohttp
import pytest

from tessera.model.names import names
from tessera.testing.apiserver import Cut, StatusError, on

NAMES = names()
BIND = on("create", "pods", subresource="binding")
LABEL = on("patch", "pods")


def judge(server) -> None:
    """No GPU is over-allocated in any view, and every bound pod that asks has what it asked."""
    capacity = {}
    for node in server.objects("nodes"):
        for gpu in json.loads(node["metadata"]["annotations"][NAMES.inventory])["gpus"]:
            capacity[node["metadata"]["name"], gpu["id"]] = gpu["units"]
    units, percent, compute, whole, shares = (defaultdict(int) for _ in range(5))
    for pod in server.objects("pods"):
        notes = pod["metadata"]["annotations"]
        node = pod["spec"].get("nodeName")
        if not node or pod["status"]["phase"] in ("Succeeded", "Failed"):
            continue
        plan = json.loads(notes[NAMES.plan])
        assert plan["node"] == node
        asked = json.loads(notes[NAMES.request])["containers"]
        assert plan["containers"].keys() == asked.keys()
        for name, slices in plan["containers"].items():
            want = asked[name]
            assert len({piece["gpu"] for piece in slices}) == want["gpus"], "that many different GPUs"
            for piece in slices:
                at = (node, piece["gpu"])
                units[at] += piece["units"]
                compute[at] += piece["compute"]
                shares[at] += 1
                if want.get("whole"):
                    whole[at] += 1
                    assert piece["units"] == capacity[at]
                elif "memoryPercent" in want:
                    percent[at] += want["memoryPercent"]
                    assert piece["units"] == max(1, want["memoryPercent"] * capacity[at] // 100)
                else:
                    percent[at] += ceil(Fraction(100 * piece["units"], capacity[at]))
                    assert piece["units"] * NAMES.memory_unit >= want["memory"]
                assert piece["compute"] == (100 if want.get("whole") else want.get("compute", 0))
    for at, taken in units.items():
        assert taken <= capacity[at], f"{at}: {taken} of {capacity[at]} units"
        assert compute[at] <= 100, f"{at}: {compute[at]} % of compute"
        assert not whole[at] or shares[at] == 1, f"{at}: a whole GPU is shared"
        # The contract rounds the sum of unit slices up once; each alone may come to a percent more.
        assert percent[at] <= 100 + shares[at]


SHAPES = (
    {"units": 8},
    {"units": 20, "compute": 30},
    {"percent": 33},
    {"percent": 50, "compute": 50},
    {"whole": True},
    {"units": 12, "gpus": 2},
    {"whole": True, "gpus": 2},
    {"containers": {"a": {"units": 10}, "b": {"percent": 20, "compute": 10}}},
    {"containers": {"a": {"units": 30, "gpus": 2}, "b": {"units": 30}, "c": {"units": 5}}},
)


class Client:
    """Schedules pods through whatever extender there is at the moment."""

    def __init__(self, server, rng, session):
        self.server, self.rng, self.session = server, rng, session
        self.url = ""
        self.done = 0
        self.first = asyncio.Event()

    async def post(self, path, body):
        async with self.session.post(self.url + path, data=json.dumps(body)) as answer:
            return await answer.json() if answer.status == 200 else {"Error": await answer.text(), "NodeNames": None}

    async def try_one(self, pod, nodes):
        rng, meta = self.rng, pod["metadata"]
        try:
            found = await self.post("/filter", {"Pod": pod, "NodeNames": rng.sample(nodes, len(nodes))})
            chosen = (found["NodeNames"] or [rng.choice(nodes)])[0]
            if rng.random() < 0.1:
                chosen = rng.choice(nodes)
            body = {"PodName": meta["name"], "PodNamespace": "default", "PodUID": meta["uid"], "Node": chosen}
            answers = await asyncio.gather(*(self.post("/bind", body) for _ in range(rng.choice([1, 1, 1, 3]))))
            if any(not answer["Error"] for answer in answers):
                self.done += 1
                self.first.set()
                there = self.server.get("pods", meta["name"], "default")
                assert there is None or there["spec"].get("nodeName") == chosen, "a success that is none"
        except (aiohttp.ClientError, ConnectionError):
            return

    def end_some(self):
        """Pods end, and their objects go, as kubelet and API server do it."""
        for pod in self.server.objects("pods"):
            if pod["spec"].get("nodeName") and self.rng.random() < 0.15:
                pod["status"]["phase"] = self.rng.choice(["Succeeded", "Failed"])
                self.server.put("pods", pod)
                if self.rng.random() < 0.5:
                    self.server.remove("pods", pod["metadata"]["name"], "default")


@pytest.mark.usefixtures("time_passes")
@pytest.mark.parametrize("seed", range(3))
async def test_nothing_is_given_twice_whatever_happens(new_rig, server, pod, node, seed):
    rng = random.Random(seed)
    sizes = ([64, 64], [64, 40, 40], [33], [64, 64, 64, 64])
    nodes = [f"n{n}" for n in range(6)]
    for n, name in enumerate(nodes):
        server.put("nodes", node(name, *sizes[n % 4], first=100 * n))
    rig = await new_rig()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        client = Client(server, rng, session)
        for turn in range(8):
            client.url = rig.url
            misfortunes(server, rng)
            pods = [
                server.put("pods", pod(f"t{turn}-{n}", **rng.choice(SHAPES), uid=f"uid-{turn}-{n}")) for n in range(25)
            ]
            waiting = [p for p in server.objects("pods") if not p["spec"].get("nodeName")]
            work = [asyncio.create_task(client.try_one(each, nodes)) for each in (*pods, *waiting)]
            if turn % 3 == 2:
                await rig.until(lambda work=work: sum(task.done() for task in work) >= 10)
                await kill(rig)
                rig = await new_rig()
                client.url = rig.url
            await asyncio.gather(*work)
            judge(server)
            client.end_some()
        server.faults.clear()
        await rig.caught_up()
        fresh = await new_rig()
        in_doubt = [uid for uid in rig.cluster._reservations if rig.cluster.reserved(uid)]
        for uid in in_doubt:
            rig.cluster.cancel(uid)
        assert book(rig) == book(fresh), "what was followed is what is counted anew"
        client.url = fresh.url
        await calm(client, server, pod, fresh)


async def calm(client, server, pod, rig):
    """Once nothing breaks any more and the pods have ended, every new one that fits is placed at its first try."""
    for each in server.objects("pods"):
        if each["spec"].get("nodeName"):
            each["status"]["phase"] = "Succeeded"
            server.put("pods", each)
    await rig.caught_up()
    for number in range(12):
        new = server.put("pods", pod(f"calm-{number}", units=30, uid=f"uid-calm-{number}"))
        found = await client.post("/filter", {"Pod": new, "NodeNames": [f"n{n}" for n in range(6)]})
        (chosen,) = found["NodeNames"]
        body = {"PodName": new["metadata"]["name"], "PodNamespace": "default", "PodUID": new["metadata"]["uid"]}
        assert not (await client.post("/bind", body | {"Node": chosen}))["Error"]
    judge(server)


def misfortunes(server, rng):
    server.faults.clear()
    for match, action in (
        (BIND, Cut.AFTER),
        (BIND, Cut.BEFORE),
        (BIND, StatusError(500, "InternalError", "etcd")),
        (LABEL, StatusError(503, "", "busy")),
    ):
        server.faults.add(match, action, times=rng.choice([0, 1, 2]) or None if rng.random() < 0.1 else 1)
    if rng.random() < 0.3:
        server.compact()
    if rng.random() < 0.5:
        server.drop_watches()


async def kill(rig):
    """Stop an extender as a crash does: nothing under way is waited for."""
    for task in (*rig._tasks, *(run.task for run in rig.binder._running.values()), *rig.binder._doubts.values()):
        task.cancel()
    await rig.client.close()


def book(rig):
    """Who holds what, by UID; pods that vanished unseen apart (a new extender can't know of them)."""
    alive = {p.metadata.uid for p in rig.pods if not p.ended}
    return {
        (name, uid, gpu): piece
        for name in rig.cluster.ledger
        for uid, counted in rig.cluster.ledger.holdings(name).items()
        if uid in alive
        for gpu, piece in counted.holdings.items()
    }


@pytest.fixture
async def program(server, tmp_path):
    """Start the real program, and kill what is left of it at the end."""
    kubeconfig = server.kubeconfig(tmp_path / "kubeconfig")
    running = []

    async def start(port=0):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "webhook.extender", "--kubeconfig", kubeconfig, "--listen", f"127.0.0.1:{port}"),
            *("--dashboard-listen", "127.0.0.1:0", "--status-listen", "127.0.0.1:0"),
            env={k: v for k, v in os.environ.items() if not k.startswith("TESSERA_")},
            stderr=asyncio.subprocess.PIPE,
        )
        running.append(process)
        async with asyncio.timeout(20):
            while line := (await process.stderr.readline()).decode():
                if "listening on" in line:
                    return process, line.split("listening on ")[1].split(",")[0]
        raise AssertionError("the program ended before it listened")

    yield start
    for process in running:
        if process.returncode is None:
            process.kill()
        await process.wait()
        # asyncio leaves the pipe's transport to the garbage collector otherwise.
        process._transport.close()


async def test_the_program_is_killed_and_goes_on(program, server, pod, node):
    rng = random.Random(7)
    nodes = [f"n{n}" for n in range(4)]
    for n, name in enumerate(nodes):
        server.put("nodes", node(name, 64, 64, first=100 * n))
    process, address = await program()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        client = Client(server, rng, session)
        client.url = f"http://{address}"
        await ready(session, client.url)
        first = [server.put("pods", pod(f"a{n}", **rng.choice(SHAPES))) for n in range(40)]
        work = [asyncio.create_task(client.try_one(each, nodes)) for each in first]
        await client.first.wait()
        process.send_signal(signal.SIGKILL)
        await asyncio.gather(*work)
        judge(server)
        process, address = await program()
        client.url = f"http://{address}"
        await ready(session, client.url)
        second = [server.put("pods", pod(f"b{n}", **rng.choice(SHAPES))) for n in range(40)]
        await asyncio.gather(*(client.try_one(each, nodes) for each in (*first, *second)))
        judge(server)
        bound = [each for each in server.objects("pods") if each["spec"].get("nodeName")]
        assert len(bound) >= 8
        assert client.done >= len(bound) - 40


async def ready(session, url):
    """Wait until it answers."""
    async with asyncio.timeout(20):
        while True:
            async with session.post(f"{url}/filter", data=json.dumps({"Pod": {}, "NodeNames": []})) as answer:
                if answer.status == 200:
                    return
            await asyncio.sleep(0.02)
