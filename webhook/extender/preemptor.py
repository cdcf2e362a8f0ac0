"""The preemptor: ends pods of lower priority where that frees a slice for one that waits.

kube-scheduler can't: it sees sums over nodes, and leaves our tickets to us altogether. So for a pod that was rejected for
want of a slice, the fewest victims of the lowest priority are looked for, on ONE node that kube-scheduler had let through
and whose GPUs would then hold it. They are ended by pods/eviction, which honours PodDisruptionBudgets; the room is kept
for the pod (`keeping`) from before the first eviction, and its status names the node.

It runs only while the kube-scheduler beside us leads, asks that again before every eviction, and looks at everything anew
when anything was refused: who is going already counts as gone, so nothing is ended twice for one pod, and a restart in the
middle goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from enum import Enum
from typing import Final, NoReturn, Protocol

import msgspec

from tessera.kube.client import Patch
from tessera.kube.clock import Clock
from tessera.kube.errors import ConflictError, KubeError, NotFoundError, TooManyRequestsError
from tessera.kube.events import Regarding
from tessera.kube.resources import PODS, Resource
from tessera.model.config import Config, Preemption
from tessera.model.pod import Pod
from tessera.placement.victims import Victims
from webhook.extender.candidates import Candidates
from webhook.extender.cluster import Cluster
from webhook.extender.keeping import Promise, kept_of
from webhook.extender.metrics import Metrics
from webhook.extender.telling import Events
from webhook.extender.waiting import Kind, Rejected, Waiting

SWEEP: Final = 1.0
"""Seconds between two looks at everybody who waits."""
AGAIN: Final = 10.0
"""Seconds until a search that found nobody, or failed, is made again for the same kind of pod."""
LONGEST_REFUSAL: Final = 60.0
"""Seconds for which a pod that a PodDisruptionBudget protects is left alone at most."""
AT_ONCE: Final = 100
"""Pods of one kind that are looked at in one sweep."""
SHORT: Final = 0.02
"""Seconds of a search after which nobody needs a rest."""
ATTEMPTS: Final = 5
"""Nodes or victims that are tried for one pod before others have their turn."""
_TIMEOUT: Final = 5.0

_log = logging.getLogger(__name__)


class Door(Protocol):
    """What the preemptor needs of the API client."""

    async def evict(
        self,
        name: str,
        *,
        namespace: str,
        uid: str | None = None,
        grace: int | None = None,
        dry_run: bool = False,
        timeout: float = ...,  # noqa: ASYNC109
    ) -> None: ...

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: bytes,
        *,
        kind: Patch,
        namespace: str = "",
        subresource: str = "",
        timeout: float = ...,  # noqa: ASYNC109
    ) -> bytes: ...


class _End(Enum):
    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"


class Preemptor:
    """Frees slices for pods that wait."""

    def __init__(
        self,
        cluster: Cluster,
        door: Door,
        waiting: Waiting,
        *,
        candidates: Candidates,
        config: Callable[[], Config],
        leading: Callable[[], bool],
        events: Events,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        """End nobody until `run` runs.

        Args:
            cluster: who holds what.
            door: the API client.
            waiting: who was rejected.
            candidates: who might go.
            config: in force.
            leading: whether the kube-scheduler beside us leads.
            events: for the pod and for its victims.
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
        self._candidates = candidates
        self._tokens = _Tokens(clock)
        self._hopeless: dict[Kind | tuple[Kind, str], float] = {}
        self._named: dict[str, float] = {}
        self._some = asyncio.Event()
        waiting.subscribe(self._rejected)

    def _rejected(self, pod: Rejected) -> None:
        if pod.preempts:
            self._some.set()

    async def run(self) -> NoReturn:
        """Look after those who wait, until cancelled."""
        while True:
            await self._some.wait()
            try:
                await self.sweep()
            except Exception:  # noqa: BLE001  a fault here must not keep pods from being placed
                _log.exception("looking for victims failed; it is tried again")
            if not len(self._waiting):
                self._some.clear()
            await self._clock.sleep(SWEEP)

    async def sweep(self) -> None:
        """Look at everybody who waits once, the most important first."""
        if not (self._config().preemption.enabled and self._leading()):
            return
        now = self._clock.monotonic()
        self._hopeless = {whom: until for whom, until in self._hopeless.items() if until > now}
        self._named = {uid: at for uid, at in self._named.items() if now - at < AGAIN}
        for kind in self._waiting.kinds():
            if not kind.preempts:
                continue
            for pod in self._waiting.of(kind, AT_ONCE):
                if kind in self._hopeless:
                    break
                if (kind, pod.namespace) in self._hopeless:
                    continue
                if not await self._help(pod):
                    # Those after it are less important: they wait with it for the right to evict.
                    return

    async def _help(self, pod: Rejected) -> bool:
        """Free a slice for one pod; False where the pace does not allow it yet."""
        promise = self._cluster.keeper.promised(pod.uid)
        if promise is not None:
            if promise.ours and self._unnamed(pod.uid):
                await self._nominate(pod, promise.node)
            return True
        there = self._cluster.pods.by_uid(pod.uid)
        if there is None or not self._is_told_of(pod, there) or self._need_only_wait(pod, there):
            return True
        for _ in range(ATTEMPTS):
            if not self._tokens.has(1, self._config().preemption):
                return False
            began = self._clock.monotonic()
            found = await self._candidates.best(pod)
            took = self._clock.monotonic() - began
            if took > SHORT:
                # 5,000 nodes take a second; filters come first, so half of the time is theirs alone.
                await self._clock.sleep(took)
            if found is None:
                break
            node, victims = found
            if not self._tokens.has(len(victims), self._config().preemption):
                return False
            if not self._leading() or not self._waits(pod):
                return True
            if self._candidates.fits(pod, node):
                # It need only be tried again, which waking sees to.
                break
            if not self._candidates.still(pod, node, victims):
                continue
            end = await self._preempt(pod, node, victims)
            if end is _End.DONE:
                return True
            if end is _End.FAILED:
                break
        # Nodes that refuse do so to some namespaces only; what was found says nothing of others then.
        kept_away = bool(self._cluster.refusals.against(there))
        self._hopeless[(pod.kind, pod.namespace) if kept_away else pod.kind] = self._clock.monotonic() + AGAIN
        return True

    def _is_told_of(self, pod: Rejected, there: Pod) -> bool:
        """The pod is as the filter was told; what came with a call is believed by nobody who ends others."""
        kept = kept_of(there, self._cluster.names)
        return (
            kept is not None
            and kept.asks == pod.kept.asks
            and (there.spec.priority or 0) == pod.priority
            and there.spec.preemption_policy != "Never"
        )

    def _need_only_wait(self, pod: Rejected, there: Pod) -> bool:
        """A node that would do has refused a pod and is left alone: nobody is ended for these seconds."""
        ledger = self._cluster.ledger
        return any(
            node in pod.listed and ledger.closed(node) is None and self._candidates.fits(pod, node)
            for node in self._cluster.refusals.briefly(there)
        )

    def _waits(self, pod: Rejected) -> bool:
        there = self._cluster.pods.by_uid(pod.uid)
        return self._waiting.get(pod.uid) is not None and there is not None and not there.spec.node_name

    def _unnamed(self, uid: str) -> bool:
        """kube-scheduler has cleared the nomination, because it tried the pod before its room was free."""
        pod = self._cluster.pods.by_uid(uid)
        return pod is not None and not pod.status.nominated_node_name and uid not in self._named

    async def _preempt(self, pod: Rejected, node: str, victims: Victims) -> _End:
        """End the victims, and keep what they leave for the pod."""
        known = [found for found in (self._cluster.pods.by_uid(each.key) for each in victims) if found is not None]
        if len(known) > 1:
            # Several budgets: nobody is ended in vain where the last of them says no.
            for victim in known:
                end = await self._evict(pod, node, victim, dry_run=True)
                if end is not _End.DONE:
                    return end
        now = self._clock.monotonic()
        gone = frozenset(each.key for each in victims)
        promise = Promise(pod.uid, node, pod.kept, pod.priority, now, gone, ours=True)
        self._cluster.keeper.promise(promise)
        for victim in known:
            end = await self._evict(pod, node, victim) if self._leading() else _End.FAILED
            if end is not _End.DONE:
                self._cluster.keeper.take_back(pod.uid)
                return end
        if victims:
            _log.info("pod %s: %d pods end for it on node %s", pod.key, len(victims), node)
            self._metrics.preemptions.inc()
            self._events.emit(
                _regarding(pod.namespace, pod.name, pod.uid),
                reason="Preempting",
                message=f"{len(victims)} pod{'s' if len(victims) > 1 else ''} of lower priority"
                f" end{'' if len(victims) > 1 else 's'} on node {node} to free its slice: "
                + ", ".join(each.name for each in victims[:5])
                + (", ..." if len(victims) > 5 else ""),
            )
        await self._nominate(pod, node)
        return _End.DONE

    async def _evict(self, pod: Rejected, node: str, victim: Pod, *, dry_run: bool = False) -> _End:
        meta = victim.metadata
        if not dry_run:
            self._tokens.take(self._config().preemption)
        try:
            await self._door.evict(meta.name, namespace=meta.namespace, uid=meta.uid, dry_run=dry_run, timeout=_TIMEOUT)
        except TooManyRequestsError as error:
            # Its budget, or the server's own pace: another victim may do.
            wait = min(LONGEST_REFUSAL, max(AGAIN, error.retry_after or 0.0))
            self._candidates.leave_alone(meta.uid, wait)
            self._metrics.evictions.labels("refused").inc()
            self._events.emit(
                _regarding(pod.namespace, pod.name, pod.uid),
                reason="PreemptionRefused",
                message=f"pod {victim.key} on node {node} can't be evicted for it now: {error.detail or error}",
                warning=True,
            )
            return _End.REFUSED
        except (NotFoundError, ConflictError):
            # Gone, or another of that name by now: its slice is free, or will be.
            return _End.DONE
        except KubeError as error:
            _log.warning("pod %s: its victim %s can't be evicted: %s", pod.key, victim.key, error)
            self._metrics.evictions.labels("failed").inc()
            return _End.FAILED
        if not dry_run:
            self._metrics.evictions.labels("evicted").inc()
            self._events.emit(
                _regarding(meta.namespace, meta.name, meta.uid),
                reason="Preempted",
                message=f"ended for pod {pod.key} of priority {pod.priority}, which needs its slice on node {node}",
            )
        return _End.DONE

    async def _nominate(self, pod: Rejected, node: str) -> None:
        """Say in the pod's status where it will go; kube-scheduler then keeps CPU and memory there too."""
        self._named[pod.uid] = self._clock.monotonic()
        # The UID is a precondition: a pod that was made anew was promised nothing.
        body = msgspec.json.encode({"metadata": {"uid": pod.uid}, "status": {"nominatedNodeName": node}})
        try:
            await self._door.patch(
                PODS,
                pod.name,
                body,
                kind=Patch.MERGE,
                namespace=pod.namespace,
                subresource="status",
                timeout=_TIMEOUT,
            )
        except KubeError as error:
            # The room is kept all the same, by us; what is lost is kube-scheduler's part, and our memory at a restart.
            _log.warning("pod %s: its nomination for node %s can't be written: %s", pod.key, node, error)


class _Tokens:
    """Rights to evict: so many a minute, and some at once after a quiet time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._spent = 0.0
        self._at = clock.monotonic()

    def has(self, count: int, pace: Preemption) -> bool:
        """Whether there are enough; a set larger than the burst only needs all of it."""
        now = self._clock.monotonic()
        self._spent = max(0.0, self._spent - (now - self._at) * pace.per_minute / 60)
        self._at = now
        return self._spent + min(count, pace.burst) <= pace.burst

    def take(self, pace: Preemption) -> None:
        self.has(0, pace)
        self._spent += 1


def _regarding(namespace: str, name: str, uid: str) -> Regarding:
    return Regarding(kind="Pod", name=name, namespace=namespace, uid=uid)
