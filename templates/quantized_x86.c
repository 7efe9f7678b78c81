// Products with quantised tiles on x86-64. Activations are integers, of 8 or 16 bits, with a scale
// for each group: products of a group are added as integers, and are exact.
//
// AVX2: vpmaddubsw multiplies weights of 4 bits with activations of 8 and adds neighbours in 16
// bits; vpmaddwd multiplies all others in 16 bits and adds neighbours in 32. AVX-512 without VNNI
// does the same.
//
// VNNI: vpdpbusd multiplies four columns of 16 rows, unsigned bytes, with four signed bytes of
// activations and adds the products. Activations are one plane (8 bits) or two (16 bits: 256 * high
// + low).
#ifdef __x86_64__
#include <immintrin.h>
#include "quantized.h"

// What follows the integers of a packed group.
struct group_factors {
    float scale; // an activation is scale * integer
    float sum;   // of the integers
};

// ---- AVX2 ---------------------------------------------------------------------------------------

enum {
    AVX2_BYTES = GROUP + sizeof(struct group_factors), // columns k and k + 16 side by side
    AVX2_WORDS = 2 * GROUP + sizeof(struct group_factors),
    AVX2_AHEAD = 2048, // how far ahead weights are fetched where few columns wait for memory
};

// The largest lane, and the sum of all.
__attribute__((target("avx2"), always_inline)) static inline uint32_t avx2_most(__m256i v) {
    v = _mm256_max_epu32(v, _mm256_permute4x64_epi64(v, 0x4e));
    v = _mm256_max_epu32(v, _mm256_shuffle_epi32(v, 0x4e));
    return (uint32_t)_mm256_cvtsi256_si32(_mm256_max_epu32(v, _mm256_shuffle_epi32(v, 0xb1)));
}

__attribute__((target("avx2"), always_inline)) static inline int avx2_total(__m256i v) {
    v = _mm256_add_epi32(v, _mm256_permute4x64_epi64(v, 0x4e));
    v = _mm256_add_epi32(v, _mm256_shuffle_epi32(v, 0x4e));
    return _mm256_cvtsi256_si32(_mm256_add_epi32(v, _mm256_shuffle_epi32(v, 0xb1)));
}

// A group's activations as integers from -most to most, of 16 bits: columns 0..15 and 16..31.
__attribute__((target("avx2"), always_inline)) static inline struct group_factors
avx2_integers(const float *x, float most, __m256i integers[2]) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    // As integers magnitudes have the same order, and a NaN is the largest: it stays one.
    __m256i top = _mm256_setzero_si256(), sum = top, q[4];
    for (int i = 0; i < 4; i++)
        top = _mm256_max_epu32(
            top, _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(x + 8 * i)), magnitude));
    uint32_t bits = avx2_most(top);
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    __m256 inverse = _mm256_set1_ps(largest > 1e-30f ? most / largest : 0.0f);
    for (int i = 0; i < 4; i++) {
        q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), inverse));
        sum = _mm256_add_epi32(sum, q[i]);
    }
    for (int i = 0; i < 2; i++)
        integers[i] = _mm256_permute4x64_epi64(_mm256_packs_epi32(q[2 * i], q[2 * i + 1]), 0xd8);
    return (struct group_factors){largest / most, (float)avx2_total(sum)};
}

__attribute__((target("avx2"))) static void avx2_pack_bytes(const float *x, char *packed) {
    __m256i integers[2];
    struct group_factors factors = avx2_integers(x, 127, integers);
    __m256i low = _mm256_and_si256(integers[0], _mm256_set1_epi16(255));
    _mm256_storeu_si256((void *)packed, _mm256_or_si256(low, _mm256_slli_epi16(integers[1], 8)));
    memcpy(packed + GROUP, &factors, sizeof factors);
}

__attribute__((target("avx2"))) static void avx2_pack_words(const float *x, char *packed) {
    __m256i integers[2];
    struct group_factors factors = avx2_integers(x, 32512, integers);
    _mm256_storeu_si256((void *)packed, integers[0]);
    _mm256_storeu_si256((void *)(packed + GROUP), integers[1]);
    memcpy(packed + 2 * GROUP, &factors, sizeof factors);
}

__attribute__((target("avx2"), always_inline)) static inline __m256i
avx2_repeat_word(const char *in) {
    int word;
    memcpy(&word, in, sizeof word);
    return _mm256_set1_epi32(word);
}

__attribute__((target("avx2"), always_inline)) static inline __m256
avx2_repeat_float(const char *in) {
    float value;
    memcpy(&value, in, sizeof value);
    return _mm256_set1_ps(value);
}

// Every processor with AVX2 has F16C.
__attribute__((target("avx2,f16c"), always_inline)) static inline __m256
avx2_load_halves(const char *halves) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const void *)halves));
}

// dots += words i and i + 4 of 16 rows, in two halves, times a column's bytes `in`. A group's sums
// fit in 16 bits: |8 * 2 * 15 * 127| < 2^15. Were they free to add up in another order, gcc would
// need more registers than there are.
__attribute__((target("avx2"), always_inline)) static inline void
avx2_add_bytes(__m256i dots[2], __m256i weights[2][2], const char *in) {
    __m256i x0 = avx2_repeat_word(in), x1 = avx2_repeat_word(in + GROUP / 2);
    for (int half = 0; half < 2; half++) {
        dots[half] = _mm256_add_epi16(dots[half], _mm256_maddubs_epi16(weights[0][half], x0));
        dots[half] = _mm256_add_epi16(dots[half], _mm256_maddubs_epi16(weights[1][half], x1));
        __asm__("" : "+x"(dots[half]));
    }
}

// dots += one of those words times 16-bit integers: columns 2j and 2j + 1, then those plus 16.
__attribute__((target("avx2"), always_inline)) static inline void
avx2_add_words(__m256i dots[2], const __m256i weights[2], const char *in) {
    __m256i x0 = avx2_repeat_word(in), x1 = avx2_repeat_word(in + GROUP);
    for (int half = 0; half < 2; half++) {
        __m256i even = _mm256_and_si256(weights[half], _mm256_set1_epi32(0x00ff00ff));
        __m256i odd = _mm256_srli_epi16(weights[half], 8);
        dots[half] = _mm256_add_epi32(dots[half], _mm256_madd_epi16(even, x0));
        dots[half] = _mm256_add_epi32(dots[half], _mm256_madd_epi16(odd, x1));
        __asm__("" : "+x"(dots[half]));
    }
}

// sums += one tile times N columns of bytes or words, N <= 4.
__attribute__((target("avx2,fma,f16c"), always_inline)) static inline void
avx2_add_tile(__m256 sums[][2], const char *tile, bool int4, bool bytes, const char *in,
              size_t x_stride, int N) {
    const __m256i low_half = _mm256_set1_epi32(0x0f0f0f0f);
    __m256i dots[4][2];
    for (int c = 0; c < N; c++)
        dots[c][0] = dots[c][1] = _mm256_setzero_si256();
    for (size_t i = 0; i < 4; i++) {
        __m256i w[2][2];
        for (int half = 0; half < 2; half++) {
            const char *words = tile + quantized_word(int4, 2 * i, 8 * (size_t)half);
            w[0][half] = _mm256_loadu_si256((const void *)words);
            if (int4) {
                w[1][half] = _mm256_and_si256(_mm256_srli_epi32(w[0][half], 4), low_half);
                w[0][half] = _mm256_and_si256(w[0][half], low_half);
            } else {
                w[1][half] = _mm256_loadu_si256((const void *)(words + 64));
            }
        }
        for (int c = 0; bytes && c < N; c++)
            avx2_add_bytes(dots[c], w, in + (size_t)c * x_stride + 4 * i);
        for (size_t word = 0; !bytes && word < 2; word++)
            for (int c = 0; c < N; c++)
                avx2_add_words(dots[c], w[word], in + (size_t)c * x_stride + 16 * word + 4 * i);
    }
    for (int half = 0; half < 2; half++) {
        const char *scales = tile + (int4 ? INT4_SCALES : INT8_SCALES) + half * 16;
        __m256 scale = avx2_load_halves(scales);
        __m256 minimum = int4 ? avx2_load_halves(tile + INT4_MINIMUMS + half * 16)
                              : _mm256_mul_ps(scale, _mm256_set1_ps(-128));
        for (int c = 0; c < N; c++) {
            const char *factors = in + (size_t)c * x_stride + (bytes ? GROUP : 2 * GROUP);
            __m256i dot = dots[c][half];
            if (bytes)
                dot = _mm256_madd_epi16(dot, _mm256_set1_epi16(1));
            __m256 sum = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(dot));
            sum = _mm256_fmadd_ps(minimum, avx2_repeat_float(factors + sizeof(float)), sum);
            sums[c][half] = _mm256_fmadd_ps(avx2_repeat_float(factors), sum, sums[c][half]);
        }
    }
}

// N columns of bytes or words, N <= 8; four at a time, as registers allow.
__attribute__((target("avx2,fma,f16c"), always_inline)) static inline void
avx2_quantized_pass(const char *row, size_t tiles, bool int4, bool bytes, const char *x, int N,
                    float *y, size_t y_stride) {
    const size_t group_bytes = bytes ? AVX2_BYTES : AVX2_WORDS, x_stride = tiles * group_bytes;
    __m256 sums[8][2]; // rows 0, 8, 1, 9, ... 11; 4, 12, ... 15
    for (int c = 0; c < N; c++)
        sums[c][0] = sums[c][1] = _mm256_setzero_ps();
    for (size_t k = 0; k < tiles; k++) {
        const char *tile = row + k * quantized_tile_bytes(int4), *in = x + k * group_bytes;
        for (size_t line = 0; line < quantized_tile_bytes(int4); line += 64)
            if (N < 4)
                _mm_prefetch(tile + AVX2_AHEAD + line, _MM_HINT_T0);
            else
                _mm_prefetch(tile + PREFETCH_BYTES + line, _MM_HINT_T1);
        for (int c = 0; c < N; c += 4) {
            __asm__("" : "+r"(tile)); // weights are unpacked again, not spilled
            avx2_add_tile(sums + c, tile, int4, bytes, in + (size_t)c * x_stride, x_stride,
                          N < 4 ? N : 4);
        }
    }
    const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    for (int c = 0; c < N; c++) {
        __m256 first = _mm256_permutevar8x32_ps(sums[c][0], order);
        __m256 second = _mm256_permutevar8x32_ps(sums[c][1], order);
        float *out = y + (size_t)c * y_stride;
        _mm256_storeu_ps(out, _mm256_permute2f128_ps(first, second, 0x20));
        _mm256_storeu_ps(out + 8, _mm256_permute2f128_ps(first, second, 0x31));
    }
}

__attribute__((target("avx2,fma,f16c"), always_inline)) static inline void
avx2_quantized_passes(const char *row, size_t tiles, bool int4, bool bytes, const char *x,
                      size_t columns, float *y, size_t y_stride) {
    const size_t x_stride = tiles * (bytes ? AVX2_BYTES : AVX2_WORDS);
    for (size_t n; columns > 0; columns -= n, x += n * x_stride, y += n * y_stride) {
        n = columns >= 8 ? 8 : columns >= 4 ? 4 : columns >= 2 ? 2 : 1;
        if (n == 8)
            avx2_quantized_pass(row, tiles, int4, bytes, x, 8, y, y_stride);
        else if (n == 4)
            avx2_quantized_pass(row, tiles, int4, bytes, x, 4, y, y_stride);
        else if (n == 2)
            avx2_quantized_pass(row, tiles, int4, bytes, x, 2, y, y_stride);
        else
            avx2_quantized_pass(row, tiles, int4, bytes, x, 1, y, y_stride);
    }
}

__attribute__((target("avx2,fma,f16c"))) static void
avx2_product_bytes(const char *row, size_t tiles, bool int4, const char *x, size_t columns,
                   float *y, size_t y_stride) {
    (void)int4;
    avx2_quantized_passes(row, tiles, true, true, x, columns, y, y_stride);
}

__attribute__((target("avx2,fma,f16c"))) static void
avx2_product_words(const char *row, size_t tiles, bool int4, const char *x, size_t columns,
                   float *y, size_t y_stride) {
    if (int4)
        avx2_quantized_passes(row, tiles, true, false, x, columns, y, y_stride);
    else
        avx2_quantized_passes(row, tiles, false, false, x, columns, y, y_stride);
}

// AVX2 for inputs that should not be rounded.
static const struct isa ISA_AVX2_EXACT = {
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

// ---- AVX-512 VNNI -------------------------------------------------------------------------------

static bool vnni_usable(void) {
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw");
}

// A packed group: its planes, high one first.
enum {
    VNNI_ONE_PLANE = GROUP + sizeof(struct group_factors),
    VNNI_TWO_PLANES = 2 * GROUP + sizeof(struct group_factors),
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
    struct group_factors factors = {largest / most,
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
                _mm_prefetch(tile + PREFETCH_BYTES + line, _MM_HINT_T1);
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
                if (i >= 2) { // the last eight rows come first
                    w0 = _mm512_shuffle_i64x2(w0, w0, _MM_SHUFFLE(1, 0, 3, 2));
                    w1 = _mm512_shuffle_i64x2(w1, w1, _MM_SHUFFLE(1, 0, 3, 2));
                }
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
    (void)int4;
    vnni_passes(row, tiles, true, 1, x, columns, y, y_stride);
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
