"""A GPU as a decision sees it, a place on one, and the conditions that one GPU meets or doesn't by itself.

These are the words that every decision takes and gives: the extender's and the node agent's placement, the preemptor's
victims, the webhook's question whether a pod can ever fit, the doctor. They stand below all of these, so that who only
speaks of GPUs and places does not draw in how places are chosen (`tessera.placement.fit`, `tessera.placement.mig`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from tessera.model.inventory import Gpu
from tessera.placement.company import Company
from tessera.placement.holding import NOTHING, Holding, fits, hold
from tessera.placement.shape import Part, Shape


class GpuState:
    """One GPU with what is held on it: what placement needs to know of it.

    Attributes:
        gpu: as the inventory describes it.
        held: everything held on it, foreign use included (as units).
        taken: IDs of its MIG instances that are in use.
        companies: of the pods that hold slices there.
    """

    __slots__ = ("companies", "gpu", "held", "taken")

    def __init__(
        self, gpu: Gpu, held: Holding = NOTHING, taken: Collection[str] = (), companies: Collection[Company] = ()
    ) -> None:
        """Describe one GPU; the collections are only read."""
        self.companies = companies
        self.gpu = gpu
        self.held = held
        self.taken = taken

    def __repr__(self) -> str:
        """Show what a failed assertion needs."""
        return f"GpuState({self.gpu.id}, {self.gpu.units} units, {self.held}, taken={sorted(self.taken)})"


class Place(msgspec.Struct, frozen=True, gc=False):
    """One GPU of a container, or one MIG instance on it."""

    gpu: str
    instance: str | None = None


Places = Mapping[str, tuple[Place, ...]]
"""By container name, where it is: one place per GPU or instance asked."""


def matches(shape: Shape, state: GpuState) -> bool:
    """Whether the GPU is one that the pod's wishes allow: by UUID, by model, by the memory guarantee it gives."""
    gpu, wishes = state.gpu, shape.wishes
    return (
        wishes.takes_uuid(gpu.uuid) and wishes.takes_model(gpu.model) and gpu.guarantee.memory.satisfies(wishes.least)
    )


def bears(shape: Shape, state: GpuState) -> bool:
    """Whether the pod and those on the GPU may be together."""
    return not state.companies or all(shape.wishes.company.bears(other) for other in state.companies)


def sliceable(state: GpuState) -> bool:
    """Whether slices can be on it at all: a GPU cut by MIG gives instances only."""
    return not state.gpu.mig and state.gpu.units > 0


def has_room(state: GpuState, part: Part, shape: Shape) -> bool:
    """Whether one slice of a container fits beside what is held there."""
    capacity = state.gpu.units
    return fits(state.held, hold(part.request, capacity=capacity, unit=shape.unit), capacity=capacity)
