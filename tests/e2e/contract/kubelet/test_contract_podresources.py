"""tests/testing/kubelet/test_contract_podresources.py on a real kubelet."""

from __future__ import annotations

from contract.loader import contract_of

globals().update(contract_of("testing/kubelet/test_contract_podresources.py"))
