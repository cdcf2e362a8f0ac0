"""The PodResources service (v1), which tells on the node which container has which device.

What makes it worth more than the API server to a device plugin: while a pod is in admission, it is listed already, as
the only one whose containers ask for a resource and hold none of it. Modelled on pkg/kubelet/apis/podresources/server_v1.go
and pkg/kubelet/apis/grpc/ratelimit.go of k8s.io/kubernetes v1.34.4.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import grpc
import grpc.aio

from deviceplugin._proto import podresources_v1_pb2 as api
from tessera.testing.kubelet.manager import DeviceManager
from tessera.testing.kubelet.pods import KubeletPod
from tessera.testing.kubelet.sockets import Context, serve, unary
from tessera.testing.kubelet.workers import PodState

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_SERVICE = "v1.PodResourcesLister"


class TokenBucket:
    """golang.org/x/time/rate as far as the kubelet uses it: `rate` calls a second, `burst` at once."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]) -> None:
        """Start full.

        Args:
            rate: tokens a second.
            burst: tokens at most.
            clock: monotonic seconds.
        """
        self._rate = rate
        self._burst = float(burst)
        self._clock = clock
        self._tokens = float(burst)
        self._last = clock()

    def allow(self) -> bool:
        """Take a token if there is one."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._last) * self._rate)
        self._last = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class _RateLimit(grpc.aio.ServerInterceptor):
    """Refuses before a handler runs, whichever method was called: all clients share one bucket."""

    def __init__(self, bucket: TokenBucket) -> None:
        self._bucket = bucket

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[_Request, _Response] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[_Request, _Response] | None:
        if self._bucket.allow():
            return await continuation(handler_call_details)
        return grpc.unary_unary_rpc_method_handler(_refuse)


async def _refuse(_: _Request, context: grpc.aio.ServicerContext[_Request, _Response]) -> _Response:
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "rejected by rate limit")


class PodResources:
    """List, Get and GetAllocatableResources. CPUs, memory and dynamic resources are empty: the fake manages none."""

    def __init__(
        self,
        manager: DeviceManager,
        *,
        pods: Callable[[], Iterable[PodState]],
    ) -> None:
        """Answer from `manager`'s tables.

        Args:
            manager: who holds what.
            pods: every pod whose object is there. List shows the active ones (rejected and finished ones are absent),
                Get any.
        """
        self._manager = manager
        self._pods = pods

    async def serve(self, path: str, bucket: TokenBucket) -> grpc.aio.Server:
        """Listen on a unix socket, with a rate limit over all clients."""
        handlers = {
            "List": unary(self._list, api.ListPodResourcesRequest),
            "Get": unary(self._get, api.GetPodResourcesRequest),
            "GetAllocatableResources": unary(self._allocatable, api.AllocatableResourcesRequest),
        }
        return await serve(path, _SERVICE, handlers, interceptors=[_RateLimit(bucket)])

    async def _list(self, _: api.ListPodResourcesRequest, __: Context) -> api.ListPodResourcesResponse:
        # A List frees what finished pods held, and with it rebuilds the set of allocated IDs.
        active = [state.pod for state in self._pods() if state.active]
        self._manager.update_allocated()
        return api.ListPodResourcesResponse(pod_resources=[self._pod(pod) for pod in active])

    async def _get(self, request: api.GetPodResourcesRequest, context: Context) -> api.GetPodResourcesResponse:
        wanted = (request.pod_namespace, request.pod_name)
        pods = (state.pod for state in self._pods())
        pod = next((pod for pod in pods if (pod.namespace, pod.name) == wanted), None)
        if pod is None:
            await context.abort(
                grpc.StatusCode.UNKNOWN, f"pod {request.pod_name} in namespace {request.pod_namespace} not found"
            )
        return api.GetPodResourcesResponse(pod_resources=self._pod(pod))

    async def _allocatable(self, _: api.AllocatableResourcesRequest, __: Context) -> api.AllocatableResourcesResponse:
        return api.AllocatableResourcesResponse(devices=self._manager.allocatable_devices())

    def _pod(self, pod: KubeletPod) -> api.PodResources:
        containers = [self._manager.container_resources(pod.uid, container.name) for container in pod.listed()]
        return api.PodResources(name=pod.name, namespace=pod.namespace, containers=containers)
