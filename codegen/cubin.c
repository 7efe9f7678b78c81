// Compiles engine.cu to the machine code of one GPU architecture, as the engine itself would do it,
// and prints what the assembler says of each kernel: "NAME REGISTERS SHARED_BYTES LOCAL_BYTES".
// Local memory is what registers are spilled to, and arrays that are in none. A warning is a
// failure. Needs NVRTC, but no GPU.
//
//     cubin FOLDER ENGINE_CU ARCHITECTURE STREAMS SHARED_BYTES OUTPUT
//
// FOLDER is where NVRTC lies; ARCHITECTURE such as 87.
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

static int write_file(const char *path, const char *data, size_t bytes, struct error *error) {
    FILE *file = fopen(path, "wb");
    if (file && fwrite(data, 1, bytes, file) == bytes && fclose(file) == 0)
        return EXIT_OK;
    return fail(error, EXIT_OUTPUT, "%s: cannot be written", path);
}

struct kernel_report {
    char name[128];
    int registers, shared, local;
};

static void print_kernel(const struct kernel_report *kernel) {
    if (kernel->name[0])
        printf("%s %d %d %d\n", kernel->name, kernel->registers, kernel->shared, kernel->local);
}

// The number in front of `text`, 0 if that is not in `line`.
static int number_before(const char *line, const char *text) {
    const char *at = strstr(line, text);
    while (at && at > line && at[-1] >= '0' && at[-1] <= '9')
        at--;
    return at ? atoi(at) : 0;
}

// The compiler's log, a few lines a kernel, as one line a kernel. What the functions that it calls
// keep, if they are not inlined, stands behind what the kernel itself uses.
static int print_report(char *log, struct error *error) {
    struct kernel_report kernel = {0};
    for (char *line = strtok(log, "\n"); line; line = strtok(NULL, "\n")) {
        const char *at = strstr(line, "Compiling entry function '");
        if (at) {
            print_kernel(&kernel);
            kernel = (struct kernel_report){0};
            sscanf(at, "Compiling entry function '%127[^']'", kernel.name);
        } else if (strstr(line, "bytes stack frame")) {
            kernel.local += number_before(line, " bytes stack frame");
        } else if ((at = strstr(line, "Used "))) {
            sscanf(at, "Used %d registers", &kernel.registers);
            kernel.shared = number_before(at, " bytes smem");
        } else if (strstr(line, "warning") || strstr(line, "error")) {
            return fail(error, EXIT_DEVICE, "NVRTC: %.400s", line);
        }
    }
    print_kernel(&kernel);
    return EXIT_OK;
}

static int compile(const struct nvrtc *nvrtc, char **argv, struct error *error) {
    char arch[64], streams[64], shared[64];
    const char *options[] = {arch, streams, shared, "--ptxas-options=-v"};
    const int count = sizeof options / sizeof *options;
    char *source = read_text(argv[2]), *cubin = NULL, *log = NULL;
    size_t bytes = 0;
    if (!source)
        return fail(error, EXIT_INPUT, "%s: cannot be read", argv[2]);
    snprintf(arch, sizeof arch, "--gpu-architecture=sm_%s%s", argv[3],
             strcmp(argv[3], "90") == 0 ? "a" : ""); // as gpu.c does
    snprintf(streams, sizeof streams, "-DSTREAMS=%s", argv[4]);
    snprintf(shared, sizeof shared, "-DSHARED_BYTES=%s", argv[5]);
    int code = nvrtc_build(nvrtc, source, count, options, &cubin, &bytes, &log, error);
    if (!code)
        code = print_report(log, error);
    if (!code)
        code = write_file(argv[6], cubin, bytes, error);
    free(source);
    free(cubin);
    free(log);
    return code;
}

int main(int argc, char **argv) {
    struct nvrtc nvrtc;
    struct error error = {0};
    if (argc != 7)
        return EXIT_USAGE;
    int code = nvrtc_open(&nvrtc, argv[1], &error);
    if (!code)
        code = compile(&nvrtc, argv, &error);
    nvrtc_close(&nvrtc);
    if (code)
        fprintf(stderr, "cubin: %s\n", error.text);
    return code;
}
