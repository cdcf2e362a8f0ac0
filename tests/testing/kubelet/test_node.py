"""A fake kubelet as a node of a cluster: what it writes into the API server, and what it takes from there."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from tessera.testing.apiserver import FakeApiServer
from tessera.testing.kubelet import (
    ApiClient,
    ApiError,
    FakeKubelet,
    KubeletNode,
    NodeSettings,
    Plugin,
    PluginError,
    Settings,
    World,
)

GPU = "example.com/gpu"
PODS = "/api/v1/namespaces/default/pods"


class Clock:
    """Sleeps end when the test says so, whichever they are."""

    def __init__(self):
        self.waiting = []
        self.arrived = asyncio.Event()

    async def sleep(self, seconds):
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((seconds, future))
        self.arrived.set()
        await future

    async def pass_by(self, seconds):
        """Wait until something sleeps for exactly that long, and wake it."""
        async with asyncio.timeout(10):
            while True:
                for waiting in self.waiting:
                    if waiting[0] == seconds and not waiting[1].done():
                        self.waiting.remove(waiting)
                        waiting[1].set_result(None)
                        return
                self.arrived.clear()
                await self.arrived.wait()


class Cluster:
    def __init__(self, api, server, clock):
        self.api = api
        self.server = server
        self.clock = clock

    async def submit(self, make_pod, name="p", limits=None, **more):
        """Create a pod that names its node, as a pod with spec.nodeName does."""
        pod = make_pod(name, limits, **more)
        del pod["metadata"]["uid"], pod["metadata"]["creationTimestamp"], pod["status"]
        return await self.api.create(PODS, pod)

    async def pod(self, name="p"):
        return await self.api.get(f"{PODS}/{name}")

    async def until(self, path, condition):
        """Wait for an object to look as expected, by watching it."""
        folder, _, name = path.rpartition("/")
        async with asyncio.timeout(10):
            while True:
                found = await self.api.get(path)
                if condition(found):
                    return found
                query = {
                    "fieldSelector": f"metadata.name={name}",
                    "resourceVersion": found["metadata"]["resourceVersion"],
                }
                async for event in self.api.watch(folder, query):
                    if event["type"] == "DELETED":
                        raise AssertionError(f"{path} was deleted")
                    if condition(event["object"]):
                        return event["object"]

    async def until_phase(self, phase, name="p"):
        return await self.until(f"{PODS}/{name}", lambda pod: pod["status"].get("phase") == phase)

    async def until_gone(self, name="p"):
        async with asyncio.timeout(10):
            found = await self.pod(name)
            query = {"fieldSelector": f"metadata.name={name}", "resourceVersion": found["metadata"]["resourceVersion"]}
            async for event in self.api.watch(PODS, query):
                if event["type"] == "DELETED":
                    return event["object"]
        raise AssertionError("the watch ended first")


@pytest.fixture
async def cluster():
    async with FakeApiServer() as server, ApiClient(server.url) as api:
        yield Cluster(api, server, Clock())


@pytest.fixture
async def make_node(cluster, directory):
    async with AsyncExitStack() as stack:

        async def make(**options):
            kubelet = FakeKubelet(
                directory, settings=Settings(node="n1", startup_delay=0, list_rate=1e6, retry_interval=None)
            )
            stack.push_async_callback(kubelet.close)
            settings = NodeSettings(name="n1", labels={"zone": "a"}, **options)
            node = KubeletNode(kubelet, cluster.api, settings=settings, world=World(sleep=cluster.clock.sleep))
            stack.push_async_callback(node.stop)
            await node.start()
            return node

        yield make


@pytest.fixture
async def node(make_node):
    return await make_node()


@pytest.fixture
async def plugin(node):
    async with Plugin(node.kubelet.paths.root, GPU, ["d0", "d1", "d2", "d3"]) as running:
        await node.kubelet.wait_serving(GPU, 4)
        yield running


class TestNodeObject:
    async def test_the_node_is_registered_ready_with_its_labels_and_port(self, cluster, node):
        found = await cluster.api.get("/api/v1/nodes/n1")

        assert found["metadata"]["labels"]["zone"] == "a"
        assert found["metadata"]["labels"]["kubernetes.io/hostname"] == "n1"
        ready = [each["status"] for each in found["status"]["conditions"] if each["type"] == "Ready"]
        assert ready == ["True"]
        assert found["status"]["allocatable"]["cpu"] == "64"
        assert found["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"] == node.kubelet.pods_port

    @pytest.mark.usefixtures("plugin")
    async def test_plugins_resources_come_with_the_next_status(self, cluster):
        before = await cluster.api.get("/api/v1/nodes/n1")
        assert GPU not in before["status"]["capacity"]

        await cluster.clock.pass_by(10.0)

        found = await cluster.until("/api/v1/nodes/n1", lambda node: GPU in node["status"]["capacity"])
        assert (found["status"]["capacity"][GPU], found["status"]["allocatable"][GPU]) == ("4", "4")

    async def test_unhealthy_devices_leave_allocatable(self, cluster, node, plugin):
        plugin.announce(unhealthy=["d0"])
        await node.kubelet.wait_serving(GPU, 3)

        await cluster.clock.pass_by(10.0)

        found = await cluster.until("/api/v1/nodes/n1", lambda node: GPU in node["status"]["capacity"])
        assert (found["status"]["capacity"][GPU], found["status"]["allocatable"][GPU]) == ("4", "3")

    async def test_a_node_that_is_there_is_taken_over(self, cluster, make_node):
        existing = {"metadata": {"name": "n1", "annotations": {"tessera.dev/inventory": "{}"}}}
        await cluster.api.create("/api/v1/nodes", existing)

        await make_node()

        found = await cluster.api.get("/api/v1/nodes/n1")
        assert found["metadata"]["annotations"]["tessera.dev/inventory"] == "{}"
        assert found["metadata"]["labels"]["zone"] == "a"

    async def test_the_lease_is_made_and_renewed(self, cluster, make_node):
        await make_node(lease_period=4.0)
        path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1"
        first = await cluster.api.get(path)

        await cluster.clock.pass_by(4.0)

        def renewed(lease):
            return lease["spec"]["renewTime"] > first["spec"]["renewTime"]

        assert (await cluster.until(path, renewed))["spec"]["holderIdentity"] == "n1"

    async def test_readiness_can_be_taken_away(self, cluster, node):
        await node.set_ready(ready=False)

        found = await cluster.api.get("/api/v1/nodes/n1")
        ready = [each["status"] for each in found["status"]["conditions"] if each["type"] == "Ready"]
        assert ready == ["False"]

    async def test_a_server_that_refuses_is_reported(self, make_node, cluster):
        await cluster.server.stop()

        with pytest.raises(ApiError):
            await make_node()


class TestPods:
    @pytest.mark.usefixtures("plugin")
    async def test_a_bound_pod_runs(self, cluster, node, make_pod):
        await cluster.submit(make_pod, limits={GPU: 2})

        pod = await cluster.until_phase("Running")

        (status,) = pod["status"]["containerStatuses"]
        assert status["ready"] is True
        assert status["containerID"] == node.kubelet.containers()[0].container_id
        assert {each["type"]: each["status"] for each in pod["status"]["conditions"]}["Ready"] == "True"
        assert pod["status"]["hostIP"] == "127.0.0.1"

    @pytest.mark.usefixtures("plugin")
    async def test_a_pod_that_does_not_fit_fails_with_the_kubelet_s_words(self, cluster, make_pod):
        await cluster.submit(make_pod, limits={GPU: 5})

        pod = await cluster.until_phase("Failed")

        text = (
            "Allocate failed due to requested number of devices unavailable for example.com/gpu. "
            "Requested: 5, Available: 4, which is unexpected"
        )
        assert pod["status"]["reason"] == "UnexpectedAdmissionError"
        assert pod["status"]["message"] == f"Pod was rejected: {text}"

    @pytest.mark.usefixtures("plugin")
    async def test_a_rejection_is_an_event_too(self, cluster, make_pod):
        query = {"resourceVersion": "0"}
        await cluster.submit(make_pod, limits={GPU: 5})

        async with asyncio.timeout(10):
            async for event in cluster.api.watch("/api/v1/namespaces/default/events", query):
                found = event["object"]
                break

        assert (found["reason"], found["type"]) == ("UnexpectedAdmissionError", "Warning")
        assert found["involvedObject"]["name"] == "p"
        assert found["message"].startswith("Allocate failed due to")

    async def test_a_container_that_cannot_start_waits_with_the_reason(self, cluster, node, make_pod):
        refuse = [True]

        async def pre_start(_):
            if refuse:
                raise PluginError("another pod's GPU")

        async with Plugin(node.kubelet.paths.root, GPU, ["d0"], pre_start=pre_start):
            await node.kubelet.wait_serving(GPU, 1)
            created = await cluster.submit(make_pod)

            def waits(pod):
                statuses = pod["status"].get("containerStatuses") or [{}]
                return "CreateContainerConfigError" in str(statuses[0].get("state"))

            pod = await cluster.until(f"{PODS}/p", waits)
            assert pod["status"]["phase"] == "Pending"
            assert "another pod's GPU" in pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"]

            refuse.clear()
            node.kubelet.retry(created["metadata"]["uid"])
            await cluster.until_phase("Running")

    async def test_pods_of_other_nodes_are_left_alone(self, cluster, node, make_pod):
        other = make_pod("other", {})
        other["spec"]["nodeName"] = "n2"
        del other["metadata"]["uid"], other["status"]
        await cluster.api.create(PODS, other)
        await cluster.submit(make_pod, "mine", {})

        await cluster.until_phase("Running", "mine")

        assert [state.pod.name for state in node.kubelet.pods()] == ["mine"]

    @pytest.mark.usefixtures("plugin")
    async def test_a_deleted_pod_ends_and_goes(self, cluster, node, make_pod):
        await cluster.submit(make_pod, limits={GPU: 4})
        await cluster.until_phase("Running")
        gone = asyncio.create_task(cluster.until_gone())

        await cluster.api.delete(f"{PODS}/p", {"gracePeriodSeconds": 30})

        assert (await gone)["status"]["phase"] == "Succeeded"
        await node.kubelet.wait_for(lambda kubelet: kubelet.pods() == [])
        await cluster.submit(make_pod, "next", {GPU: 4})
        await cluster.until_phase("Running", "next")

    @pytest.mark.usefixtures("node")
    async def test_a_pod_may_take_its_time_to_end(self, cluster, make_pod):
        await cluster.submit(make_pod, limits={}, annotations={"tessera.test/termination-seconds": "12"})
        await cluster.until_phase("Running")
        await cluster.api.delete(f"{PODS}/p", {"gracePeriodSeconds": 30})
        gone = asyncio.create_task(cluster.until_gone())

        await cluster.clock.pass_by(12.0)

        assert (await gone)["status"]["phase"] == "Succeeded"

    @pytest.mark.usefixtures("node")
    @pytest.mark.parametrize(("code", "phase"), [("0", "Succeeded"), ("3", "Failed")])
    async def test_a_pod_can_end_by_itself(self, cluster, make_pod, code, phase):
        notes = {"tessera.test/run-seconds": "60", "tessera.test/exit-code": code}
        await cluster.submit(make_pod, limits={}, annotations=notes)
        await cluster.until_phase("Running")

        await cluster.clock.pass_by(60.0)

        pod = await cluster.until_phase(phase)
        assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == int(code)

    @pytest.mark.usefixtures("node")
    @pytest.mark.parametrize("text", ["soon", "-1", "nan", "1e9", ""])
    async def test_a_test_annotation_that_is_no_time_is_ignored(self, cluster, make_pod, text):
        await cluster.submit(make_pod, limits={}, annotations={"tessera.test/run-seconds": text})

        await cluster.until_phase("Running")

    async def test_a_force_deleted_pod_is_forgotten(self, cluster, node, make_pod):
        await cluster.submit(make_pod, limits={})
        await cluster.until_phase("Running")

        await cluster.api.delete(f"{PODS}/p", {"gracePeriodSeconds": 0})

        await node.kubelet.wait_for(lambda kubelet: kubelet.pods() == [])
        assert node.kubelet.containers() == []

    async def test_a_finished_pod_found_at_the_start_is_left_as_it_is(self, cluster, make_node, make_pod):
        await cluster.submit(make_pod, limits={})
        status = {"phase": "Succeeded", "message": "long ago"}
        await cluster.api.merge_patch(f"{PODS}/p/status", {"status": status})

        node = await make_node()
        await cluster.submit(make_pod, "next", {})
        await cluster.until_phase("Running", "next")

        assert (await cluster.pod())["status"]["message"] == "long ago"
        assert [each.pod for each in node.kubelet.containers()] == ["next"]

    async def test_a_restart_keeps_running_pods_and_takes_new_ones(self, cluster, node, plugin, make_pod):
        await cluster.submit(make_pod, "old", {GPU: 1})
        before = await cluster.until_phase("Running", "old")
        await plugin.stop()
        await node.stop()
        await cluster.submit(make_pod, "new", {GPU: 1})

        await node.restart()

        failed = await cluster.until_phase("Failed", "new")
        assert "no healthy devices present" in failed["status"]["message"]
        assert (await cluster.pod("old"))["status"]["containerStatuses"] == before["status"]["containerStatuses"]

    @pytest.mark.usefixtures("node")
    async def test_a_watch_that_breaks_is_taken_up_again(self, cluster, make_pod):
        await cluster.server.stop()
        await cluster.server.start()
        await cluster.submit(make_pod, limits={})
        await cluster.clock.pass_by(1.0)

        await cluster.until_phase("Running")

    async def test_what_vanished_while_the_watch_was_broken_is_forgotten(self, cluster, node, make_pod):
        await cluster.submit(make_pod, limits={})
        await cluster.until_phase("Running")
        await node.stop()
        await cluster.api.delete(f"{PODS}/p", {"gracePeriodSeconds": 0})

        await node.restart()

        assert node.kubelet.pods() == []
