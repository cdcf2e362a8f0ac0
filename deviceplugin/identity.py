"""Which pod the kubelet is asking for: it never says so, but its PodResources List shows it.

While a pod is in admission, List shows it as the only pod with a container that asks for the resource and has none of it
(seen on kubelet 1.34: 90 of 90 pods on three kubelets, 20 bound within 21 ms). List has no UIDs and no plans, so it is
joined with the node's pods by name. Neither source is enough alone: the API shows every pod bound so far, GET /pods keeps
just-rejected ones. What can't be told is not guessed: the caller then counts as unknown.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from deviceplugin.errors import KubeletError
from deviceplugin.ledger import Ledger, Owner
from deviceplugin.podresources import Lister, Listing, PodKey
from deviceplugin.pods import NodePods, key_of, uid_of
from tessera.kube.clock import Clock
from tessera.model.errors import RequestError
from tessera.model.names import Names
from tessera.model.pod import Pod, Role, role
from tessera.model.request import ContainerRequest
from tessera.model.tickets import asks, containers, ticket_counts

_log = logging.getLogger(__name__)

ASK_AGAIN: Final = 5.0
"""Seconds before a pod that nobody knew is asked for again."""
MOST_READ: Final = 1024


class Wanting(NamedTuple):
    """One container of a pod that asks for tickets."""

    name: str
    role: Role
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Caller:
    """The container that the kubelet is asking for.

    Attributes:
        pod: its pod.
        uid: by which the kubelet knows the pod.
        container, role: which of its containers.
        counts: tickets by resource.
    """

    pod: Pod
    uid: str
    container: str
    role: Role
    counts: Mapping[str, int]

    @property
    def owner(self) -> Owner:
        """As the ledger names it."""
        return Owner(self.uid, self.container)

    def request(self, names: Names) -> ContainerRequest:
        """What it asks for, by its request annotation or its tickets.

        Raises:
            RequestError: its tickets make no sense.
        """
        for ask in asks(self.pod, names):
            if ask.container == self.container:
                return ask.request
        raise RequestError("asks for no GPU", container=self.container)

    def __str__(self) -> str:
        """For people."""
        return f"pod {self.pod.key}, container {self.container}"


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the kubelet gave.

    Attributes:
        caller: None where it could not be told.
        listing: None where the kubelet did not answer.
    """

    caller: Caller | None
    listing: Listing | None


@dataclass(frozen=True, slots=True)
class Found:
    """What a listing and the known pods say together.

    Attributes:
        callers: containers that ask and have none, one for each pod, the first in spec order.
        doubtful: containers that have none by the kubelet's word and are done by ours.
        missing: listed pods without the resource that nobody knows.
    """

    callers: tuple[Caller, ...]
    doubtful: tuple[Caller, ...]
    missing: frozenset[PodKey]


class Identity:
    """Tells callers; keeps nothing that matters over a restart."""

    def __init__(self, lister: Lister, pods: NodePods, ledger: Ledger, names: Names, clock: Clock) -> None:
        """Use these sources.

        Args:
            lister: the kubelet.
            pods: the node's pods.
            ledger: what has been given already.
            names: of the installation.
            clock: paces questions about pods that nobody knows.
        """
        self._lister = lister
        self._pods = pods
        self._ledger = ledger
        self._names = names
        self._clock = clock
        self._read: dict[str, tuple[Wanting, ...]] = {}
        self._asked: dict[PodKey, float] = {}

    async def look(self, resource: str, size: int) -> Look:
        """Find who asks for `size` IDs of a resource right now; only inside GetPreferredAllocation.

        Never fails: a kubelet that doesn't answer leaves the caller unknown.
        """
        try:
            listing = await self._lister.list()
        except KubeletError as error:
            _log.warning("%s; the pod that asks for %d %s can't be told", error, size, resource)
            return Look(None, None)
        found = self.search(listing, resource)
        caller = _only(found.callers, resource, size)
        if caller is None:
            found = self.search(listing, resource, doubt=True)
            keys = found.missing | {key_of(each.pod) for each in found.doubtful}
            await self._pods.fetch(self._worth_asking(keys))
            found = self.search(listing, resource, doubt=True)
            caller = _only(found.callers, resource, size) or _only(found.doubtful, resource, size)
        if caller is None:
            _log.warning(
                "the pod that asks for %d %s can't be told: %d candidates, %d listed pods are not known",
                size,
                resource,
                len(found.callers),
                len(found.missing),
            )
        return Look(caller, listing)

    def search(self, listing: Listing, resource: str, *, doubt: bool = False) -> Found:
        """Join a listing with the known pods.

        Args:
            listing: what the kubelet says.
            resource: who asks for it.
            doubt: look at containers that are done by our word too, of which a full node has many.
        """
        callers: list[Caller] = []
        doubtful: list[Caller] = []
        missing = set()
        for key, listed in listing.pods.items():
            pod = self._pods.get(key)
            if pod is None or pod.ended:
                # An ended pod is never listed: this is a younger one of the same name.
                if not any(container.holds(resource) for container in listed):
                    missing.add(key)
                continue
            uid = uid_of(pod)
            for wanting, sure in self._needy(pod, uid, listing, resource, doubt=doubt):
                caller = Caller(pod, uid, wanting.name, wanting.role, wanting.counts)
                (callers if sure else doubtful).append(caller)
                if sure:
                    break
        return Found(tuple(callers), tuple(doubtful), frozenset(missing))

    def next_of(self, pod: Pod, resource: str, size: int) -> Caller | None:
        """The next container of a known pod that asks for so many and has none by the ledger.

        For IDs that an init container held: the kubelet passes them on without asking which ones are preferred.
        """
        uid = uid_of(pod)
        for wanting in self.wanting(pod):
            given = self._ledger.get(Owner(uid, wanting.name))
            if wanting.counts.get(resource) == size and (given is None or resource not in given.devices):
                return Caller(pod, uid, wanting.name, wanting.role, wanting.counts)
        return None

    def caller(self, pod: Pod, container: str) -> Caller | None:
        """A container of a known pod by name, or None where it asks for nothing."""
        for wanting in self.wanting(pod):
            if wanting.name == container:
                return Caller(pod, uid_of(pod), wanting.name, wanting.role, wanting.counts)
        return None

    def wanting(self, pod: Pod) -> tuple[Wanting, ...]:
        """The containers of a pod that ask for tickets, in the order in which the kubelet admits them."""
        uid = pod.metadata.uid
        known = self._read.get(uid)
        if known is None:
            known = tuple(_wanting(pod, self._names))
            while len(self._read) >= MOST_READ:
                del self._read[next(iter(self._read))]
            self._read[uid] = known
        return known

    def _needy(
        self, pod: Pod, uid: str, listing: Listing, resource: str, *, doubt: bool
    ) -> Iterator[tuple[Wanting, bool]]:
        key = key_of(pod)
        for wanting in self.wanting(pod):
            if not wanting.counts.get(resource):
                continue
            given = self._ledger.get(Owner(uid, wanting.name))
            done = given is not None and resource in given.devices
            if wanting.role == "init":
                # List never shows plain init containers, but a pod whose containers run was admitted as a whole.
                if not done and not admitted(pod):
                    yield wanting, True
                continue
            if done and not doubt:
                continue
            listed = listing.container(key, wanting.name)
            if listed is None or not listed.holds(resource):
                yield wanting, not done

    def _worth_asking(self, keys: frozenset[PodKey]) -> set[PodKey]:
        now = self._clock.monotonic()
        self._asked = {key: at for key, at in self._asked.items() if now - at < ASK_AGAIN}
        fresh = keys - self._asked.keys()
        self._asked.update(dict.fromkeys(fresh, now))
        return set(fresh)


def _only(callers: tuple[Caller, ...], resource: str, size: int) -> Caller | None:
    matching = [caller for caller in callers if caller.counts[resource] == size]
    return matching[0] if len(matching) == 1 else None


def _wanting(pod: Pod, names: Names) -> Iterator[Wanting]:
    for container, init in containers(pod):
        try:
            counts = ticket_counts(container, names)
        except RequestError as error:
            _log.warning("pod %s: %s", pod.key, error)
            continue
        if counts:
            yield Wanting(container.name, role(container, init=init), counts)


def admitted(pod: Pod) -> bool:
    """Whether the kubelet has let a pod in, as a whole: something of it runs or has run."""
    status = pod.status
    started = (*(status.init_container_statuses or ()), *(status.container_statuses or ()))
    return status.phase not in ("", "Pending") or any(each.container_id for each in started)
