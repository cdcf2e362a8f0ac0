"""What the webhook says about itself on its status port, and the watch on its event loop.

Label values come from fixed sets only: a path that a stranger asks for, or a namespace, never becomes a time series.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

TICK: Final = 0.05
"""Seconds between looks at the loop; a stall is seen if it is longer than what is left of a tick."""
WINDOW: Final = 60.0
"""Seconds for which the worst stall is remembered, so that a scrape every 15 or 30 s can't miss it."""


class Metrics:
    """The webhook's metrics, each made once in the registry of the process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register them."""
        self.reviews = Counter(
            "tessera_webhook_reviews_total",
            "Reviews answered, by path and outcome (patched, allowed, denied, malformed, failed).",
            ("path", "outcome"),
            registry=registry,
        )
        self.seconds = Histogram(
            "tessera_webhook_review_seconds",
            "Time from a complete request to its answer, by path.",
            ("path",),
            buckets=(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0),
            registry=registry,
        )
        self.connections = Gauge(
            "tessera_webhook_connections", "Open connections, TLS handshakes under way included.", registry=registry
        )
        self.dropped = Counter(
            "tessera_webhook_connections_dropped_total",
            "Connections ended by us, by reason (handshake, deadline, evicted, full).",
            ("reason",),
            registry=registry,
        )
        self.refused = Counter(
            "tessera_webhook_requests_refused_total",
            "Requests refused before any review was read, by HTTP status.",
            ("status",),
            registry=registry,
        )
        self.stall = Histogram(
            "tessera_webhook_event_loop_stall_seconds",
            "How late the event loop was at regular looks.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0),
            registry=registry,
        )
        self.worst_stall = Gauge(
            "tessera_webhook_event_loop_worst_stall_seconds",
            f"The event loop's longest stall of the last {WINDOW:.0f} seconds.",
            registry=registry,
        )
        self.certificate_expiry = Gauge(
            "tessera_webhook_certificate_expiry_timestamp_seconds",
            "End of life of the serving certificate in force, in seconds since 1970.",
            registry=registry,
        )
        self.certificate_good = Gauge(
            "tessera_webhook_certificate_last_reload_successful",
            "1 while the certificate in force is the newest one there is, 0 while a newer one can't be used.",
            registry=registry,
        )
        self.ca_bundle_good = Gauge(
            "tessera_webhook_ca_bundle_last_update_successful",
            "1 while the caBundle of our webhook configurations is known to hold our CA.",
            registry=registry,
        )


async def watch_loop(metrics: Metrics, *, tick: float = TICK, window: float = WINDOW) -> None:
    """Measure how late the event loop wakes us, until cancelled."""
    loop = asyncio.get_running_loop()
    # (moment, stall), stalls falling: the first is the worst of the window.
    worst: deque[tuple[float, float]] = deque()
    while True:
        due = loop.time() + tick
        await asyncio.sleep(tick)
        now = loop.time()
        late = max(0.0, now - due)
        metrics.stall.observe(late)
        while worst and worst[-1][1] <= late:
            worst.pop()
        worst.append((now, late))
        while worst[0][0] < now - window:
            worst.popleft()
        metrics.worst_stall.set(worst[0][1])
