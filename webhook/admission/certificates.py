"""The certificate in force: found or made, watched, renewed, and swapped under a running server.

A pair that others mount (cert-manager, an own Secret) is only watched. Where there is none, the webhook makes one, keeps it
in a Secret that its replicas share (a folder outside a cluster) and renews it at two thirds of its life. Either way a new
pair is first tried in a context of its own: one that is broken never reaches the server, the old one stays in force, and a
metric and readiness say so. `SSLContext.load_cert_chain` on the live context takes effect with the next handshake, so no
connection and no listening socket is touched.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Final

from cryptography.x509 import Certificate

from tessera.kube.clock import Clock
from tessera.kube.errors import KubeError
from webhook.admission.certstore import DirectoryStore, Store, Stored
from webhook.admission.metrics import Metrics
from webhook.admission.selfmade import CertificateError, Material, due, in_force, leaf, make, names_of, renew

POLL: Final = 15.0
"""Seconds between looks at the store. The kubelet itself takes up to a minute to bring a changed Secret into a folder."""
_MOMENT: Final = "%Y-%m-%d %H:%M:%SZ"
_ATTEMPTS: Final = 5
"""Rounds of "somebody was first, read again" before waiting for the next look."""

_log = logging.getLogger(__name__)


class Certificates:
    """Keeps one `ssl.SSLContext` supplied with a certificate.

    Attributes:
        context: for the server; made once, changed in place.
        bundle: PEM of the authorities that clients should trust; "" where a mounted pair came without.
        ours: the pair is of our own making.
    """

    def __init__(
        self, *, mounted: DirectoryStore | None, own: Store | None, names: Sequence[str], clock: Clock, metrics: Metrics
    ) -> None:
        """Load nothing yet.

        Args:
            mounted: a folder where others may have put a pair; it comes first.
            own: where to keep a pair of our own if there is no mounted one; None makes none. May be the same folder.
            names: DNS names and addresses by which clients call us.
            clock: tells what is due and paces the looks; the API server's time where there is one, since it verifies.
            metrics: of this process.
        """
        self.context = _context()
        self.bundle = ""
        self.ours = False
        self._mounted = mounted
        self._own = own
        self._names = [_normal(name) for name in names]
        self._clock = clock
        self._metrics = metrics
        self._version: tuple[str, str] | None = None
        self._served: Certificate | None = None
        self._trouble: str | None = "no certificate has been loaded yet"
        self._subscribers: list[Callable[[], None]] = []

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call back whenever another certificate or bundle has come into force."""
        self._subscribers.append(callback)

    async def load(self) -> None:
        """Get a first certificate.

        Raises:
            CertificateError: there is none and none can be made, or the one there is can't be used.
            KubeError: the API server can't be asked.
        """
        await self._refresh()
        if self._version is None:
            raise CertificateError(self._trouble or "no certificate")

    async def look(self) -> None:
        """Look at the store once: take what is new, renew what is due. Never raises for trouble; see `problem`."""
        try:
            await self._refresh()
        except (CertificateError, KubeError) as error:
            self._report(f"the certificate can't be looked after: {error}")

    async def follow(self, *, poll: float = POLL) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self._clock.sleep(poll)
            await self.look()

    def problem(self) -> str | None:
        """Why the webhook should not get traffic: no certificate, or one that has ended or not begun.

        Trouble with a new one is no reason while the old one is good.
        """
        if self._version is None:
            return self._trouble or "no certificate"
        wrong = self._served is not None and _out_of_force(self._served, self._now())
        return f"the certificate in use {wrong}" if wrong else None

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.wall(), UTC)

    async def _refresh(self) -> None:
        stored = await self._mounted.read() if self._mounted is not None else None
        store: Store | None = self._mounted
        if stored is None or (stored.material.ours and self._own is not None):
            store = self._own
            stored = await self._kept() if self._own is not None else None
        if store is None or stored is None:
            raise CertificateError(
                "no certificate: put tls.crt and tls.key into --cert-dir, or name a folder there that can be written"
            )
        version = (store.describe(), stored.version)
        if version != self._version:
            self._take(stored.material, store.describe())
            self._version = version
        self._trouble = None
        self._metrics.certificate_good.set(1)

    async def _kept(self) -> Stored | None:
        """Our own pair: made where there is none, renewed where it is due, by whoever comes first."""
        own = self._own
        if own is None:
            return None
        for _ in range(_ATTEMPTS):
            stored = await own.read()
            now = self._now()  # after the answer, which tells the API server's time
            why, wanted = self._wanted(stored, now)
            if wanted is None:
                return stored
            if await own.write(wanted, version=stored.version if stored else None):
                _log.info("%s: %s", own.describe(), why)
        raise CertificateError(f"{own.describe()} changes faster than it can be read; is it written by something else?")

    def _wanted(self, stored: Stored | None, now: datetime) -> tuple[str, Material | None]:
        """What should be stored instead of what is there, and why; None where it is good as it is."""
        if stored is None:
            return "certificate made", make(self._names, now=now)
        material = stored.material
        if not material.ours:
            return "", None
        try:
            what = due(material, self._names, now=now)
            return f"{what} renewed", renew(material, what, self._names, now=now) if what else None
        except CertificateError as error:
            _log.warning("what is stored can't be used and is replaced: %s", error)
            return "replaced", make(self._names, now=now)

    def _take(self, material: Material, where: str) -> None:
        """Put a pair into force.

        Raises:
            CertificateError: it is broken, or has ended or not begun while the one in force is good.
        """
        certificate, now = leaf(material), self._now()
        wrong = _out_of_force(certificate, now)
        if wrong and self._served is not None and in_force(self._served, now):
            raise CertificateError(f"{where} holds a certificate that {wrong}")
        _load(_context(), material, where)
        _load(self.context, material, where)
        self.bundle = material.bundle
        self.ours = material.ours
        self._served = certificate
        ends = certificate.not_valid_after_utc
        self._metrics.certificate_expiry.set(ends.timestamp())
        _log.info(
            "certificate of %s in force until %s, for %s", where, ends.date(), ", ".join(names_of(certificate)[:12])
        )
        for callback in self._subscribers:
            callback()

    def _report(self, trouble: str) -> None:
        self._metrics.certificate_good.set(0)
        if trouble != self._trouble:
            kept = "; the one in force stays" if self._version is not None else ""
            _log.error("%s%s", trouble, kept)
        self._trouble = trouble


def _out_of_force(certificate: Certificate, now: datetime) -> str:
    """Say how a certificate is not in force; "" where it is."""
    if in_force(certificate, now):
        return ""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return f"begins at {begins:{_MOMENT}}" if now < begins else f"ended at {ends:{_MOMENT}}"


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Without h2: the API server opens a connection per request in flight, and none of them is stuck behind another.
    context.set_alpn_protocols(["http/1.1"])
    return context


def _load(context: ssl.SSLContext, material: Material, where: str) -> None:
    """Load a pair from memory; OpenSSL's Python face reads files only, and keys have no business on a disk."""
    handle = os.memfd_create("tessera-pair", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(handle), "w", encoding="ascii") as file:
            file.write(material.certificate.rstrip() + "\n" + material.key)
        context.load_cert_chain(f"/proc/self/fd/{handle}", password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise CertificateError(f"{where}: tls.crt and tls.key are not a pair that can be used: {error}") from error
    finally:
        os.close(handle)


def _no_password() -> str:
    # Without it OpenSSL would ask a terminal for the password of an encrypted key.
    raise ValueError("the key is encrypted; store it without a password")


def _normal(name: str) -> str:
    try:
        return str(ip_address(name))
    except ValueError:
        return name.strip().rstrip(".").lower()
