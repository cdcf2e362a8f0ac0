"""Lists of node names, resolved once: kube-scheduler sends the same few lists over and over.

5,000 names are 100 kB of JSON, which cost 2 ms to decode and look up; the bytes themselves are the key to what came out.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from typing import Final

import numpy as np

from tessera.placement.columns import IntArray
from tessera.placement.ledger import Ledger
from webhook.extender.wire import FilterArgs, read_names

_MOST_KEPT: Final = 16
_LONGEST_KEPT: Final = 1 << 20
_SHORTEST_KEPT: Final = 4096
"""A node that a pod was promised is asked about alone; such lists must not push the long ones out."""


class Nodes:
    """Some nodes in no order: what is kept of a list while a pod waits.

    kube-scheduler looks at nodes with many hands at once, so no two of its lists have one order, and a `NameList` of 5,000
    nodes takes 1.5 MB. Two of the same names are equal only where they are one: `Waiting` sees to that.

    Attributes:
        names: sorted; equal names of different lists are one string.
    """

    __slots__ = ("__weakref__", "names")

    def __init__(self, names: list[str]) -> None:
        """Take names, each once."""
        self.names: tuple[str, ...] = tuple(sorted(map(sys.intern, names)))

    def __contains__(self, name: object) -> bool:
        """Whether a node of that name is among them."""
        if not isinstance(name, str):
            return False
        at = bisect_left(self.names, name)
        return at < len(self.names) and self.names[at] == name


class NameList:
    """Some nodes in the order they came.

    Attributes:
        names: of all, unknown ones included.
        rows: the ledger's row of each, -1 where it is not known.
        known: the rows of those that are known.
    """

    __slots__ = ("_nodes", "_places", "known", "names", "rows")

    def __init__(self, names: list[str], ledger: Ledger) -> None:
        """Look every name up; one that comes twice counts once."""
        self.names = list(dict.fromkeys(names))
        self.rows: IntArray = np.array([ledger.row(name) for name in self.names], np.int64)
        self.known: IntArray = self.rows[self.rows >= 0]
        self._nodes: Nodes | None = None
        self._places = {int(row): place for place, row in enumerate(self.rows) if row >= 0}

    @property
    def nodes(self) -> Nodes:
        """Its names in no order."""
        if self._nodes is None:
            self._nodes = Nodes(self.names)
        return self._nodes

    def name(self, row: int) -> str:
        """The name of the node in that row."""
        return self.names[self._places[row]]


class NameLists:
    """The lists that came lately."""

    def __init__(self, ledger: Ledger) -> None:
        """Look names up in this ledger."""
        self._ledger = ledger
        # The latest first. Compared one by one: hashing 130 kB costs 100 us, comparing them 10.
        self._kept: list[tuple[bytes, NameList]] = []
        self._of = ledger.nodes_changed

    def resolve(self, args: FilterArgs) -> NameList:
        """Resolve the names of a request.

        Raises:
            WireError: names that no node has.
        """
        if args.nodes is not None:
            return NameList(list(args.nodes), self._ledger)
        if self._of != self._ledger.nodes_changed:
            self._kept.clear()
            self._of = self._ledger.nodes_changed
        for at, kept in enumerate(self._kept):
            if kept[0] == args.raw_names:
                if at:
                    self._kept.insert(0, self._kept.pop(at))
                return kept[1]
        found = NameList(read_names(args.raw_names), self._ledger)
        if _SHORTEST_KEPT <= len(args.raw_names) <= _LONGEST_KEPT:
            self._kept.insert(0, (args.raw_names, found))
            del self._kept[_MOST_KEPT:]
        return found
