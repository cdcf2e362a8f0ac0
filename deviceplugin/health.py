"""Which GPUs are fit for new slices, and why the others aren't: events, recovery actions and failed calls, judged.

Pure: `advance` is one step of one GPU, `HealthTable` keeps all of them; the looks come from `deviceplugin.nvml.source`.

A GPU has one health, so all its slices go out together. ``sick`` GPUs come back by themselves: an XID that was transient
must not cost a card until somebody restarts the agent, as it does elsewhere (k8s-device-plugin issues 189, 426, 1974).
They come back when the driver recommends nothing and nothing has happened for `recover_after` seconds; meanwhile they are
``recovering``. Where the driver is too old to recommend anything, XIDs that only a reset can cure keep the GPU out until it
was reset (which shows as lost and found).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge

from deviceplugin.nvml.errors import Code, NvmlCallError
from deviceplugin.nvml.facts import GpuSample, RecoveryAction
from deviceplugin.nvml.source import Tick
from tessera.model.inventory import Health

_log = logging.getLogger(__name__)

APPLICATION_XIDS: Final = frozenset({13, 31, 43, 45, 68, 109})
"""Errors of the program that runs, not of the GPU (NVIDIA's XID catalogue; its own device plugin ignores the same)."""
RESET_XIDS: Final = frozenset({46, 48, 62, 64, 74, 79, 95, 119, 120, 140, 143})
"""Errors that only a reset or a reboot cures (same catalogue); believed only where the driver itself doesn't say."""
FAILURES: Final = 3
"""Looks in a row that must fail with an error that says nothing about the GPU."""

_XIDS: Final = {
    48: "double-bit ECC error",
    62: "internal micro-controller halt",
    63: "row remapping recorded",
    64: "row remapping failed",
    74: "NVLink error",
    79: "fallen off the bus",
    94: "contained memory error",
    95: "uncontained memory error",
    119: "GSP does not answer",
    120: "GSP error",
    140: "unrecovered ECC error",
}
_ACTIONS: Final = {
    RecoveryAction.GPU_RESET: "a GPU reset",
    RecoveryAction.NODE_REBOOT: "a reboot of the node",
    RecoveryAction.DRAIN_P2P: "an end of peer-to-peer traffic",
    RecoveryAction.DRAIN_AND_RESET: "a drain and a GPU reset",
    RecoveryAction.RECOVER_IMEX_DOMAIN: "a recovery of the IMEX domain",
    RecoveryAction.BUS_RESET: "a bus reset",
    RecoveryAction.SYSTEM_REBOOT: "a reboot of the system",
    RecoveryAction.UNKNOWN: "an action that this version doesn't know",
}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How to judge: XIDs to ignore beside the application's own, seconds of quiet before a GPU is used again."""

    ignore_xids: frozenset[int] = frozenset()
    recover_after: float = 60.0

    def serious(self, xid: int) -> bool:
        """Whether an XID says something about the GPU."""
        return xid not in APPLICATION_XIDS and xid not in self.ignore_xids


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What one look says about one GPU.

    Attributes:
        xids: all of them. ecc: a double-bit ECC error. unavailable: the driver said so.
        recovery: the driver's recommendation, None where it has none to give.
        answer: ``ok``; ``lost``; ``reset``: the GPU demands a reset; ``failed``: some other error.
        error: the error's text.
    """

    xids: tuple[int, ...] = ()
    ecc: bool = False
    unavailable: bool = False
    recovery: RecoveryAction | None = RecoveryAction.NONE
    answer: Literal["ok", "lost", "reset", "failed"] = "ok"
    error: str = ""


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one GPU.

    Attributes:
        health: for the inventory. reason: for people, "" while ok.
        trouble_at: when something was last wrong.
        needs_reset: it won't come back without one.
        failures: looks in a row that failed.
    """

    health: Health = "ok"
    reason: str = ""
    trouble_at: float = 0.0
    needs_reset: bool = False
    failures: int = 0


class HealthChange(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU's health is another than before, or has another reason."""

    gpu: str
    health: Health
    reason: str


def advance(before: Condition, seen: Seen, *, now: float, settings: Settings) -> Condition:
    """The state of a GPU after one look."""
    if seen.answer == "lost":
        return Condition(health="lost", reason=f"the driver has lost it: {seen.error}", trouble_at=now)
    failures = before.failures + 1 if seen.answer == "failed" else 0
    serious = [xid for xid in seen.xids if settings.serious(xid)]
    needs_reset = before.needs_reset or seen.ecc or not RESET_XIDS.isdisjoint(serious)
    if seen.recovery is RecoveryAction.NONE and seen.answer == "ok":
        needs_reset = False
    trouble = _trouble(seen, serious, failures)
    if trouble is not None:
        return Condition(health="sick", reason=trouble, trouble_at=now, needs_reset=needs_reset, failures=failures)
    if before.health == "ok" or seen.answer == "failed":
        return msgspec.structs.replace(before, failures=failures)
    if needs_reset:
        return msgspec.structs.replace(before, health="sick", needs_reset=True, failures=0)
    if now - before.trouble_at >= settings.recover_after:
        return Condition()
    return Condition(health="recovering", reason=before.reason, trouble_at=before.trouble_at)


def _trouble(seen: Seen, serious: list[int], failures: int) -> str | None:
    """What is wrong right now, in words; None where nothing is."""
    if seen.answer == "reset":
        return f"it demands a reset: {seen.error}"
    if seen.recovery not in (None, RecoveryAction.NONE):
        cause = f" after {_named(serious[-1])}" if serious else ""
        return f"the driver asks for {_ACTIONS[seen.recovery]}{cause}"
    if serious:
        return _named(serious[-1])
    if seen.ecc:
        return "double-bit ECC error"
    if seen.unavailable:
        return "the driver reports it unavailable"
    if failures >= FAILURES:
        return f"NVML does not answer for it: {seen.error}"
    return None


def _named(xid: int) -> str:
    text = _XIDS.get(xid)
    return f"XID {xid} ({text})" if text else f"XID {xid}"


class HealthTable:
    """The health of all GPUs of a node. Feed it every look; it tells what has changed."""

    def __init__(self, settings: Settings | None = None, *, registry: CollectorRegistry | None = None) -> None:
        """Begin with no GPU known.

        Args:
            settings: how to judge; see `configure`.
            registry: where to count; None counts nowhere.
        """
        self._settings = settings or Settings()
        self._conditions: dict[str, Condition] = {}
        self._subscribers: list[Callable[[tuple[HealthChange, ...]], None]] = []
        self._xids = Counter(
            "tessera_gpu_xids",
            "XID errors that the driver reported, ignored ones too.",
            ["gpu", "xid"],
            registry=registry,
        )
        self._healthy = Gauge(
            "tessera_gpu_healthy", "1 while a GPU takes new slices, 0 while it is sick, lost or recovering.", ["gpu"],
            registry=registry,
        )  # fmt: skip

    def configure(self, *, ignore_xids: Iterable[int], recover_after: float) -> None:
        """Take the config's `health` section, also while running."""
        self._settings = Settings(ignore_xids=frozenset(ignore_xids), recover_after=recover_after)

    def subscribe(self, callback: Callable[[tuple[HealthChange, ...]], None]) -> None:
        """Call back after every look that changed something; it must be quick."""
        self._subscribers.append(callback)

    @property
    def conditions(self) -> Mapping[str, Condition]:
        """By GPU id."""
        return self._conditions

    @property
    def health(self) -> dict[str, Health]:
        """By GPU id, as the inventory wants it."""
        return {gpu: condition.health for gpu, condition in self._conditions.items()}

    def feed(self, tick: Tick) -> tuple[HealthChange, ...]:
        """Take one look at the node.

        Returns:
            What has changed by it.
        """
        seen = _sort(tick)
        changes = []
        for gpu in tick.known:
            before = self._conditions.get(gpu, Condition())
            after = advance(before, seen[gpu], now=tick.now, settings=self._settings)
            self._conditions[gpu] = after
            self._healthy.labels(gpu).set(after.health == "ok")
            for xid in seen[gpu].xids:
                self._count(gpu, xid)
            if (after.health, after.reason) != (before.health, before.reason):
                log = _log.info if after.health in ("ok", "recovering") else _log.warning
                log("GPU %s: %s%s", gpu, after.health, f", {after.reason}" if after.reason else "")
                changes.append(HealthChange(gpu=gpu, health=after.health, reason=after.reason))
        if changes:
            for callback in self._subscribers:
                callback(tuple(changes))
        return tuple(changes)

    def _count(self, gpu: str, xid: int) -> None:
        if not self._settings.serious(xid):
            _log.info("GPU %s: XID %d is a program's own fault or set to be ignored", gpu, xid)
        # A label per XID stays small: the driver knows fewer than 200 of them.
        self._xids.labels(gpu, str(xid) if 0 <= xid < 1000 else "other").inc()


def _sort(tick: Tick) -> dict[str, Seen]:
    """What a look says, by GPU."""
    if tick.failure is not None:
        return {gpu: Seen(answer="lost", error=tick.failure) for gpu in tick.known}
    found = {}
    for gpu in tick.known:
        events = [event for event in tick.look.events if event.gpu == gpu]
        sample = tick.look.samples.get(gpu)
        found[gpu] = Seen(
            xids=tuple(event.data for event in events if event.kind == "xid"),
            ecc=any(event.kind == "ecc" for event in events),
            unavailable=any(event.kind == "unavailable" for event in events),
            recovery=sample.recovery if isinstance(sample, GpuSample) else None,
            answer=_answer(sample),
            error="NVML lists it no more"
            if sample is None
            else str(sample)
            if isinstance(sample, NvmlCallError)
            else "",
        )
    return found


def _answer(sample: GpuSample | NvmlCallError | None) -> Literal["ok", "lost", "reset", "failed"]:
    if sample is None:
        return "lost"
    if isinstance(sample, GpuSample):
        return "ok"
    if sample.lost:
        return "lost"
    return "reset" if sample.code == Code.RESET_REQUIRED else "failed"
