"""A reason for every name: thousands of nodes, of which most say one of a few things.

They are told apart by row and written as JSON at once: to fill a dictionary of 5,000 names and encode it takes five times as
long as to join bytes that are there already. Where one reason comes with many amounts, the largest speaks for all:
kube-scheduler joins the texts in one event, and cuts that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import compress

import msgspec
import numpy as np
import numpy.typing as npt

from tessera.placement.columns import IntArray
from tessera.placement.ledger import Ledger
from tessera.placement.reasons import Reason, Rejection, texts
from tessera.placement.scores import ShapeRow
from webhook.extender.namelists import NameList
from webhook.extender.wire import NOTHING, encode

_Told = dict[Rejection, list[bytes]]
"""By what is said, the keys of those of whom it is said."""


class Keys:
    """The names of a ledger's nodes as JSON has them in front of a text."""

    def __init__(self, ledger: Ledger) -> None:
        """Write the names of these nodes, anew when one comes or goes."""
        self._ledger = ledger
        self._of = -1
        self._keys: npt.NDArray[np.object_] = np.zeros(0, np.object_)

    def on(self, rows: IntArray) -> list[bytes]:
        """Of the nodes in these rows of the ledger."""
        if self._of != self._ledger.nodes_changed:
            self._keys = np.zeros(self._ledger.columns.rows, np.object_)
            for name, row in self._ledger.rows.items():
                self._keys[row] = _key(name)
            self._of = self._ledger.nodes_changed
        found: list[bytes] = self._keys.take(rows).tolist()
        return found


class Verdicts(msgspec.Struct):
    """What became of each name.

    Attributes:
        fitting: nodes that take the pod, in the order of their names in the list.
        now: why the others don't, where they may later; a JSON object of texts by name. never: where they never will.
        counts: nodes by reason, none of which is 0.
    """

    fitting: list[str] = []
    now: msgspec.Raw = NOTHING
    never: msgspec.Raw = NOTHING
    counts: Counter[Reason] = msgspec.field(default_factory=Counter)

    @property
    def may_later(self) -> bool:
        """Whether any of the others may take the pod later."""
        return not all(reason.never for reason in self.counts)


def verdicts(
    row: ShapeRow, listed: NameList, kept_from: Mapping[str, Rejection], keys: Keys, *, every: bool
) -> Verdicts:
    """Tell it for all names.

    Args:
        row: of the shape, as of now.
        listed: the names.
        kept_from: nodes whose room is kept for others, which no row knows.
        keys: of the names' ledger.
        every: nodes that fit are taken; else none of them turned out to, since its slices can't be arranged there.
    """
    told: _Told = {}
    code = row.code
    fits = listed.known[code[listed.known] == 0]
    kept = {at: kept_from[name] for at in fits.tolist() if (name := listed.name(at)) in kept_from} if kept_from else {}
    for at, why in kept.items():
        told.setdefault(why, []).extend(keys.on(np.array([at])))
    taken = fits[~np.isin(fits, list(kept))] if kept else fits
    if not every:
        _tell(told, Rejection(Reason.ARRANGEMENT), keys.on(taken))
    # The row looks for what is stale whenever it is asked; of hundreds of amounts that are one reason it is asked once.
    profile, need, have = row.profile, row.need, row.have
    reasons: dict[tuple[int, int], Rejection] = {}
    for rows in _alike(listed.known[code[listed.known] != 0], (code, profile, need, have)):
        at = int(rows[0])
        kind = int(code[at]), int(profile[at])
        if kind not in reasons:
            reasons[kind] = row.rejection(at)
        _tell(told, reasons[kind]._replace(need=int(need[at]), have=int(have[at])), keys.on(rows))
    _tell(told, Rejection(Reason.UNKNOWN_NODE), list(map(_key, listed.unknown)))
    found = _written(told)
    if every and len(taken):
        found.fitting = list(compress(listed.names, np.isin(listed.rows, taken)))
    return found


def one_verdict(listed: NameList, why: Rejection, keys: Keys) -> Verdicts:
    """The same of all names."""
    return _written({why: [*keys.on(listed.known), *map(_key, listed.unknown)]})


def _alike(rows: IntArray, columns: Sequence[IntArray]) -> Iterator[IntArray]:
    """Rows by what all of these columns say of them."""
    if not len(rows):
        return
    for at, column in enumerate(columns):
        values = column.take(rows)
        if (values == values[0]).all():
            continue
        order = values.argsort(kind="stable")
        values = values.take(order)
        for part in np.split(rows.take(order), np.flatnonzero(values[1:] != values[:-1]) + 1):
            yield from _alike(part, columns[at + 1 :])
        return
    yield rows


def _tell(told: _Told, why: Rejection, keys: list[bytes]) -> None:
    if keys:
        told.setdefault(why, []).extend(keys)


def _written(told: _Told) -> Verdicts:
    found = Verdicts()
    now: list[bytes] = []
    never: list[bytes] = []
    for why, text in texts(told).items():
        found.counts[why.reason] += len(told[why])
        end = encode(text)
        (never if why.reason.never else now).append((end + b",").join(told[why]) + end)
    found.now, found.never = _object(now), _object(never)
    return found


def _object(members: list[bytes]) -> msgspec.Raw:
    return msgspec.Raw(b"{%b}" % b",".join(members)) if members else NOTHING


def _key(name: str) -> bytes:
    return encode(name) + b":"
