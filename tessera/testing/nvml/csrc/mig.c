/* GPUs that are cut by MIG: instances, their handles and profiles. Cutting itself is done through the state file. */
#include <stdio.h>
#include <string.h>

#include "library.h"

/* GPU instances have handles of their own: an address per GPU and slot. */
static unsigned char instances[MAX_GPUS][MAX_MIG];

const MigProfile *profile_of(const Gpu *gpu, const MigInstance *mig)
{
    return &gpu->profiles[mig->profile < MAX_PROFILES ? mig->profile : 0];
}

EXPORT nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned *current, unsigned *pending)
{
    BEGIN_DEVICE(device, PHYSICAL);
    if (!current || !pending)
        return INVALID_ARGUMENT;
    if (!call.gpu->mig_capable)
        return NOT_SUPPORTED;
    *current = call.gpu->mig_mode;
    *pending = call.gpu->mig_pending;
    return OK;
}

EXPORT nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned *count)
{
    enum { SLICES = 7 };
    BEGIN_DEVICE(device, PHYSICAL);
    if (!count)
        return INVALID_ARGUMENT;
    *count = call.gpu->mig_capable && call.gpu->mig_mode ? SLICES : 0;
    return OK;
}

EXPORT nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned index, nvmlDevice_t *mig)
{
    BEGIN_DEVICE(device, PHYSICAL);
    if (!mig)
        return INVALID_ARGUMENT;
    if (!call.gpu->mig_capable || !call.gpu->mig_mode)
        return NOT_SUPPORTED;
    if (index >= MAX_MIG || !call.gpu->mig[index].present)
        return NOT_FOUND;
    *mig = mig_handle(call.index, index);
    return OK;
}

EXPORT nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned *is_mig)
{
    BEGIN_DEVICE(device, EITHER);
    if (!is_mig)
        return INVALID_ARGUMENT;
    *is_mig = call.mig != NULL;
    return OK;
}

EXPORT nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t mig, nvmlDevice_t *device)
{
    BEGIN_DEVICE(mig, MIG);
    if (!device)
        return INVALID_ARGUMENT;
    *device = device_handle(call.index);
    return OK;
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned *id)
{
    BEGIN_DEVICE(device, MIG);
    if (!id)
        return INVALID_ARGUMENT;
    *id = call.mig->gpu_instance;
    return OK;
}

EXPORT nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned *id)
{
    BEGIN_DEVICE(device, MIG);
    if (!id)
        return INVALID_ARGUMENT;
    *id = call.mig->compute_instance;
    return OK;
}

/* Documented for MIG handles only. The whole GPU instance is one compute instance here. */
EXPORT nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes)
{
    BEGIN_DEVICE(device, EITHER);
    if (!attributes)
        return INVALID_ARGUMENT;
    if (!call.mig)
        return NOT_SUPPORTED;
    const MigProfile *profile = profile_of(call.gpu, call.mig);
    *attributes = (nvmlDeviceAttributes_t){.multiprocessorCount = profile->multiprocessors,
                                           .sharedCopyEngineCount = profile->copy_engines,
                                           .sharedDecoderCount = profile->decoders,
                                           .sharedEncoderCount = profile->encoders,
                                           .sharedJpegCount = profile->jpegs,
                                           .sharedOfaCount = profile->ofas,
                                           .gpuInstanceSliceCount = profile->slices,
                                           .computeInstanceSliceCount = profile->slices,
                                           .memorySizeMB = profile->memory_mib};
    return OK;
}

static nvmlReturn_t find_profile(const Call *call, unsigned number, const MigProfile **profile)
{
    if (number >= GPU_INSTANCE_PROFILE_COUNT)
        return INVALID_ARGUMENT;
    unsigned count = call->gpu->profile_count < MAX_PROFILES ? call->gpu->profile_count : MAX_PROFILES;
    for (unsigned i = 0; i < count; i++)
        if (call->gpu->profiles[i].number == number) {
            *profile = &call->gpu->profiles[i];
            return OK;
        }
    return NOT_SUPPORTED;
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfo(nvmlDevice_t device, unsigned number,
                                                        nvmlGpuInstanceProfileInfo_t *info)
{
    BEGIN_DEVICE(device, PHYSICAL);
    if (!info)
        return INVALID_ARGUMENT;
    const MigProfile *profile;
    nvmlReturn_t code = find_profile(&call, number, &profile);
    if (code != OK)
        return code;
    *info = (nvmlGpuInstanceProfileInfo_t){.id = profile->id,
                                           .sliceCount = profile->slices,
                                           .instanceCount = profile->instances,
                                           .multiprocessorCount = profile->multiprocessors,
                                           .copyEngineCount = profile->copy_engines,
                                           .decoderCount = profile->decoders,
                                           .encoderCount = profile->encoders,
                                           .jpegCount = profile->jpegs,
                                           .ofaCount = profile->ofas,
                                           .memorySizeMB = profile->memory_mib};
    return OK;
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfoV(nvmlDevice_t device, unsigned number,
                                                         nvmlGpuInstanceProfileInfo_v2_t *info)
{
    BEGIN_DEVICE(device, PHYSICAL);
    if (!info)
        return INVALID_ARGUMENT;
    if (info->version != VERSION_OF(nvmlGpuInstanceProfileInfo_v2_t, 2))
        return ARGUMENT_VERSION_MISMATCH;
    const MigProfile *profile;
    nvmlReturn_t code = find_profile(&call, number, &profile);
    if (code != OK)
        return code;
    *info = (nvmlGpuInstanceProfileInfo_v2_t){.version = info->version,
                                              .id = profile->id,
                                              .sliceCount = profile->slices,
                                              .instanceCount = profile->instances,
                                              .multiprocessorCount = profile->multiprocessors,
                                              .copyEngineCount = profile->copy_engines,
                                              .decoderCount = profile->decoders,
                                              .encoderCount = profile->encoders,
                                              .jpegCount = profile->jpegs,
                                              .ofaCount = profile->ofas,
                                              .memorySizeMB = profile->memory_mib};
    snprintf(info->name, sizeof info->name, "MIG %.*s", (int)sizeof info->name - 5, profile->name);
    return OK;
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceById(nvmlDevice_t device, unsigned id, nvmlGpuInstance_t *instance)
{
    BEGIN_DEVICE(device, PHYSICAL);
    if (!instance)
        return INVALID_ARGUMENT;
    if (!call.gpu->mig_mode)
        return NOT_SUPPORTED;
    for (unsigned slot = 0; slot < MAX_MIG; slot++)
        if (call.gpu->mig[slot].present && call.gpu->mig[slot].gpu_instance == id) {
            *instance = &instances[call.index][slot];
            return OK;
        }
    return NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetInfo(nvmlGpuInstance_t instance, nvmlGpuInstanceInfo_t *info)
{
    BEGIN_SYSTEM();
    uintptr_t first = (uintptr_t)instances, address = (uintptr_t)instance;
    if (!info || address < first || address >= first + sizeof instances)
        return INVALID_ARGUMENT;
    unsigned index = (unsigned)((address - first) / MAX_MIG), slot = (unsigned)((address - first) % MAX_MIG);
    const Gpu *gpu = &call.state->gpus[index];
    if (index >= gpu_count(call.state) || !gpu->mig[slot].present)
        return INVALID_ARGUMENT;
    if (gpu->lost)
        return GPU_IS_LOST;
    *info = (nvmlGpuInstanceInfo_t){
        .device = device_handle(index),
        .id = gpu->mig[slot].gpu_instance,
        .profileId = profile_of(gpu, &gpu->mig[slot])->id,
        .placement = {.start = gpu->mig[slot].placement_start, .size = gpu->mig[slot].placement_size}};
    return OK;
}
