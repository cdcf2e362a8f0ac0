"""`make images`: the images of the webhook and the node agent, as archives, without an engine.

python -m images [--out DIR] [--import SOCKET] [webhook] [node]
"""

from __future__ import annotations

import argparse
import fcntl
import os
import platform
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from images import rootfs
from images.archive import ARCHITECTURES, write
from images.dockerfile import parse
from images.errors import ImageError
from images.stages import Workshop
from tessera.model.errors import TesseraError

SOURCE: Final = Path(__file__).resolve().parents[1]
IMAGES: Final = {"webhook": ("tessera-webhook", "Dockerfile.webhook"), "node": ("tessera-node", "Dockerfile.plugin")}
"""By what people call it here: the image's name, and its Dockerfile."""
MIB: Final = 1 << 20
EPOCH: Final = "SOURCE_DATE_EPOCH"


def main(arguments: list[str] | None = None) -> int:
    """Build what was asked for; 0 where all of it was built."""
    parser = argparse.ArgumentParser(prog="python -m images", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=SOURCE / "out" / "images", help="folder for the archives")
    parser.add_argument("--import", dest="socket", help="containerd's socket, to import them there for the kubelet")
    parser.add_argument("--tag", default=version(), help="of the images (default %(default)s)")
    parser.add_argument("images", nargs="*", default=[], metavar="IMAGE", help=f"{', '.join(IMAGES)}; none means all")
    options = parser.parse_args(arguments)
    if unknown := set(options.images) - set(IMAGES):
        parser.error(f"no such image: {', '.join(sorted(unknown))}; there are {', '.join(IMAGES)}")
    began = time.monotonic()
    os.umask(0o022)  # whoever runs the programs later has to be able to read them
    try:
        rootfs.check()
        for path in build(options.images or list(IMAGES), out=options.out, tag=options.tag, say=_saying(began)):
            sys.stdout.write(f"{time.monotonic() - began:7.1f} s  {path}: {path.stat().st_size / MIB:.1f} MiB\n")
            if options.socket:
                load(path, options.socket)
    except (TesseraError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def build(names: list[str], *, out: Path, tag: str, say: Callable[[str], object] = lambda _: None) -> list[Path]:
    """Build images and return their archives.

    Args:
        names: keys of `IMAGES`.
        out: folder for the archives; made where it is missing.
        tag: of the images.
        say: tells people what is being done.

    Raises:
        ImageError: a step failed.
    """
    architecture = ARCHITECTURES.get(platform.machine())
    if architecture is None:
        raise ImageError(f"no image for {platform.machine()}; there are {', '.join(ARCHITECTURES)}")
    out.mkdir(parents=True, exist_ok=True)
    home().mkdir(parents=True, exist_ok=True)
    with (home() / "lock").open("w", encoding="ascii") as lock:
        # Two builds at once would do the same work, each in the way of the other.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build(names, out=out, tag=tag, architecture=architecture, say=say)


def _build(names: list[str], *, out: Path, tag: str, architecture: str, say: Callable[[str], object]) -> list[Path]:
    at = epoch()
    now = at if EPOCH in os.environ else int(time.time())
    workshop = Workshop(home(), SOURCE, epoch=at, now=now, say=say)
    paths = []
    for each in names:
        name, dockerfile = IMAGES[each]
        stages = parse((SOURCE / dockerfile).read_text(encoding="utf-8"), name=dockerfile)
        layers = workshop.layers(stages)
        path = out / f"{name}.tar"
        config = stages[-1].config
        write(path, tags=[f"{name}:{tag}"], layers=layers, config=config, architecture=architecture, epoch=at)
        paths.append(path)
    if set(names) == set(IMAGES):
        workshop.tidy()
    return paths


def load(archive: Path, socket: str) -> None:
    """Import an archive into containerd, where the kubelet looks for images.

    Raises:
        ImageError: containerd refuses it.
    """
    command = ["ctr", "--address", socket, "--namespace", "k8s.io", "images", "import", str(archive)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(f"{' '.join(command)} failed: {done.stdout}{done.stderr}")


def version() -> str:
    """The project's version, which is the images' tag."""
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["version"])


def home() -> Path:
    """Where bases, stages and caches are kept, outside the repository."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "tessera" / "images"


def epoch() -> int:
    """The date of what is added to a base: $SOURCE_DATE_EPOCH, else that of the last change to the locks.

    Not that of the last commit: every commit would make another image of the same files.
    """
    if given := os.environ.get(EPOCH):
        if not (given.isascii() and given.isdigit()):
            raise ImageError(f"{EPOCH} is {given!r}; write whole seconds since 1970, such as 1700000000")
        return int(given)
    command = ["git", "-C", str(SOURCE), "log", "-1", "--format=%ct", "--", "locks"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip() else 1_700_000_000


def _saying(began: float) -> Callable[[str], None]:
    def say(text: str) -> None:
        sys.stdout.write(f"{time.monotonic() - began:7.1f} s  {text}\n")
        sys.stdout.flush()

    return say


if __name__ == "__main__":
    sys.exit(main())
