"""The scheduling loop: one pod at a time through the filters and the extender, bindings on the side.

What is the real one's: serial cycles, an assumed pod counts until the watch shows it, `nodeCacheCapable` (names only),
only pods with a managed resource go to the extender, its answer is picked from at random where it names several, bindings
run concurrently, a failed one forgets the assumption and tries again, a nominated node is tried alone before all, and a
failed cycle clears the nomination (its preemption finds no victims where only an extender refused). What it leaves out:
preemption, volumes, pod affinity, gates.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from fractions import Fraction

import aiohttp
import msgspec

from tessera.kube.changes import Change, Deleted, Modified
from tessera.kube.client import ApiClient, Patch
from tessera.kube.clock import Clock
from tessera.kube.errors import ApiError, KubeError
from tessera.kube.resources import NODES, PODS
from tessera.kube.watch import WatchCache
from tessera.model.node import Node
from tessera.model.pod import TERMINAL, Manifest, ObjectMeta
from tessera.testing.scheduler.fit import Amounts, preference, requests, why_not
from tessera.testing.scheduler.queue import SchedulingQueue

_log = logging.getLogger(__name__)


class _RawPod(msgspec.Struct, frozen=True):
    """A pod whose spec and status are kept as bytes: the extender gets all of them."""

    metadata: ObjectMeta = ObjectMeta()
    spec: msgspec.Raw = msgspec.Raw(b"{}")
    status: msgspec.Raw = msgspec.Raw(b"{}")


class _FilterResult(msgspec.Struct):
    """k8s.io/kube-scheduler/extender/v1 ExtenderFilterResult; Go's decoder takes either case, ours as it is written."""

    NodeNames: list[str] | None = None
    FailedNodes: dict[str, str] | None = None
    FailedAndUnresolvableNodes: dict[str, str] | None = None
    Error: str = ""


class _BindResult(msgspec.Struct):
    Error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """How it is set up, as a KubeSchedulerConfiguration would say.

    Attributes:
        names: pods with one of these schedulerNames are its own (two schedulers of a cluster may be played by one).
        extender: base URL of the extender.
        managed: prefix of the resources that bring a pod to the extender; they are ignored by the scheduler itself.
        backoff: first wait after a failed cycle, in seconds; it doubles up to `most_backoff`.
        most_backoff: longest wait.
        binders: bindings in flight at once.
    """

    names: frozenset[str]
    extender: str
    managed: str
    backoff: float = 1.0
    most_backoff: float = 10.0
    binders: int = 64


@dataclass(slots=True)
class _Assumed:
    node: str
    amounts: Amounts = field(default_factory=dict)


class FakeScheduler:
    """Runs as long as its context is open."""

    def __init__(self, client: ApiClient, settings: SchedulerSettings, *, clock: Clock, rng: random.Random) -> None:
        """Set up; nothing runs yet."""
        self._client = client
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._pods = WatchCache(client, PODS, msgspec.json.Decoder(_RawPod), clock=clock, rng=rng)
        self._nodes = WatchCache(client, NODES, msgspec.json.Decoder(Node), clock=clock, rng=rng)
        self._read: dict[str, Manifest] = {}
        self._on_node: dict[str, _Assumed] = {}
        self._queue = SchedulingQueue(backoff=settings.backoff, most=settings.most_backoff)
        self._wake = asyncio.Event()
        self._events = 0
        self._binding = asyncio.Semaphore(settings.binders)
        self._tasks: set[asyncio.Task[None]] = set()
        self.reasons: dict[str, str] = {}
        """By ``namespace/name``, why a pod that waits found no node at its last try."""
        self.bound = 0

    @property
    def waiting(self) -> int:
        """Pods without a node: queued, set aside, or being bound."""
        return len(self._queue) + len(self._tasks)

    @property
    def idle(self) -> bool:
        """Nothing to do: no pod is queued or being bound; what waits, waits for an event."""
        return not self._tasks and self._queue.next_time() is None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the loop while the context is open; its failure ends the context's body."""
        self._pods.subscribe(self._pod_changed)
        self._nodes.subscribe(self._node_changed)
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session,
            asyncio.TaskGroup() as group,
        ):
            jobs = [group.create_task(job) for job in (self._pods.run(), self._nodes.run(), self._loop(session))]
            try:
                yield
            finally:
                for job in jobs:
                    job.cancel()
                for task in self._tasks:
                    task.cancel()

    def _pod_changed(self, change: Change[_RawPod]) -> None:
        gone = isinstance(change, Deleted)
        raw = change.final if isinstance(change, Deleted) else change.new
        uid = raw.metadata.uid
        pod = msgspec.json.decode(msgspec.json.encode(raw), type=Manifest)
        if gone or pod.status.phase in TERMINAL:
            self._read.pop(uid, None)
            self._queue.drop(uid)
            self.reasons.pop(pod.key, None)
            if self._on_node.pop(uid, None) is not None:
                self._event()
        elif pod.spec.node_name:
            self._on_node[uid] = _Assumed(pod.spec.node_name, requests(pod))
            self._queue.drop(uid)
            self.reasons.pop(pod.key, None)
        elif pod.spec.scheduler_name in self._settings.names and pod.metadata.deletion_timestamp is None:
            self._read[uid] = pod
            if uid not in self._on_node:
                self._queue.add(uid, pod.spec.priority or 0, now=self._clock.monotonic())
        self._wake.set()

    def _node_changed(self, change: Change[Node]) -> None:
        if isinstance(change, Modified) and _same_for_scheduling(change.old, change.new):
            return
        self._event()

    def _event(self) -> None:
        self._events += 1
        self._queue.event(now=self._clock.monotonic())
        self._wake.set()

    async def _loop(self, session: aiohttp.ClientSession) -> None:
        await asyncio.gather(self._pods.synced.wait(), self._nodes.synced.wait())
        while True:
            uid = self._queue.pop(now=self._clock.monotonic())
            if uid is None:
                self._wake.clear()
                await self._pause()
                continue
            raw, pod = self._pods.by_uid(uid), self._read.get(uid)
            if raw is not None and pod is not None and uid not in self._on_node:
                await self._cycle(session, raw, pod)

    async def _pause(self) -> None:
        until = self._queue.next_time()
        timeout = None if until is None else max(0.0, until - self._clock.monotonic())
        try:
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _cycle(self, session: aiohttp.ClientSession, raw: _RawPod, pod: Manifest) -> None:
        seen = self._events
        used: dict[str, Amounts] = {}
        for held in self._on_node.values():
            sums = used.setdefault(held.node, {})
            for name, amount in held.amounts.items():
                sums[name] = sums.get(name, Fraction(0)) + amount
        asked = requests(pod)
        managed = frozenset(name for name in asked if name.startswith(self._settings.managed))
        refused: dict[str, str] = {}
        for node in self._nodes:
            reason = why_not(pod, node, used.get(node.metadata.name, {}), ignored=managed)
            if reason is not None:
                refused[node.metadata.name] = reason
        fitting = sorted(node.metadata.name for node in self._nodes if node.metadata.name not in refused)
        nominated = pod.status.nominated_node_name
        try:
            chosen = None
            if nominated in fitting:
                chosen = await self._choose(session, raw, pod, [nominated], {}, managed=bool(managed))
            if chosen is None:
                chosen = await self._choose(session, raw, pod, fitting, refused, managed=bool(managed))
        except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError) as error:
            chosen, refused = None, {"*": f"extender: {error}"}
        now = self._clock.monotonic()
        if chosen is None:
            self._queue.unschedulable(
                pod.metadata.uid, pod.spec.priority or 0, now=now, missed=self._events != seen or "*" in refused
            )
            await self._report(pod, refused)
            return
        self._on_node[pod.metadata.uid] = _Assumed(chosen, asked)
        task = asyncio.create_task(self._bind(session, pod, chosen, managed=bool(managed)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _choose(
        self,
        session: aiohttp.ClientSession,
        raw: _RawPod,
        pod: Manifest,
        fitting: list[str],
        refused: dict[str, str],
        *,
        managed: bool,
    ) -> str | None:
        if managed and fitting:
            body = msgspec.json.encode({"Pod": raw, "Nodes": None, "NodeNames": fitting})
            async with session.post(f"{self._settings.extender}/filter", data=body, headers=_JSON) as answer:
                result = msgspec.json.decode(await answer.read(), type=_FilterResult)
            refused |= (result.FailedNodes or {}) | (result.FailedAndUnresolvableNodes or {})
            if result.Error:
                refused["*"] = f"extender: {result.Error}"
            fitting = result.NodeNames or []
        if not fitting:
            return None
        nodes = [node for node in (self._nodes.get(name) for name in fitting) if node is not None]
        best = max((preference(pod, node) for node in nodes), default=0)
        return self._rng.choice([node.metadata.name for node in nodes if preference(pod, node) == best])

    async def _bind(self, session: aiohttp.ClientSession, pod: Manifest, node: str, *, managed: bool) -> None:
        meta = pod.metadata
        problem = ""
        async with self._binding:
            try:
                if managed:
                    body = msgspec.json.encode(
                        {"PodName": meta.name, "PodNamespace": meta.namespace, "PodUID": meta.uid, "Node": node}
                    )
                    async with session.post(f"{self._settings.extender}/bind", data=body, headers=_JSON) as answer:
                        problem = msgspec.json.decode(await answer.read(), type=_BindResult).Error
                else:
                    await self._client.bind(meta.name, namespace=meta.namespace, node=node, uid=meta.uid)
            except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError, KubeError) as error:
                problem = str(error) or type(error).__name__
        if not problem:
            self.bound += 1
            return
        if meta.uid in self._read:
            self._on_node.pop(meta.uid, None)
            self.reasons[pod.key] = f"binding to {node} failed: {problem}"
            self._queue.unschedulable(meta.uid, pod.spec.priority or 0, now=self._clock.monotonic(), missed=True)
            self._wake.set()

    async def _report(self, pod: Manifest, refused: dict[str, str]) -> None:
        """Say why in the pod's PodScheduled condition, worded as kube-scheduler does."""
        counted = Counter(refused.values())
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(counted.items()))
        message = f"0/{len(self._nodes)} nodes are available: {why}."
        nominated = pod.status.nominated_node_name
        if self.reasons.get(pod.key) == message and not nominated:
            return
        self.reasons[pod.key] = message
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        change: dict[str, object] = {"conditions": [condition]}
        if nominated:
            change["nominatedNodeName"] = None
        try:
            await self._client.patch(
                PODS,
                pod.metadata.name,
                msgspec.json.encode({"status": change}),
                kind=Patch.STRATEGIC,
                namespace=pod.metadata.namespace,
                subresource="status",
            )
        except ApiError as error:
            _log.debug("pod %s: its condition can't be written: %s", pod.key, error)


_JSON = {"Content-Type": "application/json"}


def _same_for_scheduling(old: Node, new: Node) -> bool:
    """Whether nothing changed that kube-scheduler's queueing hints look at (a heartbeat is no event)."""
    return (
        old.metadata.labels == new.metadata.labels
        and old.metadata.annotations == new.metadata.annotations
        and old.spec == new.spec
        and old.status.allocatable == new.status.allocatable
        and old.ready == new.ready
    )
