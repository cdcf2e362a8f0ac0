"""MIG instances are a resource of their own: learned, given CPU, filled up or spread, and never idle GPU to other pods."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.model.config import Measure, PolicyName
from tessera.model.errors import ConfigError
from tessera.placement.choose import best
from tessera.placement.claims import Claim
from tessera.placement.fit import judge, place
from tessera.placement.gpustate import GpuState
from tessera.placement.instances import size_of
from tessera.placement.ledger import Ledger
from tessera.placement.pricing import Pricing
from tessera.placement.reasons import Reason, Rejection
from tessera.placement.scores import Scores
from tessera.placement.shape import shape_of
from tessera.placement.tables import ONE
from tessera.placement.wishes import Wishes
from tessera.placement.workload import Demand, Workload, demand_of, read_expected, shares

SMALL, LARGE = "1g.10gb", "3g.40gb"
PACKING = ("priced", "fragmentation", "pack")


class Rig:
    """A cluster of nodes with GPUs cut by MIG, where pods are placed as filter and bind do it."""

    def __init__(self, gpu, inventory, ask, unit, *, measure=None):
        self.ledger = Ledger()
        self.workload = Workload()
        self.scores = Scores(self.ledger.columns, Pricing(self.ledger.columns, self.workload, measure))
        self._gpu, self._inventory, self._ask, self._unit = gpu, inventory, ask, unit
        self._gpus = 0

    def node(self, name, *cuts, cpu=64_000):
        """One GPU per cut: its instances, or () for a GPU that is not cut."""
        there = []
        for cut in cuts:
            self._gpus += 1
            there.append(self._gpu(self._gpus, units=0 if cut else 64, mig=cut))
        self.ledger.set_node(name, self._inventory(*there), cpu=cpu)

    def shape(self, policy="priced", *, cpu=1000, **asked):
        asks = (self._ask(**asked),) if asked else ()
        return asks, shape_of(asks, unit=self._unit, wishes=Wishes(policy=policy), cpu=cpu)

    def choose(self, policy="priced", *, cpu=1000, soft=False, **asked):
        asks, shape = self.shape(policy, cpu=cpu, **asked)
        row = self.scores.row(shape)
        fits = row.softly if soft else row.fits
        at = best(self.ledger, self.scores, row, np.flatnonzero(fits))
        name = self.ledger.names[at]
        by = self.scores.chooser(shape, at, soft=soft)
        found = place(asks, shape, self.ledger.states(name, soft=soft), by=by)
        assert not isinstance(found, Rejection)
        return name, Claim(asks, found)

    def put(self, key, policy="priced", *, cpu=1000, **asked):
        name, claim = self.choose(policy, cpu=cpu, **asked)
        self.ledger.book(key, name, claim)
        self.ledger.use_cpu(key, name, cpu)
        return name

    def score(self, name, **asked):
        _, shape = self.shape(**asked)
        return int(self.scores.row(shape).score[self.ledger.row(name)])


@pytest.fixture
def rig(gpu, inventory, ask, unit):
    return Rig(gpu, inventory, ask, unit)


@pytest.mark.parametrize("policy", PACKING)
def test_the_node_with_the_fewest_free_instances_of_the_profile_is_filled_first(rig, policy):
    rig.node("a", (SMALL,) * 7)
    rig.node("b", (SMALL,) * 3, (LARGE,) * 2)
    rig.node("c", (SMALL,) * 5)
    assert [rig.put(f"p{n}", policy, cpu=0, mig=SMALL) for n in range(9)] == ["b"] * 3 + ["c"] * 5 + ["a"]


def test_best_fit_adds_free_instances_to_the_rest_of_a_node(rig):
    rig.node("a", (SMALL,) * 7)
    rig.node("b", (SMALL,) * 3, (LARGE,) * 2)
    rig.node("c", (SMALL,) * 5)
    assert [rig.put(f"p{n}", "best-fit", cpu=0, mig=SMALL) for n in range(6)] == ["c"] * 5 + ["a"]


def test_spread_takes_the_node_with_most_free_instances_and_goes_round(rig):
    rig.node("a", (SMALL,) * 2)
    rig.node("b", (SMALL,) * 4)
    rig.node("c", (SMALL,) * 4)
    assert [rig.put(f"p{n}", "spread", mig=SMALL) for n in range(6)] == ["b", "c", "b", "c", "a", "b"]


def test_spread_goes_round_the_gpus_of_a_node_and_packing_fills_one(gpu, ask, unit):
    states = [GpuState(gpu(1, mig=(SMALL,) * 3), taken={"g0"}), GpuState(gpu(2, mig=(SMALL,) * 4))]
    asks = (ask(mig=SMALL, gpus=3),)
    for policy, expected in (("spread", [2, 2, 1]), ("pack", [1, 1, 2]), ("priced", [1, 1, 2])):
        shape = shape_of(asks, unit=unit, wishes=Wishes(policy=policy))
        assert [int(p.gpu, 16) for p in place(asks, shape, states)["main"]] == expected


def test_of_gpus_with_equally_many_the_one_that_runs_more_is_filled(gpu, ask, unit):
    states = [
        GpuState(gpu(1, mig=(SMALL, LARGE))),
        GpuState(gpu(2, mig=(SMALL, LARGE)), taken={"g1"}),
    ]
    asks = (ask(mig=SMALL),)
    found = place(asks, shape_of(asks, unit=unit, wishes=Wishes()), states)
    assert int(found["main"][0].gpu, 16) == 2


def test_instances_that_were_just_named_count(rig):
    rig.node("a", (SMALL,) * 2)
    rig.node("b", (SMALL,) * 2)
    names = []
    for n in range(4):
        name, claim = rig.choose("spread", soft=True, mig=SMALL)
        rig.ledger.name_softly(f"p{n}", name, claim)
        names.append(name)
    assert names == ["a", "b", "a", "b"]
    row = rig.scores.row(rig.shape("spread", mig=SMALL)[1])
    assert row.fits[[0, 1]].all()
    assert not row.softly[[0, 1]].any()


def test_pods_that_want_several_instances_find_them_together(rig):
    rig.workload.expect([(Demand(cpu=1000, instances=((SMALL, 2),)), 900.0), (Demand(instances=((SMALL, 1),)), 100.0)])
    rig.node("a", (SMALL,) * 2)
    rig.node("b", (SMALL,) * 3)
    assert rig.put("one", cpu=0, mig=SMALL) == "b"
    assert rig.put("two", cpu=0, mig=SMALL, gpus=2) == "a"


@pytest.mark.parametrize("policy", ["priced", "fragmentation"])
def test_cpu_is_kept_beside_free_instances(rig, policy):
    """Node c is full, so its CPU is of no use to pods that want instances."""
    rig.workload.expect([(Demand(cpu=8000, instances=((SMALL, 1),)), 1000.0)])
    rig.node("b", (SMALL,) * 7, cpu=64_000)
    rig.node("c", (SMALL,) * 7, cpu=64_000)
    for n in range(7):
        asks, shape = rig.shape(mig=SMALL)
        rig.ledger.book(f"p{n}", "c", Claim(asks, place(asks, shape, rig.ledger.states("c"))))
    assert rig.choose(policy, cpu=60_000)[0] == "c"


def test_a_pod_for_an_instance_goes_where_its_cpu_is_spared(rig):
    rig.workload.expect([(Demand(cpu=4000, instances=((SMALL, 1),)), 1000.0)])
    rig.node("a", (SMALL,) * 4, cpu=16_000)
    rig.node("b", (SMALL,) * 4, cpu=64_000)
    assert rig.put("p", cpu=12_000, mig=SMALL) == "b"


def test_a_gpu_that_is_cut_is_never_idle_gpu_to_other_pods(rig):
    """Nor is its CPU: what a node keeps for its instances is not counted to the GPUs beside them."""
    rig.node("a", (SMALL,) * 7, (SMALL,) * 7, (), (), cpu=64_000)
    rig.node("b", (), (), cpu=32_000)
    stock = rig.scores.pricing.tables.stock
    assert stock.gpus.sum() == 4
    assert stock.node == 2
    assert stock.cpu == 16_000
    assert stock.cut.cores == 32_000
    assert rig.ledger.columns.idle[[0, 1]].tolist() == [2, 2]
    before = rig.scores.pricing.tables
    rig.node("c", (SMALL,) * 7, cpu=64_000)
    rig.node("d", (SMALL,) * 7, cpu=64_000)
    rig.scores.row(rig.shape(mig=SMALL)[1])
    after = rig.scores.pricing.tables
    assert after is not before
    assert (after.stock.gpus.sum(), after.stock.cpu) == (4, 16_000)


def test_requests_for_instances_are_learned_and_fade(ask, unit):
    workload = Workload(half_life=100)
    shape = shape_of([ask(mig="1g.10gb+me", gpus=2), ask("b", mig=LARGE)], unit=unit, wishes=Wishes(), cpu=3000)
    demand = demand_of(shape)
    assert demand == Demand(cpu=3000, instances=(("1g.10gb.me", 2), (LARGE, 1)))
    assert not demand.plain
    workload.saw(demand)
    for _ in range(100):
        workload.saw(Demand(cpu=1))
    assert workload.current()[demand] == pytest.approx(0.5, abs=0.01)


def test_a_pod_with_slices_and_instances_is_learned_as_both(ask, unit):
    shape = shape_of([ask(mig=SMALL), ask("b", whole=True)], unit=unit, wishes=Wishes(), cpu=3000)
    assert demand_of(shape) == Demand(cpu=3000, gpus=1, percent=100, compute=100, instances=((SMALL, 1),))


def test_new_profiles_are_priced_at_once(rig):
    rig.node("a", (SMALL,) * 7)
    rig.put("p", mig=SMALL)
    rig.node("b", (LARGE,) * 2)
    assert rig.put("q", mig=LARGE) == "b"
    assert list(rig.scores.pricing.tables.stock.cut.counts.items()) == [(SMALL, 7), (LARGE, 2)]


@pytest.mark.parametrize(
    ("profile", "size"),
    [
        ("1g.10gb", 142),
        ("7g.80gb", 1000),
        ("3g.40gb", 428),
        ("1c.2g.20gb", 285),
        ("1g.5gb.me", 142),
        ("", 142),
        ("9x", 142),
    ],
)
def test_a_profile_weighs_what_its_name_says(profile, size):
    assert size_of(profile) == size


def test_expected_instances_are_read():
    text = json.dumps([{"cpu": "4", "gpus": 2, "mig": "1g.10gb+me", "weight": 3}]).encode()
    assert read_expected(text, unit=1 << 28) == ((Demand(cpu=4000, instances=(("1g.10gb.me", 2),)), 3.0),)


@pytest.mark.parametrize(
    "entry", [{"mig": ""}, {"mig": "a" * 41}, {"mig": "A/b"}, {"mig": SMALL, "compute": 5}, {"mig": 7}]
)
def test_expected_instances_that_make_no_sense_are_refused(entry):
    with pytest.raises(ConfigError, match=r"placement\.shapes"):
        read_expected(json.dumps([{"weight": 1} | entry]).encode(), unit=1 << 28)


def worth(tables, targets, free, idle, cpu):
    """The measure by its definition, a loop over requests: idle GPU that each can't use, and the lack of CPU; beside free
    instances by profile, so many idle GPUs that are not cut, and CPU left.
    """
    lost = 0
    total = 1000 * idle + sum(count * size_of(profile) for profile, count in free.items())
    for demand, part in targets:
        usable = 1000 * idle if demand.gpus and demand.cpu <= cpu else 0
        for profile, count in demand.instances:
            if demand.cpu <= cpu and free.get(profile, 0) >= count:
                usable += free[profile] * size_of(profile)
        lost += part * (total - usable)
    instances = tables.instances
    wanted = tables.ratio * 1000 * idle
    wanted += sum(
        free.get(profile, 0) * int(each) for profile, each in zip(tables.stock.cut.counts, instances.cpu, strict=True)
    )
    lack = 0.0
    if wanted:
        lack = max(0.0, tables.measure.balance * wanted - cpu) / (wanted / total)
    return lost + ONE * lack * lack / (total + tables.measure.slack) - 5 * ONE * 1000 * idle


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_score_is_what_the_definition_says(gpu, inventory, ask, unit, data):
    rig = Rig(gpu, inventory, ask, unit, measure=Measure(coverage=1.0, remainder=5.0))
    for profile, count, weight in ((SMALL, 1, 50.0), (SMALL, 3, 30.0), (LARGE, 1, 20.0)):
        cpu = data.draw(st.sampled_from([1000, 4000, 9000]))
        rig.workload.expect([(Demand(cpu=cpu, instances=((profile, count),)), weight)])
    rig.workload.expect([(Demand(cpu=8000, gpus=1, percent=100, compute=100), 40.0), (Demand(cpu=2000), 30.0)])
    free, idle, cpus = {}, {}, {}
    for name in ("a", "b"):
        small, large, idle[name] = (data.draw(st.integers(0, most)) for most in (7, 2, 2))
        cuts = [(SMALL,) * small] * bool(small) + [(LARGE,) * large] * bool(large)
        free[name] = {SMALL: small, LARGE: large}
        cpus[name] = 1000 * data.draw(st.integers(0, 80))
        rig.node(name, *cuts, *[()] * idle[name], cpu=cpus[name])
    cpu = data.draw(st.sampled_from([0, 3000, 20_000]))
    profile = data.draw(st.sampled_from([None, SMALL, LARGE]))
    rig.scores.pricing.refresh()
    tables = rig.scores.pricing.tables
    if tables.instances is None:
        return
    targets = [(demand, round(ONE * part)) for demand, part in shares(tables.counts, 1.0)]
    asked = {"mig": profile} if profile else {}
    _, shape = rig.shape(cpu=cpu, **asked)
    row = rig.scores.row(shape)
    gain = rig.scores.pricing.measured("priced").gain(shape)
    for name in ("a", "b"):
        at = rig.ledger.row(name)
        if not row.fits[at] or cpus[name] < cpu:
            continue
        after = free[name] | ({profile: free[name][profile] - 1} if profile else {})
        lost = worth(tables, targets, after, idle[name], cpus[name] - cpu)
        lost -= worth(tables, targets, free[name], idle[name], cpus[name])
        score = int(row.score[at])
        if profile:
            score = -(-(score + after[profile]) // 4096)
        assert score == pytest.approx((gain - lost) / (ONE * 20), abs=1.01)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_rows_after_any_changes_are_as_good_as_new(gpu, inventory, ask, unit, data):
    rig = Rig(gpu, inventory, ask, unit)
    cuts = st.sampled_from([(), (), (SMALL,) * 3, (SMALL, LARGE), (LARGE,) * 2])
    names = ("a", "b", "c")
    policy = st.sampled_from(get_args(PolicyName))
    asked = st.sampled_from(
        [
            {},
            {"units": 9},
            {"whole": True},
            {"mig": SMALL},
            {"mig": SMALL, "gpus": 2},
            {"mig": LARGE},
            {"mig": "7g.80gb"},
        ]
    )
    shapes = [
        rig.shape(data.draw(policy), cpu=data.draw(st.sampled_from([0, 5000])), **data.draw(asked)) for _ in range(4)
    ]
    for number in range(data.draw(st.integers(1, 10))):
        name = data.draw(st.sampled_from(names))
        asks, shape = data.draw(st.sampled_from(shapes))
        match data.draw(st.sampled_from(["node", "book", "book", "name", "release", "drop", "drain"])):
            case "node":
                rig.node(name, *(data.draw(cuts) for _ in range(2)), cpu=16_000)
            case "drop":
                rig.ledger.drop_node(name)
            case "drain":
                rig.ledger.set_node(name, None, closed=Reason.DRAINING)
            case "release":
                rig.ledger.release(f"p{data.draw(st.integers(0, number))}")
            case what:
                found = place(asks, shape, rig.ledger.states(name, soft=what == "name"))
                if name in rig.ledger and not isinstance(found, Rejection):
                    (rig.ledger.book if what == "book" else rig.ledger.name_softly)(
                        f"p{number}", name, Claim(asks, found)
                    )
        rig.workload.saw(demand_of(shape))
        rig.scores.row(data.draw(st.sampled_from(shapes))[1])
    for _, shape in shapes:
        row, anew = rig.scores.row(shape), Scores(rig.ledger.columns, rig.scores.pricing).row(shape)
        for name in rig.ledger:
            at = rig.ledger.row(name)
            closed = rig.ledger.closed(name)
            assert bool(row.fits[at]) == (closed is None and judge(shape, rig.ledger.states(name)) is None)
            assert (row.fits[at], row.softly[at]) == (anew.fits[at], anew.softly[at])
            assert row.score[at] == anew.score[at] or not row.fits[at]
            if row.fits[at]:
                assert row.softly[at] == (judge(shape, rig.ledger.states(name, soft=True)) is None)
