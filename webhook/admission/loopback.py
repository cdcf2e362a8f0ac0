"""Puts the ``loopback`` CNI plugin into a node's /opt/cni/bin: the program of the init container that `cni` adds.

Only the standard library is used, so that it starts fast and in any image with this package. It never fails for want of
something: an init container that fails would keep the CNI pod itself from starting, which is worse than a node without the
plugin (and CRI-O, or containerd with ``use_internal_loopback``, needs none). What was done, or why not, is one line of
output.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Sequence
from typing import Final

PLUGIN: Final = "loopback"
SOURCES: Final = ("/usr/lib/cni/loopback", "/opt/cni/bin/loopback", "/usr/libexec/cni/loopback")
"""Where images keep it: Debian's containernetworking-plugins, the upstream release's layout, Fedora's."""
_ELF_HEADER: Final = 20
"""Bytes up to and including e_machine."""


def ensure(target: str, *, sources: Sequence[str] = SOURCES) -> str:
    """Put the plugin into the folder `target` unless a usable one is there.

    Usable means: a file, not empty, executable, and no program for another processor. A new one appears in one step (it is
    written under another name in the same folder and renamed), because the runtime may be about to run it.

    Returns:
        One line that says what was done.

    Raises:
        OSError: no source is there, or the folder can't be written.
    """
    path = os.path.join(target, PLUGIN)
    source = next((source for source in sources if os.path.isfile(source)), None)
    if source is None:
        if _usable(path, None):
            return f"{path} is in place"
        raise FileNotFoundError(f"this image holds no {PLUGIN} plugin (looked for {', '.join(sources)})")
    if _usable(path, source):
        return f"{path} is in place"
    os.makedirs(target, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{PLUGIN}.", dir=target)
    try:
        with os.fdopen(handle, "wb") as to_file, open(source, "rb") as from_file:
            shutil.copyfileobj(from_file, to_file)
            to_file.flush()
            os.fchmod(to_file.fileno(), 0o755)
            os.fsync(to_file.fileno())
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
    return f"{path} put in place from {source}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as ``python -m webhook.admission.loopback FOLDER [SOURCE...]``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given:
        sys.stderr.write("usage: python -m webhook.admission.loopback FOLDER [SOURCE...]\n")
        return 2
    try:
        done = ensure(given[0], sources=given[1:] or SOURCES)
    except OSError as error:
        sys.stdout.write(f"loopback plugin not put in place: {error}; the pod starts without it\n")
        return 0
    sys.stdout.write(f"{done}\n")
    return 0


def _usable(path: str, source: str | None) -> bool:
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) or not found.st_mode & 0o111 or not found.st_size:
            return False
        return source is None or _same_machine(path, source)
    except OSError:
        return False


def _same_machine(path: str, source: str) -> bool:
    """False only where both are ELF files of different classes or processors; a script in its place is left alone."""
    ours, theirs = _head(source), _head(path)
    if not (ours.startswith(b"\x7fELF") and theirs.startswith(b"\x7fELF")):
        return True
    # e_ident[4] is the class (32 or 64 bit), bytes 18 and 19 are e_machine (elf.h).
    return ours[4] == theirs[4] and ours[18:20] == theirs[18:20]


def _head(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_ELF_HEADER).ljust(_ELF_HEADER, b"\0")


if __name__ == "__main__":
    sys.exit(main())
