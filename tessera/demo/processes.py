"""Programs of the demo as processes of their own: started, waited for, and ended, with a log file each."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import aiohttp

from tessera.model.errors import TesseraError

START: Final = 30.0
"""Seconds a program may take until it is ready; two cores start fifteen of them at once."""
_STOP: Final = 2.0
_ENVIRONMENT: Final = {"GRPC_VERBOSITY": "ERROR"}
"""gRPC's C core tells of every peer that goes away, which is what a demo's end is made of."""


class DemoError(TesseraError):
    """The demo can't go on: a program did not start, or ended by itself."""


class Processes:
    """The demo's programs; leaving the context ends those it started, in reverse order, and no other."""

    def __init__(self, logs: str) -> None:
        """Keep logs in the folder `logs`."""
        self._logs = logs
        self._running: list[tuple[str, asyncio.subprocess.Process]] = []
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Begin with none."""
        os.makedirs(self._logs, exist_ok=True)
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what was started."""
        for _, process in reversed(self._running):
            if process.returncode is None:
                process.terminate()
        for _, process in reversed(self._running):
            try:
                async with asyncio.timeout(_STOP):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._session is not None:
            await self._session.close()

    async def start(self, name: str, command: Sequence[str], *, env: Mapping[str, str] | None = None) -> None:
        """Start a program whose standard output and errors both go to its log."""
        with self._new_log(name) as log:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**_ENVIRONMENT, **os.environ, **(env or {})},
            )
        self._running.append((name, process))

    async def announced(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Start a program that prints one line of JSON when it is ready, and return that.

        Raises:
            DemoError: it ended, or said nothing in time.
        """
        with self._new_log(name) as log:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**_ENVIRONMENT, **os.environ, **(env or {})},
            )
        self._running.append((name, process))
        try:
            async with asyncio.timeout(START):
                line = await process.stdout.readline() if process.stdout else b""
        except TimeoutError:
            line = b""
        try:
            said = json.loads(line)
        except ValueError:
            raise DemoError(f"{name} did not start: {self._tail(name)}") from None
        if not isinstance(said, dict):
            raise DemoError(f"{name} announced {line!r}")
        return said

    async def ready(self, name: str, address: str) -> None:
        """Wait until a program's /readyz says yes.

        Raises:
            DemoError: it ended, or was not ready in time; with its own reason.
        """
        process = next(process for known, process in self._running if known == name)
        reason = "no answer"
        try:
            async with asyncio.timeout(START):
                while process.returncode is None:
                    ready, reason = await self._ask(address, reason)
                    if ready:
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise DemoError(f"{name} is not ready after {START:.0f} s: {reason}; {self._tail(name)}") from None
        raise DemoError(f"{name} ended with code {process.returncode}: {self._tail(name)}")

    def check(self) -> None:
        """Make sure that all that was started still runs.

        Raises:
            DemoError: a program ended by itself.
        """
        for name, process in self._running:
            if process.returncode is not None:
                raise DemoError(f"{name} ended with code {process.returncode}: {self._tail(name)}")

    async def _ask(self, address: str, reason: str) -> tuple[bool, str]:
        if self._session is None:
            raise DemoError("not started")
        try:
            async with self._session.get(f"http://{address}/readyz") as answer:
                return answer.status == 200, (await answer.text()).strip()
        except (aiohttp.ClientError, TimeoutError):
            return False, reason

    def _new_log(self, name: str) -> BinaryIO:
        return open(self._log(name), "wb")

    def _log(self, name: str) -> str:
        return os.path.join(self._logs, f"{name}.log")

    def _tail(self, name: str) -> str:
        with open(self._log(name), encoding="utf-8", errors="replace") as log:
            lines = log.read().strip().splitlines()[-5:]
        return f"its log {self._log(name)} ends with: " + (" | ".join(lines) or "nothing")


def program(name: str, *arguments: str) -> list[str]:
    """The command of one of Tessera's own programs, as installed beside this interpreter.

    Raises:
        DemoError: it is not installed.
    """
    path = os.path.join(os.path.dirname(sys.executable), name)
    if not os.access(path, os.X_OK):
        raise DemoError(
            f"{name} is not installed beside {sys.executable}; in a checkout: pip install '.[webhook,node,cli]'"
        )
    return [path, *arguments]


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def free_port() -> int:
    """A TCP port of loopback that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
