// Products with the tiles of an int8 cache by AVX-512 VNNI: vpdpbusd multiplies four unsigned bytes
// of 16 rows with four signed ones and adds the products as integers. Activations are integers of
// 16 bits in two planes, 256 * high + low, with one scale for all of a column.
#ifdef __x86_64__
#include <immintrin.h>
#include "cache.h"

static bool cache_vnni_usable(void) {
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw");
}

// A packed column: of each 16 activations their high bytes, then their low ones, each as four words
// in the order of a tile's; then what belongs to all.
struct cache_vnni_factors {
    float scale; // an activation is scale * integer
    int offset;  // 128 * the sum of the integers, as tiles hold u = q + 128
};

// The low bytes of 16 integers: word i holds columns 2i, 2i + 1, 2i + 8, 2i + 9.
__attribute__((target("avx512f,avx512bw,avx512vl"), always_inline)) static inline void
cache_vnni_store(__m512i integers, char *out) {
    const __m128i order = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
    _mm_storeu_si128((void *)out, _mm_shuffle_epi8(_mm512_cvtepi32_epi8(integers), order));
}

__attribute__((target("avx512f,avx512bw,avx512vl"))) static void
cache_vnni_pack(const float *x, size_t n, void *packed) {
    const float most = 127 * 256; // the high plane's most
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), half = _mm512_set1_epi32(128);
    __m512i top = _mm512_setzero_si512(), sum = top;
    for (size_t k = 0; k < n; k += TILE) // as integers magnitudes have the same order, NaN the last
        top = _mm512_max_epu32(
            top, _mm512_and_si512(_mm512_castps_si512(_mm512_loadu_ps(x + k)), magnitude));
    uint32_t bits = _mm512_reduce_max_epu32(top);
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    __m512 inverse = _mm512_set1_ps(largest > 1e-30f ? most / largest : 0.0f);
    char *out = packed;
    for (size_t k = 0; k < n; k += TILE, out += 2 * TILE) {
        __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + k), inverse));
        cache_vnni_store(_mm512_srai_epi32(_mm512_add_epi32(q, half), 8), out);
        cache_vnni_store(q, out + TILE);
        sum = _mm512_add_epi32(sum, q);
    }
    struct cache_vnni_factors factors = {largest / most,
                                         _mm512_reduce_add_epi32(_mm512_slli_epi32(sum, 7))};
    memcpy(out, &factors, sizeof factors);
}

__attribute__((target("avx512f"), always_inline)) static inline __m512i
cache_vnni_repeat(const char *in) {
    int word;
    memcpy(&word, in, sizeof word);
    return _mm512_set1_epi32(word);
}

// N columns, N <= 12. The sums are exact: 256 products of 255 * 127 * 256 fit.
__attribute__((target("avx512f,avx512bw,avx512vnni"), always_inline)) static inline void
cache_vnni_pass(const char *row, size_t column_tiles, size_t apart, const char *x, size_t x_stride,
                int N, float *y, size_t y_stride) {
    const __m512i rows = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    __m512i high[12], low[12];
    for (int c = 0; c < N; c++)
        high[c] = low[c] = _mm512_setzero_si512();
    for (size_t k = 0; k < column_tiles; k++) {
        for (size_t i = 0; i < 4; i++) {
            __m512i w = _mm512_loadu_si512(row + k * apart + i * 64);
            for (int c = 0; c < N; c++) {
                const char *in = x + (size_t)c * x_stride + k * 2 * TILE + i * 4;
                high[c] = _mm512_dpbusd_epi32(high[c], w, cache_vnni_repeat(in));
                low[c] = _mm512_dpbusd_epi32(low[c], w, cache_vnni_repeat(in + TILE));
            }
        }
    }
    for (int c = 0; c < N; c++) {
        struct cache_vnni_factors factors;
        memcpy(&factors, x + (size_t)c * x_stride + column_tiles * 2 * TILE, sizeof factors);
        __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high[c], 8), low[c]);
        sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(factors.offset));
        __m512 result = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(factors.scale));
        _mm512_storeu_ps(y + (size_t)c * y_stride, _mm512_permutexvar_ps(rows, result));
    }
}

__attribute__((target("avx512f,avx512bw,avx512vnni"))) static void
cache_vnni_product(const void *row, size_t column_tiles, size_t apart, const void *x,
                   size_t x_stride, size_t columns, float *y, size_t y_stride) {
    const char *in = x;
    for (size_t n; columns > 0; columns -= n, in += n * x_stride, y += n * y_stride) {
        n = columns >= 12 ? 12 : columns >= 8 ? 8 : columns >= 4 ? 4 : columns;
        switch (n) {
        case 12:
            cache_vnni_pass(row, column_tiles, apart, in, x_stride, 12, y, y_stride);
            break;
        case 8:
            cache_vnni_pass(row, column_tiles, apart, in, x_stride, 8, y, y_stride);
            break;
        case 4:
            cache_vnni_pass(row, column_tiles, apart, in, x_stride, 4, y, y_stride);
            break;
        case 3:
            cache_vnni_pass(row, column_tiles, apart, in, x_stride, 3, y, y_stride);
            break;
        case 2:
            cache_vnni_pass(row, column_tiles, apart, in, x_stride, 2, y, y_stride);
            break;
        default:
            cache_vnni_pass(row, column_tiles, apart, in, x_stride, 1, y, y_stride);
        }
    }
}
#endif
