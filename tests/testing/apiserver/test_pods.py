"""Pods: what the server fills in and refuses, binding, graceful deletion, eviction, status."""

from __future__ import annotations

import asyncio

import pytest

TICKET = "tessera.dev/gpu-memory.256Mi"


async def test_a_new_pod_is_filled_in(api, pods, make):
    found = (await api.post(pods, make.pod("a", limits={TICKET: 32, "cpu": "0.5"}))).ok()
    spec = found["spec"]
    assert spec["schedulerName"] == "default-scheduler"
    assert spec["serviceAccountName"] == "default"
    assert spec["restartPolicy"] == "Always"
    assert spec["terminationGracePeriodSeconds"] == 30
    assert spec["priority"] == 0
    assert {t["key"] for t in spec["tolerations"]} == {
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    }
    container = spec["containers"][0]
    assert container["resources"]["limits"] == {TICKET: "32", "cpu": "500m"}
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert any(m["mountPath"].endswith("serviceaccount") for m in container["volumeMounts"])
    assert found["status"]["phase"] == "Pending"
    assert found["status"]["qosClass"] == "Burstable"


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("8192Mi", "8Gi"),
        (8, "8"),
        ("1.5Gi", "1536Mi"),
        ("1000m", "1"),
        ("1e3", "1e3"),
        ("1500000", "1500k"),
        ("0.1", "100m"),
        (" 8Gi ", "8Gi"),
    ],
)
async def test_quantities_come_back_in_canonical_form(api, pods, make, given, canonical):
    found = (await api.post(pods, make.pod("a", limits={"memory": given}))).ok()
    assert found["spec"]["containers"][0]["resources"]["limits"]["memory"] == canonical


@pytest.mark.parametrize(
    ("resources", "code", "words"),
    [
        ({"limits": {TICKET: "1.5"}}, 422, "must be an integer"),
        ({"limits": {TICKET: "-1"}}, 422, "must be greater than or equal to 0"),
        ({"limits": {TICKET: "2"}, "requests": {TICKET: "1"}}, 422, f"must be equal to {TICKET} limit of 2"),
        ({"requests": {TICKET: "1"}}, 422, "Limit must be set for non overcommitable resources"),
        ({"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}, 422, "must be less than or equal to cpu limit of 1"),
        ({"limits": {"gpu": "1"}}, 422, "must be a standard resource for containers"),
        ({"limits": {TICKET: "many"}}, 400, "quantities must match the regular expression"),
        ({"limits": {TICKET: "1\t"}}, 400, "quantities must match the regular expression"),
        ({"limits": {TICKET: "1 1"}}, 400, "quantities must match the regular expression"),
        ({"limits": {TICKET: {}}}, 400, "cannot be handled as a Pod"),
        ({"limits": {"bad_prefix/gpu": "1"}}, 422, "limits"),
    ],
)
async def test_amounts_of_extended_resources_are_checked(*, api, pods, make, resources, code, words):
    body = make.pod("a")
    body["spec"]["containers"][0]["resources"] = resources
    answer = await api.post(pods, body)
    assert answer.code == code, answer.body
    assert words in answer.body["message"]


async def test_a_request_of_zero_or_equal_to_its_limit_is_fine(api, pods, make):
    body = make.pod("a")
    body["spec"]["containers"][0]["resources"] = {"limits": {TICKET: "2000m"}, "requests": {TICKET: "2"}}
    (await api.post(pods, body)).ok()


@pytest.mark.parametrize(
    "spec",
    [
        {"containers": []},
        {"containers": [{"name": "a"}]},
        {"containers": [{"image": "x"}]},
        {"containers": [{"name": "A", "image": "x"}]},
        {"containers": [{"name": "a", "image": "x"}, {"name": "a", "image": "x"}]},
        {"containers": [{"name": "a", "image": "x"}], "initContainers": [{"name": "a", "image": "x"}]},
        {"containers": "none"},
        {"containers": [{"name": "a", "image": "x", "env": [{"name": "n", "value": 1}]}]},
        {"containers": [{"name": "a", "image": "x"}], "serviceAccountName": "nobody"},
        {"containers": [{"name": "a", "image": "x"}], "priorityClassName": "nothing"},
        {"containers": [{"name": "a", "image": "x"}], "runtimeClassName": "nothing"},
    ],
)
async def test_pods_that_are_refused(api, pods, spec):
    assert (await api.post(pods, {"metadata": {"name": "a"}, "spec": spec})).code in (400, 403, 422)


async def test_a_pods_spec_stays_what_it_is(api, pods, make):
    (await api.post(pods, make.pod("a", limits={TICKET: "4"}))).ok()
    more = {
        "spec": {"containers": [{"name": "main", "resources": {"limits": {TICKET: "8"}, "requests": {TICKET: "8"}}}]}
    }
    message = (await api.patch(f"{pods}/a", more, make.STRATEGIC)).failed(422, "Invalid")
    assert "pod updates may not change fields other than" in message
    assert (await api.patch(f"{pods}/a", {"spec": {"nodeName": "n1"}}, make.MERGE)).code == 422
    image = {"spec": {"containers": [{"name": "main", "image": "registry.example/app:2"}]}}
    changed = (await api.patch(f"{pods}/a", image, make.STRATEGIC)).ok()
    assert changed["spec"]["containers"][0]["image"] == "registry.example/app:2"
    assert changed["spec"]["containers"][0]["resources"]["limits"] == {TICKET: "4"}


async def test_binding_writes_node_and_annotations_in_one_step(api, pods, make):
    created = (await api.post(pods, make.pod("a"))).ok()
    async with api.watch(pods, resourceVersion=created["metadata"]["resourceVersion"]) as events:
        body = make.binding("a", "n1", annotations={"tessera.dev/plan": "{}"}, uid=created["metadata"]["uid"])
        answer = await api.post(f"{pods}/a/binding", body)
        assert (answer.code, answer.body["status"]) == (201, "Success")
        event = await events.next()
    bound = event["object"]
    assert bound["spec"]["nodeName"] == "n1"
    assert bound["metadata"]["annotations"] == {"tessera.dev/plan": "{}"}
    assert bound["metadata"]["uid"] == created["metadata"]["uid"]
    condition = next(c for c in bound["status"]["conditions"] if c["type"] == "PodScheduled")
    assert condition["status"] == "True"
    assert (await api.get(f"{pods}/a")).ok() == bound


async def test_a_pod_is_bound_once(api, pods, make):
    (await api.post(pods, make.pod("a"))).ok()
    answers = await asyncio.gather(
        *(api.post(f"{pods}/a/binding", make.binding("a", f"n{number}")) for number in range(5))
    )
    assert sorted(answer.code for answer in answers) == [201, 409, 409, 409, 409]
    lost = next(answer for answer in answers if answer.code == 409)
    assert 'pod a is already assigned to node "n' in lost.failed(409, "Conflict")
    assert lost.body["details"]["kind"] == "pods/binding"


async def test_what_can_not_be_bound(api, pods, make):
    created = (await api.post(pods, make.pod("a"))).ok()
    wrong = make.binding("a", "n1", uid="11111111-2222-3333-4444-555555555555")
    assert "Precondition failed: UID" in (await api.post(f"{pods}/a/binding", wrong)).failed(409, "Conflict")
    stale = make.binding("a", "n1", resourceVersion=str(int(created["metadata"]["resourceVersion"]) - 1))
    assert (await api.post(f"{pods}/a/binding", stale)).code == 409
    assert (await api.post(f"{pods}/a/binding", make.binding("b", "n1"))).code == 400
    assert (await api.post(f"{pods}/none/binding", make.binding("none", "n1"))).code == 404
    assert (await api.post(f"{pods}/a/binding", make.binding("a", ""))).code >= 400
    (await api.post(pods, make.pod("gated", schedulingGates=[{"name": "tessera.test/wait"}]))).ok()
    message = (await api.post(f"{pods}/gated/binding", make.binding("gated", "n1"))).failed(409, "Conflict")
    assert "non-empty .spec.schedulingGates" in message
    assert "nodeName" not in (await api.get(f"{pods}/a")).ok()["spec"]


async def test_a_pod_that_is_being_deleted_is_not_bound(api, pods, make):
    body = make.pod("a")
    body["metadata"]["finalizers"] = ["tessera.test/hold"]
    (await api.post(pods, body)).ok()
    (await api.delete(f"{pods}/a")).ok()
    message = (await api.post(f"{pods}/a/binding", make.binding("a", "n1"))).failed(409, "Conflict")
    assert "is being deleted, cannot be assigned to a host" in message


async def test_binding_and_eviction_are_only_posted(api, pods, make):
    (await api.post(pods, make.pod("a"))).ok()
    for part in ("binding", "eviction"):
        assert (await api.put(f"{pods}/a/{part}", make.binding("a", "n1"))).code == 405
        assert (await api.patch(f"{pods}/a/{part}", {"spec": {"nodeName": "n1"}}, make.MERGE)).code == 405


async def test_the_older_way_to_bind(api, namespace, pods, make):
    (await api.post(pods, make.pod("a"))).ok()
    answer = await api.post(f"/api/v1/namespaces/{namespace}/bindings", make.binding("a", "n1"))
    assert answer.code == 201
    assert (await api.get(f"{pods}/a")).ok()["spec"]["nodeName"] == "n1"


async def test_an_unbound_pod_goes_at_once(api, pods, make):
    created = (await api.post(pods, make.pod("a"))).ok()
    gone = (await api.delete(f"{pods}/a")).ok()
    assert gone["metadata"]["uid"] == created["metadata"]["uid"]
    assert (await api.get(f"{pods}/a")).code == 404


async def test_a_bound_pod_waits_for_its_kubelet(api, pods, make):
    created = (await api.post(pods, make.pod("a"))).ok()
    (await api.post(f"{pods}/a/binding", make.binding("a", "n1"))).ok()
    async with api.watch(pods, resourceVersion=created["metadata"]["resourceVersion"]) as events:
        marked = (await api.delete(f"{pods}/a")).ok()
        assert marked["metadata"]["deletionGracePeriodSeconds"] == 30
        assert marked["metadata"]["deletionTimestamp"] > created["metadata"]["creationTimestamp"]
        # Again, or with a longer grace: nothing changes.
        assert (await api.delete(f"{pods}/a")).ok() == marked
        assert (await api.delete(f"{pods}/a", {"gracePeriodSeconds": 60})).ok() == marked
        shorter = (await api.delete(f"{pods}/a", {"gracePeriodSeconds": 5})).ok()
        assert shorter["metadata"]["deletionGracePeriodSeconds"] == 5
        # The kubelet is done.
        (await api.delete(f"{pods}/a", {"gracePeriodSeconds": 0})).ok()
        assert (await api.get(f"{pods}/a")).code == 404
        kinds = [(await events.next())["type"] for _ in range(5)]
    assert kinds == ["MODIFIED", "MODIFIED", "MODIFIED", "MODIFIED", "DELETED"]


async def test_a_finished_pod_goes_at_once(api, pods, make):
    (await api.post(pods, make.pod("a"))).ok()
    (await api.post(f"{pods}/a/binding", make.binding("a", "n1"))).ok()
    (await api.patch(f"{pods}/a/status", {"status": {"phase": "Succeeded"}}, make.MERGE)).ok()
    (await api.delete(f"{pods}/a")).ok()
    assert (await api.get(f"{pods}/a")).code == 404


async def test_a_pod_with_a_finalizer_outlives_its_kubelet(api, pods, make):
    body = make.pod("a")
    body["metadata"]["finalizers"] = ["tessera.test/hold"]
    (await api.post(pods, body)).ok()
    (await api.post(f"{pods}/a/binding", make.binding("a", "n1"))).ok()
    (await api.delete(f"{pods}/a", {"gracePeriodSeconds": 0})).ok()
    assert (await api.get(f"{pods}/a")).ok()["metadata"]["deletionGracePeriodSeconds"] == 0
    (await api.patch(f"{pods}/a", {"metadata": {"finalizers": []}}, make.MERGE)).ok()
    assert (await api.get(f"{pods}/a")).code == 404


async def test_status_writers_change_status_and_annotations_but_no_spec(api, pods, make):
    (await api.post(pods, make.pod("a"))).ok()
    everything = {
        "status": {"phase": "Running", "podIP": "10.0.0.1"},
        "spec": {"nodeName": "n9"},
        "metadata": {
            "annotations": {"x": "y"},
            "ownerReferences": [{"uid": "u", "kind": "K", "name": "n", "apiVersion": "v1"}],
        },
    }
    changed = (await api.patch(f"{pods}/a/status", everything, make.STRATEGIC)).ok()
    assert changed["status"]["phase"] == "Running"
    assert "nodeName" not in changed["spec"]
    # Through pods/status annotations can be changed: why the policies must cover it.
    assert changed["metadata"]["annotations"] == {"x": "y"}
    assert "ownerReferences" not in changed["metadata"]
    assert (await api.patch(f"{pods}/a", {"status": {"phase": "Failed"}}, make.MERGE)).ok()["status"][
        "phase"
    ] == "Running"
    assert (await api.patch(f"{pods}/a/status", {"status": {"qosClass": "Guaranteed"}}, make.MERGE)).code == 422


async def test_resize_changes_cpu_and_memory_only(api, pods, make):
    (await api.post(pods, make.pod("a", limits={"cpu": "1", TICKET: "4"}))).ok()
    more = {"spec": {"containers": [{"name": "main", "resources": {"limits": {"cpu": "2"}, "requests": {"cpu": "2"}}}]}}
    changed = (await api.patch(f"{pods}/a/resize", more, make.STRATEGIC)).ok()
    assert changed["spec"]["containers"][0]["resources"]["limits"] == {"cpu": "2", TICKET: "4"}
    more = {
        "spec": {"containers": [{"name": "main", "resources": {"limits": {TICKET: "8"}, "requests": {TICKET: "8"}}}]}
    }
    assert (await api.patch(f"{pods}/a/resize", more, make.STRATEGIC)).code == 422


async def test_eviction_deletes_a_pod(api, namespace, pods, make):
    (await api.post(pods, make.pod("a"))).ok()
    (await api.post(f"{pods}/a/binding", make.binding("a", "n1"))).ok()
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "a", "namespace": namespace}}
    assert (await api.post(f"{pods}/a/eviction", eviction)).code == 201
    found = (await api.get(f"{pods}/a")).ok()
    assert found["metadata"]["deletionTimestamp"]
    assert "DisruptionTarget" in {c["type"] for c in found["status"]["conditions"]}
    assert (await api.post(f"{pods}/none/eviction", {**eviction, "metadata": {"name": "none"}})).code == 404


async def test_eviction_respects_a_disruption_budget(api, namespace, pods, make):
    body = make.pod("a")
    body["metadata"]["labels"] = {"app": "a"}
    (await api.post(pods, body)).ok()
    (await api.post(f"{pods}/a/binding", make.binding("a", "n1"))).ok()
    (await api.patch(f"{pods}/a/status", {"status": {"phase": "Running"}}, make.MERGE)).ok()
    budgets = f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets"
    (await api.post(budgets, {"metadata": {"name": "b"}, "spec": {"selector": {"matchLabels": {"app": "a"}}}})).ok()
    eviction = {"metadata": {"name": "a"}}
    answer = await api.post(f"{pods}/a/eviction", eviction)
    assert "would violate the pod's disruption budget" in answer.failed(429, "TooManyRequests")
    status = {"disruptionsAllowed": 1, "currentHealthy": 1, "desiredHealthy": 0, "expectedPods": 1}
    (await api.patch(f"{budgets}/b/status", {"status": status}, make.MERGE)).ok()
    # The numbers count only once their writer has seen this budget.
    answer = await api.post(f"{pods}/a/eviction", eviction)
    answer.failed(429, "TooManyRequests")
    assert "is still being processed" in answer.body["details"]["causes"][0]["message"]
    (await api.patch(f"{budgets}/b/status", {"status": {"observedGeneration": 1}}, make.MERGE)).ok()
    assert (await api.post(f"{pods}/a/eviction", eviction)).code == 201


async def test_a_deleted_namespace_takes_everything_with_it(api, namespace, pods, make):
    (await api.post(pods, make.pod("a"))).ok()
    (await api.delete(f"/api/v1/namespaces/{namespace}")).ok()
    assert (await api.post(pods, make.pod("b"))).code in (403, 404)
