// The x86-64 paths: AVX2 and AVX-512 with fp32 activations, AVX-512 BF16 with activations rounded
// to bf16 as inputs of products. All keep the KV cache in bf16.
//
// One scheme: as many columns as the registers allow are multiplied in one pass over a row of
// tiles. A weight is loaded once for all of them, and memory is read in one sweep, which the
// hardware's prefetching follows best.
#ifdef __x86_64__
#include <immintrin.h>
#include "cpu.h"
#include "cpu_math.h"
#include "tile.h"

// How far ahead of a pass weights are fetched to the second-level cache. One to three columns are
// faster without: the pass then reads as fast as the hardware's own prefetching runs.
enum { PREFETCH_BYTES = 6144 };

// ---- AVX2 ---------------------------------------------------------------------------------------

static bool avx2_usable(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

__attribute__((target("avx2,fma"), always_inline)) static inline __m256
avx2_repeat_pair(const char *in) {
    return _mm256_castpd_ps(_mm256_broadcast_sd((const double *)(const void *)in));
}

// N columns. sums[c][j]: rows 2j, 2j + 1 and those plus 8.
__attribute__((target("avx2,fma"), always_inline)) static inline void
avx2_pass(const char *row, size_t column_tiles, size_t apart, const char *x, size_t x_stride, int N,
          float *y, size_t y_stride) {
    const __m256i high_half = _mm256_set1_epi32((int)0xffff0000);
    __m256 sums[3][4];
    for (int c = 0; c < N; c++)
        for (int j = 0; j < 4; j++)
            sums[c][j] = _mm256_setzero_ps();
    for (size_t k = 0; k < column_tiles; k++) {
        for (int i = 0; i < 4; i++) {
            for (int j = 0; j < 4; j++) {
                const char *chunks = row + k * apart + i * 128 + j * 32;
                __m256i w = _mm256_loadu_si256((const void *)chunks);
                __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
                __m256 odd = _mm256_castsi256_ps(_mm256_and_si256(w, high_half));
                for (int c = 0; c < N; c++) {
                    const char *in = x + (size_t)c * x_stride + k * 64 + (size_t)i * 8;
                    __m256 in_even = avx2_repeat_pair(in), in_odd = avx2_repeat_pair(in + 32);
                    sums[c][j] = _mm256_fmadd_ps(even, in_even, sums[c][j]);
                    sums[c][j] = _mm256_fmadd_ps(odd, in_odd, sums[c][j]);
                }
            }
        }
    }
    for (int c = 0; c < N; c++) {
        float *out = y + (size_t)c * y_stride;
        for (int j = 0; j < 4; j++) {
            __m256 rows = _mm256_add_ps(sums[c][j], _mm256_movehdup_ps(sums[c][j]));
            __m128 first = _mm256_castps256_ps128(rows), second = _mm256_extractf128_ps(rows, 1);
            out[2 * j] = _mm_cvtss_f32(first);
            out[2 * j + 8] = _mm_cvtss_f32(_mm_movehl_ps(first, first));
            out[2 * j + 1] = _mm_cvtss_f32(second);
            out[2 * j + 9] = _mm_cvtss_f32(_mm_movehl_ps(second, second));
        }
    }
}

__attribute__((target("avx2,fma"))) static void avx2_product(const void *row, size_t column_tiles,
                                                             size_t apart, const void *x,
                                                             size_t x_stride, size_t columns,
                                                             float *y, size_t y_stride) {
    const char *in = x;
    for (; columns >= 3; columns -= 3, in += 3 * x_stride, y += 3 * y_stride)
        avx2_pass(row, column_tiles, apart, in, x_stride, 3, y, y_stride);
    if (columns == 2)
        avx2_pass(row, column_tiles, apart, in, x_stride, 2, y, y_stride);
    else if (columns == 1)
        avx2_pass(row, column_tiles, apart, in, x_stride, 1, y, y_stride);
}

__attribute__((target("avx2,fma"))) static float avx2_exponentials(float *s, size_t n, float *max) {
    return exponentials_body(s, n, max);
}

__attribute__((target("avx2,fma"))) static void avx2_swiglu(const float *gate_up, size_t n,
                                                            float *out) {
    swiglu_body(gate_up, n, out);
}

static const struct isa ISA_AVX2 = {
    .name = "avx2",
    .usable = avx2_usable,
    .packed_bytes = TILE * sizeof(float),
    .cache_bytes = 2,
    .pack = pack_fp32,
    .product = avx2_product,
    .product_cache = avx2_product,
    .exponentials = avx2_exponentials,
    .swiglu = avx2_swiglu,
};

// ---- AVX-512 ------------------------------------------------------------------------------------

static bool avx512_usable(void) {
    return __builtin_cpu_supports("avx512f");
}

// The 16 rows in order from two accumulators: chunks 0..3 and 4..7, two partial sums a row.
__attribute__((target("avx512f"), always_inline)) static inline __m512 avx512_rows(__m512 low,
                                                                                   __m512 high) {
    __m512 sums =
        _mm512_add_ps(_mm512_shuffle_ps(low, high, 0x88), _mm512_shuffle_ps(low, high, 0xdd));
    // 128-bit lane j of sums: rows j, j + 8, j + 4, j + 12.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15);
    return _mm512_permutexvar_ps(order, sums);
}

// Two activation words, repeated over the register.
__attribute__((target("avx512f"), always_inline)) static inline __m512i
avx512_repeat_pair(const char *words) {
    long long pair;
    memcpy(&pair, words, sizeof pair);
    return _mm512_set1_epi64(pair);
}

// N columns, N <= 12. Weights are prefetched `ahead` bytes ahead.
__attribute__((target("avx512f"), always_inline)) static inline void
avx512_pass(const char *row, size_t column_tiles, size_t apart, const char *x, size_t x_stride,
            size_t ahead, int N, float *y, size_t y_stride) {
    const __m512i high_half = _mm512_set1_epi32((int)0xffff0000);
    __m512 low[12], high[12];
    for (int c = 0; c < N; c++)
        low[c] = high[c] = _mm512_setzero_ps();
    for (size_t k = 0; k < column_tiles; k++) {
        for (size_t i = 0; i < 4; i++) {
            const char *chunks = row + k * apart + i * 128;
            if (N >= 4) {
                _mm_prefetch(chunks + ahead, _MM_HINT_T1);
                _mm_prefetch(chunks + ahead + 64, _MM_HINT_T1);
            }
            __m512i w0 = _mm512_loadu_si512(chunks), w1 = _mm512_loadu_si512(chunks + 64);
            __m512 even0 = _mm512_castsi512_ps(_mm512_slli_epi32(w0, 16));
            __m512 even1 = _mm512_castsi512_ps(_mm512_slli_epi32(w1, 16));
            __m512 odd0 = _mm512_castsi512_ps(_mm512_and_si512(w0, high_half));
            __m512 odd1 = _mm512_castsi512_ps(_mm512_and_si512(w1, high_half));
            for (int c = 0; c < N; c++) {
                const char *in = x + (size_t)c * x_stride + k * 64 + i * 8;
                __m512 in_even = _mm512_castsi512_ps(avx512_repeat_pair(in));
                __m512 in_odd = _mm512_castsi512_ps(avx512_repeat_pair(in + 32));
                low[c] = _mm512_fmadd_ps(even0, in_even, low[c]);
                high[c] = _mm512_fmadd_ps(even1, in_even, high[c]);
                low[c] = _mm512_fmadd_ps(odd0, in_odd, low[c]);
                high[c] = _mm512_fmadd_ps(odd1, in_odd, high[c]);
            }
        }
    }
    for (int c = 0; c < N; c++)
        _mm512_storeu_ps(y + (size_t)c * y_stride, avx512_rows(low[c], high[c]));
}

__attribute__((target("avx512f"))) static void avx512_product(const void *row, size_t column_tiles,
                                                              size_t apart, const void *x,
                                                              size_t x_stride, size_t columns,
                                                              float *y, size_t y_stride) {
    const char *in = x;
    const size_t ahead = columns < 4 || columns > 12 ? 0 : PREFETCH_BYTES;
    while (columns > 0) {
        size_t n = columns >= 12 ? 12 : columns >= 8 ? 8 : columns >= 4 ? 4 : columns;
        switch (n) {
        case 12:
            avx512_pass(row, column_tiles, apart, in, x_stride, ahead, 12, y, y_stride);
            break;
        case 8:
            avx512_pass(row, column_tiles, apart, in, x_stride, ahead, 8, y, y_stride);
            break;
        case 4:
            avx512_pass(row, column_tiles, apart, in, x_stride, ahead, 4, y, y_stride);
            break;
        case 3:
            avx512_pass(row, column_tiles, apart, in, x_stride, ahead, 3, y, y_stride);
            break;
        case 2:
            avx512_pass(row, column_tiles, apart, in, x_stride, ahead, 2, y, y_stride);
            break;
        default:
            avx512_pass(row, column_tiles, apart, in, x_stride, ahead, 1, y, y_stride);
        }
        columns -= n;
        in += n * x_stride;
        y += n * y_stride;
    }
}

__attribute__((target("avx512f"))) static float avx512_exponentials(float *s, size_t n,
                                                                    float *max) {
    __m512 lanes = _mm512_set1_ps(*max), sum = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += 16)
        lanes = _mm512_max_ps(_mm512_loadu_ps(s + i), lanes); // of a NaN and x it is x
    const float top = _mm512_reduce_max_ps(lanes);
    for (size_t i = 0; i < n; i += 16) {
        exponential_lanes(s + i, top);
        sum = _mm512_add_ps(sum, _mm512_loadu_ps(s + i));
    }
    *max = top;
    return _mm512_reduce_add_ps(sum);
}

__attribute__((target("avx512f"))) static void avx512_swiglu(const float *gate_up, size_t n,
                                                             float *out) {
    for (size_t i = 0; i < n; i += 16, gate_up += 32) {
        float gate[16], up[16];
        __m512 first = _mm512_loadu_ps(gate_up), second = _mm512_loadu_ps(gate_up + 16);
        _mm512_storeu_ps(gate, _mm512_shuffle_f32x4(first, second, 0x44));
        _mm512_storeu_ps(up, _mm512_shuffle_f32x4(first, second, 0xee));
        swiglu_lanes(gate, up, out + i);
    }
}

static const struct isa ISA_AVX512 = {
    .name = "avx512",
    .usable = avx512_usable,
    .packed_bytes = TILE * sizeof(float),
    .cache_bytes = 2,
    .pack = pack_fp32,
    .product = avx512_product,
    .product_cache = avx512_product,
    .exponentials = avx512_exponentials,
    .swiglu = avx512_swiglu,
};

// ---- AVX-512 BF16 -------------------------------------------------------------------------------

static bool avx512bf16_usable(void) {
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw");
}

// Packed activations: bf16 pairs in tile order.
__attribute__((target("avx512f,avx512bw,avx512bf16"))) static void
avx512bf16_pack(const float *x, size_t n, void *packed) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (size_t k = 0; k < n; k += TILE) {
        __m256i pairs = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x + k));
        _mm256_storeu_si256((void *)((char *)packed + k * 2),
                            _mm256_permutevar8x32_epi32(pairs, order));
    }
}

// A register of weights for several columns. gcc would load it again for each of them if it knew
// what is in it.
__attribute__((target("avx512f"), always_inline)) static inline __m512i
avx512_load_once(const char *weights) {
    __m512i w = _mm512_loadu_si512(weights);
    __asm__("" : "+v"(w));
    return w;
}

// N columns, N <= 12. Weights are prefetched `ahead` bytes ahead.
__attribute__((target("avx512f,avx512bw,avx512bf16"), always_inline)) static inline void
avx512bf16_pass(const char *row, size_t column_tiles, size_t apart, const char *x, size_t x_stride,
                size_t ahead, int N, float *y, size_t y_stride) {
    __m512 low[12], high[12];
    for (int c = 0; c < N; c++)
        low[c] = high[c] = _mm512_setzero_ps();
    for (size_t k = 0; k < column_tiles; k++) {
        for (size_t i = 0; i < 4; i++) {
            const char *chunks = row + k * apart + i * 128;
            if (N >= 4) {
                _mm_prefetch(chunks + ahead, _MM_HINT_T1);
                _mm_prefetch(chunks + ahead + 64, _MM_HINT_T1);
            }
            __m512bh w0 = (__m512bh)avx512_load_once(chunks);
            __m512bh w1 = (__m512bh)avx512_load_once(chunks + 64);
            for (int c = 0; c < N; c++) {
                __m512bh in =
                    (__m512bh)avx512_repeat_pair(x + (size_t)c * x_stride + k * 32 + i * 8);
                low[c] = _mm512_dpbf16_ps(low[c], w0, in);
                high[c] = _mm512_dpbf16_ps(high[c], w1, in);
            }
        }
    }
    for (int c = 0; c < N; c++)
        _mm512_storeu_ps(y + (size_t)c * y_stride, avx512_rows(low[c], high[c]));
}

__attribute__((target("avx512f,avx512bw,avx512bf16"))) static void
avx512bf16_product(const void *row, size_t column_tiles, size_t apart, const void *x,
                   size_t x_stride, size_t columns, float *y, size_t y_stride) {
    const char *in = x;
    const size_t ahead = columns < 4 || columns > 12 ? 0 : PREFETCH_BYTES;
    while (columns > 0) {
        size_t n = columns >= 12 ? 12 : columns >= 8 ? 8 : columns >= 4 ? 4 : columns;
        switch (n) {
        case 12:
            avx512bf16_pass(row, column_tiles, apart, in, x_stride, ahead, 12, y, y_stride);
            break;
        case 8:
            avx512bf16_pass(row, column_tiles, apart, in, x_stride, ahead, 8, y, y_stride);
            break;
        case 4:
            avx512bf16_pass(row, column_tiles, apart, in, x_stride, ahead, 4, y, y_stride);
            break;
        case 3:
            avx512bf16_pass(row, column_tiles, apart, in, x_stride, ahead, 3, y, y_stride);
            break;
        case 2:
            avx512bf16_pass(row, column_tiles, apart, in, x_stride, ahead, 2, y, y_stride);
            break;
        default:
            avx512bf16_pass(row, column_tiles, apart, in, x_stride, ahead, 1, y, y_stride);
        }
        columns -= n;
        in += n * x_stride;
        y += n * y_stride;
    }
}

static const struct isa ISA_AVX512BF16 = {
    .name = "avx512bf16",
    .usable = avx512bf16_usable,
    .packed_bytes = TILE * sizeof(uint16_t),
    .cache_bytes = 2,
    .exact = &ISA_AVX512,
    .pack = avx512bf16_pack,
    .product = avx512bf16_product,
    .product_cache = avx512bf16_product,
    .exponentials = avx512_exponentials,
    .swiglu = avx512_swiglu,
};
#endif // __x86_64__
