"""Whatever happens in whichever order, the ledger is what counting all objects anew gives; and nothing is overfilled."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.model.plan import PlannedSlice
from tessera.placement.claims import Claim
from tessera.placement.fit import place
from tessera.placement.gpustate import Place
from tessera.placement.holding import Holding, free_percent, free_units, within
from tessera.placement.ledger import Ledger
from tessera.placement.nodebook import MOST_GPUS
from tessera.placement.reasons import Reason, Rejection
from tessera.placement.shape import shape_of
from tessera.placement.views import View
from tessera.placement.wishes import Wishes

NODES = ("n1", "n2")
PODS = tuple(f"p{n}" for n in range(5))


@pytest.fixture
def grown():
    return []


@pytest.fixture
def ledger(grown):
    return Ledger(grew=grown.append)


def at(number, container="main", instance=None):
    return {container: (Place(f"{number:012x}", instance),)}


def held(ledger, name="n1"):
    return {int(state.gpu.id, 16): state.held for state in ledger.states(name)}


def test_booking_is_idempotent_and_so_is_releasing(ledger, gpu, inventory, ask):
    ledger.set_node("n1", inventory(gpu(1), gpu(2)))
    for _ in range(2):
        ledger.book("p", "n1", Claim((ask(units=5),), at(1)))
    assert held(ledger) == {1: Holding(units=5), 2: Holding()}
    ledger.book("p", "n1", Claim((ask(units=5),), at(2)))
    assert held(ledger) == {1: Holding(), 2: Holding(units=5)}
    for _ in range(2):
        ledger.release("p")
    assert held(ledger) == {1: Holding(), 2: Holding()}


def test_a_booking_moves_with_its_pod(ledger, gpu, inventory, ask):
    for name, number in (("n1", 1), ("n2", 2)):
        ledger.set_node(name, inventory(gpu(number)))
    ledger.book("p", "n1", Claim((ask(units=5),), at(1)))
    ledger.book("p", "n2", Claim((ask(units=5),), at(2)))
    assert (held(ledger), held(ledger, "n2")) == ({1: Holding()}, {2: Holding(units=5)})
    assert ledger.booked("p")[0] == "n2"


def test_a_pod_may_be_known_before_its_node(ledger, gpu, inventory, ask):
    ledger.book("p", "n1", Claim((ask(units=5),), at(1)))
    assert ("n1" in ledger, ledger.row("n1"), ledger.closed("n1")) == (False, -1, Reason.UNKNOWN_NODE)
    ledger.set_node("n1", inventory(gpu(1)))
    assert held(ledger) == {1: Holding(units=5)}


def test_a_node_that_comes_back_still_holds_its_pods(ledger, gpu, inventory, ask):
    ledger.set_node("n1", inventory(gpu(1)))
    ledger.book("p", "n1", Claim((ask(units=5),), at(1)))
    ledger.drop_node("n1")
    assert (list(ledger), ledger.states("n1")) == ([], [])
    ledger.set_node("n1", inventory(gpu(1)))
    assert held(ledger) == {1: Holding(units=5)}


def test_a_gpu_that_vanishes_and_comes_back_still_holds_its_slices(ledger, gpu, inventory, ask):
    ledger.set_node("n1", inventory(gpu(1), gpu(2)))
    ledger.book("p", "n1", Claim((ask(units=5),), at(2)))
    ledger.set_node("n1", inventory(gpu(1)))
    assert held(ledger) == {1: Holding()}
    ledger.set_node("n1", inventory(gpu(1), gpu(2)))
    assert held(ledger) == {1: Holding(), 2: Holding(units=5)}


def test_a_percentage_is_counted_anew_when_the_gpu_changes_its_size(ledger, gpu, inventory, ask):
    ledger.set_node("n1", inventory(gpu(1, units=64)))
    ledger.book("p", "n1", Claim((ask(percent=50),), at(1)))
    ledger.set_node("n1", inventory(gpu(1, units=60)))
    assert held(ledger) == {1: Holding(percent=50, percent_units=30)}


def test_foreign_use_counts_in_units(ledger, gpu, inventory):
    ledger.set_node("n1", inventory(gpu(1, held=9)))
    assert held(ledger) == {1: Holding(units=9)}


def test_what_a_node_reports_of_an_unknown_pod_is_held_until_the_pod_is_known(ledger, gpu, inventory, ask):
    drift = {"p": {"main": (PlannedSlice(gpu=f"{1:012x}", units=7, compute=10),)}}
    ledger.set_node("n1", inventory(gpu(1)), drift=drift)
    assert held(ledger) == {1: Holding(units=7, compute=10)}
    ledger.book("p", "n1", Claim((ask(units=5),), at(1)))
    assert held(ledger) == {1: Holding(units=5)}
    ledger.release("p")
    assert held(ledger) == {1: Holding(units=7, compute=10)}
    ledger.set_node("n1", inventory(gpu(1)))
    assert held(ledger) == {1: Holding()}


def test_an_inventory_of_too_many_gpus_is_not_believed(ledger, gpu, inventory):
    ledger.set_node("n1", inventory(*(gpu(n) for n in range(MOST_GPUS + 1))))
    assert (ledger.closed("n1"), ledger.states("n1")) == (Reason.UNREADABLE, [])


def test_growth_is_told_and_nothing_else(ledger, grown, gpu, inventory, ask):
    ledger.set_node("n1", inventory(gpu(1), gpu(2, health="sick")))
    assert grown == ["n1"]
    ledger.set_node("n1", inventory(gpu(1), gpu(2, health="sick")))
    ledger.book("p", "n1", Claim((ask(units=5),), at(1)))
    ledger.name_softly("q", "n1", Claim((ask(units=5),), at(1)))
    ledger.forget_softly("q")
    assert grown == ["n1"]
    ledger.release("p")
    ledger.set_node("n1", inventory(gpu(1), gpu(2)))
    ledger.set_node("n1", inventory(gpu(1), gpu(2)), closed=Reason.NOT_READY)
    ledger.set_node("n1", inventory(gpu(1), gpu(2)))
    assert grown == ["n1"] * 4


def test_a_smaller_slice_instead_of_a_larger_one_is_growth(ledger, grown, gpu, inventory, ask):
    ledger.set_node("n1", inventory(gpu(1)))
    ledger.book("p", "n1", Claim((ask(units=9),), at(1)))
    grown.clear()
    ledger.book("p", "n1", Claim((ask(units=5),), at(1)))
    assert grown == ["n1"]


def test_instances_held_twice_are_free_only_when_both_are_gone(ledger, gpu, inventory, ask):
    ledger.set_node("n1", inventory(gpu(1, mig=("1g", "1g"))))
    ledger.book("p", "n1", Claim((ask(mig="1g"),), at(1, instance="g0")))
    ledger.book("q", "n1", Claim((ask(mig="1g"),)))
    assert set(ledger.states("n1")[0].taken) == {"g0", "g1"}
    ledger.release("q")
    assert set(ledger.states("n1")[0].taken) == {"g0"}
    assert set(ledger.states("n1", without=("p",))[0].taken) == set()


def test_softly_named_slots_count_only_when_asked_for(ledger, gpu, inventory, ask):
    ledger.set_node("n1", inventory(gpu(1)))
    ledger.name_softly("p", "n1", Claim((ask(units=5),), at(1)))
    assert held(ledger) == {1: Holding()}
    assert ledger.states("n1", soft=True)[0].held == Holding(units=5)
    assert ledger.states("n1", soft=True, without=("p",))[0].held == Holding()
    ledger.name_softly("p", "n2", Claim((ask(units=5),), at(1)))
    assert ledger.named("p")[0] == "n2"
    assert ledger.states("n1", soft=True)[0].held == Holding()


asked = st.one_of(
    st.fixed_dictionaries({"units": st.integers(1, 40), "compute": st.sampled_from([None, 30])}),
    st.fixed_dictionaries({"percent": st.integers(1, 100)}),
    st.just({"whole": True}),
    st.just({"mig": "1g"}),
)


def operations(data, gpu, inventory, ask):
    """One random operation after another: name, arguments."""
    node = data.draw(st.sampled_from(NODES))
    first = 10 * (1 + NODES.index(node))
    match data.draw(
        st.sampled_from(["node", "node", "drop", "place", "place", "place", "bind", "release", "soft", "forget"])
    ):
        case "node":
            numbers = data.draw(st.lists(st.integers(first, first + 2), unique=True, max_size=3))
            there = inventory(
                *(
                    gpu(
                        n,
                        units=data.draw(st.sampled_from([64, 64, 30])),
                        held=data.draw(st.sampled_from([0, 0, 4])),
                        mig=("1g", "1g") if n % 10 == 2 else (),
                        health=data.draw(st.sampled_from(["ok", "ok", "sick"])),
                    )
                    for n in numbers
                )
            )
            drift = {}
            if numbers and data.draw(st.booleans()):
                piece = PlannedSlice(gpu=f"{data.draw(st.sampled_from(numbers)):012x}", units=3, compute=1)
                drift = {data.draw(st.sampled_from(PODS)): {"main": (piece,)}}
            return "node", (node, there, drift)
        case "drop":
            return "drop", (node,)
        case "place":
            return "place", (data.draw(st.sampled_from(PODS)), node, (ask(**data.draw(asked)),))
        case "bind":
            asks = (ask(**data.draw(asked)),)
            places = data.draw(st.sampled_from([{}, at(first), at(first + 1), at(first + 2, instance="g1")]))
            return "bind", (data.draw(st.sampled_from(PODS)), node, Claim(asks, places))
        case "soft":
            return "soft", (data.draw(st.sampled_from(PODS)), node, Claim((ask(units=3),), at(first)))
        case kind:
            return kind, (data.draw(st.sampled_from(PODS)),)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_order_of_events_gives_what_counting_anew_gives(gpu, inventory, ask, unit, data):
    ledger = Ledger(grew=lambda _: None)
    nodes, seen, bookings, soft, ours = {}, {name: [] for name in NODES}, {}, {}, set()
    for _ in range(data.draw(st.integers(1, 14))):
        kind, what = operations(data, gpu, inventory, ask)
        if kind == "node":
            ledger.set_node(what[0], what[1], drift=what[2])
            nodes[what[0]] = what
            seen[what[0]].append(what[1])
            ours.clear()
        elif kind == "drop":
            ledger.drop_node(what[0])
            nodes.pop(what[0], None)
            seen[what[0]].clear()
            ours.clear()
        elif kind == "place":
            key, node, asks = what
            shape = shape_of(asks, unit=unit, wishes=Wishes())
            found = place(asks, shape, ledger.states(node, without=(key,)))
            if not isinstance(found, Rejection):
                bookings[key] = (node, Claim(asks, found))
                ledger.book(key, *bookings[key])
                ours |= {(node, each.gpu) for chosen in found.values() for each in chosen}
        elif kind == "bind":
            bookings[what[0]] = what[1:]
            ledger.book(*what)
            ours = {each for each in ours if each[0] != what[1]}
        elif kind == "soft":
            soft[what[0]] = what[1:]
            ledger.name_softly(*what)
        elif kind == "forget":
            soft.pop(what[0], None)
            ledger.forget_softly(what[0])
        else:
            bookings.pop(what[0], None)
            ledger.release(what[0])
    anew = Ledger()
    for name, before in seen.items():
        for there in before:
            anew.set_node(name, there)
    for key, (name, claim) in bookings.items():
        anew.book(key, name, claim)
    for key, (name, claim) in soft.items():
        anew.name_softly(key, name, claim)
    for name, there, drift in nodes.values():
        anew.set_node(name, there, drift=drift)
    assert list(ledger) == list(anew) == sorted(nodes)
    for name in NODES:
        for softly in (False, True):
            assert facts(ledger.states(name, soft=softly)) == facts(anew.states(name, soft=softly))
        assert ledger.holdings(name) == anew.holdings(name)
        check_columns(ledger, name)
    for name in nodes:
        for state in ledger.states(name):
            booked = state.held - Holding(units=state.gpu.held)
            fits = not booked or within(booked, capacity=state.gpu.units)
            assert fits or (name, state.gpu.id) not in ours or nodes[name][2]


def facts(states):
    return [(state.gpu, state.held, set(state.taken)) for state in states]


def check_columns(ledger, name):
    """The arrays say of every GPU what the scalar arithmetic says."""
    row = ledger.row(name)
    if row < 0:
        return
    firm = View(ledger.columns, np.array([row]), soft=False)
    both = View(ledger.columns, np.array([row]), soft=True)
    for view, states in ((firm, ledger.states(name)), (both, ledger.states(name, soft=True))):
        units, percent = view.free_units()[0], view.free_percent()[0]
        for slot, state in enumerate(states):
            assert units[slot] == free_units(state.held, capacity=state.gpu.units)
            assert percent[slot] == free_percent(state.held, capacity=state.gpu.units)
            assert view.compute[0, slot] == state.held.compute
        assert not units[len(states) :].any()
        assert not percent[len(states) :].any()
    assert ledger.columns.has_soft[row] == any(
        state.held != beside.held
        for state, beside in zip(ledger.states(name), ledger.states(name, soft=True), strict=True)
    )
