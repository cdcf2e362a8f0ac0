"""Clocks that jump: what is served is at any time what the API server accepts, by its own clock and its caBundle."""

import asyncio
import base64
import contextlib
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from random import Random

import pytest
from cryptography import x509
from cryptography.x509 import verification
from prometheus_client import CollectorRegistry

from tessera.kube.client import ApiClient
from tessera.kube.config import StaticConnection
from tessera.kube.servertime import AGREED, ServerClock
from tessera.testing.apiserver import FakeApiServer
from webhook.admission.cabundle import CaBundle
from webhook.admission.certificates import Certificates
from webhook.admission.certstore import DirectoryStore, SecretStore
from webhook.admission.metrics import Metrics
from webhook.admission.selfmade import due, leaf, make, parse_bundle, renew

DAY = 86_400.0
YEARS = 3650 * DAY
JUMPS = [DAY, -DAY, 90 * DAY, YEARS, -YEARS]
NAMES = ["localhost"]
CONFIGURATIONS = ("mutatingwebhookconfigurations", "validatingwebhookconfigurations")


class World:
    """The right time, and an API server that may be wrong about it."""

    def __init__(self, api):
        self.api = api
        self.true = 1_790_000_000.0
        self.wrong = 0.0
        api.date = lambda: formatdate(self.server, usegmt=True)

    @property
    def server(self):
        return self.true + self.wrong

    def bundle(self, kind):
        hook = self.api.get(kind, "tessera-webhook")["webhooks"][0]
        return base64.b64decode(hook["clientConfig"].get("caBundle", "")).decode()


class Machine:
    """A machine's own clock, right but for `wrong`."""

    def __init__(self, world):
        self.world = world
        self.wrong = 0.0

    def monotonic(self):
        return self.world.true - 1_789_000_000.0

    def wall(self):
        return self.world.true + self.wrong

    async def sleep(self, seconds):
        raise AssertionError(f"nobody waits here, not even {seconds} s")


class Replica:
    """What a webhook does about its certificate, look by look."""

    def __init__(self, world, wrong):
        self.world = world
        self.machine = Machine(world)
        self.machine.wrong = wrong
        clock = ServerClock(self.machine)
        self.client = ApiClient(StaticConnection(world.api.url), clock=clock, rng=Random(1), dates=clock.heard)
        metrics = Metrics(CollectorRegistry())
        store = SecretStore(self.client, namespace="tessera-system", name="tessera-webhook-certificate")
        self.certificates = Certificates(mounted=None, own=store, names=NAMES, clock=clock, metrics=metrics)
        self.keeper = CaBundle(self.client, name="tessera-webhook", metrics=metrics)

    async def start(self):
        await self.certificates.load()
        await self.keeper.ensure(self.certificates.bundle)

    async def look(self, times=1):
        for _ in range(times):
            self.world.true += 15
            await self.certificates.look()
            await self.keeper.ensure(self.certificates.bundle)

    async def refusal(self):
        """Why the API server would refuse what a handshake shows it right now; None where it accepts it."""
        shown = await shown_by(self.certificates.context)
        for kind in CONFIGURATIONS:
            trusted = verification.Store(parse_bundle(self.world.bundle(kind)))
            at = datetime.fromtimestamp(self.world.server, UTC)
            verifier = verification.PolicyBuilder().store(trusted).time(at)
            try:
                verifier.build_server_verifier(x509.DNSName("localhost")).verify(shown, [])
            except verification.VerificationError as error:
                return str(error)
        return self.certificates.problem()


async def shown_by(context):
    """The certificate that a client is shown."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        client = ssl.create_default_context()
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), ssl=client)
        found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            await writer.wait_closed()
    return x509.load_der_x509_certificate(found)


@pytest.fixture
async def world():
    async with FakeApiServer() as api:
        api.add_namespace("tessera-system")
        for kind in CONFIGURATIONS:
            hook = {
                "name": "w.tessera.dev",
                "clientConfig": {"url": "https://localhost/mutate"},
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
            }
            api.put(kind, {"metadata": {"name": "tessera-webhook"}, "webhooks": [hook]})
        yield World(api)


@pytest.fixture
async def replica(world):
    made = []

    def build(wrong=0.0):
        made.append(Replica(world, wrong))
        return made[-1]

    yield build
    for each in made:
        await each.client.close()


async def accepted(*replicas):
    assert [await each.refusal() for each in replicas] == [None] * len(replicas)


@pytest.mark.parametrize("jump", JUMPS)
@pytest.mark.parametrize("order", ["wrong first", "right first"])
async def test_a_replica_that_starts_with_a_wrong_clock(replica, jump, order):
    wrong, right = replica(jump), replica()
    for each in (wrong, right) if order == "wrong first" else (right, wrong):
        await each.start()
        await accepted(each)
    await wrong.look(3)
    await right.look(3)
    await accepted(wrong, right)


@pytest.mark.parametrize("jump", JUMPS)
async def test_a_clock_that_jumps_in_the_middle_and_comes_back(world, replica, jump):
    one, two = replica(), replica()
    for each in (one, two):
        await each.start()
    before = world.api.get("secrets", "tessera-webhook-certificate", "tessera-system")
    for wrong in (jump, 0.0):
        one.machine.wrong = wrong
        for _ in range(AGREED):
            await one.look()
            await two.look()
            await accepted(one, two)
    assert world.api.get("secrets", "tessera-webhook-certificate", "tessera-system") == before


@pytest.mark.parametrize("jump", [YEARS, -YEARS])
async def test_what_is_due_is_renewed_by_a_replica_with_a_wrong_clock(world, replica, jump):
    one, two = replica(), replica()
    for each in (one, two):
        await each.start()
    one.machine.wrong = jump
    for _ in range(18):
        world.true += 45 * DAY
        await one.look()
        await two.look()
        await accepted(one, two)


@pytest.mark.parametrize("jump", [90 * DAY, YEARS, -YEARS])
async def test_an_api_server_that_is_wrong_and_comes_back_is_followed(world, replica, jump):
    one, two = replica(), replica()
    for each in (one, two):
        await each.start()
    for wrong in (jump, 0.0, jump, 0.0):
        world.wrong = wrong
        for _ in range(AGREED):
            await one.look()
            await two.look()
        await accepted(one, two)


async def test_an_api_server_that_is_a_day_behind_the_others_accepts_what_was_made_by_their_time(world, replica):
    one = replica()
    await one.start()
    world.wrong = -DAY + 60
    assert await one.refusal() is None


async def test_what_a_wrong_clock_has_left_in_the_secret_is_mended_at_the_first_look(world, replica):
    """As an older version left it: made by a clock ten years ahead, and nothing would be due for years."""
    bad = make(NAMES, now=datetime.fromtimestamp(world.true + YEARS, UTC))
    one = replica()
    await SecretStore(one.client, namespace="tessera-system", name="tessera-webhook-certificate").write(
        bad, version=None
    )
    await one.start()
    await accepted(one)


NOW = datetime(2026, 11, 24, 8, tzinfo=UTC)
LATER = NOW + timedelta(days=3650)


def test_what_begins_in_the_future_is_due():
    good, ahead = make(NAMES, now=NOW), make(NAMES, now=LATER)
    assert due(ahead, NAMES, now=NOW) == "serving"
    renewed = renew(ahead, "serving", NAMES, now=NOW)
    assert due(renewed, NAMES, now=NOW) == ""
    assert leaf(renewed).not_valid_before_utc <= NOW
    assert not set(parse_bundle(ahead.bundle)) & set(parse_bundle(renewed.bundle))
    # Only the newest authority is from the future: what is served stays, and what it hangs on too.
    rotated = renew(good, "authority", NAMES, now=LATER - timedelta(days=3000))
    assert due(rotated, NAMES, now=NOW) == "authority"
    mended = renew(rotated, "authority", NAMES, now=NOW)
    assert mended.certificate == good.certificate
    assert parse_bundle(mended.bundle)[1:] == parse_bundle(good.bundle)
    assert due(mended, NAMES, now=NOW) == ""


def put(folder, material):
    folder.mkdir(exist_ok=True)
    for name, content in (("tls.crt", material.certificate), ("tls.key", material.key), ("ca.crt", material.bundle)):
        (folder / name).write_text(content)


async def test_a_mounted_pair_from_the_future_waits_for_its_time(tmp_path, clock, metrics, counted):
    now = datetime.fromtimestamp(clock.wall(), UTC)
    good, ahead = make(NAMES, now=now), make(NAMES, now=now + timedelta(days=30))
    put(tmp_path, good)
    certificates = Certificates(
        mounted=DirectoryStore(str(tmp_path)), own=None, names=NAMES, clock=clock, metrics=metrics
    )
    await certificates.load()
    put(tmp_path, ahead)
    await certificates.look()
    assert (await shown_by(certificates.context)) == leaf(good)
    assert counted("tessera_webhook_certificate_last_reload_successful") == 0
    assert certificates.problem() is None
    clock.move(30 * DAY)
    await certificates.look()
    assert (await shown_by(certificates.context)) == leaf(ahead)
    assert counted("tessera_webhook_certificate_last_reload_successful") == 1


async def test_a_mounted_pair_from_the_future_with_nothing_better_is_served_and_not_ready(tmp_path, clock, metrics):
    put(tmp_path, make(NAMES, now=datetime.fromtimestamp(clock.wall() + 30 * DAY, UTC)))
    certificates = Certificates(
        mounted=DirectoryStore(str(tmp_path)), own=None, names=NAMES, clock=clock, metrics=metrics
    )
    await certificates.load()
    assert "begins at" in certificates.problem()


@pytest.mark.parametrize("jump", JUMPS)
async def test_a_folder_of_our_own_follows_the_local_clock_there_and_back(tmp_path, clock, metrics, jump):
    store = DirectoryStore(str(tmp_path))
    certificates = Certificates(mounted=store, own=store, names=NAMES, clock=clock, metrics=metrics)
    await certificates.load()
    for each in (jump, -jump):
        clock.move(each)
        await certificates.look()
        now = datetime.fromtimestamp(clock.wall(), UTC)
        shown = await shown_by(certificates.context)
        assert shown.not_valid_before_utc <= now < shown.not_valid_after_utc
        verifier = verification.PolicyBuilder().store(verification.Store(parse_bundle(certificates.bundle))).time(now)
        verifier.build_server_verifier(x509.DNSName("localhost")).verify(shown, [])
