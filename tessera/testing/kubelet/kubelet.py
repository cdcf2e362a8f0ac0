"""The fake kubelet itself: one node's kubelet, towards its device plugins and towards whoever hands it pods.

It owns a directory laid out like /var/lib/kubelet and does there what a kubelet 1.34 does; the parts are in the modules
beside this one, each naming the source that it was modelled on. What a restart loses (connections, tables) and what it
keeps (checkpoint, running containers, the pods' objects) are two different sets of attributes here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random
from types import TracebackType
from typing import Final, Literal, Self

from tessera.testing.kubelet import admission
from tessera.testing.kubelet.admission import Admission
from tessera.testing.kubelet.changes import Changes
from tessera.testing.kubelet.containers import ContainerRecord, Hooks, Runtime
from tessera.testing.kubelet.endpoint import PluginCall
from tessera.testing.kubelet.errors import KubeletError
from tessera.testing.kubelet.manager import Capacity
from tessera.testing.kubelet.pods import read_pod
from tessera.testing.kubelet.podsserver import PodsServer
from tessera.testing.kubelet.run import Run, start_run
from tessera.testing.kubelet.settings import Faults, Paths, Settings, World
from tessera.testing.kubelet.table import PodTable
from tessera.testing.kubelet.workers import PodState

_log = logging.getLogger(__name__)

MOST_CALLS: Final = 10_000
"""Calls to plugins that are remembered; older ones are dropped."""
_NO_HOOKS: Final = Hooks()


class FakeKubelet:
    """One node's kubelet. Use it as an async context manager, or call `start` and `close`."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        settings: Settings | None = None,
        world: World | None = None,
        hooks: Hooks = _NO_HOOKS,
        pods_token: str | None = None,
        pods_tls: ssl.SSLContext | None = None,
    ) -> None:
        """Prepare the directory; nothing listens before `start`.

        Args:
            directory: becomes the kubelet's directory; keep its path short, it holds sockets.
            settings: see `Settings`.
            world: see `World`.
            hooks: told of containers that start and end.
            pods_token: bearer token that GET /pods asks for; None lets everybody in.
            pods_tls: makes GET /pods HTTPS.

        Raises:
            KubeletError: the directory's path is too long for sockets.
        """
        self.paths = Paths(os.fspath(directory))
        self.settings = settings or Settings()
        self.faults = Faults()
        self.calls: deque[PluginCall] = deque(maxlen=MOST_CALLS)
        self.node_allocatable: Mapping[str, int] | None = None
        """What the Node object in the API says; None: always what the device manager says."""
        self.paths.make()
        self._world = world or World()
        self._random = Random(self.settings.seed)
        self._runtime = Runtime(self.paths, first_pid=self.settings.first_pid, hooks=hooks, now=self._world.timestamp)
        self._pods = PodTable(self.settings.node)
        self._http = PodsServer(self._pods.raw, token=pods_token, tls=pods_tls)
        self._admitting = asyncio.Lock()
        self.changes = Changes()
        self._run: Run | None = None

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop for good."""
        await self.close()

    @property
    def pods_url(self) -> str:
        """Where GET /pods is answered; only after `start`."""
        return self._http.url

    @property
    def pods_port(self) -> int:
        """The port of `pods_url`, the same after a restart; 0 before the first start."""
        return self._http.port

    # --- the kubelet's own life -------------------------------------------------------------------------------------

    async def start(
        self,
        pods: Sequence[Mapping[str, object]] = (),
        *,
        before_admission: Callable[[], Awaitable[None]] | None = None,
    ) -> list[Admission]:
        """Start listening, wait as long as a real start takes, then admit the pods that are bound to the node.

        Pods that were admitted before a restart go through admission again, in one batch with the new ones, ordered by
        creation: a container that runs keeps its devices without any call; one that doesn't run needs its plugin to have
        registered by now, else its pod fails (manager.go, "scenario 2" and "3").

        Args:
            pods: pods bound while the kubelet was away.
            before_admission: awaited instead of the delay of `Settings.startup_delay`.

        Returns:
            How the admission of `pods` ended, in their order.

        Raises:
            KubeletError: it runs already.
            PodError: one of `pods` is no pod, or known already.
        """
        if self._run is not None:
            raise KubeletError(f"the kubelet of {self.settings.node} runs already; stop it first")
        fresh = [self._pods.fresh(raw) for raw in pods]
        waiting = [state for state in self._pods.all() if state.active]
        run = await self._listen()
        async with self._admitting:
            results = await self._admit_batch(run, waiting + fresh, before_admission)
        return [results[state.pod.uid] for state in fresh]

    async def stop(self) -> None:
        """End the kubelet's process: sockets go dead but stay, containers go on running."""
        if self._run is None:
            return
        run, self._run = self._run, None
        for state in self._pods.all():
            await run.workers.stop(state)
        await run.stop()
        await self._http.stop()

    async def restart(
        self,
        pods: Sequence[Mapping[str, object]] = (),
        *,
        before_admission: Callable[[], Awaitable[None]] | None = None,
    ) -> list[Admission]:
        """Stop and start; see `start`."""
        await self.stop()
        return await self.start(pods, before_admission=before_admission)

    async def close(self) -> None:
        """Stop for good; containers are ended, files stay."""
        await self.stop()
        for state in self._pods.all():
            self._runtime.end_pod(state.pod.uid, 0)

    # --- pods ---------------------------------------------------------------------------------------------------------

    async def admit(self, pod: Mapping[str, object]) -> Admission:
        """Hand the kubelet a pod that was bound to its node; its containers start by themselves afterwards.

        Pods are admitted one at a time, in the order of the calls.

        Raises:
            KubeletError: the kubelet doesn't run.
            PodError: no pod, or one with a UID that is known already.
        """
        self._running()
        async with self._admitting:
            return await self._admit(self._pods.fresh(pod))

    def update(self, pod: Mapping[str, object]) -> None:
        """Take the API server's newer object of a known pod, which is what GET /pods shows from now on.

        Raises:
            PodError: no pod, or one with an unknown UID.
        """
        fresh = read_pod(pod)
        self._pods.known(fresh.uid).pod = fresh

    async def terminate(
        self, uid: str, phase: Literal["Succeeded", "Failed"] = "Succeeded", *, exit_code: int | None = None
    ) -> None:
        """End a pod's containers and give it a terminal phase; its devices are freed at the next allocation or List.

        Args:
            uid: the pod.
            phase: how it ended.
            exit_code: of its containers; 0 for Succeeded and 1 for Failed where not given.

        Raises:
            PodError: unknown UID.
        """
        state = self._pods.known(uid)
        state.terminating = True
        if self._run is not None:
            await self._run.workers.stop(state)
        self._runtime.end_pod(uid, int(phase == "Failed") if exit_code is None else exit_code)
        # A phase that was reached, a rejection's above all, is never taken back.
        if state.phase not in {"Succeeded", "Failed"}:
            state.phase = phase
        state.waiting.clear()
        state.terminated = True
        self.changes.of_pod(state)

    async def remove(self, uid: str, *, lingering: bool = False) -> None:
        """The pod's object is gone from the API server: the kubelet forgets it and kills what still runs.

        Args:
            uid: the pod.
            lingering: its containers don't end now, as when killing takes its time: the kubelet counts the devices free
                all the same. `reap` ends them.

        Raises:
            PodError: unknown UID.
        """
        state = self._pods.known(uid)
        if self._run is not None:
            await self._run.workers.stop(state)
        self._pods.discard(uid)
        state.terminated = True
        if not lingering:
            self.reap(uid)
        self.changes.of_pod(state)

    def reap(self, uid: str) -> None:
        """End the containers that a removed pod left behind, and remove their records."""
        self._runtime.end_pod(uid, 137)
        self._runtime.forget_pod(uid)

    def restart_container(self, uid: str, container: str, *, exit_code: int = 1) -> None:
        """A container's process ends and is started again, with PreStartContainer but without Allocate.

        Returns when the old process has ended; `settled` waits for the new one.

        Raises:
            KubeletError: the kubelet doesn't run.
            PodError: unknown pod or container.
        """
        state = self._pods.known(uid)
        self._running().workers.restart_container(state, state.pod.container(container), exit_code)

    async def settled(self, uid: str, *, seconds: float = 10.0) -> dict[str, str]:
        """Wait until each container of a pod has started or waits for a plugin.

        A pod stops at the first init container that doesn't start; those after it are not in the answer.

        Returns:
            Container -> "" where it started, else the message of its CreateContainerConfigError.

        Raises:
            PodError: unknown UID.
            TimeoutError: it took longer than that.
        """
        state = self._pods.known(uid)
        await self.wait_for(lambda _: state.settled, seconds=seconds)
        started = {record.container: "" for record in self._runtime.of_pod(uid)}
        return {**started, **state.waiting}

    def retry(self, uid: str) -> None:
        """Try containers that wait in CreateContainerConfigError now.

        Raises:
            PodError: unknown UID.
        """
        state = self._pods.known(uid)
        if state.waiting:
            state.again.set()

    # --- what can be seen ---------------------------------------------------------------------------------------------

    def pod(self, uid: str) -> PodState:
        """What the kubelet knows of a pod.

        Raises:
            PodError: unknown UID.
        """
        return self._pods.known(uid)

    def pods(self) -> list[PodState]:
        """Every pod whose object is there, in the order of arrival."""
        return self._pods.all()

    def containers(self, uid: str | None = None) -> list[ContainerRecord]:
        """Every container that was started and not removed, of one pod or of all."""
        return self._runtime.records() if uid is None else self._runtime.of_pod(uid)

    def capacity(self) -> Capacity:
        """What a running kubelet would write into the node's status now."""
        return self._running().manager.capacity()

    def allocations(self) -> dict[str, dict[str, dict[str, frozenset[str]]]]:
        """IDs by pod UID, container and resource, as the device manager of a running kubelet has them now."""
        found: dict[str, dict[str, dict[str, frozenset[str]]]] = {}
        for allocation in self._running().manager.held:
            entry = allocation.entry
            found.setdefault(entry.pod_uid, {}).setdefault(entry.container, {})[entry.resource] = allocation.ids
        return found

    async def wait_for(self, condition: Callable[[FakeKubelet], bool], *, seconds: float = 10.0) -> None:
        """Wait until a condition on this kubelet holds; it is looked at after every change.

        Raises:
            TimeoutError: it didn't within that time.
        """
        async with asyncio.timeout(seconds):
            await self.changes.wait_for(lambda: condition(self))

    async def wait_serving(self, resource: str, healthy: int, *, seconds: float = 10.0) -> None:
        """Wait until a plugin serves exactly that many healthy devices of a resource.

        Raises:
            TimeoutError: it didn't within that time.
        """
        await self.wait_for(
            lambda _: self._run is not None and self.capacity().allocatable.get(resource) == healthy, seconds=seconds
        )

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _listen(self) -> Run:
        await self._http.start()
        try:
            self._run = await start_run(
                self.paths,
                settings=self.settings,
                world=self._world,
                faults=self.faults,
                random=self._random,
                pods=self._pods,
                runtime=self._runtime,
                changes=self.changes,
                record=self.calls.append,
            )
        except KubeletError:
            await self._http.stop()
            raise
        return self._run

    async def _admit_batch(
        self, run: Run, batch: list[PodState], before: Callable[[], Awaitable[None]] | None
    ) -> dict[str, Admission]:
        """Admit what the first word of the API server brings: a new process knows no pod before its turn comes."""
        results: dict[str, Admission] = {}
        if not batch:
            return results
        run.manager.sources_ready = False
        run.manager.running = self._runtime.running()
        for state in batch:
            self._pods.discard(state.pod.uid)
        try:
            await (before() if before else self._world.sleep(self.settings.startup_delay))
            for state in sorted(batch, key=lambda each: each.pod.created):
                results[state.pod.uid] = await self._admit(state)
        finally:
            # Where this run was stopped in between, the next one finds the others.
            for state in batch:
                if state.pod.uid not in results:
                    self._pods.add(state)
        run.manager.sources_ready = True
        return results

    async def _admit(self, state: PodState) -> Admission:
        run = self._running()
        self._pods.add(state)
        if not state.active:
            # Finished already: it is kept for GET /pods, and nothing else happens.
            return Admission(admitted=False, reason=state.reason, message=state.message)
        manager = run.manager
        allocatable = manager.capacity().allocatable if self.node_allocatable is None else self.node_allocatable
        result = await admission.admit(
            state.pod,
            others=[pod for pod in self._pods.active() if pod.uid != state.pod.uid],
            allocator=run.allocator,
            manager=manager,
            node_allocatable=allocatable,
        )
        if self._run is not run:
            # The process died in between: the next one finds the pod in the API and admits it again.
            raise KubeletError(f"the kubelet of {self.settings.node} was stopped while it admitted pod {state.pod.key}")
        if result.admitted:
            run.workers.start(state)
        else:
            _log.info("pod %s: %s: %s", state.pod.key, result.reason, result.message)
            state.reject(result.reason, result.message)
            # After a restart it may have containers that run.
            self._runtime.end_pod(state.pod.uid, 137)
        self.changes.of_pod(state)
        return result

    def _running(self) -> Run:
        if self._run is None:
            raise KubeletError(f"the kubelet of {self.settings.node} doesn't run; start it first")
        return self._run
