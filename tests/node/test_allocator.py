"""GetPreferredAllocation and Allocate, without sockets."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deviceplugin.allocator import Allocator
from deviceplugin.board import Board
from deviceplugin.devices import gpu_of
from deviceplugin.errors import KubeletError, RefusedError
from deviceplugin.identity import Identity
from deviceplugin.ledger import Grant, Ledger
from deviceplugin.placing import Placing
from tessera.model.config import Placement
from tessera.model.names import names
from tessera.placement.holding import within

NAMES = names()
UNITS, PERCENT, COMPUTE = NAMES.tickets
A, B = "aaaaaaaaaaaa", "bbbbbbbbbbbb"


class Kubelet:
    """Chooses as a kubelet does: what it was told to prefer."""

    def __init__(self, board, allocator, lister):
        self.board = board
        self.allocator = allocator
        self.lister = lister

    def free(self, resource):
        held = {
            device
            for containers in self.lister.pods.values()
            for devices in containers.values()
            for device in devices.get(resource, ())
        }
        return sorted(self.board.offers[resource].all - held)

    async def give(self, name, container, resource, size, *, must=()):
        available = sorted({*self.free(resource), *must})
        ids = await self.allocator.prefer(resource, available, list(must), size)
        assert len(ids) == len(set(ids)) == size
        assert set(must) <= set(ids)
        answer = self.allocator.allocate(resource, ids)
        self.lister.pods.setdefault(("default", name), {}).setdefault(container, {})[resource] = ids
        return answer


@pytest.fixture
def seen():
    """UIDs of pods whose processes are on the node."""
    return frozenset()


@pytest.fixture
def allocator(board, identity, placing, pods, clock, seen):  # noqa: PLR0917 - fixtures
    return Allocator(board, identity=identity, placing=placing, pods=pods, clock=clock, seen=lambda: seen)


@pytest.fixture
def kubelet(board, allocator, lister):
    return Kubelet(board, allocator, lister)


@pytest.fixture
def make_world(make_gpu, make_lister, make_pods, clock):
    """A board of two small GPUs with everything around it, anew for each example."""

    def make():
        board, lister, pods = Board(NAMES, [make_gpu(0, units=100), make_gpu(1, units=100)]), make_lister(), make_pods()
        identity = Identity(lister, pods, board.ledger, NAMES, clock)
        placing = Placing(board, "n1", Placement, pods=pods.by_uid)
        allocator = Allocator(board, identity=identity, placing=placing, pods=pods, clock=clock, seen=frozenset)
        return board, Kubelet(board, allocator, lister), pods

    return make


@pytest.fixture
def bind(pods, lister):
    def bind_(pod):
        pods.put(pod)
        names_ = [each.name for each in pod.spec.containers]
        names_ += [each.name for each in pod.spec.init_containers if each.restart_policy == "Always"]
        lister.pods[("default", pod.metadata.name)] = {name: {} for name in names_}

    return bind_


@pytest.mark.parametrize("order", [(UNITS, COMPUTE), (COMPUTE, UNITS)])
async def test_only_the_last_answer_of_a_container_carries_its_slice(kubelet, bind, make_pod, order):
    bind(make_pod("p", {"main": {UNITS: 32, COMPUTE: 30}}, plan={"main": [(B, 32, 30)]}))
    first, second = [
        await kubelet.give("p", "main", resource, {UNITS: 32, COMPUTE: 30}[resource]) for resource in order
    ]
    assert first.given is None
    (piece,) = second.given.slices
    assert (piece.gpu.id, piece.units, piece.compute) == (B, 32, 30)
    assert second.kind == "planned"


async def test_allocate_never_asks_the_kubelet(kubelet, bind, make_pod, lister, allocator):
    bind(make_pod("p", {"main": {UNITS: 8}}, plan={"main": [(A, 8, 0)]}))
    ids = await allocator.prefer(UNITS, kubelet.free(UNITS), [], 8)
    assert lister.calls == ["List"]
    assert allocator.quiet_in > 0
    allocator.allocate(UNITS, ids)
    assert lister.calls == ["List"]


async def test_the_second_resource_follows_the_first_even_where_it_must_fail(kubelet, bind, make_pod, board, make_gpu):
    bind(make_pod("p", {"main": {UNITS: 32, COMPUTE: 30}}))
    await kubelet.give("p", "main", UNITS, 32)
    board.update([make_gpu(0, health="sick"), make_gpu(1)])
    with pytest.raises(RefusedError, match=f"its other resource is on GPU {A} and GPU {A} is sick"):
        await kubelet.give("p", "main", COMPUTE, 30)


async def test_a_plan_on_a_sick_gpu_goes_elsewhere(kubelet, bind, make_pod, board, make_gpu):
    board.update([make_gpu(0, health="sick"), make_gpu(1)])
    bind(make_pod("p", {"main": {UNITS: 8}}, plan={"main": [(A, 8, 0)]}))
    answer = await kubelet.give("p", "main", UNITS, 8)
    assert (answer.grant.gpus, answer.kind) == ((B,), "drift")


async def test_a_plan_for_which_there_is_no_room_goes_elsewhere_and_says_the_sizes(kubelet, bind, make_pod, caplog):
    bind(make_pod("p", {"main": {UNITS: 300}}, plan={"main": [(A, 300, 0)]}))
    await kubelet.give("p", "main", UNITS, 300)
    bind(make_pod("q", {"main": {UNITS: 32}}, plan={"main": [(A, 32, 0)]}))
    assert (await kubelet.give("q", "main", UNITS, 32)).grant.gpus == (B,)
    said = f"GPU {A} has no room: 75 GiB of 80 GiB and 0 % of compute are given, it needs 8 GiB and 0 %"
    assert said in caplog.text


async def test_a_gpu_of_another_plugin_is_never_chosen(kubelet, bind, make_pod, board):
    board.withhold([A])
    bind(make_pod("p", {"main": {UNITS: 8}}, plan={"main": [(A, 8, 0)]}))
    assert (await kubelet.give("p", "main", UNITS, 8)).grant.gpus == (B,)


async def test_ids_that_the_kubelet_offers_twice_are_passed_over(kubelet, bind, make_pod, allocator):
    bind(make_pod("p", {"main": {UNITS: 8}}, plan={"main": [(A, 8, 0)]}))
    given = (await kubelet.give("p", "main", UNITS, 8)).grant.devices[UNITS]
    bind(make_pod("q", {"main": {UNITS: 8}}, plan={"main": [(A, 8, 0)]}))
    everything = sorted(kubelet.board.offers[UNITS].all)
    ids = await allocator.prefer(UNITS, everything, [], 8)
    assert not set(given) & set(ids)
    with pytest.raises(RefusedError, match="default/p, container main holds; refused so that two pods"):
        allocator.allocate(UNITS, [*ids[:7], given[0]])


async def test_a_pod_that_the_kubelet_has_let_go_is_let_go_here_too(kubelet, bind, make_pod, lister, board):
    bind(make_pod("p", {"main": {UNITS: 320}}, plan={"main": [(A, 320, 0)]}))
    await kubelet.give("p", "main", UNITS, 320)
    # Rejected, say: the kubelet offers its IDs again before our watch has seen its phase.
    del lister.pods[("default", "p")]
    bind(make_pod("q", {"main": {UNITS: 320}}, plan={"main": [(A, 320, 0)]}))
    answer = await kubelet.give("q", "main", UNITS, 320)
    assert (answer.grant.gpus, answer.kind) == ((A,), "planned")
    assert board.ledger.pods == {"uid-q"}


@pytest.mark.parametrize("seen", [frozenset({"uid-p"})])
async def test_a_pod_whose_processes_run_keeps_its_slice_whatever_the_kubelet_says(kubelet, lister, bind, make_pod):
    bind(make_pod("p", {"main": {UNITS: 320}}, plan={"main": [(A, 320, 0)]}))
    await kubelet.give("p", "main", UNITS, 320)
    del lister.pods[("default", "p")]
    bind(make_pod("q", {"main": {UNITS: 320}}, plan={"main": [(A, 320, 0)]}))
    assert (await kubelet.give("q", "main", UNITS, 320)).grant.gpus == (B,)


async def test_amounts_given_in_another_view_are_refused_although_the_ids_are_free(allocator, board):
    board.ledger.give(Grant(uid="u", container="c", devices={UNITS: board.offers[UNITS].ids[A][:200]}))
    with pytest.raises(RefusedError, match=rf"GPU {A} would hold 360 of 320 units"):
        allocator.allocate(PERCENT, list(board.offers[PERCENT].ids[A][:50]))
    board.ledger.give(Grant(uid="v", container="c", devices={COMPUTE: board.offers[COMPUTE].ids[B][:60]}))
    board.ledger.give(Grant(uid="w", container="c", devices={COMPUTE: board.offers[COMPUTE].ids[B][50:60]}))
    with pytest.raises(RefusedError, match="110 % of compute"):
        allocator.allocate(COMPUTE, list(board.offers[COMPUTE].ids[B][60:]))


async def test_an_init_containers_ids_are_passed_on_without_being_preferred(kubelet, allocator, bind, make_pod, board):
    bind(make_pod("p", {"main": {UNITS: 8}, "side": {UNITS: 8}}, init={"warm": {UNITS: 10}}))
    warm = (await kubelet.give("p", "warm", UNITS, 10)).grant.devices[UNITS]
    answer = allocator.allocate(UNITS, list(warm[:8]))
    assert (answer.grant.container, answer.given.slices[0].units) == ("main", 8)
    # The third gets what is left of them and the rest by preference.
    kubelet.lister.pods[("default", "p")]["main"][UNITS] = warm[:8]
    answer = await kubelet.give("p", "side", UNITS, 8, must=warm[8:])
    assert (answer.grant.container, answer.grant.gpus) == ("side", (gpu_of(warm[0]),))
    assert board.ledger.held(gpu_of(warm[0])).units == 16


async def test_a_sidecars_ids_are_not_passed_on(kubelet, allocator, bind, make_pod):
    bind(make_pod("p", {"main": {UNITS: 8}}, sidecars={"proxy": {UNITS: 8}}))
    given = (await kubelet.give("p", "proxy", UNITS, 8)).grant.devices[UNITS]
    with pytest.raises(RefusedError, match="container proxy holds"):
        allocator.allocate(UNITS, list(given))


async def test_an_untold_pods_two_resources_meet_on_one_gpu(allocator, kubelet, lister):
    lister.error = KubeletError("away")
    ids = await allocator.prefer(COMPUTE, kubelet.free(COMPUTE), [], 30)
    first = allocator.allocate(COMPUTE, ids)
    second = allocator.allocate(UNITS, await allocator.prefer(UNITS, kubelet.free(UNITS), [], 32))
    assert first.grant.gpus == second.grant.gpus
    assert [(first.given.slices[0].units, first.given.slices[0].compute)] == [(0, 30)]
    assert [(second.given.slices[0].units, second.given.slices[0].compute)] == [(32, 0)]
    assert first.kind == second.kind == "unknown"


async def test_an_untold_pod_larger_than_a_gpu_goes_over_the_fewest(allocator, kubelet, lister):
    lister.error = KubeletError("away")
    ids = await allocator.prefer(PERCENT, kubelet.free(PERCENT), [], 200)
    assert {gpu: sum(gpu_of(each) == gpu for each in ids) for gpu in (A, B)} == {A: 100, B: 100}
    with pytest.raises(RefusedError, match="no GPU of this node has room"):
        await allocator.prefer(UNITS, kubelet.free(UNITS), [], 641 - 2)


@pytest.mark.parametrize(("size", "must"), [(0, 0), (-1, 0), (9999, 0), (2, 3)])
async def test_questions_that_make_no_sense_are_refused(allocator, kubelet, size, must):
    free = kubelet.free(UNITS)
    with pytest.raises(RefusedError, match="the kubelet prefers"):
        await allocator.prefer(UNITS, free, free[:must], size)


async def test_strange_ids_in_an_offer_are_passed_over(allocator, kubelet, lister):
    lister.error = KubeletError("away")
    ids = await allocator.prefer(UNITS, ["x", "", f"{A}-c00", *kubelet.free(UNITS)], [], 8)
    assert set(ids) <= kubelet.board.offers[UNITS].all


async def test_a_pod_that_wants_two_gpus_gets_two(kubelet, bind, make_pod):
    request = '{"v":1,"dialect":"tessera","containers":{"main":{"gpus":2,"memory":8589934592,"compute":30}}}'
    bind(make_pod("p", {"main": {UNITS: 64, COMPUTE: 60}}, notes={NAMES.request: request}))
    await kubelet.give("p", "main", COMPUTE, 60)
    answer = await kubelet.give("p", "main", UNITS, 64)
    assert sorted((piece.gpu.id, piece.units, piece.compute) for piece in answer.given.slices) == [
        (A, 32, 30),
        (B, 32, 30),
    ]


asked = st.lists(
    st.tuples(
        st.sampled_from([UNITS, PERCENT]),
        st.integers(1, 100),
        st.integers(0, 60),
        st.sampled_from([None, A, B]),
        st.booleans(),
        st.integers(0, 5),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=asked)
async def test_whatever_comes_no_gpu_is_given_away_twice(make_gpu, make_pod, make_world, script):
    """Pods with and without plans come and go; what the kubelet records never exceeds a GPU in any view."""
    board, kubelet, pods = make_world()
    alive = []
    for number, (memory, size, compute, planned, sick, leaving) in enumerate(script):
        name = f"p{number}"
        counts = {memory: size} | ({COMPUTE: compute} if compute else {})
        plan = {"main": [(planned, size, compute)]} if planned else None
        board.update([make_gpu(0, units=100, health="sick" if sick else "ok"), make_gpu(1, units=100)])
        pods.put(make_pod(name, {"main": counts}, plan=plan))
        kubelet.lister.pods[("default", name)] = {"main": {}}
        try:
            for resource, count in counts.items():
                await kubelet.give(name, "main", resource, count)
            alive.append(name)
        except RefusedError:
            # Rejected: the kubelet lets go at once, the API says so a little later.
            del kubelet.lister.pods[("default", name)]
        if leaving < len(alive):
            gone = alive.pop(leaving)
            del kubelet.lister.pods[("default", gone)]
            board.ledger.free([f"uid-{gone}"])
        recorded = Ledger(NAMES, {A: 100, B: 100})
        for (_, pod), containers in kubelet.lister.pods.items():
            devices = {resource: tuple(ids) for resource, ids in containers["main"].items()}
            recorded.give(Grant(uid=pod, container="main", devices=devices))
            assert len({gpu_of(device) for ids in devices.values() for device in ids}) <= 1
        for gpu in (A, B):
            assert within(recorded.held(gpu), capacity=100)
        given_ids = [
            device
            for containers in kubelet.lister.pods.values()
            for ids in containers["main"].values()
            for device in ids
        ]
        assert len(set(given_ids)) == len(given_ids)


async def test_a_pod_without_a_plan_keeps_apart_too(kubelet, bind, make_pod):
    """Whoever came first, and whether a scheduler or the node itself chooses."""
    bind(make_pod("live", {"main": {UNITS: 8}}, plan={"main": [(A, 8, 0)]}, notes={NAMES.gpu_avoid_class: "batch"}))
    await kubelet.give("live", "main", UNITS, 8)
    bind(make_pod("batch", {"main": {UNITS: 8}}, notes={NAMES.gpu_class: "batch", NAMES.gpu_placement: "pack"}))
    answer = await kubelet.give("batch", "main", UNITS, 8)
    assert [piece.gpu.id for piece in answer.given.slices] == [B]
