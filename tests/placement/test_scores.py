"""The judgement on arrays is the judgement on one node, and a row is as good after small changes as made anew."""

from __future__ import annotations

from typing import get_args

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.model.config import PolicyName
from tessera.model.guarantee import Guarantee
from tessera.placement.claims import Claim
from tessera.placement.company import ANYBODY, Company
from tessera.placement.fit import judge, place
from tessera.placement.gpustate import Place
from tessera.placement.holding import hold
from tessera.placement.ledger import Ledger
from tessera.placement.nodescores import node_scores
from tessera.placement.policies import left, policy
from tessera.placement.reasons import Reason, Rejection
from tessera.placement.scores import MOST_SHAPES, Scores
from tessera.placement.shape import shape_of
from tessera.placement.wishes import Wishes

MODELS = ["NVIDIA A100", "Tesla T4"]
COMPANIES = st.sampled_from([ANYBODY, ANYBODY, Company(("batch",)), Company((), ("batch",)), Company(("a",), ("a",))])


@st.composite
def gpus(draw, number, gpu):
    return gpu(
        number,
        units=draw(st.sampled_from([0, 7, 64])),
        model=draw(st.sampled_from(MODELS)),
        health=draw(st.sampled_from(["ok", "ok", "ok", "sick"])),
        memory=draw(st.sampled_from([Guarantee.KERNEL, Guarantee.WATCHED])),
        held=draw(st.sampled_from([0, 0, 5, 99])),
        mig=tuple(draw(st.sampled_from([[], [], [], ["1g", "1g"], ["2g"]]))),
    )


@st.composite
def asked(draw):
    kind = draw(st.sampled_from(["units", "percent", "whole", "mig"]))
    amount = {
        "units": {"units": draw(st.integers(1, 70))},
        "percent": {"percent": draw(st.integers(1, 100))},
        "whole": {"whole": True},
        "mig": {"mig": draw(st.sampled_from(["1g", "2g", "3g"]))},
    }[kind]
    if kind in ("units", "percent"):
        amount["compute"] = draw(st.sampled_from([None, 10, 100]))
    return amount | {"gpus": draw(st.sampled_from([1, 1, 2, 3]))}


@st.composite
def pods(draw, ask):
    several = [draw(asked()) for _ in range(draw(st.integers(1, 3)))]
    if draw(st.booleans()):
        return [ask(f"c{n}", **each) for n, each in enumerate(several)]
    roles = ["init", "sidecar", "main"]
    return [ask(f"c{n}", **each | {"gpus": 1}, role=roles[n]) for n, each in enumerate(several)]


def wishes(gpu):
    return st.builds(
        Wishes,
        models=st.sampled_from([(), (), ("a100",)]),
        not_models=st.sampled_from([(), (), ("t4",)]),
        least=st.sampled_from([Guarantee.NONE, Guarantee.NONE, Guarantee.KERNEL]),
        uuids=st.sampled_from([(), (), (gpu(0).uuid.lower(),), ("gpu-nonsense",)]),
        policy=st.sampled_from(get_args(PolicyName)),
        company=COMPANIES,
    )


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_node_is_judged_as_if_alone(gpu, inventory, ask, unit, data):
    ledger = Ledger()
    scores = Scores(ledger.columns)
    shape = shape_of(data.draw(pods(ask)), unit=unit, wishes=data.draw(wishes(gpu)))
    closed = {}
    for name in ("a", "b", "c"):
        number = {"a": 0, "b": 10, "c": 20}[name]
        count = data.draw(st.integers(0, 4))
        there = inventory(*(data.draw(gpus(number + n, gpu)) for n in range(count)))
        closed[name] = data.draw(st.sampled_from([None, None, None, Reason.DRAINING, Reason.CORDONED]))
        ledger.set_node(name, there, closed=closed[name])
    scores.row(shape)
    for step in range(data.draw(st.integers(0, 6))):
        name = data.draw(st.sampled_from(["a", "b", "c"]))
        ids = [each.id for each in ledger.gpus(name).values()]
        asks = (ask(**data.draw(asked()) | {"gpus": 1, "mig": None, "units": 5, "percent": None, "whole": False}),)
        places = {"main": (Place(data.draw(st.sampled_from(ids))),)} if ids else {}
        claim = Claim(asks, places, data.draw(COMPANIES))
        if data.draw(st.booleans()):
            ledger.book(f"p{step}", name, claim)
        else:
            ledger.name_softly(f"p{step}", name, claim)
        if data.draw(st.booleans()):
            scores.row(shape)
    row, anew = scores.row(shape), Scores(ledger.columns, scores.pricing).row(shape)
    for name in ("a", "b", "c"):
        at = ledger.row(name)
        alone = Rejection(closed[name]) if closed[name] else judge(shape, ledger.states(name))
        assert (row.rejection(at) if row.code[at] else None) == alone
        assert (row.code[at], row.softly[at], row.score[at]) == (anew.code[at], anew.softly[at], anew.score[at])
        if alone is None:
            assert row.softly[at] == (judge(shape, ledger.states(name, soft=True)) is None)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_the_score_is_the_policys_for_the_gpus_that_place_takes(gpu, inventory, ask, unit, data):
    ledger = Ledger()
    asks = [ask(**data.draw(asked()) | {"mig": None, "units": 9, "percent": None, "whole": False})]
    shape = shape_of(asks, unit=unit, wishes=Wishes(policy=data.draw(st.sampled_from(["pack", "spread"]))))
    ledger.set_node("a", inventory(*(data.draw(gpus(n, gpu)) for n in range(data.draw(st.integers(1, 4))))))
    found = place(asks, shape, ledger.states("a"))
    row = Scores(ledger.columns).row(shape)
    at = ledger.row("a")
    assert bool(row.code[at] == 0) is not isinstance(found, Rejection)
    if isinstance(found, Rejection):
        return
    by = policy(shape.wishes.policy)
    states = {state.gpu.id: state for state in ledger.states("a")}
    offered = [s for s in states.values() if s.gpu.health == "ok" and not s.gpu.mig]
    before = sum(left(state.held, capacity=state.gpu.units) for state in offered)
    cost = 0
    for taken in found["main"]:
        state, capacity = states[taken.gpu], states[taken.gpu].gpu.units
        piece = hold(asks[0].request, capacity=capacity, unit=unit)
        cost += by.cost(state.gpu, state.held, state.held + piece)
    sums = np.array([cost]), np.array([before])
    assert row.score[at] == node_scores(shape.wishes.policy, *sums, size=sums[0], cpu=sums[0])[0]


def test_what_place_found_out_is_kept_until_the_node_changes(gpu, inventory, ask, unit):
    ledger = Ledger()
    scores = Scores(ledger.columns)
    ledger.set_node("a", inventory(gpu(1)))
    shape = shape_of([ask("a", units=40), ask("b", units=40)], unit=unit, wishes=Wishes())
    at = ledger.row("a")
    assert scores.row(shape).code[at] == 0
    scores.row(shape).refuse(at, Rejection(Reason.ARRANGEMENT))
    assert scores.row(shape).rejection(at).reason is Reason.ARRANGEMENT
    ledger.set_node("a", inventory(gpu(1, units=80)))
    assert scores.row(shape).code[at] == 0


def test_a_cordoned_node_is_open_to_who_tolerates_it(gpu, inventory, ask, unit):
    ledger = Ledger()
    ledger.set_node("a", inventory(gpu(1)), closed=Reason.CORDONED)
    for tolerates in (False, True):
        shape = shape_of([ask(units=1)], unit=unit, wishes=Wishes(), cordoned=tolerates)
        assert bool(Scores(ledger.columns).row(shape).code[ledger.row("a")] == 0) is tolerates


def test_shapes_kept_are_bounded(gpu, inventory, ask, unit):
    ledger = Ledger()
    scores = Scores(ledger.columns)
    ledger.set_node("a", inventory(gpu(1)))
    first = shape_of([ask(units=1)], unit=unit, wishes=Wishes())
    kept = scores.row(first)
    for n in range(MOST_SHAPES):
        scores.row(shape_of([ask(units=2 + n)], unit=unit, wishes=Wishes()))
    assert scores.row(first) is not kept


def test_hundreds_of_nodes_come_and_go(gpu, inventory, ask, unit):
    ledger = Ledger()
    scores = Scores(ledger.columns)
    shape = shape_of([ask(units=5, gpus=2)], unit=unit, wishes=Wishes())
    for n in range(100):
        ledger.set_node(f"n{n:03}", inventory(*(gpu(100 * n + g) for g in range(1 + n % 12))))
        if n % 7 == 0:
            scores.row(shape)
    for n in range(0, 100, 3):
        ledger.drop_node(f"n{n:03}")
    for n in range(0, 100, 6):
        ledger.set_node(f"n{n:03}", inventory(gpu(9000 + n), gpu(9500 + n)))
    row = scores.row(shape)
    fitting = {name for name in ledger if row.code[ledger.row(name)] == 0}
    assert fitting == {name for name in ledger if judge(shape, ledger.states(name)) is None}
    assert len(list(ledger)) == 100 - 34 + 17
