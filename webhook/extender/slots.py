"""A hash table of numpy arrays: thousands of 64-bit hashes looked up by a few calls."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tessera.placement.columns import IntArray

Words = npt.NDArray[np.uint64]

_SPARSE: Final = 4
"""Slots for each hash, at least."""
_MOST_SLOTTINGS: Final = 8
"""One hash of nine finds its slot taken in the first, one of a hundred in the second; eight are never needed."""


class _Slotting(NamedTuple):
    """A hash table without chains: whoever finds its slot taken is in the next one.

    Attributes:
        factor: tells it from the others.
        shift: leaves the upper bits.
        places: whose slot it is; 0 where it is nobody's, which comparing finds out.
    """

    factor: np.uint64
    shift: np.uint64
    places: IntArray

    def slots(self, hashes: Words) -> IntArray:
        """Where these hashes belong; multiplication wraps around."""
        return ((hashes * self.factor) >> self.shift).astype(np.int64)


class Slots:
    """Finds hashes by their places in an array of them."""

    def __init__(self, hashes: Words, random: np.random.Generator) -> None:
        """Take hashes; of equal ones, one is found."""
        self._hashes = hashes
        self._slottings: list[_Slotting] = []
        places: IntArray = np.arange(len(hashes))
        while len(places) and len(self._slottings) < _MOST_SLOTTINGS:
            bits = (_SPARSE * len(places)).bit_length()
            slotting = _Slotting(odd(random, 1)[0], np.uint64(64 - bits), np.zeros(1 << bits, np.int64))
            slots = slotting.slots(hashes[places])
            slotting.places[slots] = places
            places = places[slotting.places[slots] != places]
            self._slottings.append(slotting)

    def find(self, wanted: Words) -> IntArray:
        """The place of each of these hashes, any place for one that is not there."""
        found: IntArray = np.zeros(len(wanted), np.int64)
        left: IntArray | None = None
        for slotting in self._slottings:
            now = wanted if left is None else wanted.take(left)
            places = slotting.places.take(slotting.slots(now))
            missed = (self._hashes.take(places) != now).nonzero()[0]
            if left is None:
                found, left = places, missed
            else:
                found[left] = places
                left = left.take(missed)
            if not len(left):
                break
        return found


def odd(random: np.random.Generator, count: int) -> Words:
    """Factors to hash by."""
    return random.integers(0, 1 << 63, count, np.uint64) * np.uint64(2) + np.uint64(1)
