"""``tessera-node`` as a process: flags, signals, exit codes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from email.utils import formatdate
from pathlib import Path

import aiohttp
import pytest

from tessera.model.names import names

UNITS, PERCENT, COMPUTE = names().tickets
PATIENCE = 20.0


@pytest.fixture
async def launch(folder):
    """Start tessera-node with these flags; killed at the end."""
    started = []

    async def start(*flags, **environment):
        env = {
            name: value for name, value in os.environ.items() if name not in {"KUBECONFIG", "KUBERNETES_SERVICE_HOST"}
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "deviceplugin.main", *flags),
            env=env | {"HOME": folder} | environment,
            stderr=asyncio.subprocess.PIPE,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def line(process, pattern):
    """Read the log until a line matches; returns what the pattern's group has."""
    async with asyncio.timeout(PATIENCE):
        while True:
            text = (await process.stderr.readline()).decode()
            assert text, f"ended before {pattern!r} was said"
            if match := re.search(pattern, text):
                return match[1] if match.groups() else text


async def test_it_serves_says_so_and_leaves_nothing_behind(make_cluster, launch, tmp_path):
    cluster = await make_cluster(agent=False)
    cluster.api.date = lambda: formatdate(time.time() + 7200, usegmt=True)
    config = tmp_path / "config.yaml"
    config.write_text("headroomPerGpu: 1Gi\n")
    process = await launch(
        *("--kubelet-dir", cluster.kubelet.paths.root, "--proc-root", cluster.kubelet.paths.proc),
        *("--nvml-library", str(cluster.nvml.library), "--config", str(config)),
        *("--kubeconfig", cluster.api.kubeconfig(tmp_path / "kubeconfig")),
        TESSERA_NODE_NAME="n1",
        TESSERA_STATUS_LISTEN="127.0.0.1:0",
    )
    address = await line(process, r"node n1: status at (\S+)")
    await cluster.until(lambda: cluster.kubelet.capacity().allocatable.get(UNITS) == 632 - 8, seconds=PATIENCE)
    await cluster.until(lambda: cluster.kubelet.capacity().allocatable.get(COMPUTE) == 200)
    await cluster.until(lambda: cluster.inventory() and cluster.inventory().state == "serving")
    async with aiohttp.ClientSession() as session:
        for path, text in (("/healthz", "ok"), ("/readyz", "ok"), ("/metrics", "tessera_node_registrations_total")):
            async with session.get(f"http://{address}{path}") as answer:
                assert answer.status == 200, await answer.text()
                assert text in await answer.text()
        async with session.get(f"http://{address}/metrics") as answer:
            ahead = re.search(r"^tessera_clock_ahead_seconds (\S+)$", await answer.text(), re.MULTILINE)
            assert float(ahead[1]) == pytest.approx(-7200, abs=5)
        config.write_text("headroomPerGpu: 2Gi\n")
        process.send_signal(signal.SIGHUP)
        await cluster.until(lambda: cluster.kubelet.capacity().allocatable.get(UNITS) == 632 - 16)
    process.terminate()
    async with asyncio.timeout(PATIENCE):
        await process.communicate()
    assert process.returncode == 0
    assert cluster.inventory().state == "draining"
    assert not list(Path(cluster.kubelet.paths.plugins).glob("tessera-*.sock"))  # noqa: ASYNC240
    await cluster.until(lambda: set(cluster.kubelet.capacity().allocatable.values()) == {0})


@pytest.mark.parametrize(
    ("config", "message"),
    [("nonsense: 1\n", "nonsense"), (None, "can't be read"), ("memoryUnit: 1\n", "memoryUnit")],
)
async def test_a_config_that_is_refused_ends_it_with_one_line(launch, tmp_path, config, message):
    path = tmp_path / "config.yaml"
    if config is not None:
        path.write_text(config)
    process = await launch("--config", str(path), "--status-listen", "127.0.0.1:0")
    async with asyncio.timeout(PATIENCE):
        _, errors = await process.communicate()
    assert process.returncode == 1
    text = errors.decode()
    assert message in text
    assert "Traceback" not in text


async def test_a_state_folder_that_cannot_be_made_is_named(launch, tmp_path):
    (tmp_path / "file").touch()
    process = await launch("--state-dir", str(tmp_path / "file" / "state"), "--status-listen", "127.0.0.1:0")
    async with asyncio.timeout(PATIENCE):
        _, errors = await process.communicate()
    assert process.returncode == 1
    assert "state" in errors.decode()
    assert "Traceback" not in errors.decode()
