"""The arithmetic of one GPU: what slices hold, and whether one more fits.

Units and percents are two views of one memory. For a GPU of U units (contract, section 2):

- a slice of p percent holds floor(p U / 100) units, at least one;
- all slices together hold at most U units;
- the sum of percents plus ceil(100 x units of the unit slices / U) is at most 100;
- the sum of compute is at most 100.

Every slice holds memory, so a whole GPU (100 percent of both) fits only where nothing else is, and nothing fits beside
it. Extender and node agent count with these same functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from tessera.model.pod import Role
from tessera.model.request import ContainerRequest
from tessera.model.tickets import Ask, units_of


class Holding(msgspec.Struct, frozen=True, gc=False):
    """What is held on one GPU, by one container, one pod or all of them.

    Attributes:
        units: units held by slices that asked in units or bytes.
        percent: percent held by slices that asked in percent.
        percent_units: units that those percents come to.
        compute: percent of the SMs reserved.
    """

    units: int = 0
    percent: int = 0
    percent_units: int = 0
    compute: int = 0

    def __add__(self, other: Holding) -> Holding:
        """Both together."""
        return Holding(
            self.units + other.units,
            self.percent + other.percent,
            self.percent_units + other.percent_units,
            self.compute + other.compute,
        )

    def __sub__(self, other: Holding) -> Holding:
        """What is left without the other, which must be part of it."""
        return Holding(
            self.units - other.units,
            self.percent - other.percent,
            self.percent_units - other.percent_units,
            self.compute - other.compute,
        )

    def __or__(self, other: Holding) -> Holding:
        """The larger of each amount: two phases of one pod that reuse each other's tickets."""
        return Holding(
            max(self.units, other.units),
            max(self.percent, other.percent),
            max(self.percent_units, other.percent_units),
            max(self.compute, other.compute),
        )

    def __bool__(self) -> bool:
        """Whether anything is held."""
        return self != NOTHING

    @property
    def all_units(self) -> int:
        """Units held in both views together."""
        return self.units + self.percent_units


NOTHING: Final = Holding()


def hold(request: ContainerRequest, *, capacity: int, unit: int) -> Holding:
    """What one container of this request holds on one GPU.

    Args:
        request: a slice or a whole GPU, not MIG (instances are counted by ID).
        capacity: units of the GPU.
        unit: bytes of one unit.
    """
    if request.whole:
        return Holding(percent=100, percent_units=max(1, capacity), compute=100)
    compute = request.compute or 0
    if request.memory is not None:
        return Holding(units=units_of(request.memory, unit), compute=compute)
    percent = request.memory_percent or 0
    return Holding(percent=percent, percent_units=percent_units(percent, capacity=capacity), compute=compute)


def percent_units(percent: int, *, capacity: int) -> int:
    """Units that a slice of so many percent holds on a GPU of `capacity` units: rounded down, at least one."""
    return max(1, percent * capacity // 100) if percent else 0


def fits(held: Holding, more: Holding, *, capacity: int) -> bool:
    """Whether `more` fits beside what is `held` on a GPU of `capacity` units."""
    total = held + more
    return within(total, capacity=capacity)


def within(total: Holding, *, capacity: int) -> bool:
    """Whether a GPU of `capacity` units can hold this much, by all the sums above."""
    if total.all_units > capacity or total.compute > 100:
        return False
    return capacity > 0 and total.percent - (-100 * total.units // capacity) <= 100


def free_units(held: Holding, *, capacity: int) -> int:
    """The largest slice in units that still fits."""
    if capacity <= 0:
        return 0
    return max(0, min(capacity - held.all_units, (100 - held.percent) * capacity // 100 - held.units))


def free_percent(held: Holding, *, capacity: int) -> int:
    """The largest slice in percent that still fits (its units count too)."""
    if capacity <= 0:
        return 0
    left = capacity - held.all_units
    most = min(100 + (-100 * held.units // capacity) - held.percent, (100 * (left + 1) - 1) // capacity)
    return max(0, most) if left >= 1 else 0


def pod_holdings(
    asks: Iterable[Ask],
    gpus: Mapping[str, Iterable[str]],
    *,
    capacity: Mapping[str, int],
    unit: int,
) -> dict[str, Holding]:
    """What a pod holds on each GPU until it ends, as Kubernetes counts its resources.

    A plain init container's tickets are reused by what starts after it, so per GPU and per ticket the pod holds
    max(init container + sidecars before it, sidecars + main containers).

    Args:
        asks: the pod's containers in the kubelet's order.
        gpus: by container name, the ids of its GPUs.
        capacity: units by GPU id.
        unit: bytes of one unit.

    Returns:
        By GPU id; GPUs on which nothing is held are absent.
    """
    running: dict[str, Holding] = {}
    peak: dict[str, Holding] = {}
    for ask in asks:
        if ask.request.mig is not None:
            continue
        for gpu in gpus.get(ask.container, ()):
            piece = hold(ask.request, capacity=capacity[gpu], unit=unit)
            if _ends_early(ask.role):
                peak[gpu] = peak.get(gpu, NOTHING) | (running.get(gpu, NOTHING) + piece)
            else:
                running[gpu] = running.get(gpu, NOTHING) + piece
    return {gpu: running.get(gpu, NOTHING) | peak.get(gpu, NOTHING) for gpu in running.keys() | peak.keys()}


def _ends_early(part: Role) -> bool:
    return part == "init"
