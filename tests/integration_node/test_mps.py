"""MPS on a node: what is promised while its daemon runs, and what is not any more when it has ended."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest

from deviceplugin import mpsdaemon
from deviceplugin.mpsdaemon import MpsDaemon
from tessera.kube.clock import SystemClock
from tessera.model.guarantee import Guarantee, Guarantees
from tessera.model.names import names
from tessera.testing.nvml import ComputeMode

UNITS, PERCENT, COMPUTE = names().tickets
HELD = Guarantees(memory=Guarantee.PROCESS, compute=Guarantee.PROCESS)
WATCHED = Guarantees(memory=Guarantee.WATCHED)


@pytest.fixture
def pid(folder):
    def read():
        return int((Path(folder) / "mps" / "pipe" / "nvidia-cuda-mps-control.pid").read_text())

    yield read
    with contextlib.suppress(OSError, ValueError):
        os.kill(read(), signal.SIGKILL)


@pytest.fixture
def mps(folder, monkeypatch, pid):  # noqa: ARG001 - ends the daemon
    monkeypatch.setattr(mpsdaemon, "LOOK_EVERY", 0.1)
    # Long enough for everybody to see that it is gone.
    monkeypatch.setattr(mpsdaemon, "FIRST_WAIT", 1.0)
    control = Path(__file__).parents[1] / "node_gpu" / "mps_control.py"
    program = Path(folder) / "nvidia-cuda-mps-control"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E -X as=nvidia-cuda-mps-control {control} "$@"\n')
    program.chmod(0o755)
    return MpsDaemon(
        f"{folder}/mps", str(program), clock=SystemClock(), environ=os.environ, shm=f"{folder}/mps/shm"
    )  # fmt: skip


def guarantees(cluster):
    return {gpu.id: gpu.guarantee for gpu in cluster.inventory().gpus}


async def test_a_guarantee_lives_and_ends_with_the_daemon(make_cluster, mps, pid):
    cluster = await make_cluster(agent=False)
    cluster.nvml.set_compute_mode(0, ComputeMode.EXCLUSIVE_PROCESS)
    await cluster.start_agent(mps=mps)
    one, other = cluster.gpu(0), cluster.gpu(1)
    await cluster.until(lambda: guarantees(cluster) == {one: HELD, other: WATCHED})
    held = cluster.pod("held", {UNITS: 32, COMPUTE: 30}, plan={"main": [(0, 32, 30)]})
    free = cluster.pod("free", {UNITS: 32, COMPUTE: 30}, plan={"main": [(1, 32, 30)]})
    for name in ("held", "free"):
        await cluster.running_pod(name)
    env = cluster.env(held)
    assert env["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=8192M"
    assert env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "30"
    assert env["CUDA_MPS_PIPE_DIRECTORY"] in {
        each.container_path for record in cluster.kubelet.containers(held) for each in record.mounts
    }
    assert not [name for name in cluster.env(free) if name.startswith("CUDA")]
    os.kill(pid(), signal.SIGKILL)
    await cluster.until(lambda: guarantees(cluster) == {one: WATCHED, other: WATCHED})
    await cluster.until(lambda: cluster.events("MpsEnded"))
    demanding = cluster.pod(
        "demanding", {UNITS: 8}, plan={"main": [(0, 8, 0)]}, annotations={names().guarantee: "process"}
    )
    await cluster.until(lambda: cluster.agent.board.ledger.of_pod(demanding))
    await cluster.until(lambda: guarantees(cluster)[one] == HELD)
    await cluster.running_pod("demanding")


async def test_the_daemon_and_its_guarantee_outlive_the_agent(make_cluster, mps, pid):
    cluster = await make_cluster("A100-80GB", agent=False)
    cluster.nvml.set_compute_mode(0, ComputeMode.EXCLUSIVE_PROCESS)
    await cluster.start_agent(mps=mps)
    await cluster.until(lambda: guarantees(cluster) == {cluster.gpu(0): HELD})
    first = pid()
    await cluster.stop_agent()
    await cluster.start_agent(mps=mps)
    await cluster.until(lambda: guarantees(cluster) == {cluster.gpu(0): HELD})
    assert (pid(), mps.starts) == (first, 1)
