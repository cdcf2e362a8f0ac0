"""Admission webhooks: who is asked, what is sent, what is made of the answer."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest
from aiohttp import web

TICKET = "tessera.dev/gpu-memory.256Mi"
ANNOTATE = {"op": "add", "path": "/metadata/annotations", "value": {"seen": "once"}}


def patch(*operations):
    return {"patchType": "JSONPatch", "patch": base64.b64encode(json.dumps(operations).encode()).decode()}


async def test_a_review_has_the_fields_of_admission_v1(*, api, namespace, pods, make, webhook, register):
    await register()
    (await api.post(pods, make.pod(limits={TICKET: 4}), fieldManager="kubectl")).ok()
    (review,) = webhook.asked
    assert (review["kind"], review["apiVersion"]) == ("AdmissionReview", "admission.k8s.io/v1")
    request = review["request"]
    assert request["kind"] == request["requestKind"] == {"group": "", "version": "v1", "kind": "Pod"}
    assert request["resource"] == request["requestResource"] == {"group": "", "version": "v1", "resource": "pods"}
    assert (request["operation"], request["namespace"], request["dryRun"]) == ("CREATE", namespace, False)
    # With generateName there is no name yet, and no UID.
    assert "name" not in request
    assert "uid" not in request["object"]["metadata"]
    assert request["object"]["metadata"]["generateName"] == "p-"
    assert request["object"]["metadata"]["namespace"] == namespace
    assert request["oldObject"] is None
    assert request["options"]["kind"] == "CreateOptions"
    assert request["options"]["fieldManager"] == "kubectl"
    assert request["userInfo"]["username"]
    # Defaults are in place: amounts as texts, requests equal to limits.
    resources = request["object"]["spec"]["containers"][0]["resources"]
    assert resources == {"limits": {TICKET: "4"}, "requests": {TICKET: "4"}}
    assert request["object"]["spec"]["schedulerName"] == "default-scheduler"


async def test_nulls_do_not_reach_a_webhook(api, pods, make, webhook, register):
    await register()
    body = make.pod("a")
    body["metadata"]["annotations"] = None
    body["spec"]["nodeSelector"] = None
    (await api.post(pods, body)).ok()
    found = webhook.asked[0]["request"]["object"]
    assert "annotations" not in found["metadata"]
    assert "nodeSelector" not in found["spec"]


async def test_a_patch_is_applied_and_defaulted(api, pods, make, webhook, register):
    await register()
    webhook.patches(
        ANNOTATE,
        {"op": "add", "path": "/spec/containers/0/resources/limits", "value": {TICKET: "8"}},
        {"op": "replace", "path": "/spec/schedulerName", "value": "tessera-scheduler"},
    )
    found = (await api.post(pods, make.pod("a"))).ok()
    assert found["metadata"]["annotations"] == {"seen": "once"}
    assert found["spec"]["schedulerName"] == "tessera-scheduler"
    assert found["spec"]["containers"][0]["resources"]["requests"] == {TICKET: "8"}


async def test_what_a_patch_makes_is_validated(api, pods, make, webhook, register):
    await register()
    webhook.patches({"op": "add", "path": "/spec/containers/0/resources/limits", "value": {TICKET: "0.5"}})
    assert "must be an integer" in (await api.post(pods, make.pod("a"))).failed(422, "Invalid")
    # The request that was defaulted from the old limit no longer fits the new one.
    webhook.patches({"op": "replace", "path": "/spec/containers/0/resources/limits", "value": {TICKET: "8"}})
    message = (await api.post(pods, make.pod("a", limits={TICKET: "4"}))).failed(422, "Invalid")
    assert f"must be equal to {TICKET} limit of 8" in message


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        ({"message": "ask for less"}, 400, "denied the request: ask for less"),
        ({"code": 403, "reason": "Forbidden", "message": "no"}, 403, "denied the request: no"),
        ({"code": 422, "reason": "Invalid"}, 422, "denied the request: Invalid"),
        ({"code": 200, "message": "odd"}, 400, "denied the request: odd"),
        (None, 400, "denied the request without explanation"),
    ],
)
async def test_a_denial_names_the_webhook(*, api, namespace, pods, make, webhook, register, status, code, message):
    await register()
    webhook.answers({"allowed": False, **({"status": status} if status else {})})
    answer = await api.post(pods, make.pod("a"))
    assert answer.code == code
    assert answer.body["message"] == f'admission webhook "hook-{namespace}.tessera.test" {message}'
    assert (await api.get(f"{pods}/a")).code == 404


async def test_warnings_reach_the_user(api, pods, make, webhook, register):
    await register()
    webhook.answers({"allowed": True, "warnings": ['stripped "x"', "second"]})
    answer = await api.post(pods, make.pod("a"))
    assert answer.headers.getall("Warning") == ['299 - "stripped \\"x\\""', '299 - "second"']


@pytest.mark.parametrize(
    "answer",
    [
        {"allowed": True, "uid": "another"},
        {"allowed": True, "patch": "W10="},
        {"allowed": True, "patchType": "JSONPatch"},
        {"allowed": True, "patchType": "JSONPatch", "patch": "!"},
        {"allowed": True, "patchType": "Other", "patch": "W3sib3AiOiJyZW1vdmUiLCJwYXRoIjoiL3NwZWMifV0="},
    ],
)
async def test_answers_that_are_none(*, api, pods, make, webhook, register, answer):
    await register()
    webhook.answers(answer)
    failed = (await api.post(pods, make.pod("a"))).failed(500, "InternalError")
    assert failed.startswith("Internal error occurred: failed calling webhook")


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"not json", b'{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}']
)
async def test_bodies_that_are_no_review(*, api, pods, make, webhook, register, body):
    await register(failurePolicy="Ignore")

    async def reviewer(_request):
        return web.Response(body=body, content_type="application/json")

    webhook.reviewer = reviewer
    (await api.post(pods, make.pod("a"))).ok()
    assert len(webhook.asked) == 1


async def test_a_webhook_that_is_down_closes_or_opens(api, pods, make, webhook, register):
    down = {"url": "https://127.0.0.1:1/mutate", "caBundle": webhook.bundle}
    await register(clientConfig=down)
    message = (await api.post(pods, make.pod("a"))).failed(500, "InternalError")
    assert "failed to call webhook" in message


async def test_failure_policy_ignore_lets_pods_through(api, pods, make, register):
    await register(clientConfig={"url": "https://127.0.0.1:1/mutate"}, failurePolicy="Ignore")
    (await api.post(pods, make.pod("a"))).ok()


async def test_a_certificate_that_the_bundle_did_not_sign_is_a_failure(api, pods, make, webhook, register):
    await register(clientConfig={"url": f"{webhook.url}/mutate"})
    assert "certificate" in (await api.post(pods, make.pod("a"))).failed(500, "InternalError").lower()
    assert webhook.asked == []


async def test_a_webhook_that_is_slow_is_given_up(api, pods, make, webhook, register):
    await register(timeoutSeconds=1)
    never = asyncio.Event()

    async def reviewer(_request):
        await never.wait()
        return {"allowed": True}

    webhook.reviewer = reviewer
    message = (await api.post(pods, make.pod("a"))).failed(500, "InternalError")
    assert "context deadline exceeded" in message
    never.set()


STATUS = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "malformed review"}


@pytest.mark.parametrize(
    ("code", "answer", "words"),
    [
        (400, STATUS, "failed to call webhook: malformed review"),
        (400, {"message": "malformed review"}, "the server rejected our request for an unknown reason"),
        (403, "go away", "failed to call webhook: go away"),
        (404, "go away", "the server could not find the requested resource"),
        (413, "too large", "the server responded with the status code 413 but did not return more information"),
        (500, "it broke", 'an error on the server ("it broke") has prevented the request from succeeding'),
        (500, {"message": "it broke"}, 'an error on the server ("unknown") has prevented the request from succeeding'),
        (503, "come back later", "the server is currently unable to handle the request"),
        (503, STATUS, "failed to call webhook: malformed review"),
    ],
)
async def test_an_error_code_of_a_webhook_is_a_failure(*, api, pods, make, webhook, register, code, answer, words):
    """Only the message of a Status object reaches the user whatever the code."""
    await register()

    async def reviewer(_request):
        if isinstance(answer, str):
            return web.Response(text=answer, status=code)
        return web.json_response(answer, status=code)

    webhook.reviewer = reviewer
    assert (await api.post(pods, make.pod("a"))).failed(500, "InternalError").endswith(words)


async def test_a_patch_without_operations_is_none(api, pods, make, webhook, register):
    await register()
    webhook.answers({"allowed": True, "patchType": "Other", "patch": "W10="})
    (await api.post(pods, make.pod("a"))).ok()


async def test_only_what_the_rules_name_is_asked(*, api, namespace, pods, make, webhook, register):
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods/binding"]}
    await register("Validating", rules=[rule])
    (await api.post(pods, make.pod("a"))).ok()
    (await api.post(f"/api/v1/namespaces/{namespace}/secrets", {"metadata": {"name": "s"}})).ok()
    assert webhook.asked == []
    (await api.post(f"{pods}/a/binding", make.binding("a", "n1"))).ok()
    (review,) = webhook.asked
    request = review["request"]
    assert (request["subResource"], request["name"]) == ("binding", "a")
    assert request["kind"]["kind"] == "Binding"
    assert request["object"]["target"]["name"] == "n1"


async def test_a_denied_binding_binds_nothing(api, pods, make, webhook, register):
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["pods/*"]}
    await register("Validating", rules=[rule])
    (await api.post(pods, make.pod("a"))).ok()
    webhook.answers({"allowed": False, "status": {"message": "not you"}})
    assert (await api.post(f"{pods}/a/binding", make.binding("a", "n1"))).code == 400
    assert "nodeName" not in (await api.get(f"{pods}/a")).ok()["spec"]


async def test_namespaces_and_objects_are_selected(api, pods, make, webhook, register):
    await register(namespaceSelector={"matchExpressions": [{"key": "tessera", "operator": "Exists"}]})
    await register(name="labelled", objectSelector={"matchLabels": {"gpu": "yes"}})
    (await api.post(pods, make.pod("a"))).ok()
    assert webhook.asked == []
    body = make.pod("b")
    body["metadata"]["labels"] = {"gpu": "yes"}
    (await api.post(pods, body)).ok()
    assert len(webhook.asked) == 1


async def test_updates_and_deletions_bring_the_old_object(api, pods, make, webhook, register):
    rule = {"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["UPDATE", "DELETE"], "resources": ["pods"]}
    await register("Validating", rules=[rule])
    created = (await api.post(pods, make.pod("a"))).ok()
    (await api.patch(f"{pods}/a", {"metadata": {"labels": {"x": "y"}}}, make.MERGE)).ok()
    (await api.delete(f"{pods}/a", {"gracePeriodSeconds": 0})).ok()
    # A real server asks again for each step of a deletion: two or three times for a pod.
    update, delete, *_ = [review["request"] for review in webhook.asked]
    assert update["operation"] == "UPDATE"
    assert update["oldObject"] == created
    assert update["object"]["metadata"]["labels"] == {"x": "y"}
    assert (delete["operation"], delete["object"]) == ("DELETE", None)
    assert delete["oldObject"]["metadata"]["name"] == "a"
    assert delete["options"]["gracePeriodSeconds"] == 0


async def test_validating_webhooks_see_what_is_stored_and_can_not_patch(api, pods, make, webhook, register):
    await register("Validating")
    created = (await api.post(pods, make.pod())).ok()
    request = webhook.asked[0]["request"]
    assert request["name"] == created["metadata"]["name"]
    assert request["object"]["metadata"]["uid"] == created["metadata"]["uid"]
    assert request["object"]["status"]["phase"] == "Pending"
    webhook.patches(ANNOTATE)
    assert "may not return response.patch" in (await api.post(pods, make.pod())).failed(500, "InternalError")


async def test_webhooks_run_by_name_and_see_each_others_changes(api, pods, make, webhook, register):
    for name in ("b", "a"):
        await register(name=name)

    async def reviewer(request):
        said = "a" if not request["object"]["metadata"].get("annotations") else "b"
        return {"allowed": True, **patch({"op": "add", "path": "/metadata/annotations", "value": {"last": said}})}

    webhook.reviewer = reviewer
    found = (await api.post(pods, make.pod("x"))).ok()
    assert found["metadata"]["annotations"] == {"last": "b"}
    assert len(webhook.asked) == 2


async def test_a_webhook_is_asked_again_after_a_later_one_changed_something(api, pods, make, webhook, register):
    await register(name="a", reinvocationPolicy="IfNeeded")
    await register(name="b")
    counts = []

    async def reviewer(request):
        counts.append("annotations" in request["object"]["metadata"])
        # The second of the round changes, the first then gets a second look.
        return {"allowed": True, **(patch(ANNOTATE) if len(counts) == 2 else {})}

    webhook.reviewer = reviewer
    (await api.post(pods, make.pod("x"))).ok()
    assert counts == [False, False, True]


async def test_a_webhook_is_not_asked_again_for_its_own_change(api, pods, make, webhook, register):
    await register(name="a", reinvocationPolicy="IfNeeded")
    webhook.patches(ANNOTATE)
    (await api.post(pods, make.pod("x"))).ok()
    assert len(webhook.asked) == 1


async def test_a_container_that_a_webhook_adds_gets_the_token_and_a_second_look(api, pods, make, webhook, register):
    await register(name="a", reinvocationPolicy="IfNeeded")
    extra = {"name": "extra", "image": "registry.example/side:1"}

    async def reviewer(request):
        containers = request["object"]["spec"]["containers"]
        return {
            "allowed": True,
            **(patch({"op": "add", "path": "/spec/containers/-", "value": extra}) if len(containers) == 1 else {}),
        }

    webhook.reviewer = reviewer
    found = (await api.post(pods, make.pod("x"))).ok()
    volumes = [v["name"] for v in found["spec"]["volumes"]]
    assert len(volumes) == 1
    assert found["spec"]["containers"][1]["volumeMounts"][0]["name"] == volumes[0]
    # In-tree plugins changed the object after the webhook, so it is asked once more.
    assert len(webhook.asked) == 2


async def test_a_dry_run_asks_webhooks_without_side_effects(api, pods, make, webhook, register):
    await register()
    (await api.post(pods, make.pod("a"), dryRun="All")).ok()
    assert webhook.asked[0]["request"]["dryRun"] is True
    assert (await api.get(f"{pods}/a")).code == 404


@pytest.mark.parametrize(
    "hook",
    [
        {"sideEffects": "Unknown"},
        {"sideEffects": None},
        {"admissionReviewVersions": []},
        {"timeoutSeconds": 31},
        {"clientConfig": {}},
        {"clientConfig": {"url": "http://127.0.0.1/mutate"}},
        {"clientConfig": {"url": "https://127.0.0.1/", "service": {"namespace": "a", "name": "b"}}},
        {"name": "short"},
    ],
)
async def test_configurations_that_are_refused(api, namespace, webhook, hook):
    body = webhook.configuration("MutatingWebhookConfiguration", f"bad-{namespace}", namespace, **hook)
    answer = await api.post("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations", body)
    assert answer.code == 422


async def test_a_configuration_comes_back_with_its_defaults(register):
    found = await register(timeoutSeconds=None)
    hook = found["webhooks"][0]
    assert (hook["failurePolicy"], hook["matchPolicy"], hook["timeoutSeconds"]) == ("Fail", "Equivalent", 10)
    assert hook["reinvocationPolicy"] == "Never"


async def test_concurrent_pods_are_reviewed_side_by_side(api, pods, make, webhook, register):
    await register()
    everybody = asyncio.Event()

    async def reviewer(_request):
        if len(webhook.asked) == 5:
            everybody.set()
        async with asyncio.timeout(1.5):
            await everybody.wait()
        return {"allowed": True, **patch(ANNOTATE)}

    webhook.reviewer = reviewer
    answers = await asyncio.gather(*(api.post(pods, make.pod(f"p{number}")) for number in range(5)))
    assert [answer.code for answer in answers] == [201] * 5
