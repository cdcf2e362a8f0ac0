"""The node agent's cost: how long the kubelet waits for it, and what it takes of a node that has better use for it.

The real agent runs as a process of its own against a fake NVML of 8 GPUs. Pods come one after the other with plans, each
with two resources, and go again, so that the node stays three quarters full. The kubelet here is a lean one: it does what a
kubelet does towards a plugin and nothing else, since the shipped fake's own work (a checkpoint with its checksum after every
message, in Python) would be measured too. Times are the kubelet's, from its call to the answer, with gRPC on both sides.

    python -m bench.node [PODS]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from bench.leankubelet import LeanKubelet
    from tessera.testing.apiserver import FakeApiServer

NODE: Final = "bench"
PODS: Final = 200
LIVE: Final = 54
"""Pods that are there at once, of 72 that fit."""
UNITS: Final = 32
COMPUTE: Final = 10
GPUS: Final = 8
PAUSE: Final = 0.01
"""Seconds between a pod's binding and its admission: a kubelet takes as long to hear of it."""
METHODS: Final = {"prefer": "GetPreferredAllocation", "allocate": "Allocate", "prestart": "PreStartContainer"}
STARTING: Final = 30.0
IDLE: Final = 4.0
"""Seconds of rest before memory and processor time are read."""
ROUNDS: Final = 5
"""Imports, of which the fastest counts: the others waited for something else."""

Figures: TypeAlias = dict[str, float | int]


def run(*, pods: int = PODS) -> Figures:
    """Measure an agent started for it.

    Returns:
        ``prefer_p50_ms``, ``prefer_p99_ms`` (GetPreferredAllocation), ``allocate_p50_ms``, ``allocate_p99_ms``,
        ``prestart_p50_ms``, ``prestart_p99_ms``; ``start_s`` from exec to registered; ``idle_rss_mib``,
        ``busy_rss_mib``, ``idle_cpu_percent`` of one core; ``import_s`` of ``deviceplugin.main``, ``import_all_s`` of
        everything the running agent needs; ``pods``, ``wrong`` (pods that got another GPU than planned).
    """
    folder = tempfile.mkdtemp(prefix="tb")
    try:
        found = asyncio.run(_measure(folder, pods))
    finally:
        shutil.rmtree(folder)
    return found | _imports()


async def _measure(folder: str, pods: int) -> Figures:
    # Here, so that the agent's process (this module with --agent) doesn't pay for the fakes.
    from bench.leankubelet import LeanKubelet  # noqa: PLC0415
    from tessera.testing.apiserver import ADMIN, FakeApiServer  # noqa: PLC0415
    from tessera.testing.nvml import FakeGpu, FakeNvml  # noqa: PLC0415

    cards = [FakeGpu.of("A100-80GB") for _ in range(GPUS)]
    with FakeNvml.create(Path(folder) / "nvml", gpus=cards) as nvml:
        async with FakeApiServer() as api, LeanKubelet(folder) as kubelet:
            api.add_node(NODE)
            command = [sys.executable, "-m", "bench.node", "--agent", api.url, api.token(ADMIN)]
            command += ["--node-name", NODE, "--kubelet-dir", folder, "--nvml-library", str(nvml.library)]
            command += ["--proc-root", f"{folder}/proc", "--status-listen", "127.0.0.1:0", "--log-level", "error"]
            began = time.perf_counter()
            agent = await asyncio.create_subprocess_exec(*command, env=os.environ | nvml.environment())
            try:
                await kubelet.registered(count=3, seconds=STARTING)
                found: Figures = {"start_s": round(time.perf_counter() - began, 2)}
                busy = _cpu(agent.pid)
                await asyncio.sleep(IDLE)
                found["idle_rss_mib"] = _rss(agent.pid)
                found["idle_cpu_percent"] = round(100 * (_cpu(agent.pid) - busy) / IDLE, 1)
                # A collection over the fakes' objects here would be taken for the agent's slowness.
                gc.collect()
                gc.freeze()
                found["wrong"] = await _churn(api, kubelet, [gpu.uuid for gpu in nvml.gpus()], pods)
                found["busy_rss_mib"] = _rss(agent.pid)
            finally:
                agent.terminate()
                await agent.wait()
    found["pods"] = pods
    for name, method in METHODS.items():
        times = sorted(kubelet.times[method])
        found[f"{name}_p50_ms"] = round(1000 * times[len(times) // 2], 2)
        found[f"{name}_p99_ms"] = round(1000 * times[min(len(times) - 1, int(len(times) * 0.99))], 2)
    return found


async def _churn(api: FakeApiServer, kubelet: LeanKubelet, uuids: list[str], pods: int) -> int:
    """Let pods come and go; returns how many got another GPU than their plan's."""
    from tessera.model.inventory import gpu_id  # noqa: PLC0415
    from tessera.model.names import names  # noqa: PLC0415

    units, _, compute = names().tickets
    amounts = {units: UNITS, compute: COMPUTE}
    live: deque[str] = deque()
    wrong = 0
    for number in range(pods):
        if len(live) == LIVE:
            name = live.popleft()
            ended = api.get("pods", name, "default") or {}
            api.put("pods", ended | {"status": {"phase": "Succeeded", "qosClass": "BestEffort"}})
            kubelet.forget(name)
            api.remove("pods", name, "default")
        gpu = gpu_id(uuids[number % len(uuids)])
        name = f"p{number}"
        api.put("pods", _pod(name, str(uuid.uuid4()), gpu, amounts))
        await asyncio.sleep(PAUSE)
        given = await kubelet.admit(name, amounts)
        wrong += {device[:12] for device in given} != {gpu}
        live.append(name)
    return wrong


def _pod(name: str, uid: str, gpu: str, amounts: dict[str, int]) -> dict[str, object]:
    limits = {resource: str(amount) for resource, amount in amounts.items()}
    slices = [{"gpu": gpu, "units": UNITS, "compute": COMPUTE}]
    plan = {
        "v": 1,
        "node": NODE,
        "guarantee": {"memory": "watched", "compute": "none"},
        "containers": {"main": slices},
    }
    return {
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": uid,
            "annotations": {"tessera.dev/plan": json.dumps(plan)},
        },
        "spec": {
            "nodeName": NODE,
            "containers": [{"name": "main", "image": "i", "resources": {"limits": limits, "requests": limits}}],
        },
        "status": {"phase": "Pending", "qosClass": "BestEffort"},
    }


def _rss(pid: int) -> float:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("VmRSS:"))
    return round(int(line.split()[1]) / 1024, 1)


def _cpu(pid: int) -> float:
    """Seconds of processor time so far."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _imports() -> Figures:
    script = (
        "import time\nbegan = time.perf_counter()\nimport deviceplugin.main as m\nfirst = time.perf_counter() - began\n"
        "with m._no_public_certificates():\n    import deviceplugin.program\n"
        "print(first, time.perf_counter() - began)"
    )
    rounds = [
        tuple(
            map(float, subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout.split())
        )
        for _ in range(ROUNDS)
    ]
    return {
        "import_s": round(min(each[0] for each in rounds), 3),
        "import_all_s": round(min(each[1] for each in rounds), 3),
    }


def _agent(arguments: list[str]) -> int:
    """The agent as in a cluster, where no kubeconfig (and with it no `kubernetes` package) is loaded."""
    from deviceplugin import main  # noqa: PLC0415

    url, token, *rest = arguments
    with main._no_public_certificates():  # noqa: SLF001
        from deviceplugin import program  # noqa: PLC0415
        from tessera.kube.config import StaticConnection  # noqa: PLC0415
    program.connect = lambda *_, **__: StaticConnection(url, token=token)  # type: ignore[assignment]
    return main.main(rest)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--agent"]:
        sys.exit(_agent(sys.argv[2:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pods", nargs="?", type=int, default=PODS, help="(%(default)s)")
    print(json.dumps(run(pods=parser.parse_args().pods), indent=1))
