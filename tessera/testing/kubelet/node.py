"""A fake kubelet attached to an API server: a node of a cluster.

Pods of the node come by list and watch and go through the kubelet in the order in which they come; what becomes of them is
written back, one pod after the other. Where a real kubelet would look into containers, annotations of the pod speak:

- ``tessera.test/run-seconds``: the containers end by themselves after that many seconds, and the pod with them, whatever
  its restartPolicy says.
- ``tessera.test/exit-code``: of its containers, by themselves or when the pod is deleted (default 0); another code than
  0 makes the phase Failed.
- ``tessera.test/termination-seconds``: how long the containers take to end when the pod is deleted (default 0, at most
  the grace period).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from itertools import count
from typing import Final, Literal

from tessera.model.pod import TERMINAL
from tessera.testing.kubelet.client import ApiClient, ApiError, Object
from tessera.testing.kubelet.errors import KubeletError, PodError
from tessera.testing.kubelet.kubelet import FakeKubelet
from tessera.testing.kubelet.nodestatus import NodeSettings, NodeStatus
from tessera.testing.kubelet.pods import KubeletPod, read_pod
from tessera.testing.kubelet.settings import World
from tessera.testing.kubelet.status import Addresses, pod_status
from tessera.testing.kubelet.workers import PodState

_log = logging.getLogger(__name__)

RUN_SECONDS: Final = "tessera.test/run-seconds"
EXIT_CODE: Final = "tessera.test/exit-code"
TERMINATION_SECONDS: Final = "tessera.test/termination-seconds"
_PODS: Final = "/api/v1/pods"
_LONGEST: Final = 86_400.0


class KubeletNode:
    """A node: it owns the kubelet's starts and stops, the Node object, and the statuses of its pods."""

    def __init__(
        self, kubelet: FakeKubelet, api: ApiClient, *, settings: NodeSettings, world: World | None = None
    ) -> None:
        """Attach a kubelet that was not started to an API server.

        Args:
            kubelet: started and stopped from here on.
            api: an open connection.
            settings: see `NodeSettings`.
            world: see `World`.
        """
        self.kubelet = kubelet
        self._api = api
        self._settings = settings
        self._world = world or World()
        self._node = NodeStatus(kubelet, api, settings=settings, world=self._world)
        self._dirty: dict[str, None] = {}
        self._work = asyncio.Event()
        self._sent: dict[str, dict[str, object]] = {}
        self._deleted: dict[str, KubeletPod] = {}
        self._timed: set[str] = set()
        self._told: set[tuple[str, str, str]] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._timers: set[asyncio.Task[None]] = set()
        self._addresses: dict[str, str] = {}
        self._numbers = count(2)
        kubelet.changes.subscribe(self._mark)

    async def start(self) -> None:
        """Register the node, admit the pods that are bound to it, then follow what comes.

        Raises:
            ApiError: the API server refuses, or can't be reached.
        """
        await self._node.register()
        version = await self._begin()
        await self._node.publish()
        self._loops.append(self._loop("pods", self._follow(version)))
        self._loops.append(self._loop("statuses", self._write_statuses()))
        self._loops.append(self._loop("node status", self._periodic(self._node.publish, self._settings.status_period)))
        if self._settings.lease_period is not None:
            await self._node.renew()
            self._loops.append(self._loop("lease", self._periodic(self._node.renew, self._settings.lease_period)))

    async def stop(self) -> None:
        """End the kubelet's process; containers go on running."""
        loops, self._loops = self._loops, []
        for task in [*loops, *self._timers]:
            task.cancel()
        await asyncio.gather(*loops, *self._timers, return_exceptions=True)
        await self.kubelet.stop()

    async def restart(self) -> None:
        """Stop and start, as when a kubelet is updated.

        Raises:
            ApiError: the API server refuses, or can't be reached.
        """
        await self.stop()
        # Timers died with the process; the new one looks at its pods again.
        self._timed.clear()
        self._deleted.clear()
        await self.start()

    async def set_ready(self, *, ready: bool) -> None:
        """Make the node Ready or NotReady in the API; the kubelet itself goes on.

        Raises:
            ApiError: the API server refuses, or can't be reached.
        """
        self._node.set_ready(ready=ready)
        await self._node.publish()

    # --- pods come and go ---------------------------------------------------------------------------------------------

    async def _begin(self) -> str:
        """List, forget what is gone, start the kubelet with what is new; tells from where to watch."""
        pods, version = await self._list()
        await self._forget_all_but({_uid(pod) for pod in pods})
        known = {state.pod.uid for state in self.kubelet.pods()}
        fresh: list[Object] = []
        for pod in pods:
            if _uid(pod) in known:
                await self._update(pod)
            elif self._readable(pod):
                fresh.append(pod)
        await self.kubelet.start(fresh)
        for pod in fresh:
            await self._update(pod)
        return version

    def _readable(self, pod: Object) -> bool:
        try:
            read_pod(pod)
        except PodError as error:
            _log.warning("node %s: %s", self._settings.name, error)
            return False
        return True

    async def _list(self) -> tuple[list[Object], str]:
        found = await self._api.get(_PODS, {"fieldSelector": f"spec.nodeName={self._settings.name}"})
        items, meta = found.get("items"), found.get("metadata")
        version = meta.get("resourceVersion") if isinstance(meta, dict) else None
        pods = [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
        return pods, str(version or "")

    async def _follow(self, version: str) -> None:
        while True:
            try:
                version = await self._watch(version)
            except ApiError as error:
                _log.info("node %s: watching pods: %s", self._settings.name, error)
                if error.status != 410:
                    await self._world.sleep(self._settings.retry_period)
                version = await self._relist(version)

    async def _watch(self, version: str) -> str:
        query = {
            "fieldSelector": f"spec.nodeName={self._settings.name}",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
        }
        async for event in self._api.watch(_PODS, query):
            pod = event.get("object")
            if not isinstance(pod, dict):
                continue
            version = _version(pod) or version
            if event.get("type") in {"ADDED", "MODIFIED"}:
                await self._update(pod)
            elif event.get("type") == "DELETED":
                await self._forget(_uid(pod))
        return version

    async def _relist(self, version: str) -> str:
        try:
            pods, version = await self._list()
        except ApiError as error:
            _log.info("node %s: listing pods: %s", self._settings.name, error)
            return version
        await self._forget_all_but({_uid(pod) for pod in pods})
        for pod in sorted(pods, key=_created):
            await self._update(pod)
        return version

    async def _update(self, pod: Object) -> None:
        """A pod is there, new or changed: the kubelet hears of it, one pod at a time."""
        uid = _uid(pod)
        try:
            if uid not in {state.pod.uid for state in self.kubelet.pods()}:
                await self.kubelet.admit(pod)
            else:
                self.kubelet.update(pod)
            state = self.kubelet.pod(uid)
        except PodError as error:
            _log.warning("node %s: %s", self._settings.name, error)
            return
        if state.pod.manifest.metadata.deletion_timestamp is not None and uid not in self._deleted:
            self._deleted[uid] = state.pod
            self._timer(self._terminate(state))
        # The answer to our own write comes here too; it is compared before anything is written again.
        self._mark(state)

    async def _forget_all_but(self, uids: set[str]) -> None:
        for state in self.kubelet.pods():
            if state.pod.uid not in uids:
                await self._forget(state.pod.uid)

    async def _forget(self, uid: str) -> None:
        for table in (self._sent, self._deleted, self._addresses, self._dirty):
            table.pop(uid, None)
        self._timed.discard(uid)
        self._told = {each for each in self._told if each[0] != uid}
        if any(state.pod.uid == uid for state in self.kubelet.pods()):
            await self.kubelet.remove(uid)

    async def _terminate(self, state: PodState) -> None:
        pod = state.pod
        grace = pod.manifest.metadata.deletion_grace_period_seconds
        seconds = min(_number(pod, TERMINATION_SECONDS) or 0.0, float(30 if grace is None else grace))
        if seconds > 0 and not state.terminated and state.phase not in TERMINAL:
            state.terminating = True
            await self._world.sleep(seconds)
        await self._end(pod)

    async def _run_out(self, pod: KubeletPod, seconds: float) -> None:
        await self._world.sleep(seconds)
        await self._end(pod)

    async def _end(self, pod: KubeletPod) -> None:
        code = int(_number(pod, EXIT_CODE) or 0)
        phase: Literal["Succeeded", "Failed"] = "Failed" if code else "Succeeded"
        try:
            await self.kubelet.terminate(pod.uid, phase, exit_code=code)
        except PodError:
            # It was removed while its containers ran out.
            _log.debug("pod %s is gone already", pod.key)

    # --- what is written back -----------------------------------------------------------------------------------------

    def _mark(self, state: PodState) -> None:
        self._dirty[state.pod.uid] = None
        self._work.set()

    async def _write_statuses(self) -> None:
        while True:
            while self._dirty:
                uid = next(iter(self._dirty))
                del self._dirty[uid]
                try:
                    await self._write(uid)
                except ApiError as error:
                    _log.info("node %s: status of pod %s: %s", self._settings.name, uid, error)
                    # Gone, or another pod of that name: the watch will tell. Everything else is tried again.
                    if error.status not in {404, 409}:
                        self._dirty[uid] = None
                        await self._world.sleep(self._settings.retry_period)
            self._work.clear()
            await self._work.wait()

    async def _write(self, uid: str) -> None:
        state = next((each for each in self.kubelet.pods() if each.pod.uid == uid), None)
        if state is None:
            return
        pod = state.pod
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"
        if not self._settled(state):
            sent = self._status(state)
            if sent != self._sent.get(uid):
                await self._api.merge_patch(f"{path}/status", {"metadata": {"uid": uid}, "status": sent})
                self._sent[uid] = sent
                await self._tell(state)
        self._time(state)
        if uid in self._deleted and (state.terminated or state.phase in TERMINAL):
            options = {
                "kind": "DeleteOptions",
                "apiVersion": "v1",
                "gracePeriodSeconds": 0,
                "preconditions": {"uid": uid},
            }
            await self._api.delete(path, options)

    @staticmethod
    def _settled(state: PodState) -> bool:
        """The API server has the pod's last word already: it was finished when it came to this kubelet."""
        return state.pod.manifest.status.phase in TERMINAL and not state.started and not state.reason

    def _status(self, state: PodState) -> dict[str, object]:
        uid = state.pod.uid
        if uid not in self._addresses:
            number = next(self._numbers)
            self._addresses[uid] = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        address = self._addresses[uid]
        spec = state.pod.raw.get("spec")
        host_network = isinstance(spec, Mapping) and spec.get("hostNetwork") is True
        addresses = Addresses(self._settings.address, self._settings.address if host_network else address)
        status = pod_status(state, self.kubelet.containers(uid), addresses=addresses, now=self._world.timestamp())
        # Times that move by themselves would make every comparison fail.
        before = self._sent.get(uid, {})
        if state.reason and "startTime" in before:
            status["startTime"] = before["startTime"]
        return status

    def _time(self, state: PodState) -> None:
        seconds = _number(state.pod, RUN_SECONDS)
        if seconds is not None and state.phase == "Running" and state.pod.uid not in self._timed:
            self._timed.add(state.pod.uid)
            self._timer(self._run_out(state.pod, seconds))

    async def _tell(self, state: PodState) -> None:
        if not self._settings.post_events:
            return
        pod = state.pod
        notes = [("Failed", f"Error: {text}") for text in state.waiting.values()]
        if state.reason:
            notes.append((state.reason, state.message.removeprefix("Pod was rejected: ")))
        for reason, message in notes:
            if (pod.uid, reason, message) in self._told:
                continue
            self._told.add((pod.uid, reason, message))
            try:
                await self._api.create(f"/api/v1/namespaces/{pod.namespace}/events", self._event(pod, reason, message))
            except ApiError as error:
                _log.info("node %s: event of pod %s: %s", self._settings.name, pod.key, error)

    def _event(self, pod: KubeletPod, reason: str, message: str) -> dict[str, object]:
        now = self._world.timestamp()
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{pod.name}.", "namespace": pod.namespace},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": pod.name,
                "namespace": pod.namespace,
                "uid": pod.uid,
            },
            "type": "Warning",
            "reason": reason,
            "message": message,
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": "kubelet", "host": self._settings.name},
        }

    # --- tasks --------------------------------------------------------------------------------------------------------

    async def _periodic(self, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        while True:
            await self._world.sleep(seconds)
            try:
                await work()
            except KubeletError as error:
                _log.info("node %s: %s", self._settings.name, error)

    def _loop(self, name: str, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        return asyncio.create_task(work, name=f"{name} of {self._settings.name}")

    def _timer(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._timers.add(task)
        task.add_done_callback(self._timers.discard)


def _uid(pod: Object) -> str:
    meta = pod.get("metadata")
    return str(meta.get("uid", "")) if isinstance(meta, dict) else ""


def _version(pod: Object) -> str:
    meta = pod.get("metadata")
    return str(meta.get("resourceVersion", "")) if isinstance(meta, dict) else ""


def _created(pod: Object) -> str:
    meta = pod.get("metadata")
    return str(meta.get("creationTimestamp", "")) if isinstance(meta, dict) else ""


def _number(pod: KubeletPod, annotation: str) -> float | None:
    """A test annotation's value, or None where it is absent or no number between 0 and a day."""
    text = pod.manifest.metadata.annotation(annotation)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= _LONGEST:
        _log.warning("pod %s: annotation %s is %r, not a number of seconds up to a day", pod.key, annotation, text)
        return None
    return value
