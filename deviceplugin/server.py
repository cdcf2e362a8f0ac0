"""One unix socket for each ticket: the kubelet's calls in, the allocator's answers out.

The kubelet takes one resource for each registration and says nothing in a call about which one it means, so every resource
has a server of its own. ListAndWatch messages are passed as bytes that are put together from parts (see `devices`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final, Protocol, TypeVar

import grpc
import grpc.aio

from deviceplugin._proto import deviceplugin_v1beta1_pb2 as api
from deviceplugin.allocator import Allocator
from deviceplugin.board import Board
from deviceplugin.devices import Announcement
from deviceplugin.errors import AdvertiseError, RefusedError
from deviceplugin.isolation import kernel, mps
from deviceplugin.isolation.injection import GPU_COMPUTE, GPU_MEMORY
from deviceplugin.metrics import NodeMetrics
from deviceplugin.prestart import PreStart
from deviceplugin.slices import Given
from tessera.kube.clock import Clock
from tessera.model.errors import TesseraError

_log = logging.getLogger(__name__)

VERSION: Final = "v1beta1"
LONGEST_PATH: Final = 107
"""Bytes of a unix socket's path."""
PACE: Final = 0.05
"""Seconds between two ListAndWatch messages of one resource: the kubelet writes its checkpoint for each."""
MOST_CALLS: Final = 256
"""Calls at once; the kubelet makes one, and one for each container that is about to start."""
_STOP_WITHIN: Final = 0.3
_SERVICE: Final = "v1beta1.DevicePlugin"

_Q = TypeVar("_Q")
_A = TypeVar("_A")
_Context = grpc.aio.ServicerContext[_Q, _A]


class MountLike(Protocol):
    """A path of the host in the container."""

    @property
    def container_path(self) -> str: ...
    @property
    def host_path(self) -> str: ...
    @property
    def read_only(self) -> bool: ...


class DeviceLike(Protocol):
    """A device node of the host in the container."""

    @property
    def container_path(self) -> str: ...
    @property
    def host_path(self) -> str: ...
    @property
    def permissions(self) -> str: ...


class InjectionLike(Protocol):
    """What `deviceplugin.isolation` lets a container have."""

    @property
    def envs(self) -> Mapping[str, str]: ...
    @property
    def mounts(self) -> tuple[MountLike, ...]: ...
    @property
    def devices(self) -> tuple[DeviceLike, ...]: ...
    @property
    def cdi_devices(self) -> tuple[str, ...]: ...
    @property
    def annotations(self) -> Mapping[str, str]: ...


class Injects(Protocol):
    """Turns what a container was given into what it gets."""

    def inject(self, given: Given) -> InjectionLike:
        """Make environment, mounts and devices."""
        ...


def response(injection: InjectionLike | None) -> api.ContainerAllocateResponse:
    """The kubelet's message for one container; empty where another resource's answer carries everything."""
    if injection is None:
        return api.ContainerAllocateResponse()
    return api.ContainerAllocateResponse(
        envs=dict(injection.envs),
        mounts=[
            api.Mount(container_path=each.container_path, host_path=each.host_path, read_only=each.read_only)
            for each in injection.mounts
        ],
        devices=[
            api.DeviceSpec(container_path=each.container_path, host_path=each.host_path, permissions=each.permissions)
            for each in injection.devices
        ],
        annotations=dict(injection.annotations),
        cdi_devices=[api.CDIDevice(name=name) for name in injection.cdi_devices],
    )


def leave_equal(message: api.ContainerAllocateResponse, given: Given) -> None:
    """Drop what this resource alone can't know, where a pod can't be told and each of its resources answers for all.

    The kubelet resolves equal names with different values at random, so each amount may stand in one answer only.
    """
    if not any(piece.units for piece in given.slices):
        for name in (GPU_MEMORY, kernel.REQUEST, kernel.LIMIT, mps.MEMORY):
            message.envs.pop(name, None)
    if not any(piece.compute for piece in given.slices):
        message.envs.pop(GPU_COMPUTE, None)


class TicketServer:
    """Serves one resource on one socket. The socket's name is never used twice."""

    def __init__(
        self,
        resource: str,
        *,
        board: Board,
        allocator: Allocator,
        prestart: PreStart,
        injector: Injects,
        metrics: NodeMetrics,
        clock: Clock,
    ) -> None:
        """Serve nothing yet.

        Args:
            resource: the ticket.
            board: what is Healthy.
            allocator: answers GetPreferredAllocation and Allocate.
            prestart: answers PreStartContainer.
            injector: makes what a container gets.
            metrics: counts calls.
            clock: paces messages.
        """
        self.resource = resource
        self._board = board
        self._allocator = allocator
        self._prestart = prestart
        self._injector = injector
        self._metrics = metrics
        self._clock = clock
        self._server: grpc.aio.Server | None = None
        self._streams: set[asyncio.Event] = set()
        self._closing = False
        self._announcement: Announcement | None = None
        self._message: tuple[tuple[int, int], bytes] | None = None
        self.path = ""
        self.idle_since: float | None = None
        """Since when no stream is open; None while one is."""

    async def start(self, path: str) -> None:
        """Listen.

        Args:
            path: the socket, which must not exist.

        Raises:
            AdvertiseError: the path is too long or can't be bound.
        """
        if len(os.fsencode(path)) > LONGEST_PATH:
            raise AdvertiseError(f"{path} is {len(path)} bytes long, a unix socket's path at most {LONGEST_PATH}")
        server = grpc.aio.server(maximum_concurrent_rpcs=MOST_CALLS)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, self._handlers()),))
        try:
            server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise AdvertiseError(f"{path} can't be bound: {error}") from error
        await server.start()
        self._server, self.path, self._closing = server, path, False
        self.idle_since = self._clock.monotonic()

    async def stop(self) -> None:
        """End the streams, let calls under way finish, remove the socket; harmless when repeated."""
        server, self._server = self._server, None
        if server is None:
            return
        self._closing = True
        self.wake()
        await server.stop(_STOP_WITHIN)
        _remove(self.path)

    def wake(self) -> None:
        """What is Healthy may have changed: tell the kubelet."""
        for stream in self._streams:
            stream.set()

    @property
    def present(self) -> bool:
        """The socket's file is there; a kubelet that starts removes it."""
        return os.path.exists(self.path)

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler[bytes, bytes]]:
        return {
            "GetDevicePluginOptions": grpc.unary_unary_rpc_method_handler(self._options),
            "ListAndWatch": grpc.unary_stream_rpc_method_handler(self._list_and_watch),
            "GetPreferredAllocation": grpc.unary_unary_rpc_method_handler(
                self._answering("GetPreferredAllocation", self._prefer)
            ),
            "Allocate": grpc.unary_unary_rpc_method_handler(self._answering("Allocate", self._allocate)),
            "PreStartContainer": grpc.unary_unary_rpc_method_handler(
                self._answering("PreStartContainer", self._pre_start)
            ),
        }

    # What is announced.

    async def _options(self, _: bytes, __: _Context[bytes, bytes]) -> bytes:
        return options().SerializeToString()

    async def _list_and_watch(self, _: bytes, __: _Context[bytes, bytes]) -> AsyncIterator[bytes]:
        changed = asyncio.Event()
        self._streams.add(changed)
        self.idle_since = None
        sent: bytes | None = None
        try:
            while not self._closing:
                changed.clear()
                message = self._announced()
                if message != sent:
                    yield message
                    sent = message
                    # What changes meanwhile goes into one message.
                    await self._clock.sleep(PACE)
                await changed.wait()
                if not self._closing:
                    # Nothing but an admission under way is worth waiting for: the kubelet is about to ask again.
                    await self._clock.sleep(min(PACE, self._allocator.quiet_in))
        finally:
            self._streams.discard(changed)
            if not self._streams:
                self.idle_since = self._clock.monotonic()

    def _announced(self) -> bytes:
        """The message of this moment, made once for each state."""
        state = (self._board.version, self._board.ledger.version)
        if self._message is None or self._message[0] != state:
            offer = self._board.offers.get(self.resource)
            if offer is None:
                return b""
            if self._announcement is None or self._announcement.offer is not offer:
                self._announcement = Announcement(offer)
            self._message = (state, self._announcement.message(self._board.healthy(self.resource)))
        return self._message[1]

    # What is answered.

    def _answering(
        self, method: str, answer: Callable[[bytes], Awaitable[bytes]]
    ) -> Callable[[bytes, _Context[bytes, bytes]], Awaitable[bytes]]:
        """Wrap a call: time it, count it, and turn a refusal into a status with our text."""
        seconds = self._metrics.seconds.labels(method)
        fine, refused = (self._metrics.calls.labels(method, outcome) for outcome in ("ok", "refused"))

        async def call(request: bytes, context: _Context[bytes, bytes]) -> bytes:
            began = time.perf_counter()
            try:
                if self.resource not in self._board.offers:
                    raise RefusedError(f"this node offers no {self.resource} any more")
                message = await answer(request)
            except TesseraError as error:
                refused.inc()
                _log.warning("%s refused: %s", method, error)
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"tessera: {error}")
            finally:
                seconds.observe(time.perf_counter() - began)
            fine.inc()
            return message

        return call

    async def _prefer(self, request: bytes) -> bytes:
        answers = []
        for asked in api.PreferredAllocationRequest.FromString(request).container_requests:
            available, must = list(asked.available_deviceIDs), list(asked.must_include_deviceIDs)
            ids = await self._allocator.prefer(self.resource, available, must, asked.allocation_size)
            answers.append(api.ContainerPreferredAllocationResponse(deviceIDs=ids))
        return api.PreferredAllocationResponse(container_responses=answers).SerializeToString()

    async def _allocate(self, request: bytes) -> bytes:
        answers = []
        for asked in api.AllocateRequest.FromString(request).container_requests:
            answer = self._allocator.allocate(self.resource, list(asked.devices_ids))
            injected = self._injector.inject(answer.given) if answer.given is not None else None
            message = response(injected)
            if answer.given is not None and answer.given.pod is None:
                leave_equal(message, answer.given)
            answers.append(message)
            if answer.given is not None:
                self._metrics.identified.labels(answer.kind).inc()
        return api.AllocateResponse(container_responses=answers).SerializeToString()

    async def _pre_start(self, request: bytes) -> bytes:
        await self._prestart.check(self.resource, list(api.PreStartContainerRequest.FromString(request).devices_ids))
        return api.PreStartContainerResponse().SerializeToString()


def options() -> api.DevicePluginOptions:
    """What we want to be called for."""
    return api.DevicePluginOptions(pre_start_required=True, get_preferred_allocation_available=True)


def _remove(path: str) -> None:
    # gRPC removes its socket itself, unless somebody else did.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
