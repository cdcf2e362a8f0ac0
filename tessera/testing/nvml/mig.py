"""Cutting a fake GPU by MIG, by the rules that make real cuts succeed or fail."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Final

from tessera.testing.nvml.errors import FakeNvmlError
from tessera.testing.nvml.layout import MAX_MIG, Gpu, MigInstance
from tessera.testing.nvml.products import Profile

MEMORY_SLICES: Final = 8
COMPUTE_SLICES: Final = 7
# The driver numbers GPU instances by size: on a card of seven 1g instances they are 7 to 13.
_FIRST_ID: Final = {7: 0, 4: 1, 3: 1, 2: 3, 1: 7}


def fill_profiles(gpu: Gpu, profiles: Sequence[Profile]) -> None:
    """Write the profiles that the product offers."""
    gpu.profile_count = len(profiles)
    for cell, profile in zip(gpu.profiles, profiles, strict=False):
        cell.number = profile.number
        cell.id = profile.id
        cell.slices = profile.slices
        cell.instances = profile.instances
        cell.multiprocessors = profile.multiprocessors
        cell.copy_engines = profile.copy_engines
        cell.decoders = profile.decoders
        cell.memory_slices = profile.size
        cell.memory_mib = profile.memory_mib
        cell.name = profile.name.encode()


def cut(gpu: Gpu, names: Sequence[str] | None) -> None:
    """Turn MIG on and cut the GPU into these instances, in this order; ``None`` turns it off.

    Raises:
        FakeNvmlError: no MIG on this product, no such profile, or the instances don't fit together.
    """
    if names is not None and not gpu.mig_capable:
        raise FakeNvmlError(f"GPU {gpu.name.decode()} has no MIG; take an A100-80GB or H100")
    instances = [] if names is None else _place(gpu, names)
    gpu.mig_mode = gpu.mig_pending = int(names is not None)
    for slot in range(MAX_MIG):
        gpu.mig[slot] = instances[slot] if slot < len(instances) else MigInstance()


def _place(gpu: Gpu, names: Sequence[str]) -> list[MigInstance]:
    """Give every instance its place among the memory slices, large ones first, as nvidia-smi's users learn to do."""
    numbers = {gpu.profiles[i].name.decode(): i for i in range(gpu.profile_count)}
    unknown = [name for name in names if name not in numbers]
    if unknown:
        raise FakeNvmlError(f"GPU {gpu.name.decode()} has no MIG profile {unknown[0]!r}; it has {', '.join(numbers)}")
    placed: dict[int, MigInstance] = {}
    taken: set[int] = set()
    used_ids: set[int] = set()
    for slot in sorted(range(len(names)), key=lambda slot: -gpu.profiles[numbers[names[slot]]].memory_slices):
        profile = numbers[names[slot]]
        slices, size = gpu.profiles[profile].slices, gpu.profiles[profile].memory_slices
        starts = (
            start
            for start in range(0, MEMORY_SLICES, size)
            if start + slices <= COMPUTE_SLICES and taken.isdisjoint(range(start, start + size))
        )
        start = next(starts, None)
        if start is None:
            raise FakeNvmlError(f"MIG instances {', '.join(names)} don't fit on one {gpu.name.decode()}")
        taken.update(range(start, start + size))
        identity = next(i for i in range(_FIRST_ID[slices], 64) if i not in used_ids)
        used_ids.add(identity)
        placed[slot] = MigInstance(
            present=1,
            gpu_instance=identity,
            profile=profile,
            placement_start=start,
            placement_size=size,
            uuid=f"MIG-{uuid.uuid5(uuid.NAMESPACE_OID, f'{gpu.uuid.decode()}/{identity}')}".encode(),
        )
    return [placed[slot] for slot in range(len(names))]
