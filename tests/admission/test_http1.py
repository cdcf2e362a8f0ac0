"""What is read as the head of a request, and what is refused rather than guessed."""

import json
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhook.admission.http1 import LONGEST_HEAD, MOST_HEADERS, Answer, HttpError, read_head, refusal, write_head

GO = (
    b"POST /mutate?timeout=10s HTTP/1.1\r\nHost: tessera-webhook.tessera-system.svc:443\r\n"
    b"User-Agent: kube-apiserver-admission\r\nContent-Length: 4142\r\nAccept: application/json, */*\r\n"
    b"Content-Type: application/json\r\nAccept-Encoding: gzip"
)


def head(*lines, start="POST /mutate HTTP/1.1", host=True, kind=True, length="2"):
    parts = [start]
    if host:
        parts.append("Host: h")
    if kind:
        parts.append("Content-Type: application/json")
    if length is not None:
        parts.append(f"Content-Length: {length}")
    return "\r\n".join([*parts, *lines]).encode("latin-1")


def test_what_the_api_server_sends():
    found = read_head(GO)
    assert (found.method, found.path, found.length) == ("POST", "/mutate", 4142)
    assert found.keep_alive
    assert not found.waits


@pytest.mark.parametrize(
    ("given_head", "keep_alive"),
    [
        pytest.param(head(), True, id="1.1"),
        pytest.param(head("Connection: close"), False, id="close"),
        pytest.param(head("connection: Upgrade, CLOSE"), False, id="close among others, in capitals"),
        pytest.param(head(start="POST /mutate HTTP/1.0", host=False), False, id="1.0"),
        pytest.param(head("Connection: keep-alive", start="POST /mutate HTTP/1.0"), True, id="1.0 keep-alive"),
    ],
)
def test_keep_alive(given_head, keep_alive):
    assert read_head(given_head).keep_alive is keep_alive


def test_expectation():
    assert read_head(head("Expect: 100-Continue")).waits


def test_a_get_needs_neither_type_nor_length():
    assert read_head(head(start="GET / HTTP/1.1", kind=False, length=None)).length == 0


def test_a_body_in_chunks():
    found = read_head(head("Transfer-Encoding: Chunked", length=None))
    assert found.chunked
    assert found.length == 0
    assert not read_head(GO).chunked


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8"])
def test_content_types(kind):
    assert read_head(head(f"Content-Type: {kind}", kind=False)).length == 2


@pytest.mark.parametrize(
    ("given_head", "status"),
    [
        pytest.param(b"", 400, id="empty"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01", 400, id="TLS inside TLS"),
        pytest.param(head(start="POST http://h/mutate HTTP/1.1"), 400, id="absolute target"),
        pytest.param(head(start="POST /a b HTTP/1.1"), 400, id="blank in target"),
        pytest.param(head(start="POST /\x7f HTTP/1.1"), 400, id="control character in target"),
        pytest.param(head(start="POST /" + "a" * 4000 + " HTTP/1.1"), 400, id="endless target"),
        pytest.param(head(start="POST /mutate HTTP/2.0"), 505, id="HTTP/2"),
        pytest.param(head(start="POST /mutate"), 400, id="HTTP/0.9"),
        pytest.param(head(host=False), 400, id="no host"),
        pytest.param(head("Host: other"), 400, id="two hosts"),
        pytest.param(head("X-A : b"), 400, id="blank before the colon"),
        pytest.param(head(" folded"), 400, id="folded line"),
        pytest.param(head("X-A: b\nX-B: c"), 400, id="a lone line feed"),
        pytest.param(head("X-A: b\rc"), 400, id="a lone carriage return"),
        pytest.param(head("X-A: b\x00"), 400, id="NUL"),
        pytest.param(head("no colon"), 400, id="no colon"),
        pytest.param(head(length="-1"), 400, id="negative length"),
        pytest.param(head(length="+2"), 400, id="signed length"),
        pytest.param(head(length="0x10"), 400, id="hexadecimal length"),
        pytest.param(head(length="1_0"), 400, id="underscore in length"),
        pytest.param(head(length="9" * 20), 400, id="length beyond all numbers"),
        pytest.param(head(length=None), 411, id="no length"),
        pytest.param(head("Content-Length: 2"), 400, id="two lengths"),
        pytest.param(head("Transfer-Encoding: chunked"), 400, id="length and chunks"),
        pytest.param(head("Transfer-Encoding: gzip, chunked", length=None), 501, id="compressed chunks"),
        pytest.param(head("Transfer-Encoding: identity", length=None), 501, id="another coding"),
        pytest.param(head("Transfer-Encoding: xchunked", length=None), 501, id="nearly chunked"),
        pytest.param(
            head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked", length=None), 400, id="chunked twice"
        ),
        pytest.param(head("Transfer-Encoding: chunked", start="POST / HTTP/1.0", length=None), 400, id="chunks in 1.0"),
        pytest.param(head("Expect: miracle"), 417, id="unknown expectation"),
        pytest.param(head(kind=False), 415, id="no content type"),
        pytest.param(head("Content-Type: text/plain", kind=False), 415, id="another content type"),
        pytest.param(head("Content-Encoding: gzip"), 415, id="compressed"),
        pytest.param(head(*(f"X-{i}: a" for i in range(MOST_HEADERS))), 431, id="too many headers"),
    ],
)
def test_what_is_refused(given_head, status):
    with pytest.raises(HttpError) as caught:
        read_head(given_head)
    assert caught.value.status == status


@given(
    st.binary(max_size=300)
    | st.text(alphabet="POST/ HTP1.\r\n:abcLengthContent-0123\x00é", max_size=300).map(lambda t: t.encode())
)
def test_no_head_is_too_strange(given_head):
    try:
        found = read_head(given_head)
    except HttpError:
        return
    assert found.path.startswith("/")
    assert found.length >= 0


def test_an_answer():
    written = write_head(Answer(HTTPStatus.OK, b"{}"), date=b"Tue, 24 Nov 2026 08:00:00 GMT", close=False)
    lines = written.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 200 OK"
    assert b"Content-Length: 2" in lines
    assert b"Content-Type: application/json" in lines
    assert not any(line.lower().startswith(b"connection") for line in lines)
    assert written.endswith(b"\r\n\r\n")
    assert b"Connection: close\r\n" in write_head(Answer(HTTPStatus.OK, b""), date=b"x", close=True)


def test_a_refusal_is_a_status_object():
    answer = refusal(HTTPStatus.BAD_REQUEST, 'a "quoted" problem')
    body = json.loads(answer.body)
    assert body["kind"] == "Status"
    assert body["code"] == 400
    assert body["message"] == 'a "quoted" problem'


def test_the_longest_head_leaves_room_for_what_go_sends():
    assert len(GO) * 10 < LONGEST_HEAD
