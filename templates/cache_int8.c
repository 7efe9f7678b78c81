// The KV cache in int8: a key, or a value, of one position and kv head is scale * (u - 128), u from
// 1 to 255, with scale = largest magnitude / 127 in fp32. Products are those of the integers: keys'
// scales multiply the scores, values' scales the probabilities (attention.c). On the way to a
// product a row of tiles is made bf16, which holds these integers exactly.
#include <math.h>
#include "cache.h"
#include "cache_vnni.c"

// Cache of one (layer, stream, kv head): for every 16 positions their keys [16, head_dim] and their
// values [head_dim, 16], in tiles with bytes instead of bf16, then the scales of both.
static const size_t CACHE_VALUES = HEAD_TILES * TILE_ELEMENTS;
static const size_t CACHE_SCALES = 2 * HEAD_TILES * TILE_ELEMENTS;
static const size_t CACHE_ROW = 2 * (HEAD_TILES * TILE_ELEMENTS + TILE * sizeof(float));

static char *cache_block(const struct parscale *model, size_t layer, size_t stream,
                         size_t kv_head) {
    size_t block = cache_slot(layer, stream) * KV_HEADS + kv_head;
    return model->cache + block * (size_t)CACHE_BLOCK_BYTES;
}

static size_t cache_bytes(const struct isa *isa) {
    (void)isa;
    return (size_t)CACHE_SLOTS * KV_HEADS * CACHE_BLOCK_BYTES;
}

// Bytes of one position, of one layer, stream and kv head.
static size_t cache_position_bytes(const struct parscale *model) {
    (void)model;
    return 2 * (HEAD_DIM + sizeof(float));
}

// ---- products -----------------------------------------------------------------------------------

// A row of int8 tiles as bf16 ones. Compiled by each path for its own instruction set.
__attribute__((always_inline)) static inline void widen_tiles(const char *row, size_t tiles,
                                                              size_t apart, uint16_t *out) {
    for (size_t t = 0; t < tiles; t++, row += apart) {
        for (size_t i = 0; i < TILE_ELEMENTS; i++, out++) {
            float value = (float)((unsigned char)row[i] - 128);
            uint32_t bits;
            memcpy(&bits, &value, sizeof bits);
            *out = (uint16_t)(bits >> 16);
        }
    }
}

enum { WIDEST_ROW = (HEAD_DIM > ATTENTION_CHUNK ? HEAD_DIM + TILE - 1 : ATTENTION_CHUNK) / TILE };

// struct isa, product_cache.
struct wide_row {
    _Alignas(64) uint16_t tiles[WIDEST_ROW * TILE_ELEMENTS];
};

static void plain_product_int8(const void *row, size_t column_tiles, size_t apart, const void *x,
                               size_t x_stride, size_t columns, float *y, size_t y_stride) {
    struct wide_row wide;
    widen_tiles(row, column_tiles, apart, wide.tiles);
    plain_product(wide.tiles, column_tiles, TILE_BYTES, x, x_stride, columns, y, y_stride);
}

#ifdef __x86_64__
__attribute__((target("avx2,fma"))) static void
avx2_product_int8(const void *row, size_t column_tiles, size_t apart, const void *x,
                  size_t x_stride, size_t columns, float *y, size_t y_stride) {
    struct wide_row wide;
    widen_tiles(row, column_tiles, apart, wide.tiles);
    avx2_product(wide.tiles, column_tiles, TILE_BYTES, x, x_stride, columns, y, y_stride);
}

__attribute__((target("avx512f"))) static void
avx512_product_int8(const void *row, size_t column_tiles, size_t apart, const void *x,
                    size_t x_stride, size_t columns, float *y, size_t y_stride) {
    struct wide_row wide;
    widen_tiles(row, column_tiles, apart, wide.tiles);
    avx512_product(wide.tiles, column_tiles, TILE_BYTES, x, x_stride, columns, y, y_stride);
}

__attribute__((target("avx512f,avx512bw,avx512bf16"))) static void
avx512bf16_product_int8(const void *row, size_t column_tiles, size_t apart, const void *x,
                        size_t x_stride, size_t columns, float *y, size_t y_stride) {
    struct wide_row wide;
    widen_tiles(row, column_tiles, apart, wide.tiles);
    avx512bf16_product(wide.tiles, column_tiles, TILE_BYTES, x, x_stride, columns, y, y_stride);
}
#endif

#ifdef __aarch64__
static void neon_product_int8(const void *row, size_t column_tiles, size_t apart, const void *x,
                              size_t x_stride, size_t columns, float *y, size_t y_stride) {
    struct wide_row wide;
    widen_tiles(row, column_tiles, apart, wide.tiles);
    neon_product(wide.tiles, column_tiles, TILE_BYTES, x, x_stride, columns, y, y_stride);
}
#endif

// A path is the first one with its isa that is usable.
static const struct cache_path {
    const struct isa *isa;
    bool (*usable)(void); // NULL: wherever isa is
    struct cache_product by;
} CACHE_PATHS[] = {
#ifdef __x86_64__
    {&ISA_AVX512BF16,
     cache_vnni_usable,
     {2 * TILE, sizeof(struct cache_vnni_factors), cache_vnni_pack, cache_vnni_product}},
    {&ISA_AVX512BF16, NULL, {2 * TILE, 0, avx512bf16_pack, avx512bf16_product_int8}},
    {&ISA_AVX512,
     cache_vnni_usable,
     {2 * TILE, sizeof(struct cache_vnni_factors), cache_vnni_pack, cache_vnni_product}},
    {&ISA_AVX512, NULL, {4 * TILE, 0, pack_fp32, avx512_product_int8}},
    {&ISA_AVX2, NULL, {4 * TILE, 0, pack_fp32, avx2_product_int8}},
#endif
#ifdef __aarch64__
    {&ISA_NEON, NULL, {4 * TILE, 0, pack_fp32, neon_product_int8}},
#endif
    {&ISA_PLAIN, NULL, {4 * TILE, 0, pack_fp32, plain_product_int8}},
};

// The first `positions` of a (layer, stream, kv head).
static struct segment cache_segment(const struct parscale *model, size_t layer, size_t stream,
                                    size_t kv_head, size_t positions) {
    const struct cache_path *path = CACHE_PATHS;
    while (path->isa != model->bulk || (path->usable && !path->usable()))
        path++;
    const char *block = cache_block(model, layer, stream, kv_head);
    return (struct segment){
        .keys = block,
        .values = block + CACHE_VALUES,
        .scales = block + CACHE_SCALES,
        .tile = TILE_ELEMENTS,
        .apart = CACHE_ROW,
        .value_apart = CACHE_ROW,
        .value_row = TILE_ELEMENTS,
        .planes = 1,
        .positions = positions,
        .causal = true,
        .by = path->by,
    };
}

// ---- storing ------------------------------------------------------------------------------------

// What the projections leave of a column: a key and a value, fp32 [2, head_dim].
static float *new_entry(const struct parscale *model, size_t column, size_t kv_head) {
    return model->buffers->new_cache + (column * KV_HEADS + kv_head) * 2 * HEAD_DIM;
}

// A scale needs the whole key: values i..i+n-1 of one, or of a value, are kept for finish_cache.
static void cache_key(const struct parscale *model, const struct destination *to, size_t kv_head,
                      size_t i, size_t n, const float *values) {
    memcpy(new_entry(model, to->column, kv_head) + i, values, n * sizeof *values);
}

static void cache_value(const struct parscale *model, const struct destination *to, size_t kv_head,
                        size_t i, size_t n, const float *values) {
    memcpy(new_entry(model, to->column, kv_head) + HEAD_DIM + i, values, n * sizeof *values);
}

// x [head_dim] to integers: x[i] = *scale * (u[i] - 128), to nearest. A NaN or an infinity makes
// the scale one, so that it is not lost.
static void quantize_head(const float *x, unsigned char *u, float *scale) {
    const float round = 12583040.0f; // 1.5 * 2^23 + 128: a sum's low bits are the nearest integer
    uint32_t most = 0;               // as integers magnitudes have the same order, NaN the last
    for (size_t i = 0; i < HEAD_DIM; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    float largest;
    memcpy(&largest, &most, sizeof largest);
    float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
    *scale = largest / 127.0f;
    for (size_t i = 0; i < HEAD_DIM; i++) {
        float sum = x[i] * inverse + round;
        uint32_t bits;
        memcpy(&bits, &sum, sizeof bits);
        u[i] = (unsigned char)bits;
    }
}

// new_cache -> cache; this thread's share. What lies behind the last position is never
// NaN, as integers have none, and its scales are not read.
static void finish_cache(const struct parscale *model, size_t layer, size_t streams, int thread) {
    const struct block *block = &model->block;
    size_t items = streams * block->tokens * KV_HEADS;
    for (struct work work = pool_work(model->pool, thread, items); pool_next(&work);) {
        size_t column = work.item / KV_HEADS, kv_head = work.item % KV_HEADS;
        size_t position = block->position + column % block->tokens, at = position % TILE;
        char *row = cache_block(model, layer, column / block->tokens, kv_head) +
                    position / TILE * CACHE_ROW;
        float *scales = (float *)(row + CACHE_SCALES);
        unsigned char key[HEAD_DIM], value[HEAD_DIM];
        const float *entry = new_entry(model, column, kv_head);
        quantize_head(entry, key, &scales[at]);
        quantize_head(entry + HEAD_DIM, value, &scales[TILE + at]);
        for (size_t i = 0; i < HEAD_DIM; i++) {
            size_t tile = i / TILE * TILE_ELEMENTS;
            row[tile + tile_index(at, i % TILE)] = (char)key[i];
            row[CACHE_VALUES + tile + tile_index(i % TILE, at)] = (char)value[i];
        }
    }
    pool_barrier(model->pool);
}
