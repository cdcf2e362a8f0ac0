"""What a bound pod holds: counted from its tickets, placed by plan or drift, everywhere where neither says."""

from __future__ import annotations

import msgspec
import pytest

from tessera.model.guarantee import Guarantee, Guarantees
from tessera.model.names import names
from tessera.model.plan import Plan, PlannedSlice, encode
from tessera.model.pod import Pod
from tessera.model.tickets import tickets
from tessera.placement.claims import Claim, claim_of, plan_of, taken
from tessera.placement.fit import place
from tessera.placement.gpustate import GpuState, Place
from tessera.placement.holding import Holding
from tessera.placement.shape import shape_of
from tessera.placement.wishes import Wishes

NAMES = names()
ONE, TWO, THREE = (f"{n:012x}" for n in (1, 2, 3))


@pytest.fixture
def pod():
    """A bound pod whose containers hold the tickets of these asks."""

    def build(*asks, plan=None, node="n1", raw=None):
        def container(each):
            return {"name": each.container, "resources": {"limits": raw or tickets(each.request, NAMES)}} | (
                {"restartPolicy": "Always"} if each.role == "sidecar" else {}
            )

        annotations = {} if plan is None else {NAMES.plan: plan if isinstance(plan, str) else encode(plan)}
        return msgspec.convert(
            {
                "metadata": {"name": "p", "namespace": "d", "uid": "u", "annotations": annotations},
                "spec": {
                    "nodeName": node,
                    "containers": [container(a) for a in asks if a.role == "main"],
                    "initContainers": [container(a) for a in asks if a.role != "main"],
                },
            },
            Pod,
        )

    return build


def a_plan(*slices, node="n1", container="main", **others):
    return Plan(v=1, node=node, guarantee=Guarantees(), containers={container: slices, **others})


def piece(gpu=ONE, units=10, compute=0, **more):
    return PlannedSlice(gpu=gpu, units=units, compute=compute, **more)


def test_a_plan_of_ours_comes_back_as_the_claim(pod, gpu, ask, unit):
    asks = (ask("init", percent=10, role="init"), ask("main", percent=50, compute=30))
    gpus = [gpu(1, memory=Guarantee.KERNEL), gpu(2)]
    places = place(asks, shape_of(asks, unit=unit, wishes=Wishes()), [GpuState(each) for each in gpus])
    plan = plan_of(asks, places, {each.id: each for each in gpus}, node="n1", unit=unit)
    assert plan.guarantee.memory is Guarantee.KERNEL
    assert plan.containers["main"] == (PlannedSlice(gpu=ONE, units=32, compute=30),)
    assert claim_of(pod(*asks, plan=plan), NAMES) == Claim(asks, places)


def test_the_plan_of_several_gpus_promises_what_the_weakest_keeps(gpu, ask, unit):
    gpus = {each.id: each for each in (gpu(1, memory=Guarantee.KERNEL), gpu(2, memory=Guarantee.WATCHED))}
    plan = plan_of([ask(whole=True, gpus=2)], {"main": (Place(ONE), Place(TWO))}, gpus, node="n", unit=unit)
    assert plan.guarantee.memory is Guarantee.WATCHED
    assert plan.containers["main"][0] == PlannedSlice(gpu=ONE, units=64, compute=100, whole=True)


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(None, id="none"),
        pytest.param("{", id="not JSON"),
        pytest.param(a_plan(piece(), node="n2"), id="made for another node"),
        pytest.param(a_plan(piece(units=9)), id="less memory than the tickets"),
        pytest.param(a_plan(piece(compute=5)), id="compute that no ticket has"),
        pytest.param(a_plan(piece(whole=True)), id="whole"),
        pytest.param(a_plan(piece(), piece(TWO)), id="more GPUs"),
        pytest.param(a_plan(), id="no GPU"),
        pytest.param(a_plan(piece(), container="other"), id="another container"),
        pytest.param(a_plan(piece(), extra=(piece(TWO),)), id="a container too many"),
    ],
)
def test_a_plan_that_is_not_the_pods_own_is_no_plan(pod, ask, gpu, unit, plan):
    asks = (ask(units=10),)
    claim = claim_of(pod(*asks, plan=plan), NAMES)
    assert claim == Claim(asks)
    gpus = {ONE: gpu(1), TWO: gpu(2)}
    assert taken(claim, gpus, unit=unit).holdings == {ONE: Holding(units=10), TWO: Holding(units=10)}


def test_slices_beside_an_init_container_on_two_gpus_are_no_plan_of_ours(pod, ask):
    asks = (ask("init", units=5, role="init"), ask("main", units=10))
    plan = a_plan(piece(TWO), init=(piece(ONE, units=5),))
    assert claim_of(pod(*asks, plan=plan), NAMES) == Claim(asks)


def test_a_plan_on_a_gpu_that_never_was_counts_on_all(ask, gpu, unit):
    claim = Claim((ask(units=10),), {"main": (Place(THREE),)})
    gpus = {ONE: gpu(1), TWO: gpu(2)}
    assert set(taken(claim, gpus, unit=unit).holdings) == {ONE, TWO}
    assert taken(claim, gpus, unit=unit, known={THREE}).holdings == {}


def test_drift_wins_over_the_plan(ask, gpu, unit):
    claim = Claim((ask(units=10),), {"main": (Place(ONE),)})
    reported = {"main": (piece(TWO),)}
    found = taken(claim, {ONE: gpu(1), TWO: gpu(2)}, unit=unit, reported=reported)
    assert found.holdings == {TWO: Holding(units=10)}


def test_drift_of_one_container_leaves_the_other_unknown(ask, gpu, unit):
    claim = Claim((ask("a", units=10), ask("b", units=3)))
    found = taken(claim, {ONE: gpu(1), TWO: gpu(2)}, unit=unit, reported={"a": (piece(TWO),)})
    assert found.holdings == {ONE: Holding(units=3), TWO: Holding(units=13)}


def test_drift_of_containers_without_a_known_request_counts_as_it_stands(gpu, unit):
    reported = {"x": (piece(TWO, units=7, compute=20), piece(THREE))}
    found = taken(Claim(()), {ONE: gpu(1), TWO: gpu(2)}, unit=unit, reported=reported)
    assert found.holdings == {TWO: Holding(units=7, compute=20)}


def test_all_containers_without_a_place_could_be_on_the_same_gpu(ask, gpu, unit):
    claim = Claim((ask("i", units=9, role="init"), ask("a", units=4), ask("b", units=6, gpus=2)))
    found = taken(claim, {ONE: gpu(1), TWO: gpu(2)}, unit=unit)
    assert found.holdings == {ONE: Holding(units=10), TWO: Holding(units=10)}


def test_an_instance_without_a_place_could_be_any_of_its_profile(ask, gpu, unit):
    gpus = {ONE: gpu(1, mig=("1g.10gb", "2g.20gb")), TWO: gpu(2)}
    found = taken(Claim((ask(mig="1g.10gb"),)), gpus, unit=unit)
    assert (found.instances, found.holdings) == ({ONE: frozenset({"g0"})}, {})


@pytest.mark.parametrize(
    "raw",
    [
        {NAMES.memory_units: "1.5"},
        {NAMES.memory_percent: "10", NAMES.memory_units: "10"},
        {NAMES.memory_percent: "101"},
        {NAMES.compute_percent: "-3"},
    ],
)
def test_tickets_that_make_no_sense_count_as_whole_gpus(pod, ask, gpu, unit, raw):
    claim = claim_of(pod(ask(units=1), raw=raw), NAMES)
    assert [each.request.whole for each in claim.asks] == [True]
    assert taken(claim, {ONE: gpu(1)}, unit=unit).holdings == {ONE: Holding(0, 100, 64, 100)}


def test_a_pod_without_tickets_holds_nothing(pod, ask):
    assert claim_of(pod(ask(units=1), raw={"cpu": "1"}), NAMES) is None
