"""NVML's numbers that a test writes down, under NVIDIA's own names, so that the fakes need no pynvml to be imported.

The contract test compares every one of them with nvidia-ml-py.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag


class NvmlReturn(IntEnum):
    """nvmlReturn_t: the errors that a test may inject."""

    SUCCESS = 0
    UNINITIALIZED = 1
    INVALID_ARGUMENT = 2
    NOT_SUPPORTED = 3
    NO_PERMISSION = 4
    NOT_FOUND = 6
    INSUFFICIENT_SIZE = 7
    DRIVER_NOT_LOADED = 9
    TIMEOUT = 10
    IRQ_ISSUE = 11
    GPU_IS_LOST = 15
    RESET_REQUIRED = 16
    OPERATING_SYSTEM = 17
    LIB_RM_VERSION_MISMATCH = 18
    IN_USE = 19
    MEMORY = 20
    NO_DATA = 21
    INSUFFICIENT_RESOURCES = 23
    ARGUMENT_VERSION_MISMATCH = 25
    DEPRECATED = 26
    NOT_READY = 27
    GPU_NOT_FOUND = 28
    INVALID_STATE = 29
    UNKNOWN = 999


class EventType(IntFlag):
    """nvmlEventType*: bits of an event set's registration."""

    SINGLE_BIT_ECC = 0x1
    DOUBLE_BIT_ECC = 0x2
    PSTATE = 0x4
    XID = 0x8
    CLOCK = 0x10
    MIG_CONFIG = 0x100
    GPU_UNAVAILABLE = 0x4000
    GPU_RECOVERY_ACTION = 0x8000


class RecoveryAction(IntEnum):
    """NVML_GPU_RECOVERY_ACTION_*: what field 230 answers since driver 565."""

    NONE = 0
    GPU_RESET = 1
    NODE_REBOOT = 2
    DRAIN_P2P = 3
    DRAIN_AND_RESET = 4
    RECOVER_IMEX_DOMAIN = 5
    BUS_RESET = 6
    SYSTEM_REBOOT = 7


class TopologyLevel(IntEnum):
    """nvmlGpuTopologyLevel_t: the closest thing that two GPUs have in common."""

    INTERNAL = 0
    SINGLE = 10
    MULTIPLE = 20
    HOSTBRIDGE = 30
    NODE = 40
    SYSTEM = 50


class ComputeMode(IntEnum):
    """NVML_COMPUTEMODE_*."""

    DEFAULT = 0
    PROHIBITED = 2
    EXCLUSIVE_PROCESS = 3


class ProcessKind(IntFlag):
    """In which of NVML's three lists a process stands."""

    COMPUTE = 1
    GRAPHICS = 2
    MPS = 4


class LimitsBackend(IntEnum):
    """How the driver keeps cgroup memory limits: not at all, by itself, or by the kernel's dmem controller."""

    NONE = 0
    MISC = 1
    DMEM = 2
