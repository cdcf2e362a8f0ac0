"""What the extender tells Prometheus: how long it takes, what it decides and why, and how full the GPUs are.

Label values come from fixed sets (reasons, results), except node names, of which at most `MOST_NODES` are shown; sums over
the cluster are always there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Final

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tessera.placement.ledger import Ledger
from tessera.placement.reasons import Reason
from webhook.extender.admitting import Cause

MOST_NODES: Final = 1000
_BUCKETS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The extender's own counters."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register them."""
        self.seconds = Histogram(
            "tessera_extender_request_seconds",
            "Time from the request's last byte to the answer.",
            ["verb"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self._filters = Counter(
            "tessera_extender_filters_total",
            "Filter calls by result: named (a node), refused (none fits), passed (asks nothing of ours).",
            ["result"],
            registry=registry,
        )
        self._reasons = Counter(
            "tessera_extender_node_rejections_total",
            "Nodes that were no choice in filter calls that found none, by reason.",
            ["reason"],
            registry=registry,
        )
        self.binds = Counter(
            "tessera_extender_binds_total",
            "Bind calls by result: bound, repeated, refused (no room, wrong pod), failed (API), abandoned, doubtful.",
            ["result"],
            registry=registry,
        )
        self.moved = Counter(
            "tessera_extender_binds_moved_total",
            "Binds that took other GPUs of the node than the filter had named.",
            registry=registry,
        )
        self.bad_requests = Counter(
            "tessera_extender_bad_requests_total", "Requests answered by an HTTP error.", ["status"], registry=registry
        )
        self.preemptions = Counter(
            "tessera_extender_preemptions_total",
            "Pods for which others of lower priority were ended.",
            registry=registry,
        )
        self.evictions = Counter(
            "tessera_extender_evictions_total",
            "Evictions of victims by result: evicted, refused (a budget, or too many requests), failed (API).",
            ["result"],
            registry=registry,
        )
        self.wakes = Counter(
            "tessera_extender_wakes_total",
            "Node annotations touched so that waiting pods are retried.",
            registry=registry,
        )
        self.wake_failures = Counter(
            "tessera_extender_wake_failures_total",
            "Node annotations that could not be touched, so that waiting pods wait for kube-scheduler's own retry.",
            registry=registry,
        )
        self.scale_pods = Gauge(
            "tessera_extender_scale_pods", "Scale pods that ask Cluster Autoscaler for a node.", registry=registry
        )
        self._refusals = Counter(
            "tessera_extender_pods_refused_total",
            "Pods bound here that their node's kubelet refused (UnexpectedAdmissionError), by cause: node, or pod's own.",
            ["cause"],
            registry=registry,
        )
        self.refusing = Gauge(
            "tessera_extender_nodes_refusing",
            "Nodes that have just refused pods: left alone, or tried by one pod at a time.",
            registry=registry,
        )
        self.waiting = Gauge(
            "tessera_extender_rejected_pods", "Pods rejected lately that may fit later.", registry=registry
        )

    def refused(self, cause: Cause) -> None:
        """Count a pod that a kubelet refused."""
        self._refusals.labels(cause).inc()

    def filtered(self, result: str, reasons: Mapping[Reason, int]) -> None:
        """Count one filter call."""
        self._filters.labels(result).inc()
        for reason, count in reasons.items():
            self._reasons.labels(reason.slug).inc(count)


class LedgerCollector(Collector):
    """Reads the ledger when it is scraped."""

    def __init__(self, ledger: Ledger, staleness: Mapping[str, Callable[[], float]]) -> None:
        """Show this ledger and the staleness of these caches."""
        self._ledger = ledger
        self._staleness = staleness

    def describe(self) -> Iterable[Metric]:
        """Name nothing ahead: the registry would collect for it."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Make the gauges."""
        families = {
            "units": GaugeMetricFamily(
                "tessera_node_gpu_memory_units", "Memory units of a node's GPUs.", labels=["node"]
            ),
            "held": GaugeMetricFamily(
                "tessera_node_gpu_memory_units_held", "Memory units held on a node.", labels=["node"]
            ),
            "compute": GaugeMetricFamily(
                "tessera_node_gpu_compute_percent_held", "Compute percent held on a node, 100 per GPU.", labels=["node"]
            ),
            "open": GaugeMetricFamily("tessera_node_open", "1 where a node takes new slices.", labels=["node"]),
        }
        columns = self._ledger.columns
        present = columns.ident > 0
        held = np.minimum(columns.capacity, columns.held.units + columns.held.percent_units)
        compute = np.minimum(100, columns.held.compute)
        taken = sum((columns.mig_there[profile] - columns.mig_free[profile] for profile in columns.mig_there), start=0)
        idle = present & (held == 0) & (compute == 0) & (np.asarray(taken) == 0)
        by_node = [array.sum(axis=1) for array in (columns.capacity, held, compute)]
        names = [name for name in islice(self._ledger, MOST_NODES) if present[self._ledger.row(name)].any()]
        for name in names:
            row = self._ledger.row(name)
            for family, sums in zip(("units", "held", "compute"), by_node, strict=True):
                families[family].add_metric([name], float(sums[row]))
            families["open"].add_metric([name], float(columns.closed[row] == 0))
        yield from families.values()
        yield GaugeMetricFamily("tessera_gpus", "GPUs known.", value=int(present.sum()))
        yield GaugeMetricFamily("tessera_gpus_idle", "GPUs on which nothing is held.", value=int(idle.sum()))
        yield GaugeMetricFamily(
            "tessera_gpu_memory_units", "Memory units of all GPUs.", value=int(columns.capacity.sum())
        )
        yield GaugeMetricFamily(
            "tessera_gpu_memory_units_held", "Memory units held on all GPUs.", value=int(held.sum())
        )
        yield GaugeMetricFamily("tessera_gpu_compute_percent_held", "Compute percent held.", value=int(compute.sum()))
        stale = GaugeMetricFamily(
            "tessera_extender_cache_staleness_seconds",
            "Since the API server last proved a cache current.",
            labels=["cache"],
        )
        for cache, seconds in self._staleness.items():
            stale.add_metric([cache], seconds())
        yield stale
