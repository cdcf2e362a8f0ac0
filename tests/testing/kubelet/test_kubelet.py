"""What only a fake has: its clock, its faults, its refusals to the program that drives it, and its HTTP port."""

from __future__ import annotations

import asyncio
import os

import aiohttp
import grpc
import grpc.aio
import pytest

from deviceplugin._proto import podresources_v1_pb2 as podresources
from tessera.testing.kubelet import FakeKubelet, KubeletError, Plugin, PodError, Settings, World
from tessera.testing.kubelet.podresources import TokenBucket

GPU = "example.com/gpu"


class Clock:
    def __init__(self):
        self.now = 1000.0
        self.slept = []

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


async def pods_of(kubelet, **headers):
    async with aiohttp.ClientSession() as session, session.get(kubelet.pods_url, headers=headers) as response:
        return response.status, await response.json() if response.status == 200 else None


def test_a_token_bucket_gives_its_burst_then_its_rate():
    clock = Clock()
    bucket = TokenBucket(100, 10, clock)

    assert [bucket.allow() for _ in range(12)] == [True] * 10 + [False] * 2
    clock.now += 0.011
    assert [bucket.allow(), bucket.allow()] == [True, False]
    clock.now += 1000
    assert sum(bucket.allow() for _ in range(100)) == 10


async def test_pod_resources_are_limited_over_all_methods(directory):
    clock = Clock()
    async with FakeKubelet(directory, world=World(monotonic=clock)) as kubelet:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"unix:{kubelet.paths.pod_resources}", options=options) as channel:

            async def call(method, request):
                stub = channel.unary_unary(
                    f"/v1.PodResourcesLister/{method}", request_serializer=lambda message: message.SerializeToString()
                )
                await stub(request)

            for _ in range(5):
                await call("List", podresources.ListPodResourcesRequest())
                await call("GetAllocatableResources", podresources.AllocatableResourcesRequest())
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call("List", podresources.ListPodResourcesRequest())

            assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert error.value.details() == "rejected by rate limit"
            clock.now += 0.011
            await call("List", podresources.ListPodResourcesRequest())


async def test_a_plugin_that_stays_away_is_forgotten_after_the_grace_period(directory, make_pod):
    clock = Clock()
    async with FakeKubelet(directory, world=World(monotonic=clock)) as kubelet:
        async with Plugin(directory, GPU, ["d0"]):
            await kubelet.wait_serving(GPU, 1)
        await kubelet.wait_serving(GPU, 0)

        clock.now += 299
        assert kubelet.capacity().capacity == {GPU: 1}
        clock.now += 2
        seen = kubelet.capacity()

        assert (seen.capacity, seen.removed) == ({}, (GPU,))
        # From now on nobody looks at the resource any more: the pod runs, without a device.
        assert (await kubelet.admit(make_pod())).admitted


async def test_a_start_with_pods_waits_as_long_as_a_real_one(directory, make_pod):
    clock = Clock()
    kubelet = FakeKubelet(directory, world=World(sleep=clock.sleep))
    try:
        assert [result.admitted for result in await kubelet.start([make_pod(limits={})])] == [True]
        assert clock.slept == [0.9]
    finally:
        await kubelet.close()


async def test_a_container_that_cannot_start_is_tried_again_after_the_interval(directory, make_pod):
    clock, calls = Clock(), []

    async def pre_start(_):
        calls.append(1)
        if len(calls) < 3:
            raise RuntimeError("not yet")

    settings = Settings(retry_interval=7.0)
    async with (
        FakeKubelet(directory, settings=settings, world=World(sleep=clock.sleep)) as kubelet,
        Plugin(directory, GPU, ["d0"], pre_start=pre_start),
    ):
        await kubelet.wait_serving(GPU, 1)
        await kubelet.admit(make_pod())
        await kubelet.wait_for(lambda each: each.pod("uid-p").phase == "Running")

    assert clock.slept == [7.0, 7.0]
    assert len(calls) == 3


async def test_a_lost_reservation_hands_an_id_to_two_pods(kubelet, make_plugin, make_pod):
    async def prefer(available, _must, size):
        return sorted(available)[:size]

    await make_plugin(GPU, prefer=prefer)
    kubelet.faults.lose_reservations = True
    await kubelet.admit(make_pod("a"))
    kubelet.faults.lose_reservations = False
    await kubelet.admit(make_pod("b"))

    assert kubelet.allocations() == {"uid-a": {"main": {GPU: {"d0"}}}, "uid-b": {"main": {GPU: {"d0"}}}}


class TestPredicate:
    """After the devices, the kubelet does the scheduler's sum with the numbers of the Node object."""

    async def test_a_late_node_object_does_no_harm(self, kubelet, make_plugin, make_pod):
        await make_plugin(GPU)
        kubelet.node_allocatable = {GPU: 0}

        assert (await kubelet.admit(make_pod("a", {GPU: 2}))).admitted
        assert (await kubelet.admit(make_pod("b", {GPU: 2}))).admitted

    async def test_a_pod_without_devices_is_counted(self, kubelet, make_pod):
        """Its plugin has never registered here, yet the Node object knows the resource."""
        kubelet.node_allocatable = {GPU: 0}

        result = await kubelet.admit(make_pod(limits={GPU: 1}))

        assert result.reason == f"OutOf{GPU}"
        assert result.message == (
            "Node didn't have enough resource: example.com/gpu, requested: 1, used: 0, capacity: 0"
        )

    async def test_ids_that_turned_unhealthy_keep_no_fitting_pod_out(self, kubelet, make_plugin, make_pod):
        """Four of eight are held and unhealthy: the node says four, and the sum takes the four that are held off that."""
        plugin = await make_plugin(GPU, [f"d{number}" for number in range(8)])
        await kubelet.admit(make_pod("a", {GPU: 4}))
        plugin.announce(unhealthy=kubelet.allocations()["uid-a"]["main"][GPU])
        await kubelet.wait_serving(GPU, 4)

        # The device manager has raised the number to what is allocated, so the pod passes all the same.
        assert (await kubelet.admit(make_pod("b", {GPU: 4}))).admitted


class TestPodsPort:
    async def test_a_rejected_pod_stays_as_the_api_server_sent_it(self, kubelet, make_plugin, make_pod):
        await make_plugin(GPU, ["d0"])
        pod = make_pod(limits={GPU: 9}, annotations={"tessera.dev/plan": "{}"})
        await kubelet.admit(pod)

        status, body = await pods_of(kubelet)

        assert status == 200
        assert (body["kind"], body["apiVersion"]) == ("PodList", "v1")
        assert body["items"] == [pod]
        assert body["items"][0]["status"] == {"phase": "Pending"}

    async def test_an_update_is_shown(self, kubelet, make_pod):
        pod = make_pod(limits={})
        await kubelet.admit(pod)

        pod["status"] = {"phase": "Running"}
        kubelet.update(pod)

        assert (await pods_of(kubelet))[1]["items"][0]["status"] == {"phase": "Running"}

    async def test_a_removed_pod_is_gone(self, kubelet, make_pod):
        await kubelet.admit(make_pod(limits={}))
        await kubelet.remove("uid-p")

        assert (await pods_of(kubelet))[1]["items"] == []

    async def test_a_token_is_asked_for_where_one_is_set(self, directory):
        async with FakeKubelet(directory, pods_token="secret") as kubelet:
            assert (await pods_of(kubelet))[0] == 401
            assert (await pods_of(kubelet, Authorization="Bearer wröng"))[0] == 401
            assert (await pods_of(kubelet, Authorization="Bearer secret"))[0] == 200

    async def test_the_port_outlives_a_restart(self, kubelet):
        before = kubelet.pods_port

        await kubelet.restart()

        assert kubelet.pods_port == before
        assert (await pods_of(kubelet))[0] == 200


class TestMisuse:
    async def test_a_uid_is_taken_once(self, kubelet, make_pod):
        await kubelet.admit(make_pod(limits={}))

        with pytest.raises(PodError, match="UID uid-p is known already"):
            await kubelet.admit(make_pod(limits={}))

    @pytest.mark.parametrize("method", ["terminate", "remove"])
    async def test_an_unknown_pod_is_named(self, kubelet, method):
        with pytest.raises(PodError, match="the kubelet of n1 knows no pod with UID nobody"):
            await getattr(kubelet, method)("nobody")

    async def test_a_stopped_kubelet_admits_nobody(self, kubelet, make_pod):
        await kubelet.stop()

        with pytest.raises(KubeletError, match="the kubelet of n1 doesn't run"):
            await kubelet.admit(make_pod())

    async def test_a_running_kubelet_is_not_started_twice(self, kubelet):
        with pytest.raises(KubeletError, match="runs already"):
            await kubelet.start()

    async def test_a_directory_too_long_for_sockets_is_refused_with_its_length(self, directory):
        with pytest.raises(KubeletError, match=r"makes a socket path of \d+ bytes; the system takes 107"):
            FakeKubelet(os.path.join(directory, "x" * 100))

    async def test_a_broken_checkpoint_is_left_behind(self, directory, make_pod):
        """As the real one: it goes on, and what was allocated may be given again."""
        os.makedirs(os.path.join(directory, "device-plugins"))
        with open(os.path.join(directory, "device-plugins", "kubelet_internal_checkpoint"), "wb") as file:  # noqa: ASYNC230
            file.write(b"{}")
        async with FakeKubelet(directory) as kubelet:
            assert (await kubelet.admit(make_pod(limits={}))).admitted


async def test_a_kubelet_stopped_in_the_middle_of_an_admission_takes_it_up_again(kubelet, make_plugin, make_pod):
    arrived, calls = asyncio.Event(), []

    async def prefer(available, _must, size):
        calls.append(sorted(available))
        arrived.set()
        if len(calls) == 1:
            await asyncio.Event().wait()
        return sorted(available)[:size]

    plugin = await make_plugin(GPU, prefer=prefer)
    admission = asyncio.create_task(kubelet.admit(make_pod()))
    await arrived.wait()
    await kubelet.stop()
    with pytest.raises(KubeletError, match="was stopped while it admitted pod default/p"):
        await admission

    async def back():
        await plugin.stop()
        await plugin.start()
        await kubelet.wait_serving(GPU, 4)

    await kubelet.start(before_admission=back)

    assert await kubelet.settled("uid-p") == {"main": ""}
    assert calls == [["d0", "d1", "d2", "d3"]] * 2
