/* Who uses a GPU, and how much of it. */
#include <string.h>
#include <sys/stat.h>

#include "library.h"

static int belongs(const Call *call, const Process *process)
{
    return process->gpu == call->index && (!call->mig || process->mig == (int32_t)call->slot);
}

/*
 * NVML's protocol for lists of unknown length: too small an array is answered by INSUFFICIENT_SIZE and the count
 * needed; no process at all by success and a count of 0, whatever the array.
 */
static nvmlReturn_t list_processes(const char *function, nvmlDevice_t device, uint32_t kind, unsigned *count,
                                   nvmlProcessInfo_t *infos)
{
    SCOPED Call call = enter_device(function, device, EITHER, 0);
    if (call.code != OK)
        return call.code;
    if (!count || (*count && !infos))
        return INVALID_ARGUMENT;
    unsigned needed = 0;
    for (unsigned i = 0; i < process_count(call.state); i++) {
        const Process *process = &call.state->processes[i];
        if (!belongs(&call, process) || !(process->kind & kind))
            continue;
        if (needed < *count) {
            nvmlProcessInfo_t *info = &infos[needed];
            *info = (nvmlProcessInfo_t){.pid = process->pid,
                                        .usedGpuMemory = process->memory_used,
                                        .gpuInstanceId = NO_INSTANCE,
                                        .computeInstanceId = NO_INSTANCE};
            if (process->mig >= 0 && process->mig < MAX_MIG) {
                info->gpuInstanceId = call.gpu->mig[process->mig].gpu_instance;
                info->computeInstanceId = call.gpu->mig[process->mig].compute_instance;
            }
        }
        needed++;
    }
    nvmlReturn_t code = needed > *count ? INSUFFICIENT_SIZE : OK;
    *count = needed;
    return code;
}

#define LIST(name, kind)                                                                                               \
    EXPORT nvmlReturn_t name(nvmlDevice_t device, unsigned *count, nvmlProcessInfo_t *infos)                           \
    {                                                                                                                  \
        return list_processes(__func__, device, kind, count, infos);                                                   \
    }                                                                                                                  \
    struct semicolon

LIST(nvmlDeviceGetComputeRunningProcesses_v2, PROCESS_COMPUTE);
LIST(nvmlDeviceGetComputeRunningProcesses_v3, PROCESS_COMPUTE);
LIST(nvmlDeviceGetGraphicsRunningProcesses_v2, PROCESS_GRAPHICS);
LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, PROCESS_GRAPHICS);
LIST(nvmlDeviceGetMPSComputeRunningProcesses_v2, PROCESS_MPS);
LIST(nvmlDeviceGetMPSComputeRunningProcesses_v3, PROCESS_MPS);

/* The driver's sample buffer has room for 100 processes whoever runs; a quiet GPU is NOT_FOUND, not an empty list. */
EXPORT nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, nvmlProcessUtilizationSample_t *samples,
                                                    unsigned *count, unsigned long long last_seen)
{
    enum { SAMPLE_BUFFER = 100 };
    BEGIN_DEVICE(device, PHYSICAL);
    if (!count)
        return INVALID_ARGUMENT;
    if (call.gpu->mig_mode)
        return NOT_SUPPORTED;
    unsigned long long now = (unsigned long long)now_microseconds();
    unsigned needed = 0;
    for (unsigned i = 0; i < process_count(call.state) && now > last_seen; i++) {
        const Process *process = &call.state->processes[i];
        if (!belongs(&call, process) || (!process->sm_percent && !process->memory_percent))
            continue;
        if (samples && needed < *count)
            samples[needed] = (nvmlProcessUtilizationSample_t){.pid = process->pid,
                                                               .timeStamp = now,
                                                               .smUtil = process->sm_percent,
                                                               .memUtil = process->memory_percent};
        needed++;
    }
    if (!samples || needed > *count) {
        *count = needed > SAMPLE_BUFFER ? needed : SAMPLE_BUFFER;
        return INSUFFICIENT_SIZE;
    }
    *count = needed;
    return needed ? OK : NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates)
{
    BEGIN_DEVICE(device, PHYSICAL);
    if (!rates)
        return INVALID_ARGUMENT;
    if (call.gpu->mig_mode)
        return NOT_SUPPORTED;
    unsigned long long gpu = 0, memory = 0;
    for (unsigned i = 0; i < process_count(call.state); i++)
        if (belongs(&call, &call.state->processes[i])) {
            gpu += call.state->processes[i].sm_percent;
            memory += call.state->processes[i].memory_percent;
        }
    rates->gpu = gpu < 100 ? (unsigned)gpu : 100;
    rates->memory = memory < 100 ? (unsigned)memory : 100;
    return OK;
}

/* --- Memory limits of a cgroup (driver 615): a hard and a soft limit by GPU and cgroup directory ------------------- */

/* A copy of the caller's path without slashes at its end, and the directory's identity. */
typedef struct {
    char path[PATH_SIZE];
    uint64_t device;
    uint64_t inode;
} Namespace;

static nvmlReturn_t open_namespace(const Call *call, const char *path, Namespace *space)
{
    if (call->state->limits_backend == LIMITS_NONE || call->gpu->mig_mode)
        return NOT_SUPPORTED;
    size_t size = path ? strnlen(path, PATH_SIZE) : 0;
    while (size > 1 && path[size - 1] == '/')
        size--;
    if (size == 0 || size >= PATH_SIZE || path[0] != '/')
        return INVALID_ARGUMENT;
    memcpy(space->path, path, size);
    space->path[size] = '\0';
    struct stat status;
    if (stat(space->path, &status) != 0 || !S_ISDIR(status.st_mode))
        return NOT_FOUND;
    space->device = (uint64_t)status.st_dev;
    space->inode = (uint64_t)status.st_ino;
    return OK;
}

static MemoryLimit *find_limit(const Call *call, const Namespace *space)
{
    unsigned count = call->state->limit_count < MAX_LIMITS ? call->state->limit_count : MAX_LIMITS;
    for (unsigned i = 0; i < count; i++) {
        MemoryLimit *limit = &call->state->limits[i];
        if (limit->gpu == call->index && limit->device == space->device && limit->inode == space->inode &&
            strncmp(limit->name_space, space->path, PATH_SIZE) == 0)
            return limit;
    }
    return NULL;
}

/* The limit of the nearest ancestor that has one. */
static MemoryLimit *find_inherited(const Call *call, Namespace space)
{
    for (char *slash; (slash = strrchr(space.path, '/')) && slash != space.path;) {
        *slash = '\0';
        const Namespace child = space;
        if (open_namespace(call, child.path, &space) != OK)
            continue;
        MemoryLimit *limit = find_limit(call, &space);
        if (limit)
            return limit;
    }
    return NULL;
}

/* The kernel drops a limit with its cgroup. */
static void drop_dead_limits(State *state)
{
    unsigned count = state->limit_count < MAX_LIMITS ? state->limit_count : MAX_LIMITS;
    for (unsigned i = 0; i < count;) {
        MemoryLimit *limit = &state->limits[i];
        struct stat status;
        limit->name_space[PATH_SIZE - 1] = '\0';
        if (stat(limit->name_space, &status) == 0 && (uint64_t)status.st_dev == limit->device &&
            (uint64_t)status.st_ino == limit->inode)
            i++;
        else
            *limit = state->limits[--count];
    }
    state->limit_count = count;
}

EXPORT nvmlReturn_t nvmlDeviceSetMemoryLimits_v1(nvmlDevice_t device, const nvmlSetMemoryLimits_v1_t *limits)
{
    BEGIN_WRITE(device, PHYSICAL);
    if (!limits || limits->softLimit > limits->hardLimit)
        return INVALID_ARGUMENT;
    Namespace space = {.device = 0};
    nvmlReturn_t code = open_namespace(&call, limits->nameSpace, &space);
    if (code != OK)
        return code;
    drop_dead_limits(call.state);
    MemoryLimit *limit = find_limit(&call, &space);
    if (limits->softLimit == 0 && limits->hardLimit == MEMORY_LIMIT_MAX) { /* how a limit is cleared */
        if (limit)
            *limit = call.state->limits[--call.state->limit_count];
        return OK;
    }
    if (!limit && call.state->limit_count == MAX_LIMITS)
        return INSUFFICIENT_RESOURCES;
    if (!limit)
        limit = &call.state->limits[call.state->limit_count++];
    *limit = (MemoryLimit){.soft = limits->softLimit,
                           .hard = limits->hardLimit,
                           .device = space.device,
                           .inode = space.inode,
                           .gpu = call.index};
    memcpy(limit->name_space, space.path, PATH_SIZE);
    return OK;
}

static int inside(const char *cgroup, const char *path)
{
    size_t size = strnlen(path, PATH_SIZE);
    return strncmp(cgroup, path, size) == 0 && (cgroup[size] == '\0' || cgroup[size] == '/');
}

/*
 * Without a limit dmem reads 0 and the maximum, while misc answers NOT_SUPPORTED; a fileless child of a limited cgroup
 * reads its nearest limited ancestor under misc (NVIDIA's MPS guide, "Memory Partitioning").
 */
EXPORT nvmlReturn_t nvmlDeviceGetMemoryLimits_v1(nvmlDevice_t device, nvmlGetMemoryLimits_v1_t *limits)
{
    BEGIN_DEVICE(device, PHYSICAL);
    if (!limits)
        return INVALID_ARGUMENT;
    Namespace space = {.device = 0};
    nvmlReturn_t code = open_namespace(&call, limits->nameSpace, &space);
    if (code != OK)
        return code;
    uint64_t used = 0;
    for (unsigned i = 0; i < process_count(call.state); i++) {
        const Process *process = &call.state->processes[i];
        if (process->gpu == call.index && inside(process->cgroup, space.path))
            used += process->memory_used;
    }
    const MemoryLimit *limit = find_limit(&call, &space);
    if (!limit && call.state->limits_backend == LIMITS_MISC && !(limit = find_inherited(&call, space)))
        return NOT_SUPPORTED;
    limits->softLimit = limit ? limit->soft : 0;
    limits->hardLimit = limit ? limit->hard : MEMORY_LIMIT_MAX;
    limits->currentUsed = used;
    return OK;
}
