"""`make e2e`: a real cluster on this machine, the suite on it, and nothing left behind.

python tests/e2e/run.py                 start, run the suite, stop
python tests/e2e/run.py --keep          leave the cluster up; prints its kubeconfig
python tests/e2e/run.py --reuse         the suite on the cluster that was left up, which stays up
python tests/e2e/run.py --down          stop what was left up
python tests/e2e/run.py -- -k restart   what follows is pytest's

Exit codes: 0 all passed and nothing was left behind, 1 a test failed or something was left, 2 the cluster didn't start,
3 no cluster can run on this machine (no root, no mounts, no cgroups).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster import Cluster, ClusterError, MachineError, Settings
from cluster.leftovers import look
from cluster.phases import Phases

HERE = Path(__file__).resolve().parent
# First what needs no product, then the product.
SUITES = [str(HERE / "contract"), str(HERE / "suite")]


def main() -> int:
    """Do what the arguments say; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    parser.add_argument("--reuse", action="store_true", help="use the cluster that was left up")
    parser.add_argument("--down", action="store_true", help="stop the cluster that was left up")
    parser.add_argument("--no-suite", action="store_true", help="start (and stop) the cluster only")
    parser.add_argument("--no-proxy", action="store_true", help="without kube-proxy: no Services")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    options = parser.parse_args()
    settings = Settings(proxy=not options.no_proxy)
    # A make that is told to end lets us take the cluster away first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return run(options, settings)
    except MachineError as error:
        sys.stderr.write(f"\n{error}\n")
        return 3
    except ClusterError as error:
        sys.stderr.write(f"\n{error}\nlogs: {settings.logs}\n")
        return 2


def run(options: argparse.Namespace, settings: Settings) -> int:
    """Start, test and stop as the options say."""
    phases = Phases()
    if options.down:
        Cluster(settings, phases=phases).stop()
        return 0
    if options.reuse:
        return suite(Cluster.attach(settings), options.pytest)
    cluster = Cluster(settings, phases=phases)
    code = 0
    with cluster.kept() if options.keep else cluster:
        if not options.no_suite:
            with phases.phase("the suite"):
                code = suite(cluster, options.pytest)
    if options.keep:
        sys.stdout.write(f"the cluster is up: export KUBECONFIG={settings.kubeconfig('admin')}\n")
        sys.stdout.write(f"kubectl: {cluster.binaries / 'kubectl'}; stop it: {sys.executable} {__file__} --down\n")
        return code
    code = max(code, clean(cluster, phases))
    tell(settings)
    sys.stdout.write(f"{phases.total:7.1f} s  in all; logs: {settings.logs}\n")
    return code


def suite(cluster: Cluster, arguments: list[str]) -> int:
    """Run the suite on a running cluster; return pytest's exit code."""
    environment = {**os.environ, "TESSERA_E2E_SUITE": "1"}
    command = [sys.executable, "-m", "pytest", "-o", f"pythonpath={HERE}", "-p", "no:cacheprovider"]
    default = [] if any(os.path.exists(each.split("::")[0]) for each in arguments) else SUITES
    done = subprocess.run([*command, *arguments, *default], cwd=HERE.parents[1], env=environment, check=False)
    if done.returncode:
        sys.stdout.write(f"a test failed; the log of each component: {cluster.settings.logs}\n")
    # A pytest that was killed has not passed.
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def tell(settings: Settings) -> None:
    """Show what the run measured, and hold it against what it should be."""
    if not settings.numbers.exists():
        return
    numbers = json.loads(settings.numbers.read_text())
    sys.stdout.write(f"\nmeasured ({settings.numbers}):\n{json.dumps(rounded(numbers), indent=1)}\n")
    for text, value, most in bars(numbers):
        sys.stdout.write(f"{'ok' if value <= most else 'MISSED':>8}  {text}: {value:.4g}, at most {most:.4g}\n")


def bars(numbers: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    """What there is of the measured, as (text, value, the most that it should be)."""
    if "bound_per_second" in numbers:
        yield "time to bind with the extender : without", 1 / numbers["bound_per_second"]["ratio"], 1 / 0.7
    for where, most in (("node_calls_idle", 0.025), ("node_calls_in_a_burst_of_40", 0.060)):
        calls = numbers.get(where, {})
        if "p99" in calls.get("Allocate", {}):
            yield f"{where}: Allocate p99 in s", calls["Allocate"]["p99"], 0.010
        if "p99" in calls.get("GetPreferredAllocation", {}):
            yield f"{where}: GetPreferredAllocation p99 in s", calls["GetPreferredAllocation"]["p99"], most


def rounded(value: Any) -> Any:
    """The same with four digits."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def clean(cluster: Cluster, phases: Phases) -> int:
    """Compare the machine with what it was; return 1 where something was left."""
    with phases.phase("is anything left behind?"):
        left = cluster.before.added(look())
    for each in left:
        sys.stdout.write(f"left behind: {each}\n")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
