"""The base image's stand-in, a small Debian made by its own package tools, and running a command in a tree of files.

Nothing is mounted where it could be left behind: a command gets its /proc, /dev and caches in a mount namespace of its own,
which ends with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from images.errors import ImageError

SUITE: Final = "bookworm"
"""Debian 12, whose Python is 3.11 and whose glibc every manylinux wheel of ours takes."""
PACKAGES: Final = ("libstdc++6", "python3", "python3-venv", "usr-is-merged")
MAKER: Final = "mmdebstrap"
_UNNEEDED: Final = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
)
_TIDY: Final = "chroot \"$1\" apt-get -qq -y purge usrmerge perl '^perl-modules-' '^libperl5' '^lib.*-perl$' '^libgdbm'"
"""What merged /usr once is of no more use, and it brings all of Perl."""
RECIPE: Final = (SUITE, *PACKAGES, *_UNNEEDED, _TIDY)
"""All that decides what is in the base; another recipe is another base."""

# What a build may need to reach package registries the way this machine does, as an engine hands on its proxy settings.
_HANDED_ON: Final = (
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_DEFAULT_TIMEOUT", "PIP_RETRIES",
)  # fmt: skip
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CERTIFICATES: Final = "/etc/ssl/certs/ca-certificates.crt"
_RESOLVER: Final = "/etc/resolv.conf"
_TAIL: Final = 4000
_APART: Final = ("unshare", "--mount", "--pid", "--fork", "--propagation=private")
# $1 is the root; then pairs of what is mounted where, up to "--"; then the command.
_ENTER: Final = """
set -e
umask 022
root=$1; shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
while [ "$1" != -- ]; do mount --bind "$1" "$root$2"; shift 2; done
shift
exec chroot "$root" "$@"
"""


def check() -> None:
    """Refuse a machine on which no image can be built.

    Raises:
        ImageError: with what is missing.
    """
    if os.geteuid() != 0:
        raise ImageError("building an image without an engine needs root: a root file system has root's files")


def make_base(tar: Path, *, epoch: int) -> None:
    """Make a small Debian with Python as a tar; the same packages give the same bytes.

    Args:
        tar: where.
        epoch: seconds since 1970; no file's date is later.

    Raises:
        ImageError: the tool is missing and can't be installed, or it failed.
    """
    if shutil.which(MAKER) is None:
        _install(MAKER)
    partial = tar.with_name(f".{tar.name}.partial.tar")
    command = [MAKER, "--quiet", "--variant=apt", f"--include={','.join(PACKAGES)}"]
    command += [f"--dpkgopt={option}" for option in _UNNEEDED]
    command += [f"--customize-hook={_TIDY}", SUITE, str(partial)]
    _checked(command, {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)})
    partial.replace(tar)


def unpack(tar: Path, folder: Path) -> None:
    """Unpack a tar with its owners, modes and dates."""
    _checked(["tar", "--extract", "--numeric-owner", "--same-permissions", f"--file={tar}", f"--directory={folder}"])


def duplicate(source: Path, target: Path) -> None:
    """Copy a tree with everything that it has."""
    _checked(["cp", "--archive", "--reflink=auto", f"{source}/.", str(target)])


def run(root: Path, command: Sequence[str], *, caches: Mapping[str, Path], environment: Mapping[str, str]) -> None:
    """Run a command with a folder as its root.

    Args:
        root: the folder.
        command: program and arguments.
        caches: folders of this machine by where the command sees them.
        environment: beside what it needs to reach package registries.

    Raises:
        ImageError: it failed; the message has the end of what it said.
    """
    binds: list[str] = []
    for inside, outside in {**{where: str(path) for where, path in caches.items()}, **_network(root)}.items():
        binds += [outside, inside]
    for inside in caches:
        (root / inside.lstrip("/")).mkdir(parents=True, exist_ok=True)
    handed = {name: os.environ[name] for name in _HANDED_ON if name in os.environ}
    _checked(
        [*_APART, "/bin/sh", "-c", _ENTER, "enter", str(root), *binds, "--", *command],
        {
            "PATH": _PATH,
            "HOME": "/root",
            "LC_ALL": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
            **handed,
            **environment,
        },
    )


def _network(root: Path) -> dict[str, str]:
    """How this machine finds names and whom it trusts; only where the tree has such files to mount them on."""
    return {path: path for path in (_RESOLVER, _CERTIFICATES) if os.path.isfile(path) and (root / path[1:]).is_file()}


def _install(package: str) -> None:
    if shutil.which("apt-get") is None:
        raise ImageError(f"{package} is missing, and this machine has no apt-get to install it with")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    _checked(["apt-get", "update", "-qq"], environment)
    _checked(["apt-get", "install", "-y", "-qq", "--no-install-recommends", package], environment)


def _checked(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        raise ImageError(f"{' '.join(command)[:_TAIL]}\nended with code {done.returncode}:\n{done.stdout[-_TAIL:]}")
