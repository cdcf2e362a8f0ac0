"""How a kubelet gives devices to pods: whom it asks, in which order, with what, and what it says when it can't."""

from __future__ import annotations

import asyncio

import pytest

from deviceplugin._proto import deviceplugin_v1beta1_pb2 as api
from tessera.testing.kubelet import PluginError

GPU = "example.com/gpu"
OTHER = "example.com/other"


def first(available, _must, size):
    return sorted(available)[:size]


def always(*ids):
    return lambda _available, _must, _size: ids


class Log:
    """Records the calls of several plugins in one order."""

    def __init__(self):
        self.calls = []

    def callbacks(self, name, choose=first):
        async def prefer(available, must, size):
            self.calls.append((f"prefer {name}", sorted(available), sorted(must), size))
            return choose(available, must, size)

        async def allocate(ids):
            self.calls.append((f"allocate {name}", sorted(ids)))
            return api.ContainerAllocateResponse(envs={name.upper(): ",".join(sorted(ids))})

        async def pre_start(ids):
            self.calls.append((f"prestart {name}", sorted(ids)))

        return {"prefer": prefer, "allocate": allocate, "pre_start": pre_start}

    @property
    def names(self):
        return [call[0] for call in self.calls]


@pytest.fixture
def log():
    return Log()


async def admitted(kubelet, pod):
    result = await kubelet.admit(pod)
    assert result.admitted, result.message
    return pod["metadata"]["uid"]


async def refused(kubelet, pod):
    result = await kubelet.admit(pod)
    assert not result.admitted
    assert result.reason == "UnexpectedAdmissionError"
    return result.message


async def test_a_full_answer_to_the_question_of_preference_is_honoured(
    kubelet, make_plugin, make_pod, log, pod_resources
):
    await make_plugin(GPU, **log.callbacks("gpu", always("d3", "d1")))

    uid = await admitted(kubelet, make_pod(limits={GPU: 2}))
    await kubelet.settled(uid)

    assert log.calls == [
        ("prefer gpu", ["d0", "d1", "d2", "d3"], [], 2),
        ("allocate gpu", ["d1", "d3"]),
        ("prestart gpu", ["d1", "d3"]),
    ]
    assert await pod_resources.held() == {"p": {"main": {GPU: ["d1", "d3"]}}}


async def test_a_short_answer_is_filled_from_what_is_free(kubelet, make_plugin, make_pod, log):
    await make_plugin(GPU, **log.callbacks("gpu", always("d2")))

    await admitted(kubelet, make_pod(limits={GPU: 3}))

    ids = log.calls[1][1]
    assert "d2" in ids
    assert len(set(ids)) == 3


async def test_ids_that_are_not_on_offer_are_ignored(kubelet, make_plugin, make_pod, log):
    await make_plugin(GPU, **log.callbacks("gpu", always("d9", "d3")))

    await admitted(kubelet, make_pod(limits={GPU: 1}))

    assert log.calls[1] == ("allocate gpu", ["d3"])


async def test_too_long_an_answer_gives_a_part_of_it(kubelet, make_plugin, make_pod, log):
    await make_plugin(GPU, **log.callbacks("gpu", always("d1", "d2", "d3")))

    await admitted(kubelet, make_pod(limits={GPU: 2}))

    ids = log.calls[1][1]
    assert len(ids) == 2
    assert set(ids) < {"d1", "d2", "d3"}


async def test_the_plugin_is_not_asked_where_it_did_not_say_that_it_can_be(kubelet, make_plugin, make_pod, log):
    callbacks = log.callbacks("gpu")
    await make_plugin(GPU, allocate=callbacks["allocate"])

    uid = await admitted(kubelet, make_pod(limits={GPU: 4}))
    await kubelet.settled(uid)

    assert log.calls == [("allocate gpu", ["d0", "d1", "d2", "d3"])]


async def test_what_is_held_or_unhealthy_is_not_on_offer(kubelet, make_plugin, make_pod, log):
    plugin = await make_plugin(GPU, **log.callbacks("gpu"))
    await admitted(kubelet, make_pod("a"))
    plugin.announce(unhealthy=["d2"])
    await kubelet.wait_serving(GPU, 3)

    await admitted(kubelet, make_pod("b"))

    assert ("prefer gpu", ["d1", "d3"], [], 1) in log.calls


async def test_resources_of_a_container_are_served_back_to_back(kubelet, make_plugin, make_pod, log):
    await make_plugin(GPU, **log.callbacks("gpu"))
    await make_plugin(OTHER, **log.callbacks("other"))

    orders = set()
    # Go's maps of two begin with the second one in an eighth of the cases, so a real kubelet needs some tries.
    for number in range(60):
        log.calls.clear()
        uid = await admitted(kubelet, make_pod(f"p{number}", {GPU: 1, OTHER: 1}))
        await kubelet.settled(uid)
        await kubelet.terminate(uid)
        orders.add(tuple(log.names[:4]))
        if len(orders) > 1:
            break

    assert orders == {
        ("prefer gpu", "allocate gpu", "prefer other", "allocate other"),
        ("prefer other", "allocate other", "prefer gpu", "allocate gpu"),
    }


async def test_containers_are_served_in_the_order_of_the_spec(kubelet, make_plugin, make_pod, log):
    await make_plugin(GPU, **log.callbacks("gpu"))

    pod = make_pod(sidecars=[("s", {GPU: 1})], containers=[("b", {GPU: 1}), ("a", {GPU: 2})])
    await admitted(kubelet, pod)

    offers = [(call[1], call[3]) for call in log.calls if call[0] == "prefer gpu"]
    assert offers == [(["d0", "d1", "d2", "d3"], 1), (["d1", "d2", "d3"], 1), (["d2", "d3"], 2)]


async def test_pods_are_admitted_one_at_a_time(kubelet, make_plugin, make_pod, log):
    await make_plugin(GPU, **log.callbacks("gpu"))

    results = await asyncio.gather(*(kubelet.admit(make_pod(f"p{number}")) for number in range(4)))

    assert all(result.admitted for result in results)
    calls = [name for name in log.names if name != "prestart gpu"]
    assert calls == ["prefer gpu", "allocate gpu"] * 4


class TestInitContainers:
    """What a plain init container got goes to the next ones; a sidecar keeps its own."""

    async def test_enough_is_handed_on_without_a_question(self, kubelet, make_plugin, make_pod, log, pod_resources):
        await make_plugin(GPU, **log.callbacks("gpu"))

        await admitted(kubelet, make_pod(init=[("i", {GPU: 2})], limits={GPU: 2}))

        assert log.names == ["prefer gpu", "allocate gpu", "allocate gpu"]
        assert log.calls[1] == log.calls[2]
        # Plain init containers are not listed.
        assert await pod_resources.held() == {"p": {"main": {GPU: ["d0", "d1"]}}}

    async def test_too_little_is_handed_on_as_must_include(self, kubelet, make_plugin, make_pod, log):
        def choose(available, must, size):
            return (sorted(must) + sorted(set(available) - set(must), reverse=True))[:size]

        await make_plugin(GPU, **log.callbacks("gpu", choose))

        await admitted(kubelet, make_pod(init=[("i", {GPU: 1})], limits={GPU: 3}))

        first = log.calls[1][1]
        assert log.calls[2] == ("prefer gpu", ["d0", "d1", "d2", "d3"], first, 3)
        assert set(first) <= set(log.calls[3][1])

    async def test_more_than_needed_is_handed_on_at_random_as_far_as_it_reaches(
        self, kubelet, make_plugin, make_pod, log
    ):
        await make_plugin(GPU, **log.callbacks("gpu"))

        await admitted(kubelet, make_pod(init=[("i", {GPU: 3})], containers=[("a", {GPU: 1}), ("b", {GPU: 2})]))

        assert log.names == ["prefer gpu"] + ["allocate gpu"] * 3
        handed = [set(call[1]) for call in log.calls[2:]]
        assert handed[0] | handed[1] == set(log.calls[1][1])

    async def test_a_sidecar_keeps_what_it_got(self, kubelet, make_plugin, make_pod, log, pod_resources):
        await make_plugin(GPU, **log.callbacks("gpu"))

        await admitted(kubelet, make_pod(sidecars=[("s", {GPU: 1})], limits={GPU: 1}))

        assert await pod_resources.held() == {"p": {"s": {GPU: ["d0"]}, "main": {GPU: ["d1"]}}}

    async def test_another_pod_does_not_get_them(self, kubelet, make_plugin, make_pod, log):
        await make_plugin(GPU, **log.callbacks("gpu"))
        await admitted(kubelet, make_pod("a", init=[("i", {GPU: 3})], limits={}))

        text = await refused(kubelet, make_pod("b", {GPU: 2}))

        assert "Requested: 2, Available: 1" in text


class TestRefusals:
    """The texts are the kubelet's own: people search for them."""

    async def test_too_few_devices(self, kubelet, make_plugin, make_pod, log):
        await make_plugin(GPU, **log.callbacks("gpu"))
        await admitted(kubelet, make_pod("a", {GPU: 3}))
        log.calls.clear()

        text = await refused(kubelet, make_pod("b", {GPU: 2}))

        assert text == (
            "Allocate failed due to requested number of devices unavailable for example.com/gpu. "
            "Requested: 2, Available: 1, which is unexpected"
        )
        assert "prefer gpu" not in log.names

    async def test_an_error_of_allocate(self, kubelet, make_plugin, make_pod):
        async def allocate(_):
            raise PluginError("no room")

        await make_plugin(GPU, allocate=allocate)

        text = await refused(kubelet, make_pod())

        expected = "Allocate failed due to rpc error: code = Unknown desc = no room, which is unexpected"
        assert text == expected

    async def test_an_error_of_the_question_of_preference(self, kubelet, make_plugin, make_pod):
        async def prefer(*_):
            raise PluginError("other GPU")

        await make_plugin(GPU, prefer=prefer)

        text = await refused(kubelet, make_pod())

        assert text == (
            "Allocate failed due to device plugin GetPreferredAllocation rpc failed with err: "
            "rpc error: code = Unknown desc = other GPU, which is unexpected"
        )

    async def test_a_plugin_that_is_gone(self, kubelet, make_plugin, make_pod):
        plugin = await make_plugin(GPU)
        await plugin.stop()
        await kubelet.wait_serving(GPU, 0)

        text = await refused(kubelet, make_pod())

        assert text == (
            "Allocate failed due to no healthy devices present; cannot allocate unhealthy devices example.com/gpu, "
            "which is unexpected"
        )

    async def test_a_resource_that_no_plugin_ever_registered_is_not_looked_at(self, kubelet, make_pod):
        await admitted(kubelet, make_pod(limits={"example.com/never": 1}))

    async def test_what_a_refused_pod_had_got_is_free_for_the_next_one(self, kubelet, make_plugin, make_pod, log):
        """The first resource is recorded before the second one fails; the next allocation purges it."""

        async def allocate(_):
            raise PluginError("no")

        await make_plugin(GPU, **log.callbacks("gpu"))
        await make_plugin(OTHER, allocate=allocate)
        for number in range(8):
            await refused(kubelet, make_pod(f"r{number}", {GPU: 4, OTHER: 1}))

        await admitted(kubelet, make_pod("good", {GPU: 4}))

        assert "allocate gpu" in log.names[:-2]


class TestEnds:
    """Devices come back lazily: at the next allocation or PodResources List."""

    async def test_a_finished_pod_s_devices_are_given_again(self, kubelet, make_plugin, make_pod, log):
        await make_plugin(GPU, **log.callbacks("gpu"))
        uid = await admitted(kubelet, make_pod("a", {GPU: 4}))
        await kubelet.settled(uid)

        await kubelet.terminate(uid)

        await admitted(kubelet, make_pod("b", {GPU: 4}))

    async def test_a_removed_pod_s_devices_are_given_again(self, kubelet, make_plugin, make_pod, log):
        await make_plugin(GPU, **log.callbacks("gpu"))
        uid = await admitted(kubelet, make_pod("a", {GPU: 4}))
        await kubelet.settled(uid)

        await kubelet.remove(uid)

        await admitted(kubelet, make_pod("b", {GPU: 4}))

    async def test_a_list_during_an_allocate_can_lose_the_reservation(
        self, kubelet, make_plugin, make_pod, pod_resources
    ):
        """Kubernetes PR 137534: with a finished pod waiting to be purged, one ID goes to two pods."""
        given = []
        purge = []

        async def allocate(ids):
            given.extend(ids)
            if purge:
                await kubelet.terminate(purge.pop())
                await pod_resources.list()
            return api.ContainerAllocateResponse()

        async def prefer(available, _must, size):
            return sorted(available)[:size]

        await make_plugin(GPU, ["d0", "d1", "d2"], prefer=prefer, allocate=allocate)
        first = await admitted(kubelet, make_pod("first"))
        await kubelet.settled(first)
        purge.append(first)

        await admitted(kubelet, make_pod("second"))
        # The third pod's admission doesn't repair it: there is no finished pod to purge any more.
        await admitted(kubelet, make_pod("third"))
        await admitted(kubelet, make_pod("fourth"))

        assert given == ["d0", "d1", "d0", "d1"]


class TestStart:
    """PreStartContainer and what the container gets."""

    async def test_a_failing_prestart_is_tried_again_with_the_same_devices(self, kubelet, make_plugin, make_pod):
        calls = []

        async def pre_start(ids):
            calls.append(sorted(ids))
            if len(calls) == 1:
                raise PluginError("GPU is taken")

        await make_plugin(GPU, pre_start=pre_start)
        uid = await admitted(kubelet, make_pod())

        assert await kubelet.settled(uid) == {
            "main": "device plugin PreStartContainer rpc failed with err: rpc error: code = Unknown desc = GPU is taken"
        }
        kubelet.retry(uid)
        assert await kubelet.settled(uid) == {"main": ""}
        assert calls[0] == calls[1]

    async def test_a_container_that_restarts_is_announced_but_not_allocated_again(
        self, kubelet, make_plugin, make_pod, log
    ):
        await make_plugin(GPU, **log.callbacks("gpu"))
        uid = await admitted(kubelet, make_pod())
        await kubelet.settled(uid)
        log.calls.clear()

        kubelet.restart_container(uid, "main")
        await kubelet.settled(uid)

        assert log.calls == [("prestart gpu", ["d0"])]

    async def test_a_pod_whose_ids_turned_unhealthy_restarts_its_container(self, kubelet, make_plugin, make_pod, log):
        plugin = await make_plugin(GPU, **log.callbacks("gpu"))
        uid = await admitted(kubelet, make_pod())
        await kubelet.settled(uid)
        plugin.announce(unhealthy=["d0"])
        await kubelet.wait_serving(GPU, 3)
        log.calls.clear()

        kubelet.restart_container(uid, "main")

        assert await kubelet.settled(uid) == {"main": ""}
        assert log.calls == [("prestart gpu", ["d0"])]
