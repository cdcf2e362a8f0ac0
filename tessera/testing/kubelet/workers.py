"""Pods on their way from admission to their end: what the kubelet knows of each, and the task that starts its containers.

The order is the real one's: plain init containers one after the other, each to its end; sidecars in their place, then
left running; then the other containers. Where PreStartContainer fails, the container waits as CreateContainerConfigError
and is tried again; a failing app container doesn't keep the next one from starting (kuberuntime_manager.go, SyncPod).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from tessera.model.pod import TERMINAL
from tessera.testing.kubelet.allocation import Allocator
from tessera.testing.kubelet.containers import Runtime
from tessera.testing.kubelet.errors import AllocationError
from tessera.testing.kubelet.manager import DeviceManager
from tessera.testing.kubelet.pods import Container, KubeletPod
from tessera.testing.kubelet.settings import Settings, World

_log = logging.getLogger(__name__)

Phase = Literal["Pending", "Running", "Succeeded", "Failed"]
CONFIG_ERROR = "CreateContainerConfigError"


@dataclass(slots=True)
class PodState:
    """What the kubelet knows of one pod.

    Attributes:
        phase: the kubelet's own view, which the API server learns later.
        reason: of a rejection, such as UnexpectedAdmissionError; "" otherwise.
        message: of a rejection, with the real one's "Pod was rejected: " in front.
        waiting: container -> why it doesn't start (the message of CreateContainerConfigError).
        terminating: told to stop; its containers may still run. It counts as active until they have ended.
        terminated: its containers have ended.
        started: when it was admitted, RFC 3339.
        again: set to try waiting containers at once.
        busy: how many of its tasks are at work rather than waiting for the next try.
    """

    pod: KubeletPod
    phase: Phase = "Pending"
    reason: str = ""
    message: str = ""
    waiting: dict[str, str] = field(default_factory=dict)
    terminating: bool = False
    terminated: bool = False
    started: str = ""
    again: asyncio.Event = field(default_factory=asyncio.Event)
    busy: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def settled(self) -> bool:
        """Every container that can be started now has been tried."""
        return self.busy == 0 and not self.again.is_set()

    @property
    def active(self) -> bool:
        """Not finished, so its devices are its own (filterOutInactivePods in kubelet_pods.go)."""
        if self.terminated:
            return False
        ended = self.phase in TERMINAL or self.pod.manifest.status.phase in TERMINAL
        return not ended or self.terminating

    def reject(self, reason: str, message: str) -> None:
        """Admission refused it (rejectPod in kubelet.go)."""
        self.phase, self.reason, self.message = "Failed", reason, f"Pod was rejected: {message}"


class Workers:
    """Starts the containers of admitted pods, each pod in a task of its own."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        manager: DeviceManager,
        allocator: Allocator,
        settings: Settings,
        world: World,
        changed: Callable[[PodState], None],
    ) -> None:
        """Start containers in `runtime` with what `manager` recorded.

        Args:
            runtime: where containers run.
            manager: who holds what.
            allocator: calls PreStartContainer.
            settings: see `Settings`.
            world: see `World`.
            changed: called after every change of a pod.
        """
        self._runtime = runtime
        self._manager = manager
        self._allocator = allocator
        self._settings = settings
        self._world = world
        self._changed = changed
        self._random = Random(settings.seed + 1)

    def start(self, state: PodState) -> None:
        """Begin to start a pod's containers; those that run already are left alone."""
        state.started = state.started or self._world.timestamp()
        self._spawn(state, self._start_pod(state))

    async def stop(self, state: PodState) -> None:
        """Give up starting what isn't started."""
        tasks = list(state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        state.again.clear()

    def restart_container(self, state: PodState, container: Container, exit_code: int) -> None:
        """End a container and start it again: PreStartContainer is called, Allocate is not."""
        self._runtime.end(state.pod.uid, container.name, exit_code)
        self._spawn(state, self._start_until_done(state, [container]))

    def _spawn(self, state: PodState, work: Coroutine[None, None, None]) -> None:
        state.busy += 1
        task = asyncio.create_task(work, name=f"start {state.pod.key}")
        state.tasks.add(task)
        task.add_done_callback(lambda done: self._done(state, done))

    def _done(self, state: PodState, task: asyncio.Task[None]) -> None:
        state.tasks.discard(task)
        state.busy -= 1
        if not task.cancelled() and task.exception() is not None:
            _log.error("pod %s: starting it failed", state.pod.key, exc_info=task.exception())
        self._changed(state)

    async def _start_pod(self, state: PodState) -> None:
        uid = state.pod.uid
        for container in state.pod.containers:
            if container.role == "main" or self._runtime.get(uid, container.name) is not None:
                continue
            await self._start_until_done(state, [container])
            if container.role == "init":
                self._runtime.end(uid, container.name, 0)
        main = [each for each in state.pod.containers if each.role == "main"]
        await self._start_until_done(state, [each for each in main if self._runtime.get(uid, each.name) is None])

    async def _start_until_done(self, state: PodState, containers: list[Container]) -> None:
        left = containers
        while left:
            left = [each for each in left if not await self._try_start(state, each)]
            if left:
                await self._wait(state)

    async def _wait(self, state: PodState) -> None:
        interval = self._settings.retry_interval
        waits: list[asyncio.Future[object]] = [asyncio.ensure_future(_waited(state.again))]
        if interval is not None:
            waits.append(asyncio.ensure_future(_slept(self._world, interval)))
        state.busy -= 1
        self._changed(state)
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            state.busy += 1
            state.again.clear()
            for wait in waits:
                wait.cancel()

    async def _try_start(self, state: PodState, container: Container) -> bool:
        pod = state.pod
        try:
            await self._allocator.prepare_start(pod, container)
        except AllocationError as error:
            _log.info("pod %s, container %s: %s: %s", pod.key, container.name, CONFIG_ERROR, error)
            state.waiting[container.name] = str(error)
            self._changed(state)
            return False
        state.waiting.pop(container.name, None)
        held = self._manager.held.of_container(pod.uid, container.name)
        self._runtime.start(pod, container, held, random=self._random)
        if container.role == "main" and state.phase == "Pending":
            state.phase = "Running"
        self._changed(state)
        return True


async def _waited(event: asyncio.Event) -> object:
    return await event.wait()


async def _slept(world: World, seconds: float) -> object:
    await world.sleep(seconds)
    return None
