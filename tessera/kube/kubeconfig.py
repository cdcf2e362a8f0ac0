"""Kubeconfig files, read by the `kubernetes` package: exec plugins, OIDC refresh, merging of several files.

The only module that imports that package, and only when a kubeconfig is really used. Its loader is given an object of
our own to fill in instead of its Configuration, because that one takes proxies from the environment.

Reading may start a plugin and block for seconds, so it runs in a thread, except for the first time: a program that
can't tell where its API server is must say so before it does anything else.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import ssl
from collections.abc import Callable
from typing import Final

from tessera.kube.access import LOOK_AGAIN, Access, tls_context
from tessera.kube.clock import Clock
from tessera.kube.errors import ConnectionConfigError

_log = logging.getLogger(__name__)

REFRESH: Final = 30.0
"""Seconds between two looks at a token's expiry; the loader renews five minutes before it."""


class _Target:
    """What the loader fills in: the names are its own (kubernetes/config/kube_config.py, _set_config)."""

    def __init__(self) -> None:
        self.host = ""
        self.ssl_ca_cert: str | None = None
        self.cert_file: str | None = None
        self.key_file: str | None = None
        self.verify_ssl = True
        self.tls_server_name: str | None = None
        self.proxy: str | None = None
        self.api_key: dict[str, str] = {}
        self.refresh_api_key_hook: Callable[[_Target], None] | None = None


class KubeconfigConnection:
    """A connection as a kubeconfig describes it, picked up again when the files or the credentials change."""

    def __init__(self, path: str, *, clock: Clock) -> None:
        """Read the kubeconfig.

        Args:
            path: one file, or several separated as in `$KUBECONFIG`.
            clock: paces the looks at the files and the expiry.

        Raises:
            ConnectionConfigError: it can't be read, or names no server.
        """
        self._path = path
        self._files = [os.path.expanduser(part) for part in path.split(os.pathsep) if part]
        self._clock = clock
        self._lock = asyncio.Lock()
        self._seen = self._stamp()
        self._target = self._load()
        self._material = _material(self._target)
        self._access = _access(self._target)
        self._looked_at = self._refreshed_at = clock.monotonic()

    async def access(self) -> Access:
        """Return the current credentials, renewed where they are about to expire or the file has changed."""
        now = self._clock.monotonic()
        if now - self._looked_at >= LOOK_AGAIN:
            self._looked_at = now
            if self._stamp() != self._seen:
                await self._reload()
        if self._target.refresh_api_key_hook is not None and now - self._refreshed_at >= REFRESH:
            self._refreshed_at = now
            await self._refresh(self._target.refresh_api_key_hook)
        return self._access

    async def renew(self) -> bool:
        """Read everything again, plugins included; True where the credentials are others than before."""
        before = self._access
        await self._reload()
        return self._access is not before

    async def _refresh(self, hook: Callable[[_Target], None]) -> None:
        from kubernetes.config.config_exception import ConfigException  # noqa: PLC0415

        async with self._lock:
            try:
                await asyncio.to_thread(hook, self._target)
                self._adopt(self._target)
            except (ConfigException, ConnectionConfigError, OSError, ValueError, KeyError) as error:
                _log.warning("kubeconfig %s: credentials can't be refreshed: %s", self._path, error)

    async def _reload(self) -> None:
        async with self._lock:
            self._seen = self._stamp()
            try:
                self._adopt(await asyncio.to_thread(self._load))
            except ConnectionConfigError as error:
                _log.warning("kubeconfig %s: %s; going on with the credentials of before", self._path, error)

    def _adopt(self, target: _Target) -> None:
        self._target = target
        material = _material(target)
        fresh = _access(target, tls=self._access.tls if material == self._material else None)
        if fresh != self._access:
            self._access, self._material = fresh, material

    def _stamp(self) -> tuple[tuple[int, int, int], ...]:
        stamps: list[tuple[int, int, int]] = []
        for file in self._files:
            try:
                found = os.stat(file)
            except OSError:
                continue
            stamps.append((found.st_ino, found.st_mtime_ns, found.st_size))
        return tuple(stamps)

    def _load(self) -> _Target:
        from kubernetes.config import load_kube_config  # noqa: PLC0415
        from kubernetes.config.config_exception import ConfigException  # noqa: PLC0415
        from yaml import YAMLError  # noqa: PLC0415

        if not any(os.path.isfile(file) for file in self._files):
            raise ConnectionConfigError(f"kubeconfig {self._path} does not exist; pass --kubeconfig FILE")
        target = _Target()
        try:
            load_kube_config(  # type: ignore[no-untyped-call]
                config_file=os.pathsep.join(self._files), client_configuration=target
            )
        except (ConfigException, YAMLError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            # YAML errors quote the line at fault, which may be a token.
            detail = "it is no valid YAML" if isinstance(error, YAMLError) else str(error) or type(error).__name__
            raise ConnectionConfigError(f"kubeconfig {self._path} can't be used: {detail}") from None
        if not target.host.startswith(("http://", "https://")):
            raise ConnectionConfigError(f"kubeconfig {self._path} names no server with http:// or https://")
        return target


def _material(target: _Target) -> tuple[object, ...]:
    """Tell two TLS settings apart by content: a new context for the same material would drop every open connection."""
    digests: list[object] = [target.verify_ssl]
    for name in (target.ssl_ca_cert, target.cert_file, target.key_file):
        if not name:
            digests.append(None)
            continue
        try:
            with open(name, "rb") as file:
                digests.append(hashlib.sha256(file.read()).digest())
        except OSError as error:
            raise ConnectionConfigError(f"{name}, named by the kubeconfig, can't be read: {error.strerror}") from error
    return tuple(digests)


def _access(target: _Target, *, tls: ssl.SSLContext | None = None) -> Access:
    token = target.api_key.get("BearerToken")
    if not target.host.startswith("https://"):
        tls = None
    elif tls is None:
        tls = tls_context(
            ca_file=target.ssl_ca_cert,
            cert_file=target.cert_file,
            key_file=target.key_file,
            verify=target.verify_ssl,
        )
    return Access(
        url=target.host.rstrip("/"),
        headers={"Authorization": token} if token else {},
        tls=tls,
        server_name=target.tls_server_name,
        proxy=target.proxy,
        client=(target.cert_file, target.key_file) if target.cert_file else None,
    )
