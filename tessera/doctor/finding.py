"""Findings, and what a whole examination comes to: the exit code, and the JSON that other programs read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final, Literal

import msgspec

NO_FINDING: Final = 0
WARNINGS: Final = 1
ERRORS: Final = 2
COULD_NOT_LOOK: Final = 3
VERSION: Final = 1
MOST_FINDINGS: Final = 20
"""Findings of one check that are told one by one; a broken cluster of 5,000 nodes must not bury the other checks."""


class Severity(StrEnum):
    """An error keeps pods from running or lets them have what is not theirs; a warning is going to, or may be meant."""

    ERROR = "error"
    WARNING = "warning"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong.

    Attributes:
        severity: see there.
        object: what it is about, as ``kind/name`` or ``kind/namespace/name``.
        seen: the facts, with their numbers.
        why: what comes of it.
        mend: what to do.
    """

    severity: Severity
    object: str
    seen: str
    why: str
    mend: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one check has come to.

    Attributes:
        check: its stable id. title: what it looks for.
        result: the worst of its findings, ``ok`` without any, ``blind`` where it could not look at all.
        looked: what it has looked at. problem: why it could not look. notes: what of it could not be looked at, or
            what is worth knowing and no finding.
        findings: the first of them, errors before warnings. errors, warnings: how many there are in all.
    """

    check: str
    title: str
    result: Literal["ok", "warning", "error", "blind"]
    looked: str = ""
    problem: str = ""
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    errors: int = 0
    warnings: int = 0

    @property
    def more(self) -> int:
        """Findings beyond those that are told."""
        return self.errors + self.warnings - len(self.findings)


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """All checks; `v` is the version of this form."""

    v: int = VERSION
    errors: int
    warnings: int
    blind: int
    checks: tuple[Outcome, ...]

    def code(self, *, strict: bool = False) -> int:
        """The exit code.

        Without a finding, 3 where most checks had nothing to look at (what is well then says little), with `strict` where
        any had.
        """
        if self.errors:
            return ERRORS
        if self.warnings:
            return WARNINGS
        if 2 * self.blind > len(self.checks) or (strict and self.blind):
            return COULD_NOT_LOOK
        return NO_FINDING


def outcome(check: str, title: str, findings: Sequence[Finding], *, looked: str, notes: Iterable[str] = ()) -> Outcome:
    """The outcome of a check that could look: errors first, no more than can be read."""
    ordered = sorted(findings, key=lambda finding: finding.severity is not Severity.ERROR)
    worst: Literal["ok", "warning", "error"] = "ok"
    if ordered:
        worst = "error" if ordered[0].severity is Severity.ERROR else "warning"
    return Outcome(
        check=check,
        title=title,
        result=worst,
        looked=looked,
        notes=tuple(notes),
        findings=tuple(ordered[:MOST_FINDINGS]),
        errors=(errors := sum(finding.severity is Severity.ERROR for finding in ordered)),
        warnings=len(ordered) - errors,
    )


def examination(outcomes: Iterable[Outcome]) -> Examination:
    """Count."""
    checks = tuple(outcomes)
    return Examination(
        errors=sum(each.errors for each in checks),
        warnings=sum(each.warnings for each in checks),
        blind=sum(each.result == "blind" for each in checks),
        checks=checks,
    )


def several(things: Iterable[str], *, most: int = 5) -> str:
    """Name a few of many: ``a, b, c and 7 more``."""
    found = list(things)
    left = len(found) - most
    return ", ".join(found[:most]) + (f" and {left} more" if left > 0 else "")


def counted(count: int, one: str, many: str = "") -> str:
    """``1 node``, ``3 nodes``."""
    return f"{count} {one if count == 1 else many or one + 's'}"
