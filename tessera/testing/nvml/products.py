"""The GPUs that a fake node may have, with the real products' names and sizes.

Totals and driver reserves are what ``nvidia-smi -q`` shows in users' public reports (the reserve moves by some hundred
MiB between driver branches); MIG profiles are those of ``nvidia-smi mig -lgip``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from tessera.testing.nvml.errors import FakeNvmlError

MIB: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A MIG profile: a size of GPU instance that a product can be cut into.

    Attributes:
        name: as users write it, ``1g.10gb``.
        number: NVML_GPU_INSTANCE_PROFILE_*. id: what nvidia-smi shows.
        slices: of the seven compute slices. size: of the eight memory slices (the placement's size).
        instances: how many fit. multiprocessors, copy_engines, decoders: of one instance.
        memory_mib: of one instance.
    """

    name: str
    number: int
    id: int
    slices: int
    size: int
    instances: int
    multiprocessors: int
    copy_engines: int
    decoders: int
    memory_mib: int


@dataclass(frozen=True, kw_only=True)
class FakeGpu:
    """One GPU of a fake node: the product, and what is particular about this card.

    Attributes:
        name: product name as NVML gives it. memory_total, memory_reserved: bytes.
        capability: CUDA compute capability. architecture, brand: NVML_DEVICE_ARCH_* and NVML_BRAND_*.
        pci_device_id: device and vendor, as NVML packs them.
        nvlink_ports: NVLinks that the product has; which of them lead somewhere is said when the node is made.
        ecc: whether it counts ECC errors. profiles: MIG profiles; none = no MIG.
        uuid: ``GPU-…``; made from the state file's path and the index if not given.
        numa: NUMA node of the PCIe slot, -1 unknown. coherent: the GPU is a NUMA node itself (Grace Hopper).
        pci_bus: made from the index if not given.
        mig: names of the instances that the card is cut into; None = MIG off.
    """

    name: str
    memory_total: int
    memory_reserved: int
    capability: tuple[int, int]
    architecture: int
    brand: int = 14
    pci_device_id: int = 0
    nvlink_ports: int = 0
    ecc: bool = True
    profiles: tuple[Profile, ...] = ()
    uuid: str = ""
    numa: int = 0
    coherent: bool = False
    pci_bus: int | None = None
    mig: tuple[str, ...] | None = None

    @classmethod
    def of(cls, product: str, *, uuid: str = "", numa: int = 0, mig: tuple[str, ...] | None = None) -> FakeGpu:
        """A card of one of the products in ``PRODUCTS``; ``dataclasses.replace`` changes what is not asked here.

        Raises:
            FakeNvmlError: no such product; the message names those there are.
        """
        known = PRODUCTS.get(product)
        if known is None:
            raise FakeNvmlError(f"no preset for GPU {product!r}; there are {', '.join(sorted(PRODUCTS))}")
        return replace(known, uuid=uuid, numa=numa, mig=mig)


def _profiles(*, unit: int, multiprocessors: tuple[int, ...], memory_mib: tuple[int, ...]) -> tuple[Profile, ...]:
    """The six sizes of an A100 or H100; ``unit`` is the GB in the smallest profile's name."""
    shapes = (
        ("1g", 0, 19, 1, 1, 7, 1, 0),
        ("1g", 9, 15, 1, 2, 4, 1, 1),
        ("2g", 1, 14, 2, 2, 3, 2, 1),
        ("3g", 2, 9, 3, 4, 2, 3, 2),
        ("4g", 3, 5, 4, 4, 1, 4, 2),
        ("7g", 4, 0, 7, 8, 1, 7, 5),
    )
    return tuple(
        Profile(
            name=f"{prefix}.{size * unit}gb",
            number=number,
            id=shown,
            slices=slices,
            size=size,
            instances=instances,
            multiprocessors=sm,
            copy_engines=engines,
            decoders=decoders,
            memory_mib=memory,
        )
        for (prefix, number, shown, slices, size, instances, engines, decoders), sm, memory in zip(
            shapes, multiprocessors, memory_mib, strict=True
        )
    )


PRODUCTS: Final[dict[str, FakeGpu]] = {
    "A100-80GB": FakeGpu(
        name="NVIDIA A100-SXM4-80GB",
        memory_total=81920 * MIB,
        memory_reserved=834 * MIB,
        capability=(8, 0),
        architecture=7,
        pci_device_id=0x20B210DE,
        nvlink_ports=12,
        profiles=_profiles(
            unit=10, multiprocessors=(14, 14, 28, 42, 56, 98), memory_mib=(9728, 19968, 19968, 40192, 40192, 80896)
        ),
    ),
    "A10": FakeGpu(
        name="NVIDIA A10",
        memory_total=24146608128,
        memory_reserved=512 * MIB,
        capability=(8, 6),
        architecture=7,
        pci_device_id=0x223610DE,
    ),
    "T4": FakeGpu(
        name="Tesla T4",
        memory_total=15360 * MIB,
        memory_reserved=393 * MIB,
        capability=(7, 5),
        architecture=6,
        pci_device_id=0x1EB810DE,
    ),
    "H100": FakeGpu(
        name="NVIDIA H100 80GB HBM3",
        memory_total=85520809984,
        memory_reserved=551 * MIB,
        capability=(9, 0),
        architecture=9,
        pci_device_id=0x233010DE,
        nvlink_ports=18,
        profiles=_profiles(
            unit=10, multiprocessors=(16, 26, 32, 60, 64, 132), memory_mib=(9984, 20096, 20096, 40448, 40448, 81152)
        ),
    ),
    "V100-32GB": FakeGpu(
        name="Tesla V100-SXM2-32GB",
        memory_total=32768 * MIB,
        memory_reserved=258 * MIB,
        capability=(7, 0),
        architecture=5,
        pci_device_id=0x1DB510DE,
        nvlink_ports=6,
    ),
}
