"""Admission: registered, reachable, answering, certificates that live and are trusted."""

import base64
from datetime import timedelta

import pytest

from tessera.doctor import objects
from tessera.doctor.evidence import Look, Probe

SPACE = "tessera-system"
CERTIFICATES = f"{SPACE}/tessera-webhook-certificate"


def entry(**changes):
    """Change the first entry of the mutating configuration."""

    def change(trees):
        hooks = trees[0]["webhooks"]
        made = {key: value for key, value in (hooks[0] | changes).items() if value is not None}
        return [trees[0] | {"webhooks": [made, *hooks[1:]]}]

    return change


def secret(material):
    text = base64.b64encode(material.certificate.encode()).decode()
    return Look({CERTIFICATES: objects.Secret(data=objects.PublicHalf(certificate=text))})


def test_nothing_is_wrong_with_what_the_generators_make(findings):
    assert findings() == {}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"failurePolicy": "Ignore"}, "failurePolicy is Ignore"),
        ({"matchConditions": None}, "no matchConditions"),
        ({"sideEffects": "Unknown"}, "sideEffects is Unknown"),
        ({"timeoutSeconds": 30}, "timeoutSeconds is 30"),
    ],
)
def test_an_entry_that_is_not_as_generated(only, changes, said):
    found = only("webhook-registered", mutating=entry(**changes))
    assert said in found.seen
    assert found.severity == "warning"


def test_a_cni_entry_that_fails_closed(only):
    def change(trees):
        hooks = [h | {"failurePolicy": "Fail"} if "cni" in h["name"] else h for h in trees[0]["webhooks"]]
        return [trees[0] | {"webhooks": hooks}]

    assert "CNI repair is Fail" in only("webhook-registered", mutating=change).seen


def test_no_registration_at_all(findings):
    told = findings(mutating=[], endpoints=Look({}))
    assert told["webhook-registered"][0].severity == "error"


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        (Probe("uncalled", said='failed calling webhook "mutate.tessera.dev": refused'), "can't call it"),
        (Probe("made", objects.LookedPod()), "came back as it was"),
    ],
)
def test_a_webhook_that_does_not_answer(only, probe, said):
    found = only("webhook-answers", probe=Look(probe))
    assert said in found.seen
    assert found.severity == "error"


def test_a_webhook_of_another_unit(only, cluster, healthy):
    made = healthy(pods=[cluster.pod("p", {"tessera.dev/gpu-memory.1Gi": "1"})]).pods.need()[0]
    found = only("webhook-answers", probe=Look(Probe("made", made)))
    assert "tessera.dev/gpu-memory.1Gi instead of tessera.dev/gpu-memory.256Mi" in found.seen


def test_a_denial_of_ours_says_that_it_was_reached(findings):
    assert findings(probe=Look(Probe("denied", said="limit is 0 GPUs"))) == {}


@pytest.mark.parametrize("kind", ["refused", None])
def test_a_dry_run_that_tells_nothing(findings, kind):
    probe = Look(Probe(kind, said="exceeded quota")) if kind else Look(problem="not permitted (403)")
    told = findings(probe=probe)
    assert list(told) == ["blind"]
    assert ("exceeded quota" if kind else "403") in told["blind"]["webhook-answers"]


@pytest.mark.parametrize(("ready", "severity"), [(0, "error"), (1, "warning")])
def test_endpoints(only, ready, severity):
    ends = (*(objects.Endpoint(),) * ready, objects.Endpoint(conditions=objects.EndpointConditions(ready=False)))
    found = only(
        "webhook-endpoints", endpoints=Look({f"{SPACE}/tessera-webhook": (objects.EndpointSlice(endpoints=ends),)})
    )
    assert found.severity == severity


@pytest.mark.parametrize(
    ("ago", "told"),
    [
        (69, ("warning", "in 20 days, and has not been renewed")),
        (87, ("error", "in 48 hours")),
        (91, ("error", "ended at")),
    ],
)
def test_a_serving_certificate_nears_its_end(only, cluster, material, ago, told):
    old = cluster.material(ago=timedelta(days=ago))
    bundle = base64.b64encode((material.bundle + old.bundle).encode()).decode()

    def trust(trees):
        hooks = [h | {"clientConfig": h["clientConfig"] | {"caBundle": bundle}} for h in trees[0]["webhooks"]]
        return [trees[0] | {"webhooks": hooks}]

    found = only("certificate-life", certificates=secret(old), mutating=trust, validating=trust)
    assert found.object == f"secret/{CERTIFICATES}"
    assert found.severity == told[0]
    assert told[1] in found.seen


def test_an_authority_that_a_wrong_clock_has_left_is_not_the_newest(findings, cluster, material):
    """Nothing that begins in ten years is in use; what is beside it decides."""
    ahead = cluster.material(ago=-timedelta(days=3650))

    def trust(text):
        bundle = base64.b64encode(text.encode()).decode()
        return lambda trees: [
            trees[0]
            | {
                "webhooks": [
                    h | {"clientConfig": h["clientConfig"] | {"caBundle": bundle}} for h in trees[0]["webhooks"]
                ]
            }
        ]

    both = trust(material.bundle + ahead.bundle)
    assert findings(mutating=both, validating=both) == {}
    alone = trust(ahead.bundle)
    told = findings(mutating=alone, validating=alone)
    assert all("is valid from" in each.seen for each in told["certificate-life"])


def test_a_certificate_of_another_authority(findings, cluster):
    told = findings(certificates=secret(cluster.material()))
    assert list(told) == ["certificate-trust"]
    assert all("no authority in caBundle has issued" in each.seen for each in told["certificate-trust"])
    assert {each.object.split("/")[0] for each in told["certificate-trust"]} == {
        "mutatingwebhookconfiguration",
        "validatingwebhookconfiguration",
    }


def test_a_certificate_for_another_name(findings, cluster):
    told = findings(certificates=secret(cluster.material(service="other")))
    assert any("not for tessera-webhook.tessera-system.svc" in each.seen for each in told["certificate-trust"])


@pytest.mark.parametrize("bundle", [None, "", "!!", base64.b64encode(b"no pem").decode(), "A" * (1 << 21)])
def test_a_bundle_that_can_not_be_read(findings, bundle):
    def change(trees):
        client = {key: v for key, v in trees[0]["webhooks"][0]["clientConfig"].items() if key != "caBundle"}
        client |= {} if bundle is None else {"caBundle": bundle}
        return entry(clientConfig=client)(trees)

    told = findings(mutating=change)
    assert list(told) == ["certificate-life"]
    assert told["certificate-life"][0].severity == "error"


def test_a_secret_that_is_not_filled_yet_is_no_finding(findings):
    told = findings(certificates=Look({CERTIFICATES: objects.Secret()}))
    assert list(told) == ["blind"]
    assert "holds no certificate" in told["blind"]["certificate-trust"]


def test_a_secret_that_can_not_be_read_leaves_the_bundle_to_be_looked_at(findings):
    told = findings(certificates=Look(problem="secrets: not permitted (403)"))
    assert told == {"blind": {"certificate-trust": "secrets: not permitted (403)"}}
