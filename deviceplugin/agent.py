"""The node agent: everything wired together, from the first look at the GPUs to the hand-over to a newer agent.

The order matters. What is slow comes first (NVML, the pods' watch, the machine), then the node's lock, then the ledger, and
only then is anything served: the gap between the old agent's last answer and our first stays under half a second. Nothing
waits for the API server longer than `SYNC_WITHIN`: an edge node that is cut off restarts its containers all the same.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from random import Random
from typing import Final, Literal

from prometheus_client import CollectorRegistry

from deviceplugin import checkpoint
from deviceplugin.allocator import Allocator
from deviceplugin.board import Board
from deviceplugin.drift import drift
from deviceplugin.gpus import GpuSide
from deviceplugin.identity import Identity
from deviceplugin.isolation.environment import Environment
from deviceplugin.leaving import awaited, drain
from deviceplugin.ledgerfile import LedgerFile
from deviceplugin.metrics import NodeMetrics
from deviceplugin.mpsdaemon import MpsDaemon
from deviceplugin.notices import Notices
from deviceplugin.nvml.source import GpuSource
from deviceplugin.placing import Placing
from deviceplugin.podresources import PodResources
from deviceplugin.pods import NodePods, PodsEndpoint, watch_of
from deviceplugin.prestart import PreStart
from deviceplugin.processes import ProcessMap
from deviceplugin.publish import Publisher, metadata
from deviceplugin.rebuild import Rebuild, gather
from deviceplugin.registration import Registrar
from deviceplugin.rivals import Rivals
from deviceplugin.server import TicketServer
from deviceplugin.settle import Settler
from deviceplugin.sightings import Sightings
from deviceplugin.takeover import NodeLock
from deviceplugin.tenants import Tenants
from deviceplugin.warmup import first_look, together
from tessera.kube.client import ApiClient
from tessera.kube.clock import Clock
from tessera.kube.events import EventRecorder
from tessera.model.config import Config

_log = logging.getLogger(__name__)

SYNC_WITHIN: Final = 3.0
"""Seconds to wait for the API server and for NVML at start."""
LEDGER: Final = "ledger.json"
Phase = Literal["warming up", "waiting", "taking over", "serving", "draining"]
"""An agent's life: everything slow, the wait for the node's lock, the ledger and the kubelet, its work, the hand-over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where things are.

    Attributes:
        plugins: the kubelet's device-plugins folder.
        pod_resources: the kubelet's PodResources socket.
        state: our own folder, which survives restarts; it is made where it is missing.
    """

    plugins: str
    pod_resources: str
    state: str


class Agent:
    """One node's agent."""

    def __init__(
        self,
        node: str,
        places: Places,
        *,
        config: Callable[[], Config],
        source: GpuSource,
        survey: Callable[[], Awaitable[Environment]],
        processes: ProcessMap,
        client: ApiClient | None,
        kubelet_pods: PodsEndpoint | None,
        token: str,
        clock: Clock,
        rng: Random,
        registry: CollectorRegistry,
        mps: MpsDaemon | None = None,
    ) -> None:
        """Wire everything; nothing runs before `run`. Make it inside a running event loop.

        Args:
            node: the Node's name.
            places: where things are.
            config: as it is now.
            source: NVML; the agent runs it.
            survey: looks at the machine.
            processes: which container a process is in.
            client: the API server; None: pods are known from the kubelet only and nothing is published.
            kubelet_pods: the kubelet's /pods.
            token: part of our sockets' names, another one for each process.
            clock: paces.
            rng: jitter.
            registry: of metrics.
            mps: the node's MPS daemon; None where there is to be none.
        """
        self.node = node
        self._places = places
        self._config = config
        self._source = source
        self._clock = clock
        self.metrics = NodeMetrics(registry)
        self.board = Board(config().names)
        self._cache = watch_of(client, node, clock=clock, rng=rng)
        self.pods = NodePods(node, cache=self._cache, reader=client, kubelet=kubelet_pods)
        self._recorder = (
            EventRecorder(client, component="tessera-node", instance=node, clock=clock, rng=rng) if client else None
        )
        self._notices = Notices(self._recorder, self.pods, self.board.names)
        self._lister = PodResources(places.pod_resources, clock=clock)
        self.placing = Placing(self.board, node, lambda: config().placement, pods=self.pods.by_uid)
        self.identity = Identity(self._lister, self.pods, self.board.ledger, self.board.names, clock)
        self.gpus = GpuSide(
            self.board,
            source,
            config=config,
            survey=survey,
            processes=processes,
            tenants=Tenants(self.board, self.pods),
            notices=self._notices,
            registry=registry,
            clock=clock,
            mps=mps,
        )
        self._mps = mps
        self._sightings = Sightings(processes, on_gpus=lambda: self.gpus.monitor.seen)
        self.allocator = Allocator(
            self.board,
            identity=self.identity,
            placing=self.placing,
            pods=self.pods,
            clock=clock,
            seen=self._sightings.now,
        )
        self._prestart = PreStart(
            self.board,
            allocator=self.allocator,
            identity=self.identity,
            placing=self.placing,
            pods=self.pods,
            lister=self._lister,
            checkpoint=lambda: checkpoint.read(places.plugins, ours=self.board.names.is_ticket),
            clock=clock,
            started=self._notices.started,
            failed=self._notices.failed,
        )
        self.registrar = Registrar(
            places.plugins,
            resources=lambda: self.board.offers,
            make=self._server,
            token=token,
            clock=clock,
            metrics=self.metrics,
            settled=self._publish,
        )
        self._file = LedgerFile(os.path.join(places.state, LEDGER), self.board.ledger, clock=clock)
        self._lock = NodeLock(os.path.join(places.state, "lock"), clock=clock)
        self._settler = Settler(
            self.board.ledger,
            pods=self.pods,
            lister=self._lister,
            quiet_in=lambda: self.allocator.quiet_in,
            look=self._sightings.look,
            trustworthy=lambda: self._sightings.trustworthy,
            adopt=self._prestart.adopt,
            clock=clock,
            metrics=self.metrics,
        )
        self._rivals = Rivals(self.board, self._lister, instances=lambda: self.gpus.instances, clock=clock)
        self._publisher = Publisher(client, node, state=self._state, clock=clock, rng=rng) if client else None
        self._phase: Phase = "warming up"

    # Being asked.

    @property
    def checks(self) -> Mapping[str, Callable[[], str | None]]:
        """Why the agent isn't ready, by part; for the status port.

        One that is warm and waits for the node's lock is ready: a roll-out stops the old agent only then. From the moment
        in which it has the lock it isn't, until the kubelet listens to it.
        """
        return {
            "gpus": lambda: self.gpus.problem,
            "pods": self._pods_problem,
            "lock": self._lock_problem,
            "kubelet": lambda: self.registrar.unheard if self.board.offers and self._phase == "serving" else None,
            "rivals": lambda: self._rivals.problem,
            "ledger": lambda: self._file.problem,
            "draining": lambda: "stopping" if self._phase == "draining" else None,
        }

    @property
    def notes(self) -> Mapping[str, Callable[[], str | None]]:
        """What is worth knowing of an agent that is ready."""
        waiting = "warm, and waits for the node's lock, which another agent holds"
        return {"lock": lambda: waiting if self._phase == "waiting" else None}

    def configure(self, config: Config) -> None:
        """Take a new config."""
        self.gpus.configure(config)

    def _lock_problem(self) -> str | None:
        if self._phase == "warming up":
            return "warming up"
        return (
            "has the node's lock and is not registered with the kubelet yet" if self._phase == "taking over" else None
        )

    def _pods_problem(self) -> str | None:
        if self._cache is None or self._cache.synced.is_set() or not self.board.offers:
            return None
        return f"the node's pods could not be read from the API yet: {self._cache.last_error or 'no answer yet'}"

    # Living.

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then hand over.

        Raises:
            TakeoverError: the node's lock can't be used.
        """
        os.makedirs(self._places.state, mode=0o700, exist_ok=True)
        try:
            await self._run(stop)
        except BaseExceptionGroup as group:
            # What ended one part ends all; people are told of that one and not of a group.
            raise _first(group) from group

    async def _run(self, stop: asyncio.Event) -> None:
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as background:
            await stack.enter_async_context(self._lister)
            tasks = [background.create_task(self._source.run())]
            if self._cache is not None:
                tasks.append(background.create_task(self._cache.run()))
            if self._recorder is not None:
                tasks.append(background.create_task(self._recorder.run()))
            try:
                await self._until_stopped(stop, self._serve(background, tasks, stop))
            finally:
                for task in tasks:
                    task.cancel()

    async def _until_stopped(self, stop: asyncio.Event, serving: Awaitable[None]) -> None:
        """Let a serving that still waits for its turn go when there is nothing to hand over."""
        work = asyncio.ensure_future(serving)
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait([work, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not self._lock.held:
                work.cancel()
            await work
        except asyncio.CancelledError:
            if not stop.is_set() or self._lock.held:
                raise
        finally:
            stopping.cancel()
            work.cancel()
            await asyncio.wait([work])

    async def _serve(self, background: asyncio.TaskGroup, tasks: list[asyncio.Task[None]], stop: asyncio.Event) -> None:
        await self._warm_up()
        self._phase = "waiting"
        async with self._lock:
            self._phase = "taking over"
            await self._restore()
            self.gpus.judge_processes()
            self.registrar.clean()
            # What is here now stays; a full collection over it would stop an answer for some 20 ms now and then.
            gc.collect()
            gc.freeze()
            self.board.subscribe(self._changed)
            self.board.ledger.subscribe(self._changed)
            self.pods.subscribe(lambda _, __: self._publish())
            self.gpus.monitor.subscribe(lambda _: self._publish())
            self._phase = "serving"
            registering = background.create_task(self.registrar.run())
            works = [self._file.run(), self._settler.run(), self._rivals.run(), self.gpus.run()]
            if self._mps is not None:
                works.append(self._mps.run(lambda: self.gpus.limits))
            tasks += [background.create_task(work) for work in works]
            last = [registering]
            if self._publisher is not None:
                last.append(background.create_task(self._publisher.run()))
            await stop.wait()
            await self._drain()
            # The file first: from the end of our streams to the newcomer's the kubelet has nothing to give.
            await self._file.flush()
            for task in last:
                task.cancel()
            await asyncio.wait(last)
            await self._file.flush()

    async def _warm_up(self) -> None:
        """Do what is slow; what doesn't come in time is waited for later."""
        works: list[Awaitable[object]] = [first_look(self._source), self.gpus.look()]
        if self._mps is not None:
            # One that runs already is relied on from the first container on.
            works.append(self._mps.look())
        if self._cache is not None:
            works.append(self._cache.synced.wait())
        await together(works, within=SYNC_WITHIN)

    async def _restore(self) -> None:
        """Rebuild the ledger of what the file, the kubelet's checkpoint and its List say."""
        witnesses = await gather(
            os.path.join(self._places.state, LEDGER),
            plugins=self._places.plugins,
            pod_resources=self._places.pod_resources,
            lister=self._lister,
            sightings=self._sightings,
            names=self.board.names,
        )
        rebuild = Rebuild(self.pods, self.identity, self.placing, self.board.names)
        grants = rebuild.grants(witnesses)
        self.board.ledger.load(grants)
        _log.info("%d containers hold slices (%d by our own file)", len(grants), len(witnesses.stored or ()))

    def _server(self, resource: str) -> TicketServer:
        return TicketServer(
            resource,
            board=self.board,
            allocator=self.allocator,
            prestart=self._prestart,
            injector=self.gpus.injector,
            metrics=self.metrics,
            clock=self._clock,
        )

    # Telling.

    def _changed(self) -> None:
        self.registrar.wake()
        self._publish()
        for gpu, known in self.board.gpus.items():
            self.metrics.held.labels(gpu, "total").set(known.units)
            self.metrics.held.labels(gpu, "held").set(self.board.ledger.held(gpu).all_units)
        self.metrics.ledger_failures.set(self._file.problem is not None)

    def _publish(self) -> None:
        if self._publisher is not None:
            self._publisher.wake()

    def _state(self) -> dict[str, dict[str, str | None]]:
        """What the Node should say now."""
        lingering = self.board.ledger.lingering | self.gpus.monitor.report.lingering
        # A pod that is sent here before the kubelet knows us, or while it doesn't any more, would fail at admission.
        unknown = bool(self.board.offers) and self.registrar.problem is not None
        inventory = self.board.inventory("draining" if unknown or self._phase == "draining" else "serving", lingering)
        return metadata(inventory, drift(self.board, self.pods, self.identity, self.placing), self.board.names)

    # Leaving.

    async def _drain(self) -> None:
        """Take no new pods, and serve those that are on their way to us already."""
        self._phase = "draining"
        if not self.board.offers:
            return
        telling = asyncio.create_task(self._publisher.publish()) if self._publisher is not None else None
        try:
            await drain(
                lambda: awaited(self.pods.all(), self.identity, self.board.ledger),
                told=lambda: telling is None or telling.done(),
                clock=self._clock,
            )
        finally:
            if telling is not None:
                telling.cancel()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
