"""The smallest device plugin that behaves, with every answer in the test's hands.

It is what the kubelet's own tests talk to, on the fake and on a real kubelet: no policy, one resource, one socket.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

import grpc
import grpc.aio

from deviceplugin._proto import deviceplugin_v1beta1_pb2 as api
from tessera.testing.kubelet.devices import HEALTHY
from tessera.testing.kubelet.settings import Paths
from tessera.testing.kubelet.sockets import Context, serve, unary, unary_stream

UNHEALTHY = "Unhealthy"

Prefer = Callable[[list[str], list[str], int], Awaitable[Sequence[str]]]
"""(available, must include, size) -> IDs."""
Allocate = Callable[[list[str]], Awaitable[api.ContainerAllocateResponse]]
PreStart = Callable[[list[str]], Awaitable[None]]


class PluginError(Exception):
    """Raised by a callback to answer with that gRPC status UNKNOWN and this text, as a Go plugin's errors.New does."""


class Plugin:
    """A device plugin of one resource. Use it as an async context manager, or call `start` and `stop`."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        resource: str,
        devices: Iterable[str],
        *,
        socket: str = "plugin.sock",
        prefer: Prefer | None = None,
        allocate: Allocate | None = None,
        pre_start: PreStart | None = None,
        numa: Callable[[str], Iterable[int]] = lambda _: (),
    ) -> None:
        """Announce nothing before `start`.

        Args:
            directory: the kubelet's directory, such as /var/lib/kubelet.
            resource: the resource's name.
            devices: IDs, all healthy at first.
            socket: file name beside the kubelet's.
            prefer: answers GetPreferredAllocation; None says that it isn't available.
            allocate: answers Allocate for one container; None gives an empty answer.
            pre_start: answers PreStartContainer; None says that it isn't required.
            numa: NUMA nodes of a device.
        """
        self.resource = resource
        self.devices = dict.fromkeys(devices, HEALTHY)
        self.streams = 0
        """ListAndWatch streams that are open."""
        self._paths = Paths(os.fspath(directory))
        self._socket = socket
        self._prefer = prefer
        self._allocate = allocate
        self._pre_start = pre_start
        self._numa = numa
        self._changed = asyncio.Event()
        self._streams_changed = asyncio.Event()
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> Self:
        """Serve and register."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        await self.stop()

    async def start(self) -> None:
        """Serve, then register: the kubelet dials back before it answers."""
        await self.serve()
        await self.register()

    async def serve(self) -> None:
        """Listen on the plugin's socket, making it anew."""
        methods = {
            "GetDevicePluginOptions": unary(self._options, api.Empty),
            "ListAndWatch": unary_stream(self._list_and_watch, api.Empty),
            "GetPreferredAllocation": unary(self._get_preferred_allocation, api.PreferredAllocationRequest),
            "Allocate": unary(self._answer_allocate, api.AllocateRequest),
            "PreStartContainer": unary(self._pre_start_container, api.PreStartContainerRequest),
        }
        self._server = await serve(os.path.join(self._paths.plugins, self._socket), "v1beta1.DevicePlugin", methods)

    async def register(self, *, version: str = "v1beta1") -> None:
        """Register with the kubelet.

        Raises:
            grpc.aio.AioRpcError: the kubelet refuses, or isn't there.
        """
        async with grpc.aio.insecure_channel(
            f"unix:{self._paths.registration}", options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            call = channel.unary_unary(
                "/v1beta1.Registration/Register",
                request_serializer=api.RegisterRequest.SerializeToString,
                response_deserializer=api.Empty.FromString,
            )
            await call(
                api.RegisterRequest(
                    version=version, endpoint=self._socket, resource_name=self.resource, options=self._offered()
                ),
                timeout=15,
            )

    async def stop(self) -> None:
        """End the server and with it the stream; harmless when repeated."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(None)

    def announce(self, *, healthy: Iterable[str] = (), unhealthy: Iterable[str] = ()) -> None:
        """Change devices' health (new IDs are added) and tell the kubelet."""
        self.devices.update(dict.fromkeys(healthy, HEALTHY))
        self.devices.update(dict.fromkeys(unhealthy, UNHEALTHY))
        self._changed.set()

    async def wait_streams(self, count: int, *, seconds: float = 10.0) -> None:
        """Wait until that many ListAndWatch streams are open.

        Raises:
            TimeoutError: it took longer than that.
        """
        async with asyncio.timeout(seconds):
            while self.streams != count:
                self._streams_changed.clear()
                await self._streams_changed.wait()

    def _count_streams(self, change: int) -> None:
        self.streams += change
        self._streams_changed.set()

    def _offered(self) -> api.DevicePluginOptions:
        return api.DevicePluginOptions(
            pre_start_required=self._pre_start is not None, get_preferred_allocation_available=self._prefer is not None
        )

    async def _options(self, _: api.Empty, __: Context) -> api.DevicePluginOptions:
        return self._offered()

    async def _list_and_watch(self, _: api.Empty, __: Context) -> AsyncIterator[api.ListAndWatchResponse]:
        self._count_streams(+1)
        try:
            while True:
                self._changed.clear()
                yield api.ListAndWatchResponse(devices=[self._device(*each) for each in self.devices.items()])
                await self._changed.wait()
        finally:
            self._count_streams(-1)

    def _device(self, device: str, health: str) -> api.Device:
        nodes = [api.NUMANode(ID=node) for node in self._numa(device)]
        return api.Device(ID=device, health=health, topology=api.TopologyInfo(nodes=nodes) if nodes else None)

    async def _get_preferred_allocation(
        self, request: api.PreferredAllocationRequest, context: Context
    ) -> api.PreferredAllocationResponse:
        answers = []
        for asked in request.container_requests:
            available, must = list(asked.available_deviceIDs), list(asked.must_include_deviceIDs)
            try:
                ids = await self._prefer(available, must, asked.allocation_size) if self._prefer else []
            except PluginError as error:
                await context.abort(grpc.StatusCode.UNKNOWN, str(error))
            answers.append(api.ContainerPreferredAllocationResponse(deviceIDs=ids))
        return api.PreferredAllocationResponse(container_responses=answers)

    async def _answer_allocate(self, request: api.AllocateRequest, context: Context) -> api.AllocateResponse:
        answers = []
        for asked in request.container_requests:
            empty = api.ContainerAllocateResponse()
            try:
                answers.append(await self._allocate(list(asked.devices_ids)) if self._allocate else empty)
            except PluginError as error:
                await context.abort(grpc.StatusCode.UNKNOWN, str(error))
        return api.AllocateResponse(container_responses=answers)

    async def _pre_start_container(
        self, request: api.PreStartContainerRequest, context: Context
    ) -> api.PreStartContainerResponse:
        try:
            if self._pre_start:
                await self._pre_start(list(request.devices_ids))
        except PluginError as error:
            await context.abort(grpc.StatusCode.UNKNOWN, str(error))
        return api.PreStartContainerResponse()
