"""NVIDIA's container toolkit on this node: its version, and how its runtime injects devices.

Where devices are asked for by environment or mount, nvidia-container-runtime does the work, and it applies memory limits
only from version 1.20.1 on and only in the modes that go by CDI (``auto`` resolves to ``jit-cdi`` since 1.18). The version
is what ``nvidia-ctk --version`` prints; where there is no such program within reach it is not known.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import tomllib
from collections.abc import Iterable
from typing import Final, Protocol

import msgspec

_log = logging.getLogger(__name__)

LIMITS_SINCE: Final = (1, 20, 1)
LIMITING_MODES: Final = frozenset({"auto", "jit-cdi"})
"""``cdi`` looks names up in spec files, so there the specs themselves are the proof; ``legacy`` and ``csv`` have no hook."""
DEFAULT_MODE: Final = "auto"
_DEADLINE: Final = 5.0
_LONGEST: Final = 4096
_LARGEST_CONFIG: Final = 1 << 20
_VERSION: Final = re.compile(r"\bversion v?(\d{1,4})\.(\d{1,4})\.(\d{1,4})(-[0-9A-Za-z.]+)?", re.ASCII)

Version = tuple[int, int, int]


class Toolkit(msgspec.Struct, frozen=True, kw_only=True):
    """What is known: `version` None where it isn't, `mode` of nvidia-container-runtime as configured."""

    version: Version | None = None
    mode: str = DEFAULT_MODE

    def limit_problem(self) -> str | None:
        """Why nvidia-container-runtime would not apply memory limits, None where it would."""
        if self.version is None:
            return "the version of NVIDIA's container toolkit is not known here (no nvidia-ctk within reach)"
        if self.version < LIMITS_SINCE:
            return f"NVIDIA's container toolkit is {_dotted(self.version)}, limits came with {_dotted(LIMITS_SINCE)}"
        if self.mode not in LIMITING_MODES:
            return f'nvidia-container-runtime runs in mode "{self.mode}", which applies no limits'
        return None


class Run(Protocol):
    """Runs a program and returns what it printed."""

    async def __call__(self, program: str, *arguments: str) -> str:
        """Raise OSError where it can't be run, fails, or does not end in time."""
        ...


async def run(program: str, *arguments: str) -> str:
    """Run a program of the node, with a deadline and a bounded output."""
    process = await asyncio.create_subprocess_exec(
        program,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None  # noqa: S101 - PIPE was asked for
    printed = b""
    code: int | None = None
    try:
        async with asyncio.timeout(_DEADLINE):
            while len(printed) < _LONGEST and (piece := await process.stdout.read(_LONGEST)):
                printed += piece
            code = await process.wait() if len(printed) < _LONGEST else None
    except TimeoutError as error:
        raise OSError(f"{program} did not end within {_DEADLINE:g} s") from error
    finally:
        if code is None:
            # With all its children: one of them would keep the pipe open.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await process.communicate()
    if code:
        raise OSError(f"{program} ended with code {code}")
    return printed[:_LONGEST].decode("utf-8", "replace")


async def probe(programs: Iterable[str], configs: Iterable[str], run: Run = run) -> Toolkit:
    """Find out about the toolkit.

    Args:
        programs: where nvidia-ctk may be; the first that answers counts.
        configs: where its config.toml may be; the first that can be read counts.
        run: how programs are run.
    """
    version = None
    for program in programs:
        if not os.access(program, os.X_OK):
            continue
        try:
            version = parse_version(await run(program, "--version"))
        except OSError as error:
            _log.warning("NVIDIA's container toolkit can't be asked for its version: %s", error)
        if version is not None:
            break
    return Toolkit(version=version, mode=_mode(configs))


def parse_version(printed: str) -> Version | None:
    """Read ``NVIDIA Container Toolkit CLI version 1.20.1``; what comes before a release counts as the one before it."""
    match = _VERSION.search(printed)
    if match is None:
        return None
    major, minor, patch = (int(match[group]) for group in (1, 2, 3))
    return (major, minor, patch - 1) if match[4] else (major, minor, patch)


def _mode(configs: Iterable[str]) -> str:
    for path in configs:
        try:
            with open(path, "rb") as file:
                plain = tomllib.loads(file.read(_LARGEST_CONFIG).decode())
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError) as error:
            _log.warning("%s can't be read: %s", path, error)
            return "unknown"
        runtime = plain.get("nvidia-container-runtime")
        mode = runtime.get("mode", DEFAULT_MODE) if isinstance(runtime, dict) else DEFAULT_MODE
        return mode if isinstance(mode, str) else "unknown"
    return DEFAULT_MODE


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
