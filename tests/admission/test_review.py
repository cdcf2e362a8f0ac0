"""AdmissionReview in and out: what is the sender's fault, what is the pod's, and what the answer always holds."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.model.errors import RequestError
from webhook.admission.patch import operations, put
from webhook.admission.review import LONGEST_MESSAGE, MOST_WARNINGS, Reviewer, Verdict

POD = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "main"}]}}


def mark(pod, _):
    return Verdict(
        operations=operations(pod, [put(("metadata", "labels", "a/b"), "x")]), warnings=("w",), audit={"changed": "yes"}
    )


@pytest.fixture
def ask(metrics, review):
    """Send one object through a reviewer and return HTTP status and the response."""

    def run(judge=mark, pod=POD, *, operations=("CREATE",), **request):
        reviewer = Reviewer("/mutate", judge, metrics, operations=operations)
        answer = reviewer(json.dumps(review(pod, **request)).encode())
        return answer.status, json.loads(answer.body)

    return run


def test_a_patch(ask, patched, counted):
    status, body = ask(uid="u-1")
    assert status == 200
    assert (body["apiVersion"], body["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    response = body["response"]
    assert response["uid"] == "u-1"
    assert response["allowed"] is True
    assert response["patchType"] == "JSONPatch"
    assert patched(POD, response)["metadata"]["labels"] == {"a/b": "x"}
    assert response["warnings"] == ["w"]
    assert response["auditAnnotations"] == {"changed": "yes"}
    assert counted("tessera_webhook_reviews_total", outcome="patched") == 1


def test_no_change_has_neither_patch_nor_its_type(ask, counted):
    _, body = ask(lambda *_: Verdict())
    assert body["response"] == {"uid": "7c5e2b", "allowed": True}
    assert counted("tessera_webhook_reviews_total", outcome="allowed") == 1


def test_a_denial_has_message_code_and_reason_and_no_patch(ask, counted):
    def deny(pod, _):
        return Verdict(
            allowed=False, message="too large", code=403, operations=operations(pod, [put(("metadata", "name"), "x")])
        )

    status, body = ask(deny)
    assert status == 200
    assert body["response"]["status"] == {"code": 403, "message": "too large", "reason": "Forbidden"}
    assert "patch" not in body["response"]
    assert counted("tessera_webhook_reviews_total", outcome="denied") == 1


def test_an_error_of_ours_is_a_denial(ask):
    def refuse(*_):
        raise RequestError("asks for 2Gi and 30 percent", container="main", fix="keep one")

    _, body = ask(refuse)
    assert body["response"]["allowed"] is False
    assert body["response"]["status"]["code"] == 400
    assert body["response"]["status"]["message"] == 'container "main": asks for 2Gi and 30 percent; keep one'


def test_a_fault_of_ours_is_no_verdict(ask, counted):
    def fail(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask(fail)
    assert counted("tessera_webhook_reviews_total", outcome="failed") == 1


def test_dry_run_is_answered_like_any_other(ask):
    assert ask(dryRun=True)[1] == ask(dryRun=False)[1]


def test_what_is_asked_reaches_the_judge(ask):
    seen = []

    def look(pod, request):
        seen.append((pod.metadata.name, request.namespace, request.operation))
        return Verdict()

    ask(look, namespace="ml")
    ask(look, namespace="ml", operation="UPDATE", operations=("CREATE", "UPDATE"))
    assert seen == [("p", "ml", "CREATE"), ("p", "ml", "UPDATE")]


@pytest.mark.parametrize(
    "request_fields",
    [
        {"kind": {"group": "apps", "version": "v1", "kind": "Deployment"}},
        {"kind": {"group": "other.example", "version": "v1", "kind": "Pod"}},
        {"subResource": "ephemeralcontainers"},
        {"operation": "UPDATE"},
        {"operation": "DELETE"},
        {"operation": "CONNECT"},
    ],
)
def test_what_is_not_ours_to_judge_is_allowed_as_it_is(ask, request_fields):
    _, body = ask(**request_fields)
    assert body["response"] == {"uid": "7c5e2b", "allowed": True}


@pytest.mark.parametrize(
    "pod",
    [
        pytest.param(None, id="null"),
        pytest.param([], id="a list"),
        pytest.param({"metadata": {"annotations": {"a": 1}}}, id="an annotation that is a number"),
        pytest.param({"spec": {"containers": {}}}, id="containers that are no list"),
        pytest.param({"spec": {"containers": [None]}}, id="a container that is null"),
        pytest.param(
            {"spec": {"containers": [{"resources": {"limits": {"cpu": []}}}]}}, id="a quantity that is a list"
        ),
    ],
)
def test_a_pod_that_can_not_be_read_is_denied_with_the_place(ask, pod):
    status, body = ask(pod=pod)
    assert status == 200
    response = body["response"]
    assert (response["uid"], response["allowed"], response["status"]["code"]) == ("7c5e2b", False, 400)
    assert response["status"]["message"].startswith("the pod can't be read: ")


def test_messages_and_warnings_are_bounded(ask):
    _, body = ask(lambda *_: Verdict(allowed=False, message="x" * 10_000, warnings=("y" * 500,) * 100))
    assert len(body["response"]["status"]["message"]) == LONGEST_MESSAGE
    assert len(body["response"]["warnings"]) == MOST_WARNINGS
    assert all(len(warning) <= 120 for warning in body["response"]["warnings"])


def nested(depth):
    return b'{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u","object":%s%s}}' % (
        b'{"a":' * depth,
        b"1" + b"}" * depth,
    )


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="cut off"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"null", id="null"),
        pytest.param(b"\xff\xfe", id="not UTF-8"),
        pytest.param(b'{"kind":"AdmissionReview"}', id="no version"),
        pytest.param(b'{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}', id="no request"),
        pytest.param(b'{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{}}', id="no uid"),
        pytest.param(
            b'{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":""}}', id="empty uid"
        ),
        pytest.param(b'{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":7}}', id="uid 7"),
        pytest.param(
            b'{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1beta1","request":{"uid":"u"}}', id="v1beta1"
        ),
        pytest.param(b'{"kind":"Pod","apiVersion":"v1","request":{"uid":"u"}}', id="a pod"),
        pytest.param(nested(100_000), id="nested 100,000 deep"),
        pytest.param(b"[" * 1_000_000, id="a million brackets"),
        pytest.param(
            b'{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u"}} x', id="more"
        ),
    ],
)
def test_what_is_no_review_is_400_with_a_message(metrics, counted, body):
    answer = Reviewer("/mutate", mark, metrics)(body)
    assert answer.status == 400
    said = json.loads(answer.body)
    assert said["kind"] == "Status"
    assert said["message"]
    assert counted("tessera_webhook_reviews_total", outcome="malformed") == 1


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["metadata", "spec", "containers", "annotations", "uid", "object", "kind", "request", "x"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(_json)
def test_no_object_is_too_strange(uncounted, review, pod):
    answer = Reviewer("/mutate", mark, uncounted)(json.dumps(review(pod, uid="u")).encode())
    assert answer.status == 200
    assert json.loads(answer.body)["response"]["uid"] == "u"


@given(_json)
def test_no_body_is_too_strange(uncounted, body):
    answer = Reviewer("/mutate", mark, uncounted)(json.dumps(body).encode())
    assert answer.status in (200, 400)
    json.loads(answer.body)


@given(st.text(min_size=1, max_size=50), st.text(max_size=200))
def test_any_text_survives_the_way_back(uncounted, review, uid, message):
    judge = lambda *_: Verdict(allowed=False, message=message)  # noqa: E731
    answer = Reviewer("/mutate", judge, uncounted)(json.dumps(review(POD, uid=uid)).encode())
    response = json.loads(answer.body)["response"]
    assert response["uid"] == uid
    assert response["status"]["message"] == (message or "denied")


def test_the_patch_is_base64_of_json(ask):
    patch = json.loads(base64.b64decode(ask()[1]["response"]["patch"], validate=True))
    assert patch == [{"op": "add", "path": "/metadata/labels", "value": {"a/b": "x"}}]
