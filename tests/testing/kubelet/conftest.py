"""Fixtures of the kubelet's tests.

The modules named ``test_contract_*`` state what a kubelet does, of whatever making: they use the fixture `kubelet` only
through the methods of `FakeKubelet` that a driver of a real kubelet can offer too (paths, admit, settled, terminate,
remove, restart_container, restart, capacity, wait_serving), and real plugins on real sockets. Another conftest can run
them on a real kubelet.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import AsyncExitStack
from itertools import count

import grpc.aio
import pytest

from deviceplugin._proto import podresources_v1_pb2 as api
from tessera.testing.kubelet import FakeKubelet, Plugin, Settings


@pytest.fixture
def directory():
    """Sockets live here, so its path is short (pytest's own may be too long)."""
    path = tempfile.mkdtemp(prefix="tk")
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def kubelet(directory):
    settings = Settings(node="n1", seed=7, startup_delay=0, dial_timeout=0.5, retry_interval=None, list_rate=1e6)
    async with FakeKubelet(directory, settings=settings) as running:
        yield running


@pytest.fixture
async def make_plugin(kubelet):
    """Start a plugin, registered and announced; it is stopped after the test."""
    async with AsyncExitStack() as stack:

        async def make(resource="example.com/gpu", devices=("d0", "d1", "d2", "d3"), **options):
            options.setdefault("socket", f"{resource.replace('/', '_')}.sock")
            plugin = Plugin(kubelet.paths.root, resource, devices, **options)
            await stack.enter_async_context(plugin)
            await kubelet.wait_serving(resource, len(plugin.devices))
            return plugin

        yield make


@pytest.fixture
def make_pod():
    """Build a pod object as the API server hands it to a kubelet."""
    created = count()

    def container(name, limits, **more):
        limits = {resource: str(amount) for resource, amount in limits.items()}
        return {"name": name, "image": "i", "resources": {"limits": limits, "requests": limits}, **more}

    def make(name="p", limits=None, *, containers=None, init=(), sidecars=(), **metadata):
        """`containers`, `init`, `sidecars`: lists of (name, limits); sidecars come before plain init containers."""
        main = containers or [("main", {"example.com/gpu": 1} if limits is None else limits)]
        inits = [container(*each, restartPolicy="Always") for each in sidecars]
        inits += [container(*each) for each in init]
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": "default",
                "uid": f"uid-{name}",
                "creationTimestamp": "2026-01-01T00:{:02d}:{:02d}Z".format(*divmod(next(created), 60)),
                **metadata,
            },
            "spec": {
                "nodeName": "n1",
                "initContainers": inits,
                "containers": [container(*each) for each in main],
            },
            "status": {"phase": "Pending"},
        }

    return make


class PodResourcesClient:
    """What a node agent asks the kubelet."""

    def __init__(self, channel):
        self._channel = channel

    def _call(self, method, answer):
        return self._channel.unary_unary(
            f"/v1.PodResourcesLister/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )

    async def list(self):
        return await self._call("List", api.ListPodResourcesResponse)(api.ListPodResourcesRequest())

    async def get(self, name, namespace="default"):
        request = api.GetPodResourcesRequest(pod_name=name, pod_namespace=namespace)
        return (await self._call("Get", api.GetPodResourcesResponse)(request)).pod_resources

    async def allocatable(self):
        call = self._call("GetAllocatableResources", api.AllocatableResourcesResponse)
        return await call(api.AllocatableResourcesRequest())

    async def held(self):
        """Pod -> container -> resource -> sorted IDs, by List."""
        found = {}
        for pod in (await self.list()).pod_resources:
            for container in pod.containers:
                resources = found.setdefault(pod.name, {}).setdefault(container.name, {})
                for entry in container.devices:
                    resources.setdefault(entry.resource_name, []).extend(entry.device_ids)
                    resources[entry.resource_name].sort()
        return found


@pytest.fixture
async def pod_resources(kubelet):
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"unix:{kubelet.paths.pod_resources}", options=options) as channel:
        yield PodResourcesClient(channel)
