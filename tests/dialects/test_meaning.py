"""What each system's requests mean: its manual's samples, defaults, units, totals, and the mistakes its samples contain."""

import json

import msgspec
import pytest

from tessera.dialects.recognise import Dialects
from tessera.dialects.registry import FOREIGN, OPTIONS
from tessera.model.config import parse
from tessera.model.pod import Manifest
from tessera.model.request import encode

MI, GI = 1 << 20, 1 << 30
WHOLE = {"gpus": 1, "whole": True}


def pod(limits=None, *, requests=None, annotations=None, labels=None, env=None, **spec):
    resources = {key: value for key, value in (("limits", limits), ("requests", requests)) if value is not None}
    container = {"name": "main", "image": "x", "resources": resources}
    if env:
        container["env"] = [{"name": name, "value": value} for name, value in env.items()]
    metadata = {"name": "p", "annotations": annotations, "labels": labels}
    return {
        "metadata": {k: v for k, v in metadata.items() if v is not None},
        "spec": {"containers": [container], **spec},
    }


def case(dialect, meant, given, *, config="", id):  # noqa: A002  as pytest.param calls it
    return pytest.param(dialect, meant, given, config, id=f"{dialect}: {id}")


def memory(amount, *, gpus=1, compute=None):
    found = {"gpus": gpus, "memory": amount}
    return found if compute is None else found | {"compute": compute}


def percent(amount, *, gpus=1, compute=None):
    found = {"gpus": gpus, "memoryPercent": amount}
    return found if compute is None else found | {"compute": compute}


HAMI = [
    case("hami", memory(3000 * MI), pod({"nvidia.com/gpu": 1, "nvidia.com/gpumem": 3000}), id="MiB of each"),
    case("hami", memory(3000 * MI), pod({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "3k"}), id="as the API server writes 3000"),
    case("hami", memory(8 * GI), pod({"nvidia.com/gpu": 1, "nvidia.com/gpumem": "8Gi"}), id="bytes where no card has so many MiB"),
    case("hami", memory(4096 * 10**6), pod({"nvidia.com/gpu": 1, "nvidia.com/gpumem": "4096M"}), id="decimal bytes"),
    case("hami", memory(3000 * MI), pod({"nvidia.com/gpumem": 3000}), id="the number defaults to one"),
    case("hami", memory(3000 * MI, gpus=2, compute=30), pod({"nvidia.com/gpu": 2, "nvidia.com/gpumem": 3000, "nvidia.com/gpucores": 30}), id="two GPUs"),
    case("hami", percent(50), pod({"nvidia.com/gpu": 1, "nvidia.com/gpumem-percentage": 50}), id="a percentage"),
    case("hami", memory(1000 * MI), pod({"nvidia.com/gpumem": 1000, "nvidia.com/gpumem-percentage": 50}), id="MiB win over the percentage"),
    case("hami", percent(100, compute=30), pod({"nvidia.com/gpu": 1, "nvidia.com/gpucores": 30}), id="cores alone have all the memory"),
    case("hami", memory(1000 * MI), pod({"nvidia.com/gpu": 1, "nvidia.com/gpumem": 1000, "nvidia.com/gpucores": 0}), id="no cores asked"),
    case("hami", WHOLE, pod({"nvidia.com/gpu": 1, "nvidia.com/gpumem-percentage": 100}), id="all the memory is the whole card"),
    case("hami", WHOLE, pod({"nvidia.com/gpu": 1}, schedulerName="hami-scheduler"), id="a plain card under its scheduler"),
    case("hami", {"gpus": 2, "whole": True}, pod({"nvidia.com/gpu": 2}, annotations={"nvidia.com/use-gputype": "A100"}), id="a plain card with its annotation"),
    case("hami", WHOLE, pod({"nvidia.com/gpu": 1, "nvidia.com/priority": 0}), id="a plain card with its priority"),
    case("hami", memory(2000 * MI), pod(requests={"nvidia.com/gpu": 1, "nvidia.com/gpumem": 2000}), id="requests alone"),
    case("hami", memory(3000 * MI), pod({"nvidia.com/gpumem": 3000}, requests={"nvidia.com/gpumem": 1}), id="limits first"),
    case("hami", memory(30 * 100 * MI), pod({"nvidia.com/gpumem": 30}), config="dialects: {hami: {memoryFactor: 100}}", id="the installer's factor"),
]  # fmt: skip
VOLCANO = [
    case("volcano", memory(3000 * MI, gpus=2), pod({"volcano.sh/vgpu-number": 2, "volcano.sh/vgpu-memory": 3000}, schedulerName="volcano"), id="MiB of each"),
    case("volcano", memory(1024 * MI), pod({"volcano.sh/vgpu-memory": 1024}), id="the number defaults to one"),
    case("volcano", percent(100), pod({"volcano.sh/vgpu-number": 1}), id="the number alone has all the memory"),
    case("volcano", percent(30, compute=20), pod({"volcano.sh/vgpu-number": 1, "volcano.sh/vgpu-memory-percentage": 30, "volcano.sh/vgpu-cores": 20}), id="percentages"),
    case("volcano", memory(24 * GI, compute=100), pod({"volcano.sh/vgpu-number": "1", "volcano.sh/vgpu-memory": "24", "volcano.sh/vgpu-cores": "100"}), config="dialects: {volcano: {memoryFactor: 1024}}", id="the installer's factor"),
    case("volcanoOld", {"gpus": 2, "whole": True}, pod({"volcano.sh/gpu-number": 2}), id="whole cards"),
    case("volcanoOld", memory(1024 * MI), pod({"volcano.sh/gpu-memory": 1024}), id="MiB of one"),
]  # fmt: skip
CCE = [
    case("cce", memory(5 * GI), pod({"volcano.sh/gpu-mem.128Mi": 40}), id="40 units are 5 GiB"),
    case("cce", memory(5 * GI, compute=50), pod({"volcano.sh/gpu-mem.128Mi": 40, "volcano.sh/gpu-core.percentage": 50}), id="with compute"),
    case("cce", memory(4 * GI, gpus=2), pod({"volcano.sh/gpu-mem.128Mi": "64"}, labels={"volcano.sh/gpu-num": "2"}), id="a total over two cards"),
    case("cce", memory(4 * GI, gpus=2, compute=5), pod({"volcano.sh/gpu-mem.128Mi": 64, "volcano.sh/gpu-core.percentage": 10}, labels={"volcano.sh/gpu-num": "2"}), id="compute is a total too"),
    case("cce", percent(50), pod({"nvidia.com/gpu": 0.5}), id="half a card"),
    case("cce", percent(10), pod({"nvidia.com/gpu": "100m"}), id="as the API server writes 0.1"),
    case("cce", percent(33), pod({"nvidia.com/gpu": "0.333"}), id="rounded down"),
]  # fmt: skip
ALIYUN = [
    case("aliyun", memory(3 * GI), pod({"aliyun.com/gpu-mem": 3}), id="GiB"),
    case("aliyun", memory(16276 * MI), pod({"aliyun.com/gpu-mem": 16276}), id="MiB where no card has so many GiB"),
    case("aliyun", memory(8 * GI), pod({"aliyun.com/gpu-mem": "8Gi"}), id="a quantity of bytes"),
    case("aliyun", memory(3 * GI), pod({"aliyun.com/gpu-mem": 3, "aliyun.com/gpu-count": 2}), id="the resource gpu-count means nothing"),
    case("aliyun", memory(2 * GI, gpus=4), pod({"aliyun.com/gpu-mem": 8}, labels={"aliyun.com/gpu-count": "4"}), id="a total over the label's cards"),
    case("aliyun", memory(141 * GI, gpus=8), pod({"aliyun.com/gpu-mem": 1128}, labels={"aliyun.com/gpu-count": "8"}), id="a total that one card would not have"),
    case("aliyun", memory(4 * GI, compute=30), pod({"aliyun.com/gpu-mem": 4, "aliyun.com/gpu-core.percentage": 30}), id="with compute"),
    case("aliyun", {"gpus": 2, "whole": True}, pod({"aliyun.com/gpu": 2}), id="whole cards"),
    case("aliyun", memory(512 * MI), pod({"aliyun.com/gpu-mem": 512}), config="dialects: {aliyun: {memoryUnit: MiB}}", id="an installation in MiB"),
    case("acs", percent(30, compute=20), pod({"alibabacloud.com/gpu-memory.percentage": 30, "alibabacloud.com/gpu-core.percentage": 20}), id="percentages"),
    case("acs", percent(40), pod({"alibabacloud.com/gpu-memory.percentage": 40}, requests={"alibabacloud.com/gpu-memory.percentage": 20}), id="the limit is what may be used"),
    case("acs", percent(40, compute=40), pod({"alibabacloud.com/gpu-memory.percentage": 40, "alibabacloud.com/gpu-core.percentage": 40}, labels={"alibabacloud.com/acs": "true", "alibabacloud.com/compute-class": "gpu-hpn"}), id="its labels come with every sample"),
    case("alibaba", memory(1024 * MI), pod({}, annotations={"alibabacloud.com/gpu-mem": "1024Mi"}), id="a quantity"),
    case("alibaba", memory(1 * GI, gpus=2), pod({}, annotations={"alibabacloud.com/gpu-mem": "1Gi", "alibabacloud.com/gpu-count": "2"}), id="per GPU"),
    case("alibaba", memory(7 * GI), pod({}, annotations={"alibabacloud.com/gpu-mem": "7"}), id="a bare number is GiB"),
    case("alibaba", percent(46, compute=46), pod({}, annotations={"alibabacloud.com/gpu-milli": "460", "alibabacloud.com/gpu-count": "1"}), id="thousandths"),
]  # fmt: skip
KOORDINATOR = [
    case("koordinator", percent(50, compute=50), pod({"koordinator.sh/gpu.shared": 1, "koordinator.sh/gpu-core": 50, "koordinator.sh/gpu-memory-ratio": 50}), id="the manual's half"),
    case("koordinator", percent(50, gpus=2, compute=50), pod({"koordinator.sh/gpu.shared": 2, "koordinator.sh/gpu-core": 100, "koordinator.sh/gpu-memory-ratio": 100}), id="totals over two"),
    case("koordinator", memory(4 * GI, gpus=2, compute=30), pod({"koordinator.sh/gpu-shared": 2, "koordinator.sh/gpu-core": 60, "koordinator.sh/gpu-memory": "8Gi"}), id="bytes, and the manual's other spelling"),
    case("koordinator", {"gpus": 2, "whole": True}, pod({"koordinator.sh/gpu-core": 200, "koordinator.sh/gpu-memory-ratio": 200}), id="200 percent are two"),
    case("koordinator", percent(50, compute=50), pod({"koordinator.sh/gpu": 50}), id="both in one"),
    case("koordinator", {"gpus": 2, "whole": True}, pod({"koordinator.sh/gpu": 200}), id="200 of both are two cards"),
    case("koordinator", percent(50), pod({"koordinator.sh/gpu-memory-ratio": 50}), id="memory alone"),
    case("koordinator", WHOLE, pod({"kubernetes.io/gpu": "100"}), id="the old prefix"),
    case("koordinator", memory(GI, compute=10), pod(requests={"kubernetes.io/gpu-core": 10, "kubernetes.io/gpu-memory": "1Gi"}), id="native names may be in requests alone"),
]  # fmt: skip
TENCENT = [
    case("tencent", memory(5 * GI, compute=30), pod({"tencent.com/vcuda-core": 30, "tencent.com/vcuda-memory": 20}), id="20 x 256 MiB"),
    case("tencent", WHOLE, pod({"tencent.com/vcuda-core": 100}), id="100 is a card"),
    case("tencent", {"gpus": 2, "whole": True}, pod({"tencent.com/vcuda-core": 200, "tencent.com/vcuda-memory": 60}), id="from 100 on memory is ignored"),
    case("qgpu", memory(5 * GI, compute=30), pod({"tke.cloud.tencent.com/qgpu-core": "30", "tke.cloud.tencent.com/qgpu-memory": "5"}), id="one share"),
    case("qgpu", WHOLE, pod({"tke.cloud.tencent.com/qgpu-core": 100, "tke.cloud.tencent.com/qgpu-memory": 5}), id="100 is a card"),
    case("qgpu", memory(30 * GI, gpus=2, compute=80), pod({"tke.cloud.tencent.com/qgpu-core": 160, "tke.cloud.tencent.com/qgpu-memory": 60}), id="160 and 60 are two"),
    case("qgpu", memory(6 * GI), pod(requests={"tke.cloud.tencent.com/qgpu-memory": 6}, annotations={"tke.cloud.tencent.com/app-class": "online"}), id="online: memory alone"),
    case("qgpu", memory(6 * GI), pod({"tke.cloud.tencent.com/qgpu-core-greedy": 50, "tke.cloud.tencent.com/qgpu-memory": 6}), id="offline: greedy compute is best effort"),
    case("qgpu", memory(5 * 10**9, compute=30), pod({"tke.cloud.tencent.com/qgpu-core": 30, "tke.cloud.tencent.com/qgpu-memory": 5}), config="dialects: {qgpu: {memoryUnit: GB}}", id="GB by option"),
    case("elasticgpu", memory(256 * MI, compute=10), pod({"elasticgpu.io/gpu-core": 10, "elasticgpu.io/gpu-memory": 256}), id="percent and MiB"),
    case("elasticgpu", {"gpus": 2, "whole": True}, pod({"elasticgpu.io/gpu-core": 200}), id="200 are two cards"),
    case("elasticgpu", memory(512 * MI), pod({"elasticgpu.io/gpu-memory": 512}), id="memory alone"),
    case("elasticgpu", {"gpus": 3, "whole": True}, pod({"elasticgpu.io/pgpu": 3}), id="whole cards"),
]  # fmt: skip
OTHERS = [
    case("nos", memory(10 * GI), pod({"nvidia.com/gpu-10gb": 1}, hostIPC=True, securityContext={"runAsUser": 1000}), id="the size is in the name"),
    case("nos", memory(10 * 10**9), pod({"nvidia.com/gpu-10gb": 1}), config="dialects: {nos: {memoryUnit: GB}}", id="GB by option"),
    case("vgpuManager", memory(1024 * MI, compute=10), pod({"nvidia.com/vgpu-number": 1, "nvidia.com/vgpu-cores": 10, "nvidia.com/vgpu-memory": 1024}), id="a share"),
    case("vgpuManager", memory(1024 * MI, compute=10), pod({"nvidia.com/vgpu-number": 1, "nvidia.com/vgpu-core": 10, "nvidia.com/vgpu-memory": 1024}), id="its README's misspelling"),
    case("vgpuManager", {"gpus": 2, "whole": True}, pod({"nvidia.com/vgpu-number": 2}), id="the number alone is whole cards"),
    case("vgpuManager", memory(10000 * MI, gpus=2), pod({"nvidia.com/vgpu-number": 2, "nvidia.com/vgpu-memory": 10000}), id="MiB of each"),
    case("vgpuManager", percent(100, compute=50), pod({"nvidia.com/vgpu-number": 1, "nvidia.com/vgpu-cores": 50}), id="cores alone"),
    case("aws", percent(10, compute=10), pod({"k8s.amazonaws.com/vgpu": 1}, hostIPC=True), id="one of ten"),
    case("aws", percent(16, compute=16), pod({"k8s.amazonaws.com/vgpu": 8}), config="dialects: {aws: {perGpu: 48}}", id="eight of 48"),
    case("aws", {"gpus": 2, "whole": True}, pod({"k8s.amazonaws.com/vgpu": 20}), id="twenty of ten"),
    case("nvshare", percent(100), pod({"nvshare.com/gpu": 1}), id="all the memory, compute shared"),
    case("nvshare", percent(10), pod({"nvshare.com/gpu": 1}), config="dialects: {nvshare: {memory: slot}}", id="a slot's share by option"),
    case("nvshare", memory(4 * GI, compute=30), pod({"nvshare.com/gpu": 1}, annotations={"nvshare.com/gpu-memory-limit": "4Gi", "nvshare.com/gpu-core-limit": "30"}), id="a fork's limits"),
]  # fmt: skip
ANNOTATIONS = [
    case("kai", percent(50), pod({}, annotations={"gpu-fraction": "0.5"}, schedulerName="kai-scheduler"), id="half a card's memory"),
    case("kai", memory(2000 * MI), pod({}, annotations={"gpu-memory": "2000"}), id="MiB"),
    case("kai", percent(25, gpus=2), pod({}, annotations={"gpu-fraction": "0.25", "gpu-fraction-num-devices": "2"}), id="of each of two"),
    case("kai", percent(33), pod({}, annotations={"gpu-fraction": "0.3333"}), id="rounded down"),
    case("kai", percent(50, compute=40), pod({}, annotations={"gpu-fraction": "0.5", "gpu-sm-percentage": "40"}), id="a share of the SMs"),
    case("kai", percent(50), pod({}, annotations={"gpu-fraction": "0.5", "gpu-fraction.limit": "0.8"}), id="borrowed memory is not reserved"),
    case("kai", percent(80), pod({}, annotations={"gpu-fraction": "0.5", "gpu-fraction.limit": "0.8"}), config="dialects: {kai: {reserve: limit}}", id="unless the option says so"),
    case("kai", memory(3000 * MI), pod({}, annotations={"gpu-memory": "2000", "gpu-memory.limit": "3000"}), config="dialects: {kai: {reserve: limit}}", id="its limit is in MiB too"),
    case("runai", percent(25), pod({}, annotations={"gpu-fraction": "0.25"}, env={"RUNAI_GPU_MEMORY_LIMIT": "0.8"}, schedulerName="runai-scheduler"), id="the request is what is guaranteed"),
    case("runai", percent(80), pod({}, annotations={"gpu-fraction": "0.25"}, env={"RUNAI_GPU_MEMORY_LIMIT": "0.8"}), config="dialects: {runai: {reserve: limit}}", id="the limit by option"),
    case("runai", memory(2500 * 10**6), pod({}, annotations={"gpu-memory": "2000"}, env={"RUNAI_GPU_MEMORY_LIMIT": "2500M"}), config="dialects: {runai: {reserve: limit}}", id="a limit in bytes"),
    case("nvfractions", memory(4 * GI), pod({}, annotations={"nvidia.com/container.main.gpu-memory.limit": "4Gi"}), id="the limit alone"),
    case("nvfractions", memory(2 * GI), pod({}, annotations={"nvidia.com/container.main.gpu-memory.request": "2Gi"}), id="the request alone"),
    case("nvfractions", memory(4 * GI), pod({}, annotations={"nvidia.com/container.main.gpu-memory.request": "2Gi", "nvidia.com/container.main.gpu-memory.limit": "4Gi"}), id="the limit of both"),
    case("nvfractions", memory(2 * GI), pod({}, annotations={"nvidia.com/container.main.gpu-memory.request": "2Gi", "nvidia.com/container.main.gpu-memory.limit": "4Gi"}), config="dialects: {nvfractions: {reserve: request}}", id="the request by option"),
    case("nvfractions", memory(GI, gpus=3), pod({}, annotations={"nvidia.com/container.main.gpu-memory.limit": "1Gi", "gpu-fraction-num-devices": "3", "gpu-fraction": "0.25", "gpu-memory": "2048"}), id="classic annotations beside it don't count"),
    case("nvfractions", memory(16 * GI), pod({}, annotations={"nvidia.com/gpu-memory.container.main.request": "8Gi", "nvidia.com/gpu-memory.container.main.limit": "16Gi"}), id="the older names"),
    case("kubeshare", percent(50, compute=50), pod({}, labels={"sharedgpu/gpu_request": "0.5", "sharedgpu/gpu_limit": "1.0"}, schedulerName="kubeshare-scheduler"), id="the README's pod"),
    case("kubeshare", memory(4 * GI, compute=30), pod({}, labels={"sharedgpu/gpu_request": "0.3", "sharedgpu/gpu_limit": "0.5", "sharedgpu/gpu_mem": "4294967296"}), id="bytes"),
    case("kubeshare", {"gpus": 2, "whole": True}, pod({}, labels={"sharedgpu/gpu_request": "2", "sharedgpu/gpu_limit": "2"}), id="above one it counts cards"),
    case("kubeshare", WHOLE, pod({}, labels={"sharedgpu/gpu_request": "1.0", "sharedgpu/gpu_limit": "1.0"}), id="one is a card"),
    case("kubeshare", percent(30, compute=50), pod({}, labels={"sharedgpu/gpu_request": "0.3", "sharedgpu/gpu_limit": "0.5"}), config="dialects: {kubeshare: {compute: limit}}", id="the ceiling by option"),
    case("kubeshare", memory(GI), pod({}, labels={"sharedgpu/gpu_request": "0", "sharedgpu/gpu_limit": "1.0", "sharedgpu/gpu_mem": "1073741824"}), id="an opportunistic pod is guaranteed no compute"),
]  # fmt: skip
GKE = {"cloud.google.com/gke-accelerator": "nvidia-tesla-t4"}
SHARING = {
    "cloud.google.com/gke-gpu-sharing-strategy": "time-sharing",
    "cloud.google.com/gke-max-shared-clients-per-gpu": "16",
}
NVIDIA = [
    case("gke", percent(6), pod({"nvidia.com/gpu": 1}, nodeSelector=GKE | SHARING), id="one of 16 clients"),
    case("gke", percent(50), pod({"nvidia.com/gpu": 1}, nodeSelector={"cloud.google.com/gke-gpu-sharing-strategy": "time-sharing"}), id="two clients where it is not said"),
    case("gke", percent(25, compute=25), pod({"nvidia.com/gpu": 1}, nodeSelector=SHARING | {"cloud.google.com/gke-gpu-sharing-strategy": "mps", "cloud.google.com/gke-max-shared-clients-per-gpu": "4"}), id="MPS shares compute too"),
    case("gke", WHOLE, pod({"nvidia.com/gpu": 1}, nodeSelector={"cloud.google.com/gke-max-shared-clients-per-gpu": "1"}), id="one client has it all"),
    case("gke", {"gpus": 1, "mig": "1g.5gb"}, pod({"nvidia.com/gpu": 1}, nodeSelector={"cloud.google.com/gke-gpu-partition-size": "1g.5gb"}), config="dialects: {gke: {partitions: true}}", id="a partition by option"),
    case("nvidia", {"gpus": 2, "whole": True}, pod({"nvidia.com/gpu": 2}), config="dialects: {nvidia: {whole: true}}", id="whole cards by option"),
    case("nvidia", percent(25), pod({"nvidia.com/gpu.shared": 1}), config="dialects: {nvidia: {sharedPercent: 25}}", id="a replica by option"),
    case("nvidia", percent(25), pod({"nvidia.com/gpu": 1}, nodeSelector={"nvidia.com/gpu.product": "Tesla-T4-SHARED"}), config="dialects: {nvidia: {whole: true, sharedPercent: 25}}", id="a shared product is a replica"),
    case("nvidia", {"gpus": 2, "mig": "1g.10gb"}, pod({"nvidia.com/mig-1g.10gb": 2}), config="dialects: {nvidia: {mig: true}}", id="instances by option"),
]  # fmt: skip
CASES = [*HAMI, *VOLCANO, *CCE, *ALIYUN, *KOORDINATOR, *TENCENT, *OTHERS, *ANNOTATIONS, *NVIDIA]


@pytest.fixture(scope="session")
def recognise():
    """Read a pod given as plain data, by the config's text."""
    made = {}

    def read(pod, config=""):
        if config not in made:
            made[config] = Dialects(parse(config, dialects=OPTIONS))
        return made[config].recognise(msgspec.json.decode(json.dumps(pod), type=Manifest))

    return read


@pytest.fixture(scope="session")
def understood(recognise):
    """The request annotation's content for a pod, or None; the version, which is always 1, left out."""

    def read(pod, config=""):
        found = recognise(pod, config)
        if found is None:
            return None
        request = json.loads(encode(found.request))
        assert request.pop("v") == 1
        return request

    return read


@pytest.mark.parametrize(("dialect", "meant", "given", "config"), CASES)
def test_meaning(dialect, meant, given, config, understood):
    assert understood(given, config) == {"dialect": dialect, "containers": {"main": meant}}


@pytest.mark.parametrize("given", [pytest.param(case.values[2], id=case.id) for case in CASES])
def test_without_foreign_dialects_nothing_is_understood(given, understood):
    off = ", ".join(f"{found.name}: false" for found in FOREIGN)
    assert understood(given, f"dialects: {{{off}}}") is None


def test_every_dialect_is_tried_here():
    assert {found.name for found in FOREIGN} == {found.values[0] for found in CASES}
