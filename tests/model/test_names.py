"""Names are what contracts say, for any domain and unit."""

import pytest

from tessera.model.errors import ConfigError
from tessera.model.names import names
from tessera.model.quantity import MIB


def test_the_defaults():
    n = names()
    assert n.memory_units == "tessera.dev/gpu-memory.256Mi"
    assert n.memory_percent == "tessera.dev/gpu-memory.percent"
    assert n.compute_percent == "tessera.dev/gpu-compute.percent"
    assert n.mig("1g.10gb+me") == "tessera.dev/mig-1g.10gb.me"
    assert n.asks == (
        "tessera.dev/gpu",
        "tessera.dev/gpu-memory",
        "tessera.dev/gpu-memory-percent",
        "tessera.dev/gpu-compute",
    )


def test_the_unit_is_in_the_name_so_that_two_units_cant_be_confused():
    assert names("tessera.dev", 1024 * MIB).memory_units == "tessera.dev/gpu-memory.1Gi"


def test_a_ticket_is_known_by_its_name():
    n = names("gpu.example.org")
    for ticket in (*n.tickets, n.mig("1g.10gb")):
        assert n.is_ticket(ticket)
    for other in (*n.asks, "nvidia.com/gpu", "tessera.dev/gpu-memory.256Mi", "cpu"):
        assert not n.is_ticket(other)


@pytest.mark.parametrize("domain", ["", "tessera", "Tessera.dev", "a..b", "-a.b", "a.b/", "a_b.c", "x" * 100 + ".dev"])
def test_a_bad_domain(domain):
    with pytest.raises(ConfigError, match="domain"):
        names(domain)


@pytest.mark.parametrize("unit", [0, -MIB, 1, MIB + 1])
def test_a_bad_unit(unit):
    with pytest.raises(ConfigError, match="memoryUnit"):
        names("tessera.dev", unit)
