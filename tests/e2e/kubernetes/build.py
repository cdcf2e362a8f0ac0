"""Builds kube-apiserver, kube-scheduler, kube-controller-manager, kubelet, kube-proxy, kubectl and etcd from Go modules.

`go install` can't: k8s.io/kubernetes requires its staging modules at v0.0.0. So a small module is made beside the cache,
with that go.mod's requirements and a replacement for each staging module. etcd comes from the same requirements: Debian's
is too old for the API server to stream lists (RequestWatchProgress), which a production cluster does. Binaries are kept
outside the repository, by version; a second call finds them and does nothing.

    python tests/e2e/kubernetes/build.py [FOLDER]     prints the folder that holds the binaries
    python tests/e2e/kubernetes/build.py --missing    builds nothing, prints what is not there
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VERSION = "1.34.4"
# What Kubernetes and etcd of that version are written in. Debian 12's own is older: it then fetches this one, as a module.
GO, TOOLCHAIN = (1, 24), "golang.org/toolchain@v0.0.1-go1.24.9"
KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
ETCD = "etcd"
PROGRAMS = (*KUBERNETES, ETCD)


def main() -> int:
    """Build what is missing and print where it is."""
    arguments = [each for each in sys.argv[1:] if each != "--missing"]
    folder = Path(arguments[0]) if arguments else default_folder()
    missing = [name for name in PROGRAMS if not (folder / name).is_file()]
    if "--missing" in sys.argv:
        sys.stdout.write(f"{' '.join(missing)}\n")
        return 0
    if missing:
        began = time.monotonic()
        sys.stderr.write(f"building Kubernetes {VERSION} ({', '.join(missing)}): about five minutes on two cores\n")
        build(folder, missing)
        sys.stderr.write(f"built in {time.monotonic() - began:.0f} s\n")
    sys.stdout.write(f"{folder}\n")
    return 0


def default_folder() -> Path:
    """Where binaries of this version are kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "tessera" / f"kubernetes-{VERSION}"


def build(folder: Path, names: list[str]) -> None:
    """Build programs into a folder, all or none."""
    minor = VERSION.split(".")[1]
    with tempfile.TemporaryDirectory(prefix="tessera-kubernetes-") as scratch:
        module = Path(scratch)
        go = find_go()
        upstream = Path(_download(f"k8s.io/kubernetes@v{VERSION}", "GoMod", go)).read_text()
        (module / "go.mod").write_text(_module(upstream))
        (module / "doc.go").write_text("// Package kubernetes only carries the requirements.\npackage kubernetes\n")
        out = module / "out"
        flags = " ".join(
            f"-X k8s.io/component-base/version.{key}={value}"
            for key, value in {
                "gitVersion": f"v{VERSION}",
                "gitMajor": "1",
                "gitMinor": minor,
                "gitTreeState": "clean",
            }.items()
        )
        build_one = [go, "build", "-mod=mod", "-trimpath", "-ldflags", f"-s -w {flags}", "-o"]
        commands = []
        # One call for all of Kubernetes: what they share is compiled and looked at once.
        if packages := [f"k8s.io/kubernetes/cmd/{name}" for name in KUBERNETES if name in names]:
            commands.append([*build_one, f"{out}/", *packages])
        if ETCD in names:
            commands.append([*build_one, f"{out}/{ETCD}", "go.etcd.io/etcd/server/v3"])
        for command in commands:
            subprocess.run(
                command, cwd=module, env={**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}, check=True
            )
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            partial = folder / f".{name}.partial"
            partial.write_bytes((out / name).read_bytes())
            partial.chmod(0o755)
            partial.rename(folder / name)


def find_go() -> str:
    """Return a Go that is new enough: the one that is there, or one that it downloads.

    Raises:
        RuntimeError: there is no Go at all.
    """
    found = shutil.which("go")
    if found is None:
        message = "Go is missing (Debian: apt-get install golang-go; any version can fetch the one that is needed)"
        raise RuntimeError(message)
    said = subprocess.run([found, "version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"go(\d+)\.(\d+)", said)
    if version and (int(version[1]), int(version[2])) >= GO:
        return found
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    folder = Path(_download(f"{TOOLCHAIN}.linux-{machine}", "Dir", found))
    # An old Go unpacks a toolchain as it does any module: without the right to run anything.
    for program in (*folder.glob("bin/*"), *folder.glob("pkg/tool/*/*")):
        program.chmod(0o755)
    return str(folder / "bin" / "go")


def _download(module: str, what: str, go: str) -> str:
    # Outside any module, and with that very Go: a go.mod that is about could ask for another.
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod"}
    command = [go, "mod", "download", "-json", module]
    with tempfile.TemporaryDirectory() as nowhere:
        done = subprocess.run(command, cwd=nowhere, env=environment, capture_output=True, text=True, check=False)
    try:
        found: str = json.loads(done.stdout)[what]
    except (ValueError, KeyError) as error:
        message = f"{' '.join(command)}: {done.stdout}{done.stderr}"
        raise RuntimeError(message) from error
    return found


def _module(upstream: str) -> str:
    """Our go.mod: upstream's go version, settings and requirements, with each staging module at its release."""
    staging_version = f"v0.{VERSION.split('.', 1)[1]}"
    lines = ["module tessera.dev/kubernetes", ""]
    staging: list[str] = []
    keep = False
    for line in upstream.splitlines():
        if line.startswith(("module ", "replace ")):
            continue
        if re.match(r"(require|godebug) \(", line):
            keep = True
        if keep or line.startswith(("go ", "godebug ", "require ", "toolchain ")):
            found = re.match(r"\s*(?:require )?(k8s\.io/\S+) v0\.0\.0(?!\S)", line)
            if found:
                staging.append(found.group(1))
            lines.append(line.replace(" v0.0.0", f" {staging_version}") if found else line)
        if line == ")":
            keep = False
    lines += ["", f"require k8s.io/kubernetes v{VERSION}", ""]
    lines += [f"replace {name} => {name} {staging_version}" for name in sorted(set(staging))]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
