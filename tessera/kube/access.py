"""What one request to the API server needs, and who knows it: the words that every source of a connection speaks."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from tessera.kube.errors import ConnectionConfigError

LOOK_AGAIN: Final = 10.0
"""Seconds between two looks at a credential file. Kubelets rotate a token at 80 % of its life, an hour at least."""


@dataclass(frozen=True, slots=True)
class Access:
    """What one request needs.

    Attributes:
        url: scheme, host and port, without a slash at the end.
        headers: the Authorization header, or nothing. Kept out of `repr`, so out of logs.
        tls: None for plain http.
        server_name: the name that the server's certificate must have, where it isn't the URL's host.
        proxy: only what a kubeconfig names; proxies from the environment are never used.
        client: files of the client's certificate and its key, which `tls` holds too; None where there is none.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    server_name: str | None = None
    proxy: str | None = field(default=None, repr=False)
    client: tuple[str, str | None] | None = None


class Connection(Protocol):
    """A source of `Access`."""

    async def access(self) -> Access:
        """Return what the next request needs, as fresh as it is.

        Raises:
            ConnectionConfigError: the credentials can't be read, and there are no older ones.
        """
        ...

    async def renew(self) -> bool:
        """Look again after the server refused the credentials; True where they have changed."""
        ...


def tls_context(
    *, ca_file: str | None = None, cert_file: str | None = None, key_file: str | None = None, verify: bool = True
) -> ssl.SSLContext:
    """Make the TLS settings of a connection: the given CA only, or the machine's where none is given.

    Raises:
        ConnectionConfigError: a file is missing or holds no certificate or key.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
        if cert_file:
            context.load_cert_chain(cert_file, key_file)
    except (OSError, ssl.SSLError) as error:
        names = ", ".join(name for name in (ca_file, cert_file, key_file) if name)
        raise ConnectionConfigError(f"TLS material of the API server can't be read ({names}): {error}") from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
