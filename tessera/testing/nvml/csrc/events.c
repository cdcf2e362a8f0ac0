/*
 * Events: every set has its own place in the file's ring of events and sees what was pushed after a GPU was registered.
 *
 * A wait looks at the ring every few milliseconds. A futex would wake sooner, but the pusher is usually Python, which
 * has no portable way to wake one; 10 ms is far below what a health check needs and costs 0.02 % of a core.
 */
#include <string.h>
#include <time.h>

#include "library.h"

enum { MAX_SETS = 64, POLL_MICROSECONDS = 10000 };

typedef struct {
    int used;
    uint64_t cursor; /* the last event this set has looked at */
    uint64_t mask[MAX_GPUS];
    uint64_t since[MAX_GPUS];
} EventSet;

static EventSet sets[MAX_SETS];

void forget_event_sets(void)
{
    memset(sets, 0, sizeof sets);
}

static EventSet *decode_set(nvmlEventSet_t handle)
{
    uintptr_t first = (uintptr_t)sets, address = (uintptr_t)handle;
    if (address < first || address >= first + sizeof sets || (address - first) % sizeof *sets)
        return NULL;
    EventSet *set = &sets[(address - first) / sizeof *sets];
    return set->used ? set : NULL;
}

EXPORT nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *handle)
{
    BEGIN_SYSTEM();
    if (!handle)
        return INVALID_ARGUMENT;
    for (EventSet *set = sets; set < sets + MAX_SETS; set++)
        if (!set->used) {
            *set = (EventSet){.used = 1, .cursor = call.state->event_count};
            *handle = set;
            return OK;
        }
    return INSUFFICIENT_RESOURCES;
}

EXPORT nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t handle)
{
    BEGIN_SYSTEM();
    EventSet *set = decode_set(handle);
    if (!set)
        return INVALID_ARGUMENT;
    set->used = 0;
    return OK;
}

EXPORT nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types)
{
    BEGIN_DEVICE(device, PHYSICAL);
    if (!types)
        return INVALID_ARGUMENT;
    *types = call.gpu->supported_events;
    return OK;
}

/* Registering by a MIG handle is not supported; the parent reports its instances' events. */
EXPORT nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t handle)
{
    BEGIN_DEVICE(device, PHYSICAL);
    EventSet *set = decode_set(handle);
    if (!set)
        return INVALID_ARGUMENT;
    if (types & ~call.gpu->supported_events)
        return NOT_SUPPORTED;
    if (!set->mask[call.index])
        set->since[call.index] = call.state->event_count;
    set->mask[call.index] |= types;
    return OK;
}

static void deliver(const Event *event, unsigned gpu, nvmlEventData_t *data)
{
    int attributable = event->type == EVENT_XID;
    *data = (nvmlEventData_t){.device = device_handle(gpu),
                              .eventType = event->type,
                              .eventData = event->data,
                              .gpuInstanceId = attributable ? event->gpu_instance : NO_INSTANCE,
                              .computeInstanceId = attributable ? event->compute_instance : NO_INSTANCE};
}

/* One look: an event, or GPU_IS_LOST where a registered GPU is gone and nothing is left to say about it, or TIMEOUT. */
static nvmlReturn_t look(const char *function, nvmlEventSet_t handle, nvmlEventData_t *data)
{
    SCOPED Call call = enter_system(function, 1);
    if (call.code != OK)
        return call.code;
    EventSet *set = decode_set(handle);
    if (!set || !data)
        return INVALID_ARGUMENT;
    const State *state = call.state;
    uint64_t last = state->event_count;
    if (set->cursor > last) /* the file was rewritten */
        set->cursor = last;
    if (last - set->cursor > MAX_EVENTS) /* the ring has overtaken this set: the oldest are lost, as in the driver */
        set->cursor = last - MAX_EVENTS;
    while (set->cursor < last) {
        const Event *event = &state->events[set->cursor++ % MAX_EVENTS];
        unsigned gpu = event->gpu;
        if (gpu < gpu_count(state) && (set->mask[gpu] & event->type) && set->cursor > set->since[gpu]) {
            deliver(event, gpu, data);
            return OK;
        }
    }
    for (unsigned gpu = 0; gpu < gpu_count(state); gpu++)
        if (set->mask[gpu] && state->gpus[gpu].lost)
            return GPU_IS_LOST;
    return TIMEOUT;
}

static long long now_steady(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (long long)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static nvmlReturn_t wait_for_event(const char *function, nvmlEventSet_t handle, nvmlEventData_t *data,
                                   unsigned milliseconds)
{
    long long end = now_steady() + (long long)milliseconds * 1000;
    for (;;) {
        nvmlReturn_t code = look(function, handle, data);
        long long left = end - now_steady();
        if (code != TIMEOUT || left <= 0)
            return code;
        if (left > POLL_MICROSECONDS)
            left = POLL_MICROSECONDS;
        struct timespec pause = {.tv_nsec = (long)left * 1000};
        nanosleep(&pause, NULL);
    }
}

EXPORT nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned milliseconds)
{
    return wait_for_event(__func__, set, data, milliseconds);
}

EXPORT nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t set, nvmlEventData_t *data, unsigned milliseconds)
{
    return wait_for_event(__func__, set, data, milliseconds);
}
