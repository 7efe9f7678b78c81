// Fills an engine's context by prefill, but for one position, which a decode step takes, and prints
// key=value pairs: position; anonymous memory now and memory at the peak, KiB; grown: bytes that
// malloc has given out since the model was opened.
//
//     memory_harness PACK
#include <malloc.h>
#include <string.h>
#include <sys/resource.h>
#include "compare.h"

// Anonymous resident memory in KiB.
static long anonymous_kib(void) {
    FILE *file = must_have(fopen("/proc/self/status", "r"));
    char line[256];
    long kib = -1;
    while (fgets(line, sizeof line, file))
        if (strncmp(line, "RssAnon:", 8) == 0)
            kib = strtol(line + 8, NULL, 10);
    fclose(file);
    return kib;
}

static size_t allocated(void) {
    struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
}

int main(int argc, char **argv) {
    if (argc != 2)
        return 2;
    struct parscale *model = open_model(argv[1], NULL, 0);
    size_t context = (size_t)parscale_info(model)->context;
    size_t vocab = (size_t)parscale_info(model)->vocab_size;
    int32_t *ids = must_have(malloc(context * sizeof *ids));
    for (size_t i = 0; i < context; i++)
        ids[i] = (int32_t)(i * 7919 % vocab);
    size_t before = allocated();
    must(model, parscale_prefill(model, ids, context - 1));
    must(model, parscale_decode(model, ids[context - 1]));
    size_t after = allocated();
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("position=%d anonymous=%ld peak=%ld grown=%zu\n", parscale_position(model),
           anonymous_kib(), usage.ru_maxrss, after - before);
    free(ids);
    parscale_close(model);
    return 0;
}
