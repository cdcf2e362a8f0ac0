/* What the source files of the library share: the way into a call, and out of it. */
#ifndef TESSERA_LIBRARY_H
#define TESSERA_LIBRARY_H

#include <stddef.h>

#include "abi.h"
#include "state.h"

#define EXPORT __attribute__((visibility("default")))

/* What a handle may stand for in a given function. */
enum { PHYSICAL = 1, MIG = 2, EITHER = PHYSICAL | MIG };

/* One call in progress: it holds the library's mutex and the file's lock until it goes out of scope. */
typedef struct {
    nvmlReturn_t code; /* anything but OK: nothing below is set */
    int locked;
    State *state;
    Gpu *gpu;
    MigInstance *mig; /* NULL for a physical GPU */
    unsigned index;
    unsigned slot;
} Call;

Call enter_system(const char *function, int need_init);
Call enter_device(const char *function, nvmlDevice_t device, int accepts, int writes);
void leave(Call *call);

/* leave() runs wherever the function returns. */
#define SCOPED __attribute__((cleanup(leave)))
#define BEGIN_SYSTEM()                                                                                                 \
    SCOPED Call call = enter_system(__func__, 1);                                                                      \
    if (call.code != OK)                                                                                               \
    return call.code
#define BEGIN_DEVICE(device, accepts)                                                                                  \
    SCOPED Call call = enter_device(__func__, device, accepts, 0);                                                     \
    if (call.code != OK)                                                                                               \
    return call.code
#define BEGIN_WRITE(device, accepts)                                                                                   \
    SCOPED Call call = enter_device(__func__, device, accepts, 1);                                                     \
    if (call.code != OK)                                                                                               \
    return call.code

nvmlReturn_t injected(const State *state, const char *function, int gpu);
unsigned gpu_count(const State *state);
unsigned process_count(const State *state);
unsigned driver_major(const State *state);
nvmlReturn_t copy_text(char *target, unsigned length, const char *text, size_t capacity);
const MigProfile *profile_of(const Gpu *gpu, const MigInstance *mig);
nvmlDevice_t device_handle(unsigned gpu);
nvmlDevice_t mig_handle(unsigned gpu, unsigned slot);
int decode_handle(const State *state, nvmlDevice_t device, unsigned *gpu, int *slot);
long long now_microseconds(void);
void forget_event_sets(void);

#endif
