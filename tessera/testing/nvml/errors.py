"""What can go wrong while a test or the demo sets up and drives the fake driver."""

from __future__ import annotations

from tessera.model.errors import TesseraError


class FakeNvmlError(TesseraError):
    """The fake was asked for something that hardware doesn't do: no such GPU, a full table, a bad profile."""


class LibraryBuildError(FakeNvmlError):
    """The library can't be compiled: no compiler, or the compiler's own words."""


class StateFileError(FakeNvmlError):
    """The state file is missing, cut short, or of another layout."""


class OutOfMemoryError(FakeNvmlError):
    """A process asked for more than the GPU has free, or than its cgroup's hard limit allows (CUDA's error 2)."""
