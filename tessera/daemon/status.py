"""The status port: is it alive, is it ready and if not why, and the metrics.

``/healthz`` answers as long as the event loop turns. ``/readyz`` asks each check for a reason not to be ready, so that
`kubectl describe pod` and a person with curl see the reason and not only a colour.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from tessera.daemon.flags import Address

Check = Callable[[], str | None]
"""Returns None while all is well, else the reason why not."""


class StatusServer:
    """Serves /healthz, /readyz and /metrics; use it as an async context manager."""

    def __init__(
        self,
        listen: Address,
        checks: Mapping[str, Check],
        registry: CollectorRegistry,
        *,
        notes: Mapping[str, Check] | None = None,
    ) -> None:
        """Serve nothing yet.

        Args:
            listen: where.
            checks: what decides readiness, in the order shown.
            registry: which metrics to show.
            notes: what is worth knowing while it is ready; None where there is nothing to say.
        """
        self._listen = listen
        self._checks = checks
        self._notes = notes or {}
        self._registry = registry
        self._runner: web.AppRunner | None = None
        self.address = listen

    async def __aenter__(self) -> Self:
        """Start to serve; `address` holds the port the kernel chose.

        Raises:
            OSError: the address is taken.
        """
        app = web.Application(client_max_size=1024)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._listen.host, self._listen.port).start()
        self.address = Address(self._listen.host, self._runner.addresses[0][1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop serving."""
        if self._runner is not None:
            await self._runner.cleanup()

    def problems(self) -> dict[str, str]:
        """Each check that is not content, with its reason."""
        return _said(self._checks)

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        problems = self.problems()
        if problems:
            return web.Response(status=503, text=_lines(problems))
        return web.Response(text=f"ok\n{_lines(_said(self._notes))}")

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


def _said(checks: Mapping[str, Check]) -> dict[str, str]:
    found = {name: check() for name, check in checks.items()}
    return {name: text for name, text in found.items() if text is not None}


def _lines(texts: Mapping[str, str]) -> str:
    return "".join(f"{name}: {text}\n" for name, text in texts.items())
