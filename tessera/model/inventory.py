"""A node's inventory annotation: its GPUs as the node agent sees them by NVML, in units.

Usable memory is (total - driver reserve - configured headroom) rounded down to units; all counting is in units, so two
parts can't disagree by a rounding.
"""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

from tessera.model.errors import AnnotationError
from tessera.model.guarantee import Guarantees
from tessera.model.request import read_annotation

VERSION: Final = 1
GPU_ID: Final = re.compile(r"[0-9a-f]{12}", re.ASCII)
MOST_UNITS: Final = 1 << 24

Health = Literal["ok", "sick", "lost", "recovering"]
Link = Literal["nvlink", "pcie", "numa", "system"]


class MigInstance(msgspec.Struct, frozen=True, kw_only=True):
    """One existing MIG instance: its ID on the GPU (``g7``) and its profile (``1g.10gb``)."""

    id: str
    profile: str


class Gpu(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """One GPU of a node.

    Attributes:
        id: first 12 hex digits of the UUID; what plans and device IDs name it by.
        uuid: NVML's UUID, ``GPU-…``.
        index: NVML index at the time of writing; for people only, it changes over reboots.
        model: product name.
        memory: total bytes. units: usable memory in units of the inventory.
        numa: NUMA node, -1 where unknown.
        health: only ``ok`` takes new slices.
        guarantee: what a slice on this GPU can be promised.
        links: by the other GPU's id, the best path to it.
        held: units in foreign use (processes outside any slice).
        mig: instances, on a GPU that is cut by MIG.
    """

    id: str
    uuid: str
    index: int
    model: str
    memory: int
    units: int
    numa: int = -1
    health: Health = "ok"
    guarantee: Guarantees = Guarantees()
    links: dict[str, Link] = {}
    held: int = 0
    mig: tuple[MigInstance, ...] = ()


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """The inventory annotation of one node.

    Attributes:
        v: version. unit: bytes of one unit. state: a draining node takes no new pods.
        gpus: in NVML order. lingering: UIDs of pods that are gone as objects while the node still sees them.
    """

    v: int
    unit: int
    gpus: tuple[Gpu, ...]
    state: Literal["serving", "draining"] = "serving"
    lingering: tuple[str, ...] = ()


def usable_units(*, total: int, reserved: int, headroom: int, unit: int) -> int:
    """Units of a GPU that may be handed out; all amounts in bytes, never below zero."""
    return max(0, (total - reserved - headroom) // unit)


def gpu_id(uuid: str) -> str:
    """The short name of a GPU: the first 12 hex digits of its UUID.

    Raises:
        AnnotationError: fewer than 12 hex digits in it.
    """
    digits = uuid.removeprefix("GPU-").replace("-", "").lower()[:12]
    if not GPU_ID.fullmatch(digits):
        raise AnnotationError(f"GPU UUID {uuid!r} does not begin with 12 hex digits")
    return digits


def encode(inventory: Inventory) -> str:
    """Write the inventory annotation: compact JSON, sorted keys; ``mig`` only where there is any."""
    plain = msgspec.to_builtins(inventory)
    for gpu in plain["gpus"]:
        if not gpu["mig"]:
            del gpu["mig"]
    return msgspec.json.encode(plain, order="sorted").decode()


def decode(text: str) -> Inventory:
    """Read an inventory annotation.

    Raises:
        AnnotationError: not such JSON, another version, or numbers that no node has.
    """
    inventory = read_annotation(text, _DECODER, "inventory")
    if inventory.v != VERSION:
        raise AnnotationError(f"inventory annotation has version {inventory.v}; this program knows {VERSION}")
    if inventory.unit <= 0:
        raise AnnotationError(f"inventory annotation has a unit of {inventory.unit} bytes; it must be positive")
    seen: set[str] = set()
    for gpu in inventory.gpus:
        if not GPU_ID.fullmatch(gpu.id) or gpu.id in seen:
            raise AnnotationError(f"inventory annotation: GPU id {gpu.id!r} is not 12 hex digits or stands twice")
        seen.add(gpu.id)
        if not (0 <= gpu.units <= MOST_UNITS and gpu.memory >= 0 and 0 <= gpu.held <= MOST_UNITS):
            raise AnnotationError(f"inventory annotation: GPU {gpu.id} holds amounts that no GPU has")
    return inventory


_DECODER: Final = msgspec.json.Decoder(Inventory)
