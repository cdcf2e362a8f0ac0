"""What the kubelet tells on the node about pods and devices."""

from __future__ import annotations

import grpc
import pytest

from deviceplugin._proto import deviceplugin_v1beta1_pb2 as api
from tessera.testing.kubelet import PluginError

GPU = "example.com/gpu"


async def test_inside_the_calls_the_pod_in_admission_is_the_only_one_that_asks_and_has_none(
    kubelet, make_plugin, make_pod, pod_resources
):
    seen = []

    async def look():
        held = await pod_resources.held()
        seen.append(sorted(pod for pod, containers in held.items() for own in containers.values() if GPU not in own))

    async def prefer(available, _must, size):
        await look()
        return sorted(available)[:size]

    async def allocate(_):
        await look()
        return api.ContainerAllocateResponse()

    await make_plugin(GPU, [f"d{number}" for number in range(8)], prefer=prefer, allocate=allocate)
    for name in ("a", "b", "c"):
        assert (await kubelet.admit(make_pod(name))).admitted

    assert seen == [["a"], ["a"], ["b"], ["b"], ["c"], ["c"]]


async def test_between_two_containers_the_first_one_s_devices_are_listed(kubelet, make_plugin, make_pod, pod_resources):
    seen = []

    async def prefer(available, _must, size):
        seen.append(await pod_resources.held())
        return sorted(available)[:size]

    await make_plugin(GPU, prefer=prefer)
    await kubelet.admit(make_pod(containers=[("one", {GPU: 1}), ("two", {GPU: 2})]))

    assert seen == [{"p": {"one": {}, "two": {}}}, {"p": {"one": {GPU: ["d0"]}, "two": {}}}]


async def test_every_device_has_an_entry_of_its_own(kubelet, make_plugin, make_pod, pod_resources):
    await make_plugin(GPU)
    await kubelet.admit(make_pod(limits={GPU: 3}))

    devices = (await pod_resources.list()).pod_resources[0].containers[0].devices

    assert [len(entry.device_ids) for entry in devices] == [1, 1, 1]
    assert not any(entry.HasField("topology") for entry in devices)


async def test_a_device_on_two_numa_nodes_is_listed_once_for_each(kubelet, make_plugin, make_pod, pod_resources):
    await make_plugin(GPU, ["d0"], numa=lambda _: [0, 1])
    await kubelet.admit(make_pod())

    devices = (await pod_resources.list()).pod_resources[0].containers[0].devices

    assert sorted(node.ID for entry in devices for node in entry.topology.nodes) == [0, 1]
    assert [list(entry.device_ids) for entry in devices] == [["d0"], ["d0"]]


async def test_plain_init_containers_are_absent_and_sidecars_are_there(kubelet, make_plugin, make_pod, pod_resources):
    await make_plugin(GPU)
    await kubelet.admit(make_pod(init=[("i", {GPU: 1})], sidecars=[("s", {GPU: 1})], containers=[("main", {})]))

    (pod,) = (await pod_resources.list()).pod_resources

    assert [container.name for container in pod.containers] == ["s", "main"]


async def test_refused_and_finished_pods_are_absent_from_list_but_not_from_get(
    kubelet, make_plugin, make_pod, pod_resources
):
    async def allocate(ids):
        if len(ids) > 1:
            raise PluginError("no")
        return api.ContainerAllocateResponse()

    await make_plugin(GPU, allocate=allocate)
    assert not (await kubelet.admit(make_pod("refused", {GPU: 2}))).admitted
    assert (await kubelet.admit(make_pod("done"))).admitted
    await kubelet.settled("uid-done")
    await kubelet.terminate("uid-done")

    assert (await pod_resources.list()).pod_resources == []
    assert (await pod_resources.get("refused")).name == "refused"


async def test_pods_without_devices_are_listed(kubelet, make_pod, pod_resources):
    await kubelet.admit(make_pod(limits={}))

    assert await pod_resources.held() == {"p": {"main": {}}}


async def test_get_shows_one_pod(kubelet, make_plugin, make_pod, pod_resources):
    await make_plugin(GPU, ["d0"])
    await kubelet.admit(make_pod("a"))
    await kubelet.admit(make_pod("b", {}))

    pod = await pod_resources.get("a")

    assert (pod.namespace, pod.name) == ("default", "a")
    assert list(pod.containers[0].devices[0].device_ids) == ["d0"]


async def test_get_of_an_unknown_pod_says_so(pod_resources):
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await pod_resources.get("nobody", "nowhere")

    assert error.value.code() == grpc.StatusCode.UNKNOWN
    assert error.value.details() == "pod nobody in namespace nowhere not found"


async def test_allocatable_lists_healthy_devices_held_or_not(kubelet, make_plugin, make_pod, pod_resources):
    plugin = await make_plugin(GPU, ["d0", "d1", "d2"])
    await kubelet.admit(make_pod())
    plugin.announce(unhealthy=["d1"])
    await kubelet.wait_serving(GPU, 2)

    devices = (await pod_resources.allocatable()).devices

    assert sorted(device for entry in devices for device in entry.device_ids) == ["d0", "d2"]
