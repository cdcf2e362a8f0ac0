/*
 * Calls every function with good and with bad arguments, on a state file whose contents are overwritten with noise in
 * between. Built with the address and undefined-behaviour sanitizers together with the library's own sources: what it
 * tests is that nothing is read or written where it must not be. Answers are the other tests' business.
 *
 * usage: driver STATE ROUNDS
 */
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "abi.h"
#include "state.h"

typedef nvmlReturn_t R;
R nvmlInit_v2(void), nvmlInitWithFlags(unsigned), nvmlShutdown(void);
const char *nvmlErrorString(R);
R nvmlSystemGetDriverVersion(char *, unsigned), nvmlSystemGetNVMLVersion(char *, unsigned);
R nvmlSystemGetCudaDriverVersion(int *), nvmlSystemGetCudaDriverVersion_v2(int *);
R nvmlSystemGetProcessName(unsigned, char *, unsigned), nvmlDeviceGetCount_v2(unsigned *);
R nvmlDeviceGetHandleByIndex_v2(unsigned, nvmlDevice_t *), nvmlDeviceGetHandleByUUID(const char *, nvmlDevice_t *);
R nvmlDeviceGetHandleByPciBusId_v2(const char *, nvmlDevice_t *);
R nvmlDeviceGetUUID(nvmlDevice_t, char *, unsigned), nvmlDeviceGetName(nvmlDevice_t, char *, unsigned);
R nvmlDeviceGetIndex(nvmlDevice_t, unsigned *), nvmlDeviceGetMinorNumber(nvmlDevice_t, unsigned *);
R nvmlDeviceGetPciInfo_v3(nvmlDevice_t, nvmlPciInfo_t *), nvmlDeviceGetMemoryInfo(nvmlDevice_t, nvmlMemory_t *);
R nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t, nvmlMemory_v2_t *), nvmlDeviceGetNumaNodeId(nvmlDevice_t, unsigned *);
R nvmlDeviceGetMemoryAffinity(nvmlDevice_t, unsigned, unsigned long *, unsigned);
R nvmlDeviceGetCudaComputeCapability(nvmlDevice_t, int *, int *), nvmlDeviceGetArchitecture(nvmlDevice_t, unsigned *);
R nvmlDeviceGetBrand(nvmlDevice_t, unsigned *), nvmlDeviceGetComputeMode(nvmlDevice_t, unsigned *);
R nvmlDeviceGetPersistenceMode(nvmlDevice_t, unsigned *), nvmlDeviceGetPowerUsage(nvmlDevice_t, unsigned *);
R nvmlDeviceSetComputeMode(nvmlDevice_t, unsigned), nvmlDeviceGetTemperature(nvmlDevice_t, unsigned, unsigned *);
R nvmlDeviceGetEccMode(nvmlDevice_t, unsigned *, unsigned *);
R nvmlDeviceGetTotalEccErrors(nvmlDevice_t, unsigned, unsigned, unsigned long long *);
R nvmlDeviceGetRemappedRows(nvmlDevice_t, unsigned *, unsigned *, unsigned *, unsigned *);
R nvmlDeviceGetFieldValues(nvmlDevice_t, int, nvmlFieldValue_t *);
R nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t, nvmlDevice_t, unsigned *);
R nvmlDeviceGetP2PStatus(nvmlDevice_t, nvmlDevice_t, unsigned, unsigned *);
R nvmlDeviceGetNvLinkState(nvmlDevice_t, unsigned, unsigned *);
R nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t, unsigned, nvmlPciInfo_t *);
R nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t, unsigned *, nvmlProcessInfo_t *);
R nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t, unsigned *, nvmlProcessInfo_t *);
R nvmlDeviceGetMPSComputeRunningProcesses_v3(nvmlDevice_t, unsigned *, nvmlProcessInfo_t *);
R nvmlDeviceGetProcessUtilization(nvmlDevice_t, nvmlProcessUtilizationSample_t *, unsigned *, unsigned long long);
R nvmlDeviceGetUtilizationRates(nvmlDevice_t, nvmlUtilization_t *);
R nvmlDeviceSetMemoryLimits_v1(nvmlDevice_t, const nvmlSetMemoryLimits_v1_t *);
R nvmlDeviceGetMemoryLimits_v1(nvmlDevice_t, nvmlGetMemoryLimits_v1_t *);
R nvmlDeviceGetMigMode(nvmlDevice_t, unsigned *, unsigned *), nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t, unsigned *);
R nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t, unsigned, nvmlDevice_t *);
R nvmlDeviceIsMigDeviceHandle(nvmlDevice_t, unsigned *);
R nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t, nvmlDevice_t *);
R nvmlDeviceGetGpuInstanceId(nvmlDevice_t, unsigned *), nvmlDeviceGetComputeInstanceId(nvmlDevice_t, unsigned *);
R nvmlDeviceGetAttributes_v2(nvmlDevice_t, nvmlDeviceAttributes_t *);
R nvmlDeviceGetGpuInstanceProfileInfo(nvmlDevice_t, unsigned, nvmlGpuInstanceProfileInfo_t *);
R nvmlDeviceGetGpuInstanceProfileInfoV(nvmlDevice_t, unsigned, nvmlGpuInstanceProfileInfo_v2_t *);
R nvmlDeviceGetGpuInstanceById(nvmlDevice_t, unsigned, nvmlGpuInstance_t *);
R nvmlGpuInstanceGetInfo(nvmlGpuInstance_t, nvmlGpuInstanceInfo_t *);
R nvmlEventSetCreate(nvmlEventSet_t *), nvmlEventSetFree(nvmlEventSet_t);
R nvmlDeviceGetSupportedEventTypes(nvmlDevice_t, unsigned long long *);
R nvmlDeviceRegisterEvents(nvmlDevice_t, unsigned long long, nvmlEventSet_t);
R nvmlEventSetWait_v2(nvmlEventSet_t, nvmlEventData_t *, unsigned);

static unsigned calls, answered;

static void count(R code)
{
    calls++;
    answered += code == OK;
    if (!nvmlErrorString(code))
        abort();
}

/* Everything that takes a device, once with room for the answer and once without. */
static void ask(nvmlDevice_t device, nvmlDevice_t peer, nvmlEventSet_t set, const char *cgroup)
{
    char text[96];
    unsigned a, b, c, d;
    int i, j;
    unsigned long long wide;
    unsigned long nodes[2];
    nvmlPciInfo_t pci;
    nvmlMemory_t memory;
    nvmlMemory_v2_t memory2 = {.version = VERSION_OF(nvmlMemory_v2_t, 2)};
    nvmlUtilization_t rates;
    nvmlDeviceAttributes_t attributes;
    nvmlGpuInstanceProfileInfo_t profile;
    nvmlGpuInstanceProfileInfo_v2_t profile2 = {.version = VERSION_OF(nvmlGpuInstanceProfileInfo_v2_t, 2)};
    nvmlGpuInstanceInfo_t instance_info;
    nvmlGpuInstance_t instance = NULL;
    nvmlDevice_t other;
    nvmlProcessInfo_t processes[16];
    nvmlProcessUtilizationSample_t samples[16];
    nvmlEventData_t event;
    nvmlFieldValue_t fields[3] = {{.fieldId = 230}, {.fieldId = 1}, {.fieldId = 4000}};
    nvmlSetMemoryLimits_v1_t set_limits = {cgroup, 1, 2};
    nvmlGetMemoryLimits_v1_t get_limits = {.nameSpace = cgroup};
    for (unsigned length = 0; length <= sizeof text; length += 24) {
        count(nvmlDeviceGetUUID(device, text, length));
        count(nvmlDeviceGetName(device, text, length));
    }
    count(nvmlDeviceGetIndex(device, &a));
    count(nvmlDeviceGetMinorNumber(device, &a));
    count(nvmlDeviceGetPciInfo_v3(device, &pci));
    count(nvmlDeviceGetMemoryInfo(device, &memory));
    count(nvmlDeviceGetMemoryInfo_v2(device, &memory2));
    count(nvmlDeviceGetNumaNodeId(device, &a));
    count(nvmlDeviceGetMemoryAffinity(device, 2, nodes, 0));
    count(nvmlDeviceGetCudaComputeCapability(device, &i, &j));
    count(nvmlDeviceGetArchitecture(device, &a));
    count(nvmlDeviceGetBrand(device, &a));
    count(nvmlDeviceGetComputeMode(device, &a));
    count(nvmlDeviceGetPersistenceMode(device, &a));
    count(nvmlDeviceGetPowerUsage(device, &a));
    count(nvmlDeviceSetComputeMode(device, 3));
    count(nvmlDeviceGetTemperature(device, 0, &a));
    count(nvmlDeviceGetEccMode(device, &a, &b));
    count(nvmlDeviceGetTotalEccErrors(device, 0, 0, &wide));
    count(nvmlDeviceGetRemappedRows(device, &a, &b, &c, &d));
    count(nvmlDeviceGetFieldValues(device, 3, fields));
    count(nvmlDeviceGetFieldValues(device, -1, fields));
    count(nvmlDeviceGetTopologyCommonAncestor(device, peer, &a));
    for (unsigned k = 0; k < 6; k++)
        count(nvmlDeviceGetP2PStatus(device, peer, k, &a));
    for (unsigned link = 0; link < 40; link++) {
        count(nvmlDeviceGetNvLinkState(device, link, &a));
        count(nvmlDeviceGetNvLinkRemotePciInfo_v2(device, link, &pci));
    }
    for (unsigned size = 0; size <= 16; size += 8) {
        a = b = c = d = size;
        count(nvmlDeviceGetComputeRunningProcesses_v3(device, &a, size ? processes : NULL));
        count(nvmlDeviceGetGraphicsRunningProcesses_v3(device, &b, size ? processes : NULL));
        count(nvmlDeviceGetMPSComputeRunningProcesses_v3(device, &c, size ? processes : NULL));
        count(nvmlDeviceGetProcessUtilization(device, size ? samples : NULL, &d, 0));
    }
    count(nvmlDeviceGetUtilizationRates(device, &rates));
    count(nvmlDeviceSetMemoryLimits_v1(device, &set_limits));
    count(nvmlDeviceGetMemoryLimits_v1(device, &get_limits));
    count(nvmlDeviceGetMigMode(device, &a, &b));
    count(nvmlDeviceGetMaxMigDeviceCount(device, &a));
    count(nvmlDeviceIsMigDeviceHandle(device, &a));
    count(nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device, &other));
    count(nvmlDeviceGetGpuInstanceId(device, &a));
    count(nvmlDeviceGetComputeInstanceId(device, &a));
    count(nvmlDeviceGetAttributes_v2(device, &attributes));
    for (unsigned number = 0; number < 20; number++) {
        count(nvmlDeviceGetGpuInstanceProfileInfo(device, number, &profile));
        count(nvmlDeviceGetGpuInstanceProfileInfoV(device, number, &profile2));
    }
    for (unsigned id = 0; id < 16; id++)
        if (nvmlDeviceGetGpuInstanceById(device, id, &instance) == OK)
            count(nvmlGpuInstanceGetInfo(instance, &instance_info));
    count(nvmlDeviceGetSupportedEventTypes(device, &wide));
    count(nvmlDeviceRegisterEvents(device, wide, set));
    for (unsigned k = 0; k < 4; k++)
        count(nvmlEventSetWait_v2(set, &event, 0));

    count(nvmlDeviceGetUUID(device, NULL, 96));
    count(nvmlDeviceGetPciInfo_v3(device, NULL));
    count(nvmlDeviceGetMemoryInfo(device, NULL));
    count(nvmlDeviceGetMemoryInfo_v2(device, NULL));
    count(nvmlDeviceGetFieldValues(device, 1, NULL));
    count(nvmlDeviceGetTopologyCommonAncestor(device, NULL, &a));
    count(nvmlDeviceGetNvLinkRemotePciInfo_v2(device, 0, NULL));
    count(nvmlDeviceGetComputeRunningProcesses_v3(device, NULL, NULL));
    count(nvmlDeviceSetMemoryLimits_v1(device, NULL));
    count(nvmlDeviceGetAttributes_v2(device, NULL));
    count(nvmlDeviceGetGpuInstanceProfileInfoV(device, 0, NULL));
    count(nvmlEventSetWait_v2(set, NULL, 0));
}

static void ask_everything(const char *cgroup)
{
    nvmlDevice_t device = NULL, first = NULL, mig = NULL;
    nvmlEventSet_t set = NULL;
    char text[80];
    unsigned gpus = 0;
    int version;
    count(nvmlEventSetCreate(&set));
    count(nvmlSystemGetDriverVersion(text, sizeof text));
    count(nvmlSystemGetNVMLVersion(text, sizeof text));
    count(nvmlSystemGetCudaDriverVersion(&version));
    count(nvmlSystemGetCudaDriverVersion_v2(NULL));
    count(nvmlSystemGetProcessName(4711, text, sizeof text));
    count(nvmlDeviceGetCount_v2(&gpus));
    count(nvmlDeviceGetHandleByUUID("GPU-0", &device));
    count(nvmlDeviceGetHandleByPciBusId_v2("0000:17:00.0", &device));
    for (unsigned i = 0; i < gpus + 1; i++) {
        if (nvmlDeviceGetHandleByIndex_v2(i, &device) != OK)
            continue;
        first = first ? first : device;
        ask(device, first, set, cgroup);
        for (unsigned slot = 0; slot < MAX_MIG + 1; slot++)
            if (nvmlDeviceGetMigDeviceHandleByIndex(device, slot, &mig) == OK)
                ask(mig, device, set, cgroup);
    }
    ask(NULL, NULL, NULL, NULL);
    ask(&device, &device, &set, "");
    count(nvmlEventSetFree(set));
}

static void make_noise(State *state)
{
    unsigned char *bytes = (unsigned char *)state;
    for (size_t i = offsetof(State, generation); i < sizeof *state; i++)
        if (rand() % 3)
            bytes[i] = (unsigned char)rand();
    state->init_error = 0;
    state->fault_count = 0;
    for (unsigned i = 0; i < MAX_GPUS; i++) {
        state->gpus[i].lost = rand() % 4 == 0;
        if (rand() % 2)
            state->gpus[i].mig_mode = 0;
    }
}

int main(int argc, char **argv)
{
    if (argc != 3 || setenv("TESSERA_FAKE_NVML_STATE", argv[1], 1) != 0)
        return 2;
    int file = open(argv[1], O_RDWR);
    State *state = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file < 0 || state == MAP_FAILED)
        return 2;
    srand(20);
    ask_everything("/"); /* before init */
    for (int round = 0; round < atoi(argv[2]); round++) {
        if (round)
            make_noise(state);
        if (nvmlInitWithFlags(INIT_FLAG_NO_GPUS) != OK)
            return 3;
        ask_everything(round % 2 ? "/" : "/proc");
        count(nvmlInit_v2());
        count(nvmlShutdown());
        count(nvmlShutdown());
    }
    if (nvmlInitWithFlags(INIT_FLAG_NO_GPUS) != OK || ftruncate(file, 4096) != 0)
        return 4;
    ask_everything("/"); /* the file was cut under the library's feet */
    printf("%u calls, %u answered\n", calls, answered);
    return calls > 1000 && answered > calls / 20 ? 0 : 5;
}
