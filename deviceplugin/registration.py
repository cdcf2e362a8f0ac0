"""Being known to the kubelet, and staying known: serve every ticket, register it, and notice when that has been lost.

Seen on kubelet 1.34: a kubelet that starts removes the plugins' sockets and makes a new kubelet.sock, and 0.9 s later it
admits the pods that were bound meanwhile, which fail unless the plugin has registered by then. So everything is looked at
ten times a second, and kubelet.sock is compared by device, inode and change time: an inode number alone is used again.

A kubelet tells two connections of one resource apart by the socket's path (or not at all), and ends the newer one when the
older one ends. So every serving has a path of its own, and a stream that ends without a restart is registered again.
"""

from __future__ import annotations

import asyncio
import glob
import logging
import os
from collections.abc import Callable, Iterable
from typing import Final, NoReturn

import grpc
import grpc.aio

from deviceplugin._proto import deviceplugin_v1beta1_pb2 as api
from deviceplugin.errors import AdvertiseError, KubeletError
from deviceplugin.metrics import NodeMetrics
from deviceplugin.podresources import RECONNECT
from deviceplugin.server import VERSION, TicketServer, options
from tessera.kube.clock import Clock

_log = logging.getLogger(__name__)

POLL: Final = 0.1
EAGER: Final = 0.02
"""Seconds between two looks while the kubelet is away: a new one admits pods within a second of its start, and refuses those
whose devices nobody has registered by then."""
EAGER_FOR: Final = 60.0
"""Seconds after which nobody is in a hurry any more."""
SOCKET: Final = "kubelet.sock"
REGISTER_WITHIN: Final = 5.0
"""Seconds; the kubelet dials back before it answers."""
STREAM_WITHIN: Final = 1.0
"""Seconds without a ListAndWatch stream after which a resource is registered again."""
LONGEST_WAIT: Final = 2.0

Stamp = tuple[int, int, int]


def stamp(path: str) -> Stamp | None:
    """What makes a socket this one and no later one of the same name: device, inode, time of change."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_ctime_ns)


class Registrar:
    """Keeps every offered ticket served and registered."""

    def __init__(
        self,
        folder: str,
        *,
        resources: Callable[[], Iterable[str]],
        make: Callable[[str], TicketServer],
        token: str,
        clock: Clock,
        metrics: NodeMetrics,
        restarted: Callable[[], None] = lambda: None,
        settled: Callable[[], None] = lambda: None,
    ) -> None:
        """Do nothing before `run` runs.

        Args:
            folder: the kubelet's device-plugins folder.
            resources: what is to be served now.
            make: makes the server of a resource.
            token: part of our sockets' names, another one for each process.
            clock: paces.
            metrics: counts registrations.
            restarted: called when the kubelet has been seen to restart.
            settled: called when `problem` has come or gone.
        """
        self._folder = folder
        self._resources = resources
        self._make = make
        self._token = token
        self._clock = clock
        self._metrics = metrics
        self._restarted = restarted
        self._settled = settled
        self._servers: dict[str, TicketServer] = {}
        self._known_to: dict[str, Stamp] = {}
        self._tried_at: dict[str, float] = {}
        self._last: Stamp | None = None
        self._number = 0
        self._wait, self._again_at = EAGER, float("-inf")
        self._eager_until = clock.monotonic() + EAGER_FOR
        self._problem: str | None = "not registered with the kubelet yet"

    @property
    def problem(self) -> str | None:
        """Why the kubelet doesn't know everything that is offered, or None."""
        return self._problem

    @property
    def unheard(self) -> str | None:
        """Why the kubelet doesn't listen to everything that is offered right now, or None.

        Stricter than `problem`: a stream that has ended a moment ago, or is not open yet, is one.
        """
        if self._problem is not None:
            return self._problem
        silent = [name for name in sorted(self._resources()) if not self._listened_to(name)]
        return f"the kubelet does not listen to {', '.join(silent)}" if silent else None

    def _listened_to(self, resource: str) -> bool:
        server = self._servers.get(resource)
        return server is not None and server.idle_since is None

    def wake(self) -> None:
        """What is Healthy may have changed."""
        for server in self._servers.values():
            server.wake()

    def clean(self) -> None:
        """Remove sockets that a process of ours left behind; only while the node's lock is held."""
        for path in glob.glob(os.path.join(glob.escape(self._folder), "tessera-*.sock")):
            if f"-{self._token}-" not in path:
                os.unlink(path)

    async def run(self) -> NoReturn:
        """Serve and register until cancelled; nothing is left behind."""
        try:
            while True:
                await self.step()
                await self._clock.sleep(self.pause)
        finally:
            await self.stop()

    @property
    def pause(self) -> float:
        """Seconds until the next look."""
        hurry = self._problem is not None and self._clock.monotonic() < self._eager_until
        return EAGER if hurry else POLL

    async def stop(self) -> None:
        """End all streams and remove our sockets."""
        servers, self._servers = self._servers, {}
        self._known_to.clear()
        await asyncio.gather(*(server.stop() for server in servers.values()))

    async def step(self) -> None:
        """Look once, and repair what is found broken."""
        kubelet = stamp(os.path.join(self._folder, SOCKET))
        if kubelet is not None and self._last is not None and kubelet != self._last:
            _log.info("the kubelet has restarted")
            self._forgive()
            self._eager_until = self._clock.monotonic() + EAGER_FOR
            self._restarted()
        self._last = kubelet or self._last
        wanted = set(self._resources())
        for resource in self._servers.keys() - wanted:
            await self._servers.pop(resource).stop()
            self._known_to.pop(resource, None)
        if kubelet is None:
            self._fail(f"no kubelet at {os.path.join(self._folder, SOCKET)}; is it running?")
            return
        broken = sorted(resource for resource in wanted if self._is_broken(resource, kubelet))
        if not broken:
            self._fine()
            return
        if self._clock.monotonic() < self._again_at:
            return
        results = await asyncio.gather(*(self._renew(resource) for resource in broken), return_exceptions=True)
        problems = [error for error in results if error is not None]
        for error in problems:
            if not isinstance(error, AdvertiseError | KubeletError):
                raise error
        if problems:
            self._fail(str(problems[0]))
            # A kubelet that refuses us is left alone for longer and longer, one that starts anew gets no such rest.
            self._again_at = self._clock.monotonic() + self._wait
            self._wait = min(LONGEST_WAIT, 2 * self._wait)
        else:
            self._fine()

    def _is_broken(self, resource: str, kubelet: Stamp) -> bool:
        server = self._servers.get(resource)
        if server is None or not server.present or self._known_to.get(resource) != kubelet:
            return True
        now = self._clock.monotonic()
        idle = server.idle_since is not None and now - server.idle_since > STREAM_WITHIN
        return idle and now - self._tried_at.get(resource, 0.0) > STREAM_WITHIN

    async def _renew(self, resource: str) -> None:
        """Serve one resource anew and register it.

        Raises:
            AdvertiseError: it can't be served.
            KubeletError: the kubelet doesn't take it.
        """
        self._tried_at[resource] = self._clock.monotonic()
        old = self._servers.pop(resource, None)
        self._known_to.pop(resource, None)
        if old is not None:
            await old.stop()
        self._number += 1
        server = self._make(resource)
        endpoint = f"tessera-{self._token}-{self._number}.sock"
        await server.start(os.path.join(self._folder, endpoint))
        self._servers[resource] = server
        await self._register(resource, endpoint)
        # Looked at afterwards: on a busy machine a kubelet may have come since the last look, and it is the one that has
        # answered. Had it come after the answer, it would have removed our socket, which is looked at too.
        kubelet = stamp(os.path.join(self._folder, SOCKET))
        if kubelet is not None:
            self._known_to[resource] = kubelet
        self._metrics.registrations.labels(resource).inc()
        _log.info("%s registered with the kubelet as %s", resource, endpoint)

    async def _register(self, resource: str, endpoint: str) -> None:
        path = os.path.join(self._folder, SOCKET)
        request = api.RegisterRequest(version=VERSION, endpoint=endpoint, resource_name=resource, options=options())
        async with grpc.aio.insecure_channel(f"unix:{path}", options=RECONNECT) as channel:
            call = channel.unary_unary(
                "/v1beta1.Registration/Register",
                request_serializer=api.RegisterRequest.SerializeToString,
                response_deserializer=api.Empty.FromString,
            )
            try:
                await call(request, timeout=REGISTER_WITHIN)
            except grpc.aio.AioRpcError as error:
                raise KubeletError(
                    f"the kubelet at {path} does not take {resource}: {error.code().name}: {error.details()}"
                ) from error

    def _fail(self, problem: str) -> None:
        if problem != self._problem:
            _log.warning("%s", problem)
        came = self._problem is None
        self._problem = problem
        if came:
            self._eager_until = self._clock.monotonic() + EAGER_FOR
            self._settled()

    def _fine(self) -> None:
        went = self._problem is not None
        self._problem = None
        self._forgive()
        if went:
            self._settled()

    def _forgive(self) -> None:
        self._wait, self._again_at = EAGER, float("-inf")
