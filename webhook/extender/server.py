"""The extender's verbs over HTTP, and the read-only JSON beside them: bytes in, bytes out."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from tessera.daemon.flags import Address
from tessera.model.config import Config
from webhook.extender.bind import Binder
from webhook.extender.candidates import Candidates
from webhook.extender.cluster import Cluster
from webhook.extender.errors import NotReadyError
from webhook.extender.filter import Filter
from webhook.extender.http import Handler, Limits, Listener
from webhook.extender.metrics import Metrics
from webhook.extender.preempt import preempt
from webhook.extender.snapshot import Snapshots
from webhook.extender.wire import encode, read_bind, read_filter, read_preempt


class Extender:
    """What kube-scheduler calls."""

    def __init__(
        self,
        cluster: Cluster,
        filter_: Filter,
        binder: Binder,
        *,
        candidates: Candidates,
        config: Callable[[], Config],
        metrics: Metrics,
    ) -> None:
        """Answer by these."""
        self._cluster = cluster
        self._filter = filter_
        self._binder = binder
        self._candidates = candidates
        self._snapshots = Snapshots(cluster)
        self._config = config
        self._metrics = metrics

    def listener(self, listen: Address, *, limits: Limits | None = None) -> Listener:
        """Serve /filter, /bind, /prioritize and /preempt."""
        posts = {
            "/filter": self._filtering,
            "/prioritize": self._prioritizing,
            "/bind": self._binding,
            "/preempt": self._preempting,
        }
        return Listener(
            listen,
            posts={path: self._timed(path.removeprefix("/"), handler) for path, handler in posts.items()},
            refused=lambda status: self._metrics.bad_requests.labels(str(status)).inc(),
            limits=limits,
        )

    def dashboard(self, listen: Address) -> Listener:
        """Serve the read-only JSON."""
        return Listener(listen, gets={"/api/v1/nodes": self._snapshots.json})

    def _timed(self, verb: str, handler: Callable[[bytes, Callable[[], bool]], Awaitable[bytes]]) -> Handler:
        seconds = self._metrics.seconds.labels(verb)

        async def timed(body: bytes, gone: Callable[[], bool]) -> bytes:
            start = time.perf_counter()
            try:
                return await handler(body, gone)
            finally:
                seconds.observe(time.perf_counter() - start)

        return timed

    def _check_ready(self) -> None:
        problem = self._cluster.problem
        if problem is not None:
            raise NotReadyError(f"not ready: {problem}; try again")

    async def _filtering(self, body: bytes, _: Callable[[], bool]) -> bytes:
        args = read_filter(body)
        self._check_ready()
        return encode(await self._filter.filter(args))

    async def _prioritizing(self, body: bytes, _: Callable[[], bool]) -> bytes:
        args = read_filter(body)
        self._check_ready()
        return encode(await self._filter.prioritize(args))

    async def _binding(self, body: bytes, gone: Callable[[], bool]) -> bytes:
        args = read_bind(body)
        self._check_ready()
        return encode(await self._binder.bind(args, gone))

    async def _preempting(self, body: bytes, gone: Callable[[], bool]) -> bytes:
        args = read_preempt(body)
        self._check_ready()
        return encode(await preempt(args, self._cluster, self._config(), self._candidates, gone=gone))
