"""MPS: what is claimed of it, what clients get, and a daemon that is found, started, lost and started again.

No MPS runs here: the control program is a stand-in (mps_control.py) that speaks as NVIDIA's does.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import sys
from pathlib import Path

import msgspec
import pytest
import yaml

from deviceplugin import mpsdaemon
from deviceplugin.isolation.environment import Environment
from deviceplugin.isolation.injection import Injector, MpsFolders, Portion, injection
from deviceplugin.isolation.probe import probe
from deviceplugin.mpsdaemon import MpsDaemon
from deviceplugin.nvml.facts import NodeFacts
from deviceplugin.slices import Given, Slice
from tessera.kube.clock import SystemClock
from tessera.model.guarantee import Guarantee, Guarantees
from tessera.model.inventory import Gpu
from tessera.model.names import names
from tessera.testing.nvml import ComputeMode

KERNEL, PROCESS, WATCHED, NONE = Guarantee
GIB = 1 << 30
PATIENCE = 60.0
MANIFESTS = Path(__file__).parents[2] / "manifests"
FOLDERS = MpsFolders(pipes="/run/t/pipe", shared="/run/t/shm")


# What is claimed.


@pytest.fixture
def card(facts_of):
    return msgspec.structs.replace(facts_of(0), capability=(8, 0), exclusive=True, accounting=True)


def verdict(card, *, problem=None, order=tuple(Guarantee)):
    node = NodeFacts(driver="580.10", gpus=(card,))
    return probe(node, Environment(mps=problem), order=order, mode="envvar")[card.id]


def test_with_a_daemon_and_an_exclusive_gpu_both_dimensions_are_held(card):
    assert verdict(card).guarantees == Guarantees(memory=PROCESS, compute=PROCESS)


@pytest.mark.parametrize(
    ("facts", "problem", "reason"),
    [
        ({"mig_mode": True}, None, "MIG is on"),
        ({"capability": (6, 1)}, None, "since Volta"),
        ({"capability": None}, None, "since Volta"),
        ({"exclusive": False}, None, "nvidia-smi -i 0 -c EXCLUSIVE_PROCESS"),
        ({}, "no daemon", "no daemon"),
    ],
)
def test_what_is_missing_is_said_and_nothing_is_claimed(card, facts, problem, reason):
    found = verdict(msgspec.structs.replace(card, **facts), problem=problem)
    assert found.guarantees == Guarantees(memory=WATCHED, compute=NONE)
    assert reason in found.against[PROCESS]


def test_what_is_not_in_the_order_is_not_claimed(card):
    assert verdict(card, order=(WATCHED,)).guarantees == Guarantees(memory=WATCHED, compute=NONE)


def test_compute_is_held_by_mps_beside_a_firmer_hold_on_memory(card):
    assert verdict(card, order=(WATCHED, PROCESS)).guarantees == Guarantees(memory=WATCHED, compute=PROCESS)


def test_the_compute_mode_is_read(make_fake, make_driver):
    fake = make_fake("A100-80GB", "A100-80GB")
    fake.set_compute_mode(1, ComputeMode.EXCLUSIVE_PROCESS)
    assert [gpu.exclusive for gpu in make_driver(fake).read().gpus] == [False, True]


# What clients get.


def portion(memory=8 * GIB, compute=30, **more):
    return Portion(uuid="GPU-1", index=3, card=80 * GIB, memory=memory, compute=compute, **more)


def given(*portions, folders=FOLDERS):
    return injection(portions, guarantees=Guarantees(), mode="envvar", folders=folders)


def test_a_client_is_limited_by_the_ordinals_that_it_sees():
    found = given(portion(), portion(memory=9 * GIB, compute=20))
    assert {name: value for name, value in found.envs.items() if name.startswith("CUDA")} == {
        "CUDA_MPS_PIPE_DIRECTORY": "/run/t/pipe",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=8192M,1=8192M",
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "20",
    }
    assert [(each.host_path, each.container_path, each.read_only) for each in found.mounts] == [
        ("/run/t/pipe", "/run/t/pipe", True),
        ("/run/t/shm", "/dev/shm", False),  # noqa: S108
    ]


def test_no_compute_asked_no_cap():
    assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in given(portion(compute=0)).envs


def test_a_whole_gpu_is_a_client_without_limits():
    envs = given(portion(memory=79 * GIB, compute=100, whole=True)).envs
    assert [name for name in envs if name.startswith("CUDA")] == ["CUDA_MPS_PIPE_DIRECTORY"]


def test_without_mps_nothing_of_it_is_given():
    found = given(portion(), folders=None)
    assert not [name for name in found.envs if name.startswith("CUDA")]
    assert found.mounts == ()


def test_on_gpus_that_are_shared_by_it_every_container_is_a_client(facts_of):
    injector = Injector(names())
    gpus = [facts_of(0), facts_of(1)]
    injector.update(gpus, guarantees={}, mode="envvar")
    injector.share_by_mps([gpus[0].id], FOLDERS)

    def envs(*numbers):
        slices = tuple(
            Slice(Gpu(id=gpus[n].id, uuid=gpus[n].uuid, index=n, model="A100", memory=1 << 36, units=316), 32, 0)
            for n in numbers
        )
        return injector.inject(Given(None, "", None, slices)).envs

    assert ["CUDA_MPS_PIPE_DIRECTORY" in envs(*numbers) for numbers in ((0,), (1,), (0, 1))] == [True, False, False]


# The daemon.


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "nvidia-cuda-mps-control"
    script = Path(__file__).with_name("mps_control.py")
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E -X as=nvidia-cuda-mps-control {script} "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "m"


@pytest.fixture
async def make_daemon(folder, program, monkeypatch):
    """Make supervisors of one folder; whatever daemon is left is ended."""
    monkeypatch.setattr(mpsdaemon, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(mpsdaemon, "LOOK_EVERY", 0.1)
    running = []

    def make(*, limits=None, **more):
        found = MpsDaemon(
            str(folder), str(program), clock=SystemClock(), environ=os.environ, shm=str(folder / "shm"), **more
        )
        found.task = asyncio.create_task(found.run(lambda: limits or {0: 79 * GIB, 1: 15 * GIB}))
        running.append(found.task)
        return found

    yield make
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    with contextlib.suppress(OSError, ValueError):
        os.kill(pid_in(folder), signal.SIGKILL)


def pid_in(folder):
    return int((folder / "pipe" / "nvidia-cuda-mps-control.pid").read_text())


async def until(condition):
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - another process, which calls nobody
            await asyncio.sleep(0.01)


async def test_a_daemon_is_started_and_told_its_defaults_by_index(make_daemon, folder):
    # As a kubelet makes a hostPath.
    (folder / "shm").mkdir(parents=True, mode=0o755)
    daemon = make_daemon()
    await until(lambda: daemon.problem is None)
    heard = (folder / "pipe" / "heard").read_text().splitlines()
    assert "set_default_device_pinned_mem_limit 0 80896M" in heard
    assert "set_default_device_pinned_mem_limit 1 15360M" in heard
    assert (folder / "pipe").stat().st_mode & 0o777 == 0o755
    assert (folder / "shm").stat().st_mode & 0o7777 == 0o1777


async def test_its_servers_are_known_as_long_as_it_answers(make_daemon, folder):
    daemon = make_daemon()
    await until(lambda: daemon.problem is None)
    assert daemon.servers == frozenset()
    # The stand-in has none; its own number is one of MPS, ours is not.
    server = pid_in(folder)
    (folder / "pipe" / "servers").write_text(f"{server}\n{os.getpid()}\nnone\n99999999999999999999\n")
    await until(lambda: daemon.servers == {server})


async def test_one_that_dies_is_said_and_started_again(make_daemon, folder):
    daemon = make_daemon()
    said, lost = [], []
    daemon.subscribe(lambda: said.append(daemon.problem))
    daemon.on_lost(lambda: lost.append(daemon.problem))
    await until(lambda: daemon.problem is None)
    first = pid_in(folder)
    os.kill(first, signal.SIGKILL)
    await until(lambda: lost)
    assert "has ended" in lost[0], "no guarantee is claimed by the time people are told"
    await until(lambda: daemon.problem is None)
    assert (daemon.starts, pid_in(folder) != first) == (2, True)


async def test_it_outlives_the_agent_and_the_next_one_takes_it_over(make_daemon, folder):
    daemon = make_daemon()
    await until(lambda: daemon.problem is None)
    first = pid_in(folder)
    daemon.task.cancel()
    await asyncio.gather(daemon.task, return_exceptions=True)
    newcomer = make_daemon()
    assert await newcomer.look()
    await until(lambda: "80896M" in (folder / "pipe" / "heard").read_text().rpartition("get_")[2])
    assert (newcomer.starts, pid_in(folder)) == (0, first)
    # It notices the end of one that isn't its child, too.
    os.kill(first, signal.SIGKILL)
    await until(lambda: newcomer.starts == 1 and newcomer.problem is None)


async def test_one_that_hangs_is_told_of_and_never_ended(make_daemon, folder, monkeypatch):
    monkeypatch.setattr(mpsdaemon, "ASK_WITHIN", 1.0)
    daemon = make_daemon()
    await until(lambda: daemon.problem is None)
    pid = pid_in(folder)
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: "did not answer" in (daemon.problem or ""))
    os.kill(pid, signal.SIGCONT)
    await until(lambda: daemon.problem is None)
    assert (daemon.starts, pid_in(folder)) == (1, pid)


@pytest.fixture
def proc(tmp_path):
    """A /proc that hides what a process is, or has no such process."""

    class Proc:
        root = tmp_path / "proc"

        def hide(self, pid):
            # A folder can't be read as a file by anybody, root included.
            (self.root / str(pid) / "cmdline").mkdir(parents=True)

        def gone(self, pid):
            (self.root / str(pid) / "cmdline").rmdir()
            (self.root / str(pid)).rmdir()

    return Proc()


async def found_running(make_daemon, folder, proc):
    """A supervisor that found a daemon whose process it can't look at, with what it tells, and the daemon's number."""
    first = make_daemon()
    await until(lambda: first.problem is None)
    first.task.cancel()
    await asyncio.gather(first.task, return_exceptions=True)
    pid = pid_in(folder)
    proc.hide(pid)
    daemon = make_daemon(proc=str(proc.root))
    lost = []
    daemon.on_lost(lambda: lost.append(daemon.problem))
    await until(lambda: daemon.problem is None)
    return daemon, lost, pid


async def test_one_that_can_not_be_looked_at_and_is_silent_for_a_while_has_not_ended(
    make_daemon, folder, proc, monkeypatch
):
    monkeypatch.setattr(mpsdaemon, "ASK_WITHIN", 1.0)
    daemon, lost, pid = await found_running(make_daemon, folder, proc)
    os.kill(pid, signal.SIGSTOP)
    try:
        await until(lambda: f"whether the MPS daemon ({pid}) still runs can't be told" in (daemon.problem or ""))
    finally:
        os.kill(pid, signal.SIGCONT)
    await until(lambda: daemon.problem is None)
    assert (lost, daemon.starts, pid_in(folder)) == ([], 0, pid)


async def test_its_end_is_told_once_it_is_proven(make_daemon, folder, proc):
    daemon, lost, pid = await found_running(make_daemon, folder, proc)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: "can't be told" in (daemon.problem or ""))
    assert (lost, daemon.starts) == ([], 0)
    proc.gone(pid)
    await until(lambda: daemon.problem is None)
    assert (len(lost), daemon.starts, pid_in(folder) != pid) == (1, 1, True)
    assert "has ended" in lost[0]


async def test_without_a_handle_on_its_process_the_same_holds(make_daemon, folder, monkeypatch):
    monkeypatch.setattr(mpsdaemon, "ASK_WITHIN", 1.0)
    daemon = make_daemon()
    await until(lambda: daemon.problem is None)
    daemon.task.cancel()
    await asyncio.gather(daemon.task, return_exceptions=True)

    def refused(_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", refused)
    newcomer = make_daemon()
    lost = []
    newcomer.on_lost(lambda: lost.append(newcomer.problem))
    await until(lambda: newcomer.problem is None)
    pid = pid_in(folder)
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: "does not answer; its clients may go on" in (newcomer.problem or ""))
    os.kill(pid, signal.SIGCONT)
    await until(lambda: newcomer.problem is None)
    assert (lost, newcomer.starts, pid_in(folder)) == ([], 0, pid)


async def test_a_server_that_can_not_be_looked_at_for_a_moment_stays_known(make_daemon, folder, proc):
    daemon, _, pid = await found_running(make_daemon, folder, proc)
    daemon.servers = frozenset({pid})
    (folder / "pipe" / "servers").write_text(f"{pid}\n")
    heard = folder / "pipe" / "heard"
    looked = heard.read_text().count("get_server_list")
    await until(lambda: heard.read_text().count("get_server_list") >= looked + 2)
    assert daemon.servers == {pid}


async def test_a_program_that_is_not_there_is_named_and_looked_for_again(make_daemon, program):
    content = program.read_text()
    program.unlink()
    daemon = make_daemon()
    await until(lambda: "can't be started: No such file" in (daemon.problem or ""))
    program.write_text(content)
    program.chmod(0o755)
    await until(lambda: daemon.problem is None)


async def test_one_that_ends_at_once_is_no_daemon(make_daemon, folder):
    (folder / "pipe").mkdir(parents=True)
    (folder / "pipe" / "broken").touch()
    daemon = make_daemon()
    await until(lambda: daemon.starts >= 2)
    await until(lambda: "ended at once" in (daemon.problem or ""))
    (folder / "pipe" / "broken").unlink()
    await until(lambda: daemon.problem is None)


async def test_clients_that_would_share_another_memory_get_none(folder, program, tmp_path):
    for name in ("pipe", "shm"):
        (folder / name).mkdir(parents=True)
    daemon = MpsDaemon(str(folder), str(program), clock=SystemClock(), environ=os.environ, shm=str(tmp_path))
    assert not await daemon.look()
    assert f"{tmp_path} is not {folder}/shm" in daemon.problem


def test_with_the_component_the_runtime_brings_the_control_program():
    """It comes with the driver's "compute"; in a DaemonSet that asks for "utility" alone there is none."""
    component = yaml.safe_load((MANIFESTS / "components" / "mps" / "kustomization.yaml").read_text())
    merged = [patch for each in component["patches"] if isinstance(patch := yaml.safe_load(each["patch"]), dict)]
    (container,) = merged[0]["spec"]["template"]["spec"]["containers"]
    assert container["env"] == [{"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "compute,utility"}]


# Clients that an older agent let in can write in the daemon's folder, and not all of them are friends.


@pytest.mark.parametrize("kind", ["fifo", "link", "folder", "long"])
async def test_what_a_client_puts_in_place_of_the_number_stops_nobody(folder, tmp_path, kind):
    (folder / "pipe").mkdir(parents=True)
    file = folder / "pipe" / mpsdaemon.PID_FILE
    match kind:
        case "fifo":
            os.mkfifo(file)
        case "link":
            os.mkfifo(tmp_path / "elsewhere")
            file.symlink_to(tmp_path / "elsewhere")
        case "folder":
            file.mkdir()
        case "long":
            file.write_text("9" * 100_000)
    # A reader that waits for a writer would stop the whole agent, so it is asked in a thread of its own here.
    found = MpsDaemon(str(folder), "none", clock=SystemClock(), environ={}, shm=str(folder / "shm"))
    reading = asyncio.to_thread(found._pid)
    try:
        async with asyncio.timeout(PATIENCE / 3):
            assert await reading == 0
    finally:
        for fifo in (path for path in (file, tmp_path / "elsewhere") if path.is_fifo()):
            with contextlib.suppress(OSError):
                os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))


async def test_an_answer_without_end_is_not_read_to_the_end(folder, program):
    for name in ("pipe", "shm"):
        (folder / name).mkdir(parents=True)
    program.write_text("#!/bin/sh\nexec yes\n")
    daemon = MpsDaemon(str(folder), str(program), clock=SystemClock(), environ=os.environ, shm=str(folder / "shm"))
    assert not await daemon.look()
    assert "more than 65536 bytes" in daemon.problem
