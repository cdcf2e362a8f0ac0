"""GetPreferredAllocation and Allocate: the plan becomes IDs, the IDs become a slice, the slice becomes an answer.

Nothing here waits for the API server or a disk, and Allocate waits for nothing at all: what it needs to know was found
out in GetPreferredAllocation a millisecond before and is remembered by the IDs. A List inside Allocate would also make the
kubelet forget what it has just reserved (kubernetes PR 137534).

Refused is what is certain to be wrong: a failed Allocate ends the pod. IDs on more GPUs than asked, and IDs or amounts that
the ledger has given to somebody else, for withholding them may not have reached the kubelet yet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from deviceplugin.board import Board
from deviceplugin.devices import FULL, View, gpu_of
from deviceplugin.errors import RefusedError
from deviceplugin.identity import Caller, Identity, Look
from deviceplugin.ledger import UNKNOWN, Grant, Ledger, piece
from deviceplugin.placing import Offered, Placing, pick
from deviceplugin.podresources import Listing
from deviceplugin.pods import NodePods
from deviceplugin.slices import Given, slices_of
from tessera.kube.clock import Clock
from tessera.model.errors import RequestError

_log = logging.getLogger(__name__)

MOST_REMEMBERED: Final = 64
"""Answers waiting for their Allocate. Admission is serial, so one is the rule; a rejected pod leaves one behind."""
NEARBY: Final = 1.0
"""Seconds within which two calls of pods that can't be told are likely to be one container's two resources."""
RESERVED: Final = 0.5
"""Seconds for which IDs count as reserved in the kubelet after an answer; admission takes 3-15 ms a step."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What Allocate answers.

    Attributes:
        given: the whole slice, for the answer that carries environment, mounts and devices; None for the others.
        grant: what the container has now.
    """

    given: Given | None
    grant: Grant

    @property
    def kind(self) -> str:
        """For metrics: ``planned``, ``drift`` or ``unknown``."""
        if self.grant.uid.startswith(UNKNOWN):
            return "unknown"
        return "planned" if self.grant.planned else "drift"


class Allocator:
    """Answers the kubelet's two calls of admission."""

    def __init__(
        self,
        board: Board,
        *,
        identity: Identity,
        placing: Placing,
        pods: NodePods,
        clock: Clock,
        seen: Callable[[], frozenset[str]],
    ) -> None:
        """Answer from these parts.

        Args:
            board: GPUs and ledger.
            identity: tells the caller.
            placing: chooses GPUs.
            pods: the node's pods.
            clock: tells how long ago something was.
            seen: UIDs of pods whose containers or processes are on the node at this moment.
        """
        self._board = board
        self._ledger: Ledger = board.ledger
        self._identity = identity
        self._placing = placing
        self._pods = pods
        self._clock = clock
        self._seen = seen
        self._remembered: dict[tuple[str, frozenset[str]], Caller | None] = {}
        self._reserved_until = float("-inf")
        self._near: tuple[float, str, tuple[str, ...]] = (float("-inf"), "", ())

    @property
    def quiet_in(self) -> float:
        """Seconds until no ID is reserved and not yet recorded in the kubelet, so that a List does no harm; 0 is now."""
        return max(0.0, self._reserved_until - self._clock.monotonic())

    # GetPreferredAllocation.

    async def prefer(self, resource: str, available: Sequence[str], must: Sequence[str], size: int) -> list[str]:
        """Choose IDs for the container in admission; always all of them, on the right number of GPUs.

        Args:
            resource: which tickets.
            available: IDs that the kubelet counts as free, `must` included.
            must: IDs that have to be among the answer.
            size: how many.

        Raises:
            RefusedError: they can't be given; the kubelet ends the pod with this text.
        """
        if size < 1 or size > len(available) or len(must) > size:
            raise RefusedError(
                f"{resource}: the kubelet prefers {size} of {len(available)} IDs, {len(must)} of them set"
            )
        look = await self._identity.look(resource, size)
        self._forget_freed(resource, available, look)
        caller = look.caller
        offered = self._offered(resource, available, caller.uid if caller else "", keep=must)
        if caller is None:
            target = self._placing.guess(resource, size, offered, near=self._nearby(resource))
        else:
            try:
                request = caller.request(self._board.names)
            except RequestError as error:
                raise RefusedError(f"pod {caller.pod.key}: {error}") from error
            target = self._placing.target(caller, request, size, offered, must)
        ids = pick(target, size, offered, must)
        if len(set(ids)) != size:
            raise RefusedError(
                f"{caller or 'a pod'}: {len(set(ids))} IDs of {resource} can be chosen, {size} are asked"
            )
        while len(self._remembered) >= MOST_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[resource, frozenset(ids)] = caller
        self._reserved_until = self._clock.monotonic() + RESERVED
        return ids

    def _offered(self, resource: str, available: Iterable[str], uid: str, *, keep: Iterable[str]) -> Offered:
        """By GPU, the IDs that are free for a pod by the kubelet's word and by ours."""
        offer = self._board.offers[resource]
        taken = self._ledger.taken(resource) | self._ledger.barred(resource)
        free = set(available) & offer.all
        mine = {
            device for device in free & taken if {owner.uid for owner in self._ledger.owners(resource, device)} == {uid}
        }
        free = (free - taken) | (mine & set(keep))
        return {gpu: [device for device in ids if device in free] for gpu, ids in offer.ids.items()}

    def _forget_freed(self, resource: str, available: Iterable[str], look: Look) -> None:
        """Free pods whose IDs the kubelet offers again, which it lists no more, and of which nothing is seen.

        The kubelet frees a pod when its containers have ended; the API's word for it reaches us milliseconds later, and
        the extender may have planned with it already.
        """
        if look.listing is None:
            return
        offered_again = self._ledger.taken(resource).intersection(available)
        uids = {owner.uid for device in offered_again for owner in self._ledger.owners(resource, device)}
        if look.caller is not None:
            uids.discard(look.caller.uid)
        listing = look.listing
        left = {grant.uid for grant in self._ledger if grant.uid in uids and not _listed(grant, listing)}
        if left:
            for grant in self._ledger.free(left - self._seen()):
                _log.info("pod %s (%s): freed, the kubelet offers its device IDs again", grant.pod, grant.uid)

    def _nearby(self, resource: str) -> tuple[str, ...]:
        at, other, gpus = self._near
        return gpus if other != resource and self._clock.monotonic() - at < NEARBY else ()

    # Allocate.

    def allocate(self, resource: str, ids: Sequence[str]) -> Answer:
        """Give IDs to the container they were chosen for.

        Args:
            resource: which tickets.
            ids: what the kubelet has reserved.

        Raises:
            RefusedError: they are certain to be wrong; the kubelet ends the pod with this text.
        """
        asked = frozenset(ids)
        if not asked or len(asked) != len(ids) or not asked <= self._board.offers[resource].all:
            strange = sorted(asked - self._board.offers[resource].all)[:3]
            raise RefusedError(
                f"{resource}: {len(ids)} device IDs, of which {strange} are not this node's or stand twice"
            )
        caller = self._caller(resource, asked)
        self._refuse_taken(resource, asked, caller)
        gpus = self._gpus(resource, asked, caller)
        self._refuse_overfull(resource, asked, gpus, caller)
        # What is reserved is recorded in the kubelet as soon as it has read our answer.
        self._reserved_until = self._clock.monotonic() + RESERVED / 10
        if caller is None:
            grant = self._ledger.give_unknown(resource, asked)
            self._near = (self._clock.monotonic(), resource, gpus)
            _log.warning(
                "%d of %s given to a pod that can't be told yet, on GPU %s", len(ids), resource, ", ".join(gpus)
            )
            return Answer(Given(None, "", None, slices_of(grant, self._board, request=None, order=None)), grant)
        return self._give(caller, resource, asked, gpus)

    def _give(self, caller: Caller, resource: str, ids: frozenset[str], gpus: tuple[str, ...]) -> Answer:
        metadata = caller.pod.metadata
        self._ledger.give(
            Grant(
                uid=caller.uid,
                container=caller.container,
                namespace=metadata.namespace,
                name=metadata.name,
                init=caller.role == "init",
                planned=self._placing.is_planned(caller, gpus),
                devices={resource: tuple(sorted(ids))},
            )
        )
        grant = self._ledger.get(caller.owner)
        if grant is None:
            raise RefusedError(f"{caller}: it was freed while it was given")
        given = None
        # Of a container's answers the last one carries everything: equal keys with different values would be resolved at
        # random by the kubelet, and only now is the slice known in both dimensions.
        if caller.counts.keys() <= grant.devices.keys():
            request = caller.request(self._board.names)
            order = self._placing.order(caller.owner)
            given = Given(
                caller.pod, caller.container, request, slices_of(grant, self._board, request=request, order=order)
            )
        _log.info("%s: %d of %s on GPU %s", caller, len(ids), resource, ", ".join(gpus))
        return Answer(given, grant)

    def _caller(self, resource: str, ids: frozenset[str]) -> Caller | None:
        remembered = self._remembered.pop((resource, ids), None)
        if remembered is not None:
            return remembered
        # The kubelet hands an init container's IDs to the containers after it without asking which ones are preferred.
        owners = {owner.uid for device in ids for owner in self._ledger.owners(resource, device)}
        if len(owners) != 1 or not all(self._ledger.owners(resource, device) for device in ids):
            return None
        pod = self._pods.by_uid(next(iter(owners)))
        return None if pod is None else self._identity.next_of(pod, resource, len(ids))

    def _refuse_taken(self, resource: str, ids: frozenset[str], caller: Caller | None) -> None:
        uid = caller.uid if caller else ""
        for device in sorted(ids):
            for owner in self._ledger.owners(resource, device):
                grant = self._ledger.get(owner)
                passed_on = grant is not None and (grant.init or (caller is not None and owner == caller.owner))
                if owner.uid == uid and passed_on:
                    continue
                holder = f"{grant.pod}, container {owner.container}" if grant else owner.uid
                still = ", which is gone but still runs here" if owner.uid in self._ledger.lingering else ""
                raise RefusedError(
                    f"{caller or 'a pod'}: the kubelet hands out device {device} of {resource}, which {holder} holds{still}; "
                    "refused so that two pods don't share one slice (kubernetes PR 137534), create the pod again"
                )

    def _gpus(self, resource: str, ids: frozenset[str], caller: Caller | None) -> tuple[str, ...]:
        """The GPUs that IDs lie on; refuses wrong ones."""
        counts: dict[str, int] = {}
        for device in ids:
            counts[gpu_of(device)] = counts.get(gpu_of(device), 0) + 1
        gpus = tuple(sorted(counts))
        for gpu in gpus:
            if not self._board.serving(gpu):
                raise RefusedError(f"{caller or 'a pod'}: {self._board.why_not(gpu)}; create the pod again")
        most, what = self._most_gpus(resource, ids, caller)
        if len(gpus) > most or (caller is not None and len(set(counts.values())) > 1 and what):
            spread = ", ".join(f"{count} on GPU {gpu}" for gpu, count in sorted(counts.items()))
            raise RefusedError(
                f"{caller or 'a pod'}: the kubelet chose {spread} of {resource}, where {most} GPU{'s' * (most > 1)} with equal "
                "parts are asked; create the pod again"
            )
        given = self._ledger.get(caller.owner) if caller else None
        if given is not None and set(given.gpus) != set(gpus) and what:
            raise RefusedError(
                f"{caller}: {resource} on GPU {', '.join(gpus)}, but its other resource is on GPU {', '.join(given.gpus)}; "
                "create the pod again"
            )
        return gpus

    def _most_gpus(self, resource: str, ids: frozenset[str], caller: Caller | None) -> tuple[int, bool]:
        """The most GPUs that IDs may lie on, and whether each has to have as many."""
        view = self._board.offers[resource].view
        if view is View.MIG:
            return len(ids), False
        if caller is not None:
            return caller.request(self._board.names).gpus, True
        largest = max((gpu.units for gpu in self._board.gpus.values()), default=1)
        return max(1, -(-len(ids) // (max(1, largest) if view is View.UNITS else FULL))), False

    def _refuse_overfull(self, resource: str, ids: frozenset[str], gpus: Iterable[str], caller: Caller | None) -> None:
        if self._board.offers[resource].view is View.MIG:
            return
        before = self._ledger.get(caller.owner) if caller else None
        devices = (before.devices if before else {}) | {resource: tuple(ids)}
        for gpu in gpus:
            capacity = self._ledger.capacity(gpu)
            mine = piece(devices, gpu, capacity=capacity, names=self._board.names)
            if caller is None:
                total = self._ledger.held(gpu) + mine
            else:
                total = self._ledger.held_with(gpu, caller.owner, mine, init=caller.role == "init")
            if not self._board.fits(gpu, total):
                raise RefusedError(
                    f"{caller or 'a pod'}: GPU {gpu} would hold {total.all_units} of {capacity} units, {total.percent} % given "
                    f"in percent, and {total.compute} % of compute; what one view gave was not withheld in the other yet, "
                    "create the pod again"
                )


def _listed(grant: Grant, listing: Listing) -> bool:
    """Whether the kubelet counts a grant's pod as active; one that can't be told is looked for by its IDs."""
    if grant.name:
        return (grant.namespace, grant.name) in listing
    return any(listing.holder(resource, ids) for resource, ids in grant.devices.items())
