"""A reason for every name: thousands of nodes, of which most say one of a few things.

Worked out once per distinct reason and its numbers, so that refusing on 5,000 nodes takes 2 ms and not 20. Where one reason
comes with many amounts, the largest speaks for all: kube-scheduler joins the texts in one event, and cuts that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tessera.placement.reasons import Reason, Rejection, texts
from tessera.placement.scores import ShapeRow
from webhook.extender.namelists import NameList

_Key = tuple[int, int, int, int]
"""Code, need, have and profile, as a `ShapeRow` has them; code 0 is a node that fits."""
_UNKNOWN: Final[_Key] = (-1, 0, 0, 0)


@dataclass(slots=True)
class Verdicts:
    """What became of each name.

    Attributes:
        fitting: nodes that take the pod.
        now: why the others don't, where they may later. never: where they never will.
        counts: nodes by reason.
    """

    fitting: list[str] = field(default_factory=list)
    now: dict[str, str] = field(default_factory=dict)
    never: dict[str, str] = field(default_factory=dict)
    counts: Counter[Reason] = field(default_factory=Counter)


def verdicts(row: ShapeRow, listed: NameList, kept_from: Mapping[str, Rejection], *, every: bool) -> Verdicts:
    """Tell it for all names.

    Args:
        row: of the shape, as of now.
        listed: the names.
        kept_from: nodes whose room is kept for others, which no row knows.
        every: nodes that fit are taken; else none of them turned out to, since its slices can't be arranged there.
    """
    rows = listed.rows.tolist()
    numbers = (row.code, row.need, row.have, row.profile)
    keys: list[_Key] = list(zip(*(column[listed.rows].tolist() for column in numbers), strict=True))
    if len(listed.known) < len(rows):
        keys = [key if at >= 0 else _UNKNOWN for key, at in zip(keys, rows, strict=True)]
    found = Verdicts()
    rejections: dict[_Key, Rejection] = {}
    several = Counter(keys)
    for key, at in dict(zip(keys, rows, strict=True)).items():
        if key[0] == 0 and every:
            continue
        rejections[key] = rejection = _rejection(row, key, at)
        found.counts[rejection.reason] += several[key]
    told = texts(rejections.values())
    now = {key: told[rejection] for key, rejection in rejections.items() if not rejection.reason.never}
    never = {key: told[rejection] for key, rejection in rejections.items() if rejection.reason.never}
    found.now = _named(listed.names, keys, now)
    found.never = _named(listed.names, keys, never)
    if every:
        found.fitting = [
            name for name, key in zip(listed.names, keys, strict=True) if key[0] == 0 and name not in kept_from
        ]
    fits = {name for name, key in zip(listed.names, keys, strict=True) if key[0] == 0} if kept_from else set()
    for name in fits & kept_from.keys():
        found.now[name] = kept_from[name].text
        found.counts[kept_from[name].reason] += 1
        if not every:
            found.counts[Reason.ARRANGEMENT] -= 1
    return found


def _rejection(row: ShapeRow, key: _Key, at: int) -> Rejection:
    if key == _UNKNOWN:
        return Rejection(Reason.UNKNOWN_NODE)
    return row.rejection(at) if key[0] else Rejection(Reason.ARRANGEMENT)


def _named(names: list[str], keys: list[_Key], texts: Mapping[_Key, str]) -> dict[str, str]:
    """The texts by name, for the keys that have one, in the order of the names."""
    if not texts:
        return {}
    found = dict(zip(names, map(texts.get, keys), strict=True))
    return {name: text for name, text in found.items() if text is not None}
