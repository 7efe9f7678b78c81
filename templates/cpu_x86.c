// The x86-64 paths: AVX2 and AVX-512 with fp32 activations, AVX-512 BF16 with activations rounded
// to bf16 as inputs of products. All keep the KV cache in bf16.
//
// One scheme: a pass multiplies a row of tiles by a few columns, whose sums stay in registers over
// all column tiles. The first pass over a row streams it from memory, the others find it in the
// caches; so that memory does not idle meanwhile, they share the prefetching of the next row. A
// single pass prefetches nothing: it reads in one sweep, which the hardware follows better.
#ifdef __x86_64__
#include <immintrin.h>
#include "cpu.h"
#include "cpu_math.h"
#include "tile.h"

enum { TILE_LINES = TILE_BYTES / 64 };

// Lines of every tile that one pass prefetches from the next row.
struct prefetch {
    size_t distance; // bytes from a row to the next
    int begin, end;
};

static inline struct prefetch share_prefetch(size_t column_tiles, size_t pass, size_t passes) {
    if (passes == 1)
        return (struct prefetch){0};
    return (struct prefetch){column_tiles * TILE_BYTES, (int)(TILE_LINES * pass / passes),
                             (int)(TILE_LINES * (pass + 1) / passes)};
}

__attribute__((always_inline)) static inline void prefetch_lines(const char *tile,
                                                                 struct prefetch prefetch) {
    for (int line = prefetch.begin; line < prefetch.end; line++)
        _mm_prefetch(tile + prefetch.distance + line * 64, _MM_HINT_T1);
}

// ---- AVX2 ---------------------------------------------------------------------------------------

static bool avx2_usable(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

// Sums of the even and of the odd words of a: rows g and g + 8.
__attribute__((target("avx2,fma"))) static inline void avx2_add_words(__m256 a, float *low,
                                                                      float *high) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    *low = _mm_cvtss_f32(s);
    *high = _mm_cvtss_f32(_mm_movehdup_ps(s));
}

// One group by N columns, N <= 4. Each group is two halves of 8 words.
__attribute__((target("avx2,fma"), always_inline)) static inline void
avx2_group(const char *group, size_t column_tiles, const char *x, size_t x_stride, int N, float *y,
           size_t y_stride) {
    const __m256i high_half = _mm256_set1_epi32((int)0xffff0000);
    __m256 sums[4][2];
    for (int c = 0; c < N; c++)
        sums[c][0] = sums[c][1] = _mm256_setzero_ps();
    for (size_t k = 0; k < column_tiles; k++) {
        for (int half = 0; half < 2; half++) {
            __m256i w = _mm256_loadu_si256((const void *)(group + k * TILE_BYTES + half * 32));
            __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
            __m256 odd = _mm256_castsi256_ps(_mm256_and_si256(w, high_half));
            for (int c = 0; c < N; c++) {
                const float *in = (const float *)(x + (size_t)c * x_stride + k * 128) + half * 8;
                sums[c][half] = _mm256_fmadd_ps(even, _mm256_loadu_ps(in), sums[c][half]);
                sums[c][half] = _mm256_fmadd_ps(odd, _mm256_loadu_ps(in + TILE), sums[c][half]);
            }
        }
    }
    for (int c = 0; c < N; c++)
        avx2_add_words(_mm256_add_ps(sums[c][0], sums[c][1]), y + (size_t)c * y_stride,
                       y + (size_t)c * y_stride + 8);
}

__attribute__((target("avx2,fma"))) static void avx2_product(const void *row, size_t column_tiles,
                                                             const void *x, size_t x_stride,
                                                             size_t columns, float *y,
                                                             size_t y_stride) {
    for (size_t g = 0; g < TILE_GROUPS; g++) {
        const char *group = (const char *)row + g * 64;
        size_t c = 0;
        for (; c + 4 <= columns; c += 4)
            avx2_group(group, column_tiles, (const char *)x + c * x_stride, x_stride, 4,
                       y + c * y_stride + g, y_stride);
        for (; c < columns; c++)
            avx2_group(group, column_tiles, (const char *)x + c * x_stride, x_stride, 1,
                       y + c * y_stride + g, y_stride);
    }
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
    .packed_bytes = 2 * TILE * sizeof(float),
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

// Folds four accumulators of groups g..g+3 (16 words each) to one register: its 128-bit lane j
// holds group g + j, still two partial sums a row: words row, row + 8, row, row + 8.
__attribute__((target("avx512f"), always_inline)) static inline __m512
avx512_fold4(const __m512 *a) {
    __m512 a01 = _mm512_add_ps(_mm512_shuffle_f32x4(a[0], a[1], 0x44),
                               _mm512_shuffle_f32x4(a[0], a[1], 0xee));
    __m512 a23 = _mm512_add_ps(_mm512_shuffle_f32x4(a[2], a[3], 0x44),
                               _mm512_shuffle_f32x4(a[2], a[3], 0xee));
    return _mm512_add_ps(_mm512_shuffle_f32x4(a01, a23, 0x88),
                         _mm512_shuffle_f32x4(a01, a23, 0xdd));
}

// The 16 rows in order from the folds of groups 0..3 and 4..7.
__attribute__((target("avx512f"), always_inline)) static inline __m512 avx512_rows(__m512 low,
                                                                                   __m512 high) {
    __m512d a = _mm512_castps_pd(low), b = _mm512_castps_pd(high);
    __m512 sums = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                                _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    // Lane j of sums: rows j, j + 8, j + 4, j + 12.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15);
    return _mm512_permutexvar_ps(order, sums);
}

// N columns, 1 or 2.
__attribute__((target("avx512f"), always_inline)) static inline void
avx512_pass(const char *row, size_t column_tiles, const char *x, size_t x_stride, int N,
            struct prefetch prefetch, float *y, size_t y_stride) {
    const __m512i high_half = _mm512_set1_epi32((int)0xffff0000);
    __m512 sums[2][TILE_GROUPS];
    for (int c = 0; c < N; c++)
        for (int g = 0; g < TILE_GROUPS; g++)
            sums[c][g] = _mm512_setzero_ps();
    for (size_t k = 0; k < column_tiles; k++) {
        const char *tile = row + k * TILE_BYTES;
        prefetch_lines(tile, prefetch);
        __m512 in[2][2];
        for (int c = 0; c < N; c++) {
            in[c][0] = _mm512_loadu_ps(x + (size_t)c * x_stride + k * 128);
            in[c][1] = _mm512_loadu_ps(x + (size_t)c * x_stride + k * 128 + 64);
        }
        for (int g = 0; g < TILE_GROUPS; g++) {
            __m512i w = _mm512_loadu_si512(tile + g * 64);
            __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
            __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(w, high_half));
            for (int c = 0; c < N; c++) {
                sums[c][g] = _mm512_fmadd_ps(even, in[c][0], sums[c][g]);
                sums[c][g] = _mm512_fmadd_ps(odd, in[c][1], sums[c][g]);
            }
        }
    }
    for (int c = 0; c < N; c++)
        _mm512_storeu_ps(y + (size_t)c * y_stride,
                         avx512_rows(avx512_fold4(sums[c]), avx512_fold4(sums[c] + 4)));
}

__attribute__((target("avx512f"))) static void avx512_product(const void *row, size_t column_tiles,
                                                              const void *x, size_t x_stride,
                                                              size_t columns, float *y,
                                                              size_t y_stride) {
    const char *in = x;
    size_t passes = (columns + 1) / 2;
    for (size_t pass = 0; pass < passes; pass++, in += 2 * x_stride, y += 2 * y_stride) {
        struct prefetch prefetch = share_prefetch(column_tiles, pass, passes);
        if (columns - 2 * pass == 1)
            avx512_pass(row, column_tiles, in, x_stride, 1, prefetch, y, y_stride);
        else
            avx512_pass(row, column_tiles, in, x_stride, 2, prefetch, y, y_stride);
    }
}

__attribute__((target("avx512f"))) static float avx512_exponentials(float *s, size_t n,
                                                                    float *max) {
    return exponentials_body(s, n, max);
}

__attribute__((target("avx512f"))) static void avx512_swiglu(const float *gate_up, size_t n,
                                                             float *out) {
    swiglu_body(gate_up, n, out);
}

static const struct isa ISA_AVX512 = {
    .name = "avx512",
    .usable = avx512_usable,
    .packed_bytes = 2 * TILE * sizeof(float),
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

// Packed activations: bf16 pairs in the order of a group's words.
__attribute__((target("avx512f,avx512bw,avx512bf16"))) static void
avx512bf16_pack(const float *x, size_t n, void *packed) {
    const __m512i order = _mm512_setr_epi32(0, 0, 4, 4, 1, 1, 5, 5, 2, 2, 6, 6, 3, 3, 7, 7);
    for (size_t k = 0; k < n; k += TILE) {
        __m256i pairs = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x + k));
        __m512i words = _mm512_permutexvar_epi32(order, _mm512_castsi256_si512(pairs));
        _mm512_storeu_si512((char *)packed + k * 4, words);
    }
}

// N columns, N <= 3.
__attribute__((target("avx512f,avx512bw,avx512bf16"), always_inline)) static inline void
avx512bf16_pass(const char *row, size_t column_tiles, const char *x, size_t x_stride, int N,
                struct prefetch prefetch, float *y, size_t y_stride) {
    __m512 sums[3][TILE_GROUPS];
    for (int c = 0; c < N; c++)
        for (int g = 0; g < TILE_GROUPS; g++)
            sums[c][g] = _mm512_setzero_ps();
    for (size_t k = 0; k < column_tiles; k++) {
        const char *tile = row + k * TILE_BYTES;
        prefetch_lines(tile, prefetch);
        __m512bh in[3];
        for (int c = 0; c < N; c++)
            in[c] = (__m512bh)_mm512_loadu_si512(x + (size_t)c * x_stride + k * 64);
        for (int g = 0; g < TILE_GROUPS; g++) {
            __m512bh w = (__m512bh)_mm512_loadu_si512(tile + g * 64);
            for (int c = 0; c < N; c++)
                sums[c][g] = _mm512_dpbf16_ps(sums[c][g], w, in[c]);
        }
    }
    for (int c = 0; c < N; c++)
        _mm512_storeu_ps(y + (size_t)c * y_stride,
                         avx512_rows(avx512_fold4(sums[c]), avx512_fold4(sums[c] + 4)));
}

__attribute__((target("avx512f,avx512bw,avx512bf16"))) static void
avx512bf16_product(const void *row, size_t column_tiles, const void *x, size_t x_stride,
                   size_t columns, float *y, size_t y_stride) {
    const char *in = x;
    size_t passes = (columns + 2) / 3;
    for (size_t pass = 0; pass < passes; pass++, in += 3 * x_stride, y += 3 * y_stride) {
        struct prefetch prefetch = share_prefetch(column_tiles, pass, passes);
        switch (columns - 3 * pass) {
        case 1:
            avx512bf16_pass(row, column_tiles, in, x_stride, 1, prefetch, y, y_stride);
            break;
        case 2:
            avx512bf16_pass(row, column_tiles, in, x_stride, 2, prefetch, y, y_stride);
            break;
        default:
            avx512bf16_pass(row, column_tiles, in, x_stride, 3, prefetch, y, y_stride);
        }
    }
}

static const struct isa ISA_AVX512BF16 = {
    .name = "avx512bf16",
    .usable = avx512bf16_usable,
    .packed_bytes = 2 * TILE * sizeof(uint16_t),
    .cache_bytes = 2,
    .exact = &ISA_AVX512,
    .pack = avx512bf16_pack,
    .product = avx512bf16_product,
    .product_cache = avx512bf16_product,
    .exponentials = avx512_exponentials,
    .swiglu = avx512_swiglu,
};
#endif // __x86_64__
