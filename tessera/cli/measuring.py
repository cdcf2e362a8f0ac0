"""Asking the node agents what is used, by their metrics through the API server's pod proxy.

That needs the right to get pods/proxy and no way into the pod network. One refusal stands for all: the others would get the
same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from tessera.cli.looking import AT_ONCE, Tell, problem
from tessera.doctor.nodes import is_agent
from tessera.doctor.objects import LookedPod
from tessera.kube.errors import ForbiddenError, KubeError
from tessera.kube.reader import Reader
from tessera.kube.resources import PODS
from tessera.report.usage import MeasureError, Measures, read

PORT: Final = 9465
"""Of a node agent's status, where its pod names no port ``status``."""
TIMEOUT: Final = 5.0
_PORTS: Final = ("status", "metrics")


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


def _path(agent: LookedPod) -> str:
    ports = [port for each in agent.spec.containers or () for port in each.ports or ()]
    port = next((p.container_port for name in _PORTS for p in ports if p.name == name), PORT)
    name = f"{agent.metadata.name}:{port}"
    return PODS.path(namespace=agent.metadata.namespace, name=name, subresource="proxy") + "/metrics"
