"""A stand-in for NVIDIA's driver library: a real ``libnvidia-ml.so.1``, driven by a state file that processes share.

``FakeNvml.create`` makes a node, its ``library`` is what the node agent loads, its ``environment()`` what a child needs.
The library answers as the driver does: counts where a buffer is too small, NOT_SUPPORTED where the product can't,
GPU_IS_LOST where the GPU is gone, and it never crashes on a bad state file. One process talks to one node at a time: the
file is chosen by TESSERA_FAKE_NVML_STATE when the library is initialised, and kept until the last shutdown.
"""

from tessera.testing.nvml.build import SONAME, build_library, known_functions
from tessera.testing.nvml.codes import (
    ComputeMode,
    EventType,
    LimitsBackend,
    NvmlReturn,
    ProcessKind,
    RecoveryAction,
    TopologyLevel,
)
from tessera.testing.nvml.edit import GpuRef
from tessera.testing.nvml.errors import FakeNvmlError, LibraryBuildError, OutOfMemoryError, StateFileError
from tessera.testing.nvml.fake import STATE_VARIABLE, FakeNvml
from tessera.testing.nvml.products import PRODUCTS, FakeGpu, Profile
from tessera.testing.nvml.views import CgroupLimit, FakeProcess, GpuStatus, MigDevice

__all__ = [
    "PRODUCTS",
    "SONAME",
    "STATE_VARIABLE",
    "CgroupLimit",
    "ComputeMode",
    "EventType",
    "FakeGpu",
    "FakeNvml",
    "FakeNvmlError",
    "FakeProcess",
    "GpuRef",
    "GpuStatus",
    "LibraryBuildError",
    "LimitsBackend",
    "MigDevice",
    "NvmlReturn",
    "OutOfMemoryError",
    "ProcessKind",
    "Profile",
    "RecoveryAction",
    "StateFileError",
    "TopologyLevel",
    "build_library",
    "known_functions",
]
