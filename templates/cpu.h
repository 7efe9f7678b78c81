// What a CPU path must provide: everything that depends on the instruction set. The forward pass
// (forward.c) is written once on top of it.
#ifndef CPU_H
#define CPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct isa {
    const char *name;
    bool (*usable)(void);
    size_t packed_bytes; // bytes that 16 packed activations take
    size_t cache_bytes;  // bytes of one element of the KV cache: 2 (bf16) or 4 (fp32)

    // The path for products whose inputs should not be rounded; NULL: this one keeps fp32 itself.
    const struct isa *exact;

    // Packs x [n], n a multiple of 16, in the order of a tile's words.
    void (*pack)(const float *x, size_t n, void *packed);

    // One row of tiles [16, 16 * column_tiles], `apart` bytes from one to the next, times packed
    // activations:
    // y[c * y_stride + r] = sum over k of W[r, k] * x[c][k], r in 0..15, c in 0..columns-1;
    // x[c] starts x_stride bytes after x[c - 1]. The sum's order depends on nothing but
    // column_tiles.
    void (*product)(const void *row, size_t column_tiles, size_t apart, const void *x,
                    size_t x_stride, size_t columns, float *y, size_t y_stride);
    // The same with tiles of the KV cache (cache_bytes an element).
    void (*product_cache)(const void *row, size_t column_tiles, size_t apart, const void *x,
                          size_t x_stride, size_t columns, float *y, size_t y_stride);

    // Raises *max to the largest of s [n], n a multiple of 16; s[i] = exp(s[i] - *max), 0 if that
    // is below exp(-87); returns their sum.
    float (*exponentials)(float *s, size_t n, float *max);
    // out[i] = gate[i] * sigmoid(gate[i]) * up[i], i in 0..n-1, n a multiple of 16; gate_up holds
    // 8 gates, 8 ups, 8 gates and so on: [n / 8, 2, 8].
    void (*swiglu)(const float *gate_up, size_t n, float *out);
};

// The pair of columns that packed activation word i holds, i in 0..7.
static inline size_t tile_pair(size_t i) {
    return i / 2 + i % 2 * 4;
}

// A word of a tile: the even column in its low half, the odd one in its high half.
static inline float word_even(uint32_t word) {
    uint32_t bits = word << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float word_odd(uint32_t word) {
    uint32_t bits = word & 0xffff0000;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// The path named, or with NULL the fastest that this processor can run; NULL if there is none.
static const struct isa *isa_find(const char *name);

#endif
