"""The cluster's GPUs and who holds what of them, from Node and Pod objects alone.

Anybody who may read nodes and pods can build it: inventory and drift stand on the nodes, plans on the pods. Drift is
what a node really gave, so it wins over a plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from tessera.model import inventory as inventories
from tessera.model import plan as plans
from tessera.model import request as requests
from tessera.model.errors import AnnotationError, RequestError
from tessera.model.guarantee import Guarantees
from tessera.model.inventory import Health, Inventory
from tessera.model.names import Names
from tessera.model.node import Node
from tessera.model.plan import PlannedSlice
from tessera.model.pod import Pod, Role
from tessera.model.profile import REGION
from tessera.model.tickets import DIALECT as TICKETS
from tessera.model.tickets import Ask, asks, describe
from tessera.placement.holding import NOTHING, Holding, pod_holdings


class SliceView(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One container's slice of one GPU.

    Attributes:
        units: memory units it holds; 0 for a MIG instance. compute: percent reserved, 0 where none was asked.
        instance: MIG instance, or "". drift: the node gave this, not a plan.
    """

    pod: str
    container: str
    role: Role
    dialect: str
    units: int
    compute: int
    whole: bool = False
    instance: str = ""
    drift: bool = False


class GpuView(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One GPU: what it has, what of it is held (init containers' reuse counted), and by whom.

    Attributes:
        units, held_units, foreign_units: memory units it has; held by slices; in use by processes outside any slice.
        held_compute: percent of SMs reserved.
    """

    id: str
    index: int
    model: str
    health: Health
    guarantee: Guarantees
    memory: int
    units: int
    held_units: int
    held_compute: int
    foreign_units: int
    slices: tuple[SliceView, ...]


class NodeView(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One GPU node; `problem` says why its inventory can't be read, where it can't.

    Attributes:
        unit: bytes of one memory unit. state: ``serving``, ``draining``, or ``not ready`` by its kubelet.
    """

    name: str
    region: str
    state: str
    unit: int
    gpus: tuple[GpuView, ...]
    problem: str = ""


class WaitingView(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A pod that asks for GPUs and has no node yet."""

    pod: str
    asks: str


class ClusterView(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Everything there is to see, nodes and pods by name."""

    nodes: tuple[NodeView, ...]
    waiting: tuple[WaitingView, ...]

    @property
    def gpus(self) -> tuple[GpuView, ...]:
        """All GPUs of all nodes."""
        return tuple(gpu for node in self.nodes for gpu in node.gpus)


def view(nodes: Iterable[Node], pods: Iterable[Pod], names: Names) -> ClusterView:
    """Build the view. Objects that can't be read are shown with their problem, never left out in silence."""
    by_node: dict[str, list[Pod]] = {}
    waiting = []
    for pod in sorted(pods, key=lambda pod: pod.key):
        if pod.ended:
            continue
        if pod.spec.node_name:
            by_node.setdefault(pod.spec.node_name, []).append(pod)
        elif asked := _asks(pod, names):
            text = "; ".join(f"{ask.container}: {describe(ask.request)}" for ask in asked)
            waiting.append(WaitingView(pod=pod.key, asks=text))
    shown = [
        _node(node, by_node.get(node.metadata.name, []), names)
        for node in sorted(nodes, key=lambda node: node.metadata.name)
        if node.metadata.annotation(names.inventory) is not None
    ]
    return ClusterView(nodes=tuple(shown), waiting=tuple(waiting))


def _node(node: Node, pods: list[Pod], names: Names) -> NodeView:
    region = (node.metadata.labels or {}).get(REGION, "")
    try:
        found = inventories.decode(node.metadata.annotation(names.inventory) or "")
        text = node.metadata.annotation(names.drift)
        drift = plans.decode_drift(text) if text else {}
    except AnnotationError as error:
        return NodeView(
            name=node.metadata.name, region=region, state="unknown", unit=names.memory_unit, gpus=(), problem=str(error)
        )
    capacity = {gpu.id: gpu.units for gpu in found.gpus}
    slices: dict[str, list[SliceView]] = {gpu: [] for gpu in capacity}
    held: dict[str, Holding] = {}
    for pod in pods:
        asked = _asks(pod, names)
        real = drift.get(pod.metadata.uid)
        given = real if real is not None else _planned(pod, node, names)
        dialect = _dialect(pod, names)
        for ask in asked:
            for piece in given.get(ask.container, ()):
                if piece.gpu in slices:
                    slices[piece.gpu].append(_slice(pod, ask, piece, dialect=dialect, drift=real is not None))
        homes = {name: tuple(piece.gpu for piece in pieces if piece.gpu in capacity) for name, pieces in given.items()}
        for gpu, holding in pod_holdings(asked, homes, capacity=capacity, unit=found.unit).items():
            held[gpu] = held.get(gpu, NOTHING) + holding
    return NodeView(
        name=node.metadata.name,
        region=region,
        state=found.state if node.ready else "not ready",
        unit=found.unit,
        gpus=_gpus(found, slices, held),
    )


def _gpus(found: Inventory, slices: Mapping[str, list[SliceView]], held: Mapping[str, Holding]) -> tuple[GpuView, ...]:
    return tuple(
        GpuView(
            id=gpu.id,
            index=gpu.index,
            model=gpu.model,
            health=gpu.health,
            guarantee=gpu.guarantee,
            memory=gpu.memory,
            units=gpu.units,
            held_units=held.get(gpu.id, NOTHING).all_units,
            held_compute=held.get(gpu.id, NOTHING).compute,
            foreign_units=gpu.held,
            slices=tuple(slices[gpu.id]),
        )
        for gpu in found.gpus
    )


def _planned(pod: Pod, node: Node, names: Names) -> Mapping[str, tuple[PlannedSlice, ...]]:
    text = pod.metadata.annotation(names.plan)
    if text is None:
        return {}
    try:
        made = plans.decode(text)
    except AnnotationError:
        return {}
    return made.containers if made.node == node.metadata.name else {}


def _slice(pod: Pod, ask: Ask, piece: PlannedSlice, *, dialect: str, drift: bool) -> SliceView:
    return SliceView(
        pod=pod.key,
        container=ask.container,
        role=ask.role,
        dialect=ask.request.dialect or dialect,
        units=piece.units or 0,
        compute=piece.compute or 0,
        whole=piece.whole,
        instance=piece.instance or "",
        drift=drift,
    )


def _dialect(pod: Pod, names: Names) -> str:
    text = pod.metadata.annotation(names.request)
    try:
        return requests.decode(text).dialect if text else TICKETS
    except AnnotationError:
        return TICKETS


def _asks(pod: Pod, names: Names) -> tuple[Ask, ...]:
    try:
        return asks(pod, names)
    except RequestError:
        return ()
