"""What the cluster and its people are told."""

from __future__ import annotations

import asyncio
import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin.board import Board
from deviceplugin.devices import View, device_id
from deviceplugin.drift import drift
from deviceplugin.errors import KubeletError
from deviceplugin.ledger import Grant
from deviceplugin.monitor import HeldSlice
from deviceplugin.notices import Notices
from deviceplugin.publish import Publisher, label, labels, metadata
from deviceplugin.rivals import Rivals, served
from deviceplugin.slices import Given, Slice, planned_slices
from deviceplugin.tenants import Tenants
from tessera.kube.client import Patch
from tessera.kube.errors import UnavailableError
from tessera.model.guarantee import Guarantee, Guarantees
from tessera.model.inventory import Gpu, Inventory, MigInstance
from tessera.model.names import names
from tessera.model.plan import PlannedSlice
from tessera.model.pod import ContainerStatus, Pod, PodStatus
from tessera.model.request import ContainerRequest
from tessera.placement.holding import hold

NAMES = names()
UNITS, PERCENT, COMPUTE = NAMES.tickets
A, B = "aaaaaaaaaaaa", "bbbbbbbbbbbb"


def ids(numbers, gpu=A, view=View.UNITS):
    return tuple(device_id(gpu, view, number) for number in numbers)


# Labels.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("NVIDIA A100-SXM4-80GB", "NVIDIA-A100-SXM4-80GB"),
        ("  Tesla T4 ", "Tesla-T4"),
        ("GeForce RTX™ 4090 (24 GB)", "GeForce-RTX-4090-24-GB"),
        ("-._", ""),
        ("x" * 62 + "-yz", "x" * 62),
    ],
)
def test_any_name_becomes_a_label(text, value):
    assert value == label(text)


@given(st.text(max_size=100))
def test_every_label_is_one(text):
    value = label(text)
    assert len(value) <= 63
    assert all(each.isascii() and (each.isalnum() or each in "-_.") for each in value)
    assert not value or (value[0].isalnum() and value[-1].isalnum())


def test_a_mixed_node_is_named_by_most_of_its_gpus():
    gpus = [
        Gpu(id=f"{n:012x}", uuid=f"GPU-{n}", index=n, model=model, memory=memory << 30, units=1)
        for n, (model, memory) in enumerate([("T4", 15), ("A100", 80), ("A100", 80)])
    ]
    assert labels(gpus, NAMES) == {
        "tessera.dev/gpu-model": "A100",
        "tessera.dev/gpu-count": "3",
        "tessera.dev/gpu-memory-mib": "81920",
        "tessera.dev/sharing": "true",
    }


def test_a_node_without_gpus_has_nothing_of_ours():
    wanted = metadata(Inventory(v=1, unit=1, gpus=()), {}, NAMES)
    assert {value for part in wanted.values() for value in part.values()} == {None}


# Publishing.


class Api:
    def __init__(self):
        self.bodies = []
        self.failures = 0

    async def patch(self, resource, name, body, *, kind):
        assert (resource.plural, name, kind) == ("nodes", "n1", Patch.MERGE)
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise UnavailableError("patch nodes n1", status=503, detail="away")
        self.bodies.append(json.loads(body)["metadata"])
        return b""


@pytest.fixture
def api():
    return Api()


@pytest.fixture
def state():
    return {"annotations": {"i": "1", "d": None}, "labels": {"l": "x"}}


@pytest.fixture
def publisher(api, state, clock):
    return Publisher(
        api, "n1", state=lambda: {part: dict(each) for part, each in state.items()}, clock=clock, rng=Random(1)
    )


async def test_everything_is_written_once_and_then_what_changed(publisher, api, state):
    assert await publisher.publish()
    assert await publisher.publish()
    state["annotations"]["i"] = "2"
    assert await publisher.publish()
    assert api.bodies == [
        {"annotations": {"i": "1", "d": None}, "labels": {"l": "x"}},
        {"annotations": {"i": "2"}, "labels": {}},
    ]


async def test_what_could_not_be_written_is_written_later_as_it_is_then(publisher, api, state):
    api.failures = 3
    running = asyncio.create_task(publisher.run())
    assert not await publisher.publish()
    assert "away" in publisher.problem
    state["annotations"]["i"] = "9"
    async with asyncio.timeout(5):
        while not api.bodies:  # noqa: ASYNC110 - the fake calls nobody
            await asyncio.sleep(0)
    assert api.bodies[0]["annotations"]["i"] == "9"
    assert publisher.problem is None
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_many_changes_are_one_write(publisher, api, state):
    running = asyncio.create_task(publisher.run())
    async with asyncio.timeout(5):
        while not api.bodies:  # noqa: ASYNC110 - the fake calls nobody
            await asyncio.sleep(0)
        for number in range(50):
            state["annotations"]["i"] = f"n{number}"
            publisher.wake()
        while len(api.bodies) < 2:  # noqa: ASYNC110 - the fake calls nobody
            await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert [body["annotations"]["i"] for body in api.bodies] == ["1", "n49"]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


# Drift.


def test_drift_is_what_is_not_as_planned(board, pods, identity, placing, make_pod):
    planned = make_pod("planned", {"main": {UNITS: 8}}, plan={"main": [(A, 8, 0)]})
    moved = make_pod("moved", {"main": {UNITS: 8}}, plan={"main": [(A, 8, 0)]})
    whole = make_pod("whole", {"main": {PERCENT: 100, COMPUTE: 100}})
    for pod in (planned, moved, whole):
        pods.put(pod)

    def give(uid, devices, **more):
        board.ledger.give(Grant(uid=uid, container="main", devices=devices, **more))

    give("uid-planned", {UNITS: ids(range(8))})
    give("uid-moved", {UNITS: ids(range(8), B)}, planned=True)
    give("uid-vanished", {UNITS: ids(range(8, 16))}, planned=True)
    board.ledger.give_unknown(UNITS, ids(range(100, 110)))
    assert drift(board, pods, identity, placing) == {"uid-moved": {"main": (PlannedSlice(gpu=B, units=8, compute=0),)}}
    board.ledger.free(["uid-moved"])
    give("uid-whole", {PERCENT: ids(range(100), B, View.PERCENT), COMPUTE: ids(range(100), B, View.COMPUTE)})
    assert drift(board, pods, identity, placing) == {
        "uid-whole": {"main": (PlannedSlice(gpu=B, units=320, compute=100, whole=True),)}
    }


@pytest.mark.parametrize("order", [(UNITS, COMPUTE), (COMPUTE, UNITS)])
def test_a_slice_is_told_when_all_its_tickets_are_there(board, pods, identity, placing, make_pod, order):  # noqa: PLR0917
    pods.put(make_pod("p", {"main": {UNITS: 8, COMPUTE: 30}}))
    told = []
    tickets = {COMPUTE: ids(range(30), A, View.COMPUTE), UNITS: ids(range(8))}
    for devices in ({name: tickets[name]} for name in order):
        board.ledger.give(Grant(uid="uid-p", container="main", devices=devices))
        told.append(drift(board, pods, identity, placing))
    assert told == [{}, {"uid-p": {"main": (PlannedSlice(gpu=A, units=8, compute=30),)}}]


@pytest.mark.parametrize(
    ("plan", "as_planned"),
    [
        ((A, 8, 30), True),
        ((A, 9, 30), False),
        ((A, 8, 0), False),
        ((B, 8, 30), False),
    ],
)
def test_amounts_beside_the_plan_are_drift(board, pods, identity, placing, make_pod, plan, as_planned):  # noqa: PLR0917
    pods.put(make_pod("p", {"main": {UNITS: 8, COMPUTE: 30}}, plan={"main": [plan]}))
    devices = {UNITS: ids(range(8)), COMPUTE: ids(range(30), A, View.COMPUTE)}
    board.ledger.give(Grant(uid="uid-p", container="main", devices=devices))
    assert (drift(board, pods, identity, placing) == {}) is as_planned


@given(st.integers(1, 400), st.integers(1, 100), st.integers(0, 100), st.booleans())
def test_what_the_plan_of_a_request_says_is_what_its_tickets_come_to(size, amount, compute, in_percent):
    """Capacities at random, so that no rounding of a percentage makes drift out of nothing."""
    gpu = A
    board = Board(NAMES, [Gpu(id=A, uuid=f"GPU-{A}", index=0, model="A100", memory=80 << 30, units=size)])
    if in_percent:
        request = ContainerRequest(gpus=1, memory_percent=amount, compute=compute or None)
        devices = {PERCENT: ids(range(amount), gpu, View.PERCENT)}
    else:
        amount = min(amount, size)
        request = ContainerRequest(gpus=1, memory=amount * NAMES.memory_unit, compute=compute or None)
        devices = {UNITS: ids(range(amount), gpu)}
    if compute:
        devices[COMPUTE] = ids(range(compute), gpu, View.COMPUTE)
    held = hold(request, capacity=size, unit=NAMES.memory_unit)
    (piece,) = planned_slices(Grant(uid="u", container="c", devices=devices), board)
    assert (piece.units, piece.compute) == (held.all_units, held.compute)


def test_drift_names_a_static_pod_as_the_api_does(board, pods, identity, placing, make_pod):
    mirror = make_pod("s", {"main": {UNITS: 8}}, uid="api", notes={"kubernetes.io/config.mirror": "static"})
    pods.put(mirror)
    pods.by_uid = lambda uid: mirror if uid == "static" else None
    board.ledger.give(Grant(uid="static", container="main", devices={UNITS: ids(range(8))}))
    assert set(drift(board, pods, identity, placing)) == {"api"}


# Events.


class Recorder:
    def __init__(self):
        self.events = []

    def emit(self, regarding, *, reason, message, warning=False):
        self.events.append((regarding.name, regarding.uid, reason, warning, message))


@pytest.fixture
def recorder():
    return Recorder()


def test_a_slice_and_its_guarantee_are_said_once(recorder, pods, make_pod, make_gpu):
    gpu = make_gpu(guarantee=Guarantees(memory=Guarantee.WATCHED, compute=Guarantee.NONE))
    given_ = Given(make_pod("p", {"main": {UNITS: 32}}), "main", None, (Slice(gpu, 32, 30),))
    notices = Notices(recorder, pods, NAMES)
    notices.started(given_)
    notices.started(given_)
    assert recorder.events == [
        (
            "p",
            "uid-p",
            "SliceGranted",
            False,
            (
                'container "main" has 8 GiB and 30 % of compute of GPU aaaaaaaaaaaa (A100), guarantee: memory watched, '
                "compute none"
            ),
        )
    ]


def test_whole_gpus_and_instances_have_words_of_their_own(recorder, pods, make_pod, make_gpu):
    slices = (Slice(make_gpu(0), 320, 100, whole=True), Slice(make_gpu(1), None, None, instance="g7"))
    Notices(recorder, pods, NAMES).started(Given(make_pod("p", {}), "main", None, slices))
    text = recorder.events[0][-1]
    assert "all of GPU aaaaaaaaaaaa" in text
    assert "MIG instance g7 of GPU bbbbbbbbbbbb" in text


def test_bad_news_are_warnings_and_nobody_is_told_of_nobody(recorder, pods):
    notices = Notices(recorder, pods, NAMES)
    notices.failed(Grant(uid="u", container="c", namespace="d", name="p", devices={}), "no")
    notices.failed(Grant(uid="?1", container="", devices={}), "no")
    notices.excess("u", "d", "p", "too much")
    assert [(event[2], event[3]) for event in recorder.events] == [("SliceRefused", True), ("SliceExceeded", True)]
    Notices(None, pods, NAMES).excess("u", "d", "p", "too much")


# Other device plugins.


def test_what_others_serve_is_told_by_uuid():
    devices = {
        "nvidia.com/gpu": ["GPU-aaaaaaaa-aaaa-1111-2222-333333333333::3", "GPU-zz", "weird"],
        "nvidia.com/mig-1g.10gb": ["MIG-1", "MIG-2"],
        "example.com/gpu": ["GPU-cccccccc-cccc-1111-2222-333333333333"],
    }
    assert served(devices, {"MIG-1": B}) == {A: "nvidia.com/gpu", B: "nvidia.com/mig-1g.10gb"}


async def test_a_rival_is_named_and_its_going_is_noticed(board, clock):
    class Kubelet:
        devices = {"nvidia.com/gpu": frozenset({"GPU-aaaaaaaa-aaaa-1111-2222-333333333333"})}  # noqa: RUF012
        error = None

        async def allocatable(self):
            if self.error:
                raise self.error
            return self.devices

    kubelet = Kubelet()
    rivals = Rivals(board, kubelet, instances=dict, clock=clock)
    await rivals.step()
    assert "another device plugin serves GPU aaaaaaaaaaaa as nvidia.com/gpu" in rivals.problem
    assert not board.serving(A)
    assert board.serving(B)
    kubelet.error = KubeletError("away")
    await rivals.step()
    assert rivals.problem, "no answer is no proof"
    kubelet.error, kubelet.devices = None, {}
    await rivals.step()
    assert rivals.problem is None
    assert board.serving(A)


# What the monitor is told.


def test_tenants_are_the_ledgers_slices(board, pods, make_pod):
    pod = make_pod("p", {"main": {}})
    statuses = (ContainerStatus(name="main", container_id="containerd://abc"), ContainerStatus(name="x"))
    pods.put(Pod(metadata=pod.metadata, spec=pod.spec, status=PodStatus(container_statuses=statuses)))
    board.ledger.give(
        Grant(uid="uid-p", namespace="default", name="p", container="main", devices={UNITS: ids(range(8))})
    )
    tenants = Tenants(board, pods)
    (tenant,) = tenants.tenants().values()
    assert tenant.slices == (HeldSlice(gpu=A, memory=2 << 30, bounded=True),)
    assert tenants.tenants() is tenants.tenants(), "made once for each state"
    assert tenants.container("uid-p", "abc") == "main"
    assert tenants.container("uid-p", "zzz") is None
    assert tenants.container("nobody", "abc") is None
    assert (tenants.has_object("uid-p"), tenants.has_object("nobody")) == (True, False)


def test_a_mig_instance_bounds_itself(make_gpu, pods):
    from deviceplugin.board import Board

    gpu = make_gpu(units=0, mig=(MigInstance(id="g7", profile="1g.10gb"),))
    board = Board(NAMES, [gpu])
    board.ledger.give(Grant(uid="u", container="c", devices={"tessera.dev/mig-1g.10gb": (f"{A}-g7",)}))
    (tenant,) = Tenants(board, pods).tenants().values()
    assert [piece.bounded for piece in tenant.slices] == [False]
