"""A manifest that is applied again: the pod stays as it is, and what really changes is the API server's to refuse."""

import base64
import copy
import json

import aiohttp
import jsonpatch
import pytest

from tessera.daemon.flags import Address
from tessera.model.config import Config, Profile, Toleration, Unit, parse
from tessera.testing.apiserver import FakeApiServer
from webhook.admission.certificates import Certificates
from webhook.admission.certstore import DirectoryStore
from webhook.admission.mutate import Mutator
from webhook.admission.patch import WIRE
from webhook.admission.paths import MUTATE, Paths
from webhook.admission.server import AdmissionServer

T = "tessera.dev/"
UNITS = T + "gpu-memory.256Mi"
STRATEGIC = "application/strategic-merge-patch+json"


def pod(limits, *, annotations=None, labels=None, containers=(), **spec):
    main = {"name": "main", "image": "example", "resources": {"limits": limits}}
    metadata = {"name": "p", "namespace": "team", "annotations": annotations or {}, "labels": labels or {}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": [main, *containers], **spec},
    }


@pytest.fixture
async def cluster(tmp_path, clock, metrics):
    """An API server that sends pods to our webhook; yields a function that calls it about the pod."""
    store = DirectoryStore(str(tmp_path))
    certificates = Certificates(mounted=None, own=store, names=["localhost"], clock=clock, metrics=metrics)
    await certificates.load()
    paths = Paths(parse("", dialects=None), metrics)
    listen = Address("127.0.0.1", 0)
    async with (
        AdmissionServer(
            listen, context=certificates.context, handlers=paths.handlers, metrics=metrics, clock=clock
        ) as server,
        FakeApiServer() as api,
        aiohttp.ClientSession() as http,
    ):
        api.add_namespace("team")
        api.put("mutatingwebhookconfigurations", hook(server.address.port, certificates.bundle))

        async def call(method, path, body, kind="application/json"):
            headers = {"Content-Type": kind}
            url = f"{api.url}/api/v1/namespaces/team/pods{path}"
            async with http.request(method, url, data=json.dumps(body), headers=headers) as answer:
                return answer.status, await answer.json()

        yield call


def hook(port, bundle):
    return {
        "metadata": {"name": "tessera-webhook"},
        "webhooks": [
            {
                "name": "mutate.tessera.dev",
                "clientConfig": {
                    "url": f"https://localhost:{port}{MUTATE}",
                    "caBundle": base64.b64encode(bundle.encode()).decode(),
                },
                "rules": [
                    {
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "operations": ["CREATE", "UPDATE"],
                        "resources": ["pods"],
                    }
                ],
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
                "failurePolicy": "Fail",
            }
        ],
    }


MANIFESTS = [
    pytest.param(pod({T + "gpu-memory": "8Gi"}), id="memory in bytes"),
    pytest.param(pod({T + "gpu-memory": "500Gi"}), id="a count that the API server writes as 2k"),
    pytest.param(pod({T + "gpu-memory": "8Gi", T + "gpu-compute": 30, "cpu": "1"}), id="memory and compute"),
    pytest.param(pod({}, annotations={T + "gpu-memory": "4Gi"}), id="annotations"),
    pytest.param(
        pod({"volcano.sh/vgpu-number": 1, "volcano.sh/vgpu-memory": 3000}, schedulerName="volcano"),
        id="another scheduler",
    ),
    pytest.param(
        pod({"aliyun.com/gpu-mem": 3, "aliyun.com/gpu-count": 1}, nodeSelector={"gpushare": "true", "disk": "ssd"}),
        id="a selector that is dropped",
    ),
    pytest.param(
        pod({}, annotations={"gpu-fraction": "0.5"}, schedulerName="kai-scheduler"), id="annotations of another system"
    ),
]


@pytest.mark.parametrize("manifest", MANIFESTS)
async def test_the_second_apply_changes_nothing(cluster, manifest):
    status, made = await cluster("POST", "", manifest)
    assert status == 201, made
    assert T + "request" in made["metadata"]["annotations"]
    status, again = await cluster("PATCH", "/p", manifest, STRATEGIC)
    assert status == 200, again
    assert again == made


async def test_a_label_beside_it_is_changed(cluster):
    manifest = pod({T + "gpu-memory": "8Gi"})
    _, made = await cluster("POST", "", manifest)
    manifest["metadata"]["labels"] = {"again": "yes"}
    status, again = await cluster("PATCH", "/p", manifest, STRATEGIC)
    assert status == 200, again
    assert again["metadata"]["labels"] == {"again": "yes"}
    assert again["spec"] == made["spec"]


@pytest.mark.parametrize(
    "change",
    [
        lambda limits: limits.update({T + "gpu-memory": "16Gi"}),
        lambda limits: limits.update({T + "gpu-compute": "10"}),
        lambda limits: limits.update({T + "gpu": "2"}),
        lambda limits: limits.update({UNITS: "64"}),
        lambda limits: limits.update({"aliyun.com/gpu-mem": "9"}),
        lambda limits: limits.update({"cpu": "2"}),
    ],
)
async def test_a_change_of_what_was_asked_is_the_api_servers_to_refuse(cluster, change):
    manifest = pod({T + "gpu-memory": "8Gi", "cpu": "1"})
    await cluster("POST", "", manifest)
    change(manifest["spec"]["containers"][0]["resources"]["limits"])
    status, said = await cluster("PATCH", "/p", manifest, STRATEGIC)
    assert status == 422
    assert "pod updates may not change fields" in said["message"]


async def test_a_container_that_comes_to_ask_is_refused(cluster):
    manifest = pod({T + "gpu-memory": "8Gi"}, containers=[{"name": "other", "image": "example"}])
    await cluster("POST", "", manifest)
    manifest["spec"]["containers"][1]["resources"] = {"limits": {T + "gpu-memory": "8Gi"}}
    status, _ = await cluster("PATCH", "/p", manifest, STRATEGIC)
    assert status == 422


# What is decided about one update, without a server.


@pytest.fixture
def updated(manifest):
    """Take an update through admission; returns what the new object becomes, by jsonpatch, and the outcome."""

    def run(new, old, config=None):
        mutator = Mutator(config or Config())
        outcome = mutator.update(manifest(new), manifest(old), namespace="team")
        return jsonpatch.apply_patch(new, json.loads(WIRE.encode(outcome.operations))), outcome

    return run


def test_a_pod_without_our_annotation_is_never_touched(updated):
    old = pod({"cpu": "1"})
    new = pod({"cpu": "1", T + "gpu-memory": "8Gi"})
    assert updated(new, old)[1].operations == ()


def test_an_update_by_somebody_else_is_never_touched(admit, updated):
    old, _ = admit(pod({T + "gpu-memory": "8Gi"}, schedulerName="mine"))
    new = copy.deepcopy(old)
    new["metadata"]["annotations"]["x"] = "y"
    new["metadata"]["annotations"].pop(T + "plan", None)
    new["spec"]["tolerations"] = [{"key": "more", "operator": "Exists"}]
    new["spec"]["containers"][0]["image"] = "example:2"
    assert updated(new, old)[1].operations == ()


def test_what_only_our_parts_write_stays_on_a_bound_pod(admit, updated):
    old, _ = admit(pod({T + "gpu-memory": "8Gi"}))
    old["metadata"]["annotations"][T + "plan"] = "{}"
    old["spec"]["nodeName"] = "n1"
    new = copy.deepcopy(old)
    new["spec"]["containers"][0]["resources"]["limits"][T + "gpu-memory"] = "8Gi"
    assert updated(new, old)[0] == old


def test_a_forged_request_is_not_made_good(admit, updated):
    old, _ = admit(pod({T + "gpu-memory": "8Gi"}))
    new = copy.deepcopy(old)
    new["metadata"]["annotations"][T + "request"] = "{}"
    new["spec"]["containers"][0]["resources"]["limits"][T + "gpu-memory"] = "8Gi"
    assert updated(new, old)[1].operations == ()


def test_affinity_and_tolerations_of_a_profile_come_back(admit, updated):
    units = (
        Unit(name="idc", node_selector={"site": "idc"}),
        Unit(name="cloud", tolerations=(Toleration(key="cloud", operator="Exists"),)),
    )
    config = Config(profiles=(Profile(name="idc-first", units=units),))
    term = {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}
    given = pod({T + "gpu-memory": "8Gi"}, affinity=affinity, tolerations=[{"key": "mine", "operator": "Exists"}])
    old, _ = admit(given, config)
    old["spec"]["nodeName"] = "n1"
    new = copy.deepcopy(old)
    new["spec"]["affinity"]["nodeAffinity"].update(copy.deepcopy(affinity["nodeAffinity"]))
    new["spec"]["tolerations"] = [{"key": "mine", "operator": "Exists"}]
    assert updated(new, old, config)[0] == old


def test_containers_in_another_order_are_found_by_name(admit, updated):
    other = {"name": "other", "image": "example", "resources": {"limits": {T + "gpu-memory": "1Gi"}}}
    old, _ = admit(pod({T + "gpu-memory": "8Gi"}, containers=[other]))
    new = copy.deepcopy(old)
    new["spec"]["containers"].reverse()
    new["spec"]["containers"][0]["resources"]["limits"][T + "gpu-memory"] = "1Gi"
    found, _ = updated(new, old)
    assert found["spec"]["containers"][::-1] == old["spec"]["containers"]


def test_an_old_object_that_is_no_pod_is_a_verdict(review, metrics):
    body = review(pod({T + "gpu-memory": "8Gi"}), operation="UPDATE", oldObject={"spec": 3})
    answer = Paths(Config(), metrics).handlers[MUTATE](json.dumps(body).encode())
    assert json.loads(answer.body)["response"]["allowed"] is False
