"""The node's GPUs as they are now, and what of them may be given: facts from NVML joined with the ledger.

Everything that answers the kubelet looks here, so a GPU that turns sick is sick for the answer that is being made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import msgspec

from deviceplugin.devices import Offer, Use, catalogue, healthy
from deviceplugin.ledger import Ledger
from tessera.model.inventory import VERSION, Gpu, Inventory
from tessera.model.names import Names
from tessera.placement.holding import Holding, fits


class Board:
    """GPUs, offers, and what is free."""

    def __init__(self, names: Names, gpus: Iterable[Gpu] = ()) -> None:
        """Begin with these GPUs.

        Raises:
            AdvertiseError: see `catalogue`.
        """
        self.names = names
        self._gpus: dict[str, Gpu] = {}
        self._elsewhere: frozenset[str] = frozenset()
        self._subscribers: list[Callable[[], None]] = []
        self.version = 0
        """Grows with every change of facts."""
        self.offers: dict[str, Offer] = {}
        self.ledger = Ledger(names, {})
        self.update(gpus)

    @property
    def gpus(self) -> Mapping[str, Gpu]:
        """The GPUs by id, in NVML's order."""
        return self._gpus

    @property
    def elsewhere(self) -> frozenset[str]:
        """Ids of GPUs that another device plugin hands out."""
        return self._elsewhere

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call back after every change of facts; it must be quick and must not raise."""
        self._subscribers.append(callback)

    def update(self, gpus: Iterable[Gpu]) -> bool:
        """Take new facts; True where the offers changed with them, so that everything has to be registered anew.

        Raises:
            AdvertiseError: see `catalogue`; the facts of before stay.
        """
        found = list(gpus)
        if found == list(self._gpus.values()):
            return False
        offers = catalogue(found, self.names)
        changed = offers != self.offers
        self._gpus = {gpu.id: gpu for gpu in found}
        self.offers = offers
        self.ledger.resize({gpu.id: gpu.units for gpu in found})
        self._tell()
        return changed

    def withhold(self, elsewhere: Iterable[str]) -> None:
        """Say which GPUs another device plugin hands out; they are withheld as a whole."""
        found = frozenset(elsewhere) & self._gpus.keys()
        if found != self._elsewhere:
            self._elsewhere = found
            self._tell()

    def serving(self, gpu: str) -> bool:
        """Whether slices of this GPU may be given now."""
        known = self._gpus.get(gpu)
        return known is not None and known.health == "ok" and gpu not in self._elsewhere

    def why_not(self, gpu: str) -> str:
        """Say why a GPU doesn't serve."""
        known = self._gpus.get(gpu)
        if known is None:
            return f"this node has no GPU {gpu}"
        if gpu in self._elsewhere:
            return f"GPU {gpu} is handed out by another device plugin"
        return f"GPU {gpu} is {known.health}"

    def foreign(self, gpu: str) -> Holding:
        """What processes outside any slice hold on a GPU."""
        known = self._gpus.get(gpu)
        return Holding(units=known.held if known else 0)

    def fits(self, gpu: str, total: Holding) -> bool:
        """Whether slices may come to this much on a GPU, foreign processes left out of account."""
        return fits(Holding(), total, capacity=self.ledger.capacity(gpu))

    def uses(self) -> dict[str, Use]:
        """What is in use, by GPU."""
        return {
            gpu: Use(capacity=known.units, held=self.ledger.held(gpu) + self.foreign(gpu), serving=self.serving(gpu))
            for gpu, known in self._gpus.items()
        }

    def healthy(self, resource: str) -> dict[str, frozenset[str]]:
        """The IDs of a resource that are reported Healthy, by GPU."""
        return healthy(
            self.offers[resource],
            self.uses(),
            taken=self.ledger.taken(resource),
            barred=self.ledger.barred(resource),
        )

    def inventory(self, state: Literal["serving", "draining"], lingering: Iterable[str]) -> Inventory:
        """The node's inventory as it is published; a GPU that another plugin hands out is in foreign use as a whole."""
        gpus = (
            msgspec.structs.replace(gpu, held=gpu.units) if gpu.id in self._elsewhere else gpu
            for gpu in self._gpus.values()
        )
        return Inventory(
            v=VERSION,
            unit=self.names.memory_unit,
            gpus=tuple(gpus),
            state=state,
            lingering=tuple(sorted(lingering)),
        )

    def _tell(self) -> None:
        self.version += 1
        for callback in self._subscribers:
            callback()
