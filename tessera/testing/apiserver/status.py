"""Failures as the API server words them: `Status` objects, by the constructors of apimachinery's api/errors package.

Clients match on code and reason, people read the message; both are what a real server of 1.34 answers.
"""

from __future__ import annotations

from dataclasses import dataclass

from tessera.testing.apiserver.tree import Json, Object


class StatusError(Exception):
    """A request that is answered by a Status object."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: Object | None = None,
        retry_after: int = 0,
        rest: str = "",
    ) -> None:
        """Keep what the answer is made of; `rest` is a continue token that goes with it."""
        self.code = code
        self.reason = reason
        self.message = message
        self.details = dict(details or {})
        self.retry_after = retry_after
        self.rest = rest
        if retry_after:
            self.details["retryAfterSeconds"] = retry_after
        super().__init__(message)

    def body(self) -> Object:
        """Return the Status object."""
        metadata: Object = {"continue": self.rest} if self.rest else {}
        answer: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": metadata,
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        }
        if self.details:
            answer["details"] = self.details
        answer["code"] = self.code
        return answer


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing that is wrong with an object, as apimachinery's validation/field words it.

    Attributes:
        kind: ``FieldValueInvalid``, ``FieldValueRequired``, ``FieldValueForbidden``, ``FieldValueDuplicate``.
        field: path such as ``spec.containers[0].resources.limits``.
        message: the error's body, without the field.
    """

    kind: str
    field: str
    message: str


def invalid_value(field: str, value: Json, detail: str) -> Cause:
    """A value that is wrong."""
    shown = f'"{value}"' if isinstance(value, str) else "null" if value is None else str(value)
    return Cause("FieldValueInvalid", field, f"Invalid value: {shown}: {detail}")


def required(field: str, detail: str = "") -> Cause:
    """A value that is missing."""
    return Cause("FieldValueRequired", field, f"Required value: {detail}" if detail else "Required value")


def forbidden_value(field: str, detail: str) -> Cause:
    """A value that may not be there, or may not change."""
    return Cause("FieldValueForbidden", field, f"Forbidden: {detail}")


def duplicate(field: str, value: str) -> Cause:
    """A value that is there already."""
    return Cause("FieldValueDuplicate", field, f'Duplicate value: "{value}"')


def _about(group: str, kind: str, name: str) -> Object:
    about: Object = {}
    if name:
        about["name"] = name
    if group:
        about["group"] = group
    about["kind"] = kind
    return about


def _qualified(group: str, kind: str) -> str:
    return f"{kind}.{group}" if group else kind


def not_found(group: str, plural: str, name: str) -> StatusError:
    """404 for an object."""
    message = f'{_qualified(group, plural)} "{name}" not found'
    return StatusError(404, "NotFound", message, details=_about(group, plural, name))


def no_such_path() -> StatusError:
    """404 for a path that no resource has."""
    return StatusError(404, "NotFound", "the server could not find the requested resource")


def already_exists(group: str, plural: str, name: str, *, deleting: bool = False) -> StatusError:
    """409 for a name that is taken."""
    message = f'{_qualified(group, plural)} "{name}" already exists'
    if deleting:
        message = f"object is being deleted: {message}"
    return StatusError(409, "AlreadyExists", message, details=_about(group, plural, name))


def conflict(group: str, plural: str, name: str, problem: str) -> StatusError:
    """409 for a write that presumes another state."""
    message = f'Operation cannot be fulfilled on {_qualified(group, plural)} "{name}": {problem}'
    return StatusError(409, "Conflict", message, details=_about(group, plural, name))


def forbidden(group: str, plural: str, name: str, problem: str) -> StatusError:
    """403."""
    what = f'{_qualified(group, plural)} "{name}"' if name else _qualified(group, plural)
    return StatusError(403, "Forbidden", f"{what} is forbidden: {problem}", details=_about(group, plural, name))


def unauthorized() -> StatusError:
    """401."""
    return StatusError(401, "Unauthorized", "Unauthorized")


def bad_request(problem: str) -> StatusError:
    """400."""
    return StatusError(400, "BadRequest", problem)


def invalid(group: str, kind: str, name: str, causes: list[Cause]) -> StatusError:
    """422 for an object that fails validation."""
    errors = [f"{cause.field}: {cause.message}" for cause in causes]
    # apimachinery's aggregate: one error as it is, several in brackets, each text once.
    listed = list(dict.fromkeys(errors))
    joined = listed[0] if len(listed) == 1 else f"[{', '.join(listed)}]"
    details = _about(group, kind, name)
    details["causes"] = [{"reason": c.kind, "message": c.message, "field": c.field} for c in causes]
    return StatusError(422, "Invalid", f'{_qualified(group, kind)} "{name}" is invalid: {joined}', details=details)


def unprocessable(problem: str) -> StatusError:
    """422 for a patch that can't be applied."""
    message = "the server rejected our request due to an error in our request"
    return StatusError(422, "Invalid", message, details={"causes": [{"message": problem}]})


def expired(problem: str, *, rest: str = "") -> StatusError:
    """410 for a resourceVersion or continue token that is too old."""
    return StatusError(410, "Expired", problem, rest=rest)


def method_not_allowed(group: str, plural: str, verb: str) -> StatusError:
    """405."""
    what = _qualified(group, plural)
    message = f'{verb} is not supported on resources of kind "{what}"'
    return StatusError(405, "MethodNotAllowed", message, details={"group": group, "kind": plural})


def unsupported_media_type(accepted: list[str]) -> StatusError:
    """415."""
    listed = ", ".join(accepted)
    message = f"the body of the request was in an unknown format - accepted media types include: {listed}"
    return StatusError(415, "UnsupportedMediaType", message)


def too_large(limit: int) -> StatusError:
    """413."""
    message = f"Request entity too large: limit is {limit}"
    return StatusError(413, "RequestEntityTooLarge", message)


def internal(problem: str) -> StatusError:
    """500."""
    message = f"Internal error occurred: {problem}"
    return StatusError(500, "InternalError", message, details={"causes": [{"message": problem}]})


def unavailable(problem: str) -> StatusError:
    """503: what is to answer in the server's stead does not."""
    return StatusError(503, "ServiceUnavailable", problem)


def too_many_requests(problem: str, *, retry_after: int) -> StatusError:
    """429."""
    return StatusError(429, "TooManyRequests", problem, retry_after=retry_after)


def no_version(version: str) -> str:
    """The words for a resourceVersion that is no number (apiserver/pkg/storage, APIObjectVersioner)."""
    parsing = f'strconv.ParseUint: parsing "{version}": invalid syntax'
    return f'resourceVersion: Invalid value: "{version}": {parsing}'


def too_large_version(asked: int, current: int) -> StatusError:
    """504 for a resourceVersion that is not there yet (apiserver/pkg/storage, NewTooLargeResourceVersionError)."""
    message = f"Timeout: Too large resource version: {asked}, current: {current}"
    cause: Object = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    return StatusError(504, "Timeout", message, details={"causes": [cause]}, retry_after=1)
