"""The kubelet's own HTTP port, as far as a node agent uses it: `GET /pods`.

The list is what the kubelet was told by the API server, not what it decided: a pod just rejected stands there as Pending
until the API server has heard of it and told the kubelet (server.go, getPods; kubelet_getters.go, GetPods).
"""

from __future__ import annotations

import hmac
import ssl
from collections.abc import Callable, Iterable, Mapping

from aiohttp import web

from tessera.testing.kubelet.errors import KubeletError


class PodsServer:
    """An HTTP server on loopback. The real one speaks HTTPS with a client token; both can be asked for."""

    def __init__(
        self,
        pods: Callable[[], Iterable[Mapping[str, object]]],
        *,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Serve what `pods` gives at the moment of a request.

        Args:
            pods: pod objects as the API server sent them.
            token: where given, a request without ``Authorization: Bearer <token>`` gets 401.
            tls: where given, HTTPS.
        """
        self._pods = pods
        self._token = token
        self._tls = tls
        self._runner: web.AppRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """The list's address; only after `start`."""
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}/pods"

    async def start(self) -> None:
        """Listen on a free port; a second start takes the first one's port again, as a kubelet's 10250 stays.

        Raises:
            KubeletError: somebody else has taken that port meanwhile.
        """
        app = web.Application()
        app.router.add_get("/pods", self._list)
        app.router.add_get("/healthz", self._health)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=self._tls).start()
        except OSError as error:
            await runner.cleanup()
            raise KubeletError(f"can't listen on 127.0.0.1:{self.port} for GET /pods: {error}") from error
        self._runner = runner
        self.port = runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def _list(self, request: web.Request) -> web.Response:
        given = request.headers.get("Authorization", "")
        if self._token is not None and not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            return web.Response(status=401, text="Unauthorized")
        items = [dict(pod) for pod in self._pods()]
        return web.json_response({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")
