"""Moments in objects, and how long ago they were in words for people."""

from __future__ import annotations

from datetime import datetime

from tessera.doctor.objects import Event
from tessera.model.pod import Pod


def moment(text: str | None) -> float | None:
    """Seconds since 1970 of a moment as the API writes it; None where it is none."""
    try:
        found = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return found.timestamp() if found.tzinfo is not None else None


def last_seen(event: Event) -> float | None:
    """Seconds since 1970 when what an Event tells was last seen; None where it doesn't say."""
    return (
        moment(event.last_timestamp)
        or moment(event.event_time)
        or moment(event.first_timestamp)
        or moment(event.metadata.creation_timestamp)
    )


def age(pod: Pod, now: float) -> float | None:
    """Seconds since a pod was made."""
    made = moment(pod.metadata.creation_timestamp)
    return None if made is None else max(0.0, now - made)


def ago(seconds: float | None) -> str:
    """``45 s``, ``12 min``, ``3 h``, ``9 d``; ``some time`` where it is not known."""
    if seconds is None:
        return "some time"
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"
