"""Building on first use, and libraries that lack functions as an older driver's do."""

from __future__ import annotations

import ctypes
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tessera.testing.nvml import (
    SONAME,
    FakeNvml,
    FakeNvmlError,
    LibraryBuildError,
    build_library,
    known_functions,
)
from tessera.testing.nvml.build import FLAGS, cache_folder, sources


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"TESSERA_CACHE_DIR": str(tmp_path / "cache")}


def compiler(folder: Path, body: str) -> str:
    path = folder / "fake-cc"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


# Writes its output file, slowly enough that another build could step in, and counts its runs.
COUNTING = 'echo run >> "$(dirname "$0")/runs"; while [ "$1" != -o ]; do shift; done; sleep 0.1; echo library > "$2"'


def test_built_once_and_found_again(tmp_path: Path, environ: dict[str, str]) -> None:
    cc = compiler(tmp_path, COUNTING)
    first = build_library(compiler=cc, environ=environ)
    assert first.name == "libnvidia-ml.so.1"
    assert first.read_text() == "library\n"
    assert build_library(compiler=cc, environ=environ) == first
    assert (tmp_path / "runs").read_text().splitlines() == ["run"]


def test_concurrent_first_uses_build_once(tmp_path: Path, environ: dict[str, str]) -> None:
    cc = compiler(tmp_path, COUNTING)
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: build_library(compiler=cc, environ=environ), range(8)))
    assert len(set(paths)) == 1
    assert (tmp_path / "runs").read_text().splitlines() == ["run"]
    assert sorted(path.name for path in paths[0].parent.parent.iterdir() if path.name.startswith("build-")) == []


def test_another_compiler_or_set_of_functions_is_another_library(tmp_path: Path, environ: dict[str, str]) -> None:
    cc = compiler(tmp_path, COUNTING)
    paths = {
        build_library(compiler=cc, environ=environ),
        build_library(compiler=cc, environ=environ, missing={"nvmlDeviceGetMemoryInfo_v2"}),
    }
    compiler(tmp_path, f"{COUNTING}; true")
    paths.add(build_library(compiler=cc, environ=environ))
    assert len(paths) == 3


def test_compiler_may_be_a_command(tmp_path: Path, environ: dict[str, str]) -> None:
    cc = compiler(tmp_path, f'echo "$1" > "$(dirname "$0")/first"; {COUNTING}')
    build_library(environ={**environ, "CC": f"{cc} --as-told"})
    assert (tmp_path / "first").read_text() == "--as-told\n"


def test_sources_compile_without_a_warning(tmp_path: Path) -> None:
    strict = ("-Werror", "-Wpedantic", "-Wshadow")
    command = ["cc", *FLAGS, *strict, "-o", str(tmp_path / SONAME), *map(str, sources())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_compiler(environ: dict[str, str]) -> None:
    with pytest.raises(LibraryBuildError, match=r"no C compiler: 'no-such-cc' .* apt-get install gcc"):
        build_library(environ={**environ, "CC": "no-such-cc"})


def test_failing_compiler_says_why_and_leaves_nothing(tmp_path: Path, environ: dict[str, str]) -> None:
    with pytest.raises(LibraryBuildError, match=r"(?s)failed to build .*state.h: disk on fire"):
        build_library(compiler=compiler(tmp_path, "echo 'state.h: disk on fire' >&2; exit 1"), environ=environ)
    assert [path.suffix for path in (tmp_path / "cache" / "nvml").iterdir()] == [".lock"]


def test_unusable_cache_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LibraryBuildError, match="TESSERA_CACHE_DIR"):
        build_library(environ={"TESSERA_CACHE_DIR": str(tmp_path / "file")})


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"TESSERA_CACHE_DIR": "/c", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/c"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/tessera"),
        ({"HOME": "/h"}, "/h/.cache/tessera"),
    ],
)
def test_cache_folder(environ: dict[str, str], folder: str) -> None:
    assert cache_folder(environ) == Path(folder)


@pytest.mark.parametrize("name", ["nvmlNoSuchThing", "-DX", "nvmlInit_v2 -o /tmp/x", ""])
def test_unknown_functions_cannot_be_missing(environ: dict[str, str], name: str) -> None:
    with pytest.raises(LibraryBuildError, match="no such function"):
        build_library(missing={name}, environ=environ)


def test_missing_function_is_not_found_by_pynvml(make_node) -> None:
    node = make_node(
        "T4", missing={"nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetMemoryInfo_v2", "nvmlInit_v2"}
    )
    handle = node.handle()
    with pytest.raises(node.nvml.NVMLError_FunctionNotFound):
        node.nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)
    # pynvml's function without a version hides it in an error that is no NVMLError.
    with pytest.raises(node.nvml.NVMLLibraryMismatchError):
        node.nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    with pytest.raises(node.nvml.NVMLError_FunctionNotFound):
        node.nvml.nvmlDeviceGetMemoryInfo(handle, node.nvml.nvmlMemory_v2)
    # What is left works, the older form included.
    node.fake.add_process(0, 10, memory=1)
    assert [entry.pid for entry in node.nvml.nvmlDeviceGetComputeRunningProcesses_v2(handle)] == [10]
    assert node.nvml.nvmlDeviceGetMemoryInfo(handle).total == 15360 << 20
    assert not hasattr(node.nvml.nvmlLib, "nvmlInit_v2")


@pytest.mark.parametrize(
    ("driver", "limits", "numa", "lists"),
    [("615.10", True, True, True), ("580.65.06", False, True, True), ("525.60.13", False, False, False)],
)
def test_a_driver_lacks_what_came_later(make_node, driver: str, limits: bool, numa: bool, lists: bool) -> None:
    library: ctypes.CDLL = make_node("T4", driver_version=driver).nvml.nvmlLib
    assert hasattr(library, "nvmlDeviceSetMemoryLimits_v1") == limits
    assert hasattr(library, "nvmlDeviceGetNumaNodeId") == numa
    assert hasattr(library, "nvmlDeviceGetComputeRunningProcesses_v3") == lists


def test_too_many_missing_functions_for_a_state_file(tmp_path: Path) -> None:
    with pytest.raises(FakeNvmlError, match="32 at most"):
        FakeNvml.create(tmp_path / "state", gpus=[], missing=known_functions())
