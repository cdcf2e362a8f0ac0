"""What the ledger holds right now, as plain data: for the dashboard, `explain` and people with curl.

Unlike `tessera.report`, which tells from the objects alone, this shows what the extender decides by: reservations, slices
of pods that vanished, and why a node is not offered.
"""

from __future__ import annotations

import msgspec

from tessera.model.guarantee import Guarantees
from tessera.model.inventory import Health
from webhook.extender.cluster import Cluster


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


class NodeView(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One node; `closed` says why it is not offered, "" where it is."""

    name: str
    closed: str
    gpus: tuple[GpuView, ...]


def snapshot(cluster: Cluster) -> tuple[NodeView, ...]:
    """All nodes with GPUs, by name."""
    found = []
    for name in cluster.ledger:
        states = cluster.ledger.states(name)
        if not states:
            continue
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
        found.append(NodeView(name=name, closed=closed.slug if closed is not None else "", gpus=gpus))
    return tuple(found)
