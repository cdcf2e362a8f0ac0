"""Booked beside used: the cluster view joined with what the node agents measure.

An agent tells by its metrics what each container's processes use of each GPU (`deviceplugin.monitor`). Whoever can't read
them still sees what is booked, and why the rest is missing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Final

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from tessera.model.guarantee import Guarantees
from tessera.model.inventory import Health
from tessera.report.cluster import ClusterView, GpuView, NodeView

USED: Final = "tessera_container_gpu_memory_used_bytes"
EXCESS: Final = "tessera_container_gpu_memory_excess"
FOREIGN: Final = "tessera_gpu_foreign_units"
LARGEST: Final = 8 << 20
"""Bytes of one agent's metrics; 2,048 containers on 16 GPUs come to under 1 MiB."""
_MOST_BYTES: Final = 1 << 50


class MeasureError(ValueError):
    """What an agent sent is no metrics of ours."""


class Place(msgspec.Struct, frozen=True):
    """One container on one GPU of a node; `container` is "" where only the pod can be told."""

    gpu: str
    pod: str
    container: str


class Measures(msgspec.Struct, frozen=True, kw_only=True):
    """What one node's agent has measured, or why it is not known.

    Attributes:
        used: bytes by place. above: places that use more than their slice. foreign: memory units by GPU.
    """

    used: dict[Place, int] = {}
    above: frozenset[Place] = frozenset()
    foreign: dict[str, int] = {}
    problem: str = ""


class SliceUse(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One container's slice: bytes booked and bytes used (None: not measured); `above` its slice."""

    pod: str
    container: str
    booked: int
    compute: int
    used: int | None
    whole: bool = False
    instance: str = ""
    above: bool = False


class GpuUse(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One GPU, in bytes; `used` includes `foreign`, what processes without a slice use."""

    id: str
    index: int
    model: str
    health: Health
    guarantee: Guarantees
    usable: int
    booked: int
    booked_compute: int
    used: int | None
    foreign: int
    slices: tuple[SliceUse, ...]


class NodeUse(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One node; `problem` says why it can't be shown, `unmeasured` why nothing is known of what is used there."""

    name: str
    state: str
    gpus: tuple[GpuUse, ...]
    problem: str = ""
    unmeasured: str = ""


class ClusterUse(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """All nodes, and the sums over their GPUs in bytes; `used` is over the nodes that are measured."""

    gpus: int
    measured_nodes: int
    usable: int
    booked: int
    used: int
    nodes: tuple[NodeUse, ...]


def read(text: str) -> Measures:
    """Read an agent's metrics.

    Raises:
        MeasureError: they are too large, or no metrics.
    """
    if len(text) > LARGEST:
        raise MeasureError(f"metrics of {len(text)} characters; an agent's have at most {LARGEST}")
    used: dict[Place, int] = {}
    above: set[Place] = set()
    foreign: dict[str, int] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name not in (USED, EXCESS, FOREIGN):
                    continue
                value, labels = _whole(sample.value), sample.labels
                gpu = labels.get("gpu", "")
                if sample.name == FOREIGN:
                    foreign[gpu] = value
                    continue
                pod = f"{labels.get('namespace', '')}/{labels.get('pod', '')}"
                place = Place(gpu, pod, labels.get("container", ""))
                if sample.name == USED:
                    used[place] = value
                elif value:
                    above.add(place)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise MeasureError(f"these are no metrics: {type(error).__name__}: {error}") from error
    return Measures(used=used, above=frozenset(above), foreign=foreign)


def gauges(text: str, names: Collection[str]) -> dict[str, float]:
    """The values of a page's metrics that have one sample, by name.

    Raises:
        MeasureError: it is too large, or no metrics.
    """
    if len(text) > LARGEST:
        raise MeasureError(f"metrics of {len(text)} characters; a part's have at most {LARGEST}")
    try:
        return {
            sample.name: float(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name in names and math.isfinite(sample.value)
        }
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise MeasureError(f"these are no metrics: {type(error).__name__}: {error}") from error


def _whole(value: float) -> int:
    """A sample as a whole amount; what no GPU has (NaN, infinity, below zero) is none."""
    if not 0 <= value <= _MOST_BYTES:
        raise MeasureError(f"{value} is no amount of memory")
    return int(value)


def join(view: ClusterView, measures: Mapping[str, Measures]) -> ClusterUse:
    """Put what is used beside what is booked.

    Args:
        view: of the cluster.
        measures: by node; a node that is absent has no agent that could be asked.
    """
    nodes = tuple(_node(node, measures.get(node.name)) for node in view.nodes)
    gpus = [gpu for node in nodes for gpu in node.gpus]
    return ClusterUse(
        gpus=len(gpus),
        measured_nodes=sum(not node.unmeasured and not node.problem for node in nodes),
        usable=sum(gpu.usable for gpu in gpus),
        booked=sum(gpu.booked for gpu in gpus),
        used=sum(gpu.used or 0 for gpu in gpus),
        nodes=nodes,
    )


def _node(node: NodeView, found: Measures | None) -> NodeUse:
    unmeasured = "no agent's pod is there" if found is None else found.problem
    known = None if found is None or found.problem else found
    gpus = tuple(_gpu(gpu, node.unit, known) for gpu in node.gpus)
    return NodeUse(name=node.name, state=node.state, gpus=gpus, problem=node.problem, unmeasured=unmeasured)


def _gpu(gpu: GpuView, unit: int, found: Measures | None) -> GpuUse:
    slices = []
    seen: set[Place] = set()
    for piece in gpu.slices:
        place = Place(gpu.id, piece.pod, piece.container)
        seen.add(place)
        slices.append(
            SliceUse(
                pod=piece.pod,
                container=piece.container,
                booked=piece.units * unit,
                compute=piece.compute,
                used=None if found is None else found.used.get(place, 0),
                whole=piece.whole,
                instance=piece.instance,
                above=found is not None and place in found.above,
            )
        )
    # Processes of pods that hold nothing any more as objects, or of which only the pod can be told.
    others = {p: used for p, used in (found.used if found else {}).items() if p.gpu == gpu.id and p not in seen}
    slices += [
        SliceUse(
            pod=place.pod,
            container=place.container,
            booked=0,
            compute=0,
            used=used,
            above=found is not None and place in found.above,
        )
        for place, used in sorted(others.items(), key=lambda item: (item[0].pod, item[0].container))
    ]
    foreign = (found.foreign.get(gpu.id, gpu.foreign_units) if found else gpu.foreign_units) * unit
    return GpuUse(
        id=gpu.id,
        index=gpu.index,
        model=gpu.model,
        health=gpu.health,
        guarantee=gpu.guarantee,
        usable=gpu.units * unit,
        booked=gpu.held_units * unit,
        booked_compute=gpu.held_compute,
        used=None if found is None else sum(piece.used or 0 for piece in slices) + foreign,
        foreign=foreign,
        slices=tuple(slices),
    )
