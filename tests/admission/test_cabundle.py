"""Our authority gets into the caBundle of our own webhook configurations, and nothing else is touched."""

import base64
from datetime import UTC, datetime

import pytest

from tessera.testing.apiserver import FakeApiServer
from webhook.admission.cabundle import CaBundle
from webhook.admission.selfmade import AUTHORITY_LIFE, make, parse_bundle

KINDS = ("mutatingwebhookconfigurations", "validatingwebhookconfigurations")


@pytest.fixture
async def api():
    async with FakeApiServer() as server:
        yield server


@pytest.fixture
async def keeper(api, client, metrics):
    return CaBundle(client(api.url), name="tessera-webhook", metrics=metrics)


@pytest.fixture
def authority(clock):
    def build():
        return make(["h"], now=datetime.fromtimestamp(clock.wall(), UTC)).bundle

    return build


def configure(api, *bundles, name="tessera-webhook", annotations=None, kinds=KINDS):
    for kind in kinds:
        hooks = []
        for index, bundle in enumerate(bundles):
            client = {"service": {"namespace": "tessera-system", "name": "tessera-webhook", "path": "/mutate"}}
            if bundle is not None:
                client["caBundle"] = base64.b64encode(bundle.encode()).decode()
            hooks.append(
                {
                    "name": f"w{index}.tessera.dev",
                    "clientConfig": client,
                    "sideEffects": "None",
                    "admissionReviewVersions": ["v1"],
                }
            )
        metadata = {"name": name, **({"annotations": annotations} if annotations else {})}
        api.put(kind, {"metadata": metadata, "webhooks": hooks})


def bundles(api, kind, name="tessera-webhook"):
    hooks = api.get(kind, name)["webhooks"]
    return [base64.b64decode(hook["clientConfig"].get("caBundle", "")).decode() for hook in hooks]


async def test_every_entry_of_both_configurations_gets_it(api, keeper, authority, counted):
    ours = authority()
    configure(api, None, "\n", "no certificate")
    configure(api, None, name="somebody-elses")
    await keeper.ensure(ours)
    for kind in KINDS:
        assert bundles(api, kind) == [ours] * 3
        assert bundles(api, kind, "somebody-elses") == [""]
        assert api.get(kind, "tessera-webhook")["webhooks"][0]["clientConfig"]["service"]["path"] == "/mutate"
    assert counted("tessera_webhook_ca_bundle_last_update_successful") == 1


async def test_nothing_is_written_where_nothing_is_missing(api, keeper, authority):
    ours, others = authority(), authority()
    configure(api, others + ours)
    before = [api.get(kind, "tessera-webhook")["metadata"]["resourceVersion"] for kind in KINDS]
    await keeper.ensure(ours)
    assert [api.get(kind, "tessera-webhook")["metadata"]["resourceVersion"] for kind in KINDS] == before


async def test_an_authority_that_is_there_stays(api, keeper, authority, clock):
    old = authority()
    configure(api, old)
    clock.move(AUTHORITY_LIFE.total_seconds() * 0.7)
    new = authority()
    await keeper.ensure(new)
    assert parse_bundle(bundles(api, KINDS[0])[0]) == parse_bundle(new + old)
    clock.move(AUTHORITY_LIFE.total_seconds() * 0.31)
    await keeper.ensure(new)
    assert parse_bundle(bundles(api, KINDS[0])[0]) == parse_bundle(new + old)


async def test_absent_configurations_are_no_trouble(keeper, authority, counted):
    await keeper.ensure(authority())
    assert counted("tessera_webhook_ca_bundle_last_update_successful") == 1


async def test_a_configuration_that_an_injector_looks_after(api, keeper, authority):
    configure(api, None, annotations={"cert-manager.io/inject-ca-from": "tessera-system/tessera-webhook"})
    await keeper.ensure(authority())
    assert bundles(api, KINDS[0]) == [""]


async def test_a_mounted_pair_without_authority_changes_nothing(api, keeper):
    configure(api, None)
    await keeper.ensure("")
    assert bundles(api, KINDS[0]) == [""]


async def test_trouble_is_told_once_and_ends(api, keeper, authority, counted, caplog):
    configure(api, None)
    ours = authority()
    await api.stop()
    await keeper.ensure(ours)
    await keeper.ensure(ours)
    assert counted("tessera_webhook_ca_bundle_last_update_successful") == 0
    await api.start()
    await keeper.ensure(ours)
    assert counted("tessera_webhook_ca_bundle_last_update_successful") == 1
    assert bundles(api, KINDS[0]) == [ours]
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
