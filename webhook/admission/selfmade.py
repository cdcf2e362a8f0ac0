"""A certificate authority of our own and the certificate it signs, for where nobody mounts a pair.

One key type (ECDSA P-256): every client of the last ten years takes it, and a handshake costs a tenth of RSA's. Nothing
here keeps state or looks at a clock; `certificates` decides when something is due.

What is stored is a `Material`: the serving pair, all authorities that are still trusted (newest first), and the key of the
newest. A new authority only joins the bundle at first; the serving certificate is signed by it at its own next renewal,
weeks later, when every API server has long got the new bundle.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tessera.model.errors import TesseraError

AUTHORITY_LIFE: Final = timedelta(days=3 * 365)
SERVING_LIFE: Final = timedelta(days=90)
SKEW: Final = timedelta(days=1)
"""Certificates begin this long before now: of several API servers one's clock may be behind the one that we heard."""
MOST_NAMES: Final = 32
MOST_AUTHORITIES: Final = 8


class CertificateError(TesseraError):
    """A certificate, its key or its authority can't be used; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Material:
    """What a webhook serves with.

    Attributes:
        certificate: PEM, the serving certificate and any intermediates.
        key: PEM, its private key.
        bundle: PEM, the authorities that clients should trust; "" where a mounted pair came without.
        authority_key: PEM, the key of the bundle's first authority; "" where the pair is not of our making.
    """

    certificate: str
    key: str
    bundle: str = ""
    authority_key: str = ""

    def __repr__(self) -> str:
        """Never show keys: a Material may end up in an error message."""
        return f"Material({len(self.certificate)} characters of certificate)"

    @property
    def ours(self) -> bool:
        """We made it, so we renew it."""
        return bool(self.authority_key)


def make(names: Sequence[str], *, now: datetime) -> Material:
    """Make an authority and a certificate signed by it.

    Args:
        names: DNS names and IP addresses of the server, at most `MOST_NAMES`.
        now: aware.
    """
    authority, authority_key = _authority(now)
    return _sign(Material("", "", _pem(authority), _key_pem(authority_key)), names, now=now)


def due(material: Material, names: Sequence[str], *, now: datetime) -> str:
    """Say what has to be renewed: ``authority``, ``serving`` or nothing ("").

    Each is due at two thirds of its life; an authority goes first and a serving certificate that is still good waits for
    the next look, so that the bundle is out before anything is signed by the new one. What begins in the future was made by
    a clock that was wrong, and is due at once: nobody accepts it, and it would not be due for longer than it lasts.

    Raises:
        CertificateError: the material can't be read.
    """
    serving = leaf(material)
    authorities = parse_bundle(material.bundle)
    if not authorities or not in_force(serving, now) or not set(names) <= set(names_of(serving)):
        return "serving"
    if _load_key(material.key).public_key() != serving.public_key():
        return "serving"
    if not _signed_by_any(serving, [each for each in authorities if in_force(each, now)]):
        return "serving"
    if _two_thirds(authorities[0]) <= now or not in_force(authorities[0], now):
        return "authority"
    if _two_thirds(serving) <= now:
        return "serving"
    return ""


def renew(material: Material, what: str, names: Sequence[str], *, now: datetime) -> Material:
    """Renew the authority or the serving certificate. Old authorities stay in the bundle until they end.

    Names that the certificate has and that are not asked for are kept, so that two replicas with different flags don't
    take each other's names away for ever.

    Raises:
        CertificateError: the material can't be read.
    """
    if what == "authority" or not _usable_authority(material, now):
        authority, key = _authority(now)
        old = [each for each in parse_bundle(material.bundle) if in_force(each, now)]
        material = replace(
            material,
            bundle="".join(_pem(each) for each in [authority, *old][:MOST_AUTHORITIES]),
            authority_key=_key_pem(key),
        )
        if what == "authority":
            return material
    return _sign(material, list(dict.fromkeys([*names, *names_of(leaf(material))]))[:MOST_NAMES], now=now)


def in_force(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether a certificate has begun and not ended."""
    return certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc


def leaf(material: Material) -> x509.Certificate:
    """The serving certificate.

    Raises:
        CertificateError: there is none in it.
    """
    try:
        return x509.load_pem_x509_certificates(material.certificate.encode())[0]
    except (ValueError, IndexError) as error:
        raise CertificateError(f"tls.crt holds no certificate in PEM: {error}") from error


def names_of(certificate: x509.Certificate) -> list[str]:
    """The DNS names and addresses of a certificate, as text.

    Raises:
        CertificateError: its extensions can't be read.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    except (ValueError, x509.DuplicateExtension) as error:
        raise CertificateError(f"tls.crt has extensions that can't be read: {error}") from error
    return [*names.get_values_for_type(x509.DNSName), *(str(ip) for ip in names.get_values_for_type(x509.IPAddress))]


def parse_bundle(bundle: str) -> list[x509.Certificate]:
    """The authorities of a bundle; an empty one has none.

    Raises:
        CertificateError: there is text in it that is no certificate.
    """
    if not bundle.strip():
        return []
    try:
        return x509.load_pem_x509_certificates(bundle.encode())[: 2 * MOST_AUTHORITIES]
    except ValueError as error:
        raise CertificateError(f"ca.crt holds no certificates in PEM: {error}") from error


def join_bundles(ours: str, there: str) -> str:
    """Put our authorities in front of those that are in use already; what can't be read is left out.

    Dates decide nothing: an authority that has ended does no harm, while one that is thrown away by a clock that was wrong
    may be what another replica serves by. The oldest go when there are more than `MOST_AUTHORITIES`.

    Returns:
        `there` itself where nothing of ours is missing in it.
    """
    wanted = parse_bundle(ours)
    try:
        present = parse_bundle(there)
    except CertificateError:
        present = []
    if present and all(each in present for each in wanted):
        return there
    joined = [*wanted, *(each for each in present if each not in wanted)]
    return "".join(_pem(each) for each in joined[:MOST_AUTHORITIES])


def _sign(material: Material, names: Sequence[str], *, now: datetime) -> Material:
    authority, signer = parse_bundle(material.bundle)[0], _load_key(material.authority_key)
    key = ec.generate_private_key(ec.SECP256R1())
    start = now - SKEW
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tessera-webhook")]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        # Never beyond its authority: a chain ends with its shortest part.
        .not_valid_after(min(start + SERVING_LIFE, authority.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return replace(material, certificate=_pem(certificate), key=_key_pem(key))


def _authority(now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    start = now - SKEW
    # The name differs from authority to authority, or OpenSSL may try the wrong one of a bundle.
    common = f"tessera-webhook-ca-{now.astimezone(UTC):%Y%m%d%H%M%S}-{x509.random_serial_number() & 0xFFFFFF:06x}"
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        return x509.DNSName(text)
    except ValueError as error:
        raise CertificateError(f"{text!r} is no host name for a certificate: {error}") from error


def _two_thirds(certificate: x509.Certificate) -> datetime:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return start + (end - start) * 2 / 3


def _usable_authority(material: Material, now: datetime) -> bool:
    """Whether the bundle's first authority is in force and the key is its own."""
    authorities = parse_bundle(material.bundle)
    if not authorities or not in_force(authorities[0], now):
        return False
    try:
        return _load_key(material.authority_key).public_key() == authorities[0].public_key()
    except CertificateError:
        return False


def _signed_by_any(certificate: x509.Certificate, authorities: Iterable[x509.Certificate]) -> bool:
    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return True
    return False


def _load_key(text: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(text.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateError(f"a stored key can't be read: {type(error).__name__}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError("a stored key is not one of our kind (ECDSA)")
    return key


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
