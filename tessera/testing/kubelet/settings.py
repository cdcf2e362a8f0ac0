"""What can be set on a fake kubelet, with a real one's values as defaults."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from tessera.testing.kubelet import checkpoint
from tessera.testing.kubelet.errors import KubeletError

LONGEST_SOCKET_PATH: Final = 107
"""sun_path holds 108 bytes with the closing zero; a longer path fails in bind with a message that names nothing."""
MOST_MESSAGE_BYTES: Final = 4 * 1024 * 1024
"""grpc-go's default for what a client receives; the kubelet leaves it as it is, so a larger ListAndWatch ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the kubelet behaves.

    Attributes:
        node: its node's name.
        seed: seeds every choice that the real one leaves to Go's random map order.
        startup_delay: seconds from the new registration socket to the admission of the pods found at a restart. A real
            1.34 took 0.9 s: a plugin that registers later sees those pods fail.
        retry_interval: seconds between two tries to start a container; None waits for `FakeKubelet.retry`.
        dial_timeout: seconds that the kubelet tries to reach a plugin that registers (client.go: 10 s).
        prestart_timeout: seconds that PreStartContainer may take (constants.go: 30 s).
        stop_grace: seconds after which a plugin that stays away is forgotten with its capacity (types.go: 5 min).
        list_rate: PodResources calls a second, over all clients.
        list_burst: PodResources calls at once.
        first_pid: number of the first process in a container.
    """

    node: str = "node"
    seed: int = 0
    startup_delay: float = 0.9
    retry_interval: float | None = 2.0
    dial_timeout: float = 10.0
    prestart_timeout: float = 30.0
    stop_grace: float = 300.0
    list_rate: float = 100.0
    list_burst: int = 10
    first_pid: int = 100_000


@dataclass(slots=True, kw_only=True)
class Faults:
    """Switches for behaviour that a real kubelet shows by bad luck; they can be turned at any time.

    Attributes:
        lose_reservations: while an Allocate is in flight, rebuild the set of allocated IDs from what is recorded, as a
            PodResources List or an eviction does in the real one when a finished pod waits to be purged. The IDs in
            flight count as free afterwards and are handed out again (kubernetes PR 137534).
    """

    lose_reservations: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything of the outside that isn't a socket or a file.

    Attributes:
        monotonic: seconds, for the rate limit and grace periods.
        now: UTC, for times in statuses.
        sleep: waits that many seconds.
    """

    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    def timestamp(self) -> str:
        """The time as Kubernetes writes it."""
        return self.now().strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class Paths:
    """The kubelet's directory, laid out as the real one's: give `root` to a node agent as its kubelet directory."""

    root: str

    @property
    def plugins(self) -> str:
        return os.path.join(self.root, "device-plugins")

    @property
    def registration(self) -> str:
        return os.path.join(self.plugins, "kubelet.sock")

    @property
    def checkpoint(self) -> str:
        return os.path.join(self.plugins, checkpoint.FILE_NAME)

    @property
    def pod_resources(self) -> str:
        return os.path.join(self.root, "pod-resources", "kubelet.sock")

    @property
    def containers(self) -> str:
        """Not a real one's: what each container was started with, one JSON file each (see `containers`)."""
        return os.path.join(self.root, "containers")

    @property
    def proc(self) -> str:
        """Not a real one's: the little of /proc that tells which container a process belongs to."""
        return os.path.join(self.root, "proc")

    def make(self) -> None:
        """Create the folders.

        Raises:
            KubeletError: a socket's path would be longer than the system takes.
        """
        for path in (self.registration, self.pod_resources):
            # One more for the dot of the name under which it is bound first (see `sockets`).
            length = len(os.fsencode(path)) + 1
            if length > LONGEST_SOCKET_PATH:
                raise KubeletError(
                    f"{path} makes a socket path of {length} bytes; the system takes {LONGEST_SOCKET_PATH}: "
                    "choose a shorter directory"
                )
        for folder in (self.plugins, os.path.dirname(self.pod_resources), self.containers, self.proc):
            os.makedirs(folder, mode=0o750, exist_ok=True)
