/*
 * The state file: what the fake driver "knows". One fixed-size struct, mapped by every process that uses the library and
 * by tessera.testing.nvml.layout, whose ctypes mirror is held equal to this file by a test.
 *
 * Readers take a shared flock, writers an exclusive one. A seqlock would spare two system calls per query, but one of
 * the writers is Python, which can't place memory barriers, and a killed writer would leave it odd for ever; the kernel
 * drops a flock with its holder. Nothing in here is trusted: counts are clamped and texts length-checked on every read.
 */
#ifndef TESSERA_STATE_H
#define TESSERA_STATE_H

#include <stdint.h>

#define STATE_MAGIC UINT64_C(0x314c4d564e534554) /* "TESNVML1" */
#define STATE_LAYOUT 1u

enum {
    MAX_GPUS = 32,
    MAX_MIG = 8,
    MAX_PROFILES = 8,
    MAX_PROCESSES = 1024,
    MAX_EVENTS = 256,
    MAX_FAULTS = 64,
    MAX_LIMITS = 256,
    MAX_MISSING = 32,
    NAME_SIZE = 96,
    VERSION_SIZE = 80,
    SYMBOL_SIZE = 64,
    PATH_SIZE = 512,
};

enum { PROCESS_COMPUTE = 1, PROCESS_GRAPHICS = 2, PROCESS_MPS = 4 };
enum { LIMITS_NONE = 0, LIMITS_MISC = 1, LIMITS_DMEM = 2 };

typedef struct {
    uint32_t number; /* NVML_GPU_INSTANCE_PROFILE_* */
    uint32_t id;     /* what nvidia-smi mig -lgip shows */
    uint32_t slices;
    uint32_t instances;
    uint32_t multiprocessors;
    uint32_t copy_engines;
    uint32_t decoders;
    uint32_t encoders;
    uint32_t jpegs;
    uint32_t ofas;
    uint32_t memory_slices; /* of eight: the size of its placement */
    uint32_t reserved;
    uint64_t memory_mib;
    char name[NAME_SIZE]; /* "1g.10gb" */
} MigProfile;

typedef struct {
    uint32_t present;
    uint32_t gpu_instance;
    uint32_t compute_instance;
    uint32_t profile; /* index into Gpu.profiles */
    uint32_t placement_start;
    uint32_t placement_size;
    char uuid[NAME_SIZE];
} MigInstance;

typedef struct {
    char uuid[NAME_SIZE];
    char name[NAME_SIZE];
    uint64_t memory_total;
    uint64_t memory_reserved;
    uint64_t supported_events;
    uint64_t ecc_corrected;
    uint64_t ecc_uncorrected;
    uint32_t pci_domain;
    uint32_t pci_bus;
    uint32_t pci_device;
    uint32_t pci_device_id;
    uint32_t pci_subsystem_id;
    uint32_t minor;
    int32_t numa;      /* of the host side of the link; -1 unknown */
    uint32_t coherent; /* the GPU is a NUMA node itself (Grace), numa is its number */
    uint32_t capability_major;
    uint32_t capability_minor;
    uint32_t architecture;
    uint32_t brand;
    uint32_t compute_mode;
    uint32_t persistence_mode;
    uint32_t lost;
    uint32_t last_xid;
    uint32_t recovery_action;
    uint32_t temperature;
    uint32_t power_milliwatts;
    uint32_t nvlink_ports; /* 0: the product has no NVLink */
    uint32_t mig_capable;
    uint32_t mig_mode;
    uint32_t mig_pending;
    uint32_t ecc_mode;
    uint32_t remapped_corrected;
    uint32_t remapped_uncorrected;
    uint32_t remapped_pending;
    uint32_t remapped_failure;
    uint32_t profile_count;
    uint32_t reserved;
    MigProfile profiles[MAX_PROFILES];
    MigInstance mig[MAX_MIG];
    uint8_t topology[MAX_GPUS]; /* nvmlGpuTopologyLevel_t towards each other GPU */
    uint8_t nvlinks[MAX_GPUS];  /* active NVLinks towards each other GPU */
} Gpu;

typedef struct {
    uint64_t memory_used;
    uint32_t pid;
    uint32_t gpu;
    uint32_t kind; /* PROCESS_* bits */
    uint32_t sm_percent;
    uint32_t memory_percent;
    int32_t mig; /* slot in Gpu.mig, or -1 */
    char name[NAME_SIZE];
    char cgroup[PATH_SIZE];
} Process;

typedef struct {
    uint64_t sequence; /* 1 for the first event of the file's life */
    uint64_t type;
    uint64_t data;
    uint32_t gpu;
    uint32_t gpu_instance;
    uint32_t compute_instance;
    uint32_t reserved;
} Event;

typedef struct {
    char function[SYMBOL_SIZE];
    int32_t gpu; /* -1: whichever GPU is asked about */
    uint32_t error;
} Fault;

typedef struct {
    uint64_t soft;
    uint64_t hard;
    uint64_t device; /* device and inode of the cgroup directory: a limit dies with it */
    uint64_t inode;
    uint32_t gpu;
    uint32_t reserved;
    char name_space[PATH_SIZE];
} MemoryLimit;

typedef struct {
    uint64_t magic;
    uint32_t layout;
    uint32_t size;
    uint64_t generation; /* grows with every write */
    uint64_t event_count;
    uint32_t gpu_count;
    uint32_t process_count;
    uint32_t fault_count;
    uint32_t limit_count;
    uint32_t missing_count;
    uint32_t init_error;
    int32_t cuda_version;
    uint32_t limits_backend;
    char driver_version[VERSION_SIZE];
    char nvml_version[VERSION_SIZE];
    char missing[MAX_MISSING][SYMBOL_SIZE];
    Gpu gpus[MAX_GPUS];
    Process processes[MAX_PROCESSES];
    Event events[MAX_EVENTS]; /* ring: event n lies at (n - 1) % MAX_EVENTS */
    Fault faults[MAX_FAULTS];
    MemoryLimit limits[MAX_LIMITS];
} State;

#endif
