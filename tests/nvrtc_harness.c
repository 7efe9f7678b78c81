// Compiles engine.cu with NVRTC as the engine does, and prints for each kernel its registers and
// what it spills: one line "ARCHITECTURE KERNEL REGISTERS SPILLED_BYTES". Warnings are failures.
//
//     nvrtc_harness ENGINE_CU STREAMS ARCHITECTURE...      (architectures such as 80 87 90)
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../runtime/error.h"
#include "../runtime/error.c"
#include "../runtime/cuda_driver.h"
#include "../runtime/cuda_driver.c"

static char *read_text(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) != 0)
        return NULL;
    size_t bytes = (size_t)ftell(file);
    char *text = calloc(1, bytes + 1);
    rewind(file);
    if (text && fread(text, 1, bytes, file) != bytes)
        text[0] = '\0';
    fclose(file);
    return text;
}

// ptxas's report, a few lines a kernel, as one line a kernel. Whether there was nothing else.
static int print_report(char *log, const char *architecture) {
    char name[128] = "";
    int spilled = 0, clean = 1;
    for (char *line = strtok(log, "\n"); line; line = strtok(NULL, "\n")) {
        int stores, loads, registers;
        char *at = strstr(line, "Compiling entry function '");
        if (at) {
            sscanf(at, "Compiling entry function '%127[^']'", name);
        } else if ((at = strstr(line, "bytes stack frame, "))) {
            if (sscanf(at, "bytes stack frame, %d bytes spill stores, %d bytes spill loads",
                       &stores, &loads) == 2)
                spilled = stores + loads;
        } else if ((at = strstr(line, "Used "))) {
            if (sscanf(at, "Used %d registers", &registers) == 1)
                printf("%s %s %d %d\n", architecture, name, registers, spilled);
        } else if (strstr(line, "warning") || strstr(line, "error")) {
            printf("%s\n", line);
            clean = 0;
        }
    }
    return clean;
}

static int compile(const struct nvrtc *nvrtc, const char *source, const char *streams,
                   const char *architecture) {
    char arch[64], define[64];
    const char *options[] = {arch, define, "--ptxas-options=-v"};
    snprintf(arch, sizeof arch, "--gpu-architecture=sm_%s", architecture);
    snprintf(define, sizeof define, "-DSTREAMS=%s", streams);
    void *program = NULL;
    size_t bytes = 0;
    if (nvrtc->create(&program, source, "engine.cu", 0, NULL, NULL) != 0)
        return 1;
    int failed = nvrtc->compile(program, 3, options) != 0;
    if (nvrtc->log_size(program, &bytes) != 0)
        return 1;
    char *log = calloc(1, bytes + 1);
    if (!log || nvrtc->log(program, log) != 0)
        return 1;
    failed |= !print_report(log, architecture);
    free(log);
    nvrtc->destroy(&program);
    return failed;
}

int main(int argc, char **argv) {
    struct nvrtc nvrtc;
    struct error error = {0};
    char *source = argc > 3 ? read_text(argv[1]) : NULL;
    if (!source || nvrtc_open(&nvrtc, &error)) {
        fprintf(stderr, "nvrtc_harness: %s\n", source ? error.text : "usage");
        return 2;
    }
    int failed = 0;
    for (int i = 3; i < argc; i++)
        failed |= compile(&nvrtc, source, argv[2], argv[i]);
    free(source);
    nvrtc_close(&nvrtc);
    return failed;
}
