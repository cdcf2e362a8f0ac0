"""One node as a process."""

from __future__ import annotations

import asyncio
import json
import signal
import sys

import aiohttp
import pytest

from tessera.testing.apiserver import FakeApiServer
from tessera.testing.kubelet import ApiClient, Plugin

GPU = "example.com/gpu"


@pytest.fixture
async def launch():
    """Start processes; they are ended after the test."""
    started = []

    async def start(*arguments):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tessera.testing.kubelet",
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ready(process):
    async with asyncio.timeout(20):
        return json.loads(await process.stdout.readline())


async def ended(process):
    async with asyncio.timeout(20):
        _, errors = await process.communicate()
    return process.returncode, errors.decode()


async def test_a_process_is_a_node_until_it_is_told_to_stop(launch, directory):
    async with FakeApiServer() as server, ApiClient(server.url) as api:
        process = await launch(
            *("--dir", directory, "--node", "n7", "--server", server.url, "--label", "zone=a", "--resource", "cpu=8")
        )
        line = await ready(process)

        found = await api.get("/api/v1/nodes/n7")
        assert (found["metadata"]["labels"]["zone"], found["status"]["capacity"]["cpu"]) == ("a", "8")
        assert found["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"] == line["podsPort"]
        assert (line["node"], line["dir"], line["pid"]) == ("n7", directory, process.pid)
        async with aiohttp.ClientSession() as session, session.get(line["pods"]) as response:
            assert (await response.json())["items"] == []

        process.send_signal(signal.SIGTERM)
        assert await ended(process) == (0, "")


async def test_a_hangup_restarts_the_kubelet_inside(launch, directory):
    process = await launch("--dir", directory, "--node", "n1", "--startup-delay", "0")
    await ready(process)
    plugin = Plugin(directory, GPU, ["d0"])
    await plugin.start()
    await plugin.wait_streams(1)

    process.send_signal(signal.SIGHUP)

    await plugin.wait_streams(0)
    await plugin.stop()
    process.send_signal(signal.SIGINT)
    assert (await ended(process))[0] == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--dir", "/nowhere/" + "x" * 100, "--node", "n1"], "n1: /nowhere/"),
        (["--dir", "DIR", "--node", "n1", "--server", "http://127.0.0.1:1"], "n1: POST /api/v1/nodes"),
        (
            ["--dir", "DIR", "--node", "n1", "--server", "http://x", "--label", "zone"],
            "--label zone: write it as name=value",
        ),
        (["--dir", "DIR", "--node", "n1", "--server", "http://x", "--token-file", "/nowhere"], "can't be read"),
    ],
)
async def test_what_is_wrong_is_said_in_one_line(launch, directory, arguments, text):
    process = await launch(*(directory if argument == "DIR" else argument for argument in arguments))

    code, errors = await ended(process)

    assert code == 1
    assert text in errors
    assert "Traceback" not in errors
