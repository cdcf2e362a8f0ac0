"""Where the API server is and what proves who we are.

Three sources, in this order: a kubeconfig that was named, the cluster we run in, `$KUBECONFIG` or ~/.kube/config. In a
cluster two environment variables, a token file and a CA file are enough; the `kubernetes` package (950 ms and 50 MiB to
import) is loaded only for a kubeconfig, see `kubeconfig.py`.

Credentials change while we run: the kubelet rotates projected tokens, exec plugins hand out short-lived ones. So what a
request needs is asked for each time (`Connection.access`), and a 401 makes the source look again (`renew`).
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from tessera.kube.access import LOOK_AGAIN, Access, Connection, tls_context
from tessera.kube.clock import Clock
from tessera.kube.errors import ConnectionConfigError

if TYPE_CHECKING:
    from tessera.kube.kubeconfig import KubeconfigConnection

SERVICE_ACCOUNT_DIR: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
_LARGEST_FILE: Final = 1 << 20


class StaticConnection:
    """An address that never changes: tests, the demo, a proxy on loopback."""

    def __init__(self, url: str, *, token: str = "", tls: ssl.SSLContext | None = None) -> None:
        """Talk to `url`, with a bearer token where one is given."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._access = Access(url=url.rstrip("/"), headers=headers, tls=tls)

    async def access(self) -> Access:
        """Return the one access there is."""
        return self._access

    async def renew(self) -> bool:
        """Nothing can have changed."""
        return False


class InClusterConnection:
    """The service account that Kubernetes mounts into every pod."""

    def __init__(self, *, host: str, port: str, directory: str, clock: Clock) -> None:
        """Read token and CA once.

        Args:
            host: KUBERNETES_SERVICE_HOST; an IPv6 address is bracketed here.
            port: KUBERNETES_SERVICE_PORT.
            directory: where `token` and `ca.crt` are mounted.
            clock: paces the looks at the two files.

        Raises:
            ConnectionConfigError: a file is missing, empty or no certificate.
        """
        self._url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        self._token_file = os.path.join(directory, "token")
        self._ca_file = os.path.join(directory, "ca.crt")
        self._clock = clock
        self._token = b""
        self._ca = b""
        self._tls: ssl.SSLContext | None = None
        self._access = self._read()
        self._read_at = clock.monotonic()

    async def access(self) -> Access:
        """Return the current token; a file that can't be read for a moment leaves the older one in force."""
        if self._clock.monotonic() - self._read_at >= LOOK_AGAIN:
            self._look()
        return self._access

    async def renew(self) -> bool:
        """Read both files again, now."""
        before = self._access
        self._look()
        return self._access is not before

    def _look(self) -> None:
        self._read_at = self._clock.monotonic()
        try:
            self._access = self._read()
        except ConnectionConfigError:
            # Rotation swaps a symlink; what we have is good until the server says otherwise (then 401 names it).
            return

    def _read(self) -> Access:
        token = _content(self._token_file).strip()
        ca = _content(self._ca_file)
        if self._tls is not None and token == self._token and ca == self._ca:
            return self._access
        if not token.isascii() or not token or b"\n" in token:
            raise ConnectionConfigError(f"{self._token_file} holds no bearer token; mount the pod's service account")
        if self._tls is None or ca != self._ca:
            self._tls = tls_context(ca_file=self._ca_file)
        self._token, self._ca = token, ca
        return Access(url=self._url, headers={"Authorization": f"Bearer {token.decode()}"}, tls=self._tls)


def connect(
    kubeconfig: str | None, *, environ: Mapping[str, str], clock: Clock, directory: str = SERVICE_ACCOUNT_DIR
) -> Connection:
    """Choose the source of the connection.

    Args:
        kubeconfig: the value of ``--kubeconfig``, or None.
        environ: the process environment.
        clock: paces the looks at files that may change.
        directory: where a pod's service account is mounted.

    Raises:
        ConnectionConfigError: no source is there, or the one that was chosen can't be read.
    """
    if kubeconfig:
        return _from_kubeconfig(kubeconfig, clock=clock)
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
    if host and port:
        return InClusterConnection(host=host, port=port, directory=directory, clock=clock)
    if named := environ.get("KUBECONFIG"):
        return _from_kubeconfig(named, clock=clock)
    home = os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".kube", "config")
    if os.path.isfile(home):
        return _from_kubeconfig(home, clock=clock)
    raise ConnectionConfigError(
        f"no API server to talk to: --kubeconfig and $KUBECONFIG are not set, {home} does not exist, and this is no pod "
        "(KUBERNETES_SERVICE_HOST is not set); pass --kubeconfig FILE"
    )


def _from_kubeconfig(path: str, *, clock: Clock) -> KubeconfigConnection:
    # Imported here: a daemon in a cluster must not pay for it.
    from tessera.kube.kubeconfig import KubeconfigConnection  # noqa: PLC0415

    return KubeconfigConnection(path, clock=clock)


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise ConnectionConfigError(
            f"{path} can't be read: {error.strerror}; mount the pod's service account"
        ) from error
    if len(content) > _LARGEST_FILE:
        raise ConnectionConfigError(f"{path} has more than {_LARGEST_FILE} bytes, so it is no token and no CA")
    return content
