"""What can go wrong with NVML, with the GPU and the call in every message."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from deviceplugin.errors import NodeError


class Code(IntEnum):
    """The nvmlReturn_t values that are told apart here (nvml.h); all others only have their text."""

    UNINITIALIZED = 1
    INVALID_ARGUMENT = 2
    NOT_SUPPORTED = 3
    NO_PERMISSION = 4
    NOT_FOUND = 6
    INSUFFICIENT_SIZE = 7
    DRIVER_NOT_LOADED = 9
    TIMEOUT = 10
    LIBRARY_NOT_FOUND = 12
    FUNCTION_NOT_FOUND = 13
    GPU_IS_LOST = 15
    RESET_REQUIRED = 16
    LIB_RM_VERSION_MISMATCH = 18
    ARGUMENT_VERSION_MISMATCH = 25
    DEPRECATED = 26
    GPU_NOT_FOUND = 28
    UNKNOWN = 999


ABSENT: Final = frozenset(
    {Code.NOT_SUPPORTED, Code.FUNCTION_NOT_FOUND, Code.ARGUMENT_VERSION_MISMATCH, Code.DEPRECATED}
)
"""This driver or this product has no such thing: data, not trouble."""
LOST: Final = frozenset({Code.GPU_IS_LOST, Code.GPU_NOT_FOUND})
SESSION: Final = frozenset({Code.UNINITIALIZED, Code.DRIVER_NOT_LOADED, Code.LIB_RM_VERSION_MISMATCH})
"""The whole connection to the driver is gone; only a new nvmlInit can help."""


class NvmlError(NodeError):
    """Root of everything about NVML."""


class NvmlCallError(NvmlError):
    """One call was answered by an error.

    Attributes:
        call: the C function. code: nvmlReturn_t. gpu: which GPU it was about, "" where none.
    """

    def __init__(self, call: str, code: int, text: str, *, gpu: str = "") -> None:
        """Name the GPU, the call, and what NVML said."""
        self.call = call
        self.code = code
        self.text = text
        self.gpu = gpu
        super().__init__(f"{f'GPU {gpu}: ' if gpu else ''}{call}: {text} (NVML error {code})")

    @property
    def absent(self) -> bool:
        """The driver or the product can't do this at all."""
        return self.code in ABSENT

    @property
    def lost(self) -> bool:
        """The GPU is not there any more."""
        return self.code in LOST

    @property
    def session(self) -> bool:
        """It is not this call: the connection to the driver is gone."""
        return self.code in SESSION


class NvmlUnavailableError(NvmlError):
    """NVML can't be used at all: no library, no driver, or two that don't match. The message says the fix."""


class NvmlHungError(NvmlError):
    """The driver has not come back from a call."""


class GpuClashError(NvmlError):
    """Two GPUs of the node would have one name."""
