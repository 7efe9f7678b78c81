// The plain CPU path: portable C, activations, keys and values in fp32. Packed activations are
// fp32 words in tile order: for each 16 columns the even column of the pair of words 0..15, then
// the odd one. The other fp32 paths (AVX2, AVX-512, NEON) share this packing.
#include "cpu.h"
#include "cpu_math.h"
#include "tile.h"

static bool plain_usable(void) {
    return true;
}

static void pack_fp32(const float *x, size_t n, void *packed) {
    float *out = packed;
    for (size_t k = 0; k < n; k += TILE, out += 2 * TILE) {
        for (size_t i = 0; i < 8; i++) {
            const float *pair = x + k + 2 * tile_pair(i);
            out[2 * i] = out[2 * i + 1] = pair[0];
            out[TILE + 2 * i] = out[TILE + 2 * i + 1] = pair[1];
        }
    }
}

// Rows g and g + 8 of one column are the sums of the even and of the odd words of a group.
static void plain_add_words(const float *words, size_t group, float *y) {
    float low = 0, high = 0;
    for (size_t w = 0; w < TILE; w += 2) {
        low += words[w];
        high += words[w + 1];
    }
    y[group] = low;
    y[group + 8] = high;
}

static void plain_product(const void *row, size_t column_tiles, const void *x, size_t x_stride,
                          size_t columns, float *y, size_t y_stride) {
    for (size_t group = 0; group < TILE_GROUPS; group++) {
        for (size_t c = 0; c < columns; c++) {
            const uint32_t *tile = (const uint32_t *)row + group * TILE;
            const float *in = (const float *)((const char *)x + c * x_stride);
            float words[TILE] = {0};
            for (size_t k = 0; k < column_tiles; k++) {
                for (size_t w = 0; w < TILE; w++)
                    words[w] += word_even(tile[w]) * in[w] + word_odd(tile[w]) * in[TILE + w];
                tile += TILE_ELEMENTS / 2;
                in += 2 * TILE;
            }
            plain_add_words(words, group, y + c * y_stride);
        }
    }
}

static void plain_product_cache(const void *row, size_t column_tiles, const void *x,
                                size_t x_stride, size_t columns, float *y, size_t y_stride) {
    for (size_t group = 0; group < TILE_GROUPS; group++) {
        for (size_t c = 0; c < columns; c++) {
            const float *tile = (const float *)row + group * 2 * TILE;
            const float *in = (const float *)((const char *)x + c * x_stride);
            float words[TILE] = {0};
            for (size_t k = 0; k < column_tiles; k++) {
                for (size_t w = 0; w < TILE; w++)
                    words[w] += tile[2 * w] * in[w] + tile[2 * w + 1] * in[TILE + w];
                tile += TILE_ELEMENTS;
                in += 2 * TILE;
            }
            plain_add_words(words, group, y + c * y_stride);
        }
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
    .packed_bytes = 2 * TILE * sizeof(float),
    .cache_bytes = 4,
    .pack = pack_fp32,
    .product = plain_product,
    .product_cache = plain_product_cache,
    .exponentials = plain_exponentials,
    .swiglu = plain_swiglu,
};
