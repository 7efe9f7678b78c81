// Products with quantised tiles on aarch64, as quantized_x86.c does them with AVX2.
#ifdef __aarch64__
#include <arm_neon.h>
#include "quantized.h"

// Four of a tile's scales or minimums.
static inline float32x4_t neon_load_halves(const char *halves) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8((const uint8_t *)halves)));
}

// N columns, N <= 4.
__attribute__((always_inline)) static inline void neon_quantized_pass(const char *row, size_t tiles,
                                                                      bool int4, const char *x,
                                                                      int N, float *y,
                                                                      size_t y_stride) {
    const uint32x4_t mask = vdupq_n_u32(int4 ? 15 : 255);
    const float *in = (const float *)(const void *)x;
    float32x4_t sums[4][4]; // of a column: rows 0, 8, 1, 9; 2, 10, ...
    for (int c = 0; c < N; c++)
        for (int quarter = 0; quarter < 4; quarter++)
            sums[c][quarter] = vdupq_n_f32(0);
    for (size_t k = 0; k < tiles; k++, in += GROUP) {
        const char *tile = row + k * quantized_tile_bytes(int4);
        for (int quarter = 0; quarter < 4; quarter++) {
            const char *factors = tile + (int4 ? INT4_SCALES : INT8_SCALES) + quarter * 8;
            float32x4_t scale = neon_load_halves(factors);
            float32x4_t minimum = int4 ? neon_load_halves(tile + INT4_MINIMUMS + quarter * 8)
                                       : vmulq_n_f32(scale, -128);
            for (int word = 0; word < GROUP_WORDS; word++) {
                const char *words = tile + quantized_word(int4, (size_t)word, 4 * (size_t)quarter);
                uint32x4_t w = vreinterpretq_u32_u8(vld1q_u8((const uint8_t *)words));
                for (int b = 0; b < 4; b++) {
                    const int32x4_t shift = vdupq_n_s32(-(8 * b + (int4 ? word % 2 * 4 : 0)));
                    uint32x4_t quants = vandq_u32(vshlq_u32(w, shift), mask);
                    float32x4_t weights = vfmaq_f32(minimum, scale, vcvtq_f32_u32(quants));
                    for (int c = 0; c < N; c++)
                        sums[c][quarter] =
                            vfmaq_n_f32(sums[c][quarter], weights,
                                        in[(size_t)c * tiles * GROUP + (size_t)(4 * word + b)]);
                }
            }
        }
    }
    for (int c = 0; c < N; c++) {
        float *out = y + (size_t)c * y_stride;
        float lanes[TILE];
        for (int quarter = 0; quarter < 4; quarter++)
            vst1q_f32(lanes + 4 * quarter, sums[c][quarter]);
        for (size_t r = 0; r < TILE; r++)
            out[r] = lanes[quantized_lane(r)];
    }
}

static inline __attribute__((always_inline)) void
neon_quantized_passes(const char *row, size_t tiles, bool int4, const char *x, size_t columns,
                      float *y, size_t y_stride) {
    for (size_t n; columns > 0; columns -= n) {
        n = columns >= 4 ? 4 : columns >= 2 ? 2 : 1;
        if (n == 4)
            neon_quantized_pass(row, tiles, int4, x, 4, y, y_stride);
        else if (n == 2)
            neon_quantized_pass(row, tiles, int4, x, 2, y, y_stride);
        else
            neon_quantized_pass(row, tiles, int4, x, 1, y, y_stride);
        x += n * tiles * GROUP * sizeof(float);
        y += n * y_stride;
    }
}

static void neon_quantized_product(const char *row, size_t tiles, bool int4, const char *x,
                                   size_t columns, float *y, size_t y_stride) {
    if (int4)
        neon_quantized_passes(row, tiles, true, x, columns, y, y_stride);
    else
        neon_quantized_passes(row, tiles, false, x, columns, y, y_stride);
}
#endif // __aarch64__
