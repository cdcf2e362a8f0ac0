"""tests/testing/kubelet/test_contract_restart.py on a real kubelet."""

from __future__ import annotations

from contract.loader import contract_of

globals().update(
    contract_of("testing/kubelet/test_contract_restart.py", apart=["test_pods_are_listed_as_their_turn_comes"])
)
