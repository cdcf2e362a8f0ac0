"""What the unit tests of the node's kubelet-facing half share: GPUs, pods, and kubelets that answer what they are told."""

from __future__ import annotations

import asyncio
import shutil
import tempfile

import pytest

from deviceplugin._proto import podresources_v1_pb2 as pr
from deviceplugin.board import Board
from deviceplugin.identity import Identity
from deviceplugin.placing import Placing
from deviceplugin.podresources import Listing
from deviceplugin.pods import NodePods
from tessera.model import plan as plans
from tessera.model.config import Placement
from tessera.model.guarantee import Guarantees
from tessera.model.inventory import Gpu
from tessera.model.names import names
from tessera.model.pod import Container, ObjectMeta, Pod, PodSpec, PodStatus, Resources

NAMES = names()
IDS = ("aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc")


class FakeClock:
    """Time that passes only when somebody waits."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def wall(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds
        await asyncio.sleep(0)


class FakeLister:
    """A kubelet's PodResources: by (namespace, name), by container, by resource, IDs."""

    def __init__(self):
        self.pods = {}
        self.error = None
        self.calls = []

    def message(self):
        found = []
        for (namespace, name), containers in self.pods.items():
            listed = []
            for container, devices in containers.items():
                entries = [
                    pr.ContainerDevices(resource_name=resource, device_ids=[device])
                    for resource, ids in devices.items()
                    for device in ids
                ]
                listed.append(pr.ContainerResources(name=container, devices=entries))
            found.append(pr.PodResources(namespace=namespace, name=name, containers=listed))
        return pr.ListPodResourcesResponse(pod_resources=found)

    async def list(self):
        self.calls.append("List")
        if self.error:
            raise self.error
        return Listing(self.message())

    async def get(self, key):
        self.calls.append("Get")
        if self.error:
            raise self.error
        listing = Listing(self.message())
        if key not in listing:
            return None
        return {container.name: container for container in listing.pods[key]}


class FakePods(NodePods):
    """The node's pods, put there by hand; what is in `hidden` is found only by asking."""

    def __init__(self):
        super().__init__("n1")
        self.shown = {}
        self.hidden = {}
        self.asked = []
        self.in_sync = True

    @property
    def current(self):
        return self.in_sync

    def put(self, pod):
        self.shown[(pod.metadata.namespace, pod.metadata.name)] = pod

    def get(self, key):
        return self.shown.get(key)

    def by_uid(self, uid):
        return next((pod for pod in self.shown.values() if pod.metadata.uid == uid), None)

    def all(self):
        return list(self.shown.values())

    async def fetch(self, keys):
        self.asked.append(set(keys))
        for key in keys:
            if key in self.hidden:
                self.shown[key] = self.hidden[key]


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def lister():
    return FakeLister()


@pytest.fixture
def pods():
    return FakePods()


@pytest.fixture
def make_lister():
    return FakeLister


@pytest.fixture
def make_pods():
    return FakePods


@pytest.fixture
def make_gpu():
    def make(index=0, *, units=320, **more):
        return Gpu(
            id=IDS[index], uuid=f"GPU-{IDS[index]}", index=index, model="A100", memory=80 << 30, units=units, **more
        )

    return make


@pytest.fixture
def board(make_gpu):
    return Board(NAMES, [make_gpu(0), make_gpu(1)])


@pytest.fixture
def placing(board, pods):
    return Placing(board, "n1", Placement, pods=pods.by_uid)


@pytest.fixture
def identity(lister, pods, board, clock):
    return Identity(lister, pods, board.ledger, NAMES, clock)


@pytest.fixture
def make_pod():
    """Build a pod; `containers`, `init`, `sidecars`: name -> tickets. `plan`: container -> [(gpu, units, compute)]."""

    def container(name, amounts, restart_policy=None):
        limits = {resource: str(amount) for resource, amount in amounts.items()}
        return Container(name=name, restart_policy=restart_policy, resources=Resources(limits=limits))

    def make(name="p", containers=None, *, uid=None, init=None, sidecars=None, plan=None, phase="Pending", notes=None):
        annotations = dict(notes or {})
        if plan is not None:
            made = {
                each: tuple(plans.PlannedSlice(gpu=gpu, units=units, compute=compute) for gpu, units, compute in slices)
                for each, slices in plan.items()
            }
            annotations[NAMES.plan] = plans.encode(plans.Plan(v=1, node="n1", guarantee=Guarantees(), containers=made))
        inits = [container(each, amounts, "Always") for each, amounts in (sidecars or {}).items()]
        inits += [container(each, amounts) for each, amounts in (init or {}).items()]
        return Pod(
            metadata=ObjectMeta(name=name, namespace="default", uid=uid or f"uid-{name}", annotations=annotations),
            spec=PodSpec(
                node_name="n1",
                init_containers=tuple(inits),
                containers=tuple(container(each, amounts) for each, amounts in (containers or {}).items()),
            ),
            status=PodStatus(phase=phase),
        )

    return make


@pytest.fixture
def folder():
    """Short: it holds sockets."""
    path = tempfile.mkdtemp(prefix="tn")
    yield path
    shutil.rmtree(path, ignore_errors=True)
