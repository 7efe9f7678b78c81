// The few functions of the CUDA driver and of NVRTC that the engine calls, with our own
// declarations: no toolkit is needed to compile it, and both libraries are looked for when they are
// first needed. Source of names, types and numbers: NVIDIA's CUDA Driver API and NVRTC
// documentation, version 12.3.
#ifndef CUDA_DRIVER_H
#define CUDA_DRIVER_H

#include <stddef.h>
#include <stdint.h>
#include "error.h"

typedef int cuda_result; // 0: success
typedef uint64_t cuda_pointer;

enum { // cuda_result
    CUDA_SUCCESS = 0,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
};

enum { // CUdevice_attribute
    CUDA_MULTIPROCESSORS = 16,
    CUDA_INTEGRATED = 18,
    CUDA_CAPABILITY_MAJOR = 75,
    CUDA_CAPABILITY_MINOR = 76,
    CUDA_SHARED_PER_BLOCK = 97, // with opt-in
};

enum {
    CUDA_FUNCTION_SHARED_BYTES = 8, // CUfunction_attribute
    CUDA_CAPTURE_THREAD_LOCAL = 1,  // CUstreamCaptureMode
    CUDA_STREAM_NON_BLOCKING = 1,   // CUstream_flags
    CUDA_EVENT_NO_TIMING = 2,       // CUevent_flags
    CUDA_REGISTER_DEVICE_MAP = 2,   // CU_MEMHOSTREGISTER_*
    CUDA_REGISTER_READ_ONLY = 8,    //
    CUDA_LAUNCH_COOPERATIVE = 2,    // CUlaunchAttributeID: all blocks run at once, or none
    CUDA_LAUNCH_PROGRAMMATIC = 6,   // the same: programmatic stream serialization
};

struct cuda_launch_attribute {
    int id;
    int reserved;
    union {
        int value;
        char bytes[64];
    };
};

struct cuda_launch {
    unsigned grid[3], block[3], shared_bytes;
    void *stream;
    struct cuda_launch_attribute *attributes;
    unsigned attribute_count;
};

struct cuda_driver {
    void *library;
    cuda_result (*init)(unsigned flags);
    cuda_result (*error_string)(cuda_result, const char **text);
    cuda_result (*version)(int *version); // 1000 * major + 10 * minor
    cuda_result (*device_count)(int *count);
    cuda_result (*device)(int *device, int ordinal);
    cuda_result (*device_name)(char *name, int size, int device);
    cuda_result (*device_uuid)(unsigned char uuid[16], int device);
    cuda_result (*device_attribute)(int *value, int attribute, int device);
    cuda_result (*context_retain)(void **context, int device);
    cuda_result (*context_release)(int device);
    cuda_result (*context_set)(void *context);
    cuda_result (*memory_info)(size_t *free, size_t *total);
    cuda_result (*allocate)(cuda_pointer *pointer, size_t bytes);
    cuda_result (*release)(cuda_pointer pointer);
    cuda_result (*allocate_host)(void **pointer, size_t bytes);
    cuda_result (*release_host)(void *pointer);
    cuda_result (*register_host)(void *pointer, size_t bytes, unsigned flags);
    cuda_result (*unregister_host)(void *pointer);
    cuda_result (*host_device_pointer)(cuda_pointer *pointer, void *host, unsigned flags);
    cuda_result (*copy_to_device)(cuda_pointer to, const void *from, size_t bytes, void *stream);
    cuda_result (*copy_to_host)(void *to, cuda_pointer from, size_t bytes, void *stream);
    cuda_result (*fill)(cuda_pointer to, unsigned char value, size_t bytes, void *stream);
    cuda_result (*stream_create)(void **stream, unsigned flags);
    cuda_result (*stream_destroy)(void *stream);
    cuda_result (*stream_synchronize)(void *stream);
    cuda_result (*event_create)(void **event, unsigned flags);
    cuda_result (*event_destroy)(void *event);
    cuda_result (*event_record)(void *event, void *stream);
    cuda_result (*event_synchronize)(void *event);
    cuda_result (*module_load)(void **module, const void *image);
    cuda_result (*module_unload)(void *module);
    cuda_result (*module_function)(void **function, void *module, const char *name);
    cuda_result (*function_set)(void *function, int attribute, int value);
    cuda_result (*launch)(const struct cuda_launch *, void *function, void **arguments,
                          void **extra);
    cuda_result (*capture_begin)(void *stream, int mode);
    cuda_result (*capture_end)(void *stream, void **graph);
    cuda_result (*graph_instantiate)(void **executable, void *graph, unsigned long long flags);
    cuda_result (*graph_launch)(void *executable, void *stream);
    cuda_result (*graph_release)(void *executable);
    cuda_result (*graph_destroy)(void *graph);
};

struct nvrtc {
    void *library;
    int (*version)(int *major, int *minor);
    int (*create)(void **program, const char *source, const char *name, int headers,
                  const char *const *header_texts, const char *const *header_names);
    int (*destroy)(void **program);
    int (*compile)(void *program, int options, const char *const *option);
    int (*cubin_size)(void *program, size_t *bytes);
    int (*cubin)(void *program, char *cubin);
    int (*log_size)(void *program, size_t *bytes);
    int (*log)(void *program, char *log);
};

// Finds the driver's library and starts it. EXIT_DEVICE: there is none, or it does not start.
static int cuda_driver_open(struct cuda_driver *driver, struct error *error);
static void cuda_driver_close(struct cuda_driver *driver);

// EXIT_OK, or EXIT_DEVICE with the driver's own words for what failed; `doing` says what was tried.
static int cuda_check(const struct cuda_driver *driver, cuda_result result, const char *doing,
                      struct error *error);

// Compiles CUDA C to machine code; *cubin and *log, what the compiler said, are malloc'ed; log may
// be NULL. Fails with the compiler's first complaint. open: folder is where the library lies, NULL
// for the usual places; EXIT_DEVICE if no NVRTC of CUDA 12 or 13 is found.
static int nvrtc_open(struct nvrtc *nvrtc, const char *folder, struct error *error);
static void nvrtc_close(struct nvrtc *nvrtc);
static int nvrtc_build(const struct nvrtc *nvrtc, const char *source, int options,
                       const char *const *option, char **cubin, size_t *bytes, char **log,
                       struct error *error);

#endif
