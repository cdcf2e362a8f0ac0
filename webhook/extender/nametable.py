"""The rows of thousands of node names in one go, straight from the bytes of their list.

A dictionary takes 0.3 ms for 5,000 names while all of its keys are in the CPU's cache, and 1.6 ms in a process that does
other things in between: every name is two jumps to memory that nobody has touched since the last request. Here the names
lie side by side in one array, quotes and all, and are hashed eight bytes at a time; in the end what stands between the commas
is compared with the names that it should be, byte by byte, so an answer is exact.

It knows one form only, which is Go's (``json.Marshal``: no blanks), and only lists of which every name is known and none has
a comma. Of any other it says nothing, and `namelists` takes the slow way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from tessera.placement.columns import IntArray
from webhook.extender.alikenames import WORD, AlikeNames
from webhook.extender.slots import Slots, Words, odd
from webhook.extender.wire import encode

_COMMA: Final = ord(",")
_LONGEST: Final = 4096
"""Bytes of a name in which its comma is looked for."""
_MOST_TIMES: Final = 2
"""A list with so many times the names that are known has some twice, or unknown; it is not worth the memory."""


class NameTable:
    """The names of all nodes; made anew when one comes or goes, of what is asked for (5 ms for 5,000)."""

    def __init__(self, rows: Mapping[str, int]) -> None:
        """Take the row of each name."""
        self._names = list(map(encode, rows))
        self._rows: IntArray = np.fromiter(rows.values(), np.int64, len(rows))
        self._lengths = np.fromiter(map(len, self._names), np.int64, len(rows))
        self._alike: dict[int, tuple[AlikeNames, IntArray]] = {}
        self._mixed: _MixedNames | None = None

    def rows(self, raw: bytes) -> IntArray | None:
        """The row of every name of a list, in its order.

        Returns:
            None where a name is not known, or where the list is not in the form that this reads.
        """
        step = raw.find(b",", 0, _LONGEST)
        if step > WORD and (len(raw) - 1) % step == 0:
            found = self._all_alike(raw, step - 1)
            if found is not None:
                return found
        if self._mixed is None:
            self._mixed = _MixedNames(self._names, self._rows)
        return self._mixed.rows(raw)

    def _all_alike(self, raw: bytes, length: int) -> IntArray | None:
        if length not in self._alike:
            there = (self._lengths == length).nonzero()[0]
            if not len(there):
                return None
            self._alike[length] = AlikeNames([self._names[at] for at in there.tolist()]), self._rows[there]
        names, rows = self._alike[length]
        found = names.places(raw)
        return None if found is None else rows.take(found)


class _MixedNames:
    """Names of any length."""

    def __init__(self, names: Sequence[bytes], there: IntArray) -> None:
        """Take names as JSON has them, and the row of each."""
        self._count = len(names)
        self._width = -(-max(map(len, names), default=1) // WORD) * WORD
        # For n bytes the words of a mask of n bytes.
        lengths = np.arange(self._width + 1)[:, None]
        self._masks: Words = np.where(np.arange(self._width) < lengths, 0xFF, 0).astype(np.uint8).view(np.uint64)
        padded = bytearray().join(name.ljust(self._width, b"\0") for name in names)
        self._words: Words = np.array(padded, np.uint8).view(np.uint64).reshape(len(names), self._width // WORD)
        self._rows = there
        random = np.random.default_rng(0)
        # Names of one cluster begin and end alike; what all of them share need not be hashed.
        differ = (self._words != self._words[:1]).any(axis=0).nonzero()[0]
        self._hashed = list(zip(differ.tolist(), odd(random, len(differ)), strict=True))
        self._slots = Slots(self._hash(self._words), random)

    def rows(self, raw: bytes) -> IntArray | None:
        """As `NameTable.rows`."""
        words = self._read(raw)
        if words is None:
            return None
        found = self._slots.find(self._hash(words))
        return self._rows.take(found) if np.array_equal(self._words.take(found, axis=0), words) else None

    def _read(self, raw: bytes) -> Words | None:
        """What stands between the commas, as words, zeros behind it."""
        if not self._count or len(raw) < len("[]") or raw[:1] != b"[" or raw[-1:] != b"]" or b"\0" in raw:
            return None
        text = np.frombuffer(raw + bytes(self._width), np.uint8)
        commas: npt.NDArray[np.intp] = (text == _COMMA).nonzero()[0]
        count = len(commas) + 1
        if count > _MOST_TIMES * self._count:
            return None
        starts, ends = np.empty(count, np.intp), np.empty(count, np.intp)
        starts[0], ends[-1] = 1, len(raw) - 1
        np.add(commas, 1, out=starts[1:])
        ends[:-1] = commas
        ends -= starts
        if ends.max() > self._width:
            return None
        # As many bytes from every place on as the longest name has; those that start a name are taken, each as one item.
        windows = np.ndarray((len(raw) + 1,), np.dtype((np.void, self._width)), buffer=text, strides=(1,))
        words: Words = windows[starts].view(np.uint64).reshape(count, -1)
        words &= self._masks.take(ends, axis=0)
        return words

    def _hash(self, words: Words) -> Words:
        """Eight bytes at a time; multiplication wraps around."""
        found = np.zeros(len(words), np.uint64)
        for column, factor in self._hashed:
            found += words[:, column] * factor
        return found
