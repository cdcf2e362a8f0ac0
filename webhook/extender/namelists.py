"""Lists of node names, looked up all at once: kube-scheduler sends thousands with every pod, in another order each time.

Its own filters look at nodes with many hands and append to one list, so a list hardly ever comes twice. Nothing here is done
for each name: mostly all of them are known and `NameTable` finds their rows; else they are decoded and looked up one by one.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from itertools import compress, repeat
from typing import Final

import numpy as np

from tessera.placement.columns import IntArray
from tessera.placement.ledger import Ledger
from webhook.extender.nametable import NameTable
from webhook.extender.wire import FilterArgs, read_names

_MOST_KEPT: Final = 4
"""Lists kept: one request asks for its list several times, and others get the loop in between."""
_LONGEST_KEPT: Final = 1 << 20
_SHORTEST_TABLED: Final = 4096
"""Bytes. A node that a pod was promised is asked about alone, which is not worth a table that lasts until nodes change."""


class HashedNames(tuple[str, ...]):  # noqa: SLOT001  a tuple takes none but empty ones
    """Names that are hashed once, not whenever they are looked for."""

    _hash: int | None = None

    def __hash__(self) -> int:
        """As a tuple's."""
        if self._hash is None:
            self._hash = super().__hash__()
        return self._hash


class Nodes:
    """Some nodes in no order: what is kept of a list while a pod waits.

    A `NameList` of 5,000 nodes takes 0.6 MB, and no two lists have one order. Two of the same names are equal only where
    they are one: `Waiting` sees to that.

    Attributes:
        names: sorted; equal names of different lists are one string.
    """

    __slots__ = ("__weakref__", "names")

    def __init__(self, names: list[str]) -> None:
        """Take names, each once; those that come sorted cost a tenth."""
        self.names = HashedNames(sorted(map(sys.intern, names)))

    def __contains__(self, name: object) -> bool:
        """Whether a node of that name is among them."""
        if not isinstance(name, str):
            return False
        at = bisect_left(self.names, name)
        return at < len(self.names) and self.names[at] == name


class KeptNodes:
    """The sets of nodes that came last: pods that are refused one after the other mostly came with the same."""

    def __init__(self, ledger: Ledger) -> None:
        """Take nodes of this ledger."""
        self._ledger = ledger
        self._of = -1
        self._kept: list[tuple[IntArray, Nodes]] = []

    def on(self, rows: IntArray) -> Nodes:
        """The nodes in these rows, which ascend; all are known."""
        if self._of != self._ledger.nodes_changed:
            self._kept.clear()
            self._of = self._ledger.nodes_changed
        for of, nodes in self._kept:
            if np.array_equal(of, rows):
                return nodes
        self._ledger.rank()
        order = rows[self._ledger.columns.rank[rows].argsort()]
        found = Nodes(list(map(self._ledger.names.__getitem__, order.tolist())))
        self._kept.insert(0, (rows, found))
        del self._kept[_MOST_KEPT:]
        return found


class NameList:
    """Some nodes; it holds until nodes come or go.

    Attributes:
        rows: the ledger's row of each name in the order they came, each once; -1 where it is not known.
        known: the rows of those that are known, ascending: whatever is chosen by them hangs on no order of names.
    """

    __slots__ = ("_kept", "_ledger", "_names", "_nodes", "known", "rows")

    def __init__(
        self, ledger: Ledger, rows: IntArray, *, known: IntArray, kept: KeptNodes, names: list[str] | None = None
    ) -> None:
        """Take rows; names may be left out where all are known."""
        self._ledger = ledger
        self._kept = kept
        self._names = names
        self._nodes: Nodes | None = None
        self.rows = rows
        self.known = known

    @classmethod
    def of(cls, names: list[str], ledger: Ledger, *, kept: KeptNodes | None = None) -> NameList:
        """Look every name up; one that comes twice counts once."""
        names = list(dict.fromkeys(names))
        rows: IntArray = np.fromiter(map(ledger.rows.get, names, repeat(-1)), np.int64, len(names))
        return cls(ledger, rows, known=_distinct(rows, ledger), kept=kept or KeptNodes(ledger), names=names)

    @property
    def names(self) -> list[str]:
        """Of all in the order they came, each once, unknown ones included."""
        if self._names is None:
            self._names = list(map(self._ledger.names.__getitem__, self.rows.tolist()))
        return self._names

    @property
    def unknown(self) -> list[str]:
        """The names that no node has."""
        if len(self.known) == len(self.rows):
            return []
        return list(compress(self.names, self.rows < 0))

    @property
    def nodes(self) -> Nodes:
        """Its names in no order."""
        if self._nodes is None:
            self._nodes = self._kept.on(self.known) if len(self.known) == len(self.rows) else Nodes(self.names)
        return self._nodes

    def name(self, row: int) -> str:
        """The name of the node in that row."""
        return self._ledger.names[row]


class NameLists:
    """Looks lists up."""

    def __init__(self, ledger: Ledger) -> None:
        """Look names up in this ledger."""
        self._ledger = ledger
        self._table: NameTable | None = None
        self._nodes = KeptNodes(ledger)
        # The latest first. Compared one by one: hashing 130 kB costs 100 us, comparing them 10.
        self._kept: list[tuple[bytes, NameList]] = []
        self._of = ledger.nodes_changed

    def resolve(self, args: FilterArgs) -> NameList:
        """Resolve the names of a request.

        Raises:
            WireError: names that no node has.
        """
        if args.nodes is not None:
            return NameList.of(list(args.nodes), self._ledger, kept=self._nodes)
        if self._of != self._ledger.nodes_changed:
            self._kept.clear()
            self._table = None
            self._of = self._ledger.nodes_changed
        for at, kept in enumerate(self._kept):
            if kept[0] == args.raw_names:
                if at:
                    self._kept.insert(0, self._kept.pop(at))
                return kept[1]
        found = self._look_up(args.raw_names)
        if len(args.raw_names) <= _LONGEST_KEPT:
            self._kept.insert(0, (args.raw_names, found))
            del self._kept[_MOST_KEPT:]
        return found

    def _look_up(self, raw: bytes) -> NameList:
        if len(raw) >= _SHORTEST_TABLED:
            if self._table is None:
                self._table = NameTable(self._ledger.rows)
            rows = self._table.rows(raw)
            if rows is not None:
                known = _distinct(rows, self._ledger)
                if len(known) == len(rows):
                    return NameList(self._ledger, rows, known=known, kept=self._nodes)
        return NameList.of(read_names(raw), self._ledger, kept=self._nodes)


def _distinct(rows: IntArray, ledger: Ledger) -> IntArray:
    """Those that are rows, ascending, each once; a mask takes a tenth of the time of `np.unique`."""
    there = np.zeros(ledger.columns.rows, np.bool_)
    there[rows[rows >= 0]] = True
    return np.flatnonzero(there)
