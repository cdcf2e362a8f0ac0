"""The arithmetic of `holding`, once more on arrays of nodes x GPUs.

Same names, same rounding: floor division of negative numbers rounds the same way in Python and in numpy, which is what
the ceilings are written with.
"""

from __future__ import annotations

import numpy as np

from tessera.placement.columns import Amounts, BoolArray, Columns, IntArray
from tessera.placement.shape import Part, Shape


class Pieces:
    """What something asks on each GPU of some nodes; amounts that depend on the GPU's size are arrays."""

    __slots__ = ("compute", "percent", "percent_units", "units")

    def __init__(self, units: int, percent: int, percent_units: IntArray, compute: int) -> None:
        """Hold the four sums of `Holding`; only one depends on the capacity."""
        self.units = units
        self.percent = percent
        self.percent_units = percent_units
        self.compute = compute

    @classmethod
    def of(cls, shape: Shape, part: Part, capacity: IntArray) -> Pieces:
        """What one container asks, as `holding.hold` counts it."""
        request = part.request
        if request.whole:
            return cls(0, 100, np.maximum(1, capacity), 100)
        percent = request.memory_percent or 0
        units = np.maximum(1, percent * capacity // 100) if percent else np.zeros_like(capacity)
        return cls(shape.units(part), percent, units, request.compute or 0)

    @classmethod
    def together(cls, shape: Shape, capacity: IntArray) -> Pieces:
        """What all containers ask on one GPU, as `Shape.total` counts it."""
        running = cls(0, 0, np.zeros_like(capacity), 0)
        peak = cls(0, 0, np.zeros_like(capacity), 0)
        for part in shape.slices:
            piece = cls.of(shape, part, capacity)
            if part.role == "init":
                peak = peak.larger(running.plus(piece))
            else:
                running = running.plus(piece)
        return running.larger(peak)

    def within(self, capacity: IntArray) -> BoolArray:
        """Where an empty GPU of that size can hold it: `holding.within`."""
        percent = self.percent - (-100 * self.units // np.maximum(1, capacity))
        return (capacity > 0) & (self.units + self.percent_units <= capacity) & (self.compute <= 100) & (percent <= 100)

    def plus(self, other: Pieces) -> Pieces:
        """Both together."""
        return Pieces(
            self.units + other.units,
            self.percent + other.percent,
            self.percent_units + other.percent_units,
            self.compute + other.compute,
        )

    def larger(self, other: Pieces) -> Pieces:
        """The larger of each sum."""
        return Pieces(
            max(self.units, other.units),
            max(self.percent, other.percent),
            np.maximum(self.percent_units, other.percent_units),
            max(self.compute, other.compute),
        )


class View:
    """Some rows of the columns, with what is held there: firmly, or softly too."""

    __slots__ = ("capacity", "compute", "percent", "percent_units", "safe_capacity", "units")

    def __init__(self, columns: Columns, rows: IntArray, *, soft: bool) -> None:
        """Copy what is needed of these rows."""
        self.capacity = columns.capacity[rows]
        self.safe_capacity = np.maximum(1, self.capacity)
        self.units, self.percent, self.percent_units, self.compute = _sums(columns.held, rows)
        if soft:
            for name, more in zip(
                ("units", "percent", "percent_units", "compute"), _sums(columns.soft, rows), strict=True
            ):
                setattr(self, name, getattr(self, name) + more)

    def room(self, piece: Pieces) -> BoolArray:
        """Where one more such piece fits: `holding.within` of both together."""
        units, percent_units = self.units + piece.units, self.percent_units + piece.percent_units
        percent = self.percent + piece.percent - (-100 * units // self.safe_capacity)
        return (
            (self.capacity > 0)
            & (units + percent_units <= self.capacity)
            & (self.compute + piece.compute <= 100)
            & (percent <= 100)
        )

    def left(self, piece: Pieces | None = None) -> IntArray:
        """`policies.left` of each GPU, once it also holds the piece; 0 where there is no GPU."""
        units, compute = self.units + self.percent_units, self.compute
        if piece is not None:
            units = units + piece.units + piece.percent_units
            compute = compute + piece.compute
        found = np.maximum(0, 1000 * (self.capacity - units) // self.safe_capacity)
        return np.where(self.capacity > 0, found + np.maximum(0, 10 * (100 - compute)), 0)

    def free_units(self) -> IntArray:
        """`holding.free_units` of each GPU."""
        by_units = self.capacity - self.units - self.percent_units
        by_percent = (100 - self.percent) * self.capacity // 100 - self.units
        free: IntArray = np.maximum(0, np.minimum(by_units, by_percent))
        return free

    def free_percent(self) -> IntArray:
        """`holding.free_percent` of each GPU."""
        free = self.capacity - self.units - self.percent_units
        by_percent = 100 + (-100 * self.units // self.safe_capacity) - self.percent
        by_units = (100 * (free + 1) - 1) // self.safe_capacity
        return np.where((self.capacity > 0) & (free >= 1), np.maximum(0, np.minimum(by_percent, by_units)), 0)


def _sums(amounts: Amounts, rows: IntArray) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    return amounts.units[rows], amounts.percent[rows], amounts.percent_units[rows], amounts.compute[rows]
