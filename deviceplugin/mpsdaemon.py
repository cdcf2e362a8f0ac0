"""The node's MPS control daemon: found or started, told its defaults, watched, started again.

Off unless a folder is named for it. An agent that starts asks first whether a daemon answers in that folder, and takes it
over: it may be one that an earlier agent started, one of a DaemonSet of its own, or one of the host's. That matters because
with the daemon every CUDA context of its clients ends. So nothing here ever ends it, not even when it hangs: as long as it
doesn't answer no guarantee is claimed, and people are told.

Everything goes through the program itself (`nvidia-cuda-mps-control`, with a command at standard input): NVIDIA documents
no other way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
from collections.abc import Callable, Mapping
from typing import Final, NoReturn

from deviceplugin.errors import MpsError
from deviceplugin.isolation.mps import SHM
from deviceplugin.processes import PROC
from tessera.kube.clock import Clock

_log = logging.getLogger(__name__)

PROGRAM: Final = "nvidia-cuda-mps-control"
PID_FILE: Final = "nvidia-cuda-mps-control.pid"
ASK_WITHIN: Final = 5.0
LOOK_EVERY: Final = 5.0
READY_WITHIN: Final = 5.0
"""Seconds from the start of a daemon to its first answer."""
FIRST_WAIT: Final = 1.0
LONGEST_WAIT: Final = 60.0
_POLL: Final = 0.1
_LONGEST: Final = 64 * 1024
_MOST_SERVERS: Final = 64


class MpsDaemon:
    """One folder's daemon."""

    def __init__(
        self,
        folder: str,
        program: str,
        *,
        clock: Clock,
        environ: Mapping[str, str],
        shm: str = SHM,
        proc: str = PROC,
    ) -> None:
        """Look at nothing yet.

        Args:
            folder: holds the daemon's pipes, its log and what it shares with its clients; the same path on the host.
            program: nvidia-cuda-mps-control; a name is looked for in PATH.
            clock: paces.
            environ: what the program is started with, beside its folders.
            shm: where our own /dev/shm is.
            proc: where processes are looked at.
        """
        self.pipes = os.path.join(folder, "pipe")
        self.shared = os.path.join(folder, "shm")
        self._log_folder = os.path.join(folder, "log")
        self._program = program
        self._clock = clock
        self._shm = shm
        self._proc = proc
        self._environ = {
            **environ,
            "CUDA_MPS_PIPE_DIRECTORY": self.pipes,
            "CUDA_MPS_LOG_DIRECTORY": self._log_folder,
        }
        self._subscribers: list[Callable[[], None]] = []
        self._lost: list[Callable[[], None]] = []
        self.problem: str | None = "the MPS daemon has not been asked yet"
        """Why no guarantee rests on it, None while it answers."""
        self.servers: frozenset[int] = frozenset()
        """Its servers' processes; what they hold on the GPUs is nobody's slice and no foreign use."""
        self.starts = 0

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call back when `problem` has come or gone."""
        self._subscribers.append(callback)

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call back when it is proven that a daemon that answered has ended, and its clients' contexts with it."""
        self._lost.append(callback)

    async def look(self) -> bool:
        """Whether a daemon answers; sets `problem`."""
        reason = await self._silence()
        self._become(reason)
        return reason is None

    async def run(self, limits: Callable[[], Mapping[int, int]]) -> NoReturn:
        """Keep a daemon running until cancelled; it outlives us.

        Args:
            limits: by NVML's index, the bytes that all slices of a GPU may come to: no client may have more.
        """
        wait = FIRST_WAIT
        doubt = False
        while True:
            try:
                self._make_folders()
                if await self._silence() is None:
                    pid = self._pid()
                else:
                    pid = await self._start()
                    if doubt:
                        # Another could start only because the one that had answered is gone.
                        self._tell_lost()
                doubt = False
                for index, size in sorted(limits().items()):
                    await self._ask(f"set_default_device_pinned_mem_limit {index} {size >> 20}M")
                self._become(None)
                wait = FIRST_WAIT
                if await self._watch(pid):
                    self._tell_lost()
                else:
                    doubt = True
            except MpsError as error:
                self._become(str(error))
            await self._clock.sleep(wait)
            wait = min(LONGEST_WAIT, 2 * wait)

    # The daemon.

    def _tell_lost(self) -> None:
        self._become("the MPS daemon has ended, and with it what its clients had on the GPUs; it is started again")
        for callback in self._lost:
            callback()

    async def _silence(self) -> str | None:
        """Why no daemon answers, None where one does."""
        reason = self._unfit()
        if reason is not None:
            return reason
        try:
            await self._ask("get_default_active_thread_percentage")
            printed = (await self._ask("get_server_list")).split()[:_MOST_SERVERS]
        except MpsError as error:
            return str(error)
        numbers = (int(word) for word in printed if word.isascii() and word.isdecimal() and len(word) < 10)
        # A daemon in another PID namespace counts otherwise than we do. What can't be told now is as it was.
        states = {number: self._is_mps(number) for number in numbers}
        self.servers = frozenset(n for n, state in states.items() if state or (state is None and n in self.servers))
        return None

    def _unfit(self) -> str | None:
        """Why no daemon could serve clients here."""
        try:
            ours, theirs = os.stat(self._shm), os.stat(self.shared)
        except OSError as error:
            return f"{error.filename}: {error.strerror}; clients and MPS server share it"
        if (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino):
            return (
                f"{self._shm} is not {self.shared}, which clients share with the MPS server: mount the one at the other"
            )
        return None

    def _make_folders(self) -> None:
        try:
            for folder, mode in ((self.pipes, 0o755), (self._log_folder, 0o755), (self.shared, 0o1777)):
                os.makedirs(folder, exist_ok=True)
                found = stat.S_IMODE(os.stat(folder).st_mode)
                if found & mode != mode:
                    # Clients of any user have to get in, whoever made it and whatever our umask is.
                    os.chmod(folder, found | mode)
        except OSError as error:
            raise MpsError(f"{error.filename} can't be made for the MPS daemon: {error.strerror}") from error

    async def _start(self) -> int:
        reason = self._unfit()
        if reason is not None:
            raise MpsError(reason)
        number = self._number()
        match self._is_mps(number) if number else False:
            case True:
                raise MpsError(
                    f"the MPS daemon ({number}) runs and does not answer; its clients may go on, so it is left alone"
                )
            case None:
                raise MpsError(
                    f"whether the MPS daemon ({number}) still runs can't be told, as {self._proc}/{number} can't be read; "
                    "it does not answer, and no other is started beside it"
                )
        try:
            pid = await asyncio.to_thread(_spawn, self._program, self._environ)
        except OSError as error:
            raise MpsError(f"{self._program} can't be started: {error.strerror}") from error
        self.starts += 1
        _log.info("MPS daemon started (%d)", pid)
        end = self._clock.monotonic() + READY_WITHIN
        while (silence := await self._silence()) is not None:
            if _ended(pid):
                raise MpsError(f"{self._program} -f -M ended at once; see {self._log_folder}/control.log")
            if self._clock.monotonic() >= end:
                raise MpsError(f"the MPS daemon ({pid}) does not answer: {silence}")
            await self._clock.sleep(_POLL)
        return pid

    def _pid(self) -> int:
        """Of a daemon that somebody has started; 0 where that can't be told, as from another PID namespace."""
        number = self._number()
        return number if number and self._is_mps(number) else 0

    def _number(self) -> int:
        """What stands in the daemon's file, which may be of long ago; 0 where nothing does."""
        try:
            # Clients that an older agent let in can write here: a FIFO or a link in its place must stop nobody.
            file = os.open(
                os.path.join(self.pipes, PID_FILE), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            )
            try:
                pid = int(os.read(file, 32)) if stat.S_ISREG(os.fstat(file).st_mode) else 0
            finally:
                os.close(file)
        except (OSError, ValueError):
            return 0
        return max(0, pid)

    def _is_mps(self, pid: int) -> bool | None:
        """Whether a process is of MPS; None where that can't be told: only a process that isn't there is proven gone."""
        try:
            with open(os.path.join(self._proc, str(pid), "cmdline"), "rb") as file:
                return b"nvidia-cuda-mps" in file.read(_LONGEST)
        except (FileNotFoundError, ProcessLookupError):
            return False
        except OSError:
            return None

    async def _watch(self, pid: int) -> bool:
        """Return when the daemon has ended; one that hangs is only told of.

        Returns:
            Whether its end is proven. Without a handle on its process we return when it doesn't answer, which proves nothing.
        """
        with contextlib.ExitStack() as stack:
            ended = asyncio.Event()
            process = -1
            if pid:
                try:
                    process = os.pidfd_open(pid)
                except ProcessLookupError:
                    return True
                except OSError as error:
                    _log.warning("the MPS daemon (%d) can't be watched by its process: %s", pid, error.strerror)
            if process >= 0:
                stack.callback(os.close, process)
                loop = asyncio.get_running_loop()
                loop.add_reader(process, ended.set)
                stack.callback(loop.remove_reader, process)
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY):
                        await ended.wait()
                if ended.is_set():
                    _ended(pid)
                    return True
                if not await self.look() and process < 0:
                    return False

    async def _ask(self, command: str) -> str:
        """One command's answer.

        Raises:
            MpsError: no daemon, or it doesn't answer.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                self._program,
                env=self._environ,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        except OSError as error:
            raise MpsError(f"{self._program} can't be run: {error.strerror}") from error
        try:
            async with asyncio.timeout(ASK_WITHIN):
                printed = await _converse(process, f"{command}\n".encode())
        except TimeoutError as error:
            raise MpsError(f"the MPS daemon did not answer {command!r} within {ASK_WITHIN:g} s") from error
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        text = " ".join(printed.decode("utf-8", "replace").split())
        if process.returncode:
            raise MpsError(f"the MPS daemon refuses {command!r}: {text[:200] or 'no reason given'}")
        return text

    def _become(self, problem: str | None) -> None:
        if problem == self.problem:
            return
        if problem is None:
            _log.info("the MPS daemon at %s answers", self.pipes)
        else:
            _log.warning("no MPS: %s", problem)
        self.problem = problem
        for callback in self._subscribers:
            callback()


async def _converse(process: asyncio.subprocess.Process, said: bytes) -> bytes:
    """What a program answers to its standard input, once it has ended.

    Raises:
        MpsError: it says more than is ever said; clients can put something of their own in the daemon's place.
    """
    if process.stdin is None or process.stdout is None:
        return b""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(said)
        await process.stdin.drain()
    process.stdin.close()
    printed = b""
    while more := await process.stdout.read(_LONGEST):
        printed += more
        if len(printed) > _LONGEST:
            raise MpsError(f"the MPS daemon answers with more than {_LONGEST} bytes")
    await process.wait()
    return printed


def _spawn(program: str, environ: Mapping[str, str]) -> int:
    """Start a daemon for clients of all users (-M) that outlives us: asyncio's transports end theirs with the loop."""
    with open(os.devnull, "r+b") as nothing:
        actions = [(os.POSIX_SPAWN_DUP2, nothing.fileno(), number) for number in (0, 1, 2)]
        return os.posix_spawnp(program, [PROGRAM, "-f", "-M"], environ, file_actions=actions, setsid=True)


def _ended(pid: int) -> bool:
    """Whether a process of ours has ended; takes its exit status, so that it doesn't stay as a zombie."""
    try:
        return os.waitpid(pid, os.WNOHANG) != (0, 0)
    except ChildProcessError:
        return False
