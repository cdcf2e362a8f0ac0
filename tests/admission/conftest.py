"""What the tests of admission share: pods as the API server sends them, and patches applied by the oracle."""

import base64
import json

import jsonpatch
import msgspec
import pytest

from tessera.model.pod import Manifest
from webhook.admission.patch import WIRE, operations


@pytest.fixture(scope="session")
def manifest():
    """Decode a pod given as plain data."""

    def decode(pod):
        return msgspec.json.decode(json.dumps(pod), type=Manifest)

    return decode


@pytest.fixture(scope="session")
def applied(manifest):
    """Apply edits to a pod given as plain data, by jsonpatch, and return what comes out."""

    def apply(pod, edits):
        patch = json.loads(WIRE.encode(operations(manifest(pod), edits)))
        return jsonpatch.apply_patch(pod, patch)

    return apply


@pytest.fixture(scope="session")
def review():
    """Build an AdmissionReview request around an object."""

    def build(pod, *, uid="7c5e2b", namespace="team", operation="CREATE", **more):
        request = {
            "uid": uid,
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": namespace,
            "operation": operation,
            "userInfo": {"username": "alice"},
            "object": pod,
            "oldObject": None,
            "dryRun": False,
            "options": None,
            **more,
        }
        return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}

    return build


@pytest.fixture(scope="session")
def patched():
    """Apply the patch of an AdmissionReview response to the object that was sent."""

    def apply(pod, response):
        if "patch" not in response:
            return pod
        return jsonpatch.apply_patch(pod, json.loads(base64.b64decode(response["patch"])))

    return apply
