/*
 * Attaching to the state file, the locks around every call, and the functions that ask about the system, not a device.
 *
 * One mutex per process serialises its calls: flock belongs to the open file, so two threads sharing it would release
 * each other's lock. A call takes about a microsecond; a wait for events gives both locks back between two looks.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "library.h"

#define STATE_VARIABLE "TESSERA_FAKE_NVML_STATE"

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static unsigned references;
static int file = -1;
static State *mapped;

/* A handle is the address of its cell: constant for the life of the process, like NVIDIA's. */
static unsigned char handles[MAX_GPUS][1 + MAX_MIG];

static void detach(void)
{
    if (mapped)
        munmap(mapped, sizeof(State));
    if (file >= 0)
        close(file);
    mapped = NULL;
    file = -1;
}

static nvmlReturn_t attach(void)
{
    detach();
    const char *path = getenv(STATE_VARIABLE);
    if (!path || !*path)
        return DRIVER_NOT_LOADED;
    file = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (file < 0)
        return errno == EACCES || errno == EPERM || errno == EROFS ? NO_PERMISSION : DRIVER_NOT_LOADED;
    struct stat status;
    nvmlReturn_t code = DRIVER_NOT_LOADED;
    if (fstat(file, &status) == 0 && S_ISREG(status.st_mode) && status.st_size >= (off_t)sizeof(State)) {
        void *memory = mmap(NULL, sizeof(State), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (memory != MAP_FAILED) {
            mapped = memory;
            if (mapped->magic == STATE_MAGIC)
                code = mapped->layout == STATE_LAYOUT && mapped->size == sizeof(State) ? OK : LIB_RM_VERSION_MISMATCH;
        }
    }
    if (code != OK)
        detach();
    return code;
}

/* The file may have been cut or overwritten since: touching a page past its end would be a SIGBUS. */
static int still_whole(void)
{
    struct stat status;
    return fstat(file, &status) == 0 && status.st_size >= (off_t)sizeof(State) && mapped->magic == STATE_MAGIC;
}

static nvmlReturn_t take_file_lock(int operation)
{
    while (flock(file, operation) != 0)
        if (errno != EINTR)
            return UNKNOWN;
    return OK;
}

nvmlReturn_t injected(const State *state, const char *function, int gpu)
{
    unsigned count = state->fault_count < MAX_FAULTS ? state->fault_count : MAX_FAULTS;
    for (unsigned i = 0; i < count; i++) {
        const Fault *fault = &state->faults[i];
        if ((fault->gpu < 0 || fault->gpu == gpu) && strncmp(fault->function, function, SYMBOL_SIZE) == 0)
            return (nvmlReturn_t)fault->error;
    }
    return OK;
}

static Call enter(int operation, int need_init)
{
    Call call = {.code = OK, .locked = 1};
    pthread_mutex_lock(&mutex);
    if (need_init && references == 0)
        call.code = UNINITIALIZED;
    else if (references == 0)
        call.code = attach();
    if (call.code == OK)
        call.code = take_file_lock(operation);
    if (call.code == OK && !still_whole())
        call.code = UNKNOWN;
    if (call.code == OK)
        call.state = mapped;
    return call;
}

void leave(Call *call)
{
    if (!call->locked)
        return;
    if (file >= 0)
        flock(file, LOCK_UN);
    pthread_mutex_unlock(&mutex);
    call->locked = 0;
}

Call enter_system(const char *function, int need_init)
{
    Call call = enter(LOCK_SH, need_init);
    if (call.code == OK)
        call.code = injected(call.state, function, -1);
    return call;
}

Call enter_device(const char *function, nvmlDevice_t device, int accepts, int writes)
{
    Call call = enter(writes ? LOCK_EX : LOCK_SH, 1);
    if (call.code != OK)
        return call;
    int slot;
    if (!decode_handle(call.state, device, &call.index, &slot)) {
        call.code = INVALID_ARGUMENT;
        return call;
    }
    call.gpu = &call.state->gpus[call.index];
    if (slot >= 0) {
        call.slot = (unsigned)slot;
        call.mig = &call.gpu->mig[slot];
    }
    call.code = injected(call.state, function, (int)call.index);
    if (call.code == OK && call.gpu->lost)
        call.code = GPU_IS_LOST;
    if (call.code == OK && !(accepts & (call.mig ? MIG : PHYSICAL)))
        call.code = call.mig ? NOT_SUPPORTED : INVALID_ARGUMENT;
    if (call.code == OK && writes)
        call.state->generation++;
    return call;
}

unsigned gpu_count(const State *state)
{
    return state->gpu_count < MAX_GPUS ? state->gpu_count : MAX_GPUS;
}

unsigned process_count(const State *state)
{
    return state->process_count < MAX_PROCESSES ? state->process_count : MAX_PROCESSES;
}

unsigned driver_major(const State *state)
{
    unsigned major = 0;
    for (size_t i = 0; i < 4 && state->driver_version[i] >= '0' && state->driver_version[i] <= '9'; i++)
        major = major * 10 + (unsigned)(state->driver_version[i] - '0');
    return major;
}

nvmlReturn_t copy_text(char *target, unsigned length, const char *text, size_t capacity)
{
    size_t size = strnlen(text, capacity);
    if (!target)
        return INVALID_ARGUMENT;
    if (size + 1 > length)
        return INSUFFICIENT_SIZE;
    memcpy(target, text, size);
    target[size] = '\0';
    return OK;
}

nvmlDevice_t device_handle(unsigned gpu)
{
    return &handles[gpu][0];
}

nvmlDevice_t mig_handle(unsigned gpu, unsigned slot)
{
    return &handles[gpu][1 + slot];
}

int decode_handle(const State *state, nvmlDevice_t device, unsigned *gpu, int *slot)
{
    uintptr_t first = (uintptr_t)handles, address = (uintptr_t)device;
    if (address < first || address >= first + sizeof handles)
        return 0;
    *gpu = (unsigned)((address - first) / (1 + MAX_MIG));
    *slot = (int)((address - first) % (1 + MAX_MIG)) - 1;
    return *gpu < gpu_count(state) && (*slot < 0 || state->gpus[*gpu].mig[*slot].present);
}

long long now_microseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (long long)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static nvmlReturn_t initialize(const char *function, unsigned flags)
{
    pthread_mutex_lock(&mutex);
    nvmlReturn_t code = OK;
    if (references == 0) {
        code = attach();
        if (code == OK)
            code = take_file_lock(LOCK_SH);
        if (code == OK) {
            code = still_whole() ? (nvmlReturn_t)mapped->init_error : UNKNOWN;
            if (code == OK)
                code = injected(mapped, function, -1);
            if (code == OK && gpu_count(mapped) == 0 && !(flags & INIT_FLAG_NO_GPUS))
                code = GPU_NOT_FOUND;
            flock(file, LOCK_UN);
        }
        if (code != OK)
            detach();
    }
    if (code == OK)
        references++;
    pthread_mutex_unlock(&mutex);
    return code;
}

EXPORT nvmlReturn_t nvmlInit_v2(void)
{
    return initialize(__func__, 0);
}

EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned flags)
{
    return initialize(__func__, flags);
}

EXPORT nvmlReturn_t nvmlShutdown(void)
{
    pthread_mutex_lock(&mutex);
    nvmlReturn_t code = references ? OK : UNINITIALIZED;
    if (code == OK && --references == 0) {
        forget_event_sets();
        detach();
    }
    pthread_mutex_unlock(&mutex);
    return code;
}

EXPORT const char *nvmlErrorString(nvmlReturn_t result)
{
    static const struct {
        unsigned code;
        const char *text;
    } texts[] = {
        {0, "The operation was successful"},
        {1, "Uninitialized"},
        {2, "Invalid Argument"},
        {3, "Not Supported"},
        {4, "Insufficient Permissions"},
        {5, "Already Initialized"},
        {6, "Not Found"},
        {7, "Insufficient Size"},
        {8, "Insufficient External Power"},
        {9, "Driver Not Loaded"},
        {10, "Timeout"},
        {11, "Interrupt Request Issue"},
        {12, "NVML Shared Library Not Found"},
        {13, "Function Not Found"},
        {14, "Corrupted infoROM"},
        {15, "GPU is lost"},
        {16, "GPU requires reset"},
        {17, "GPU access blocked by the operating system"},
        {18, "Driver/library version mismatch"},
        {19, "In use by another client"},
        {20, "Insufficient Memory"},
        {21, "No data"},
        {22, "ECC not supported with vGPU"},
        {23, "Insufficient resources"},
        {24, "Requested frequency is not supported"},
        {25, "Argument version mismatch"},
        {26, "Deprecated"},
        {27, "Not Ready"},
        {28, "GPU not found"},
        {29, "Invalid state"},
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (texts[i].code == (unsigned)result)
            return texts[i].text;
    return "Unknown Error";
}

EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned length)
{
    BEGIN_SYSTEM();
    return copy_text(version, length, call.state->driver_version, VERSION_SIZE);
}

/* NVIDIA documents no UNINITIALIZED for this one and the next two: they are the library's own, not the driver's. */
EXPORT nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned length)
{
    SCOPED Call call = enter_system(__func__, 0);
    return call.code != OK ? call.code : copy_text(version, length, call.state->nvml_version, VERSION_SIZE);
}

static nvmlReturn_t cuda_version(const char *function, int *version)
{
    SCOPED Call call = enter_system(function, 0);
    if (call.code == OK && version)
        *version = call.state->cuda_version;
    return call.code != OK ? call.code : version ? OK : INVALID_ARGUMENT;
}

EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version)
{
    return cuda_version(__func__, version);
}

EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    return cuda_version(__func__, version);
}

EXPORT nvmlReturn_t nvmlSystemGetProcessName(unsigned pid, char *name, unsigned length)
{
    BEGIN_SYSTEM();
    if (!name || length == 0)
        return INVALID_ARGUMENT;
    for (unsigned i = 0; i < process_count(call.state); i++) {
        const Process *process = &call.state->processes[i];
        if (process->pid == pid)
            return copy_text(name, length, process->name, NAME_SIZE);
    }
    return NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count)
{
    BEGIN_SYSTEM();
    if (!count)
        return INVALID_ARGUMENT;
    *count = gpu_count(call.state); /* a GPU that fell off the bus is still counted */
    return OK;
}
