// See cubin_build.h.
#include <stdio.h>
#include <stdlib.h>
#include "clock.h"
#include "cubin_build.h"
#include "cubin_cache.h"
#include "cuda_driver.h"

static int build_cubin(struct cubin_module *module, const struct nvrtc *nvrtc) {
    const struct cubin_build *build = module->build;
    char which[24], key[CUBIN_KEY_CHARS];
    const char *options[CUBIN_OPTIONS + 1] = {which};
    int major = 0, minor = 0, code = EXIT_OK;
    snprintf(which, sizeof which, "-DMODULES=%d", 1 << (module - build->modules));
    for (int i = 0; i < CUBIN_OPTIONS; i++)
        options[1 + i] = build->options[i];
    (void)nvrtc->version(&major, &minor);
    int version = 1000 * major + 10 * minor;
    module->newer_compiler = version > build->driver_version;
    cubin_key(build->source, options, CUBIN_OPTIONS + 1, version, build->driver_version, key);
    if (build->use_cache &&
        cubin_load(key, &module->cubin, &module->bytes, module->note, sizeof module->note))
        return EXIT_OK;
    module->compiled = true;
    code = nvrtc_build(nvrtc, build->source, CUBIN_OPTIONS + 1, options, &module->cubin,
                       &module->bytes, NULL, &module->error);
    if (!code && build->use_cache)
        cubin_store(key, module->cubin, module->bytes, module->note, sizeof module->note);
    return code;
}

static void *build_module(void *argument) {
    struct cubin_module *module = argument;
    struct nvrtc nvrtc;
    if (nvrtc_open(&nvrtc, NULL, &module->error) == EXIT_OK) {
        (void)build_cubin(module, &nvrtc);
        nvrtc_close(&nvrtc);
    }
    module->seconds = clock_seconds() - module->build->start;
    return NULL;
}

static void cubin_build_start(struct cubin_build *build) {
    build->start = clock_seconds();
    for (int i = 0; i < CUBIN_MODULES; i++) {
        struct cubin_module *module = &build->modules[i];
        *module = (struct cubin_module){.build = build};
        module->running = pthread_create(&module->thread, NULL, build_module, module) == 0;
        if (!module->running) // no more threads are to be had
            (void)build_module(module);
    }
}

static int cubin_build_wait(struct cubin_build *build, bool patient, struct error *error) {
    int code = EXIT_OK;
    for (int i = 0; i < CUBIN_MODULES; i++) {
        struct cubin_module *module = &build->modules[i];
        if (module->running)
            module->running = (patient ? pthread_join(module->thread, NULL)
                                       : pthread_tryjoin_np(module->thread, NULL)) != 0;
        if (!code && !module->running && module->error.code) {
            *error = module->error;
            code = error->code;
        }
    }
    return code;
}

static void cubin_build_free(struct cubin_build *build) {
    struct error unused;
    (void)cubin_build_wait(build, true, &unused);
    for (int i = 0; i < CUBIN_MODULES; i++) {
        free(build->modules[i].cubin);
        build->modules[i].cubin = NULL;
    }
}
