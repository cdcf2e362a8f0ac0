"""Quantities in canonical form: another text, the same amount."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.model.errors import QuantityError
from tessera.model.quantity import parse
from tessera.testing.apiserver.decoding import canonical

AMOUNTS = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "-"]),
    st.one_of(st.integers(0, 10**6).map(str), st.decimals(0, 1000, places=3).map(str)),
    st.sampled_from(["", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti", "e0", "e3", "E2", "e-3"]),
)


@given(AMOUNTS)
def test_the_canonical_form_is_the_same_amount_and_stays(text):
    shown = canonical(text)
    assert parse(shown) == parse(text)
    assert canonical(shown) == shown


@pytest.mark.parametrize(
    ("given", "canonical_form"),
    # From apimachinery's own quantity tests.
    [
        ("0", "0"),
        ("0Ki", "0"),
        ("1024", "1024"),
        ("1Ki", "1Ki"),
        ("1000Ki", "1000Ki"),
        ("1024Ki", "1Mi"),
        ("0.5Ki", "512"),
        ("1000", "1k"),
        ("100", "100"),
        ("0.001", "1m"),
        ("1e6", "1e6"),
        ("100e3", "100e3"),
        ("1E", "1E"),
        ("-5", "-5"),
        ("0.0000000001", "1n"),
    ],
)
def test_known_forms(given, canonical_form):
    assert canonical(given) == canonical_form


@pytest.mark.parametrize("text", ["", " 1", "1 Gi", "1_000", "NaN", "1GiB", "\u0661"])
def test_what_is_no_quantity(text):
    with pytest.raises(QuantityError):
        canonical(text)
