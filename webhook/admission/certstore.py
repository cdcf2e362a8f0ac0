"""Where the webhook's certificate is kept: a folder, or a Secret that all replicas share.

Both answer the same three questions: what is there, put this where nothing is, put this in place of what I have read. The
second and the third say no where somebody else was first; the caller then reads again. That is all it takes for two
replicas never to fight: the first one wins, the others take what it wrote.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

import msgspec

from tessera.kube.client import ApiClient
from tessera.kube.errors import AlreadyExistsError, ConflictError, NotFoundError
from tessera.kube.resources import SECRETS
from webhook.admission.selfmade import CertificateError, Material

CERTIFICATE: Final = "tls.crt"
KEY: Final = "tls.key"
BUNDLE: Final = "ca.crt"
AUTHORITY_KEY: Final = "ca.key"
"""Only beside a certificate of our own making: by it a later start knows that it may renew."""
_LARGEST: Final = 1 << 20
_LOCK: Final = ".tessera.lock"
_TYPE: Final = "kubernetes.io/tls"


class Stored(NamedTuple):
    """What a store holds.

    Attributes:
        material: the pair and its authorities.
        version: names this content; another content has another version.
    """

    material: Material
    version: str


class Store(Protocol):
    """A place for one `Material`."""

    def describe(self) -> str:
        """Name the place for people."""
        ...

    async def read(self) -> Stored | None:
        """What is there; None where there is no pair.

        Raises:
            CertificateError: it can't be read.
            KubeError: the API server can't be asked.
        """
        ...

    async def write(self, material: Material, *, version: str | None) -> bool:
        """Put a pair there if `version` is (still) what is there; None means nothing is.

        Returns:
            False where somebody else was first.

        Raises:
            CertificateError: it can't be written.
            KubeError: the API server can't be asked, or says no.
        """
        ...


class DirectoryStore:
    """A folder with tls.crt, tls.key and ca.crt: mounted by others, or ours outside a cluster."""

    def __init__(self, directory: str) -> None:
        """Use a folder, which may not be there yet."""
        self._directory = directory

    def describe(self) -> str:
        """Name the folder."""
        return self._directory

    async def read(self) -> Stored | None:
        """What is there; None where tls.crt or tls.key is missing (a half-written folder is none yet)."""
        parts = {name: self._content(name) for name in (CERTIFICATE, KEY, BUNDLE, AUTHORITY_KEY)}
        if not parts[CERTIFICATE] or not parts[KEY]:
            return None
        material = Material(parts[CERTIFICATE], parts[KEY], parts[BUNDLE], parts[AUTHORITY_KEY])
        return Stored(material, _version(material))

    async def write(self, material: Material, *, version: str | None) -> bool:
        """Write the files, each in one step, the certificate last: a reader in between finds no pair, or the old one."""
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            with self._lock():
                there = await self.read()
                if (there.version if there else None) != version:
                    return False
                self._put(AUTHORITY_KEY, material.authority_key)
                self._put(BUNDLE, material.bundle, mode=0o644)
                self._put(KEY, material.key)
                self._put(CERTIFICATE, material.certificate, mode=0o644)
        except OSError as error:
            raise CertificateError(f"{self._directory} can't be written: {error.strerror}") from error
        return True

    def _content(self, name: str) -> str:
        path = os.path.join(self._directory, name)
        try:
            with open(path, encoding="ascii") as file:
                text = file.read(_LARGEST + 1)
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise CertificateError(f"{path} can't be read: {error}") from error
        if len(text) > _LARGEST:
            raise CertificateError(f"{path} has more than {_LARGEST} characters, so it is no certificate and no key")
        return text

    def _put(self, name: str, content: str, *, mode: int = 0o600) -> None:
        handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=self._directory)
        try:
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(content)
                os.fchmod(file.fileno(), mode)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, os.path.join(self._directory, name))
        except OSError:
            os.unlink(temporary)
            raise

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        # Two processes on one machine may share the folder; writing takes milliseconds, so waiting for it is no matter.
        with open(os.path.join(self._directory, _LOCK), "w", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class _Meta(msgspec.Struct):
    resourceVersion: str = ""  # noqa: N815  the field's own name
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class _Secret(msgspec.Struct):
    metadata: _Meta = msgspec.field(default_factory=_Meta)
    type: str = ""
    data: dict[str, str] | None = None


_SECRET: Final = msgspec.json.Decoder(_Secret)


class SecretStore:
    """A Secret that all replicas read, and that the first of them creates."""

    def __init__(self, client: ApiClient, *, namespace: str, name: str) -> None:
        """Use one Secret by name; the webhook's Role needs to name no other."""
        self._client = client
        self._namespace = namespace
        self._name = name
        self._empty_version: str | None = None
        self._type = _TYPE
        self._metadata: dict[str, object] = {}

    def describe(self) -> str:
        """Name the Secret."""
        return f"secret {self._namespace}/{self._name}"

    async def read(self) -> Stored | None:
        """What is there; a Secret without a pair (made in advance, to be filled) counts as none."""
        self._empty_version = None
        self._metadata = {}
        try:
            found = await self._client.get(SECRETS, self._name, namespace=self._namespace, decoder=_SECRET)
        except NotFoundError:
            return None
        self._type = found.type or _TYPE  # it can't be changed
        # What others say of it goes back with it: kubectl remembers there what it applied.
        self._metadata = {"labels": found.metadata.labels or {}, "annotations": found.metadata.annotations or {}}
        parts = {key: self._decode(key, value) for key, value in (found.data or {}).items()}
        material = Material(*(parts.get(name, "") for name in (CERTIFICATE, KEY, BUNDLE, AUTHORITY_KEY)))
        if not material.certificate or not material.key:
            self._empty_version = found.metadata.resourceVersion
            return None
        return Stored(material, found.metadata.resourceVersion)

    async def write(self, material: Material, *, version: str | None) -> bool:
        """Create the Secret, or replace it if it is unchanged."""
        version = version or self._empty_version
        labels = {"labels": {"app.kubernetes.io/managed-by": "tessera-webhook"}}
        metadata = {**labels, **self._metadata, "name": self._name, "namespace": self._namespace}
        if version is not None:
            metadata["resourceVersion"] = version
        data = {
            CERTIFICATE: material.certificate,
            KEY: material.key,
            BUNDLE: material.bundle,
            AUTHORITY_KEY: material.authority_key,
        }
        body = msgspec.json.encode(
            {
                "apiVersion": SECRETS.api_version,
                "kind": SECRETS.kind,
                "metadata": metadata,
                "type": self._type,
                "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
            }
        )
        if version is None:
            with contextlib.suppress(AlreadyExistsError):
                await self._client.create(SECRETS, body, namespace=self._namespace)
                return True
        else:
            # Not found: it was deleted since, and the next look makes a new one.
            with contextlib.suppress(ConflictError, NotFoundError):
                await self._client.update(SECRETS, self._name, body, namespace=self._namespace)
                return True
        return False

    def _decode(self, key: str, value: str) -> str:
        try:
            return base64.b64decode(value, validate=True).decode("ascii")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise CertificateError(f"{self.describe()}: {key} is no PEM text") from error


def _version(material: Material) -> str:
    return str(hash((material.certificate, material.key, material.bundle, material.authority_key)))
