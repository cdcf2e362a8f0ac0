"""Bodies in chunks: what is decoded, and what is refused rather than guessed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhook.admission.chunks import LONGEST_LINE, MOST_CHUNKS, MOST_TRAILERS, Chunks
from webhook.admission.http1 import HttpError


def decoded(stream, most=1000):
    """The body, and what is left after it; None for a body that is not complete."""
    chunks, buffer = Chunks(most), bytearray(stream)
    complete = chunks.take(buffer)
    return bytes(chunks.body) if complete else None, bytes(buffer)


@pytest.mark.parametrize(
    ("stream", "body", "left"),
    [
        (b"0\r\n\r\n", b"", b""),
        (b"3\r\nabc\r\n0\r\n\r\nPOST", b"abc", b"POST"),
        (b"1\r\na\r\n0A\r\n0123456789\r\n000\r\n\r\n", b"a0123456789", b""),
        (b"3;name=value\r\nabc\r\n0;last\r\n\r\n", b"abc", b""),
        (b"3 ;a\r\nabc\r\n0\r\nX-Trailer: 1\r\nX-B:\r\n\r\n", b"abc", b""),
        (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n", b""),
        (b"3\r\nab", None, b""),
        (b"3\r\nabc\r", None, b"\r"),
        (b"3", None, b"3"),
        (b"0\r\n", None, b""),
        (b"", None, b""),
    ],
)
def test_what_is_decoded(stream, body, left):
    assert decoded(stream) == (body, left)


@pytest.mark.parametrize(
    ("stream", "status"),
    [
        pytest.param(b"\r\n", 400, id="no size"),
        pytest.param(b"0x3\r\nabc\r\n", 400, id="a prefix"),
        pytest.param(b"+3\r\nabc\r\n", 400, id="a sign"),
        pytest.param(b" 3\r\nabc\r\n", 400, id="a blank before"),
        pytest.param(b"3_0\r\n", 400, id="an underscore"),
        pytest.param(b"g\r\n", 400, id="no hexadecimal digit"),
        pytest.param(b"000000003\r\nabc\r\n", 400, id="too many digits"),
        pytest.param(b"3\nabc\r\n0\r\n\r\n", 400, id="a lone line feed after the size"),
        pytest.param(b"3;a\nb\r\nabc\r\n", 400, id="a lone line feed in an extension"),
        pytest.param(b"3;\x00\r\nabc\r\n", 400, id="NUL in an extension"),
        pytest.param(b"3\r\nabcd\r\n0\r\n\r\n", 400, id="more data than said"),
        pytest.param(b"3\r\nabc0\r\n\r\n", 400, id="no line end after the data"),
        pytest.param(b"3\r\nabc\n\n0\r\n\r\n", 400, id="lone line feeds after the data"),
        pytest.param(b"0\r\nno trailer\r\n\r\n", 400, id="no trailer"),
        pytest.param(b"0\r\nX : a\r\n\r\n", 400, id="a blank before the colon"),
        pytest.param(b"0\r\n" + b"X: a\r\n" * (MOST_TRAILERS + 1), 400, id="too many trailers"),
        pytest.param(b"1;" + b"a" * LONGEST_LINE, 400, id="an endless extension"),
        pytest.param(b"3e9\r\n", 413, id="a chunk that is too large"),
        pytest.param(b"FFFFFFFF\r\n", 413, id="a chunk beyond all bounds"),
        pytest.param(b"3e8\r\n" + bytes(1000) + b"\r\n1\r\n", 413, id="one byte too many in all"),
    ],
)
def test_what_is_refused(stream, status):
    with pytest.raises(HttpError) as caught:
        decoded(stream)
    assert caught.value.status == status


def test_the_number_of_chunks_is_bounded():
    with pytest.raises(HttpError) as caught:
        decoded(b"1\r\na\r\n" * (MOST_CHUNKS + 1), most=10 * MOST_CHUNKS)
    assert caught.value.status == 413


@given(st.binary(max_size=80) | st.text(alphabet="0123aAfF;\r\n\t x", max_size=80).map(str.encode), st.integers(0, 80))
def test_no_bytes_are_too_strange_and_a_cut_changes_nothing(stream, cut):
    def outcome(*pieces):
        chunks, buffer = Chunks(1000), bytearray()
        try:
            for piece in pieces:
                buffer += piece
                if chunks.take(buffer):
                    return bytes(chunks.body), "complete"
        except HttpError as error:
            return error.status, "refused"
        return bytes(chunks.body), "waiting"

    assert outcome(stream) == outcome(stream[:cut], stream[cut:])
