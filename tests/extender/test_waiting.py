"""Who waits: by kind, by how long, and no longer than it lasts."""

from __future__ import annotations

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from tessera.model.names import names
from webhook.extender import waiting as module
from webhook.extender.keeping import kept_of
from webhook.extender.metrics import Metrics
from webhook.extender.waiting import LATELY, Waiting
from webhook.extender.wire import SchedulingPod


@pytest.fixture
def listed(rig):
    """Lists of names, as the filter makes them."""
    from webhook.extender.namelists import NameList

    return lambda *of: NameList.of(list(of), rig.cluster.ledger)


@pytest.fixture
def waiting(clock):
    return Waiting(clock=clock, metrics=Metrics(CollectorRegistry()))


@pytest.fixture
def reject(waiting, pod):
    def reject(name, where, *, units=1, **spec):
        made = msgspec.convert(pod(name, units=units, spec=spec), SchedulingPod)
        waiting.rejected(made, kept_of(made, names()), where)

    return reject


def keys(pods):
    return [pod.name for pod in pods]


async def test_pods_that_ask_the_same_of_the_same_nodes_are_one_kind(waiting, reject, listed, clock):
    all_nodes = listed("n1", "n2")
    for number in range(5):
        reject(f"p{number}", all_nodes)
        clock.now += 1
    reject("other", all_nodes, units=2)
    reject("high", all_nodes, priority=5)
    reject("never", all_nodes, preemptionPolicy="Never")
    reject("elsewhere", listed("n2"))
    kinds = list(waiting.kinds())
    assert len(kinds) == 5
    assert kinds[0].priority == 5
    large = max(kinds, key=lambda kind: len(waiting.of(kind, 10)))
    reject("p0", all_nodes)
    assert keys(waiting.of(large, 3)) == ["p0", "p1", "p2"], "who was rejected again still waits since the first time"
    waiting.settled("uid-p1")
    assert keys(waiting.of(large, 3)) == ["p0", "p2", "p3"]
    for name in ("p0", "p2", "p3", "p4", "other", "high", "never", "elsewhere"):
        waiting.settled(f"uid-{name}")
    assert (len(waiting), list(waiting.kinds())) == (0, [])
    assert waiting.of(large, 3) == []


async def test_who_was_not_asked_for_again_is_forgotten(waiting, reject, listed, clock):
    all_nodes = listed("n1")
    reject("old", all_nodes)
    clock.now += LATELY - 1
    reject("new", all_nodes)
    clock.now += 2
    (kind,) = waiting.kinds()
    assert keys(waiting.of(kind, 9)) == ["new"]


async def test_a_promised_node_alone_does_not_narrow_where_it_may_go(waiting, reject, listed):
    all_nodes = listed("n1", "n2", "n3")
    reject("p", all_nodes)
    reject("p", listed("n2"))
    assert waiting.get("uid-p").listed.names == ("n1", "n2", "n3")
    fewer = listed("n1", "n2")
    reject("p", fewer)
    assert waiting.get("uid-p").listed.names == ("n1", "n2")


async def test_there_is_a_most(waiting, reject, listed, monkeypatch):
    monkeypatch.setattr(module, "MOST_WAITING", 3)
    all_nodes = listed("n1")
    for number in range(5):
        reject(f"p{number}", all_nodes)
    assert len(waiting) == 3
    (kind,) = waiting.kinds()
    assert keys(waiting.of(kind, 9)) == ["p2", "p3", "p4"]


async def test_the_order_in_which_nodes_are_named_makes_no_kind(waiting, reject, listed):
    """kube-scheduler looks at nodes with many hands at once, so no two of its lists have one order."""
    reject("a", listed("n1", "n2", "n3"))
    reject("b", listed("n3", "n1", "n2"))
    (kind,) = waiting.kinds()
    assert keys(waiting.of(kind, 9)) == ["a", "b"]
    assert waiting.get("uid-a").listed is waiting.get("uid-b").listed, "it is kept once"
    assert ["n2" in kind.listed, "n4" in kind.listed, 7 in kind.listed] == [True, False, False]


async def test_there_is_a_most_of_different_lists(waiting, reject, listed, monkeypatch):
    """40 kB each at 5,000 nodes."""
    monkeypatch.setattr(module, "MOST_LISTS", 3)
    for number in range(9):
        reject(f"p{number}", listed("n1", f"n{number + 2}"))
    assert [waiting.get(f"uid-p{number}") is not None for number in range(9)] == [False] * 6 + [True] * 3
    for number in range(9):
        reject(f"q{number}", listed("n1", "n2"))
    assert len(waiting) == 11
