"""Processes that outlive the program that started them, and are only ever signalled if they are certainly ours.

A component may be started by one program (`run.py --keep`), restarted by a test and stopped by a third program. So a
process is known by number and start time, and a pidfd holds on to it while it is checked and signalled.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from cluster.errors import ClusterError
from cluster.record import Record, Started

MARKER = "TESSERA_E2E"
POLL = 0.05

T = TypeVar("T")


def until(what: str, check: Callable[[], T], *, seconds: float) -> T:
    """Call `check` until it gives something true, and return that.

    Programs that aren't ours announce nothing, so this asks again every 50 ms.

    Raises:
        ClusterError: the time is over.
    """
    end = time.monotonic() + seconds
    while not (found := check()):
        if time.monotonic() > end:
            raise ClusterError(f"{what}: not after {seconds:g} s")
        select.select([], [], [], POLL)
    return found


class Processes:
    """Starts and stops the processes of one record."""

    def __init__(self, record: Record, logs: Path) -> None:
        """Start nothing yet.

        Args:
            record: where what is started is written down.
            logs: folder of the logs; each process appends to NAME.log.
        """
        self._record = record
        self._logs = logs

    def start(self, name: str, command: Iterable[str], environment: Mapping[str, str] | None = None) -> Started:
        """Start a program in a session of its own, with a log of its own.

        Raises:
            ClusterError: a process of this name runs already.
        """
        before = self._record.processes.get(name)
        if before is not None and alive(before):
            raise ClusterError(f"{name} runs already (process {before.pid})")
        argv = [str(each) for each in command]
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self.log(name)
        with log.open("a") as file:
            file.write(f"--- {time.strftime('%H:%M:%S')} {' '.join(argv)}\n")
            file.flush()
            pid = os.posix_spawnp(
                argv[0],
                argv,
                {**os.environ, **(environment or {}), MARKER: self._record.marker},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, file.fileno(), 1),
                    (os.POSIX_SPAWN_DUP2, file.fileno(), 2),
                ],
                setsid=True,
            )
        started = Started(pid=pid, start=start_time(pid) or 0, command=argv)
        self._record.processes[name] = started
        self._record.save()
        return started

    def log(self, name: str) -> Path:
        """Return where a process' log is."""
        return self._logs / f"{name}.log"

    def alive(self, name: str) -> bool:
        """Tell whether a process runs."""
        started = self._record.processes.get(name)
        return started is not None and alive(started)

    def pid(self, name: str) -> int:
        """Return the number of a process that was started."""
        return self._record.processes[name].pid

    def ready(self, name: str, check: Callable[[], bool], *, seconds: float = 30) -> None:
        """Wait until a process does its work.

        Raises:
            ClusterError: it has ended, or the time is over; with the end of its log.
        """

        def look() -> bool:
            if not self.alive(name):
                raise ClusterError(f"{name} has ended:\n{self.tail(name)}")
            return check()

        try:
            until(f"{name} is ready", look, seconds=seconds)
        except ClusterError as error:
            raise ClusterError(f"{error}\n{self.tail(name)}\n(all of it: {self.log(name)})") from error

    def tail(self, name: str, lines: int = 15) -> str:
        """Return the end of a log."""
        try:
            return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return "(no log)"

    def said(self, name: str) -> str:
        """Return what a process has written since it was started last."""
        return self.log(name).read_text(errors="replace").rpartition("\n--- ")[2]

    def send(self, name: str, number: signal.Signals) -> bool:
        """Send a signal to a process if it still runs; tell whether it did."""
        started = self._record.processes.get(name)
        return started is not None and send(started, number)

    def stop(self, *names: str, seconds: float = 10) -> None:
        """End processes by SIGTERM together, and by SIGKILL those that are there after the time."""
        found = [self._record.processes[name] for name in names if name in self._record.processes]
        for each in found:
            send(each, signal.SIGTERM)
        end = time.monotonic() + seconds
        for each in found:
            if not ended(each, max(0.0, end - time.monotonic())):
                send(each, signal.SIGKILL)
                ended(each, 5)
        for name in names:
            self._record.processes.pop(name, None)
        self._record.save()

    def kill(self, name: str) -> None:
        """End a process by SIGKILL, as a crash would."""
        self.send(name, signal.SIGKILL)
        if name in self._record.processes:
            ended(self._record.processes[name], 5)

    def with_argument(self, argument: str) -> list[Started]:
        """Return those of our processes, children's children too, that were started with an argument."""
        found = []
        for each in marked(self._record.marker):
            try:
                arguments = Path(f"/proc/{each.pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if argument.encode() in arguments:
                found.append(each)
        return found

    def names(self) -> list[str]:
        """Return the names of what was started and not stopped."""
        return list(self._record.processes)


def start_time(pid: int) -> int | None:
    """Return a process' start time in ticks since boot, None where there is none."""
    try:
        # The name, in brackets, may hold blanks and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[19])


def alive(process: Started) -> bool:
    """Tell whether this very process runs."""
    return not ended(process, 0)


def send(process: Started, number: signal.Signals) -> bool:
    """Signal this very process, never one that got its number; tell whether it was there."""
    with _held(process) as holder:
        if holder is None:
            return False
        try:
            signal.pidfd_send_signal(holder, number)
        except ProcessLookupError:
            return False
    return True


def ended(process: Started, seconds: float) -> bool:
    """Wait for the end of a process, all its threads; tell whether it came."""
    with _held(process) as holder:
        if holder is None:
            return True
        poll = select.poll()
        poll.register(holder, select.POLLIN)
        if not poll.poll(seconds * 1000):
            return False
    try:
        os.waitpid(process.pid, os.WNOHANG)
    except ChildProcessError:
        # Another program started it, and that one or the machine's first process reaps it.
        return True
    return True


@contextmanager
def _held(process: Started) -> Iterator[int | None]:
    """Hold on to this very process while it is looked at; None where its number is free or another's."""
    try:
        holder = os.pidfd_open(process.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield holder if start_time(process.pid) == process.start else None
    finally:
        os.close(holder)


def marked(marker: str) -> list[Started]:
    """Return every process that has our marker in its environment: children of our children (containerd's shims)."""
    wanted = f"{MARKER}={marker}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        start = start_time(int(entry.name))
        if wanted in environment and start is not None:
            found.append(Started(pid=int(entry.name), start=start))
    return found
