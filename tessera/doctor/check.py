"""What a check is, and running all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tessera.doctor.evidence import Evidence, NotLookedError, Read
from tessera.doctor.finding import Examination, Finding, Outcome, examination, outcome


class Seen(NamedTuple):
    """What a check has seen: what is wrong, what it has looked at, what else is worth a line."""

    findings: Sequence[Finding]
    looked: str
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes:
        id: stable; docs/doctor.md has an entry for it.
        title: what it looks for.
        run: looks; raises `NotLookedError` where what it needs could not be read.
        reads: all that it looks at; where other checks are not asked for, nothing else is read.
    """

    id: str
    title: str
    run: Callable[[Evidence], Seen]
    reads: frozenset[Read] = frozenset()


def examine(checks: Iterable[Check], evidence: Evidence) -> Examination:
    """Run every check; none can keep another from being run."""
    return examination(_run(check, evidence) for check in checks)


def _run(check: Check, evidence: Evidence) -> Outcome:
    try:
        seen = check.run(evidence)
    except NotLookedError as error:
        return Outcome(check=check.id, title=check.title, result="blind", problem=str(error))
    except Exception as error:  # noqa: BLE001  an object that we did not think of must not hide what the others found
        problem = f"a mistake of this check's: {type(error).__name__}: {error}"
        return Outcome(check=check.id, title=check.title, result="blind", problem=problem)
    return outcome(check.id, check.title, seen.findings, looked=seen.looked, notes=seen.notes)
