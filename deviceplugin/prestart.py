"""PreStartContainer: the last look before a container starts, and the only one that may fail and be tried again.

By now the kubelet has recorded the IDs, so what could not be told in admission can be told here; what was told is checked
against the kubelet's record and against the plan. A pod that failed here shows CreateContainerConfigError with our text
and runs as soon as the reason has gone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from deviceplugin.allocator import Allocator
from deviceplugin.board import Board
from deviceplugin.checkpoint import Entry
from deviceplugin.devices import View, gpu_of
from deviceplugin.errors import KubeletError, RefusedError
from deviceplugin.identity import Caller, Identity
from deviceplugin.isolation.mps import MOST_CLIENTS
from deviceplugin.ledger import UNKNOWN, Grant, Owner
from deviceplugin.placing import Placing
from deviceplugin.podresources import Lister, Listing, PodKey
from deviceplugin.pods import NodePods
from deviceplugin.slices import Given, slices_of
from tessera.kube.clock import Clock
from tessera.model.config import Placement
from tessera.model.errors import AnnotationError, RequestError
from tessera.model.guarantee import Guarantee
from tessera.model.plan import decode as decode_plan
from tessera.placement.wishes import wishes

_log = logging.getLogger(__name__)

LONGEST_WAIT: Final = 2.0
"""Seconds to wait for a moment without an admission under way; kubelet gives PreStartContainer 30."""


class PreStart:
    """Checks what a container is about to start with."""

    def __init__(
        self,
        board: Board,
        *,
        allocator: Allocator,
        identity: Identity,
        placing: Placing,
        pods: NodePods,
        lister: Lister,
        checkpoint: Callable[[], Sequence[Entry]],
        clock: Clock,
        started: Callable[[Given], None],
        failed: Callable[[Grant, str], None],
    ) -> None:
        """Check against these parts.

        Args:
            board: GPUs and ledger.
            allocator: knows when a List does no harm.
            identity: knows the containers of a pod.
            placing: knows plans.
            pods: the node's pods.
            lister: the kubelet.
            checkpoint: reads the kubelet's checkpoint, which alone has plain init containers.
            clock: waits.
            started: told of each container that may start, for events.
            failed: told of each that may not, with the reason.
        """
        self._board = board
        self._ledger = board.ledger
        self._allocator = allocator
        self._identity = identity
        self._placing = placing
        self._pods = pods
        self._lister = lister
        self._checkpoint = checkpoint
        self._clock = clock
        self._started = started
        self._failed = failed

    async def check(self, resource: str, ids: Sequence[str]) -> None:
        """Let a container start with these IDs of a resource, or say why not.

        Raises:
            RefusedError: what the kubelet recorded is another pod's, or its guarantee can't be kept. Tried again.
        """
        wanted = frozenset(ids)
        grant = self._known(resource, wanted)
        if grant is None:
            grant = await self.adopt(resource, wanted)
            if grant is None:
                _log.warning("%d of %s start in a container that can't be told", len(ids), resource)
                return
        elif not await self._confirmed(grant, resource, wanted):
            message = f"the kubelet records other device IDs of {resource} for it than it was given"
            self._failed(grant, message)
            raise RefusedError(f"pod {grant.pod}, container {grant.container}: {message}")
        try:
            self._judge(grant, resource, wanted)
        except RefusedError as error:
            self._failed(grant, str(error))
            raise
        self._tell(grant)

    def _known(self, resource: str, ids: frozenset[str]) -> Grant | None:
        """The grant of a known pod that is exactly these IDs."""
        for owner in self._ledger.owners(resource, next(iter(ids), "")):
            grant = self._ledger.get(owner)
            known = grant is not None and not grant.uid.startswith(UNKNOWN)
            if grant is not None and known and frozenset(grant.devices.get(resource, ())) == ids:
                return grant
        return None

    async def _confirmed(self, grant: Grant, resource: str, ids: frozenset[str]) -> bool:
        """Whether the kubelet's record agrees; where it can't be asked, ours is believed."""
        try:
            listed = await self._lister.get((grant.namespace, grant.name))
        except KubeletError as error:
            _log.warning("pod %s, container %s starts unchecked: %s", grant.pod, grant.container, error)
            return True
        if listed is None:
            return True
        holding = [name for name, container in listed.items() if container.ids(resource) == ids]
        # A plain init container isn't listed; another one of the pod may have the same IDs after it.
        return grant.container not in listed or grant.container in holding or bool(holding)

    # Pods that could not be told in admission.

    async def adopt(self, resource: str, ids: frozenset[str], listing: Listing | None = None) -> Grant | None:
        """Tell by the kubelet's record whose these IDs are, and give them to it; None while that can't be told.

        Args:
            resource: of the IDs.
            ids: all that a container has of it.
            listing: the record, where it was read just now; else it is read here, in a quiet moment.
        """
        if listing is None:
            await self._quiet()
            try:
                listing = await self._lister.list()
            except KubeletError as error:
                _log.warning("%s", error)
                return None
        found = await self._recorded(resource, ids, listing)
        if found is None:
            return None
        caller, devices = found
        metadata = caller.pod.metadata
        gpus = sorted({gpu_of(device) for each in devices.values() for device in each})
        grant = Grant(
            uid=caller.uid,
            container=caller.container,
            namespace=metadata.namespace,
            name=metadata.name,
            init=caller.role == "init",
            planned=self._placing.is_planned(caller, gpus),
            devices={name: tuple(sorted(each)) for name, each in devices.items()},
        )
        unknown = {
            owner
            for name, each in devices.items()
            for device in each
            for owner in self._ledger.owners(name, device)
            if owner.uid.startswith(UNKNOWN)
        }
        for owner in sorted(unknown):
            self._ledger.claim(owner, grant)
        self._ledger.give(grant)
        _log.info("%s: told now, it is on GPU %s", caller, ", ".join(gpus))
        return self._ledger.get(grant.owner)

    async def _recorded(
        self, resource: str, ids: frozenset[str], listing: Listing
    ) -> tuple[Caller, dict[str, frozenset[str]]] | None:
        """The container that has these IDs by the kubelet's record, with all it has of ours."""
        for key, containers in listing.pods.items():
            for container in containers:
                if container.ids(resource) == ids:
                    caller = await self._caller(key, container.name)
                    devices = container.devices(self._board.offers.__contains__)
                    return None if caller is None else (caller, devices)
        for entry in self._checkpoint():
            if entry.resource == resource and frozenset(entry.ids) == ids:
                pod = self._pods.by_uid(entry.uid)
                caller = self._identity.caller(pod, entry.container) if pod is not None else None
                return None if caller is None else (caller, {resource: ids})
        return None

    async def _caller(self, key: PodKey, container: str) -> Caller | None:
        pod = self._pods.get(key)
        if pod is None or pod.ended:
            await self._pods.fetch([key])
            pod = self._pods.get(key)
        return self._identity.caller(pod, container) if pod is not None else None

    async def _quiet(self) -> None:
        """Wait until no admission is between its choice and its record: a List would undo the kubelet's reservation."""
        waited = 0.0
        while (wait := self._allocator.quiet_in) > 0 and waited < LONGEST_WAIT:
            await self._clock.sleep(wait)
            waited += wait

    # Judging.

    def _judge(self, grant: Grant, resource: str, ids: frozenset[str]) -> None:
        """Refuse what matters.

        Raises:
            RefusedError: IDs that another pod holds, resources on different GPUs, or too weak a guarantee.
        """
        who = f"pod {grant.pod}, container {grant.container}"
        for device in sorted(ids):
            first = next(iter(self._ledger.owners(resource, device)), grant.owner)
            if first.uid != grant.uid:
                other = self._ledger.get(first)
                raise RefusedError(
                    f"{who}: device {device} of {resource} was given to {other.pod if other else first.uid} before, and "
                    "the kubelet has recorded it twice (kubernetes PR 137534); create the pod again"
                )
        sliced = {
            name: {gpu_of(device) for device in each}
            for name, each in grant.devices.items()
            if name in self._board.offers and self._board.offers[name].view is not View.MIG
        }
        if len({frozenset(gpus) for gpus in sliced.values()}) > 1:
            places = "; ".join(f"{name} on {', '.join(sorted(gpus))}" for name, gpus in sorted(sliced.items()))
            raise RefusedError(f"{who}: its resources lie on different GPUs ({places}); create the pod again")
        self._judge_guarantee(grant, who)

    def _judge_guarantee(self, grant: Grant, who: str) -> None:
        pod = self._pods.by_uid(grant.uid)
        if pod is None:
            return
        names = self._board.names
        try:
            least = wishes(pod.metadata.annotations, names, Placement()).least
        except RequestError:
            return
        for gpu in grant.gpus:
            known = self._board.gpus.get(gpu)
            if known is not None and not known.guarantee.memory.satisfies(least):
                raise RefusedError(
                    f"{who}: asks for the memory guarantee {least.value} and GPU {gpu} gives {known.guarantee.memory.value} "
                    f"now; see annotation {names.guarantee}"
                )
            if known is not None and Guarantee.PROCESS in (known.guarantee.memory, known.guarantee.compute):
                self._judge_clients(grant, gpu, who)
            self._compare_plan(grant, gpu, pod.metadata.annotation(names.plan))

    def _judge_clients(self, grant: Grant, gpu: str, who: str) -> None:
        others = sum(gpu in other.gpus for other in self._ledger if other.owner != grant.owner)
        if others >= MOST_CLIENTS:
            raise RefusedError(
                f"{who}: {others} containers are on GPU {gpu} already, and MPS takes {MOST_CLIENTS} clients; it starts when "
                "one of them has ended"
            )

    def _compare_plan(self, grant: Grant, gpu: str, text: str | None) -> None:
        """Say where a plan promised more than the GPU gives now; the pod accepts that, so it starts."""
        known = self._board.gpus.get(gpu)
        if text is None or known is None:
            return
        try:
            promised = decode_plan(text).guarantee.memory
        except AnnotationError:
            return
        if not known.guarantee.memory.satisfies(promised):
            _log.warning(
                "pod %s: its plan promises the memory guarantee %s, GPU %s gives %s now",
                grant.pod,
                promised.value,
                gpu,
                known.guarantee.memory.value,
            )

    def _tell(self, grant: Grant) -> None:
        pod = self._pods.by_uid(grant.uid)
        caller = self._identity.caller(pod, grant.container) if pod is not None else None
        if pod is None or caller is None or not caller.counts.keys() <= grant.devices.keys():
            return
        try:
            request = caller.request(self._board.names)
        except RequestError:
            return
        order = self._placing.order(Owner(grant.uid, grant.container))
        self._started(Given(pod, grant.container, request, slices_of(grant, self._board, request=request, order=order)))
