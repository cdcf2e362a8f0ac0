"""Heads of HTTP/1 messages: bytes in, the few facts that a listener acts on out, and the other way round.

RFC 9112 where it leaves a choice takes the strict side: what two readers could understand in two ways is refused, since the
one in front of us may have been the other.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final, NamedTuple

from webhook.extender.errors import ExtenderError

LONGEST_HEAD: Final = 8192
"""Bytes of a request's head; kube-scheduler's has under 200."""
_REQUEST: Final = re.compile(rb"([A-Z]{1,20}) (/[!-~]*) HTTP/1\.([01])")
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")


class HeadError(ExtenderError):
    """A head that is refused.

    Attributes:
        status: that the client is told.
    """

    def __init__(self, status: int, text: str) -> None:
        """Refuse by this HTTP status, for this reason."""
        super().__init__(text)
        self.status = status


class Head(NamedTuple):
    """A request's head.

    Attributes:
        method: such as ``POST``.
        path: without its query.
        length: bytes of the body; None where they were not told.
        last: the client wants the connection closed after the answer.
        waits: it sends the body only once it is told to (``Expect: 100-continue``).
    """

    method: str
    path: str
    length: int | None
    last: bool
    waits: bool


def read_head(text: bytes) -> Head:
    """Read a head, without the empty line at its end.

    Raises:
        HeadError: no HTTP/1.0 or 1.1, or not in one clear meaning.
    """
    first, *lines = text.split(b"\r\n")
    request = _REQUEST.fullmatch(first)
    if request is None:
        raise HeadError(400, f"{first[:40]!r} is no request of HTTP/1.1")
    fields: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or _NAME.fullmatch(name) is None or b"\n" in value or b"\r" in value or b"\0" in value:
            raise HeadError(400, f"{line[:40]!r} is no header field")
        key = name.lower()
        if key in fields and key in (b"content-length", b"transfer-encoding"):
            raise HeadError(400, f"{key.decode()} is given twice")
        fields[key] = value.strip(b" \t")
    method, target, minor = request.groups()
    length = fields.get(b"content-length")
    if length is not None and (_LENGTH.fullmatch(length) is None or b"transfer-encoding" in fields):
        raise HeadError(400, "the length of the body is not clear")
    connection = fields.get(b"connection", b"").lower()
    return Head(
        method.decode(),
        target.partition(b"?")[0].decode(),
        None if length is None else int(length),
        connection != b"keep-alive" if minor == b"0" else b"close" in connection,
        fields.get(b"expect", b"").lower() == b"100-continue",
    )


def answer_head(status: int, length: int, *, kind: str, last: bool, more: str = "") -> bytes:
    """The head of an answer.

    Args:
        status: of HTTP.
        length: bytes of the body.
        kind: its media type.
        last: the connection ends after it.
        more: header lines beside those, each with its end.
    """
    end = "Connection: close\r\n" if last else ""
    return (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {length}\r\n{more}{end}\r\n"
    ).encode()
