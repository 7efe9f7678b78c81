// Products with quantised tiles in portable C: weights as fp32, activations too.
#include "f16.h"
#include "quantized.h"

// A row's scale or minimum, in one of the tile's f16 tables.
static float quantized_factor(const char *table, size_t lane) {
    uint16_t half;
    memcpy(&half, table + 2 * lane, sizeof half);
    return f16_to_float(half);
}

// A tile's scales or minimums.
static void unpack_factors(const char *table, float out[TILE]) {
    for (size_t lane = 0; lane < TILE; lane++)
        out[lane] = quantized_factor(table, lane);
}

// A word of each row, lane by lane.
static void load_words(const char *tile, bool int4, size_t word, uint32_t words[TILE]) {
    for (size_t lane = 0; lane < TILE; lane++)
        memcpy(&words[lane], tile + quantized_word(int4, word, lane), sizeof words[lane]);
}

// A tile's weights in fp32: out[k][lane], k the place of a column in packed activations.
static void unpack_int8(const char *tile, float out[GROUP][TILE]) {
    float scales[TILE];
    unpack_factors(tile + INT8_SCALES, scales);
    for (size_t word = 0; word < GROUP_WORDS; word++) {
        uint32_t words[TILE];
        load_words(tile, false, word, words);
        for (size_t b = 0; b < 4; b++)
            for (size_t lane = 0; lane < TILE; lane++)
                out[4 * word + b][lane] =
                    scales[lane] * (float)((int32_t)(words[lane] >> 8 * b & 255) - 128);
    }
}

static void unpack_int4(const char *tile, float out[GROUP][TILE]) {
    float scales[TILE], minimums[TILE];
    unpack_factors(tile + INT4_SCALES, scales);
    unpack_factors(tile + INT4_MINIMUMS, minimums);
    for (size_t word = 0; word < GROUP_WORDS; word++) {
        uint32_t words[TILE];
        load_words(tile, true, word, words);
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

static void plain_quantized_product(const char *row, size_t tiles, bool int4, const char *x,
                                    size_t columns, float *y, size_t y_stride) {
    for (size_t c = 0; c < columns; c++)
        memset(y + c * y_stride, 0, TILE * sizeof(float));
    for (size_t k = 0; k < tiles; k++) {
        float weights[GROUP][TILE];
        if (int4)
            unpack_int4(row + k * INT4_TILE_BYTES, weights);
        else
            unpack_int8(row + k * INT8_TILE_BYTES, weights);
        for (size_t c = 0; c < columns; c++)
            add_products(weights, (const float *)(const void *)x + (c * tiles + k) * GROUP,
                         y + c * y_stride);
    }
    for (size_t c = 0; c < columns; c++) {
        float lanes[TILE];
        memcpy(lanes, y + c * y_stride, sizeof lanes);
        for (size_t r = 0; r < TILE; r++)
            y[c * y_stride + r] = lanes[quantized_lane(r)];
    }
}
