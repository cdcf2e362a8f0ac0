"""What happens to pods when the kubelet's process is replaced."""

from __future__ import annotations

from deviceplugin._proto import deviceplugin_v1beta1_pb2 as api
from tessera.testing.kubelet import PluginError

GPU = "example.com/gpu"


def recorder(calls):
    async def prefer(available, _must, size):
        calls.append("prefer")
        return sorted(available)[:size]

    async def allocate(_):
        calls.append("allocate")
        return api.ContainerAllocateResponse()

    async def pre_start(_):
        calls.append("prestart")

    return {"prefer": prefer, "allocate": allocate, "pre_start": pre_start}


async def running(kubelet, pod):
    assert (await kubelet.admit(pod)).admitted
    await kubelet.settled(pod["metadata"]["uid"])


def back(kubelet, plugin, count=4):
    async def register():
        await plugin.stop()
        await plugin.start()
        await kubelet.wait_serving(GPU, count)

    return register


async def test_a_running_pod_keeps_its_devices_without_a_call(kubelet, make_plugin, make_pod, pod_resources):
    calls = []
    plugin = await make_plugin(GPU, **recorder(calls))
    await running(kubelet, make_pod("old", {GPU: 2}))
    await plugin.stop()
    calls.clear()

    await kubelet.restart()

    assert await pod_resources.held() == {"old": {"main": {GPU: ["d0", "d1"]}}}
    assert calls == []


async def test_a_pod_bound_meanwhile_fails_where_the_plugin_is_not_back(kubelet, make_plugin, make_pod):
    plugin = await make_plugin(GPU)
    await plugin.stop()

    (result,) = await kubelet.restart([make_pod("new")])

    assert result.reason == "UnexpectedAdmissionError"
    assert "no healthy devices present; cannot allocate unhealthy devices example.com/gpu" in result.message


async def test_a_pod_bound_meanwhile_is_admitted_where_the_plugin_is_back(
    kubelet, make_plugin, make_pod, pod_resources
):
    plugin = await make_plugin(GPU, **recorder([]))
    await running(kubelet, make_pod("old", {GPU: 2}))

    (result,) = await kubelet.restart([make_pod("new", {GPU: 2})], before_admission=back(kubelet, plugin))

    assert result.admitted, result.message
    held = await pod_resources.held()
    assert held == {"old": {"main": {GPU: ["d0", "d1"]}}, "new": {"main": {GPU: ["d2", "d3"]}}}


async def test_pods_found_at_the_start_are_admitted_by_age(kubelet, make_plugin, make_pod, pod_resources):
    plugin = await make_plugin(GPU, **recorder([]))
    older, newer = make_pod("older"), make_pod("newer")

    await kubelet.restart([newer, older], before_admission=back(kubelet, plugin))

    assert await pod_resources.held() == {"older": {"main": {GPU: ["d0"]}}, "newer": {"main": {GPU: ["d1"]}}}


async def test_pods_are_listed_as_their_turn_comes(kubelet, make_plugin, make_pod, pod_resources):
    """So the pod in admission is the only one without devices also in the batch at a start."""
    seen = []

    async def prefer(available, _must, size):
        seen.append(sorted(await pod_resources.held()))
        return sorted(available)[:size]

    plugin = await make_plugin(GPU, prefer=prefer)
    await running(kubelet, make_pod("b"))
    seen.clear()
    new = [make_pod("d"), make_pod("c")]
    new[1]["metadata"]["creationTimestamp"] = "2025-01-01T00:00:00Z"

    await kubelet.restart(new, before_admission=back(kubelet, plugin))

    assert seen == [["c"], ["b", "c", "d"]]


async def test_a_container_that_waits_for_its_plugin_fails_its_pod_where_the_plugin_is_not_back(
    kubelet, make_plugin, make_pod, pod_resources
):
    async def pre_start(_):
        raise PluginError("not yet")

    plugin = await make_plugin(GPU, pre_start=pre_start)
    await running(kubelet, make_pod("waits"))
    await plugin.stop()

    await kubelet.restart()

    assert (await pod_resources.list()).pod_resources == []


async def test_a_pod_with_a_finished_init_container_fails_where_the_plugin_is_not_back(
    kubelet, make_plugin, make_pod, pod_resources
):
    """Only containers that run are spared; a plain init container that asked for devices doesn't run any more."""
    plugin = await make_plugin(GPU)
    await running(kubelet, make_pod("old", init=[("i", {GPU: 1})]))
    await plugin.stop()

    await kubelet.restart()

    assert (await pod_resources.list()).pod_resources == []


async def test_a_pod_with_a_finished_init_container_survives_where_the_plugin_is_back(
    kubelet, make_plugin, make_pod, pod_resources
):
    plugin = await make_plugin(GPU)
    await running(kubelet, make_pod("old", init=[("i", {GPU: 1})]))

    await kubelet.restart(before_admission=back(kubelet, plugin))

    assert list(await pod_resources.held()) == ["old"]


async def test_devices_of_a_pod_that_ended_meanwhile_are_given_again(kubelet, make_plugin, make_pod):
    plugin = await make_plugin(GPU, **recorder([]))
    await running(kubelet, make_pod("old", {GPU: 4}))
    await kubelet.terminate("uid-old")

    await kubelet.restart(before_admission=None)
    await back(kubelet, plugin)()

    assert (await kubelet.admit(make_pod("new", {GPU: 4}))).admitted


async def test_a_container_restarts_after_a_restart_of_the_kubelet(kubelet, make_plugin, make_pod):
    calls = []
    plugin = await make_plugin(GPU, **recorder(calls))
    await running(kubelet, make_pod("old"))
    await kubelet.restart(before_admission=back(kubelet, plugin))
    calls.clear()

    kubelet.restart_container("uid-old", "main")

    assert await kubelet.settled("uid-old") == {"main": ""}
    assert calls == ["prestart"]
