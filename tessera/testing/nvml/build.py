"""Compile the library on first use, once per machine and source.

A wheel can't carry it: it is C, for whatever machine the tests run on, and a missing symbol (an older driver) is a build
of its own, because ctypes asks the dynamic linker, which no state file can talk out of a symbol.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from tessera.testing.nvml.errors import LibraryBuildError

SONAME: Final = "libnvidia-ml.so.1"
SOURCE_FOLDER: Final = Path(__file__).with_name("csrc")
FLAGS: Final = (
    *("-std=c11", "-D_GNU_SOURCE", "-O2", "-g", "-Wall", "-Wextra"),
    *("-fPIC", "-fvisibility=hidden", "-pthread", "-shared", f"-Wl,-soname,{SONAME}"),
)
_COMPILER_SECONDS: Final = 120
_EXPORTED: Final = re.compile(
    r"^(?:EXPORT nvmlReturn_t|EXPORT const char \*|NUMBER\(|LIST\()\s*(nvml\w+)", re.MULTILINE
)


def build_library(
    *, missing: Iterable[str] = (), compiler: str | None = None, environ: Mapping[str, str] | None = None
) -> Path:
    """Build the fake ``libnvidia-ml.so.1``, or find the one that was built before.

    Args:
        missing: functions that this library lacks, as an older driver's would (pynvml then raises FUNCTION_NOT_FOUND).
        compiler: command of the C compiler; else ``$CC``, else ``cc``.
        environ: where TESSERA_CACHE_DIR, XDG_CACHE_HOME, HOME and CC are read from; the process's own if not given.

    Returns:
        Path of the library; its folder is what LD_LIBRARY_PATH takes.

    Raises:
        LibraryBuildError: no compiler, a compiler that fails, or a name in ``missing`` that the library never had.
    """
    environ = os.environ if environ is None else environ
    hidden = sorted(set(missing))
    unknown = sorted(set(hidden) - known_functions())
    if unknown:
        raise LibraryBuildError(
            f"can't leave out {', '.join(unknown)}: the fake NVML has no such function; see known_functions()"
        )
    command = _compiler(compiler or environ.get("CC") or "cc")
    key = _key(command, hidden)
    cache = cache_folder(environ) / "nvml"
    library = cache / key / SONAME
    if library.is_file():
        return library
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        # One builds, the others wait: 20 node agents that start together would compile the same thing 20 times.
        with open(cache / f"{key}.lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not library.is_file():
                _compile(command, hidden, library)
    except OSError as error:
        raise LibraryBuildError(
            f"the cache folder {cache} can't be used: {error.strerror}; set TESSERA_CACHE_DIR to a writable folder"
        ) from error
    return library


def cache_folder(environ: Mapping[str, str]) -> Path:
    """The folder for what is built once: $TESSERA_CACHE_DIR, else $XDG_CACHE_HOME/tessera, else ~/.cache/tessera."""
    if own := environ.get("TESSERA_CACHE_DIR"):
        return Path(own)
    if shared := environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "tessera"
    return Path(environ.get("HOME") or Path.home()) / ".cache" / "tessera"


@functools.cache
def known_functions() -> frozenset[str]:
    """Names of all NVML functions that the fake library exports."""
    return frozenset(name for path in sources() for name in _EXPORTED.findall(path.read_text()))


def sources() -> tuple[Path, ...]:
    """The C files, in a fixed order."""
    return tuple(sorted(SOURCE_FOLDER.glob("*.c")))


def _compiler(words: str) -> list[str]:
    """The compiler's command, as ``$CC`` may spell it (``ccache gcc``), with its program found on the PATH."""
    name, *arguments = shlex.split(words) or [words]
    found = shutil.which(name)
    if found is None:
        raise LibraryBuildError(
            f"no C compiler: {name!r} is not on the PATH; the fake NVML library is C and built on first use "
            "(Debian: apt-get install gcc libc6-dev)"
        )
    return [found, *arguments]


def _key(compiler: list[str], hidden: list[str]) -> str:
    """Hash of everything that decides what comes out; the compiler is known by its file, starting it costs 10 ms."""
    status = os.stat(compiler[0])
    parts = (compiler, status.st_size, status.st_mtime_ns, os.uname().machine, FLAGS, hidden)
    digest = hashlib.sha256(repr(parts).encode())
    for path in sorted(SOURCE_FOLDER.iterdir()):
        if path.suffix in {".c", ".h"}:
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:24]


def _compile(compiler: list[str], hidden: list[str], library: Path) -> None:
    """Compile into a folder beside the target and rename it into place: nobody ever sees half a library."""
    work = Path(tempfile.mkdtemp(prefix="build-", dir=library.parent.parent))
    try:
        # Renamed by the preprocessor, the function stays in the library, under a name that nobody asks for.
        renames = [f"-D{name}=left_out_{name}" for name in hidden]
        command = [*compiler, *FLAGS, *renames, "-o", str(work / SONAME), *map(str, sources())]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_COMPILER_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise LibraryBuildError(f"{compiler[0]} did not finish within {_COMPILER_SECONDS} s") from error
        if done.returncode:
            raise LibraryBuildError(
                f"{compiler[0]} failed to build the fake NVML library:\n{done.stderr.strip()[:4000]}"
            )
        try:
            os.rename(work, library.parent)
        except OSError:
            # Another machine that shares the cache folder (where flock doesn't reach) was first.
            if not library.is_file():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
