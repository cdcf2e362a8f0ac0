"""The kubelet's PodResources service: which container has which device, and which pod is in admission.

Measured on a kubelet 1.34: a List costs 1-4 ms and has one entry for each device ID, so an answer is read lazily here.
All clients of the node share 100 calls a second with a burst of 10; a refused call is tried again after 10 ms. A List
makes the kubelet purge finished pods and with that rebuild its set of allocated IDs, which drops a reservation in flight
(kubernetes PR 137534); Get doesn't. So List is called before IDs are reserved, and Get everywhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Final, Protocol, Self, TypeVar

import grpc
import grpc.aio

from deviceplugin._proto import podresources_v1_pb2 as api
from deviceplugin.errors import KubeletError
from tessera.kube.clock import Clock

RETRY_AFTER: Final = 0.01
"""Seconds after which a call that the rate limit refused is tried again."""
DEADLINE: Final = 2.0
"""Seconds for one call with its retries. Admission of every pod on the node waits meanwhile."""
LARGEST: Final = 16 * 1024 * 1024
"""Bytes of an answer, the kubelet's own limit."""
_RECONNECT_AFTER: Final = 0.05
RECONNECT: Final = [
    # A kubelet restarts in a second, gRPC's own back-off is as long; a unix socket costs nothing to try.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.use_local_subchannel_pool", 1),
]
_SERVICE: Final = "/v1.PodResourcesLister/"

PodKey = tuple[str, str]
"""Namespace and name."""

_T = TypeVar("_T")


class ListedContainer:
    """One container in an answer; what it holds is looked up when asked for."""

    __slots__ = ("_devices", "name")

    def __init__(self, message: api.ContainerResources) -> None:
        """Wrap the kubelet's message."""
        self.name = message.name
        self._devices = message.devices

    def holds(self, resource: str) -> bool:
        """Whether it has any ID of a resource."""
        return any(entry.resource_name == resource for entry in self._devices)

    def ids(self, resource: str) -> frozenset[str]:
        """Its IDs of a resource."""
        return frozenset(
            device for entry in self._devices if entry.resource_name == resource for device in entry.device_ids
        )

    def devices(self, wanted: Callable[[str], bool]) -> dict[str, frozenset[str]]:
        """Its IDs of the resources that are wanted, by resource; resources of which it has none are absent."""
        found: dict[str, set[str]] = {}
        for entry in self._devices:
            if wanted(entry.resource_name):
                found.setdefault(entry.resource_name, set()).update(entry.device_ids)
        return {resource: frozenset(ids) for resource, ids in found.items()}


class Listing:
    """One answer of List: the pods that the kubelet counts as active, with their containers (plain init ones absent)."""

    def __init__(self, message: api.ListPodResourcesResponse) -> None:
        """Wrap the kubelet's message. Two pods of one name (an old one still ending) are read as one."""
        self._pods: dict[PodKey, list[ListedContainer]] = {}
        for pod in message.pod_resources:
            self._pods.setdefault((pod.namespace, pod.name), []).extend(map(ListedContainer, pod.containers))

    def __contains__(self, key: PodKey) -> bool:
        """Whether the kubelet counts the pod as active."""
        return key in self._pods

    def __len__(self) -> int:
        """Count the pods."""
        return len(self._pods)

    @property
    def pods(self) -> Mapping[PodKey, list[ListedContainer]]:
        """Containers by pod."""
        return self._pods

    def holder(self, resource: str, ids: Iterable[str]) -> tuple[PodKey, str] | None:
        """The pod and container that have any of these IDs, or None."""
        wanted = frozenset(ids)
        for key, containers in self._pods.items():
            for container in containers:
                if not wanted.isdisjoint(container.ids(resource)):
                    return key, container.name
        return None

    def container(self, key: PodKey, name: str) -> ListedContainer | None:
        """One container, or None where the pod or the container isn't listed."""
        return next((each for each in self._pods.get(key, ()) if each.name == name), None)


class Lister(Protocol):
    """What the rest of the agent asks of the kubelet."""

    async def list(self) -> Listing:
        """Every active pod; never call it while IDs are reserved."""
        ...

    async def get(self, key: PodKey) -> Mapping[str, ListedContainer] | None:
        """One pod's containers, or None where the kubelet doesn't know it (or has no Get)."""
        ...


class PodResources:
    """A client of the kubelet's socket. Use it as an async context manager."""

    def __init__(self, path: str, *, clock: Clock, deadline: float = DEADLINE) -> None:
        """Connect to nothing yet.

        Args:
            path: the socket, pod-resources/kubelet.sock in the kubelet's directory.
            clock: waits between attempts.
            deadline: seconds for one call with its retries.
        """
        self._path = path
        self._clock = clock
        self._deadline = deadline
        self._channel: grpc.aio.Channel | None = None
        self.limited = 0
        """Calls that the rate limit refused, for metrics."""

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def list(self) -> Listing:
        """Ask for every active pod.

        Raises:
            KubeletError: no answer in time.
        """
        return Listing(await self._call("List", api.ListPodResourcesRequest(), api.ListPodResourcesResponse.FromString))

    async def get(self, key: PodKey) -> dict[str, ListedContainer] | None:
        """Ask for one pod by name; None where the kubelet doesn't know it or its Get is switched off.

        Raises:
            KubeletError: no answer in time.
        """
        request = api.GetPodResourcesRequest(pod_namespace=key[0], pod_name=key[1])
        try:
            answer = await self._call("Get", request, api.GetPodResourcesResponse.FromString)
        except _AnsweredError:
            return None
        return {container.name: ListedContainer(container) for container in answer.pod_resources.containers}

    async def allocatable(self) -> dict[str, frozenset[str]]:
        """Ask for every healthy device on the node, other plugins' too: IDs by resource.

        Raises:
            KubeletError: no answer in time.
        """
        request = api.AllocatableResourcesRequest()
        answer = await self._call("GetAllocatableResources", request, api.AllocatableResourcesResponse.FromString)
        found: dict[str, set[str]] = {}
        for entry in answer.devices:
            found.setdefault(entry.resource_name, set()).update(entry.device_ids)
        return {resource: frozenset(ids) for resource, ids in found.items()}

    async def _call(self, method: str, request: _Request, decode: Callable[[bytes], _T]) -> _T:
        try:
            async with asyncio.timeout(self._deadline):
                while True:
                    try:
                        return await self._once(method, request, decode)
                    except grpc.aio.AioRpcError as error:
                        await self._after(method, error)
        except TimeoutError as error:
            raise KubeletError(
                f"kubelet did not answer {method} at {self._path} within {self._deadline:g} s; is it running?"
            ) from error

    def _once(self, method: str, request: _Request, decode: Callable[[bytes], _T]) -> Awaitable[_T]:
        if self._channel is None:
            options = [("grpc.max_receive_message_length", LARGEST), *RECONNECT]
            self._channel = grpc.aio.insecure_channel(f"unix:{self._path}", options=options)
        call = self._channel.unary_unary(_SERVICE + method, request_serializer=_serialize, response_deserializer=decode)
        return call(request, timeout=self._deadline)

    async def _after(self, method: str, error: grpc.aio.AioRpcError) -> None:
        """Wait before the next attempt, where there is one."""
        code = error.code()
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "rate limit" in (error.details() or ""):
            self.limited += 1
            await self._clock.sleep(RETRY_AFTER)
        elif code is grpc.StatusCode.UNAVAILABLE:
            await self._clock.sleep(_RECONNECT_AFTER)
        elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise TimeoutError from error
        else:
            raise _AnsweredError(f"kubelet answered {method} with {code.name}: {error.details()}") from error


class _AnsweredError(KubeletError):
    """The kubelet has answered, with an error that trying again won't change."""


class _Request(Protocol):
    def SerializeToString(self) -> bytes: ...  # noqa: N802  protobuf's name


def _serialize(request: _Request) -> bytes:
    return request.SerializeToString()
