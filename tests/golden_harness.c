// Runs an engine, linked as a library, over one golden folder and prints how far it is from what
// the published code computed: one line of key=value pairs.
//
//     golden_harness PACK ISA EXPECTED TOKENS OFFSET_IDS OFFSET_LOGITS VOCAB OFFSET_WEIGHTS STREAMS
//                    OFFSET_GREEDY OFFSET_MARGIN GREEDY_STEPS
//
// Offsets are bytes in the safetensors file EXPECTED, found by golden.t.
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../runtime/parscale.h"

struct comparison {
    struct parscale *model;
    const float *logits;  // [tokens, vocab]
    const float *weights; // [tokens, streams] or NULL
    size_t vocab, streams;
    double worst_logit, worst_weight, kl_sum;
};

static void *load(const char *path, long offset, size_t bytes) {
    FILE *file = fopen(path, "rb");
    void *data = malloc(bytes);
    if (!file || !data || fseek(file, offset, SEEK_SET) != 0 ||
        fread(data, 1, bytes, file) != bytes) {
        fprintf(stderr, "%s: cannot read %zu bytes at %ld\n", path, bytes, offset);
        exit(1);
    }
    fclose(file);
    return data;
}

// The larger of two distances; a NaN is larger than anything.
static double worse(double a, double b) {
    return b <= a ? a : b;
}

// KL(published || ours) in nats.
static double divergence(const float *published, const float *ours, size_t n) {
    double max_p = -INFINITY, max_q = -INFINITY, sum_p = 0, sum_q = 0, kl = 0;
    for (size_t i = 0; i < n; i++) {
        max_p = fmax(max_p, published[i]);
        max_q = fmax(max_q, ours[i]);
    }
    for (size_t i = 0; i < n; i++) {
        sum_p += exp(published[i] - max_p);
        sum_q += exp(ours[i] - max_q);
    }
    for (size_t i = 0; i < n; i++) {
        double log_p = published[i] - max_p - log(sum_p), log_q = ours[i] - max_q - log(sum_q);
        kl += exp(log_p) * (log_p - log_q);
    }
    return kl;
}

static int compare(void *user, size_t i, const float *logits) {
    struct comparison *c = user;
    for (size_t v = 0; v < c->vocab; v++)
        c->worst_logit =
            worse(c->worst_logit, fabs((double)logits[v] - c->logits[i * c->vocab + v]));
    c->kl_sum += divergence(c->logits + i * c->vocab, logits, c->vocab);
    return 0;
}

// The weights of the last token only: the API shows those of the current logits.
static double weights_error(struct comparison *c, size_t tokens) {
    double worst = 0, sum = 0;
    const float *ours = parscale_stream_weights(c->model);
    for (size_t p = 0; p < c->streams; p++) {
        sum += ours[p];
        if (c->weights)
            worst = worse(worst, fabs((double)ours[p] - c->weights[(tokens - 1) * c->streams + p]));
    }
    return worse(worst, fabs(sum - 1));
}

static int32_t argmax(const float *logits, size_t n) {
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        best = logits[i] > logits[best] ? i : best;
    return (int32_t)best;
}

int main(int argc, char **argv) {
    if (argc != 13)
        return 2;
    const char *expected = argv[3];
    size_t tokens = strtoul(argv[4], NULL, 10), vocab = strtoul(argv[7], NULL, 10);
    size_t streams = strtoul(argv[9], NULL, 10), steps = strtoul(argv[12], NULL, 10);
    int32_t *ids = load(expected, atol(argv[5]), tokens * 4);
    int32_t *greedy = load(expected, atol(argv[10]), steps * 4);
    float *margin = load(expected, atol(argv[11]), steps * 4);
    struct comparison c = {.vocab = vocab, .streams = streams};
    c.logits = load(expected, atol(argv[6]), tokens * vocab * 4);
    if (streams > 1)
        c.weights = load(expected, atol(argv[8]), tokens * streams * 4);

    // A device instead of an instruction set.
    bool cuda = strcmp(argv[2], "cuda") == 0;
    struct parscale_options options = {.pack = argv[1],
                                       .isa = cuda ? NULL : argv[2],
                                       .device = cuda ? "cuda" : "cpu",
                                       .no_kernel_cache = true};
    if (parscale_open(&c.model, &options) || parscale_score(c.model, ids, tokens, compare, &c)) {
        fprintf(stderr, "%s\n", parscale_error(c.model));
        return 1;
    }
    c.worst_weight = weights_error(&c, tokens);
    // Token by token, through the decode path, the weights of every position.
    parscale_rewind(c.model, 0);
    double decode_worst = 0, decode_kl = 0;
    for (size_t i = 0; i < tokens; i++) {
        if (parscale_decode(c.model, ids[i]))
            return 1;
        const float *logits = parscale_logits(c.model);
        for (size_t v = 0; v < vocab; v++)
            decode_worst = worse(decode_worst, fabs((double)logits[v] - c.logits[i * vocab + v]));
        decode_kl += divergence(c.logits + i * vocab, logits, vocab);
        c.worst_weight = worse(c.worst_weight, weights_error(&c, i + 1));
    }
    // Greedy, up to the first step whose two best logits were too close to call.
    parscale_rewind(c.model, 0);
    if (parscale_prefill(c.model, ids, tokens))
        return 1;
    size_t equal = 0;
    int differs = 0;
    for (; equal < steps; equal++) {
        int32_t id = argmax(parscale_logits(c.model), vocab);
        if (id != greedy[equal]) {
            differs = margin[equal] >= 0.01f;
            break;
        }
        if (parscale_decode(c.model, id))
            return 1;
    }
    printf("isa=%s logits=%.3g decode_logits=%.3g weights=%.3g kl=%.3g decode_kl=%.3g greedy=%zu "
           "wrong=%d\n",
           parscale_info(c.model)->isa, c.worst_logit, decode_worst, c.worst_weight,
           c.kl_sum / (double)tokens, decode_kl / (double)tokens, equal, differs);
    parscale_close(c.model);
    free(ids);
    free(greedy);
    free(margin);
    free((void *)c.logits);
    free((void *)c.weights);
    return 0;
}
