"""What the ledger holds right now, as plain data: for the dashboard, `explain` and people with curl.

Unlike `tessera.report`, which tells from the objects alone, this shows what the extender decides by: reservations, slices
of pods that vanished, and why a node is not offered.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from tessera.kube.clock import rfc3339
from tessera.model.guarantee import Guarantees
from tessera.model.inventory import Health
from webhook.extender.cluster import Cluster
from webhook.extender.wire import encode

TOGETHER: Final = 16
"""Nodes written before others get the loop: 3 ms."""


class HeldView(msgspec.Struct, frozen=True, rename="camel"):
    """What one pod holds on one GPU.

    Attributes:
        uid: of the pod. pod: ``namespace/name``, or "" where its object is gone or not there yet.
        units, compute: memory units and percent of SMs. instances: MIG instances.
    """

    uid: str
    pod: str
    units: int
    compute: int
    instances: tuple[str, ...] = ()


class GpuView(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One GPU: units it has, units and compute percent held in all, foreign use, and by whom the rest."""

    id: str
    uuid: str
    index: int
    model: str
    health: Health
    guarantee: Guarantees
    units: int
    held_units: int
    held_compute: int
    foreign_units: int
    holders: tuple[HeldView, ...]


class RefusingView(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Pods that are kept from a node because its kubelet has refused others of theirs.

    Attributes:
        namespace, controller: whose pods; the UID of their controller, or "" for all of the namespace.
        refused: pods that were refused. until: moment (RFC 3339) at which the node opens for one of them.
        text: all of it for people.
    """

    namespace: str
    controller: str
    refused: int
    until: str
    text: str


class NodeView(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One node; `closed` says why it is not offered, "" where it is, and `refusing` from whom it is kept all the same."""

    name: str
    closed: str
    refusing: tuple[RefusingView, ...]
    gpus: tuple[GpuView, ...]


class Snapshots:
    """The JSON of all nodes, made a few nodes at a time, one for all who ask meanwhile.

    5,000 nodes with 40,000 pods take a second to write down; at once, that would be a second without a filter.
    """

    def __init__(self, cluster: Cluster) -> None:
        """Show this cluster."""
        self._cluster = cluster
        self._making: asyncio.Task[bytes] | None = None

    async def json(self) -> bytes:
        """A list of `NodeView`, by name."""
        if self._making is None:
            self._making = asyncio.create_task(self._write())
            self._making.add_done_callback(self._made)
        # One who goes away doesn't take it from the others.
        return await asyncio.shield(self._making)

    def _made(self, _: asyncio.Task[bytes]) -> None:
        self._making = None

    async def _write(self) -> bytes:
        text = bytearray(b"[")
        for count, name in enumerate(self._cluster.ledger, 1):
            view = node_view(self._cluster, name)
            if view is not None:
                text += encode(view)
                text += b","
            if count % TOGETHER == 0:
                await asyncio.sleep(0)
        if len(text) > 1:
            text.pop()
        return bytes(text + b"]")


def node_view(cluster: Cluster, name: str) -> NodeView | None:
    """One node; None where it has no GPUs."""
    states = cluster.ledger.states(name)
    if not states:
        return None
    holders: dict[str, list[HeldView]] = {}
    for uid, counted in sorted(cluster.ledger.holdings(name).items()):
        pod = cluster.pods.by_uid(uid)
        key = pod.key if pod is not None else ""
        for gpu in sorted(counted.holdings.keys() | counted.instances.keys()):
            piece = counted.holdings.get(gpu)
            units, compute = (piece.all_units, piece.compute) if piece is not None else (0, 0)
            instances = tuple(sorted(counted.instances.get(gpu, ())))
            holders.setdefault(gpu, []).append(HeldView(uid, key, units, compute, instances))
    closed = cluster.ledger.closed(name)
    gpus = tuple(
        GpuView(
            id=state.gpu.id,
            uuid=state.gpu.uuid,
            index=state.gpu.index,
            model=state.gpu.model,
            health=state.gpu.health,
            guarantee=state.gpu.guarantee,
            units=state.gpu.units,
            held_units=state.held.all_units,
            held_compute=state.held.compute,
            foreign_units=state.gpu.held,
            holders=tuple(holders.get(state.gpu.id, ())),
        )
        for state in states
    )
    refusing = tuple(
        RefusingView(
            namespace=each.who.namespace,
            controller=each.who.controller,
            refused=each.refused,
            until=rfc3339(each.until),
            text=each.text,
        )
        for each in cluster.refusals.left_alone(name)
    )
    return NodeView(name=name, closed=closed.slug if closed is not None else "", refusing=refusing, gpus=gpus)
