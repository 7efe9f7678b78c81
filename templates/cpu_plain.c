// The plain CPU path: portable C, activations, keys and values in fp32. Packed activations are
// fp32 in tile order: of each 16 columns the even ones of words 0..7, then the odd ones; words 2i
// and 2i + 1 go with the tile's chunks 8i..8i+7. The other fp32 paths (AVX2, AVX-512, NEON) share
// this packing.
#include "cpu.h"
#include "cpu_math.h"
#include "tile.h"

static bool plain_usable(void) {
    return true;
}

static void pack_fp32(const float *x, size_t n, void *packed) {
    float *out = packed;
    for (size_t k = 0; k < n; k += TILE, out += TILE) {
        for (size_t i = 0; i < 8; i++) {
            const float *pair = x + k + 2 * tile_pair(i);
            out[i] = pair[0];
            out[8 + i] = pair[1];
        }
    }
}

// Rows g and g + 8 of a column: the sums of words 0, 1 and of words 2, 3 of chunks g, 8 + g, ...
static void plain_add_words(float words[8][4], float *y) {
    for (size_t g = 0; g < 8; g++) {
        y[g] = words[g][0] + words[g][1];
        y[g + 8] = words[g][2] + words[g][3];
    }
}

static void plain_product(const void *row, size_t column_tiles, size_t apart, const void *x,
                          size_t x_stride, size_t columns, float *y, size_t y_stride) {
    for (size_t c = 0; c < columns; c++) {
        const float *in = (const float *)((const char *)x + c * x_stride);
        float words[8][4] = {{0}};
        for (size_t k = 0; k < column_tiles; k++, in += TILE) {
            const uint32_t *chunk = (const uint32_t *)((const char *)row + k * apart);
            for (size_t i = 0; i < 4; i++)
                for (size_t g = 0; g < 8; g++, chunk += 4)
                    for (size_t w = 0; w < 4; w++)
                        words[g][w] += word_even(chunk[w]) * in[2 * i + w % 2] +
                                       word_odd(chunk[w]) * in[8 + 2 * i + w % 2];
        }
        plain_add_words(words, y + c * y_stride);
    }
}

static void plain_product_cache(const void *row, size_t column_tiles, size_t apart, const void *x,
                                size_t x_stride, size_t columns, float *y, size_t y_stride) {
    for (size_t c = 0; c < columns; c++) {
        const float *in = (const float *)((const char *)x + c * x_stride);
        float words[8][4] = {{0}};
        for (size_t k = 0; k < column_tiles; k++, in += TILE) {
            const float *chunk = (const float *)((const char *)row + k * apart);
            for (size_t i = 0; i < 4; i++)
                for (size_t g = 0; g < 8; g++, chunk += 8)
                    for (size_t w = 0; w < 4; w++)
                        words[g][w] += chunk[2 * w] * in[2 * i + w % 2] +
                                       chunk[2 * w + 1] * in[8 + 2 * i + w % 2];
        }
        plain_add_words(words, y + c * y_stride);
    }
}

static float plain_exponentials(float *s, size_t n, float *max) {
    return exponentials_body(s, n, max);
}

static void plain_swiglu(const float *gate_up, size_t n, float *out) {
    swiglu_body(gate_up, n, out);
}

static const struct isa ISA_PLAIN = {
    .name = "plain",
    .usable = plain_usable,
    .packed_bytes = TILE * sizeof(float),
    .cache_bytes = 4,
    .pack = pack_fp32,
    .product = plain_product,
    .product_cache = plain_product_cache,
    .exponentials = plain_exponentials,
    .swiglu = plain_swiglu,
};
