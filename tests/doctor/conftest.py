"""A cluster in which nothing is wrong, built by the generators that installations are made with; tests break one thing of it."""

import base64
import dataclasses
import functools
import json
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
import yaml

from tessera.deploy.policies import denials, policies
from tessera.deploy.scheduler import scheduler_configuration
from tessera.deploy.webhooks import webhook_configurations
from tessera.dialects.registry import OPTIONS
from tessera.doctor import objects, parts
from tessera.doctor.check import examine
from tessera.doctor.checks import CHECKS
from tessera.doctor.evidence import Evidence, Look, PartSaid, Probe
from tessera.doctor.settings import settings
from tessera.kube.clock import rfc3339
from tessera.model import inventory, plan
from tessera.model.config import parse
from tessera.model.guarantee import Guarantee, Guarantees
from tessera.model.inventory import Gpu, Inventory
from tessera.model.names import names
from tessera.model.plan import Plan, PlannedSlice
from webhook.admission.selfmade import make

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
N = names()
M, P, C = N.tickets
A, B = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
SPACE = "tessera-system"
TOLD = {
    parts.CONFIG_TAKEN: 1.0,
    parts.CERTIFICATE_TAKEN: 1.0,
    parts.BUNDLE_KEPT: 1.0,
    parts.EXPIRY: NOW.timestamp() + 80 * 86_400,
}


class Cluster:
    """Builds objects; everything is plain data until `evidence` decodes it."""

    now = NOW
    names = N
    gpus = (A, B)

    def inventory(self, *gpus, unit=N.memory_unit, **changes):
        found = gpus or (self.gpu(A, 0), self.gpu(B, 1))
        return inventory.encode(Inventory(v=1, unit=unit, gpus=found, **changes))

    def gpu(self, name, index=0, **changes):
        values = {
            "uuid": f"GPU-{name}",
            "model": "NVIDIA A10",
            "memory": 24 << 30,
            "units": 90,
            "guarantee": Guarantees(memory=Guarantee.WATCHED),
        }
        return Gpu(id=name, index=index, **(values | changes))

    def node(self, name="n1", *, text=None, ready="True", annotations=None, labels=None, allocatable=None,
             runtime="containerd://2.1.4", unschedulable=False):  # fmt: skip
        inventories = {} if text == "" else {N.inventory: text or self.inventory()}
        return {
            "metadata": {"name": name, "labels": labels or {}, "annotations": inventories | (annotations or {})},
            "spec": {"unschedulable": unschedulable},
            "status": {
                "conditions": [{"type": "Ready", "status": ready}],
                "allocatable": {M: "180", P: "200", C: "200"} if allocatable is None else allocatable,
                "nodeInfo": {"containerRuntimeVersion": runtime},
            },
        }

    def pod(self, name, limits=None, slices=None, *, namespace="team", node="", phase=None, age=600.0, image="app:1",
            scheduler="tessera-scheduler", annotations=None, labels=None, command=None, env_from=None, conditions=None,
            plan_node=None, **spec):  # fmt: skip
        notes = dict(annotations or {})
        if slices:
            made = Plan(v=1, node=plan_node or node, guarantee=Guarantees(memory=Guarantee.WATCHED), containers=slices)
            notes[N.plan] = plan.encode(made)
        container = {"name": "main", "image": image, "resources": {"limits": limits or {}}}
        if command:
            container["command"] = command
        if env_from:
            container["envFrom"] = env_from
        return {
            "metadata": {
                "name": name, "namespace": namespace, "uid": f"uid-{name}", "annotations": notes,
                "labels": labels or {}, "creationTimestamp": rfc3339(NOW.timestamp() - age),
            },
            "spec": {"nodeName": node, "schedulerName": scheduler, "containers": [container], **spec},
            "status": {"phase": phase or ("Running" if node else "Pending"), "conditions": conditions or []},
        }  # fmt: skip

    def slice(self, gpu=A, units=10, compute=0, **changes):
        return PlannedSlice(gpu=gpu, units=units, compute=compute, **changes)

    def drift(self, found):
        return plan.encode_drift(found)

    def agent(self, node, **changes):
        labels = {"app.kubernetes.io/name": "tessera-node"}
        return self.pod(f"tessera-node-{node}", namespace=SPACE, node=node, labels=labels, **changes)

    def material(self, *, ago=timedelta(), service="tessera-webhook"):
        return make([f"{service}.{SPACE}.svc"], now=NOW - ago)


def look(kind, trees):
    return Look(tuple(msgspec.json.decode(json.dumps(tree), type=kind) for tree in trees))


@pytest.fixture(scope="session")
def cluster():
    return Cluster()


@pytest.fixture(scope="session")
def material():
    return Cluster().material()


@pytest.fixture(scope="session")
def generated(material):
    """What an installation is made with, by its config: generators take longer than the checks that are tested."""

    @functools.cache
    def generate(config):
        found = parse(config, dialects=OPTIONS)
        bundle = base64.b64encode(material.bundle.encode()).decode()
        hooks = webhook_configurations(found, namespace=SPACE, ca_bundle=bundle)
        return hooks, policies(found, namespace=SPACE), yaml.safe_dump(scheduler_configuration(found))

    return generate


@pytest.fixture
def healthy(cluster, material, generated):
    """Evidence of a cluster in which nothing is wrong; keywords replace what was read of one kind (plain objects)."""

    def build(*, config="deviceInjection: cdi\n", **changes):
        (mutating, validating), expected, scheduler = generated(config)
        trees = {
            "nodes": [cluster.node("n1"), cluster.node("n2")],
            "pods": [
                cluster.agent("n1"), cluster.agent("n2"),
                cluster.pod("sched", namespace=SPACE, node="cp", image="registry/kube-scheduler:v1.34.4"),
                cluster.pod("one", {M: "10"}, {"main": (cluster.slice(),)}, node="n1"),
            ],
            "namespaces": [{"metadata": {"name": name}} for name in ("default", "kube-system", SPACE, "team")],
            "mutating": [mutating],
            "validating": [validating],
            "policies": [p for p in expected if p["kind"] == "ValidatingAdmissionPolicy"],
            "bindings": [p for p in expected if p["kind"] == "ValidatingAdmissionPolicyBinding"],
            "config_maps": [
                {"metadata": {"name": "tessera-config", "namespace": SPACE}, "data": {"config.yaml": config}},
                {"metadata": {"name": "sched", "namespace": SPACE}, "data": {"scheduler.yaml": scheduler}},
            ],
            "runtime_classes": [{"metadata": {"name": "nvidia"}, "handler": "nvidia"}],
            "quotas": [],
            "refusals": [],
        }  # fmt: skip
        kinds = {
            "nodes": objects.LookedNode, "pods": objects.LookedPod, "namespaces": objects.Namespace,
            "mutating": objects.WebhookConfiguration, "validating": objects.WebhookConfiguration,
            "policies": objects.Policy, "bindings": objects.Policy, "config_maps": objects.ConfigMap,
            "runtime_classes": objects.RuntimeClass, "quotas": objects.ResourceQuota,
            "refusals": objects.Event,
        }  # fmt: skip
        for name in kinds:
            if name in changes and not isinstance(changes[name], Look):
                made = changes.pop(name)
                trees[name] = made(trees[name]) if callable(made) else made
        looks = {name: look(kind, trees[name]) for name, kind in kinds.items()}
        probed = look(objects.LookedPod, [cluster.pod("probe", {M: "1"})]).need()[0]
        secret = objects.Secret(
            data=objects.PublicHalf(certificate=base64.b64encode(material.certificate.encode()).decode())
        )
        ends = objects.EndpointSlice(endpoints=(objects.Endpoint(), objects.Endpoint()))
        found = settings(looks["config_maps"].need(), SPACE, dialects=OPTIONS)
        evidence = Evidence(
            now=NOW.timestamp(),
            settings=found,
            namespace=SPACE,
            version=Look(objects.Version(major="1", minor="34", git_version="v1.34.4")),
            certificates=Look({f"{SPACE}/tessera-webhook-certificate": secret}),
            endpoints=Look({f"{SPACE}/tessera-webhook": (ends,)}),
            expected_policies=Look(tuple(expected)),
            guard=Look(lambda pod, asking: denials(pod, found.config, namespace=SPACE, asking=asking)),
            probe=Look(Probe("made", probed)),
            said=Look({f"{SPACE}/webhook": PartSaid(dict(TOLD))}),
            **looks,
        )
        return dataclasses.replace(evidence, **changes)

    return build


@pytest.fixture
def findings(healthy):
    """Examine a cluster that is healthy but for the changes: findings by check id; blind checks under ``blind``."""

    def run(**changes):
        found = examine(CHECKS, healthy(**changes))
        told = {each.check: each.findings for each in found.checks if each.findings}
        blind = {each.check: each.problem for each in found.checks if each.result == "blind"}
        return told | ({"blind": blind} if blind else {})

    return run


@pytest.fixture
def only(findings):
    """The one finding of one check, and that no other check has any."""

    def run(check, **changes):
        told = findings(**changes)
        assert list(told) == [check], told
        assert len(told[check]) == 1, told[check]
        return told[check][0]

    return run
