"""What can go wrong between us and the API server, one class per thing a caller does differently about it.

The question that matters after a failed write is whether it may have happened all the same: a Binding whose answer was
lost may be in force. `ApiError.maybe_done` answers it, and errs towards "maybe": every failure after a connection was
in hand, and every 5xx (a load balancer's 502, etcd's "request timed out") counts as such.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tessera.model.errors import TesseraError

_LONGEST_DETAIL: Final = 2000
"""Characters of a server's text that are kept: an error page of a proxy may be megabytes."""


class KubeError(TesseraError):
    """Root of everything that goes wrong at the API server's door."""


class ConnectionConfigError(KubeError):
    """Where to connect, or by which credentials, can't be told from flags, environment and files."""


class DecodeError(KubeError):
    """The server sent something that is no answer: not JSON, not of the expected form, or too large."""


class ApiError(KubeError):
    """A request failed.

    Attributes:
        status: HTTP status, 0 where no answer came.
        reason: the Status object's reason, such as ``AlreadyExists``; "" where there is none.
        detail: the server's own message.
        retry_after: seconds that the server asks to wait, or None.
        maybe_done: a write that may have taken effect although it failed. Always False for reads.
    """

    def __init__(
        self,
        what: str,
        *,
        status: int = 0,
        reason: str = "",
        detail: str = "",
        retry_after: float | None = None,
        maybe_done: bool = False,
    ) -> None:
        """Make the message from what was tried (``bind pods team/a``) and what came back."""
        self.what = what
        self.status = status
        self.reason = reason
        self.detail = detail
        self.retry_after = retry_after
        self.maybe_done = maybe_done
        answer = " ".join(part for part in (str(status) if status else "", reason) if part)
        doubt = "; it may have taken effect all the same" if maybe_done else ""
        super().__init__(f"{what}: {': '.join(part for part in (answer, detail) if part)}{doubt}")


class BadRequestError(ApiError):
    """400: the server can't make sense of what we sent, or an admission webhook denied it without a code."""


class UnauthorizedError(ApiError):
    """401: the credentials are not accepted (any more)."""


class ForbiddenError(ApiError):
    """403: RBAC, a policy or an admission plugin says no."""


class NotFoundError(ApiError):
    """404: no such object, or no such resource on this server."""


class ConflictError(ApiError):
    """409: the object is not in the state that the write presumed (changed, already bound, another UID)."""


class AlreadyExistsError(ConflictError):
    """409 AlreadyExists: an object of that name is there."""


class GoneError(ApiError):
    """410: the resourceVersion or continue token is too old; list anew."""


class InvalidError(ApiError):
    """422: the object fails validation."""


class TooManyRequestsError(ApiError):
    """429: priority and fairness, or a PodDisruptionBudget on eviction, asks us to wait `retry_after` seconds."""


class ServerFaultError(ApiError):
    """5xx: the server failed."""


class UnavailableError(ServerFaultError):
    """502, 503, or no connection at all: try again later."""


class AnswerLostError(UnavailableError):
    """The connection broke after the request had, or may have, been sent."""


class ApiTimeoutError(ServerFaultError):
    """The deadline passed before the answer, ours or the server's (504)."""


class _Details(msgspec.Struct):
    retryAfterSeconds: int = 0  # noqa: N815  the field's own name


class _Status(msgspec.Struct):
    message: str = ""
    reason: str = ""
    code: int = 0
    details: _Details | None = None


_BY_STATUS: Final[dict[int, type[ApiError]]] = {
    400: BadRequestError,
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    422: InvalidError,
    429: TooManyRequestsError,
    502: UnavailableError,
    503: UnavailableError,
    504: ApiTimeoutError,
}
_DECODER: Final = msgspec.json.Decoder(_Status)


def error_from_answer(what: str, *, status: int, body: bytes, retry_after: str = "", write: bool = False) -> ApiError:
    """Make the error of an answer that is no success.

    Args:
        what: what was tried, for the message.
        status: HTTP status; 0 takes the code of the Status object (errors inside a watch stream).
        body: a ``Status`` object as the API server sends it, or whatever a proxy made of it.
        retry_after: the Retry-After header; only its form in seconds is understood, as client-go does.
        write: whether the request could have changed something.
    """
    try:
        answer = _DECODER.decode(body)
    except msgspec.MsgspecError:
        answer = _Status(message=body[:_LONGEST_DETAIL].decode("utf-8", "replace").strip())
    code = status or answer.code
    wait = float(retry_after) if retry_after.isascii() and retry_after.isdecimal() else None
    if wait is None and answer.details is not None and answer.details.retryAfterSeconds > 0:
        wait = float(answer.details.retryAfterSeconds)
    kind = _BY_STATUS.get(code) or (ServerFaultError if code >= 500 else ApiError)
    if code == 409 and answer.reason == "AlreadyExists":
        kind = AlreadyExistsError
    return kind(
        what,
        status=code,
        reason=answer.reason[:100],
        detail=answer.message[:_LONGEST_DETAIL],
        retry_after=wait,
        maybe_done=write and code >= 500,
    )
