"""Nodes that are kept for pods which need a whole one: how many, and which.

Small pods would fill every node a little, and a pod of eight GPUs then waits for the last of them to end. So while no more
idle nodes are left than such pods are to be expected, other pods go there only if they fit nowhere else. Where too few are
idle, the emptiest are kept as well, so that they run empty; what goes there nevertheless goes to the fullest of them. An
idle node counts only if it has the CPU that half of those pods ask: a pod without a GPU can spoil it too.

How many are expected follows from what pods ask and how long they stay, those that run taken off, and from who was refused.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final

import numpy as np

from tessera.placement.columns import Columns, IntArray
from tessera.placement.stays import Stays
from tessera.placement.tables import Tables

_MOST_REFUSED: Final = 1024
_RENEW: Final = 256
"""Pods seen after which the number expected is worked out anew."""
_MOST_CPU: Final = (1 << 24) - 1
_ROWS: Final = 1 << 20
_UNFIT: Final = -1
_IDLE: Final = 1 << 62
_FEW: Final = 3


class Reserve:
    """The nodes of `size` GPUs, all that a node may have at most, that are kept."""

    def __init__(self, columns: Columns) -> None:
        """Keep nodes of these columns."""
        self._columns = columns
        self._refused: OrderedDict[str, int] = OrderedDict()
        self._expected = self._cpu = 0.0
        self._made_of: tuple[Tables, int] | None = None
        self._known: tuple[int, float, int] | None = None
        self._seen = -1
        self._order = np.zeros(0, np.int64)
        self._count = 0

    def refused(self, key: str, now: int) -> None:
        """A pod that needs a whole node found none: one more is kept, until it has one or half a workload has come since.

        What comes says how many whole nodes will be wanted while a cluster fills; where pods end, those that stay longest
        hold most of it, and that shows in who is refused.
        """
        self._refused.pop(key, None)
        self._refused[key] = now
        if len(self._refused) > _MOST_REFUSED:
            self._refused.popitem(last=False)

    def placed(self, key: str) -> None:
        """A pod has found room."""
        self._refused.pop(key, None)

    def leave_out(self, rows: IntArray, tables: Tables, *, running: int, stays: Stays, now: int) -> IntArray:
        """Of nodes that fit, leave out those that are kept, unless nothing else is left.

        Args:
            rows: nodes that fit.
            tables: in force.
            running: pods that have a whole node now.
            stays: how long pods stay.
            now: number of pods seen.
        """
        while self._refused and now - next(iter(self._refused.values())) > tables.measure.half_life:
            self._refused.popitem(last=False)
        self._expect(tables, stays, now)
        self._look(tables.stock.node)
        lacking = math.floor(self._expected - running + len(self._refused) - self._count)
        if lacking < 0:
            return rows
        others = rows[self._order.take(rows) < _IDLE]
        if not lacking or not len(others):
            return others if len(others) else rows
        fuller = others[self._order.take(others) < self._least(lacking)]
        if len(fuller):
            return fuller
        idle = self._columns.idle.take(others)
        return np.asarray(others[idle == idle.min()], np.int64)

    def _expect(self, tables: Tables, stays: Stays, now: int) -> None:
        if self._made_of is not None and self._made_of[0] is tables and now - self._made_of[1] < _RENEW:
            return
        self._made_of = (tables, now)
        count, self._cpu = tables.whole_nodes(stays)
        sigma = tables.measure.reserve or 0.0
        self._expected = count + sigma * math.sqrt(count)

    def _look(self, size: int) -> None:
        """Bring up to date how soon each node would be idle, or that it would not do."""
        columns = self._columns
        known = (size, self._cpu, columns.allocated)
        if self._known != known:
            self._known, self._seen, self._count = known, -1, 0
            self._order = np.full(columns.allocated, _UNFIT, np.int64)
        elif self._seen == columns.latest:
            return
        rows = (columns.version[: columns.rows] > self._seen).nonzero()[0]
        self._seen = columns.latest
        if len(rows) > _FEW:
            before = np.count_nonzero(self._order.take(rows) == _IDLE)
            self._order[rows] = found = self._orders(rows, size)
            self._count += int(np.count_nonzero(found == _IDLE)) - int(before)
            return
        for row in rows.tolist():
            order = self._order_of(row, size)
            self._count += (order == _IDLE) - (self._order.item(row) == _IDLE)
            self._order[row] = order

    def _orders(self, rows: IntArray, size: int) -> IntArray:
        """How soon nodes would be idle: most GPUs idle, of equals most CPU left, then the first."""
        columns = self._columns
        idle, cpu, cores = columns.idle.take(rows), columns.cpu.take(rows), columns.cores.take(rows)
        fitting = (columns.size.take(rows) == size) & (columns.closed.take(rows) == 0)
        fitting &= (cores == 0) | (cores >= self._cpu)
        order = ((idle << 24) + np.clip(cpu, 0, _MOST_CPU) + 1) * _ROWS - rows
        order[(idle == size) & (cpu >= self._cpu)] = _IDLE
        return np.where(fitting, order, _UNFIT)

    def _order_of(self, row: int, size: int) -> int:
        """The same for one node, in a tenth of the time."""
        columns = self._columns
        if columns.size.item(row) != size or columns.closed.item(row) or 0 < columns.cores.item(row) < self._cpu:
            return _UNFIT
        idle, cpu = columns.idle.item(row), columns.cpu.item(row)
        if idle == size and cpu >= self._cpu:
            return _IDLE
        return ((idle << 24) + min(max(0, cpu), _MOST_CPU) + 1) * _ROWS - row

    def _least(self, lacking: int) -> int:
        """The order from which on nodes are kept: all that are idle, and so many more."""
        rows = self._columns.rows
        others = rows - self._count - lacking
        if others <= 0:
            return 0
        return max(0, int(np.partition(self._order[:rows], others)[others]))
