"""What each check says it reads is what it reads: a look for one of them asks the API server for nothing else."""

import dataclasses

import pytest

from tessera.doctor.checks import CHECKS
from tessera.doctor.evidence import Evidence, Look

LOOKS = {
    field.name for field in dataclasses.fields(Evidence) if field.name == "config_maps" or field.default_factory is Look
}
MADE = {"expected_policies": "policies", "guard": "config"}
"""What is worked out from other things and not read."""


class Spy:
    """Evidence that remembers what was looked at."""

    def __init__(self, evidence):
        self._evidence = evidence
        self.seen = set()

    def __getattr__(self, name):
        if name in ("settings", "names"):
            self.seen.add("config")
        elif name in LOOKS:
            self.seen.add(MADE.get(name, name))
        return getattr(self._evidence, name)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
@pytest.mark.parametrize("config", ["deviceInjection: envvar\nruntimeClassName: nvidia\n", "memoryUnit: 1Gi\n"])
def test_a_check_reads_what_it_says(check, config, healthy, cluster):
    late = [{"type": "Ready", "status": "False", "reason": "Broken"}]
    spy = Spy(
        healthy(
            config=config,
            pods=lambda there: [*there, cluster.pod("late", namespace="tessera-system", node="n1", conditions=late),
                                cluster.agent("n3", conditions=late), cluster.pod("waits", {cluster.names.memory_units: "999"})],
            quotas=[{"metadata": {"name": "q", "namespace": "team"}, "spec": {"hard": {"requests.nvidia.com/gpu": "1"}}}],
        )
    )  # fmt: skip
    check.run(spy)
    assert spy.seen <= check.reads


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_a_check_is_told_what_it_can_not_see(check, healthy):
    """Nothing that a check needs is missing from what it says: with that alone it is not blind."""
    whole = healthy()
    unread = {name: Look() for name in LOOKS if MADE.get(name, name) not in check.reads}
    assert check.run(whole) == check.run(dataclasses.replace(whole, **unread))
