// See cuda_driver.h.
#include <dlfcn.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cuda_driver.h"

struct library_symbol {
    const char *name;
    size_t offset; // of the function pointer that it fills
};

static const struct library_symbol DRIVER_SYMBOLS[] = {
    {"cuInit", offsetof(struct cuda_driver, init)},
    {"cuGetErrorString", offsetof(struct cuda_driver, error_string)},
    {"cuDriverGetVersion", offsetof(struct cuda_driver, version)},
    {"cuDeviceGetCount", offsetof(struct cuda_driver, device_count)},
    {"cuDeviceGet", offsetof(struct cuda_driver, device)},
    {"cuDeviceGetName", offsetof(struct cuda_driver, device_name)},
    {"cuDeviceGetUuid_v2", offsetof(struct cuda_driver, device_uuid)},
    {"cuDeviceGetAttribute", offsetof(struct cuda_driver, device_attribute)},
    {"cuDevicePrimaryCtxRetain", offsetof(struct cuda_driver, context_retain)},
    {"cuDevicePrimaryCtxRelease_v2", offsetof(struct cuda_driver, context_release)},
    {"cuCtxSetCurrent", offsetof(struct cuda_driver, context_set)},
    {"cuMemGetInfo_v2", offsetof(struct cuda_driver, memory_info)},
    {"cuMemAlloc_v2", offsetof(struct cuda_driver, allocate)},
    {"cuMemFree_v2", offsetof(struct cuda_driver, release)},
    {"cuMemAllocHost_v2", offsetof(struct cuda_driver, allocate_host)},
    {"cuMemFreeHost", offsetof(struct cuda_driver, release_host)},
    {"cuMemHostRegister_v2", offsetof(struct cuda_driver, register_host)},
    {"cuMemHostUnregister", offsetof(struct cuda_driver, unregister_host)},
    {"cuMemHostGetDevicePointer_v2", offsetof(struct cuda_driver, host_device_pointer)},
    {"cuMemcpyHtoDAsync_v2", offsetof(struct cuda_driver, copy_to_device)},
    {"cuMemcpyDtoHAsync_v2", offsetof(struct cuda_driver, copy_to_host)},
    {"cuMemsetD8Async", offsetof(struct cuda_driver, fill)},
    {"cuStreamCreate", offsetof(struct cuda_driver, stream_create)},
    {"cuStreamDestroy_v2", offsetof(struct cuda_driver, stream_destroy)},
    {"cuStreamSynchronize", offsetof(struct cuda_driver, stream_synchronize)},
    {"cuEventCreate", offsetof(struct cuda_driver, event_create)},
    {"cuEventDestroy_v2", offsetof(struct cuda_driver, event_destroy)},
    {"cuEventRecord", offsetof(struct cuda_driver, event_record)},
    {"cuEventSynchronize", offsetof(struct cuda_driver, event_synchronize)},
    {"cuModuleLoadData", offsetof(struct cuda_driver, module_load)},
    {"cuModuleUnload", offsetof(struct cuda_driver, module_unload)},
    {"cuModuleGetFunction", offsetof(struct cuda_driver, module_function)},
    {"cuFuncSetAttribute", offsetof(struct cuda_driver, function_set)},
    {"cuLaunchKernelEx", offsetof(struct cuda_driver, launch)},
    {"cuStreamBeginCapture_v2", offsetof(struct cuda_driver, capture_begin)},
    {"cuStreamEndCapture", offsetof(struct cuda_driver, capture_end)},
    {"cuGraphInstantiateWithFlags", offsetof(struct cuda_driver, graph_instantiate)},
    {"cuGraphLaunch", offsetof(struct cuda_driver, graph_launch)},
    {"cuGraphExecDestroy", offsetof(struct cuda_driver, graph_release)},
    {"cuGraphDestroy", offsetof(struct cuda_driver, graph_destroy)},
};

static const struct library_symbol NVRTC_SYMBOLS[] = {
    {"nvrtcVersion", offsetof(struct nvrtc, version)},
    {"nvrtcCreateProgram", offsetof(struct nvrtc, create)},
    {"nvrtcDestroyProgram", offsetof(struct nvrtc, destroy)},
    {"nvrtcCompileProgram", offsetof(struct nvrtc, compile)},
    {"nvrtcGetCUBINSize", offsetof(struct nvrtc, cubin_size)},
    {"nvrtcGetCUBIN", offsetof(struct nvrtc, cubin)},
    {"nvrtcGetProgramLogSize", offsetof(struct nvrtc, log_size)},
    {"nvrtcGetProgramLog", offsetof(struct nvrtc, log)},
};

// Fills the pointers of `table`; NULL, or the name that the library lacks.
static const char *find_symbols(void *library, const struct library_symbol *symbols, size_t count,
                                void *table) {
    for (size_t i = 0; i < count; i++) {
        void *function = dlsym(library, symbols[i].name);
        if (!function)
            return symbols[i].name;
        memcpy((char *)table + symbols[i].offset, &function, sizeof function);
    }
    return NULL;
}

static int cuda_driver_open(struct cuda_driver *driver, struct error *error) {
    *driver = (struct cuda_driver){.library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL)};
    if (!driver->library)
        return fail(error, EXIT_DEVICE, "no CUDA driver: libcuda.so.1 cannot be loaded");
    const char *missing = find_symbols(driver->library, DRIVER_SYMBOLS,
                                       sizeof DRIVER_SYMBOLS / sizeof *DRIVER_SYMBOLS, driver);
    if (missing)
        return fail(error, EXIT_DEVICE, "CUDA driver: found no %s, expected a driver of CUDA 12",
                    missing);
    return cuda_check(driver, driver->init(0), "starting the driver", error);
}

static void cuda_driver_close(struct cuda_driver *driver) {
    if (driver->library)
        dlclose(driver->library);
    driver->library = NULL;
}

static int cuda_check(const struct cuda_driver *driver, cuda_result result, const char *doing,
                      struct error *error) {
    if (result == CUDA_SUCCESS)
        return EXIT_OK;
    const char *text = NULL;
    if (driver->error_string(result, &text) != CUDA_SUCCESS || !text)
        text = "unknown error";
    return fail(error, EXIT_DEVICE, "CUDA, %s: error %d, %s", doing, result, text);
}

static int nvrtc_open(struct nvrtc *nvrtc, const char *folder, struct error *error) {
    static const char *const NAMES[] = {"libnvrtc.so.13", "libnvrtc.so.12"};
    const char *const folders[] = {folder ? folder : "", folder ? folder : "/usr/local/cuda/lib64"};
    *nvrtc = (struct nvrtc){0};
    for (size_t i = 0; i < 4 && !nvrtc->library; i++) {
        char path[PATH_MAX];
        snprintf(path, sizeof path, "%s%s%s", folders[i / 2], folders[i / 2][0] ? "/" : "",
                 NAMES[i % 2]);
        nvrtc->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    }
    if (!nvrtc->library)
        return fail(
            error, EXIT_DEVICE,
            "no NVRTC: libnvrtc.so.13 or .12 is needed to compile the kernels for this GPU");
    const char *missing = find_symbols(nvrtc->library, NVRTC_SYMBOLS,
                                       sizeof NVRTC_SYMBOLS / sizeof *NVRTC_SYMBOLS, nvrtc);
    if (!missing)
        return EXIT_OK;
    nvrtc_close(nvrtc);
    return fail(error, EXIT_DEVICE, "NVRTC: found no %s, expected NVRTC of CUDA 12 or 13", missing);
}

static void nvrtc_close(struct nvrtc *nvrtc) {
    if (nvrtc->library)
        dlclose(nvrtc->library);
    nvrtc->library = NULL;
}

// What the compiler said, malloc'ed and terminated; NULL if there is no memory for it.
static char *build_log(const struct nvrtc *nvrtc, void *program) {
    size_t bytes = 0;
    if (nvrtc->log_size(program, &bytes) != 0)
        bytes = 0;
    char *log = calloc(1, bytes + 1);
    if (log && bytes > 0 && nvrtc->log(program, log) != 0)
        log[0] = '\0';
    return log;
}

// The compiler's first line, as an error.
static int build_failed(const struct nvrtc *nvrtc, void *program, struct error *error) {
    char *log = build_log(nvrtc, program);
    int code = fail(error, EXIT_DEVICE, "NVRTC: %.*s", (int)(log ? strcspn(log, "\n") : 0),
                    log ? log : "");
    free(log);
    return code;
}

static int nvrtc_build(const struct nvrtc *nvrtc, const char *source, int options,
                       const char *const *option, char **cubin, size_t *bytes, char **log,
                       struct error *error) {
    void *program = NULL;
    *cubin = NULL;
    if (nvrtc->create(&program, source, "engine.cu", 0, NULL, NULL) != 0)
        return fail(error, EXIT_DEVICE, "NVRTC: cannot take the source");
    int code = EXIT_OK;
    bool built = nvrtc->compile(program, options, option) == 0 &&
                 nvrtc->cubin_size(program, bytes) == 0 && *bytes > 0;
    if (built && !(*cubin = malloc(*bytes)))
        code = fail(error, EXIT_MEMORY, "%zu bytes of kernels could not be had", *bytes);
    else if (!built || nvrtc->cubin(program, *cubin) != 0)
        code = build_failed(nvrtc, program, error);
    if (!code && log && !(*log = build_log(nvrtc, program)))
        code = fail(error, EXIT_MEMORY, "no memory for the compiler's log");
    (void)nvrtc->destroy(&program);
    if (code) {
        free(*cubin);
        *cubin = NULL;
    }
    return code;
}
