"""One node: what fits, on which GPUs, and what is said where nothing fits."""

from __future__ import annotations

import itertools
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.model.errors import RequestError
from tessera.model.guarantee import Guarantee
from tessera.model.inventory import gpu_id
from tessera.placement.fit import judge, place
from tessera.placement.gpustate import GpuState
from tessera.placement.holding import NOTHING, Holding, pod_holdings, within
from tessera.placement.reasons import Reason, Rejection
from tessera.placement.shape import MOST_CONTAINERS, shape_of
from tessera.placement.wishes import Wishes


@pytest.fixture(scope="session")
def decide(unit):
    """Place asks on states; wishes as keyword arguments."""

    def go(asks, states, **wishes):
        return place(asks, shape_of(asks, unit=unit, wishes=Wishes(**wishes)), states)

    return go


def on(places, container="main"):
    return [int(each.gpu, 16) for each in places[container]]


def text(found):
    assert isinstance(found, Rejection)
    return found.text


def test_the_builders_agree_with_the_rule_for_ids(gpu):
    assert gpu_id(gpu(300).uuid) == gpu(300).id


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("pack", 2), ("spread", 1)],
)
def test_a_policy_chooses_among_gpus_that_fit(gpu, ask, decide, policy, expected):
    states = [GpuState(gpu(1)), GpuState(gpu(2), Holding(units=20)), GpuState(gpu(3), Holding(units=60))]
    assert on(decide([ask(units=10)], states, policy=policy)) == [expected]


def test_ties_go_to_the_first_gpu(gpu, ask, decide):
    assert on(decide([ask(units=10)], [GpuState(gpu(n)) for n in (7, 8, 9)])) == [7]


@pytest.mark.parametrize(
    "case",
    [
        ({"units": 32}, Holding(units=44), "needs 32 units (8 GiB), best GPU has 20 (5 GiB)"),
        ({"percent": 50}, Holding(percent=60, percent_units=38), "needs 50 % of memory, best GPU has 40 %"),
        ({"units": 1, "compute": 30}, Holding(units=1, compute=90), "needs 30 % of compute, best GPU has 10 %"),
        ({"whole": True}, Holding(units=1), "needs 1 whole GPU, 0 are free"),
        ({"units": 65}, NOTHING, "needs 65 units (16.25 GiB), largest GPU has 64 (16 GiB)"),
        ({"units": 1, "gpus": 2}, NOTHING, "needs 2 such GPUs, node has 1"),
        ({"mig": "1g.10gb"}, NOTHING, "needs 1 MIG instance of 1g.10gb, node has 0"),
    ],
)
def test_what_is_missing_is_said_in_numbers(gpu, ask, decide, case):
    asked, held, expected = case
    assert text(decide([ask(**asked)], [GpuState(gpu(1), held)])) == expected


def test_memory_and_compute_have_to_be_free_on_one_gpu(gpu, ask, decide):
    states = [GpuState(gpu(1), Holding(units=60)), GpuState(gpu(2), Holding(units=1, compute=90))]
    assert decide([ask(units=30, compute=30)], states).reason is Reason.BOTH


def test_several_gpus_need_room_on_each(gpu, ask, decide):
    states = [GpuState(gpu(1)), GpuState(gpu(2), Holding(units=60)), GpuState(gpu(3))]
    assert sorted(on(decide([ask(gpus=2, units=10)], states))) == [1, 3]
    assert text(decide([ask(gpus=3, units=10)], states)) == "needs 3 GPUs with room for its slice, 2 have it"


def test_a_percentage_is_of_each_gpus_own_size(gpu, ask, decide):
    # 60 % of 10 units are 6, of 100 are 60; both GPUs hold 50 units or 5.
    states = [GpuState(gpu(1, units=100), Holding(units=50)), GpuState(gpu(2, units=10), Holding(units=4))]
    assert on(decide([ask(percent=60)], states)) == [2]


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        ({"models": ("h100",)}, [2]),
        ({"not_models": ("a100",)}, [2]),
        ({"models": ("nvidia",), "not_models": ("h100", "t4")}, [1]),
        ({"least": Guarantee.PROCESS}, [3]),
        ({"least": Guarantee.KERNEL}, [3]),
    ],
)
def test_wishes_narrow_the_choice(gpu, ask, decide, wishes, expected):
    states = [
        GpuState(gpu(1)),
        GpuState(gpu(2, model="NVIDIA H100 80GB HBM3")),
        GpuState(gpu(3, model="Tesla T4", memory=Guarantee.KERNEL)),
    ]
    assert on(decide([ask(units=1)], states, **wishes)) == expected


def test_a_uuid_is_taken_whatever_its_case(gpu, ask, decide):
    states = [GpuState(gpu(n)) for n in (1, 2, 0xABC)]
    assert on(decide([ask(units=1)], states, uuids=(states[2].gpu.uuid.lower(),))) == [0xABC]


@pytest.mark.parametrize(
    ("wishes", "reason"),
    [
        ({"uuids": ("gpu-nowhere",)}, Reason.NO_UUID),
        ({"models": ("h100",)}, Reason.NO_MODEL),
        ({"least": Guarantee.KERNEL}, Reason.WEAK_GUARANTEE),
    ],
)
def test_a_wish_that_no_gpu_meets_is_never_met(gpu, ask, decide, wishes, reason):
    found = decide([ask(units=1)], [GpuState(gpu(1))], **wishes)
    assert (found.reason, found.reason.never) == (reason, True)


def test_a_sick_gpu_takes_nothing_and_that_passes(gpu, ask, decide):
    found = decide([ask(units=1)], [GpuState(gpu(1, health="sick"))])
    assert (found.reason, found.reason.never) == (Reason.SICK, False)


def test_no_gpu_at_all(ask, decide):
    assert decide([ask(units=1)], []).reason is Reason.NO_GPU


def test_two_containers_may_share_a_gpu_or_not(gpu, ask, decide):
    asks = [ask("a", units=30), ask("b", units=30)]
    together = decide(asks, [GpuState(gpu(1)), GpuState(gpu(2))])
    assert (on(together, "a"), on(together, "b")) == ([1], [1])
    apart = decide(asks, [GpuState(gpu(1), Holding(units=30)), GpuState(gpu(2), Holding(units=30))])
    assert sorted(on(apart, "a") + on(apart, "b")) == [1, 2]


def test_an_arrangement_is_found_where_the_greedy_one_fails(gpu, ask, decide):
    # Free: 10 and 6. Packing 6 into the tightest GPU first is right, packing 5 there would not be.
    states = [GpuState(gpu(1), Holding(units=54)), GpuState(gpu(2), Holding(units=58))]
    found = decide([ask("a", units=5), ask("b", units=6), ask("c", units=5)], states)
    assert (on(found, "a"), on(found, "b"), on(found, "c")) == ([1], [2], [1])


def test_fitting_one_by_one_is_not_fitting(gpu, ask, decide):
    found = decide([ask("a", units=40), ask("b", units=40)], [GpuState(gpu(1))])
    assert (found.reason, found.reason.never) == (Reason.ARRANGEMENT, False)


def test_an_init_container_ties_all_to_one_gpu_and_reuses(gpu, ask, decide):
    asks = [ask("init", units=50, role="init"), ask("main", units=60)]
    found = decide(asks, [GpuState(gpu(1)), GpuState(gpu(2))])
    assert (on(found, "init"), on(found, "main")) == ([1], [1])


def test_an_init_container_after_a_sidecar_needs_both_at_once(gpu, ask, decide):
    asks = [ask("side", units=20, role="sidecar"), ask("init", units=50, role="init"), ask("main", units=10)]
    found = decide(asks, [GpuState(gpu(1))])
    assert (found.reason, found.reason.never) == (Reason.SMALL_TOGETHER, True)
    found = decide(asks, [GpuState(gpu(1, units=80), Holding(units=20))])
    assert (found.reason, found.reason.never) == (Reason.TOGETHER, False)


def test_several_gpus_beside_an_init_container_are_refused_with_the_fix(ask, unit):
    with pytest.raises(RequestError, match="sidecar"):
        shape_of([ask("i", units=1, role="init"), ask("m", units=1, gpus=2)], unit=unit, wishes=Wishes())


def test_a_pod_of_very_many_containers_is_refused(ask, unit):
    asks = [ask(f"c{n}", units=1) for n in range(MOST_CONTAINERS + 1)]
    with pytest.raises(RequestError, match="at most 64"):
        shape_of(asks, unit=unit, wishes=Wishes())


@pytest.mark.parametrize(
    ("join", "expected"),
    [("nvlink", [2, 4]), ("numa", [1, 3])],
)
def test_gpus_that_must_hang_together_do(gpu, ask, decide, join, expected):
    states = [
        GpuState(gpu(1, numa=0)),
        GpuState(gpu(2, numa=1, links={4: "nvlink"})),
        GpuState(gpu(3, numa=0)),
        GpuState(gpu(4, numa=2)),
    ]
    assert sorted(on(decide([ask(gpus=2, units=1)], states, joins=(join,)))) == expected


def test_links_that_are_not_there_are_never_there(gpu, ask, decide):
    states = [GpuState(gpu(n)) for n in range(4)]
    found = decide([ask(gpus=2, units=1)], states, joins=("nvlink",))
    assert (found.text, found.reason.never) == ("needs 2 GPUs joined by NVLink", True)


def test_links_between_gpus_that_are_full_may_come_free(gpu, ask, decide):
    states = [GpuState(gpu(1, links={2: "nvlink"}), Holding(units=64)), GpuState(gpu(2)), GpuState(gpu(3))]
    found = decide([ask(gpus=2, units=1)], states, joins=("nvlink",))
    assert (found.reason, found.reason.never) == (Reason.FREE_LINKS, False)


def test_links_are_preferred_where_they_are_not_required(gpu, ask, decide):
    states = [GpuState(gpu(1)), GpuState(gpu(2, links={3: "nvlink"})), GpuState(gpu(3))]
    assert sorted(on(decide([ask(gpus=2, units=1)], states))) == [2, 3]
    assert sorted(on(decide([ask(gpus=3, units=1)], states))) == [1, 2, 3]


def test_mig_instances_are_given_by_id(gpu, ask, decide):
    states = [
        GpuState(gpu(1, mig=("1g.10gb", "1g.10gb"))),
        GpuState(gpu(2, mig=("1g.10gb", "2g.20gb")), taken={"g1"}),
        GpuState(gpu(3)),
    ]
    asks = [ask("a", mig="1g.10gb", gpus=2), ask("b", units=5)]
    found = decide(asks, states)
    assert [(int(p.gpu, 16), p.instance) for p in found["a"]] == [(2, "g0"), (1, "g0")]
    assert on(found, "b") == [3]
    taken = decide([ask(mig="2g.20gb")], states)
    assert (taken.text, taken.reason.never) == ("needs 1 MIG instance of 2g.20gb, 0 are free", False)


def test_a_plus_in_a_profile_is_a_dot_in_its_ticket(gpu, ask, decide):
    found = decide([ask(mig="1g.10gb.me")], [GpuState(gpu(1, mig=("1g.10gb+me",)))])
    assert found["main"][0].instance == "g0"


def test_an_init_container_borrows_the_instances_of_what_comes_later(gpu, ask, decide):
    asks = [ask("init", mig="1g.10gb", gpus=2, role="init"), ask("main", mig="1g.10gb")]
    found = decide(asks, [GpuState(gpu(1, mig=("1g.10gb", "1g.10gb")))])
    assert [p.instance for p in found["init"]] == ["g0", "g1"]
    assert [p.instance for p in found["main"]] == ["g0"]


def test_slices_do_not_go_on_a_gpu_cut_by_mig(gpu, ask, decide):
    assert decide([ask(units=1)], [GpuState(gpu(1, mig=("1g.10gb",)))]).reason is Reason.NO_GPU


def test_a_search_that_would_take_for_ever_ends(gpu, ask, decide):
    # 30 slices of odd sizes into GPUs whose sum is one unit short.
    sizes = [7, 11, 13, 9, 8] * 6
    states = [GpuState(gpu(n, units=sum(sizes) // 6 - (n == 0))) for n in range(6)]
    found = decide([ask(f"c{n}", units=size) for n, size in enumerate(sizes)], states)
    assert found.reason is Reason.ARRANGEMENT


def test_placement_on_one_node_needs_no_numpy():
    import subprocess

    script = (
        "import sys, tessera.placement.fit, tessera.placement.claims, tessera.placement.wishes; "
        "sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


amounts = st.one_of(
    st.fixed_dictionaries({"units": st.integers(1, 12), "compute": st.sampled_from([None, 20, 50])}),
    st.fixed_dictionaries({"percent": st.integers(1, 100), "compute": st.sampled_from([None, 40])}),
    st.just({"whole": True}),
)
holdings = st.builds(
    Holding, units=st.integers(0, 8), percent=st.just(0), percent_units=st.just(0), compute=st.integers(0, 100)
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_an_arrangement_is_found_exactly_where_there_is_one(gpu, ask, unit, data):
    count = data.draw(st.integers(1, 3))
    states = [GpuState(gpu(n, units=data.draw(st.sampled_from([8, 12]))), data.draw(holdings)) for n in range(count)]
    asks = [
        ask(f"c{n}", gpus=data.draw(st.integers(1, 2)), **data.draw(amounts))
        for n in range(data.draw(st.integers(1, 3)))
    ]
    shape = shape_of(asks, unit=unit, wishes=Wishes(policy=data.draw(st.sampled_from(["pack", "spread"]))))
    capacity = {state.gpu.id: state.gpu.units for state in states}
    held = {state.gpu.id: state.held for state in states}

    def ok(assignment):
        more = pod_holdings(asks, assignment, capacity=capacity, unit=unit)
        return all(within(held[name] + piece, capacity=capacity[name]) for name, piece in more.items())

    choices = [list(itertools.combinations(capacity, each.request.gpus)) for each in asks]
    exists = any(
        ok({each.container: chosen for each, chosen in zip(asks, combination, strict=True)})
        for combination in itertools.product(*choices)
    )
    found = place(asks, shape, states)
    assert exists is not isinstance(found, Rejection)
    if not isinstance(found, Rejection):
        assert ok({name: [each.gpu for each in places] for name, places in found.items()})
        assert all(len({p.gpu for p in found[each.container]}) == each.request.gpus for each in asks), (
            "different GPUs for one container"
        )
    if len(asks) == 1:
        assert (judge(shape, states) is None) is exists
