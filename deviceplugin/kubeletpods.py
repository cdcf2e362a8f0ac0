"""The kubelet's own list of pods (GET /pods on port 10250), for the moments in which the API's watch is behind or away.

It needs the right `get` on `nodes/pods`, and it is shown what the API server is shown: a token, a client's certificate. The
kubelet's serving certificate is usually signed by itself, so what is checked is that very certificate (the kubelet's file)
and not a name in it; nothing is shown unchecked.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Final, Self

import aiohttp
import msgspec

from deviceplugin.errors import KubeletError
from tessera.kube.access import Access
from tessera.kube.errors import ConnectionConfigError
from tessera.model.pod import Pod

DEADLINE: Final = 0.5
LARGEST: Final = 64 * 1024 * 1024


class _PodList(msgspec.Struct):
    items: list[Pod] | None = None


_DECODER: Final = msgspec.json.Decoder(_PodList)


class KubeletPods:
    """Reads GET /pods. Use it as an async context manager."""

    def __init__(
        self,
        url: str,
        *,
        access: Callable[[], Awaitable[Access]] | None = None,
        ca_file: str | None = None,
        deadline: float = DEADLINE,
    ) -> None:
        """Open nothing yet.

        Args:
            url: such as ``https://127.0.0.1:10250/pods``.
            access: what the API server is shown, as it is now (`Connection.access`); None shows nothing. Nor is anything
                shown over plain http.
            ca_file: the kubelet's certificate or the CA that signed it; None: the machine's CAs.
            deadline: seconds for one request.

        Raises:
            KubeletError: the file can't be read, or the URL is neither https nor on this machine.
        """
        local = url.startswith(("http://127.0.0.1:", "http://localhost:", "http://[::1]:"))
        if not url.startswith("https://") and not local:
            raise KubeletError(f"{url!r} is neither https nor on this machine; a token would be sent in the open")
        self._url = url
        self._access = access
        self._ca_file = ca_file
        self._deadline = deadline
        self._tls = _tls(ca_file) if url.startswith("https://") else None
        self._client: ssl.SSLContext | None = None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        if self._session is not None:
            await self._session.close()

    async def pods(self) -> list[Pod]:
        """Every pod that the kubelet was told of, just-rejected ones included.

        Raises:
            KubeletError: no answer in time, or one that is no list of pods.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(trust_env=False)
        try:
            async with asyncio.timeout(self._deadline):
                content = await self._get(self._session)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise KubeletError(f"{self._url} did not answer: {str(error) or 'no answer in time'}") from error
        try:
            return _DECODER.decode(content).items or []
        except msgspec.DecodeError as error:
            raise KubeletError(f"{self._url} answered with something that is no list of pods: {error}") from error

    async def _get(self, session: aiohttp.ClientSession) -> bytes:
        headers = await self._credentials() if self._tls is not None else {}
        async with session.get(self._url, headers=headers, ssl=self._tls or True, allow_redirects=False) as answer:
            if answer.status != 200:
                raise KubeletError(f"{self._url} answered {answer.status}; may this agent get nodes/pods?")
            content = await answer.content.read(LARGEST)
            while not answer.content.at_eof() and len(content) < LARGEST:
                content += await answer.content.read(LARGEST - len(content))
            return content

    async def _credentials(self) -> Mapping[str, str]:
        """The headers of a request; a client's certificate goes into the TLS settings."""
        if self._access is None:
            return {}
        try:
            access = await self._access()
        except ConnectionConfigError as error:
            raise KubeletError(f"{self._url} is not asked: {error}") from error
        if access.client is not None and access.tls is not self._client:
            # Made anew where the API's is: then the certificate is another one.
            self._tls, self._client = _tls(self._ca_file, access.client), access.tls
        return access.headers


def _tls(ca_file: str | None, client: tuple[str, str | None] | None = None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
        if client is not None:
            context.load_cert_chain(*client)
    except (OSError, ssl.SSLError) as error:
        named = " or ".join(filter(None, (ca_file, *(client or ()))))
        raise KubeletError(f"the certificate for the kubelet's port, {named}, can't be read: {error}") from error
    context.check_hostname = ca_file is None
    return context
