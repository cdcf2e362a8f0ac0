"""What the tests of admission share: pods as the API server sends them, and patches applied by the oracle."""

import asyncio
import base64
import json
import os
import re
import sys
import time
from datetime import UTC, datetime
from random import Random

import aiohttp
import jsonpatch
import msgspec
import pytest
from prometheus_client import CollectorRegistry

from tessera.kube.client import ApiClient
from tessera.kube.clock import SystemClock
from tessera.kube.config import StaticConnection
from tessera.model.config import Config
from tessera.model.pod import Manifest
from webhook.admission.metrics import Metrics
from webhook.admission.mutate import Mutator
from webhook.admission.patch import WIRE, operations
from webhook.admission.selfmade import make


@pytest.fixture(scope="session")
def manifest():
    """Decode a pod given as plain data."""

    def decode(pod):
        return msgspec.json.decode(json.dumps(pod), type=Manifest)

    return decode


@pytest.fixture(scope="session")
def applied(manifest):
    """Apply edits to a pod given as plain data, by jsonpatch, and return what comes out."""

    def apply(pod, edits):
        patch = json.loads(WIRE.encode(operations(manifest(pod), edits)))
        return jsonpatch.apply_patch(pod, patch)

    return apply


@pytest.fixture(scope="session")
def admit(manifest):
    """Admit a pod given as plain data; returns what it is afterwards, by jsonpatch, and the outcome."""
    default = Mutator(Config())

    def run(pod, config=None, *, namespace="team"):
        which = default if config is None else Mutator(config)
        outcome = which.mutate(manifest(pod), namespace=namespace)
        return jsonpatch.apply_patch(pod, json.loads(WIRE.encode(outcome.operations))), outcome

    return run


@pytest.fixture(scope="session")
def review():
    """Build an AdmissionReview request around an object."""

    def build(pod, *, uid="7c5e2b", namespace="team", operation="CREATE", **more):
        request = {
            "uid": uid,
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": namespace,
            "operation": operation,
            "userInfo": {"username": "alice"},
            "object": pod,
            "oldObject": None,
            "dryRun": False,
            "options": None,
            **more,
        }
        return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}

    return build


@pytest.fixture(scope="session")
def patched():
    """Apply the patch of an AdmissionReview response to the object that was sent."""

    def apply(pod, response):
        if "patch" not in response:
            return pod
        return jsonpatch.apply_patch(pod, json.loads(base64.b64decode(response["patch"])))

    return apply


@pytest.fixture(scope="session")
def pair():
    """A self-made certificate for localhost, made once: what is tested with it is the server."""
    return make(["localhost", "127.0.0.1"], now=datetime.now(UTC))


@pytest.fixture
def metrics():
    return Metrics(CollectorRegistry())


@pytest.fixture(scope="session")
def uncounted():
    """Metrics that nobody reads, for tests with many inputs."""
    return Metrics(CollectorRegistry())


@pytest.fixture
def counted(metrics):
    """The value of one of `metrics` by name and labels, 0 where it has not been counted yet."""

    def read(name, **labels):
        samples = (s for metric in vars(metrics).values() for family in metric.collect() for s in family.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    return read


@pytest.fixture(scope="session")
def until():
    """Wait for something that happens elsewhere, with a deadline that only a failure reaches."""

    async def wait(condition):
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110  what is waited for has no event of its own
                await asyncio.sleep(0.001)

    return wait


class Clock:
    """A clock that stands still until it is moved; whoever sleeps on it wakes when the time has come."""

    def __init__(self, start):
        self.now = start
        self._sleepers = []

    def wall(self):
        return self.now

    def monotonic(self):
        return self.now

    async def sleep(self, seconds):
        woken = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now + seconds, woken))
        await woken

    def move(self, seconds):
        self.now += seconds
        due = [each for each in self._sleepers if each[0] <= self.now]
        self._sleepers = [each for each in self._sleepers if each[0] > self.now]
        for _, woken in due:
            if not woken.done():
                woken.set_result(None)

    @property
    def sleepers(self):
        return len([each for each in self._sleepers if not each[1].done()])


@pytest.fixture
def clock():
    return Clock(float(int(time.time())))


class Impatient(SystemClock):
    """For API clients under test: their waits between attempts take no time."""

    async def sleep(self, seconds):
        await asyncio.sleep(0 * seconds)


@pytest.fixture
async def client():
    """Build clients of a fake API server."""
    made = []

    def build(url):
        made.append(ApiClient(StaticConnection(url), clock=Impatient(), rng=Random(1)))
        return made[-1]

    yield build
    for each in made:
        await each.close()


DRAIN = 3.0
"""Seconds that a replica serves on after SIGTERM, while endpoints and kube-proxy follow."""


class Replica:
    """One `tessera-webhook` process."""

    def __init__(self, process, port, status):
        self.process, self.port, self.status = process, port, status

    @classmethod
    async def start(cls, folder):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "webhook.admission.main", "--cert-dir", str(folder), "--drain", str(DRAIN)),
            *("--listen", "127.0.0.1:0", "--status-listen", "127.0.0.1:0"),
            stderr=asyncio.subprocess.PIPE,
            env={key: value for key, value in os.environ.items() if not key.startswith(("KUBE", "TESSERA"))},
        )
        async with asyncio.timeout(60):
            async for line in process.stderr:
                if found := re.search(rb"listening on 127\.0\.0\.1:(\d+), status 127\.0\.0\.1:(\d+)", line):
                    return cls(process, int(found[1]), int(found[2]))
        raise AssertionError("the webhook did not start")

    async def ready(self):
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://127.0.0.1:{self.status}/readyz") as answer,
        ):
            return answer.status == 200

    async def ends(self):
        async with asyncio.timeout(60):
            said = await self.process.stderr.read()
            return await self.process.wait(), said.decode()


@pytest.fixture
async def replicas(tmp_path):
    """Start replicas that share a folder; whatever is left is ended."""
    started = []

    async def start():
        found = await Replica.start(tmp_path)
        started.append(found)
        return found

    yield start
    for each in started:
        if each.process.returncode is None:
            each.process.kill()
            await each.process.wait()
