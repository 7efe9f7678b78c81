// Compares paths of an engine with the logits in the file REFERENCE, for the ids on stdin; if there
// is no such file, with those of its plain path, which are written to it. For each ISA a line of
// key=value pairs: the mean KL in nats and the relative error of the logits, |ours - reference| /
// |reference| in the Euclidean norm; of all positions fed in blocks, and of the first DECODE fed
// one by one. "path=NAME absent=1" where this processor has not got the path.
//
//     paths_harness PACK STREAMS DECODE REFERENCE ISA...
#include <string.h>
#include "compare.h"

enum { MOST = 1 << 16 };

struct reference {
    float *logits; // [tokens, vocab]
    size_t vocab;
    double kl, difference, size; // sums; of squares the last two
};

static int keep(void *user, size_t i, const float *logits) {
    struct reference *reference = user;
    memcpy(reference->logits + i * reference->vocab, logits, reference->vocab * sizeof *logits);
    return 0;
}

static int compare(void *user, size_t i, const float *logits) {
    struct reference *reference = user;
    const float *expected = reference->logits + i * reference->vocab;
    reference->kl += divergence(expected, logits, reference->vocab);
    for (size_t v = 0; v < reference->vocab; v++) {
        double difference = (double)logits[v] - expected[v];
        reference->difference += difference * difference;
        reference->size += (double)expected[v] * expected[v];
    }
    return 0;
}

static void report(struct reference *reference, const char *what, size_t tokens) {
    printf(" %skl=%.4g %serror=%.4g", what, reference->kl / (double)tokens, what,
           sqrt(reference->difference / reference->size));
    reference->kl = reference->difference = reference->size = 0;
}

static void compare_path(const char *pack, int streams, const char *isa, const int32_t *ids,
                         size_t tokens, size_t decode, struct reference *reference) {
    struct parscale *model;
    bool gpu = strcmp(isa, "cuda") == 0;
    struct parscale_options options = {.pack = pack, .streams = streams};
    *(gpu ? &options.device : &options.isa) = isa;
    int code = parscale_open(&model, &options);
    if (code == 2 && !gpu) {
        printf("path=%s absent=1\n", isa);
        parscale_close(model);
        return;
    }
    must(model, code);
    must(model, parscale_score(model, ids, tokens, compare, reference));
    printf("path=%s tokens=%zu", isa, tokens);
    report(reference, "", tokens);
    parscale_rewind(model, 0);
    for (size_t i = 0; i < decode; i++) {
        must(model, parscale_decode(model, ids[i]));
        compare(reference, i, parscale_logits(model));
    }
    if (decode > 0)
        report(reference, "decode", decode);
    printf("\n");
    parscale_close(model);
}

// Reads the reference's logits, or computes and writes them.
static void find_reference(struct reference *reference, const char *path, const char *pack,
                           int streams, const int32_t *ids, size_t tokens) {
    struct parscale *plain = open_model(pack, "plain", streams);
    reference->vocab = (size_t)parscale_info(plain)->vocab_size;
    size_t all = tokens * reference->vocab;
    reference->logits = must_have(malloc(all * sizeof(float) + 1));
    FILE *file = fopen(path, "rb");
    bool good = file && fread(reference->logits, sizeof(float), all, file) == all;
    if (!file) {
        must(plain, parscale_score(plain, ids, tokens, keep, reference));
        file = must_have(fopen(path, "wb"));
        good = fwrite(reference->logits, sizeof(float), all, file) == all;
    }
    if (fclose(file) != 0 || !good) {
        fprintf(stderr, "%s: not the logits of %zu tokens\n", path, tokens);
        exit(1);
    }
    parscale_close(plain);
}

int main(int argc, char **argv) {
    static int32_t ids[MOST];
    struct reference reference = {0};
    size_t tokens = 0;
    if (argc < 6) {
        fprintf(stderr, "paths_harness: PACK STREAMS DECODE REFERENCE ISA... expected\n");
        return 2;
    }
    while (tokens < MOST && scanf("%d", &ids[tokens]) == 1)
        tokens++;
    size_t decode = strtoul(argv[3], NULL, 10);
    decode = decode < tokens ? decode : tokens;
    find_reference(&reference, argv[4], argv[1], atoi(argv[2]), ids, tokens);
    for (int i = 5; i < argc; i++)
        compare_path(argv[1], atoi(argv[2]), argv[i], ids, tokens, decode, &reference);
    free(reference.logits);
    return 0;
}
