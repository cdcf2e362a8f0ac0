"""The search for victims against counting all sets of them, and room that is kept beside."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.placement.claims import Claim, Taken, taken
from tessera.placement.fit import place
from tessera.placement.gpustate import GpuState, Place
from tessera.placement.holding import Holding
from tessera.placement.keeping import Kept, beside, fixed
from tessera.placement.reasons import Rejection
from tessera.placement.shape import shape_of
from tessera.placement.victims import Holder, choose, cost
from tessera.placement.wishes import Wishes


def through(steps):
    """Go through a search; its result, and how often it paused."""
    pauses = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, pauses
        pauses += 1


class Node:
    """GPUs of 64 units and who holds what on them."""

    def __init__(self, gpus, holders, unit):
        self.gpus = {gpu.id: gpu for gpu in gpus}
        self.holders = [
            Holder(
                f"p{number}",
                f"default/p{number}",
                priority,
                "",
                taken(Claim((asked,), {"main": (Place(where),)}), self.gpus, unit=unit),
            )
            for number, (asked, where, priority) in enumerate(holders)
        ]

    def without(self, keys):
        held = dict.fromkeys(self.gpus, Holding())
        for each in self.holders:
            if each.key not in keys:
                for gpu, piece in each.taken.holdings.items():
                    held[gpu] += piece
        return [GpuState(gpu, held[gpu.id]) for gpu in self.gpus.values()]

    def fits(self, kept, keys=()):
        return not isinstance(place(kept.asks, kept.shape, self.without(keys)), Rejection)


@pytest.fixture(scope="session")
def kept(ask, unit):
    def make(**amounts):
        asks = (ask(**amounts),)
        return Kept(asks, shape_of(asks, unit=unit, wishes=Wishes()))

    return make


@pytest.fixture(scope="session")
def make_node(gpu, ask, unit):
    def make(*holders, gpus=2):
        cards = [gpu(number) for number in range(gpus)]
        return Node(cards, [(ask(**amounts), cards[at].id, priority) for amounts, at, priority in holders], unit)

    return make


def test_where_there_is_room_nobody_goes(make_node, kept):
    node = make_node(({"units": 64}, 0, 0))
    assert through(choose(kept(units=64), node.without, node.holders))[0] == ()


def test_where_nobodys_going_helps_nobody_goes(make_node, kept):
    node = make_node(({"units": 64}, 0, 0), ({"units": 64}, 1, 0))
    assert through(choose(kept(units=65), node.without, node.holders))[0] is None
    assert through(choose(kept(units=64), node.without, ()))[0] is None


def test_one_large_one_rather_than_two_small_ones(make_node, kept):
    node = make_node(({"units": 30}, 0, 0), ({"units": 30}, 0, 0), ({"units": 60}, 1, 9))
    victims, _ = through(choose(kept(units=50), node.without, node.holders))
    assert [each.key for each in victims] == ["p2"]


def test_memory_of_one_and_compute_of_another(make_node, kept):
    node = make_node(
        ({"units": 50, "compute": 10}, 0, 0),
        ({"units": 10, "compute": 80}, 0, 0),
        ({"units": 4, "compute": 10}, 0, 0),
        gpus=1,
    )
    victims, _ = through(choose(kept(units=50, compute=80), node.without, node.holders))
    assert [each.key for each in victims] == ["p0", "p1"]


def test_a_long_search_pauses(make_node, kept):
    node = make_node(*(({"units": 1}, number % 4, 0) for number in range(240)), gpus=4)
    victims, pauses = through(choose(kept(whole=True), node.without, node.holders))
    assert len(victims) == 60
    assert pauses >= 7


@st.composite
def crowded(draw):
    holders = draw(
        st.lists(
            st.tuples(st.integers(5, 60), st.sampled_from([0, 20, 50]), st.integers(0, 1), st.integers(0, 3)),
            min_size=1,
            max_size=6,
        )
    )
    return holders, draw(st.integers(1, 64)), draw(st.sampled_from([0, 30, 90])), draw(st.integers(1, 2))


@settings(max_examples=60, deadline=None)
@given(crowded())
def test_no_set_is_smaller_and_none_of_them_is_spared_for_nothing(make_node, kept, case):
    holders, units, compute, gpus = case
    node = make_node(*(({"units": u, "compute": c or None}, at, priority) for u, c, at, priority in holders))
    asked = kept(units=units, compute=compute or None, gpus=gpus)
    victims, _ = through(choose(asked, node.without, node.holders))
    enough = [
        chosen
        for count in range(len(node.holders) + 1)
        for chosen in combinations(node.holders, count)
        if node.fits(asked, [each.key for each in chosen])
    ]
    if not enough:
        assert victims is None
        return
    assert node.fits(asked, [each.key for each in victims])
    assert len(victims) == min(len(each) for each in enough)
    if len(victims) == 1:
        assert cost(victims) == min(cost(each) for each in enough)
    for each in victims:
        assert not node.fits(asked, [other.key for other in victims if other is not each])
    again, _ = through(choose(asked, node.without, list(reversed(node.holders))))
    assert again == victims, "whichever order they come in"


def test_beside_what_is_kept_there_is_what_is_left_now_and_later(gpu, kept):
    one, two = gpu(1), gpu(2)
    now = [GpuState(one, Holding(units=60)), GpuState(two, Holding(units=64))]
    later = [GpuState(one), GpuState(two, Holding(units=64))]
    states = beside(now, later, [kept(units=50)])
    assert [state.held.units for state in states] == [60, 64]
    states = beside(later, later, [kept(units=50)])
    assert [state.held.units for state in states] == [50, 64]


def test_what_has_no_room_is_kept_nowhere(gpu, kept):
    states = [GpuState(gpu(1), Holding(units=60))]
    assert fixed(states, [kept(units=5)]) == []
    assert beside(states, states, [kept(units=5), kept(units=4)])[0].held.units == 64


def test_instances_in_use_are_put_back_too(gpu, kept):
    card = gpu(1, mig=("1g.10gb", "1g.10gb"))
    held = [Holder(f"p{n}", "", 0, "", Taken({}, {card.id: frozenset({f"g{n}"})})) for n in range(2)]

    def without(keys):
        return [GpuState(card, taken={f"g{n}" for n in range(2) if f"p{n}" not in keys})]

    victims, _ = through(choose(kept(mig="1g.10gb"), without, held))
    assert len(victims) == 1
