"""The pictures of docs/placement.md and docs/benchmarks.md, made from the trace and from a run's results.

python -m bench.pictures [out/packing.json ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.curves import Curve, draw
from bench.packing import Job, Outcome, plot
from bench.trace import tasks
from tessera.placement.remainder import WHOLE, threshold, worths

PICTURES: Final = Path("docs/pictures")


def remainder() -> str:
    """What the rest of one GPU is worth to the pods of the trace, beside what is free."""
    weights: dict[int, float] = {}
    for task in tasks("default"):
        if task.gpus:
            weights[task.share] = weights.get(task.share, 0.0) + 1
    table = worths(weights)
    step = [(n / 10, float(table[n]) / 10) for n in range(WHOLE + 1)]
    return draw(
        f"What the rest of a GPU is worth (L = {threshold(weights) / 10:g} %)",
        [Curve("free", [(0, 0), (100, 100)], "#999999", thin=True), Curve("worth to other pods", step, "#0b6e4f")],
        across=(0, 100),
        up=(0, 105),
        labels=("free on one GPU, %", "counted as, % of a GPU"),
    )


def main(arguments: Sequence[str]) -> int:
    """Write both pictures; the second only where results are given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path, help="what bench.packing wrote")
    paths = parser.parse_args(arguments).results
    PICTURES.mkdir(parents=True, exist_ok=True)
    (PICTURES / "remainder.svg").write_text(remainder())
    done = [
        Outcome(
            Job(**{k: v for k, v in run.items() if k in Job._fields}),
            tuple(run["curve"]),
            run["end"],
            run["per_second"],
        )
        for path in paths
        for run in json.loads(path.read_text())["runs"]
    ]
    if done:
        (PICTURES / "packing.svg").write_text(plot(done))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
