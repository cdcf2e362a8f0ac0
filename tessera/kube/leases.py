"""Leases: who leads, and leading ourselves.

Times in a Lease are the holder's clock, which may be wrong. As in client-go's leader election, a record is judged by how
long ago *we* saw it change; only at first sight, when nothing else is known, its own renewTime is believed, and only
where it makes the record older.
"""

from __future__ import annotations

import logging
from random import Random
from typing import Final, NoReturn

import msgspec

from tessera.kube.client import ApiClient, Patch
from tessera.kube.clock import Clock, parse_rfc3339, rfc3339
from tessera.kube.errors import ConflictError, KubeError, NotFoundError
from tessera.kube.outage import Outage
from tessera.kube.reader import Reader
from tessera.kube.resources import LEASES

_log = logging.getLogger(__name__)
_ENCODER: Final = msgspec.json.Encoder()


class _Meta(msgspec.Struct, rename="camel"):
    resource_version: str = ""


class _Spec(msgspec.Struct, rename="camel"):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class _Lease(msgspec.Struct):
    metadata: _Meta = msgspec.field(default_factory=_Meta)
    spec: _Spec = msgspec.field(default_factory=_Spec)


_DECODER: Final = msgspec.json.Decoder(_Lease)


class LeaseObserver:
    """Tells who holds a Lease that others fight for, such as kube-scheduler's."""

    def __init__(self, reader: Reader, *, name: str, namespace: str, clock: Clock) -> None:
        """Know nothing until the first `refresh`."""
        self._reader = reader
        self._name = name
        self._namespace = namespace
        self._clock = clock
        self._lease = _Lease()
        self._seen_at = float("-inf")

    async def refresh(self) -> str:
        """Read the Lease and return its holder, see `holder`.

        Raises:
            ApiError: it can't be read; what was known stays, and runs out by itself.
        """
        began = self._clock.monotonic()
        try:
            lease = await self._reader.get(LEASES, self._name, namespace=self._namespace, decoder=_DECODER)
        except NotFoundError:
            self._lease = _Lease()
            return ""
        if lease.metadata.resource_version != self._lease.metadata.resource_version:
            first = not self._lease.metadata.resource_version
            self._lease = lease
            self._seen_at = began - (self._age(lease) if first else 0.0)
        return self.holder

    @property
    def holder(self) -> str:
        """Identity of the holder, "" where nobody holds it, its time has run out, or we don't know."""
        held = self._lease.spec.holder_identity or ""
        lasts = self._lease.spec.lease_duration_seconds or 0
        return held if self._clock.monotonic() - self._seen_at < lasts else ""

    @property
    def version(self) -> str:
        """The resourceVersion that was read last, "" where there is no Lease."""
        return self._lease.metadata.resource_version

    @property
    def transitions(self) -> int:
        """How often the Lease has changed hands."""
        return self._lease.spec.lease_transitions or 0

    def _age(self, lease: _Lease) -> float:
        if not lease.spec.renew_time:
            return float("inf")
        try:
            renewed = parse_rfc3339(lease.spec.renew_time)
        except ValueError:
            return float("inf")
        return max(0.0, self._clock.wall() - renewed)


class LeaseKeeper:
    """Tries to hold a Lease for as long as `run` runs."""

    def __init__(
        self,
        client: ApiClient,
        *,
        name: str,
        namespace: str,
        identity: str,
        clock: Clock,
        rng: Random,
        duration: int = 15,
        margin: float = 5.0,
        retry: float = 2.0,
    ) -> None:
        """Hold nothing until `run` runs.

        Args:
            client: the API server's door.
            name: of the Lease.
            namespace: of the Lease.
            identity: who we are; different for every process that may compete.
            clock: measures and waits.
            rng: jitter.
            duration: seconds after which others may take the Lease that we don't renew.
            margin: seconds by which we stop believing in it earlier than others may take it.
            retry: seconds between two attempts to get or renew it.
        """
        self._client = client
        self._name = name
        self._namespace = namespace
        self._identity = identity
        self._clock = clock
        self._rng = rng
        self._duration = duration
        self._margin = margin
        self._retry = retry
        self._observer = LeaseObserver(client, name=name, namespace=namespace, clock=clock)
        self._until = float("-inf")
        self._outage = Outage(f"lease {namespace}/{name}", clock)

    @property
    def held(self) -> bool:
        """Whether we hold it at this moment. Ask right before every act; it turns False by itself."""
        return self._clock.monotonic() < self._until

    async def run(self) -> NoReturn:
        """Get the Lease and renew it, until cancelled."""
        while True:
            try:
                await self.attempt()
            except ConflictError:
                # Someone else wrote first; the next look says who.
                pass
            except KubeError as error:
                self._outage.failed(error)
            else:
                self._outage.recovered()
            await self._clock.sleep(self._retry * self._rng.uniform(0.8, 1.2))

    async def attempt(self) -> bool:
        """Get or renew the Lease once, if it is ours or nobody's.

        Raises:
            ApiError: it could not be read or written; `ConflictError` where another was faster.
        """
        began = self._clock.monotonic()
        holder = await self._observer.refresh()
        if holder not in ("", self._identity):
            self._until = float("-inf")
            return False
        renewing = holder == self._identity and self.held
        now = rfc3339(self._clock.wall(), micro=True)
        spec: dict[str, object] = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._duration,
            "renewTime": now,
        }
        if not renewing:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = self._observer.transitions + 1 if self._observer.version else 0
        await self._write(spec)
        if not renewing:
            _log.info("lease %s/%s: held by us (%s)", self._namespace, self._name, self._identity)
        # Counted from before the request: others count from the moment they see the write.
        self._until = began + self._duration - self._margin
        return True

    async def release(self) -> None:
        """Give the Lease up at once, so that another needn't wait; does nothing where we don't hold it.

        Raises:
            ApiError: it could not be written; it runs out by itself.
        """
        if not self.held:
            return
        self._until = float("-inf")
        if await self._observer.refresh() == self._identity:
            await self._write({"holderIdentity": "", "leaseDurationSeconds": 1})

    async def _write(self, spec: dict[str, object]) -> None:
        if not self._observer.version:
            body = {
                "apiVersion": LEASES.api_version,
                "kind": LEASES.kind,
                "metadata": {"name": self._name, "namespace": self._namespace},
                "spec": spec,
            }
            # Another was faster: AlreadyExistsError, which is a ConflictError.
            await self._client.create(LEASES, _ENCODER.encode(body), namespace=self._namespace)
            return
        # A merge patch with the version in it: fields that we don't know survive, and only the state we saw is changed.
        patch = {"metadata": {"resourceVersion": self._observer.version}, "spec": spec}
        await self._client.patch(
            LEASES, self._name, _ENCODER.encode(patch), kind=Patch.MERGE, namespace=self._namespace
        )
