"""Our own authority and certificates: what clients accept, and when something is renewed."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.x509 import verification

from webhook.admission.selfmade import (
    AUTHORITY_LIFE,
    MOST_AUTHORITIES,
    MOST_NAMES,
    SERVING_LIFE,
    CertificateError,
    due,
    join_bundles,
    leaf,
    make,
    names_of,
    parse_bundle,
    renew,
)

NOW = datetime(2026, 11, 24, 8, tzinfo=UTC)
NAMES = ["tessera-webhook.tessera-system.svc", "localhost", "127.0.0.1", "::1"]


@pytest.fixture(scope="module")
def made():
    return make(NAMES, now=NOW)


def verify(material, *, now, bundle=None, name="tessera-webhook.tessera-system.svc"):
    """A strict client's view, by cryptography's own verifier and not by our code."""
    store = verification.Store(parse_bundle(bundle or material.bundle))
    from cryptography.x509 import DNSName

    verifier = verification.PolicyBuilder().store(store).time(now).build_server_verifier(DNSName(name))
    verifier.verify(leaf(material), [])


def test_a_strict_client_accepts_it(made):
    verify(made, now=NOW)
    verify(made, now=NOW, name="localhost")
    with pytest.raises(verification.VerificationError):
        verify(made, now=NOW, name="elsewhere")
    with pytest.raises(verification.VerificationError):
        verify(made, now=NOW + SERVING_LIFE)


def test_its_names(made):
    assert names_of(leaf(made)) == NAMES


def test_a_name_that_is_none_is_refused():
    with pytest.raises(CertificateError, match="no host name"):
        make(["höst"], now=NOW)


def test_nothing_is_due_at_first(made):
    assert due(made, NAMES, now=NOW) == ""
    assert due(made, NAMES[:1], now=NOW) == ""


def test_the_serving_certificate_is_renewed_at_two_thirds_of_its_life_by_the_same_authority(made):
    early, late = NOW + SERVING_LIFE * 0.64, NOW + SERVING_LIFE * 0.67
    assert due(made, NAMES, now=early) == ""
    assert due(made, NAMES, now=late) == "serving"
    renewed = renew(made, "serving", NAMES, now=late)
    assert renewed.bundle == made.bundle
    assert due(renewed, NAMES, now=late) == ""
    verify(renewed, now=late + SERVING_LIFE / 2)


def test_a_new_authority_joins_the_bundle_before_anything_is_signed_by_it(made):
    late = NOW + AUTHORITY_LIFE * 0.67
    served = renew(made, "serving", NAMES, now=late)
    assert due(served, NAMES, now=late) == "authority"
    rotated = renew(served, "authority", NAMES, now=late)
    assert due(rotated, NAMES, now=late) == ""
    assert len(parse_bundle(rotated.bundle)) == 2
    assert rotated.certificate == served.certificate
    verify(rotated, now=late)
    # Those who have not seen the new bundle yet still trust what is served, and those who have do so too.
    verify(rotated, now=late, bundle=served.bundle)
    later = late + SERVING_LIFE * 0.67
    assert due(rotated, NAMES, now=later) == "serving"
    renewed = renew(rotated, "serving", NAMES, now=later)
    verify(renewed, now=later)
    with pytest.raises(verification.VerificationError):
        verify(renewed, now=later, bundle=served.bundle)


def test_an_authority_that_has_ended_leaves_the_bundle(made):
    late = NOW + AUTHORITY_LIFE * 0.67
    rotated = renew(made, "authority", NAMES, now=late)
    much_later = NOW + AUTHORITY_LIFE + timedelta(days=1)
    rotated = renew(rotated, "serving", NAMES, now=much_later)
    again = renew(rotated, "authority", NAMES, now=much_later)
    assert len(parse_bundle(again.bundle)) == 2


def test_a_serving_certificate_never_outlives_its_authority(made):
    late = NOW + AUTHORITY_LIFE - timedelta(days=10)
    renewed = renew(made, "serving", NAMES, now=late)
    assert leaf(renewed).not_valid_after_utc <= parse_bundle(made.bundle)[0].not_valid_after_utc


def test_whoever_slept_through_everything_gets_both_at_once(made):
    late = NOW + AUTHORITY_LIFE * 2
    assert due(made, NAMES, now=late) == "serving"
    renewed = renew(made, "serving", NAMES, now=late)
    assert due(renewed, NAMES, now=late) == ""
    verify(renewed, now=late)


def test_a_missing_name_is_added_and_others_are_kept(made):
    assert due(made, ["new.example"], now=NOW) == "serving"
    renewed = renew(made, "serving", ["new.example"], now=NOW)
    assert names_of(leaf(renewed)) == ["new.example", *NAMES] or set(names_of(leaf(renewed))) == {"new.example", *NAMES}
    assert due(renewed, NAMES, now=NOW) == ""


def test_names_are_bounded(made):
    names = [f"h{i}.example" for i in range(MOST_NAMES)]
    assert set(names_of(leaf(renew(made, "serving", names, now=NOW)))) == set(names)


@pytest.mark.parametrize("part", ["key", "authority_key", "bundle", "certificate"])
def test_material_that_does_not_fit_together(made, part):
    other = make(NAMES, now=NOW)
    mixed = replace(made, **{part: getattr(other, part)})
    what = due(mixed, NAMES, now=NOW)
    if part == "authority_key":
        # Nothing is wrong with what is served; the next renewal finds out.
        assert what == ""
        what = "serving"
    assert what == "serving"
    verify(renew(mixed, what, NAMES, now=NOW), now=NOW)


@pytest.mark.parametrize("part", ["key", "certificate", "bundle"])
def test_material_that_can_not_be_read(made, part):
    with pytest.raises(CertificateError):
        due(replace(made, **{part: "-----BEGIN NOTHING-----\n"}), NAMES, now=NOW)


def test_keys_do_not_show(made):
    assert "PRIVATE" not in repr(made)


def test_joining_bundles(made):
    other = make(NAMES, now=NOW)
    joined = join_bundles(made.bundle, other.bundle)
    assert parse_bundle(joined) == [*parse_bundle(made.bundle), *parse_bundle(other.bundle)]
    # Whoever has them all has nothing to do, in whatever order they stand: replicas don't shuffle each other's bundles.
    assert join_bundles(other.bundle, joined) == joined
    assert join_bundles(made.bundle, "") == made.bundle
    assert join_bundles(made.bundle, "Cg==") == made.bundle


def test_dates_throw_nothing_out_of_a_bundle(made):
    """What looks as if it had ended or not begun may be what another replica serves by, and the clock be wrong."""
    for off in (-2 * AUTHORITY_LIFE, 2 * AUTHORITY_LIFE):
        other = make(NAMES, now=NOW + off)
        joined = join_bundles(made.bundle, other.bundle)
        assert parse_bundle(joined) == [*parse_bundle(made.bundle), *parse_bundle(other.bundle)]


def test_bundles_are_bounded():
    bundle = ""
    for _ in range(MOST_AUTHORITIES + 3):
        bundle = join_bundles(make(["h"], now=NOW).bundle, bundle)
    assert len(parse_bundle(bundle)) == MOST_AUTHORITIES
