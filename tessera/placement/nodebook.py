"""The book of one node: its GPUs, the claims booked on it, and what they come to on each GPU.

Claims are kept as they are and counted against the GPUs that the node has now, so a GPU that vanishes, comes back or
changes its size is a matter of counting this one node again. Bookings hold firmly; soft ones (what a filter has just named)
are kept apart and never make anything full.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from tessera.model.inventory import Gpu, Inventory
from tessera.model.plan import Drift
from tessera.placement.claims import Claim, Taken, taken
from tessera.placement.company import Company
from tessera.placement.gpustate import GpuState
from tessera.placement.holding import NOTHING, Holding, free_percent, free_units
from tessera.placement.reasons import Reason

MOST_GPUS: Final = 64
"""GPUs of one node; an inventory with more is not believed."""
_NO_DRIFT: Final[Drift] = {}
_NO_CLAIM: Final = Claim(())

Room = Mapping[str, tuple[int, ...]]
"""By GPU id, what it can still take in each view."""


class Slot:
    """One GPU of a node with what is held on it."""

    __slots__ = ("_state", "booked", "companies", "gpu", "idle", "index", "instances", "soft", "soft_instances")

    def __init__(self, gpu: Gpu, index: int) -> None:
        """Nothing is held yet."""
        self.gpu = gpu
        self.index = index
        self.idle = False
        self._state: GpuState | None = None
        self.booked = NOTHING
        self.soft = NOTHING
        self.instances: Counter[str] = Counter()
        self.companies: Counter[Company] = Counter()
        self.soft_instances: Counter[str] = Counter()

    @property
    def held(self) -> Holding:
        """What is booked and what the node sees in foreign use, as units."""
        return self.booked + Holding(units=self.gpu.held) if self.gpu.held else self.booked

    @property
    def takes_slices(self) -> bool:
        """It takes slices now: healthy and not cut by MIG."""
        return self.gpu.health == "ok" and self.gpu.units > 0 and not self.gpu.mig

    def state(self) -> GpuState:
        """The GPU as `fit` takes it; made once per change, as most GPUs of a node have not changed since it was asked."""
        if self._state is None:
            self._state = GpuState(self.gpu, self.held, self.instances, self.companies)
        return self._state

    def changed(self) -> None:
        """What is held is not what it was."""
        self._state = None

    def empty(self) -> None:
        """Hold nothing any more."""
        self._state = None
        self.booked = self.soft = NOTHING
        self.instances.clear()
        self.companies.clear()
        self.soft_instances.clear()


class NodeBook:
    """One node's book.

    Attributes:
        name: of the node.
        row: of the node in the ledger's columns.
        there: the Node object exists; bookings may come before it.
        closed: why it takes no pods, or None.
        unit: bytes of one unit of its inventory, 0 without one.
        cpu: thousandths of a core that pods may request in all, None where the node does not say.
        slots: its GPUs by id, in the inventory's order. gpus: the same without what is held on them.
        size: of them, those that take slices now. empty: of those, the ones that hold nothing, as the ledger has counted.
    """

    __slots__ = (
        "_bookings",
        "_drift",
        "_known",
        "_reported",
        "_soft",
        "closed",
        "cpu",
        "empty",
        "gpus",
        "name",
        "row",
        "size",
        "slots",
        "there",
        "unit",
    )

    def __init__(self, name: str, row: int) -> None:
        """A node that nothing is known of yet."""
        self.name = name
        self.row = row
        self.there = False
        self.closed: Reason | None = Reason.UNKNOWN_NODE
        self.unit = 0
        self.cpu: int | None = None
        self.slots: dict[str, Slot] = {}
        self.gpus: dict[str, Gpu] = {}
        self.size = self.empty = 0
        self._known: set[str] = set()
        self._drift: Drift = _NO_DRIFT
        self._bookings: dict[str, tuple[Claim, Taken]] = {}
        self._reported: dict[str, Taken] = {}
        self._soft: dict[str, tuple[Claim, Taken]] = {}

    @property
    def idle(self) -> bool:
        """Nothing is kept here that would be lost with it."""
        return not (self.there or self._bookings or self._soft)

    def become(self, inventory: Inventory | None, *, closed: Reason | None, drift: Drift) -> bool:
        """Take in what the node is now; True where its GPUs or its drift have changed."""
        gpus = inventory.gpus if inventory is not None else ()
        if len(gpus) > MOST_GPUS:
            gpus, closed = (), Reason.UNREADABLE
        unit = inventory.unit if inventory is not None else 0
        self.there, self.closed = True, closed
        if unit == self.unit and drift == self._drift and list(gpus) == [slot.gpu for slot in self.slots.values()]:
            return False
        self.unit, self._drift = unit, drift
        self._known.update(gpu.id for gpu in gpus)
        if len(self._known) > 4 * MOST_GPUS:
            self._known = {gpu.id for gpu in gpus}
        self.slots = {gpu.id: Slot(gpu, index) for index, gpu in enumerate(gpus)}
        self.gpus = {gpu.id: gpu for gpu in gpus}
        self.size = sum(slot.takes_slices for slot in self.slots.values())
        self.empty = 0
        self._recount()
        return True

    def leave(self) -> None:
        """The Node object is gone; what is booked under its name stays."""
        self.there = False
        self.closed = Reason.UNKNOWN_NODE
        self.unit, self.cpu, self.slots, self._drift, self._known = 0, None, {}, _NO_DRIFT, set()
        self.gpus, self.size, self.empty = {}, 0, 0
        self._recount()

    # Bookings.

    def claim(self, key: str) -> Claim | None:
        """The claim booked under a key."""
        found = self._bookings.get(key)
        return None if found is None else found[0]

    def soft_claim(self, key: str) -> Claim | None:
        """The claim named softly under a key."""
        found = self._soft.get(key)
        return None if found is None else found[0]

    def keys(self) -> list[str]:
        """The keys of all bookings."""
        return list(self._bookings)

    def holdings(self) -> dict[str, Taken]:
        """What each booking comes to, by key; what the node reported of pods that are not booked too."""
        return self._reported | {key: counted for key, (_, counted) in self._bookings.items()}

    def book(self, key: str, claim: Claim) -> set[str]:
        """Book a claim, instead of what was there under this key; return the GPUs that it touched."""
        touched = self._unbook(key)
        counted = self._count(key, claim)
        self._bookings[key] = (claim, counted)
        return touched | self._add(counted, 1)

    def release(self, key: str) -> set[str]:
        """Free a booking; return the GPUs that it touched. What the node itself reports of the pod stays held."""
        touched = self._unbook(key)
        return touched | self._report(key)

    def name_softly(self, key: str, claim: Claim) -> set[str]:
        """Remember what was named."""
        touched = self.forget_softly(key)
        counted = self._count(key, claim)
        self._soft[key] = (claim, counted)
        return touched | self._add_softly(counted, 1)

    def forget_softly(self, key: str) -> set[str]:
        """Forget what was named."""
        found = self._soft.pop(key, None)
        return self._add_softly(found[1], -1) if found is not None else set()

    @property
    def named(self) -> bool:
        """Anything was named on these GPUs."""
        return any(counted.holdings or counted.instances for _, counted in self._soft.values())

    def reports(self, key: str) -> bool:
        """The node reports something of this pod."""
        return key in self._drift

    # What is free.

    def states(self, *, without: Collection[str], soft: bool) -> list[GpuState]:
        """The GPUs with what is held on them, as `fit` takes them."""
        if not soft and not any(key in self._bookings for key in without):
            return [slot.state() for slot in self.slots.values()]
        left_out = [self._bookings[key][1] for key in without if key in self._bookings]
        left_soft = [self._soft[key][1] for key in without if key in self._soft]
        states = []
        for gpu, slot in self.slots.items():
            held = _less(slot.held, gpu, left_out)
            instances = _without(slot.instances, gpu, left_out)
            if soft:
                held += _less(slot.soft, gpu, left_soft)
                if slot.soft_instances:
                    instances = instances + _without(slot.soft_instances, gpu, left_soft)
            gone = Counter(other.company for other in left_out if other.company and gpu in other.holdings)
            states.append(GpuState(slot.gpu, held, instances, slot.companies - gone if gone else slot.companies))
        return states

    def room(self) -> Room:
        """What each healthy GPU can still take; nothing where the node is closed."""
        if self.closed is not None:
            return {}
        found = {}
        for gpu, slot in self.slots.items():
            if slot.gpu.health == "ok":
                held, capacity = slot.held, slot.gpu.units
                found[gpu] = (
                    free_units(held, capacity=capacity),
                    free_percent(held, capacity=capacity),
                    100 - held.compute,
                    len(slot.gpu.mig) - len(slot.instances),
                )
        return found

    # Inside.

    def _count(self, key: str, claim: Claim) -> Taken:
        return taken(claim, self.gpus, unit=self.unit or 1, reported=self._drift.get(key), known=self._known)

    def _recount(self) -> None:
        for slot in self.slots.values():
            slot.empty()
        for key, (claim, _) in self._bookings.items():
            counted = self._count(key, claim)
            self._bookings[key] = (claim, counted)
            self._add(counted, 1)
        self._reported.clear()
        for uid in self._drift:
            self._report(uid)
        for key, (claim, _) in self._soft.items():
            counted = self._count(key, claim)
            self._soft[key] = (claim, counted)
            self._add_softly(counted, 1)

    def _report(self, uid: str) -> set[str]:
        """Hold what the node reports of a pod that has no booking."""
        if uid not in self._drift or uid in self._bookings:
            return set()
        counted = self._reported[uid] = self._count(uid, _NO_CLAIM)
        return self._add(counted, 1)

    def _unbook(self, key: str) -> set[str]:
        old = self._bookings.pop(key, None)
        counted = old[1] if old is not None else self._reported.pop(key, None)
        return self._add(counted, -1) if counted is not None else set()

    def _add(self, counted: Taken, sign: int) -> set[str]:
        for gpu, piece in counted.holdings.items():
            slot = self.slots[gpu]
            slot.booked = slot.booked + piece if sign > 0 else slot.booked - piece
            slot.changed()
            if counted.company:
                slot.companies[counted.company] += sign
                slot.companies += Counter()
        for gpu, instances in counted.instances.items():
            _count_instances(self.slots[gpu].instances, instances, sign)
        return counted.holdings.keys() | counted.instances.keys()

    def _add_softly(self, counted: Taken, sign: int) -> set[str]:
        for gpu, piece in counted.holdings.items():
            slot = self.slots[gpu]
            slot.soft = slot.soft + piece if sign > 0 else slot.soft - piece
        for gpu, instances in counted.instances.items():
            _count_instances(self.slots[gpu].soft_instances, instances, sign)
        return counted.holdings.keys() | counted.instances.keys()


def _less(held: Holding, gpu: str, others: Iterable[Taken]) -> Holding:
    for other in others:
        held -= other.holdings.get(gpu, NOTHING)
    return held


def _without(instances: Counter[str], gpu: str, others: Iterable[Taken]) -> Counter[str]:
    gone = Counter(i for other in others for i in other.instances.get(gpu, ()))
    return instances - gone if gone else instances


def _count_instances(counts: Counter[str], instances: Iterable[str], sign: int) -> None:
    for instance in instances:
        counts[instance] += sign
        if not counts[instance]:
            del counts[instance]
