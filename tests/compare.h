// What the test programs that compare logits share.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../runtime/parscale.h"

// The larger of two distances; a NaN is larger than anything.
static inline double worse(double a, double b) {
    return b <= a ? a : b;
}

static inline double log_sum_exp(const float *logits, size_t n) {
    double max = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++)
        max = fmax(max, logits[i]);
    for (size_t i = 0; i < n; i++)
        sum += exp(logits[i] - max);
    return max + log(sum);
}

// KL(reference || ours) in nats, of logits [n].
static inline double divergence(const float *reference, const float *ours, size_t n) {
    double total_p = log_sum_exp(reference, n), total_q = log_sum_exp(ours, n), kl = 0;
    for (size_t i = 0; i < n; i++) {
        double log_p = reference[i] - total_p;
        kl += exp(log_p) * (log_p - (ours[i] - total_q));
    }
    return kl;
}

static inline int32_t best_id(const float *logits, size_t n) {
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        best = logits[i] > logits[best] ? i : best;
    return (int32_t)best;
}

static inline void *must_have(void *memory) {
    if (!memory) {
        fprintf(stderr, "no memory\n");
        exit(1);
    }
    return memory;
}

// Ends the program, with the model's error, if code is not 0.
static inline void must(const struct parscale *model, int code) {
    if (code) {
        fprintf(stderr, "%s\n", parscale_error(model));
        exit(1);
    }
}

// path: an instruction set, cuda, or NULL for the fastest. Ends with 77 if this processor does not
// have it.
static inline struct parscale *open_model(const char *pack, const char *path, int streams) {
    struct parscale *model;
    struct parscale_options options = {.pack = pack, .streams = streams};
    if (path && strcmp(path, "cuda") == 0)
        options.device = path;
    else
        options.isa = path;
    options.no_kernel_cache = true;
    int code = parscale_open(&model, &options);
    if (code == 2)
        exit(77);
    must(model, code);
    return model;
}
