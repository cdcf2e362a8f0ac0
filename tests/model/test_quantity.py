"""Quantities are read exactly as the API server reads them: nothing more, nothing less."""

import contextlib
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.model.errors import QuantityError
from tessera.model.quantity import GIB, MIB, binary, gib, parse, size, whole


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("8Gi", 8 * GIB),
        ("8192Mi", 8 * GIB),
        ("8G", 8 * 10**9),
        ("1e3", 1000),
        ("1E3", 1000),
        ("1E", 10**18),
        ("12e-1", Fraction(6, 5)),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        ("+3k", 3000),
        ("-1", -1),
        ("100m", Fraction(1, 10)),
        ("1n", Fraction(1, 10**9)),
        ("2u", Fraction(2, 10**6)),
        ("1.5Gi", 3 * GIB // 2),
        ("007", 7),
        (2, 2),
        (0.5, Fraction(1, 2)),
        (1e3, 1000),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_what_the_api_server_takes(text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "", " ", " 1Gi", "1Gi ", "1 Gi", "1_000", "NaN", "nan", "inf", "Infinity", "0x10", "٣", "\uff11", "1gi", "1GI", "1K",
        "1ki", "1mi", "1b", "1GiB", "1e", "1e+", "1e1.5", "--1", "+-1", "1.2.3", ".", "-", "+", "Gi", "e3", "1,5", "1\n",
        "1\x00", "1Gi1", "1e3k", "9223372036854775808", "1e65", "1e-65", "1e99999999999", "9" * 65, "16Ei",
        True, False, None, [], {}, float("nan"), float("inf"),
    ],
)  # fmt: skip
def test_what_it_refuses(text):
    with pytest.raises(QuantityError):
        parse(text)


@pytest.mark.parametrize("text", ["0.5", "100m", "1.5", "1n", "0.1Ki", 0.5])
def test_a_fraction_of_a_byte_is_not_whole(text):
    with pytest.raises(QuantityError, match="not a whole number"):
        whole(text)


@pytest.mark.parametrize(("text", "value"), [("0.5Ki", 512), ("1.5G", 1_500_000_000), ("1000m", 1), ("1e0", 1)])
def test_a_fraction_that_comes_out_whole_is_whole(text, value):
    assert whole(text) == value


@given(st.integers(0, 2**63 - 1))
def test_binary_reads_back(amount):
    assert whole(binary(amount)) == amount


@given(st.integers(-(2**63) + 1, 2**63 - 1))
def test_numbers_and_texts_agree(amount):
    assert parse(amount) == parse(str(amount)) == amount


@given(st.text())
def test_no_text_does_anything_but_parse_or_be_refused(text):
    with contextlib.suppress(QuantityError):
        assert parse(text) is not None


@given(st.decimals(min_value=0, max_value=10**15, places=9, allow_nan=False))
def test_decimals_are_exact(value):
    assert parse(f"{value:f}") == Fraction(value)


def test_for_people():
    assert binary(256 * MIB) == "256Mi"
    assert binary(0) == "0"
    assert binary(1000) == "1000"
    assert gib(8 * GIB) == "8 GiB"
    assert gib(GIB // 2) == "0.5 GiB"
    assert size(8 * GIB) == "8 GiB"
    assert size(5 * GIB // 2) == "2.5 GiB"
    assert size(768 * MIB) == "768 MiB"
    assert size(0) == "0 MiB"
