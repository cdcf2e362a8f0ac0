"""What pods prefer of thousands of nodes is worked out in parts, and comes out as if at once."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from tessera.model.node import Node
from webhook.extender.preferences import AT_ONCE, Preferences
from webhook.extender.wire import SchedulingPod

NODES = 2 * AT_ONCE + 7


def node(number, zone, taints=()):
    meta = {"name": f"n{number}", "labels": {"zone": zone}}
    return msgspec.convert({"metadata": meta, "spec": {"taints": list(taints)}}, Node)


@pytest.fixture
def known():
    found = Preferences()
    for number in range(NODES):
        found.set(number, node(number, "a" if number % 3 else "b"))
    return found


@pytest.fixture
def picky():
    term = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]}
    preferred = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 10, "preference": term}]}
    return msgspec.convert({"spec": {"affinity": {"nodeAffinity": preferred}}}, SchedulingPod)


def test_in_parts_and_at_once_are_the_same(known, picky):
    rows = np.arange(NODES)
    other = msgspec.structs.replace(picky, spec=msgspec.structs.replace(picky.spec, scheduler_name="x"))
    steps = 1
    while not known.prepare(picky):
        steps += 1
    assert steps == 3
    prepared = known.scores(picky, rows)
    fresh = Preferences()
    for number in range(NODES):
        fresh.set(number, node(number, "a" if number % 3 else "b"))
    assert prepared.tolist() == fresh.scores(other, rows).tolist()
    assert prepared[0] > prepared[1]


def test_what_changes_in_the_middle_counts(known, picky):
    assert not known.prepare(picky)
    known.set(0, node(0, "a"))
    known.set(1, node(1, "b"))
    while not known.prepare(picky):
        continue
    found = known.scores(picky, np.arange(NODES))
    assert found[1] > found[0]


def test_who_prefers_nothing_needs_no_work(known):
    plain = SchedulingPod()
    assert known.prepare(plain)
    assert known.scores(plain, np.arange(NODES)) is None
    known.set(5, node(5, "a", [{"key": "slow", "effect": "PreferNoSchedule"}]))
    assert not known.prepare(plain)
    found = known.scores(plain, np.arange(NODES))
    assert found[5] < found[4]
