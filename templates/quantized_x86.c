// Products with quantised tiles on x86-64.
//
// AVX2: weights are made fp32 in registers and multiplied with fp32 activations. AVX-512 without
// VNNI does the same.
//
// VNNI: vpdpbusd multiplies four columns of 16 rows, unsigned bytes, with four signed bytes of
// activations and adds the products as integers. Activations are integers of one plane (8 bits) or
// two (16 bits: 256 * high + low) with a scale for each group.
#ifdef __x86_64__
#include <immintrin.h>
#include "quantized.h"

// ---- AVX2 ---------------------------------------------------------------------------------------

// N columns, N <= 4. Every processor with AVX2 has F16C.
__attribute__((target("avx2,fma,f16c"), always_inline)) static inline void
avx2_quantized_pass(const char *row, size_t tiles, bool int4, const char *x, int N, float *y,
                    size_t y_stride) {
    const size_t x_stride = tiles * GROUP * sizeof(float);
    const __m256i mask = _mm256_set1_epi32(int4 ? 15 : 255);
    __m256 sums[4][2]; // rows 0, 8, 1, 9, ... 11; 4, 12, ... 15
    for (int c = 0; c < N; c++)
        sums[c][0] = sums[c][1] = _mm256_setzero_ps();
    for (size_t k = 0; k < tiles; k++) {
        const char *tile = row + k * quantized_tile_bytes(int4);
        for (int half = 0; half < 2; half++) {
            const char *factors = tile + (int4 ? INT4_SCALES : INT8_SCALES) + half * 16;
            __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128((const void *)factors));
            __m256 minimum = _mm256_mul_ps(scale, _mm256_set1_ps(-128));
            if (int4)
                minimum = _mm256_cvtph_ps(
                    _mm_loadu_si128((const void *)(tile + INT4_MINIMUMS + half * 16)));
            for (int word = 0; word < GROUP_WORDS; word++) {
                const char *words = tile + (int4 ? word / 2 : word) * 64 + half * 32;
                __m256i w = _mm256_loadu_si256((const void *)words);
                if (int4 && word % 2)
                    w = _mm256_srli_epi32(w, 4);
                for (int b = 0; b < 4; b++) {
                    __m256i quants = _mm256_and_si256(_mm256_srli_epi32(w, 8 * b), mask);
                    __m256 weights = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(quants), minimum);
                    for (int c = 0; c < N; c++) {
                        const char *in = x + (size_t)c * x_stride + k * GROUP * sizeof(float);
                        __m256 activation =
                            _mm256_broadcast_ss((const float *)(const void *)in + 4 * word + b);
                        sums[c][half] = _mm256_fmadd_ps(weights, activation, sums[c][half]);
                    }
                }
            }
        }
    }
    for (int c = 0; c < N; c++) {
        float *out = y + (size_t)c * y_stride;
        float lanes[TILE];
        _mm256_storeu_ps(lanes, sums[c][0]);
        _mm256_storeu_ps(lanes + 8, sums[c][1]);
        for (size_t r = 0; r < TILE; r++)
            out[r] = lanes[quantized_lane(r)];
    }
}

__attribute__((target("avx2,fma,f16c"), always_inline)) static inline void
avx2_quantized_passes(const char *row, size_t tiles, bool int4, const char *x, size_t columns,
                      float *y, size_t y_stride) {
    for (size_t n; columns > 0; columns -= n) {
        n = columns >= 4 ? 4 : columns >= 2 ? 2 : 1;
        if (n == 4)
            avx2_quantized_pass(row, tiles, int4, x, 4, y, y_stride);
        else if (n == 2)
            avx2_quantized_pass(row, tiles, int4, x, 2, y, y_stride);
        else
            avx2_quantized_pass(row, tiles, int4, x, 1, y, y_stride);
        x += n * tiles * GROUP * sizeof(float);
        y += n * y_stride;
    }
}

__attribute__((target("avx2,fma,f16c"))) static void
avx2_quantized_product(const char *row, size_t tiles, bool int4, const char *x, size_t columns,
                       float *y, size_t y_stride) {
    if (int4)
        avx2_quantized_passes(row, tiles, true, x, columns, y, y_stride);
    else
        avx2_quantized_passes(row, tiles, false, x, columns, y, y_stride);
}

// ---- AVX-512 VNNI -------------------------------------------------------------------------------

static bool vnni_usable(void) {
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw");
}

// A packed group: its planes, high one first, then what follows them.
struct vnni_factors {
    float scale; // an activation is scale * integer
    float sum;   // of the integers
};

enum {
    VNNI_ONE_PLANE = GROUP + sizeof(struct vnni_factors),
    VNNI_TWO_PLANES = 2 * GROUP + sizeof(struct vnni_factors),
    VNNI_AHEAD = 6144, // how far ahead weights are fetched, as for bf16 tiles
};

// The low bytes of columns 0..15 and 16..31, in the order of a tile's words.
__attribute__((target("avx512f,avx512bw,avx512vl"), always_inline)) static inline void
vnni_store_bytes(__m512i low, __m512i high, char *out) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m512i pairs =
        _mm512_or_si512(_mm512_and_si512(low, _mm512_set1_epi32(255)), _mm512_slli_epi32(high, 8));
    _mm256_storeu_si256((void *)out,
                        _mm256_permutevar8x32_epi32(_mm512_cvtepi32_epi16(pairs), order));
}

__attribute__((target("avx512f,avx512bw,avx512vl"), always_inline)) static inline void
vnni_pack_planes(const float *x, char *packed, int planes) {
    const float most = planes == 1 ? 127.0f : 32512.0f; // 127 * 256: the high plane's most
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512 x0 = _mm512_loadu_ps(x), x1 = _mm512_loadu_ps(x + 16);
    // As integers magnitudes have the same order, and a NaN is the largest: it stays one.
    uint32_t bits = _mm512_reduce_max_epu32(
        _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(x0), magnitude),
                         _mm512_and_si512(_mm512_castps_si512(x1), magnitude)));
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    __m512 inverse = _mm512_set1_ps(largest > 1e-30f ? most / largest : 0.0f);
    __m512i q0 = _mm512_cvtps_epi32(_mm512_mul_ps(x0, inverse));
    __m512i q1 = _mm512_cvtps_epi32(_mm512_mul_ps(x1, inverse));
    struct vnni_factors factors = {largest / most,
                                   (float)_mm512_reduce_add_epi32(_mm512_add_epi32(q0, q1))};
    if (planes == 2) {
        const __m512i half = _mm512_set1_epi32(128);
        vnni_store_bytes(_mm512_srai_epi32(_mm512_add_epi32(q0, half), 8),
                         _mm512_srai_epi32(_mm512_add_epi32(q1, half), 8), packed);
        packed += GROUP;
    }
    vnni_store_bytes(q0, q1, packed);
    memcpy(packed + GROUP, &factors, sizeof factors);
}

__attribute__((target("avx512f,avx512bw,avx512vl"))) static void vnni_pack(const float *x,
                                                                           char *packed) {
    vnni_pack_planes(x, packed, 1);
}

__attribute__((target("avx512f,avx512bw,avx512vl"))) static void vnni_pack_exact(const float *x,
                                                                                 char *packed) {
    vnni_pack_planes(x, packed, 2);
}

__attribute__((target("avx512f"), always_inline)) static inline __m512i
vnni_repeat_word(const char *in) {
    int word;
    memcpy(&word, in, sizeof word);
    return _mm512_set1_epi32(word);
}

__attribute__((target("avx512f"), always_inline)) static inline __m512
vnni_repeat_float(const char *in) {
    float value;
    memcpy(&value, in, sizeof value);
    return _mm512_set1_ps(value);
}

__attribute__((target("avx512f"), always_inline)) static inline __m512
vnni_load_halves(const char *halves) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)halves));
}

// N columns, N <= 8.
__attribute__((target("avx512f,avx512bw,avx512vnni"), always_inline)) static inline void
vnni_pass(const char *row, size_t tiles, bool int4, int planes, const char *x, int N, float *y,
          size_t y_stride) {
    const size_t group_bytes = planes == 1 ? VNNI_ONE_PLANE : VNNI_TWO_PLANES;
    const size_t x_stride = tiles * group_bytes, tile_bytes = quantized_tile_bytes(int4);
    const __m512i low_half = _mm512_set1_epi32(0x0f0f0f0f);
    __m512 sums[8];
    for (int c = 0; c < N; c++)
        sums[c] = _mm512_setzero_ps();
    for (size_t k = 0; k < tiles; k++) {
        const char *tile = row + k * tile_bytes, *in = x + k * group_bytes;
        __m512i dots[2][8];
        if (N >= 4)
            for (size_t line = 0; line < tile_bytes; line += 64)
                _mm_prefetch(tile + VNNI_AHEAD + line, _MM_HINT_T1);
        for (int plane = 0; plane < planes; plane++)
            for (int c = 0; c < N; c++)
                dots[plane][c] = _mm512_setzero_si512();
        for (size_t i = 0; i < 4; i++) {
            __m512i w0, w1;
            if (int4) {
                __m512i both = _mm512_loadu_si512(tile + 64 * i);
                w0 = _mm512_and_si512(both, low_half);
                w1 = _mm512_and_si512(_mm512_srli_epi32(both, 4), low_half);
            } else {
                w0 = _mm512_loadu_si512(tile + 128 * i);
                w1 = _mm512_loadu_si512(tile + 128 * i + 64);
            }
            for (int plane = 0; plane < planes; plane++) {
                for (int c = 0; c < N; c++) {
                    const char *words = in + (size_t)c * x_stride + plane * GROUP + 8 * i;
                    dots[plane][c] =
                        _mm512_dpbusd_epi32(dots[plane][c], w0, vnni_repeat_word(words));
                    dots[plane][c] =
                        _mm512_dpbusd_epi32(dots[plane][c], w1, vnni_repeat_word(words + 4));
                }
            }
        }
        __m512 scale = vnni_load_halves(tile + (int4 ? INT4_SCALES : INT8_SCALES));
        __m512 minimum = int4 ? vnni_load_halves(tile + INT4_MINIMUMS)
                              : _mm512_mul_ps(scale, _mm512_set1_ps(-128));
        for (int c = 0; c < N; c++) {
            const char *factors = in + (size_t)c * x_stride + planes * GROUP;
            __m512i dot = dots[0][c];
            if (planes == 2)
                dot = _mm512_add_epi32(_mm512_slli_epi32(dot, 8), dots[1][c]);
            __m512 sum = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(dot));
            sum = _mm512_fmadd_ps(minimum, vnni_repeat_float(factors + sizeof(float)), sum);
            sums[c] = _mm512_fmadd_ps(vnni_repeat_float(factors), sum, sums[c]);
        }
    }
    const __m512i rows = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    for (int c = 0; c < N; c++)
        _mm512_storeu_ps(y + (size_t)c * y_stride, _mm512_permutexvar_ps(rows, sums[c]));
}

__attribute__((target("avx512f,avx512bw,avx512vnni"), always_inline)) static inline void
vnni_passes(const char *row, size_t tiles, bool int4, int planes, const char *x, size_t columns,
            float *y, size_t y_stride) {
    const size_t x_stride = tiles * (planes == 1 ? VNNI_ONE_PLANE : VNNI_TWO_PLANES);
    for (size_t n; columns > 0; columns -= n, x += n * x_stride, y += n * y_stride) {
        n = columns >= 8 ? 8 : columns >= 4 ? 4 : columns >= 2 ? 2 : 1;
        if (n == 8)
            vnni_pass(row, tiles, int4, planes, x, 8, y, y_stride);
        else if (n == 4)
            vnni_pass(row, tiles, int4, planes, x, 4, y, y_stride);
        else if (n == 2)
            vnni_pass(row, tiles, int4, planes, x, 2, y, y_stride);
        else
            vnni_pass(row, tiles, int4, planes, x, 1, y, y_stride);
    }
}

__attribute__((target("avx512f,avx512bw,avx512vnni"))) static void
vnni_product(const char *row, size_t tiles, bool int4, const char *x, size_t columns, float *y,
             size_t y_stride) {
    if (int4)
        vnni_passes(row, tiles, true, 1, x, columns, y, y_stride);
    else
        vnni_passes(row, tiles, false, 1, x, columns, y, y_stride);
}

__attribute__((target("avx512f,avx512bw,avx512vnni"))) static void
vnni_product_exact(const char *row, size_t tiles, bool int4, const char *x, size_t columns,
                   float *y, size_t y_stride) {
    if (int4)
        vnni_passes(row, tiles, true, 2, x, columns, y, y_stride);
    else
        vnni_passes(row, tiles, false, 2, x, columns, y, y_stride);
}
#endif // __x86_64__
