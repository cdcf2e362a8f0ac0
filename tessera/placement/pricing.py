"""The measures' state: what pods ask, which cards there are, and the tables made of both, renewed when either has drifted.

One of it is shared by all rows of scores. Everything scored by one state of the tables hangs on its `generation`.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from tessera.model.config import Measure, PolicyName
from tessera.placement.columns import CAPACITY, KIND, Columns, IntArray
from tessera.placement.instances import Cut
from tessera.placement.priced import Measured, Named
from tessera.placement.reserve import Reserve
from tessera.placement.shape import Shape
from tessera.placement.stays import Stays
from tessera.placement.tables import SMALLEST_GANG, Stock, Tables
from tessera.placement.workload import Workload

MEASURED: Final[tuple[PolicyName, ...]] = ("priced", "fragmentation")
_DRIFT: Final = 0.05
"""Share of the nodes whose cards must have changed before the tables are made anew."""


class Pricing:
    """Tables of the workload and the cards, never far behind either.

    Attributes:
        workload: what pods ask.
        generation: number of the tables; scores of another one are stale.
    """

    def __init__(self, columns: Columns, workload: Workload | None = None, measure: Measure | None = None) -> None:
        """Price the nodes of these columns; nothing has to be known of the workload yet."""
        self.workload = workload or Workload()
        self.generation = 0
        self._columns = columns
        self._measure = measure or Measure()
        self._made_for: tuple[int, int, int] | None = None
        self._tables: Tables | None = None
        self._measured: dict[PolicyName, Measured] = {}
        self._reserve = Reserve(columns)

    def configure(self, measure: Measure) -> None:
        """Take other constants from now on."""
        if measure != self._measure:
            self._measure = measure
            self._made_for = None

    def refresh(self) -> None:
        """Make the tables anew if pods or cards have changed enough since; takes some milliseconds then."""
        columns = self._columns
        changed = self._made_for is None or (
            len(columns.kinds) != self._made_for[0]
            or len(columns.profiles) != self._made_for[1]
            or columns.cards - self._made_for[2] > max(1.0, _DRIFT * columns.rows)
        )
        if self.workload.news() or changed:
            self._make()

    def measured(self, policy: PolicyName) -> Measured:
        """The measure of that name."""
        found = self._measured.get(policy)
        if found is None:
            tables, plain = self.tables, policy == "fragmentation"
            if plain:
                # What is supposed is made for `priced`. FGD does better without: 94.9 instead of 94.1 at 95 %.
                measure = msgspec.structs.replace(tables.measure, prior=0)
                tables = Tables(tables.seen, tables.stock, measure)
            found = self._measured[policy] = Measured(tables, plain=plain)
        return found

    @property
    def tables(self) -> Tables:
        """The tables in force."""
        if self._tables is None:
            self._make()
        if self._tables is None:
            raise AssertionError
        return self._tables

    def gang_size(self, shape: Shape) -> int:
        """GPUs of the nodes that are kept for pods that need whole ones, 0 where this pod may have any."""
        tables = self.tables
        size = tables.stock.node
        if tables.measure.reserve is None or size < SMALLEST_GANG or _needs_all(shape, size):
            return 0
        return size

    def refused(self, key: str, shape: Shape) -> None:
        """A pod found no room; see `Reserve.refused`."""
        if _needs_all(shape, self.tables.stock.node):
            self._reserve.refused(key, self.workload.changes)

    def placed(self, key: str) -> None:
        """A pod has found room."""
        self._reserve.placed(key)

    def unreserved(self, rows: IntArray, *, running: int, stays: Stays) -> IntArray:
        """Leave out the nodes that are kept for pods that need whole ones, unless nothing else is left; see `Reserve`."""
        now = self.workload.changes
        return self._reserve.leave_out(rows, self.tables, running=running, stays=stays, now=now)

    def names(self) -> Named:
        """Numbers of the kinds of cards by product name and units."""
        columns = self._columns
        models = list(columns.models)
        return {(models[kind.model], kind.units): number for kind, number in columns.kinds.items()}

    def _make(self) -> None:
        columns = self._columns
        rows = np.flatnonzero(columns.closed[: columns.rows] == 0)
        capacity = columns.slots[rows, CAPACITY]
        kinds = columns.slots[rows, KIND][capacity > 0]
        # The cores of a node are beside its GPUs that are cut and those that are not, by their number.
        cut = columns.cut_gpus(rows)
        beside = columns.cores[rows] * cut // np.maximum(1, columns.size[rows] + cut)
        distinct = [kind for kind, number in columns.kinds.items() if number == list(columns.kinds).index(kind)]
        stock = Stock(
            distinct,
            list(columns.models),
            np.bincount(kinds, minlength=len(distinct)).astype(np.int64),
            node=int(columns.size[rows].max(initial=0)),
            cores=int((columns.cores[rows] - beside)[columns.size[rows] > 0].sum()),
            cut=Cut({profile: int(n[rows].sum()) for profile, n in columns.mig_there.items()}, int(beside.sum())),
        )
        self._tables = Tables(self.workload.current(), stock, self._measure)
        self._measured = {}
        self._made_for = (len(columns.kinds), len(columns.profiles), columns.cards)
        self.generation += 1


def _needs_all(shape: Shape, size: int) -> bool:
    return any(part.request.whole and part.request.gpus >= size for part in shape.parts)
