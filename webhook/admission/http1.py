"""The little HTTP/1.1 that an admission webhook needs: read the head of a POST strictly, write an answer.

Why not a server framework: answering a review needs no coroutine (one parse, one patch, no API call), and over TLS on one
core aiohttp's low-level server costs 86 microseconds a review before any work of ours is done, 112 on a busy machine; this
costs 48 and 43 (Python 3.11, 4 KB reviews, 8 connections; uvloop changed neither for the better, since TLS is most of it).
A framework also leaves open what matters here: deadlines for head and body, a bound on what all connections together
hold, and a cap that counts before the TLS handshake (`connection`, `server`).

The API server (Go's net/http) always sends a Content-Length; proxies in front of us may send chunks (see `chunks`). What is
doubtful is refused: a head that two programs could read differently is how requests are smuggled.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Final, NamedTuple

import msgspec

from tessera.model.errors import TesseraError

LONGEST_HEAD: Final = 16 * 1024
"""Bytes of request line and headers together; Go's client sends about 250 here."""
MOST_HEADERS: Final = 64
END_OF_HEAD: Final = b"\r\n\r\n"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

_REQUEST_LINE: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}) (/[!-~]{0,2047}) HTTP/([0-9])\.([0-9])")
HEADER: Final = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*((?:[!-~\x80-\xff](?:[ \t!-~\x80-\xff]*[!-~\x80-\xff])?)?)[ \t]*"
)
_LENGTH: Final = re.compile(rb"[0-9]{1,15}")
_SINGLE: Final = (b"host", b"content-length", b"content-type", b"content-encoding", b"transfer-encoding", b"expect")


class HttpError(TesseraError):
    """A request that is answered with an error and closes its connection, since what follows can't be trusted.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: HTTPStatus, problem: str) -> None:
        """Say what is wrong with the request."""
        self.status = status
        super().__init__(problem)


class Answer(NamedTuple):
    """What a handler makes of a body: HTTP status and JSON."""

    status: HTTPStatus
    body: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """The head of one request.

    Attributes:
        method: as sent.
        path: without the query.
        length: bytes of the body; 0 where it comes in chunks.
        keep_alive: the client wants to send more on this connection.
        waits: it sends the body only after a 100 (Expect: 100-continue).
        chunked: the body comes in chunks.
    """

    method: str
    path: str
    length: int
    keep_alive: bool
    waits: bool
    chunked: bool = False


# The API server sends the same head with few different lengths, so most are known already. Failures are not kept.
@lru_cache(maxsize=128)
def read_head(head: bytes) -> Head:
    """Read request line and headers, without the empty line that ends them.

    Raises:
        HttpError: what is sent can't be understood in one way only, or is not what a webhook takes.
    """
    line, *lines = head.split(b"\r\n")
    found = _REQUEST_LINE.fullmatch(line)
    if found is None:
        raise HttpError(HTTPStatus.BAD_REQUEST, "request line is not 'METHOD /path HTTP/1.1'")
    if found.group(3) != b"1":
        raise HttpError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "only HTTP/1.1 is spoken here")
    recent = found.group(4) != b"0"
    headers = _headers(lines)
    if recent and b"host" not in headers:
        raise HttpError(HTTPStatus.BAD_REQUEST, "header Host is missing")
    expect = headers.get(b"expect", b"").lower()
    if expect not in (b"", b"100-continue"):
        raise HttpError(HTTPStatus.EXPECTATION_FAILED, "the only expectation understood is 100-continue")
    connection = [token.strip() for token in headers.get(b"connection", b"").lower().split(b",")]
    keep_alive = b"close" not in connection and (recent or b"keep-alive" in connection)
    method = found.group(1).decode()
    chunked = _chunked(headers, recent=recent)
    length = 0 if chunked else _length(headers, needed=method == "POST")
    if method == "POST":
        _check_type(headers)
    path = found.group(2).decode().partition("?")[0]
    return Head(method, path, length, keep_alive, waits=recent and bool(expect), chunked=chunked)


def write_head(answer: Answer, *, date: bytes, close: bool) -> bytes:
    """Write status line and headers of an answer.

    Args:
        answer: its status and the length of its body are written.
        date: as in a Date header; the server makes it once a second.
        close: tell the client that this connection ends here.
    """
    extra = b"Connection: close\r\n" if close else b""
    if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
        extra += b"Allow: POST\r\n"
    return b"%sDate: %s\r\nContent-Length: %d\r\n%s\r\n" % (
        _status_line(answer.status),
        date,
        len(answer.body),
        extra,
    )


def refusal(status: HTTPStatus, problem: str) -> Answer:
    """An error as every Kubernetes component writes it: a ``Status`` object of meta/v1."""
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": problem,
        "reason": status.phrase.replace(" ", ""),
        "code": status.value,
    }
    return Answer(status, msgspec.json.encode(body))


@lru_cache(maxsize=64)
def _status_line(status: HTTPStatus) -> bytes:
    return f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n".encode()


def _headers(lines: list[bytes]) -> dict[bytes, bytes]:
    if len(lines) > MOST_HEADERS:
        raise HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"more than {MOST_HEADERS} headers")
    headers: dict[bytes, bytes] = {}
    for line in lines:
        # Covers folded lines, blanks before the colon, control characters and lone CR or LF.
        found = HEADER.fullmatch(line)
        if found is None:
            raise HttpError(HTTPStatus.BAD_REQUEST, "a header line is not 'name: value'")
        name = found.group(1).lower()
        if name not in headers:
            headers[name] = found.group(2)
        elif name in _SINGLE:
            raise HttpError(HTTPStatus.BAD_REQUEST, f"header {name.decode()} stands twice")
        else:
            headers[name] += b"," + found.group(2)
    return headers


def _chunked(headers: dict[bytes, bytes], *, recent: bool) -> bool:
    coding = headers.get(b"transfer-encoding")
    if coding is None:
        return False
    if b"content-length" in headers:
        raise HttpError(HTTPStatus.BAD_REQUEST, "Transfer-Encoding and Content-Length exclude each other")
    if not recent:
        raise HttpError(HTTPStatus.BAD_REQUEST, "HTTP/1.0 has no Transfer-Encoding")
    if coding.lower() != b"chunked":
        raise HttpError(HTTPStatus.NOT_IMPLEMENTED, "the only Transfer-Encoding understood is chunked")
    return True


def _length(headers: dict[bytes, bytes], *, needed: bool) -> int:
    text = headers.get(b"content-length")
    if text is None:
        if needed:
            raise HttpError(HTTPStatus.LENGTH_REQUIRED, "header Content-Length is missing")
        return 0
    if not _LENGTH.fullmatch(text):
        raise HttpError(HTTPStatus.BAD_REQUEST, "Content-Length is no number of bytes")
    return int(text)


def _check_type(headers: dict[bytes, bytes]) -> None:
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        raise HttpError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"Content-Type {kind.decode('latin-1')[:64]!r} is not understood; send application/json",
        )
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "compressed bodies are not taken; send plain JSON")
