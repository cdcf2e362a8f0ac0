"""Certificates of the webhook: how long they live, and whether the API server trusts what is served.

The library is loaded only where there is a certificate to read. Trust is judged as far as an API server would refuse:
issued by an authority of the caBundle (or being one), in its time, for the Service's name.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tessera.doctor.check import Seen
from tessera.doctor.evidence import Evidence, NotLookedError
from tessera.doctor.finding import Finding, Severity, counted, several
from tessera.doctor.webhooks import ours, services

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_DAY: Final = 86_400.0
_LEFT_OF_LIFE: Final = 4
"""A quarter of its life: rotation is due at a third, so by then it has failed again and again."""
_URGENT: Final = 3 * _DAY
_LARGEST: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Pem:
    """Certificates in order, or why they can't be read."""

    certificates: tuple[Certificate, ...] = ()
    problem: str = ""


def read(text: str) -> Pem:
    """Read base64 of PEM, as caBundle and Secrets hold it."""
    from cryptography import x509  # noqa: PLC0415  30 ms that other checks need not wait for

    if len(text) > _LARGEST:
        return Pem(problem=f"{len(text)} characters are no certificate")
    try:
        return Pem(tuple(x509.load_pem_x509_certificates(base64.b64decode(text, validate=True))))
    except (binascii.Error, ValueError) as error:
        return Pem(problem=f"no certificate can be read: {error}")


def bundles(evidence: Evidence) -> dict[str, str]:
    """By configuration and webhook, the caBundle in base64."""
    found = {}
    evidence.mutating.need()
    for kind, look in (("mutating", evidence.mutating), ("validating", evidence.validating)):
        for configuration, webhook in ours(look.value or (), evidence.names.domain):
            name = f"{kind}webhookconfiguration/{configuration.metadata.name}/{webhook.name}"
            found[name] = webhook.client_config.ca_bundle or ""
    return found


def lifetimes(evidence: Evidence) -> Seen:
    """No certificate has ended or is about to."""
    findings: list[Finding] = []
    notes: list[str] = []
    shortest: list[float] = []
    for where, text in bundles(evidence).items():
        if not text:
            findings.append(_unreadable(where, "caBundle is empty"))
            continue
        pem = read(text)
        if pem.problem or not pem.certificates:
            findings.append(_unreadable(where, f"caBundle: {pem.problem or 'no certificate'}"))
            continue
        # Older authorities may end beside a newer one, so the last to end decides; what has not begun is nobody's yet.
        begun = [each for each in pem.certificates if each.not_valid_before_utc.timestamp() <= evidence.now]
        last = max(begun or pem.certificates, key=lambda each: each.not_valid_after_utc)
        findings += _life(where, "the newest authority in caBundle", last, evidence.now)
        shortest.append(_days(last, evidence.now))
    try:
        secrets = evidence.certificates.need()
    except NotLookedError as error:
        notes.append(f"the serving certificate's own days are not known: {error}")
        secrets = {}
    for name, secret in sorted(secrets.items()):
        if not secret.data.certificate:
            notes.append(f"secret/{name} holds no certificate; the webhook has not started, or serves by another")
            continue
        pem = read(secret.data.certificate)
        if pem.problem or not pem.certificates:
            findings.append(_unreadable(f"secret/{name}", f"tls.crt: {pem.problem or 'no certificate'}"))
            continue
        findings += _life(f"secret/{name}", "the serving certificate", pem.certificates[0], evidence.now)
        shortest.append(_days(pem.certificates[0], evidence.now))
    looked = f"{counted(len(shortest), 'certificate')}"
    return Seen(findings, f"{looked}, the first ends in {min(shortest):.0f} days" if shortest else looked, notes)


def trusted(evidence: Evidence) -> Seen:
    """What the webhook serves is issued by an authority that each caBundle holds, for the name it is called by."""
    secrets = evidence.certificates.need()
    if not any(secret.data.certificate for secret in secrets.values()):
        raise NotLookedError(f"{several(f'secret/{name}' for name in secrets)} holds no certificate")
    findings: list[Finding] = []
    for name, secret in sorted(secrets.items()):
        chain = read(secret.data.certificate).certificates
        if not chain:
            continue
        for where, text in bundles(evidence).items():
            authorities = read(text).certificates if text else ()
            if authorities and not _issued(chain, authorities):
                findings.append(
                    Finding(
                        severity=Severity.ERROR,
                        object=where,
                        seen=f"no authority in caBundle has issued the certificate in secret/{name}",
                        why="The API server refuses the webhook's certificate, so pods that ask for GPUs can't be made.",
                        mend="Restart the webhook, which writes its authority there; with cert-manager, look at its injector.",
                    )
                )
        namespace = name.partition("/")[0]
        for service in (f"{each}.{where}.svc" for where, each in services(evidence) if where == namespace):
            if not _is_for(chain[0], service):
                findings += [_not_for(f"secret/{name}", service)]
    return Seen(findings, counted(len(secrets), "serving certificate"))


def _not_for(where: str, service: str) -> Finding:
    return Finding(
        severity=Severity.ERROR,
        object=where,
        seen=f"the certificate is not for {service}",
        why="The API server calls the webhook by that name and refuses any other.",
        mend=f"Issue it for {service}; one of the webhook's own making is made anew when its Secret is emptied.",
    )


def _issued(chain: Sequence[Certificate], authorities: Iterable[Certificate]) -> bool:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415

    trusted_ones = list(authorities)
    for certificate in chain:
        for authority in trusted_ones:
            if certificate == authority:
                return True
            try:
                certificate.verify_directly_issued_by(authority)
            except (ValueError, TypeError, InvalidSignature):
                continue
            return True
    return False


def _is_for(certificate: Certificate, name: str) -> bool:
    from cryptography import x509  # noqa: PLC0415

    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = found.get_values_for_type(x509.DNSName)
    except (x509.ExtensionNotFound, ValueError):
        return False
    return any(each == name or (each.startswith("*.") and each[1:] == name[name.find(".") :]) for each in names)


def _days(certificate: Certificate, now: float) -> float:
    return (certificate.not_valid_after_utc.timestamp() - now) / _DAY


def _life(where: str, what: str, certificate: Certificate, now: float) -> list[Finding]:
    begins, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    left, day = ends - now, f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M}Z"
    if begins > now:
        seen, severity = f"{what} is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M}Z on", Severity.ERROR
    elif left <= 0:
        seen, severity = f"{what} ended at {day}", Severity.ERROR
    elif left <= _URGENT:
        seen, severity = f"{what} ends at {day}, in {left / 3600:.0f} hours", Severity.ERROR
    elif left <= (ends - begins) / _LEFT_OF_LIFE:
        seen, severity = f"{what} ends at {day}, in {left / _DAY:.0f} days, and has not been renewed", Severity.WARNING
    else:
        return []
    return [
        Finding(
            severity=severity,
            object=where,
            seen=seen,
            why="From then on the API server can't call the webhook, and pods that ask for GPUs can't be made.",
            mend="Read in the webhook's log why it is not renewed (or in cert-manager's); check the clocks of the nodes.",
        )
    ]


def _unreadable(where: str, seen: str) -> Finding:
    return Finding(
        severity=Severity.ERROR,
        object=where,
        seen=seen,
        why="The API server can't know the webhook by it, so pods that ask for GPUs can't be made.",
        mend="Restart the webhook, which writes its authority there, or look at who else manages it.",
    )
