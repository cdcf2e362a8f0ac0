/* Queries about one GPU: handles, identity, memory, modes, sensors, topology. */
#include <stdio.h>
#include <string.h>

#include "library.h"

/* The last step of every nvmlDeviceGetHandleBy*. */
static nvmlReturn_t hand_out(const Call *call, const char *function, unsigned gpu, nvmlDevice_t handle,
                             nvmlDevice_t *device)
{
    nvmlReturn_t code = injected(call->state, function, (int)gpu);
    if (code == OK && call->state->gpus[gpu].lost)
        code = GPU_IS_LOST;
    if (code == OK)
        *device = handle;
    return code;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device)
{
    BEGIN_SYSTEM();
    if (!device || index >= gpu_count(call.state))
        return INVALID_ARGUMENT;
    return hand_out(&call, __func__, index, device_handle(index), device);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    BEGIN_SYSTEM();
    if (!uuid || !device || (strncmp(uuid, "GPU-", 4) != 0 && strncmp(uuid, "MIG-", 4) != 0))
        return INVALID_ARGUMENT;
    for (unsigned i = 0; i < gpu_count(call.state); i++) {
        const Gpu *gpu = &call.state->gpus[i];
        if (strncmp(gpu->uuid, uuid, NAME_SIZE) == 0)
            return hand_out(&call, __func__, i, device_handle(i), device);
        for (unsigned slot = 0; slot < MAX_MIG; slot++)
            if (gpu->mig[slot].present && strncmp(gpu->mig[slot].uuid, uuid, NAME_SIZE) == 0)
                return hand_out(&call, __func__, i, mig_handle(i, slot), device);
    }
    return NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device)
{
    unsigned domain, bus, slot, function;
    int end = 0;
    BEGIN_SYSTEM();
    if (!bus_id || !device ||
        sscanf(bus_id, "%8x:%2x:%2x.%1x%n", &domain, &bus, &slot, &function, &end) != 4 || bus_id[end])
        return INVALID_ARGUMENT;
    for (unsigned i = 0; i < gpu_count(call.state); i++) {
        const Gpu *gpu = &call.state->gpus[i];
        if (gpu->pci_domain == domain && gpu->pci_bus == bus && gpu->pci_device == slot && function == 0)
            return hand_out(&call, __func__, i, device_handle(i), device);
    }
    return NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned length)
{
    BEGIN_DEVICE(device, EITHER);
    return copy_text(uuid, length, call.mig ? call.mig->uuid : call.gpu->uuid, NAME_SIZE);
}

EXPORT nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned length)
{
    BEGIN_DEVICE(device, EITHER);
    if (!call.mig)
        return copy_text(name, length, call.gpu->name, NAME_SIZE);
    char full[2 * NAME_SIZE + 8];
    snprintf(full, sizeof full, "%.*s MIG %.*s", NAME_SIZE - 1, call.gpu->name, NAME_SIZE - 1,
             profile_of(call.gpu, call.mig)->name);
    return copy_text(name, length, full, sizeof full);
}

EXPORT nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned *index)
{
    BEGIN_DEVICE(device, EITHER);
    if (!index)
        return INVALID_ARGUMENT;
    *index = call.mig ? call.slot : call.index;
    return OK;
}

EXPORT nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned *minor)
{
    BEGIN_DEVICE(device, PHYSICAL);
    if (!minor)
        return INVALID_ARGUMENT;
    *minor = call.gpu->minor;
    return OK;
}

static void fill_pci(const Gpu *gpu, nvmlPciInfo_t *pci)
{
    memset(pci, 0, sizeof *pci);
    pci->domain = gpu->pci_domain;
    pci->bus = gpu->pci_bus & 0xff;
    pci->device = gpu->pci_device & 0x1f;
    pci->pciDeviceId = gpu->pci_device_id;
    pci->pciSubSystemId = gpu->pci_subsystem_id;
    snprintf(pci->busId, sizeof pci->busId, "%08X:%02X:%02X.0", pci->domain, pci->bus, pci->device);
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:%02X.0", pci->domain & 0xffff, pci->bus,
             pci->device);
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
    BEGIN_DEVICE(device, EITHER);
    if (!pci)
        return INVALID_ARGUMENT;
    fill_pci(call.gpu, pci);
    return OK;
}

/* Of a MIG instance: what its processes hold, of what its profile has; the reserve is the parent's. */
static void measure(const Call *call, nvmlMemory_v2_t *memory)
{
    uint64_t used = 0;
    for (unsigned i = 0; i < process_count(call->state); i++) {
        const Process *process = &call->state->processes[i];
        if (process->gpu == call->index && (!call->mig || process->mig == (int32_t)call->slot))
            used += process->memory_used;
    }
    memory->total = call->mig ? profile_of(call->gpu, call->mig)->memory_mib << 20 : call->gpu->memory_total;
    memory->reserved = call->mig ? 0 : call->gpu->memory_reserved;
    memory->used = used;
    memory->free = memory->reserved + used < memory->total ? memory->total - memory->reserved - used : 0;
}

/* The first version has no field for the reserve and counts it as used. */
EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    BEGIN_DEVICE(device, EITHER);
    if (!memory)
        return INVALID_ARGUMENT;
    nvmlMemory_v2_t measured;
    measure(&call, &measured);
    *memory = (nvmlMemory_t){.total = measured.total, .free = measured.free, .used = measured.used + measured.reserved};
    return OK;
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    BEGIN_DEVICE(device, EITHER);
    if (!memory)
        return INVALID_ARGUMENT;
    if (memory->version != VERSION_OF(nvmlMemory_v2_t, 2))
        return ARGUMENT_VERSION_MISMATCH;
    measure(&call, memory);
    return OK;
}

/* Only where GPUs are NUMA nodes themselves (Grace Hopper); elsewhere the node is found through the PCI bus. */
EXPORT nvmlReturn_t nvmlDeviceGetNumaNodeId(nvmlDevice_t device, unsigned *node)
{
    BEGIN_DEVICE(device, PHYSICAL);
    if (!node)
        return INVALID_ARGUMENT;
    if (!call.gpu->coherent || call.gpu->numa < 0)
        return NOT_SUPPORTED;
    *node = (unsigned)call.gpu->numa;
    return OK;
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryAffinity(nvmlDevice_t device, unsigned size, unsigned long *nodes, unsigned scope)
{
    BEGIN_DEVICE(device, PHYSICAL);
    if (!nodes || size == 0 || scope > 1)
        return INVALID_ARGUMENT;
    if (call.gpu->numa < 0)
        return NOT_SUPPORTED;
    const unsigned bits = 8 * sizeof *nodes, numa = (unsigned)call.gpu->numa;
    if (numa / bits >= size)
        return INSUFFICIENT_SIZE;
    memset(nodes, 0, size * sizeof *nodes);
    nodes[numa / bits] = 1ul << (numa % bits);
    return OK;
}

EXPORT nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor)
{
    BEGIN_DEVICE(device, EITHER);
    if (!major || !minor)
        return INVALID_ARGUMENT;
    *major = (int)call.gpu->capability_major;
    *minor = (int)call.gpu->capability_minor;
    return OK;
}

/* Plain numbers of a GPU: one function each, all of one shape. */
#define NUMBER(name, accepts, value)                                                                                   \
    EXPORT nvmlReturn_t name(nvmlDevice_t device, unsigned *number)                                                    \
    {                                                                                                                  \
        BEGIN_DEVICE(device, accepts);                                                                                 \
        if (!number)                                                                                                   \
            return INVALID_ARGUMENT;                                                                                   \
        *number = (value);                                                                                             \
        return OK;                                                                                                     \
    }                                                                                                                  \
    struct semicolon

NUMBER(nvmlDeviceGetArchitecture, PHYSICAL, call.gpu->architecture);
NUMBER(nvmlDeviceGetBrand, PHYSICAL, call.gpu->brand);
NUMBER(nvmlDeviceGetComputeMode, PHYSICAL, call.gpu->compute_mode);
NUMBER(nvmlDeviceGetPersistenceMode, PHYSICAL, call.gpu->persistence_mode);
NUMBER(nvmlDeviceGetPowerUsage, PHYSICAL, call.gpu->power_milliwatts);

EXPORT nvmlReturn_t nvmlDeviceSetComputeMode(nvmlDevice_t device, unsigned mode)
{
    BEGIN_WRITE(device, PHYSICAL);
    if (mode > 3)
        return INVALID_ARGUMENT;
    if (mode == 1) /* exclusive thread: support removed by NVIDIA */
        return NOT_SUPPORTED;
    call.gpu->compute_mode = mode;
    return OK;
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, unsigned sensor, unsigned *celsius)
{
    BEGIN_DEVICE(device, PHYSICAL);
    if (!celsius || sensor > 1)
        return INVALID_ARGUMENT;
    *celsius = call.gpu->temperature;
    return OK;
}

EXPORT nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, unsigned *current, unsigned *pending)
{
    BEGIN_DEVICE(device, PHYSICAL);
    if (!current || !pending)
        return INVALID_ARGUMENT;
    *current = *pending = call.gpu->ecc_mode;
    return OK;
}

EXPORT nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, unsigned kind, unsigned counter,
                                                unsigned long long *count)
{
    BEGIN_DEVICE(device, PHYSICAL);
    if (!count || kind > 1 || counter > 1)
        return INVALID_ARGUMENT;
    if (!call.gpu->ecc_mode)
        return NOT_SUPPORTED;
    *count = kind ? call.gpu->ecc_uncorrected : call.gpu->ecc_corrected;
    return OK;
}

/* Ampere and newer. */
EXPORT nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned *corrected, unsigned *uncorrected,
                                              unsigned *pending, unsigned *failure)
{
    BEGIN_DEVICE(device, PHYSICAL);
    if (!corrected || !uncorrected || !pending || !failure)
        return INVALID_ARGUMENT;
    if (call.gpu->capability_major < 8)
        return NOT_SUPPORTED;
    *corrected = call.gpu->remapped_corrected;
    *uncorrected = call.gpu->remapped_uncorrected;
    *pending = call.gpu->remapped_pending;
    *failure = call.gpu->remapped_failure;
    return OK;
}

EXPORT nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values)
{
    BEGIN_DEVICE(device, EITHER);
    if (!values || count <= 0)
        return INVALID_ARGUMENT;
    for (int i = 0; i < count; i++) {
        nvmlFieldValue_t *value = &values[i];
        value->timestamp = now_microseconds();
        value->latencyUsec = 0;
        value->valueType = 1; /* unsigned int */
        memset(&value->value, 0, sizeof value->value);
        if (value->fieldId == 0 || value->fieldId >= FIELD_COUNT)
            value->nvmlReturn = INVALID_ARGUMENT;
        else if (value->fieldId != FIELD_GPU_RECOVERY_ACTION || driver_major(call.state) < 565)
            value->nvmlReturn = NOT_SUPPORTED; /* the recovery action came with driver 565 */
        else {
            value->value.uiVal = call.gpu->recovery_action;
            value->nvmlReturn = OK;
        }
    }
    return OK;
}

/* Both ends of a question about two GPUs; the first one was checked by BEGIN_DEVICE. */
static nvmlReturn_t other_end(const Call *call, nvmlDevice_t device, unsigned *index)
{
    int slot;
    if (!decode_handle(call->state, device, index, &slot) || slot >= 0)
        return INVALID_ARGUMENT;
    return call->state->gpus[*index].lost ? GPU_IS_LOST : OK;
}

EXPORT nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t device, nvmlDevice_t device2, unsigned *level)
{
    BEGIN_DEVICE(device, PHYSICAL);
    unsigned other;
    nvmlReturn_t code = other_end(&call, device2, &other);
    if (code != OK || !level)
        return code != OK ? code : INVALID_ARGUMENT;
    *level = other == call.index ? 0 : call.gpu->topology[other];
    return OK;
}

/* Peer access over NVLink where there is one, else over PCIe below one root; across sockets the chipset refuses. */
EXPORT nvmlReturn_t nvmlDeviceGetP2PStatus(nvmlDevice_t device, nvmlDevice_t device2, unsigned capability,
                                           unsigned *status)
{
    enum { P2P_OK = 0, CHIPSET_NOT_SUPPORTED = 1, P2P_NOT_SUPPORTED = 5, NVLINK = 2, CAPABILITIES = 5, HOSTBRIDGE = 30 };
    BEGIN_DEVICE(device, PHYSICAL);
    unsigned other;
    nvmlReturn_t code = other_end(&call, device2, &other);
    if (code != OK || !status || capability >= CAPABILITIES || other == call.index)
        return code != OK ? code : INVALID_ARGUMENT;
    if (call.gpu->nvlinks[other])
        *status = P2P_OK;
    else if (capability == NVLINK)
        *status = P2P_NOT_SUPPORTED;
    else
        *status = call.gpu->topology[other] <= HOSTBRIDGE ? P2P_OK : CHIPSET_NOT_SUPPORTED;
    return OK;
}

/* Links are numbered peer by peer, in the order of the peers' indices; -1: this link leads nowhere. */
static int nvlink_peer(const Call *call, unsigned link)
{
    for (unsigned i = 0; i < gpu_count(call->state); i++) {
        if (link < call->gpu->nvlinks[i])
            return (int)i;
        link -= call->gpu->nvlinks[i];
    }
    return -1;
}

static nvmlReturn_t check_link(const Call *call, unsigned link, const void *answer)
{
    if (!answer || link >= NVLINK_MAX_LINKS)
        return INVALID_ARGUMENT;
    return link < call->gpu->nvlink_ports ? OK : NOT_SUPPORTED;
}

EXPORT nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned link, unsigned *active)
{
    BEGIN_DEVICE(device, PHYSICAL);
    nvmlReturn_t code = check_link(&call, link, active);
    if (code == OK)
        *active = nvlink_peer(&call, link) >= 0;
    return code;
}

EXPORT nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t device, unsigned link, nvmlPciInfo_t *pci)
{
    BEGIN_DEVICE(device, PHYSICAL);
    nvmlReturn_t code = check_link(&call, link, pci);
    if (code != OK)
        return code;
    int peer = nvlink_peer(&call, link);
    if (peer < 0)
        return NOT_SUPPORTED;
    fill_pci(&call.state->gpus[peer], pci);
    return OK;
}
