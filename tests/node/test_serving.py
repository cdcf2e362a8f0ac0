"""Sockets, registration, and hand-over, over real unix sockets."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack

import grpc.aio
import pytest

from deviceplugin._proto import deviceplugin_v1beta1_pb2 as api
from deviceplugin.allocator import Allocator
from deviceplugin.errors import AdvertiseError, KubeletError, TakeoverError
from deviceplugin.isolation.injection import Injection, Mount
from deviceplugin.ledger import Grant
from deviceplugin.metrics import NodeMetrics
from deviceplugin.prestart import PreStart
from deviceplugin.registration import Registrar, stamp
from deviceplugin.server import TicketServer, leave_equal, response
from deviceplugin.slices import Given, Slice
from deviceplugin.takeover import NodeLock
from tessera.kube.clock import SystemClock
from tessera.model.guarantee import Guarantee, Guarantees
from tessera.model.names import names
from tessera.testing.kubelet.sockets import serve, unary

NAMES = names()
UNITS, PERCENT, COMPUTE = NAMES.tickets
PATIENCE = 10.0


class Injector:
    def inject(self, given):
        return Injection(envs={"GPUS": ",".join(piece.gpu.id for piece in given.slices)})


@pytest.fixture
def make_server(board, identity, placing, pods, lister, clock):  # noqa: PLR0917 - fixtures
    allocator = Allocator(board, identity=identity, placing=placing, pods=pods, clock=clock, seen=frozenset)
    told = []
    prestart = PreStart(
        board,
        allocator=allocator,
        identity=identity,
        placing=placing,
        pods=pods,
        lister=lister,
        checkpoint=tuple,
        clock=clock,
        started=told.append,
        failed=lambda _, message: told.append(message),
    )

    def make(resource):
        return TicketServer(
            resource,
            board=board,
            allocator=allocator,
            prestart=prestart,
            injector=Injector(),
            metrics=NodeMetrics(),
            clock=clock,
        )

    make.told = told
    return make


@pytest.fixture
async def served(make_server, folder):
    """A server of memory units and a way to call it."""
    server = make_server(UNITS)
    await server.start(f"{folder}/s.sock")
    async with grpc.aio.insecure_channel(f"unix:{folder}/s.sock") as channel:

        def call(method, request, answer):
            made = channel.unary_unary(
                f"/v1beta1.DevicePlugin/{method}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=answer.FromString,
            )
            return made(request, timeout=PATIENCE)

        call.server = server
        call.channel = channel
        yield call
    await server.stop()


def healthy(message):
    return sum(device.health == "Healthy" for device in api.ListAndWatchResponse.FromString(message).devices)


async def test_the_kubelet_is_told_of_every_change_and_of_many_at_once(served, board):
    stream = served.channel.unary_stream("/v1beta1.DevicePlugin/ListAndWatch")(b"", timeout=PATIENCE)
    assert healthy(await stream.read()) == 640
    assert served.server.idle_since is None
    percent = board.offers[PERCENT].ids[next(iter(board.gpus))]
    for number in range(20):
        board.ledger.give(Grant(uid=f"u{number}", container="c", devices={PERCENT: (percent[number],)}))
        served.server.wake()
    messages = [healthy(await stream.read())]
    # Twenty slices of one percent leave 80 % of that GPU's 320 units.
    while messages[-1] != 640 - 64:
        messages.append(healthy(await stream.read()))
    assert len(messages) <= 3
    stream.cancel()


async def test_a_refusal_reaches_the_kubelet_as_our_text(served):
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await served(
            "Allocate",
            api.AllocateRequest(container_requests=[api.ContainerAllocateRequest(devices_ids=["x"])]),
            api.AllocateResponse,
        )
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.value.details().startswith("tessera: tessera.dev/gpu-memory.256Mi: 1 device IDs, of which ['x']")


async def test_options(served):
    found = await served("GetDevicePluginOptions", api.Empty(), api.DevicePluginOptions)
    assert (found.pre_start_required, found.get_preferred_allocation_available) == (True, True)


async def test_garbage_ends_one_call_and_nothing_else(served):
    with pytest.raises(grpc.aio.AioRpcError):
        await served.channel.unary_unary("/v1beta1.DevicePlugin/Allocate")(b"\xff\xff\xff", timeout=PATIENCE)
    assert await served("GetDevicePluginOptions", api.Empty(), api.DevicePluginOptions)


async def test_a_container_starts_with_what_it_was_given_and_not_with_anothers(  # noqa: PLR0917 - fixtures
    served, make_server, board, pods, lister, make_pod
):
    gpu = next(iter(board.gpus))
    ids = board.offers[UNITS].ids[gpu]
    pods.put(make_pod("p", {"main": {UNITS: 8}}))
    board.ledger.give(
        Grant(uid="uid-p", namespace="default", name="p", container="main", devices={UNITS: tuple(ids[:8])})
    )
    lister.pods = {("default", "p"): {"main": {UNITS: ids[:8]}}}

    def start(devices):
        return served("PreStartContainer", api.PreStartContainerRequest(devices_ids=devices), api.Empty)

    await start(ids[:8])
    assert [each.container for each in make_server.told] == ["main"]
    assert lister.calls == ["Get"]
    # The kubelet recorded something else for that container.
    lister.pods = {("default", "p"): {"main": {UNITS: ids[8:16]}}}
    with pytest.raises(grpc.aio.AioRpcError, match="records other device IDs"):
        await start(ids[:8])
    assert "records other device IDs" in make_server.told[-1]


async def test_a_pod_that_could_not_be_told_is_told_before_it_starts(served, board, pods, lister, make_pod):
    gpu = next(iter(board.gpus))
    ids = board.offers[UNITS].ids[gpu][:8]
    grant = board.ledger.give_unknown(UNITS, ids)
    pods.hidden[("default", "p")] = make_pod("p", {"main": {UNITS: 8}})
    lister.pods = {("default", "p"): {"main": {UNITS: ids}}}
    await served("PreStartContainer", api.PreStartContainerRequest(devices_ids=ids), api.Empty)
    assert grant.uid.startswith("?")
    assert [(each.uid, each.container, each.name) for each in board.ledger] == [("uid-p", "main", "p")]


async def test_resources_on_two_gpus_do_not_start(served, board, pods, lister, make_pod):
    one, other = board.gpus
    units, compute = board.offers[UNITS].ids[one][:8], board.offers[COMPUTE].ids[other][:10]
    pods.put(make_pod("p", {"main": {UNITS: 8, COMPUTE: 10}}))
    lister.pods = {("default", "p"): {"main": {UNITS: units, COMPUTE: compute}}}
    with pytest.raises(grpc.aio.AioRpcError, match="its resources lie on different GPUs"):
        await served("PreStartContainer", api.PreStartContainerRequest(devices_ids=units), api.Empty)


@pytest.mark.parametrize(("others", "starts"), [(47, True), (48, False)])
async def test_mps_takes_so_many_clients_of_a_gpu_and_no_more(  # noqa: PLR0917 - fixtures
    served, board, pods, make_pod, make_gpu, others, starts
):
    board.update([make_gpu(0, guarantee=Guarantees(memory=Guarantee.PROCESS)), make_gpu(1)])
    ids = board.offers[UNITS].ids[next(iter(board.gpus))]
    for number in range(others + 1):
        board.ledger.give(
            Grant(
                uid=f"u{number}",
                namespace="default",
                name="x",
                container="c",
                devices={UNITS: ids[number : number + 1]},
            )
        )
    pods.put(make_pod("p", {"c": {UNITS: 1}}, uid="u0"))
    call = served("PreStartContainer", api.PreStartContainerRequest(devices_ids=ids[:1]), api.Empty)
    if starts:
        await call
        return
    with pytest.raises(
        grpc.aio.AioRpcError, match="48 containers are on GPU aaaaaaaaaaaa already, and MPS takes 48 clients"
    ):
        await call


async def test_of_two_pods_with_one_id_the_first_starts(served, board, pods, lister, make_pod):
    gpu = next(iter(board.gpus))
    ids = board.offers[UNITS].ids[gpu][:8]
    for name in "pq":
        pods.put(make_pod(name, {"main": {UNITS: 8}}))
        board.ledger.give(
            Grant(uid=f"uid-{name}", namespace="default", name=name, container="main", devices={UNITS: tuple(ids)})
        )
    lister.pods = {("default", name): {"main": {UNITS: ids}} for name in "pq"}
    await served("PreStartContainer", api.PreStartContainerRequest(devices_ids=ids), api.Empty)


async def test_a_kubelet_that_cannot_be_asked_stops_no_container(served, board, pods, lister, make_pod):
    ids = board.offers[UNITS].ids[next(iter(board.gpus))][:8]
    lister.error = KubeletError("away")
    await served("PreStartContainer", api.PreStartContainerRequest(devices_ids=ids), api.Empty)
    pods.put(make_pod("p", {"main": {UNITS: 8}}))
    board.ledger.give(Grant(uid="uid-p", namespace="default", name="p", container="main", devices={UNITS: tuple(ids)}))
    await served("PreStartContainer", api.PreStartContainerRequest(devices_ids=ids), api.Empty)


def test_a_message_carries_all_that_is_injected():
    message = response(
        Injection(
            envs={"A": "b"},
            mounts=(Mount(container_path="/c", host_path="/h"),),
            cdi_devices=("nvidia.com/gpu=GPU-1",),
            annotations={"k": "v"},
        )
    )
    assert dict(message.envs) == {"A": "b"}
    assert [(each.container_path, each.host_path, each.read_only) for each in message.mounts] == [("/c", "/h", True)]
    assert [each.name for each in message.cdi_devices] == ["nvidia.com/gpu=GPU-1"]
    assert dict(message.annotations) == {"k": "v"}
    assert response(None) == api.ContainerAllocateResponse()


def test_answers_for_an_untold_pod_never_contradict_each_other(make_gpu):
    envs = {
        "TESSERA_GPU_IDS": "x",
        "TESSERA_GPU_MEMORY_BYTES": "1",
        "TESSERA_GPU_COMPUTE": "1",
        "NVIDIA_GPU_MEMORY_LIMIT": "1",
        "NVIDIA_GPU_MEMORY_REQUEST": "1",
    }
    kept = []
    for units, compute in ((32, 0), (0, 30)):
        message = api.ContainerAllocateResponse(envs=envs)
        leave_equal(message, Given(None, "", None, (Slice(make_gpu(), units, compute),)))
        kept.append(set(message.envs))
    assert kept[0] & kept[1] == {"TESSERA_GPU_IDS"}
    assert kept[0] | kept[1] == set(envs)


async def test_a_path_too_long_for_a_socket_is_named(make_server, folder):
    with pytest.raises(AdvertiseError, match="a unix socket's path at most 107"):
        await make_server(UNITS).start(f"{folder}/{'x' * 120}.sock")


# Registration.


class Registry:
    """The kubelet's Registration service: remembers, and refuses when told to."""

    def __init__(self, folder):
        self.folder = folder
        self.requests = []
        self.refuse = ""
        self.server = None

    async def start(self):
        async def register(request, context):
            if self.refuse:
                await context.abort(grpc.StatusCode.UNKNOWN, self.refuse)
            self.requests.append(request)
            return api.Empty()

        handlers = {"Register": unary(register, api.RegisterRequest)}
        self.server = await serve(f"{self.folder}/kubelet.sock", "v1beta1.Registration", handlers)

    async def stop(self):
        await self.server.stop(None)


@pytest.fixture
async def registry(folder):
    found = Registry(folder)
    await found.start()
    yield found
    await found.stop()


@pytest.fixture
async def registrar(folder, make_server, board, clock):
    found = Registrar(
        folder,
        resources=lambda: board.offers,
        make=make_server,
        token="t",
        clock=clock,
        metrics=NodeMetrics(),
    )
    yield found
    await found.stop()


async def test_every_ticket_is_registered_once(registrar, registry, folder):
    for _ in range(3):
        await registrar.step()
    assert sorted([UNITS, PERCENT, COMPUTE]) == sorted(each.resource_name for each in registry.requests)
    for request in registry.requests:
        assert request.version == "v1beta1"
        assert request.options.pre_start_required
        assert request.options.get_preferred_allocation_available
    assert {each.endpoint for each in registry.requests} < set(os.listdir(folder))
    assert registrar.problem is None


async def test_being_registered_is_not_yet_being_listened_to(registrar, registry, folder):
    assert "not registered" in registrar.unheard
    await registrar.step()
    assert registrar.problem is None
    assert "does not listen" in registrar.unheard
    streams = []
    async with AsyncExitStack() as stack:
        for request in registry.requests:
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"unix:{folder}/{request.endpoint}"))
            streams.append(channel.unary_stream("/v1beta1.DevicePlugin/ListAndWatch")(b"", timeout=PATIENCE))
            assert healthy(await streams[-1].read())
        assert registrar.unheard is None
        streams[0].cancel()
        async with asyncio.timeout(PATIENCE):
            while registrar.unheard is None:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0)
        assert registry.requests[0].resource_name in registrar.unheard


async def test_a_new_kubelet_socket_of_the_same_name_means_registering_anew(registrar, registry):
    await registrar.step()
    first = {each.endpoint for each in registry.requests}
    await registry.stop()
    await registry.start()
    await registrar.step()
    again = {each.endpoint for each in registry.requests} - first
    assert len(again) == 3, "and under other names: a kubelet tells connections apart by them"


async def test_a_socket_that_was_removed_is_made_anew(registrar, registry, folder):
    await registrar.step()
    gone = next(each for each in registry.requests if each.resource_name == UNITS)
    os.unlink(f"{folder}/{gone.endpoint}")
    await registrar.step()
    assert [each.resource_name for each in registry.requests[3:]] == [UNITS]


async def test_a_stream_that_ended_without_a_restart_is_registered_anew(registrar, registry, clock):
    await registrar.step()
    clock.now += 5
    await registrar.step()
    assert len(registry.requests) == 6
    await registrar.step()
    assert len(registry.requests) == 6, "not at every look"


async def test_a_refusal_is_shown_and_tried_again_more_and_more_seldom(registrar, registry, clock):
    registry.refuse = "resource is taken"
    await registrar.step()
    assert "does not take" in registrar.problem
    assert "resource is taken" in registrar.problem
    registry.refuse = ""
    await registrar.step()
    assert registry.requests == [], "not at once"
    clock.now += 1
    await registrar.step()
    assert (len(registry.requests), registrar.problem) == (3, None)


async def test_no_kubelet_is_said_so_and_waited_for(registrar, folder):
    await registrar.step()
    assert "no kubelet" in registrar.problem
    registry = Registry(folder)
    await registry.start()
    await registrar.step()
    assert registrar.problem is None
    await registry.stop()


@pytest.mark.usefixtures("registry")
async def test_what_is_not_offered_any_more_is_not_served(registrar, board):
    await registrar.step()
    board.update([])
    await registrar.step()
    assert registrar._servers == {}
    assert registrar.problem is None


def test_a_socket_is_told_from_a_later_one(tmp_path):
    path = tmp_path / "s"
    assert stamp(str(path)) is None
    path.touch()
    first = stamp(str(path))
    path.chmod(0o600)
    assert stamp(str(path)) != first, "the inode is the same, the time of change is not"


# Taking over.


async def test_one_agent_at_a_time(tmp_path):
    path = str(tmp_path / "lock")
    events = []

    async def newcomer():
        async with NodeLock(path, clock=SystemClock()) as lock:
            events.append(("in", lock.held))

    async with NodeLock(path, clock=SystemClock()):
        waiting = asyncio.create_task(newcomer())
        await asyncio.sleep(0)
        assert events == []
    async with asyncio.timeout(PATIENCE):
        await waiting
    assert events == [("in", True)]


async def test_waiting_can_be_given_up(tmp_path):
    path = str(tmp_path / "lock")
    async with NodeLock(path, clock=SystemClock()):
        other = NodeLock(path, clock=SystemClock())
        waiting = asyncio.create_task(other.__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not other.held


async def test_a_lock_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(TakeoverError, match="two agents"):
        async with NodeLock(str(tmp_path / "none" / "lock"), clock=SystemClock()):
            pass
