"""The ledger's numbers as plain numpy arrays: one row per node, one column per GPU slot.

Only numbers that scoring needs; who holds what is the ledger's. Rows are reused when nodes come and go, and arrays only
grow, so nothing is rebuilt when the cluster changes. Every row carries the number of its last change: whoever keeps
something per row compares it and redoes only what is stale.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from tessera.model.guarantee import Guarantee
from tessera.placement.holding import Holding, free_percent, free_units

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Item = TypeVar("Item", bound=np.generic)

MOST_PROFILES: Final = 64
"""MIG profiles that are counted; NVIDIA's largest list has under 30."""
MOST_MODELS: Final = 4096
MOST_KINDS: Final = 32
"""Kinds of cards that are told apart; what comes later counts as the first kind."""
MOST_CLASSES: Final = 62
NO_CPU: Final = 1 << 40
"""Thousandths of a core left on a node that does not say how many it has: never scarce."""
CALM, UNITS, PERCENT, MEMORY, SPARE, CAPACITY, KIND = range(7)
"""Fields of `Columns.slots`; see there."""
ROOM: Final = 3
"""The first fields of `Columns.slots` tell whether a slice fits."""
_FIELDS: Final = 7
_FIRST_ROWS: Final = 16
_FIRST_WIDTH: Final = 8
_GUARANTEES: Final = tuple(Guarantee)


def guarantee_rank(guarantee: Guarantee) -> int:
    """0 for the firmest."""
    return _GUARANTEES.index(guarantee)


def gpu_number(gpu: str) -> int:
    """A GPU's id (12 hex digits) as a number above 0."""
    return int(gpu, 16) + 1


class Kind(NamedTuple):
    """What makes cards interchangeable: number of the product name in `Columns.models`, and units."""

    model: int
    units: int


class Amounts:
    """What is held, in the four sums of `Holding`, each of shape rows x slots."""

    __slots__ = ("compute", "percent", "percent_units", "units")

    def __init__(self, rows: int, width: int) -> None:
        """Nothing held."""
        self.units = np.zeros((rows, width), np.int64)
        self.percent = np.zeros((rows, width), np.int64)
        self.percent_units = np.zeros((rows, width), np.int64)
        self.compute = np.zeros((rows, width), np.int64)

    def set(self, row: int, slot: int, held: Holding) -> None:
        """Write one GPU's sums."""
        self.units[row, slot] = held.units
        self.percent[row, slot] = held.percent
        self.percent_units[row, slot] = held.percent_units
        self.compute[row, slot] = held.compute

    def clear(self, row: int) -> None:
        """Hold nothing on any GPU of a node."""
        for name in self.__slots__:
            getattr(self, name)[row] = 0

    def grow(self, rows: int, width: int) -> None:
        """Make room; what is new holds nothing."""
        for name in self.__slots__:
            setattr(self, name, grown(getattr(self, name), rows, width))


class Columns:
    """All arrays of a ledger.

    Attributes:
        capacity: units of each GPU, 0 where there is none.
        sliceable: a GPU that is not cut by MIG and has units.
        healthy: it takes new slices.
        ident: `gpu_number` of the GPU, 0 where there is no GPU.
        model: number of its product name in `models`.
        guarantee: rank of its memory guarantee.
        held: what is held, foreign use included.
        slots: of shape rows x fields x slots, what scoring reads: free thousandths of compute, the largest slice that fits
            in units and in percent, free thousandths of memory, free units, units, and number of its kind in `kinds`; all 0 on a GPU that
            takes no slices now. soft_slots: the same beside what was named.
        classes: of the pods on each GPU, as bits by number in `class_bits`; avoided: those they avoid.
        cpu: by row, thousandths of a core that no pod has requested. cores: that there are in all, 0 where unknown.
        size, idle: by row, GPUs that take slices, and how many of them hold nothing.
        soft: what was named to pods that are not bound yet.
        has_soft: by row, whether any of that is not nothing.
        closed: by row, code of the reason why the node is not offered, 0 where it is.
        rank: by row, its place in the order of names; ties go to the lowest.
        version: by row, number of its last change.
        mig_there, mig_free: by MIG profile, number of instances (on healthy GPUs and not in use, for the latter). mig_soft:
            those that were not named either. profiles: number of each profile.
        instances: of shape rows x profiles, the sums of mig_free; soft_instances: of mig_soft.
    """

    def __init__(self) -> None:
        """No rows yet."""
        self.rows = 0
        self.width = _FIRST_WIDTH
        self._allocated = _FIRST_ROWS
        shape = (_FIRST_ROWS, _FIRST_WIDTH)
        self.capacity = np.zeros(shape, np.int64)
        self.sliceable = np.zeros(shape, np.bool_)
        self.healthy = np.zeros(shape, np.bool_)
        self.ident = np.zeros(shape, np.int64)
        self.model = np.zeros(shape, np.int64)
        self.guarantee = np.zeros(shape, np.int64)
        self.held = Amounts(*shape)
        self.soft = Amounts(*shape)
        self.slots = np.zeros((_FIRST_ROWS, _FIELDS, _FIRST_WIDTH), np.int64)
        self.soft_slots = np.zeros((_FIRST_ROWS, _FIELDS, _FIRST_WIDTH), np.int64)
        self.classes = np.zeros(shape, np.int64)
        self.avoided = np.zeros(shape, np.int64)
        self.class_bits: dict[str, int] = {}
        self.cpu = np.full(_FIRST_ROWS, NO_CPU, np.int64)
        self.cores = np.zeros(_FIRST_ROWS, np.int64)
        self.size = np.zeros(_FIRST_ROWS, np.int64)
        self.idle = np.zeros(_FIRST_ROWS, np.int64)
        self.has_soft = np.zeros(_FIRST_ROWS, np.bool_)
        self.closed = np.zeros(_FIRST_ROWS, np.int64)
        self.rank = np.zeros(_FIRST_ROWS, np.int64)
        self.version = np.zeros(_FIRST_ROWS, np.int64)
        self.mig_there: dict[str, IntArray] = {}
        self.mig_free: dict[str, IntArray] = {}
        self.mig_soft: dict[str, IntArray] = {}
        self.profiles: dict[str, int] = {}
        self.instances = np.zeros((_FIRST_ROWS, 0), np.int64)
        self.soft_instances = np.zeros((_FIRST_ROWS, 0), np.int64)
        self.models: dict[str, int] = {"": 0}
        self.kinds: dict[Kind, int] = {}
        self.cards = 0
        self._version = 0
        self._free_rows: list[int] = []

    @property
    def allocated(self) -> int:
        """Rows that the arrays have room for; what is kept per row has this length."""
        return self._allocated

    @property
    def latest(self) -> int:
        """Number of the last change of any row."""
        return self._version

    def new_row(self) -> int:
        """Take a row for a node."""
        if self._free_rows:
            row = self._free_rows.pop()
        else:
            row = self.rows
            self.rows += 1
        self.ensure(self.rows, 0)
        self.cpu[row], self.cores[row] = NO_CPU, 0
        self.touch(row)
        return row

    def free_row(self, row: int) -> None:
        """Give a row back, emptied."""
        self.clear(row)
        self.closed[row] = 0
        self._free_rows.append(row)

    def clear(self, row: int) -> None:
        """Take every GPU out of a row."""
        for array in (self.capacity, self.sliceable, self.healthy, self.ident, self.model, self.guarantee):
            array[row] = 0
        self.held.clear(row)
        self.soft.clear(row)
        self.slots[row] = self.soft_slots[row] = 0
        self.classes[row] = self.avoided[row] = 0
        self.size[row] = self.idle[row] = 0
        self.cards += 1
        self.has_soft[row] = False
        for counts in (*self.mig_there.values(), *self.mig_free.values(), *self.mig_soft.values()):
            counts[row] = 0
        self.instances[row] = self.soft_instances[row] = 0
        self.touch(row)

    def touch(self, row: int) -> None:
        """Say that a row has changed."""
        self._version += 1
        self.version[row] = self._version

    def ensure(self, rows: int, width: int) -> None:
        """Make room for so many rows of so many slots; arrays double, so that a growing cluster costs little."""
        if rows <= self._allocated and width <= self.width:
            return
        allocated = self._allocated
        while allocated < rows:
            allocated *= 2
        width = max(self.width, width)
        for name in ("capacity", "sliceable", "healthy", "ident", "model", "guarantee", "classes", "avoided"):
            setattr(self, name, grown(getattr(self, name), allocated, width))
        for name in ("slots", "soft_slots"):
            setattr(self, name, grown(getattr(self, name), allocated, _FIELDS, width))
        for name in ("has_soft", "closed", "rank", "version", "cpu", "cores", "size", "idle"):
            setattr(self, name, grown(getattr(self, name), allocated))
        self.held.grow(allocated, width)
        self.soft.grow(allocated, width)
        for table in (self.mig_there, self.mig_free, self.mig_soft):
            for profile, counts in table.items():
                table[profile] = grown(counts, allocated, width)
        for name in ("instances", "soft_instances"):
            setattr(self, name, grown(getattr(self, name), allocated, len(self.profiles)))
        self._allocated, self.width = allocated, width

    def model_number(self, model: str) -> int:
        """The number of a product name; names stay, as a cluster has few. Beyond `MOST_MODELS` all share one."""
        if len(self.models) >= MOST_MODELS:
            return self.models.get(model, 0)
        return self.models.setdefault(model, len(self.models))

    def kind_number(self, model: int, units: int) -> int:
        """The number of a kind of card; kinds stay, as product names do. Beyond `MOST_KINDS` it is the first's."""
        kind = Kind(model, units)
        found = self.kinds.get(kind)
        if found is None:
            found = self.kinds[kind] = len(self.kinds) if len(self.kinds) < MOST_KINDS else 0
        return found

    def hold(self, row: int, slot: int, held: Holding, soft: Holding) -> None:
        """Write what is held on one GPU; whether it takes slices, its units and its kind stand there already."""
        self.held.set(row, slot, held)
        self.soft.set(row, slot, soft)
        units = int(self.capacity[row, slot])
        if not (self.sliceable[row, slot] and self.healthy[row, slot]):
            self.slots[row, :, slot] = self.soft_slots[row, :, slot] = 0
            return
        kind = self.kind_number(int(self.model[row, slot]), units)
        self.slots[row, :, slot] = _fields(held, units, kind)
        self.soft_slots[row, :, slot] = _fields(held + soft, units, kind) if soft else self.slots[row, :, slot]

    def mask(self, classes: Iterable[str]) -> int:
        """Classes as bits; they stay, and beyond `MOST_CLASSES` share the last one: kept apart without need."""
        bits = 0
        for name in classes:
            bits |= 1 << self.class_bits.setdefault(name, min(len(self.class_bits), MOST_CLASSES - 1))
        return bits

    def count(self, row: int, *, size: int, idle: int) -> None:
        """Write how many GPUs of a node take slices, and how many of those hold nothing."""
        self.size[row], self.idle[row] = size, idle

    def cut(self, row: int, slot: int, profile: str, counts: tuple[int, int, int]) -> None:
        """Write how many instances of a MIG profile one GPU has, has free, and has free beside what was named.

        A profile gets its place at first sight; above `MOST_PROFILES` it has none, and no pod gets an instance of it.
        """
        if profile not in self.profiles:
            if len(self.profiles) >= MOST_PROFILES:
                return
            self.profiles[profile] = len(self.profiles)
            for table in (self.mig_there, self.mig_free, self.mig_soft):
                table[profile] = np.zeros((self._allocated, self.width), np.int64)
            for name in ("instances", "soft_instances"):
                setattr(self, name, grown(getattr(self, name), self._allocated, len(self.profiles)))
        there, free, soft = self.mig_there[profile], self.mig_free[profile], self.mig_soft[profile]
        there[row, slot], free[row, slot], soft[row, slot] = counts
        number = self.profiles[profile]
        self.instances[row, number], self.soft_instances[row, number] = free[row].sum(), soft[row].sum()

    def cut_gpus(self, rows: IntArray) -> IntArray:
        """How many GPUs of each of these rows are cut by MIG."""
        found = np.zeros((len(rows), self.width), np.bool_)
        for counts in self.mig_there.values():
            found |= counts[rows] > 0
        return np.asarray(found.sum(axis=1), np.int64)


def _fields(held: Holding, units: int, kind: int) -> tuple[int, ...]:
    spare = units - held.all_units
    return (
        max(0, 10 * (100 - held.compute)),
        free_units(held, capacity=units),
        free_percent(held, capacity=units),
        max(0, 1000 * spare // units),
        spare,
        units,
        kind,
    )


def grown(array: NDArray[Item], *shape: int) -> NDArray[Item]:
    """A copy with room for more, zeros where it is new."""
    larger = np.zeros(shape, array.dtype)
    larger[tuple(slice(0, size) for size in array.shape)] = array
    return larger
