"""Scale pods for Cluster Autoscaler, where config wants them: made, and taken away again.

A scale pod is made for a pod that waited some time although the sums of a node would do, one at a time and only so many.
It is deleted as soon as its cause is bound, ended or gone, or when scale pods are switched off. Which there are is read
from the pods of the cluster, so a restart, or another leader, cleans up what an earlier one made.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, NoReturn, Protocol

from tessera.kube.changes import Change, Deleted
from tessera.kube.clock import Clock
from tessera.kube.errors import AlreadyExistsError, ConflictError, KubeError, NotFoundError
from tessera.kube.events import Regarding
from tessera.kube.resources import PODS, Resource
from tessera.model.config import Config
from tessera.model.pod import Pod
from webhook.extender.cluster import Cluster
from webhook.extender.metrics import Metrics
from webhook.extender.scalepod import HOSTNAME, fragmented, manifest
from webhook.extender.telling import Events
from webhook.extender.waiting import Kind, Rejected, Waiting

SWEEP: Final = 2.0
"""Seconds between two looks at who waits and at what there is."""
AGAIN: Final = 30.0
"""Seconds after a failure until the next scale pod is tried, and until a kind of pod that needs none is looked at again."""
TOGETHER: Final = 32
"""Nodes looked at before others get the loop."""
_TIMEOUT: Final = 5.0

_log = logging.getLogger(__name__)


class Door(Protocol):
    """What the scaler needs of the API client."""

    async def create(
        self,
        resource: Resource,
        body: bytes,
        *,
        namespace: str = "",
        timeout: float = ...,  # noqa: ASYNC109
    ) -> bytes: ...

    async def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str = "",
        uid: str | None = None,
        grace: int | None = None,
        timeout: float = ...,  # noqa: ASYNC109
    ) -> bytes: ...


class Scaler:
    """Makes and deletes scale pods."""

    def __init__(
        self,
        cluster: Cluster,
        door: Door,
        waiting: Waiting,
        *,
        config: Callable[[], Config],
        leading: Callable[[], bool],
        events: Events,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        """Make none until `run` runs; subscribe `pod_changed` to the cache of pods.

        Args:
            cluster: who holds what.
            door: the API client.
            waiting: who was rejected.
            config: in force.
            leading: whether the kube-scheduler beside us leads.
            events: for the pod that a scale pod is made for.
            clock: paces.
            metrics: counts.
        """
        self._cluster = cluster
        self._door = door
        self._waiting = waiting
        self._config = config
        self._leading = leading
        self._events = events
        self._clock = clock
        self._metrics = metrics
        self._there: dict[str, Pod] = {}
        self._whole: dict[Kind, float] = {}
        self._next = clock.monotonic()

    def pod_changed(self, change: Change[Pod]) -> None:
        """Take in a change of any pod."""
        pod = change.final if isinstance(change, Deleted) else change.new
        if self._cluster.names.scale_for not in (pod.metadata.labels or {}):
            return
        if isinstance(change, Deleted):
            self._there.pop(pod.metadata.uid, None)
        else:
            self._there[pod.metadata.uid] = pod
        self._metrics.scale_pods.set(len(self._ours()))

    def _ours(self) -> list[Pod]:
        """Those of the namespace where we make them; what users label elsewhere is theirs, and may run."""
        namespace = self._config().autoscaler.namespace
        return [pod for pod in self._there.values() if pod.metadata.namespace == namespace]

    async def run(self) -> NoReturn:
        """Look after scale pods, until cancelled."""
        while True:
            try:
                await self.sweep()
            except Exception:  # noqa: BLE001  a fault here must not keep pods from being placed
                _log.exception("looking after scale pods failed; it is tried again")
            await self._clock.sleep(SWEEP)

    async def sweep(self) -> None:
        """Delete what is not needed any more, and make at most one that is."""
        if not self._leading():
            return
        await self._clean()
        config = self._config().autoscaler
        now = self._clock.monotonic()
        if not config.enabled or now < self._next or len(self._ours()) >= config.most:
            return
        served = {self._cause(pod) for pod in self._ours()}
        self._whole = {kind: until for kind, until in self._whole.items() if until > now}
        for kind in self._waiting.kinds():
            if kind in self._whole:
                continue
            for pod in self._waiting.of(kind, config.most + 1):
                if pod.uid in served or now - pod.since < config.after or not self._waits(pod):
                    continue
                if await self._fragmented(pod):
                    await self._make(pod)
                    return
                self._whole[kind] = now + AGAIN
                break

    # Those there are.

    async def _clean(self) -> None:
        enabled = self._config().autoscaler.enabled
        for pod in self._ours():
            if (not enabled or not self._needed(pod)) and pod.metadata.deletion_timestamp is None:
                await self._delete(pod)

    def _needed(self, pod: Pod) -> bool:
        cause = self._cluster.pods.by_uid(self._cause(pod))
        waits = cause is not None and not cause.spec.node_name and not cause.ended
        # One that is bound (by a scheduler without us) has done its part and only takes room.
        return waits and not pod.spec.node_name and not pod.ended

    def _cause(self, pod: Pod) -> str:
        return (pod.metadata.labels or {}).get(self._cluster.names.scale_for, "")

    async def _delete(self, pod: Pod) -> None:
        meta = pod.metadata
        try:
            await self._door.delete(PODS, meta.name, namespace=meta.namespace, uid=meta.uid, grace=0, timeout=_TIMEOUT)
        except (NotFoundError, ConflictError):
            # Gone, or made anew: the watch shows which.
            return
        except KubeError as error:
            _log.warning("scale pod %s can't be deleted: %s", pod.key, error)

    # Those to be made.

    def _waits(self, pod: Rejected) -> bool:
        there = self._cluster.pods.by_uid(pod.uid)
        # For whom pods are just being ended no node is needed.
        promised = self._cluster.keeper.promised(pod.uid) is not None
        return there is not None and not there.spec.node_name and not promised

    async def _fragmented(self, pod: Rejected) -> bool:
        for count, name in enumerate(pod.listed.names, 1):
            if self._cluster.ledger.closed(name) is None and fragmented(pod.kept, self._cluster.ledger.states(name)):
                return True
            if count % TOGETHER == 0:
                await asyncio.sleep(0)
        return False

    async def _make(self, pod: Rejected) -> None:
        config = self._config()
        body = manifest(
            pod,
            config.autoscaler,
            config.names,
            scheduler=pod.spec.scheduler_name or config.scheduler_name,
            hosts=self._hosts(),
        )
        now = self._clock.monotonic()
        try:
            await self._door.create(PODS, body, namespace=config.autoscaler.namespace, timeout=_TIMEOUT)
        except AlreadyExistsError:
            self._next = now + config.autoscaler.interval
        except KubeError as error:
            self._next = now + AGAIN
            _log.warning("pod %s: its scale pod can't be made: %s", pod.key, error)
        else:
            self._next = now + config.autoscaler.interval
            _log.info("pod %s: a scale pod asks for a node", pod.key)
            self._events.emit(
                Regarding(kind="Pod", name=pod.name, namespace=pod.namespace, uid=pod.uid),
                reason="ScalePodCreated",
                message="nodes have enough in sum, but no GPU has; a scale pod asks Cluster Autoscaler for a node",
            )

    def _hosts(self) -> list[str]:
        """The host names of all nodes with GPUs."""
        found = []
        for name in self._cluster.ledger:
            node = self._cluster.node(name)
            if node is not None and self._cluster.ledger.gpus(name):
                found.append((node.metadata.labels or {}).get(HOSTNAME, name))
        return found
