// The weights of layers, embedding and head as quantised tiles: products with them, and how their
// inputs are packed. weights_bf16.c is the same for bf16 tiles.
#include "f16.h"
#include "model.h"
#include "tile_quantized.h"

enum { INPUT_GROUP = GROUP }; // activations that are packed together

// Products with quantised tiles: portable C, weights as fp32, activations too.
//
// Packed activations are fp32 in the order of the tile's words: element 4 * word + b.

static size_t groups_for(size_t n) {
    return (n + GROUP - 1) / GROUP;
}

// Bytes of a packed input [n].
static size_t input_bytes(const struct isa *isa, size_t n) {
    (void)isa;
    return groups_for(n) * GROUP * sizeof(float);
}

static void pack_group(const float *x, float *packed) {
    for (size_t word = 0; word < GROUP_WORDS; word++)
        for (size_t b = 0; b < 4; b++)
            packed[4 * word + b] = x[quantized_column(word, b)];
}

// Packs x [n] as an input, with zeros up to the end of the last group.
static void pack_input(const struct isa *isa, const float *x, size_t n, char *packed) {
    (void)isa;
    float *out = (float *)(void *)packed;
    for (size_t k = 0; k < n; k += GROUP, out += GROUP) {
        float group[GROUP] = {0};
        memcpy(group, x + k, (n - k < GROUP ? n - k : GROUP) * sizeof(float));
        pack_group(group, out);
    }
}

// Packs elements x [INPUT_GROUP], number `group` of their kind, of an input [n].
static void pack_input_group(const struct isa *isa, const float *x, size_t group, size_t n,
                             char *packed) {
    (void)isa;
    (void)n;
    pack_group(x, (float *)(void *)packed + group * GROUP);
}

// A row's scale or minimum, in one of the tile's f16 tables.
static float quantized_factor(const unsigned char *table, size_t lane) {
    uint16_t half;
    memcpy(&half, table + 2 * lane, sizeof half);
    return f16_to_float(half);
}

// A tile's scales or minimums.
static void unpack_factors(const unsigned char *table, float out[TILE]) {
    for (size_t lane = 0; lane < TILE; lane++)
        out[lane] = quantized_factor(table, lane);
}

// A tile's weights in fp32: out[k][lane], k the place of a column in packed activations.
static void unpack_int8(const unsigned char *tile, float out[GROUP][TILE]) {
    float scales[TILE];
    unpack_factors(tile + INT8_SCALES, scales);
    for (size_t word = 0; word < GROUP_WORDS; word++) {
        uint32_t words[TILE];
        memcpy(words, tile + word * sizeof words, sizeof words);
        for (size_t b = 0; b < 4; b++)
            for (size_t lane = 0; lane < TILE; lane++)
                out[4 * word + b][lane] =
                    scales[lane] * (float)((int32_t)(words[lane] >> 8 * b & 255) - 128);
    }
}

static void unpack_int4(const unsigned char *tile, float out[GROUP][TILE]) {
    float scales[TILE], minimums[TILE];
    unpack_factors(tile + INT4_SCALES, scales);
    unpack_factors(tile + INT4_MINIMUMS, minimums);
    for (size_t word = 0; word < GROUP_WORDS; word++) {
        uint32_t words[TILE];
        memcpy(words, tile + word / 2 * sizeof words, sizeof words);
        for (size_t b = 0; b < 4; b++)
            for (size_t lane = 0; lane < TILE; lane++)
                out[4 * word + b][lane] =
                    scales[lane] * (float)(int32_t)(words[lane] >> (8 * b + word % 2 * 4) & 15) +
                    minimums[lane];
    }
}

// y += the tile's weights [GROUP, TILE] times x [GROUP], lane by lane.
static void add_products(float weights[GROUP][TILE], const float *x, float *y) {
    float sums[TILE] = {0};
    for (size_t k = 0; k < GROUP; k += 4)
        for (size_t lane = 0; lane < TILE; lane++)
            sums[lane] += weights[k][lane] * x[k] + weights[k + 1][lane] * x[k + 1] +
                          weights[k + 2][lane] * x[k + 2] + weights[k + 3][lane] * x[k + 3];
    for (size_t lane = 0; lane < TILE; lane++)
        y[lane] += sums[lane];
}

// Row of tiles `row_tile` of matrix W, at `base` + w->offset of the pack, times the packed inputs x
// [columns]: y[c * y_stride + r], r in 0..15.
static void multiply_row(const struct parscale *model, const struct isa *isa,
                         const struct matrix *w, size_t base, size_t row_tile, const char *x,
                         size_t columns, float *y, size_t y_stride) {
    size_t tiles = (size_t)w->column_tiles, tile_bytes = (size_t)w->tile_bytes;
    const unsigned char *tile = pack_at(model, base + w->offset + row_tile * tiles * tile_bytes);
    size_t x_stride = input_bytes(isa, tiles * GROUP);
    for (size_t c = 0; c < columns; c++)
        memset(y + c * y_stride, 0, TILE * sizeof(float));
    for (size_t k = 0; k < tiles; k++, tile += tile_bytes) {
        float weights[GROUP][TILE];
        if (w->tile_bytes == INT4_TILE_BYTES)
            unpack_int4(tile, weights);
        else
            unpack_int8(tile, weights);
        for (size_t c = 0; c < columns; c++)
            add_products(weights, (const float *)(const void *)(x + c * x_stride) + k * GROUP,
                         y + c * y_stride);
    }
    for (size_t c = 0; c < columns; c++) {
        float lanes[TILE];
        memcpy(lanes, y + c * y_stride, sizeof lanes);
        for (size_t r = 0; r < TILE; r++)
            y[c * y_stride + r] = lanes[quantized_lane(r)];
    }
}

// Row `id` of the embedding, which is int8, gathered from its tiles: out [hidden].
static void embed(const struct parscale *model, int32_t id, float *out) {
    const struct matrix *w = &LAYOUT.embedding;
    size_t row_bytes = (size_t)w->column_tiles * INT8_TILE_BYTES;
    size_t lane = quantized_lane((size_t)id % TILE);
    const unsigned char *tile = pack_at(model, w->offset + (size_t)id / TILE * row_bytes);
    for (size_t first = 0; first < HIDDEN_SIZE; first += GROUP, tile += INT8_TILE_BYTES) {
        float scale = quantized_factor(tile + INT8_SCALES, lane);
        const unsigned char *words = tile + 4 * lane;
        for (size_t k = 0; k < GROUP; k++) {
            size_t column = first + quantized_column(k / 4, k % 4);
            int quant = words[k / 4 * TILE * 4 + k % 4] - 128;
            if (column < HIDDEN_SIZE)
                out[column] = scale * (float)quant;
        }
    }
}
