"""The kubelet as a client of one device plugin: dialling it, following its ListAndWatch, calling it.

The calls are made by method path rather than by generated stubs, which are untyped. Modelled on endpoint.go and
plugin/v1beta1/client.go of k8s.io/kubernetes v1.34.4.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from deviceplugin._proto import deviceplugin_v1beta1_pb2 as api
from tessera.testing.kubelet.errors import AllocationError, KubeletError, go_status
from tessera.testing.kubelet.settings import MOST_MESSAGE_BYTES

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer", bound=Message)
_SERVICE = "/v1beta1.DevicePlugin/"
_CLOSING = "rpc error: code = Canceled desc = grpc: the client connection is closing"
_CHANNEL_OPTIONS = (
    ("grpc.default_authority", "localhost"),
    ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES),
    # Channels to one path share a connection otherwise, with its back-off: a plugin that restarts on the same socket
    # would be reached seconds late, which no kubelet does.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class PluginCall:
    """One call to a plugin, for tests that look at order and arguments.

    Attributes:
        ids: what was asked for; for GetPreferredAllocation the IDs on offer.
        must_include: GetPreferredAllocation only.
        size: how many devices were asked for.
        error: as Go prints it, "" where the call succeeded.
    """

    method: str
    resource: str
    ids: tuple[str, ...]
    size: int
    must_include: tuple[str, ...] = ()
    error: str = ""


class PluginClient:
    """One connection to one plugin, from its registration to the end of its stream."""

    def __init__(self, resource: str, socket: str, *, record: Callable[[PluginCall], None]) -> None:
        """Nothing is opened before `connect`.

        Args:
            resource: the name it registered.
            socket: path of its socket.
            record: takes every call made.
        """
        self.resource = resource
        self.socket = socket
        self._record = record
        self._channel: grpc.aio.Channel | None = None
        self._closed = False

    async def connect(self, timeout: float) -> api.DevicePluginOptions:  # noqa: ASYNC109 - the real one's dial deadline
        """Dial and ask for the plugin's options.

        Raises:
            KubeletError: it can't be reached within `timeout` seconds, or doesn't answer.
        """
        channel = grpc.aio.insecure_channel(f"unix:{self.socket}", options=_CHANNEL_OPTIONS)
        try:
            await asyncio.wait_for(channel.channel_ready(), timeout)
        except TimeoutError as error:
            await channel.close()
            raise KubeletError("failed to dial device plugin: context deadline exceeded") from error
        except asyncio.CancelledError:
            await channel.close()
            raise
        # Only now: hanging up on a client that is still dialling has no effect in the real one either.
        self._channel = channel
        try:
            return await self._call("GetDevicePluginOptions", api.Empty(), api.DevicePluginOptions)
        except grpc.aio.AioRpcError as error:
            raise KubeletError(f"failed to get device plugin options: {go_status(error)}") from error

    async def devices(self) -> AsyncIterator[api.ListAndWatchResponse]:
        """Every message of ListAndWatch; ends without an error when the stream does, for whatever reason."""
        watch = self._open().unary_stream(
            f"{_SERVICE}ListAndWatch",
            request_serializer=api.Empty.SerializeToString,
            response_deserializer=api.ListAndWatchResponse.FromString,
        )
        try:
            async for message in watch(api.Empty()):
                yield message
        except grpc.aio.AioRpcError as error:
            _log.warning("%s: ListAndWatch ended unexpectedly: %s", self.resource, go_status(error))
        except asyncio.CancelledError:
            if not self._hung_up():
                raise

    async def close(self) -> None:
        """Hang up; harmless when repeated, without effect before the connection stands."""
        if self._channel is not None:
            self._closed = True
            channel, self._channel = self._channel, None
            await channel.close()

    async def get_preferred_allocation(
        self, available: Iterable[str], must_include: Iterable[str], size: int
    ) -> api.PreferredAllocationResponse:
        """Ask which of `available` the plugin would give.

        Raises:
            AllocationError: the plugin answered with an error or can't be reached.
        """
        asked = api.ContainerPreferredAllocationRequest(
            available_deviceIDs=available, must_include_deviceIDs=must_include, allocation_size=size
        )
        call = PluginCall(
            "GetPreferredAllocation",
            self.resource,
            tuple(asked.available_deviceIDs),
            size,
            tuple(asked.must_include_deviceIDs),
        )
        request = api.PreferredAllocationRequest(container_requests=[asked])
        return await self._recorded(call, request, api.PreferredAllocationResponse)

    async def allocate(self, ids: Iterable[str]) -> api.AllocateResponse:
        """Allocate for one container.

        Raises:
            AllocationError: the plugin answered with an error or can't be reached.
        """
        asked = api.ContainerAllocateRequest(devices_ids=ids)
        call = PluginCall("Allocate", self.resource, tuple(asked.devices_ids), len(asked.devices_ids))
        return await self._recorded(call, api.AllocateRequest(container_requests=[asked]), api.AllocateResponse)

    async def pre_start_container(self, ids: Iterable[str], timeout: float) -> None:  # noqa: ASYNC109 - a gRPC deadline
        """Tell the plugin that a container is about to start.

        Raises:
            AllocationError: the plugin answered with an error, can't be reached, or took longer than `timeout` seconds.
        """
        request = api.PreStartContainerRequest(devices_ids=ids)
        call = PluginCall("PreStartContainer", self.resource, tuple(request.devices_ids), len(request.devices_ids))
        await self._recorded(call, request, api.PreStartContainerResponse, timeout)

    async def _recorded(
        self,
        call: PluginCall,
        request: Message,
        answer: type[_Answer],
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> _Answer:
        try:
            response = await self._call(call.method, request, answer, timeout)
        except grpc.aio.AioRpcError as error:
            text = go_status(error)
            self._record(PluginCall(call.method, call.resource, call.ids, call.size, call.must_include, text))
            raise AllocationError(text) from error
        except asyncio.CancelledError as error:
            if not self._hung_up():
                raise
            raise AllocationError(_CLOSING) from error
        self._record(call)
        return response

    def _hung_up(self) -> bool:
        """Tell whether a CancelledError only means that `close` cancelled the call, not somebody the caller's task."""
        task = asyncio.current_task()
        return self._closed and not (task is not None and task.cancelling())

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            raise AllocationError(_CLOSING)
        return self._channel

    def _call(
        self,
        method: str,
        request: Message,
        answer: type[_Answer],
        timeout: float | None = None,
    ) -> Awaitable[_Answer]:
        call = self._open().unary_unary(
            f"{_SERVICE}{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return call(request, timeout=timeout)


@dataclass(slots=True)
class Endpoint:
    """What the device manager keeps of a plugin: how to call it, what it wants, and since when it is gone.

    Attributes:
        client: None for a resource that only the checkpoint knows.
        options: None likewise: neither GetPreferredAllocation nor PreStartContainer is called then.
        stopped: monotonic seconds at which the plugin went away, None while it is there.
    """

    resource: str
    client: PluginClient | None = None
    options: api.DevicePluginOptions | None = None
    stopped: float | None = None

    def reach(self) -> PluginClient:
        """The plugin, to be called now.

        Raises:
            AllocationError: it has gone. (The real text prints the Go struct after "endpoint".)
        """
        if self.client is None or self.stopped is not None:
            raise AllocationError(f"endpoint {self.resource} has been stopped")
        return self.client
