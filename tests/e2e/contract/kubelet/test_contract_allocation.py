"""tests/testing/kubelet/test_contract_allocation.py on a real kubelet."""

from __future__ import annotations

from contract.loader import contract_of

globals().update(
    contract_of(
        "testing/kubelet/test_contract_allocation.py",
        apart=["test_a_list_during_an_allocate_can_lose_the_reservation"],
    )
)
