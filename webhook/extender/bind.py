"""Bind: reserve in the ledger, label the pod with its unit, write the Binding with the plan.

Plan and nodeName appear in one write, so the node can't see one without the other. The reservation stands before anything
is written and falls only once it is certain that the Binding is not in force: an answer that was lost is looked for by
reading the pod, writing the same Binding once more is harmless (it is the same plan, and only one can win), and what can't
be found out stays reserved until it can.

A bind runs in a task of its own: a client that goes away before anything was written means that nothing is written, one
that goes away later changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import msgspec

from tessera.kube.client import Patch
from tessera.kube.clock import Clock
from tessera.kube.errors import ApiError, ConflictError, KubeError, NotFoundError
from tessera.kube.resources import PODS, Resource
from tessera.model import plan as plans
from tessera.model.config import Config
from tessera.model.errors import RequestError
from tessera.model.pod import Pod
from tessera.model.profile import REGION, choose, unit_of
from tessera.placement.claims import Claim, plan_of
from tessera.placement.fit import place, still_fits
from tessera.placement.reasons import Reason, Rejection
from webhook.extender.cluster import Cluster
from webhook.extender.errors import BindError
from webhook.extender.filter import Asked, read_asked
from webhook.extender.metrics import Metrics
from webhook.extender.wire import BindArgs, BindResult

WRITES: Final = 64
"""API writes in flight. Real kube-schedulers have had up to 140 binds in flight; more here only queue at the server."""
WAITING: Final = 2000
"""Binds under way, waiting ones included; the next is refused."""
DEADLINE: Final = 4.0
"""Seconds for one API call of a bind. kube-scheduler gives an extender 5 s unless told otherwise."""
IN_FLIGHT: Final = 60.0
"""Seconds after which a write whose answer was lost can't take effect any more: the API server gives up after 34."""
LOOK_AGAIN: Final = 2.0

_log = logging.getLogger(__name__)
_POD: Final = msgspec.json.Decoder(Pod)
_BOUND: Final = "bound"

Verdict = Literal["bound", "free", "doubtful"]


class Door(Protocol):
    """What a bind needs of the API client."""

    async def get(
        self,
        resource: Resource,
        name: str,
        *,
        decoder: msgspec.json.Decoder[Pod],
        namespace: str = "",
        timeout: float = ...,  # noqa: ASYNC109
    ) -> Pod: ...

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: bytes,
        *,
        kind: Patch,
        namespace: str = "",
        timeout: float = ...,  # noqa: ASYNC109
    ) -> bytes: ...

    async def bind(
        self,
        name: str,
        *,
        namespace: str,
        node: str,
        uid: str,
        annotations: dict[str, str] | None = None,
        timeout: float = ...,  # noqa: ASYNC109
    ) -> None: ...


@dataclass(slots=True)
class _Run:
    """A bind under way, for one client or for several that ask the same."""

    args: BindArgs
    task: asyncio.Task[str]
    clients: list[Callable[[], bool]]


class Binder:
    """Binds pods."""

    def __init__(
        self, cluster: Cluster, door: Door, *, config: Callable[[], Config], clock: Clock, metrics: Metrics
    ) -> None:
        """Write through this door.

        Args:
            cluster: what is reserved in.
            door: the API client.
            config: the config in force.
            clock: measures how long a lost answer is looked for.
            metrics: counts results.
        """
        self._cluster = cluster
        self._door = door
        self._config = config
        self._clock = clock
        self._metrics = metrics
        self._writes = asyncio.Semaphore(WRITES)
        self._running: dict[tuple[str, str], _Run] = {}
        self._doubts: dict[str, asyncio.Task[None]] = {}

    async def bind(self, args: BindArgs, gone: Callable[[], bool]) -> BindResult:
        """Bind a pod to a node.

        Args:
            args: what kube-scheduler asks.
            gone: tells whether the client has gone away.

        Returns:
            Success, also where the pod is on that node already; else the reason.
        """
        key = (args.PodNamespace, args.PodName)
        run = self._running.get(key)
        if run is not None:
            if run.args != args:
                self._metrics.binds.labels("refused").inc()
                return BindResult(f"pod {'/'.join(key)} is just being bound to node {run.args.Node}; try again")
            run.clients.append(gone)
        elif len(self._running) >= WAITING:
            self._metrics.binds.labels("refused").inc()
            return BindResult(f"{WAITING} binds are under way; try again")
        else:
            clients = [gone]
            task = asyncio.create_task(self._bind(args, lambda: all(client() for client in clients)))
            run = self._running[key] = _Run(args, task, clients)
            task.add_done_callback(lambda _: self._running.pop(key, None))
        return BindResult(await asyncio.shield(run.task))

    async def close(self) -> None:
        """Let binds under way end, and look for lost answers no longer."""
        if self._running:
            await asyncio.wait([run.task for run in self._running.values()], timeout=3 * DEADLINE)
        for doubt in self._doubts.values():
            doubt.cancel()
        await asyncio.gather(*self._doubts.values(), return_exceptions=True)

    async def _bind(self, args: BindArgs, gone: Callable[[], bool]) -> str:
        try:
            result = await self._steps(args, gone)
        except BindError as error:
            _log.info("pod %s/%s: not bound to node %s: %s", args.PodNamespace, args.PodName, args.Node, error)
            return str(error)
        self._metrics.binds.labels(result).inc()
        return ""

    async def _steps(self, args: BindArgs, gone: Callable[[], bool]) -> str:
        """Do it all; return the result's name.

        Raises:
            BindError: the pod is not bound there.
        """
        pod = await self._pod(args)
        if pod.spec.node_name == args.Node:
            self._cluster.observe(pod)
            return "repeated"
        self._check(pod, args)
        asked, claim = self._read(pod), None
        if asked is not None:
            claim = self._reserve(asked, args.Node, self._cluster.refusals.on(args.Node, pod))
            self._cluster.refusals.bound(pod, args.Node)
        try:
            if claim is not None and (wait := self._cluster.handback.wait(args.Node, claim)):
                await self._clock.sleep(wait)
            verdict, why = await self._attempt(pod, args.Node, self._annotations(asked, claim, args.Node), gone)
        except BindError:
            self._give_back(pod.metadata.uid)
            raise
        except Exception:
            # A fault of ours; nobody can say how far it came.
            self._look_for(pod, args.Node)
            raise
        if verdict == "bound":
            self._cluster.confirm(pod.metadata.uid)
            return _BOUND
        if verdict == "doubtful":
            self._look_for(pod, args.Node)
            raise self._refusal("doubtful", f"{why}; whether the pod is bound is not known yet")
        self._give_back(pod.metadata.uid)
        raise self._refusal("failed", why)

    async def _attempt(
        self, pod: Pod, node: str, annotations: dict[str, str], gone: Callable[[], bool]
    ) -> tuple[Verdict, str]:
        """Write, unless the client goes away before; every look comes right before a write."""
        async with self._writes:
            if not gone():
                await self._label(pod, node)
            if gone():
                raise self._refusal("abandoned", "the client has gone away")
            return await self._write(pod, node, annotations)

    async def _pod(self, args: BindArgs) -> Pod:
        """The pod as the cache has it, or read where that lags behind kube-scheduler's. The Binding checks its UID."""
        cached = self._cluster.pods.get(args.PodName, args.PodNamespace)
        if cached is not None and cached.metadata.uid == args.PodUID:
            return cached
        try:
            pod = await self._door.get(PODS, args.PodName, namespace=args.PodNamespace, decoder=_POD, timeout=DEADLINE)
        except KubeError as error:
            raise self._refusal("failed", str(error)) from error
        if args.PodUID and pod.metadata.uid != args.PodUID:
            raise self._refusal(
                "refused", f"pod {pod.key} has the UID {pod.metadata.uid}, not {args.PodUID[:64]}: it was made anew"
            )
        return pod

    def _check(self, pod: Pod, args: BindArgs) -> None:
        if pod.spec.node_name:
            raise self._refusal("refused", f"pod {pod.key} is on node {pod.spec.node_name}, not {args.Node}")
        if pod.ended or pod.metadata.deletion_timestamp is not None:
            raise self._refusal("refused", f"pod {pod.key} has ended or is being deleted")

    def _read(self, pod: Pod) -> Asked | None:
        try:
            return read_asked(pod, self._config())
        except RequestError as error:
            raise self._refusal("refused", str(error)) from error

    def _reserve(self, asked: Asked, node: str, refusing: Rejection | None) -> Claim:
        """Take what the filter named, if it is still free, else other GPUs of the node."""
        uid, ledger = asked.uid, self._cluster.ledger
        closed = ledger.closed(node)
        if closed is not None and closed is not Reason.CORDONED:
            raise self._refusal("refused", f"node {node}: {Rejection(closed).text}")
        if uid in self._doubts:
            return self._reserve_again(uid, node)
        if refusing is not None:
            raise self._refusal("refused", f"node {node}: {refusing.text}")
        named = ledger.named(uid)
        keeper = self._cluster.keeper
        states = keeper.states(node, uid=uid, priority=asked.priority)
        if named is not None and named[0] == node and named[1].asks == asked.asks:
            if still_fits(asked.asks, asked.shape, named[1].places, states):
                self._cluster.reserve(uid, node, named[1])
                return named[1]
            self._metrics.moved.inc()
        softly = keeper.states(node, uid=uid, priority=asked.priority, soft=True)
        found = place(asked.asks, asked.shape, softly)
        if isinstance(found, Rejection):
            found = place(asked.asks, asked.shape, states)
        if isinstance(found, Rejection):
            promises = keeper.against(node, uid=uid, priority=asked.priority)
            kept = f", and room is kept for a pod of priority {promises[0].priority}" if promises else ""
            raise self._refusal("refused", f"node {node}: {found.text}{kept}")
        claim = Claim(asked.asks, found, asked.shape.wishes.company)
        self._cluster.reserve(uid, node, claim)
        return claim

    def _reserve_again(self, uid: str, node: str) -> Claim:
        """An earlier Binding of this pod may still take effect: only the same one may be written again."""
        booked = self._cluster.ledger.booked(uid)
        if booked is None or booked[0] != node:
            where = f" to node {booked[0]}" if booked is not None else ""
            raise self._refusal("doubtful", f"an earlier Binding{where} may still take effect; try again")
        return booked[1]

    def _annotations(self, asked: Asked | None, claim: Claim | None, node: str) -> dict[str, str]:
        if asked is None or claim is None:
            return {}
        config = self._config()
        plan = plan_of(asked.asks, claim.places, self._cluster.ledger.gpus(node), node=node, unit=config.memory_unit)
        return {config.names.plan: plans.encode(plan)}

    async def _label(self, pod: Pod, node: str) -> None:
        """Say which unit of its profile the pod goes to, where it has one, and take older labels away."""
        wanted = self._labels(pod, node)
        there = pod.metadata.labels or {}
        change = {name: value for name, value in wanted.items() if there.get(name) != value}
        if not change:
            return
        # The UID is a precondition: a pod that was made anew is not ours to label.
        body = msgspec.json.encode({"metadata": {"uid": pod.metadata.uid, "labels": change}})
        try:
            await self._door.patch(
                PODS, pod.metadata.name, body, kind=Patch.MERGE, namespace=pod.metadata.namespace, timeout=DEADLINE
            )
        except KubeError as error:
            raise self._refusal("failed", str(error)) from error

    def _labels(self, pod: Pod, node: str) -> dict[str, str | None]:
        config = self._config()
        names = config.names
        try:
            profile = choose(
                config.profiles,
                named=pod.metadata.annotation(names.placement_profile),
                namespace=pod.metadata.namespace,
                labels=pod.metadata.labels,
            )
        except RequestError:
            # Admission refused it or let it pass before the profile was removed; no reason not to run the pod.
            profile = None
        found = self._cluster.node(node)
        labels = (found.metadata.labels if found is not None else None) or {}
        unit = unit_of(labels, profile) if profile is not None else None
        region = labels.get(REGION) if unit is not None else None
        return {names.unit: unit.name if unit is not None else None, names.region: region}

    async def _write(self, pod: Pod, node: str, annotations: dict[str, str]) -> tuple[Verdict, str]:
        """Post the Binding and find out whether it is in force."""
        meta = pod.metadata
        why = ""
        for _ in range(2):
            try:
                await self._door.bind(
                    meta.name,
                    namespace=meta.namespace,
                    node=node,
                    uid=meta.uid,
                    annotations=annotations,
                    timeout=DEADLINE,
                )
            except ApiError as error:
                why = str(error)
                if not error.maybe_done and not isinstance(error, ConflictError):
                    return "free", why
                verdict = await self._look(pod, node)
                # A conflict that was not ours is final; a lost write that has not arrived is written once more.
                if verdict != "free" or not error.maybe_done:
                    return verdict, why
            except KubeError as error:
                # The answer came and can't be read.
                return await self._look(pod, node), str(error)
            else:
                return "bound", ""
        return "doubtful", why

    async def _look(self, pod: Pod, node: str) -> Verdict:
        """Read the pod: is it on the node, can it not be any more, or can't that be told?"""
        meta = pod.metadata
        try:
            found = await self._door.get(PODS, meta.name, namespace=meta.namespace, decoder=_POD, timeout=DEADLINE)
        except NotFoundError:
            return "free"
        except KubeError as error:
            _log.warning("pod %s: whether it is bound to node %s can't be read: %s", pod.key, node, error)
            return "doubtful"
        if found.metadata.uid != meta.uid:
            return "free"
        if found.spec.node_name:
            self._cluster.observe(found)
            return "bound" if found.spec.node_name == node else "free"
        return "free"

    def _give_back(self, uid: str) -> None:
        """The Binding just tried is not in force; an earlier one in doubt is not ours to give back."""
        if uid not in self._doubts:
            self._cluster.cancel(uid)

    def _look_for(self, pod: Pod, node: str) -> None:
        uid = pod.metadata.uid
        if uid in self._doubts:
            return
        task = asyncio.create_task(self._resolve(pod, node))
        self._doubts[uid] = task
        task.add_done_callback(lambda _: self._doubts.pop(uid, None))

    async def _resolve(self, pod: Pod, node: str) -> None:
        """Look until it is certain whether a Binding whose answer was lost is in force; meanwhile its slice is held."""
        uid, key = pod.metadata.uid, (pod.metadata.namespace, pod.metadata.name)
        began = self._clock.monotonic()
        while self._cluster.reserved(uid):
            await self._clock.sleep(LOOK_AGAIN)
            if key in self._running:
                # Kube-scheduler tries again: another write whose time begins now.
                began = self._clock.monotonic()
            elif await self._look(pod, node) == "free" and self._clock.monotonic() - began >= IN_FLIGHT:
                _log.info("pod %s: its Binding to node %s never took effect", pod.key, node)
                self._cluster.cancel(uid)

    def _refusal(self, result: str, text: str) -> BindError:
        self._metrics.binds.labels(result).inc()
        return BindError(text)
