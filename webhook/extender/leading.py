"""Whether the kube-scheduler beside us leads: what acts (preemptor, scale pods) acts only then.

Every kube-scheduler has an extender of its own on loopback, and only one of them leads. Its Lease names the holder
``<host name>_<uuid>`` (cmd/kube-scheduler/app/server.go), and a sidecar has its pod's host name; so an extender knows its
own scheduler by the part before the last underscore, and needs no election of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, NoReturn

from tessera.kube.clock import Clock
from tessera.kube.errors import KubeError
from tessera.kube.leases import LeaseObserver
from tessera.kube.outage import Outage
from tessera.kube.reader import Reader
from tessera.model.config import Lease

LOOK: Final = 2.0
"""Seconds between two looks at the Lease; kube-scheduler renews it as often."""

_log = logging.getLogger(__name__)


class Leadership:
    """Watches kube-scheduler's Lease."""

    def __init__(self, reader: Reader, *, lease: Callable[[], Lease], identity: str, clock: Clock) -> None:
        """Not leading until the Lease was read.

        Args:
            reader: the API server's door.
            lease: which Lease, as config says now.
            identity: host name of the kube-scheduler beside us.
            clock: measures and waits.
        """
        self._reader = reader
        self._lease = lease
        self._identity = identity
        self._clock = clock
        self._watched: tuple[Lease, LeaseObserver] | None = None
        self._outage = Outage("reading of kube-scheduler's Lease", clock)
        self._said: bool | None = None

    @property
    def leading(self) -> bool:
        """Whether it leads at this moment. Ask right before every act; it turns False by itself."""
        lease = self._lease()
        if not lease.name:
            return True
        if self._watched is None or self._watched[0] != lease:
            return False
        holder = self._watched[1].holder
        return bool(holder) and (holder == self._identity or holder.rpartition("_")[0] == self._identity)

    async def look(self) -> None:
        """Read the Lease once; what can't be read runs out by itself."""
        lease = self._lease()
        if lease.name:
            if self._watched is None or self._watched[0] != lease:
                observer = LeaseObserver(self._reader, name=lease.name, namespace=lease.namespace, clock=self._clock)
                self._watched = (lease, observer)
            try:
                await self._watched[1].refresh()
            except KubeError as error:
                self._outage.failed(error)
            else:
                self._outage.recovered()
        if self.leading != self._said:
            self._said = self.leading
            _log.info(
                "the kube-scheduler beside us (%s) %s", self._identity, "leads" if self._said else "does not lead"
            )

    async def run(self) -> NoReturn:
        """Look again and again, until cancelled."""
        while True:
            await self.look()
            await self._clock.sleep(LOOK)
