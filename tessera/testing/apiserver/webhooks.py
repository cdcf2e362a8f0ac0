"""One call of an admission webhook over HTTPS: the review that is sent, and what is made of the answer.

The texts of failures are the real server's, since that is what a user sees when our webhook is down or says no
(apiserver/pkg/admission/plugin/webhook).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import ssl
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import aiohttp
import msgspec

from tessera.testing.apiserver import status
from tessera.testing.apiserver.access import User
from tessera.testing.apiserver.resources import Target
from tessera.testing.apiserver.tree import Json, Object, decode, dig, encode, table, text, texts, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What somebody tries to do, as admission sees it.

    Attributes:
        operation: CREATE, UPDATE, DELETE or CONNECT.
        target: about what; its name may still be "".
        kind: group, version and kind of the object in question (a Binding for pods/binding).
        user: who.
        options: the CreateOptions, UpdateOptions or DeleteOptions object.
        old: the object as it is, None for CREATE.
        dry_run: nothing is to be stored.
        warnings: what webhooks want the user to know is added here.
    """

    operation: str
    target: Target
    kind: tuple[str, str, str]
    user: User
    options: Object
    old: Object | None = None
    dry_run: bool = False
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A webhook's answer that allows: the patch to apply, None where there is none."""

    patch: Json


class CallError(Exception):
    """A webhook could not be called, or what it said is no answer; failurePolicy decides what that means."""


class WebhookCaller:
    """Keeps the connections to webhooks."""

    def __init__(self, services: Mapping[str, str]) -> None:
        """Know where Services are.

        Args:
            services: address (``host:port``) by ``namespace/name``, in place of a cluster's Service network.
        """
        self._services = services
        self._session: aiohttp.ClientSession | None = None
        self._contexts: dict[str, ssl.SSLContext] = {}

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def call(self, hook: Object, attempt: Attempt, tree: Object | None, *, mutating: bool) -> Verdict:
        """Send a review.

        Args:
            hook: one entry of a webhook configuration.
            attempt: what is tried.
            tree: the object as it would be stored, None for DELETE.
            mutating: whether the answer may carry a patch.

        Raises:
            CallError: no usable answer.
            StatusError: the webhook denied the request.
        """
        name = text(hook, "name")
        if attempt.dry_run and text(hook, "sideEffects") not in ("None", "NoneOnDryRun"):
            raise status.bad_request(f'admission webhook "{name}" does not support dry run')
        if "v1" not in texts(hook, "admissionReviewVersions"):
            raise CallError(
                "could not create admission objects: webhook does not accept known AdmissionReview versions"
            )
        uid = str(uuid.uuid4())
        body = encode(
            {
                "kind": "AdmissionReview",
                "apiVersion": "admission.k8s.io/v1",
                "request": review_request(uid, attempt, tree),
            }
        )
        seconds = whole(hook, "timeoutSeconds") or 10
        answer = await self._post(table(hook, "clientConfig"), body, seconds)
        return _verdict(name, uid, answer, attempt, mutating=mutating)

    async def _post(self, config: Object, body: bytes, seconds: int) -> bytes:
        url, server_name = self._address(config)
        where = f'Post "{url}?timeout={seconds}s"'
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
            )
        try:
            async with (
                asyncio.timeout(seconds),
                self._session.post(
                    url,
                    params={"timeout": f"{seconds}s"},
                    # As a file, or aiohttp warns of a large body.
                    data=io.BytesIO(body),
                    headers={"Content-Type": "application/json", "Accept": "application/json"},
                    ssl=self._context(text(config, "caBundle")),
                    server_hostname=server_name,
                    allow_redirects=False,
                ) as response,
            ):
                answer = await response.read()
                code = response.status
        except TimeoutError as error:
            raise CallError(f"failed to call webhook: {where}: context deadline exceeded") from error
        except (aiohttp.ClientError, OSError, ssl.SSLError, binascii.Error) as error:
            raise CallError(f"failed to call webhook: {where}: {error}") from error
        if not 200 <= code <= 206:
            plain = response.content_type.startswith("text/")
            raise CallError(f"failed to call webhook: {_refusal(code, answer, plain=plain)}")
        return answer

    def _address(self, config: Object) -> tuple[str, str | None]:
        if url := text(config, "url"):
            return url, None
        service = table(config, "service")
        namespace, name = text(service, "namespace"), text(service, "name")
        address = self._services.get(f"{namespace}/{name}")
        path = text(service, "path")
        if address is None:
            port = whole(service, "port") or 443
            where = f'Post "https://{name}.{namespace}.svc:{port}{path}"'
            raise CallError(f'failed to call webhook: {where}: service "{name}" not found')
        return f"https://{address}{path}", f"{name}.{namespace}.svc"

    def _context(self, bundle: str) -> ssl.SSLContext:
        found = self._contexts.get(bundle)
        if found is None:
            if bundle:
                found = ssl.create_default_context(cadata=base64.b64decode(bundle).decode("ascii", "replace"))
            else:
                found = ssl.create_default_context()
            # Go offers h2 first to a webhook on localhost; a server that agrees and can't speak it must fail here, too.
            found.set_alpn_protocols(["h2", "http/1.1"])
            self._contexts[bundle] = found
        return found


def review_request(uid: str, attempt: Attempt, tree: Object | None) -> Object:
    """Make the request part of a review, with the fields of admission/v1 and no others."""
    target = attempt.target
    group, version, kind = attempt.kind
    about: Object = {"group": group, "version": version, "kind": kind}
    resource: Object = {
        "group": target.resource.group,
        "version": target.resource.version,
        "resource": target.resource.plural,
    }
    request: Object = {"uid": uid, "kind": about, "resource": resource}
    if target.subresource:
        request["subResource"] = target.subresource
    request["requestKind"] = about
    request["requestResource"] = resource
    if target.subresource:
        request["requestSubResource"] = target.subresource
    if target.name:
        request["name"] = target.name
    if target.namespace:
        request["namespace"] = target.namespace
    request["operation"] = attempt.operation
    request["userInfo"] = attempt.user.info()
    request["object"] = tree
    request["oldObject"] = attempt.old
    request["dryRun"] = attempt.dry_run
    request["options"] = attempt.options
    return request


# What client-go makes of a status code; the others get "did not return more information"
# (apimachinery/pkg/api/errors, NewGenericServerResponse).
_REFUSALS: Final = {
    400: "the server rejected our request for an unknown reason",
    401: "the server has asked for the client to provide credentials",
    404: "the server could not find the requested resource",
    405: "the server does not allow this method on the requested resource",
    409: "the server reported a conflict",
    422: "the server rejected our request due to an error in our request",
    429: "the server has received too many requests and has asked us to try again later",
    503: "the server is currently unable to handle the request",
    504: "the server was unable to return a response in the time allotted, but may still be processing the request",
}


def _refusal(code: int, body: bytes, *, plain: bool) -> str:
    """What is said of an HTTP error: a Status object's own message reaches the user, other words hardly ever do."""
    found = _json(body)
    if isinstance(found, dict) and text(found, "kind") == "Status" and text(found, "message"):
        return text(found, "message")
    if code in _REFUSALS:
        return _REFUSALS[code]
    said = body[:2048].decode("utf-8", "replace").strip() if plain else "unknown"
    if code in (403, 415):
        return said
    if code >= 500:
        return f'an error on the server ("{said}") has prevented the request from succeeding'
    return f"the server responded with the status code {code} but did not return more information"


def _json(body: bytes) -> Json:
    try:
        return decode(body)
    except msgspec.DecodeError:
        return None


def _verdict(name: str, uid: str, body: bytes, attempt: Attempt, *, mutating: bool) -> Verdict:
    review = _json(body)
    response = dig(review, "response")
    wrong = "received invalid webhook response: "
    if not isinstance(response, dict):
        raise CallError(f"{wrong}webhook response was absent")
    if text(response, "uid") != uid:
        raise CallError(f'{wrong}expected response.uid="{uid}", got "{text(response, "uid")}"')
    kind = f"{text(review, 'apiVersion')}, Kind={text(review, 'kind')}"
    if kind != "admission.k8s.io/v1, Kind=AdmissionReview":
        raise CallError(f"{wrong}expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {kind}")
    patch, patch_type = text(response, "patch"), text(response, "patchType")
    if not mutating and (patch or patch_type):
        raise CallError(f"{wrong}validating webhook may not return response.patch")
    if bool(patch) != bool(patch_type):
        missing, there = ("patchType", "patch") if patch else ("patch", "patchType")
        raise CallError(f"{wrong}webhook returned response.{there} but not response.{missing}")
    attempt.warnings.extend(texts(response, "warnings"))
    if response.get("allowed") is not True:
        raise _denied(name, table(response, "status"))
    if not patch:
        return Verdict(None)
    try:
        operations = decode(base64.b64decode(patch, validate=True))
    except (binascii.Error, msgspec.DecodeError) as error:
        raise CallError("received undecodable patch in webhook response: it is no base64 of JSON") from error
    # A patch without operations is none, whatever it calls itself.
    if operations and patch_type != "JSONPatch":
        raise CallError(f'unsupported patch type "{patch_type}"')
    return Verdict(operations)


def _denied(name: str, result: Object) -> status.StatusError:
    """Word a denial as apiserver's webhook/errors.ToStatusErr does."""
    code = whole(result, "code") or 0
    reason = text(result, "reason")
    said = text(result, "message") or reason
    told = f'admission webhook "{name}" denied the request'
    message = f"{told}: {said}" if said else f"{told} without explanation"
    return status.StatusError(max(code, 400), reason, message, details=table(result, "details"))
