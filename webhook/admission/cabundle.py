"""Keeps our authority in the caBundle of our webhook configurations, so that API servers trust what we serve.

A bundle is only ever joined: an authority that is there stays, since another replica, or an API server that has not seen the
change yet, may still need it. Nothing is written where nothing is missing, and a patch names the
resourceVersion it was made for, so replicas that look at the same time don't undo each other's work.

Where cert-manager's injector looks after a configuration (its annotation says so), this keeps its hands off.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Sequence
from typing import Final

import msgspec

from tessera.kube.client import ApiClient, Patch
from tessera.kube.errors import ConflictError, InvalidError, KubeError, NotFoundError
from tessera.kube.resources import MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS, Resource
from webhook.admission.metrics import Metrics
from webhook.admission.selfmade import CertificateError, join_bundles

POLL: Final = 60.0
"""Seconds between looks: somebody may apply a manifest that has no caBundle in it."""
_INJECTED: Final = "cert-manager.io/inject-"

_log = logging.getLogger(__name__)


class _ClientConfig(msgspec.Struct):
    caBundle: str | None = None  # noqa: N815  the field's own name


class _Webhook(msgspec.Struct):
    name: str = ""
    clientConfig: _ClientConfig = msgspec.field(default_factory=_ClientConfig)  # noqa: N815


class _Meta(msgspec.Struct):
    resourceVersion: str = ""  # noqa: N815
    annotations: dict[str, str] | None = None


class _Configuration(msgspec.Struct):
    metadata: _Meta = msgspec.field(default_factory=_Meta)
    webhooks: list[_Webhook] | None = None


_DECODER: Final = msgspec.json.Decoder(_Configuration)


class CaBundle:
    """Looks after the configurations of one name, mutating and validating."""

    def __init__(self, client: ApiClient, *, name: str, metrics: Metrics) -> None:
        """Look at nothing yet.

        Args:
            client: to the API server; needs get and patch on the two configurations by name.
            name: of the MutatingWebhookConfiguration and of the ValidatingWebhookConfiguration.
            metrics: of this process.
        """
        self._client = client
        self._name = name
        self._metrics = metrics
        self._trouble = ""

    async def ensure(self, bundle: str) -> None:
        """See to it once that both configurations hold the authorities in `bundle`; trouble is told, not raised."""
        if not bundle.strip():
            return
        try:
            for resource in (MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS):
                await self._ensure(resource, bundle)
        except (KubeError, CertificateError) as error:
            if str(error) != self._trouble:
                _log.error("caBundle of %s can't be kept: %s", self._name, error)
            self._trouble = str(error)
            self._metrics.ca_bundle_good.set(0)
            return
        self._trouble = ""
        self._metrics.ca_bundle_good.set(1)

    async def _ensure(self, resource: Resource, bundle: str) -> None:
        try:
            found = await self._client.get(resource, self._name, decoder=_DECODER)
        except NotFoundError:
            return
        if any(key.startswith(_INJECTED) for key in found.metadata.annotations or {}):
            return
        changes = self._changes(found.webhooks or (), bundle)
        if not changes:
            return
        version = {"op": "test", "path": "/metadata/resourceVersion", "value": found.metadata.resourceVersion}
        body = msgspec.json.encode([version, *changes])
        try:
            await self._client.patch(resource, self._name, body, kind=Patch.JSON)
        except (ConflictError, InvalidError) as error:
            # The configuration has changed since; the next look sees it as it is then.
            _log.info("%s: changed meanwhile, to be looked at again (%s)", resource.describe(name=self._name), error)
            return
        _log.info("%s: our authority is in the caBundle of its webhooks", resource.describe(name=self._name))

    def _changes(self, webhooks: Sequence[_Webhook], bundle: str) -> list[dict[str, object]]:
        changes: list[dict[str, object]] = []
        for index, webhook in enumerate(webhooks):
            there = _decoded(webhook.clientConfig.caBundle)
            wanted = join_bundles(bundle, there)
            if wanted != there:
                value = base64.b64encode(wanted.encode()).decode()
                changes.append({"op": "add", "path": f"/webhooks/{index}/clientConfig/caBundle", "value": value})
        return changes


def _decoded(text: str | None) -> str:
    """The bundle that is there; what is no text at all counts as nothing."""
    try:
        return base64.b64decode(text or "", validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        return ""
