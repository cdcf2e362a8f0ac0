"""What the rest of a GPU is worth to other pods: prices of shares, and of what is left when some are taken.

A GPU that is left with 10 % is worth nothing if nobody asks so little, however much "free" it counts. Shares are priced
by a dual-feasible function (Fekete and Schepers, "New classes of fast lower bounds for bin packing problems", 2001): with
a threshold L, a share of at least 1 - L counts as a whole GPU (nothing much fits beside it), one of at most L as nothing,
others as they are. L is chosen such that the shares asked come to as much as possible. What a rest is worth is the
dearest set of shares that fits into it: a knapsack.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from tessera.placement.columns import IntArray

WHOLE: Final = 1000
"""A whole GPU, in thousandths."""
_GRAIN: Final = 10
"""The knapsack counts in hundredths of a GPU, shares and rests rounded down alike: a third of a GPU fits three times."""


def threshold(weights: Mapping[int, float]) -> int:
    """The L that makes the shares asked (in thousandths, by weight) dearest; the lowest of equals."""
    best, found = -1.0, 0
    for candidate in sorted({0, *(WHOLE - share for share in weights if WHOLE / 2 < share <= WHOLE)}):
        total = sum(weight * price(share, candidate) for share, weight in weights.items())
        if total > best:
            best, found = total, candidate
    return found


def price(share: int, low: int) -> int:
    """What a share counts as, both in thousandths, where L is `low`."""
    if share >= WHOLE - low and share > WHOLE / 2:
        return WHOLE
    return 0 if share <= low and share < WHOLE / 2 else share


def worths(weights: Mapping[int, float]) -> IntArray:
    """What each rest of 0..1000 thousandths is worth, in thousandths: of length 1001, never falling, 1000 at the end."""
    low = threshold(weights)
    dearest: dict[int, int] = {}
    for share in weights:
        grains = max(1, share // _GRAIN)
        if 0 < grains <= WHOLE // _GRAIN:
            dearest[grains] = max(dearest.get(grains, 0), price(share, low))
    sizes = np.array(sorted(dearest), np.int64)
    prices = np.array([dearest[size] for size in sorted(dearest)], np.int64)
    table = np.zeros(WHOLE // _GRAIN + 1, np.int64)
    for rest in range(1, len(table)):
        fits = int(np.searchsorted(sizes, rest, side="right"))
        taken = int((table[rest - sizes[:fits]] + prices[:fits]).max()) if fits else 0
        table[rest] = min(WHOLE, max(int(table[rest - 1]), taken))
    table[-1] = WHOLE
    return table[np.arange(WHOLE + 1) // _GRAIN]
