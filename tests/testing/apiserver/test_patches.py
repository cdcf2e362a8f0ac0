"""The four kinds of patch."""

from __future__ import annotations

import pytest


@pytest.fixture
async def path(api, namespace, make):
    body = make.configmap("a", x="1", y="2")
    body["metadata"]["labels"] = {"one": "1"}
    (await api.post(f"/api/v1/namespaces/{namespace}/configmaps", body)).ok()
    return f"/api/v1/namespaces/{namespace}/configmaps/a"


async def test_merge_patch_adds_changes_and_takes_away(api, path, make):
    found = (await api.patch(path, {"data": {"x": None, "y": "3", "z": "4"}}, make.MERGE)).ok()
    assert found["data"] == {"y": "3", "z": "4"}
    found = (await api.patch(path, {"data": None}, make.MERGE)).ok()
    assert found.get("data", {}) == {}


async def test_a_patch_with_a_version_applies_to_that_version_only(api, path, make):
    version = (await api.get(path)).ok()["metadata"]["resourceVersion"]
    guarded = {"metadata": {"resourceVersion": version}, "data": {"x": "guarded"}}
    (await api.patch(path, guarded, make.MERGE)).ok()
    assert (await api.patch(path, guarded | {"data": {"x": "late"}}, make.MERGE)).failed(409, "Conflict")
    uid = {"metadata": {"uid": "11111111-2222-3333-4444-555555555555"}}
    assert (await api.patch(path, uid, make.MERGE)).code in (409, 422)


async def test_json_patch_applies_in_order_or_not_at_all(api, path, make):
    operations = [
        {"op": "test", "path": "/data/x", "value": "1"},
        {"op": "add", "path": "/data/z", "value": "9"},
        {"op": "move", "from": "/data/y", "path": "/data/w"},
        {"op": "add", "path": "/metadata/annotations", "value": {"tessera.dev/plan": "{}"}},
        {"op": "replace", "path": "/metadata/annotations/tessera.dev~1plan", "value": "{1}"},
    ]
    found = (await api.patch(path, operations, make.JSON_PATCH)).ok()
    assert found["data"] == {"x": "1", "w": "2", "z": "9"}
    assert found["metadata"]["annotations"] == {"tessera.dev/plan": "{1}"}
    operations = [{"op": "add", "path": "/data/q", "value": "1"}, {"op": "test", "path": "/data/x", "value": "2"}]
    assert (await api.patch(path, operations, make.JSON_PATCH)).code == 422
    assert "q" not in (await api.get(path)).ok()["data"]


@pytest.mark.parametrize(
    ("operations", "code"),
    [
        ([{"op": "remove", "path": "/data/none"}], 422),
        ([{"op": "add", "path": "/spec/deep/er", "value": 1}], 422),
        ({"op": "remove", "path": "/data"}, 400),
        (b"[", 400),
        ([1], 400),
    ],
)
async def test_json_patches_that_can_not_be_applied(api, path, make, operations, code):
    assert (await api.patch(path, operations, make.JSON_PATCH)).code == code


async def test_a_patch_of_an_unknown_kind_is_refused(api, path):
    answer = await api.patch(path, {"data": {}}, "application/json")
    assert answer.failed(415, "UnsupportedMediaType")


async def test_a_patch_makes_no_object(api, namespace, make):
    answer = await api.patch(f"/api/v1/namespaces/{namespace}/configmaps/none", {"data": {}}, make.MERGE)
    assert answer.code == 404


async def test_what_no_patch_changes(api, path, make):
    before = (await api.get(path)).ok()
    forged = {"metadata": {"creationTimestamp": "2001-01-01T00:00:00Z"}, "data": {"x": "new"}}
    after = (await api.patch(path, forged, make.MERGE)).ok()
    assert after["metadata"]["creationTimestamp"] == before["metadata"]["creationTimestamp"]
    for deletion in ({"deletionTimestamp": "2001-01-01T00:00:00Z"}, {"deletionGracePeriodSeconds": 5}):
        message = (await api.patch(path, {"metadata": deletion}, make.MERGE)).failed(422, "Invalid")
        assert "field is immutable" in message
    assert "deletionTimestamp" not in (await api.get(path)).ok()["metadata"]
    assert (await api.patch(path, {"metadata": {"name": "b"}}, make.MERGE)).code == 400


async def test_strategic_merge_knows_lists_by_their_keys(api, namespace, make):
    template = {
        "metadata": {"labels": {"app": "a"}},
        "spec": {
            "containers": [
                {"name": "main", "image": "i:1", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
                {"name": "side", "image": "i:1", "args": ["x", "y"]},
            ],
            "tolerations": [{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Exists"}],
        },
    }
    deployments = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    spec = {"selector": {"matchLabels": {"app": "a"}}, "template": template}
    (await api.post(deployments, {"metadata": {"name": "d"}, "spec": spec})).ok()
    change = {
        "spec": {
            "template": {
                "spec": {
                    "containers": [
                        {"name": "main", "env": [{"name": "B", "value": "3"}, {"name": "A", "$patch": "delete"}]},
                        {"name": "side", "args": ["z"]},
                        {"name": "new", "image": "i:2"},
                    ],
                    "tolerations": [{"key": "c", "operator": "Exists"}],
                }
            }
        }
    }
    found = (await api.patch(f"{deployments}/d", change, make.STRATEGIC)).ok()["spec"]["template"]["spec"]
    by_name = {container["name"]: container for container in found["containers"]}
    assert set(by_name) == {"main", "side", "new"}
    assert by_name["main"]["env"] == [{"name": "B", "value": "3"}]
    assert by_name["main"]["image"] == "i:1"
    assert by_name["side"]["args"] == ["z"]
    # Tolerations have no merge key: the patch's list stands for the whole.
    assert found["tolerations"] == [{"key": "c", "operator": "Exists"}]


async def test_strategic_merge_directives(api, namespace, make):
    nodes = "/api/v1/nodes"
    name = f"n-{namespace}"
    conditions = [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]
    (await api.post(nodes, {"metadata": {"name": name}, "status": {"conditions": conditions}})).ok()
    change = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}
    found = (await api.patch(f"{nodes}/{name}/status", change, make.STRATEGIC)).ok()
    assert {c["type"]: c["status"] for c in found["status"]["conditions"]} == {"Ready": "False", "Other": "False"}
    order = {"status": {"$setElementOrder/conditions": [{"type": "Other"}, {"type": "Ready"}]}}
    found = (await api.patch(f"{nodes}/{name}/status", order, make.STRATEGIC)).ok()
    assert [c["type"] for c in found["status"]["conditions"]] == ["Other", "Ready"]
    replace = {"metadata": {"labels": {"$patch": "replace", "only": "one"}}}
    (await api.patch(f"{nodes}/{name}", {"metadata": {"labels": {"first": "1"}}}, make.STRATEGIC)).ok()
    found = (await api.patch(f"{nodes}/{name}", replace, make.STRATEGIC)).ok()
    assert found["metadata"]["labels"] == {"only": "one"}
    (await api.delete(f"{nodes}/{name}")).ok()


async def test_apply_creates_owns_and_takes_away(api, namespace, make):
    path = f"/api/v1/namespaces/{namespace}/configmaps/applied"
    base = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}}
    first = await api.patch(path, {**base, "data": {"x": "1", "y": "1"}}, make.APPLY, fieldManager="one")
    assert first.code == 201
    second = (await api.patch(path, {**base, "data": {"z": "1"}}, make.APPLY, fieldManager="two")).ok()
    assert second["data"] == {"x": "1", "y": "1", "z": "1"}
    third = (await api.patch(path, {**base, "data": {"x": "2"}}, make.APPLY, fieldManager="one")).ok()
    assert third["data"] == {"x": "2", "z": "1"}
    answer = await api.patch(path, {**base, "data": {"x": "3", "z": "1"}}, make.APPLY, fieldManager="two")
    assert 'conflict with "one"' in answer.failed(409, "Conflict")
    forced = await api.patch(path, {**base, "data": {"x": "3", "z": "1"}}, make.APPLY, fieldManager="two", force="true")
    assert forced.ok()["data"] == {"x": "3", "z": "1"}


async def test_applying_the_same_again_makes_no_version(api, namespace, make):
    path = f"/api/v1/namespaces/{namespace}/configmaps/applied"
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"x": "1"}}
    first = (await api.patch(path, body, make.APPLY, fieldManager="one")).ok()
    again = (await api.patch(path, body, make.APPLY, fieldManager="one")).ok()
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


async def test_apply_needs_a_manager_and_an_object(api, namespace, make):
    path = f"/api/v1/namespaces/{namespace}/configmaps/applied"
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}}
    assert (await api.patch(path, body, make.APPLY)).code == 422
    assert (await api.patch(path, b"- a\n", make.APPLY, fieldManager="one")).code == 400
    assert (await api.patch(path, b"a: [", make.APPLY, fieldManager="one")).code == 400


async def test_apply_of_yaml_merges_lists_by_key(api, namespace, make):
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/d"
    manifest = b"""
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
spec:
  selector: {matchLabels: {app: a}}
  template:
    metadata: {labels: {app: a}}
    spec:
      containers:
      - {name: main, image: "i:1", env: [{name: A, value: "1"}]}
"""
    (await api.patch(path, manifest, make.APPLY, fieldManager="one")).ok()
    side = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d"},
        "spec": {"template": {"spec": {"containers": [{"name": "side", "image": "i:2"}]}}},
    }
    found = (await api.patch(path, side, make.APPLY, fieldManager="two")).ok()
    assert [c["name"] for c in found["spec"]["template"]["spec"]["containers"]] == ["main", "side"]
    side["spec"]["template"]["spec"]["containers"] = []
    side["spec"]["replicas"] = 2
    found = (await api.patch(path, side, make.APPLY, fieldManager="two")).ok()
    assert [c["name"] for c in found["spec"]["template"]["spec"]["containers"]] == ["main"]
