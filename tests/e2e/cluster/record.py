"""What a cluster started and changed on its machine, written down before it is done.

A run that was killed leaves this file; the next one undoes exactly what is in it, and nothing else.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Started:
    """A process of ours: its number may be given again, its number with its start time may not.

    Attributes:
        pid: process number.
        start: start time in clock ticks since boot, as in /proc/PID/stat.
        command: program and arguments, for whoever reads the record.
    """

    pid: int
    start: int
    command: list[str] = field(default_factory=list)


@dataclass
class Record:
    """The record of one cluster, kept in one file.

    Attributes:
        path: the file.
        boot: the boot in which this was written; processes, mounts and interfaces of another boot are gone.
        marker: value of TESSERA_E2E in the environment of everything that was started.
        processes: by name.
        mounts: mount points below which everything is to be unmounted.
        links: network interfaces that were made.
        sysctls: path below /proc/sys -> content before.
        folders: folders that weren't there before.
        cgroups: cgroups that were made, as names below a controller's root.
    """

    path: Path
    boot: str = ""
    marker: str = ""
    processes: dict[str, Started] = field(default_factory=dict)
    mounts: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    sysctls: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    cgroups: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> Record | None:
        """Return what a file says, None where there is none.

        A record of an earlier boot keeps its folders only: the rest ended with that boot.
        """
        try:
            found = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        # Another version of this program may have written it.
        record = cls(path=path, **{key: value for key, value in found.items() if key in cls.__dataclass_fields__})
        record.processes = {
            name: Started(pid=each["pid"], start=each["start"], command=each.get("command", []))
            for name, each in found["processes"].items()
        }
        if record.boot != boot_id():
            record = cls(path=path, boot=boot_id(), marker=record.marker, folders=record.folders)
        return record

    def save(self) -> None:
        """Write the file, wholly or not at all."""
        content = asdict(self)
        del content["path"]
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1))
        partial.replace(self.path)

    def note(self, kind: str, value: str) -> None:
        """Add to one of the lists, and save."""
        found: list[str] = getattr(self, kind)
        if value not in found:
            found.append(value)
            self.save()


def boot_id() -> str:
    """Return the kernel's name of this boot."""
    return BOOT_ID.read_text().strip()
