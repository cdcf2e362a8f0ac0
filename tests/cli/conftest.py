"""What the tests of the command line share."""

import asyncio
import json

import msgspec
import pytest

from tessera.cli.main import main
from tessera.kube.clock import SystemClock, rfc3339
from tessera.model import inventory, plan
from tessera.model.guarantee import Guarantee, Guarantees
from tessera.model.inventory import Gpu, Inventory
from tessera.model.names import names
from tessera.model.plan import Plan, PlannedSlice
from tessera.testing.apiserver import FakeApiServer
from tessera.testing.apiserver.resources import Resource

N = names()
A, B = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202eevil"
"""What must reach no terminal: clears it, names its window, colours by a C1 control, reverses the line."""


@pytest.fixture
def mutate(tmp_path, capsys):
    """Run `tessera mutate` on a text; returns exit code, standard output, standard error."""

    def call(text, *more, output="json"):
        path = tmp_path / "manifest.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        code = main(["mutate", "-f", str(path), "-o", output, *more])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def lines(mutate):
    """The same for objects given as plain data, with `-o json`: the lines of standard output, read."""

    def call(*objects, config=()):
        _, out, _ = mutate("\n---\n".join(map(json.dumps, objects)), *config)
        return [json.loads(line) for line in out.splitlines()]

    return call


class Cluster:
    """Puts objects into a fake API server, and runs commands against it."""

    def __init__(self, api, kubeconfig, capsys, now):
        self.api = api
        self.proxied = {}
        self._kubeconfig = kubeconfig
        self._capsys = capsys
        self._now = now

    async def run(self, *arguments, kubeconfig=None):
        """Exit code, standard output, standard error; a command has an event loop of its own, so it gets a thread."""
        self._capsys.readouterr()
        command = [*arguments, "--kubeconfig", kubeconfig or self._kubeconfig]
        code = await asyncio.to_thread(main, command)
        out, err = self._capsys.readouterr()
        for text in (out, err):
            assert not any(letter in text for letter in "\x1b\x07\x9b\u202e"), text
        return code, out, err

    def node(self, name="n1", *, model="NVIDIA A10", annotations=None, state="serving", health="ok"):
        gpus = tuple(
            Gpu(
                id=gpu, uuid=f"GPU-{gpu}", index=at, model=model, memory=24 << 30, units=90,
                health=health if at else "ok", guarantee=Guarantees(memory=Guarantee.WATCHED),
            )
            for at, gpu in enumerate((A, B))
        )  # fmt: skip
        text = inventory.encode(Inventory(v=1, unit=N.memory_unit, gpus=gpus, state=state))
        tree = self.api.add_node(name, allocatable={N.memory_units: "180", N.memory_percent: "200"})
        tree["metadata"]["annotations"] = {N.inventory: text} | (annotations or {})
        self.api.put("nodes", tree)

    def pod(self, name, units=0, *, node="", gpu=A, namespace="default", phase="", scheduler="tessera-scheduler",
            annotations=None, labels=None, ports=None, limits=None, age=600, **status):  # fmt: skip
        asked = {N.memory_units: str(units)} if units else {}
        notes = dict(annotations or {})
        if units and node and N.plan not in notes and gpu:
            made = Plan(
                v=1, node=node, guarantee=Guarantees(memory=Guarantee.WATCHED),
                containers={"main": (PlannedSlice(gpu=gpu, units=units, compute=0),)},
            )  # fmt: skip
            notes[N.plan] = plan.encode(made)
        container = {"name": "main", "image": "app:1", "resources": {"limits": limits or asked}}
        if ports:
            container["ports"] = ports
        meta = {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{name}",
            "annotations": notes,
            "labels": labels or {},
        }
        self.api.put(
            "pods",
            {
                "metadata": meta | {"creationTimestamp": rfc3339(self._now - age)},
                "spec": {"containers": [container], "schedulerName": scheduler} | ({"nodeName": node} if node else {}),
                "status": {"phase": phase or ("Running" if node else "Pending"), **status},
            },
        )

    def agent(self, node, **changes):
        self.pod(
            f"tessera-node-{node}", node=node, namespace="tessera-system",
            labels={"app.kubernetes.io/name": "tessera-node"}, **changes,
        )  # fmt: skip

    def event(self, pod, reason, message, *, kind="Warning", ago=30, uid=None):
        self.api.put(
            "events",
            {
                "metadata": {"name": f"{pod}.{reason}", "namespace": "default"},
                "involvedObject": {"kind": "Pod", "namespace": "default", "name": pod, "uid": uid or f"uid-{pod}"},
                "reason": reason, "message": message, "type": kind, "count": 3,
                "lastTimestamp": rfc3339(self._now - ago),
            },
        )  # fmt: skip

    def refuses(self, node, message, *, ago=30):
        self.api.put(
            "events",
            {
                "metadata": {"name": f"{node}.refuses", "namespace": "default"},
                "involvedObject": {"kind": "Node", "name": node, "uid": node},
                "reason": "KubeletRefuses", "message": message, "type": "Warning", "count": 3,
                "lastTimestamp": rfc3339(self._now - ago),
            },
        )  # fmt: skip

    def drift(self, found):
        return plan.encode_drift(found)

    def slice(self, gpu=A, units=10):
        return PlannedSlice(gpu=gpu, units=units, compute=0)


@pytest.fixture
async def cluster(tmp_path, capsys, monkeypatch):
    """A fake API server with a kubeconfig, and the commands that look at it."""
    for variable in ("NO_COLOR", "TESSERA_CONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(variable, raising=False)
    more = (
        Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice"),
        Resource("node.k8s.io", "v1", "runtimeclasses", "RuntimeClass", False),
    )
    proxied = {}
    async with FakeApiServer(resources=more, proxied_pods=proxied) as api:
        api.add_namespace("tessera-system")
        made = Cluster(api, api.kubeconfig(tmp_path / "kubeconfig"), capsys, SystemClock().wall())
        made.proxied = proxied
        yield made


@pytest.fixture
def read_json():
    """Read a command's JSON, which must be one document."""
    return msgspec.json.decode
