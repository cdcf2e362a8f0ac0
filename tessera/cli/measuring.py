"""Asking parts what they measure and say of themselves, on their status ports through the API server's pod proxy.

That needs the right to get pods/proxy and no way into the pod network. One refusal stands for all: the others would get the
same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from tessera.cli.looking import AT_ONCE, Tell, problem
from tessera.doctor.evidence import PartSaid
from tessera.doctor.nodes import is_agent, late
from tessera.doctor.objects import LookedPod
from tessera.doctor.parts import GAUGES
from tessera.kube.errors import ForbiddenError, KubeError, ServerFaultError
from tessera.kube.reader import Reader
from tessera.kube.resources import PODS
from tessera.report.plaintext import plain
from tessera.report.usage import MeasureError, Measures, gauges, read

PORT: Final = 9465
"""Of a node agent's status, where its pod names no port ``status``."""
TIMEOUT: Final = 5.0
_PORTS: Final = ("status", "metrics")
MOST_PARTS: Final = 20
"""Pods that are asked one by one; there are five in the control plane."""


async def measure(reader: Reader, pods: Iterable[LookedPod], *, tell: Tell) -> dict[str, Measures]:
    """Ask every node's agent; a node whose agent doesn't answer has its problem instead."""
    agents = _by_node(pods)
    found: dict[str, Measures] = {}
    refused: list[str] = []
    gate = asyncio.Semaphore(2 * AT_ONCE)

    async def ask(node: str, agent: LookedPod) -> None:
        async with gate:
            if refused:
                found[node] = Measures(problem=refused[0])
                return
            tell("what agents measure", len(found))
            try:
                body = await reader.read(_path(agent), timeout=TIMEOUT)
                found[node] = await asyncio.to_thread(read, body.decode("utf-8", "replace"))
            except ForbiddenError as error:
                refused.append(problem(error, "pods/proxy"))
                found[node] = Measures(problem=refused[0])
            except (KubeError, MeasureError, ValueError) as error:
                found[node] = Measures(problem=problem(error, f"agent {agent.key}"))

    async with asyncio.TaskGroup() as group:
        for node, agent in agents.items():
            group.create_task(ask(node, agent))
    return found


def _by_node(pods: Iterable[LookedPod]) -> dict[str, LookedPod]:
    """The agent of each node, a ready one first: two are there while one replaces the other."""
    found: dict[str, LookedPod] = {}
    for pod in pods:
        if not is_agent(pod) or pod.ended or not pod.spec.node_name:
            continue
        ready = pod.condition("Ready")
        if pod.spec.node_name not in found or (ready is not None and ready.status == "True"):
            found[pod.spec.node_name] = pod
    return found


async def ask_parts(reader: Reader, pods: Iterable[LookedPod], *, namespace: str, now: float) -> dict[str, PartSaid]:
    """Ask the pods of an installation what they say of themselves: gauges of the few in the control plane, and of any part
    that has had time to start and is not ready, why not.

    Args:
        reader: of the cluster.
        pods: of the cluster.
        namespace: where Tessera is installed.
        now: seconds since 1970.
    """
    ours = [p for p in pods if p.metadata.namespace == namespace and not p.ended and p.spec.node_name and _port(p)]
    control = [pod for pod in ours if not is_agent(pod)][:MOST_PARTS]
    unready = [pod for pod in ours if late(pod, now)][:MOST_PARTS]
    found: dict[str, PartSaid] = {}
    gate = asyncio.Semaphore(2 * AT_ONCE)

    async def ask(pod: LookedPod) -> None:
        async with gate:
            values: dict[str, float] = {}
            why = trouble = ""
            try:
                if not is_agent(pod):
                    body = await reader.read(_path(pod), timeout=TIMEOUT)
                    values = gauges(body.decode("utf-8", "replace"), GAUGES)
                if late(pod, now):
                    why = await _unready(reader, pod)
            except (KubeError, MeasureError, ValueError) as error:
                trouble = problem(error, "pods/proxy" if isinstance(error, ForbiddenError) else f"pod {pod.key}")
            found[pod.key] = PartSaid(values, why, trouble)

    async with asyncio.TaskGroup() as group:
        for pod in {pod.key: pod for pod in (*control, *unready)}.values():
            group.create_task(ask(pod))
    return found


async def _unready(reader: Reader, pod: LookedPod) -> str:
    """Why a part is not ready: it answers 503 with the reason, which the API server passes on as it is."""
    try:
        await reader.read(_path(pod, "readyz"), timeout=TIMEOUT)
    except ServerFaultError as error:
        return plain(error.detail, longest=300)
    return ""


def _port(pod: LookedPod) -> int | None:
    """The port of a pod's status, None where it names none."""
    ports = [port for each in pod.spec.containers or () for port in each.ports or ()]
    return next((port.container_port for name in _PORTS for port in ports if port.name == name), None)


def _path(pod: LookedPod, page: str = "metrics") -> str:
    name = f"{pod.metadata.name}:{_port(pod) or PORT}"
    return f"{PODS.path(namespace=pod.metadata.namespace, name=name, subresource='proxy')}/{page}"
