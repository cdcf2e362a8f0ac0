"""The API server as the demo's people use it: kubectl's few verbs, plain JSON in and out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import aiohttp

from tessera.demo.processes import DemoError

Json = dict[str, Any]
PODS: Final = "/api/v1/namespaces/default/pods"
_AT_ONCE: Final = 16


class Api:
    """One API server that needs no credentials."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        """Talk to `url` by `session`."""
        self._session = session
        self._url = url

    async def create(self, path: str, body: Mapping[str, object]) -> Json:
        """Create an object.

        Raises:
            DemoError: it was refused, with the server's own words.
        """
        return await self._send("POST", path, body)

    async def merge(self, path: str, patch: Mapping[str, object]) -> Json:
        """Merge a patch into an object.

        Raises:
            DemoError: it was refused, with the server's own words.
        """
        return await self._send("PATCH", path, patch, kind="application/merge-patch+json")

    async def items(self, path: str) -> list[Json]:
        """List objects."""
        return list((await self._send("GET", path))["items"])

    async def delete(self, path: str) -> None:
        """Delete an object; one that is gone already is fine."""
        async with self._session.delete(self._url + path) as answer:
            await answer.read()
            if answer.status >= 300 and answer.status != 404:
                raise DemoError(f"DELETE {path}: {answer.status}")

    async def submit(self, pods: Iterable[Json]) -> dict[str, str]:
        """Create pods, some at once, as many users do.

        Returns:
            By name of those that were refused, why.
        """
        refused: dict[str, str] = {}
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(pod: Json) -> None:
            async with gate:
                try:
                    await self.create(f"/api/v1/namespaces/{pod['metadata'].get('namespace', 'default')}/pods", pod)
                except DemoError as error:
                    refused[pod["metadata"]["name"]] = str(error)

        async with asyncio.TaskGroup() as group:
            for pod in pods:
                group.create_task(one(pod))
        return refused

    async def _send(
        self, method: str, path: str, body: Mapping[str, object] | None = None, *, kind: str = "application/json"
    ) -> Json:
        data = json.dumps(body) if body is not None else None
        async with self._session.request(method, self._url + path, data=data, headers={"Content-Type": kind}) as answer:
            said: Json = await answer.json()
            if answer.status >= 300:
                raise DemoError(str(said.get("message", f"{method} {path}: {answer.status}")))
            return said
