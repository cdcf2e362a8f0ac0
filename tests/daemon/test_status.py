"""The status port tells whether a daemon lives, whether it is ready, and why not."""

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter

from tessera.daemon.flags import Address
from tessera.daemon.status import StatusServer


@pytest.fixture
async def get():
    async with aiohttp.ClientSession() as session:

        async def fetch(server, path):
            async with session.get(f"http://{server.address}{path}") as answer:
                return answer.status, await answer.text()

        yield fetch


async def test_ready_names_each_reason_not_to_be(get):
    reasons = {"caches": "pods are not listed yet", "certificate": None}
    checks = {name: (lambda name=name: reasons[name]) for name in reasons}
    async with StatusServer(Address("127.0.0.1", 0), checks, CollectorRegistry()) as server:
        assert await get(server, "/healthz") == (200, "ok\n")
        assert await get(server, "/readyz") == (503, "caches: pods are not listed yet\n")
        reasons["caches"] = None
        assert await get(server, "/readyz") == (200, "ok\n")


async def test_what_is_worth_knowing_is_said_beside_being_ready(get):
    notes = {"lock": lambda: "waits for its turn", "other": lambda: None}
    async with StatusServer(Address("127.0.0.1", 0), {}, CollectorRegistry(), notes=notes) as server:
        assert await get(server, "/readyz") == (200, "ok\nlock: waits for its turn\n")


async def test_metrics_are_those_of_its_registry(get):
    registry = CollectorRegistry()
    Counter("tessera_things", "Things.", registry=registry).inc(3)
    async with StatusServer(Address("127.0.0.1", 0), {}, registry) as server:
        status, text = await get(server, "/metrics")
    assert status == 200
    assert "tessera_things_total 3.0" in text


async def test_nothing_else_is_served(get):
    async with StatusServer(Address("127.0.0.1", 0), {}, CollectorRegistry()) as server:
        status, _ = await get(server, "/")
    assert status == 404


async def test_a_taken_port_is_an_error():
    async with StatusServer(Address("127.0.0.1", 0), {}, CollectorRegistry()) as first:
        with pytest.raises(OSError, match="address already in use"):
            async with StatusServer(first.address, {}, CollectorRegistry()):
                pass
