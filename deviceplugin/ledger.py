"""The node's own ledger: which container holds which device IDs, and what that comes to on each GPU.

The kubelet has the same knowledge, but it has handed one ID to two pods (kubernetes PR 137534), it frees lazily, and it
knows nothing of the sums between views. So the plugin keeps its own record and refuses what the record says is given.

In memory and without I/O: `ledgerfile` stores it, `rebuild` and `settle` compare it with the kubelet and the API.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

import msgspec

from deviceplugin.devices import View, gpu_of
from deviceplugin.errors import RefusedError
from tessera.model.errors import QuantityError
from tessera.model.names import Names
from tessera.model.quantity import whole
from tessera.placement.holding import NOTHING, Holding, percent_units

UNKNOWN: Final = "?"
"""First character of the UID of a pod that could not be told when it was served; a number follows."""
MOST_GRANTS: Final = 8192
"""A node runs a few hundred containers; more entries than this are a fault, not a load."""


class Owner(NamedTuple):
    """Who holds something: one container of one pod.

    Attributes:
        uid: the pod's UID (a mirror pod's: the UID of its static pod), or `UNKNOWN` and a number.
        container: its name, "" where the pod is not known.
    """

    uid: str
    container: str


class Grant(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one container was given.

    Attributes:
        uid, container: see `Owner`.
        namespace, name: the pod's; "" where it is not known.
        init: a plain init container, whose IDs go on to the containers after it.
        planned: it is on exactly the GPUs of its plan.
        devices: resource -> IDs, sorted.
    """

    uid: str
    container: str
    namespace: str = ""
    name: str = ""
    init: bool = False
    planned: bool = False
    devices: dict[str, tuple[str, ...]]

    @property
    def owner(self) -> Owner:
        """Whose it is."""
        return Owner(self.uid, self.container)

    @property
    def pod(self) -> str:
        """The pod for people."""
        return f"{self.namespace}/{self.name}" if self.name else "a pod that is not known yet"

    @property
    def gpus(self) -> tuple[str, ...]:
        """GPUs that any of its IDs lie on, sorted."""
        return tuple(sorted({gpu_of(device) for ids in self.devices.values() for device in ids}))


class Ledger:
    """All grants of the node."""

    def __init__(self, names: Names, capacity: Mapping[str, int]) -> None:
        """Begin empty.

        Args:
            names: of the installation.
            capacity: units by GPU id; see `resize`.
        """
        self._names = names
        self._capacity = dict(capacity)
        self._grants: dict[Owner, Grant] = {}
        self._pods: dict[str, dict[str, Holding]] = {}
        self._totals: dict[str, Holding] = {}
        self._owners: dict[str, dict[str, list[Owner]]] = {}
        self._pieces: dict[Owner, tuple[Grant, dict[str, Holding]]] = {}
        self._lingering: frozenset[str] = frozenset()
        self._unknown = 0
        self._subscribers: list[Callable[[], None]] = []
        self.version = 0
        """Grows with every change."""

    # Looking.

    def __iter__(self) -> Iterator[Grant]:
        """All grants, in the order in which they were given."""
        return iter(tuple(self._grants.values()))

    def __len__(self) -> int:
        """Count the containers that hold something."""
        return len(self._grants)

    def get(self, owner: Owner) -> Grant | None:
        """What one container holds."""
        return self._grants.get(owner)

    def of_pod(self, uid: str) -> tuple[Grant, ...]:
        """What a pod's containers hold, in the order in which it was given."""
        return tuple(grant for grant in self._grants.values() if grant.uid == uid)

    @property
    def pods(self) -> frozenset[str]:
        """UIDs of the pods that hold something."""
        return frozenset(self._pods)

    @property
    def lingering(self) -> frozenset[str]:
        """UIDs of pods that are gone as objects but still seen on the node."""
        return self._lingering

    def capacity(self, gpu: str) -> int:
        """Units of a GPU, 0 where it is not known."""
        return self._capacity.get(gpu, 0)

    def owners(self, resource: str, device: str) -> tuple[Owner, ...]:
        """Who holds an ID: nobody, one container, several of one pod (reuse), or several pods (the kubelet's fault)."""
        return tuple(self._owners.get(resource, {}).get(device, ()))

    def taken(self, resource: str) -> frozenset[str]:
        """IDs of a resource that live pods hold."""
        return self._ids(resource, lingering=False)

    def barred(self, resource: str) -> frozenset[str]:
        """IDs of a resource that only lingering pods hold."""
        return self._ids(resource, lingering=True)

    def _ids(self, resource: str, *, lingering: bool) -> frozenset[str]:
        found = self._owners.get(resource, {})
        gone = self._lingering
        if not gone:
            return frozenset() if lingering else frozenset(found)
        return frozenset(
            device for device, owners in found.items() if all(owner.uid in gone for owner in owners) is lingering
        )

    def held(self, gpu: str, *, without: str = "") -> Holding:
        """What is held on a GPU, by all pods or by all but one."""
        total = self._totals.get(gpu, NOTHING)
        mine = self._pods.get(without, {}).get(gpu) if without else None
        return total if mine is None else total - mine

    def held_with(self, gpu: str, owner: Owner, piece: Holding, *, init: bool) -> Holding:
        """What would be held on a GPU if a container held `piece` there, beside what its pod's others hold."""
        pieces = [
            (grant.init, self._piece(grant, gpu))
            for grant in self.of_pod(owner.uid)
            if grant.container != owner.container
        ]
        return self.held(gpu, without=owner.uid) + _together([*pieces, (init, piece)])

    def pieces(self, grant: Grant) -> dict[str, Holding]:
        """What one container holds, by GPU."""
        known = self._pieces.get(grant.owner)
        if known is None or known[0] is not grant:
            known = (grant, {gpu: self._piece(grant, gpu) for gpu in grant.gpus})
            if self._grants.get(grant.owner) is grant:
                self._pieces[grant.owner] = known
        return dict(known[1])

    # Changing.

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call back after every change; it must be quick and must not raise."""
        self._subscribers.append(callback)

    def give(self, grant: Grant) -> None:
        """Record what a container was given; resources of one that is known already are added to it.

        Raises:
            RefusedError: the ledger is full.
        """
        before = self._grants.get(grant.owner)
        if before is not None:
            grant = msgspec.structs.replace(grant, devices=before.devices | grant.devices)
        elif len(self._grants) >= MOST_GRANTS:
            raise RefusedError(f"the node's ledger holds {MOST_GRANTS} containers, more than any node runs")
        self._grants[grant.owner] = grant
        self._index([grant.uid], before=[before] if before else [], after=[grant])

    def give_unknown(self, resource: str, ids: Iterable[str]) -> Grant:
        """Record IDs for a pod that could not be told; `claim` gives them to it later."""
        self._unknown += 1
        uid = f"{UNKNOWN}{self._unknown}"
        while uid in self._pods:
            self._unknown += 1
            uid = f"{UNKNOWN}{self._unknown}"
        grant = Grant(uid=uid, container="", devices={resource: tuple(sorted(ids))})
        self.give(grant)
        return grant

    def claim(self, unknown: Owner, grant: Grant) -> None:
        """A pod that could not be told is `grant`'s: move what it holds there. The IDs of `grant` itself are added."""
        found = self._grants.pop(unknown, None)
        if found is None:
            return
        self._index([unknown.uid], before=[found], after=[], tell=False)
        self.give(msgspec.structs.replace(grant, devices=found.devices | grant.devices))

    def free(self, uids: Iterable[str]) -> tuple[Grant, ...]:
        """Forget pods; returns what they held."""
        leaving = frozenset(uids) & self._pods.keys()
        gone = [grant for grant in self._grants.values() if grant.uid in leaving]
        if not gone:
            return ()
        for grant in gone:
            del self._grants[grant.owner]
        self._lingering -= leaving
        self._index(leaving, before=gone, after=[])
        return tuple(gone)

    def linger(self, uids: Iterable[str]) -> None:
        """Say which pods are gone as objects but still seen."""
        lingering = frozenset(uids) & self._pods.keys()
        if lingering != self._lingering:
            self._lingering = lingering
            self._tell()

    def load(self, grants: Iterable[Grant]) -> None:
        """Replace everything, after a restart."""
        self._grants = {grant.owner: grant for grant in grants}
        self._recount()

    def resize(self, capacity: Mapping[str, int]) -> None:
        """Take new capacities: a GPU came, went, or was cut otherwise."""
        if dict(capacity) != self._capacity:
            self._capacity = dict(capacity)
            self._recount()

    # Counting.

    def _recount(self) -> None:
        self._pods, self._totals, self._owners, self._pieces = {}, {}, {}, {}
        grants = list(self._grants.values())
        self._lingering &= {grant.uid for grant in grants}
        self._index({grant.uid for grant in grants}, before=[], after=grants)

    def _index(
        self, uids: Iterable[str], *, before: Iterable[Grant], after: Iterable[Grant], tell: bool = True
    ) -> None:
        for grant in before:
            self._pieces.pop(grant.owner, None)
            for resource, ids in grant.devices.items():
                owners = self._owners[resource]
                for device in ids:
                    owners[device].remove(grant.owner)
                    if not owners[device]:
                        del owners[device]
        for grant in after:
            for resource, ids in grant.devices.items():
                owners = self._owners.setdefault(resource, {})
                for device in ids:
                    owners.setdefault(device, []).append(grant.owner)
        for uid in uids:
            self._count(uid)
        if tell:
            self._tell()

    def _count(self, uid: str) -> None:
        grants = self.of_pod(uid)
        now = {
            gpu: _together([(grant.init, self._piece(grant, gpu)) for grant in grants])
            for gpu in {gpu for grant in grants for gpu in grant.gpus}
        }
        was = self._pods.pop(uid, {})
        if now:
            self._pods[uid] = now
        for gpu in was.keys() | now.keys():
            self._totals[gpu] = self._totals.get(gpu, NOTHING) - was.get(gpu, NOTHING) + now.get(gpu, NOTHING)

    def _piece(self, grant: Grant, gpu: str) -> Holding:
        return piece(grant.devices, gpu, capacity=self.capacity(gpu), names=self._names)

    def _tell(self) -> None:
        self.version += 1
        for callback in self._subscribers:
            callback()


def piece(devices: Mapping[str, Iterable[str]], gpu: str, *, capacity: int, names: Names) -> Holding:
    """What IDs, by resource, come to on one GPU. MIG instances come to nothing: they are counted by ID."""
    units = percent = compute = 0
    for resource, ids in devices.items():
        mine = [device for device in ids if gpu_of(device) == gpu]
        match mine[0][13] if mine else "":
            case View.UNITS:
                units += _in_units(resource, len(mine), names)
            case View.PERCENT:
                percent += len(mine)
            case View.COMPUTE:
                compute += len(mine)
    return Holding(
        units=units, percent=percent, percent_units=percent_units(percent, capacity=capacity), compute=compute
    )


def _in_units(resource: str, count: int, names: Names) -> int:
    """Units of today; pods that were started under another memoryUnit hold tickets of that size until they end."""
    if resource == names.memory_units:
        return count
    try:
        size = whole(resource.removeprefix(names.gpu_memory + "."))
    except QuantityError:
        return count
    return -(-count * size // names.memory_unit)


def _together(pieces: Iterable[tuple[bool, Holding]]) -> Holding:
    """One pod's containers on one GPU, in order of admission; see `tessera.placement.holding.pod_holdings`."""
    running = peak = NOTHING
    for init, held in pieces:
        if init:
            peak |= running + held
        else:
            running += held
    return running | peak
