"""Just enough of a kubelet to time a device plugin: registration, PodResources, and one container's calls in order."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self, cast

import grpc
import grpc.aio

from deviceplugin._proto import deviceplugin_v1beta1_pb2 as api
from deviceplugin._proto import podresources_v1_pb2 as pr
from tessera.testing.kubelet.sockets import Context, Handler, serve, unary

_SERVICE = "/v1beta1.DevicePlugin/"


class LeanKubelet:
    """A kubelet's sockets below one folder, and what it would know."""

    def __init__(self, folder: str) -> None:
        """Nothing listens before it is entered."""
        self._folder = folder
        self._plugins = os.path.join(folder, "device-plugins")
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._streams: list[asyncio.Task[None]] = []
        self._servers: list[grpc.aio.Server] = []
        self._announced: dict[str, bytes] = {}
        self._healthy: dict[str, frozenset[str]] = {}
        self._free: dict[str, set[str]] = {}
        self._pods: dict[str, dict[str, list[str]]] = {}
        self._encoded: dict[str, bytes] = {}
        self._admitting = ""
        self._changed = asyncio.Condition()
        self.times: dict[str, list[float]] = {}
        """Seconds by method."""

    async def __aenter__(self) -> Self:
        """Listen."""
        for folder in (self._plugins, os.path.join(self._folder, "pod-resources"), os.path.join(self._folder, "proc")):
            os.makedirs(folder, exist_ok=True)
        self._servers.append(
            await serve(
                os.path.join(self._folder, "pod-resources", "kubelet.sock"),
                "v1.PodResourcesLister",
                {
                    "List": cast("Handler", grpc.unary_unary_rpc_method_handler(self._list)),
                    "Get": unary(self._get, pr.GetPodResourcesRequest),
                    "GetAllocatableResources": unary(self._allocatable, pr.AllocatableResourcesRequest),
                },
            )
        )
        self._servers.append(
            await serve(
                os.path.join(self._plugins, "kubelet.sock"),
                "v1beta1.Registration",
                {"Register": unary(self._register, api.RegisterRequest)},
            )
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        for stream in self._streams:
            stream.cancel()
        await asyncio.gather(*self._streams, return_exceptions=True)
        for channel in self._channels.values():
            await channel.close()
        for server in self._servers:
            await server.stop(None)

    async def registered(self, *, count: int, seconds: float) -> None:
        """Wait until so many resources have announced devices."""
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(lambda: len(self._announced) == count)

    async def admit(self, name: str, amounts: Mapping[str, int]) -> list[str]:
        """Give a pod's one container what it asks for, as admission does; returns its IDs."""
        # Read between two pods: a kubelet has other threads for it than the one that admits.
        while self._announced:
            resource, message = self._announced.popitem()
            devices = api.ListAndWatchResponse.FromString(message).devices
            self._healthy[resource] = frozenset(each.ID for each in devices if each.health == "Healthy")
            self._free.setdefault(resource, {each.ID for each in devices})
        held = self._pods[name] = {}
        self._admitting = name
        for resource, size in amounts.items():
            available = sorted(self._free[resource] & self._healthy[resource])
            question = api.ContainerPreferredAllocationRequest(available_deviceIDs=available, allocation_size=size)
            message = api.PreferredAllocationRequest(container_requests=[question])
            answer = await self._call(resource, "GetPreferredAllocation", message.SerializeToString())
            ids = list(api.PreferredAllocationResponse.FromString(answer).container_responses[0].deviceIDs)
            self._free[resource] -= set(ids)
            allocation = api.AllocateRequest(container_requests=[api.ContainerAllocateRequest(devices_ids=ids)])
            await self._call(resource, "Allocate", allocation.SerializeToString())
            held[resource] = ids
        del self._encoded[name]
        self._admitting = ""
        for resource, ids in held.items():
            message_ = api.PreStartContainerRequest(devices_ids=ids)
            await self._call(resource, "PreStartContainer", message_.SerializeToString())
        return [device for ids in held.values() for device in ids]

    def forget(self, name: str) -> None:
        """A pod has ended: its IDs are free."""
        self._encoded.pop(name, None)
        for resource, ids in self._pods.pop(name).items():
            self._free[resource] |= set(ids)

    async def _call(self, resource: str, method: str, message: bytes) -> bytes:
        call = self._channels[resource].unary_unary(_SERVICE + method)
        began = time.perf_counter()
        answer: bytes = await call(message)
        self.times.setdefault(method, []).append(time.perf_counter() - began)
        return answer

    async def _register(self, request: api.RegisterRequest, _: Context) -> api.Empty:
        channel = grpc.aio.insecure_channel(f"unix:{os.path.join(self._plugins, request.endpoint)}")
        self._channels[request.resource_name] = channel
        self._streams.append(asyncio.create_task(self._follow(request.resource_name, channel)))
        return api.Empty()

    async def _follow(self, resource: str, channel: grpc.aio.Channel) -> None:
        stream = channel.unary_stream(_SERVICE + "ListAndWatch")(b"")
        try:
            while (message := await stream.read()) is not grpc.aio.EOF:
                async with self._changed:
                    self._announced[resource] = message
                    self._changed.notify_all()
        except grpc.aio.AioRpcError:
            # The agent has ended.
            return

    async def _list(self, _: bytes, __: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        # Each pod is encoded once; a real kubelet is not written in Python either.
        for name, held in self._pods.items():
            if name not in self._encoded or name == self._admitting:
                self._encoded[name] = pr.ListPodResourcesResponse(
                    pod_resources=[_listed(name, held)]
                ).SerializeToString()
        return b"".join(self._encoded[name] for name in self._pods)

    async def _get(self, request: pr.GetPodResourcesRequest, _: Context) -> pr.GetPodResourcesResponse:
        held = self._pods[request.pod_name]
        return pr.GetPodResourcesResponse(pod_resources=_listed(request.pod_name, held))

    async def _allocatable(self, _: pr.AllocatableResourcesRequest, __: Context) -> pr.AllocatableResourcesResponse:
        return pr.AllocatableResourcesResponse()


def _listed(name: str, held: Mapping[str, list[str]]) -> pr.PodResources:
    devices = [
        pr.ContainerDevices(resource_name=resource, device_ids=[device])
        for resource, ids in held.items()
        for device in ids
    ]
    return pr.PodResources(
        namespace="default", name=name, containers=[pr.ContainerResources(name="main", devices=devices)]
    )
