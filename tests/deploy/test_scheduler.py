"""kube-scheduler's configuration says what the contract says, for every config."""

from __future__ import annotations

import re

import msgspec
import pytest

from tessera.deploy.scheduler import LEASE, MIG_PROFILES, extender, scheduler_configuration, tickets
from tessera.model.config import Config, Lease, Placement
from tessera.model.errors import ConfigError
from tessera.model.names import names
from tessera.testing.nvml.products import PRODUCTS

CONFIG = Config()
# A qualified name's part after the slash (apimachinery, util/validation).
RESOURCE = re.compile(r"[a-z0-9.-]+/([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)")


def test_every_node_is_scored_and_the_extender_is_never_left_out() -> None:
    found = scheduler_configuration(CONFIG)
    assert found["percentageOfNodesToScore"] == 100
    (entry,) = found["extenders"]
    assert entry["nodeCacheCapable"] is True
    assert entry["ignorable"] is False
    assert entry["urlPrefix"] == "http://127.0.0.1:9460"


def test_a_pod_that_was_woken_does_not_wait_ten_seconds() -> None:
    assert scheduler_configuration(CONFIG)["podMaxBackoffSeconds"] == 2


def test_kube_scheduler_counts_no_ticket_itself() -> None:
    managed = extender(CONFIG)["managedResources"]
    assert all(each["ignoredByScheduler"] is True for each in managed)
    assert {each["name"] for each in managed} >= set(names().tickets)


def test_every_profile_that_a_card_can_be_cut_into_is_named() -> None:
    found = set(tickets(CONFIG))
    cards = [card for card in PRODUCTS.values() if card.profiles]
    assert cards
    assert not {names().mig(profile.name) for card in cards for profile in card.profiles} - found


@pytest.mark.parametrize("profile", MIG_PROFILES)
def test_a_profile_gives_a_name_that_a_node_can_advertise(profile: str) -> None:
    name = names().mig(profile)
    assert RESOURCE.fullmatch(name), name
    assert name in tickets(CONFIG)


def test_no_name_stands_twice() -> None:
    found = tickets(CONFIG)
    assert len(found) == len(set(found))


def test_domain_and_unit_are_the_configs() -> None:
    found = tickets(Config(domain="gpu.example.com", memory_unit=512 << 20))
    assert found[0] == "gpu.example.com/gpu-memory.512Mi"
    assert all(name.startswith("gpu.example.com/") for name in found)


def test_scores_are_asked_for_only_where_several_nodes_are_answered() -> None:
    assert "prioritizeVerb" not in extender(CONFIG)
    entry = extender(Config(placement=Placement(answer="all")))
    assert entry["prioritizeVerb"] == "prioritize"
    assert entry["weight"] == 1


def test_a_second_scheduler_has_a_name_and_a_lease_of_its_own() -> None:
    found = scheduler_configuration(Config(scheduler_name="gpu-scheduler"))
    assert found["profiles"] == [{"schedulerName": "gpu-scheduler"}]
    assert found["leaderElection"] == {
        "leaderElect": True,
        "resourceName": LEASE.name,
        "resourceNamespace": LEASE.namespace,
    }
    assert "kubeconfig" not in found["clientConnection"]


def test_the_lease_is_the_configs_where_it_names_one() -> None:
    lease = Lease(name="gpu-scheduler", namespace="gpu")
    found = scheduler_configuration(msgspec.structs.replace(CONFIG, lease=lease))
    assert found["leaderElection"]["resourceName"] == "gpu-scheduler"
    assert found["leaderElection"]["resourceNamespace"] == "gpu"


@pytest.mark.parametrize("name", ["", "default-scheduler"])
def test_a_second_scheduler_can_not_be_the_first(name: str) -> None:
    with pytest.raises(ConfigError, match=r"schedulerName: .* second scheduler"):
        scheduler_configuration(Config(scheduler_name=name))


def test_the_clusters_own_scheduler_keeps_its_name_its_lease_and_its_credentials() -> None:
    found = scheduler_configuration(Config(scheduler_name="default-scheduler"), form="default")
    assert found["profiles"] == [{"schedulerName": "default-scheduler"}]
    assert found["leaderElection"] == {"leaderElect": True}
    assert found["clientConnection"]["kubeconfig"] == "/etc/kubernetes/scheduler.conf"


@pytest.mark.parametrize("mode", ["score", "avoid"])
@pytest.mark.parametrize("form", ["second", "default"])
def test_pods_without_gpus_come_by_an_entry_that_keeps_nobody_waiting(mode: str, form: str) -> None:
    """Were it not ignorable, an extender that is away could never be scheduled again, nor anything else."""
    config = Config(domain="gpu.example.com", placement=Placement(cpu_pods=mode))
    tickets_only, everybody = scheduler_configuration(config, form=form)["extenders"]
    assert tickets_only == extender(config)
    assert tickets_only["ignorable"] is False
    assert {each["name"].partition("/")[0] for each in tickets_only["managedResources"]} == {"gpu.example.com"}
    assert "managedResources" not in everybody
    assert everybody["ignorable"] is True
    assert [verb for verb in everybody if verb.endswith("Verb")] == ["filterVerb"]
