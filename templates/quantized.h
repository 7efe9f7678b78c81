// What a CPU path must provide for products with quantised tiles, beside what struct isa has.
#ifndef QUANTIZED_H
#define QUANTIZED_H

#include <stdbool.h>
#include <stddef.h>
#include "cpu.h"
#include "tile_quantized.h"

struct quantized_path {
    const struct isa *isa; // goes with it
    bool (*usable)(void);  // NULL: wherever isa is
    size_t group_bytes;    // bytes that a group of packed activations takes, 128 at most
    void (*pack)(const float *x, char *packed); // x [GROUP]

    // One row of tiles, int4 or int8, times packed activations; int4 alone if these have 8 bits:
    // y[c * y_stride + r] = sum over k of W[r, k] * x[c][k], r in 0..15, c in 0..columns-1; x[c]
    // is `tiles` groups and starts where x[c - 1] ends. The sum's order depends on nothing but
    // `tiles`.
    void (*product)(const char *row, size_t tiles, bool int4, const char *x, size_t columns,
                    float *y, size_t y_stride);
};

static inline size_t quantized_tile_bytes(bool int4) {
    return int4 ? INT4_TILE_BYTES : INT8_TILE_BYTES;
}

// Activations in fp32, in the order of a tile's words: element 4 * word + b.
static void pack_group_fp32(const float *x, char *packed) {
    for (size_t word = 0; word < GROUP_WORDS; word++)
        for (size_t b = 0; b < 4; b++, packed += sizeof *x)
            memcpy(packed, &x[quantized_column(word, b)], sizeof *x);
}

#endif
