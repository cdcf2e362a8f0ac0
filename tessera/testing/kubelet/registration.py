"""The registration service that device plugins report to, and what follows a registration.

Modelled on plugin/v1beta1/{server,handler}.go of k8s.io/kubernetes v1.34.4. Three things that plugins meet there:

- Register dials the plugin back and asks for its options before it returns, so a plugin must serve before it registers.
- A start removes every socket in the folder, other plugins' too, and leaves other files alone.
- The end of a stream hangs up on whatever is registered for the resource *by then*. When a second instance of a plugin
  registers while the first one's stream is open, the end of the first stream disconnects the second instance: its
  stream ends, its devices turn unhealthy, and it has to register again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import posixpath
import re
import stat
from collections.abc import Callable
from typing import Final

import grpc
import grpc.aio

from deviceplugin._proto import deviceplugin_v1beta1_pb2 as api
from tessera.testing.kubelet.endpoint import PluginCall, PluginClient
from tessera.testing.kubelet.errors import KubeletError
from tessera.testing.kubelet.manager import DeviceManager
from tessera.testing.kubelet.sockets import Context, serve, unary

_log = logging.getLogger(__name__)

VERSION: Final = "v1beta1"
_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")


def is_extended_resource(name: str) -> bool:
    """Tell whether a kubelet takes a resource of this name from a plugin (IsExtendedResourceName).

    It has a domain that isn't kubernetes.io's, and is a qualified name also behind ``requests.``, as quota writes it.
    """
    prefix, slash, short = f"requests.{name}".partition("/")
    if not slash or "kubernetes.io/" in name or name.startswith("requests."):
        return False
    return (
        len(prefix) <= 253
        and _PREFIX.fullmatch(prefix) is not None
        and len(short) <= 63
        and _NAME.fullmatch(short) is not None
    )


class Registration:
    """The registration server of one run of the kubelet, with the connections it has led to."""

    def __init__(self, path: str, manager: DeviceManager, *, record: Callable[[PluginCall], None]) -> None:
        """Serve nothing before `start`.

        Args:
            path: the registration socket; plugins' sockets are beside it.
            manager: told of plugins that come, go and announce.
            record: takes every call made to a plugin.
        """
        self._path = path
        self._folder = os.path.dirname(path)
        self._manager = manager
        self._record = record
        self._clients: dict[str, PluginClient] = {}
        self._streams: set[asyncio.Task[None]] = set()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Remove what the last run left, then listen."""
        self._remove_sockets()
        methods = {"Register": unary(self._register, api.RegisterRequest)}
        self._server = await serve(self._path, f"{VERSION}.Registration", methods)

    async def stop(self) -> None:
        """Hang up on every plugin and stop listening; the socket file stays, as when a kubelet dies."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(None)
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.close()
        for task in list(self._streams):
            task.cancel()
        await asyncio.gather(*self._streams, return_exceptions=True)

    def _remove_sockets(self) -> None:
        for entry in os.scandir(self._folder):
            # Like the real one, which follows links (os.Stat) and leaves everything alone that is no socket.
            try:
                is_socket = stat.S_ISSOCK(entry.stat().st_mode)
            except FileNotFoundError:
                continue
            if is_socket:
                os.unlink(entry.path)

    async def _register(self, request: api.RegisterRequest, context: Context) -> api.Empty:
        if request.version != VERSION:
            await context.abort(
                grpc.StatusCode.UNKNOWN,
                f"requested API version {json.dumps(request.version)} is not supported by kubelet. "
                f'Supported version is ["{VERSION}"]',
            )
        if not is_extended_resource(request.resource_name):
            await context.abort(
                grpc.StatusCode.UNKNOWN, f"the ResourceName {json.dumps(request.resource_name)} is invalid"
            )
        socket = posixpath.normpath(f"{self._folder}/{request.endpoint}")
        try:
            await self._connect(request.resource_name, socket)
        except KubeletError as error:
            _log.warning("%s: error connecting to device plugin client: %s", request.resource_name, error)
            await context.abort(grpc.StatusCode.UNKNOWN, str(error))
        return api.Empty()

    async def _connect(self, resource: str, socket: str) -> None:
        client = PluginClient(resource, socket, record=self._record)
        self._clients[resource] = client
        try:
            await self._manager.plugin_connected(client)
        except KubeletError:
            self._clients.pop(resource, None)
            await client.close()
            raise
        task = asyncio.create_task(self._follow(client), name=f"ListAndWatch {resource}")
        self._streams.add(task)
        task.add_done_callback(self._streams.discard)

    async def _follow(self, client: PluginClient) -> None:
        resource = client.resource
        async for message in client.devices():
            self._manager.devices_announced(resource, message.devices)
        # Not necessarily the client whose stream has ended: see the module's third point.
        current = self._clients.pop(resource, None)
        if current is None:
            return
        await current.close()
        self._manager.plugin_disconnected(resource)
        if current is not client:
            await client.close()
