"""`tessera doctor`: what is wrong with an installation, why it matters, and how to mend it. Looks, and changes nothing."""

from __future__ import annotations

import argparse
import asyncio
import difflib
import sys
from typing import Final

from rich.console import Console
from rich.text import Text

from tessera.cli.examining import Where, examine
from tessera.cli.looking import TIMEOUT, Looker
from tessera.cli.terminal import (
    Progress,
    add_common,
    add_installation,
    client,
    console,
    from_file,
    hanging,
    text,
    write_json,
)
from tessera.doctor.check import Check
from tessera.doctor.check import examine as judge
from tessera.doctor.checks import CHECKS
from tessera.doctor.evidence import Read
from tessera.doctor.finding import COULD_NOT_LOOK, Examination, Finding, Outcome, counted
from tessera.kube.clock import SystemClock
from tessera.kube.servertime import ServerClock
from tessera.model.errors import TesseraError
from tessera.report.plaintext import short

_MARKS: Final = {
    "error": ("ERROR", "bold red"),
    "warning": ("WARN", "yellow"),
    "blind": ("", "magenta"),
    "ok": ("", ""),
}
_INDENT: Final = 6
_LONGEST_NAME: Final = 60
_LONGEST_TIMEOUT: Final = 3600


class UnknownCheckError(TesseraError):
    """A check that there isn't."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `tessera doctor`."""
    parser.epilog = (
        "Exit code: 0 no finding, 1 warnings, 2 errors, 3 could not look. Nothing is changed; one pod is created as a dry "
        "run, which the API server answers and does not store."
    )
    add_common(parser)
    add_installation(parser)
    parser.add_argument(
        "--certificate-secret", default="tessera-webhook-certificate", metavar="NAME",
        help="what the webhook serves by (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--probe-namespace", default="default", help="of the dry run (default %(default)s)")
    parser.add_argument("--no-probe", action="store_true", help="create nothing, not even as a dry run")
    parser.add_argument("--strict", action="store_true", help="exit with 3, too, where a check could not look")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=TIMEOUT,
        metavar="SECONDS",
        help="for one page of a list (default %(default)g)",
    )
    parser.add_argument(
        "--only", metavar="CHECK,…", default="", help="these checks and no others (before an installation, say)"
    )
    parser.add_argument("--list", action="store_true", help="tell the checks, look at nothing")


def run(arguments: argparse.Namespace) -> int:
    """Examine the cluster; the exit code says the worst of it."""
    if arguments.list:
        for check in CHECKS:
            sys.stdout.write(f"{check.id:<20} {check.title}\n")
        return 0
    try:
        found = asyncio.run(_examine(arguments))
    except TesseraError as error:
        _note(f"could not look: {error}")
        return COULD_NOT_LOOK
    if arguments.output == "json":
        write_json(found)
    else:
        show(found, console(arguments), wide=arguments.output == "wide")
    return found.code(strict=arguments.strict)


async def _examine(arguments: argparse.Namespace) -> Examination:
    clock = ServerClock(SystemClock())
    checks = chosen(arguments.only)
    where = Where(
        namespace=arguments.system_namespace,
        secret=arguments.certificate_secret,
        config=from_file(arguments.config).config if arguments.config else None,
        probe=None if arguments.no_probe else arguments.probe_namespace,
    )
    with Progress() as progress:
        async with client(arguments.kubeconfig, clock) as api:
            looker = Looker(api, tell=progress, timeout=arguments.timeout)
            reads = frozenset[Read]().union(*(check.reads for check in checks))
            evidence = await examine(api, where, reads, looker=looker, clock=clock)
    if (
        "config" in reads
        and evidence.config_maps.problem
        and not any(check.id == "config-readable" for check in checks)
    ):
        _note(f"{evidence.config_maps.problem}; judged by the default config (--config names another)")
    return judge(checks, evidence)


def _note(said: str) -> None:
    sys.stderr.write(f"tessera doctor: {text(said)}\n")


def _seconds(given: str) -> float:
    """A number of seconds in which something can be waited for."""
    try:
        found = float(given)
    except ValueError:
        found = 0.0
    if not 0 < found <= _LONGEST_TIMEOUT:
        raise argparse.ArgumentTypeError(f"{short(given, 20)!r} is no number of seconds up to {_LONGEST_TIMEOUT}")
    return found


def chosen(only: str) -> tuple[Check, ...]:
    """The checks that are named, with commas between; all of them where none is.

    Raises:
        UnknownCheckError: there is none of that name.
    """
    wanted = {name.strip() for name in only.split(",")} - {""}
    known = {check.id for check in CHECKS}
    for name in sorted(wanted - known):
        near = difflib.get_close_matches(name[:_LONGEST_NAME], known, n=1)
        hint = f"is {near[0]} meant?" if near else "tessera doctor --list tells them"
        raise UnknownCheckError(f"there is no check {short(name, _LONGEST_NAME)}; {hint}")
    return tuple(check for check in CHECKS if not wanted or check.id in wanted)


def show(found: Examination, out: Console, *, wide: bool = False) -> None:
    """Print findings, worst first; then what could not be looked at, and what is well."""
    order = ("error", "warning")
    for result in order:
        for outcome in found.checks:
            for finding in outcome.findings:
                if finding.severity == result:
                    _finding(outcome, finding, out, wide=wide)
            if outcome.more and outcome.result == result:
                out.print(text(f"      and {outcome.more} more of {outcome.check}; -o json has its count", "dim"))
    blind = [each for each in found.checks if each.result == "blind"]
    _blind(blind, out)
    notes = [(each.check, note) for each in found.checks for note in each.notes]
    if wide:
        _lines("Notes", notes, "ok", out)
        _lines("Looked at", [(each.check, each.looked) for each in found.checks if each.result != "blind"], "ok", out)
    fine = sum(each.result == "ok" for each in found.checks)
    out.print(
        Text(f"{counted(found.errors, 'error')}, {counted(found.warnings, 'warning')}; ")
        + Text(f"{counted(fine, 'check')} found nothing, {found.blind} could not look")
        + Text("" if wide or not (notes or found.errors + found.warnings) else "  (-o wide tells why it matters, and more)",
               style="dim")
    )  # fmt: skip


def _blind(outcomes: list[Outcome], out: Console) -> None:
    """What could not be looked at: each reason once, with the checks that it kept from looking."""
    if not outcomes:
        return
    by_problem: dict[str, list[str]] = {}
    for each in outcomes:
        by_problem.setdefault(each.problem, []).append(each.check)
    out.print(Text("Could not look", style=_MARKS["blind"][1]))
    for why, checks in by_problem.items():
        hanging(out, f"{why} ({', '.join(checks)})", indent=_INDENT)


def _finding(outcome: Outcome, finding: Finding, out: Console, *, wide: bool) -> None:
    mark, style = _MARKS[finding.severity.value]
    out.print(Text.assemble((f"{mark:<{_INDENT}}", style), (outcome.check, "bold"), "  ", text(finding.object)))
    hanging(out, finding.seen, indent=_INDENT)
    if wide:
        hanging(out, finding.why, indent=_INDENT, label="why: ")
    hanging(out, finding.mend, indent=_INDENT, label="mend: ")


def _lines(title: str, rows: list[tuple[str, str]], kind: str, out: Console) -> None:
    if not rows:
        return
    out.print(Text(title, style=_MARKS[kind][1] or "bold"))
    longest = max(len(name) for name, _ in rows)
    for name, said in rows:
        hanging(out, said, indent=_INDENT, label=f"{name:<{longest + 2}}")
