"""A body that comes in chunks (RFC 9112, 7.1): decoded as it arrives, strictly and within bounds.

The API server sends a Content-Length, but proxies in front of a webhook may not. What two programs could read differently
is refused: sizes that are not plain hexadecimal, lines that don't end with CR LF, data that doesn't end where its chunk
says. Extensions and trailers are read and dropped, as the standard demands.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final, Literal

from webhook.admission.http1 import HEADER, HttpError

LONGEST_LINE: Final = 1024
"""Bytes of one size line with its extensions, or of one trailer."""
MOST_CHUNKS: Final = 16 * 1024
"""Chunks of one body: 8 MiB in pieces of 512 bytes. Smaller ones are a way to make us work, not to send a review."""
MOST_TRAILERS: Final = 32
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[\t !-~\x80-\xff]*)?")
_END: Final = b"\r\n"


class Chunks:
    """Decodes one body.

    Attributes:
        body: what has been decoded so far.
    """

    __slots__ = ("_chunks", "_left", "_most", "_state", "_trailers", "body")

    def __init__(self, most: int) -> None:
        """Expect a body.

        Args:
            most: bytes that it may have.
        """
        self.body = bytearray()
        self._most = most
        self._state: Literal["size", "data", "end", "trailer"] = "size"
        self._left = 0
        self._chunks = 0
        self._trailers = 0

    def take(self, buffer: bytearray) -> bool:
        """Decode from the front of a buffer what is there, and remove it.

        Returns:
            True where the body is complete; what is left in the buffer comes after it.

        Raises:
            HttpError: no chunks, or more than is taken.
        """
        at = 0
        try:
            while True:
                if self._state == "data":
                    piece = min(self._left, len(buffer) - at)
                    self.body += memoryview(buffer)[at : at + piece]
                    at += piece
                    self._left -= piece
                    if self._left:
                        return False
                    self._state = "end"
                line = self._line(buffer, at)
                if line is None:
                    return False
                at += len(line) + len(_END)
                if self._after(line):
                    return True
        finally:
            del buffer[:at]

    @staticmethod
    def _line(buffer: bytearray, at: int) -> bytes | None:
        end = buffer.find(_END, at, at + LONGEST_LINE)
        if end >= 0:
            return bytes(buffer[at:end])
        if len(buffer) - at >= LONGEST_LINE:
            raise HttpError(HTTPStatus.BAD_REQUEST, f"a line between chunks has more than {LONGEST_LINE} bytes")
        return None

    def _after(self, line: bytes) -> bool:
        """Go on after a line; True where it was the last."""
        if self._state == "end":
            if line:
                raise HttpError(HTTPStatus.BAD_REQUEST, "a chunk has more data than its size says")
            self._state = "size"
        elif self._state == "size":
            self._begin(line)
        elif not line:
            return True
        else:
            self._trailers += 1
            if self._trailers > MOST_TRAILERS or HEADER.fullmatch(line) is None:
                raise HttpError(HTTPStatus.BAD_REQUEST, "what follows the last chunk is no trailer")
        return False

    def _begin(self, line: bytes) -> None:
        found = _SIZE.fullmatch(line)
        if found is None:
            raise HttpError(HTTPStatus.BAD_REQUEST, "a chunk's size is no hexadecimal number")
        self._left = int(found.group(1), 16)
        self._chunks += 1
        if len(self.body) + self._left > self._most:
            raise HttpError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"body of more than the {self._most} bytes that are taken"
            )
        if self._chunks > MOST_CHUNKS:
            raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"body of more than {MOST_CHUNKS} chunks")
        self._state = "data" if self._left else "trailer"
