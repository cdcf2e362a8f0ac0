"""What a pod prefers of nodes themselves: preferred node affinity and taints with PreferNoSchedule.

kube-scheduler scores these in its own plugins, but it skips scoring where an extender leaves one node; so the filter
honours them before it looks at GPUs. Weights and normalisation are kube-scheduler's defaults (pkg/scheduler/framework/
plugins/{nodeaffinity,tainttoleration} and apis/config/v1/default_plugins.go of 1.34): affinity 0..100 times 2, taints
100..0 times 3, each normalised over the nodes that fit. An order of units (IDC first) is written by admission as weights
of preferred affinity, so it needs nothing of its own here.

Not honoured, because only kube-scheduler sees it: inter-pod affinity, topology spread, image locality, balanced resources.
With `placement.answer: all` kube-scheduler's own scores decide instead.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
import numpy as np

from tessera.model.node import Node, Taint
from tessera.model.pod import NodeSelectorTerm, PreferredTerm, SelectorRequirement, Toleration
from tessera.placement.columns import IntArray, grown
from webhook.extender.wire import SchedulingPod

_AFFINITY_WEIGHT: Final = 2
_TAINT_WEIGHT: Final = 3
AT_ONCE: Final = 500
"""Nodes matched before others get the loop: 5 us for each term."""
_MOST_KEPT: Final = 64
_PREFER: Final = "PreferNoSchedule"
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
_CORDON: Final = Taint(key="node.kubernetes.io/unschedulable", effect="NoSchedule")


class _Key(msgspec.Struct, frozen=True):
    terms: tuple[PreferredTerm, ...]
    tolerations: tuple[Toleration, ...]


class _Row:
    """For one key, by ledger row: the sum of weights and the number of taints not tolerated."""

    __slots__ = ("affinity", "pending", "seen", "taints")

    def __init__(self) -> None:
        self.seen = -1
        self.pending: list[int] = []
        self.affinity = np.zeros(0, np.int64)
        self.taints = np.zeros(0, np.int64)


class Preferences:
    """What is known of the nodes, and the scores of pods' preferences that came lately."""

    def __init__(self) -> None:
        """No nodes yet."""
        self._facts: dict[int, tuple[str, Mapping[str, str], tuple[Taint, ...]]] = {}
        self._version = np.zeros(0, np.int64)
        self._latest = 0
        self._tainted: set[int] = set()
        self._rows: OrderedDict[_Key, _Row] = OrderedDict()

    def set(self, row: int, node: Node) -> None:
        """Say what a node's labels and taints are."""
        taints = tuple(taint for taint in node.spec.taints or () if taint.effect == _PREFER)
        facts = (node.metadata.name, node.metadata.labels or {}, taints)
        if self._facts.get(row) == facts:
            return
        self._facts[row] = facts
        (self._tainted.add if taints else self._tainted.discard)(row)
        if row >= len(self._version):
            self._version = grown(self._version, 2 * row + 16)
        self._latest += 1
        self._version[row] = self._latest

    def forget(self, row: int) -> None:
        """A node is gone."""
        self._facts.pop(row, None)
        self._tainted.discard(row)

    def prepare(self, pod: SchedulingPod) -> bool:
        """Work out a part of what `scores` needs; True once the rest is little enough to be done at once."""
        key = self._key(pod)
        if key is None:
            return True
        row = self._find(key)
        self._work(key, row, AT_ONCE)
        return not row.pending

    def scores(self, pod: SchedulingPod, rows: IntArray) -> IntArray | None:
        """Score these nodes for a pod, the higher the better; None where it makes no difference.

        Args:
            pod: with its affinity and tolerations.
            rows: ledger rows of the nodes that fit; normalised among them.
        """
        key = self._key(pod)
        if key is None:
            return None
        found = self._find(key)
        self._work(key, found, len(self._version))
        affinity, taints = found.affinity[rows], found.taints[rows]
        most, worst = int(affinity.max(initial=0)), int(taints.max(initial=0))
        score = np.full(len(rows), 100 * _TAINT_WEIGHT, np.int64)
        if worst:
            score = _TAINT_WEIGHT * (100 - 100 * taints // worst)
        if most:
            score = score + _AFFINITY_WEIGHT * (100 * affinity // most)
        return score

    def _key(self, pod: SchedulingPod) -> _Key | None:
        terms = _terms(pod)
        if not terms and not self._tainted:
            return None
        return _Key(terms, tuple(t for t in pod.spec.tolerations or () if t.effect in (None, "", _PREFER)))

    def _find(self, key: _Key) -> _Row:
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = _Row()
            if len(self._rows) > _MOST_KEPT:
                self._rows.popitem(last=False)
        else:
            self._rows.move_to_end(key)
        return row

    def _work(self, key: _Key, row: _Row, most: int) -> None:
        """Match so many of the nodes that have changed since."""
        if row.seen != self._latest:
            changed = np.flatnonzero(self._version > row.seen).tolist()
            row.pending = sorted({*row.pending, *changed})
            row.seen = self._latest
        if len(row.affinity) < len(self._version):
            row.affinity = grown(row.affinity, len(self._version))
            row.taints = grown(row.taints, len(self._version))
        now, row.pending = row.pending[:most], row.pending[most:]
        for each in now:
            facts = self._facts.get(each)
            if facts is not None:
                name, labels, taints = facts
                row.affinity[each] = sum(t.weight for t in key.terms if matches(t.preference, name, labels))
                row.taints[each] = sum(not tolerated(taint, key.tolerations) for taint in taints)


def tolerates_cordon(pod: SchedulingPod) -> bool:
    """Whether the pod may go to a cordoned node, as DaemonSet pods do."""
    return tolerated(_CORDON, pod.spec.tolerations or ())


def matches(term: NodeSelectorTerm, name: str, labels: Mapping[str, str]) -> bool:
    """Whether a node matches a term; an empty term matches none (nodeaffinity.isEmptyNodeSelectorTerm)."""
    if not term.match_expressions and not term.match_fields:
        return False
    fields = {"metadata.name": name}
    return all(_holds(each, labels.get(each.key)) for each in term.match_expressions or ()) and all(
        each.key in fields and _holds(each, fields[each.key]) for each in term.match_fields or ()
    )


def tolerated(taint: Taint, tolerations: Iterable[Toleration]) -> bool:
    """Whether one of the tolerations covers the taint (core/v1 Toleration.ToleratesTaint)."""
    return any(
        (not each.effect or each.effect == taint.effect)
        and (not each.key or each.key == taint.key)
        and (
            each.operator == "Exists"
            or (each.operator in (None, "", "Equal") and (each.value or "") == (taint.value or ""))
        )
        for each in tolerations
    )


def _terms(pod: SchedulingPod) -> tuple[PreferredTerm, ...]:
    affinity = pod.spec.affinity.node_affinity if pod.spec.affinity else None
    return tuple(term for term in (affinity.preferred if affinity else None) or () if term.weight)


def _holds(requirement: SelectorRequirement, value: str | None) -> bool:
    values = requirement.values or ()
    match requirement.operator:
        case "In":
            return value is not None and value in values
        case "NotIn":
            return value is None or value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt":
            return _compares(value, values, above=requirement.operator == "Gt")
        case _:
            return False


def _compares(value: str | None, values: tuple[str, ...], *, above: bool) -> bool:
    if value is None or len(values) != 1 or not (_INTEGER.fullmatch(value) and _INTEGER.fullmatch(values[0])):
        return False
    return int(value) > int(values[0]) if above else int(value) < int(values[0])
