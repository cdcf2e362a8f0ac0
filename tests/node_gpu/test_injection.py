"""What a container is given, by contract: devices one way only, amounts, limits, other systems' names."""

from __future__ import annotations

import pytest

from deviceplugin.errors import RefusedError
from deviceplugin.isolation.injection import AliyunAmounts, Injection, Injector, Mount, Portion, injection
from deviceplugin.nvml.facts import MigFacts
from deviceplugin.slices import Given, Slice
from tessera.model.guarantee import Guarantee, Guarantees
from tessera.model.inventory import Gpu, MigInstance
from tessera.model.names import names
from tessera.model.pod import ObjectMeta, Pod
from tessera.model.request import ContainerRequest, PodRequest, encode

GIB = 1 << 30
MIB = 1 << 20
NONE = Guarantees()
KERNEL = Guarantees(memory=Guarantee.KERNEL)


def portion(number: int = 0, *, memory: int = 8 * GIB, compute: int | None = 0, mig: bool = False) -> Portion:
    return Portion(uuid=f"GPU-{number}", index=number, card=16130 * MIB, memory=memory, compute=compute, mig=mig)


def test_by_cdi_nothing_else_is_visible() -> None:
    assert injection([portion(0), portion(1)], guarantees=NONE, mode="cdi") == Injection(
        envs={
            "TESSERA_GPU_IDS": "GPU-0,GPU-1",
            "TESSERA_GPU_MEMORY_BYTES": "8589934592,8589934592",
            "TESSERA_GPU_COMPUTE": "",
            "NVIDIA_VISIBLE_DEVICES": "void",
        },
        cdi_devices=("nvidia.com/gpu=GPU-0", "nvidia.com/gpu=GPU-1"),
    )


def test_by_mounts_nothing_else_is_visible() -> None:
    found = injection([portion(3)], guarantees=NONE, mode="volume-mounts")
    assert found.envs["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert found.mounts == (
        Mount(container_path="/var/run/nvidia-container-devices/GPU-3", host_path="/dev/null", read_only=True),
    )
    assert found.cdi_devices == ()


def test_by_variable_exactly_its_own() -> None:
    found = injection([portion(1), portion(0)], guarantees=NONE, mode="envvar")
    assert found.envs["NVIDIA_VISIBLE_DEVICES"] == "GPU-1,GPU-0"
    assert found.mounts == found.devices == found.cdi_devices == ()


@pytest.mark.parametrize(
    ("compute", "text"), [((0, 0), ""), ((30, 30), "30,30"), ((None,), ""), ((100,), "100"), ((30, 0), "30,")]
)
def test_compute_is_empty_where_none_was_asked(compute: tuple[int | None, ...], text: str) -> None:
    portions = [portion(number, compute=amount) for number, amount in enumerate(compute)]
    assert injection(portions, guarantees=NONE, mode="cdi").envs["TESSERA_GPU_COMPUTE"] == text


@pytest.mark.parametrize("mode", ["cdi", "envvar", "volume-mounts"])
def test_the_drivers_limit_by_both_variables(mode) -> None:
    envs = injection([portion()], guarantees=KERNEL, mode=mode).envs
    assert envs["NVIDIA_GPU_MEMORY_REQUEST"] == envs["NVIDIA_GPU_MEMORY_LIMIT"] == "8192"


@pytest.mark.parametrize("memory", [Guarantee.WATCHED, Guarantee.NONE, Guarantee.PROCESS])
def test_no_limit_where_none_is_promised(memory: Guarantee) -> None:
    envs = injection([portion()], guarantees=Guarantees(memory=memory), mode="cdi").envs
    assert not [name for name in envs if name.startswith("NVIDIA_GPU_MEMORY")]


def test_no_limit_on_a_mig_instance() -> None:
    envs = injection([portion(mig=True, compute=None)], guarantees=KERNEL, mode="cdi").envs
    assert not [name for name in envs if name.startswith("NVIDIA_GPU_MEMORY")]


def test_aliyuns_names_in_its_units() -> None:
    envs = injection(
        [portion(2, memory=3 * GIB)], guarantees=NONE, mode="envvar", aliyun=AliyunAmounts(pod=5 * GIB)
    ).envs
    assert {name: value for name, value in envs.items() if name.startswith("ALIYUN")} == {
        "ALIYUN_COM_GPU_MEM_CONTAINER": "3",
        "ALIYUN_COM_GPU_MEM_DEV": "15",
        "ALIYUN_COM_GPU_MEM_IDX": "2",
        "ALIYUN_COM_GPU_MEM_POD": "5",
    }


def test_aliyuns_names_in_mebibytes_and_on_several_gpus() -> None:
    envs = injection(
        [portion(0, memory=2 * GIB), portion(1, memory=2 * GIB)],
        guarantees=NONE,
        mode="envvar",
        aliyun=AliyunAmounts(unit=MIB),
    ).envs
    assert envs["ALIYUN_COM_GPU_MEM_CONTAINER"] == "2048"
    assert envs["ALIYUN_COM_GPU_MEM_DEV"] == "16130"
    assert envs["ALIYUN_COM_GPU_MEM_IDX"] == "0,1"
    assert envs["ALIYUN_COM_GPU_MEM_POD"] == "4096"


def test_other_dialects_get_no_foreign_names() -> None:
    assert not [name for name in injection([portion()], guarantees=NONE, mode="cdi").envs if "ALIYUN" in name]


def test_nothing_to_give_is_refused() -> None:
    with pytest.raises(RefusedError, match="delete the pod"):
        injection([], guarantees=NONE, mode="cdi")


# The injector: from what the allocator gave.


@pytest.fixture
def gpu(facts_of):
    facts = facts_of(0)
    return Gpu(id=facts.id, uuid=facts.uuid, index=0, model=facts.name, memory=facts.memory, units=316)


@pytest.fixture
def injector(facts_of) -> Injector:
    found = Injector(names())
    facts = facts_of(0)
    found.update([facts], guarantees={facts.id: KERNEL}, mode="envvar")
    return found


def given(*slices: Slice, container: str = "main", request: PodRequest | None = None) -> Given:
    annotations = {} if request is None else {names().request: encode(request)}
    pod = Pod(metadata=ObjectMeta(name="p", namespace="n", uid="u", annotations=annotations))
    return Given(pod=pod, container=container, request=None, slices=slices)


def test_units_become_bytes_and_the_gpus_guarantee_decides(injector, gpu) -> None:
    envs = injector.inject(given(Slice(gpu, 32, 30))).envs
    assert envs["TESSERA_GPU_IDS"] == gpu.uuid
    assert envs["TESSERA_GPU_MEMORY_BYTES"] == str(8 * GIB)
    assert envs["TESSERA_GPU_COMPUTE"] == "30"
    assert envs["NVIDIA_GPU_MEMORY_LIMIT"] == "8192"
    assert envs["NVIDIA_VISIBLE_DEVICES"] == gpu.uuid


def test_a_container_is_promised_what_its_weakest_gpu_can(injector, facts_of) -> None:
    one, two = facts_of(0), facts_of(1)
    injector.update(
        [one, two], guarantees={one.id: KERNEL, two.id: Guarantees(memory=Guarantee.WATCHED)}, mode="envvar"
    )
    assert injector.guarantees([one.id]) == KERNEL
    assert injector.guarantees([one.id, two.id]).memory is Guarantee.WATCHED
    assert injector.guarantees(["f" * 12]) == Guarantees()
    assert injector.guarantees([]) == Guarantees()


def test_a_mig_instance_is_named_by_its_own_uuid(injector, gpu, facts_of) -> None:
    part = MigFacts(id="g7", uuid="MIG-7", profile="1g.10gb", memory=9 * GIB)
    injector.update([facts_of(0, mig_mode=True, mig=(part,))], guarantees={}, mode="cdi")
    cut = Gpu(
        id=gpu.id, uuid=gpu.uuid, index=0, model="", memory=gpu.memory, units=0,
        mig=(MigInstance(id="g7", profile="1g.10gb"),),
    )  # fmt: skip
    found = injector.inject(given(Slice(cut, None, None, instance="g7")))
    assert found.cdi_devices == ("nvidia.com/gpu=MIG-7",)
    assert found.envs["TESSERA_GPU_MEMORY_BYTES"] == str(9 * GIB)
    with pytest.raises(RefusedError):
        injector.inject(given(Slice(cut, None, None, instance="g9")))


def test_aliyuns_dialect_is_known_by_the_request(injector, gpu) -> None:
    asked = PodRequest(
        v=1,
        dialect="aliyun",
        containers={
            "main": ContainerRequest(gpus=1, memory=8 * GIB),
            "side": ContainerRequest(gpus=1, memory=2 * GIB),
            "alien": ContainerRequest(gpus=1, memory=GIB, dialect="hami"),
        },
    )
    envs = injector.inject(given(Slice(gpu, 32, 0), request=asked)).envs
    assert envs["ALIYUN_COM_GPU_MEM_CONTAINER"] == "8"
    assert envs["ALIYUN_COM_GPU_MEM_DEV"] == "80"
    assert envs["ALIYUN_COM_GPU_MEM_POD"] == "11"
    for container in ("alien", "absent"):
        other = injector.inject(given(Slice(gpu, 4, 0), container=container, request=asked))
        assert "ALIYUN_COM_GPU_MEM_CONTAINER" not in other.envs


@pytest.mark.parametrize("text", ["", "{", '{"v":9,"dialect":"aliyun","containers":{}}', "null"])
def test_a_forged_request_gives_no_foreign_names(injector, gpu, text: str) -> None:
    pod = Pod(metadata=ObjectMeta(annotations={names().request: text}))
    found = injector.inject(Given(pod=pod, container="main", request=None, slices=(Slice(gpu, 4, 0),)))
    assert "ALIYUN_COM_GPU_MEM_CONTAINER" not in found.envs


def test_a_pod_that_cannot_be_told_gets_its_slice_all_the_same(injector, gpu) -> None:
    found = injector.inject(Given(pod=None, container="", request=None, slices=(Slice(gpu, 4, 0),)))
    assert found.envs["TESSERA_GPU_MEMORY_BYTES"] == str(GIB)
