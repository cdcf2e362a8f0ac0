"""ctypes mirror of ``csrc/state.h``: the state file as Python sees it.

Held equal to the C side by a test that compares every size and offset with what the compiler exports.
"""

from __future__ import annotations

import ctypes
from typing import Final

MAGIC: Final = 0x314C4D564E534554
LAYOUT: Final = 1
MAX_GPUS: Final = 32
MAX_MIG: Final = 8
MAX_PROFILES: Final = 8
MAX_PROCESSES: Final = 1024
MAX_EVENTS: Final = 256
MAX_FAULTS: Final = 64
MAX_LIMITS: Final = 256
MAX_MISSING: Final = 32
NAME_SIZE: Final = 96
VERSION_SIZE: Final = 80
SYMBOL_SIZE: Final = 64
PATH_SIZE: Final = 512

_u8, _i32, _u32, _u64 = ctypes.c_uint8, ctypes.c_int32, ctypes.c_uint32, ctypes.c_uint64
_name = ctypes.c_char * NAME_SIZE


class MigProfile(ctypes.Structure):
    """One GPU instance profile that the product offers."""

    _fields_ = (
        ("number", _u32),
        ("id", _u32),
        ("slices", _u32),
        ("instances", _u32),
        ("multiprocessors", _u32),
        ("copy_engines", _u32),
        ("decoders", _u32),
        ("encoders", _u32),
        ("jpegs", _u32),
        ("ofas", _u32),
        ("memory_slices", _u32),
        ("reserved", _u32),
        ("memory_mib", _u64),
        ("name", _name),
    )


class MigInstance(ctypes.Structure):
    """One MIG device: a GPU instance with one compute instance."""

    _fields_ = (
        ("present", _u32),
        ("gpu_instance", _u32),
        ("compute_instance", _u32),
        ("profile", _u32),
        ("placement_start", _u32),
        ("placement_size", _u32),
        ("uuid", _name),
    )


class Gpu(ctypes.Structure):
    """One GPU."""

    _fields_ = (
        ("uuid", _name),
        ("name", _name),
        ("memory_total", _u64),
        ("memory_reserved", _u64),
        ("supported_events", _u64),
        ("ecc_corrected", _u64),
        ("ecc_uncorrected", _u64),
        ("pci_domain", _u32),
        ("pci_bus", _u32),
        ("pci_device", _u32),
        ("pci_device_id", _u32),
        ("pci_subsystem_id", _u32),
        ("minor", _u32),
        ("numa", _i32),
        ("coherent", _u32),
        ("capability_major", _u32),
        ("capability_minor", _u32),
        ("architecture", _u32),
        ("brand", _u32),
        ("compute_mode", _u32),
        ("persistence_mode", _u32),
        ("lost", _u32),
        ("last_xid", _u32),
        ("recovery_action", _u32),
        ("temperature", _u32),
        ("power_milliwatts", _u32),
        ("nvlink_ports", _u32),
        ("mig_capable", _u32),
        ("mig_mode", _u32),
        ("mig_pending", _u32),
        ("ecc_mode", _u32),
        ("remapped_corrected", _u32),
        ("remapped_uncorrected", _u32),
        ("remapped_pending", _u32),
        ("remapped_failure", _u32),
        ("profile_count", _u32),
        ("reserved", _u32),
        ("profiles", MigProfile * MAX_PROFILES),
        ("mig", MigInstance * MAX_MIG),
        ("topology", _u8 * MAX_GPUS),
        ("nvlinks", _u8 * MAX_GPUS),
    )


class Process(ctypes.Structure):
    """One process on one GPU; one that uses two GPUs stands here twice."""

    _fields_ = (
        ("memory_used", _u64),
        ("pid", _u32),
        ("gpu", _u32),
        ("kind", _u32),
        ("sm_percent", _u32),
        ("memory_percent", _u32),
        ("mig", _i32),
        ("name", _name),
        ("cgroup", ctypes.c_char * PATH_SIZE),
    )


class Event(ctypes.Structure):
    """One event in the ring."""

    _fields_ = (
        ("sequence", _u64),
        ("type", _u64),
        ("data", _u64),
        ("gpu", _u32),
        ("gpu_instance", _u32),
        ("compute_instance", _u32),
        ("reserved", _u32),
    )


class Fault(ctypes.Structure):
    """A function that answers an error instead of its work."""

    _fields_ = (("function", ctypes.c_char * SYMBOL_SIZE), ("gpu", _i32), ("error", _u32))


class MemoryLimit(ctypes.Structure):
    """A cgroup's memory limit on one GPU."""

    _fields_ = (
        ("soft", _u64),
        ("hard", _u64),
        ("device", _u64),
        ("inode", _u64),
        ("gpu", _u32),
        ("reserved", _u32),
        ("name_space", ctypes.c_char * PATH_SIZE),
    )


class State(ctypes.Structure):
    """The whole file."""

    _fields_ = (
        ("magic", _u64),
        ("layout", _u32),
        ("size", _u32),
        ("generation", _u64),
        ("event_count", _u64),
        ("gpu_count", _u32),
        ("process_count", _u32),
        ("fault_count", _u32),
        ("limit_count", _u32),
        ("missing_count", _u32),
        ("init_error", _u32),
        ("cuda_version", _i32),
        ("limits_backend", _u32),
        ("driver_version", ctypes.c_char * VERSION_SIZE),
        ("nvml_version", ctypes.c_char * VERSION_SIZE),
        ("missing", (ctypes.c_char * SYMBOL_SIZE) * MAX_MISSING),
        ("gpus", Gpu * MAX_GPUS),
        ("processes", Process * MAX_PROCESSES),
        ("events", Event * MAX_EVENTS),
        ("faults", Fault * MAX_FAULTS),
        ("limits", MemoryLimit * MAX_LIMITS),
    )
