"""What a pod asks, stripped of names: pods of one shape fit the same nodes equally well.

A cluster sees few shapes many times, so everything that is computed per node is kept per shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from tessera.model.errors import RequestError
from tessera.model.pod import Role
from tessera.model.request import ContainerRequest
from tessera.model.tickets import Ask, units_of
from tessera.placement.holding import NOTHING, Holding, hold
from tessera.placement.wishes import Wishes

MOST_CONTAINERS: Final = 64
"""Containers of one pod that may ask; a limit bounds the search for an arrangement."""


class Part(msgspec.Struct, frozen=True):
    """What one container asks, in the kubelet's order of admission."""

    role: Role
    request: ContainerRequest


class Shape(msgspec.Struct, frozen=True):
    """What one pod asks.

    Attributes:
        unit: bytes of one memory unit.
        parts: the containers that ask.
        wishes: which GPUs it would like.
        cordoned: it tolerates cordoned nodes.
        cpu: thousandths of a core that the whole pod requests.
    """

    unit: int
    parts: tuple[Part, ...]
    wishes: Wishes = Wishes()
    cordoned: bool = False
    cpu: int = 0

    @property
    def slices(self) -> tuple[Part, ...]:
        """The parts that ask for slices or whole GPUs, not for MIG instances."""
        return tuple(part for part in self.parts if part.request.mig is None)

    @property
    def together(self) -> bool:
        """All slices have to be on one GPU: the kubelet hands a plain init container's IDs on at random."""
        return any(part.role == "init" for part in self.slices)

    @property
    def instances(self) -> dict[str, int]:
        """By MIG profile, how many instances the pod holds at once, as Kubernetes counts init containers."""
        running: dict[str, int] = {}
        peak: dict[str, int] = {}
        for part in self.parts:
            if part.request.mig is None:
                continue
            profile = profile_name(part.request.mig)
            if part.role == "init":
                peak[profile] = max(peak.get(profile, 0), running.get(profile, 0) + part.request.gpus)
            else:
                running[profile] = running.get(profile, 0) + part.request.gpus
        return {profile: max(running.get(profile, 0), peak.get(profile, 0)) for profile in running.keys() | peak.keys()}

    def total(self, capacity: int) -> Holding:
        """What the slices of all containers hold on one GPU of so many units, if all are there."""
        running = peak = NOTHING
        for part in self.slices:
            piece = hold(part.request, capacity=capacity, unit=self.unit)
            if part.role == "init":
                peak |= running + piece
            else:
                running += piece
        return running | peak

    def units(self, part: Part) -> int:
        """Memory units that a part asks on each GPU; 0 where it asks in percent."""
        return units_of(part.request.memory, self.unit) if part.request.memory is not None else 0


def shape_of(asks: Sequence[Ask], *, unit: int, wishes: Wishes, cordoned: bool = False, cpu: int = 0) -> Shape:
    """The shape of a pod.

    Args:
        asks: its containers that ask, in order.
        unit: bytes of one memory unit.
        wishes: from its annotations.
        cordoned: it tolerates cordoned nodes.
        cpu: thousandths of a core that the whole pod requests.

    Raises:
        RequestError: more containers ask than any pod needs, or several GPUs where an init container ties all to one.
    """
    if len(asks) > MOST_CONTAINERS:
        raise RequestError(
            f"{len(asks)} containers ask for GPUs", fix=f"let at most {MOST_CONTAINERS} containers of one pod ask"
        )
    parts = tuple(Part(ask.role, _bare(ask.request)) for ask in asks)
    shape = Shape(unit, parts, wishes, cordoned, cpu)
    several = next((a for a in asks if a.request.mig is None and a.request.gpus > 1), None)
    if several is not None and shape.together:
        raise RequestError(
            f"asks for {several.request.gpus} GPUs in a pod whose init container asks too",
            container=several.container,
            fix="make the init container a sidecar (restartPolicy Always) or let it ask for nothing",
        )
    return shape


def profile_name(profile: str) -> str:
    """A MIG profile as ticket names write it: ``+`` has no place there."""
    return profile.replace("+", ".")


def _bare(request: ContainerRequest) -> ContainerRequest:
    if request.dialect is None and not request.init:
        return request
    return msgspec.structs.replace(request, dialect=None, init=False)
