// The CUDA driver and NVRTC as the engine sees them, on top of the emulator: built together with
// one engine.cu as libcuda.so.1 and libnvrtc.so.13. Work is done when it is asked for; a captured
// graph is a list of launches. EMULATOR_FAIL=NAME makes the named function fail. It is NVML too,
// libnvidia-ml.so.1: a launched graph takes EMULATOR_MILLIJOULES of energy.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>
#include "emulator.h"

// From engine.cu, which is compiled with this file.
struct gpu_task;

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, LAUNCH_FAILED = 719 };

struct kernel {
    const char *name;
    void (*run)(const struct gpu_task);
};

struct recorded {
    struct kernel *kernel;
    unsigned grid[3], threads, shared_bytes;
    std::vector<char> argument;
};

struct launch_config { // CUlaunchConfig
    unsigned grid[3], block[3], shared_bytes;
    void *stream, *attributes;
    unsigned attribute_count;
};

static bool capturing;
static int sticky; // a kernel's failure, told by the next synchronisation
static std::vector<struct recorded> *captured;
static unsigned long long graphs; // launched

static int failing(const char *function) {
    const char *name = getenv("EMULATOR_FAIL");
    if (!name || strcmp(name, function) != 0)
        return SUCCESS;
    return strcmp(function, "cuMemAlloc_v2") == 0 ? OUT_OF_MEMORY : INVALID_VALUE;
}

static int number(const char *variable, int otherwise) {
    const char *value = getenv(variable);
    return value ? atoi(value) : otherwise;
}

static void call(const void *kernel_and_argument);

struct call {
    struct kernel *kernel;
    const struct gpu_task *task;
};

static int run(const struct recorded &r) {
    if (sticky)
        return sticky;
    struct call call_of = {r.kernel, (const struct gpu_task *)r.argument.data()};
    struct emulated_launch launch = {r.kernel->name, {r.grid[0], r.grid[1], r.grid[2]},
                                     r.threads,      r.shared_bytes,
                                     call,           &call_of};
    if (emulate_launch(&launch) != 0)
        sticky = LAUNCH_FAILED;
    return SUCCESS;
}

#include ENGINE_CU

static void call(const void *kernel_and_argument) {
    const struct call *c = (const struct call *)kernel_and_argument;
    c->kernel->run(*c->task);
}

extern "C" {

int cuInit(unsigned) {
    const char *seed = getenv("EMULATOR_SEED");
    emulate_seed(seed ? strtoull(seed, NULL, 10) : 1);
    return failing("cuInit");
}

int cuGetErrorString(int error, const char **text) {
    *text = error == OUT_OF_MEMORY   ? "out of memory"
            : error == LAUNCH_FAILED ? "unspecified launch failure"
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
    int sm = number("EMULATOR_SM", 90);
    switch (attribute) {
    case 16:
        *value = number("EMULATOR_MULTIPROCESSORS", 132);
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
    emulate_release((void *)(uintptr_t)pointer);
    return SUCCESS;
}

int cuMemAllocHost_v2(void **pointer, size_t bytes) {
    *pointer = malloc(bytes);
    return *pointer ? failing("cuMemAllocHost_v2") : OUT_OF_MEMORY;
}

int cuMemFreeHost(void *pointer) {
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

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *) {
    memcpy((void *)(uintptr_t)to, from, bytes);
    return failing("cuMemcpyHtoDAsync_v2");
}

int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *) {
    memcpy(to, (const void *)(uintptr_t)from, bytes);
    return sticky ? sticky : failing("cuMemcpyDtoHAsync_v2");
}

int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *) {
    memset((void *)(uintptr_t)to, value, bytes);
    return SUCCESS;
}

int cuStreamCreate(void **stream, unsigned) {
    *stream = &captured;
    return SUCCESS;
}

int cuStreamDestroy_v2(void *) {
    return SUCCESS;
}

int cuStreamSynchronize(void *) {
    return sticky ? sticky : failing("cuStreamSynchronize");
}

int cuModuleLoadData(void **module, const void *image) {
    *module = &sticky;
    return memcmp(image, "EMULATED", 8) == 0 ? failing("cuModuleLoadData") : INVALID_VALUE;
}

int cuModuleUnload(void *) {
    return SUCCESS;
}

// Kernels are this library's own functions.
int cuModuleGetFunction(void **function, void *, const char *name) {
    Dl_info self;
    dladdr((void *)cuModuleUnload, &self);
    void *library = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    void *found = library ? dlsym(library, name) : NULL;
    kernel *kernel_of = new kernel{strdup(name), (void (*)(const struct gpu_task))found};
    *function = kernel_of;
    if (library)
        dlclose(library);
    return found ? SUCCESS : NOT_FOUND;
}

int cuFuncSetAttribute(void *, int, int value) {
    return value <= number("EMULATOR_SHARED", 227 << 10) ? SUCCESS : INVALID_VALUE;
}

int cuLaunchKernelEx(const struct launch_config *config, void *function, void **arguments,
                     void **) {
    const char *task = (const char *)arguments[0];
    struct recorded r = {(struct kernel *)function,
                         {config->grid[0], config->grid[1], config->grid[2]},
                         config->block[0],
                         config->shared_bytes,
                         std::vector<char>(task, task + sizeof(struct gpu_task))};
    if (capturing) {
        captured->push_back(r);
        return SUCCESS;
    }
    return failing("cuLaunchKernelEx") ? INVALID_VALUE : run(r);
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
    for (const struct recorded &r : *(std::vector<struct recorded> *)executable)
        run(r);
    graphs++;
    return failing("cuGraphLaunch");
}

int cuGraphExecDestroy(void *) {
    return SUCCESS;
}

int cuGraphDestroy(void *graph) {
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

// The kernels were compiled with this library; the engine must want the same constants.
int nvrtcCompileProgram(void *, int count, const char *const *options) {
    char streams[32], ring[40];
    int equal = 0;
    snprintf(streams, sizeof streams, "-DSTREAMS=%d", STREAMS);
    snprintf(ring, sizeof ring, "-DWARP_RING_BYTES=%d", WARP_RING_BYTES);
    for (int i = 0; i < count; i++)
        equal += strcmp(options[i], streams) == 0 || strcmp(options[i], ring) == 0;
    return equal == 2 ? failing("nvrtcCompileProgram") : INVALID_VALUE;
}

int nvrtcGetCUBINSize(void *, size_t *bytes) {
    *bytes = 8;
    return SUCCESS;
}

int nvrtcGetCUBIN(void *, char *cubin) {
    memcpy(cubin, "EMULATED", 8);
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
