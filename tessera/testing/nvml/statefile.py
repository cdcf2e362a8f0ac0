"""The state file from Python: mapped once, read under a shared lock, written under an exclusive one.

The locks are flocks on the file, the same that the C library takes, so every process sees a change whole or not at all,
and a killed writer's lock goes with it.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tessera.testing.nvml.errors import StateFileError
from tessera.testing.nvml.layout import LAYOUT, MAGIC, State

SIZE: Final = ctypes.sizeof(State)


class StateFile:
    """One open state file; safe to use from several threads and processes."""

    def __init__(self, path: Path) -> None:
        """Open and map an existing file.

        Raises:
            StateFileError: it is missing, too short, or not a state file of this layout.
        """
        self.path = path
        self._lock = threading.Lock()
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise StateFileError(f"state file {path} can't be opened: {error.strerror}") from error
        try:
            self._require_whole()
            # Dropped, never closed: a traceback that someone still holds may point into the map.
            self._state: State | None = State.from_buffer(mmap.mmap(self._descriptor, SIZE))
            self._require_sane(self._state)
        except BaseException:
            os.close(self._descriptor)
            raise

    @classmethod
    def create(cls, path: Path, fill: Callable[[State], None]) -> StateFile:
        """Make a new file, filled before anybody can see it.

        Raises:
            StateFileError: there is one already, or the folder can't be written.
        """
        state = State(magic=MAGIC, layout=LAYOUT, size=SIZE)
        fill(state)
        try:
            descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
            try:
                with open(descriptor, "wb") as file:
                    file.write(bytes(state))
                os.link(temporary, path)
            finally:
                os.unlink(temporary)
        except OSError as error:
            raise StateFileError(f"state file {path} can't be made: {error.strerror}") from error
        return cls(path)

    @contextmanager
    def read(self) -> Iterator[State]:
        """The state, unchanged as long as the block runs."""
        with self._locked(fcntl.LOCK_SH) as state:
            yield state

    @contextmanager
    def write(self) -> Iterator[State]:
        """The state, to be changed; others see the change when the block ends."""
        with self._locked(fcntl.LOCK_EX) as state:
            state.generation += 1
            yield state

    def close(self) -> None:
        """Let go of the file; a second call does nothing."""
        with self._lock:
            if self._state is not None:
                self._state = None
                os.close(self._descriptor)

    @contextmanager
    def _locked(self, operation: int) -> Iterator[State]:
        with self._lock:
            if self._state is None:
                raise StateFileError(f"state file {self.path} was closed")
            fcntl.flock(self._descriptor, operation)
            try:
                self._require_whole()
                self._require_sane(self._state)
                yield self._state
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _require_whole(self) -> None:
        size = os.fstat(self._descriptor).st_size
        if size < SIZE:
            raise StateFileError(f"state file {self.path} has {size} bytes, not {SIZE}: it was cut short")

    def _require_sane(self, state: State) -> None:
        """Somebody else may have written anything into the file."""
        if (state.magic, state.layout, state.size) != (MAGIC, LAYOUT, SIZE):
            raise StateFileError(f"{self.path} is not a state file of layout {LAYOUT}; make a new one")
        for count, table in (
            (state.gpu_count, state.gpus),
            (state.process_count, state.processes),
            (state.fault_count, state.faults),
            (state.limit_count, state.limits),
            (state.missing_count, state.missing),
        ):
            if count > len(table):
                raise StateFileError(f"{self.path} counts {count} entries where {len(table)} fit; make a new one")
