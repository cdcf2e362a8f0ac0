"""The rows of thousands of node names in one go, straight from the bytes of their list.

A dictionary takes 0.3 ms for 5,000 names while all of its keys are in the CPU's cache, and 1.6 ms in a process that does
other things in between: every name is two jumps to memory that nobody has touched since the last request. Here the names
lie side by side in one array, quotes and all, and are hashed eight bytes at a time; in the end what stands between the commas
is compared with the names that it should be, byte by byte, so an answer is exact.

It knows one form only, which is Go's (``json.Marshal``: no blanks), and only lists of which every name is known and none has
a comma. Of any other it says nothing, and `namelists` takes the slow way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tessera.placement.columns import IntArray
from webhook.extender.wire import encode

_Words = npt.NDArray[np.uint64]

_COMMA: Final = ord(",")
_WORD: Final = 8
_SPARSE: Final = 4
"""Slots for each name, at least."""
_MOST_SLOTTINGS: Final = 8
"""One name of nine finds its slot taken in the first, one of a hundred in the second; eight are never needed."""
_MOST_TIMES: Final = 2
"""A list with so many times the names that are known has some twice, or unknown; it is not worth the memory."""


class _Slotting(NamedTuple):
    """A hash table without chains: whoever finds its slot taken is in the next one.

    Attributes:
        factor: tells it from the others.
        shift: leaves the upper bits.
        rows: whose slot it is; 0 where it is nobody's, which comparing finds out.
    """

    factor: np.uint64
    shift: np.uint64
    rows: IntArray

    def slots(self, hashes: _Words) -> IntArray:
        """Where names with these hashes belong; multiplication wraps around."""
        return ((hashes * self.factor) >> self.shift).astype(np.int64)


class NameTable:
    """The names of all nodes; made anew when one comes or goes (2 ms for 5,000)."""

    def __init__(self, rows: Mapping[str, int]) -> None:
        """Take the row of each name."""
        names = list(map(encode, rows))
        there: IntArray = np.fromiter(rows.values(), np.int64, len(rows))
        self._count = len(rows)
        self._width = -(-max(map(len, names), default=1) // _WORD) * _WORD
        # For n bytes the words of a mask of n bytes.
        lengths = np.arange(self._width + 1)[:, None]
        self._masks: _Words = np.where(np.arange(self._width) < lengths, 0xFF, 0).astype(np.uint8).view(np.uint64)
        padded = bytearray().join(name.ljust(self._width, b"\0") for name in names)
        # By row; one that is nobody's has bytes that no text has.
        self._words: _Words = np.full((there.max(initial=0) + 1, self._width // _WORD), ~np.uint64(0))
        self._words[there] = np.array(padded, np.uint8).view(np.uint64).reshape(len(names), self._words.shape[1])
        self._random = np.random.default_rng(0)
        # Names of one cluster begin and end alike; what all of them share need not be hashed.
        differ = (self._words[there] != self._words[there[:1]]).any(axis=0).nonzero()[0]
        self._hashed = list(zip(differ.tolist(), self._odd(len(differ)), strict=True))
        self._hashes = self._hash(self._words)
        self._slottings = self._place(there)

    def rows(self, raw: bytes) -> IntArray | None:
        """The row of every name of a list, in its order.

        Returns:
            None where a name is not known, or where the list is not in the form that this reads.
        """
        words = self._read(raw)
        if words is None:
            return None
        hashes = self._hash(words)
        found: IntArray = np.zeros(len(words), np.int64)
        left: IntArray | None = None
        for slotting in self._slottings:
            wanted = hashes if left is None else hashes.take(left)
            rows = slotting.rows.take(slotting.slots(wanted))
            missed = (self._hashes.take(rows) != wanted).nonzero()[0]
            if left is None:
                found, left = rows, missed
            else:
                found[left] = rows
                left = left.take(missed)
            if not len(left):
                break
        return found if np.array_equal(self._words.take(found, axis=0), words) else None

    def _read(self, raw: bytes) -> _Words | None:
        """What stands between the commas, as words, zeros behind it."""
        if len(raw) < len("[]") or raw[:1] != b"[" or raw[-1:] != b"]" or b"\0" in raw:
            return None
        text = np.frombuffer(raw + bytes(self._width), np.uint8)
        commas = _commas(raw, text)
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
        words: _Words = windows[starts].view(np.uint64).reshape(count, -1)
        words &= self._masks.take(ends, axis=0)
        return words

    def _hash(self, words: _Words) -> _Words:
        """Eight bytes at a time; multiplication wraps around."""
        found = np.zeros(len(words), np.uint64)
        for column, factor in self._hashed:
            found += words[:, column] * factor
        return found

    def _place(self, rows: IntArray) -> list[_Slotting]:
        """Give every row a slot."""
        found: list[_Slotting] = []
        while len(rows) and len(found) < _MOST_SLOTTINGS:
            bits = (_SPARSE * len(rows)).bit_length()
            slotting = _Slotting(self._odd(1)[0], np.uint64(64 - bits), np.zeros(1 << bits, np.int64))
            slots = slotting.slots(self._hashes[rows])
            slotting.rows[slots] = rows
            rows = rows[slotting.rows[slots] != rows]
            found.append(slotting)
        return found

    def _odd(self, count: int) -> _Words:
        return self._random.integers(0, 1 << 63, count, np.uint64) * np.uint64(2) + np.uint64(1)


def _commas(raw: bytes, text: npt.NDArray[np.uint8]) -> npt.NDArray[np.intp]:
    """Where commas are; mostly names are as long as each other, then it takes a look at each place where one must be."""
    step = raw.find(b",")
    if step > 0 and (len(raw) - 1) % step == 0:
        there: npt.NDArray[np.intp] = np.arange(step, len(raw) - 1, step)
        if (text[there] == _COMMA).all():
            return there
    found: npt.NDArray[np.intp] = (text == _COMMA).nonzero()[0]
    return found
