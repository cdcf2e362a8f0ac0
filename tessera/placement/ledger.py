"""Who holds what on every GPU of the cluster, and how much is free: changed in place, never rebuilt.

Three kinds of things are held on a GPU: bookings (bound pods, and reservations of pods that are just being bound), foreign
use that the node sees (`held`), and soft bookings (what a filter has just named: avoided, not refused). A booking is kept
as its `Claim`, by a key (the pod's UID), under its node's name, whether that node is known yet or not; what it comes to in
units is counted again whenever the node's GPUs change. So any order of events leads to the same state as counting all
objects anew, which is what the tests check.

All calls are synchronous and there is one event loop: what a caller has seen free is free when it books.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final

from tessera.model.inventory import Gpu, Inventory
from tessera.model.plan import Drift
from tessera.placement.claims import Claim, Taken
from tessera.placement.columns import NO_CPU, Columns, gpu_number, guarantee_rank
from tessera.placement.gpustate import GpuState
from tessera.placement.holding import NOTHING
from tessera.placement.mig import free_instances
from tessera.placement.nodebook import NodeBook, Room, Slot
from tessera.placement.reasons import Reason
from tessera.placement.shape import profile_name
from tessera.placement.stays import Stays

_NO_DRIFT: Final[Drift] = {}


class Ledger:
    """The state of all GPUs.

    Attributes:
        columns: the numbers as arrays, for scoring.
        rows: by name of every node that is known, its row there; to be read only.
        names: the same the other way.
        stays: how long bookings stay.
        nodes_changed: counts changes of the set of node names; what is kept per list of names hangs on it.
    """

    def __init__(self, *, grew: Callable[[str], None] | None = None) -> None:
        """Start empty.

        Args:
            grew: called with a node's name when something on it can take more than before.
        """
        self.columns = Columns()
        self.stays = Stays()
        self.rows: dict[str, int] = {}
        self.names: dict[int, str] = {}
        self.nodes_changed = 0
        self._grew = grew
        self._books: dict[str, NodeBook] = {}
        self._where: dict[str, str] = {}
        self._soft_where: dict[str, str] = {}
        self._cpu: dict[str, tuple[str, int]] = {}
        self._cpu_used: dict[str, int] = {}
        self._gangs: Counter[int] = Counter()
        self._ranked = True

    # Nodes.

    def set_node(
        self,
        name: str,
        inventory: Inventory | None,
        *,
        closed: Reason | None = None,
        drift: Drift = _NO_DRIFT,
        cpu: int | None = None,
    ) -> None:
        """Say what a node is now; called again for every change.

        Args:
            name: of the node.
            inventory: its GPUs; None where it has none or they can't be read.
            closed: why it takes no pods, or None.
            drift: what its agent reports beside the plans.
            cpu: thousandths of a core that pods may request in all; None where it does not say.
        """
        book = self._book(name)
        before = self._room(book)
        was_closed = book.closed
        if not book.there:
            self.rows[name], self.names[book.row] = book.row, name
            self._names_changed()
        if book.become(inventory, closed=closed, drift=drift):
            self.columns.clear(book.row)
            self._describe(book)
            self._write(book, book.slots)
        elif book.closed is not was_closed:
            self._write(book, ())
            self.columns.cards += 1
        if book.cpu != cpu:
            book.cpu = cpu
            self._write_cpu(book)
        self._tell(book, before)

    def drop_node(self, name: str) -> None:
        """Forget a node; bookings under its name stay and count again if it comes back."""
        book = self._books.get(name)
        if book is None or not book.there:
            return
        book.leave()
        del self.rows[name], self.names[book.row]
        self._names_changed()
        self.columns.clear(book.row)
        self._write(book, ())
        self._write_cpu(book)
        self._tidy(book)

    def __contains__(self, name: object) -> bool:
        """Whether a node of that name is known."""
        return isinstance(name, str) and name in self.rows

    def __iter__(self) -> Iterator[str]:
        """The names of the nodes that are known, in order."""
        return iter(sorted(self.rows))

    def row(self, name: str) -> int:
        """The node's row in `columns`, or -1 where it is not known."""
        return self.rows.get(name, -1)

    def closed(self, name: str) -> Reason | None:
        """Why the node takes no pods, or None where it does."""
        book = self._books.get(name)
        return book.closed if book is not None else Reason.UNKNOWN_NODE

    def gpus(self, name: str) -> dict[str, Gpu]:
        """The node's GPUs by id, in its inventory's order."""
        book = self._books.get(name)
        return dict(book.gpus) if book is not None else {}

    def states(self, name: str, *, without: Collection[str] = (), soft: bool = False) -> list[GpuState]:
        """The node's GPUs with what is held on them now.

        Args:
            name: of the node.
            without: keys whose bookings are left out (would-be victims, or the pod that asks).
            soft: count soft bookings too.
        """
        book = self._books.get(name)
        return book.states(without=without, soft=soft) if book is not None else []

    # Bookings.

    def book(self, key: str, name: str, claim: Claim) -> None:
        """Book a claim under a key; the same again changes nothing, another replaces it, on whichever node it was."""
        if self._where.get(key, name) != name:
            self.release(key)
        book = self._book(name)
        old = book.claim(key)
        if old == claim:
            return
        if old is None:
            self.stays.came(_whole(claim))
        elif _whole(old) != _whole(claim):
            self.stays.went(_whole(old))
            self.stays.came(_whole(claim))
        # What comes new makes nothing free, except where the node had reported more of the pod.
        grows = old is not None or book.reports(key)
        before = self._room(book) if grows else {}
        self._count_gang(old, -1)
        self._count_gang(claim, 1)
        self._where[key] = name
        self._write(book, book.book(key, claim))
        if grows:
            self._tell(book, before)

    def release(self, key: str) -> None:
        """Free what is booked under a key; nothing where nothing is."""
        name = self._where.pop(key, None)
        if name is None:
            return
        book = self._books[name]
        before = self._room(book)
        claim = book.claim(key)
        if claim is not None:
            self.stays.went(_whole(claim))
        self._count_gang(claim, -1)
        self._write(book, book.release(key))
        self._tell(book, before)
        self._tidy(book)

    def booked(self, key: str) -> tuple[str, Claim] | None:
        """The node and the claim booked under a key."""
        name = self._where.get(key)
        claim = self._books[name].claim(key) if name is not None else None
        return None if name is None or claim is None else (name, claim)

    def keys(self, name: str) -> list[str]:
        """What is booked on a node."""
        book = self._books.get(name)
        return book.keys() if book is not None else []

    def holdings(self, name: str) -> dict[str, Taken]:
        """What each booking of a node comes to, by key; what the node reported of unknown pods under their UIDs too."""
        book = self._books.get(name)
        return book.holdings() if book is not None else {}

    def name_softly(self, key: str, name: str, claim: Claim) -> None:
        """Remember what a filter has named; it replaces what was named under that key before."""
        self.forget_softly(key)
        book = self._book(name)
        self._soft_where[key] = name
        self._write(book, book.name_softly(key, claim))

    def forget_softly(self, key: str) -> None:
        """Forget what was named under a key."""
        name = self._soft_where.pop(key, None)
        if name is None:
            return
        book = self._books[name]
        self._write(book, book.forget_softly(key))
        self._tidy(book)

    def named(self, key: str) -> tuple[str, Claim] | None:
        """The node and the claim that were named under a key."""
        name = self._soft_where.get(key)
        claim = self._books[name].soft_claim(key) if name is not None else None
        return None if name is None or claim is None else (name, claim)

    def gangs(self, size: int) -> int:
        """How many bookings hold so many whole GPUs, or more, for one container."""
        return sum(count for gpus, count in self._gangs.items() if gpus >= size)

    # CPU, which whole pods request: also those that hold no GPU, and those of other schedulers.

    def use_cpu(self, key: str, name: str, cpu: int) -> None:
        """Say what a pod on a node requests, in thousandths of a core; it replaces what was said under that key."""
        if self._cpu.get(key) == (name, cpu):
            return
        self.free_cpu(key)
        self._cpu[key] = (name, cpu)
        self._add_cpu(name, cpu)

    def free_cpu(self, key: str) -> None:
        """A pod requests nothing any more."""
        found = self._cpu.pop(key, None)
        if found is not None:
            self._add_cpu(found[0], -found[1])

    def cpu_left(self, name: str) -> int | None:
        """Thousandths of a core that no pod on the node has requested; None where the node does not say."""
        book = self._books.get(name)
        return None if book is None or book.cpu is None else book.cpu - self._cpu_used.get(name, 0)

    def rank(self) -> None:
        """Bring `columns.rank` up to date after nodes came or went."""
        if self._ranked:
            return
        for place, name in enumerate(self):
            self.columns.rank[self.rows[name]] = place
        self._ranked = True

    # Inside.

    def _book(self, name: str) -> NodeBook:
        book = self._books.get(name)
        if book is None:
            book = self._books[name] = NodeBook(name, self.columns.new_row())
            self.columns.closed[book.row] = Reason.UNKNOWN_NODE.code
        return book

    def _tidy(self, book: NodeBook) -> None:
        if book.idle:
            self.columns.free_row(book.row)
            del self._books[book.name]

    def _names_changed(self) -> None:
        self.nodes_changed += 1
        self._ranked = False

    def _write(self, book: NodeBook, gpus: Iterable[str]) -> None:
        """Bring a node's row up to date, for these of its GPUs."""
        columns, row = self.columns, book.row
        columns.closed[row] = book.closed.code if book.closed is not None else 0
        for gpu in gpus:
            slot = book.slots[gpu]
            held = slot.held
            columns.hold(row, slot.index, held, slot.soft)
            classes = avoided = 0
            if slot.companies:
                classes = columns.mask(name for each in slot.companies for name in each.classes)
                avoided = columns.mask(name for each in slot.companies for name in each.avoids)
            columns.classes[row, slot.index], columns.avoided[row, slot.index] = classes, avoided
            idle = slot.takes_slices and not held
            book.empty += idle - slot.idle
            slot.idle = idle
            if slot.gpu.mig:
                self._write_instances(row, slot)
        columns.has_soft[row] = book.named
        columns.count(row, size=book.size, idle=book.empty)
        columns.touch(row)

    def _describe(self, book: NodeBook) -> None:
        """Write what stays the same of a node's GPUs, whatever they hold."""
        columns, row = self.columns, book.row
        columns.ensure(columns.rows, len(book.slots))
        for index, slot in enumerate(book.slots.values()):
            gpu = slot.gpu
            columns.capacity[row, index] = gpu.units
            columns.sliceable[row, index] = gpu.units > 0 and not gpu.mig
            columns.healthy[row, index] = gpu.health == "ok"
            columns.ident[row, index] = gpu_number(gpu.id)
            columns.model[row, index] = columns.model_number(gpu.model)
            columns.guarantee[row, index] = guarantee_rank(gpu.guarantee.memory)

    def _write_instances(self, row: int, slot: Slot) -> None:
        gpu = slot.gpu
        now = GpuState(gpu, NOTHING, slot.instances)
        soft = GpuState(gpu, NOTHING, slot.instances + slot.soft_instances) if slot.soft_instances else now
        # In the inventory's order: the columns number profiles by first sight.
        for profile in dict.fromkeys(profile_name(instance.profile) for instance in gpu.mig):
            there = sum(profile_name(i.profile) == profile for i in gpu.mig)
            free, beside = (len(free_instances(s, profile)) if gpu.health == "ok" else 0 for s in (now, soft))
            self.columns.cut(row, slot.index, profile, (there, free, beside))

    def _count_gang(self, claim: Claim | None, sign: int) -> None:
        for ask in claim.asks if claim is not None else ():
            if ask.request.whole and ask.request.gpus > 1:
                self._gangs[ask.request.gpus] += sign

    def _add_cpu(self, name: str, cpu: int) -> None:
        used = self._cpu_used.get(name, 0) + cpu
        if used:
            self._cpu_used[name] = used
        else:
            self._cpu_used.pop(name, None)
        book = self._books.get(name)
        if book is not None:
            self._write_cpu(book)

    def _write_cpu(self, book: NodeBook) -> None:
        left = self.cpu_left(book.name)
        self.columns.cpu[book.row] = NO_CPU if left is None else left
        self.columns.cores[book.row] = book.cpu or 0
        if book.slots:
            self.columns.touch(book.row)

    def _room(self, book: NodeBook) -> Room:
        return book.room() if self._grew is not None else {}

    def _tell(self, book: NodeBook, before: Room) -> None:
        if self._grew is None:
            return
        now = book.room()
        if any(gpu not in before or any(map(int.__gt__, room, before[gpu])) for gpu, room in now.items()):
            self._grew(book.name)


def _whole(claim: Claim) -> int:
    """The most whole GPUs that a container of it holds; 0 for slices."""
    return max((ask.request.gpus for ask in claim.asks if ask.request.whole), default=0)
