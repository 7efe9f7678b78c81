// Compares paths of one engine with its plain path, for the ids on stdin. For each ISA a line of
// key=value pairs: the mean KL in nats and the relative error of the logits, |ours - plain| /
// |plain| in the Euclidean norm; of all positions fed in blocks, and of the first DECODE fed one by
// one. "path=NAME absent=1" where this processor has not got the path.
//
//     paths_harness PACK STREAMS DECODE ISA...
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
    const float *plain = reference->logits + i * reference->vocab;
    reference->kl += divergence(plain, logits, reference->vocab);
    for (size_t v = 0; v < reference->vocab; v++) {
        double difference = (double)logits[v] - plain[v];
        reference->difference += difference * difference;
        reference->size += (double)plain[v] * plain[v];
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

int main(int argc, char **argv) {
    static int32_t ids[MOST];
    struct reference reference = {0};
    size_t tokens = 0;
    if (argc < 5)
        return 2;
    while (tokens < MOST && scanf("%d", &ids[tokens]) == 1)
        tokens++;
    size_t decode = strtoul(argv[3], NULL, 10);
    decode = decode < tokens ? decode : tokens;
    struct parscale *plain = open_model(argv[1], "plain", atoi(argv[2]));
    reference.vocab = (size_t)parscale_info(plain)->vocab_size;
    reference.logits = must_have(malloc(tokens * reference.vocab * sizeof *reference.logits + 1));
    must(plain, parscale_score(plain, ids, tokens, keep, &reference));
    parscale_close(plain);
    for (int i = 4; i < argc; i++)
        compare_path(argv[1], atoi(argv[2]), argv[i], ids, tokens, decode, &reference);
    free(reference.logits);
    return 0;
}
