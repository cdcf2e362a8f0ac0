"""What the machine itself has to offer: root, Debian's packages, and Kubernetes' programs in the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import ClusterError, MachineError
from cluster.kernel import CGROUPS

BUILD = Path(__file__).resolve().parents[1] / "kubernetes" / "build.py"
CNI_PLUGINS = Path("/usr/lib/cni")
BUSYBOX = Path("/bin/busybox")

# What of a package is used -> the package.
NEEDED = {
    "/usr/bin/containerd": "containerd",
    "/usr/sbin/runc": "runc",
    f"{CNI_PLUGINS}/bridge": "containernetworking-plugins",
    "/usr/sbin/nft": "nftables",
    "/usr/bin/nsenter": "util-linux",
    "/usr/sbin/ip": "iproute2",
    str(BUSYBOX): "busybox-static",
    "/usr/bin/faketime": "faketime",
}

# A package asks this program before it starts a daemon; 101 forbids it.
POLICY = Path("/usr/sbin/policy-rc.d")
FORBID = "#!/bin/sh\nexit 101\n"


def check() -> None:
    """Refuse a machine on which a cluster can't run.

    Raises:
        MachineError: with what is missing.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        raise MachineError("a real cluster needs root on Linux: mounts, network namespaces, cgroups")
    tried = ["unshare", "--mount", "--net", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    done = subprocess.run(tried, capture_output=True, text=True, check=False)
    if done.returncode:
        why = done.stderr.strip()
        raise MachineError(f"a real cluster needs a root that may mount and make network namespaces, and here: {why}")
    if not os.access(CGROUPS, os.W_OK) or not any(CGROUPS.iterdir()):
        raise MachineError(f"a real cluster needs cgroups, and {CGROUPS} can't be written")


def install_packages() -> list[str]:
    """Install from Debian what is missing, without starting any of its daemons; return what was installed."""
    missing = sorted(
        {package for path, package in NEEDED.items() if not os.path.exists(path)} | _dynamic_busybox() | _go()
    )
    if not missing:
        return []
    if shutil.which("apt-get") is None:
        raise ClusterError(f"missing: {', '.join(missing)}; this machine has no apt-get to install them with")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with _no_daemons():
        _run(["apt-get", "update", "-qq"], environment)
        _run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], environment)
    return missing


def binaries() -> Path:
    """Return the folder of Kubernetes' programs, built now (minutes) where they aren't in the cache."""
    done = subprocess.run([sys.executable, str(BUILD)], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ClusterError("Kubernetes' programs can't be built; the reason is above")
    return Path(done.stdout.strip())


def _go() -> set[str]:
    """Go, where Kubernetes is still to be built."""
    done = subprocess.run([sys.executable, str(BUILD), "--missing"], capture_output=True, text=True, check=True)
    return {"golang-go"} if done.stdout.strip() and shutil.which("go") is None else set()


def _dynamic_busybox() -> set[str]:
    # The package busybox has the same path, and doesn't run in an image that holds nothing else.
    if not BUSYBOX.exists():
        return set()
    found = subprocess.run(["dpkg-query", "-S", str(BUSYBOX)], capture_output=True, text=True, check=False).stdout
    return set() if "busybox-static" in found else {"busybox-static"}


@contextmanager
def _no_daemons() -> Iterator[None]:
    before = (POLICY.read_bytes(), POLICY.stat().st_mode) if POLICY.exists() else None
    POLICY.write_text(FORBID)
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        if before is None:
            POLICY.unlink()
        else:
            POLICY.write_bytes(before[0])
            POLICY.chmod(before[1])


def _run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
