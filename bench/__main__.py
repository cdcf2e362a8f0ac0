"""`make bench`: speed and memory of each part beside what it has to reach, as percentiles; speed is never a test.

python -m bench [PART ...]      parts: node, extender, burst, webhook, packing
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from collections.abc import Callable, Mapping
from typing import Final

PARTS: Final = ("node", "extender", "burst", "webhook", "packing")

_BARS: Final[Mapping[str, tuple[str, Callable[[float], bool]]]] = {
    "node.allocate_p99_ms": ("<= 5", lambda value: value <= 5),
    "node.idle_rss_mib": ("<= 60", lambda value: value <= 60),
    "node.import_all_s": ("<= 0.4", lambda value: value <= 0.4),
    "extender.5000x40000.filter_p50_ms": ("<= 1", lambda value: value <= 1),
    "extender.5000x40000.filter_p99_ms": ("<= 5", lambda value: value <= 5),
    "extender.5000x40000.ready_s": ("<= 5", lambda value: value <= 5),
    "extender.5000x40000.rss_mib": ("<= 300", lambda value: value <= 300),
    "burst.filtered_first.lost": ("0", lambda value: value == 0),
    "burst.filtered_first.second_attempts_pct": ("<= 1", lambda value: value <= 1),
    "burst.pipelined.second_attempts_pct": ("<= 1", lambda value: value <= 1),
    "burst.one_node.seconds": ("<= 2", lambda value: value <= 2),
    "packing.warm.at_95": (">= 94.9", lambda value: value >= 94.9),
    "packing.warm.at_100": (">= 95.9", lambda value: value >= 95.9),
    "packing.warm.at_130": (">= 96.1", lambda value: value >= 96.1),
    "packing.cold.at_95": (">= 94.2", lambda value: value >= 94.2),
    "packing.cold.at_100": (">= 95.8", lambda value: value >= 95.8),
    "packing.cold.at_130": (">= 96.0", lambda value: value >= 96.0),
    "packing.decisions_per_s": (">= 5000", lambda value: value >= 5000),
    "packing.orders.submitted": (">= 95.6", lambda value: value >= 95.6),
    "packing.orders.big": (">= 95.6", lambda value: value >= 95.6),
    "packing.orders.small": (">= 90", lambda value: value >= 90),
    "webhook.reviews_per_second": (">= 5000", lambda value: value >= 5000),
    "webhook.p99_ms": ("<= 5", lambda value: value <= 5),
    "webhook.mutation_us": ("<= 50", lambda value: value <= 50),
}
"""What the figures have to reach, on a machine that does nothing else."""


def main(arguments: list[str]) -> int:
    """Run the parts named, all where none is, and print every figure on a line of its own."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)} (all)")
    parts = parser.parse_args(arguments).part or list(PARTS)
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )
    for part in parts:
        print(f"{part} ...", flush=True)
        for name, value in flat(part, importlib.import_module(f"bench.{part}").run()):
            print(f"  {name:<44} {value}{_verdict(name, value)}")
    return 0


def flat(prefix: str, figures: object) -> list[tuple[str, object]]:
    """Figures as dotted names and values."""
    if not isinstance(figures, Mapping):
        return [(prefix, figures)]
    return [each for name, value in figures.items() for each in flat(f"{prefix}.{name}", value)]


def _verdict(name: str, value: object) -> str:
    bar = _BARS.get(name)
    if bar is None or not isinstance(value, int | float):
        return ""
    text, holds = bar
    return f"   ({text}: {'reached' if holds(float(value)) else 'NOT reached'})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
