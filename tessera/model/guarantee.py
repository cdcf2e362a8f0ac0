"""How firmly a slice is held to its size: stated per dimension, ordered, never assumed.

``kernel`` the driver refuses memory above the limit for the whole container; ``process`` the MPS server refuses it per
process; ``watched`` NVML accounting reports it afterwards; ``none`` nobody looks.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Guarantee(StrEnum):
    """One dimension's guarantee; the members stand from strongest to weakest."""

    KERNEL = "kernel"
    PROCESS = "process"
    WATCHED = "watched"
    NONE = "none"

    def satisfies(self, least: Guarantee) -> bool:
        """Tell whether this guarantee is at least as firm as ``least``."""
        return _RANK[self] <= _RANK[least]


_RANK = {guarantee: rank for rank, guarantee in enumerate(Guarantee)}


class Guarantees(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """The guarantees of one GPU or one plan, for memory and for compute apart."""

    memory: Guarantee = Guarantee.NONE
    compute: Guarantee = Guarantee.NONE
