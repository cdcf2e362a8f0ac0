"""AdmissionReview v1 (admission.k8s.io): bytes in, bytes out, and what of it is the sender's fault.

Two kinds of wrong are kept apart. A review that can't be read is answered 400: it did not come from an API server, and
nobody would see a verdict. A pod that can't be read, or that must not be, is a verdict (``allowed: false``) with the
message that its author needs. The envelope is decoded first and the pod stays raw, so the uid is known whatever the pod is.

Answering changes nothing anywhere, so dryRun needs no thought.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

import msgspec

from tessera.model.errors import TesseraError
from tessera.model.pod import Manifest
from tessera.report.plaintext import short
from webhook.admission.http1 import Answer, refusal
from webhook.admission.metrics import Metrics
from webhook.admission.patch import WIRE, Operation

API_VERSION: Final = "admission.k8s.io/v1"
LONGEST_WARNING: Final = 120
"""Characters of one warning that clients show in full (HTTP's Warning header, by Kubernetes' advice)."""
MOST_WARNINGS: Final = 20
"""The API server drops what is above 4 KiB in all."""
LONGEST_MESSAGE: Final = 2000
_LONGEST_UID: Final = 200

_log = logging.getLogger(__name__)


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    group: str = ""
    version: str = ""
    kind: str = ""


class Request(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The part of a review's request that we read."""

    uid: str
    kind: Kind = Kind()
    sub_resource: str | None = None
    namespace: str | None = None
    operation: str = ""
    object: msgspec.Raw = msgspec.Raw(b"null")
    old_object: msgspec.Raw = msgspec.Raw(b"null")


class _Review(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    kind: str
    api_version: str
    request: Request | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is decided about one pod.

    Attributes:
        allowed: whether it may be.
        message: why not, for its author.
        code: HTTP status of a denial: 400 where the pod can't be meant, 403 where a limit says no.
        operations: the patch.
        warnings: shown to the author.
        audit: for the API server's audit log; keys are plain names, to which it adds the webhook's.
    """

    allowed: bool = True
    message: str = ""
    code: int = 400
    operations: tuple[Operation, ...] = ()
    warnings: tuple[str, ...] = ()
    audit: Mapping[str, str] = field(default_factory=dict)


Judge = Callable[[Manifest, Request], Verdict]
"""Decides about a pod; a `TesseraError` it raises is a denial with that message."""


class _Status(msgspec.Struct, frozen=True, kw_only=True):
    code: int
    message: str
    reason: str


class _Response(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    uid: str
    allowed: bool
    status: _Status | None = None
    patch_type: str | None = None
    patch: str | None = None
    warnings: tuple[str, ...] = ()
    audit_annotations: Mapping[str, str] | None = None


class _Out(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    api_version: str
    kind: str
    response: _Response


_REVIEW: Final = msgspec.json.Decoder(_Review)
_MANIFEST: Final = msgspec.json.Decoder(Manifest)


class Reviewer:
    """The handler of one path: reads reviews, asks a judge about pods, writes its verdict."""

    def __init__(self, path: str, judge: Judge, metrics: Metrics, *, operations: Iterable[str] = ("CREATE",)) -> None:
        """Make the handler.

        Args:
            path: for metrics and logs.
            judge: decides about a pod.
            metrics: of this process.
            operations: which of CREATE and UPDATE the judge is asked about; others are allowed as they are.
        """
        self._path = path
        self._judge = judge
        self._operations = frozenset(operations)
        counted = metrics.reviews
        self._patched, self._allowed, self._denied, self._malformed, self._failed = (
            counted.labels(path, outcome) for outcome in ("patched", "allowed", "denied", "malformed", "failed")
        )

    def __call__(self, body: bytes) -> Answer:
        """Answer one review."""
        try:
            request = read(body)
        except ReviewError as error:
            self._malformed.inc()
            return refusal(HTTPStatus.BAD_REQUEST, str(error))
        try:
            verdict = self._decide(request)
            answer = write(request.uid, verdict)
        except Exception:
            self._failed.inc()
            raise
        (self._denied if not verdict.allowed else self._patched if verdict.operations else self._allowed).inc()
        return answer

    def _decide(self, request: Request) -> Verdict:
        kind = request.kind
        if kind.kind != "Pod" or kind.group or request.sub_resource or request.operation not in self._operations:
            return Verdict()
        try:
            return self._judge(read_pod(request.object), request)
        except TesseraError as error:
            return Verdict(allowed=False, message=str(error))


class ReviewError(TesseraError):
    """What came is no AdmissionReview of the version we speak."""


class PodError(TesseraError):
    """An object that should be a pod can't be read as one."""


def read(body: bytes) -> Request:
    """Read a review's request.

    Raises:
        ReviewError: it is not JSON, not an AdmissionReview v1, or has no request with a uid.
    """
    try:
        review = _REVIEW.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ReviewError(f"not an AdmissionReview: {error}") from error
    if review.kind != "AdmissionReview" or review.api_version != API_VERSION:
        raise ReviewError(
            f"{review.kind[:64]!r} of {review.api_version[:64]!r} is not understood; send AdmissionReview of {API_VERSION}"
        )
    if review.request is None:
        raise ReviewError("the AdmissionReview has no request")
    if not 0 < len(review.request.uid) <= _LONGEST_UID:
        raise ReviewError(f"the request's uid has {len(review.request.uid)} characters; 1 to {_LONGEST_UID} are taken")
    return review.request


def read_pod(raw: msgspec.Raw) -> Manifest:
    """Read the pod of a request.

    Raises:
        PodError: it is none.
    """
    try:
        return _MANIFEST.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PodError(f"the pod can't be read: {error}") from error


def write(uid: str, verdict: Verdict) -> Answer:
    """Write the review that answers the request of that uid."""
    status = None
    if not verdict.allowed:
        code = HTTPStatus(verdict.code)
        message = short(verdict.message or "denied", LONGEST_MESSAGE)
        status = _Status(code=code.value, message=message, reason=code.phrase.replace(" ", ""))
    patched = verdict.allowed and bool(verdict.operations)
    response = _Response(
        uid=uid,
        allowed=verdict.allowed,
        status=status,
        patch_type="JSONPatch" if patched else None,
        patch=base64.b64encode(WIRE.encode(verdict.operations)).decode() if patched else None,
        warnings=tuple(short(warning, LONGEST_WARNING) for warning in verdict.warnings[:MOST_WARNINGS]),
        audit_annotations=verdict.audit or None,
    )
    return Answer(
        HTTPStatus.OK, _ENCODER.encode(_Out(api_version=API_VERSION, kind="AdmissionReview", response=response))
    )


_ENCODER: Final = msgspec.json.Encoder()
