"""The rows of node names that are as long as each other, as a pool's mostly are.

Where commas stand is known then, so nothing is cut out of a list: the few bytes that tell names apart are read right where
they are, eight at a time, and hashed; what all names share is compared for the whole list at once. Each byte of the list is
compared by one of both, so an answer is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from tessera.placement.columns import IntArray
from webhook.extender.slots import Slots, Words, odd

WORD: Final = 8
_ALL: Final = 0xFF


class AlikeNames:
    """Some names of one length, at least `WORD` bytes with their quotes."""

    def __init__(self, names: Sequence[bytes]) -> None:
        """Take names as JSON has them."""
        self._step = len(names[0]) + 1
        text = np.frombuffer(b",".join(names) + b",", np.uint8).reshape(len(names), self._step)
        random = np.random.default_rng(0)
        self._at = _windows((text != text[0]).any(axis=0).nonzero()[0].tolist(), self._step - 1)
        self._words = [np.ascontiguousarray(text[:, at : at + WORD]).view(np.uint64)[:, 0] for at in self._at]
        self._factors = odd(random, len(self._at))
        self._slots = Slots(self._hash(self._words), random)
        shared = np.full(self._step, _ALL, np.uint8)
        for at in self._at:
            shared[at : at + WORD] = 0
        # As a list of all of them is, but for the last byte; one more so that both end with a whole word.
        self._list = _tiled(text[0], len(names), ord("["))
        self._shared = _tiled(shared, len(names), _ALL)
        self._differ = np.zeros_like(self._list)

    def places(self, raw: bytes) -> IntArray | None:
        """Where among these names each of a list's is, in its order.

        Args:
            raw: the list, with brackets.

        Returns:
            None where one is not among them, where there are more than these, or where it is no list as Go writes it.
        """
        count, beside = divmod(len(raw) - 1, self._step)
        if beside or not 0 < count * self._step < WORD * len(self._list) - WORD or raw[-1:] != b"]":
            return None
        words = [np.ndarray((count,), np.uint64, raw, 1 + at, (self._step,)).copy() for at in self._at]
        found = self._slots.find(self._hash(words))
        if not all(np.array_equal(known.take(found), word) for known, word in zip(self._words, words, strict=True)):
            return None
        return found if self._shares(raw) else None

    def _shares(self, raw: bytes) -> bool:
        """Whether all that the names have in common, and every comma, is as it should be."""
        whole = (len(raw) - 1) // WORD
        differ = np.bitwise_xor(np.frombuffer(raw, np.uint64, whole), self._list[:whole], out=self._differ[:whole])
        differ &= self._shared[:whole]
        rest = int.from_bytes(raw[WORD * whole : -1].ljust(WORD, b"\0"), "little")
        there = (1 << 8 * (len(raw) - 1 - WORD * whole)) - 1
        last = (rest ^ int(self._list[whole])) & int(self._shared[whole]) & there
        return not last and not np.bitwise_or.reduce(differ, initial=0)

    def _hash(self, words: Sequence[Words]) -> Words:
        """Multiplication wraps around; a word alone is its own hash."""
        if len(words) == 1:
            return words[0]
        found = np.zeros(len(words[0]), np.uint64)
        for word, factor in zip(words, self._factors, strict=True):
            found += word * factor
        return found


def _windows(differ: Sequence[int], length: int) -> list[int]:
    """Where words begin that hold all of these bytes, within a name."""
    found: list[int] = []
    for at in differ or [0]:
        if not found or at >= found[-1] + WORD:
            found.append(min(at, length - WORD))
    return found


def _tiled(item: np.ndarray[tuple[int], np.dtype[np.uint8]], count: int, first: int) -> Words:
    """One byte, an item so many times, and zeros to the end of the word and one more."""
    text = bytes([first]) + item.tobytes() * count
    return np.frombuffer(text + bytes(2 * WORD - len(text) % WORD), np.dtype("<u8")).astype(np.uint64)
