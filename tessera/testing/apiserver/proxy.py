"""GET of ``pods/NAME:PORT/proxy/PATH``: passed on to the address that was given for that pod.

Simpler than the real one, which dials the pod's IP: only GET, no streaming, no rewriting of HTML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote

import aiohttp
from aiohttp import web

from tessera.testing.apiserver import status

_PATH: Final = re.compile(r"/api/v1/namespaces/([^/]+)/pods/([^/]+)/proxy(/.*)?")
_TIMEOUT: Final = 5.0


class Proxied(NamedTuple):
    """What a proxy's URL says: which pod and port (as written, "" for none), and the path behind."""

    namespace: str
    pod: str
    port: str
    path: str


def read(raw_path: str) -> Proxied | None:
    """Read a URL path; None where it is no pod proxy's."""
    found = _PATH.fullmatch(raw_path)
    if found is None:
        return None
    name, _, port = unquote(found[2]).partition(":")
    return Proxied(unquote(found[1]), name, port, found[3] or "/")


async def answer(asked: Proxied, addresses: Mapping[str, str]) -> web.Response:
    """Ask the pod.

    Args:
        asked: of which pod.
        addresses: ``host:port`` by ``namespace/name:port``.

    Raises:
        StatusError: 503, nobody listens there.
    """
    address = addresses.get(f"{asked.namespace}/{asked.pod}:{asked.port}")
    if address is None:
        raise status.unavailable("error trying to reach service: no address is known")
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"http://{address}{asked.path}") as found,
        ):
            body = await found.read()
            return web.Response(status=found.status, body=body, content_type=found.content_type)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise status.unavailable(f"error trying to reach service: {error}") from error
