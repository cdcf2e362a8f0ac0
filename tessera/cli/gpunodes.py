"""One look at the cluster's GPU nodes and the pods on them: what `tessera inspect` and `tessera top` show."""

from __future__ import annotations

import argparse
import asyncio
from typing import TypeVar

import msgspec

from tessera.cli.looking import Looker
from tessera.cli.terminal import installed
from tessera.doctor.evidence import NotLookedError
from tessera.doctor.objects import ConfigMap
from tessera.kube.resources import CONFIGMAPS, NODES, PODS
from tessera.model.errors import TesseraError
from tessera.model.node import Node
from tessera.model.pod import Pod
from tessera.report.cluster import ClusterView, view

P = TypeVar("P", bound=Pod)


class NoSuchNodeError(TesseraError):
    """A node that was named has no GPUs of ours, or there is none of that name."""


async def look(looker: Looker, arguments: argparse.Namespace, kind: type[P]) -> tuple[ClusterView, tuple[P, ...]]:
    """Read all nodes and pods; keep the nodes that the command line names, or all.

    Args:
        looker: reads.
        arguments: with ``node``, ``config`` and ``system_namespace``.
        kind: what to read of a pod.

    Returns:
        The nodes with what is held of their GPUs, and every pod of the cluster.

    Raises:
        NotLookedError: nodes or pods can't be read.
        NoSuchNodeError: a node was named that isn't among those with GPUs.
        ConfigError: the file that ``config`` names can't be read, or is refused.
    """
    maps, nodes, pods = await asyncio.gather(
        looker.all(CONFIGMAPS, ConfigMap, namespace=arguments.system_namespace),
        looker.all(NODES, Node),
        looker.all(PODS, kind),
    )
    if nodes.value is None or pods.value is None:
        raise NotLookedError(nodes.problem or pods.problem)
    found = view(nodes.value, pods.value, installed(maps, arguments).names)
    if arguments.node:
        known = {node.name for node in found.nodes}
        missing = [name for name in arguments.node if name not in known]
        if missing:
            there = ", ".join(sorted(known)) or "none"
            raise NoSuchNodeError(f"no GPU node {', '.join(missing)}; there are {there}")
        found = msgspec.structs.replace(found, nodes=tuple(node for node in found.nodes if node.name in arguments.node))
    return found, pods.value
