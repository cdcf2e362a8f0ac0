"""The ledger on disk, so that a restarted agent knows more than the kubelet tells: UIDs, init containers, plans.

Memory is the truth; the file follows it, off the serving path (an fsync costs milliseconds where Allocate may cost five).
What a crash loses in between the kubelet's own checkpoint still has: `rebuild` reads it before anything is served. A full
or broken disk therefore stops nothing; it is reported and tried again.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from typing import Final, Literal, NoReturn

import msgspec

from deviceplugin.devices import parse
from deviceplugin.errors import DeviceIdError, LedgerFileError
from deviceplugin.ledger import MOST_GRANTS, Grant, Ledger
from tessera.kube.clock import Clock

_log = logging.getLogger(__name__)

VERSION: Final = 1
LARGEST: Final = 16 * 1024 * 1024
"""Bytes; 8 GPUs given away unit by unit make 0.3 MiB."""
FIRST_WAIT: Final = 1.0
LONGEST_WAIT: Final = 30.0


class _Content(msgspec.Struct, frozen=True, kw_only=True):
    v: Literal[1] = VERSION
    grants: tuple[Grant, ...]


_ENCODER: Final = msgspec.json.Encoder(order="sorted")
_DECODER: Final = msgspec.json.Decoder(_Content)


def encode(grants: Iterable[Grant]) -> bytes:
    """Write the file's content."""
    return _ENCODER.encode(_Content(grants=tuple(grants)))


def decode(content: bytes) -> tuple[Grant, ...]:
    """Read the file's content.

    Raises:
        LedgerFileError: cut short, another version, or something in it that no ledger holds.
    """
    try:
        grants = _DECODER.decode(content).grants
        if len(grants) > MOST_GRANTS or len({grant.owner for grant in grants}) != len(grants):
            raise LedgerFileError(f"{len(grants)} grants, too many or one container twice")
        for grant in grants:
            for ids in grant.devices.values():
                for device in ids:
                    parse(device)
    except (msgspec.DecodeError, DeviceIdError) as error:
        raise LedgerFileError(str(error)) from error
    return grants


def read(path: str) -> tuple[Grant, ...] | None:
    """Read the file; None where there is none.

    Raises:
        LedgerFileError: it is there and can't be read or can't be ours.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LedgerFileError(f"{path}: {error.strerror}") from error
    if len(content) > LARGEST:
        raise LedgerFileError(f"{path}: more than {LARGEST} bytes")
    try:
        return decode(content)
    except LedgerFileError as error:
        raise LedgerFileError(f"{path}: {error}") from error


def write(path: str, content: bytes) -> None:
    """Replace the file in one step: whoever reads it sees the old content or the new, also after a power cut.

    Raises:
        LedgerFileError: the disk is full, read-only or gone; the old file is as it was.
    """
    draft = f"{path}.new"
    try:
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
        folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise LedgerFileError(
            f"{path} can't be written: {error.strerror}; nothing is lost while the agent runs"
        ) from error


class LedgerFile:
    """Keeps a file equal to a ledger."""

    def __init__(self, path: str, ledger: Ledger, *, clock: Clock) -> None:
        """Follow `ledger` from now on; nothing is written before `run` runs.

        Args:
            path: the file; its folder exists.
            ledger: what to store.
            clock: waits between attempts.
        """
        self._path = path
        self._ledger = ledger
        self._clock = clock
        self._dirty = asyncio.Event()
        self._written = -1
        self._lock = asyncio.Lock()
        self.problem: str | None = None
        """Why the file is behind, for readiness; None while it isn't."""
        self.failures = 0
        ledger.subscribe(self._dirty.set)

    async def run(self) -> NoReturn:
        """Write after every change, until cancelled."""
        wait = FIRST_WAIT
        while True:
            await self._dirty.wait()
            if await self.flush():
                wait = FIRST_WAIT
            else:
                await self._clock.sleep(wait)
                wait = min(LONGEST_WAIT, 2 * wait)

    async def flush(self) -> bool:
        """Write now; False where it failed, with the reason in `problem`."""
        async with self._lock:
            self._dirty.clear()
            version = self._ledger.version
            if version == self._written:
                return True
            try:
                await asyncio.to_thread(write, self._path, encode(self._ledger))
            except LedgerFileError as error:
                self.failures += 1
                if self.problem is None:
                    _log.error("%s", error)
                self.problem = str(error)
                self._dirty.set()
                return False
            if self.problem is not None:
                _log.info("%s is written again", self._path)
            self.problem = None
            self._written = version
            return True
