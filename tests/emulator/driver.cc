// The CUDA driver and NVRTC as the engine sees them, on top of the emulator: linked with one
// engine.cu as libcuda.so.1 and libnvrtc.so.13. Work of the first stream is done as late as the
// driver allows, when something waits for it, that of others at once: who does not wait reads what
// is old. A captured graph is a list of launches. EMULATOR_FAIL=NAME makes the named function fail,
// with EMULATOR_FULL=1 for want of memory. It is NVML too, libnvidia-ml.so.1: a graph that is
// launched takes EMULATOR_MILLIJOULES.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <functional>
#include <map>
#include <vector>
#include "emulator.h"
#include "kernels.h"

enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_FOUND = 500,
    LAUNCH_FAILED = 719,
    COOPERATIVE_LAUNCH_TOO_LARGE = 720,
};

enum { COOPERATIVE = 2, PROGRAMMATIC = 6 }; // CUlaunchAttributeID

struct kernel {
    const char *name;
    void *code;
};

struct recorded {
    struct kernel *kernel;
    unsigned grid[3], threads, shared_bytes;
    bool chained, cooperative;
    std::vector<char> argument;
};

struct launch_attribute {
    int id, reserved;
    union {
        int value;
        char bytes[64];
    };
};

struct launch_config { // CUlaunchConfig
    unsigned grid[3], block[3], shared_bytes;
    void *stream;
    const struct launch_attribute *attributes;
    unsigned attribute_count;
};

enum { MULTIPROCESSORS = 5 }; // few, and no power of two: blocks have unequal work

static bool capturing;
static int sticky; // a kernel's failure, told by the next synchronisation
static std::vector<struct recorded> *captured;
static std::vector<struct recorded *> launched; // and not yet run
static bool behind_kernel;                      // the stream's last work is a kernel

static std::vector<std::function<void()>> queue; // of the first stream
static size_t done;                              // of the queue
static std::map<char *, size_t> pinned; // memory of the host that copies are made from late
static int streams;
static unsigned long long graphs; // launched

static int failing(const char *function) {
    const char *name = getenv("EMULATOR_FAIL");
    if (!name || strcmp(name, function) != 0)
        return SUCCESS;
    bool memory = strcmp(function, "cuMemAlloc_v2") == 0 || getenv("EMULATOR_FULL");
    return memory ? OUT_OF_MEMORY : INVALID_VALUE;
}

static int number(const char *variable, int otherwise) {
    const char *value = getenv(variable);
    return value ? atoi(value) : otherwise;
}

static void call(const void *recorded) {
    const struct recorded *r = (const struct recorded *)recorded;
    emulate_kernel(r->kernel->code, r->argument.data());
}

static void launch(const struct recorded &r, bool chained) {
    struct recorded *own = new struct recorded(r);
    struct emulated_launch launch = {r.kernel->name, {r.grid[0], r.grid[1], r.grid[2]},
                                     r.threads,      r.shared_bytes,
                                     call,           own,
                                     chained,        r.cooperative};
    launched.push_back(own);
    emulate_launch(&launch);
}

// Runs what was launched; what comes next is no kernel, or behind a graph.
static int finish() {
    if (!sticky && emulate_finish() != 0)
        sticky = LAUNCH_FAILED;
    for (struct recorded *r : launched)
        delete r;
    launched.clear();
    behind_kernel = false;
    return sticky;
}

static void enqueue(std::function<void()> work) {
    queue.push_back(std::move(work));
}

static void work_until(size_t end) {
    while (done < end)
        queue[done++]();
    (void)finish();
}

static void work() {
    work_until(queue.size());
}

static bool is_pinned(const void *memory) {
    auto after = pinned.upper_bound((char *)memory);
    return after != pinned.begin() && (char *)memory < (--after)->first + after->second;
}

// A copy on `stream`; `host`: its side of the host.
static void copy(void *to, const void *from, size_t bytes, const void *host, const void *stream) {
    bool first = *(const int *)stream == 0;
    if (first && is_pinned(host)) {
        enqueue([=] {
            (void)finish();
            memcpy(to, from, bytes);
        });
        return;
    }
    if (first)
        work();
    memcpy(to, from, bytes);
}

extern "C" {

int cuInit(unsigned) {
    const char *seed = getenv("EMULATOR_SEED");
    emulate_seed(seed ? strtoull(seed, NULL, 10) : 1);
    return failing("cuInit");
}

int cuGetErrorString(int error, const char **text) {
    *text = error == OUT_OF_MEMORY                  ? "out of memory"
            : error == LAUNCH_FAILED                ? "unspecified launch failure"
            : error == COOPERATIVE_LAUNCH_TOO_LARGE ? "too many blocks in cooperative launch"
                                                    : "invalid argument";
    return SUCCESS;
}

int cuDriverGetVersion(int *version) {
    *version = number("EMULATOR_DRIVER", 13000);
    return SUCCESS;
}

int cuDeviceGetCount(int *count) {
    *count = number("EMULATOR_DEVICES", 1);
    return failing("cuDeviceGetCount");
}

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return SUCCESS;
}

int cuDeviceGetName(char *name, int size, int) {
    snprintf(name, (size_t)size, "emulator");
    return SUCCESS;
}

int cuDeviceGetUuid_v2(unsigned char uuid[16], int) {
    for (int i = 0; i < 16; i++)
        uuid[i] = (unsigned char)(0x11 * i);
    return failing("cuDeviceGetUuid_v2");
}

int cuDeviceGetAttribute(int *value, int attribute, int) {
    int sm = number("EMULATOR_SM", emulated_sm);
    switch (attribute) {
    case 16:
        *value = number("EMULATOR_MULTIPROCESSORS", MULTIPROCESSORS);
        break;
    case 18:
        *value = number("EMULATOR_INTEGRATED", 0);
        break;
    case 75:
        *value = sm / 10;
        break;
    case 76:
        *value = sm % 10;
        break;
    case 97:
        *value = number("EMULATOR_SHARED", 227 << 10);
        break;
    default:
        return INVALID_VALUE;
    }
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int) {
    *context = &capturing;
    return failing("cuDevicePrimaryCtxRetain");
}

int cuDevicePrimaryCtxRelease_v2(int) {
    return SUCCESS;
}

int cuCtxSetCurrent(void *) {
    return SUCCESS;
}

// Little, as what takes half of it is slow here.
int cuMemGetInfo_v2(size_t *free, size_t *total) {
    *free = (size_t)2 << 20;
    *total = (size_t)1 << 34;
    return SUCCESS;
}

int cuMemAlloc_v2(uint64_t *pointer, size_t bytes) {
    static int count;
    if (failing("cuMemAlloc_v2") && count++ == number("EMULATOR_FAIL_AT", 0))
        return OUT_OF_MEMORY;
    *pointer = (uint64_t)(uintptr_t)emulate_allocate(bytes);
    return *pointer ? SUCCESS : OUT_OF_MEMORY;
}

int cuMemFree_v2(uint64_t pointer) {
    work();
    emulate_release((void *)(uintptr_t)pointer);
    return SUCCESS;
}

int cuMemAllocHost_v2(void **pointer, size_t bytes) {
    *pointer = malloc(bytes);
    pinned[(char *)*pointer] = bytes;
    return *pointer ? failing("cuMemAllocHost_v2") : OUT_OF_MEMORY;
}

int cuMemFreeHost(void *pointer) {
    work();
    pinned.erase((char *)pointer);
    free(pointer);
    return SUCCESS;
}

int cuMemHostRegister_v2(void *, size_t, unsigned) {
    return failing("cuMemHostRegister_v2");
}

int cuMemHostUnregister(void *) {
    return SUCCESS;
}

int cuMemHostGetDevicePointer_v2(uint64_t *pointer, void *host, unsigned) {
    *pointer = (uint64_t)(uintptr_t)host;
    return SUCCESS;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    copy((void *)(uintptr_t)to, from, bytes, from, stream);
    return sticky ? sticky : failing("cuMemcpyHtoDAsync_v2");
}

int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    copy(to, (const void *)(uintptr_t)from, bytes, to, stream);
    return sticky ? sticky : failing("cuMemcpyDtoHAsync_v2");
}

int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *) {
    work();
    if (sticky)
        return sticky;
    memset((void *)(uintptr_t)to, value, bytes);
    return SUCCESS;
}

int cuStreamCreate(void **stream, unsigned) {
    *stream = new int{streams++ % 2}; // an engine has two
    return SUCCESS;
}

int cuStreamDestroy_v2(void *stream) {
    work();
    delete (int *)stream;
    return SUCCESS;
}

int cuStreamSynchronize(void *stream) {
    if (*(int *)stream == 0)
        work();
    return sticky ? sticky : failing("cuStreamSynchronize");
}

int cuEventCreate(void **event, unsigned) {
    *event = new size_t{0};
    return SUCCESS;
}

int cuEventDestroy_v2(void *event) {
    delete (size_t *)event;
    return SUCCESS;
}

int cuEventRecord(void *event, void *) {
    *(size_t *)event = queue.size();
    return SUCCESS;
}

int cuEventSynchronize(void *event) {
    work_until(*(size_t *)event);
    return sticky ? sticky : failing("cuStreamSynchronize");
}

// Kernels are this library's own functions, or for another P those of libkernels_pP.so.
static void *open_kernels(int streams) {
    char name[64];
    Dl_info self;
    dladdr((void *)open_kernels, &self);
    snprintf(name, sizeof name, "libkernels_p%d.so", streams);
    return dlopen(streams == emulated_streams ? self.dli_fname : name, RTLD_NOW);
}

// An image is "EMULATED", or "EMULATE" and a byte that is P.
int cuModuleLoadData(void **module, const void *image) {
    const char *text = (const char *)image;
    if (memcmp(text, "EMULATE", 7) != 0)
        return INVALID_VALUE;
    *module = open_kernels(text[7] == 'D' ? emulated_streams : text[7]);
    return *module ? failing("cuModuleLoadData") : INVALID_VALUE;
}

int cuModuleUnload(void *) {
    return SUCCESS;
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
    void *found = dlsym(module, name);
    kernel *kernel_of = new kernel{strdup(name), found};
    *function = kernel_of;
    return found ? SUCCESS : NOT_FOUND;
}

int cuFuncSetAttribute(void *, int, int value) {
    return value <= number("EMULATOR_SHARED", 227 << 10) ? SUCCESS : INVALID_VALUE;
}

static bool has_attribute(const struct launch_config *config, int id) {
    for (unsigned i = 0; i < config->attribute_count; i++)
        if (config->attributes[i].id == id && config->attributes[i].value)
            return true;
    return false;
}

// Cooperative launches run on the emulator's own.
static unsigned multiprocessors() {
    int count = number("EMULATOR_MULTIPROCESSORS", MULTIPROCESSORS);
    return (unsigned)(count < MOST_RESIDENT ? count : (int)MOST_RESIDENT);
}

int cuLaunchKernelEx(const struct launch_config *config, void *function, void **arguments,
                     void **) {
    const char *task = (const char *)arguments[0];
    bool cooperative = has_attribute(config, COOPERATIVE);
    if (cooperative && (config->grid[0] * config->grid[1] * config->grid[2] > multiprocessors() ||
                        config->block[0] > MOST_COOPERATIVE))
        return COOPERATIVE_LAUNCH_TOO_LARGE;
    struct recorded r = {(struct kernel *)function,
                         {config->grid[0], config->grid[1], config->grid[2]},
                         config->block[0],
                         config->shared_bytes,
                         has_attribute(config, PROGRAMMATIC),
                         cooperative,
                         std::vector<char>(task, task + emulated_task_bytes)};
    if (capturing) {
        captured->push_back(r);
        return SUCCESS;
    }
    enqueue([=] {
        launch(r, r.chained && behind_kernel);
        behind_kernel = true;
    });
    return failing("cuLaunchKernelEx");
}

int cuStreamBeginCapture_v2(void *, int) {
    capturing = true;
    captured = new std::vector<struct recorded>;
    return SUCCESS;
}

int cuStreamEndCapture(void *, void **graph) {
    capturing = false;
    *graph = captured;
    return SUCCESS;
}

int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long) {
    *executable = graph;
    return failing("cuGraphInstantiateWithFlags");
}

int cuGraphLaunch(void *executable, void *) {
    enqueue([=] {
        bool chained = false; // the first one not: a graph waits for all that is before it
        for (const struct recorded &r : *(std::vector<struct recorded> *)executable) {
            launch(r, r.chained && chained);
            chained = true;
        }
        behind_kernel = false;
    });
    graphs++;
    return failing("cuGraphLaunch");
}

int cuGraphExecDestroy(void *) {
    return SUCCESS;
}

int cuGraphDestroy(void *graph) {
    work();
    delete (std::vector<struct recorded> *)graph;
    return SUCCESS;
}

int nvrtcVersion(int *major, int *minor) {
    *major = 13;
    *minor = 0;
    return SUCCESS;
}

int nvrtcCreateProgram(void **program, const char *, const char *, int, const char *const *,
                       const char *const *) {
    *program = &sticky;
    return SUCCESS;
}

int nvrtcDestroyProgram(void **) {
    return SUCCESS;
}

static int compiled_streams; // by the last call of the compiler

// The kernels were compiled with this library; the engine must want the same constants.
int nvrtcCompileProgram(void *, int count, const char *const *options) {
    char shared[40];
    bool equal = false;
    snprintf(shared, sizeof shared, "-DSHARED_BYTES=%d", emulated_shared_bytes);
    for (int i = 0; i < count; i++) {
        sscanf(options[i], "-DSTREAMS=%d", &compiled_streams);
        equal |= strcmp(options[i], shared) == 0;
    }
    void *kernels = equal ? open_kernels(compiled_streams) : NULL;
    return kernels ? failing("nvrtcCompileProgram") : INVALID_VALUE;
}

int nvrtcGetCUBINSize(void *, size_t *bytes) {
    *bytes = 8;
    return SUCCESS;
}

int nvrtcGetCUBIN(void *, char *cubin) {
    memcpy(cubin, "EMULATED", 8);
    if (compiled_streams != emulated_streams)
        cubin[7] = (char)compiled_streams;
    return SUCCESS;
}

int nvrtcGetProgramLogSize(void *, size_t *bytes) {
    *bytes = sizeof "engine.cu(1): error: emulated";
    return SUCCESS;
}

int nvrtcGetProgramLog(void *, char *log) {
    strcpy(log, "engine.cu(1): error: emulated");
    return SUCCESS;
}

int nvmlInit_v2() {
    return failing("nvmlInit_v2");
}

int nvmlShutdown() {
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    *device = &graphs;
    return strcmp(uuid, "GPU-00112233-4455-6677-8899-aabbccddeeff") == 0
               ? failing("nvmlDeviceGetHandleByUUID")
               : INVALID_VALUE;
}

// EMULATOR_MILLIWATTS: a GPU that tells its power alone.
int nvmlDeviceGetTotalEnergyConsumption(void *, unsigned long long *millijoules) {
    *millijoules = 5000000 + graphs * (unsigned long long)number("EMULATOR_MILLIJOULES", 0);
    return getenv("EMULATOR_MILLIWATTS") ? NOT_FOUND : SUCCESS;
}

int nvmlDeviceGetPowerUsage(void *, unsigned *milliwatts) {
    *milliwatts = (unsigned)number("EMULATOR_MILLIWATTS", 0);
    return failing("nvmlDeviceGetPowerUsage");
}

int nvmlDeviceGetEnforcedPowerLimit(void *, unsigned *milliwatts) {
    *milliwatts = 700000;
    return SUCCESS;
}
}
