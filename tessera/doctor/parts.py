"""What the parts say of themselves on their status ports, where they could be asked.

A ConfigMap that reads well may still not be what runs: a part keeps the last config, and the last certificate, that it could
use, and says so in its metrics.
"""

from __future__ import annotations

from typing import Final

from tessera.doctor.check import Seen
from tessera.doctor.evidence import Evidence, NotLookedError, PartSaid
from tessera.doctor.finding import Finding, Severity, counted, several

CONFIG_TAKEN: Final = "tessera_config_last_reload_successful"
EXPIRY: Final = "tessera_webhook_certificate_expiry_timestamp_seconds"
CERTIFICATE_TAKEN: Final = "tessera_webhook_certificate_last_reload_successful"
BUNDLE_KEPT: Final = "tessera_webhook_ca_bundle_last_update_successful"
GAUGES: Final = (CONFIG_TAKEN, EXPIRY, CERTIFICATE_TAKEN, BUNDLE_KEPT)
"""What is read of a part's metrics; each has one sample."""

_DAY: Final = 86_400.0
_SOON: Final = 7 * _DAY
_URGENT: Final = 3 * _DAY


def config_in_force(evidence: Evidence) -> Seen:
    """Every part runs by the newest config."""
    said, notes = _with(evidence, CONFIG_TAKEN)
    behind = sorted(pod for pod, each in said.items() if each.gauges[CONFIG_TAKEN] == 0)
    if not behind:
        return Seen((), counted(len(said), "part"), notes)
    finding = Finding(
        severity=Severity.ERROR,
        object=f"pod/{behind[0]}",
        seen=f"{several(behind)} could not take the newest config and {'runs' if len(behind) == 1 else 'run'} by an older one",
        why="The parts may disagree, and this one does not start again by the newest.",
        mend="Its log has the key and the line; correct the ConfigMap.",
    )
    return Seen([finding], counted(len(said), "part"), notes)


def certificate_in_force(evidence: Evidence) -> Seen:
    """The certificate that the webhook serves by right now lives on, is its newest, and its authority is registered."""
    said, notes = _with(evidence, EXPIRY)
    findings = []
    for pod, each in sorted(said.items()):
        left = each.gauges[EXPIRY] - evidence.now
        if left <= _SOON:
            seen = (
                f"serves by a certificate that ends in {left / _DAY:.1f} days"
                if left > 0
                else "its certificate has ended"
            )
            findings.append(_finding(pod, Severity.ERROR if left <= _URGENT else Severity.WARNING, seen))
        if each.gauges.get(CERTIFICATE_TAKEN) == 0:
            findings.append(
                _finding(pod, Severity.WARNING, "can't use the newest certificate there is, and serves by an older")
            )
        if each.gauges.get(BUNDLE_KEPT) == 0:
            findings.append(
                _finding(pod, Severity.WARNING, "can't write its authority into the webhook configurations")
            )
    days = min((each.gauges[EXPIRY] - evidence.now) / _DAY for each in said.values())
    return Seen(findings, f"{counted(len(said), 'replica')}, the first certificate ends in {days:.0f} days", notes)


def _finding(pod: str, severity: Severity, seen: str) -> Finding:
    return Finding(
        severity=severity,
        object=f"pod/{pod}",
        seen=seen,
        why="When the API server doesn't trust what is served, pods that ask for GPUs can't be made.",
        mend="Its log says why; look at the Secret, at cert-manager where that issues it, and at the webhook's rights.",
    )


def _with(evidence: Evidence, gauge: str) -> tuple[dict[str, PartSaid], list[str]]:
    """The parts that have told a gauge, and why others have not.

    Raises:
        NotLookedError: none has.
    """
    said = evidence.said.need()
    silent = sorted({each.problem for each in said.values() if each.problem})
    found = {pod: each for pod, each in said.items() if gauge in each.gauges}
    if not found:
        raise NotLookedError(several(silent, most=2) or "no part that tells it runs as a pod here")
    return found, silent
