// The aarch64 path: NEON, fp32 activations, KV cache in bf16. Same scheme as cpu_x86.c.
#ifdef __aarch64__
#include <arm_neon.h>
#include "cpu.h"
#include "cpu_math.h"
#include "tile.h"

static bool neon_usable(void) {
    return true;
}

// N columns, N <= 2. sums[c][g]: rows g and g + 8, two partial sums each.
__attribute__((always_inline)) static inline void neon_pass(const char *row, size_t column_tiles,
                                                            size_t apart, const char *x,
                                                            size_t x_stride, int N, float *y,
                                                            size_t y_stride) {
    const uint32x4_t high_half = vdupq_n_u32(0xffff0000);
    float32x4_t sums[2][8];
    for (int c = 0; c < N; c++)
        for (int g = 0; g < 8; g++)
            sums[c][g] = vdupq_n_f32(0);
    for (size_t k = 0; k < column_tiles; k++) {
        for (size_t i = 0; i < 4; i++) {
            const char *chunks = row + k * apart + i * 128;
            float32x4_t in_even[2], in_odd[2];
            for (int c = 0; c < N; c++) {
                const float *in = (const float *)(x + (size_t)c * x_stride + k * 64 + i * 8);
                in_even[c] = vcombine_f32(vld1_f32(in), vld1_f32(in));
                in_odd[c] = vcombine_f32(vld1_f32(in + 8), vld1_f32(in + 8));
            }
            for (int g = 0; g < 8; g++) {
                uint32x4_t w = vreinterpretq_u32_u8(vld1q_u8((const uint8_t *)chunks + g * 16));
                float32x4_t even = vreinterpretq_f32_u32(vshlq_n_u32(w, 16));
                float32x4_t odd = vreinterpretq_f32_u32(vandq_u32(w, high_half));
                for (int c = 0; c < N; c++) {
                    sums[c][g] = vfmaq_f32(sums[c][g], even, in_even[c]);
                    sums[c][g] = vfmaq_f32(sums[c][g], odd, in_odd[c]);
                }
            }
        }
    }
    for (int c = 0; c < N; c++) {
        for (int g = 0; g < 8; g++) {
            float32x2_t rows = vpadd_f32(vget_low_f32(sums[c][g]), vget_high_f32(sums[c][g]));
            y[(size_t)c * y_stride + (size_t)g] = vget_lane_f32(rows, 0);
            y[(size_t)c * y_stride + (size_t)g + 8] = vget_lane_f32(rows, 1);
        }
    }
}

static void neon_product(const void *row, size_t column_tiles, size_t apart, const void *x,
                         size_t x_stride, size_t columns, float *y, size_t y_stride) {
    const char *in = x;
    for (; columns >= 2; columns -= 2, in += 2 * x_stride, y += 2 * y_stride)
        neon_pass(row, column_tiles, apart, in, x_stride, 2, y, y_stride);
    if (columns == 1)
        neon_pass(row, column_tiles, apart, in, x_stride, 1, y, y_stride);
}

static const struct isa ISA_NEON = {
    .name = "neon",
    .usable = neon_usable,
    .packed_bytes = TILE * sizeof(float),
    .cache_bytes = 2,
    .pack = pack_fp32,
    .product = neon_product,
    .product_cache = neon_product,
    .exponentials = plain_exponentials,
    .swiglu = plain_swiglu,
};
#endif // __aarch64__
