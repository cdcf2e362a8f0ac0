"""`make fuzz`: reviews, pods and HTTP bytes against admission, for as long as you like.

python tests/fuzz/run.py                      60 seconds on two processes
python tests/fuzz/run.py --seconds 600
python tests/fuzz/run.py --inputs 1000000     so many, however long it takes
python tests/fuzz/run.py --seed 7 --jobs 1    the same inputs again

An input that breaks something is kept in tests/fuzz/regressions/, where the tests replay it. Exit codes: 0 nothing found,
1 something broke.
"""

from __future__ import annotations

import argparse
import sys
import time

from fuzzing.driver import several

SECONDS = 60.0


def main(arguments: list[str]) -> int:
    """Fuzz and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help=f"how long (default {SECONDS:.0f}, or without end with --inputs)")
    parser.add_argument("--inputs", type=int, help="how many inputs in all")
    parser.add_argument("--seed", type=int, help="of the random numbers (default: from the clock)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default %(default)s)")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else time.time_ns() % 1_000_000
    seconds = options.seconds or (SECONDS if options.inputs is None else 1e9)
    began = time.monotonic()
    found = several(seed, inputs=options.inputs or 1 << 60, seconds=seconds, jobs=options.jobs)
    reviews, streams, broken = found["reviews"], found["streams"], found["broken"]
    sys.stdout.write(
        f"{reviews + streams} inputs ({reviews} reviews, {streams} HTTP streams) in {time.monotonic() - began:.0f} s, "
        f"seed {seed}, {found['shapes']} kinds of answers, {len(broken)} broken\n"
    )
    for path in broken:
        sys.stdout.write(f"kept: {path}\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
