// The sampler: logits to the next id, with llama.cpp's chain and defaults' meaning. Takes no memory
// and keeps no state: the result depends on the arguments alone.
#ifndef SAMPLE_H
#define SAMPLE_H

#include <stdint.h>
#include "parscale.h"

struct candidate {
    float logit;
    int32_t id;
};

// Memory that sample() works in, taken once by its owner.
struct sample_scratch {
    struct candidate *candidates; // [vocab_size]
    float *penalized;             // [vocab_size]
};

// Chooses an id from logits [vocab_size]. recent [recent_count]: the ids so far, newest last; only
// the last SAMPLE_PENALTY_WINDOW (sample_arithmetic.h) count. position: where the chosen id will
// stand; with the seed it determines the random number.
//
// The chain is llama.cpp's: repeat penalty, top-k, top-p (of what top-k left), min-p, temperature,
// draw. Temperature 0 takes the best, the lowest id of equals. NaN logits are never chosen; if all
// are NaN, the id is 0.
static int32_t sample(const float *logits, int vocab_size, const int32_t *recent, int recent_count,
                      const struct parscale_sampling *sampling, uint64_t position,
                      struct sample_scratch *scratch);

// The n best of logits [count], best first, equals by id, NaN left out: best [n]. Returns how many
// there are, n or fewer.
static int best_candidates(const float *logits, int count, int n, struct candidate *best);

#endif
