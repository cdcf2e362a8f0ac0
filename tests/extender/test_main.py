"""The program: flags, readiness, drain."""

from __future__ import annotations

import asyncio
import json
import time
from argparse import Namespace

import aiohttp
import pytest

from tessera.daemon.flags import Address
from tessera.daemon.run import Signals
from tessera.kube.errors import ConnectionConfigError
from tessera.model.errors import ConfigError
from webhook.extender import main as program

ANYWHERE = Address("127.0.0.1", 0)


def options(kubeconfig, config=None, **more):
    return Namespace(
        config=config,
        kubeconfig=kubeconfig,
        identity="host-a",
        **{"listen": ANYWHERE, "dashboard_listen": ANYWHERE, "status_listen": ANYWHERE, **more},
    )


@pytest.fixture
def objects(node, pod):
    return node, pod


def test_help_names_every_flag_and_its_variable(capsys):
    with pytest.raises(SystemExit) as ended:
        program.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for flag in ("config", "kubeconfig", "listen", "dashboard-listen", "status-listen", "identity", "log-level"):
        assert f"--{flag}" in text
        assert f"TESSERA_{flag.upper().replace('-', '_')}" in text


@pytest.fixture
def drained(monkeypatch):
    """The drain lasts until this event is set."""
    event = asyncio.Event()

    async def drain(_self, seconds):
        if seconds == program.DRAIN:
            await event.wait()
        else:
            await asyncio.sleep(seconds)

    monkeypatch.setattr(program.SystemClock, "sleep", drain)
    return event


async def until(condition):
    """Wait for what comes from another task or over a socket."""
    while not await condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


@pytest.fixture
def ten_years_ahead(monkeypatch):
    monkeypatch.setattr(program.SystemClock, "wall", lambda _self: time.time() + 315_360_000)


@pytest.mark.usefixtures("ten_years_ahead")
async def test_it_serves_until_it_is_told_to_stop(server, tmp_path, objects, drained, caplog):
    node, pod = objects
    server.put("nodes", node("n1", 64))
    caplog.set_level("INFO")
    signals = Signals()
    task = asyncio.create_task(program.serve(options(server.kubeconfig(tmp_path / "kubeconfig")), signals))
    async with aiohttp.ClientSession() as session, asyncio.timeout(20):

        async def listening():
            return "listening on" in caplog.text

        await until(listening)
        line = next(each.message for each in caplog.records if "listening on" in each.message)
        url, _, status = (part.split()[-1] for part in line.split(","))

        async def get(path):
            async with session.get(f"http://{status}{path}") as answer:
                return answer.status, await answer.text()

        async def is_ready():
            return (await get("/readyz"))[0] == 200

        await until(is_ready)
        body = json.dumps({"Pod": pod("p", units=4), "NodeNames": ["n1"]})
        async with session.post(f"http://{url}/filter", data=body) as answer:
            assert (await answer.json())["NodeNames"] == ["n1"]
        _, metrics = await get("/metrics")
        assert "tessera_gpus 1.0" in metrics
        ahead = next(line for line in metrics.splitlines() if line.startswith("tessera_clock_ahead_seconds "))
        assert float(ahead.split()[1]) == pytest.approx(315_360_000, abs=30)
        assert "ahead of the API server's" in caplog.text
        signals.stop.set()
        assert await get("/readyz") == (503, "draining: stopping\n")
        async with session.post(f"http://{url}/filter", data=body) as answer:
            assert answer.headers["Connection"] == "close"
        drained.set()
        await task


async def test_what_is_wrong_at_the_start_is_said(tmp_path):
    broken = tmp_path / "config.yaml"
    broken.write_text("domian: x")
    with pytest.raises(ConfigError, match="domian"):
        await program.serve(options(None, str(broken)), Signals())
    with pytest.raises(ConnectionConfigError, match="does not exist"):
        await program.serve(options(str(tmp_path / "nowhere")), Signals())


async def test_a_watch_that_can_not_go_on_ends_the_program(server, tmp_path, monkeypatch):
    def broken(_self, _change):
        raise ZeroDivisionError("a ledger that missed a change")

    monkeypatch.setattr(program.Cluster, "node_changed", broken)
    server.add_node("n1")
    with pytest.raises(ZeroDivisionError):
        async with asyncio.timeout(20):
            await program.serve(options(server.kubeconfig(tmp_path / "kubeconfig")), Signals())
