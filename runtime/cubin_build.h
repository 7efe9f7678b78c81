// The machine code of a CUDA source, from the cache or compiled by NVRTC. The source is several
// programs, its modules: -DMODULES=1, 2, 4 and so on say which. Each has a thread and an entry in
// the cache of its own, as NVRTC compiles with one processor.
#ifndef CUBIN_BUILD_H
#define CUBIN_BUILD_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include "error.h"

enum { CUBIN_MODULES = 5, CUBIN_OPTIONS = 3, CUBIN_OPTION_CHARS = 40 };

struct cubin_module {
    const struct cubin_build *build;
    char *cubin; // malloc'ed
    size_t bytes;
    bool compiled;       // now, as the cache did not have it
    bool newer_compiler; // NVRTC is newer than the driver
    double seconds;      // from the start of the build until it was there
    char note[256];      // one line on the cache, or ""
    struct error error;
    bool running;
    pthread_t thread;
};

struct cubin_build {
    const char *source; // this and the next three are the caller's to fill
    char options[CUBIN_OPTIONS][CUBIN_OPTION_CHARS];
    int driver_version;
    bool use_cache;
    double start;
    struct cubin_module modules[CUBIN_MODULES];
};

// Begins to build all modules.
static void cubin_build_start(struct cubin_build *build);

// Waits for them; not `patient`, asks only those that are done. EXIT_DEVICE: there is no NVRTC, or
// it finds fault with the source.
static int cubin_build_wait(struct cubin_build *build, bool patient, struct error *error);

// Waits if it must, and gives the machine code back.
static void cubin_build_free(struct cubin_build *build);

#endif
