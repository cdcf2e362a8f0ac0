"""tests/testing/apiserver/test_objects.py on a real API server."""

from __future__ import annotations

from contract.loader import contract_of

globals().update(contract_of("testing/apiserver/test_objects.py"))
