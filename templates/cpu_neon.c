// The aarch64 path: NEON, fp32 activations, KV cache in bf16. Same scheme as cpu_x86.c.
#ifdef __aarch64__
#include <arm_neon.h>
#include "cpu.h"
#include "cpu_math.h"
#include "tile.h"

static bool neon_usable(void) {
    return true;
}

// One group by N columns, N <= 4: four quarters of four words each.
__attribute__((always_inline)) static inline void neon_group(const char *group, size_t column_tiles,
                                                             const char *x, size_t x_stride, int N,
                                                             float *y, size_t y_stride) {
    const uint32x4_t high_half = vdupq_n_u32(0xffff0000);
    float32x4_t sums[4][2];
    for (int c = 0; c < N; c++)
        sums[c][0] = sums[c][1] = vdupq_n_f32(0);
    for (size_t k = 0; k < column_tiles; k++) {
        for (int quarter = 0; quarter < 4; quarter++) {
            const char *words = group + k * TILE_BYTES + quarter * 16;
            uint32x4_t w = vreinterpretq_u32_u8(vld1q_u8((const uint8_t *)words));
            float32x4_t even = vreinterpretq_f32_u32(vshlq_n_u32(w, 16));
            float32x4_t odd = vreinterpretq_f32_u32(vandq_u32(w, high_half));
            for (int c = 0; c < N; c++) {
                const float *in = (const float *)(x + (size_t)c * x_stride + k * 128) + quarter * 4;
                sums[c][0] = vfmaq_f32(sums[c][0], even, vld1q_f32(in));
                sums[c][1] = vfmaq_f32(sums[c][1], odd, vld1q_f32(in + TILE));
            }
        }
    }
    for (int c = 0; c < N; c++) {
        float32x4_t words = vaddq_f32(sums[c][0], sums[c][1]);
        float32x2_t rows = vadd_f32(vget_low_f32(words), vget_high_f32(words));
        y[(size_t)c * y_stride] = vget_lane_f32(rows, 0);
        y[(size_t)c * y_stride + 8] = vget_lane_f32(rows, 1);
    }
}

static void neon_product(const void *row, size_t column_tiles, const void *x, size_t x_stride,
                         size_t columns, float *y, size_t y_stride) {
    for (size_t g = 0; g < TILE_GROUPS; g++) {
        const char *group = (const char *)row + g * 64;
        size_t c = 0;
        for (; c + 4 <= columns; c += 4)
            neon_group(group, column_tiles, (const char *)x + c * x_stride, x_stride, 4,
                       y + c * y_stride + g, y_stride);
        for (; c < columns; c++)
            neon_group(group, column_tiles, (const char *)x + c * x_stride, x_stride, 1,
                       y + c * y_stride + g, y_stride);
    }
}

static const struct isa ISA_NEON = {
    .name = "neon",
    .usable = neon_usable,
    .packed_bytes = 2 * TILE * sizeof(float),
    .cache_bytes = 2,
    .pack = pack_fp32,
    .product = neon_product,
    .product_cache = neon_product,
    .exponentials = plain_exponentials,
    .swiglu = plain_swiglu,
};
#endif // __aarch64__
