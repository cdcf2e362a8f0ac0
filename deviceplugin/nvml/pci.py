"""Whether the machine has an NVIDIA GPU at all, by what the kernel shows; needs no driver and no NVML."""

from __future__ import annotations

import os
from typing import Final

SYSFS: Final = "/sys"
NVIDIA: Final = 0x10DE
DISPLAY: Final = 0x03
"""PCI base class of display controllers: VGA (0x0300) and 3D (0x0302). NVSwitches and audio functions have others."""
_MOST: Final = 4096


class PciBus:
    """The PCI devices below one sysfs."""

    def __init__(self, sysfs: str = SYSFS) -> None:
        """Say where sysfs is mounted."""
        self._devices = os.path.join(sysfs, "bus", "pci", "devices")

    def nvidia_gpus(self) -> tuple[str, ...]:
        """Bus addresses of NVIDIA's display controllers, sorted; empty where sysfs shows none or can't be read."""
        try:
            names = sorted(os.listdir(self._devices))[:_MOST]
        except OSError:
            return ()
        return tuple(
            name
            for name in names
            if self._number(name, "vendor") == NVIDIA and (self._number(name, "class") or 0) >> 16 == DISPLAY
        )

    def numa(self, address: str) -> int:
        """The NUMA node of a device, -1 where the kernel knows none."""
        found = self._number(address, "numa_node")
        return -1 if found is None or found < 0 else found

    def _number(self, address: str, name: str) -> int | None:
        try:
            with open(os.path.join(self._devices, address, name), encoding="ascii") as file:
                return int(file.read(64).strip(), 0)
        except (OSError, ValueError):
            return None
