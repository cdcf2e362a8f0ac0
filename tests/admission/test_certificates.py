"""The certificate in force: mounted or made, shared by replicas, swapped under a running server, never for a broken one."""

import asyncio
import contextlib
import os
import ssl
import stat
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus

import pytest

from tessera.daemon.flags import Address
from tessera.kube.errors import KubeError
from tessera.testing.apiserver import FakeApiServer
from webhook.admission.certificates import Certificates
from webhook.admission.certstore import DirectoryStore, SecretStore
from webhook.admission.http1 import Answer
from webhook.admission.selfmade import SERVING_LIFE, CertificateError, leaf, make, parse_bundle
from webhook.admission.server import AdmissionServer

NAMES = ["localhost", "127.0.0.1"]
DAY = 86_400.0


def when(clock):
    return datetime.fromtimestamp(clock.wall(), UTC)


def put(folder, material):
    """Mount a pair, as an operator does."""
    folder.mkdir(exist_ok=True)
    (folder / "tls.crt").write_text(material.certificate)
    (folder / "tls.key").write_text(material.key)
    (folder / "ca.crt").write_text(material.bundle)


@pytest.fixture
def certificates(clock, metrics):
    def build(*, mounted=None, own=None, names=NAMES):
        return Certificates(mounted=mounted, own=own, names=names, clock=clock, metrics=metrics)

    return build


async def served(context, bundle, *, now=None):
    """The serial number of the certificate that a client gets in a real handshake, checked against the bundle."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        client = ssl.create_default_context(cadata=bundle)
        if now is not None:
            # The clock of the tests is not OpenSSL's: the chain is checked, the dates are not.
            client.verify_flags |= 0x200000  # X509_V_FLAG_NO_CHECK_TIME
        host, port = server.sockets[0].getsockname()
        _, writer = await asyncio.open_connection(host, port, ssl=client, server_hostname="localhost")
        found = writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]
        writer.close()
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            await writer.wait_closed()
    return int(found, 16)


def serial(material):
    return leaf(material).serial_number


async def test_a_mounted_pair_is_served(tmp_path, certificates, clock):
    material = make(NAMES, now=when(clock))
    put(tmp_path / "certs", material)
    found = certificates(mounted=DirectoryStore(str(tmp_path / "certs")))
    assert found.problem() is not None
    await found.load()
    assert found.problem() is None
    assert not found.ours
    assert found.bundle == material.bundle
    assert await served(found.context, material.bundle, now=clock) == serial(material)


async def test_a_mounted_pair_is_followed_and_never_written(tmp_path, certificates, clock, counted):
    folder = tmp_path / "certs"
    put(folder, make(NAMES, now=when(clock)))
    found = certificates(mounted=DirectoryStore(str(folder)), own=DirectoryStore(str(tmp_path / "own")))
    await found.load()
    told = []
    found.subscribe(lambda: told.append(found.bundle))
    clock.move(80 * DAY)  # far beyond two thirds of its life
    await found.look()
    assert told == []
    new = make(NAMES, now=when(clock))
    put(folder, new)
    await found.look()
    assert told == [new.bundle]
    assert await served(found.context, new.bundle, now=clock) == serial(new)
    assert counted("tessera_webhook_certificate_expiry_timestamp_seconds") == leaf(new).not_valid_after_utc.timestamp()
    assert sorted(os.listdir(folder)) == ["ca.crt", "tls.crt", "tls.key"]
    assert not (tmp_path / "own").exists()


def ended(clock):
    return make(NAMES, now=datetime.fromtimestamp(clock.wall() - 200 * DAY, UTC))


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda m, c: replace(m, key=make(NAMES, now=when(c)).key), id="another pair's key"),
        pytest.param(lambda m, _: replace(m, certificate="-----BEGIN CERTIFICATE-----\nAAAA"), id="cut off"),
        pytest.param(lambda m, _: replace(m, certificate="hello"), id="no certificate"),
        pytest.param(lambda m, _: replace(m, key="hello"), id="no key"),
        pytest.param(lambda _, c: ended(c), id="ended long ago"),
    ],
)
async def test_a_broken_new_pair_keeps_the_old_one(  # noqa: PLR0917
    tmp_path, certificates, clock, counted, caplog, broken
):
    folder = tmp_path / "certs"
    good = make(NAMES, now=when(clock))
    put(folder, good)
    found = certificates(mounted=DirectoryStore(str(folder)))
    await found.load()
    assert counted("tessera_webhook_certificate_last_reload_successful") == 1
    put(folder, broken(good, clock))
    await found.look()
    await found.look()
    assert counted("tessera_webhook_certificate_last_reload_successful") == 0
    assert found.problem() is None
    assert await served(found.context, good.bundle, now=clock) == serial(good)
    assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 1
    assert "PRIVATE" not in caplog.text
    better = make(NAMES, now=when(clock))
    put(folder, better)
    await found.look()
    assert counted("tessera_webhook_certificate_last_reload_successful") == 1
    assert await served(found.context, better.bundle, now=clock) == serial(better)


async def test_a_certificate_that_ends_takes_readiness_away(tmp_path, certificates, clock):
    put(tmp_path / "certs", make(NAMES, now=when(clock)))
    found = certificates(mounted=DirectoryStore(str(tmp_path / "certs")))
    await found.load()
    clock.move(SERVING_LIFE.total_seconds())
    assert "ended at" in found.problem()


async def test_nothing_anywhere_is_an_error_that_says_what_to_do(tmp_path, certificates):
    found = certificates(mounted=DirectoryStore(str(tmp_path / "absent")))
    with pytest.raises(CertificateError, match="--cert-dir"):
        await found.load()


async def test_a_folder_of_our_own(tmp_path, certificates, clock):
    folder = tmp_path / "deep" / "certs"
    store = DirectoryStore(str(folder))
    found = certificates(mounted=store, own=store)
    await found.load()
    assert found.ours
    for name in ("tls.key", "ca.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    first = await served(found.context, (folder / "ca.crt").read_text(), now=clock)
    # A restart takes what is there.
    again = certificates(mounted=store, own=store)
    await again.load()
    assert await served(again.context, found.bundle, now=clock) == first
    clock.move(61 * DAY)
    await again.look()
    assert await served(again.context, found.bundle, now=clock) != first
    assert again.bundle == found.bundle
    assert not [name for name in os.listdir(folder) if name.startswith((".tls", ".ca"))]


async def test_a_folder_that_can_not_be_written(tmp_path, certificates):
    (tmp_path / "file").write_text("")
    store = DirectoryStore(str(tmp_path / "file" / "certs"))
    with pytest.raises(CertificateError, match="can't be"):
        await certificates(mounted=store, own=store).load()


async def test_a_half_written_folder_is_no_pair_yet(tmp_path, certificates, clock):
    folder = tmp_path / "certs"
    put(folder, make(NAMES, now=when(clock)))
    (folder / "tls.key").unlink()
    with pytest.raises(CertificateError, match=r"put tls\.crt and tls.key"):
        await certificates(mounted=DirectoryStore(str(folder))).load()


async def test_stored_material_that_can_not_be_used_is_replaced(tmp_path, certificates, clock, caplog):
    folder = tmp_path / "certs"
    store = DirectoryStore(str(folder))
    await store.write(replace(make(NAMES, now=when(clock)), certificate="junk"), version=None)
    found = certificates(mounted=store, own=store)
    await found.load()
    assert "is replaced" in caplog.text
    await served(found.context, found.bundle, now=clock)


async def test_a_server_changes_its_certificate_under_open_connections(tmp_path, certificates, clock, metrics):
    """New handshakes get the new certificate; a connection from before goes on as it was."""
    folder = tmp_path / "certs"
    old = make(NAMES, now=when(clock))
    put(folder, old)
    found = certificates(mounted=DirectoryStore(str(folder)))
    await found.load()
    request = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n"

    async def ask(reader, writer):
        writer.write(request)
        async with asyncio.timeout(20):
            return (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1]

    async def connect(bundle):
        context = ssl.create_default_context(cadata=bundle)
        context.verify_flags |= 0x200000
        return await asyncio.open_connection(*server.address, ssl=context, server_hostname="localhost")

    handlers = {"/": lambda _: Answer(HTTPStatus.OK, b"")}
    async with AdmissionServer(
        Address("127.0.0.1", 0), context=found.context, handlers=handlers, metrics=metrics, clock=clock
    ) as server:
        before = await connect(old.bundle)
        assert await ask(*before) == b"200"
        new = make(NAMES, now=when(clock))
        put(folder, new)
        await found.look()
        assert await ask(*before) == b"200"
        after = await connect(new.bundle)
        assert await ask(*after) == b"200"
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(old.bundle)
        assert await ask(*before) == b"200"
        before[1].transport.abort()
        after[1].transport.abort()


async def test_it_follows_by_itself(tmp_path, certificates, clock, until):
    folder = tmp_path / "certs"
    put(folder, make(NAMES, now=when(clock)))
    found = certificates(mounted=DirectoryStore(str(folder)))
    await found.load()
    told = asyncio.Event()
    found.subscribe(told.set)
    task = asyncio.create_task(found.follow(poll=15.0))
    await until(lambda: clock.sleepers)
    put(folder, make(NAMES, now=when(clock)))
    clock.move(15.0)
    async with asyncio.timeout(20):
        await told.wait()
    task.cancel()


# A Secret shared by replicas.


@pytest.fixture
async def api():
    async with FakeApiServer() as server:
        server.add_namespace("tessera-system")
        yield server


@pytest.fixture
def secret(api, client):
    """Build the store of one replica, with a client of its own."""

    def build(url=None):
        return SecretStore(client(url or api.url), namespace="tessera-system", name="tessera-webhook-certificate")

    return build


async def test_replicas_that_start_together_serve_one_certificate(api, certificates, secret, clock):
    replicas = [certificates(own=secret()) for _ in range(5)]
    async with asyncio.timeout(20):
        await asyncio.gather(*(replica.load() for replica in replicas))
    serials = {await served(each.context, replicas[0].bundle, now=clock) for each in replicas}
    assert len(serials) == 1
    stored = api.get("secrets", "tessera-webhook-certificate", "tessera-system")
    assert stored["type"] == "kubernetes.io/tls"
    assert set(stored["data"]) == {"tls.crt", "tls.key", "ca.crt", "ca.key"}


async def test_replicas_that_renew_together_end_up_with_one_certificate(certificates, secret, clock):
    replicas = [certificates(own=secret()) for _ in range(3)]
    for each in replicas:
        await each.load()
    first = await served(replicas[0].context, replicas[0].bundle, now=clock)
    clock.move(61 * DAY)
    async with asyncio.timeout(20):
        await asyncio.gather(*(each.look() for each in replicas))
        await asyncio.gather(*(each.look() for each in replicas))
    serials = {await served(each.context, replicas[0].bundle, now=clock) for each in replicas}
    assert len(serials) == 1
    assert serials != {first}


async def test_replicas_with_different_names_do_not_fight(api, certificates, secret):
    one, two = certificates(own=secret()), certificates(own=secret(), names=["LOCALHOST.", "b.example"])
    await one.load()
    await two.load()
    await one.look()
    version = api.get("secrets", "tessera-webhook-certificate", "tessera-system")["metadata"]["resourceVersion"]
    for each in (two, one, two):
        await each.look()
    assert api.get("secrets", "tessera-webhook-certificate", "tessera-system")["metadata"]["resourceVersion"] == version


async def test_a_secret_made_in_advance_is_filled(api, certificates, secret):
    api.put(
        "secrets",
        {"metadata": {"name": "tessera-webhook-certificate", "namespace": "tessera-system"}, "type": "Opaque"},
    )
    found = certificates(own=secret())
    await found.load()
    stored = api.get("secrets", "tessera-webhook-certificate", "tessera-system")
    assert stored["type"] == "Opaque"
    assert "tls.crt" in stored["data"]


async def test_what_others_say_of_the_secret_stays(api, certificates, secret, clock):
    """Without its own annotation kubectl warns at the next apply, and no longer knows what it once put there."""
    told = {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}, "labels": {"team": "gpu"}}
    metadata = {"name": "tessera-webhook-certificate", "namespace": "tessera-system", **told}
    api.put("secrets", {"metadata": metadata, "type": "Opaque"})
    found = certificates(own=secret())
    await found.load()
    clock.move(61 * DAY)
    await found.look()
    stored = api.get("secrets", "tessera-webhook-certificate", "tessera-system")["metadata"]
    assert stored["annotations"] == told["annotations"]
    assert stored["labels"]["team"] == "gpu"


async def test_a_secret_of_somebody_elses_pair_is_only_read(api, certificates, secret, clock):
    own = secret()
    await own.write(replace(make(NAMES, now=when(clock)), authority_key=""), version=None)
    found = certificates(own=secret())
    await found.load()
    clock.move(80 * DAY)
    before = api.get("secrets", "tessera-webhook-certificate", "tessera-system")["metadata"]["resourceVersion"]
    await found.look()
    assert not found.ours
    assert api.get("secrets", "tessera-webhook-certificate", "tessera-system")["metadata"]["resourceVersion"] == before


async def test_an_api_server_that_is_away_leaves_the_certificate_in_force(api, certificates, secret, counted):
    found = certificates(own=secret())
    await found.load()
    await api.stop()
    await found.look()
    assert counted("tessera_webhook_certificate_last_reload_successful") == 0
    assert found.problem() is None
    await api.start()
    await found.look()
    assert counted("tessera_webhook_certificate_last_reload_successful") == 1


async def test_a_secret_that_holds_no_text_is_told(api, certificates, secret):
    api.put(
        "secrets",
        {
            "metadata": {"name": "tessera-webhook-certificate", "namespace": "tessera-system"},
            "data": {"tls.crt": "/////w==", "tls.key": "/////w=="},
        },
    )
    with pytest.raises(CertificateError, match=r"secret tessera-system/tessera-webhook-certificate: tls\.crt"):
        await certificates(own=secret()).load()


async def test_no_api_server_at_start_is_the_callers_to_try_again(certificates, secret):
    with pytest.raises(KubeError):
        await certificates(own=secret("http://127.0.0.1:1")).load()


async def test_the_authority_stays_in_the_bundle_over_rotation(certificates, secret, clock):
    found = certificates(own=secret())
    await found.load()
    old = parse_bundle(found.bundle)[0]
    for _ in range(13):
        clock.move(61 * DAY)
        await found.look()
    bundle = parse_bundle(found.bundle)
    assert len(bundle) == 2
    assert bundle[1] == old
