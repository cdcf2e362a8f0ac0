"""tests/testing/kubelet/test_contract_registration.py on a real kubelet."""

from __future__ import annotations

from contract.loader import contract_of

globals().update(
    contract_of(
        "testing/kubelet/test_contract_registration.py", apart=["test_a_message_above_four_mebibytes_ends_the_stream"]
    )
)
