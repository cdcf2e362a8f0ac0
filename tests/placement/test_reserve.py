"""Whole nodes are kept for pods that need one: as many as are to be expected, emptied where too few are idle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.model.config import Measure
from tessera.placement.choose import best
from tessera.placement.claims import Claim
from tessera.placement.gpustate import Place
from tessera.placement.ledger import Ledger
from tessera.placement.pricing import Pricing
from tessera.placement.reasons import Reason
from tessera.placement.scores import Scores
from tessera.placement.shape import shape_of
from tessera.placement.stays import Stays
from tessera.placement.wishes import Wishes
from tessera.placement.workload import Demand, Workload

SMALL = Demand(cpu=1000, gpus=1, units=8)
GANG = Demand(cpu=12_000, gpus=4, percent=100, compute=100)


class Rig:
    """Nodes of four GPUs and 16 cores, n0 on; pods of eight units, and pods that need a whole node."""

    def __init__(self, gpu, inventory, ask, unit, *, nodes, gangs=0.0, half_life=20_000):
        self.ledger = Ledger()
        self.workload = Workload()
        self.workload.expect([(SMALL, 100.0), *([(GANG, gangs)] if gangs else [])])
        measure = Measure(prior=0, reserve=0, half_life=half_life)
        self.scores = Scores(self.ledger.columns, Pricing(self.ledger.columns, self.workload, measure))
        self.ask = ask
        self.small = shape_of([ask(units=8)], unit=unit, wishes=Wishes(), cpu=1000)
        self.gang = shape_of([ask(gpus=4, whole=True)], unit=unit, wishes=Wishes(), cpu=12_000)
        for n in range(nodes):
            self.ledger.set_node(f"n{n}", inventory(*(gpu(10 * n + g) for g in range(4))), cpu=16_000)
        self.scores.row(self.small)

    def book(self, key, node, *gpus, cpu=1000):
        n = int(node[1:])
        for g in gpus:
            places = {"main": (Place(f"{10 * n + g:012x}"),)}
            self.ledger.book(f"{key}{g}", node, Claim((self.ask(units=8),), places))
        self.ledger.use_cpu(key, node, cpu)

    def offered(self):
        """The nodes among which a small pod's is chosen."""
        rows = np.array([self.ledger.row(name) for name in self.ledger])
        found = self.scores.unreserved(rows, running=self.ledger.gangs(4), stays=self.ledger.stays)
        return {self.ledger.names[row] for row in found}

    def refuse(self, *keys):
        for key in keys:
            self.scores.pricing.refused(key, self.gang)


@pytest.fixture
def rig(gpu, inventory, ask, unit):
    def build(**options):
        return Rig(gpu, inventory, ask, unit, **options)

    return build


def test_idle_nodes_are_kept_for_pods_that_need_whole_ones(gpu, inventory, ask, unit):
    ledger = Ledger()
    for n in range(3):
        ledger.set_node(f"n{n}", inventory(*(gpu(10 * n + g) for g in range(4))), cpu=16_000)
    workload = Workload()
    workload.expect([(Demand(gpus=4, percent=100, compute=100), 10.0), (Demand(gpus=1, units=8), 10.0)])
    scores = Scores(ledger.columns, Pricing(ledger.columns, workload))

    def chosen(*asks):
        row = scores.row(shape_of(asks, unit=unit, wishes=Wishes()))
        return ledger.names[best(ledger, scores, row, np.flatnonzero(row.fits))]

    ledger.book("first", "n2", Claim((ask(units=8),)))
    assert chosen(ask(units=8)) == "n2"
    ledger.set_node("n2", None, closed=Reason.DRAINING)
    assert chosen(ask(units=8)) in {"n0", "n1"}
    assert chosen(ask(gpus=4, whole=True)) in {"n0", "n1"}


def test_who_was_refused_keeps_one_more_until_it_is_placed_or_long_forgotten(rig):
    rig = rig(nodes=2, half_life=500)
    rig.book("small", "n0", 0)
    assert rig.offered() == {"n0", "n1"}
    rig.scores.pricing.refused("a", rig.small)
    assert rig.offered() == {"n0", "n1"}, "it needs no whole node"
    rig.refuse("a", "a")
    assert rig.offered() == {"n0"}
    rig.scores.pricing.placed("a")
    assert rig.offered() == {"n0", "n1"}
    rig.refuse("b")
    for _ in range(501):
        rig.workload.saw(SMALL)
    assert rig.offered() == {"n0", "n1"}


def test_where_too_few_are_idle_the_emptiest_run_empty(rig):
    rig = rig(nodes=4)
    for name, gpus in (("n0", (0, 1)), ("n1", (0,)), ("n2", (0, 1, 2)), ("n3", (0,))):
        rig.book(name, name, *gpus)
    assert rig.offered() == {"n0", "n1", "n2", "n3"}
    rig.refuse("a")
    assert rig.offered() == {"n0", "n2", "n3"}, "of equals the first"
    rig.refuse("b")
    assert rig.offered() == {"n0", "n2"}
    rig.ledger.use_cpu("more", "n1", 2000)
    rig.scores.pricing.placed("b")
    assert rig.offered() == {"n0", "n1", "n2"}, "of equals the one with most CPU is kept"


def test_what_fits_nowhere_else_goes_to_the_fullest_of_them(rig):
    rig = rig(nodes=3)
    for name, gpus in (("n0", (0,)), ("n1", (0, 1, 2)), ("n2", (0, 1))):
        rig.book(name, name, *gpus)
    rig.refuse("a", "b", "c", "d")
    assert rig.offered() == {"n1"}
    rig.ledger.set_node("n1", None, closed=Reason.DRAINING)
    assert rig.offered() >= {"n1"}, "a node that is closed is never offered anyway, and keeps no place"


def test_idle_nodes_are_the_last(rig):
    rig = rig(nodes=2)
    rig.refuse("a", "b", "c")
    assert rig.offered() == {"n0", "n1"}


def test_an_idle_node_whose_cpu_is_gone_is_none(rig):
    rig = rig(nodes=3, gangs=1.0)
    rig.book("n2", "n2", 0)
    assert rig.offered() == {"n2"} | {"n0", "n1"}
    rig.refuse("a", "b")
    assert rig.offered() == {"n2"}
    rig.ledger.use_cpu("cpu", "n1", 5000)
    rig.scores.pricing.placed("b")
    assert rig.offered() == {"n1", "n2"}, "one that pods can use is enough for the one refused"
    rig.refuse("b")
    assert rig.offered() == {"n2"}, "it is the next to run empty"


def test_a_node_that_has_not_the_cpu_is_not_kept(rig, gpu, inventory):
    rig = rig(nodes=2, gangs=1.0)
    rig.ledger.set_node("n1", inventory(*(gpu(10 + g) for g in range(4))), cpu=8000)
    rig.refuse("a", "b")
    assert rig.offered() == {"n1"}


def test_who_stays_longer_is_expected_more(rig):
    rig = rig(nodes=40, gangs=5.0)
    tables = rig.scores.pricing.tables
    even, cpu = tables.whole_nodes(Stays())
    assert cpu == 12_000
    # Shares come to 100 / 8 GPUs and whole nodes to 20.
    assert even == pytest.approx(40 * 4 * 5 / (100 / 8 + 20))
    stays = Stays()
    stays.came(4)
    for _ in range(200):
        stays.came(0)
        stays.went(0)
    stays.came(4)
    stays.went(4)
    assert stays.factor(4) > 10
    assert stays.factor(0) < 1.1
    longer, _ = tables.whole_nodes(stays)
    assert 1.5 * even < longer <= 40


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_what_is_kept_follows_every_change(gpu, inventory, ask, unit, data):
    rig = Rig(gpu, inventory, ask, unit, nodes=4, gangs=1.0)
    rig.refuse("a", "b")
    for step in range(data.draw(st.integers(1, 12))):
        name = f"n{data.draw(st.integers(0, 3))}"
        match data.draw(st.sampled_from(["book", "release", "cpu", "close", "open", "drop", "look"])):
            case "book":
                rig.book(f"p{step}-", name, data.draw(st.integers(0, 3)))
            case "release":
                rig.ledger.release(f"p{data.draw(st.integers(0, step))}-{data.draw(st.integers(0, 3))}")
            case "cpu":
                rig.ledger.use_cpu(
                    f"c{data.draw(st.integers(0, step))}", name, data.draw(st.sampled_from([0, 3000, 9000]))
                )
            case "close":
                rig.ledger.set_node(name, None, closed=Reason.DRAINING)
            case "drop":
                rig.ledger.drop_node(name)
            case "open":
                n = int(name[1:])
                rig.ledger.set_node(name, inventory(*(gpu(10 * n + g) for g in range(4))), cpu=16_000)
            case _:
                rig.offered()
    anew = Scores(rig.ledger.columns, Pricing(rig.ledger.columns, rig.workload, Measure(prior=0, reserve=0)))
    for key in ("a", "b"):
        anew.pricing.refused(key, rig.gang)
    kept = rig.offered()
    rows = np.array([rig.ledger.row(name) for name in rig.ledger], np.int64)
    found = anew.unreserved(rows, running=0, stays=rig.ledger.stays)
    if rig.scores.pricing.tables.whole_nodes(rig.ledger.stays) == anew.pricing.tables.whole_nodes(rig.ledger.stays):
        assert kept == {rig.ledger.names[row] for row in found}
