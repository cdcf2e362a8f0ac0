"""Reading and writing objects: versions, conflicts, lists, selectors, deletion with finalizers."""

from __future__ import annotations

import asyncio

import pytest


async def test_create_sets_what_only_the_server_knows(api, namespace, make):
    body = make.configmap("a", x="1")
    body["metadata"]["uid"] = "mine"
    body["metadata"]["creationTimestamp"] = "2001-01-01T00:00:00Z"
    created = await api.post(f"/api/v1/namespaces/{namespace}/configmaps", body)
    assert created.code == 201
    metadata = created.body["metadata"]
    assert metadata["namespace"] == namespace
    assert metadata["uid"] != "mine"
    assert metadata["creationTimestamp"] > "2020"
    assert int(metadata["resourceVersion"]) > 0
    assert (await api.get(f"/api/v1/namespaces/{namespace}/configmaps/a")).ok() == created.body


async def test_a_name_is_taken_once(api, namespace, make):
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    (await api.post(path, make.configmap("a"))).ok()
    message = (await api.post(path, make.configmap("a"))).failed(409, "AlreadyExists")
    assert message == 'configmaps "a" already exists'


async def test_names_are_generated(api, pods, make):
    first, second = [(await api.post(pods, make.pod())).ok()["metadata"]["name"] for _ in range(2)]
    assert first != second
    assert first.startswith("p-")
    assert len(first) == len("p-") + 5


async def test_missing_objects_and_paths(api, namespace):
    message = (await api.get(f"/api/v1/namespaces/{namespace}/pods/none")).failed(404, "NotFound")
    assert message == 'pods "none" not found'
    assert (await api.get("/api/v1/namespaces/x/nothings")).code == 404
    assert (await api.get("/apis/nobody/v1/things")).code == 404
    nowhere = await api.post("/api/v1/namespaces/not-there/configmaps", {"metadata": {"name": "a"}})
    assert nowhere.failed(404, "NotFound") == 'namespaces "not-there" not found'


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", 400),
        (b"[]", 400),
        ({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "a"}}, 400),
        ({"kind": "ConfigMap", "apiVersion": "v2", "metadata": {"name": "a"}}, 400),
        ({"metadata": {"name": "a", "namespace": "other"}}, 400),
        ({"metadata": {"name": "A_B"}}, 422),
        ({"metadata": {}}, 422),
        ({"metadata": {"name": "a", "labels": {"x": 1}}}, 400),
        ({"metadata": {"name": "a", "labels": {"x": "not a label"}}}, 422),
        ({"metadata": {"name": "a", "labels": {"x": "l" * 64}}}, 422),
        ({"metadata": {"name": "a", "labels": {"/x": "l"}}}, 422),
        ({"metadata": {"name": "a", "annotations": {"bad key": "l"}}}, 422),
        ({"metadata": {"name": "a", "annotations": {"x": "l" * (256 * 1024)}}}, 422),
        ({"metadata": {"name": "a", "resourceVersion": "7"}}, 500),
    ],
)
async def test_bad_objects_are_refused(api, namespace, body, code):
    answer = await api.post(f"/api/v1/namespaces/{namespace}/configmaps", body)
    assert answer.code == code, answer.body
    assert answer.body["kind"] == "Status"
    assert answer.body["status"] == "Failure"


async def test_a_body_above_three_mebibytes_is_refused(api, namespace, make):
    answer = await api.post(f"/api/v1/namespaces/{namespace}/configmaps", make.configmap("a", x="y" * (3 << 20)))
    assert answer.code == 413


async def test_put_replaces_and_compares_versions(api, namespace, make):
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    first = (await api.post(path, make.configmap("a", x="1"))).ok()
    second = (await api.put(f"{path}/a", {**first, "data": {"x": "2"}})).ok()
    assert second["data"] == {"x": "2"}
    assert int(second["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"])
    message = (await api.put(f"{path}/a", {**first, "data": {"x": "3"}})).failed(409, "Conflict")
    assert "the object has been modified" in message
    # Without a version the last one wins.
    del first["metadata"]["resourceVersion"]
    assert (await api.put(f"{path}/a", {**first, "data": {"x": "4"}})).ok()["data"] == {"x": "4"}


async def test_put_of_another_objects_uid_conflicts(api, namespace, make):
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    body = (await api.post(path, make.configmap("a"))).ok()
    body["metadata"]["uid"] = "11111111-2222-3333-4444-555555555555"
    assert "Precondition failed: UID" in (await api.put(f"{path}/a", body)).failed(409, "Conflict")


async def test_put_creates_only_where_the_kind_allows_it(api, namespace, make):
    lease = {"metadata": {"name": "l"}, "spec": {"holderIdentity": "me"}}
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/l"
    assert (await api.put(path, lease)).code == 201
    # And an update of a Lease must say which version it replaces.
    assert (await api.put(path, lease)).code == 422
    assert (await api.put(f"/api/v1/namespaces/{namespace}/configmaps/a", make.configmap("a"))).code == 404


async def test_a_change_that_changes_nothing_makes_no_version(api, namespace, make):
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    first = (await api.post(path, make.configmap("a", x="1"))).ok()
    assert (await api.put(f"{path}/a", first)).ok() == first
    assert (await api.patch(f"{path}/a", {"data": {"x": "1"}}, make.MERGE)).ok() == first


async def test_dry_run_stores_nothing(api, namespace, make):
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    assert (await api.post(path, make.configmap("a"), dryRun="All")).code == 201
    assert (await api.get(f"{path}/a")).code == 404
    (await api.post(path, make.configmap("a"))).ok()
    (await api.patch(f"{path}/a", {"data": {"x": "1"}}, make.MERGE, dryRun="All")).ok()
    assert "data" not in (await api.get(f"{path}/a")).ok() or (await api.get(f"{path}/a")).ok()["data"] == {}
    (await api.delete(f"{path}/a", dryRun="All")).ok()
    assert (await api.get(f"{path}/a")).code == 200


async def test_lists_leave_the_kind_to_the_list(api, namespace, make):
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    for name in ("b", "a"):
        (await api.post(path, make.configmap(name))).ok()
    found = (await api.get(path)).ok()
    assert found["kind"] == "ConfigMapList"
    names = [item["metadata"]["name"] for item in found["items"]]
    assert [name for name in names if name != "kube-root-ca.crt"] == ["a", "b"]
    assert all("kind" not in item and "apiVersion" not in item for item in found["items"])


async def test_pages_show_one_snapshot(api, namespace):
    path = f"/api/v1/namespaces/{namespace}/secrets"
    for number in range(5):
        (await api.post(path, {"metadata": {"name": f"s{number}"}})).ok()
    first = (await api.get(path, limit="2")).ok()
    assert first["metadata"]["remainingItemCount"] == 3
    (await api.delete(f"{path}/s3")).ok()
    (await api.post(path, {"metadata": {"name": "s35"}})).ok()
    second = (await api.get(path, limit="2", **{"continue": first["metadata"]["continue"]})).ok()
    third = (await api.get(path, limit="2", **{"continue": second["metadata"]["continue"]})).ok()
    names = [item["metadata"]["name"] for page in (first, second, third) for item in page["items"]]
    assert names == ["s0", "s1", "s2", "s3", "s4"]
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert "continue" not in third["metadata"]


async def test_a_continue_token_that_is_none_is_refused(api, namespace):
    answer = await api.get(f"/api/v1/namespaces/{namespace}/secrets", limit="2", **{"continue": "!!!"})
    assert answer.code == 400


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("team=a", {"one", "two"}),
        ("team==a,tier=web", {"one"}),
        ("team!=a", {"three", "four"}),
        ("team", {"one", "two", "three"}),
        ("!team", {"four"}),
        ("tier in (web, db)", {"one", "two"}),
        ("tier notin (web),team=a", {"two"}),
    ],
)
async def test_label_selectors(api, namespace, selector, names):
    path = f"/api/v1/namespaces/{namespace}/secrets"
    for name, labels in {
        "one": {"team": "a", "tier": "web"},
        "two": {"team": "a", "tier": "db"},
        "three": {"team": "b"},
        "four": {},
    }.items():
        (await api.post(path, {"metadata": {"name": name, "labels": labels}})).ok()
    found = (await api.get(path, labelSelector=selector)).ok()
    assert {item["metadata"]["name"] for item in found["items"]} == names


async def test_field_selectors(api, namespace, pods, make):
    for name in ("a", "b"):
        (await api.post(pods, make.pod(name))).ok()
    (await api.post(f"{pods}/a/binding", make.binding("a", "n1"))).ok()
    for selector, names in {
        "metadata.name=b": ["b"],
        f"metadata.namespace={namespace}": ["a", "b"],
        "spec.nodeName=n1": ["a"],
        "spec.nodeName!=n1": ["b"],
        "spec.nodeName=": ["b"],
        "status.phase=Pending,spec.nodeName=n1": ["a"],
        "status.phase=Running": [],
    }.items():
        found = (await api.get(pods, fieldSelector=selector)).ok()
        assert [item["metadata"]["name"] for item in found["items"]] == names, selector
    assert (await api.get(pods, fieldSelector="spec.image=x")).code == 400


async def test_delete_answers_with_a_status_that_names_the_object(api, namespace, make):
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    created = (await api.post(path, make.configmap("a"))).ok()
    gone = (await api.delete(f"{path}/a")).ok()
    assert (gone["kind"], gone["status"]) == ("Status", "Success")
    assert gone["details"]["uid"] == created["metadata"]["uid"]
    assert (await api.delete(f"{path}/a")).code == 404


async def test_delete_with_the_wrong_uid_conflicts(api, namespace, make):
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    created = (await api.post(path, make.configmap("a"))).ok()
    wrong = {"preconditions": {"uid": "11111111-2222-3333-4444-555555555555"}}
    assert "UID in the precondition" in (await api.delete(f"{path}/a", wrong)).failed(409, "Conflict")
    (await api.delete(f"{path}/a", {"preconditions": {"uid": created["metadata"]["uid"]}})).ok()


async def test_finalizers_hold_an_object(api, namespace, make):
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    body = make.configmap("a")
    body["metadata"]["finalizers"] = ["tessera.test/hold"]
    (await api.post(path, body)).ok()
    held = (await api.delete(f"{path}/a")).ok()
    assert held["metadata"]["deletionTimestamp"]
    assert (await api.post(path, body)).failed(409, "AlreadyExists").startswith("object is being deleted")
    more = {"metadata": {"finalizers": ["tessera.test/hold", "tessera.test/more"]}}
    assert (await api.patch(f"{path}/a", more, make.MERGE)).code == 422
    (await api.patch(f"{path}/a", {"metadata": {"finalizers": None}}, make.MERGE)).ok()
    assert (await api.get(f"{path}/a")).code == 404


async def test_delete_of_a_collection_takes_the_selected(api, namespace):
    path = f"/api/v1/namespaces/{namespace}/secrets"
    for name in ("a", "b", "c"):
        (await api.post(path, {"metadata": {"name": name, "labels": {"odd": str(name != "b")}}})).ok()
    (await api.delete(path, labelSelector="odd=True")).ok()
    assert [item["metadata"]["name"] for item in (await api.get(path)).ok()["items"]] == ["b"]


async def test_only_one_of_many_concurrent_writers_wins(api, namespace, make):
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    body = (await api.post(path, make.configmap("a", winner="nobody"))).ok()
    answers = await asyncio.gather(
        *(api.put(f"{path}/a", {**body, "data": {"winner": str(number)}}) for number in range(10))
    )
    won = [answer for answer in answers if answer.code == 200]
    assert len(won) == 1
    assert {answer.code for answer in answers} == {200, 409}
    assert (await api.get(f"{path}/a")).ok()["data"] == won[0].body["data"]


async def test_status_and_the_rest_are_written_apart(api, namespace, make):
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    template = {
        "metadata": {"labels": {"app": "a"}},
        "spec": {"containers": [{"name": "main", "image": "registry.example/app:1"}]},
    }
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": "a"}}, "template": template}
    created = (await api.post(path, {"metadata": {"name": "d"}, "spec": spec, "status": {"replicas": 9}})).ok()
    assert created["status"].get("replicas", 0) == 0
    assert created["metadata"]["generation"] == 1
    both = {"spec": {"replicas": 2}, "status": {"observedGeneration": 1}, "metadata": {"labels": {"x": "y"}}}
    changed = (await api.patch(f"{path}/d/status", both, make.MERGE)).ok()
    assert changed["spec"]["replicas"] == 1
    assert changed["status"]["observedGeneration"] == 1
    assert "labels" not in changed["metadata"]
    changed = (await api.patch(f"{path}/d", both | {"status": {"observedGeneration": 5}}, make.MERGE)).ok()
    assert (changed["spec"]["replicas"], changed["status"]["observedGeneration"]) == (2, 1)
    assert changed["metadata"]["generation"] == 2


async def test_events_are_one_thing_in_two_forms(api, namespace):
    event = {
        "metadata": {"name": "e"},
        "involvedObject": {"kind": "Pod", "namespace": namespace, "name": "p"},
        "reason": "SliceAllocated",
        "message": "8 GiB on GPU 0",
        "type": "Normal",
        "count": 3,
        "firstTimestamp": "2026-01-01T00:00:00Z",
        "lastTimestamp": "2026-01-01T00:00:00Z",
    }
    (await api.post(f"/api/v1/namespaces/{namespace}/events", event)).ok()
    other = (await api.get(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events/e")).ok()
    assert other["apiVersion"] == "events.k8s.io/v1"
    assert (other["note"], other["regarding"]["name"], other["deprecatedCount"]) == ("8 GiB on GPU 0", "p", 3)
    listed = (await api.get(f"/api/v1/namespaces/{namespace}/events", fieldSelector="involvedObject.name=p")).ok()
    assert [item["reason"] for item in listed["items"]] == ["SliceAllocated"]


async def test_an_event_stands_in_its_objects_namespace(api, namespace):
    event = {
        "metadata": {"name": "e"},
        "involvedObject": {"kind": "Pod", "namespace": "elsewhere", "name": "p"},
        "reason": "X",
    }
    message = (await api.post(f"/api/v1/namespaces/{namespace}/events", event)).failed(422, "Invalid")
    assert "does not match event.namespace" in message


async def test_verbs_that_a_resource_does_not_have(api, namespace):
    assert (await api.call("PUT", f"/api/v1/namespaces/{namespace}/configmaps", {})).code == 405
    assert (await api.get(f"/api/v1/namespaces/{namespace}/configmaps/a/status")).code == 404


async def test_health_and_version_are_open(api):
    for path in ("/healthz", "/livez", "/readyz"):
        assert (await api.get(path)).code == 200
    assert (await api.get("/version")).ok()["major"] == "1"
    groups = {group["name"] for group in (await api.get("/apis")).ok()["groups"]}
    assert {"apps", "coordination.k8s.io", "admissionregistration.k8s.io"} <= groups
