"""Carries out a Dockerfile's stages, each in a folder of its own, and keeps the folders.

A stage's folder is named by everything that went into it (the base, the steps, the content of what is copied), so a second
build finds what has not changed. What no build of this version uses any more is removed by `Workshop.tidy`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from images import rootfs
from images.archive import Layer, difference, layer_of_tar, layer_of_tree
from images.dockerfile import Copy, Run, Stage
from images.errors import ImageError

_KEY: Final = 24
FORM: Final = "2"
"""Of what this module makes; another one makes everything anew."""
IGNORED: Final = ("__pycache__",)
"""Never copied from the repository; .dockerignore says the same to engines."""


class Workshop:
    """Builds in a folder that is kept."""

    def __init__(self, home: Path, source: Path, *, epoch: int, now: int, say: Callable[[str], object]) -> None:
        """Build nothing yet.

        Args:
            home: where bases, stages and caches are kept.
            source: the repository.
            epoch: seconds since 1970; nothing that is added to a base is younger.
            now: the same, for a base that has to be made: its packages' files keep their dates, by which Python knows
                that its byte code is theirs.
            say: tells people what is being done.
        """
        self._home = home
        self._source = source
        self._epoch = epoch
        self._now = now
        self._say = say
        self._used: set[Path] = set()
        for name in ("base", "stages", "layers", "caches"):
            (home / name).mkdir(parents=True, exist_ok=True)

    def layers(self, stages: tuple[Stage, ...]) -> tuple[Layer, Layer]:
        """Build the stages and return the last one as two layers: the base, and what was added to it."""
        base_key, base, base_layer = self._base()
        built: dict[str, tuple[str, Path]] = {"": (base_key, base)}
        key = root = None
        for stage in stages:
            key, root = self._stage(stage, built)
            if stage.name:
                built[stage.name] = (key, root)
        if key is None or root is None:
            raise ImageError("a Dockerfile without a stage makes no image")
        return base_layer, self._layer(f"{key}.tar.gz", lambda path: self._added(root, base, path))

    def tidy(self) -> None:
        """Remove what this build didn't use."""
        for folder in ("base", "stages", "layers"):
            for path in (self._home / folder).iterdir():
                if path not in self._used:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _base(self) -> tuple[str, Path, Layer]:
        key = base_key()
        tar, tree = self._home / "base" / f"{key}.tar", self._home / "base" / key
        if not tar.exists():
            self._say("the base: a small Debian with Python (once)")
            # What was made of an earlier one of this recipe is of other packages.
            shutil.rmtree(tree, ignore_errors=True)
            (self._home / "layers" / f"{key}.tar.sha256").unlink(missing_ok=True)
            rootfs.make_base(tar, epoch=self._now)
        self._folder(tree, lambda path: rootfs.unpack(tar, path))
        self._used |= {tar, tree}
        layer = self._layer(f"{key}.tar.gz", lambda path: layer_of_tar(tar, path))
        return layer.digest, tree, layer

    def _stage(self, stage: Stage, built: dict[str, tuple[str, Path]]) -> tuple[str, Path]:
        base_key, base = built[stage.base]
        key = _digest(
            FORM, str(self._epoch), base_key, *(part for step in stage.steps for part in self._identity(step, built))
        )
        tree = self._home / "stages" / key

        def build(path: Path) -> None:
            rootfs.duplicate(base, path)
            for step in stage.steps:
                self._say(f"{stage.name or 'the image'}: {_title(step)}")
                if isinstance(step, Run):
                    self._run(step, path)
                else:
                    self._copy(step, path, built)

        self._folder(tree, build)
        self._used.add(tree)
        return key, tree

    def _identity(self, step: Run | Copy, built: dict[str, tuple[str, Path]]) -> Iterator[str]:
        yield repr(step)
        if isinstance(step, Copy):
            if step.stage:
                yield built[step.stage][0]
            else:
                for name in step.sources:
                    yield _content(self._source / name)

    def _run(self, step: Run, root: Path) -> None:
        caches = {inside: self._home / "caches" / _digest(inside) for inside in step.caches}
        for path in caches.values():
            path.mkdir(exist_ok=True)
        environment = {"SOURCE_DATE_EPOCH": str(self._epoch)}
        rootfs.run(root, ["/bin/sh", "-c", step.command], caches=caches, environment=environment)

    def _copy(self, step: Copy, root: Path, built: dict[str, tuple[str, Path]]) -> None:
        origin = built[step.stage][1] if step.stage else self._source
        for name in step.sources:
            source, target = origin / name.lstrip("/"), root / step.target.lstrip("/")
            if not source.exists():
                raise ImageError(f"COPY {name}: no such file in {step.stage or 'the repository'}")
            if source.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                ignore = None if step.stage else shutil.ignore_patterns(*IGNORED)
                shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True, ignore=ignore)
            else:
                target = target / source.name if step.target.endswith("/") else target
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)

    def _added(self, root: Path, base: Path, path: Path) -> Layer:
        changed, gone = difference(root, base)
        return layer_of_tree(root, path, members=changed, gone=gone, epoch=self._epoch)

    def _layer(self, name: str, make: Callable[[Path], Layer]) -> Layer:
        path = self._home / "layers" / name
        note = path.with_suffix(".sha256")
        self._used |= {path, note}
        if path.exists() and note.exists():
            return Layer(path, note.read_text(encoding="ascii"))
        self._say("packing a layer")
        layer = make(path)
        note.write_text(layer.digest, encoding="ascii")
        return layer

    def _folder(self, path: Path, fill: Callable[[Path], None]) -> None:
        """Fill a folder, all or nothing."""
        if path.exists():
            return
        partial = path.with_name(f".{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o755)
        fill(partial)
        partial.rename(path)


def base_key() -> str:
    """Names the base by its recipe; what comes of it depends on the day's packages too."""
    return _digest(*rootfs.RECIPE)


def _title(step: Run | Copy) -> str:
    text = step.command if isinstance(step, Run) else f"{' '.join(step.sources)} -> {step.target}"
    return text if len(text) <= 90 else f"{text[:87]}..."


def _digest(*parts: str) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part.encode())
    return found.hexdigest()[:_KEY]


def _content(path: Path) -> str:
    """One text for everything in a file or folder: names, modes and contents."""
    found = hashlib.sha256()
    for each in [path, *sorted(path.rglob("*"))]:
        if each.is_file() and not any(part in IGNORED for part in each.parts):
            mode = os.stat(each).st_mode & 0o111
            found.update(f"{each.relative_to(path)}\0{mode}\0{each.stat().st_size}\0".encode() + each.read_bytes())
    return found.hexdigest()
