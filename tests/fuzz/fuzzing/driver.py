"""How long fuzzing goes on, on how many processes, and what is kept of what breaks."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import time
import traceback
from pathlib import Path
from typing import Any

from fuzzing.reviews import ReviewFuzzer
from fuzzing.wire import WireFuzzer

REGRESSIONS = Path(__file__).resolve().parents[1] / "regressions"
EVERY = 200
"""Inputs between looks at the clock."""
WIRE_SHARE = 5
"""Of so many batches one goes to the HTTP parser."""


def keep(kind: str, which: int, data: bytes, problem: str) -> Path:
    """Write down an input that broke something."""
    REGRESSIONS.mkdir(exist_ok=True)
    path = REGRESSIONS / f"{kind}-{hashlib.sha256(data).hexdigest()[:12]}.json"
    text = {
        "kind": kind,
        "config": which,
        "input": data.decode("latin-1"),
        "problem": problem.strip().splitlines()[-1][:500],
    }
    path.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
    return path


def fuzz(seed: int, *, inputs: int, seconds: float) -> dict[str, Any]:
    """One process's share.

    Returns:
        ``reviews``, ``streams``, ``shapes`` and ``broken`` (paths of inputs that were kept).
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        return _fuzz(seed, inputs=inputs, seconds=seconds)
    finally:
        logging.disable(before)


def _fuzz(seed: int, *, inputs: int, seconds: float) -> dict[str, Any]:
    reviews, wire = ReviewFuzzer(seed), WireFuzzer(seed)
    done = {"reviews": 0, "streams": 0}
    broken: list[str] = []
    end = time.monotonic() + seconds
    batch = 0
    while sum(done.values()) < inputs and time.monotonic() < end and len(broken) < 10:
        batch += 1
        for _ in range(min(EVERY, inputs - sum(done.values()))):
            if batch % WIRE_SHARE:
                which, data = reviews.input()
                kind = "reviews"
            else:
                which, data = 0, wire.input()
                kind = "streams"
            done[kind] += 1
            try:
                if kind == "reviews":
                    reviews.run(which, data)
                else:
                    wire.run(data)
            except Exception:  # noqa: BLE001  whatever it is, it is what we look for
                broken.append(str(keep(kind, which, data, traceback.format_exc())))
    return {**done, "shapes": reviews.shapes, "broken": broken}


def _share(arguments: tuple[int, int, float]) -> dict[str, Any]:
    seed, inputs, seconds = arguments
    return fuzz(seed, inputs=inputs, seconds=seconds)


def several(seed: int, *, inputs: int, seconds: float, jobs: int) -> dict[str, Any]:
    """Fuzz on several processes, each with a seed of its own.

    Returns:
        The sums of what `fuzz` returns; of ``shapes`` the largest.
    """
    shares = [(seed + at, -(-inputs // jobs), seconds) for at in range(jobs)]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        found = pool.map(_share, shares)
    return {
        "reviews": sum(each["reviews"] for each in found),
        "streams": sum(each["streams"] for each in found),
        "shapes": max(each["shapes"] for each in found),
        "broken": [path for each in found for path in each["broken"]],
    }
