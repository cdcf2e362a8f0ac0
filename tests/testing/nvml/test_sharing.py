"""Several processes, one state: how a library is found, and that a change is seen everywhere at once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from tessera.testing.nvml import FakeGpu, FakeNvml, StateFileError
from tessera.testing.nvml.statefile import StateFile

CHILD = """
import json, sys
import pynvml

pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByIndex(0)
events = pynvml.nvmlEventSetCreate()
pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, events)
commands = {
    "name": lambda: pynvml.nvmlDeviceGetName(handle),
    "used": lambda: pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2).used,
    "exclusive": lambda: pynvml.nvmlDeviceSetComputeMode(handle, pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS),
    "wait": lambda: pynvml.nvmlEventSetWait_v2(events, 60000).eventData,
}
for line in sys.stdin:
    try:
        answer = commands[line.strip()]()
    except pynvml.NVMLError as error:
        answer = str(error)
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def fake(tmp_path: Path):
    with FakeNvml.create(tmp_path / "state", gpus=[FakeGpu.of("A100-80GB")]) as made:
        yield made


def environment(fake: FakeNvml, **more: str) -> Mapping[str, str]:
    return {**os.environ, **fake.environment(), **more}


@asynccontextmanager
async def child(fake: FakeNvml) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CHILD,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment(fake),
    )
    try:
        yield process
    finally:
        process.stdin.close()
        await process.wait()


async def ask(process: asyncio.subprocess.Process, command: str) -> str:
    process.stdin.write(f"{command}\n".encode())
    async with asyncio.timeout(30):
        return (await process.stdout.readline()).decode().strip()


async def test_two_processes_see_every_change_at_once(fake: FakeNvml) -> None:
    async with child(fake) as one, child(fake) as two:
        assert [await ask(process, "name") for process in (one, two)] == ['"NVIDIA A100-SXM4-80GB"'] * 2
        for gigabytes in (1, 7, 3):
            if fake.processes():
                fake.set_process_memory(0, 10, gigabytes << 30)
            else:
                fake.add_process(0, 10, memory=gigabytes << 30)
            assert [await ask(process, "used") for process in (one, two)] == [str(gigabytes << 30)] * 2
        await ask(one, "exclusive")
        assert fake.gpus()[0].compute_mode.name == "EXCLUSIVE_PROCESS"
        fake.lose(0, xid=None)
        assert [await ask(process, "used") for process in (one, two)] == ['"GPU is lost"'] * 2


async def test_one_push_wakes_every_process(fake: FakeNvml) -> None:
    async with child(fake) as one, child(fake) as two:
        await ask(one, "name")
        await ask(two, "name")
        waits = [asyncio.create_task(ask(process, "wait")) for process in (one, two)]
        fake.mark_sick(0, 48)
        assert await asyncio.gather(*waits) == ["48", "48"]


async def test_two_handles_on_one_file(fake: FakeNvml) -> None:
    with FakeNvml.open(fake.path) as other:
        other.add_process(0, 10, memory=1 << 30)
        assert fake.processes() == other.processes()
        assert fake.gpus()[0].memory_used == 1 << 30
        assert other.library == fake.library


def run(fake: FakeNvml, program: str, **more: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=environment(fake, **more),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_found_by_the_library_path(fake: FakeNvml) -> None:
    program = """
        import pynvml
        pynvml.nvmlInit()
        print(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)))
    """
    assert run(fake, program) == "NVIDIA A100-SXM4-80GB"


@pytest.mark.parametrize("assign", ["pynvml.nvmlLib = ctypes.CDLL(sys.argv[0] or PATH)", "ctypes.CDLL(PATH)"])
def test_found_by_path(fake: FakeNvml, assign: str) -> None:
    """Set on the module, or merely loaded: the linker then answers to the SONAME with what is there already."""
    assign = assign.replace("sys.argv[0] or ", "")
    program = f"""
        import ctypes
        import pynvml
        PATH = {str(fake.library)!r}
        keep = {assign.removeprefix("pynvml.nvmlLib = ")}
        {assign}
        pynvml.nvmlInit()
        print(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)))
    """
    assert run(fake, program, LD_LIBRARY_PATH="") == "NVIDIA A100-SXM4-80GB"


def test_without_the_library_pynvml_says_so(fake: FakeNvml) -> None:
    program = """
        import pynvml
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError_LibraryNotFound:
            print("not found")
    """
    assert run(fake, program, LD_LIBRARY_PATH="") == "not found"


def test_readers_wait_for_a_writer(make_node) -> None:
    """Both kinds of reader: the C library, and another handle in Python."""
    node = make_node("A100-80GB")
    node.fake.add_process(0, 10, memory=1 << 30)
    handle = node.handle()
    with ThreadPoolExecutor(2) as pool, FakeNvml.open(node.fake.path) as other:
        with closing(StateFile(node.fake.path)) as file, file.write() as state:
            state.processes[0].memory_used = 5 << 30
            readers = [
                pool.submit(lambda: node.nvml.nvmlDeviceGetMemoryInfo(handle, node.nvml.nvmlMemory_v2).used),
                pool.submit(lambda: other.gpus()[0].memory_used),
            ]
            assert wait(readers, timeout=0.1).done == set()
            state.processes[0].memory_used = 2 << 30
        assert [reader.result(timeout=30) for reader in readers] == [2 << 30] * 2


def test_a_killed_writer_leaves_no_lock(fake: FakeNvml) -> None:
    program = """
        import os, signal, sys
        from pathlib import Path
        from tessera.testing.nvml.statefile import StateFile
        with StateFile(Path(os.environ["TESSERA_FAKE_NVML_STATE"])).write():
            print("locked", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, env=environment(fake), capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "locked\n")
    fake.add_process(0, 10, memory=1)
    assert len(fake.processes()) == 1


def test_environment_keeps_what_was_there(fake: FakeNvml) -> None:
    folder = str(fake.library.parent)
    assert fake.environment(inherited={"LD_LIBRARY_PATH": "/opt/lib"})["LD_LIBRARY_PATH"] == f"{folder}:/opt/lib"
    assert fake.environment(inherited={}) == {
        "TESSERA_FAKE_NVML_STATE": str(fake.path),
        "LD_LIBRARY_PATH": folder,
    }


def test_closed_or_missing_file(fake: FakeNvml, tmp_path: Path) -> None:
    with pytest.raises(StateFileError, match="No such file"):
        FakeNvml.open(tmp_path / "none")
    with pytest.raises(StateFileError, match="File exists"):
        FakeNvml.create(fake.path, gpus=[])
    fake.close()
    fake.close()
    with pytest.raises(StateFileError, match="was closed"):
        fake.gpus()
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
