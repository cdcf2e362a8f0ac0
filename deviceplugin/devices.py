"""What the node advertises: device IDs, which of them are withheld, and the ListAndWatch message that says so.

The kubelet knows a GPU only as three piles of interchangeable IDs (memory units, percent of memory, percent of compute)
and the instances of each MIG profile. An ID's text names its GPU, so whatever the kubelet records is what the container
has. IDs never change: the number is padded to a fixed width that does not depend on the GPU's size, and a larger number
simply has more digits.

Withholding: what one view has given away is missing in the other, by the sums of `tessera.placement.holding`. IDs that a
slice holds stay Healthy (a kubelet refuses to restart a container whose IDs are not), free ones beyond what may still be
given are Unhealthy, and a GPU that doesn't serve has none Healthy.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Final

from deviceplugin._proto import deviceplugin_v1beta1_pb2 as api
from deviceplugin.errors import AdvertiseError, DeviceIdError
from tessera.model.inventory import Gpu
from tessera.model.names import Names
from tessera.placement.holding import Holding, free_percent, free_units

HEALTHY: Final = "Healthy"
UNHEALTHY: Final = "Unhealthy"
LONGEST_ID: Final = 62
"""The kubelet's API allows 63 characters for a device ID."""
LARGEST_MESSAGE: Final = 3_670_016
"""3.5 MiB. grpc-go refuses to receive 4 MiB; the kubelet then drops the plugin, and nothing in our log would say why."""
FULL: Final = 100
"""Percent IDs of one GPU."""

_ID: Final = re.compile(
    r"([0-9a-f]{12})-(?:(m)([0-9]{3}|[1-9][0-9]{3,7})|([pc])([0-9]{2})|(g)(0|[1-9][0-9]{0,7}))", re.ASCII
)
_INSTANCE: Final = re.compile(r"g(0|[1-9][0-9]{0,7})", re.ASCII)


class View(StrEnum):
    """What one ID is a piece of; the value is the letter in the ID."""

    UNITS = "m"
    PERCENT = "p"
    COMPUTE = "c"
    MIG = "g"


@dataclass(frozen=True, slots=True)
class DeviceId:
    """A device ID taken apart: the GPU's id, the view, the number within it."""

    gpu: str
    view: View
    index: int


def device_id(gpu: str, view: View, index: int) -> str:
    """Write a device ID: at least three digits for units, two for percents, none padded for MIG instances.

    >>> device_id("9f2c1ab4d0e7", View.UNITS, 7), device_id("9f2c1ab4d0e7", View.COMPUTE, 7)
    ('9f2c1ab4d0e7-m007', '9f2c1ab4d0e7-c07')
    """
    match view:
        case View.UNITS:
            return f"{gpu}-m{index:03d}"
        case View.PERCENT | View.COMPUTE:
            return f"{gpu}-{view.value}{index:02d}"
        case View.MIG:
            return f"{gpu}-g{index}"


def parse(text: str) -> DeviceId:
    """Read a device ID back; only what `device_id` writes is taken.

    Raises:
        DeviceIdError: anything else.
    """
    match = _ID.fullmatch(text)
    if match is None:
        raise DeviceIdError(f"{text[:80]!r} is not a device ID of ours, such as 9f2c1ab4d0e7-m007")
    gpu, letters, digits = match[1], (match[2] or match[4] or match[6]), (match[3] or match[5] or match[7])
    return DeviceId(gpu, View(letters), int(digits))


def gpu_of(text: str) -> str:
    """The GPU of an ID that is known to be ours."""
    return text[:12]


@dataclass(frozen=True, slots=True)
class Offer:
    """One resource that the node advertises.

    Attributes:
        resource: its name.
        view: what its IDs are pieces of.
        ids: by GPU id, all IDs in the order of their numbers.
        all: the same IDs as one set.
    """

    resource: str
    view: View
    ids: Mapping[str, tuple[str, ...]]
    all: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Gather the set once: every Allocate looks IDs up in it."""
        object.__setattr__(self, "all", frozenset(device for ids in self.ids.values() for device in ids))


def catalogue(gpus: Iterable[Gpu], names: Names) -> dict[str, Offer]:
    """Everything the node advertises, by resource name.

    A GPU in MIG mode (which has no units) offers its instances only. The three tickets are there as soon as one GPU has
    units.

    Raises:
        AdvertiseError: two GPUs whose UUIDs begin alike, an instance without a number, IDs that are too long or stand
            twice, or a resource whose message would be too long for the kubelet.
    """
    known: dict[str, Gpu] = {}
    for gpu in gpus:
        other = known.setdefault(gpu.id, gpu)
        if other is not gpu:
            raise AdvertiseError(
                f"GPUs {other.uuid} and {gpu.uuid} both shorten to {gpu.id}; their device IDs would be the same, so "
                "neither can be served: keep one of them away from this node"
            )
    whole = [gpu for gpu in known.values() if not gpu.mig and gpu.units > 0]
    offers: dict[str, Offer] = {}
    if whole:
        counts = (
            (names.memory_units, View.UNITS),
            (names.memory_percent, View.PERCENT),
            (names.compute_percent, View.COMPUTE),
        )
        for resource, view in counts:
            offers[resource] = Offer(
                resource,
                view,
                {
                    gpu.id: tuple(device_id(gpu.id, view, n) for n in range(gpu.units if view is View.UNITS else FULL))
                    for gpu in whole
                },
            )
    instances: dict[str, dict[str, list[int]]] = {}
    for gpu in known.values():
        for instance in gpu.mig:
            match = _INSTANCE.fullmatch(instance.id)
            if match is None:
                raise AdvertiseError(f"GPU {gpu.id}: MIG instance {instance.id!r} is not g and a number")
            instances.setdefault(names.mig(instance.profile), {}).setdefault(gpu.id, []).append(int(match[1]))
    for resource, by_gpu in sorted(instances.items()):
        numbered = {gpu: tuple(device_id(gpu, View.MIG, n) for n in sorted(ns)) for gpu, ns in by_gpu.items()}
        offers[resource] = Offer(resource, View.MIG, numbered)
    _check(offers)
    return offers


def _check(offers: Mapping[str, Offer]) -> None:
    seen: set[str] = set()
    for offer in offers.values():
        for device in (device for ids in offer.ids.values() for device in ids):
            if device in seen or len(device) > LONGEST_ID:
                raise AdvertiseError(f"{offer.resource}: device ID {device!r} stands twice or is too long")
            seen.add(device)
        size = largest_message(offer)
        if size > LARGEST_MESSAGE:
            count = sum(map(len, offer.ids.values()))
            raise AdvertiseError(
                f"{offer.resource}: {count} device IDs make a message of {size / 2**20:.1f} MiB and a kubelet takes less "
                f"than 4; set a larger memoryUnit in the config of every part (the default 256Mi is made for this)"
            )


def largest_message(offer: Offer) -> int:
    """Bytes of the resource's ListAndWatch message when every ID is Unhealthy, the longer word.

    One Device is a tag and a length (2 bytes each for itself, its ID and its health) and the two texts; none of them is
    as long as 128 bytes, so every length is one byte.
    """
    return sum(6 + len(device) + len(UNHEALTHY) for ids in offer.ids.values() for device in ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What is in use on one GPU.

    Attributes:
        capacity: its units.
        held: what slices hold, lingering ones included, and what foreign processes hold (as units).
        serving: it is healthy and nobody else hands it out.
    """

    capacity: int
    held: Holding
    serving: bool


def healthy(
    offer: Offer, uses: Mapping[str, Use], *, taken: Container[str], barred: Container[str] = frozenset()
) -> dict[str, frozenset[str]]:
    """The IDs that are reported Healthy, by GPU; all others are withheld.

    Args:
        offer: the resource.
        uses: by GPU id; a GPU that is missing has no ID Healthy.
        taken: IDs that live slices hold; they stay Healthy.
        barred: IDs that must not be given although the kubelet may count them free: those of lingering pods.
    """
    found = {}
    for gpu, ids in offer.ids.items():
        use = uses.get(gpu)
        if use is None or not use.serving:
            found[gpu] = frozenset[str]()
            continue
        kept = [device for device in ids if device in taken]
        free = (device for device in ids if device not in taken and device not in barred)
        # The lowest numbers stay: the same state always withholds the same IDs.
        found[gpu] = frozenset(kept).union(islice(free, _open(offer.view, use)))
    return found


def _open(view: View, use: Use) -> int:
    match view:
        case View.UNITS:
            return free_units(use.held, capacity=use.capacity)
        case View.PERCENT:
            return free_percent(use.held, capacity=use.capacity)
        case View.COMPUTE:
            return max(0, FULL - use.held.compute) if use.capacity else 0
        case View.MIG:
            return FULL


class Announcement:
    """One resource's ListAndWatch message, put together from bytes.

    An Allocate changes what is withheld in all views of a GPU, and building thousands of message objects each time would
    stand in the way of the next Allocate. Protocol buffers let repeated fields be joined by joining their bytes, and all
    IDs of one length are encoded alike but for their text.
    """

    def __init__(self, offer: Offer) -> None:
        """Encode one ID of each length in both states."""
        self.offer = offer
        lengths = {len(device): device for device in offer.all}
        self._around = {
            length: (_around(device, HEALTHY), _around(device, UNHEALTHY)) for length, device in lengths.items()
        }

    def message(self, healthy: Mapping[str, AbstractSet[str]]) -> bytes:
        """The serialised ListAndWatchResponse in which exactly these IDs are Healthy.

        Raises:
            AdvertiseError: it is too long for the kubelet.
        """
        parts: list[str] = []
        none: AbstractSet[str] = frozenset()
        for gpu, ids in self.offer.ids.items():
            well = healthy.get(gpu, none)
            for device in ids:
                head, tail = self._around[len(device)][device not in well]
                parts += (head, device, tail)
        message = "".join(parts).encode("latin-1")
        if len(message) > LARGEST_MESSAGE:
            raise AdvertiseError(f"{self.offer.resource}: a message of {len(message)} bytes, at most {LARGEST_MESSAGE}")
        return message


def _around(device: str, health: str) -> tuple[str, str]:
    """What stands before and after an ID in its encoding, byte for character."""
    encoded = api.ListAndWatchResponse(devices=[api.Device(ID=device, health=health)]).SerializeToString()
    head, tail = encoded.decode("latin-1").split(device)
    return head, tail
